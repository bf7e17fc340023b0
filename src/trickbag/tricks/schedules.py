"""Learning-rate schedules. Their factors are multiplied with each other and with the optimizer's rate.

More of them are in ``decays.py`` (one way down), ``cycles.py`` (up and down) and ``scaling.py`` (batch size).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from trickbag.errors import Problem
from trickbag.functional.schedules import cosine_decay, linear_warmup, step_decay
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ScheduleTrick, Timeline

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["CosineDecay", "StepDecay", "Stepping", "Warmup", "stride"]

Stepping = Literal["update", "epoch"]
"""When a rate changes."""


def stride(stepping: Stepping, timeline: Timeline) -> int:
    """Updates that get the same rate before it changes."""
    return timeline.steps_per_epoch if stepping == "epoch" else 1


class Warmup(ScheduleTrick):
    """Raise the learning rate linearly at the start.

    Attributes:
        epochs: length; a fraction is allowed.
        start: share of the peak from which the rate rises.
        reaches: which end of the ramp an update (or epoch) gets: ``peak``, the last one has all of the peak
            and the first one a little more than ``start``; ``start``, the first has ``start`` and the peak
            comes after warmup, as torch's LinearLR and timm count; ``both``, as MMEngine counts.
        stepping: whether the rate changes at every update, or only at the start of an epoch.
    """

    kind = "warmup"
    rank = 20
    slot = "warmup"
    null_setting = {"epochs": 0.0}
    example = {"epochs": 0.5, "start": 0.0}
    card = Card(
        title="Learning-rate warmup",
        summary=(
            "Raises the learning rate linearly from `start` to its peak: of m updates the i-th has the "
            "factor start + (1 - start) i / m; other ways of counting by `reaches`."
        ),
        source="Goyal et al. 2017, arXiv:1706.02677, sec. 2.2; He et al. 2019, arXiv:1812.01187, sec. 3.1",
        formula="lr = peak * (start + (1 - start) x), in update i = 1, ..., m of warmup\n"
        "x = i / m (peak), (i - 1) / m (start), (i - 1) / (m - 1) (both)",
        null="epochs: 0",
        cost="None.",
        suggested="5 epochs for large batches on ImageNet, 20 for transformers. torchvision: start 0.01, "
        "reaches start, stepping epoch; timm: reaches start, stepping epoch; MMPretrain: start 1e-3, "
        "reaches both.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import linear_warmup

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: linear_warmup(step, warmup=5))
for step in range(7):
    print(step, optimizer.param_groups[0]["lr"])
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] == 0.4
""",
        aliases=("linear warmup", "gradual warmup", "warm-up", "lr warmup"),
        library="closed form; torch's LinearLR counts from 0 and would waste the first update at start 0",
    )

    epochs: float = Field(default=5.0, ge=0)
    start: float = Field(default=0.0, ge=0, le=1)
    reaches: Literal["peak", "start", "both"] = "peak"
    stepping: Stepping = "update"

    def warmup_steps(self, timeline: Timeline) -> int:
        """``epochs`` in updates, rounded."""
        return round(self.epochs * timeline.steps_per_epoch)

    def factor(self, step: int, timeline: Timeline) -> float:
        """Rises to 1 at the last update of warmup, or just after it."""
        warmup, length = self.warmup_steps(timeline), stride(self.stepping, timeline)
        return linear_warmup(step, warmup, self.start, reaches=self.reaches, stride=length)

    def check(self, context: Context) -> Iterable[Problem]:
        """Warmup must end before training does, and the first rate must not be 0."""
        if self.reaches != "peak" and self.start == 0 and self.warmup_steps(context.timeline) > 0:
            yield self.problem(
                "the learning rate of the first updates is 0",
                fix=f"--set {self.kind}.start=0.01 or --set {self.kind}.reaches=peak",
            )
        if self.warmup_steps(context.timeline) > context.timeline.steps:
            yield self.problem(
                f"warmup of {self.epochs:g} epochs outlasts training of {context.recipe.epochs:g}",
                fix=f"--set {self.kind}.epochs={context.recipe.epochs / 10:g}",
            )


