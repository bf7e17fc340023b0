"""Tricks that mirror, shift and cut images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from trickbag.errors import Problem
from trickbag.imageops.program import Op, Step
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Batch, CropTrick, ImageTrick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.rng import Stream


def ascending(limits: tuple[float, float]) -> tuple[float, float]:
    """The limits, if they are in order; else a ValueError."""
    if limits[0] > limits[1]:
        raise ValueError("the smallest value first, then the largest")
    return limits


Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(ascending)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Ratios = Annotated[tuple[Ratio, Ratio], AfterValidator(ascending)]


class Sometimes(ImageTrick):
    """One operation, done to each image with some probability.

    Attributes:
        p: probability, for each image.
    """

    op: ClassVar[Op]
    null_setting = {"p": 0}

    p: Probability = 0.5

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[np.ndarray | float]:
        """Arguments of the operation: each a number, or ``(count,)``."""
        raise NotImplementedError

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One step, or none where p is 0."""
        if not self.p:
            return ()
        generator, count = stream.numpy(batch.step), batch.shape[0]
        ops = np.where(generator.random(count) < self.p, self.op, Op.IDENTITY).astype(np.uint8)
        return (Step.of(ops, *self.arguments(count, generator)),)


class RandomFlip(ImageTrick):
    """Mirrors each image with some probability.

    Attributes:
        p: probability, for each image, of swapping left and right.
        vertical: probability, for each image, of swapping top and bottom.
    """

    kind = "random_flip"
    rank = 10
    slot = "flip"
    null_setting = {"p": 0, "vertical": 0}
    example = {"p": 0.5}
    card = Card(
        title="Random horizontal flip",
        summary="Mirrors each image left to right with probability p, every image on its own.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1",
        formula="image[:, ::-1] with probability p, image[::-1] with probability vertical",
        null="p = 0 and vertical = 0",
        cost="Next to nothing: pixels are read in another order.",
        suggested="p = 0.5 for photographs. Hurts where left and right carry meaning: digits, text, traffic "
        "signs, organs. Add vertical = 0.5 for views from above (satellites, microscopes).",
        aliases=("horizontal flip", "vertical flip", "random mirror", "hflip"),
        snippet="""\
import torch
from trickbag.functional.augment import flip

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    mirrored = torch.rand(len(images)) < 0.5
    loss = torch.nn.functional.cross_entropy(model(flip(images, mirrored)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    p: Probability = 0.5
    vertical: Probability = 0.0

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``FLIP``, or nothing where both probabilities are 0."""
        if not (self.p or self.vertical):
            return ()
        uniform = stream.numpy(batch.step).random((2, batch.shape[0]))
        return (Step.of(Op.FLIP, uniform[0] < self.p, uniform[1] < self.vertical),)


class VerticalFlip(Sometimes):
    """Swaps top and bottom of each image with some probability.

    Attributes:
        p: probability, for each image.
    """

    kind = "vertical_flip"
    rank = 11
    op = Op.FLIP
    card = Card(
        title="Random vertical flip",
        summary="Swaps top and bottom of each image with probability p, every image on its own.",
        source="operation and probability as torchvision's RandomVerticalFlip",
        formula="image[::-1] with probability p",
        null="p = 0",
        cost="Next to nothing: pixels are read in another order.",
        suggested="p = 0.5, beside random_flip, where there is no up and down: satellites, microscopes, "
        "galaxies, textures. Hurts photographs, which have the sky above, and wherever a thing upside down "
        "is another thing: digits, text, organs.",
        aliases=("vertical flip", "vflip", "RandomVerticalFlip", "flip upside down", "up-down flip"),
        library="trickbag: torchvision flips a whole batch alike, or one image at a time",
        snippet="""\
import torch
from trickbag.functional.augment import flip

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    across, down = torch.rand(2, len(images)) < 0.5
    loss = torch.nn.functional.cross_entropy(model(flip(images, across, down)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    def arguments(self, count: int, generator: np.random.Generator) -> Sequence[float]:
        """Not left and right, but top and bottom."""
        return 0, 1


class AlternatingFlip(ImageTrick):
    """Mirrors each image in every other epoch, left to right.

    Attributes:
        share: share of the images that take part; the others are never mirrored.
    """

    kind = "alternating_flip"
    rank = 10
    slot = "flip"
    null_setting = {"share": 0}
    card = Card(
        title="Alternating flip",
        summary="Tosses a coin for each image in the first epoch and mirrors it in every other epoch from "
        "then on: two epochs in a row show each image both ways, where random flips repeat half of them.",
        source="Jordan 2024, arXiv:2404.00498, the section on alternating flip and its listing",
        formula="image[:, ::-1] if (coin + epoch) is odd, coin 0 or 1, drawn once for each image",
        null="share = 0",
        cost="Next to nothing: a hash an image; pixels are read in another order.",
        suggested="In place of random_flip wherever that helps, above all in short training, where an image "
        "is seen a few times only. The paper finds it better in every case in which flipping helps at all.",
        aliases=("alternating horizontal flip", "derandomized flip", "airbench flip"),
        library="trickbag: the author's own code mirrors one epoch of resident images at once",
        snippet="""\
import torch
from trickbag.functional.augment import flip

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(24, 3, 16, 16), torch.randint(10, (24,))
coins = torch.rand(len(images)) < 0.5
for epoch in range(2):
    for rows in torch.randperm(len(images)).split(8):
        mirrored = flip(images[rows], coins[rows] ^ (epoch % 2 == 1))
        loss = torch.nn.functional.cross_entropy(model(mirrored), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
    )

    share: Probability = 1.0

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``FLIP``, from the images' positions and the epoch; nothing where the share is 0.

        A batch that does not say which images it holds is taken for the first ones of the split.
        """
        if not self.share:
            return ()
        positions = batch.indices if len(batch.indices) else np.arange(batch.shape[0])
        bits = splitmix64(stream.key(), positions)
        chosen = (bits >> np.uint64(11)) * 2.0**-53 < self.share
        mirrored = (bits & np.uint64(1)) != batch.epoch % 2
        return (Step.of(Op.FLIP, chosen & mirrored),)


def splitmix64(seed: int, positions: np.ndarray) -> np.ndarray:
    """Numbers of a SplitMix64 generator by their position.

    Args:
        seed: below 2**64.
        positions: ``(n,)`` integers, 0 or more.

    Returns:
        ``(n,)`` uint64, each a function of ``seed`` and its position alone.

    Source:
        Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators", section 5; constants of
        Vigna's ``splitmix64.c``.
    """
    x = (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class PadAndCrop(ImageTrick):
    """Shifts each image by a few pixels.

    Attributes:
        padding: pixels added to each side before a window of the original size is cut out.
        mode: what is added: ``zero`` (black), or ``reflect`` (the mirrored image).
    """

    kind = "pad_and_crop"
    rank = 20
    null_setting = {"padding": 0}
    example = {"padding": 2}
    card = Card(
        title="Pad and crop",
        summary="Pads every side and cuts a window of the original size out at random: a random shift of up "
        "to `padding` pixels each way, drawn for each image.",
        source="He et al. 2016, arXiv:1512.03385, section 4.2 (4 pixels of zeros on CIFAR-10)",
        formula="shifted[y, x] = padded[y + top, x + left], top and left uniform in 0, 1, ..., 2 padding",
        null="padding = 0",
        cost="Next to nothing: pixels are read from another place; the padded images are never made.",
        suggested="padding = 4 for 32 px (an eighth of the side), mode = reflect where black borders look "
        "odd. For small images; use random_resized_crop for large ones, where objects vary in scale.",
        aliases=("random crop", "random shift", "CIFAR augmentation", "random translation"),
        library="trickbag: torchvision's RandomCrop shifts a whole batch alike, or one image at a time",
        snippet="""\
import torch
from trickbag.functional.augment import pad_and_crop

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
padding = 2
for _ in range(3):
    offsets = torch.randint(0, 2 * padding + 1, (len(images), 2))
    shifted = pad_and_crop(images, offsets, padding, mode="reflect")
    loss = torch.nn.functional.cross_entropy(model(shifted), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    padding: int = Field(default=4, ge=0)
    mode: Literal["zero", "reflect"] = "zero"

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One ``SHIFT``, or nothing where there is no padding."""
        if not self.padding:
            return ()
        top, left = stream.numpy(batch.step).integers(
            -self.padding, self.padding, (2, batch.shape[0]), endpoint=True
        )
        return (Step.of(Op.SHIFT, top, left, self.mode == "reflect"),)

    def check(self, context: Context) -> Iterable[Problem]:
        """A shift by a whole image leaves nothing of it."""
        size = context.recipe.image_size
        if self.padding and self.padding >= size:
            yield self.problem(
                f"a padding of {self.padding} pixels can push images of {size} pixels out of sight",
                expected=f"a padding below {size}",
                fix=f"set pad_and_crop.padding to {size // 8}, an eighth of the side",
            )


class RandomResizedCrop(CropTrick):
    """Trains on a random part of each image, resized to the training resolution.

    Attributes:
        area: smallest and largest area of the part, as a share of the image.
        ratio: smallest and largest width / height of the part.
        p: probability, for each image, of a random part; otherwise its largest centered square.
    """

    kind = "random_resized_crop"
    slot = "crop"
    null_setting = {"p": 0}
    example = {"area": (0.35, 1.0)}
    card = Card(
        title="Random resized crop",
        summary="Cuts a part of random area and aspect ratio out of each source image and resizes it to the "
        "training resolution, so that objects appear at many scales.",
        source="Szegedy et al. 2015, arXiv:1409.4842, section 6; boxes as torchvision's RandomResizedCrop",
        formula="a ~ U(area) * height * width, log r ~ U(log ratio)\n"
        "part = round(sqrt(a / r)) rows, round(sqrt(a r)) columns, anywhere inside the image",
        null="p = 0 (the largest centered square of each image)",
        cost="None: some part is cut out and resized anyway.",
        suggested="area (0.08, 1) and ratio (3/4, 4/3) for ImageNet and long training; area (0.35, 1) or "
        "(0.5, 1) for short training, small data sets and fine detail. Objects look larger in training than "
        "in testing: test at a higher resolution than you train at (FixRes).",
        aliases=("RandomResizedCrop", "inception crop", "scale and aspect ratio augmentation"),
        library="trickbag: torchvision draws one box at a time",
        snippet="""\
import torch
from torchvision.transforms.functional import resized_crop
from trickbag.functional.augment import random_resized_crop_boxes

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
photos, labels = [torch.rand(3, 24, 20 + i) for i in range(8)], torch.randint(10, (8,))
sizes = torch.tensor([photo.shape[1:] for photo in photos])
for _ in range(3):
    boxes = random_resized_crop_boxes(sizes, area=(0.35, 1.0)).long().tolist()
    images = torch.stack([resized_crop(photo, *box, [16, 16]) for photo, box in zip(photos, boxes)])
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    area: Shares = (0.08, 1.0)
    ratio: Ratios = (3 / 4, 4 / 3)
    p: Probability = 1.0

    def boxes(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """``(batch, 4)`` float64 boxes of whole pixels, inside the images."""
        from trickbag.functional.augment import random_resized_crop_boxes

        return random_resized_crop_boxes(sizes, generator, area=self.area, ratio=self.ratio, p=self.p)
