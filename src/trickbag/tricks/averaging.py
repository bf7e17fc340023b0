"""Tricks that keep averaged weights beside the raw ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Timeline, WeightsTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.plan import Context

__all__ = ["EMA", "SWA"]


class EMA(WeightsTrick):
    """Keeps an exponential moving average of the weights.

    Attributes:
        decay: share of the average that an update keeps.
        every: optimizer steps between updates; the decay is per update, not per step.
        warmup: True to limit the decay to (1 + t) / (10 + t) at update t, so that the random start is
            forgotten soon.
        rescale: True to read ``decay`` as torchvision does, for an update after each image of a run of one
            epoch: 1 - decay is multiplied by batch size * every / epochs.
    """

    kind = "ema"
    null_setting = {"decay": 0}
    example = {"decay": 0.9, "warmup": True}
    card = Card(
        title="Exponential moving average of weights",
        summary="Keeps a second set of weights that follows the trained ones slowly, and is evaluated beside "
        "them. Training itself does not change.",
        source="Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging; Szegedy et "
        "al. 2016, arXiv:1512.00567, section 8",
        null="decay = 0 (the average equals the raw weights)",
        cost="Memory for one more copy of the weights; one fused update over them every `every` steps; one "
        "more evaluation.",
        suggested="The average remembers about every / (1 - decay) steps: aim at a tenth of the run or "
        "less, and turn on warmup for short runs. decay = 0.999 for some thousand steps, 0.9999 for "
        "ImageNet. Helps most when the learning rate is still high; little after a decay to 0. torchvision's "
        "recipes: decay = 0.99998, every = 32, rescale.",
        aliases=(
            "exponential moving average",
            "model EMA",
            "weight averaging",
            "Polyak averaging",
            "averaged weights",
        ),
        formula="average = decay * average + (1 - decay) * weights, every `every` steps\n"
        "warmup: decay = min(decay, (1 + t) / (10 + t)) at update t\n"
        "rescale: decay = 1 - min(1, (1 - decay) * batch size * every / epochs)",
        library="torch._foreach_lerp_, over a plain dictionary that checkpoints hold as it is; integer "
        "buffers are copied",
        snippet="""\
import torch
from trickbag.functional.averaging import start_average, update_average

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
average = start_average(model)
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update_average(average, model, decay=0.9)
model.load_state_dict(average)
""",
    )

    decay: float = Field(default=0.999, ge=0, lt=1)
    every: int = Field(default=1, ge=1)
    warmup: bool = False
    rescale: bool = False

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of the tensors of ``model.state_dict()``."""
        from trickbag.functional.averaging import start_average

        return start_average(model)

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Update ``average`` in place every ``every`` steps; depends on nothing but its arguments."""
        from trickbag.functional.averaging import update_average, warm_decay

        if (step + 1) % self.every == 0:
            decay = self.decay_at_end(timeline)
            update_average(average, model, warm_decay(decay, step // self.every) if self.warmup else decay)

    def rule(self, step: int, timeline: Timeline) -> Hashable:
        """The same in runs of any length, unless the decay is rescaled by it."""
        return timeline if self.rescale else ()

    def decay_at_end(self, timeline: Timeline) -> float:
        """The decay of an update, rescaled if asked for, once warmup no longer limits it."""
        if not self.rescale:
            return self.decay
        from trickbag.functional.averaging import rescaled_decay

        epochs = timeline.steps / timeline.steps_per_epoch
        return rescaled_decay(self.decay, timeline.batch_size, self.every, epochs)


class SWA(WeightsTrick):
    """Keeps the equal average of weights from the last part of the run.

    Attributes:
        after: share of the run before weights are collected; at 1 only the last ones are.
        every: epochs between the weights that are collected, counted back from the end of the run, so that
            the last weights are always among them.
        images: number of training images from which batch norm's statistics are estimated anew, for the
            averaged weights, at the end; 0 averages the statistics like weights.
    """

    kind = "swa"
    rank = 60
    null_setting = {"after": 1, "images": 0}
    example = {"after": 0.3, "every": 0.01, "images": 16}
    card = Card(
        title="Stochastic weight averaging",
        summary="Averages the weights of the last epochs, all alike: a point in the middle of a flat region "
        "around which training moves. Batch norm's statistics are then estimated anew for it. Training "
        "itself does not change.",
        source="Izmailov et al. 2018, arXiv:1803.05407, algorithm 1",
        null="after = 1, images = 0 (the average is the last weights)",
        cost="Memory for one more copy of the weights; a copy of them at each step before the first are "
        "collected; `images` forward passes at the end; one more evaluation.",
        suggested="after 0.75, every 1 epoch. The learning rate must stay high enough to move: constant, "
        "constant with cooldown, cyclic or step. After a cosine to 0 the weights collected are nearly the "
        "same ones. Without batch norm's new statistics (images = 0) accuracy may collapse.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.averaging import reestimate_statistics, start_average, update_mean

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 196, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
average = start_average(model)
for count in range(3):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    update_mean(average, model, count)
model.eval()
print(reestimate_statistics(model, average, [images]))
model.load_state_dict(average)
""",
        aliases=("stochastic weight averaging", "weight averaging", "checkpoint averaging", "tail averaging"),
        formula="average = (weights[1] + ... + weights[n]) / n, over n points from `after` to the end",
        library="The arithmetic of torch.optim.swa_utils, over a plain dictionary that checkpoints hold; "
        "its update_bn takes the mean of the batches' variances, this the variance of all images.",
    )

    after: float = Field(default=0.75, ge=0, le=1)
    every: float = Field(default=1.0, gt=0)
    images: int = Field(default=1024, ge=0)

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of the tensors of ``model.state_dict()``."""
        from trickbag.functional.averaging import start_average

        return start_average(model)

    def collected(self, timeline: Timeline) -> range:
        """The numbers of updates, from 1, after which weights are collected."""
        every = max(1, round(self.every * timeline.steps_per_epoch))
        earliest = max(1, math.ceil(self.after * timeline.steps - 1e-9))
        first = timeline.steps - (timeline.steps - earliest) // every * every
        return range(first, timeline.steps + 1, every)

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Collect the weights if it is time; before the first are collected, the average equals the model."""
        from trickbag.functional.averaging import update_mean

        when = self.collected(timeline)
        if step + 1 < when.start:
            update_mean(average, model, 0)
        elif step + 1 in when:
            update_mean(average, model, when.index(step + 1))

    def rule(self, step: int, timeline: Timeline) -> Hashable:
        """A copy until the first weights are collected; then what matters is when the others are."""
        when = self.collected(timeline)
        return None if step + 1 <= when.start else (when.start, when.step)

    @property
    def sample_size(self) -> int:
        """``images``."""
        return self.images

    def finish(
        self, averages: Mapping[str, dict[str, Tensor]], model: nn.Module, images: Iterable[Tensor]
    ) -> None:
        """Estimate batch norm's statistics anew for the averaged weights."""
        from trickbag.functional.averaging import reestimate_statistics

        reestimate_statistics(model, averages[self.kind], images)

    def check(self, context: Context) -> Iterable[Problem]:
        """One image has no variance."""
        if self.images == 1:
            yield self.problem("statistics of one image mean nothing", expected="images: 0, or 2 and more")

    def notes(self, context: Context) -> Iterable[str]:
        """In a short run the average may be of one set of weights."""
        if self.after < 1 and len(self.collected(context.timeline)) == 1:
            yield "it collects weights only once: they are the last ones; choose smaller every or after"
