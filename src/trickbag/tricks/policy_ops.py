"""The operations of augmentation policies as rows of numbers: what a name and a magnitude come to.

Everything here follows torchvision (``transforms/autoaugment.py``) or timm (``data/auto_augment.py``) on
Pillow images, in the arithmetic of Python and its order, so that steps equal theirs to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trickbag.imageops.program import ARGS, Op, Step

Fill = tuple[int, ...]
Row = tuple[Op, tuple[float, ...]]
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""
NAMES = {
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.SATURATION,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "SolarizeAdd": Op.SOLARIZE_ADD,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Invert": Op.INVERT,
    "Identity": Op.IDENTITY,
}
ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness")


@dataclass(frozen=True, eq=False)
class Table:
    """Operations to choose from by number. Number 0 leaves an image alone.

    Attributes:
        ops: ``(rows,)`` uint8.
        args: ``(rows, ARGS)`` float64.
    """

    ops: np.ndarray
    args: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Row], resample: int, fill: Fill) -> Table:
        """A table of ``rows``, which follow number 0; filter and fill are added where they matter."""
        rows = [(Op.IDENTITY, ()), *rows]
        args = np.zeros((len(rows), ARGS))
        for number, (op, values) in enumerate(rows):
            args[number, : len(values)] = values
            if op is Op.AFFINE:
                args[number, 6], args[number, 7:] = resample, fill
        return cls(np.array([op for op, _ in rows], np.uint8), args)

    def __len__(self) -> int:
        return len(self.ops) - 1

    def pick(self, uniform: np.ndarray) -> np.ndarray:
        """Numbers from 1 on, each as likely as the others, from numbers between 0 and 1 (exclusive)."""
        return 1 + (uniform * len(self)).astype(np.intp)

    def steps(self, rows: np.ndarray) -> tuple[Step, ...]:
        """Steps from numbers ``(steps, batch)``."""
        return tuple(Step(ops, args) for ops, args in zip(self.ops[rows], self.args[rows], strict=True))


def rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """The matrix of Pillow's ``Image.rotate``, counterclockwise around the center; (a, b, c, d, e, f)."""
    angle = -math.radians(degrees % 360.0)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return a, b, a * -x + b * -y + x, -b, a, -b * -x + a * -y + y


def affine(
    shear: tuple[float, float], translate: tuple[int, int], center: tuple[float, float]
) -> list[float]:
    """As torchvision's ``_get_inverse_affine_matrix`` at angle 0 and scale 1.

    Args:
        shear: (x, y) in degrees.
        translate: (x, y) in pixels.
        center: (x, y) in pixels.
    """
    sx, sy = math.radians(shear[0]), math.radians(shear[1])
    a = math.cos(-sy) / math.cos(sy)
    b = -math.cos(-sy) * math.tan(sx) / math.cos(sy)
    c = math.sin(-sy) / math.cos(sy)
    d = -math.sin(-sy) * math.tan(sx) / math.cos(sy) + 1.0
    x, y = -center[0] - translate[0], -center[1] - translate[1]
    return [d, -b, d * x + -b * y + center[0], -c, a, -c * x + a * y + center[1]]


def operation(name: str, magnitude: float, height: int, width: int) -> Row:
    """What torchvision's ``_apply_op`` does to Pillow images of a size in pixels."""
    degrees, center = math.degrees(math.atan(magnitude)), (width * 0.5, height * 0.5)
    match name:
        case "ShearX":
            return Op.AFFINE, tuple(affine((degrees, 0.0), (0, 0), (0, 0)))
        case "ShearY":
            return Op.AFFINE, tuple(affine((0.0, degrees), (0, 0), (0, 0)))
        case "TranslateX":
            return Op.AFFINE, tuple(affine((0.0, 0.0), (int(magnitude), 0), center))
        case "TranslateY":
            return Op.AFFINE, tuple(affine((0.0, 0.0), (0, int(magnitude)), center))
        case "Rotate":
            return Op.AFFINE, rotation(magnitude, height, width)
        case "Posterize" | "Solarize":
            return NAMES[name], (magnitude,)
    return NAMES[name], (1.0 + magnitude,) if name in ENHANCING else ()


