"""The CPU back end: compiled by numba, one fused pass an image, and no lock held meanwhile.

Everything that rounds does so as Pillow's C code does. Sums and products of whole numbers are done in
float32 where they are exact (below 2**24), because the compiler vectorizes those best.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trickbag.imageops.filters import _blur, _clahe, _gamma, _grain
from trickbag.imageops.kernels import F, I, U, _clip, _copy, _hash, _luma, _noise, _reflected, compiled
from trickbag.imageops.program import Op, Program, check, linear, stacked

IDENTITY, FLIP, SHIFT, AFFINE = int(Op.IDENTITY), int(Op.FLIP), int(Op.SHIFT), int(Op.AFFINE)
BRIGHTNESS, CONTRAST, POSTERIZE = int(Op.BRIGHTNESS), int(Op.CONTRAST), int(Op.POSTERIZE)
SOLARIZE, SOLARIZE_ADD, INVERT = int(Op.SOLARIZE), int(Op.SOLARIZE_ADD), int(Op.INVERT)
AUTOCONTRAST, EQUALIZE, ADD = int(Op.AUTOCONTRAST), int(Op.EQUALIZE), int(Op.ADD)
SATURATION, HUE, SHARPNESS, ERASE = int(Op.SATURATION), int(Op.HUE), int(Op.SHARPNESS), int(Op.ERASE)
GAMMA, BLUR, NOISE, CLAHE = int(Op.GAMMA), int(Op.BLUR), int(Op.NOISE), int(Op.CLAHE)
SAVE, ACCUMULATE, TAKE = int(Op.SAVE), int(Op.ACCUMULATE), int(Op.TAKE)

_NO_FLOATS, _NO_LEVELS = np.empty((0, 0, 0, 0), F), np.empty((0, 0, 0, 0), U)


def execute(
    stack: np.ndarray,
    rows: np.ndarray | None,
    program: Program,
    levels: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Execute a program.

    Args:
        stack: uint8 ``(n, height, width, channels)``, contiguous.
        rows: ``(batch,)`` int64 positions of the images in ``stack``; None for all of them.
        program: for as many images.
        levels: stop before the table, with uint8 values.
        out: where to put the result; None makes an array.

    Returns:
        ``(batch, height, width, channels)``, float32 or (with ``levels``) uint8.
    """
    rows = np.arange(len(stack)) if rows is None else rows
    batch, shape = len(rows), stack.shape[1:]
    check(program, batch)
    stack = stack if stack.flags.c_contiguous else np.ascontiguousarray(stack)
    ops, args = stacked(program.steps, batch)
    if out is None:
        out = np.empty((batch, *shape), np.uint8 if levels else np.float32)
    late_ops, late_args = stacked(() if levels else program.late, batch)
    table = program.floats(shape[2])
    slopes, intercepts = _lines(table.tobytes(), shape[1], shape[2])
    floats, values = (_NO_FLOATS, out) if levels else (out, _NO_LEVELS)
    _run(
        stack,
        rows,
        ops,
        args,
        table,
        slopes,
        intercepts,
        late_ops,
        late_args,
        normal_quantiles(),
        floats,
        values,
        levels,
    )
    return out


