"""From a plan and a split to batches: which images, which crops, and what happens to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from trickbag.data.base import Request, Split
from trickbag.imageops.backend import choose, execute
from trickbag.imageops.program import Program, Step
from trickbag.plan import Plan
from trickbag.rng import Stream
from trickbag.tricks.stages import Batch, ImageTrick, MixTrick

if TYPE_CHECKING:
    from torch import Tensor


class TrainBatches:
    """The batches of a run, each a function of (seed, step) alone.

    Random parameters are drawn for the whole batch; a process takes the slice that is its share, so
    an image is augmented alike however many processes take part.
    """

    def __init__(
        self, plan: Plan, split: Split, seed: int, rank: int = 0, world: int = 1, device_type: str = "cpu"
    ) -> None:
        self.plan, self.split, self.stream = plan, split, Stream(seed)
        self.early = choose(device_type) == "numba"
        share = plan.timeline.batch_size // world
        self.slice = slice(rank * share, (rank + 1) * share)
        self._orders: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """Positions in the split of the images of the whole batch: ``(batch,)`` int64."""
        epoch, position = divmod(step, self.plan.timeline.steps_per_epoch)
        if epoch not in self._orders:
            generator = self.stream.child("order").torch(epoch)
            # Reading ahead looks into the next epoch while the last steps of this one are done.
            self._orders = {key: order for key, order in self._orders.items() if abs(key - epoch) <= 1}
            order = torch.randperm(len(self.split), generator=generator).numpy()
            for trick in self.plan.samplers:
                order = trick.epoch_order(order, self.split.labels, self.stream.child(trick.kind), epoch)
            self._orders[epoch] = order
        size = self.plan.timeline.batch_size
        return self._orders[epoch][position * size : (position + 1) * size]

    def program(self, step: int) -> Program:
        """What happens to the images of the whole batch."""
        timeline, size = self.plan.timeline, self.plan.image_size(step)
        shape = (timeline.batch_size, self.plan.facts.channels, size, size)
        batch = Batch(shape, step, step // timeline.steps_per_epoch, self.indices(step))
        return program_of(self.plan.train_images, batch, self.stream)

    def requests(self, start: int) -> Iterator[Request]:
        """What to read, from step ``start`` on; programs come along if the CPU is to execute them."""
        crop, recipe = self.plan.crop, self.plan.recipe
        for step in range(start, self.plan.timeline.steps):
            indices = self.indices(step)
            boxes = None
            if crop is not None:
                sizes = torch.from_numpy(self.split.sizes[indices])
                boxes = crop.boxes(sizes, self.stream.child(crop.kind).torch(step)).numpy()[self.slice]
            program = self.program(step).part(self.slice) if self.early else None
            size = self.plan.image_size(step)
            yield Request(indices[self.slice], boxes, size, recipe.interpolation, program)

    def prepare(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment, unless that is done already, and mix.

        Args:
            images: this process's share, ``(share, channels, height, width)``, on the device.
            targets: dense targets ``(share, classes)``.
            step: number of the update.
        """
        if not self.early:
            images = execute(images, self.program(step).part(self.slice), backend="torch")
        images, targets = self._mix(images, targets, step)
        return images.contiguous(memory_format=torch.channels_last), targets

    def _mix(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        mixes: Sequence[MixTrick] = self.plan.mix
        choice = None
        for control in self.plan.mix_controls:
            mixes = control.active(mixes, step, self.plan.timeline)
        for control in self.plan.mix_controls if len(mixes) > 1 else ():
            batch = self.plan.timeline.batch_size
            found = control.choose(mixes, batch, self.stream.child(control.kind).torch(step))
            choice = choice if found is None else found
        shape = torch.Size((self.plan.timeline.batch_size, *images.shape[1:]))
        given = images, targets
        for number, mix in enumerate(mixes):
            draws = self._draws(mix, shape, step, images.device)
            if choice is None:
                images, targets = mix.mix(images, targets, draws)
            elif (own := choice[self.slice] == number).any():
                mixed, mixed_targets = mix.mix(*given, draws)
                own = own.to(images.device, non_blocking=True)
                images = torch.where(own[:, None, None, None], mixed, images)
                targets = torch.where(own[:, None], mixed_targets, targets)
        return images, targets

    def _draws(
        self, trick: MixTrick, shape: torch.Size, step: int, device: torch.device
    ) -> dict[str, Tensor]:
        draws = trick.draw(shape, self.stream.child(trick.kind).torch(step))
        return {name: value[self.slice].to(device, non_blocking=True) for name, value in draws.items()}


def program_of(tricks: Sequence[ImageTrick], batch: Batch, stream: Stream) -> Program:
    """The program that image tricks, in their order, draw for a batch."""
    steps: list[Step] = []
    late: list[Step] = []
    table = None
    for trick in tricks:
        drawn = trick.draw(batch, stream.child(trick.kind))
        (late if trick.late else steps).extend(drawn)
        own = trick.table(batch.shape[1])
        table = table if own is None else own
    return Program(tuple(steps), table, tuple(late))


def eval_requests(
    plan: Plan,
    split: Split,
    evaluation: tuple[int, int],
    batch_size: int,
    positions: Sequence[int],
    early: bool,
) -> Iterator[Request]:
    """Requests for evaluation: short side to ``evaluation[0]``, center crop of ``evaluation[1]`` pixels.

    Args:
        plan: its image tricks that are not for training alone make up the program.
        split: where the images come from.
        evaluation: (resize, crop) in pixels.
        batch_size: images in one request.
        positions: images of the split.
        early: the CPU executes the program.
    """
    resize, crop = evaluation
    program = eval_program(plan) if early else None
    for start in range(0, len(positions), batch_size):
        indices = np.asarray(positions[start : start + batch_size], dtype=np.int64)
        boxes = None
        if resize != crop:
            height, width = split.sizes[indices].T.astype(np.float64)
            side = np.minimum(height, width) * (crop / resize)
            boxes = np.stack([(height - side) / 2, (width - side) / 2, side, side], axis=1)
        yield Request(indices, boxes, crop, plan.recipe.interpolation, program)


def eval_program(plan: Plan) -> Program:
    """What happens to every image when predicting: nothing random."""
    tables = (trick.table(plan.facts.channels) for trick in plan.eval_images)
    return Program(table=next((table for table in tables if table is not None), None))


def eval_batches(
    plan: Plan,
    split: Split,
    evaluation: tuple[int, int],
    batch_size: int,
    positions: Sequence[int],
    device: torch.device,
) -> Iterator[Tensor]:
    """What a model sees of a split: float32 ``(batch, channels, crop, crop)`` on the device."""
    early = choose(device.type) == "numba"
    requests = eval_requests(plan, split, evaluation, batch_size, positions, early)
    for images in split.batches(requests):
        images = images.to(device, non_blocking=True)
        yield images if early else execute(images, eval_program(plan), backend="torch")
