"""``tricks``, ``recipes`` and ``diff``: what needs no training answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trickbag.cli.common import (
    DeviceOption,
    JsonOption,
    SetOption,
    console,
    print_json,
    read_data,
    read_recipe,
)
from trickbag.errors import UsageError

if TYPE_CHECKING:
    from trickbag.recipe import Recipe
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
    data: Annotated[
        str | None, typer.Option("--for", metavar="DATA", help="Show what it becomes on other data.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of that run; else chosen by rule.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the YAML here.")] = None,
    device: DeviceOption = "auto",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the recipes, or show one as YAML: as it is, or made for other data by stated rules."""
    if name is None:
        for flag, given in (("--for", data), ("--epochs", epochs), ("--out", out), ("--set", set_)):
            if given is not None and given != []:
                raise UsageError("needs a recipe", where=flag, fix="`trickbag recipes` lists them all")
        _list_recipes(as_json)
    elif data is not None:
        _show_fitted(read_recipe(name, set_, None, None), data, epochs, out, device, set_, as_json)
    elif epochs is not None:
        raise UsageError("needs data to be fitted to", where="--epochs", fix="add --for DATA")
    else:
        _show_recipe(read_recipe(name, set_, None, None), out, as_json)


def _list_recipes(as_json: bool) -> None:
    from trickbag.recipe import load, published

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


def _show_recipe(recipe: Recipe, out: Path | None, as_json: bool) -> None:
    from trickbag.recipe import dump
    from trickbag.recipe.diff import describe

    if as_json:
        text = json.dumps(
            {"digest": recipe.digest, "about": recipe.about.model_dump(), **recipe.data()}, indent=2
        )
        _write(text + "\n", out)
        return
    tricks = sorted(recipe.tricks.values(), key=lambda trick: trick.order)
    lines = [f"digest {recipe.digest}", f"{len(tricks)} tricks, in the order in which they act:"]
    lines += [f"  {trick.stage.name.lower()}: {describe(trick)}" for trick in tricks]
    _write("".join(f"# {line}\n" for line in lines) + dump(recipe), out)


def _show_fitted(
    recipe: Recipe,
    data: str,
    epochs: float | None,
    out: Path | None,
    device: str,
    set_: list[str] | None,
    as_json: bool,
) -> None:
    from trickbag.data import facts
    from trickbag.engine.device import Device
    from trickbag.recipe.fitting import fit

    if epochs is not None and not 0 < epochs <= 1e6:
        raise UsageError(f"{epochs:g} epochs", where="--epochs", expected="a number above 0, of 1e6 at most")
    fitted = fit(recipe, facts(read_data(data, set_)), epochs, device_type=Device(device).type)
    if as_json:
        value = {
            "digest": fitted.recipe.digest,
            "about": fitted.recipe.about.model_dump(),
            **fitted.recipe.data(),
            "adjustments": [
                {
                    "key": a.key,
                    "before": _plain(a.before),
                    "after": _plain(a.after),
                    "rule": a.rule,
                    "reason": a.reason,
                }
                for a in fitted.adjustments
            ],
            "notes": fitted.notes,
        }
        _write(json.dumps(value, indent=2, default=str) + "\n", out)
        return
    _write(fitted.yaml(), out)
    if out is not None:
        for line in (*map(str, fitted.adjustments), *(f"note: {note}" for note in fitted.notes)):
            print(line)


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


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
