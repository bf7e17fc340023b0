"""Image folders: a folder a class, with or without folders for the splits."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from trickbag.data.base import DataSpec
from trickbag.data.decode import SUFFIXES
from trickbag.data.hashing import combine, file_hashes
from trickbag.data.listing import SELECTION, TEST, TRAIN, Files, Listing, Progress
from trickbag.errors import DataError, nearest

log = logging.getLogger("trickbag.data")

SPLIT_FOLDERS = {
    "train": TRAIN,
    "val": SELECTION,
    "valid": SELECTION,
    "validation": SELECTION,
    "selection": SELECTION,
    "test": TEST,
}
LAYOUT = "class folders (root/cat/1.jpg) or split folders with class folders (root/train/cat/1.jpg)"


def list_folder(root: Path, spec: DataSpec, progress: Progress | None = None) -> Listing:
    """List an image folder.

    Raises:
        DataError: the folder is empty, flat, has one class, an empty class, or classes that differ
            between splits.
    """
    splits = _split_folders(root)
    found: dict[int, dict[str, list[str]]] = {}
    for split, folder in splits.items():
        found[split] = {
            child.name: _images(child, root, spec.pattern) for child in _children(folder) if child.is_dir()
        }
    classes = _classes(root, spec, found, splits)
    rows = sorted(
        (name, classes.index(label), split)
        for split, labels in found.items()
        for label, names in labels.items()
        for name in names
    )
    names = tuple(name for name, _, _ in rows)
    _warn_of_pairs(names)
    paths = tuple(root / name for name in names)
    hashes = file_hashes(paths, root, progress)
    given = np.array([split for _, _, split in rows], dtype=np.int8)
    parts = (
        b"\0".join((name.encode("utf-8", "surrogateescape"), h))
        for name, h in zip(names, hashes, strict=True)
    )
    return Listing(
        name=root.resolve().name,
        names=names,
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        classes=classes,
        given=given,
        content=combine(
            (b"folder", "\0".join(classes).encode("utf-8", "surrogateescape"), given.tobytes(), *parts)
        ),
        mode="rgb",
        reader=Files(paths),
        root=root,
    )


def _split_folders(root: Path) -> dict[int, Path]:
    """Folder of each split; the root itself as train if it holds classes directly."""
    children = [child for child in _children(root) if child.is_dir()]
    named = [child for child in children if child.name.lower() in SPLIT_FOLDERS]
    train = next((child for child in named if child.name.lower() == "train"), None)
    if train is None:
        if named and len(named) == len(children):
            names = ", ".join(child.name for child in named)
            raise DataError(f"{root} has {names}, but no train folder", expected=LAYOUT)
        return {TRAIN: root}
    if not any(child.is_dir() for child in _children(train)):
        if len(children) > len(named):
            return {TRAIN: root}
        raise DataError(f"{train} holds no class folders", expected=LAYOUT)
    splits: dict[int, Path] = {}
    for child in named:
        split = SPLIT_FOLDERS[child.name.lower()]
        if split in splits:
            raise DataError(
                f"{root} has both {splits[split].name} and {child.name}", fix="remove or rename one"
            )
        splits[split] = child
    others = [child.name for child in children if child not in named]
    if others:
        log.info("%s: not used: %s", root, ", ".join(others))
    return splits


def _classes(
    root: Path, spec: DataSpec, found: dict[int, dict[str, list[str]]], splits: dict[int, Path]
) -> tuple[str, ...]:
    kind = f"files like {spec.pattern!r}" if spec.pattern else "images"
    if not any(names for labels in found.values() for names in labels.values()):
        flat = sum(_is_image(child.name, child.name, spec.pattern) for child in _children(splits[TRAIN]))
        if flat:
            what = f"{splits[TRAIN]} holds {flat} {kind}, but no class folders"
            raise DataError(
                what, expected=LAYOUT, fix="move the images of each class into a folder of its own"
            )
        raise DataError(f"{root} holds no {kind}", expected=LAYOUT)
    empty = [
        str(splits[s] / label) for s, labels in found.items() for label, names in labels.items() if not names
    ]
    if empty:
        some = ", ".join(empty[:3]) + (", ..." if len(empty) > 3 else "")
        raise DataError(
            f"{len(empty)} class folders hold no {kind}: {some}", fix="remove or fill them, or change pattern"
        )
    classes = tuple(sorted(found[TRAIN]))
    for split, labels in found.items():
        unknown = sorted(set(labels) - set(classes))
        if unknown:
            near = nearest(unknown[0], classes)
            raise DataError(
                f"{splits[split]} has classes that train lacks: {', '.join(unknown[:5])}",
                fix=f"did you mean {near}?" if near else None,
            )
    if len(classes) < 2:
        raise DataError(
            f"{splits[TRAIN]} has one class only: {classes[0]}", expected="two or more class folders"
        )
    return classes


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def _images(folder: Path, root: Path, pattern: str | None) -> list[str]:
    """Names, relative to ``root``, of the images anywhere below ``folder``."""
    names = []
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        prefix = Path(parent).relative_to(root)
        names += [(prefix / f).as_posix() for f in files if _is_image(f, (below / f).as_posix(), pattern)]
    return names


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror}", fix="check its permissions")


def _is_image(name: str, relative: str, pattern: str | None) -> bool:
    if name.startswith("."):
        return False
    if pattern is not None:
        return PurePosixPath(relative).match(pattern)
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _warn_of_pairs(names: tuple[str, ...]) -> None:
    stems = Counter(os.path.splitext(name)[0] for name in names)
    paired = [stem for stem, count in stems.items() if count > 1]
    if len(paired) > len(names) / 4:
        log.warning(
            "%d pairs of images differ in their suffix only (%s.*); "
            "if one of each is a mask, choose the other with pattern, for example '*.jpg'",
            len(paired),
            paired[0],
        )
