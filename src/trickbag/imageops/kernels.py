"""What the modules of compiled code share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest import mock

import numpy as np
from numba import njit
from numba.core import caching

F = np.float32
U = np.uint8
I = np.int64  # noqa: E741


def stamp(folder):
    """Hash of all code in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


STAMP = stamp(Path(__file__).parent)


def compiled(*signature):
    """Compile a function without holding the interpreter's lock, once after installation.

    numba's cache looks at the file that a function is in, not at those that it calls: a change there would
    go unnoticed. Here all files of this folder count.
    """

    def decorate(function):
        with mock.patch.object(caching._SourceFileBackedLocatorMixin, "get_source_stamp", return_value=STAMP):
            return njit(*signature, nogil=True, cache=True, error_model="numpy")(function)

    return decorate


@compiled()
def _clip(value):
    return min(max(value, F(0)), F(255))


@compiled()
def _copy(source, target):
    """A loop, because numba copies slices value by value."""
    for k in range(target.size):
        target[k] = source[k]


@compiled()
def _reflected(position, length):
    if length == 1:
        return 0
    around = position % (2 * (length - 1))
    return min(around, 2 * (length - 1) - around)


@compiled()
def _luma(red, green, blue):
    return np.floor((F(red) * F(19595) + F(green) * F(38470) + F(blue) * F(7471) + F(32768)) * F(2.0**-16))


@compiled()
def _hash(x):
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@compiled()
def _noise(first, second, position):
    return _hash(_hash(position ^ first) ^ second)
