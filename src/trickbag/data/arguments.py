"""The command line's DATA argument and data files (``.yaml``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trickbag.data.base import DataSpec
from trickbag.errors import DataError, Problem, RecipeError, nearest


def read_spec(text: str, options: Mapping[str, Any]) -> DataSpec:
    """See :func:`trickbag.data.spec`."""
    options = {name: value for name, value in options.items() if value is not None}
    if Path(text).suffix.lower() in (".yaml", ".yml"):
        values, origin = _from_file(_home(text))
    else:
        values, origin = {"source": text}, {}
    values |= options
    source = values.get("source")
    if isinstance(source, str):
        values["source"] = _check_source(source, origin.get(("source",)))
    groups = values.get("groups")
    if isinstance(groups, str) and _home(groups).is_file():
        values["groups"] = str(_home(groups).absolute())
    where = {path: line for path, line in origin.items() if path and path[0] not in options}
    return _validate(values, where, text)


def _home(text: str) -> Path:
    """The path, with a leading ``~`` replaced; unlike ``Path.expanduser`` a user that nobody knows stays."""
    return Path(os.path.expanduser(text))


def _check_source(source: str, where: str | None) -> str:
    if source == "digits":
        return source
    prefix, colon, name = source.partition(":")
    if colon and prefix.lower() == "torchvision":
        if not name:
            raise DataError("torchvision: needs a name", where=where, expected="torchvision:CIFAR10, say")
        return f"torchvision:{name}"
    path = _home(source)
    if not source.strip() or not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        siblings = [name for name in siblings if not name.startswith(".")]
        near = nearest(source, ["digits", *siblings]) or nearest(path.name, siblings)
        raise DataError(
            f"there is no data {source!r}",
            where=where,
            expected="digits, a folder, a Parquet file, torchvision:NAME, or a .yaml file",
            fix=f"did you mean {near}?" if near else "check the path",
        )
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise DataError(f"{source} is of an unknown kind", where=where, expected="a .parquet or .yaml file")
    return str(path.absolute())


def _from_file(path: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], str]]:
    from trickbag.recipe.read import read_yaml

    try:
        values, origin = read_yaml(path)
    except RecipeError as error:
        raise DataError(error.problems) from None
    if not isinstance(values, dict):
        raise DataError("a data file is a mapping", where=f"{path}:1", expected="source: ..., selection: ...")
    source, groups = values.get("source"), values.get("groups")
    if isinstance(source, str) and source != "digits" and not source.lower().startswith("torchvision:"):
        values["source"] = str(path.parent / _home(source))
    if isinstance(groups, str) and (path.parent / groups).is_file():
        values["groups"] = str(path.parent / groups)
    return values, origin


def _validate(values: dict[str, Any], origin: Mapping[tuple[str | int, ...], str], text: str) -> DataSpec:
    from pydantic import ValidationError

    from trickbag.recipe.model import explain

    try:
        return DataSpec(**values)
    except ValidationError as error:
        raise DataError(
            Problem(p.what, origin.get(path, text if ".y" in text else None), p.expected, p.fix)
            for path, p in explain(error, DataSpec)
        ) from None
