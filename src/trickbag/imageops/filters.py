"""Compiled operations for which a pixel's neighbors, or chance, count: blur, noise and local histograms.

Their sums are of whole numbers, or of single products in a fixed order: the torch back end gives the same.
"""

from __future__ import annotations

import numpy as np

from trickbag.imageops.kernels import F, I, U, _clip, _hash, _luma, _noise, _reflected, compiled


@compiled()
def _gamma(exponent, lut):
    """The same table for every channel."""
    for v in range(256):
        level = U(255.999 * (v / 255.0) ** exponent)
        for c in range(len(lut)):
            lut[c, v] = level


@compiled()
def _kernel(radius, ratio):
    """Weights of a Gaussian from its center on, which sum up to 2**16; as ``functional.filters`` has it."""
    shares = np.empty(radius + 1, np.float64)
    shares[0] = 1.0
    total, factor = 1.0, ratio
    for k in range(1, radius + 1):
        shares[k] = shares[k - 1] * factor
        factor *= ratio * ratio
        total += 2 * shares[k]
    weights = np.empty(radius + 1, np.int32)
    rest = 65536
    for k in range(1, radius + 1):
        weights[k] = I(shares[k] / total * 65536 + 0.5)
        rest -= 2 * weights[k]
    weights[0] = rest
    return weights


@compiled()
def _center(sums, values, weight, half):
    for k in range(sums.size):
        sums[k] = np.int32(half + weight * np.int32(values[k]))


@compiled()
def _tap(sums, left, right, weight):
    for k in range(sums.size):
        sums[k] = np.int32(sums[k] + weight * np.int32(np.int32(left[k]) + np.int32(right[k])))


@compiled()
def _blur(source, target, radius, ratio, height, width, channels):
    """Rows, then columns; in between there are 7 binary places."""
    weights = _kernel(radius, ratio)
    while radius > 0 and weights[radius] == 0:
        radius -= 1
    n, side = width * channels, radius * channels
    sums = np.empty(n, np.int32)
    wide = np.empty(n + 2 * side, np.int16)
    between = np.empty(height * n, np.int16)
    half = np.int32(1 << 8)
    for y in range(height):
        row, middle = source[y * n : (y + 1) * n], wide[side : side + n]
        for k in range(n):
            middle[k] = row[k]
        for x in range(radius):
            before = _reflected(x - radius, width) * channels
            after = _reflected(width + x, width) * channels
            for c in range(channels):
                wide[x * channels + c] = row[before + c]
                wide[side + n + x * channels + c] = row[after + c]
        _center(sums, middle, weights[0], half)
        for k in range(1, radius + 1):
            first, last = side - k * channels, side + k * channels
            _tap(sums, wide[first : first + n], wide[last : last + n], weights[k])
        into = between[y * n : (y + 1) * n]
        for k in range(n):
            into[k] = np.int16(sums[k] >> 9)
    half = np.int32(1 << 22)
    for y in range(height):
        _center(sums, between[y * n : (y + 1) * n], weights[0], half)
        for k in range(1, radius + 1):
            above, below = _reflected(y - k, height) * n, _reflected(y + k, height) * n
            _tap(sums, between[above : above + n], between[below : below + n], weights[k])
        out = target[y * n : (y + 1) * n]
        for k in range(n):
            out[k] = U(sums[k] >> 23)


@compiled()
def _grain(pixels, deviation, one, other, normal, height, width, channels):
    first = _hash(one)
    second = _hash(first ^ other)
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                at = (y * width + x) * channels + c
                bits = _noise(first, second, (c * height + y) * width + x)
                pixels[at] = U(_clip(np.floor(F(pixels[at]) + deviation * normal[bits >> 16] + F(0.5))))


@compiled()
def _tile_table(counts, limit, scale, table):
    """OpenCV's clahe.cpp, CLAHE_CalcLut_Body; ``counts`` are written to."""
    if limit > 0:
        excess = 0
        for v in range(256):
            if counts[v] > limit:
                excess += counts[v] - limit
                counts[v] = limit
        rest = excess % 256
        for v in range(256):
            counts[v] += excess // 256
        step = 256 // max(rest, 1)
        for k in range(rest):
            counts[k * step] += 1
    total = 0
    for v in range(256):
        total += counts[v]
        table[v] = _clip(np.rint(F(total) * scale))


@compiled()
def _between(length, size, tiles, low, high, part):
    """For every place, which tiles it lies between, and how far from the first it is."""
    inverse = F(1) / F(size)
    for x in range(length):
        place = F(x) * inverse - F(0.5)
        floor = np.floor(place)
        low[x] = max(I(floor), 0)
        high[x] = min(I(floor) + 1, tiles - 1)
        part[x] = place - floor


@compiled()
def _adapt(plane, result, clip, tiles, height, width):
    """OpenCV's clahe.cpp on one channel: its tiles' tables, between which pixels are interpolated."""
    extra = height % tiles != 0 or width % tiles != 0
    tall = (height + tiles - height % tiles) // tiles if extra else height // tiles
    wide = (width + tiles - width % tiles) // tiles if extra else width // tiles
    area = tall * wide
    limit = max(I(clip * area / 256), 1) if clip > 0 else 0
    scale = F(255) / F(area)
    tables = np.empty((tiles * tiles, 256), F)
    counts = np.empty(256, np.int64)
    for row in range(tiles):
        for column in range(tiles):
            for v in range(256):
                counts[v] = 0
            for y in range(row * tall, (row + 1) * tall):
                at = _reflected(y, height) * width
                for x in range(column * wide, (column + 1) * wide):
                    counts[plane[at + _reflected(x, width) if x >= width else at + x]] += 1
            _tile_table(counts, limit, scale, tables[row * tiles + column])
    left, right, across = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, F)
    top, bottom, down = np.empty(height, np.int64), np.empty(height, np.int64), np.empty(height, F)
    _between(width, wide, tiles, left, right, across)
    _between(height, tall, tiles, top, bottom, down)
    for y in range(height):
        above, below, ya = top[y] * tiles, bottom[y] * tiles, down[y]
        for x in range(width):
            v, xa = plane[y * width + x], across[x]
            one = tables[above + left[x], v] * (F(1) - xa) + tables[above + right[x], v] * xa
            other = tables[below + left[x], v] * (F(1) - xa) + tables[below + right[x], v] * xa
            result[y * width + x] = U(_clip(np.rint(one * (F(1) - ya) + other * ya)))


@compiled()
def _clahe(pixels, clip, tiles, each, height, width, channels):
    size = height * width
    plane, result = np.empty(size, U), np.empty(size, U)
    if each or channels == 1:
        for c in range(channels):
            for p in range(size):
                plane[p] = pixels[p * channels + c]
            _adapt(plane, result, clip, tiles, height, width)
            for p in range(size):
                pixels[p * channels + c] = result[p]
        return
    for p in range(size):
        plane[p] = U(_luma(pixels[3 * p], pixels[3 * p + 1], pixels[3 * p + 2]))
    _adapt(plane, result, clip, tiles, height, width)
    for p in range(size):
        change = np.int16(result[p]) - np.int16(plane[p])
        for c in range(3):
            pixels[3 * p + c] = U(min(max(pixels[3 * p + c] + change, 0), 255))
