"""What a source's images will be, known before they are decoded: keys, sizes, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbag.data.cache import artifact, load_arrays
from trickbag.data.decode import READER, Unreadable, check, header_size
from trickbag.data.hashing import combine
from trickbag.data.holding import WORKERS, ahead
from trickbag.data.listing import Arrays, Listing, Mode, Progress, Reader
from trickbag.data.recoding import Recoding

if TYPE_CHECKING:
    from trickbag.data.listing import Encoded

log = logging.getLogger("trickbag.data")

BLOCK = 8_000_000
"""Bytes of decoded images that a thread hands over at once, more or less."""


@dataclass(frozen=True)
class Source:
    """Encoded images and what is to become of them.

    Attributes:
        reader: gives the encoded images.
        mode: color mode to convert to.
        recoding: what is then done to them.
        original: hash of everything that the decoded images depend on.
        key: the same for the changed images.
    """

    reader: Reader
    mode: Mode
    recoding: Recoding
    original: str
    key: str

    @classmethod
    def of(cls, listing: Listing, mode: Mode, recoding: Recoding) -> Source:
        """The images of a listing."""
        import PIL

        reader = Arrays(listing.pixels) if listing.pixels is not None else listing.reader
        assert reader is not None
        parts = (listing.content.encode(), mode.encode(), READER.encode(), PIL.__version__.encode())
        original = combine(parts)
        return cls(reader, mode, recoding, original, recoding.mark(original))

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.mode == "gray" else 3

    @cached_property
    def area(self) -> float:
        """Pixels of an image on average, judging by a sample; 0 if nothing in it can be read."""
        found = [attempt(partial(header_size, source)) for source in self.reader.sample()]
        sizes = np.array([size for size in found if size], dtype=np.int64).reshape(-1, 2)
        return float(self.recoding.sizes(sizes).prod(axis=1).mean()) if len(sizes) else 0.0

    @property
    def expected(self) -> float:
        """Bytes of all images when they are decoded, about."""
        return self.area * self.channels * len(self.reader)

    def total(self, sizes: np.ndarray) -> int:
        """Bytes of decoded images of these sizes, ``(n, 2)``."""
        return int(sizes.prod(axis=1).sum()) * self.channels

    def blocks(self) -> Iterator[Sequence[Encoded]]:
        """All encoded images in order, in blocks that are not too large when decoded."""
        size = max(1, min(256, int(BLOCK / max(1.0, self.area * self.channels))))
        return _small(self.reader.blocks(), size)


def survey(source: Source, cache: bool, progress: Progress | None) -> np.ndarray:
    """Sizes of all images as they come, after seeing that each can be read to its end.

    Returns:
        ``(n, 2)`` int64 (height, width) before recoding; zero for unreadable images.
    """
    sizes: list[tuple[int, int]] = []

    def work(block: Sequence[Encoded]) -> list[tuple[int, int]]:
        return [attempt(partial(check, image)) or (0, 0) for image in block]

    with closing(ahead(work, _small(source.reader.blocks(), 32), WORKERS, 2 * WORKERS)) as results:
        for found in results:
            sizes += found
            if progress:
                progress("check", len(sizes), len(source.reader))
    result = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    if cache:
        try:
            artifact(f"{source.original}-sizes", lambda folder: np.savez(folder / "index.npz", sizes=result))
        except OSError as error:
            log.info("cannot write the cache: %s", error)
    return result


def surveyed(source: Source) -> np.ndarray | None:
    """What :func:`survey` found earlier."""
    folder = artifact(f"{source.original}-sizes", None)
    arrays = load_arrays(folder / "index.npz") if folder else None
    return None if arrays is None else arrays["sizes"]


def attempt(work: Callable[[], Any]) -> Any:
    """The result, or None for an unreadable image."""
    try:
        return work()
    except Unreadable:
        return None


def _small(blocks: Iterable[Sequence[Any]], size: int) -> Iterator[Sequence[Any]]:
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]
