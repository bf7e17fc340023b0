"""Photometric operations on batches of 8-bit images, every image with parameters of its own.

Images are uint8 ``(batch, channels, height, width)``, gray (1 channel) or RGB (3), on any device; parameters
are tensors on the same device, their first dimension the batch. Results are bit for bit those of Pillow on
each image alone. The host never waits for the device.

Most operations are a table of 256 values an image, and some functions give the table instead of the image:
``lookup`` applies many at once.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from trickbag.functional.augment import per_image

LUMA = (19595.0, 38470.0, 7471.0)
"""Red, green and blue in the gray of Pillow's ``convert("L")``, in units of 2**-16 (ITU-R 601-2)."""
ROUTES = ((3, 2, 0), (1, 3, 0), (0, 3, 2), (0, 1, 3), (2, 0, 3), (3, 0, 1))
"""Which of (p, q, t, v) red, green and blue are in each sixth of the color circle, as in ``colorsys``."""


def lookup(images: Tensor, tables: Tensor) -> Tensor:
    """Replace every value by what a table says.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        tables: ``(batch, channels, 256)`` of any dtype; a dimension of 1 serves all images or channels.

    Returns:
        The dtype of ``tables``, in the shape of ``images``.
    """
    batch, channels = images.shape[:2]
    tables = tables.expand(batch, channels, 256).reshape(-1)
    first = torch.arange(0, len(tables), 256, dtype=torch.int32, device=images.device)
    places = images.to(torch.int32).add_(first.view(batch, channels, 1, 1))
    return tables.index_select(0, places.flatten()).view(images.shape)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """``ImageEnhance.Brightness``: multiply by ``factors`` ``(batch,)``; 0 is black, 1 changes nothing."""
    return lookup(images, brightness_tables(factors))


def brightness_tables(factors: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``brightness``."""
    return _blend(torch.zeros((), device=factors.device), _ramp(factors), factors.view(-1, 1, 1))


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """``ImageEnhance.Contrast``: scale the distance to the mean gray by ``factors`` ``(batch,)``."""
    return lookup(images, contrast_tables(images, factors))


def contrast_tables(images: Tensor, factors: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``contrast``."""
    mean = _over(luma(images).sum((1, 2, 3), dtype=torch.float64), images.shape[2] * images.shape[3])
    base = mean.add_(0.5).floor_().float().view(-1, 1, 1)
    return _blend(base, _ramp(factors), factors.view(-1, 1, 1))


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """``ImageEnhance.Color``: scale the distance to each pixel's gray by ``factors`` ``(batch,)``.

    Gray images are returned as they are.
    """
    return images if images.shape[1] == 1 else _blend(luma(images), images, per_image(factors))


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """``ImageEnhance.Sharpness``: scale the distance to a smoothed image by ``factors`` ``(batch,)``.

    The outermost pixels stay as they are, and so does an image of less than three pixels either way.
    """
    if min(images.shape[2:]) < 3:
        return images
    wide = images.to(torch.int16)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :]
    rows += wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1]
    total += rows[..., 2:]
    total.add_(wide[..., 1:-1, 1:-1], alpha=4)
    # A thirteenth of a whole number is never near a half: rounding in float32 is exact.
    smooth = total.float().mul_(1 / 13).add_(0.5).floor_()
    sharp = images.clone(memory_format=torch.contiguous_format)
    sharp[..., 1:-1, 1:-1] = _blend(smooth, images[..., 1:-1, 1:-1], per_image(factors))
    return sharp


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """``ImageOps.posterize``: keep the upper ``bits`` ``(batch,)`` of every value, 0 (black) to 8 (all)."""
    return lookup(images, posterize_tables(bits))


