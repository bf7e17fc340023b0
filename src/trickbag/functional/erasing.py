"""Random erasing: boxes, and fills that every device computes alike."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from trickbag.functional.augment import ATTEMPTS, box_mask


def random_erasing_boxes(
    shape: torch.Size | tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    p: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Boxes to erase, as timm's and torchvision's ``RandomErasing`` draw them.

    Area is uniform and aspect ratio log-uniform. The first of ten attempts that is smaller than the image
    both ways is used; if none is, nothing is erased.

    Args:
        shape: ``(batch, channels, height, width)``.
        generator: CPU generator; None for torch's global one.
        p: probability of erasing, for each image.
        area: smallest and largest area, as a share of the image.
        aspect: smallest and largest height / width.

    Returns:
        ``(batch, 4)`` int64 (top, left, height, width); height and width are 0 where nothing is erased.

    Source:
        Zhong et al. 2020, arXiv:1708.04896, algorithm 1.
    """
    batch, (height, width) = shape[0], shape[-2:]
    uniform = torch.rand((batch, 3 + 2 * ATTEMPTS), generator=generator, dtype=torch.float64)
    chosen, place, tries = uniform[:, 0] < p, uniform[:, 1:3], uniform[:, 3:].view(batch, 2, ATTEMPTS)
    areas = (area[0] + (area[1] - area[0]) * tries[:, 0]) * (height * width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = torch.exp(low + (high - low) * tries[:, 1])
    heights, widths = (areas * aspects).sqrt().round(), (areas / aspects).sqrt().round()
    fits = (heights < height) & (widths < width)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    sizes = torch.cat((heights.gather(1, first), widths.gather(1, first)), 1)
    sizes = sizes * (chosen & fits.any(1))[:, None]
    slack = torch.tensor((height, width), dtype=torch.float64) - sizes
    return torch.cat(((place * (slack + 1)).floor(), sizes), 1).long()


def erase(images: Tensor, boxes: Tensor, fill: Tensor | float = 0.0) -> Tensor:
    """Replace the boxes by ``fill``.

    Args:
        images: float ``(batch, channels, height, width)``.
        boxes: ``(batch, 4)`` int64 (top, left, height, width); an empty one leaves its image as it is.
        fill: a value, or a tensor that broadcasts to ``images``: ``(batch, channels, 1, 1)`` for one color a
            box, ``images.shape`` for a color a pixel.
    """
    if not isinstance(fill, Tensor):
        fill = torch.full((), fill, dtype=images.dtype, device=images.device)
    return torch.where(box_mask(boxes, *images.shape[-2:]), fill.to(images.dtype), images)


def noise_bits(seeds: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """32 independent random bits for every pixel, made on the seeds' device from one seed an image.

    A hash of (seed, position) rather than a generator: an image's bits do not depend on the batch around
    it, on the device, or on the host, which never waits.

    Args:
        seeds: ``(batch, 2)`` int64, each from 0 to 2**31 - 1.
        shape: ``(batch, channels, height, width)``.

    Returns:
        int32 of ``shape``, from -2**31 to 2**31 - 1: the bits, of which the highest is the sign.
    """
    position = torch.arange(math.prod(shape[1:]), dtype=torch.int32, device=seeds.device)
    first, second = seeds.to(torch.int32).split(1, dim=1)
    first = _hash(first)
    return _hash(_hash(position ^ first).bitwise_xor_(_hash(first ^ second))).view(shape)


def uniform_noise(seeds: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Independent uniform numbers for every pixel, from the upper 24 of ``noise_bits``.

    Args:
        seeds: ``(batch, 2)`` int64, each from 0 to 2**31 - 1.
        shape: ``(batch, channels, height, width)``.

    Returns:
        float32 of ``shape``, strictly between 0 and 1, in steps of 2**-24.
    """
    bits = noise_bits(seeds, shape).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    return bits.float().add_(0.5).mul_(2.0**-24).clamp_(max=1 - 2.0**-24)


@functools.cache
def normal_table(device: torch.device | None = None) -> Tensor:
    """Quantiles of the standard normal distribution at the middles of 65,536 equal shares, ascending.

    The upper 16 of ``noise_bits`` choose one of them: normal noise that every device makes alike.

    Returns:
        ``(65536,)`` float32, computed in float64; shared, so do not write to it.
    """
    if device is not None and device.type != "cpu":
        table: Tensor = normal_table().to(device)
        return table
    quantiles: Tensor = torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536)
    levels: Tensor = quantiles.float()
    return levels


def normal_noise(uniform: Tensor) -> Tensor:
    """Standard normal numbers with the given quantiles (strictly between 0 and 1)."""
    normal: Tensor = torch.special.ndtri(uniform)
    return normal


def _hash(x: Tensor) -> Tensor:
    # 32-bit words: products wrap around, and the sign has to be kept out of shifts to the right.
    for _ in range(2):
        x = (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x).mul_(0x45D9F3B)
    return (x >> 16).bitwise_and_(0xFFFF).bitwise_xor_(x)
