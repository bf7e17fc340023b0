"""Factors, and the recipes between baseline and candidate that they span."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from trickbag.errors import Problem, StudyError, nearest
from trickbag.interactions import clash
from trickbag.plan import conflicts
from trickbag.recipe.diff import Change, apply_changes, diff
from trickbag.recipe.model import Recipe
from trickbag.study.protocol import Cell
from trickbag.tricks.base import Trick

BASELINE, CANDIDATE = "baseline", "candidate"


@dataclass(frozen=True)
class Factor:
    """One or more changes that are made together.

    Attributes:
        changes: entries of ``diff(baseline, candidate)``.
    """

    changes: tuple[Change, ...]

    @property
    def key(self) -> str:
        """Short name: the keys of its changes."""
        return " & ".join(change.key for change in self.changes)

    @property
    def label(self) -> str:
        """The changes in a few words."""
        return " & ".join(change.label for change in self.changes)

    @property
    def passive(self) -> bool:
        """True if the factor acts only on averaged weights or when predicting."""
        return all(change.passive for change in self.changes)


@dataclass(frozen=True)
class Arm:
    """One recipe of a study: the baseline with some of the factors."""

    name: str
    on: tuple[str, ...]
    recipe: Recipe

    @property
    def cell(self) -> Cell:
        """Its factors as a cell of the design."""
        return frozenset(self.on)


@dataclass(frozen=True)
class Space:
    """Every recipe that a study may train: each factor on or off.

    Attributes:
        baseline: recipe without any factor.
        candidate: recipe with all of them.
        factors: in a fixed order.
        names: what some cells are called; the others are named after what is on or off.
    """

    baseline: Recipe
    candidate: Recipe
    factors: tuple[Factor, ...]
    names: Mapping[Cell, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the factors."""
        return tuple(factor.key for factor in self.factors)

    def recipe(self, cell: Cell) -> Recipe:
        """The recipe of a cell."""
        if cell == frozenset(self.keys):
            return self.candidate
        return apply_changes(self.baseline, [c for f in self.factors if f.key in cell for c in f.changes])

    def arm(self, cell: Cell) -> Arm:
        """The arm of a cell."""
        return Arm(self.name(cell), tuple(key for key in self.keys if key in cell), self.recipe(cell))

    def name(self, cell: Cell) -> str:
        """What a cell is called: the same in every study of these factors, but for ``names``."""
        if cell in self.names:
            return self.names[cell]
        on = [key for key in self.keys if key in cell]
        off = [key for key in self.keys if key not in cell]
        if not on:
            return BASELINE
        if not off:
            return CANDIDATE
        if len(off) <= 2 and len(off) <= len(on):
            return f"without {', '.join(off)}"
        if len(on) <= 2:
            return f"+ {', '.join(on)}"
        return f"mix {hashlib.sha256(chr(10).join(on).encode()).hexdigest()[:10]}"

    def problems(self, cell: Cell) -> tuple[Problem, ...]:
        """Why the tricks of a cell cannot be in one bag; what depends on data or model is not seen here."""
        return tuple(
            Problem(f"{self.name(cell)}: {p.what}", p.where, p.expected, p.fix)
            for p in conflicts(self.recipe(cell).tricks)
        )


def find_factors(
    baseline: Recipe, candidate: Recipe, ties: Iterable[Sequence[str]] = (), *, apart: bool = False
) -> tuple[Factor, ...]:
    """The factors between two recipes; changes that cannot be made alone are tied together.

    Args:
        baseline: recipe without any factor.
        candidate: recipe with all of them.
        ties: groups of change keys to be tied as well.
        apart: do not tie by yourself; the design must then avoid recipes that cannot be.

    Raises:
        StudyError: the recipes do not differ, or a tie names no change.
    """
    changes = diff(baseline, candidate)
    if not changes:
        raise StudyError("baseline and candidate are the same recipe", expected="at least one difference")
    keys = [change.key for change in changes]
    group = list(range(len(changes)))

    def tie(first: int, second: int) -> None:
        low, high = sorted((group[first], group[second]))
        group[:] = [low if g == high else g for g in group]

    for wanted in ties:
        for key in wanted:
            if key not in keys:
                near = nearest(key, keys)
                fix = f"did you mean {near}?" if near else None
                raise StudyError(
                    f"--tie: {key!r} is no factor", expected="one of " + ", ".join(keys), fix=fix
                )
            tie(keys.index(wanted[0]), keys.index(key))
    for i, first in enumerate(changes):
        for j, second in enumerate(changes[:i]):
            if not apart and (_bound(first, second) or _bound(second, first)):
                tie(i, j)
    members = {g: tuple(c for c, own in zip(changes, group, strict=True) if own == g) for g in group}
    return tuple(Factor(found) for found in members.values())


def _bound(first: Change, second: Change) -> bool:
    mine = [t for t in (first.before, first.after) if isinstance(t, Trick)]
    others = {t.kind for t in (second.before, second.after) if isinstance(t, Trick)}
    return any(other in trick.requires or clash(trick.kind, other) for trick in mine for other in others)
