"""Fixed designs: which arms a ladder, leave-one-out or one-at-a-time trains, and what it compares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from trickbag.errors import Problem, StudyError, nearest
from trickbag.recipe.model import Recipe
from trickbag.study.design import BASELINE, CANDIDATE, Arm, Factor, Space, find_factors
from trickbag.study.protocol import Cell, Point, Question, Round, Seen
from trickbag.study.statistics import Contrast

DesignName = Literal["leave-one-out", "one-at-a-time", "ladder", "screen", "factorial", "auto"]
DESIGNS: tuple[str, ...] = get_args(DesignName)
BY_ARMS = ("leave-one-out", "one-at-a-time", "ladder")
"""Designs whose effects are differences of two arms; those of the others come from a model of all runs."""


@dataclass(frozen=True)
class Layout:
    """What is known of a design before anything is measured.

    Attributes:
        space: the recipes that it may train.
        arms: those that it trains for certain. Arms with equal recipes are one arm.
        contrasts: what is compared with what; empty where effects come from a model of all runs.
    """

    space: Space
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def factors(self) -> tuple[Factor, ...]:
        """The factors, in order."""
        return self.space.factors


def lay_out(
    baseline: Recipe,
    candidate: Recipe,
    design: str,
    *,
    ties: Iterable[Sequence[str]] = (),
    order: Sequence[str] = (),
    apart: bool = False,
) -> Layout:
    """Arms and contrasts of a design.

    Args:
        baseline: recipe without any factor.
        candidate: recipe with all of them.
        design: one of :data:`DESIGNS`.
        ties: groups of change keys that form one factor.
        order: factor keys in the order of a ladder's rungs; the rest follows.
        apart: do not tie factors that require or exclude each other.

    Raises:
        StudyError: unknown design or factor, equal recipes, or an arm whose tricks conflict.
    """
    if design not in DESIGNS:
        near = nearest(design, DESIGNS)
        fix = f"did you mean {near}?" if near else None
        raise StudyError(f"no design is called {design!r}", expected="one of " + ", ".join(DESIGNS), fix=fix)
    factors = find_factors(baseline, candidate, ties, apart=apart)
    keys = [factor.key for factor in factors]
    for key in order:
        if key not in keys:
            raise StudyError(f"--order: {key!r} is no factor", expected="one of " + ", ".join(keys))
    factors = tuple(sorted(factors, key=lambda f: order.index(f.key) if f.key in order else len(order)))
    cells, reads = _cells(design, tuple(factor.key for factor in factors))
    everything = frozenset(factor.key for factor in factors)
    names: dict[Cell, str] = {}
    for name, cell in [(BASELINE, frozenset[str]()), (CANDIDATE, everything), *cells]:
        names.setdefault(cell, name)
    space = Space(baseline, candidate, factors, names)
    ordered = dict.fromkeys([cell for _, cell in cells] + [everything])
    problems: list[Problem] = [p for cell in ordered for p in space.problems(cell)]
    if problems:
        raise StudyError(problems)
    contrasts = tuple(Contrast(key, names[plus], names[minus]) for key, plus, minus in reads)
    return Layout(space, tuple(space.arm(cell) for cell in ordered), contrasts)


def _cells(design: str, keys: tuple[str, ...]) -> tuple[list[tuple[str, Cell]], list[tuple[str, Cell, Cell]]]:
    """Named cells, and for each factor the two cells whose difference it is."""
    everything, nothing = frozenset(keys), frozenset[str]()
    if design == "ladder":
        rungs = [frozenset(keys[:k]) for k in range(len(keys) + 1)]
        cells = [(BASELINE, nothing), *((f"+ {keys[k - 1]}", rungs[k]) for k in range(1, len(keys)))]
        return cells, [(key, rungs[k + 1], rungs[k]) for k, key in enumerate(keys)]
    if design == "leave-one-out":
        less = {key: everything - {key} for key in keys}
        cells = [(BASELINE, nothing), *((f"without {key}", rest) for key, rest in less.items())]
        return cells, [(key, everything, less[key]) for key in keys]
    if design == "one-at-a-time":
        cells = [(BASELINE, nothing), *((f"+ {key}", frozenset({key})) for key in keys)]
        return cells, [(key, frozenset({key}), nothing) for key in keys]
    return [(BASELINE, nothing)], []


@dataclass(frozen=True)
class Fixed:
    """A design whose arms are known beforehand: each with each seed, then the sealed split for two of them.

    Attributes:
        name: of the design.
        arms: their cells.
    """

    name: str
    arms: tuple[Cell, ...]

    def next(self, question: Question, seen: Sequence[Seen]) -> Round | None:
        """All arms with all seeds; with a budget, with as many of the seeds as fit.

        Raises:
            StudyError: the budget is too small for two seeds.
        """
        if seen:
            return None
        seeds = question.seeds
        if question.budget is not None:
            once = Round(self.name, tuple(Point(cell, 0) for cell in self.arms))
            each = question.spent([once])
            count = int(question.budget / each + 1e-9)
            if count < min(2, len(seeds)):
                raise StudyError(
                    f"the budget of {question.budget:g} is too small",
                    expected=f"{2 * each:g} or more: {each:g} for each of two seeds",
                    fix="give it more, or choose a smaller candidate or --design screen",
                )
            seeds = seeds[:count]
        points = tuple(Point(cell, seed) for seed in seeds for cell in self.arms)
        ends = (frozenset[str](), question.all_on)
        sealed = tuple(Point(cell, seed) for seed in seeds for cell in ends)
        return replace(Round(self.name, points, sealed), why={"seeds": list(seeds)})
