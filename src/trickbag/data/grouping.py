"""Which images belong together: a CSV file matched to image names, or a column of the table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from trickbag.data.listing import Listing
from trickbag.errors import DataError

PATH_HEADERS = (
    "path",
    "file",
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "name",
    "image",
    "image_path",
    "img",
)
GROUP_HEADERS = (
    "group",
    "groups",
    "group_id",
    "group_name",
    "cluster",
    "patient",
    "patient_id",
    "subject",
    "subject_id",
)


def groups_of(listing: Listing, text: str | None) -> np.ndarray | None:
    """``(n,)`` int64 group number of every image, or None if no groups are wanted.

    Raises:
        DataError: the file cannot be read, or an image has no group.
    """
    if text is None:
        return None
    if listing.groups is not None:
        values = [None if v is None else str(v) for v in listing.groups]
    else:
        values = match(listing.names, read_groups(_find(text, listing.root)))
    lacking = [name for name, value in zip(listing.names, values, strict=True) if value in (None, "")]
    if lacking:
        some = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        raise DataError(
            f"{len(lacking)} of {len(listing)} images have no group: {some}",
            where=text,
            expected="a group for every image",
            fix="add them, or choose the images with pattern",
        )
    return np.unique(np.array(values, dtype=str), return_inverse=True)[1].astype(np.int64)


def read_groups(path: Path) -> dict[str, str]:
    """Read a CSV file with a column of paths and a column of groups.

    Raises:
        DataError: the file is not such a CSV, or gives one path two groups.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    path_at, group_at = _columns(path, header)
    result: dict[str, str] = {}
    for line, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        if len(row) <= max(path_at, group_at):
            raise DataError("the row is too short", where=f"{path}:{line}", expected=",".join(header))
        name, group = _normal(row[path_at]), row[group_at].strip()
        if result.setdefault(name, group) != group:
            raise DataError(f"{name} is in group {result[name]} and in group {group}", where=f"{path}:{line}")
    return result


def match(names: Sequence[str], groups: dict[str, str]) -> list[str | None]:
    """The group of each name: by path, else by file name, else by stem, where those are unique."""
    result = [groups.get(_normal(name)) for name in names]
    for part in ("name", "stem"):
        open_ = [i for i, value in enumerate(result) if value is None]
        if not open_:
            break
        known = _unique([(getattr(PurePosixPath(path), part), group) for path, group in groups.items()])
        keys = [getattr(PurePosixPath(_normal(name)), part) for name in names]
        once = _unique([(k, str(i)) for i, k in enumerate(keys)])
        for i in open_:
            if keys[i] in once:
                result[i] = known.get(keys[i])
    return result


def _unique(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The pairs whose key occurs once."""
    counts: dict[str, int] = {}
    for key, _ in pairs:
        counts[key] = counts.get(key, 0) + 1
    return {key: value for key, value in pairs if counts[key] == 1}


def _columns(path: Path, header: list[str]) -> tuple[int, int]:
    lower = [name.lower() for name in header]
    path_at = next((lower.index(name) for name in PATH_HEADERS if name in lower), None)
    group_at = next((lower.index(name) for name in GROUP_HEADERS if name in lower), None)
    if len(header) == 2:
        if path_at is None and group_at is not None:
            path_at = 1 - group_at
        elif group_at is None and path_at is not None:
            group_at = 1 - path_at
    if path_at is None or group_at is None or path_at == group_at:
        raise DataError(
            f"cannot tell the columns apart: {', '.join(header) or 'the file is empty'}",
            where=f"{path}:1",
            expected="a header line with path and group",
        )
    return path_at, group_at


def _normal(name: str) -> str:
    return name.strip().replace("\\", "/").removeprefix("./")


def _find(text: str, root: Path | None) -> Path:
    path = Path(os.path.expanduser(text))
    for candidate in (path, root / path if root else path):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"groups {text!r} is neither a column of the data nor a file",
        where="groups",
        expected="a Parquet column or a CSV file with the header path,group",
    )
