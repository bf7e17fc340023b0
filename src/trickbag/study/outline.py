"""What a study would cost and could see, found without torch and without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trickbag.data.base import DataFacts
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.study.design import Space
from trickbag.study.jobs import family, free_factors, share
from trickbag.study.layout import BY_ARMS
from trickbag.study.protocol import Cell, Question, Reading, Round, Seen
from trickbag.study.spec import StudySpec
from trickbag.study.statistics import guess_paired_sd, smallest_detectable
from trickbag.study.telling import tell

ASSUMED_ACCURACY = 80.0
"""Points; stands in for the accuracy that no run has shown yet."""


def outline(
    spec: StudySpec, facts: DataFacts | None = None, seconds: Callable[[Cell], float] | None = None
) -> dict[str, Any]:
    """Factors, runs, epochs, what sharing saves, and the smallest detectable effect, as JSON values.

    Args:
        spec: the question.
        facts: of the data; None looks.
        seconds: predicted time of a run of a cell; None if nothing has been timed. A budget of time can be
            laid out only with it.

    Raises:
        StudyError, DataError: the study makes no sense, its budget is too small, or there is no such data.
    """
    if facts is None:
        from trickbag.data import facts as look

        facts = look(spec.data)
    layout = spec.layout
    space, free = layout.space, free_factors(layout.space)
    selection = facts.sizes["selection"]
    figures: dict[str, Any] = {
        "design": spec.design,
        "factors": [
            {"key": f.key, "label": f.label, "passive": f.passive, "free": f.key in free}
            for f in layout.factors
        ],
        "budget": str(spec.budget) if spec.budget else None,
        "selection_images": selection,
    }
    question = ask(spec, space, free, seconds)
    if question is None:
        return figures | {"needs_timing": True}
    first = spec.protocol().next(question, ())
    rounds = [] if first is None else [first]
    figures |= _counts(spec, space, free, rounds, facts)
    if spec.design == "auto":
        rounds = _auto_rounds(question)
        figures |= _counts(spec, space, free, rounds, facts)
        figures["stages"] = _auto_stages(question, rounds)
        figures["runs"] = sum(stage["runs"] for stage in figures["stages"])
    in_sd = _detectable(spec, space, free, question, rounds)
    known = math.isfinite(in_sd)
    points = in_sd * guess_paired_sd(ASSUMED_ACCURACY, selection)
    return figures | {
        "detectable_in_sd": in_sd if known else None,
        "detectable_points": points if known else None,
    }


def ask(
    spec: StudySpec, space: Space, free: frozenset[str], seconds: Callable[[Cell], float] | None
) -> Question | None:
    """The question as the design sees it; None if its budget is one of time and nothing was timed."""
    unit = spec.budget.unit if spec.budget else "runs"
    if unit == "seconds" and seconds is None:
        return None

    def cost(cell: Cell) -> float:
        if unit == "seconds" and seconds is not None:
            return seconds(cell)
        return float(space.recipe(cell).epochs) if unit == "epochs" else 1.0

    return Question(
        factors=space.keys,
        free=free,
        allowed=lambda cell: not space.problems(cell),
        cost=cost,
        budget=spec.budget.amount if spec.budget else None,
        seeds=spec.seeds,
        delta=spec.delta,
        alpha=spec.alpha,
        price=spec.price,
    )


def _counts(
    spec: StudySpec, space: Space, free: frozenset[str], rounds: list[Round], facts: DataFacts
) -> dict[str, Any]:
    """Runs, steps and epochs of some rounds: the naive sum, and what is left of it."""
    points = dict.fromkeys(point for one in rounds for point in one.points)
    cells = list(dict.fromkeys(point.cell for point in points))
    seeds = list(dict.fromkeys(point.seed for point in points))
    arms = {cell: space.arm(cell) for cell in cells}
    trained: dict[Cell, tuple[int, Recipe]] = {}
    if spec.design in BY_ARMS:
        for number, training in enumerate(share([arms[cell] for cell in cells])):
            trained |= {c: (number, training.recipe) for c in cells if arms[c].name in training.arms}
    else:
        cores = list(dict.fromkeys(cell - free for cell in cells))
        families = {core: family(space, core, free).recipe for core in cores}
        trained = {cell: (cores.index(cell - free), families[cell - free]) for cell in cells}

    def steps(recipe: Recipe) -> int:
        return Context(recipe, facts).timeline.steps

    runs: dict[tuple[int, int], Recipe] = {}
    forked = 0.0
    for one in rounds:
        # Only runs of one round wait for each other.
        new = {(trained[p.cell][0], p.seed): trained[p.cell][1] for p in one.points}
        forked += _forked_epochs({key: recipe for key, recipe in new.items() if key not in runs}, facts)
        runs |= new
    naive = sum(arms[p.cell].recipe.epochs for p in points)
    epochs = sum(recipe.epochs for recipe in runs.values())
    return {
        "arms": [arms[cell].name for cell in cells],
        "seeds": len(seeds),
        "naive_runs": len(points),
        "runs": len(runs),
        "steps": sum(steps(recipe) for recipe in runs.values()),
        "naive_epochs": naive,
        "shared_epochs": naive - epochs,
        "forked_epochs": forked,
        "epochs": epochs - forked,
    }


def _forked_epochs(runs: dict[tuple[int, int], Recipe], facts: DataFacts) -> float:
    """Epochs that runs need not train because another one begins alike."""
    from trickbag.plan import Plan
    from trickbag.study.forks import assign, saved_epochs

    saved = 0.0
    known: dict[tuple[int, ...], float] = {}
    for seed in dict.fromkeys(seed for _, seed in runs):
        recipes = {number: recipe for (number, s), recipe in runs.items() if s == seed}
        key = tuple(sorted(recipes))
        if key not in known:
            plans = {
                str(number): Plan(recipe, facts, Context(recipe, facts).timeline)
                for number, recipe in recipes.items()
            }
            least = min(plan.timeline.steps_per_epoch for plan in plans.values())
            known[key] = saved_epochs(plans, assign(plans, least=least))
        saved += known[key]
    return saved


def _detectable(
    spec: StudySpec, space: Space, free: frozenset[str], question: Question, rounds: list[Round]
) -> float:
    """Smallest detectable effect of a factor, in standard deviations of a paired difference."""
    if spec.design in BY_ARMS:
        seeds = len({point.seed for one in rounds for point in one.points})
        layout = spec.layout
        return smallest_detectable(1.0, seeds, len(layout.contrasts), len(layout.arms), spec.alpha)
    from trickbag.study.power import noncentrality

    points = rounds[-1].points if rounds else ()
    runs = {question.training(point) for point in points}
    trained = [key for key in space.keys if key not in free]
    blocks = len({seed for _, seed in runs})
    df = len(runs) - blocks - len(trained)
    if df < 1:
        return math.inf
    # The difference of two means of half of the runs each; a paired difference has twice a run's variance.
    return math.sqrt(2 / len(runs)) * noncentrality(df, spec.alpha / max(1, len(space.keys)), 0.8)


def _auto_rounds(question: Question) -> list[Round]:
    """The rounds of the adaptive design that do not depend on what is measured: pilot and screen."""
    from trickbag.study.auto import Auto

    seen: list[Seen] = []
    while len(seen) < 2 and (one := Auto().next(question, seen)) is not None:
        seen.append(Seen(one, tuple(Reading(point, None) for point in one.points)))
    return [one.round for one in seen]


def _auto_stages(question: Question, rounds: list[Round]) -> list[dict[str, Any]]:
    """What each stage may spend; how the race and the confirmation share the rest depends on results."""
    from trickbag.study.auto import Auto

    found: list[dict[str, Any]] = []
    done = 0.0
    for number, one in enumerate(rounds, start=1):
        spent = question.spent(rounds[:number])
        runs = len({question.training(p) for r in rounds[:number] for p in r.points})
        earlier = sum(stage["runs"] for stage in found)
        found.append({"stage": one.stage, "runs": runs - earlier, "cost": spent - done, "text": tell(one)})
        done = spent
    budget = question.budget or done
    mean = done / max(1, sum(stage["runs"] for stage in found))
    confirm = min(Auto().confirm * budget, budget - done)
    later = {
        "refine": (budget - done - confirm, "race single changes of the best recipe so far, while it pays"),
        "confirm": (confirm, "baseline, final recipe and candidate on fresh seeds; opens the test split"),
    }
    return found + [
        {"stage": name, "runs": int(cost / mean + 1e-9), "cost": cost, "text": text}
        for name, (cost, text) in later.items()
    ]
