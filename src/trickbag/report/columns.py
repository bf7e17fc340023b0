"""Dataclasses as rows and typed columns of a table; each column says its unit."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from trickbag.report.units import POINTS, PROBABILITY, SECONDS

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = list[dict[str, Any]]
    Made = tuple[list[pa.Field], Rows]

UNITS = {
    **dict.fromkeys(("p", "p_holm", "p_equivalence", "q", "chance"), PROBABILITY),
    "seconds": SECONDS,
    "cost_multiple": "times the baseline's",
}


def column(name: str, kind: pa.DataType, unit: str = "", label: str = "") -> pa.Field:
    """A column with its unit, and what to call it, in its metadata."""
    import pyarrow as pa

    about = {key: text for key, text in (("unit", unit), ("label", label)) if text}
    return pa.field(name, kind, metadata=about or None)


def plain(kind: type, values: Iterable[Any], unit: str = POINTS, but: tuple[str, ...] = ()) -> Made:
    """A row for each value of a dataclass.

    Args:
        kind: the dataclass.
        values: its values.
        unit: of the numbers that :data:`UNITS` does not name.
        but: fields to leave out.
    """
    return columns(kind, unit, but), [row(value) for value in values]


def columns(kind: type, unit: str = POINTS, but: tuple[str, ...] = ()) -> list[pa.Field]:
    """A column for each field of a dataclass."""
    hints = get_type_hints(kind)
    found = [(field.name, _type(hints[field.name])) for field in fields(kind) if field.name not in but]
    return [
        column(name, type_, UNITS.get(name, unit) if _measured(name, type_) else "") for name, type_ in found
    ]


def row(value: Any) -> dict[str, Any]:
    """A value of a dataclass by field."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    if "pairs" in found:
        found["pairs"] = [{"seed": seed, "difference": difference} for seed, difference in found["pairs"]]
    return found


def _measured(name: str, type_: pa.DataType) -> bool:
    import pyarrow as pa

    return name == "pairs" or (pa.types.is_floating(type_) and name != "df")


def _type(hint: Any) -> pa.DataType:
    import pyarrow as pa

    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) in (list, tuple):
        inner = get_args(hint)[0]
        pair = pa.struct([("seed", pa.int64()), ("difference", pa.float64())])
        return pa.list_(pair if get_origin(inner) is tuple else _type(inner))
    return {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}[hint]
