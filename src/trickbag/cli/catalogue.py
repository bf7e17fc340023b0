"""``tricks``, ``recipes`` and ``diff``: what needs no training answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trickbag.cli.common import JsonOption, console, print_json
from trickbag.errors import UsageError

if TYPE_CHECKING:
    from trickbag.tricks import Trick


def tricks(
    name: Annotated[str | None, typer.Argument(help="A trick, by any of its names.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tricks, or show one's card."""
    from trickbag.tricks import catalogue, find

    if name is None:
        if as_json:
            print_json([_card(trick) for trick in catalogue().values()])
            return
        from rich.table import Table

        table = Table(
            "trick", "stage", "what it does", title=f"{len(catalogue())} tricks", title_justify="left"
        )
        for trick in catalogue().values():
            table.add_row(trick.kind, trick.stage.name.lower(), trick.card.summary)
        console().print(table)
        return
    found = find(name)
    if found is None:
        from trickbag.errors import nearest

        near = nearest(name, catalogue())
        raise UsageError(
            f"no trick is called {name!r}",
            fix=f"did you mean {near}?" if near else "`trickbag tricks` lists them all",
        )
    _show_card(found, as_json)


def _show_card(trick: type[Trick], as_json: bool) -> None:
    if as_json:
        print_json(_card(trick))
        return
    from trickbag import interactions

    card, out = trick.card, console()
    out.print(f"[bold]{card.title}[/bold]  [dim]({trick.kind}, acts at: {trick.stage.name.lower()})[/dim]")
    rows = {
        "what": card.summary,
        "also called": ", ".join(card.aliases),
        "source": card.source,
        "suggested": card.suggested,
        "does nothing at": card.null,
        "cost": card.cost,
        "computed by": card.library,
        "needs": ", ".join(trick.requires),
        "beware": "\n  ".join(
            f"{'error' if row.level == 'error' else 'note'}, {' with '.join(row.kinds)}: {row.reason}"
            for row in interactions.of(trick.kind)
        ),
    }
    for label, text in rows.items():
        if text:
            out.print(f"\n[bold]{label}[/bold]\n  {text}", markup=True)
    out.print("\n[bold]settings[/bold]")
    for field, info in trick.model_fields.items():
        default = "required" if info.is_required() else repr(info.get_default(call_default_factory=True))
        out.print(
            f"  {field} = {default}" + (f"  {info.description}" if info.description else ""), markup=False
        )
    out.print("\n[bold]in a plain PyTorch loop[/bold]")
    out.print(card.snippet.strip(), markup=False)


def _card(trick: type[Trick]) -> dict[str, Any]:
    from dataclasses import asdict

    from trickbag import interactions

    return {
        "kind": trick.kind,
        "stage": trick.stage.name.lower(),
        "slot": trick.slot,
        "requires": list(trick.requires),
        "interactions": [
            {"kinds": list(row.kinds), "level": row.level, "reason": row.reason}
            for row in interactions.of(trick.kind)
        ],
        "settings": trick.model_json_schema()["properties"] if trick.model_fields else {},
        **asdict(trick.card),
    }


def recipes(
    name: Annotated[str | None, typer.Argument(help="A published recipe, or a YAML file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes, or show one as YAML."""
    from trickbag.recipe import dump, load, published

    if name is not None:
        recipe = load(name)
        if as_json:
            print_json({"digest": recipe.digest, "about": recipe.about.model_dump(), **recipe.data()})
        else:
            print(f"# digest {recipe.digest}\n{dump(recipe)}", end="")
        return
    found = {each: load(each) for each in published()}
    if as_json:
        print_json({each: {"digest": r.digest, "title": r.about.title} for each, r in found.items()})
        return
    from rich.table import Column, Table

    table = Table(
        Column("recipe", no_wrap=True),
        "what it is",
        Column("model", overflow="fold"),
        "epochs",
        "size",
        "tricks",
    )
    for each, recipe in found.items():
        size, count = str(recipe.image_size), str(len(recipe.tricks))
        table.add_row(each, recipe.about.title, recipe.model.name, f"{recipe.epochs:g}", size, count)
    console().print(table)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A recipe.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Show what changes from recipe A to recipe B; each line is a possible factor of a study."""
    from trickbag.recipe import diff as compare
    from trickbag.recipe import load
    from trickbag.recipe.diff import describe

    changes = compare(load(a), load(b))
    if as_json:
        print_json(
            [
                {"key": c.key, "before": _plain(c.before), "after": _plain(c.after), "passive": c.passive}
                for c in changes
            ]
        )
        return
    if not changes:
        print("no difference")
    for change in changes:
        before = "(absent)" if change.before is None else describe(change.before)
        after = "(absent)" if change.after is None else describe(change.after)
        print(f"{change.key}: {before} -> {after}" + ("  [no training needed]" if change.passive else ""))


def _plain(value: Any) -> Any:
    dumped = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return {"kind": value.kind, **dumped} if hasattr(value, "kind") else dumped
