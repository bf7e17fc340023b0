"""Tricks that change the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import LossTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.tricks.stages import Loss


class LabelSmoothing(LossTrick):
    """Moves a share of every target's mass evenly to all classes.

    Attributes:
        epsilon: the share.
    """

    kind = "label_smoothing"
    rank = 80
    null_setting = {"epsilon": 0}
    example = {"epsilon": 0.1}
    card = Card(
        title="Label smoothing",
        summary="Replaces a target t by t (1 - epsilon) + epsilon / classes, so that the model is not driven "
        "to ever larger logits. Commutes with mixup and cutmix.",
        source="Szegedy et al. 2016, arXiv:1512.00567, section 7",
        formula="target * (1 - epsilon) + epsilon / classes",
        null="epsilon = 0",
        cost="None.",
        suggested="epsilon = 0.1. Helps with many classes and noisy labels, and makes probabilities less "
        "sharp; hurts a model that will teach another one by distillation.",
        aliases=("LSR", "smoothing", "soft labels"),
        library="trickbag, two operations; equals torch's cross_entropy(label_smoothing=...)",
        snippet="""\
import torch
from trickbag.functional.losses import smooth_targets, soft_cross_entropy

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = smooth_targets(torch.nn.functional.one_hot(labels, 10).float(), 0.1)
for _ in range(3):
    loss = soft_cross_entropy(model(images), targets).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    epsilon: float = Field(default=0.1, ge=0, lt=1)

    def wrap(self, loss: Loss) -> Loss:
        """The loss on smoothed targets."""
        if self.epsilon == 0:
            return loss

        def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
            from trickbag.functional.losses import smooth_targets

            return loss(logits, smooth_targets(targets, self.epsilon))

        return smoothed
