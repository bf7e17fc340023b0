"""What a study asks for, round by round: points of a design, readings of them, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Cell = frozenset[str]
"""A recipe of a study: the keys of the factors that are on. Empty is the baseline, all is the candidate."""


@dataclass(frozen=True)
class Point:
    """One recipe with one seed."""

    cell: Cell
    seed: int


@dataclass(frozen=True)
class Reading:
    """What is known of one point.

    Attributes:
        point: which recipe and seed.
        value: primary metric in percentage points, on the selection split; None without one.
        run: id of the training run that it was read off; readings of one run share its noise.
        seconds: training time of that run.
        diverged: training ended with a loss that is not finite. A point that has neither a value nor
            diverged has failed for reasons that are not its recipe's.
    """

    point: Point
    value: float | None
    run: str = ""
    seconds: float = 0.0
    diverged: bool = False


@dataclass(frozen=True)
class Round:
    """Points that are measured together, and why. Rounds of an adaptive study are its decisions.

    Attributes:
        stage: ``pilot``, ``screen``, ``refine``, ``confirm``, or the name of a fixed design.
        points: measured on the selection split.
        sealed: those of them that are measured on the sealed test split as well.
        why: what was known and decided, as JSON values, fit to be shown.
    """

    stage: str
    points: tuple[Point, ...]
    sealed: tuple[Point, ...] = ()
    why: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A round and what came of it, in the order of its points."""

    round: Round
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Question:
    """What a protocol knows before anything is trained.

    Attributes:
        factors: their keys, in a fixed order.
        free: those that cost no training: any run can be read with and without them.
        allowed: whether a recipe can be trained at all.
        cost: of training a recipe once, in the unit of the budget; free factors do not change it.
        budget: in that unit; None if the design alone says how much is run.
        seeds: the seeds that were asked for; more are counted up from the last.
        delta: margin in points within which an effect counts as none.
        alpha: family-wise error rate.
        price: points that a doubling of training time must gain.
        time: of training a recipe once, in any unit; None means that ``cost`` tells it.
    """

    factors: tuple[str, ...]
    free: frozenset[str] = frozenset()
    allowed: Callable[[Cell], bool] = lambda cell: True
    cost: Callable[[Cell], float] = lambda cell: 1.0
    budget: float | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    delta: float = 0.5
    alpha: float = 0.05
    price: float = 0.0
    time: Callable[[Cell], float] | None = None

    def multiple(self, cell: Cell) -> float:
        """Training time of a recipe as a multiple of the baseline's."""
        time = self.time or self.cost
        base, here = time(frozenset()), time(cell - self.free)
        return here / base if base > 0 and here > 0 else 1.0

    @property
    def all_on(self) -> Cell:
        """The candidate."""
        return frozenset(self.factors)

    def training(self, point: Point) -> tuple[Cell, int]:
        """What is trained for a point: points with an equal training share one run."""
        return point.cell - self.free, point.seed

    def spent(self, rounds: Sequence[Round]) -> float:
        """Cost of every training run of some rounds; each run counts once."""
        runs = {self.training(point) for one in rounds for point in one.points}
        return sum(self.cost(cell) for cell, _ in runs)


class Design(Protocol):
    """Decides what is measured next. The same question and readings always give the same round."""

    def next(self, question: Question, seen: Sequence[Seen]) -> Round | None:
        """The next round, or None when the study is complete."""
        ...
