"""Image files without labels, for predicting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trickbag.data.decode import SUFFIXES, Unreadable, check
from trickbag.data.holding import Decoding
from trickbag.data.listing import Files, Mode
from trickbag.data.recoding import Recoding
from trickbag.data.serving import ImageSplit


def read_files(
    paths: Sequence[Path], mode: Mode, recoding: Recoding | None = None
) -> tuple[ImageSplit, list[str]]:
    """Files, and the images below folders, as a split whose labels are all 0.

    Args:
        paths: image files and folders, in the order wanted.
        mode: color mode.
        recoding: what is done to every image once it is decoded, as in training.

    Returns:
        The readable images, and the names of those that are not.
    """
    found: list[Path] = []
    for path in paths:
        found += _images(path) if path.is_dir() else [path]
    good, sizes, bad = [], [], []
    for path in found:
        try:
            sizes.append(check(path))
            good.append(path)
        except Unreadable:
            bad.append(str(path))
    shape = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    recoding = recoding or Recoding()
    shape = recoding.sizes(shape)
    images = Decoding(Files(tuple(good)), mode, shape, 3 if mode == "rgb" else 1, recoding)
    rows = np.arange(len(good))
    return ImageSplit(images, rows, np.zeros_like(rows), tuple(map(str, good)), shape), bad


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
