"""Serving batches: crop, resize and stack, reading ahead in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trickbag.data.base import Request
from trickbag.data.decode import Unreadable, quiet
from trickbag.data.holding import WORKERS, Held, Pixels
from trickbag.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers of its resampling filters."""
TINY = 48 * 48
"""Pixels."""


@dataclass(eq=False)
class ImageSplit:
    """The images of one split, in a fixed order; see :class:`trickbag.data.base.Split`.

    Attributes:
        images: where all images of the data set are held.
        rows: ``(n,)`` int64 positions of the split's images there.
        labels: ``(n,)`` int64.
        names: one name an image.
        sizes: ``(n, 2)`` int64 (height, width) of the source images after EXIF rotation.
    """

    images: Held
    rows: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def held(self) -> str:
        """``resident`` (in memory), ``cached`` (decoded, on disk) or ``decoding`` (anew each time)."""
        return self.images.held

    def batches(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Yield, for each request in order, uint8 ``(batch, channels, size, size)``.

        Boxes of whole pixels at native size are exact copies. The rest is resized by Pillow, in
        threads, up to two batches ahead.

        Raises:
            DataError: an image can no longer be read.
            ValueError: an index, box or filter makes no sense.
        """
        quiet()
        # Threads that resize tiny images spend their time passing the interpreter's lock around.
        tiny = isinstance(self.images, Pixels) and float(np.median(self.sizes.prod(axis=1))) <= TINY
        workers = 1 if tiny else WORKERS
        pool = ThreadPoolExecutor(workers, thread_name_prefix="trickbag-data")
        waiting: deque[np.ndarray | list[Future[np.ndarray]]] = deque()
        try:
            for request in requests:
                waiting.append(self._start(request, pool))
                if len(waiting) > 2:
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, request: Request, pool: ThreadPoolExecutor) -> np.ndarray | list[Future[np.ndarray]]:
        indices = np.asarray(request.indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise ValueError(f"indices run from {indices.min()} to {indices.max()}, of {len(self)} images")
        if request.interpolation not in FILTERS:
            raise ValueError(f"interpolation is {request.interpolation!r}, not one of {', '.join(FILTERS)}")
        sizes, rows, size = self.sizes[indices], self.rows[indices], request.size
        boxes = centered(sizes) if request.boxes is None else np.asarray(request.boxes, dtype=np.float64)
        check_boxes(boxes, sizes)
        native = (boxes[:, 2:] == size).all(axis=1) & (boxes == np.floor(boxes)).all(axis=1)
        if isinstance(self.images, Pixels) and self.images.uniform and native.all():
            return _copy(*self.images.stack(rows), boxes[:, :2].astype(np.int64), size)
        step = max(1, min(16, -(-len(rows) // WORKERS)))
        return [
            pool.submit(
                self._chunk, rows[i : i + step], boxes[i : i + step], size, FILTERS[request.interpolation]
            )
            for i in range(0, len(rows), step)
        ]

    def _chunk(self, rows: np.ndarray, boxes: np.ndarray, size: int, resample: int) -> np.ndarray:
        result = np.empty((len(rows), self.images.channels, size, size), dtype=np.uint8)
        for place, row, box in zip(result, rows.tolist(), boxes.tolist(), strict=True):
            try:
                image = self.images.image(row)
            except Unreadable as error:
                name = self.names[int(np.flatnonzero(self.rows == row)[0])]
                raise DataError(
                    f"{name} can no longer be read: {error}", fix="restore the file, or start anew"
                ) from None
            place[:] = crop(image, box, size, resample).transpose(2, 0, 1)
        return result

    def _finish(self, work: np.ndarray | list[Future[np.ndarray]]) -> Tensor:
        import torch

        if isinstance(work, np.ndarray):
            return torch.from_numpy(work)
        parts = [part.result() for part in work]
        return torch.from_numpy(
            np.concatenate(parts) if parts else np.zeros((0, self.images.channels, 1, 1), np.uint8)
        )


def crop(image: np.ndarray, box: list[float], size: int, resample: int) -> np.ndarray:
    """Cut a box out of ``(height, width, channels)`` uint8 and resize it to ``size`` x ``size``.

    Args:
        image: pixels.
        box: (top, left, height, width) in pixels, inside the image.
        size: height and width of the result.
        resample: Pillow's number of the filter.
    """
    from PIL import Image

    top, left, height, width = box
    if height == width == size and top == int(top) and left == int(left):
        return image[int(top) : int(top) + size, int(left) : int(left) + size]
    right, bottom = min(left + width, image.shape[1]), min(top + height, image.shape[0])
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    result = np.asarray(picture.resize((size, size), resample, box=(left, top, right, bottom)))
    return result[:, :, None] if result.ndim == 2 else result


def centered(sizes: np.ndarray) -> np.ndarray:
    """The largest centered square (of whole pixels) of each image.

    Args:
        sizes: ``(n, 2)`` (height, width).

    Returns:
        ``(n, 4)`` float64 (top, left, height, width).
    """
    side = sizes.min(axis=1, keepdims=True)
    return np.concatenate([(sizes - side) // 2, side, side], axis=1).astype(np.float64)


def check_boxes(boxes: np.ndarray, sizes: np.ndarray, tolerance: float = 1e-6) -> None:
    """Raise ValueError unless every box is positive and inside its image."""
    if boxes.shape != (len(sizes), 4):
        raise ValueError(f"boxes are {boxes.shape}, not ({len(sizes)}, 4)")
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= sizes + tolerance) & (boxes[:, 2:] > 0)
    if not inside.all():
        first = int(np.flatnonzero(~inside.all(axis=1))[0])
        raise ValueError(
            f"box {boxes[first].round(3).tolist()} (top, left, height, width) is not inside an image of "
            f"{sizes[first][0]} x {sizes[first][1]}"
        )


def _copy(stack: np.ndarray, rows: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Crops of whole pixels, ``(batch, channels, size, size)``."""
    if stack.shape[1:3] == (size, size):
        chosen = stack[rows]
    else:
        steps = np.arange(size)
        down = (corners[:, :1] + steps)[:, :, None]
        across = (corners[:, 1:] + steps)[:, None, :]
        chosen = stack[rows[:, None, None], down, across]
    return np.ascontiguousarray(chosen.transpose(0, 3, 1, 2))
