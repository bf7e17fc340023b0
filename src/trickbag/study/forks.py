"""Which runs of a study go on from which others, so that what they have in common is trained once."""

from __future__ import annotations

from collections.abc import Mapping

from trickbag.engine.prefix import shared_steps
from trickbag.plan import Plan


def assign(plans: Mapping[str, Plan], *, least: int = 1) -> dict[str, tuple[str, int]]:
    """Choose, for each training plan, the plan to go on from and the step, so that most steps are saved.

    Say that ``a`` leads ``b`` at ``t`` if ``b`` can go on from ``a`` after ``t`` steps. Leading at ``t`` is
    transitive: so the plans fall into groups that lead each other, and at least one plan of every group that
    no other leads must train its first ``t`` steps itself, for every ``t``. From the largest ``t`` down, the
    loop below leaves exactly one: no assignment saves more. It also sees to it that a plan's own fork lies
    before those that others take from it.

    Args:
        plans: plans by name; of one data set, to be trained with one seed.
        least: shorter prefixes are not worth the wait.

    Returns:
        Name -> (name of the plan to go on from, number of updates they share), for those that share any.
        There are no circles, and the plan to go on from trains past that step itself.
    """
    shared = {
        (one, other): steps
        for one, first in plans.items()
        for other, second in plans.items()
        if one != other and (steps := shared_steps(first, second)) >= max(1, least)
    }
    found: dict[str, tuple[str, int]] = {}
    for steps in sorted(set(shared.values()), reverse=True):
        roots = [name for name in plans if name not in found]
        place = {name: number for number, name in enumerate(roots)}

        def leads(one: str, other: str, steps: int = steps) -> bool:
            return shared.get((one, other), 0) >= steps

        def first(one: str, other: str, place: Mapping[str, int] = place) -> bool:
            """Of two that lead each other, the earlier one stays."""
            return leads(one, other) and (not leads(other, one) or place[one] < place[other])

        stay = [name for name in roots if not any(first(one, name) for one in roots if one != name)]
        for name in roots:
            trunk = next((one for one in stay if one != name and leads(one, name)), None)
            if name not in stay and trunk is not None:
                found[name] = trunk, steps
    return found


def saved_epochs(plans: Mapping[str, Plan], assigned: Mapping[str, tuple[str, int]]) -> float:
    """Epochs, of each plan, that need not be trained, given what :func:`assign` returns."""
    return sum(steps / plans[name].timeline.steps_per_epoch for name, (_, steps) in assigned.items())


def kept_steps(assigned: Mapping[str, tuple[str, int]]) -> dict[str, tuple[int, ...]]:
    """The steps after which each plan leaves a fork point for others."""
    kept: dict[str, set[int]] = {}
    for trunk, steps in assigned.values():
        kept.setdefault(trunk, set()).add(steps)
    return {name: tuple(sorted(steps)) for name, steps in kept.items()}
