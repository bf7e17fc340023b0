"""Serving batches: crop, resize and stack, reading ahead in threads."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trickbag.data.base import Request
from trickbag.data.decode import Unreadable, quiet
from trickbag.data.holding import Held, Pixels
from trickbag.errors import DataError
from trickbag.imageops.backend import numba_works

if TYPE_CHECKING:
    from torch import Tensor

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers of its resampling filters."""
TINY = 1 << 19
"""Pixels of a batch up to which one thread is as quick as several."""


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

    def batches(self, requests: Iterable[Request], workers: int | None = None) -> Iterator[Tensor]:
        """Yield, for each request in order, ``(batch, channels, size, size)`` in ``channels_last`` memory.

        uint8, or float32 where a request brings a program. Boxes of whole pixels at native size are exact
        copies; the rest is resized as Pillow does it. Work is done in threads, up to two batches ahead.

        Args:
            requests: what to read.
            workers: threads; None takes as many as torch computes with.

        Raises:
            DataError: an image can no longer be read.
            ValueError: an index, box or filter makes no sense.
        """
        import torch

        quiet()
        buffers = Buffers()
        workers = workers or min(16, torch.get_num_threads())
        pool = ThreadPoolExecutor(workers, thread_name_prefix="trickbag-data")
        waiting: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        try:
            for request in requests:
                waiting.append(self._start(request, pool, workers, buffers))
                # What is finished already only takes room in the processor's caches by waiting.
                ahead = 2 if waiting[-1][1] else 0
                while len(waiting) > ahead:
                    yield self._finish(*waiting.popleft())
            while waiting:
                yield self._finish(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, request: Request, pool: ThreadPoolExecutor, workers: int, buffers: Buffers
    ) -> tuple[np.ndarray, list[Future[None]]]:
        indices = np.asarray(request.indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise ValueError(f"indices run from {indices.min()} to {indices.max()}, of {len(self)} images")
        if request.interpolation not in FILTERS:
            raise ValueError(f"interpolation is {request.interpolation!r}, not one of {', '.join(FILTERS)}")
        sizes, size = self.sizes[indices], request.size
        boxes = centered(sizes) if request.boxes is None else np.asarray(request.boxes, dtype=np.float64)
        check_boxes(boxes, sizes)
        dtype = np.uint8 if request.program is None else np.float32
        out = buffers.take((len(indices), size, size, self.images.channels), dtype)
        count = len(indices)
        # Threads that serve tiny images spend their time passing the interpreter's lock around.
        tiny = isinstance(self.images, Pixels) and int(sizes.prod(axis=1).sum()) <= TINY
        if tiny:
            self._serve(request, self.rows[indices], boxes, slice(0, count), out)
            return out, []
        step = max(1, min(16, -(-count // workers)))
        return out, [
            pool.submit(
                self._serve,
                request,
                self.rows[indices[i : i + step]],
                boxes[i : i + step],
                slice(i, min(i + step, count)),
                out,
            )
            for i in range(0, count, step)
        ]

    def _serve(
        self, request: Request, rows: np.ndarray, boxes: np.ndarray, share: slice, out: np.ndarray
    ) -> None:
        """Fill a share of a batch."""
        size, channels = request.size, self.images.channels
        native = bool(((boxes[:, 2:] == size) & (boxes[:, :2] == np.floor(boxes[:, :2]))).all())
        if request.program is None:
            self._pixels(rows, boxes, native, FILTERS[request.interpolation], out[share])
            return
        from trickbag.imageops.compiled import execute

        program = request.program.part(share)
        if native and isinstance(self.images, Pixels) and self.images.uniform:
            stack, slots = self.images.stack(rows)
            if stack.shape[1:3] == (size, size):
                execute(stack, slots, program, out=out[share])
                return
        pixels = np.empty((len(rows), size, size, channels), np.uint8)
        self._pixels(rows, boxes, native, FILTERS[request.interpolation], pixels)
        execute(pixels, None, program, out=out[share])

    def _pixels(
        self, rows: np.ndarray, boxes: np.ndarray, native: bool, resample: int, out: np.ndarray
    ) -> None:
        """Cut out and resize: uint8 ``(rows, size, size, channels)``."""
        if isinstance(self.images, Pixels) and self.images.uniform:
            stack, slots = self.images.stack(rows)
            if native:
                _copy(stack, slots, boxes[:, :2].astype(np.int64), out)
                return
            if numba_works():
                from trickbag.imageops.resizing import resize_stack

                resize_stack(stack, slots, boxes, resample, out)
                return
        for place, row, box in zip(out, rows.tolist(), boxes.tolist(), strict=True):
            try:
                image = self.images.image(row)
            except Unreadable as error:
                name = self.names[int(np.flatnonzero(self.rows == row)[0])]
                raise DataError(
                    f"{name} can no longer be read: {error}", fix="restore the file, or start anew"
                ) from None
            crop(image, box, resample, place)

    def _finish(self, out: np.ndarray, work: list[Future[None]]) -> Tensor:
        import torch

        for part in work:
            part.result()
        return torch.from_numpy(out).permute(0, 3, 1, 2)


class Buffers:
    """Arrays that are used again once nobody looks at them: fresh memory costs more than what fills it."""

    def __init__(self) -> None:
        self._lent: list[tuple[np.ndarray, weakref.ref[np.ndarray]]] = []

    def take(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array with arbitrary values; it is lent until the last tensor over it is gone."""
        self._lent = [(own, view) for own, view in self._lent if own.shape == shape and own.dtype == dtype]
        place = next((k for k, (_, view) in enumerate(self._lent) if view() is None), len(self._lent))
        own = self._lent.pop(place)[0] if place < len(self._lent) else np.empty(shape, dtype)
        lent = own[:]
        self._lent.append((own, weakref.ref(lent)))
        return lent


def crop(image: np.ndarray, box: list[float], resample: int, out: np.ndarray) -> None:
    """Cut a box out of an image and resize it.

    Pillow 13 resizes some tall images in another order of passes than its predecessors and than the
    compiled code; results may differ by one level there.

    Args:
        image: uint8 ``(height, width, channels)``.
        box: (top, left, height, width) in pixels, inside the image.
        resample: Pillow's number of the filter.
        out: uint8 ``(size, size, channels)``; takes the result.
    """
    top, left, height, width = box
    if height == width == len(out) and top == int(top) and left == int(left):
        out[:] = image[int(top) : int(top) + len(out), int(left) : int(left) + len(out)]
        return
    if numba_works():
        from trickbag.imageops.resizing import resize

        resize(np.ascontiguousarray(image), (top, left, height, width), resample, out)
        return
    from PIL import Image

    right, bottom = min(left + width, image.shape[1]), min(top + height, image.shape[0])
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    result = picture.resize((len(out), len(out)), resample, box=(left, top, right, bottom))
    out[:] = np.asarray(result).reshape(out.shape)


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


def _copy(stack: np.ndarray, rows: np.ndarray, corners: np.ndarray, out: np.ndarray) -> None:
    """Crops of whole pixels."""
    size = out.shape[1]
    if stack.shape[1:3] == (size, size):
        np.take(stack, rows, axis=0, out=out, mode="clip")
        return
    steps = np.arange(size)
    down = (corners[:, :1] + steps)[:, :, None]
    across = (corners[:, 1:] + steps)[:, None, :]
    out[:] = stack[rows[:, None, None], down, across]
