"""Tricks that keep averaged weights beside the raw ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import Timeline, WeightsTrick

if TYPE_CHECKING:
    from torch import Tensor, nn


class EMA(WeightsTrick):
    """Keeps an exponential moving average of the weights.

    Attributes:
        decay: share of the average that an update keeps.
        every: optimizer steps between updates; the decay is per update, not per step.
        warmup: True to limit the decay to (1 + t) / (10 + t) at update t, so that the random start is
            forgotten soon.
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
        "ImageNet. Helps most when the learning rate is still high; little after a decay to 0.",
        aliases=(
            "exponential moving average",
            "model EMA",
            "weight averaging",
            "Polyak averaging",
            "averaged weights",
        ),
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

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of the tensors of ``model.state_dict()``."""
        from trickbag.functional.averaging import start_average

        return start_average(model)

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Update ``average`` in place every ``every`` steps; depends on nothing but its arguments."""
        from trickbag.functional.averaging import update_average, warm_decay

        if (step + 1) % self.every == 0:
            decay = warm_decay(self.decay, step // self.every) if self.warmup else self.decay
            update_average(average, model, decay)
