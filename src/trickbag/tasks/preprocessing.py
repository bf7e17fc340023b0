"""How images must be prepared for pretrained weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trickbag.tricks.base import Bag

if TYPE_CHECKING:
    from trickbag.recipe.model import ModelSpec


@dataclass(frozen=True)
class Preprocessing:
    """What pretrained weights expect of images.

    Attributes:
        mean, std: per channel (red, green, blue), for values from 0 to 1.
        image_size: height and width, in pixels.
        crop_fraction: share of the resized short side that the center crop keeps at evaluation.
        interpolation: filter of the resize: ``nearest``, ``bilinear`` or ``bicubic``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    crop_fraction: float
    interpolation: str


def preprocessing_of(spec: ModelSpec) -> Preprocessing | None:
    """What timm says of the weights that ``spec`` names; None for built-in nets. Downloads nothing."""
    from trickbag.tasks.nets import NETS

    if spec.name in NETS:
        return None
    import timm

    config = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    if config is None:
        return None
    return Preprocessing(
        mean=tuple(map(float, config.mean)),
        std=tuple(map(float, config.std)),
        image_size=int(config.input_size[-1]),
        crop_fraction=float(config.crop_pct),
        interpolation=config.interpolation or "bicubic",
    )


def normalized(preprocessing: Preprocessing | None) -> Bag:
    """The bag that feeds a model images as its weights expect them; empty where nothing is known."""
    from trickbag.tricks.color import Normalize

    if preprocessing is None:
        return Bag()
    return Bag([Normalize(mean=preprocessing.mean, std=preprocessing.std)])
