"""How long two plans compute the same, bit for bit, if they are trained with one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import chain

from trickbag.plan import Plan
from trickbag.recipe.model import Recipe
from trickbag.tricks.base import Trick
from trickbag.tricks.stages import (
    FreezeTrick,
    MixControlTrick,
    MixTrick,
    ModelTrick,
    PredictTrick,
    ResolutionTrick,
    ScheduleTrick,
    StopTrick,
    Timeline,
    WeightsTrick,
)

FOLLOWED = (
    FreezeTrick,
    MixControlTrick,
    MixTrick,
    PredictTrick,
    ResolutionTrick,
    ScheduleTrick,
    StopTrick,
    WeightsTrick,
)
"""Interfaces whose tricks may differ between plans that begin alike: they are followed step by step."""
READ_BY_STEP = ("epochs", "image_size", "eval_size", "eval_resize", "evaluate_every", "tricks", "about")
"""Values of a recipe that count by what they do at each step; all others must be equal."""


def evaluation_steps(plan: Plan) -> frozenset[int]:
    """The numbers of updates after which the selection split is evaluated; the last is one of them."""
    timeline = plan.timeline
    every = max(1.0, plan.recipe.evaluate_every * timeline.steps_per_epoch)
    count = math.floor(timeline.steps / every)
    return frozenset({round(every * k) for k in range(1, count + 1)} | {timeline.steps})


def shared_steps(first: Plan, second: Plan) -> int:
    """Updates after which a run of ``second`` can go on from one of ``first``, as if it had been its own.

    After any number of updates up to this one, weights, optimizer state, averages and logged rows of a run
    of ``second`` follow to the bit from those of a run of ``first`` with equal data, seed, device and code.
    Not symmetric: the first run must keep every average that the second one needs. If it stops early, what
    it has computed until then is shared.

    What plans do is compared, not what they are called: rates, sizes, mixes, frozen parts and averages step
    by step, and all else as a whole. What is not understood counts as a difference.

    Args:
        first: the run to go on from.
        second: the run that goes on.

    Returns:
        0 (nothing is shared) to the length of the shorter run.
    """
    if not _alike(first, second):
        return 0
    steps = min(first.timeline.steps, second.timeline.steps)
    steps = min(steps, _evaluated_alike(first, second))
    if any(trick not in first.stops for trick in second.stops):
        # The second run may stop after any evaluation, and the first one goes on.
        steps = min(steps, *evaluation_steps(second))
    for plan in (first, second):
        # After its last update, a run completes its averages before it is evaluated.
        if any(trick.sample_size for trick in plan.weights):
            steps = min(steps, plan.timeline.steps - 1)
    for follow in (_rates, _sizes, _frozen, _mixes):
        steps = follow(first, second, steps)
    for trick in second.weights:
        steps = _averaged(first, second, trick, steps)
    return steps


def starts_late(trick: WeightsTrick, timeline: Timeline, step: int) -> bool:
    """True if after ``step`` updates an average still is what ``start`` makes of the model as it is then."""
    return all(trick.rule(k, timeline) is None for k in range(step))


def _alike(first: Plan, second: Plan) -> bool:
    """Everything that has no course of its own is equal."""
    one, other = first.recipe, second.recipe
    plain = (name for name in Recipe.model_fields if name not in READ_BY_STEP)
    samples = any(isinstance(t, ModelTrick) and t.sample_size for t in first.bag.values())
    lines = [replace(plan.timeline, steps=0, warmup=0) for plan in (first, second)]
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and first.facts == second.facts
        and lines[0] == lines[1]
        and _fixed(first) == _fixed(second)
        and (one.image_size == other.image_size or not samples)
    )


def _fixed(plan: Plan) -> dict[str, Trick]:
    """The tricks of a plan that act the same at every step, or in ways that are not understood."""
    fixed = {kind: trick for kind, trick in plan.bag.items() if not _is_followed(trick)}
    # An empty slot means an optimizer too.
    return fixed | {plan.optimizer.kind: plan.optimizer}


def _is_followed(trick: Trick) -> bool:
    interfaces = {base for base in type(trick).__mro__ if Trick in base.__bases__}
    return len(interfaces) == 1 and isinstance(trick, FOLLOWED)


def _evaluated_alike(first: Plan, second: Plan) -> int:
    """The last step before which no evaluation differs."""
    one, other = evaluation_steps(first), evaluation_steps(second)
    same = first.recipe.evaluation == second.recipe.evaluation
    return min(one ^ other if same else one | other, default=first.timeline.steps + 1) - 1


def _until_different(steps: int, one: Callable[[int], Hashable], other: Callable[[int], Hashable]) -> int:
    return next((k for k in range(steps) if one(k) != other(k)), steps)


def _same(first: Plan, second: Plan, *interfaces: type[Trick]) -> bool:
    """True if tricks do the same because they are the same, and so is the length, or there are none."""
    ours, theirs = ([plan.bag.of(one) for one in interfaces] for plan in (first, second))
    return ours == theirs and (first.timeline == second.timeline or not any(ours))


def _rates(first: Plan, second: Plan, steps: int) -> int:
    if _same(first, second, ScheduleTrick):
        return steps
    steps = _until_different(steps, first.learning_rate, second.learning_rate)
    if not any(_sets_momentum(trick) for trick in (*first.schedules, *second.schedules)):
        return steps
    steps = _until_different(steps, first.momentum, second.momentum)
    course = [second.momentum(k) is None for k in range(min(steps + 1, second.timeline.steps))]
    # Whatever momentum was last, a run that goes on starts with that of the optimizer.
    return steps if len(set(course)) < 2 else 0


def _sets_momentum(trick: ScheduleTrick) -> bool:
    return type(trick).momentum is not ScheduleTrick.momentum


def _sizes(first: Plan, second: Plan, steps: int) -> int:
    if _same(first, second, ResolutionTrick) and first.recipe.image_size == second.recipe.image_size:
        return steps
    return _until_different(steps, first.image_size, second.image_size)


def _frozen(first: Plan, second: Plan, steps: int) -> int:
    def active(plan: Plan) -> Callable[[int], Hashable]:
        ends = [((trick.kind, trick.part()), trick.until(plan.timeline)) for trick in plan.freezes]
        return lambda step: tuple(part for part, until in ends if step < until)

    if _same(first, second, FreezeTrick):
        return steps
    return _until_different(steps, active(first), active(second))


def _mixes(first: Plan, second: Plan, steps: int) -> int:
    """Mixes count where they are active, and who chooses among them where there is a choice."""
    if _same(first, second, MixTrick, MixControlTrick):
        return steps
    known: list[Trick] = []

    def number(trick: Trick) -> int:
        if trick not in known:
            known.append(trick)
        return known.index(trick)

    def active(plan: Plan) -> Callable[[int], Hashable]:
        numbers = {trick.kind: number(trick) for trick in (*plan.mix, *plan.mix_controls)}
        choosers = [c for c in plan.mix_controls if type(c).choose is not MixControlTrick.choose]

        def at(step: int) -> Hashable:
            mixes = plan.mix
            for control in plan.mix_controls:
                mixes = tuple(control.active(mixes, step, plan.timeline))
            return tuple(numbers[trick.kind] for trick in chain(mixes, choosers if len(mixes) > 1 else ()))

        return at

    return _until_different(steps, active(first), active(second))


def _averaged(first: Plan, second: Plan, trick: WeightsTrick, steps: int) -> int:
    """An average is taken over where both keep it alike, or begun where it only begins."""
    line, other = second.timeline, first.timeline
    late = next((k for k in range(steps) if trick.rule(k, line) is not None), steps)
    if late == steps or trick not in first.weights:
        return late
    if line == other:
        return steps
    return max(late, _until_different(steps, lambda k: trick.rule(k, other), lambda k: trick.rule(k, line)))
