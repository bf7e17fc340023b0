"""Tricks that blur images and add noise to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import AfterValidator, Field

from trickbag.imageops.program import Op
from trickbag.tricks.augmentation import Probability, Sometimes, ascending
from trickbag.tricks.base import Card

if TYPE_CHECKING:
    pass

Sigma = Annotated[float, Field(gt=0, le=10)]
Sigmas = Annotated[tuple[Sigma, Sigma], AfterValidator(ascending)]
Deviations = Annotated[tuple[Probability, Probability], AfterValidator(ascending)]


class GaussianBlur(Sometimes):
    """Blurs each image with some probability.

    Attributes:
        p: probability, for each image.
        sigma: smallest and largest standard deviation of the Gaussian, in pixels of the images that the model
            sees; drawn uniformly.
    """

    kind = "gaussian_blur"
    rank = 65
    op = Op.BLUR
    example = {"p": 1.0}
    card = Card(
        title="Gaussian blur",
        summary="Convolves each image, with probability p, with a Gaussian whose width is drawn for each "
        "image, so that fine texture cannot decide.",
        source="Chen et al. 2020, arXiv:2002.05709, appendix A (p = 0.5, sigma from 0.1 to 2.0)",
        formula="blurred[i] = sum_d w_d image[i + d], along rows and columns, with probability p\n"
        "w_d proportional to exp(-d^2 / (2 sigma^2)), |d| <= ceil(3 sigma), sum 1",
        null="p = 0",
        cost="Two passes over the pixels of the chosen images, each the longer the larger sigma.",
        suggested="p = 0.5 and sigma (0.1, 2) at 224 px for images out of focus, and for self-supervised "
        "training, where it is part of the usual bag; sigma up to 1 at 32 px, and p = 0.1 or nothing for "
        "classes that fine detail tells apart. Sigma counts pixels: the same one blurs small images more.",
        aliases=("blur", "defocus", "RandomGaussianBlur", "GaussianBlur", "smoothing"),
        library="trickbag: torchvision blurs a whole batch alike. Within one level of its GaussianBlur with "
        "a kernel of 3 sigma each way, rounded up to whole pixels, on images mirrored at their borders",
        snippet="""\
import torch
from trickbag.functional.filters import gaussian_blur

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
for _ in range(3):
    blurred = gaussian_blur(images, sigmas=torch.empty(len(images)).uniform_(0.1, 2))
    some = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, blurred, images)
    loss = torch.nn.functional.cross_entropy(model(some / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    sigma: Sigmas = (0.1, 2.0)

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Radii, and the shape of the kernel."""
        import torch

        from trickbag.functional.filters import blur_shape

        radii, ratios = blur_shape(torch.from_numpy(generator.uniform(*self.sigma, count)))
        return radii.numpy(), ratios.numpy()


class GaussianNoise(Sometimes):
    """Adds normal noise to each image with some probability.

    Attributes:
        p: probability, for each image.
        std: smallest and largest standard deviation on the scale 0 to 1, drawn uniformly for each image; the
            noise is drawn for each pixel and channel, and results are cut off at 0 and 1.
    """

    kind = "gaussian_noise"
    rank = 67
    op = Op.NOISE
    example = {"p": 1.0, "std": (0.02, 0.1)}
    card = Card(
        title="Gaussian noise",
        summary="Adds to every value of an image, with probability p, a normal amount of its own, as a "
        "sensor does in poor light; the noise is stronger in one image than in another.",
        source="Bishop 1995, Training with Noise Is Equivalent to Tikhonov Regularization, section 2; "
        "Rusak et al. 2020, arXiv:2001.06057 (on robustness to corruptions)",
        formula="image + s n with probability p, n ~ N(0, 1) for each value, s ~ U(std) for each image",
        null="p = 0",
        cost="A hash and a table lookup for each value of the chosen images.",
        suggested="std up to 0.05 for noisy cameras; 0.1 and more for robustness to corruptions, which costs "
        "accuracy on clean images. Hurts fine texture. Values are rounded to whole levels: a std below 0.002 "
        "(half a level) does next to nothing.",
        aliases=("additive noise", "GaussNoise", "white noise", "sensor noise", "noise injection"),
        library="trickbag: torchvision's GaussianNoise adds one strength of noise to a whole batch and draws "
        "from the global generator",
        snippet="""\
import torch
from trickbag.functional.filters import gaussian_noise

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
for _ in range(3):
    deviations = 255 * torch.empty(len(images)).uniform_(0, 0.05)
    noisy = gaussian_noise(images, deviations, seeds=torch.randint(2**31, (len(images), 2)))
    loss = torch.nn.functional.cross_entropy(model(noisy / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    std: Deviations = (0.0, 0.05)

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[np.ndarray]:
        """Standard deviations in levels, and two seeds for the pixels."""
        deviations = 255 * generator.uniform(*self.std, count)
        return (deviations, *generator.integers(2**31, size=(2, count)))
