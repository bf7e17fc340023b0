"""Small images kept on the device that trains: what is read there never passes through the host again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from trickbag.data.base import Request, Split
from trickbag.data.holding import Pixels
from trickbag.data.serving import ImageSplit, centered, check_boxes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHARE = 0.25
"""Of the device's free memory, that images may take."""
LARGEST = 96
"""Side in pixels up to which resizing by dense weights, as done on the device, is quick."""


class ResidentSplit:
    """A split whose images lie on a device; see :class:`trickbag.data.base.Split`."""

    held = "on the device"

    def __init__(self, split: ImageSplit, device: torch.device | str) -> None:
        import torch

        assert isinstance(split.images, Pixels)
        stack, slots = split.images.stack(split.rows)
        self.labels, self.names, self.sizes = split.labels, split.names, split.sizes
        # channels_last: one image is one run of memory.
        self.pixels: Tensor = torch.from_numpy(np.ascontiguousarray(stack[slots])).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, requests: Iterable[Request], workers: int | None = None) -> Iterator[Tensor]:
        """Yield uint8 ``(batch, channels, size, size)`` on the device; programs are left to the caller.

        Raises:
            ValueError: an index, box or filter makes no sense.
        """
        import torch

        from trickbag.functional.resize import crop_resize

        for request in requests:
            indices = np.asarray(request.indices, dtype=np.int64)
            sizes = self.sizes[indices]
            boxes = centered(sizes) if request.boxes is None else np.asarray(request.boxes, dtype=np.float64)
            check_boxes(boxes, sizes)
            rows = torch.from_numpy(indices).to(self.pixels.device, non_blocking=True)
            images = self.pixels.index_select(0, rows).permute(0, 3, 1, 2)
            yield crop_resize(images, torch.from_numpy(boxes), request.size, request.interpolation)


def on_device(split: Split, device: torch.device) -> Split:
    """The split with its images on a CUDA device, if they are small, of one size, and fit; else itself."""
    import torch

    if device.type != "cuda" or not isinstance(split, ImageSplit) or not isinstance(split.images, Pixels):
        return split
    if not split.images.uniform or split.sizes[0].max() > LARGEST:
        return split
    free, _ = torch.cuda.mem_get_info(device)
    size = int(split.sizes[0].prod()) * split.images.channels * len(split)
    return ResidentSplit(split, device) if size <= SHARE * free else split
