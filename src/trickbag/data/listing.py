"""What every source brings: names, labels, classes, its own splits, and a way to read each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from trickbag.data.base import SPLITS

if TYPE_CHECKING:
    from typing import TypeAlias

    from PIL import Image

    Encoded: TypeAlias = bytes | memoryview | Path | Image.Image | np.ndarray | None
    """One image before decoding: file contents, a file, or pixels; None if there is nothing to read."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, how many there are."""

Mode = Literal["rgb", "gray"]

TRAIN, SELECTION, TEST = range(len(SPLITS))


class Reader(Protocol):
    """Encoded images by position."""

    def __len__(self) -> int: ...

    def get(self, index: int) -> Encoded:
        """The encoded image at ``index``; cheap at random."""
        ...

    def blocks(self) -> Iterator[Sequence[Encoded]]:
        """All encoded images in order, in blocks of bounded size."""
        ...

    def sample(self) -> Sequence[Encoded]:
        """A few images, always the same ones, that are cheap to get: to tell the typical size."""
        ...


@dataclass(frozen=True)
class Listing:
    """A source before anything is decoded or cut.

    Attributes:
        name: for people.
        names: one name an image.
        labels: ``(n,)`` int64.
        classes: class names; position is the label.
        given: ``(n,)`` int8, the split (0 train, 1 selection, 2 test) in which the source has the image.
        content: hash of names, labels, classes, given splits and bytes.
        mode: natural color mode.
        reader: gives the encoded images.
        pixels: ``(n, height, width, channels)`` uint8 if the source is an array in memory.
        groups: ``(n,)`` group of each image, if the source has a column for it.
        root: folder that names are relative to, if there is one.
    """

    name: str
    names: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    given: np.ndarray
    content: str
    mode: Mode
    reader: Reader | None = None
    pixels: np.ndarray | None = None
    groups: np.ndarray | None = None
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> tuple[int, int, int]:
        """Images in the source's own train, selection and test splits."""
        train, selection, test = np.bincount(self.given, minlength=3)[:3]
        return int(train), int(selection), int(test)


@dataclass(frozen=True)
class Files:
    """Images that are files."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def get(self, index: int) -> Path:
        """The file at ``index``."""
        return self.paths[index]

    def blocks(self, size: int = 256) -> Iterator[list[Path]]:
        """All files in order."""
        for start in range(0, len(self.paths), size):
            yield list(self.paths[start : start + size])

    def sample(self, size: int = 200) -> list[Path]:
        """Evenly spaced files."""
        chosen = np.linspace(0, len(self.paths) - 1, min(size, len(self.paths))).astype(int)
        return [self.paths[i] for i in chosen]


@dataclass(frozen=True)
class Arrays:
    """Images that are pixels already."""

    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def get(self, index: int) -> np.ndarray:
        """``(height, width)`` or ``(height, width, 3)`` uint8."""
        image: np.ndarray = self.pixels[index]
        return image[:, :, 0] if image.shape[2] == 1 else image

    def blocks(self, size: int = 256) -> Iterator[list[np.ndarray]]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield [self.get(index) for index in range(start, min(start + size, len(self)))]

    def sample(self) -> list[np.ndarray]:
        """The first image: all have its size."""
        return [self.get(index) for index in range(min(1, len(self)))]
