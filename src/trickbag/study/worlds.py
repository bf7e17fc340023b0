"""Synthetic worlds: truths that a protocol can be tried on, where the best recipe is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trickbag.study.protocol import Cell, Design, Point, Question, Reading, Round, Seen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

BASE = 85.0
"""Value of the baseline in points."""


@dataclass(frozen=True)
class Kind:
    """How worlds are drawn; effects and noise in percentage points.

    Attributes:
        helpful: number of factors that help.
        null: number that do nothing, alone or together.
        harmful: number that hurt.
        smallest: effects of the others at the baseline are uniform between this
        largest: and this, in size.
        pairs: probability that two factors that do something interact.
        sd_pair: standard deviation of such an interaction: what both add beyond the sum of each.
        sd_seed: noise that runs of one seed share.
        sd_run: noise of a run beyond that.
        sd_reading: noise of a reading beyond that, where some factors are free.
        free: number of factors, the last ones in a random order, that act on trained weights only.
        saturation: points of gain at which a point more is worth half; None for a world without such
            curvature, which no model of pairwise interactions holds exactly.
        diverging: whether training diverges wherever the first two factors are both on.
    """

    helpful: int = 6
    null: int = 10
    harmful: int = 4
    smallest: float = 0.3
    largest: float = 1.0
    pairs: float = 0.4
    sd_pair: float = 0.33
    sd_seed: float = 0.8
    sd_run: float = 0.75
    sd_reading: float = 0.0
    free: int = 0
    saturation: float | None = None
    diverging: bool = False

    @property
    def size(self) -> int:
        """Number of factors."""
        return self.helpful + self.null + self.harmful


@dataclass(frozen=True)
class World:
    """One truth, and noise that is a function of run and seed.

    Attributes:
        kind: what it was drawn from.
        number: seed of the draw and of all noise.
    """

    kind: Kind
    number: int

    @cached_property
    def _drawn(self) -> tuple[Floats, Floats, Floats]:
        """Effects at the baseline ``(K,)``, interactions ``(K, K)``, order in which factors are free."""
        import numpy as np

        kind, rng = self.kind, np.random.default_rng([20, self.number])
        signs = np.repeat([1.0, 0.0, -1.0], [kind.helpful, kind.null, kind.harmful])
        main = signs * rng.uniform(kind.smallest, kind.largest, kind.size)
        both = np.outer(signs != 0, signs != 0)
        pair = np.triu(
            both * (rng.random(both.shape) < kind.pairs) * rng.normal(0, kind.sd_pair, both.shape), 1
        )
        order = rng.permutation(kind.size)
        return main[order], (pair + pair.T)[np.ix_(order, order)], rng.permutation(kind.size)

    @property
    def factors(self) -> tuple[str, ...]:
        """Keys."""
        return tuple(f"trick{i:02d}" for i in range(self.kind.size))

    @property
    def free(self) -> frozenset[str]:
        """Keys of the factors that cost no training."""
        return frozenset(self.factors[i] for i in self._drawn[2][: self.kind.free])

    @property
    def null(self) -> frozenset[str]:
        """Keys of the factors that do nothing."""
        return frozenset(key for key, effect in zip(self.factors, self._drawn[0], strict=True) if effect == 0)

    @cached_property
    def all_values(self) -> Floats:
        """Expected value of every recipe ``(2**K,)``; bit ``i`` of the index is factor ``i``."""
        import numpy as np

        main, pair, _ = self._drawn
        values = np.full(1, BASE)
        for i in range(self.kind.size):
            # Recipes with factor i are those without, plus its effect and interactions with lower ones.
            more = np.zeros(1)
            for j in range(i):
                more = np.concatenate([more, more + pair[i, j]])
            values = np.concatenate([values, values + main[i] + more])
        return self._curved(values)

    def _curved(self, values: Floats) -> Floats:
        import numpy as np

        if self.kind.saturation is None:
            return values
        gain = values - BASE
        risen = self.kind.saturation * np.log1p(np.maximum(gain, 0) / self.kind.saturation)
        curved: Floats = BASE + np.where(gain > 0, risen, gain)
        return curved

    def coded(self, cell: Cell) -> Floats:
        """0 or 1 a factor."""
        import numpy as np

        x: Floats = np.array([float(key in cell) for key in self.factors])
        return x

    def value(self, cell: Cell) -> float:
        """Expected value of a recipe in points."""
        import numpy as np

        main, pair, _ = self._drawn
        x = self.coded(cell)
        return float(self._curved(np.array(BASE + main @ x + x @ pair @ x / 2)))

    @cached_property
    def best(self) -> float:
        """Expected value of the best recipe."""
        return float(self.all_values.max())

    def loss(self, cell: Cell) -> float:
        """Points that a recipe loses against the best one."""
        return self.best - self.value(cell)

    def noise(self, point: Point) -> float:
        """What chance adds to a reading."""
        import numpy as np

        def draw(*what: int) -> float:
            return float(np.random.default_rng([21, self.number, *what]).standard_normal())

        bits = {key: 1 << i for i, key in enumerate(self.factors)}
        trained = sum(bits[key] for key in point.cell - self.free)
        noise = self.kind.sd_seed * draw(point.seed) + self.kind.sd_run * draw(point.seed, 1 + trained)
        if self.kind.sd_reading:
            whole = sum(bits[key] for key in point.cell)
            noise += self.kind.sd_reading * draw(point.seed, 1 + trained, 1 + whole)
        return noise

    def measure(self, point: Point) -> Reading:
        """What training this recipe with this seed gives."""
        run = "+".join(sorted(point.cell - self.free)) + f"@{point.seed}"
        if self.kind.diverging and {self.factors[0], self.factors[1]} <= point.cell:
            return Reading(point, None, run, diverged=True)
        return Reading(point, self.value(point.cell) + self.noise(point), run)


def play(
    design: Design, question: Question, measure: Callable[[Point], Reading], most: int = 200
) -> list[Seen]:
    """Let a protocol ask until it is done.

    Args:
        design: the protocol.
        question: what it works on.
        measure: gives it its readings.
        most: rounds after which it is given up.
    """
    seen: list[Seen] = []
    for _ in range(most):
        asked: Round | None = design.next(question, seen)
        if asked is None:
            return seen
        seen.append(Seen(asked, tuple(measure(point) for point in asked.points)))
    raise RuntimeError(f"{design} asks without end")


def readings(seen: Sequence[Seen], *stages: str) -> list[Reading]:
    """All readings, or those of some stages."""
    return [r for one in seen if not stages or one.round.stage in stages for r in one.readings]