@functools.lru_cache(maxsize=64)
def _lines(table: bytes, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of every value of a row of pixels; empty if the table is no straight line."""
    found = linear(np.frombuffer(table, np.float32).reshape(channels, 256))
    if found is None:
        return np.empty(0, F), np.empty(0, F)
    return np.tile(found[0], width), np.tile(found[1], width)


@functools.cache
def normal_quantiles() -> np.ndarray:
    """65,536 quantiles of the standard normal distribution, float32; the same as the torch back end's."""
    from trickbag.functional.erasing import normal_table

    return normal_table().numpy()


@compiled()
def _lookup(source, target, lut, channels):
    """Target = lut[channel, source]."""
    if channels == 3:
        red, green, blue = lut[0], lut[1], lut[2]
        for p in range(source.size // 3):
            target[3 * p] = red[source[3 * p]]
            target[3 * p + 1] = green[source[3 * p + 1]]
            target[3 * p + 2] = blue[source[3 * p + 2]]
    else:
        gray = lut[0]
        for p in range(source.size):
            target[p] = gray[source[p]]


@compiled()
def _line(source, target, slopes, intercepts):
    n = len(slopes)
    for start in range(0, source.size, n):
        row, into = source[start : start + n], target[start : start + n]
        for k in range(n):
            into[k] = F(row[k]) * slopes[k] + intercepts[k]


@intrinsic
def _mirror_16(context, source, at, target, to):
    """Copy 16 RGB pixels in reverse order, in vector instructions that the compiler does not find itself."""

    def emit(context, builder, signature, arguments):
        pixels = ir.VectorType(ir.IntType(8), 48)

        def pointer(which, index):
            array = context.make_array(signature.args[which])(context, builder, arguments[which])
            return builder.bitcast(builder.gep(array.data, [index]), pixels.as_pointer())

        read = builder.load(pointer(0, arguments[1]), align=1)
        order = [3 * (15 - p) + c for p in range(16) for c in range(3)]
        order = ir.Constant(ir.VectorType(ir.IntType(32), 48), order)
        builder.store(builder.shuffle_vector(read, read, order), pointer(2, arguments[3]), align=1)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), emit


@compiled()
def _flip(source, target, across, down, height, width, channels):
    n = width * channels
    for y in range(height):
        at = height - 1 - y if down else y
        row, into = source[at * n : (at + 1) * n], target[y * n : (y + 1) * n]
        if not across:
            _copy(row, into)
        elif channels == 3:
            blocks = width // 16
            for k in range(blocks):
                _mirror_16(row, n - 48 * (k + 1), into, 48 * k)
            for x in range(16 * blocks, width):
                k, j = 3 * x, n - 3 - 3 * x
                into[k] = row[j]
                into[k + 1] = row[j + 1]
                into[k + 2] = row[j + 2]
        else:
            for x in range(width):
                into[x] = row[width - 1 - x]


@compiled()
def _shift(source, target, top, left, mirror, height, width, channels):
    n = width * channels
    first, last = min(max(0, -left), width), max(min(width, width - left), 0)
    for y in range(height):
        into = target[y * n : (y + 1) * n]
        at = y + top
        if mirror:
            at = _reflected(at, height)
        if at < 0 or at >= height or (first >= last and not mirror):
            for k in range(n):
                into[k] = 0
            continue
        row = source[at * n : (at + 1) * n]
        if first < last:
            _copy(row[(first + left) * channels :], into[first * channels : last * channels])
        for x in range(width):
            if first <= x < last:
                continue
            for c in range(channels):
                into[x * channels + c] = row[_reflected(x + left, width) * channels + c] if mirror else 0


@compiled()
def _fixed(value):
    return I(np.floor(value * 65536.0 + 0.5))


@compiled()
def _near(a, x, y):
    """Geometry.c: check_fixed."""
    return abs(x * a[0] + y * a[1] + a[2]) < 32768.0 and abs(x * a[3] + y * a[4] + a[5]) < 32768.0


@compiled()
def _far(source, target, a, fill, height, width, channels):
    """Geometry.c: ImagingTransformAffine where fixed-point numbers would overflow."""
    xo = a[2] + a[1] * 0.5 + a[0] * 0.5
    yo = a[5] + a[4] * 0.5 + a[3] * 0.5
    for y in range(height):
        xx, yy = xo, yo
        for x in range(width):
            inside = 0 <= xx < width and 0 <= yy < height
            for c in range(channels):
                at = (I(yy) * width + I(xx)) * channels + c if inside else 0
                target[(y * width + x) * channels + c] = source[at] if inside else fill[c]
            xx += a[0]
            yy += a[3]
        xo += a[1]
        yo += a[4]


@compiled()
def _nearest(source, target, a, fill, height, width, channels):
    """Geometry.c: ImagingScaleAffine and affine_fixed."""
    n = width * channels
    if a[1] == 0 and a[3] == 0:
        columns = np.empty(width, np.int32)
        xo = a[2] + a[0] * 0.5
        first, last = width, 0
        for x in range(width):
            columns[x] = I(xo) if 0 <= xo < width else -1
            if columns[x] >= 0:
                first, last = min(first, x), x + 1
            xo += a[0]
        yo = a[5] + a[4] * 0.5
        for y in range(height):
            into = target[y * n : (y + 1) * n]
            at = I(yo) if 0 <= yo < height else -1
            yo += a[4]
            start, stop = (first, last) if at >= 0 and first < last else (width, width)
            for x in range(start):
                for c in range(channels):
                    into[x * channels + c] = fill[c]
            if start < stop:
                row = source[at * n : (at + 1) * n]
                if a[0] == 1:
                    begin = columns[start] * channels
                    _copy(row[begin:], into[start * channels : stop * channels])
                else:
                    for x in range(start, stop):
                        for c in range(channels):
                            into[x * channels + c] = row[columns[x] * channels + c]
            for x in range(stop, width):
                for c in range(channels):
                    into[x * channels + c] = fill[c]
        return
    if not (_near(a, 0, 0) and _near(a, width, height) and _near(a, 0, height) and _near(a, width, 0)):
        _far(source, target, a, fill, height, width, channels)
        return
    across, down = np.uint64(width), np.uint64(height)
    a0, a1, a3, a4 = _fixed(a[0]), _fixed(a[1]), _fixed(a[3]), _fixed(a[4])
    a2 = _fixed(a[2] + a[0] * 0.5 + a[1] * 0.5)
    a5 = _fixed(a[5] + a[3] * 0.5 + a[4] * 0.5)
    for y in range(height):
        into = target[y * n : (y + 1) * n]
        xx, yy = a2, a5
        for x in range(width):
            xi, yi = xx >> 16, yy >> 16
            if np.uint64(xi) < across and np.uint64(yi) < down:  # a negative one is large
                at = (yi * width + xi) * channels
                if channels == 3:
                    into[3 * x] = source[at]
                    into[3 * x + 1] = source[at + 1]
                    into[3 * x + 2] = source[at + 2]
                else:
                    into[x] = source[at]
            elif channels == 3:
                into[3 * x] = fill[0]
                into[3 * x + 1] = fill[1]
                into[3 * x + 2] = fill[2]
            else:
                into[x] = fill[0]
            xx += a0
            yy += a3
        a2 += a1
        a5 += a4


@compiled()
def _cubic(v1, v2, v3, v4, d):
    p1 = v2
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return p1 + d * (p2 + d * (p3 + d * p4))


@compiled()
def _smooth(source, target, a, bicubic, fill, height, width, channels):
    """Geometry.c: ImagingGenericTransform with bilinear_filter or bicubic_filter."""
    for y in range(height):
        for x in range(width):
            xin = a[0] * (x + 0.5) + a[1] * (y + 0.5) + a[2]
            yin = a[3] * (x + 0.5) + a[4] * (y + 0.5) + a[5]
            into = (y * width + x) * channels
            if xin < 0.0 or xin >= width or yin < 0.0 or yin >= height:
                for c in range(channels):
                    target[into + c] = fill[c]
                continue
            xin -= 0.5
            yin -= 0.5
            x0, y0 = I(np.floor(xin)), I(np.floor(yin))
            dx, dy = xin - x0, yin - y0
            if bicubic:
                xa, xb = min(max(x0 - 1, 0), width - 1), min(max(x0, 0), width - 1)
                xc, xd = min(max(x0 + 1, 0), width - 1), min(max(x0 + 2, 0), width - 1)
                for c in range(channels):
                    at = min(max(y0 - 1, 0), height - 1) * width
                    v1 = _cubic(
                        F(source[(at + xa) * channels + c]) * 1.0,
                        F(source[(at + xb) * channels + c]) * 1.0,
                        F(source[(at + xc) * channels + c]) * 1.0,
                        F(source[(at + xd) * channels + c]) * 1.0,
                        dx,
                    )
                    v2, v3 = v1, v1
                    v = v1
                    for k in range(3):
                        if 0 <= y0 + k < height:
                            at = (y0 + k) * width
                            v = _cubic(
                                F(source[(at + xa) * channels + c]) * 1.0,
                                F(source[(at + xb) * channels + c]) * 1.0,
                                F(source[(at + xc) * channels + c]) * 1.0,
                                F(source[(at + xd) * channels + c]) * 1.0,
                                dx,
                            )
                        if k == 0:
                            v2 = v
                        elif k == 1:
                            v3 = v
                    value = _cubic(v1, v2, v3, v, dy)
                    target[into + c] = U(min(max(value, 0.0), 255.0))
            else:
                xa, xb = min(max(x0, 0), width - 1), min(max(x0 + 1, 0), width - 1)
                ya, yb = min(max(y0, 0), height - 1) * width, (y0 + 1) * width
                below = 0 <= y0 + 1 < height
                for c in range(channels):
                    one, two = source[(ya + xa) * channels + c], source[(ya + xb) * channels + c]
                    v1 = one + (F(two) * 1.0 - F(one) * 1.0) * dx
                    v2 = v1
                    if below:
                        one, two = source[(yb + xa) * channels + c], source[(yb + xb) * channels + c]
                        v2 = one + (F(two) * 1.0 - F(one) * 1.0) * dx
                    target[into + c] = U(v1 + (v2 - v1) * dy)


@compiled()
def _mean_luma(source, channels):
    total = I(0)
    if channels == 1:
        for p in range(source.size):
            total += I(source[p])
        return np.floor(total / source.size + 0.5)
    for p in range(source.size // 3):
        total += I(_luma(source[3 * p], source[3 * p + 1], source[3 * p + 2]))
    return np.floor(total / (source.size // 3) + 0.5)


@compiled()
def _saturation(pixels, factor):
    alpha = F(factor)
    for p in range(pixels.size // 3):
        r, g, b = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]
        gray = _luma(r, g, b)
        pixels[3 * p] = U(_clip(gray + alpha * (F(r) - gray)))
        pixels[3 * p + 1] = U(_clip(gray + alpha * (F(g) - gray)))
        pixels[3 * p + 2] = U(_clip(gray + alpha * (F(b) - gray)))


@compiled()
def _hue(pixels, turns):
    """Convert.c: rgb2hsv and hsv2rgb."""
    shift = I(turns * 255) & 255
    for p in range(pixels.size // 3):
        r, g, b = pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]
        high, low = max(r, max(g, b)), min(r, min(g, b))
        hue, saturation = I(0), I(0)
        if high != low:
            span = F(high) - F(low)
            rc, gc, bc = (F(high) - F(r)) / span, (F(high) - F(g)) / span, (F(high) - F(b)) / span
            if r == high:
                h = bc - gc
            elif g == high:
                h = F(2.0 + np.float64(rc) - np.float64(bc))
            else:
                h = F(4.0 + np.float64(gc) - np.float64(rc))
            turn = np.float64(h) / 6.0 + 1.0
            h = F(turn - np.floor(turn))
            hue = I(np.float64(h) * 255.0)
            saturation = I(np.float64(span / F(high)) * 255.0)
        hue = (hue + shift) & 255
        if saturation == 0:
            pixels[3 * p] = high
            pixels[3 * p + 1] = high
            pixels[3 * p + 2] = high
            continue
        place = np.float64(hue) * 6.0 / 255.0
        sector = I(np.floor(place))
        f = F(place - np.float64(sector))
        fs = F(np.float64(saturation) / 255.0)
        v = np.float64(high)
        pv = U(np.floor(v * (1.0 - np.float64(fs)) + 0.5))
        qv = U(np.floor(v * (1.0 - np.float64(fs * f)) + 0.5))
        tv = U(np.floor(v * (1.0 - np.float64(fs) * (1.0 - np.float64(f))) + 0.5))
        sector %= 6
        if sector == 0:
            r, g, b = high, tv, pv
        elif sector == 1:
            r, g, b = qv, high, pv
        elif sector == 2:
            r, g, b = pv, high, tv
        elif sector == 3:
            r, g, b = pv, qv, high
        elif sector == 4:
            r, g, b = tv, pv, high
        else:
            r, g, b = high, pv, qv
        pixels[3 * p] = r
        pixels[3 * p + 1] = g
        pixels[3 * p + 2] = b


@compiled()
def _sharpness(source, target, factor, height, width, channels):
    alpha = F(factor)
    n, m = width * channels, (width - 2) * channels
    _copy(source, target[:n])
    if height > 1:
        _copy(source[(height - 1) * n :], target[(height - 1) * n :])
    thirteenth = F(1 / 13)
    if m <= 0:
        for y in range(1, height - 1):
            _copy(source[y * n :], target[y * n : (y + 1) * n])
        return
    columns = np.empty(n, F)
    left, middle, right = columns[:m], columns[channels : channels + m], columns[2 * channels :]
    for y in range(1, height - 1):
        above, row = source[(y - 1) * n : y * n], source[y * n : (y + 1) * n]
        below = source[(y + 1) * n : (y + 2) * n]
        for k in range(n):
            columns[k] = F(above[k]) + F(row[k]) + F(below[k])
        inner = row[channels : channels + m]
        into = target[y * n + channels : y * n + channels + m]
        for k in range(m):
            center = F(inner[k])
            total = left[k] + middle[k] + right[k] + F(4) * center
            smooth = np.floor(total * thirteenth + F(0.5))
            into[k] = U(_clip(smooth + alpha * (center - smooth)))
        for c in range(channels):
            target[y * n + c] = source[y * n + c]
            target[(y + 1) * n - 1 - c] = source[(y + 1) * n - 1 - c]


@compiled()
def _histogram(source, counts, channels):
    for c in range(channels):
        for v in range(256):
            counts[c, v] = 0
    if channels == 3:
        red, green, blue = counts[0], counts[1], counts[2]
        for p in range(source.size // 3):
            red[source[3 * p]] += 1
            green[source[3 * p + 1]] += 1
            blue[source[3 * p + 2]] += 1
    else:
        gray = counts[0]
        for p in range(source.size):
            gray[source[p]] += 1


@compiled()
def _extremes(source, low, high, width, channels):
    """Smallest and largest value of each channel, to the first places of ``low`` and ``high``."""
    n = width * channels
    _copy(source, low)
    _copy(source, high)
    for start in range(n, source.size, n):
        row = source[start : start + n]
        for k in range(n):
            low[k] = min(low[k], row[k])
            high[k] = max(high[k], row[k])
    for x in range(1, width):
        for c in range(channels):
            low[c] = min(low[c], low[x * channels + c])
            high[c] = max(high[c], high[x * channels + c])


@compiled()
def _autocontrast(low, high, table):
    if high <= low:
        for v in range(256):
            table[v] = v
        return
    scale = 255.0 / (high - low)
    offset = -low * scale
    for v in range(256):
        table[v] = U(min(max(v * scale + offset, 0.0), 255.0))


@compiled()
def _equalize(counts, table, sums):
    total, last, kinds = 0, 0, 0
    for v in range(256):
        if counts[v]:
            last = counts[v]
            kinds += 1
            total += last
    step = (total - last) // 255
    if kinds <= 1 or step == 0:
        for v in range(256):
            table[v] = v
        return
    before = step // 2
    for v in range(256):
        sums[v] = before
        before += counts[v]
    for v in range(256):
        table[v] = U(min(np.floor(sums[v] / np.float64(step)), 255.0))


@compiled()
def _direct(op, pixels, a, channels):
    """Operations on single values, without tables: vectors are quicker than lookups."""
    if op == BRIGHTNESS or op == CONTRAST:  # noqa: SIM109
        alpha = F(a[0])
        base = F(_mean_luma(pixels, channels)) if op == CONTRAST else F(0)
        for k in range(pixels.size):
            pixels[k] = U(_clip(base + alpha * (F(pixels[k]) - base)))
    elif op == POSTERIZE:
        mask = U(256 - (1 << (8 - I(a[0]))))
        for k in range(pixels.size):
            pixels[k] = U(pixels[k] & mask)
    elif op == SOLARIZE:
        threshold = a[0]
        limit = I(np.ceil(min(max(threshold, 0.0), 256.0)))
        if limit <= 255:
            least = U(limit)
            for k in range(pixels.size):
                value = pixels[k]
                pixels[k] = value if value < least else U(255 - value)
    elif op == SOLARIZE_ADD:
        amount = F(I(a[0]))
        for k in range(pixels.size):
            value = F(pixels[k])
            pixels[k] = U(min(F(255), value + amount) if value < a[1] else value)
    elif op == INVERT:
        for k in range(pixels.size):
            pixels[k] = U(255 - pixels[k])
    elif op == ADD:
        for c in range(channels):
            for p in range(c, pixels.size, channels):
                pixels[p] = U(min(max(np.floor(pixels[p] + a[c] + 0.5), 0.0), 255.0))


@compiled()
def _erase(pixels, a, height, width, channels):
    top, left, tall, wide = I(a[0]), I(a[1]), I(a[2]), I(a[3])
    first = _hash(I(a[5]))
    second = _hash(first ^ I(a[6]))
    noisy = a[4] != 0
    for y in range(max(top, 0), min(top + tall, height)):
        for x in range(max(left, 0), min(left + wide, width)):
            for c in range(channels):
                if noisy:
                    pixels[(y * width + x) * channels + c] = (
                        _noise(first, second, (c * height + y) * width + x) >> 24
                    )
                else:
                    pixels[(y * width + x) * channels + c] = U(a[5 + c])


@compiled()
def _erase_floats(pixels, a, normal, height, width, channels):
    top, left, tall, wide = I(a[0]), I(a[1]), I(a[2]), I(a[3])
    first = _hash(I(a[5]))
    second = _hash(first ^ I(a[6]))
    for y in range(max(top, 0), min(top + tall, height)):
        for x in range(max(left, 0), min(left + wide, width)):
            for c in range(channels):
                at = (y * width + x) * channels + c
                if a[4] == 0:
                    pixels[at] = F(a[5 + c])
                    continue
                bits = _noise(first, second, (c * height + y) * width + x)
                if a[4] == 1:
                    pixels[at] = min((F(bits >> 8) + F(0.5)) * F(2.0**-24), F(1 - 2.0**-24))
                else:
                    pixels[at] = normal[bits >> 16]


@compiled()
def _settle(current, lut, pending, channels):
    if pending:
        _lookup(current, current, lut, channels)
    return False


@compiled()
def _steps(
    source, ops, args, i, one, two, kept, total, lut, counts, sums, edges, normal, height, width, channels
):
    """All uint8 steps of image ``i``; returns the buffer that holds it, and whether ``lut`` is still due."""
    current, spare = one, two
    pending = False
    start = 0
    if len(ops) and ops[0, i] == FLIP:
        _flip(source, current, args[0, i, 0] != 0, args[0, i, 1] != 0, height, width, channels)
        start = 1
    elif len(ops) and ops[0, i] == SHIFT:
        a = args[0, i]
        _shift(source, current, I(a[0]), I(a[1]), a[2] != 0, height, width, channels)
        start = 1
    else:
        _copy(source, current)
    for s in range(start, len(ops)):
        op = ops[s, i]
        a = args[s, i]
        if op == IDENTITY:
            continue
        if op == EQUALIZE or op == AUTOCONTRAST or op == GAMMA:  # noqa: SIM109
            pending = _settle(current, lut, pending, channels)
            if op == EQUALIZE:
                _histogram(current, counts, channels)
                for c in range(channels):
                    _equalize(counts[c], lut[c], sums)
            elif op == GAMMA:
                _gamma(a[0], lut)
            else:
                _extremes(current, edges[0], edges[1], width, channels)
                for c in range(channels):
                    _autocontrast(I(edges[0, c]), I(edges[1, c]), lut[c])
            pending = True
            continue
        if op == FLIP:
            _flip(current, spare, a[0] != 0, a[1] != 0, height, width, channels)
            current, spare = spare, current
            continue
        pending = _settle(current, lut, pending, channels)
        if BRIGHTNESS <= op <= ADD:
            _direct(op, current, a, channels)
        elif op == SHIFT:
            _shift(current, spare, I(a[0]), I(a[1]), a[2] != 0, height, width, channels)
            current, spare = spare, current
        elif op == AFFINE:
            fill = a[7:].astype(np.uint8)
            if a[6] == 0:
                _nearest(current, spare, a, fill, height, width, channels)
            else:
                _smooth(current, spare, a, a[6] == 3, fill, height, width, channels)
            current, spare = spare, current
        elif op == SHARPNESS:
            _sharpness(current, spare, a[0], height, width, channels)
            current, spare = spare, current
        elif op == SATURATION:
            if channels == 3:
                _saturation(current, a[0])
        elif op == HUE:
            if channels == 3:
                _hue(current, a[0])
        elif op == BLUR:
            _blur(current, spare, I(a[0]), a[1], height, width, channels)
            current, spare = spare, current
        elif op == NOISE:
            _grain(current, F(a[0]), I(a[1]), I(a[2]), normal, height, width, channels)
        elif op == CLAHE:
            _clahe(current, a[0], I(a[1]), a[2] != 0, height, width, channels)
        elif op == ERASE:
            _erase(current, a, height, width, channels)
        elif op == SAVE:
            _copy(current, kept)
            for k in range(current.size):
                total[k] = F(a[0]) * F(current[k])
        elif op == ACCUMULATE:
            for k in range(current.size):
                total[k] = total[k] + F(a[0]) * F(current[k])
            _copy(kept, current)
        elif op == TAKE:
            for k in range(current.size):
                current[k] = U(_clip(total[k]))
    return current, pending


_STACK = types.Array(types.uint8, 4, "C", readonly=True)
_ROWS = types.Array(types.int64, 1, "C", readonly=True)
_OPS = types.Array(types.uint8, 2, "C", readonly=True)
_ARGS = types.Array(types.float64, 3, "C", readonly=True)
_TABLE = types.Array(types.float32, 2, "C", readonly=True)
_NORMAL = types.Array(types.float32, 1, "C", readonly=True)
_FLOATS, _LEVELS = types.float32[:, :, :, ::1], types.uint8[:, :, :, ::1]


@compiled(
    types.void(
        _STACK,
        _ROWS,
        _OPS,
        _ARGS,
        _TABLE,
        _NORMAL,
        _NORMAL,
        _OPS,
        _ARGS,
        _NORMAL,
        _FLOATS,
        _LEVELS,
        types.boolean,
    )
)
def _run(
    stack, rows, ops, args, table, slopes, intercepts, late_ops, late_args, normal, floats, values, levels
):
    height, width, channels = stack.shape[1], stack.shape[2], stack.shape[3]
    size = height * width * channels
    one, two, kept = np.empty(size, U), np.empty(size, U), np.empty(size, U)
    total = np.empty(size, F)
    lut = np.empty((channels, 256), U)
    counts, sums = np.empty((channels, 256), np.int32), np.empty(256, np.float64)
    composed = np.empty((channels, 256), F)
    edges = np.empty((2, width * channels), U)
    for i in range(len(rows)):
        source = stack[rows[i]].reshape(size)
        current, pending = _steps(
            source,
            ops,
            args,
            i,
            one,
            two,
            kept,
            total,
            lut,
            counts,
            sums,
            edges,
            normal,
            height,
            width,
            channels,
        )
        if levels:
            whole = values[i].reshape(size)
            if pending:
                _lookup(current, whole, lut, channels)
            else:
                _copy(current, whole)
            continue
        into = floats[i].reshape(size)
        if pending:
            for c in range(channels):
                for v in range(256):
                    composed[c, v] = table[c, lut[c, v]]
            _lookup(current, into, composed, channels)
        elif len(slopes):
            _line(current, into, slopes, intercepts)
        else:
            _lookup(current, into, table, channels)
        for s in range(len(late_ops)):
            if late_ops[s, i] == ERASE:
                _erase_floats(into, late_args[s, i], normal, height, width, channels)
