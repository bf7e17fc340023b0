"""Batched, antialiased crop-and-resize with Pillow's filters and roundings."""

from __future__ import annotations

import torch
from torch import Tensor

SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
PRECISION = 22
"""Pillow rounds its filter weights to so many binary places (``PRECISION_BITS`` of Resample.c)."""


def crop_resize(images: Tensor, boxes: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Cut one box out of every image and resize it to ``size`` x ``size``.

    The filters are Pillow's (Resample.c): separable, horizontal pass first, support widened by the
    scale when shrinking (antialiasing), truncated and renormalized at the borders of the *image*, not
    of the box, and for uint8 rounded after each pass: bit for bit what Pillow gives where it takes the
    same order of passes, within one level where some versions do not (tall images; bicubic may differ
    by more where the first pass clips). Weights are dense, ``(batch, size, width)``, so this is meant
    for small images or a GPU. A box of whole pixels at its native size is copied.

    Args:
        images: ``(batch, channels, height, width)``, uint8 (0 to 255) or floating point (any range).
        boxes: ``(batch, 4)`` float64 (top, left, height, width) in pixels, inside the image.
        size: height and width of the result, in pixels.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic`` (a = -0.5).

    Returns:
        ``(batch, channels, size, size)`` of the dtype of ``images``. Floating-point bicubic results
        may overshoot the range of the input; uint8 results are clipped.

    Raises:
        ValueError: a shape, a filter name or a box is wrong.

    Source: Pillow, src/libImaging/Resample.c (``precompute_coeffs``, ``normalize_coeffs_8bpc``).
    """
    batch, channels, height, width = images.shape
    if interpolation not in ("nearest", *SUPPORT):
        raise ValueError(f"interpolation is {interpolation!r}, not nearest, bilinear or bicubic")
    if boxes.shape != (batch, 4):
        raise ValueError(f"boxes are {tuple(boxes.shape)}, not ({batch}, 4)")
    if batch == 0:
        return images.new_empty(0, channels, size, size)
    check_boxes(boxes, height, width)
    if is_copy(boxes, size):
        return _gather(images, *_native(boxes, size))
    # Positions and weights are worked out where the boxes are: on the host, no step waits for a device.
    exact = images.device.type != "mps"
    boxes = boxes.to(torch.float64 if exact else torch.float32)
    if bool((boxes == boxes[:1]).all()):
        boxes = boxes[:1]
    # Pillow takes boxes in single precision.
    start = boxes[:, :2].float()
    stop = (boxes[:, :2] + boxes[:, 2:]).float()
    scale = (stop - start).to(boxes.dtype) / size
    start = start.to(boxes.dtype)
    if interpolation == "nearest":
        rows = _nearest(start[:, 0], scale[:, 0], height, size)
        columns = _nearest(start[:, 1], scale[:, 1], width, size)
        return _gather(images, rows.expand(batch, -1), columns.expand(batch, -1))
    vertical = filter_weights(start[:, 0], scale[:, 0], height, size, interpolation)
    horizontal = filter_weights(start[:, 1], scale[:, 1], width, size, interpolation)
    if images.dtype == torch.uint8:
        quantize = exact
        work = images.to(boxes.dtype)
        if quantize:
            vertical, horizontal = _quantize(vertical), _quantize(horizontal)
        vertical, horizontal = _moved(vertical, images), _moved(horizontal, images)
        result = _to_levels(_apply(work, horizontal), quantize)
        result = _to_levels(_apply(result.transpose(2, 3), vertical), quantize)
        return result.transpose(2, 3).to(torch.uint8).contiguous()
    dtype = torch.float32 if images.dtype in (torch.float16, torch.bfloat16) else images.dtype
    result = _apply(images.to(dtype), _moved(horizontal.to(dtype), images))
    result = _apply(result.transpose(2, 3), _moved(vertical.to(dtype), images))
    return result.transpose(2, 3).to(images.dtype).contiguous()


def check_boxes(boxes: Tensor, height: int, width: int, tolerance: float = 1e-6) -> None:
    """Raise ValueError unless every box is positive and inside a ``height`` x ``width`` image."""
    limit = torch.tensor([height, width], dtype=boxes.dtype, device=boxes.device) + tolerance
    inside = (boxes[:, :2] >= -tolerance) & (boxes[:, :2] + boxes[:, 2:] <= limit) & (boxes[:, 2:] > 0)
    if not bool(inside.all()):
        first = int((~inside.all(dim=1)).nonzero()[0])
        box = [round(value, 3) for value in boxes[first].tolist()]
        raise ValueError(f"box {first} {box} (top, left, height, width) is not inside {height} x {width}")


def is_copy(boxes: Tensor, size: int) -> bool:
    """True if every box is made of whole pixels and already has the size of the result."""
    return bool((boxes[:, 2:] == size).all() and (boxes[:, :2] == boxes[:, :2].round()).all())


def filter_weights(start: Tensor, scale: Tensor, length: int, size: int, interpolation: str) -> Tensor:
    """Weights ``(batch, size, length)`` with which each source pixel enters each result pixel.

    Args:
        start: ``(batch,)`` where the box begins, in source pixels.
        scale: ``(batch,)`` source pixels in one result pixel.
        length: source pixels along this axis.
        size: result pixels along this axis.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    steps = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    center = (start[:, None] + steps * scale[:, None])[:, :, None]
    stretch = scale.clamp(min=1.0)[:, None, None]
    support = SUPPORT[interpolation] * stretch
    first = (center - support + 0.5).trunc().clamp(min=0)
    last = (center + support + 0.5).trunc().clamp(max=length)
    taps = min(length, int((last - first).max()))
    position = first + torch.arange(taps, device=start.device, dtype=start.dtype)
    distance = ((position - center + 0.5) * (1.0 / stretch)).abs()
    weights = _triangle(distance) if interpolation == "bilinear" else _cubic(distance)
    weights = weights * (position < last)
    weights = weights / weights.sum(dim=2, keepdim=True)
    dense = weights.new_zeros(len(start), size, length)
    return dense.scatter_add_(2, position.clamp(max=length - 1).long(), weights)


def _triangle(x: Tensor) -> Tensor:
    return (1.0 - x).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _quantize(weights: Tensor) -> Tensor:
    """Weights as whole multiples of ``2 ** -PRECISION``, so that float64 sums are exact."""
    return (weights * (1 << PRECISION) + torch.where(weights < 0, -0.5, 0.5)).trunc()


def _to_levels(values: Tensor, quantized: bool) -> Tensor:
    if quantized:
        values.mul_(2.0**-PRECISION)
    return values.add_(0.5).floor_().clamp_(0, 255)


def _apply(images: Tensor, weights: Tensor) -> Tensor:
    """Contract the last axis of ``(batch, channels, rows, length)`` with ``(batch or 1, size, length)``."""
    batch, channels, rows, length = images.shape
    if len(weights) == 1:
        return images.reshape(-1, length).matmul(weights[0].T).view(batch, channels, rows, -1)
    return images.reshape(batch, -1, length).bmm(weights.transpose(1, 2)).view(batch, channels, rows, -1)


def _nearest(start: Tensor, scale: Tensor, length: int, size: int) -> Tensor:
    steps = scale[:, None].repeat(1, size)
    steps[:, 0] = start + scale * 0.5
    return steps.cumsum(dim=1).floor().long().clamp(0, length - 1)


def _native(boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(size, device=boxes.device)
    corner = boxes[:, :2].long()
    return corner[:, :1] + steps, corner[:, 1:] + steps


def _moved(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(like.device, non_blocking=True)


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``images[b, :, rows[b], :][:, columns[b]]`` for every image of the batch."""
    alike = bool((rows == rows[:1]).all() and (columns == columns[:1]).all())
    rows, columns = _moved(rows, images), _moved(columns, images)
    if alike:
        return images[:, :, rows[0]][..., columns[0]]
    batch, channels = images.shape[:2]
    device = images.device
    return images[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
