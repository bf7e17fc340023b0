"""Tricks that mirror, shift and cut images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card, CropTrick, Draws, ImageTrick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trickbag.plan import Context


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the smallest value first, then the largest")
    return limits


Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]
Ratios = Annotated[tuple[Ratio, Ratio], AfterValidator(_ascending)]


class RandomFlip(ImageTrick):
    """Mirrors each image with some probability.

    Attributes:
        p: probability, for each image, of swapping left and right.
        vertical: probability, for each image, of swapping top and bottom.
    """

    kind = "random_flip"
    rank = 10
    null_setting = {"p": 0, "vertical": 0}
    example = {"p": 0.5}
    card = Card(
        title="Random horizontal flip",
        summary="Mirrors each image left to right with probability p, every image on its own.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1",
        null="p = 0 and vertical = 0",
        cost="Next to nothing: one pass over the batch.",
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

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``horizontal`` and ``vertical``: ``(batch,)`` bool."""
        import torch

        uniform = torch.rand((shape[0], 2), generator=generator, dtype=torch.float64)
        return {"horizontal": uniform[:, 0] < self.p, "vertical": uniform[:, 1] < self.vertical}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Mirror the chosen images."""
        from trickbag.functional.augment import flip

        return flip(images, draws["horizontal"], draws["vertical"] if self.vertical else None)


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
        null="padding = 0",
        cost="One gather over the batch; the padded images are never made.",
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

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``offsets``: ``(batch, 2)`` int64, 0 to twice the padding."""
        import torch

        return {"offsets": torch.randint(0, 2 * self.padding + 1, (shape[0], 2), generator=generator)}

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Cut the drawn windows out."""
        from trickbag.functional.augment import pad_and_crop

        return pad_and_crop(images, draws["offsets"], self.padding, self.mode) if self.padding else images

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
