"""Predictions averaged over several views of an image, or over several models."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def average_predictions(
    probabilities: Tensor, average: str = "probabilities", weights: Sequence[float] | None = None
) -> Tensor:
    """Merge the predictions for several views of the same images.

    Args:
        probabilities: ``(views, batch, classes)``, rows sum to 1.
        average: ``probabilities`` for their arithmetic mean; ``logits`` for the softmax of the mean logits,
            which is the normalized geometric mean of the probabilities. (Logits are known from
            probabilities up to a constant a row, and softmax cancels it.)
        weights: one a view, sum 1; None weighs all alike.

    Returns:
        ``(batch, classes)``, rows sum to 1.

    Raises:
        ValueError: ``average`` is neither.
    """

    def mean(values: Tensor) -> Tensor:
        if weights is None:
            return values.mean(0)
        merged: Tensor = torch.tensordot(values.new_tensor(weights), values, 1)
        return merged

    if average == "probabilities":
        return mean(probabilities)
    if average == "logits":
        floor = torch.finfo(probabilities.dtype).tiny
        return mean(probabilities.clamp(min=floor).log()).softmax(-1)
    raise ValueError(f"average is {average!r}; expected 'probabilities' or 'logits'")


def predict_with_flip(
    predict: Callable[[Tensor], Tensor], images: Tensor, average: str = "probabilities"
) -> Tensor:
    """Predict images and their mirror images, and merge the two.

    Args:
        predict: images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``.
        images: what to predict.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.
    """
    return average_predictions(torch.stack((predict(images), predict(images.flip(-1)))), average)


def predict_with_views(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    shift: int = 1,
    *,
    flip: bool = True,
    average: str = "logits",
) -> Tensor:
    """Predict images, images shifted along both diagonals, and the mirror images of them all.

    The images in place, together with their mirror images, weigh as much as all shifted ones together.

    Args:
        predict: images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``.
        images: what to predict.
        shift: pixels, down and right in one view, up and left in another; what moves in is the mirrored
            border. 0 for no shifted views.
        flip: whether to predict mirror images.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.

    Source:
        Jordan 2024, arXiv:2404.00498, section 3.6 and listing (multi-crop evaluation).
    """
    views, weights = [images], [1.0]
    if shift:
        height, width = images.shape[2:]
        padded = F.pad(images, (shift,) * 4, mode="reflect")
        views += [padded[..., :height, :width], padded[..., 2 * shift :, 2 * shift :]]
        weights = [0.5, 0.25, 0.25]
    if flip:
        views += [view.flip(-1) for view in views]
        weights = [weight / 2 for weight in weights] * 2
    predicted = torch.stack([predict(view) for view in views])
    return average_predictions(predicted, average, weights)


def predict_with_crops(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    size: int,
    *,
    flip: bool = True,
    average: str = "probabilities",
) -> Tensor:
    """Predict the four corners and the center of images, and those of the mirror images.

    Args:
        predict: images ``(batch, channels, size, size)`` -> probabilities ``(batch, classes)``.
        images: ``(batch, channels, height, width)``; if both are ``size`` there is one crop, predicted once.
        size: height and width of a crop, in pixels.
        flip: True for ten crops, False for five.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.

    Raises:
        ValueError: images are smaller than a crop.

    Source:
        Krizhevsky et al. 2012, section 4.1; torchvision's ``FiveCrop`` and ``TenCrop``, crop by crop.
    """
    views = [images, images.flip(-1)] if flip else [images]
    crops = [crop for view in views for crop in five_crops(view, size)]
    return average_predictions(torch.stack([predict(crop) for crop in crops]), average)


def five_crops(images: Tensor, size: int) -> list[Tensor]:
    """Top left, top right, bottom left, bottom right and center crop; one if the images have that size.

    Args:
        images: ``(batch, channels, height, width)``.
        size: height and width of a crop, in pixels.

    Raises:
        ValueError: images are smaller than a crop.
    """
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"images of {height} x {width} px hold no crop of {size} px")
    if height == width == size:
        return [images]
    bottom, right = height - size, width - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (round(bottom / 2), round(right / 2))]
    return [images[..., top : top + size, left : left + size] for top, left in corners]


def predict_with_scales(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float] = (0.875, 1.0, 1.125),
    *,
    multiple: int = 1,
    average: str = "probabilities",
) -> Tensor:
    """Predict images at several sizes, resized with an antialiased bilinear filter.

    Args:
        predict: images ``(batch, channels, height, width)`` of any size -> probabilities ``(batch, classes)``
        images: floating point ``(batch, channels, height, width)``.
        scales: sizes as a share of the images' own; at 1 they are left alone.
        multiple: other sizes are rounded to multiples of so many pixels, see ``scaled_side``.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.
    """
    height, width = images.shape[-2:]
    predicted = []
    for scale in scales:
        size = scaled_side(height, scale, multiple), scaled_side(width, scale, multiple)
        same = size == (height, width)
        view = images if same else F.interpolate(images, size, mode="bilinear", antialias=True)
        predicted.append(predict(view))
    return average_predictions(torch.stack(predicted), average)


def scaled_side(side: int, scale: float, multiple: int = 1) -> int:
    """``side * scale`` rounded to the nearest multiple (halves up), at least one; ``side`` at scale 1."""
    if scale == 1:
        return side
    return max(1, math.floor(side * scale / multiple + 0.5)) * multiple


def predict_together(
    predictors: Sequence[Callable[[Tensor], Tensor]], images: Tensor, average: str = "probabilities"
) -> Tensor:
    """Predict images with several models, all with the same weight.

    Args:
        predictors: images -> probabilities ``(batch, classes)``; at least one.
        images: ``(batch, channels, height, width)``.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.
    """
    return average_predictions(torch.stack([predict(images) for predict in predictors]), average)


def patch_multiple(model: nn.Module) -> int:
    """Pixels of which a model with patches wants whole multiples (timm's ``patch_size``); 1 for others."""
    found = [1]
    for module in model.modules():
        patch = getattr(module, "patch_size", None)
        found += [patch] if isinstance(patch, int) else patch if isinstance(patch, tuple | list) else []
    return max(found)


@torch.no_grad()
def refusal(model: nn.Module, channels: int, size: int) -> str | None:
    """Why a model cannot take images of ``size`` x ``size`` pixels; None if it can.

    Args:
        model: on the meta device, so that nothing is computed; it is not changed.
        channels: color channels.
        size: in pixels.
    """
    try:
        copy.deepcopy(model).eval()(torch.empty(1, channels, size, size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None
