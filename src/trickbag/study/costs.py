"""What runs cost: a few timed steps of a few recipes, and a model for all the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from trickbag.engine.prefix import evaluation_steps
from trickbag.engine.run import Run
from trickbag.plan import Plan
from trickbag.study.protocol import Cell, Reading

PACE_LIMITS = (0.5, 100.0)


@dataclass(frozen=True)
class Cost:
    """Measured costs of one training recipe, in seconds.

    Attributes:
        step: one optimizer step.
        evaluation: one evaluation of the selection split.
        overhead: starting a run.
    """

    step: float
    evaluation: float
    overhead: float

    def run(self, plan: Plan) -> float:
        """Seconds of a whole run of ``plan``."""
        return self.training(plan) + self.evaluation + self.overhead

    def training(self, plan: Plan) -> float:
        """Seconds of its steps, and of the evaluations on the way."""
        return plan.timeline.steps * self.step + len(evaluation_steps(plan)) * self.evaluation


def model(known: Mapping[Cell, Cost], factors: Sequence[str]) -> Callable[[Cell], Cost]:
    """Costs of cells that were not timed: each factor multiplies the time of a step.

    Args:
        known: timed cells, one or more.
        factors: keys of the factors that change training.

    Returns:
        The cost of any cell: the measured one if there is one, else least squares on logarithms.
    """
    import numpy as np

    rows = [[1.0, *(float(key in cell) for key in factors)] for cell in known]
    logs = [math.log(max(cost.step, 1e-9)) for cost in known.values()]
    solution = np.linalg.lstsq(np.array(rows), np.array(logs), rcond=None)[0]
    evaluation = sum(cost.evaluation for cost in known.values()) / len(known)
    overhead = sum(cost.overhead for cost in known.values()) / len(known)

    def cost(cell: Cell) -> Cost:
        if cell in known:
            return known[cell]
        row = [1.0, *(float(key in cell) for key in factors)]
        return Cost(math.exp(float(np.dot(solution, row))), evaluation, overhead)

    return cost


def whole_seconds(run: Run, name: str = "seconds") -> float:
    """Seconds that all steps of an ended run take, those included that another run has made for it.

    Args:
        run: ended.
        name: ``seconds``, or ``training_seconds`` without evaluations and checkpoints.
    """
    result = run.result()
    if result is None:
        return 0.0
    own, shared = float(result["cost"][name]), int(result.get("shared_steps", 0))
    if not shared:
        return own
    trunk = Run(run.path.parent / str(result.get("forked_from", {}).get("run", "")))
    other = trunk.result() if trunk.path != run.path.parent else None
    steps = int((other or {}).get("steps", 0)) - int((other or {}).get("shared_steps", 0))
    if other is not None and steps > 0:
        return own + shared * float(other["cost"][name]) / steps
    rest = int(result["steps"]) - shared
    return own * int(result["steps"]) / rest if rest > 0 else own


def pace(readings: Sequence[Reading], predicted: Callable[[Cell], float]) -> float:
    """How much longer runs took than was predicted, from those that are finished; 1 without any."""
    runs = {r.run: r for r in readings if r.seconds > 0 and r.value is not None}
    expected = sum(predicted(r.point.cell) for r in runs.values())
    if len(runs) < 3 or expected <= 0:
        return 1.0
    low, high = PACE_LIMITS
    return min(high, max(low, round(sum(r.seconds for r in runs.values()) / expected, 2)))
