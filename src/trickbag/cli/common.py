"""Options and output that commands share."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from trickbag.data.base import DataSpec
    from trickbag.recipe import Recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a published recipe, or a YAML file.")
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="digits, a folder of images, Parquet, torchvision:NAME, or a YAML file that says so.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a value: epochs=5, mixup.alpha=0.4, data.train_size=200."
    ),
]
WithOption = Annotated[
    list[str] | None,
    typer.Option("--with", metavar="TRICK[:KEY=VALUE,...]", help="Put a trick into the bag."),
]
WithoutOption = Annotated[
    list[str] | None, typer.Option("--without", metavar="TRICK", help="Take a trick out of the bag.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
RunsOption = Annotated[str, typer.Option(metavar="FOLDER", help="Folder of run directories.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; one a core unless told otherwise.")
]
KEEPING: dict[str, tuple[str, Any]] = {
    "short_side": (
        "--short-side",
        Annotated[
            int | None,
            typer.Option(min=1, metavar="PIXELS", help="Shrink larger images once, to this short side."),
        ],
    ),
    "keep": (
        "--keep",
        Annotated[
            str | None,
            typer.Option(
                metavar="HOW",
                help="How images are kept between epochs: decoded (raw), encoded anew (jpeg), as they came "
                "(encoded), or decoded if they fit memory (auto).",
            ),
        ],
    ),
    "quality": (
        "--quality",
        Annotated[int | None, typer.Option(min=1, max=100, help="JPEG quality, with --keep jpeg; else 90.")],
    ),
}
"""Settings of the data that have options of their own: the option, and its type."""


def keeping_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``--set`` the options of :data:`KEEPING`, which win over it."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        values = {name: given.pop(name, None) for name in KEEPING}
        more = [f"data.{name}={value}" for name, value in values.items() if value is not None]
        command(**given | {"set_": [*(given.get("set_") or ()), *more]})

    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, kind, default=None, annotation=to) for name, (_, to) in KEEPING.items()]
    parameters = [*signature.parameters.values(), *extra]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapped


WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Threads that read images; chosen by rule unless told otherwise.")
]


def console(*, quiet: bool = False) -> Console:
    """Where people read: standard output, or standard error where that is kept for JSON.

    Of several processes that train together, the first one speaks.
    """
    from rich.console import Console

    return Console(stderr=quiet, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


@contextmanager
def reading(out: Console) -> Iterator[Callable[[str, int, int], None]]:
    """While entered, say how far reading the data is."""
    with out.status("reading data") as status:
        yield lambda what, done, total: status.update(f"{what}: {done} of {total} images")


def load_compiled(out: Console) -> None:
    """Load the compiled image operations, which takes half a minute the first time after installation."""
    from trickbag.imageops.backend import numba_works

    if numba_works():
        with out.status("loading image operations (compiled once after installation)"):
            import trickbag.imageops.compiled
            import trickbag.imageops.resizing  # noqa: F401


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def split_settings(settings: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """``--set`` texts for the recipe, and those for the data (without their ``data.``)."""
    recipe: list[str] = []
    data: list[str] = []
    for text in settings or ():
        (data if text.startswith("data.") else recipe).append(text)
    return recipe, [text.removeprefix("data.") for text in data]


def read_recipe(
    name: str, settings: Sequence[str] | None, with_: Sequence[str] | None, without: Sequence[str] | None
) -> Recipe:
    """The recipe that a command line describes."""
    from trickbag.recipe import load

    return load(name, set_=split_settings(settings)[0], with_=with_ or (), without=without or ())


def read_data(text: str, settings: Sequence[str] | None) -> DataSpec:
    """The data that a command line describes."""
    from dataclasses import replace

    from trickbag.data import DataSpec, spec
    from trickbag.errors import DataError, UsageError, nearest
    from trickbag.recipe.read import yaml_value

    options, flags = {}, {}
    for setting in split_settings(settings)[1]:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"cannot read data.{setting}", where="--set", expected="data.KEY=VALUE")
        key = key.strip()
        flags[key] = f"{KEEPING[key][0]} {value}" if key in KEEPING else f"--set data.{setting}"
        if key not in DataSpec.model_fields:
            near = nearest(key, DataSpec.model_fields)
            raise DataError(
                f"{key or 'data'}: there is no such setting",
                where=flags[key],
                expected="settings " + ", ".join(DataSpec.model_fields),
                fix=f"did you mean data.{near}?" if near else None,
            )
        options[key] = yaml_value(value)
    try:
        return spec(text, **options)
    except DataError as error:
        raise DataError(
            replace(p, where=p.where or flags.get(p.what.partition(":")[0])) for p in error.problems
        ) from None
