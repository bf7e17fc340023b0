"""Cutting boxes out of images and resizing them, compiled, as Pillow's ``resize(box=)`` does it.

Bit for bit as Pillow does it with its horizontal pass first, that is, always before Pillow 13. From there on
it takes some tall images the other way round, which can differ by one level.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trickbag.imageops.compiled import F, I, U, _copy, compiled

NEAREST, BILINEAR, BICUBIC = 0, 2, 3
"""Pillow's numbers of its filters."""
BITS = 22
"""Resample.c: PRECISION_BITS."""
_FIRST = np.zeros(1, np.int64)


def resize(
    source: np.ndarray, box: tuple[float, float, float, float], resample: int, out: np.ndarray
) -> None:
    """Cut a box out of an image and resize it, antialiased.

    Args:
        source: uint8 ``(height, width, channels)``, contiguous.
        box: (top, left, height, width) in pixels, inside the image.
        resample: Pillow's number of the filter: 0 nearest, 2 bilinear, 3 bicubic.
        out: uint8 ``(height, width, channels)``, contiguous; takes the result.
    """
    resize_stack(source[None], _FIRST, np.array([box], dtype=np.float64), resample, out[None])


def resize_stack(
    stack: np.ndarray, rows: np.ndarray, boxes: np.ndarray, resample: int, out: np.ndarray
) -> None:
    """``resize`` for images of one size.

    Args:
        stack: uint8 ``(n, height, width, channels)``, contiguous.
        rows: ``(batch,)`` int64 positions in ``stack``.
        boxes: ``(batch, 4)`` float64 (top, left, height, width) in pixels, inside the images.
        resample: as in ``resize``.
        out: uint8 ``(batch, height, width, channels)``, contiguous; takes the result.
    """
    _resize_stack(stack, rows, boxes, resample, out)


@compiled()
def _weight(x, resample):
    x = abs(x)
    if resample == BILINEAR:
        return 1.0 - x if x < 1.0 else 0.0
    a = -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


@compiled()
def _coefficients(length, start, stop, count, resample):
    """Resample.c: precompute_coeffs and normalize_coeffs_8bpc.

    Returns first source positions ``(count,)``, numbers of taps ``(count,)``, weights ``(count, taps)``.
    """
    scale = np.float64(F(stop) - F(start)) / count
    stretch = max(scale, 1.0)
    support = (1.0 if resample == BILINEAR else 2.0) * stretch
    taps = I(np.ceil(support)) * 2 + 1
    first, numbers = np.empty(count, np.int64), np.empty(count, np.int64)
    weights = np.zeros((count, max(taps, MOST_TAPS)), np.int32)
    line = np.empty(taps, np.float64)
    inverse = 1.0 / stretch
    for i in range(count):
        center = start + (i + 0.5) * scale
        low = max(I(center - support + 0.5), 0)
        number = min(I(center + support + 0.5), length) - low
        total = 0.0
        for k in range(number):
            line[k] = _weight((k + low - center + 0.5) * inverse, resample)
            total += line[k]
        for k in range(number):
            value = line[k] / total if total != 0.0 else line[k]
            value *= 1 << BITS
            weights[i, k] = np.int32(value - 0.5 if value < 0 else value + 0.5)
        first[i], numbers[i] = low, number
    return first, numbers, weights


@compiled()
def _clip8(value):
    return U(min(max(value >> BITS, np.int32(0)), np.int32(255)))


def _pixel(taps):
    """A weighted sum of ``taps`` neighboring RGB pixels, rounded and cut off, in vector instructions.

    Left to itself the compiler makes poor code of sums of three or four taps, so the vectors are spelled
    out: four lanes of 32 bits, of which the fourth belongs to the next pixel. Four bytes are written; the
    last one is overwritten by whoever writes the next pixel.
    """

    @intrinsic
    def pixel(context, source, at, weights, target, to):
        def emit(context, builder, signature, arguments):
            lanes = ir.VectorType(ir.IntType(32), 4)
            small = ir.VectorType(ir.IntType(8), 4)

            def pointer(which, index):
                array = context.make_array(signature.args[which])(context, builder, arguments[which])
                return builder.gep(array.data, [index])

            def splat(value):
                vector = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.IntType(32)(0))
                return builder.shuffle_vector(vector, vector, ir.Constant(lanes, [0] * 4))

            def constant(value):
                return ir.Constant(lanes, [value] * 4)

            begin, total = pointer(0, arguments[1]), constant(1 << (BITS - 1))
            line = pointer(2, ir.IntType(64)(0))
            for k in range(taps):
                place = builder.bitcast(builder.gep(begin, [ir.IntType(64)(3 * k)]), small.as_pointer())
                bytes_ = builder.load(place)
                bytes_.align = 1
                weight = builder.load(builder.gep(line, [ir.IntType(64)(k)]))
                total = builder.add(total, builder.mul(builder.zext(bytes_, lanes), splat(weight)))
            total = builder.ashr(total, constant(BITS))
            low, high = constant(0), constant(255)
            total = builder.select(builder.icmp_signed("<", total, low), low, total)
            total = builder.select(builder.icmp_signed(">", total, high), high, total)
            place = builder.bitcast(pointer(3, arguments[4]), small.as_pointer())
            builder.store(builder.trunc(total, small), place, align=1)
            return context.get_dummy_value()

        return types.void(source, types.int64, weights, target, types.int64), emit

    return pixel


