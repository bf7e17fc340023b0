"""Flips and crops of image batches, every image with parameters of its own.

Boxes are (top, left, height, width) in pixels throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ATTEMPTS = 10
"""Boxes tried before falling back (random resized crop) or giving up (random erasing), as in torchvision."""


def per_image(values: Tensor) -> Tensor:
    """View ``(batch,)`` as ``(batch, 1, 1, 1)``, to broadcast against images."""
    return values.view(-1, 1, 1, 1)


def flip(images: Tensor, horizontal: Tensor, vertical: Tensor | None = None) -> Tensor:
    """Mirror chosen images.

    Args:
        images: ``(batch, channels, height, width)``, any dtype.
        horizontal: ``(batch,)`` bool, True to swap left and right.
        vertical: ``(batch,)`` bool, True to swap top and bottom; None for no image.
    """
    images = torch.where(per_image(horizontal), images.flip(-1), images)
    return images if vertical is None else torch.where(per_image(vertical), images.flip(-2), images)


def pad_and_crop(images: Tensor, offsets: Tensor, padding: int, mode: str = "zero") -> Tensor:
    """Pad every side by ``padding`` pixels, then cut a window of the original size out of each image.

    The padded images are never made: one gather reads every pixel from where it lies.

    Args:
        images: ``(batch, channels, height, width)``, any dtype.
        offsets: ``(batch, 2)`` int64 (top, left) of the windows in the padded images, 0 to ``2 * padding``.
        padding: pixels added to each side, 0 or more.
        mode: ``zero``, or ``reflect`` (mirrored without repeating the border, as ``numpy.pad`` does).

    Raises:
        ValueError: ``mode`` is neither.
    """
    if mode not in ("zero", "reflect"):
        raise ValueError(f"mode is {mode!r}; expected 'zero' or 'reflect'")
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) + offsets[:, :1] - padding
    columns = torch.arange(width, device=images.device) + offsets[:, 1:] - padding
    if mode == "reflect":
        rows, columns = _reflected(rows, height), _reflected(columns, width)
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = index.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    cropped = images.flatten(2).gather(2, index).view_as(images)
    if mode == "reflect":
        return cropped
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    return torch.where(inside[:, None], cropped, torch.zeros((), dtype=images.dtype, device=images.device))


def _reflected(positions: Tensor, length: int) -> Tensor:
    if length == 1:
        return torch.zeros_like(positions)
    around = positions.remainder(2 * (length - 1))
    return torch.minimum(around, 2 * (length - 1) - around)


def center_square_boxes(sizes: Tensor) -> Tensor:
    """The largest centered square of each image.

    Args:
        sizes: ``(batch, 2)`` int64 (height, width) in pixels.

    Returns:
        ``(batch, 4)`` float64 boxes; top and left are rounded down to whole pixels.
    """
    side = sizes.amin(1, keepdim=True)
    corner = (sizes - side).div(2, rounding_mode="floor")
    return torch.cat((corner, side, side), 1).double()


def random_resized_crop_boxes(
    sizes: Tensor,
    generator: torch.Generator | None = None,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    p: float = 1.0,
) -> Tensor:
    """Boxes of random area and shape, as torchvision's ``RandomResizedCrop`` draws them.

    Area is uniform and aspect ratio log-uniform. The first of ten attempts that fits an image is used; if
    none fits, the largest centered box whose aspect ratio is allowed.

    Args:
        sizes: ``(batch, 2)`` int64 (height, width) of the source images in pixels.
        generator: CPU generator; None for torch's global one.
        area: smallest and largest area, as a share of the source image.
        ratio: smallest and largest width / height.
        p: probability, for each image, of a random box; the others get their largest centered square.

    Returns:
        ``(batch, 4)`` float64 boxes of whole pixels, inside the images.

    Source:
        Szegedy et al. 2015, "Going Deeper with Convolutions", section 6.
    """
    uniform = torch.rand((len(sizes), 3 + 2 * ATTEMPTS), generator=generator, dtype=torch.float64)
    chosen, place, tries = uniform[:, :1] < p, uniform[:, 1:3], uniform[:, 3:].view(-1, 2, ATTEMPTS)
    height, width = sizes.double().unbind(1)
    areas = (area[0] + (area[1] - area[0]) * tries[:, 0]) * (height * width)[:, None]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratios = torch.exp(low + (high - low) * tries[:, 1])
    widths, heights = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
    fits = (widths > 0) & (heights > 0) & (widths <= width[:, None]) & (heights <= height[:, None])
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = torch.cat((heights.gather(1, first), widths.gather(1, first)), 1)
    largest = torch.stack(
        ((width / ratio[0]).round().minimum(height), (height * ratio[1]).round().minimum(width)), 1
    )
    any_fits = fits.any(1, keepdim=True)
    shape = torch.where(any_fits, found, largest.clamp(min=1))
    slack = torch.stack((height, width), 1) - shape
    corner = torch.where(any_fits, (place * (slack + 1)).floor(), (slack / 2).floor())
    return torch.where(chosen, torch.cat((corner, shape), 1), center_square_boxes(sizes))


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in the boxes.

    Args:
        boxes: ``(batch, 4)`` int64.
        height: height of the images.
        width: width of the images.

    Returns:
        ``(batch, 1, height, width)`` bool.
    """
    top, left, tall, wide = boxes[:, :, None].unbind(1)
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    in_rows = (rows >= top) & (rows < top + tall)
    in_columns = (columns >= left) & (columns < left + wide)
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
