"""What happens to a batch of images, as data: one small program an image.

A program holds numbers only. Tricks draw it, on the host; a back end executes it, on any device. All
steps but the late ones act on uint8 values; each names the reference for what it gives, mostly Pillow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np


class Op(IntEnum):
    """Operations on one image, with what their arguments mean (positions in ``Step.args``).

    Gray images (one channel) have neither saturation nor hue: those two leave them alone.
    """

    IDENTITY = 0
    FLIP = 1
    """0: 1 to swap left and right; 1: 1 to swap top and bottom."""
    SHIFT = 2
    """Result[y, x] = source[y + top, x + left]. 0: top, 1: left, in pixels, maybe negative; 2: outside the
    source, 0 for zeros, 1 to mirror it without repeating the border."""
    AFFINE = 3
    """``Image.transform(size, AFFINE)``. 0 to 5: Pillow's (a, b, c, d, e, f), from result to source; 6:
    Pillow's number of the filter, 0 nearest, 2 bilinear, 3 bicubic; 7 to 9: fill, 0 to 255, a channel."""
    BRIGHTNESS = 4
    """``ImageEnhance.Brightness``. 0: factor."""
    CONTRAST = 5
    """``ImageEnhance.Contrast``. 0: factor."""
    POSTERIZE = 6
    """``ImageOps.posterize``. 0: bits kept, 0 to 8."""
    SOLARIZE = 7
    """``ImageOps.solarize``: values from the threshold on are inverted. 0: threshold."""
    SOLARIZE_ADD = 8
    """Values below a threshold grow, up to 255 (AutoAugment's code, timm). 0: amount, 1: threshold."""
    INVERT = 9
    """``ImageOps.invert``."""
    AUTOCONTRAST = 10
    """``ImageOps.autocontrast``, no cutoff."""
    EQUALIZE = 11
    """``ImageOps.equalize``."""
    ADD = 12
    """Adds a color, rounds half up and cuts off. 0 to 2: red, green, blue, -255 to 255."""
    SATURATION = 13
    """``ImageEnhance.Color``. 0: factor."""
    HUE = 14
    """torchvision's ``adjust_hue`` of a Pillow image. 0: turns of the color circle, -0.5 to 0.5."""
    SHARPNESS = 15
    """``ImageEnhance.Sharpness``. 0: factor."""
    ERASE = 16
    """Fills a box. 0 to 3: top, left, height, width in pixels (height 0: nothing); 4: fill, 0 one color
    (5 to 7: its channels), 1 uniform noise, 2 normal noise (5 and 6: seeds, 0 to 2**31 - 1). Colors and noise
    are on the scale of the images at that moment: 0 to 255 before the table (noise uniform only), anything
    after it (uniform noise 0 to 1, normal noise standard)."""
    GAMMA = 17
    """torchvision's ``adjust_gamma`` of a Pillow image. 0: exponent, above 0; below 1 it brightens."""
    BLUR = 18
    """Gaussian blur, the image mirrored at its borders. 0: radius of the kernel in pixels; 1: weight of a
    neighbor as a share of the center's, exp(-1 / (2 sigma**2))."""
    NOISE = 19
    """Adds normal noise to every value, rounds half up and cuts off. 0: standard deviation, in levels; 1 and
    2: seeds, 0 to 2**31 - 1."""
    CLAHE = 20
    """OpenCV's contrast-limited adaptive histogram equalization. 0: clip limit, 0 for none; 1: tiles each
    way; 2: 1 to equalize each channel, 0 to add to all what equalizing Pillow's L adds to that."""
    SAVE = 21
    """Starts a mixture: keeps a copy of the image, and a float32 sum of weight * image. 0: weight."""
    ACCUMULATE = 22
    """Adds weight * image to the sum; the image is the kept copy again. 0: weight."""
    TAKE = 23
    """Ends a mixture: the image is the sum, cut off at 0 and 255 and rounded down."""


