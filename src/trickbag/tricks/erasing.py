"""Tricks that hide parts of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from trickbag.tricks.augmentation import Probability, Ratios, Shares
from trickbag.tricks.base import Card, Draws, ImageTrick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trickbag.plan import Context


class RandomErasing(ImageTrick):
    """Hides a random box of each image.

    Attributes:
        p: probability of erasing, for each image.
        area: smallest and largest area of the box, as a share of the image.
        aspect: smallest and largest height / width of the box.
        fill: ``constant``: ``value``; ``channel``: one random color a box; ``pixel``: a random color a pixel.
        value: the constant, on the scale of the images at that moment (see ``when``).
        when: before normalization (values 0 to 1; random colors uniform) or after it (0 is the mean; random
            colors standard normal).
    """

    kind = "random_erasing"
    rank = 90
    null_setting = {"p": 0}
    example = {"p": 1.0, "fill": "pixel"}
    card = Card(
        title="Random erasing",
        summary="Replaces a random box of each image by a constant, one random color or noise, so that no "
        "single part of an object decides.",
        source="Zhong et al. 2020, arXiv:1708.04896, algorithm 1; DeVries and Taylor 2017, arXiv:1708.04552 "
        "(Cutout); attempts and fills as timm's and torchvision's RandomErasing",
        null="p = 0",
        cost="One pass over the batch; fill = pixel hashes a number for each pixel, about fifteen more.",
        suggested="p = 0.1 (torchvision's ResNet-50) to 0.25 with fill = pixel (timm, Swin). Helps long "
        "training of large models; hurts when objects are small or training is short. Cutout with a fixed "
        "square: area (x, x), aspect (1, 1), p = 1, fill = constant.",
        aliases=("Cutout", "random cutout", "RandomErasing", "RE"),
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
    when: Literal["before", "after"] = "after"

    @property
    def order(self) -> tuple[int, int, str]:
        """Rank 90 after normalization, 60 before it."""
        return int(self.stage), 60 if self.when == "before" else self.rank, self.kind

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``boxes``, and the fill's quantiles (``colors``) or its ``seeds`` when there is one.

        ``boxes``: ``(batch, 4)`` int64; ``colors``: ``(batch, channels)`` float32 between 0 and 1; ``seeds``:
        ``(batch, 2)`` int64.
        """
        import torch

        from trickbag.functional.erasing import random_erasing_boxes

        batch, channels = shape[:2]
        boxes = random_erasing_boxes(shape, generator, p=self.p, area=self.area, aspect=self.aspect)
        seeds = torch.randint(0, 2**31, (batch, 2), generator=generator)
        colors = torch.rand((batch, channels), generator=generator).clamp(2.0**-25, 1 - 2.0**-24)
        return {"boxes": boxes, "seeds": seeds, "colors": colors}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Fill the drawn boxes."""
        from trickbag.functional.erasing import erase, normal_noise, uniform_noise

        if self.fill == "constant":
            return erase(images, draws["boxes"], self.value)
        if self.fill == "channel":
            quantiles = draws["colors"][:, :, None, None]
        else:
            quantiles = uniform_noise(draws["seeds"], images.shape)
        fill = normal_noise(quantiles) if self.when == "after" else quantiles
        return erase(images, draws["boxes"], fill)

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
