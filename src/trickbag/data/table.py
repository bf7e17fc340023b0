"""Parquet files in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trickbag.data.base import SPLITS, DataSpec
from trickbag.data.hashing import combine, file_hashes
from trickbag.data.listing import SELECTION, TEST, TRAIN, Listing, Progress
from trickbag.data.rows import Rows, read_columns
from trickbag.errors import DataError, nearest

SPLIT_WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "validation": SELECTION,
    "valid": SELECTION,
    "val": SELECTION,
    "dev": SELECTION,
    "selection": SELECTION,
    "test": TEST,
    "testing": TEST,
}
LABEL_NAMES = ("label", "labels", "class", "target", "category", "fine_label", "y")


def parquet_files(source: Path) -> list[Path]:
    """The Parquet files that ``source`` is or holds, sorted; none if it is an image folder."""
    if source.is_file():
        return [source]
    return sorted(
        path
        for path in source.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(source).parts)
    )


def list_table(source: Path, spec: DataSpec, progress: Progress | None = None) -> Listing:
    """List the rows of Parquet files.

    Raises:
        DataError: the files cannot be read, or columns or labels are missing or ambiguous.
    """
    files = parquet_files(source)
    root = source if source.is_dir() else source.parent
    schemas = [_schema(path) for path in files]
    image, label = _image_column(schemas[0], spec, files[0]), _label_column(schemas[0], spec, files[0])
    groups = spec.groups if spec.groups in schemas[0].names else None
    splits = _split_of_files(files, root) if source.is_dir() else [TRAIN]
    for path, schema in zip(files, schemas, strict=True):
        for column in filter(None, (image, label, groups)):
            if column not in schema.names:
                raise DataError(f"there is no column {column!r}", where=str(path), expected=_columns(schema))
    plain = not pa.types.is_struct(schemas[0].field(image).type)
    labels, names, given, group_parts = [], [], [], []
    kept: list[Path] = []
    for path, split in zip(files, splits, strict=True):
        wanted = [label, *([groups] if groups else [])]
        table = read_columns(path, wanted)
        column = table.column(label)
        if split != TRAIN and _unlabeled(column):
            continue
        kept.append(path)
        labels.append(column)
        names += _names(path, root, image, plain, table.num_rows, schemas[0])
        given.append(np.full(table.num_rows, split, dtype=np.int8))
        if groups:
            group_parts.append(np.asarray(table.column(groups).to_pylist(), dtype=object))
    numbers, classes = _labels(labels, schemas[0], label, kept)
    names = _distinct(names, given, kept, root)
    hashes = file_hashes(kept, root, progress)
    splits_ = np.concatenate(given)
    head = f"parquet {image} {label} {[p.relative_to(root).as_posix() for p in kept]}"
    return Listing(
        name=(source.stem if source.is_file() else source.resolve().name),
        names=tuple(names),
        labels=numbers,
        classes=classes,
        given=splits_,
        content=combine((head.encode(), "\0".join(classes).encode(), splits_.tobytes(), *hashes)),
        mode="rgb",
        reader=Rows(tuple(kept), image),
        groups=np.concatenate(group_parts) if groups else None,
        root=root,
    )


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a Parquet file: {str(error).splitlines()[0]}", where=str(path)) from None


def _features(schema: pa.Schema) -> dict[str, Any]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _columns(schema: pa.Schema) -> str:
    return "one of the columns " + ", ".join(schema.names)


def _image_column(schema: pa.Schema, spec: DataSpec, path: Path) -> str:
    fits = [f.name for f in schema if _holds_images(f.type)]
    if spec.image_column is not None:
        if spec.image_column not in fits:
            what = (
                f"column {spec.image_column!r} holds no images" if spec.image_column in schema.names else None
            )
            near = nearest(spec.image_column, fits or schema.names)
            raise DataError(
                what or f"there is no column {spec.image_column!r}",
                where=str(path),
                expected="a column of bytes, or of structs with bytes; the file has "
                + ", ".join(schema.names),
                fix=f"did you mean {near}?" if near else None,
            )
        return spec.image_column
    marked = [n for n, f in _features(schema).items() if f.get("_type") == "Image" and n in fits]
    for names in (marked, [n for n in fits if n in ("image", "img")], fits):
        if len(names) == 1:
            return names[0]
    raise DataError(
        f"{len(fits)} columns could hold the images: {', '.join(fits)}" if fits else "no column holds images",
        where=str(path),
        expected="a column of bytes, or of structs with bytes and path",
        fix="name it with image_column" if fits else None,
    )


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_images(kind.field(at).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(schema: pa.Schema, spec: DataSpec, path: Path) -> str:
    fits = [f.name for f in schema if _holds_labels(f.type) and f.name != spec.groups]
    if spec.label_column is not None:
        if spec.label_column not in fits:
            near = nearest(spec.label_column, fits)
            raise DataError(
                f"column {spec.label_column!r} is missing or holds no labels",
                where=str(path),
                expected="a column of whole numbers or texts: " + ", ".join(fits),
                fix=f"did you mean {near}?" if near else None,
            )
        return spec.label_column
    marked = [n for n, f in _features(schema).items() if f.get("_type") == "ClassLabel" and n in fits]
    named = next(([n] for n in LABEL_NAMES if n in (marked or fits)), [])
    for names in (marked, named, fits):
        if len(names) == 1:
            return names[0]
    raise DataError(
        f"{len(fits)} columns could hold the labels: {', '.join(fits)}" if fits else "no column holds labels",
        where=str(path),
        expected="a column of whole numbers or texts",
        fix="name it with label_column" if fits else None,
    )


def _holds_labels(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_dictionary(kind):
        kind = kind.value_type
    return bool(t.is_integer(kind) or t.is_boolean(kind) or t.is_string(kind) or t.is_large_string(kind))


def _unlabeled(column: pa.ChunkedArray) -> bool:
    """True for the test splits of competitions, whose labels are all null or -1."""
    if column.null_count == len(column):
        return True
    return bool(pa.types.is_integer(column.type) and pc.max(column).as_py() == -1)


def _labels(
    columns: Sequence[pa.ChunkedArray], schema: pa.Schema, label: str, files: Sequence[Path]
) -> tuple[np.ndarray, tuple[str, ...]]:
    column = pa.chunked_array([chunk for part in columns for chunk in part.cast(columns[0].type).chunks])
    if not len(column):
        raise DataError("the table has no rows", where=str(files[0]), expected="a row for each image")
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} labels are missing", where=f"column {label}")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    names = _features(schema).get(label, {}).get("names")
    if names and pa.types.is_integer(column.type):
        numbers = column.to_numpy().astype(np.int64)
        wrong = np.unique(numbers[(numbers < 0) | (numbers >= len(names))])
        if len(wrong):
            raise DataError(
                f"label {wrong[0]} has no class name",
                where=f"column {label} of {files[0].parent}",
                expected=f"0 to {len(names) - 1}",
            )
        classes = tuple(map(str, names))
    else:
        values, numbers = np.unique(column.to_numpy(zero_copy_only=False), return_inverse=True)
        classes, numbers = tuple(map(str, values.tolist())), numbers.astype(np.int64)
    if len(classes) < 2:
        raise DataError(
            f"column {label!r} has one class only: {', '.join(classes)}", expected="two or more classes"
        )
    return numbers, classes


def _split_of_files(files: Sequence[Path], root: Path) -> list[int]:
    splits = [_split_of(path.relative_to(root)) for path in files]
    if all(split is None for split in splits):
        return [TRAIN] * len(files)
    unclear = [path.name for path, split in zip(files, splits, strict=True) if split is None]
    if unclear:
        raise DataError(
            f"cannot tell the split of {', '.join(unclear[:3])}",
            where=str(root),
            expected="file or folder names with train, validation or test in them",
        )
    if TRAIN not in splits:
        found = sorted({SPLITS[s] for s in splits if s is not None})
        raise DataError(f"there is no train file, only {', '.join(found)}", where=str(root))
    return [split for split in splits if split is not None]


def _split_of(path: Path) -> int | None:
    for part in (path.stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def _names(path: Path, root: Path, image: str, plain: bool, rows: int, schema: pa.Schema) -> list[str]:
    if not plain and schema.field(image).type.get_field_index("path") >= 0:
        values = pc.struct_field(read_columns(path, [f"{image}.path"]).column(0), "path").to_pylist()
        if all(values) and len(set(values)) == len(values):
            return [str(value) for value in values]
    stem = path.relative_to(root).with_suffix("").as_posix()
    return [f"{stem}:{row}" for row in range(rows)]


def _distinct(names: list[str], parts: Sequence[np.ndarray], files: Sequence[Path], root: Path) -> list[str]:
    if len(set(names)) == len(names):
        return names
    stems = [path.relative_to(root).with_suffix("").as_posix() for path in files]
    prefixes = [stem for stem, part in zip(stems, parts, strict=True) for _ in range(len(part))]
    return [f"{prefix}:{name}" for prefix, name in zip(prefixes, names, strict=True)]
