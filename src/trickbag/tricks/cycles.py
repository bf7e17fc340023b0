"""Learning-rate schedules that go up and down."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from trickbag.errors import Problem
from trickbag.functional.schedules import cycle, one_cycle, piecewise_linear, warm_restarts
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ScheduleTrick, Timeline

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["OneCycle", "PiecewiseLinear", "WarmRestarts"]


class WarmRestarts(ScheduleTrick):
    """Let the learning rate fall along half a cosine, jump back to its peak, and fall again.

    Attributes:
        first: epochs of the first cycle, which starts when warmup is over; a fraction is allowed.
        multiplier: each cycle is so many times as long as the one before.
        final: share of the peak at which each cycle ends; 1 does nothing.
    """

    kind = "warm_restarts"
    rank = 30
    slot = "decay"
    null_setting = {"final": 1.0}
    example = {"first": 0.5}
    card = Card(
        title="Cosine decay with warm restarts",
        summary="Repeats a cosine decay in cycles of growing length. The weights at the end of each cycle "
        "are good ones, different enough for an ensemble.",
        source="Loshchilov and Hutter 2017, arXiv:1608.03983, section 3 (SGDR)",
        formula="lr = peak * (final + (1 - final) (1 + cos(pi t / T_k)) / 2), T_k = first * multiplier^k\n"
        "t from 0 to T_k in cycle k = 0, 1, 2, ...",
        null="final: 1",
        cost="None.",
        suggested="first 10, multiplier 2, and as many epochs as make whole cycles: 10, 30, 70, 150. For one "
        "good model at a fixed budget a single cosine_decay is usually at least as good.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import warm_restarts

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
factor = lambda step: warm_restarts(step, first=2, multiplier=2)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
for step in range(6):
    print(step, round(optimizer.param_groups[0]["lr"], 4))
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] == 0.1
""",
        aliases=("SGDR", "CosineAnnealingWarmRestarts", "cosine restarts", "cyclic cosine", "snapshots"),
        library="closed form of torch's CosineAnnealingWarmRestarts, whose multiplier must be whole",
    )

    first: float = Field(default=10.0, gt=0)
    multiplier: float = Field(default=2.0, ge=1)
    final: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int, timeline: Timeline) -> float:
        """1 at the start of each cycle; during warmup too."""
        done = max(0, step - timeline.warmup)
        return warm_restarts(done, self._first(timeline), self.multiplier, self.final)

    def _first(self, timeline: Timeline) -> int:
        return max(1, round(self.first * timeline.steps_per_epoch))

    def notes(self, context: Context) -> Iterable[str]:
        """A run that ends while the rate is high."""
        line = context.timeline
        done, length = cycle(max(0, line.steps - line.warmup), self._first(line), self.multiplier)
        if self.final < 1 and 0 < done < 0.9 * length:
            short, more = done / line.steps_per_epoch, (length - done) / line.steps_per_epoch
            yield f"training ends inside a cycle: {short:g} epochs fewer or {more:g} more would end with one"


def _low_high(values: tuple[float, float] | None) -> tuple[float, float] | None:
    if values is not None and values[0] > values[1]:
        raise ValueError("the lower momentum first")
    return values


Momentum = Annotated[float, Field(gt=0, lt=1)]


