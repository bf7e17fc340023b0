"""Tricks that combine images of a batch, and their targets with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.tricks.augmentation import Probability, Shares
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Draws, MixTrick

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Mixup(MixTrick):
    """Blends each image, and its target, with another of the batch.

    Attributes:
        alpha: both parameters of the Beta distribution of the weights; 0 mixes nothing.
        p: probability of mixing, for each batch or image (see ``per``).
        per: one weight a ``batch``, or one an ``image``.
        partner: ``reverse`` mixes the first with the last, as timm; ``roll`` each with the one before it, as
            torchvision.
    """

    kind = "mixup"
    rank = 40
    null_setting = {"alpha": 0}
    example = {"alpha": 0.8}
    card = Card(
        title="Mixup",
        summary="Trains on blends of two images, with targets blended by the same weight, drawn from "
        "Beta(alpha, alpha).",
        source="Zhang et al. 2018, arXiv:1710.09412, equation 1 and section 2",
        formula="w ~ Beta(alpha, alpha)\n"
        "image = w * image + (1 - w) * other, target = w * target + (1 - w) * other target",
        null="alpha = 0 (or p = 0)",
        cost="One pass over the batch. Needs more epochs: He et al. went from 120 to 200.",
        suggested="alpha = 0.2 for ImageNet and ResNets, 0.8 for transformers, 1 for CIFAR. Helps long "
        "training; hurts short training and models that underfit. Together with cutmix in one bag, both act "
        "on every batch, mixup first (targets stay exact), unless mix_switch lets one act at a time.",
        aliases=("mix-up", "mix up", "input mixup"),
        library="trickbag: dense targets, and draws that do not touch a global generator",
        snippet="""\
