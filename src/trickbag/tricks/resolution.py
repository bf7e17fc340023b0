"""Tricks that choose the size of training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from trickbag.errors import Problem
from trickbag.functional.schedules import ramped_size
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ResolutionTrick, Timeline

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["ResolutionRamp"]


class ResolutionRamp(ResolutionTrick):
    """Train on small images first, on larger ones epoch by epoch.

    Attributes:
        start: size at first, as a share of ``image_size``; 1 for no ramp.
        begin: share of training at which the size starts to grow.
        until: share of training at which it reaches ``image_size``.
        multiple: sizes below ``image_size`` are rounded to multiples of so many pixels.
    """

    kind = "resolution_ramp"
    null_setting = {"start": 1.0}
    example = {"start": 0.75}
    card = Card(
        title="Progressive resizing",
        summary="Trains on small images first and lets them grow to full size, epoch by epoch: early epochs "
        "cost less, and learn what does not need detail. Crops are cut out of the source as ever and resized "
        "to the size of the moment; augmentation and mixing act at that size.",
        source="Howard 2018, fast.ai on DAWNBench; Tan and Le 2021, arXiv:2104.00298, section 4; linear in "
        "epochs as in ffcv's ImageNet schedule (160 to 192 px)",
        formula="size = image_size * (start + (1 - start) * x), rounded to a multiple of `multiple`\n"
        "x from 0 at `begin` to 1 at `until`, by share of training at the start of the epoch",
        null="start: 1",
        cost="Saves time: a step takes about (size / image_size)^2 as long.",
        suggested="start 0.75, until 0.8. ffcv: start 0.83, begin 0.69, until 0.81, multiple 32. Not for "
        "nets of fixed input size (most transformers). A net sees objects larger in training crops than in "
        "evaluation (Touvron et al. 2019, arXiv:1906.06423): a larger eval_size often helps.",
        aliases=("progressive resizing", "resolution schedule", "progressive learning", "image size ramp"),
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import ramped_size

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(16, 3, 32, 32), torch.randint(10, (16,))
for epoch in range(5):
    size = ramped_size(epoch / 5, 32, start=0.75, until=0.8, multiple=4)
    small = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    loss = nn.functional.cross_entropy(model(small), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(epoch, size)
assert size == 32
""",
    )

    start: float = Field(default=0.75, gt=0, le=1)
    begin: float = Field(default=0.0, ge=0, lt=1)
    until: float = Field(default=0.8, gt=0, le=1)
    multiple: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.begin > self.until:
            raise ValueError(f"begin {self.begin} comes after until {self.until}")
        return self

    def size(self, step: int, timeline: Timeline, image_size: int) -> int:
        """Size of the epoch that the step belongs to."""
        progress = step // timeline.steps_per_epoch * timeline.steps_per_epoch / timeline.steps
        return ramped_size(progress, image_size, self.start, self.begin, self.until, self.multiple)

    def check(self, context: Context) -> Iterable[Problem]:
        """Refused where every epoch would have full size."""
        size = context.recipe.image_size
        if self.start < 1 and self.size(0, context.timeline, size) == size:
            yield self.problem(
                f"{self.start:g} of {size} px is {size} px, rounded to a multiple of {self.multiple}",
                fix=f"--set {self.kind}.multiple=1, a smaller start, or remove it: --without {self.kind}",
            )

    def notes(self, context: Context) -> Iterable[str]:
        """The sizes, and whether the last one is the full one."""
        timeline, full = context.timeline, context.recipe.image_size
        sizes = [
            self.size(step, timeline, full) for step in range(0, timeline.steps, timeline.steps_per_epoch)
        ]
        if self.start < 1:
            yield f"images grow from {sizes[0]} to {sizes[-1]} px in {len(sizes)} epochs"
        if sizes[-1] != full:
            yield f"training ends before they reach {full} px; a lower `until` helps"
