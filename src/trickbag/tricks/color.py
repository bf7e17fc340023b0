"""Tricks that change the colors of images, and normalization."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from pydantic import Field

from trickbag.errors import Problem
from trickbag.imageops.program import Op, Step
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Batch, ImageTrick

if TYPE_CHECKING:
    from trickbag.plan import Context
    from trickbag.rng import Stream

Positive = Annotated[float, Field(gt=0)]
ORDERS = np.array(list(permutations(range(4))))
"""Every order of four operations."""


class ColorJitter(ImageTrick):
    """Changes brightness, contrast, saturation and hue of each image.

    Attributes:
        brightness: half width x of the interval [1 - x, 1 + x] that brightness is multiplied by.
        contrast: likewise for contrast.
        saturation: likewise for saturation.
        hue: hue is turned by up to so many turns of the color circle, either way.
    """

    kind = "color_jitter"
    rank = 40
    null_setting = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    example = {"brightness": 0.4, "contrast": 0.4, "saturation": 0, "hue": 0}
    card = Card(
        title="Color jitter",
        summary="Multiplies brightness, contrast and saturation by factors drawn from U[1 - x, 1 + x] and "
        "turns the hue, for each image on its own and in an order drawn for each image.",
        source="Howard 2013, arXiv:1312.5402, section 2; He et al. 2019, arXiv:1812.01187, section 2.1; "
        "operations as torchvision's ColorJitter",
        formula="brightness: f x                 f ~ U[1 - setting, 1 + setting]\n"
        "contrast:   m + f (x - m)       m the mean gray of the image\n"
        "saturation: g + f (x - g)       g the gray of the pixel\n"
        "hue:        H + U[-hue, hue]    H in turns of the color circle",
        null="all four at 0",
        cost="A pass over the pixels for brightness, contrast and saturation each; turning hue, with its "
        "conversion to HSV and back, costs more than all three.",
        suggested="0.4 for brightness, contrast and saturation, hue 0 to 0.1. He et al. write of hue, "
        "saturation and brightness from U[0.6, 1.4]; the code that they published jitters brightness, "
        "contrast and saturation by 0.4. Hurts where color is the label. Gray images: saturation = hue = 0.",
        aliases=("colour jitter", "brightness", "contrast", "saturation", "hue", "photometric distortion"),
        library="trickbag: torchvision jitters a whole batch alike, or one image at a time. Results equal, "
        "bit for bit, those of torchvision's ColorJitter on Pillow images with the same factors and order",
        snippet="""\