def posterize_tables(bits: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``posterize``."""
    ones = torch.ones((), dtype=torch.int64, device=bits.device)
    mask = 256 - (ones << (8 - bits.long()))
    return (_ramp(bits).long() & mask.view(-1, 1, 1)).to(torch.uint8)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """``ImageOps.solarize``: invert the values from ``thresholds`` ``(batch,)`` on."""
    return lookup(images, solarize_tables(thresholds))


def solarize_tables(thresholds: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``solarize``."""
    ramp = _ramp(thresholds)
    return torch.where(ramp < thresholds.view(-1, 1, 1), ramp, 255 - ramp)


def solarize_add(images: Tensor, amounts: Tensor, thresholds: Tensor) -> Tensor:
    """Add whole ``amounts`` ``(batch,)`` to the values below ``thresholds`` ``(batch,)``, up to 255.

    Source:
        Cubuk et al. 2019, arXiv:1805.09501, published code of AutoAugment, ``solarize_add``.
    """
    return lookup(images, solarize_add_tables(amounts, thresholds))


def solarize_add_tables(amounts: Tensor, thresholds: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``solarize_add``."""
    ramp = _ramp(amounts)
    grown = (ramp + amounts.long().view(-1, 1, 1)).clamp_(0, 255).to(torch.uint8)
    return torch.where(ramp < thresholds.view(-1, 1, 1), grown, ramp)


def invert(images: Tensor) -> Tensor:
    """``ImageOps.invert``: 255 less the value."""
    return 255 - images


def invert_tables(images: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``invert``."""
    return (255 - _ramp(images)).expand(len(images), -1, -1)


def add_color(images: Tensor, colors: Tensor) -> Tensor:
    """Add ``colors`` ``(batch, channels)``, -255 to 255, round half up and cut off at 0 and 255."""
    return lookup(images, add_color_tables(colors))


def add_color_tables(colors: Tensor) -> Tensor:
    """Tables ``(batch, channels, 256)`` of ``add_color``; float64 colors for the exact result."""
    return _levels((_ramp(colors) + colors[..., None]).add_(0.5).floor_().clamp_(0, 255))


def gamma(images: Tensor, exponents: Tensor) -> Tensor:
    """``adjust_gamma`` of torchvision on Pillow images: the power of values on the scale 0 to 1.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        exponents: ``(batch,)`` float64, above 0; below 1 it brightens.
    """
    return lookup(images, gamma_tables(exponents))


def gamma_tables(exponents: Tensor) -> Tensor:
    """Tables ``(batch, 1, 256)`` of ``gamma``."""
    powers = _over(_ramp(exponents).double(), 255).pow(exponents.double().view(-1, 1, 1))
    return _levels(powers.mul_(255.999))


def autocontrast(images: Tensor) -> Tensor:
    """``ImageOps.autocontrast`` without cutoff: stretch each channel from its range to 0 to 255."""
    return lookup(images, autocontrast_tables(images))


def autocontrast_tables(images: Tensor) -> Tensor:
    """Tables ``(batch, channels, 256)`` of ``autocontrast``."""
    pixels = images.flatten(2)
    low = pixels.amin(2, keepdim=True).double()
    span = pixels.amax(2, keepdim=True).double() - low
    ramp = _ramp(images)
    scale = torch.full_like(span, 255.0) / span
    # Of a flat channel the scale is infinite, and its table is not used.
    stretched = (ramp * scale).add_(-low * scale).nan_to_num_(0.0).clamp_(0, 255)
    return torch.where(span > 0, _levels(stretched), ramp)


def equalize(images: Tensor) -> Tensor:
    """``ImageOps.equalize``: flatten each channel's histogram."""
    return lookup(images, equalize_tables(images))


def equalize_tables(images: Tensor) -> Tensor:
    """Tables ``(batch, channels, 256)`` of ``equalize``."""
    pixels = images.flatten(2)
    counts = histogram(images)
    highest = counts.gather(2, pixels.amax(2, keepdim=True).long())
    step = _over((pixels.shape[2] - highest).double(), 255).floor_()
    below = (counts.cumsum(2) - counts).double()
    # Quotients of whole numbers this small are never rounded up to a whole number.
    shares = (below + (step / 2).floor_()).div_(step).floor_().nan_to_num_(0.0).clamp_(0, 255)
    return torch.where(step > 0, _levels(shares), _ramp(images))


def histogram(images: Tensor) -> Tensor:
    """How often each value occurs in each channel: ``(batch, channels, 256)`` int32."""
    batch, channels = images.shape[:2]
    values = images.reshape(batch * channels, -1).long()
    values += torch.arange(batch * channels, device=images.device)[:, None] * 256
    ones = torch.ones((), dtype=torch.int32, device=images.device).expand(values.numel())
    counts = torch.zeros(batch * channels * 256, dtype=torch.int32, device=images.device)
    return counts.scatter_add_(0, values.view(-1), ones).view(batch, channels, 256)


def hue(images: Tensor, turns: Tensor) -> Tensor:
    """``adjust_hue`` of torchvision on Pillow images: turn by ``turns`` ``(batch,)``, -0.5 to 0.5 circles.

    Colors go through Pillow's 8-bit HSV and back, so that 0 turns changes them a little too. Gray images are
    returned as they are.
    """
    if images.shape[1] == 1:
        return images
    turned, saturation, value = _hsv(images)
    turned = (turned + (turns * 255).long().view(-1, 1, 1)) & 255
    # Convert.c, hsv2rgb: float32 where it has float, float64 where it has double.
    parts, routes = _circle(images.device)
    part = parts.index_select(0, turned.flatten()).view_as(turned)
    share = _over(saturation.double(), 255).float()
    level = value.double()
    p = level * (1.0 - share.double())
    q = level * (1.0 - (share * part).double())
    t = level * (1.0 - share.double() * (1.0 - part.double()))
    rounded = torch.stack((p, q, t), 1).add_(0.5).floor_().clamp_(0, 255)
    choices = torch.cat((_levels(rounded), value[:, None]), 1)
    route = [one.index_select(0, turned.flatten()).view_as(turned) for one in routes.unbind(1)]
    return choices.gather(1, torch.stack(route, 1))


def _hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue (int64), saturation and value (uint8) ``(batch, height, width)``, as Convert.c has it, rgb2hsv."""
    red, green = images[:, 0], images[:, 1]
    high = images.amax(1)
    span = (high - images.amin(1)).float()
    rc, gc, bc = (high[:, None] - images).float().div_(span.clamp(min=1)[:, None]).double().unbind(1)
    # Each is rounded once, to float32, as a difference of two float32 and as a sum in float64 alike.
    sixths = torch.where(red == high, bc - gc, torch.where(green == high, 2.0 + rc - bc, 4.0 + gc - rc))
    turn = _over(sixths.float().double(), 6) + 1.0
    turn = (turn - turn.floor()).float().double()
    share = (span / high.clamp(min=1)).double()
    flat = span == 0
    return (turn * 255.0).long().masked_fill_(flat, 0), _levels(share * 255.0), high


def luma(images: Tensor) -> Tensor:
    """Pillow's ``convert("L")``: float32 ``(batch, 1, height, width)`` of whole numbers, 0 to 255."""
    if images.shape[1] == 1:
        return images.float()
    # Everything is a whole number below 2**24, hence exact.
    gray = images[:, :1].float().mul_(LUMA[0]).add_(32768)
    for channel in (1, 2):
        gray.add_(images[:, channel : channel + 1].float(), alpha=LUMA[channel])
    return gray.mul_(2.0**-16).floor_()


def _blend(base: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """``Image.blend`` of levels: float32 ``base + factor * (values - base)``, cut off and rounded down."""
    return _levels(((values.float() - base) * factors.float()).add_(base).clamp_(0, 255))


def _levels(values: Tensor) -> Tensor:
    """Values from 0 to 255 as uint8, rounded down; several times quicker on a CPU than in one conversion."""
    return values.to(torch.int16).to(torch.uint8)


def _ramp(like: Tensor) -> Tensor:
    return torch.arange(256, dtype=torch.uint8, device=like.device).expand(1, 1, 256)


@functools.cache
def _circle(device: torch.device) -> tuple[Tensor, Tensor]:
    """For 8-bit hues: how far each is in its sixth, ``(256,)`` float32, and its ``ROUTES``, ``(256, 3)``."""
    sixths = torch.arange(256, dtype=torch.float64) * 6.0 / 255.0
    routes = torch.tensor(ROUTES)[sixths.long() % 6]
    return (sixths - sixths.floor()).float().to(device), routes.to(device)


def _over(values: Tensor, divisor: float) -> Tensor:
    """Values / divisor, rounded correctly: CUDA multiplies by the reciprocal of a number from the host."""
    return values / torch.full((), divisor, dtype=values.dtype, device=values.device)
