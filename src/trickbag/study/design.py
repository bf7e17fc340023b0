"""Factors and designs: which recipes a study trains, and which of their differences it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from trickbag.errors import Problem, StudyError, nearest
from trickbag.interactions import clash
from trickbag.plan import conflicts
from trickbag.recipe.diff import Change, apply_changes, diff
from trickbag.recipe.model import Recipe
from trickbag.study.statistics import Contrast
from trickbag.tricks.base import Trick

Design = Literal["ladder", "leave-one-out", "one-at-a-time"]
DESIGNS: tuple[str, ...] = get_args(Design)
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


@dataclass(frozen=True)
class Layout:
    """Everything that a design prescribes. Arms with equal recipes are one arm."""

    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]


def find_factors(
    baseline: Recipe, candidate: Recipe, ties: Iterable[Sequence[str]] = ()
) -> tuple[Factor, ...]:
    """The factors between two recipes; changes that cannot be made alone are tied together.

    Args:
        baseline: recipe without any factor.
        candidate: recipe with all of them.
        ties: groups of change keys to be tied as well.

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
            if _bound(first, second) or _bound(second, first):
                tie(i, j)
    members = {g: tuple(c for c, own in zip(changes, group, strict=True) if own == g) for g in group}
    return tuple(Factor(found) for found in members.values())


def _bound(first: Change, second: Change) -> bool:
    mine = [t for t in (first.before, first.after) if isinstance(t, Trick)]
    others = {t.kind for t in (second.before, second.after) if isinstance(t, Trick)}
    return any(other in trick.requires or clash(trick.kind, other) for trick in mine for other in others)


def lay_out(
    baseline: Recipe,
    candidate: Recipe,
    design: str,
    *,
    ties: Iterable[Sequence[str]] = (),
    order: Sequence[str] = (),
) -> Layout:
    """Arms and contrasts of a design.

    Args:
        baseline: recipe without any factor.
        candidate: recipe with all of them.
        design: ``ladder``, ``leave-one-out`` or ``one-at-a-time``.
        ties: groups of change keys that form one factor.
        order: factor keys in the order of a ladder's rungs; the rest follows.

    Raises:
        StudyError: unknown design or factor, equal recipes, or an arm whose tricks conflict.
    """
    if design not in DESIGNS:
        near = nearest(design, DESIGNS)
        fix = f"did you mean {near}?" if near else None
        raise StudyError(f"no design is called {design!r}", expected="one of " + ", ".join(DESIGNS), fix=fix)
    factors = find_factors(baseline, candidate, ties)
    keys = [factor.key for factor in factors]
    for key in order:
        if key not in keys:
            raise StudyError(f"--order: {key!r} is no factor", expected="one of " + ", ".join(keys))
    factors = tuple(sorted(factors, key=lambda f: order.index(f.key) if f.key in order else len(order)))
    keys = [factor.key for factor in factors]

    cells: list[tuple[str, tuple[str, ...]]]
    reads: list[tuple[str, tuple[str, ...], tuple[str, ...]]]
    everything = tuple(keys)
    if design == "ladder":
        rungs = [tuple(keys[:k]) for k in range(len(keys) + 1)]
        cells = [(f"+ {rung[-1]}" if rung else BASELINE, rung) for rung in rungs[:-1]]
        reads = [(key, rungs[k + 1], rungs[k]) for k, key in enumerate(keys)]
    elif design == "leave-one-out":
        less = {key: tuple(k for k in keys if k != key) for key in keys}
        cells = [(BASELINE, ()), *((f"without {key}", rest) for key, rest in less.items())]
        reads = [(key, everything, less[key]) for key in keys]
    else:
        cells = [(BASELINE, ()), *((f"+ {key}", (key,)) for key in keys)]
        reads = [(key, (key,), ()) for key in keys]
    named: dict[tuple[str, ...], str] = {}
    for name, on in [(BASELINE, ()), (CANDIDATE, everything), *cells]:
        named.setdefault(on, name)
    ordered = [*dict.fromkeys([on for _, on in cells] + [everything])]
    arms = []
    problems: list[Problem] = []
    for on in ordered:
        changes = [c for f in factors if f.key in on for c in f.changes]
        recipe = candidate if on == everything else apply_changes(baseline, changes)
        arms.append(Arm(named[on], on, recipe))
        problems += (
            Problem(f"{named[on]}: {p.what}", p.where, p.expected, p.fix) for p in conflicts(recipe.tricks)
        )
    if problems:
        raise StudyError(problems)
    contrasts = tuple(Contrast(key, named[plus], named[minus]) for key, plus, minus in reads)
    return Layout(factors, tuple(arms), contrasts)