import torch
from trickbag.tricks.color import ColorJitter

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
for step in range(3):
    jittered = jitter(images, seed=0, step=step)
    loss = torch.nn.functional.cross_entropy(model(jittered / 255), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.4, ge=0, le=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """A step for each operation in use; the k-th one holds, for each image, its k-th operation."""
        reach = np.array((self.brightness, self.contrast, self.saturation, self.hue))
        used, count = reach > 0, batch.shape[0]
        if not used.any():
            return ()
        generator = stream.numpy(batch.step)
        amounts = np.array((1, 1, 1, 0)) + reach * generator.uniform(-1, 1, (count, 4))
        order = ORDERS[generator.integers(len(ORDERS), size=count)]
        order = order[used[order]].reshape(count, -1)
        amounts = np.take_along_axis(amounts, order, 1)
        ops = np.array((Op.BRIGHTNESS, Op.CONTRAST, Op.SATURATION, Op.HUE), np.uint8)[order]
        return [Step.of(ops[:, k], amounts[:, k]) for k in range(order.shape[1])]

    def check(self, context: Context) -> Iterable[Problem]:
        """Gray images have neither saturation nor hue."""
        used = [name for name in ("saturation", "hue") if getattr(self, name)]
        if context.facts.channels == 1 and used:
            yield self.problem(
                f"{' and '.join(used)} cannot act on gray images",
                expected="images with 3 channels",
                fix=f"set {' and '.join(f'color_jitter.{name}' for name in used)} to 0",
            )


class PCANoise(ImageTrick):
    """Adds one color to each image, along the principal axes of ImageNet's colors.

    Attributes:
        std: standard deviation of the amounts along the axes.
    """

    kind = "pca_noise"
    rank = 50
    null_setting = {"std": 0}
    example = {"std": 0.1}
    card = Card(
        title="PCA noise",
        summary="Adds to each image one color: normal amounts along the principal axes of ImageNet's colors, "
        "which imitates changes in the color and intensity of light.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1",
        formula="(R, G, B) + sum_k a_k s_k v_k, a_k ~ N(0, std^2)\n"
        "v_k the principal axes of ImageNet's colors, s_k their scales",
        null="std = 0",
        cost="Next to nothing: a table of 256 values a channel and image.",
        suggested="std = 0.1, on photographs in color. The axes are ImageNet's; on images of another kind "
        "color_jitter is the better choice. Results are rounded to whole values and cut off at 0 and 255.",
        aliases=("lighting noise", "AlexNet color augmentation", "fancy PCA", "Lighting", "PCA lighting"),
        library="trickbag: no maintained library has it batched",
        snippet="""\
import torch
from trickbag.functional.color import pca_shift

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    shift = pca_shift(0.1 * torch.randn(len(images), 3))
    lit = (images + shift[:, :, None, None]).clamp(0, 1)
    loss = torch.nn.functional.cross_entropy(model(lit), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    std: float = Field(default=0.1, ge=0, le=10)

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``ADD``, or nothing where ``std`` is 0."""
        import torch

        from trickbag.functional.color import pca_shift

        if not self.std:
            return ()
        amounts = self.std * stream.numpy(batch.step).standard_normal((batch.shape[0], 3))
        shift = 255 * pca_shift(torch.from_numpy(amounts)).numpy()
        return (Step.of(Op.ADD, *shift.clip(-255, 255).T),)

    def check(self, context: Context) -> Iterable[Problem]:
        """The axes are those of red, green and blue."""
        if self.std and context.facts.channels != 3:
            yield self.problem(
                f"the images have {context.facts.channels} channel", expected="images with 3 channels (RGB)"
            )


class Normalize(ImageTrick):
    """Subtracts a mean from each channel and divides by a standard deviation, in training and prediction.

    Attributes:
        mean: one value a channel, or one for all, for images from 0 to 1. None takes the mean that pretrained
            weights were trained with; without such, that of the training split, else ImageNet's.
        std: likewise, above 0.
    """

    IMAGENET_MEAN: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    IMAGENET_STD: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    HE_MEAN: ClassVar[tuple[float, ...]] = (123.68 / 255, 116.779 / 255, 103.939 / 255)
    """He et al. 2019, section 2.1: 123.68, 116.779, 103.939 for values from 0 to 255."""
    HE_STD: ClassVar[tuple[float, ...]] = (58.393 / 255, 57.12 / 255, 57.375 / 255)
    """He et al. 2019, section 2.1: 58.393, 57.12, 57.375 for values from 0 to 255."""

    kind = "normalize"
    rank = 80
    training_only = False
    null_setting = {"mean": (0.0,), "std": (1.0,)}
    example = {"mean": (0.45,), "std": (0.225,)}
    card = Card(
        title="Normalization of images",
        summary="Subtracts a mean from each channel and divides by a standard deviation, so that the first "
        "layer sees values around 0 of size 1.",
        source="LeCun et al. 1998, Efficient BackProp, section 4.3; He et al. 2019, arXiv:1812.01187, "
        "section 2.1",
        formula="(image - mean) / std, channel by channel",
        null="mean = 0 and std = 1",
        cost="None: values become floats by a table anyway.",
        suggested="Leave both empty: pretrained weights bring their own values, and training from scratch "
        "uses those of the training split. Wrong values cost pretrained models dearly and others little.",
        aliases=("normalisation", "standardization", "mean and std", "input normalization"),
        snippet="""\
import torch
from trickbag.functional.color import normalize

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
mean, std = images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist()
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(normalize(images, mean, std)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    mean: tuple[float, ...] | None = Field(default=None, min_length=1)
    std: tuple[Positive, ...] | None = Field(default=None, min_length=1)

    def resolve(self, context: Context) -> Self:
        """This trick with ``mean`` and ``std`` filled in."""
        if self.mean is not None and self.std is not None:
            return self
        mean, std = self._known(context)
        return self.model_copy(update={"mean": self.mean or mean, "std": self.std or std})

    def _known(self, context: Context) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if context.recipe.model.starts_pretrained and context.preprocessing is not None:
            return tuple(context.preprocessing.mean), tuple(context.preprocessing.std)
        facts = context.facts
        if facts.mean and facts.std:
            return tuple(facts.mean), tuple(std if std > 0 else 1.0 for std in facts.std)
        return self._imagenet(facts.channels)

    def _imagenet(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if channels == 3:
            return self.IMAGENET_MEAN, self.IMAGENET_STD
        return (sum(self.IMAGENET_MEAN) / 3,), (sum(self.IMAGENET_STD) / 3,)

    def table(self, channels: int) -> np.ndarray:
        """What a model sees for each value; a trick that has not been resolved uses ImageNet's numbers."""
        mean, std = self._imagenet(channels)
        return _straight_line(self.mean or mean, self.std or std, channels).copy()

    def check(self, context: Context) -> Iterable[Problem]:
        """One value a channel, or one for all."""
        trick, channels = self.resolve(context), context.facts.channels
        for name, values in (("mean", trick.mean or ()), ("std", trick.std or ())):
            if len(values) in (1, channels):
                continue
            fix = f"give {channels} as normalize.{name}"
            if getattr(self, name) is None:
                fix = f"read the images in the colors that the weights expect, or {fix}"
            yield self.problem(
                f"{name} has {len(values)} values, but the images have {channels} channels",
                expected=f"{channels} values, or one for all channels",
                fix=fix,
            )


@functools.lru_cache(maxsize=64)
def _straight_line(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> np.ndarray:
    offset, scale = np.array(mean)[:, None], np.array(std)[:, None]
    # One product and one sum: what back ends compute quickest, to the bit.
    slope, intercept = np.float32(1 / (255 * scale)), np.float32(0.0 - offset / scale)
    values = np.arange(256, dtype=np.float32) * slope + intercept
    table = np.broadcast_to(values, (channels, 256)).copy()
    return table
