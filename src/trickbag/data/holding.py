"""How images are held: all pixels in one flat array, or decoded anew each time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trickbag.data.decode import decode
from trickbag.data.listing import Mode, Reader
from trickbag.data.recoding import Recoding

log = logging.getLogger("trickbag.data")

WORKERS = min(16, os.cpu_count() or 1)


class Pixels:
    """Decoded images, one after the other in a flat uint8 array.

    Attributes:
        sizes: ``(n, 2)`` int64 (height, width); zero for unreadable images.
        channels: 1 or 3.
        held: ``resident`` (array in memory) or ``cached`` (file, mapped into memory).
        uniform: whether all readable images have one size.
    """

    def __init__(self, flat: np.ndarray | Path, sizes: np.ndarray, channels: int) -> None:
        self._flat: np.ndarray | None = flat if isinstance(flat, np.ndarray) else None
        self._path = None if isinstance(flat, np.ndarray) else flat
        self.sizes = sizes
        self.channels = channels
        self.starts = np.concatenate([[0], np.cumsum(sizes.prod(axis=1) * channels)])
        self.held = "resident" if self._path is None else "cached"
        readable = sizes[:, 0] > 0
        self._slots = np.cumsum(readable) - 1
        self._shape = sizes[readable][0] if readable.any() else np.zeros(2, dtype=np.int64)
        self.uniform = bool(readable.any() and (sizes[readable] == self._shape).all())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"_flat": None} if self._path is not None else {})

    @property
    def flat(self) -> np.ndarray:
        """All bytes; a file is mapped on first use, so that copies in other processes share memory."""
        if self._flat is None:
            # A plain array over the map: slicing np.memmap costs more than copying a small image.
            self._flat = np.load(self._path, mmap_mode="r").view(np.ndarray)  # type: ignore[arg-type]
        return self._flat

    def stack(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All readable images, ``(n, height, width, channels)``, and where ``rows`` are among them.

        Only for images of uniform size.
        """
        return self.flat.reshape(-1, *self._shape, self.channels), self._slots[rows]

    def image(self, index: int) -> np.ndarray:
        """``(height, width, channels)`` uint8."""
        start, end = self.starts[index], self.starts[index + 1]
        return self.flat[start:end].reshape(*self.sizes[index], self.channels)


@dataclass(frozen=True)
class Decoding:
    """Images that are decoded each time they are wanted.

    Attributes:
        reader: gives the encoded images.
        mode: color mode.
        sizes: ``(n, 2)`` int64 (height, width) after ``recoding``; zero for unreadable images.
        channels: 1 or 3.
        recoding: what is done to every image once it is decoded.
    """

    reader: Reader
    mode: Mode
    sizes: np.ndarray
    channels: int
    recoding: Recoding = field(default_factory=Recoding)
    held: str = "decoding"
    uniform: bool = False

    def image(self, index: int) -> np.ndarray:
        """``(height, width, channels)`` uint8.

        Raises:
            Unreadable: the file has gone bad since the data set was loaded.
        """
        return self.recoding.pixels(decode(self.reader.get(index), self.mode))


Held = Pixels | Decoding


def ahead(
    work: Callable[[Any], Any], items: Iterable[Any], workers: int, depth: int
) -> Generator[Any, None, None]:
    """``map`` in threads, in order, at most ``depth`` results ahead of the consumer."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="trickbag-data")
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