_four_taps, _eight_taps, _sixteen_taps = _pixel(4), _pixel(8), _pixel(16)
MOST_TAPS = 16


@compiled()
def _across(source, target, first, numbers, weights, width, channels, rows, top):
    """Resizes rows ``top`` and following; the target's rows are packed."""
    count = len(first)
    half = np.int32(1 << (BITS - 1))
    n, m = width * channels, count * channels
    end = source.size
    for y in range(rows):
        begin = (y + top) * n
        into = target[y * m : (y + 1) * m]
        for i in range(count):
            at = begin + channels * first[i]
            number = numbers[i]
            line = weights[i]
            if channels == 3 and number <= MOST_TAPS and i < count - 1 and at + 49 <= end:
                if number <= 4:
                    _four_taps(source, at, line, into, 3 * i)
                elif number <= 8:
                    _eight_taps(source, at, line, into, 3 * i)
                else:
                    _sixteen_taps(source, at, line, into, 3 * i)
                continue
            for c in range(channels):
                total = half
                for k in range(number):
                    total = np.int32(total + line[k] * np.int32(source[at + k * channels + c]))
                into[i * channels + c] = _clip8(total)


@compiled()
def _down(source, target, first, numbers, weights, length, sums):
    """Resizes packed rows of ``length`` values; ``first`` counts from the source's first row."""
    half = np.int32(1 << (BITS - 1))
    for i in range(len(first)):
        total = sums[:length]
        for k in range(numbers[i]):
            w = weights[i, k]
            row = source[(first[i] + k) * length : (first[i] + k + 1) * length]
            if k == 0:
                for x in range(length):
                    total[x] = np.int32(half + w * np.int32(row[x]))
            else:
                for x in range(length):
                    total[x] = np.int32(total[x] + w * np.int32(row[x]))
        into = target[i * length : (i + 1) * length]
        for x in range(length):
            into[x] = _clip8(total[x])


@compiled()
def _nearest(source, top, left, down, across, out):
    """Geometry.c: ImagingScaleAffine, which adds up steps of ``down`` and ``across`` pixels."""
    height, width = source.shape[0], source.shape[1]
    columns = np.empty(out.shape[1], np.int64)
    position = left + across * 0.5
    for x in range(out.shape[1]):
        columns[x] = min(max(I(position), 0), width - 1)
        position += across
    position = top + down * 0.5
    for y in range(out.shape[0]):
        at = min(max(I(position), 0), height - 1)
        for x in range(out.shape[1]):
            for c in range(out.shape[2]):
                out[y, x, c] = source[at, columns[x], c]
        position += down


@compiled()
def _one(source, top, left, tall, wide, resample, out):
    height, width, channels = source.shape
    rows, columns = out.shape[0], out.shape[1]
    whole = top == np.floor(top) and left == np.floor(left)
    if whole and tall == rows and wide == columns:
        for y in range(rows):
            line = source[I(top) + y].reshape(width * channels)
            _copy(line[I(left) * channels :], out[y].reshape(columns * channels))
        return
    # Pillow takes boxes in single precision.
    bottom = np.float64(F(min(top + tall, float(height))))
    right = np.float64(F(min(left + wide, float(width))))
    top, left = np.float64(F(top)), np.float64(F(left))
    if resample == NEAREST:
        _nearest(
            source,
            top,
            left,
            np.float64(F(bottom) - F(top)) / rows,
            np.float64(F(right) - F(left)) / columns,
            out,
        )
        return
    flat = source.reshape(source.size)
    first, numbers, weights = _coefficients(height, top, bottom, rows, resample)
    across = not (left == 0 and right == width and columns == width)
    down = not (top == 0 and bottom == height and rows == height)
    into = out.reshape(out.size)
    start, stop = (first[0], first[-1] + numbers[-1]) if down else (0, height)
    if across:
        across_first, across_numbers, across_weights = _coefficients(width, left, right, columns, resample)
        middle = np.empty((stop - start) * columns * channels, U) if down else into
        _across(
            flat, middle, across_first, across_numbers, across_weights, width, channels, stop - start, start
        )
    else:
        middle = flat[start * width * channels : stop * width * channels]
    if down:
        length = columns * channels
        _down(middle, into, first - start, numbers, weights, length, np.empty(length, np.int32))


_STACK = types.Array(types.uint8, 4, "C", readonly=True)


@compiled(
    types.void(
        _STACK,
        types.Array(types.int64, 1, "C", readonly=True),
        types.Array(types.float64, 2, "C", readonly=True),
        types.int64,
        types.uint8[:, :, :, ::1],
    )
)
def _resize_stack(stack, rows, boxes, resample, out):
    for i in range(len(rows)):
        box = boxes[i]
        _one(stack[rows[i]], box[0], box[1], box[2], box[3], resample, out[i])
