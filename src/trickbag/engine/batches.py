"""From a plan and a split to batches: which images, which crops, and what happens to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from trickbag.data.base import Request, Split
from trickbag.plan import Plan
from trickbag.rng import Stream
from trickbag.tricks.base import ImageTrick, Trick

if TYPE_CHECKING:
    from torch import Tensor


class TrainBatches:
    """The batches of a run, each a function of (seed, step) alone.

    Random parameters are drawn for the whole batch; a process takes the slice that is its share, so
    an image is augmented alike however many processes take part.
    """

    def __init__(self, plan: Plan, split: Split, seed: int, rank: int = 0, world: int = 1) -> None:
        self.plan, self.split, self.stream = plan, split, Stream(seed)
        share = plan.timeline.batch_size // world
        self.slice = slice(rank * share, (rank + 1) * share)
        self._epoch: tuple[int, np.ndarray] | None = None

    def indices(self, step: int) -> np.ndarray:
        """Positions in the split of the images of the whole batch: ``(batch,)`` int64."""
        epoch, position = divmod(step, self.plan.timeline.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = self.stream.child("order").torch(epoch)
            self._epoch = epoch, torch.randperm(len(self.split), generator=generator).numpy()
        size = self.plan.timeline.batch_size
        return self._epoch[1][position * size : (position + 1) * size]

    def requests(self, start: int) -> Iterator[Request]:
        """What to read, from step ``start`` on."""
        crop, recipe = self.plan.crop, self.plan.recipe
        for step in range(start, self.plan.timeline.steps):
            indices = self.indices(step)
            boxes = None
            if crop is not None:
                sizes = torch.from_numpy(self.split.sizes[indices])
                boxes = crop.boxes(sizes, self.stream.child(crop.kind).torch(step)).numpy()[self.slice]
            yield Request(indices[self.slice], boxes, recipe.image_size, recipe.interpolation)

    def prepare(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment and mix.

        Args:
            images: this process's share, uint8 ``(share, channels, height, width)``, on the device.
            targets: dense targets ``(share, classes)``.
            step: number of the update.
        """
        images = to_float(images)
        shape = torch.Size((self.plan.timeline.batch_size, *images.shape[1:]))
        for trick in self.plan.train_images:
            images = trick.apply(images, self._draws(trick, shape, step, images.device))
        for mix in self.plan.mix:
            images, targets = mix.mix(images, targets, self._draws(mix, shape, step, images.device))
        return images.contiguous(memory_format=torch.channels_last), targets

    def _draws(self, trick: Trick, shape: torch.Size, step: int, device: torch.device) -> dict[str, Tensor]:
        draws = trick.draw(shape, self.stream.child(trick.kind).torch(step))  # type: ignore[attr-defined]
        return {name: value[self.slice].to(device, non_blocking=True) for name, value in draws.items()}


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in 0 to 1."""
    return images.to(torch.float32).div_(255)


def eval_requests(
    sizes: np.ndarray, resize: int, crop: int, interpolation: str, batch_size: int, positions: Sequence[int]
) -> Iterator[Request]:
    """Requests for evaluation: short side to ``resize``, center crop of ``crop`` pixels."""
    for start in range(0, len(positions), batch_size):
        indices = np.asarray(positions[start : start + batch_size], dtype=np.int64)
        boxes = None
        if resize != crop:
            height, width = sizes[indices, 0].astype(np.float64), sizes[indices, 1].astype(np.float64)
            side = np.minimum(height, width) * (crop / resize)
            boxes = np.stack([(height - side) / 2, (width - side) / 2, side, side], axis=1)
        yield Request(indices, boxes, crop, interpolation)


def eval_images(images: Tensor, tricks: Sequence[ImageTrick]) -> Tensor:
    """uint8 images to what the model sees when predicting."""
    images = to_float(images)
    for trick in tricks:
        images = trick.apply(images, {})
    return images.contiguous(memory_format=torch.channels_last)
