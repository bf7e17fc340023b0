"""Tricks that hide parts of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from trickbag.errors import Problem
from trickbag.imageops.program import Op, Step
from trickbag.tricks.augmentation import Probability, Ratios, Shares
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Batch, ImageTrick

if TYPE_CHECKING:
    from trickbag.plan import Context
    from trickbag.rng import Stream


class Eraser(ImageTrick):
    """What tricks that hide a box have in common: they act before normalization or after it.

    Attributes:
        when: before normalization (values 0 to 1) or after it (0 is the mean).
    """

    rank = 90

    when: Literal["before", "after"] = "after"

    @property
    def order(self) -> tuple[int, int, str]:
        """Rank 90 after normalization, 75 before it."""
        return int(self.stage), 75 if self.when == "before" else self.rank, self.kind

    @property
    def late(self) -> bool:
        """True after normalization."""
        return self.when == "after"


class RandomErasing(Eraser):
    """Hides a random box of each image.

    Attributes:
        p: probability of erasing, for each image.
        area: smallest and largest area of the box, as a share of the image.
        aspect: smallest and largest height / width of the box.
        fill: ``constant``: ``value``; ``channel``: one random color a box; ``pixel``: a random color a pixel.
        value: the constant, on the scale of the images at that moment (see ``when``).
        when: before normalization (values 0 to 1, kept as whole steps of 1/255; random colors uniform) or
            after it (0 is the mean; random colors standard normal).
    """

    kind = "random_erasing"
    null_setting = {"p": 0}
    example = {"p": 1.0, "fill": "pixel"}
    card = Card(
        title="Random erasing",
        summary="Replaces a random box of each image by a constant, one random color or noise, so that no "
        "single part of an object decides.",
        source="Zhong et al. 2020, arXiv:1708.04896, algorithm 1; attempts and fills as timm's and "
        "torchvision's RandomErasing",
        formula="a ~ U(area) * height * width, log r ~ U(log aspect)\n"
        "box = round(sqrt(a r)) rows, round(sqrt(a / r)) columns, anywhere inside the image\n"
        "image[box] = fill, with probability p",
        null="p = 0",
        cost="Next to nothing: only pixels in the boxes are written; fill = pixel hashes a number for each.",
        suggested="p = 0.1 (torchvision's ResNet-50) to 0.25 with fill = pixel (timm, Swin). Helps long "
        "training of large models; hurts when objects are small or training is short. For a square of "
        "one size use Cutout.",
        aliases=("RandomErasing", "RE"),
        library="trickbag: timm and torchvision loop over images and draw from global generators",
        snippet="""\
import torch
from trickbag.functional.erasing import erase, random_erasing_boxes

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))  # normalized images
for _ in range(3):
    boxes = random_erasing_boxes(images.shape, p=0.5)
    erased = erase(images, boxes, fill=torch.randn_like(images))
    loss = torch.nn.functional.cross_entropy(model(erased), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    p: Probability = 0.25
    area: Shares = (0.02, 1 / 3)
    aspect: Ratios = (0.3, 3.3)
    fill: Literal["constant", "channel", "pixel"] = "constant"
    value: float = 0.0

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``ERASE``, or nothing where p is 0."""
        import torch

        from trickbag.functional.erasing import random_erasing_boxes

        if not self.p:
            return ()
        generator, count = stream.torch(batch.step), batch.shape[0]
        boxes = random_erasing_boxes(batch.shape, generator, p=self.p, area=self.area, aspect=self.aspect)
        box = boxes.T.numpy()
        if self.fill == "constant":
            value = self.value if self.late else round(255 * self.value)
            return (Step.of(Op.ERASE, *box, 0, value, value, value),)
        if self.fill == "pixel":
            seeds = torch.randint(2**31, (2, count), generator=generator).numpy()
            return (Step.of(Op.ERASE, *box, 2 if self.late else 1, *seeds),)
        if self.late:
            colors = torch.randn((3, count), generator=generator).numpy()
        else:
            colors = torch.randint(256, (3, count), generator=generator).numpy()
        return (Step.of(Op.ERASE, *box, 0, *colors),)

    def check(self, context: Context) -> Iterable[Problem]:
        """Before normalization there are no values outside 0 to 1."""
        if self.p and self.fill == "constant" and not self.late and not 0 <= self.value <= 1:
            yield self.problem(
                f"a value of {self.value:g} does not exist in images before normalization",
                expected="a value from 0 to 1",
                fix="set random_erasing.value to 0, or random_erasing.when to after",
            )

    def notes(self, context: Context) -> Iterable[str]:
        """Random colors after normalization presume that there is one."""
        if (
            self.p
            and self.fill != "constant"
            and self.when == "after"
            and "normalize" not in context.recipe.tricks
        ):
            yield (
                "random_erasing fills boxes with standard normal colors, but the recipe has no normalize, "
                "so that images have values 0 to 1: set random_erasing.when to before, or add normalize"
            )
