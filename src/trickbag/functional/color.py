"""Changes of brightness, contrast, saturation and hue, lighting noise, and normalization.

Images are float tensors ``(batch, channels, height, width)`` with values 0 to 1. An image whose
parameter says "no change" is returned bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trickbag.functional.augment import per_image

PCA_EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Scales of ImageNet's principal color axes for values 0 to 1, as fb.resnet.torch and MXNet use them."""
PCA_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""ImageNet's principal color axes: one a column, rows red, green and blue."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def luma(images: Tensor) -> Tensor:
    """Gray versions ``(batch, 1, height, width)`` of RGB images (ITU-R 601-2); gray ones as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, :, None].unbind(1)
    return red.mul(0.2989).add(green, alpha=0.587).add(blue, alpha=0.114)


def _blend(images: Tensor, reference: Tensor, factors: Tensor) -> Tensor:
    factors = per_image(factors)
    blended = torch.addcmul(images * factors, reference, 1 - factors).clamp(0, 1)
    return torch.where(factors == 1, images, blended)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images by ``factors`` ``(batch,)``, 0 (black) and up; 1 changes nothing."""
    return _blend(images, torch.zeros_like(images[:, :1]), factors)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to the mean gray of each image by ``factors`` ``(batch,)``, 0 (flat) and up."""
    return _blend(images, luma(images).mean((1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the distance to each pixel's gray by ``factors`` ``(batch,)``, 0 (gray) and up."""
    return _blend(images, luma(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of RGB images by ``shifts`` ``(batch,)``, in turns of the color circle: -0.5 to 0.5.

    Gray images have no hue and are returned as they are.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, :, None].unbind(1)
    low, high = images.aminmax(dim=1, keepdim=True)
    chroma = high - low
    span = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sixths = torch.where(
        high == red,
        (green - blue) / span,
        torch.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    sector = torch.arange(5, 0, -2, device=images.device, dtype=images.dtype).view(1, 3, 1, 1)
    angle = (sector + sixths + 6 * per_image(shifts)).remainder(6)
    turned = high - chroma * torch.minimum(angle, 4 - angle).clamp(0, 1)
    return torch.where(per_image(shifts) == 0, images, turned)


def color_jitter(images: Tensor, factors: Tensor, shifts: Tensor | None, order: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in an order that may differ from image to image.

    Equal to applying torchvision's ``adjust_*`` functions one after the other.

    Args:
        images: float ``(batch, 1 or 3, height, width)``, 0 to 1.
        factors: ``(batch, 3)`` factors of brightness, contrast and saturation; 1 changes nothing.
        shifts: ``(batch,)`` turns of hue, -0.5 to 0.5; None leaves hue alone and saves time.
        order: ``(batch, 4)`` int64 permutations of ``BRIGHTNESS, CONTRAST, SATURATION, HUE``.

    Source:
        Howard 2013, arXiv:1312.5402, section 2; order as in torchvision's ``ColorJitter``.
    """
    steps = torch.arange(3, device=order.device)
    before_hue = steps < (order == HUE).to(torch.uint8).argmax(1, keepdim=True)
    blends = order.gather(1, steps + ~before_hue)  # the order of the other three
    factors = factors.gather(1, blends)
    if shifts is None:
        return _blend_in_order(images, factors, blends)
    # Turning hue costs more than all the rest, so it is done once: the others come in two runs around it.
    images = _blend_in_order(images, torch.where(before_hue, factors, 1), blends)
    return _blend_in_order(adjust_hue(images, shifts), torch.where(before_hue, 1, factors), blends)


def _blend_in_order(images: Tensor, factors: Tensor, blends: Tensor) -> Tensor:
    for kind, factor in zip(blends.unbind(1), factors.unbind(1), strict=True):
        gray = luma(images)
        reference = torch.where(per_image(kind) == CONTRAST, gray.mean((1, 2, 3), keepdim=True), gray)
        reference = torch.where(per_image(kind) == BRIGHTNESS, torch.zeros_like(gray), reference)
        images = _blend(images, reference, factor)
    return images


def pca_shift(amounts: Tensor) -> Tensor:
    """Color of lighting noise from its amounts along the principal axes of ImageNet's colors.

    Args:
        amounts: ``(batch, 3)``; AlexNet draws them from N(0, 0.1).

    Returns:
        ``(batch, 3)`` values to add to red, green and blue, on the scale 0 to 1.

    Source:
        Krizhevsky et al. 2012, "ImageNet Classification with Deep CNNs", section 4.1.
    """
    axes, scales = amounts.new_tensor(PCA_EIGENVECTORS), amounts.new_tensor(PCA_EIGENVALUES)
    return ((amounts * scales)[:, None, :] * axes).sum(-1)


def pca_noise(images: Tensor, shift: Tensor) -> Tensor:
    """Add one color to each image and cut off at 0 and 1.

    Args:
        images: float ``(batch, 3, height, width)``, 0 to 1.
        shift: ``(batch, 3)`` from ``pca_shift``; an image whose shift is zero stays as it is.
    """
    lit = (images + shift[:, :, None, None]).clamp(0, 1)
    return torch.where(per_image((shift == 0).all(1)), images, lit)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images - mean) / std`` channel by channel; one value serves all channels.

    Args:
        images: float ``(batch, channels, height, width)``.
        mean: one value a channel, or one for all.
        std: likewise, above 0.
    """
    return (images - _channels(mean, images)) / _channels(std, images)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    # Filled value by value: a tensor built from a list would make the host wait for the device.
    filled = like.new_empty((1, len(values), 1, 1))
    for channel, value in enumerate(values):
        filled[:, channel] = value
    return filled
