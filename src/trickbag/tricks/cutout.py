"""Cutout: a square of one size, hidden anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from trickbag.imageops.program import Op, Step
from trickbag.tricks.augmentation import Probability
from trickbag.tricks.base import Card
from trickbag.tricks.erasing import Eraser
from trickbag.tricks.stages import Batch

if TYPE_CHECKING:
    from trickbag.plan import Context
    from trickbag.rng import Stream


class Cutout(Eraser):
    """Hides a square of each image, whose center may be any pixel.

    Attributes:
        size: side of the square, as a share of the image's shorter side.
        p: probability, for each image, of hiding one.
        when: before normalization, where the square is black, or after it, where zero is the mean color.
    """

    kind = "cutout"
    null_setting = {"p": 0}
    card = Card(
        title="Cutout",
        summary="Sets a square of fixed size to zero in each image. Its center is any pixel, with equal "
        "probability, so that part of the square may lie outside: parts near the border are hidden as well, "
        "and some images stay almost whole.",
        source="DeVries and Taylor 2017, arXiv:1708.04552, section 3",
        formula="a = round(size * shorter side), (y, x) any pixel of the image\n"
        "image[y - a/2 : y + a/2, x - a/2 : x + a/2] = 0",
        null="p = 0",
        cost="Next to nothing: only pixels in the squares are written.",
        suggested="The paper's sizes: 0.5 on CIFAR-10 (16 of 32 pixels), 0.25 on CIFAR-100 (8 pixels), 0.625 "
        "on SVHN (20 pixels). The more classes and the smaller the objects, the smaller. "
        "Boxes of random size and shape, always inside the image: random_erasing.",
        aliases=("cut-out", "random cutout", "cut out", "coarse dropout", "CoarseDropout"),
        library="trickbag: the author's code hides squares of one image at a time",
        snippet="""\
import torch
from trickbag.tricks.cutout import Cutout

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))  # normalized images
cutout = Cutout(size=0.5)
for step in range(3):
    loss = torch.nn.functional.cross_entropy(model(cutout(images, seed=0, step=step)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    size: float = Field(default=0.5, gt=0, le=2)
    p: Probability = 1.0

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``ERASE``, or nothing where ``p`` is 0."""
        if not self.p:
            return ()
        count, _, height, width = batch.shape
        side = max(1, round(self.size * min(height, width)))
        uniform = stream.numpy(batch.step).random((count, 3)).T
        chosen = uniform[2] < self.p
        top, tall = _covered((uniform[0] * height).astype(np.intp), side, height)
        left, wide = _covered((uniform[1] * width).astype(np.intp), side, width)
        return (Step.of(Op.ERASE, top * chosen, left * chosen, tall * chosen, wide * chosen),)

    def notes(self, context: Context) -> Iterable[str]:
        """Zeros are the mean color after a normalization only."""
        if self.p and self.late and "normalize" not in context.recipe.tricks:
            yield (
                "squares are black, not of the mean color, because the recipe has no normalize: add "
                "normalize, or set cutout.when to before"
            )


def _covered(center: np.ndarray, side: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of what a side of the square covers of an image's side."""
    start = center - side // 2
    end = np.minimum(start + side, length)
    start = np.maximum(start, 0)
    return start, end - start