def linspace(start: float, end: float, bins: int) -> list[float]:
    """float32 numbers from both ends, as the scalar code of ``torch.linspace`` computes them.

    torch's vector code differs from it in the last bit, and from one processor to the next.
    """
    first, last, index = np.float32(start), np.float32(end), np.arange(bins, dtype=np.float32)
    step = (last - first) / np.float32(bins - 1)
    rising, falling = first + step * index, last - step * index[::-1]
    values: list[float] = np.where(index < bins // 2, rising, falling).tolist()
    return values


REACH = {"rand": (0.3, 30.0, 0.9, 8, 4), "wide": (0.99, 135.0, 0.99, 8, 6), "mix": (0.3, 30.0, 0.9, 4, 4)}
"""By space: largest shear, degrees, change of a factor; most bits kept, bits lost."""


def space(name: str, bins: int, height: int, width: int) -> dict[str, tuple[list[float], bool]]:
    """As torchvision's ``_augmentation_space``: magnitudes of each operation, and whether they have a sign.

    Args:
        name: ``rand`` (RandAugment, AutoAugment), ``wide`` (TrivialAugmentWide) or ``mix`` (AugMix).
        bins: number of magnitudes.
        height: of the images, in pixels.
        width: likewise.
    """
    shear, degrees, change, kept, lost = REACH[name]
    sides = {"rand": (150.0 / 331.0 * width, 150.0 / 331.0 * height), "wide": (32.0, 32.0)}
    right, down = sides.get(name, (width / 3.0, height / 3.0))
    found = {} if name == "mix" else {"Identity": ([0.0], False)}
    ends = {"ShearX": shear, "ShearY": shear, "TranslateX": right, "TranslateY": down, "Rotate": degrees}
    ends |= dict.fromkeys(ENHANCING, change)
    found |= {each: (linspace(0.0, end, bins), True) for each, end in ends.items()}
    found["Posterize"] = ([float(kept - round(k / ((bins - 1) / lost))) for k in range(bins)], False)
    found["Solarize"] = (linspace(255.0, 0.0, bins), False)
    return found | {each: ([0.0], False) for each in ("AutoContrast", "Equalize")}


@lru_cache(maxsize=64)
def uniform_table(
    name: str, bins: int, levels: range, enhancing: bool, height: int, width: int, resample: int, fill: Fill
) -> Table:
    """Each operation of a space at each of some levels with each sign, once."""
    rows = []
    for each, (values, signed) in space(name, bins, height, width).items():
        if enhancing or each not in ENHANCING:
            for level in levels:
                value = values[level % len(values)]
                rows += [operation(each, v, height, width) for v in (value, -value if signed else value)]
    return Table.of(rows, resample, fill)


PAIRS = {
    "imagenet": """
        Posterize .4 8 Rotate .6 9, Solarize .6 5 AutoContrast .6 0, Equalize .8 0 Equalize .6 0,
        Posterize .6 7 Posterize .6 6, Equalize .4 0 Solarize .2 4, Equalize .4 0 Rotate .8 8,
        Solarize .6 3 Equalize .6 0, Posterize .8 5 Equalize 1 0, Rotate .2 3 Solarize .6 8,
        Equalize .6 0 Posterize .4 6, Rotate .8 8 Color .4 0, Rotate .4 9 Equalize .6 0,
        Equalize 0 0 Equalize .8 0, Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8, Rotate .8 8 Color 1 2,
        Color .8 8 Solarize .8 7, Sharpness .4 7 Invert .6 0, ShearX .6 5 Equalize 1 0,
        Color .4 0 Equalize .6 0, Equalize .4 0 Solarize .2 4, Solarize .6 5 AutoContrast .6 0,
        Invert .6 0 Equalize 1 0, Color .6 4 Contrast 1 8, Equalize .8 0 Equalize .6 0
        """,
    "cifar10": """
        Invert .1 0 Contrast .2 6, Rotate .7 2 TranslateX .3 9, Sharpness .8 1 Sharpness .9 3,
        ShearY .5 8 TranslateY .7 9, AutoContrast .5 0 Equalize .9 0, ShearY .2 7 Posterize .3 7,
        Color .4 3 Brightness .6 7, Sharpness .3 9 Brightness .7 9, Equalize .6 0 Equalize .5 0,
        Contrast .6 7 Sharpness .6 5, Color .7 7 TranslateX .5 8, Equalize .3 0 AutoContrast .4 0,
        TranslateY .4 3 Sharpness .2 6, Brightness .9 6 Color .2 8, Solarize .5 2 Invert 0 0,
        Equalize .2 0 AutoContrast .6 0, Equalize .2 0 Equalize .6 0, Color .9 9 Equalize .6 0,
        AutoContrast .8 0 Solarize .2 8, Brightness .1 3 Color .7 0, Solarize .4 5 AutoContrast .9 0,
        TranslateY .9 9 TranslateY .7 9, AutoContrast .9 0 Solarize .8 3, Equalize .8 0 Invert .1 0,
        TranslateY .7 9 AutoContrast .9 0
        """,
    "svhn": """
        ShearX .9 4 Invert .2 0, ShearY .9 8 Invert .7 0, Equalize .6 0 Solarize .6 6,
        Invert .9 0 Equalize .6 0, Equalize .6 0 Rotate .9 3, ShearX .9 4 AutoContrast .8 0,
        ShearY .9 8 Invert .4 0, ShearY .9 5 Solarize .2 6, Invert .9 0 AutoContrast .8 0,
        Equalize .6 0 Rotate .9 3, ShearX .9 4 Solarize .3 3, ShearY .8 8 Invert .7 0,
        Equalize .9 0 TranslateY .6 6, Invert .9 0 Equalize .6 0, Contrast .3 3 Rotate .8 4,
        Invert .8 0 TranslateY 0 2, ShearY .7 6 Solarize .4 8, Invert .6 0 Rotate .8 4,
        ShearY .3 7 TranslateX .9 3, ShearX .1 6 Invert .6 0, Solarize .7 2 TranslateY .6 7,
        ShearY .8 4 Invert .8 0, ShearX .7 9 TranslateY .8 3, ShearY .8 5 AutoContrast .7 0,
        ShearX .7 2 Invert .1 0
        """,
}
"""AutoAugment's policies, as in torchvision: name, probability and level (0 to 9, if it has one), twice."""


def pairs(policy: str) -> list[list[tuple[str, float, int]]]:
    """The pairs of operations of a policy: (name, probability, level) twice."""
    words = [pair.split() for pair in PAIRS[policy].split(",")]
    return [[(name, float(p), int(level)) for name, p, level in (pair[:3], pair[3:])] for pair in words]


@lru_cache(maxsize=64)
def pair_table(policy: str, height: int, width: int, resample: int, fill: Fill) -> tuple[Table, np.ndarray]:
    """AutoAugment: rows in the order of pair, first or second, sign; probabilities ``(2, pairs)``."""
    magnitudes = space("rand", 10, height, width) | {"Invert": ([0.0], False)}
    rows = []
    for name, _, level in (half for pair in pairs(policy) for half in pair):
        values, signed = magnitudes[name]
        value = values[level % len(values)]
        rows += [operation(name, v, height, width) for v in (value, -value if signed else value)]
    return Table.of(rows, resample, fill), np.array([[p for _, p, _ in pair] for pair in pairs(policy)]).T


class Level(NamedTuple):
    """How timm makes an argument of a level: offset + (if it falls, -) scale * level / 10, within limits."""

    op: Op
    scale: float = 0.0
    offset: float = 0.0
    falls: bool = False
    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    signed: bool = False
    column: int = 0


TIMM = {
    "AutoContrast": Level(Op.AUTOCONTRAST),
    "Equalize": Level(Op.EQUALIZE),
    "Invert": Level(Op.INVERT),
    "Rotate": Level(Op.AFFINE, 30.0, signed=True),
    "Posterize": Level(Op.POSTERIZE, 4, high=8, whole=True),
    "Solarize": Level(Op.SOLARIZE, 256, high=256, whole=True),
    "SolarizeAdd": Level(Op.SOLARIZE_ADD, 110, high=128, whole=True),
    **{name: Level(NAMES[name], 1.8, 0.1) for name in ENHANCING},
    "ShearX": Level(Op.AFFINE, 0.3, signed=True, column=1),
    "ShearY": Level(Op.AFFINE, 0.3, signed=True, column=3),
    "TranslateXRel": Level(Op.AFFINE, 0.45, signed=True, column=2),
    "TranslateYRel": Level(Op.AFFINE, 0.45, signed=True, column=5),
    "PosterizeIncreasing": Level(Op.POSTERIZE, 4, 4, falls=True, low=0, whole=True),
    "SolarizeIncreasing": Level(Op.SOLARIZE, 256, 256, falls=True, low=0, whole=True),
    **{f"{name}Increasing": Level(NAMES[name], 0.9, 1.0, low=0.1, signed=True) for name in ENHANCING},
}
DECREASING = tuple(TIMM)[:15]
"""timm's ``_RAND_TRANSFORMS``."""
INCREASING = tuple(f"{name}Increasing" if f"{name}Increasing" in TIMM else name for name in DECREASING)
"""timm's ``_RAND_INCREASING_TRANSFORMS``: those whose strength grows with the level, where timm has such."""
WEIGHTS = dict.fromkeys(INCREASING, 0.05) | {
    "Rotate": 3.0,
    "ShearX": 2.0,
    "ShearY": 2.0,
    "TranslateXRel": 1.0,
    "TranslateYRel": 1.0,
    **dict.fromkeys(("ColorIncreasing", "SharpnessIncreasing", "AutoContrast"), 0.25),
}
"""timm's ``_RAND_WEIGHTED_0``."""


class Levels:
    """Operations of timm for images of one size, by number from 1 on; number 0 leaves an image alone.

    Args:
        names: keys of ``TIMM``.
        height: of the images, in pixels.
        width: likewise.
        fill: 0 to 255, 3 numbers.
    """

    def __init__(self, names: tuple[str, ...], height: int, width: int, fill: Fill) -> None:
        rules = (Level(Op.IDENTITY), *(TIMM[name] for name in names))
        columns = [np.array(column) for column in zip(*rules, strict=True)]
        ops, self.scale, self.offset, falls, self.low, self.high, self.whole, signed, self.column = columns
        self.ops = ops.astype(np.uint8)
        self.affine = self.ops == Op.AFFINE
        turn = np.where(falls, -1.0, 1.0)
        self.turn = np.stack([turn, np.where(signed, -turn, turn)])
        self.extent = np.select([self.column == 2, self.column == 5], [width, height], 1.0)
        self.base = np.zeros((len(rules), ARGS))
        self.base[self.affine] = (1, 0, 0, 0, 1, 0, 0, *fill)
        self.base[self.ops == Op.SOLARIZE_ADD, 1] = 128
        self.rotate = 1 + names.index("Rotate") if "Rotate" in names else -1
        self.size = height, width

    def steps(
        self, chosen: np.ndarray, level: np.ndarray | float, negative: np.ndarray, resample: np.ndarray
    ) -> tuple[Step, ...]:
        """Steps from arrays ``(steps, batch)``.

        Args:
            chosen: numbers of operations.
            level: 0 to 10, or beyond.
            negative: True to turn the sign of those that have one.
            resample: Pillow's numbers of filters.
        """
        x = np.broadcast_to(level, chosen.shape) / 10.0 * self.scale[chosen]
        x = np.where(self.whole[chosen], np.floor(x), x)
        x = self.offset[chosen] + self.turn[negative.astype(np.intp), chosen] * x
        x = np.minimum(np.maximum(x, self.low[chosen]), self.high[chosen]) * self.extent[chosen]
        args = self.base[chosen]
        np.put_along_axis(args, self.column[chosen][..., None], x[..., None], axis=2)
        args[..., 6] = np.where(self.affine[chosen], resample, 0)
        turned = chosen == self.rotate
        if turned.any():
            args[turned, :6] = [rotation(degrees, *self.size) for degrees in x[turned].tolist()]
        return tuple(Step(ops, each) for ops, each in zip(self.ops[chosen], args, strict=True))


@lru_cache(maxsize=64)
def timm_levels(names: tuple[str, ...], height: int, width: int, fill: Fill) -> Levels:
    """``Levels``, made once."""
    return Levels(names, height, width, fill)
