"""Geometric operations on batches of 8-bit images, every image with parameters of its own.

Images are uint8 ``(batch, channels, height, width)``, on any device. Parameters are tensors on the CPU: where
pixels come from is computed there for rows, columns and matrices, as Pillow computes it, and for every pixel
on the images' device. The host never waits for the device.

A map says where each row (or column) of a result comes from: ``(batch, length)`` int64, -1 for nowhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEAREST, BILINEAR, BICUBIC = 0, 2, 3
"""Pillow's numbers of the filters."""


def send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting until the device has it."""
    if device.type == "cpu":
        return values
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def pick(images: Tensor, rows: Tensor, columns: Tensor, fill: Tensor | None = None) -> Tensor:
    """Result[y, x] = source[rows[y], columns[x]].

    Args:
        images: ``(batch, channels, height, width)``.
        rows: map ``(batch, height)``.
        columns: map ``(batch, width)``.
        fill: ``(batch, channels)`` for what comes from nowhere, on the images' device; None for zeros.
    """
    batch, channels, height, width = images.shape
    rows, columns = send(rows, images.device)[:, None], send(columns, images.device)[:, None, None]
    first = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * height
    places = (rows.clamp(min=0) + first).view(-1)
    picked = images.reshape(-1, width).index_select(0, places).view(images.shape)
    picked = picked.gather(3, columns.clamp(min=0).expand(-1, channels, height, -1))
    inside = (rows >= 0).to(torch.uint8)[..., None] * (columns >= 0)
    return _filled(picked, inside, fill)


def _filled(images: Tensor, inside: Tensor, fill: Tensor | None) -> Tensor:
    """Write fill where ``inside`` (uint8) is 0; several times quicker on a CPU than ``torch.where``."""
    images.mul_(inside)
    return images if fill is None else images.add_(fill[:, :, None, None] * (1 - inside))


def affine(images: Tensor, matrices: Tensor, filters: Tensor, fill: Tensor) -> Tensor:
    """Pillow's ``Image.transform(size, AFFINE)`` of each image, bit for bit.

    Args:
        images: uint8 ``(batch, channels, height, width)``.
        matrices: ``(batch, 6)`` float64, Pillow's (a, b, c, d, e, f): the pixel at (x, y) of the result shows
            the source at (a x + b y + c, d x + e y + f), in pixels; both grids start at a corner.
        filters: ``(batch,)`` int64: ``NEAREST``, ``BILINEAR`` or ``BICUBIC``.
        fill: ``(batch, channels)`` levels for what lies outside the source, on the images' device.

    Raises:
        ValueError: ``filters`` holds another number.
    """
    methods = torch.where(filters == NEAREST, _nearest_method(matrices, *images.shape[2:]), filters)
    if not {*filters.unique().tolist()} <= {NEAREST, BILINEAR, BICUBIC}:
        raise ValueError(f"filters are {filters.unique().tolist()}; expected 0, 2 and 3")
    counts = methods.bincount(minlength=len(METHODS)).tolist()
    fill = fill.to(torch.uint8)
    if len(matrices) in counts:
        return METHODS[counts.index(len(matrices))](images, matrices, fill)
    # Sorted and put back: copying into chosen places is slow on a CPU.
    order = methods.argsort(stable=True)
    there, back = send(torch.stack((order, order.argsort())), images.device).unbind(0)
    images, matrices, fill = images.index_select(0, there), matrices[order], fill.index_select(0, there)
    shares = zip(METHODS, images.split(counts), matrices.split(counts), fill.split(counts), strict=True)
    return torch.cat([act(*share) for act, *share in shares if len(share[0])]).index_select(0, back)


def _nearest_method(matrices: Tensor, height: int, width: int) -> Tensor:
    """Which of Geometry.c's three ways of doing without a filter each image takes."""
    plain = (matrices[:, 1:4:2] == 0).all(1)
    if not len(matrices) or matrices.abs().max() * (height + width + 1) < 32768.0:
        return torch.where(plain, SCALE, FIXED)
    corners = matrices.new_tensor([[0, 0, 1], [width, height, 1], [0, height, 1], [width, 0, 1]])
    far = (matrices.view(-1, 2, 3) @ corners.t()).abs().amax((1, 2)) >= 32768.0
    return torch.where(plain, SCALE, torch.where(far, FAR, FIXED))


def _sums(start: Tensor, step: Tensor, length: int) -> Tensor:
    """``(..., length)`` float64: start, start + step, ... added up one after the other."""
    steps = step[..., None].expand(*start.shape, length).clone()
    steps[..., 0] = start
    return steps.cumsum(-1)


def _whole(places: Tensor, length: int | Tensor) -> Tensor:
    """Places rounded down, -1 for those that are not inside."""
    return torch.where((places >= 0) & (places < length), places, -1.0).long()


