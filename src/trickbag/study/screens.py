"""Screening designs: which recipes to train so that many factors are judged by few runs.

Plackett-Burman designs with full foldover; D-optimal ones where some recipes cannot be trained. They are
ours because pyDOE 1.6 knows no design of 28, 36, 44 or 52 runs, has no way to forbid cells of a two-level
design short of listing all ``2**k`` candidates, and imports SciPy before it can answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

from trickbag.errors import StudyError
from trickbag.study.aliasing import Aliases, aliases, aliases_of
from trickbag.study.exchange import check_rank, d_optimal
from trickbag.study.protocol import Cell, Point, Question, Round, Seen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Ints = NDArray[np.intp]

__all__ = [
    "Aliases",
    "Screen",
    "aliases",
    "aliases_of",
    "blocks",
    "d_optimal",
    "foldover",
    "lay_out_screen",
    "plackett_burman",
]

_ROWS = {
    16: ((15,), "++++-+-++--+---"),
    28: ((3, 3, 3), "+-++++----+---+--+++-+-++-+"),
    32: ((31,), "----+-+-+++-++---+++++--++-+--+"),
    36: ((35,), "-+-+++---+++++-+++--+----+-+-++--+-"),
}
"""First rows of Plackett and Burman 1946 that are not quadratic residues, and the group that shifts them."""


def plackett_burman(factors: int) -> Bools:
    """The Plackett-Burman design for so many factors; its last row has all of them off.

    Any two columns are orthogonal, and each is on in half of the rows. The designs are those of the paper, up
    to the order of rows and the sign of the middle column of 40 runs. Rows are distinct, also when folded
    over, for three or more factors.

    Args:
        factors: 1 or more.

    Returns:
        Array ``(runs, factors)``, bool. ``runs`` is the smallest multiple of 4 greater than ``factors``, for
        up to 47 factors, and beyond the smallest one that Paley's construction or doubling reaches.

    Raises:
        StudyError: no factors.

    Source:
        Plackett and Burman 1946, The design of optimum multifactorial experiments, Biometrika 33(4).
    """
    if factors < 1:
        raise StudyError(f"a screen of {factors} factors", expected="one or more")
    runs = 4 * (factors // 4 + 1)
    while (design := _saturated(runs)) is None:
        runs += 4
    return design[:, :factors].copy()


@lru_cache(maxsize=64)
def _saturated(runs: int) -> Bools | None:
    """The design of ``runs - 1`` columns; None if no construction here reaches it."""
    import numpy as np

    shape: tuple[int, ...]
    if runs in _ROWS:
        shape, signs = _ROWS[runs]
        first = np.array([sign == "+" for sign in signs])
    elif (q := runs - 1) % 4 == 3 and all(q % d for d in range(2, math.isqrt(q) + 1)):
        shape, squares = (q,), {i * i % q for i in range(q)}
        first = np.array([i in squares for i in range(q)])
    elif runs % 8 == 0 and (half := _saturated(runs // 2)) is not None:
        middle = np.zeros((runs // 2, 1), bool)
        return np.vstack([np.hstack([half, ~middle, ~half]), np.hstack([half, middle, half])])
    else:
        return None
    axes = tuple(range(len(shape)))
    rows = [np.roll(first.reshape(shape), shift, axes).ravel() for shift in np.ndindex(shape)]
    return np.vstack([*rows, np.zeros(runs - 1, bool)])


def foldover(design: Bools) -> Bools:
    """The design above its mirror image: row ``i + n`` is row ``i`` with every factor switched.

    Main effects are then clear of all two-factor interactions.

    Source:
        Box and Wilson 1951, J. R. Stat. Soc. B 13(1); Box and Hunter 1961, Technometrics 3(3).
    """
    import numpy as np

    return np.vstack([design, ~design])


def blocks(design: Bools, count: int) -> Ints:
    """A block for each row, so that switching a factor is confounded with no block as far as can be.

    Row ``i`` and row ``i + runs / 2`` stay together: a row and its mirror image keep every main effect
    orthogonal to blocks. Blocks differ in size by one pair at most, and the first pairs stay in block order.
    With an odd number of rows each goes by itself.

    Args:
        design: ``(runs, factors)``, bool, as from :func:`foldover` or :func:`d_optimal`.
        count: number of blocks, at most that of pairs.

    Returns:
        Array ``(runs,)`` of 0 to ``count - 1``.

    Raises:
        StudyError: more blocks than pairs.
    """
    import numpy as np

    runs, factors = design.shape
    size = 1 if runs % 2 else 2
    n = runs // size
    if not 1 <= count <= n:
        raise StudyError(f"{count} blocks for {n} pairs of runs", expected=f"1 to {n}", fix="use fewer seeds")
    units = np.where(design, 1.0, -1.0).reshape(size, n, factors)
    totals = units.sum(0)
    rows = [row.tobytes() for row in design]
    twins = np.zeros((n, n), bool)
    for i, j in combinations(range(n), 2):
        twins[i, j] = twins[j, i] = bool(set(rows[i::n]) & set(rows[j::n]))
    own = np.arange(n) % count
    for _ in range(10 * n):
        sums = np.stack([totals[own == b].sum(0) for b in range(count)])
        crowd = np.stack([twins[:, own == b].sum(1) for b in range(count)], 1)
        d = totals[None] - totals[:, None]
        s = sums[own]
        change = 2 * ((d * (s[:, None] - s[None])).sum(-1) + (d * d).sum(-1))
        stay = crowd[np.arange(n), own]
        swapped = crowd[:, own] + crowd[:, own].T - 2 * twins - stay[:, None] - stay[None]
        change = np.where(own[:, None] == own[None], 0.0, change + 1e3 * swapped)
        one, other = divmod(int(change.argmin()), n)
        if change[one, other] > -1e-9:
            break
        own[one], own[other] = own[other], own[one]
    return np.tile(own, size)


def free_settings(question: Question) -> tuple[Cell, ...]:
    """Settings of the free factors at which every trained run is read, none and all of them included.

    All of them for up to two free factors, otherwise a folded Plackett-Burman design.
    """
    free = [key for key in question.factors if key in question.free]
    design = _complete(len(free)) if len(free) <= 2 else foldover(plackett_burman(len(free)))
    return tuple(_cell(row, free) for row in design)


def _complete(factors: int) -> Bools:
    import numpy as np

    levels = np.arange(2**factors)[:, None] >> np.arange(factors)
    return (levels & 1).astype(bool)


def _cell(row: Bools, keys: Sequence[str]) -> Cell:
    return frozenset(key for key, on in zip(keys, row, strict=True) if on)


def trained_rows(question: Question) -> Bools:
    """The screen of the factors that cost training: ``(runs, factors)``, row ``i + runs / 2`` mirrors ``i``.

    The first row has all of them off. All recipes of up to two factors; a folded Plackett-Burman design of
    more; a D-optimal one of as many runs if some of its recipes cannot be trained.

    Raises:
        StudyError: the recipes that can be trained do not tell the factors apart.
    """
    import numpy as np

    keys = [key for key in question.factors if key not in question.free]
    settings = free_settings(question)

    def allowed(row: Sequence[bool]) -> bool:
        cell = frozenset(key for key, on in zip(keys, row, strict=True) if on)
        return any(question.allowed(cell | setting) for setting in settings)

    if len(keys) <= 2:
        mirrored = _complete(len(keys))[[0, 1, 3, 2][: 2 ** len(keys)]]
        rows = mirrored[[allowed(row.tolist()) for row in mirrored]]
        if keys:
            check_rank(rows, keys)
        return rows
    design = foldover(np.roll(plackett_burman(len(keys)), 1, 0))
    if all(allowed(row.tolist()) for row in design):
        return design
    tries = 4 if len(keys) <= 12 else 1
    return d_optimal(len(design), len(keys), allowed, keys=keys, start=design, fixed=1, restarts=tries)


def lay_out_screen(
    question: Question,
    *,
    runs_budget: float | None = None,
    seeds: Sequence[int] | None = None,
    anchors: bool = True,
) -> tuple[Point, ...]:
    """Points of a screen. Seeds are its blocks: each trains a part of the rows, a row with its mirror image.

    With more seeds than pairs of rows, or fewer than three factors, each seed trains all rows. What a budget
    leaves over one screen goes to more blocks of the same rows, with seeds counted up from the last. Every
    run is read at the same settings of the free factors (those that are allowed with it).

    Args:
        question: its factors, free factors, allowed recipes and costs.
        runs_budget: in the unit of ``question.cost``, runs by default; it is not exceeded, and fewer seeds
            are used where it takes that. None for one screen over all seeds.
        seeds: those of ``question`` if None.
        anchors: train baseline and candidate with every seed, also where a block lacks them.

    Raises:
        StudyError: the budget does not hold one screen, or factors cannot be told apart.
    """
    rows = trained_rows(question)
    keys = [key for key in question.factors if key not in question.free]
    cells = [_cell(row, keys) for row in rows]
    ends = [frozenset[str](), frozenset(keys)] if anchors else []
    given = list(question.seeds if seeds is None else seeds)
    if not given:
        raise StudyError("a screen without seeds", expected="one or more")

    def lay(count: int) -> list[list[Cell]]:
        if len(keys) <= 2 or count > len(rows) // 2:
            return [[*dict.fromkeys([*ends, *cells])] for _ in range(count)]
        own = blocks(rows, count)
        return [
            [*dict.fromkeys([*ends, *(c for c, b in zip(cells, own, strict=True) if b == block)])]
            for block in range(count)
        ]

    def price(parts: Sequence[Sequence[Cell]]) -> float:
        return sum(question.cost(cell) for part in parts for cell in part)

    parts = lay(len(given))
    if runs_budget is not None:
        fits = [n for n in range(len(given), 0, -1) if price(lay(n)) <= runs_budget + 1e-9]
        if not fits:
            least = lay(1)
            raise StudyError(
                f"a folded screen of {len(keys)} factors trains {sum(map(len, least))} recipes, which cost "
                f"{price(least):g}; the budget is {runs_budget:g}",
                expected=f"a budget of {price(least):g} or more",
                fix="raise the budget, tie factors, or leave some out",
            )
        unit = parts = lay(fits[0])
        while price([*parts, unit[len(parts) % len(unit)]]) <= runs_budget + 1e-9 and price(unit) > 0:
            parts = [*parts, unit[len(parts) % len(unit)]]
    given += range(max(given) + 1, max(given) + 1 + max(0, len(parts) - len(given)))
    settings = free_settings(question)
    points = (
        Point(cell | setting, seed)
        for seed, part in zip(given, parts, strict=False)
        for cell in part
        for setting in settings
        if cell | setting in (frozenset(), question.all_on) or question.allowed(cell | setting)
    )
    return tuple(dict.fromkeys(points))


@dataclass(frozen=True)
class Screen:
    """One round: a folded screen over the seeds asked for, repeated as often as the budget allows."""

    def next(self, question: Question, seen: Sequence[Seen]) -> Round | None:
        """The screen, or None after it."""
        if seen:
            return None
        points = lay_out_screen(question, runs_budget=question.budget)
        seeds = list(dict.fromkeys(point.seed for point in points))
        sealed = tuple(Point(end, seed) for seed in seeds for end in (frozenset[str](), question.all_on))
        keys = [key for key in question.factors if key not in question.free]
        rows = trained_rows(question)
        half = len(rows) // 2
        why = {
            "recipes": len(rows),
            "runs": len({question.training(point) for point in points}),
            "seeds": seeds,
            "folded": len(rows) == 2 * half and bool((rows[:half] != rows[half:]).all()),
            "readings_of_a_run": len(free_settings(question)),
            "aliases": list(aliases(rows, keys).sentences),
        }
        return Round("screen", points, sealed, why)
