"""``show``: pictures of what a recipe does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trickbag.cli.common import (
    DataArgument,
    RecipeArgument,
    SetOption,
    WithOption,
    WithoutOption,
    console,
    read_data,
    read_recipe,
    reading,
)


def show(
    recipe: RecipeArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the pictures go.")] = Path("pictures"),
    images: Annotated[int, typer.Option(min=1, max=32, help="How many images.")] = 4,
    draws: Annotated[int, typer.Option(min=1, max=32, help="How many times each is augmented.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random stream.")] = 42,
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
) -> None:
    """Draw what a recipe does to your images, to the learning rate and to the size of images, as PNG."""
    from trickbag import api
    from trickbag.report import pictures

    chosen, spec = read_recipe(recipe, set_, with_, without), read_data(data, set_)
    pictures.pyplot()
    terminal = console()
    with reading(terminal) as progress:
        plan, loaded = api.compile_plan(chosen, spec, "cpu", progress)
    shown = pictures.views(plan, loaded, images=images, draws=draws, seed=seed)
    title = f"{Path(recipe).stem} on {loaded.facts.name}"
    for name, figure in (("images", pictures.grid(shown, title)), ("curves", pictures.curves(plan))):
        path = out / f"{Path(recipe).stem}-{name}.png"
        pictures.save(figure, path)
        terminal.print(f"{name}: {path}", soft_wrap=True)