def _scaled(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Geometry.c, ImagingScaleAffine."""
    height, width = images.shape[2:]
    steps, starts = matrices[:, ::4].t(), matrices[:, 2::3].t()
    sizes = torch.tensor([width, height]).view(2, 1, 1)
    columns, rows = _whole(_sums(starts + steps * 0.5, steps, max(height, width)), sizes).unbind(0)
    return pick(images, rows[:, :height], columns[:, :width], fill)


def _fixed(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Geometry.c, affine_fixed: nearest pixels in fixed-point numbers with 16 binary places."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)
    numbers = torch.stack((a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5))
    numbers = numbers.mul_(65536.0).add_(0.5).floor_().to(torch.int32)
    a, b, c, d, e, f = send(numbers, images.device)[:, :, None, None].unbind(0)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device)[:, None]
    columns = ((c + b * y) + a * x).bitwise_right_shift_(16)
    rows = ((f + e * y) + d * x).bitwise_right_shift_(16)
    return _gather(images, rows, columns, fill)


def _far(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Geometry.c, ImagingTransformAffine where fixed-point numbers would overflow."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.unbind(1)
    columns = _sums(_sums(c + b * 0.5 + a * 0.5, b, height), a[:, None], width)
    rows = _sums(_sums(f + e * 0.5 + d * 0.5, e, height), d[:, None], width)
    rows, columns = send(_whole(rows, height), images.device), send(_whole(columns, width), images.device)
    return _gather(images, rows, columns, fill)


def _gather(images: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """Pixels at rows and columns ``(batch, height, width)``, which are written to; all around lies fill."""
    batch, channels, height, width = images.shape
    # A frame of fill takes the place of conditions on every pixel.
    framed = images.new_empty((batch, channels, height + 2, width + 2))
    framed.copy_(fill[:, :, None, None])
    framed[:, :, 1:-1, 1:-1] = images
    rows.clamp_(-1, height).add_(1).mul_(width + 2).add_(columns.clamp_(-1, width).add_(1))
    places = rows.view(batch, 1, -1).long().expand(-1, channels, -1)
    return framed.flatten(2).gather(2, places).view(images.shape)


def _bilinear(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    return _filtered(images, matrices, fill, (0, 1))


def _bicubic(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    return _filtered(images, matrices, fill, (-1, 0, 1, 2))


def _filtered(images: Tensor, matrices: Tensor, fill: Tensor, taps: tuple[int, ...]) -> Tensor:
    """Geometry.c, ImagingGenericTransform: all in float64, every product and sum rounded."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = send(matrices.t().contiguous(), images.device)[:, :, None, None].unbind(0)
    x = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
    y = (torch.arange(height, dtype=torch.float64, device=images.device) + 0.5)[:, None]
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = ((across >= 0) & (across < width) & (down >= 0) & (down < height))[:, None]
    across, down = across.sub_(0.5).clamp_(-1, width), down.sub_(0.5).clamp_(-1, height)
    left, top = across.floor(), down.floor()
    across, down = across.sub_(left).flatten(1)[:, None], down.sub_(top).flatten(1)[:, None]
    left, top = left.long(), top.long()
    columns = [(left + tap).clamp_(0, width - 1) for tap in taps]
    pixels = images.flatten(2)
    mix = _linear if len(taps) == 2 else _cubic
    lines = []
    for tap in taps:
        row = (top + tap).clamp_(0, height - 1).mul_(width)
        places = [(row + column).flatten(1)[:, None].expand(-1, images.shape[1], -1) for column in columns]
        lines.append(mix([pixels.gather(2, place).double() for place in places], across))
    mixed = mix(lines, down).clamp_(0, 255).to(torch.int16).to(torch.uint8).view(images.shape)
    return _filled(mixed, inside.to(torch.uint8), fill)


def _linear(values: list[Tensor], part: Tensor) -> Tensor:
    first, second = values
    return (second - first).mul_(part).add_(first)


def _cubic(values: list[Tensor], part: Tensor) -> Tensor:
    v1, v2, v3, v4 = values
    p3 = ((v1 - v2).mul_(2)).add_(v3).sub_(v4)
    p4 = (v2 - v1).sub_(v3).add_(v4)
    return p4.mul_(part).add_(p3).mul_(part).add_(v3 - v1).mul_(part).add_(v2)


SCALE, FIXED, FAR = 0, 1, 4
METHODS = (_scaled, _fixed, _bilinear, _bicubic, _far)


def affine_matrix(
    *,
    angle: float = 0.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    center: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, ...]:
    """Pillow's (a, b, c, d, e, f) for what torchvision's ``affine`` does to Pillow images.

    Args:
        angle: of rotation, clockwise, in degrees.
        translate: (x, y) by which the image moves right and down, in pixels.
        scale: by which the image grows.
        shear: (x, y) in degrees.
        center: (x, y) of the point that rotation, scale and shear leave alone, in pixels from the top left
            corner; torchvision's policies shear about the corner itself.
    """
    turn, (sx, sy) = math.radians(angle), map(math.radians, shear)
    a = math.cos(turn - sy) / math.cos(sy)
    b = -math.cos(turn - sy) * math.tan(sx) / math.cos(sy) - math.sin(turn)
    c = math.sin(turn - sy) / math.cos(sy)
    d = -math.sin(turn - sy) * math.tan(sx) / math.cos(sy) + math.cos(turn)
    return _about(center, translate, (d / scale, -b / scale, -c / scale, a / scale))


def rotation_matrix(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Pillow's (a, b, c, d, e, f) for its ``Image.rotate``: counterclockwise about the center.

    At 90 and 270 degrees of square images and at 180 degrees Pillow turns pixels without a matrix, which
    gives the same image.

    Args:
        degrees: any angle.
        height: height of the images.
        width: width of the images.
    """
    angle = -math.radians(degrees % 360.0)
    cosine, sine, minus = (round(x, 15) for x in (math.cos(angle), math.sin(angle), -math.sin(angle)))
    return _about((width / 2, height / 2), (0, 0), (cosine, sine, minus, cosine))


def _about(
    center: tuple[float, float], translate: tuple[float, float], turn: tuple[float, float, float, float]
) -> tuple[float, ...]:
    a, b, d, e = turn
    x, y = -center[0] - translate[0], -center[1] - translate[1]
    return a, b, a * x + b * y + center[0], d, e, d * x + e * y + center[1]