import torch
from trickbag.functional.mixing import beta_weights, mixup

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = torch.nn.functional.one_hot(labels, 10).float()
for _ in range(3):
    weights = beta_weights(0.2, 1).expand(len(images))
    mixed, mixed_targets = mixup(images, targets, weights)
    loss = torch.nn.functional.cross_entropy(model(mixed), mixed_targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    alpha: float = Field(default=0.2, ge=0, le=100)
    p: float = Field(default=1.0, ge=0, le=1)
    per: Literal["batch", "image"] = "batch"
    partner: Literal["reverse", "roll"] = "reverse"

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``weights``: ``(batch,)`` float32, the weight of each image itself."""
        from trickbag.functional.mixing import beta_weights

        count = shape[0] if self.per == "image" else 1
        return {
            "weights": beta_weights(self.alpha, count, generator, p=self.p).float().expand(shape[0]).clone()
        }

    def mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Blend images and targets by the drawn weights."""
        from trickbag.functional.mixing import mixup

        return mixup(images, targets, draws["weights"], self.partner)


class CutMix(MixTrick):
    """Pastes a box of another image of the batch into each image, and weights targets by area.

    Attributes:
        alpha: both parameters of the Beta distribution of the share that remains; 0 mixes nothing.
        p: probability of mixing, for each batch or image (see ``per``).
        per: one box a ``batch``, or one an ``image``.
        partner: ``reverse`` mixes the first with the last, as timm; ``roll`` each with the one before it, as
            torchvision.
    """

    kind = "cutmix"
    rank = 50
    null_setting = {"alpha": 0}
    example = {"alpha": 1.0}
    card = Card(
        title="CutMix",
        summary="Pastes a box of another image of the batch into each image; targets are weighted by the "
        "pixels that changed hands, counted after the box is clipped at the border.",
        source="Yun et al. 2019, arXiv:1905.04899, equations 1 and 2",
        formula="w ~ Beta(alpha, alpha), box of sqrt(1 - w) of each side around any pixel, clipped\n"
        "image[box] = other[box], a = pixels of the box / pixels of the image\n"
        "target = (1 - a) * target + a * other target",
        null="alpha = 0 (or p = 0)",
        cost="One pass over the batch. Needs more epochs than training without.",
        suggested="alpha = 1; p = 0.5 for small data sets (CIFAR). Helps long training and localization; "
        "hurts short training and images with small objects. Together with mixup in one bag, both act on "
        "every batch, mixup first (targets stay exact), unless mix_switch lets one act at a time. "
        "Boxes have even sides, as in the paper's code and torchvision; timm's may be a pixel larger.",
        aliases=("cut mix", "cut-mix"),
        library="trickbag: dense targets, exact weights, and draws that do not touch a global generator",
        snippet="""\
import torch
from trickbag.functional.mixing import beta_weights, cutmix, cutmix_boxes

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = torch.nn.functional.one_hot(labels, 10).float()
for _ in range(3):
    boxes = cutmix_boxes(beta_weights(1.0, 8), torch.randint(16, (8, 2)), 16, 16)
    mixed, mixed_targets = cutmix(images, targets, boxes)
    loss = torch.nn.functional.cross_entropy(model(mixed), mixed_targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    alpha: float = Field(default=1.0, ge=0, le=100)
    p: float = Field(default=1.0, ge=0, le=1)
    per: Literal["batch", "image"] = "batch"
    partner: Literal["reverse", "roll"] = "reverse"

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``boxes``: ``(batch, 4)`` int64 (top, left, height, width), clipped; empty to paste nothing."""
        import torch

        from trickbag.functional.mixing import beta_weights, cutmix_boxes

        height, width = shape[-2:]
        count = shape[0] if self.per == "image" else 1
        place = torch.rand((count, 2), generator=generator, dtype=torch.float64)
        centers = (place * torch.tensor((height, width))).floor().long()
        weights = beta_weights(self.alpha, count, generator, p=self.p)
        return {"boxes": cutmix_boxes(weights, centers, height, width).expand(shape[0], 4).clone()}

    def mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Paste the drawn boxes and weight the targets by their areas."""
        from trickbag.functional.mixing import cutmix

        return cutmix(images, targets, draws["boxes"], self.partner)


class Mosaic(MixTrick):
    """Puts four images of the batch into the quadrants of one, and weights targets by their pixels.

    Attributes:
        p: probability, for each image, of becoming a mosaic.
        center: smallest and largest place of the point where the quadrants meet, as a share of the height and
            of the width; drawn uniformly, for each image and each axis.
    """

    kind = "mosaic"
    rank = 60
    null_setting = {"p": 0}
    example = {"p": 0.8}
    card = Card(
        title="Mosaic for classification",
        summary="Trains on four images at once, one in each quadrant around a random center, with targets "
        "weighted by the pixels that each contributes.",
        source="Bochkovskiy et al. 2020 (YOLOv4), arXiv:2004.10934, sections 3.3 and 4.2; as in the "
        "classifier of their code (AlexeyAB/darknet, load_data_augment). Close kin: RICAP, Takahashi et al. "
        "2018, arXiv:1811.09030",
        formula="target = sum over the 4 quadrants of (its pixels / all pixels) * target of its image",
        null="p = 0",
        cost="One pass over the batch. Needs more epochs than training without.",
        suggested="darknet: p = 0.5 (a batch there, an image here), center = 0.2 to 0.8. Best known from "
        "detection; in YOLOv4's ablation of classifiers it is about as good as CutMix. Helps long training "
        "with objects that fill the image; hurts short training, and where a quarter of an image rarely "
        "shows what its label says. Not what detectors do: they place resized images on a larger canvas, "
        "carry boxes along and cut it. Here nothing is resized or moved: every quadrant shows the same place "
        "of its image (RICAP: a random place), so that objects keep their scale and lose parts.",
        aliases=("mosaic augmentation", "four-image CutMix"),
        library="trickbag: torchvision and timm have none",
        snippet="""\
import torch
from trickbag.functional.mixing import mosaic

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = torch.nn.functional.one_hot(labels, 10).float()
for _ in range(3):
    centers = torch.randint(4, 13, (8, 2))  # between a quarter and three quarters of 16 px
    mixed, mixed_targets = mosaic(images, targets, centers)
    loss = torch.nn.functional.cross_entropy(model(mixed), mixed_targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    p: Probability = 0.5
    center: Shares = (0.25, 0.75)

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """``centers``: ``(batch, 2)`` int64 (row, column); (height, width) to leave an image as it is."""
        import torch

        acts, *place = torch.rand((3, shape[0]), generator=generator, dtype=torch.float64)
        low, high = self.center
        size = torch.tensor(shape[-2:])
        centers = ((low + (high - low) * torch.stack(place, 1)) * size).round().long()
        return {"centers": torch.where((acts < self.p)[:, None], centers, size)}

    def mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Put the quadrants together and weight the targets by their areas."""
        from trickbag.functional.mixing import mosaic

        return mosaic(images, targets, draws["centers"])
