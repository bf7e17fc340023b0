"""Learning from the hardest images of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import LossTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Loss


class OHEM(LossTrick):
    """Only the images with the largest losses of a batch count.

    Attributes:
        keep: share of the images that count.
    """

    kind = "ohem"
    rank = 95
    linear = False
    null_setting = {"keep": 1}
    example = {"keep": 0.5}
    card = Card(
        title="Online hard example mining",
        summary="Drops the images of a batch that the model already gets right: only the share with the "
        "largest losses counts, and the loss is their mean.",
        source="Shrivastava et al. 2016, arXiv:1604.03540, section 4.1, for images instead of regions",
        formula="losses of the k = keep n largest, times n / k; 0 for the others",
        null="keep = 1",
        cost="One sort of the losses; the dropped images still go through the model.",
        suggested="keep = 0.7. Helps where most images are easy; hurts with noisy labels, which are the "
        "hardest, and early in training. The hardest are chosen within what goes through the model at once: "
        "a part of a batch with gradient_accumulation, each process's share with several.",
        aliases=("OHEM", "hard example mining", "hard negative mining", "top-k loss", "selective backprop"),
        library="trickbag, one sort; of equal losses the earlier image wins, on every device.",
        snippet="""\
import torch
from trickbag.functional.losses import hardest

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 64), torch.randint(10, (8,))
for _ in range(3):
    losses = torch.nn.functional.cross_entropy(model(images), labels, reduction="none")
    loss = hardest(losses, keep=0.7).mean()  # the mean of the 6 largest
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    keep: float = Field(default=0.7, gt=0, le=1)

    def wrap(self, loss: Loss) -> Loss:
        """The loss of the hardest images, 0 for the others."""
        if self.keep == 1:
            return loss

        def hard(logits: Tensor, targets: Tensor) -> Tensor:
            from trickbag.functional.losses import hardest

            return hardest(loss(logits, targets), self.keep)

        return hard

    def notes(self, context: Context) -> Iterable[str]:
        """Tell when rounding to whole images keeps all of them."""
        from trickbag.functional.losses import kept_images

        size = context.recipe.batch_size
        if self.keep < 1 and kept_images(size, self.keep) == size:
            yield f"{self.keep:g} of a batch of {size} is all of it"