class OneCycle(ScheduleTrick):
    """Let the learning rate rise and fall once, and momentum fall and rise with it.

    Attributes:
        start_factor: share of the peak at the first update.
        final: share of the peak at the last update (torch's ``final_div_factor`` counts from the start:
            its 1e4 is 1e-4 times ``start_factor`` here).
        peak_at: share of training after which the peak comes.
        shape: ``cos`` for half a cosine each way, ``linear`` for straight lines.
        momentum_range: (lowest, highest) momentum, or first beta; the lowest comes with the highest rate.
            None leaves it alone.
    """

    kind = "one_cycle"
    rank = 30
    slot = "decay"
    null_setting = {"start_factor": 1.0, "final": 1.0, "momentum_range": None}
    example = {"start_factor": 0.2}
    card = Card(
        title="One-cycle policy",
        summary="One rise of the learning rate to a high peak and one long fall to almost nothing; momentum "
        "goes the other way.",
        source="Smith and Topin 2018, arXiv:1708.07120, section 3; Smith 2018, arXiv:1803.09820, section 4; "
        "two phases as in fast.ai and torch",
        formula="rise: lr = peak * (start_factor + (1 - start_factor) s)\n"
        "fall: lr = peak * (1 - (1 - final) s)\n"
        "s = (1 - cos(pi x)) / 2, or x if linear; x from 0 to 1 in each of the two",
        null="start_factor: 1, final: 1, momentum_range: null",
        cost="None.",
        suggested="lr is the peak, and may be several times what a constant rate bears; short budgets gain "
        "most. It contains a warmup: leave the trick warmup out. The optimizer's own momentum (or first "
        "beta) is replaced unless momentum_range is null.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import one_cycle

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.95)
steps = 10
for step in range(steps):
    group = optimizer.param_groups[0]
    group["lr"] = 0.1 * one_cycle(step, steps)
    group["momentum"] = one_cycle(step, steps, low=0.95, high=0.85, final=0.95)
    print(step, round(group["lr"], 4), round(group["momentum"], 3))
    optimizer.zero_grad()
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
assert group["lr"] < 1e-6
""",
        aliases=("1cycle", "OneCycleLR", "super-convergence", "cyclical momentum"),
        library="closed form of torch's OneCycleLR",
    )

    start_factor: float = Field(default=1 / 25, ge=0, le=1)
    final: float = Field(default=1e-4 / 25, ge=0, le=1)
    peak_at: float = Field(default=0.3, ge=0, le=1)
    shape: Literal["cos", "linear"] = "cos"
    momentum_range: Annotated[tuple[Momentum, Momentum] | None, AfterValidator(_low_high)] = (0.85, 0.95)

    def factor(self, step: int, timeline: Timeline) -> float:
        """From ``start_factor`` over 1 to ``final``."""
        low, final = self.start_factor, self.final
        return one_cycle(step, timeline.steps, low, final, self.peak_at, shape=self.shape)

    def momentum(self, step: int, timeline: Timeline) -> float | None:
        """From the highest over the lowest back to the highest."""
        if self.momentum_range is None:
            return None
        low, high = self.momentum_range
        return one_cycle(step, timeline.steps, high, high, self.peak_at, shape=self.shape, high=low)


Place = Annotated[float, Field(ge=0)] | Literal["end"]
Point = tuple[Place, Annotated[float, Field(ge=0)]]


def _in_order(points: tuple[Point, ...]) -> tuple[Point, ...]:
    places = [place for place, _ in points]
    numbers = [place for place in places if place != "end"]
    if "end" in places[:-1] or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError("points in ascending order, each place once, 'end' last")
    return points


class PiecewiseLinear(ScheduleTrick):
    """Let the learning rate follow straight lines between points.

    Attributes:
        points: (place, factor), ascending; constant before the first and after the last. ``end`` is the
            place where training ends, just after the last update. No points, no effect.
        unit: what places count, from the start of training (warmup included): ``epochs``, fractions
            allowed, or ``share`` of training, 0 to 1. Each is rounded to a whole update.
    """

    kind = "piecewise_linear"
    rank = 30
    slot = "decay"
    null_setting = {"points": ()}
    example = {"points": ((0, 0.5), ("end", 0.1))}
    card = Card(
        title="Piecewise-linear schedule",
        summary="Connects given points (epoch, factor) by straight lines: a ramp up and a longer one down, "
        "update by update, is what most speed records train with.",
        source="Page 2018, myrtle.ai/learn/how-to-train-your-resnet; ffcv-imagenet (Leclerc et al. 2023, "
        "arXiv:2306.12517); airbench (Jordan 2024, arXiv:2404.00498)",
        formula="lr = peak * (a + (b - a) (i - i_a) / (i_b - i_a))\n"
        "in update i between the points (i_a, a) and (i_b, b)",
        null="points: []",
        cost="None.",
        suggested="[[0, 1e-4], [2, 1], [end, 0]] for 16 to 88 epochs of ImageNet (ffcv); unit share with "
        "[[0, 0.2], [0.23, 1], [end, 0.07]] for CIFAR-10 (airbench). It contains a warmup: leave the trick "
        "warmup out.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.schedules import piecewise_linear

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
points = [(0, 1e-4), (2, 1.0), (8, 0.0)]
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: piecewise_linear(step, points))
for step in range(8):
    print(step, round(optimizer.param_groups[0]["lr"], 4))
    model(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    schedule.step()
assert optimizer.param_groups[0]["lr"] == 0
""",
        aliases=("triangular schedule", "triangle", "slanted triangular", "linear ramp", "lr knots"),
        library="closed form of numpy.interp over updates",
    )

    points: Annotated[tuple[Point, ...], AfterValidator(_in_order)] = ((0.0, 1e-4), (2.0, 1.0), ("end", 0.0))
    unit: Literal["epochs", "share"] = "epochs"

    def factor(self, step: int, timeline: Timeline) -> float:
        """On the line between the points around ``step``."""
        return piecewise_linear(step, self._updates(timeline)) if self.points else 1.0

    def _updates(self, timeline: Timeline) -> list[tuple[int, float]]:
        length = timeline.steps_per_epoch if self.unit == "epochs" else timeline.steps
        return [
            (timeline.steps if place == "end" else round(place * length), factor)
            for place, factor in self.points
        ]

    def check(self, context: Context) -> Iterable[Problem]:
        """Points must keep their order in updates, and be reached."""
        places = [place for place, _ in self._updates(context.timeline)]
        if any(a >= b for a, b in pairwise(places)):
            fix = f"other places: --set {self.kind}.points=..., or unit share"
            yield self.problem(
                f"its points fall on updates {places} of this run", expected="ascending", fix=fix
            )

    def notes(self, context: Context) -> Iterable[str]:
        """Points that training never reaches."""
        steps = context.timeline.steps
        late = [place for place, _ in self._updates(context.timeline) if place > steps]
        if late:
            yield f"training ends after update {steps}, before the points at {', '.join(map(str, late))}"
