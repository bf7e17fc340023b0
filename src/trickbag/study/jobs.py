"""Which runs a layout needs: arms that differ only in how weights are read share one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from trickbag.engine.run import training_part
from trickbag.recipe.model import Recipe
from trickbag.study.design import Arm
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


def share(arms: Sequence[Arm]) -> list[Training]:
    """The fewest training recipes that serve all arms."""
    found: list[tuple[str, Training]] = []
    for arm in arms:
        averages = arm.recipe.tricks.of(WeightsTrick)
        bare = arm.recipe.without(*(trick.kind for trick in averages))
        core = json.dumps(training_part(bare), sort_keys=True)
        for other, training in found:
            if other == core and all(training.recipe.tricks.get(t.kind, t) == t for t in averages):
                training.recipe = training.recipe.with_tricks(*averages)
                training.arms.append(arm.name)
                break
        else:
            found.append((core, Training(arm.recipe, [arm.name])))
    return [training for _, training in found]