def _ascending(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError("milestones in ascending order, each once")
    return values


class StepDecay(ScheduleTrick):
    """Multiply the learning rate by ``gamma`` at each milestone.

    Attributes:
        milestones: epochs from the start of training (warmup included), ascending; fractions are allowed.
        gamma: factor at each.
    """

    kind = "step_decay"
    rank = 30
    slot = "decay"
    null_setting = {"gamma": 1.0}
    example = {"milestones": (0.5, 1.0), "gamma": 0.1}
    card = Card(
        title="Step decay",
        summary="Drops the learning rate by a constant factor at given epochs; constant in between.",
        source="He et al. 2016, arXiv:1512.03385, sec. 3.4; He et al. 2019, arXiv:1812.01187, sec. 5.1",
        formula="lr = peak * gamma^(number of milestones reached)",
        null="gamma: 1",
        cost="None.",
        suggested="gamma 0.1 at epochs 30, 60 and 90 of 120 (ImageNet); at 1/2 and 3/4 of training (CIFAR).",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import step_decay

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step_decay(step, [4, 6]))
for step in range(8):
    print(step, optimizer.param_groups[0]["lr"])
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert abs(optimizer.param_groups[0]["lr"] - 0.001) < 1e-12
""",
        aliases=("MultiStepLR", "step schedule", "piecewise constant decay", "multi-step"),
        library="closed form of torch's MultiStepLR, with milestones in epochs, fractions of one allowed",
    )

    milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(_ascending)] = (
        30.0,
        60.0,
        90.0,
    )
    gamma: float = Field(default=0.1, gt=0, le=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """``gamma`` to the power of the milestones reached."""
        milestones = [round(m * timeline.steps_per_epoch) for m in self.milestones]
        return step_decay(step, milestones, self.gamma)

    def notes(self, context: Context) -> Iterable[str]:
        """Milestones that training never reaches."""
        line = context.timeline
        late = [f"{m:g}" for m in self.milestones if round(m * line.steps_per_epoch) >= line.steps]
        if late and self.gamma != 1:
            yield f"training ends before milestone {', '.join(late)}"


class CosineDecay(ScheduleTrick):
    """Let the learning rate fall along half a cosine.

    Attributes:
        final: share of the peak at which the curve arrives where training ends, just after the last update.
        underneath: False starts the curve when warmup is over; True runs it from the first update, hidden
            by warmup while that lasts, as timm does unless told otherwise.
        stepping: whether the rate changes at every update, or only at the start of an epoch.
    """

    kind = "cosine_decay"
    rank = 30
    slot = "decay"
    null_setting = {"final": 1.0}
    example = {"final": 0.01}
    card = Card(
        title="Cosine decay",
        summary="Lets the learning rate fall slowly, then almost linearly, then slowly again.",
        source="Loshchilov and Hutter 2017, arXiv:1608.03983; He et al. 2019, arXiv:1812.01187, sec. 5.1",
        formula="lr = peak * (final + (1 - final) (1 + cos(pi x)) / 2)\n"
        "x from 0 after warmup to 1 at the end",
        null="final: 1",
        cost="None.",
        suggested="Has no milestones to tune: the first choice. He et al.: 77.16 to 77.91 % (ResNet-50-D). "
        "torchvision, timm and MMPretrain change the rate once an epoch: stepping epoch.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import cosine_decay, linear_warmup

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
factor = lambda step: linear_warmup(step, 2) * cosine_decay(step, steps=10, warmup=2)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
for step in range(10):
    print(step, round(optimizer.param_groups[0]["lr"], 4))
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] < 1e-9
""",
        aliases=("cosine annealing", "cosine schedule", "cosine learning rate", "CosineAnnealingLR"),
        library="closed form of torch's CosineAnnealingLR",
    )

    final: float = Field(default=0.0, ge=0, le=1)
    underneath: bool = False
    stepping: Stepping = "update"

    def factor(self, step: int, timeline: Timeline) -> float:
        """Falls from 1 after warmup to ``final`` at the end."""
        length, line = stride(self.stepping, timeline), timeline
        return cosine_decay(
            step, line.steps, line.warmup, self.final, underneath=self.underneath, stride=length
        )
