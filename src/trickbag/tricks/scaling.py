"""Learning rates that follow the batch size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.functional.schedules import linear_scale, sqrt_scale
from trickbag.tricks.base import Card
from trickbag.tricks.stages import OptimizerTrick, ScheduleTrick, Timeline

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["LinearLRScaling", "SqrtLRScaling"]


class LinearLRScaling(ScheduleTrick):
    """Multiply the learning rate by batch size / base batch size.

    Attributes:
        base_batch_size: batch size that the optimizer's ``lr`` was tuned for; None leaves it alone.
    """

    kind = "linear_lr_scaling"
    rank = 10
    slot = "lr_scaling"
    null_setting = {"base_batch_size": None}
    example = {"base_batch_size": 64}
    card = Card(
        title="Linear learning-rate scaling",
        summary="Scales the learning rate with the batch size: a larger batch has a less noisy gradient.",
        source="Goyal et al. 2017, arXiv:1706.02677, sec. 2.1; He et al. 2019, arXiv:1812.01187, sec. 3.1",
        formula="lr * batch_size / base_batch_size",
        null="base_batch_size: null",
        cost="None.",
        suggested="A rate of 0.1 belongs to batch 256 (ResNet, ImageNet). Use warmup with it. Not for Adam.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import linear_scale

batch_size = 1024
model = nn.Linear(16, 4)
lr = 0.1 * linear_scale(batch_size, base_batch_size=256)
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
model(torch.randn(batch_size, 16)).square().mean().backward()
optimizer.step()
print(lr)
assert lr == 0.4
""",
        aliases=("linear scaling rule", "linear scaling", "batch size scaling", "auto scale lr"),
    )

    base_batch_size: int | None = Field(default=256, ge=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """The same at every step."""
        if self.base_batch_size is None:
            return 1.0
        return linear_scale(timeline.batch_size, self.base_batch_size)

    def notes(self, context: Context) -> Iterable[str]:
        """The rate that results."""
        if self.base_batch_size is not None:
            lr, batch = _rate(context), context.timeline.batch_size
            peak = lr * batch / self.base_batch_size
            yield f"peak learning rate {lr:g} * {batch} / {self.base_batch_size} = {peak:g}"


class SqrtLRScaling(ScheduleTrick):
    """Multiply the learning rate by the square root of batch size / base batch size.

    Attributes:
        base_batch_size: batch size that the optimizer's ``lr`` was tuned for; None leaves it alone.
    """

    kind = "sqrt_lr_scaling"
    rank = 10
    slot = "lr_scaling"
    null_setting = {"base_batch_size": None}
    example = {"base_batch_size": 64}
    card = Card(
        title="Square-root learning-rate scaling",
        summary="Scales the learning rate with the square root of the batch size, which keeps the noise of "
        "training the same for optimizers whose steps do not grow with the gradient.",
        source="Krizhevsky 2014, arXiv:1404.5997; for Adam and RMSprop Malladi et al. 2022, "
        "arXiv:2205.10287; for LAMB You et al. 2020, arXiv:1904.00962",
        formula="lr * sqrt(batch_size / base_batch_size)",
        null="base_batch_size: null",
        cost="None.",
        suggested="For Adam, AdamW, LAMB, RMSprop and Lion. SGD wants linear scaling. The rule for Adam also "
        "moves betas and eps; for a batch a few times as large that matters little.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import sqrt_scale

batch_size = 1024
model = nn.Linear(16, 4)
lr = 1e-3 * sqrt_scale(batch_size, base_batch_size=256)
optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
model(torch.randn(batch_size, 16)).square().mean().backward()
optimizer.step()
print(lr)
assert lr == 2e-3
""",
        aliases=("square root scaling rule", "sqrt scaling", "root scaling"),
    )

    base_batch_size: int | None = Field(default=256, ge=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """The same at every step."""
        return 1.0 if self.base_batch_size is None else sqrt_scale(timeline.batch_size, self.base_batch_size)

    def notes(self, context: Context) -> Iterable[str]:
        """The rate that results."""
        if self.base_batch_size is not None:
            lr, batch = _rate(context), context.timeline.batch_size
            peak = lr * sqrt_scale(batch, self.base_batch_size)
            yield f"peak learning rate {lr:g} * sqrt({batch} / {self.base_batch_size}) = {peak:g}"


def _rate(context: Context) -> float:
    from trickbag.tricks.optimization import DEFAULT

    return next(iter(context.recipe.tricks.of(OptimizerTrick)), DEFAULT).lr
