"""What a study would cost and could see, found without torch and without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from trickbag import plan as planning
from trickbag.data.base import DataFacts
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.study.design import Space
from trickbag.study.jobs import compile_all, epochs_of, family, free_factors, runs_of, share
from trickbag.study.layout import BY_ARMS
from trickbag.study.power import noncentrality
from trickbag.study.protocol import Cell, Point, Question, Reading, Round, Seen
from trickbag.study.spec import StudySpec
from trickbag.study.statistics import POWER, guess_paired_sd, smallest_detectable
from trickbag.study.telling import tell

ASSUMED_ACCURACY = 80.0
"""Points; stands in for the accuracy that no run has shown yet."""


def outline(
    spec: StudySpec, facts: DataFacts | None = None, seconds: Callable[[Cell], float] | None = None
) -> dict[str, Any]:
    """Factors, runs, epochs, what sharing saves, and the smallest detectable effect, as JSON values.

    ``detectable_in_sd`` is in standard deviations of the difference of two runs with one seed, for the factor
    that is estimated worst; ``detectable_free_in_sd``, for factors that cost no training, in those of what
    such a factor changes within a run. Where no factor is trained the former is the latter, and
    ``detectable_points``, which guesses the noise of two runs, is more than it takes.

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
    compile_all(layout.arms, lambda recipe: planning.compile(recipe, facts, probe=False))
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
    trained, loose = _detectable(spec, space, free, question, rounds)
    # Where nothing is trained twice, what a free factor changes within a run is all there is to detect.
    in_sd = trained if any(key not in free for key in space.keys) else loose
    known = math.isfinite(in_sd)
    points = in_sd * guess_paired_sd(ASSUMED_ACCURACY, selection)
    return figures | {
        "detectable_in_sd": in_sd if known else None,
        "detectable_points": points if known else None,
        "detectable_free_in_sd": loose if math.isfinite(loose) else None,
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
        recipe = space.recipe(cell)
        return epochs_of(recipe) if unit == "epochs" else runs_of(recipe)

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
) -> tuple[float, float]:
    """Smallest detectable effects, infinite where the study could not estimate its noise.

    Returns:
        Of a factor that is trained, in standard deviations of the difference of two runs with one seed; of a
        free one, in standard deviations, over runs, of what it changes within a run.
    """
    if spec.design in BY_ARMS:
        seeds = len({point.seed for one in rounds for point in one.points})
        contrasts = spec.layout.contrasts
        # Arms that are read off one run are no replicates of each other.
        trained = len(share(spec.layout.arms))
        loose = any(contrast.factor in free for contrast in contrasts)
        return (
            smallest_detectable(
                1.0, seeds, len(contrasts), trained, spec.alpha, shared=spec.design != "ladder"
            ),
            smallest_detectable(1.0, seeds, len(contrasts), 2, spec.alpha) if loose else math.inf,
        )
    return planned(rounds[-1].points if rounds else (), space.keys, free, spec.alpha)


def planned(
    points: Sequence[Point], factors: Sequence[str], free: Collection[str], alpha: float
) -> tuple[float, float]:
    """Smallest detectable effects of a design that is judged by a model, as :func:`_detectable` returns them.

    The model is the one of the analysis (:func:`trickbag.study.regression.fit_factors`), interactions
    included: its degrees of freedom, the factors that it can tell apart as the family, and of the trained
    ones the one that is estimated worst.
    """
    if not points:
        return math.inf, math.inf
    import numpy as np

    from trickbag.study.readings import Runs
    from trickbag.study.strata import CLEAN_DF, model, reader, within_runs

    runs = Runs([Reading(point, 0.0) for point in points], factors, free, True)
    fitted = model(runs.x.tobytes(), runs.x.shape[1], runs.block, True)
    told = np.isfinite(fitted.scale)
    read = [bool(runs.free) and reader(settings, False) is not None for settings, _ in runs.patterns()]
    family = int(told.sum()) + (len(runs.free) if any(read) else 0)
    if not family:
        return math.inf, math.inf
    trained = loose = math.inf
    df = (fitted.clean if fitted.clean.df >= CLEAN_DF else fitted.error).df
    if told.any() and df > 0:
        # A paired difference has twice a run's variance.
        trained = math.sqrt(fitted.scale[told].max() / 2) * noncentrality(df, alpha / family, POWER)
    if any(read):
        _, scale, error, _ = within_runs(runs.x[read][:, told])
        if error.df > 0:
            loose = math.sqrt(scale[0]) * noncentrality(error.df, alpha / family, POWER)
    return trained, loose


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
