"""The other libraries, each in the settings that suit it best.

Where a library has no policy of a name, the nearest thing that can be built of its own operations takes part.
What comes out is always a normalized float32 batch ``(batch, channels, height, width)``; peers that work on
one image at a time stack uint8 images and normalize the batch at once, which is quicker than one by one.
"""

from __future__ import annotations

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from pictures import MEAN, STD

POLICIES = ("none", "trivial", "rand", "timm")
"""Crop and flip alone; TrivialAugmentWide; torchvision's RandAugment(2, 9); timm's rand-m9-mstd0.5-inc1."""
TIMM = {
    "trivial": "rand-m10-n1-p1-mstd101-inc1",
    "rand": "rand-m9-n2-p1-inc1",
    "timm": "rand-m9-mstd0.5-inc1",
}


def order(count: int, batch: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Positions of images, batch after batch, shuffled anew each epoch."""
    rng = np.random.default_rng(seed)
    while True:
        mixed = rng.permutation(count)
        for start in range(0, max(1, count - batch + 1), batch):
            yield mixed[start : start + batch]


class Finish:
    """Stacks uint8 images of height x width x channels, or tensors, and normalizes the batch."""

    def __init__(self) -> None:
        self.mean = 255 * torch.tensor(MEAN).view(1, 3, 1, 1)
        self.scale = 1 / (255 * torch.tensor(STD).view(1, 3, 1, 1))

    def arrays(self, images: Sequence[Any]) -> Tensor:
        """From uint8 arrays ``(height, width, channels)``."""
        return self.floats(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))

    def tensors(self, images: Sequence[Tensor]) -> Tensor:
        """From uint8 tensors ``(channels, height, width)``."""
        return self.floats(torch.stack(list(images)))

    def floats(self, batch: Tensor) -> Tensor:
        """From a uint8 batch."""
        return batch.to(torch.float32).sub_(self.mean).mul_(self.scale)


def policy_v1(name: str) -> list[Any]:
    return {"trivial": [v1.TrivialAugmentWide()], "rand": [v1.RandAugment(2, 9)]}.get(name, [])


def policy_v2(name: str) -> list[Any]:
    return {"trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment(2, 9)]}.get(name, [])


def policy_timm(name: str) -> list[Any]:
    from timm.data import auto_augment

    # Pillow 13 refuses to keep 0 bits, which timm asks for at the strongest magnitude.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize
    # timm draws bilinear or bicubic; nearest, as torchvision has it, is the least work.
    hparams = {} if name == "timm" else {"interpolation": Image.Resampling.NEAREST}
    if name not in TIMM:
        return []
    return [auto_augment.rand_augment_transform(TIMM[name], hparams | {"img_mean": (125, 123, 114)})]


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def policy_albumentations(name: str, side: int) -> list[Any]:
    """The operations of the policies, as near as albumentations has them."""
    import albumentations as A
    import cv2

    wide = name == "trivial"
    nearest = cv2.INTER_NEAREST
    shear = 44.7 if wide else 5.2
    shift = min(32, side - 1) if wide else round(0.3 * 150 / 331 * side)
    degrees, change = (135.0, 0.99) if wide else (9.0, 0.27)

    def either(low: float, high: float) -> tuple[float, float]:
        return (low, high) if wide else (high, high)

    ops = [
        A.NoOp(p=1),
        A.Affine(shear={"x": (-shear, shear), "y": (0, 0)}, interpolation=nearest, p=1),
        A.Affine(shear={"x": (0, 0), "y": (-shear, shear)}, interpolation=nearest, p=1),
        A.Affine(translate_px={"x": (-shift, shift), "y": (0, 0)}, interpolation=nearest, p=1),
        A.Affine(translate_px={"x": (0, 0), "y": (-shift, shift)}, interpolation=nearest, p=1),
        A.Rotate((-degrees, degrees), interpolation=nearest, p=1),
        A.RandomBrightnessContrast((-change, change), (0, 0), p=1),
        A.RandomBrightnessContrast((0, 0), (-change, change), p=1),
        A.ColorJitter((1, 1), (1, 1), (1 - change, 1 + change), (0, 0), p=1),
        A.Sharpen(either(0.0, change), (1, 1), p=1),
        A.Posterize((2, 8) if wide else (7, 7), p=1),
        A.Solarize(either(0.0, 0.7 if not wide else 1.0), p=1),
        A.AutoContrast(p=1),
        A.Equalize(mode="cv", p=1),
    ]
    if name == "trivial":
        return [A.OneOf(ops, p=1)]
    return [A.SomeOf(ops, n=2, replace=True)] if name == "rand" else []


def policy_kornia(name: str) -> list[Any]:
    from kornia.augmentation.auto import RandAugment, TrivialAugment

    return {"trivial": [TrivialAugment()], "rand": [RandAugment(2, 9)]}.get(name, [])


def through(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """The steps one after the other, as ``Compose``, which is not needed for this."""

    def run(value: Any) -> Any:
        for step in steps:
            value = step(value)
        return value

    return run


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
