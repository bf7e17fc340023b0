"""Factorial designs: every combination of a few factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from trickbag.errors import StudyError, nearest
from trickbag.study.protocol import Cell, Point, Question, Round, Seen

MOST_CELLS = 2**10


@dataclass(frozen=True)
class Factorial:
    """All ``2**k`` combinations of the crossed factors with each seed, in one round.

    Baseline and candidate are trained besides. Combinations that cannot be trained are left out.

    Attributes:
        crossed: keys of the factors to be combined; all of them if empty.
        others_on: whether the other factors are on, as in the candidate, or off, as in the baseline.
    """

    crossed: tuple[str, ...] = ()
    others_on: bool = True

    def cells(self, question: Question) -> tuple[Cell, ...]:
        """The recipes: baseline, candidate, then the others in binary order of the crossed factors.

        Raises:
            StudyError: an unknown factor, too many of them, or crossed factors that are only ever switched
                together.
        """
        from trickbag.study.exchange import check_rank

        for key in self.crossed:
            if key not in question.factors:
                near = nearest(key, question.factors)
                raise StudyError(
                    f"{key!r} is no factor of this study",
                    expected="one of " + ", ".join(question.factors),
                    fix=f"did you mean {near!r}?" if near else None,
                )
        keys = [key for key in question.factors if not self.crossed or key in self.crossed]
        if 2 ** len(keys) > MOST_CELLS:
            raise StudyError(
                f"a factorial of {len(keys)} factors has {2 ** len(keys):,} recipes",
                expected=f"{MOST_CELLS:,} or fewer: {MOST_CELLS.bit_length() - 1} factors",
                fix="cross the few whose interactions matter, or use the screen design for main effects",
            )
        rest = question.all_on - frozenset(keys) if self.others_on else frozenset[str]()
        settings = product((False, True), repeat=len(keys))
        grid = [rest | {k for k, on in zip(keys, row, strict=True) if on} for row in settings]
        ends = [frozenset[str](), question.all_on]
        crossed = [cell for cell in grid if cell in ends or question.allowed(cell)]
        if keys:
            import numpy as np

            check_rank(np.array([[key in cell for key in keys] for cell in crossed]), keys)
        return tuple(dict.fromkeys([*ends, *crossed]))

    def next(self, question: Question, seen: Sequence[Seen]) -> Round | None:
        """All recipes with all seeds; with a budget, with as many of the seeds as fit.

        Raises:
            StudyError: as in :meth:`cells`, or the budget does not hold one seed.
        """
        if seen:
            return None
        cells, seeds = self.cells(question), question.seeds
        if question.budget is not None:
            each = question.spent([Round("", tuple(Point(cell, 0) for cell in cells))])
            fit = int(question.budget / each + 1e-9) if each > 0 else len(seeds)
            if fit < 1:
                raise StudyError(
                    f"the budget of {question.budget:g} does not hold one seed of {len(cells)} recipes",
                    expected=f"{each:g} or more",
                    fix="cross fewer factors, or use the screen design",
                )
            seeds = seeds[:fit]
        sealed = tuple(Point(end, seed) for seed in seeds for end in cells[:2])
        points = tuple(Point(cell, seed) for seed in seeds for cell in cells)
        why = {"recipes": len(cells), "seeds": list(seeds), "others_on": self.others_on}
        return Round("factorial", points, tuple(dict.fromkeys(sealed)), why)
