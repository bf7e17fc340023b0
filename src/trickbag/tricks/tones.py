"""Tricks that bend the scale of brightness, or take color away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from trickbag.errors import Problem
from trickbag.imageops.program import Op
from trickbag.tricks.augmentation import Probability, Ratios, Sometimes, ascending
from trickbag.tricks.base import Card

if TYPE_CHECKING:
    from trickbag.plan import Context

ClipLimit = Annotated[float, Field(gt=0, le=256)]
ClipLimits = Annotated[tuple[ClipLimit, ClipLimit], AfterValidator(ascending)]


class RandomGamma(Sometimes):
    """Raises values on the scale 0 to 1 to a power drawn for each image.

    Attributes:
        p: probability, for each image.
        gamma: smallest and largest exponent, drawn log-uniformly; below 1 brightens, above 1 darkens.
    """

    kind = "random_gamma"
    op = Op.GAMMA
    # What light and color do, then what a lens does, then what a sensor does: 61 to 63, 65, 67.
    rank = 61
    example = {"p": 1.0}
    card = Card(
        title="Random gamma",
        summary="Raises the values of an image, on the scale 0 to 1, to a random power: black and white stay "
        "as they are, and what lies between gets darker or brighter, as with another exposure or display.",
        source="operation as torchvision's adjust_gamma; RandomGamma of Albumentations, AdjustGamma of "
        "MMSegmentation",
        formula="image^gamma on the scale 0 to 1, log gamma uniform, with probability p",
        null="p = 0",
        cost="A table of 256 values an image.",
        suggested="gamma 0.8 to 1.25, up to 0.5 to 2 where light varies a lot (driving at night, X-rays). "
        "Unlike brightness, it cuts no values off. Hurts where absolute brightness is the label.",
        aliases=("gamma correction", "RandomGamma", "AdjustGamma", "adjust_gamma", "power-law transform"),
        library="trickbag: torchvision changes a whole batch alike, or one image at a time. Results equal, "
        "bit for bit, those of adjust_gamma on Pillow images",
        snippet="""\
import torch
from trickbag.functional.photometric import gamma

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
for _ in range(3):
    exponents = 1.25 ** torch.empty(len(images), dtype=torch.float64).uniform_(-1, 1)
    loss = torch.nn.functional.cross_entropy(model(gamma(images, exponents) / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    gamma: Ratios = (0.8, 1.25)

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Exponents."""
        low, high = np.log(self.gamma)
        return (np.exp(low + (high - low) * generator.random(count)),)


class CLAHE(Sometimes):
    """Equalizes the histograms of small tiles, with a limit to how much contrast may grow.

    Attributes:
        p: probability, for each image.
        clip_limit: smallest and largest limit: how often a value may occur in a tile, as a multiple of its
            share in a flat histogram. 1 changes little; more gives more contrast.
        tiles: tiles in each direction.
        channels: ``luma`` equalizes brightness and keeps hue; ``each`` equalizes every channel by itself.
    """

    kind = "clahe"
    rank = 62
    op = Op.CLAHE
    example = {"p": 1.0, "tiles": 2}
    card = Card(
        title="CLAHE",
        summary="Contrast-limited adaptive histogram equalization: cuts each image into tiles, flattens each "
        "tile's histogram no further than a limit, and interpolates between tiles. In color images the "
        "luma (ITU-R 601) is equalized, and red, green and blue change by the same amount.",
        source="Pizer et al. 1987, Adaptive Histogram Equalization and Its Variations; Zuiderveld 1994, "
        "Graphics Gems IV; details as OpenCV's createCLAHE",
        formula="most = clip_limit * n / 256 for a tile of n pixels, excess = sum_u max(0, count(u) - most)\n"
        "table(v) = 255 / n * sum_{u <= v} (min(count(u), most) + excess / 256)\n"
        "each pixel: between the tables of the four nearest tiles, by distance",
        null="p = 0",
        cost="Several passes over the pixels of the chosen images; with channels = each, three times that.",
        suggested="clip_limit (1, 4) as in Albumentations; tiles of 16 pixels or more a side: 8 tiles for "
        "224 px, 2 for 32 px. MMSegmentation: clip_limit 40 (almost no limit), channels = each. Helps where "
        "contrast is low or uneven (medical images, night, fog); hurts where absolute brightness counts.",
        aliases=(
            "contrast limited adaptive histogram equalization",
            "adaptive histogram equalization",
            "AHE",
        ),
        library="trickbag: OpenCV has it for one channel of one image on the CPU; equal to it bit for bit on "
        "each channel. Albumentations equalizes L of Lab instead of luma",
        snippet="""\
import torch
from trickbag.functional.filters import clahe

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
labels = torch.randint(10, (8,))
for _ in range(3):
    limits = torch.empty(len(images), dtype=torch.float64).uniform_(1, 4)
    loss = torch.nn.functional.cross_entropy(model(clahe(images, limits, tiles=2) / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    clip_limit: ClipLimits = (1.0, 4.0)
    tiles: int = Field(default=8, ge=1, le=64)
    channels: Literal["luma", "each"] = "luma"

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[np.ndarray | float]:
        """Limits, tiles, and whether each channel is on its own."""
        return generator.uniform(*self.clip_limit, count), self.tiles, self.channels == "each"

    def notes(self, context: Context) -> Iterable[str]:
        """OpenCV's limit is a whole number of pixels, at least one."""
        size = context.recipe.image_size
        side, needed = -(-size // self.tiles), math.ceil(math.sqrt(512 / self.clip_limit[1]))
        fewer = max(1, size // needed)
        if self.p and side < needed and fewer < self.tiles:
            yield (
                f"clahe's tiles have {side} x {side} pixels, too few for its clip_limit to make a "
                f"difference: set clahe.tiles to {fewer}"
            )


class RandomGrayscale(Sometimes):
    """Takes the color out of each image with some probability.

    Attributes:
        p: probability, for each image.
    """

    kind = "random_grayscale"
    rank = 63
    op = Op.SATURATION
    example = {"p": 0.5}
    card = Card(
        title="Random grayscale",
        summary="Replaces red, green and blue of an image by its luma (ITU-R 601), with probability p, so "
        "that color alone cannot decide.",
        source="Chen et al. 2020, arXiv:2002.05709, appendix A; operation as torchvision's RandomGrayscale",
        formula="R = G = B = 0.299 R + 0.587 G + 0.114 B, with probability p",
        null="p = 0",
        cost="A pass over the pixels of the chosen images.",
        suggested="p = 0.1 to 0.2, for images in color that will be met in other light or through other "
        "cameras. Hurts where color is the label (flowers, birds, ripeness).",
        aliases=("RandomGrayscale", "RandomGray", "ToGray", "greyscale", "grey", "color dropping"),
        library="trickbag: torchvision changes a whole batch alike, or one image at a time. Results equal, "
        "bit for bit, those of RandomGrayscale on Pillow images",
        snippet="""\
import torch
from trickbag.tricks.tones import RandomGrayscale

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
grayscale = RandomGrayscale(p=0.2)
for step in range(3):
    loss = torch.nn.functional.cross_entropy(model(grayscale(images, seed=0, step=step) / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    p: Probability = 0.1

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[float]:
        """No color is left."""
        return (0,)

    def check(self, context: Context) -> Iterable[Problem]:
        """Gray images have no color to take away."""
        if self.p and context.facts.channels == 1:
            yield self.problem("the images are gray already", expected="images with 3 channels (RGB)")
