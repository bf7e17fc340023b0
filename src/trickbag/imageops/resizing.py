"""Cutting boxes out of images and resizing them, compiled, as Pillow's ``resize(box=)`` does it.

Bit for bit as Pillow does it with its horizontal pass first, that is, always before Pillow 13. From there on
it takes some tall images the other way round, which can differ by one level.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trickbag.imageops.kernels import F, I, U, _copy, compiled

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


def _pair(taps):
    """The same weighted sum of ``taps`` neighboring RGB pixels in two rows, rounded and cut off.

    Left to itself the compiler makes poor code of sums of three or four taps, so the vectors are spelled
    out: four lanes of 32 bits a row, of which the fourth belongs to the next pixel. Four bytes are written
    to each row; the last one is overwritten by whoever writes the next pixel.
    """

    @intrinsic
    def pair(context, source, one, other, weights, line, target, to, too):
        def emit(context, builder, signature, arguments):
            word, long = ir.IntType(32), ir.IntType(64)
            words, lanes = ir.VectorType(word, 2), ir.VectorType(word, 8)
            small = ir.VectorType(ir.IntType(8), 8)

            def pointer(which, index):
                array = context.make_array(signature.args[which])(context, builder, arguments[which])
                return builder.gep(array.data, [arguments[index]])

            def constant(value):
                return ir.Constant(lanes, [value] * 8)

            def splat(value):
                vector = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, word(0))
                return builder.shuffle_vector(vector, vector, constant(0))

            starts, first = [pointer(0, 1), pointer(0, 2)], pointer(3, 4)
            total = constant(1 << (BITS - 1))
            for k in range(taps):
                pixels = ir.Constant(words, ir.Undefined)
                for row, start in enumerate(starts):
                    place = builder.bitcast(builder.gep(start, [long(3 * k)]), word.as_pointer())
                    pixels = builder.insert_element(pixels, builder.load(place, align=1), word(row))
                pixels = builder.zext(builder.bitcast(pixels, small), lanes)
                weight = splat(builder.load(builder.gep(first, [long(k)])))
                total = builder.add(total, builder.mul(pixels, weight))
            total = builder.ashr(total, constant(BITS))
            low, high = constant(0), constant(255)
            total = builder.select(builder.icmp_signed("<", total, low), low, total)
            total = builder.select(builder.icmp_signed(">", total, high), high, total)
            found = builder.bitcast(builder.trunc(total, small), words)
            for row, place in enumerate((pointer(5, 6), pointer(5, 7))):
                builder.store(
                    builder.extract_element(found, word(row)),
                    builder.bitcast(place, word.as_pointer()),
                    align=1,
                )
            return context.get_dummy_value()

        i = types.int64
        return types.void(source, i, i, weights, i, target, i, i), emit

    return pair


MOST_TAPS = 16
_four_taps, _six_taps, _eight_taps, _sixteen_taps = _pair(4), _pair(6), _pair(8), _pair(MOST_TAPS)


@compiled()
def _across(source, target, first, numbers, weights, width, channels, rows, top):
    """Resizes rows ``top`` and following; the target's rows are packed."""
    count = len(first)
    half = np.int32(1 << (BITS - 1))
    n, m = width * channels, count * channels
    # A slice made inside the loop would cost more than the sum: it counts references atomically.
    flat, taps, most = weights.reshape(weights.size), weights.shape[1], numbers.max()
    for y in range(0, rows, 2):
        # An odd last row is done twice at once.
        begin, into = (y + top) * n, y * m
        more, further = (begin + n, into + m) if y + 1 < rows else (begin, into)
        done = count - 1 if channels == 3 and taps == MOST_TAPS else 0
        while done > 0 and more + 3 * (first[done - 1] + MOST_TAPS) + 1 > source.size:
            done -= 1
        for i in range(done):
            one, other = begin + 3 * first[i], more + 3 * first[i]
            to, too, line = into + 3 * i, further + 3 * i, i * MOST_TAPS
            if most <= 4:
                _four_taps(source, one, other, flat, line, target, to, too)
            elif most <= 6:
                _six_taps(source, one, other, flat, line, target, to, too)
            elif most <= 8:
                _eight_taps(source, one, other, flat, line, target, to, too)
            else:
                _sixteen_taps(source, one, other, flat, line, target, to, too)
        for i in range(done, count):
            for c in range(channels):
                total = also = half
                for k in range(numbers[i]):
                    at, w = channels * (first[i] + k) + c, flat[i * taps + k]
                    total = np.int32(total + w * np.int32(source[begin + at]))
                    also = np.int32(also + w * np.int32(source[more + at]))
                target[into + i * channels + c] = _clip8(total)
                target[further + i * channels + c] = _clip8(also)


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
