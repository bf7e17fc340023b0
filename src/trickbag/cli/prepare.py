"""``prepare``: a copy of the images that is quick to read."""

from __future__ import annotations

import shlex

import typer

from trickbag.cli.common import (
    KEEPING,
    DataArgument,
    JsonOption,
    SetOption,
    console,
    keeping_options,
    print_json,
    read_data,
    reading,
    split_settings,
)


@keeping_options
def prepare(data: DataArgument, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Make a smaller, decoded or re-encoded copy of the images in the cache, for quicker training."""
    from trickbag import api
    from trickbag.data.copies import amount
    from trickbag.errors import UsageError

    recipe, settings = split_settings(set_)
    if recipe:
        raise UsageError("there is no recipe to set", where=f"--set {recipe[0]}", expected="data.KEY=VALUE")
    spec = read_data(data, set_)
    out = console(quiet=as_json)
    try:
        with reading(out) as progress:
            made = api.prepare(spec, progress=progress)
    except KeyboardInterrupt:
        out.print("interrupted; nothing is kept of the copy")
        raise typer.Exit(130) from None
    use = " ".join(["trickbag train RECIPE", shlex.quote(data), *_options(settings)])
    facts = made.data.facts
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "images": made.images,
                "unreadable": list(facts.bad),
                "bytes": made.bytes,
                "seconds": made.seconds,
                "images_per_second": made.images_per_second,
                "found": made.found,
                "fingerprint": facts.fingerprint,
                "use": use,
            }
        )
        return
    if made.found == "damaged":
        out.print("[yellow]the copy that was there is damaged: it has been made again[/yellow]")
    height, width = facts.image_size
    out.print(
        f"{facts.name}: {made.images:,} images, about {height} x {width} pixels, {amount(made.bytes)}",
        soft_wrap=True,
    )
    if facts.bad:
        names = ", ".join(facts.bad[:3]) + (", ..." if len(facts.bad) > 3 else "")
        out.print(f"[yellow]left out {len(facts.bad)} unreadable images: {names}[/yellow]", soft_wrap=True)
    if made.found == "sound":
        out.print("the copy was there already, and nothing has changed since")
    else:
        out.print(f"made in {made.seconds:.1f} s, {made.images_per_second:,.0f} images/s")
    out.print(f"copy: {made.path}", soft_wrap=True)
    out.print(f"use:  {use}", soft_wrap=True)


def _options(settings: list[str]) -> list[str]:
    """The options with which other commands find the same copy."""
    words = []
    for setting in settings:
        name, _, value = setting.partition("=")
        known = name in KEEPING
        words += [KEEPING[name][0], value] if known else ["--set", shlex.quote(f"data.{setting}")]
    return words
