"""Blur, noise and local histograms on batches of 8-bit images, every image with parameters of its own.

Images are uint8 ``(batch, channels, height, width)``, gray (1 channel) or RGB (3), on any device. Every
device gives the same bits: sums are of whole numbers, or of single products in a fixed order. The host never
waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trickbag.functional.augment import per_image
from trickbag.functional.erasing import noise_bits, normal_table
from trickbag.functional.geometric import send
from trickbag.functional.photometric import histogram, luma


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image with a Gaussian of its own; images are mirrored at their borders, the border once.

    Within one level of the exact convolution, rounded. The kernel reaches 3 sigma each way, rounded up to
    whole pixels, and sums up to one exactly: flat images stay as they are.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        sigmas: ``(batch,)`` float64 standard deviations in pixels, above 0, on the CPU.
    """
    radii, ratios = blur_shape(sigmas)
    return blur(images, blur_kernels(radii, ratios))


def blur_shape(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Radius (int64) and weight of a neighbor as a share of the center's (float64) of Gaussian kernels."""
    sigmas = sigmas.double()
    return (3 * sigmas).ceil().long(), torch.exp(-0.5 / sigmas.square())


def blur_kernels(radii: Tensor, ratios: Tensor) -> Tensor:
    """Kernels of ``blur``, by products alone: every machine has the same.

    Args:
        radii: ``(batch,)`` int64 of pixels, on the CPU.
        ratios: ``(batch,)`` float64 weights of a neighbor as a share of the center's, on the CPU.

    Returns:
        ``(batch, n)`` int32: the weights from the center on, in units of 2**-16; a whole kernel sums up to 1.
    """
    shares, total, factor = [torch.ones_like(ratios)], torch.ones_like(ratios), ratios
    for k in range(1, int(radii.amax()) + 1 if len(radii) else 1):
        shares.append((shares[-1] * factor).masked_fill(k > radii, 0.0))
        factor = factor * (ratios * ratios)
        total = total + 2 * shares[-1]
    weights = (torch.stack(shares, 1) / total[:, None]).mul_(65536).add_(0.5).floor_().int()
    weights[:, 0] = 65536 - 2 * weights[:, 1:].sum(1)
    used = weights.any(0).nonzero()
    return weights[:, : int(used.amax()) + 1] if len(used) else weights


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve rows and columns with symmetric kernels.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        kernels: as ``blur_kernels`` gives them.
    """
    weights = send(kernels, images.device)[..., None, None, None].unbind(1)
    # In between there are 7 binary places, so that every sum fits into 32 bits.
    rows = _convolved(images.int(), weights, 3).add_(1 << 8).bitwise_right_shift_(9)
    return _convolved(rows, weights, 2).add_(1 << 22).bitwise_right_shift_(23).to(torch.uint8)


def _convolved(values: Tensor, weights: tuple[Tensor, ...], dim: int) -> Tensor:
    length, radius = values.shape[dim], len(weights) - 1
    wide = values.index_select(dim, _reflected(-radius, length + radius, length, values.device))
    total = values * weights[0]
    for k in range(1, radius + 1):
        neighbors = wide.narrow(dim, radius - k, length) + wide.narrow(dim, radius + k, length)
        total += neighbors.mul_(weights[k])
    return total


def _reflected(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Where the pixels from ``start`` to ``stop`` lie in a mirrored line of ``length``."""
    if length == 1:
        return torch.zeros(stop - start, dtype=torch.int64, device=device)
    around = torch.arange(start, stop, device=device).remainder_(2 * (length - 1))
    return torch.minimum(around, 2 * (length - 1) - around)


def gaussian_noise(images: Tensor, deviations: Tensor, seeds: Tensor) -> Tensor:
    """Add normal noise to every value, round half up and cut off at 0 and 255.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        deviations: ``(batch,)`` standard deviations, in levels.
        seeds: ``(batch, 2)`` int64, each from 0 to 2**31 - 1: see ``erasing.noise_bits``. Amounts are among
            65,536 quantiles, the largest 4.3 standard deviations.
    """
    places = noise_bits(seeds, images.shape).bitwise_right_shift_(16).bitwise_and_(0xFFFF)
    noise = normal_table(images.device).index_select(0, places.flatten()).view(images.shape)
    noise = (noise * per_image(deviations.float())).add_(images).add_(0.5).floor_().clamp_(0, 255)
    return noise.to(torch.int16).to(torch.uint8)


def clahe(images: Tensor, limits: Tensor, tiles: int = 8, *, each: bool = False) -> Tensor:
    """Contrast-limited adaptive histogram equalization, as OpenCV's ``createCLAHE(limit, (tiles, tiles))``.

    Of RGB images Pillow's L (luma) is equalized, and what that adds to it is added to red, green and blue
    alike: the same as equalizing Y of YCbCr without rounding, and colors keep their hue.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        limits: ``(batch,)`` float64 on the CPU: how often a value may occur in a tile, as a multiple of how
            often it would in a flat histogram; 0 for no limit.
        tiles: tiles in each direction. An image that does not divide is mirrored at its right and lower
            border until it does.
        each: equalize every channel by itself instead.

    Source:
        Pizer et al. 1987, "Adaptive Histogram Equalization and Its Variations"; Zuiderveld 1994, "Contrast
        Limited Adaptive Histogram Equalization", Graphics Gems IV; details as OpenCV's ``clahe.cpp``.
    """
    if each or images.shape[1] == 1:
        return _adapted(images, limits, tiles)
    gray = luma(images).to(torch.uint8)
    change = _adapted(gray, limits, tiles).to(torch.int16).sub_(gray)
    return (images + change).clamp_(0, 255).to(torch.uint8)


def _adapted(images: Tensor, limits: Tensor, tiles: int) -> Tensor:
    batch, channels, height, width = images.shape
    whole = images
    if (
        height % tiles or width % tiles
    ):  # OpenCV adds a row of pixels to every tile even if only one is short.
        for dim, length in ((2, height), (3, width)):
            places = _reflected(0, length + tiles - length % tiles, length, images.device)
            whole = whole.index_select(dim, places)
    tall, wide = whole.shape[2] // tiles, whole.shape[3] // tiles
    cells = whole.reshape(batch, channels, tiles, tall, tiles, wide).transpose(3, 4)
    tables = _tile_tables(cells.reshape(batch, -1, tall, wide), limits).view(batch * channels, -1)
    top, bottom, down = _between(height, tall, tiles, images.device)
    left, right, across = _between(width, wide, tiles, images.device)
    values = images.reshape(batch * channels, height, width).long()

    def read(row: Tensor, column: Tensor) -> Tensor:
        places = (row[:, None] * tiles + column).mul_(256) + values
        return tables.gather(1, places.flatten(1)).view(values.shape)

    above = (read(top, left) * (1 - across)).add_(read(top, right) * across)
    below = (read(bottom, left) * (1 - across)).add_(read(bottom, right) * across)
    mixed = (above * (1 - down)[:, None]).add_(below * down[:, None])
    return mixed.round_().clamp_(0, 255).to(torch.int16).to(torch.uint8).view(images.shape)


def _tile_tables(cells: Tensor, limits: Tensor) -> Tensor:
    """Tables ``(batch, tiles, 256)`` float32 of whole numbers for cells ``(batch, tiles, height, width)``."""
    area = cells.shape[2] * cells.shape[3]
    most = (limits.double() * area / 256).long().clamp_(min=1).masked_fill_(limits <= 0, area)
    most = send(most, cells.device).view(-1, 1, 1)
    counts = histogram(cells)
    excess = (counts - most).clamp_(min=0).sum(2, keepdim=True)
    rest = excess % 256
    step, values = 256 // rest.clamp(min=1), torch.arange(256, device=cells.device)
    more = (values % step == 0) & (values // step < rest)
    sums = (torch.minimum(counts, most) + excess // 256 + more).cumsum(2)
    scale = float(torch.tensor(255.0) / torch.tensor(float(area)))
    return sums.float().mul_(scale).round_().clamp_(0, 255)


def _between(length: int, size: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every place, which tiles (int64) it lies between, and how far from the first it is (float32)."""
    places = torch.arange(length, dtype=torch.float32) * (torch.ones(()) / size) - 0.5
    first = places.floor()
    part, first = places - first, first.long()
    low, high = send(torch.stack((first.clamp(min=0), (first + 1).clamp(max=tiles - 1))), device).unbind(0)
    return low, high, send(part, device)
