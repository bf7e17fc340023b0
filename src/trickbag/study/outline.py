"""What a study would cost and could see, found without torch and without training."""

from __future__ import annotations

import math
from typing import Any

from trickbag.data.base import DataFacts
from trickbag.plan import Context
from trickbag.study.design import lay_out
from trickbag.study.jobs import share
from trickbag.study.spec import StudySpec
from trickbag.study.statistics import guess_paired_sd, smallest_detectable

ASSUMED_ACCURACY = 80.0
"""Points; stands in for the accuracy that no run has shown yet."""


def outline(spec: StudySpec, facts: DataFacts | None = None) -> dict[str, Any]:
    """Factors, arms, runs, steps and the smallest detectable effect, as JSON values.

    Raises:
        StudyError, DataError: the study makes no sense, or there is no such data.
    """
    if facts is None:
        from trickbag.data import facts as look

        facts = look(spec.data)
    layout = lay_out(spec.baseline, spec.candidate, spec.design, ties=spec.ties, order=spec.order)
    trainings = share(layout.arms)
    seeds = len(spec.seeds)
    steps = sum(Context(t.recipe, facts).timeline.steps for t in trainings) * seeds
    in_sd = smallest_detectable(1.0, seeds, len(layout.contrasts), len(layout.arms), spec.alpha)
    selection = facts.sizes["selection"]
    points = in_sd * guess_paired_sd(ASSUMED_ACCURACY, selection)
    return {
        "design": spec.design,
        "factors": [{"key": f.key, "label": f.label, "passive": f.passive} for f in layout.factors],
        "arms": [arm.name for arm in layout.arms],
        "seeds": seeds,
        "naive_runs": len(layout.arms) * seeds,
        "runs": len(trainings) * seeds,
        "steps": steps,
        "detectable_in_sd": None if math.isinf(in_sd) else in_sd,
        "detectable_points": None if math.isinf(in_sd) else points,
        "selection_images": selection,
    }
