"""Learning-rate schedules that go down, once. Cosine and step decay are in ``schedules.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.functional.schedules import constant_cooldown, polynomial_decay
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ScheduleTrick, Timeline

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["ConstantCooldown", "PolynomialDecay"]


class PolynomialDecay(ScheduleTrick):
    """Let the learning rate fall as a power of the share of training that is left.

    Attributes:
        power: 1 for a straight line; larger ones fall faster at first.
        final: share of the peak at which the curve arrives where training ends, just after the last update.
    """

    kind = "polynomial_decay"
    rank = 30
    slot = "decay"
    null_setting = {"final": 1.0}
    example = {"power": 0.9}
    card = Card(
        title="Polynomial decay",
        summary="Lets the learning rate fall as (1 - share of training done) to some power, from the end of "
        "warmup to the end of training.",
        source="Liu et al. 2015, arXiv:1506.04579 (ParseNet); Chen et al. 2016, arXiv:1606.00915, "
        "section 4.1 (power 0.9)",
        formula="lr = peak * (final + (1 - final) (1 - x)^power), x from 0 after warmup to 1 at the end",
        null="final: 1",
        cost="None.",
        suggested="power 1, a straight line, is as good a first choice as a cosine, above all for short "
        "runs; power 0.9 in segmentation, 2 with LARS.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import polynomial_decay

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: polynomial_decay(step / 10, power=0.9))
for step in range(10):
    print(step, round(optimizer.param_groups[0]["lr"], 4))
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] == 0
""",
        aliases=("poly", "poly lr", "PolynomialLR", "linear decay", "linear schedule"),
        library="closed form of torch's PolynomialLR",
    )

    power: float = Field(default=1.0, gt=0)
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """Falls from 1 after warmup to ``final`` at the end."""
        return polynomial_decay(timeline.fraction_after_warmup(step), self.power, self.final)


class ConstantCooldown(ScheduleTrick):
    """Keep the learning rate constant and let it fall only at the end.

    Attributes:
        cooldown: share of all updates in which the rate falls.
        shape: of the fall, with x the share of it that is over: ``linear`` 1 - x, ``sqrt`` 1 - sqrt(x),
            ``cosine`` half a cosine.
        final: share of the peak at which the curve arrives where training ends, just after the last update.
    """

    kind = "constant_cooldown"
    rank = 30
    slot = "decay"
    null_setting = {"cooldown": 0.0}
    example = {"cooldown": 0.9}
    card = Card(
        title="Constant learning rate with cooldown",
        summary="Keeps the learning rate at its peak for most of training and lets it fall in the last part; "
        "with warmup the curve is a trapezoid.",
        source="Hägele et al. 2024, arXiv:2405.18392, section 3; Zhai et al. 2022, arXiv:2106.04560, "
        "section 3.5; Hu et al. 2024, arXiv:2404.06395, section 4 (the name WSD)",
        formula="lr = peak * (final + (1 - final) f(x)), x = 0 before the cooldown, then up to 1\n"
        "f(x) = 1 - x (linear), 1 - sqrt(x) (sqrt), (1 + cos(pi x)) / 2 (cosine)",
        null="cooldown: 0",
        cost="None.",
        suggested="cooldown 0.2, shape sqrt. As good as a cosine there, and the length of training need not "
        "be known before the fall: one long run serves many budgets. The rate of the constant part is "
        "better a little below that for a cosine.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import constant_cooldown

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
factor = lambda step: constant_cooldown(step, steps=10, cooldown=4, shape="sqrt")
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
for step in range(10):
    print(step, round(optimizer.param_groups[0]["lr"], 4))
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] == 0
""",
        aliases=("WSD", "warmup-stable-decay", "trapezoidal schedule", "trapezoid", "cooldown"),
    )

    cooldown: float = Field(default=0.2, ge=0, le=1)
    shape: Literal["linear", "sqrt", "cosine"] = "linear"
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """1 until the cooldown begins; never before warmup is over."""
        length = min(round(self.cooldown * timeline.steps), timeline.steps - timeline.warmup)
        return constant_cooldown(step, timeline.steps, length, self.final, shape=self.shape)

    def notes(self, context: Context) -> Iterable[str]:
        """A cooldown that warmup leaves no room for."""
        line = context.timeline
        if round(self.cooldown * line.steps) > line.steps - line.warmup:
            yield f"warmup leaves {line.steps - line.warmup} of {line.steps} updates for the cooldown"
