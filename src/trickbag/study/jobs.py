"""Which runs a layout needs: arms that differ only in how weights are read share one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from trickbag import plan as planning
from trickbag.engine.run import training_part
from trickbag.errors import PlanError, Problem
from trickbag.plan import Plan
from trickbag.recipe.model import Recipe
from trickbag.study.design import Arm, Space
from trickbag.study.protocol import Cell
from trickbag.tricks.base import Trick
from trickbag.tricks.stages import WeightsTrick


@dataclass
class Training:
    """One training recipe and the arms that are read off it.

    Attributes:
        recipe: trained once a seed; holds every averaged set of weights that its arms need.
        arms: names of the arms.
    """

    recipe: Recipe
    arms: list[str] = field(default_factory=list)


def free_factors(space: Space) -> frozenset[str]:
    """Factors that cost no training: one run, read with and without them, serves all their settings.

    Of passive factors that need different runs (two settings of one average), only the first is free; one
    that predicts with other trained models is not, since these must be trained.
    """
    free: list[str] = []
    for factor in space.factors:
        sides = (side for change in factor.changes for side in (change.before, change.after))
        if factor.passive and not any(isinstance(side, Trick) and side.sources() for side in sides):
            family = [frozenset[str](), frozenset((*free, factor.key)), *(frozenset({key}) for key in free)]
            if len(share([space.arm(cell) for cell in (*family, frozenset({factor.key}))])) == 1:
                free.append(factor.key)
    return frozenset(free)


def family(space: Space, cell: Cell, free: frozenset[str]) -> Training:
    """The training recipe that gives a cell and all that differ from it in free factors alone."""
    core = cell - free
    cells = [core, core | free, *(core | {key} for key in sorted(free))]
    found = share([space.arm(one) for one in dict.fromkeys(cells)])
    return found[0] if len(found) == 1 else Training(space.recipe(cell), [space.name(cell)])


def compile_all(arms: Iterable[Arm], compile: Callable[[Recipe], Plan]) -> dict[str, Plan]:
    """The plan of every arm by its name.

    Raises:
        PlanError: every problem of every arm.
    """
    plans: dict[str, Plan] = {}
    problems: dict[tuple[str, str | None], Problem] = {}
    for arm in arms:
        try:
            plans[arm.name] = compile(arm.recipe)
        except PlanError as error:
            for p in error.problems:
                where = f"{arm.name}, {p.where}" if p.where else arm.name
                problems.setdefault((p.what, p.where), Problem(p.what, where, p.expected, p.fix))
    if problems:
        raise PlanError(problems.values())
    return plans


def upstream(recipe: Recipe) -> list[Recipe]:
    """The recipes that one builds upon, with their own."""
    sources = [source for trick in recipe.tricks.values() for source in trick.sources().values()]
    direct = [planning.recipe_of(source) for source in sources if source.recipe is not None]
    return [found for one in direct for found in (one, *upstream(one))]


def epochs_of(recipe: Recipe) -> float:
    """Epochs of a run and of all that it builds upon, as if nothing of that were shared."""
    return float(sum(one.epochs for one in (recipe, *upstream(recipe))))


def runs_of(recipe: Recipe) -> float:
    """The run and all that it builds upon, as if nothing of that were shared."""
    return 1.0 + len(upstream(recipe))


def share(arms: Sequence[Arm]) -> list[Training]:
    """The fewest training recipes that serve all arms."""
    found: list[tuple[str, Training]] = []
    # Averages that complete themselves from images see them in the size of an evaluation.
    sized = any(trick.sample_size for arm in arms for trick in arm.recipe.tricks.of(WeightsTrick))
    for arm in arms:
        averages = arm.recipe.tricks.of(WeightsTrick)
        bare = arm.recipe.without(*(trick.kind for trick in averages))
        size = arm.recipe.evaluation if sized else None
        core = json.dumps([training_part(bare), size], sort_keys=True)
        for other, training in found:
            if other == core and all(training.recipe.tricks.get(t.kind, t) == t for t in averages):
                training.recipe = training.recipe.with_tricks(*averages)
                training.arms.append(arm.name)
                break
        else:
            found.append((core, Training(arm.recipe, [arm.name])))
    return [training for _, training in found]