ARGS = 10
"""Arguments of a step."""
GEOMETRIC = frozenset({Op.FLIP, Op.SHIFT, Op.AFFINE})
"""Operations that move pixels, which boxes and masks have to follow."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation for each image of a batch.

    Attributes:
        ops: ``(batch,)`` uint8, values of ``Op``.
        args: ``(batch, ARGS)`` float64.
    """

    ops: np.ndarray
    args: np.ndarray

    @classmethod
    def of(cls, ops: np.ndarray | Op, *args: np.ndarray | float, batch: int | None = None) -> Self:
        """A step from one operation, or one for each image, and the first few arguments.

        Args:
            ops: an operation, or ``(batch,)`` of them.
            args: each a number, or ``(batch,)``.
            batch: number of images, where nothing else tells it.
        """
        arrays = [np.asarray(value) for value in (ops, *args)]
        if batch is None:
            batch = next(len(array) for array in arrays if array.ndim)
        table = np.zeros((batch, ARGS))
        for column, value in enumerate(arrays[1:]):
            table[:, column] = value
        return cls(np.ascontiguousarray(np.broadcast_to(arrays[0], (batch,)), dtype=np.uint8), table)

    def __len__(self) -> int:
        return len(self.ops)

    def part(self, share: slice) -> Step:
        """The step of some of the images."""
        return Step(self.ops[share], self.args[share])


@dataclass(frozen=True, eq=False)
class Program:
    """What happens to a batch of uint8 images.

    Attributes:
        steps: on uint8 values, in order.
        table: ``(channels, 256)`` float32, from values to what a model sees; None for value / 255.
        late: on the table's floats, in order; ``ERASE`` alone.
    """

    steps: tuple[Step, ...] = ()
    table: np.ndarray | None = None
    late: tuple[Step, ...] = ()

    def part(self, share: slice) -> Program:
        """The program of some of the images."""
        return Program(
            tuple(step.part(share) for step in self.steps),
            self.table,
            tuple(step.part(share) for step in self.late),
        )

    def floats(self, channels: int) -> np.ndarray:
        """The table, ``(channels, 256)`` float32."""
        if self.table is None:
            return np.tile(np.arange(256, dtype=np.float32) * np.float32(1 / 255), (channels, 1))
        return np.ascontiguousarray(np.broadcast_to(self.table, (channels, 256)), dtype=np.float32)


def check(program: Program, batch: int) -> None:
    """See that a program is for so many images, and that its mixtures begin.

    Raises:
        ValueError: it is not, or they do not.
    """
    for step in (*program.steps, *program.late):
        if len(step.ops) != batch or step.args.shape != (batch, ARGS):
            raise ValueError(f"a step for {len(step)} images meets {batch} of them")
    if not program.steps:
        return
    ops = np.stack([step.ops for step in program.steps])
    if ops.max(initial=0) >= Op.SAVE:
        first = (ops >= Op.SAVE).argmax(0)
        if not np.isin(ops[first, np.arange(batch)], (Op.SAVE, *range(Op.SAVE))).all():
            raise ValueError("a mixture starts with SAVE")


def linear(table: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Slopes and intercepts, ``(channels,)`` float32, that give a table to the bit; None if none do.

    ``value * slope + intercept`` in float32, each operation rounded, is what vector code does quickest.
    """
    return _linear(np.ascontiguousarray(table, dtype=np.float32).tobytes(), len(table))


@functools.lru_cache(maxsize=64)
def _linear(data: bytes, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    table, values = np.frombuffer(data, np.float32).reshape(channels, 256), np.arange(256, dtype=np.float32)
    intercepts = table[:, 0].copy()
    slopes = np.empty_like(intercepts)
    for channel, row in enumerate(table):
        guess = np.float32((np.float64(row[255]) - np.float64(row[0])) / 255)
        near = [guess]
        for way in (np.float32(np.inf), np.float32(-np.inf)):
            other = guess
            for _ in range(8):
                other = np.nextafter(other, way)
                near.append(other)
        found = [slope for slope in near if np.array_equal(values * slope + row[0], row)]
        if not found:
            return None
        slopes[channel] = found[0]
    return slopes, intercepts


def stacked(steps: Iterable[Step], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps as arrays that compiled code reads.

    Returns:
        Operations ``(steps, batch)`` uint8 and arguments ``(steps, batch, ARGS)`` float64.
    """
    steps = tuple(steps)
    if not steps:
        return np.zeros((0, batch), np.uint8), np.zeros((0, batch, ARGS))
    return np.stack([step.ops for step in steps]), np.stack([step.args for step in steps])
