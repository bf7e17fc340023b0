"""Readings of a study by the run that they were read off, and which runs diverged."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trickbag.errors import StudyError
from trickbag.study.protocol import Cell, Point, Reading
from trickbag.study.strata import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]


@dataclass(frozen=True)
class Divergence:
    """How many runs diverged with and without a factor, and Fisher's exact p-value (two-sided)."""

    diverged_with: int
    runs_with: int
    diverged_without: int
    runs_without: int
    p: float

    @property
    def excess(self) -> float:
        """Share of the runs with the factor that diverged, less that of the runs without it."""
        return self.diverged_with / max(1, self.runs_with) - self.diverged_without / max(1, self.runs_without)

    def largest_p(self, level: float) -> float:
        """The largest p-value that so many diverged runs can have at or below a level; 0 if there is none."""
        gone = self.diverged_with + self.diverged_without
        attainable = _fisher(self.runs_with, self.runs_without, gone).values()
        return max((p for p in attainable if p <= level), default=0.0)

    def __str__(self) -> str:
        return (
            f"{self.diverged_with} of {self.runs_with} runs with it diverged, {self.diverged_without} of "
            f"{self.runs_without} without; Fisher p = {self.p:.2g}"
        )


class Runs:
    """Readings by run, as arrays; attributes are one for each run.

    Attributes:
        trained, free: keys of the factors of either kind.
        x: ``(runs, trained)``, bool, which trained factors are on.
        seeds: all of them, in order.
        block: index of the run's seed.
        diverged: the run has no finished reading.
        worst: the worst finished value, which a diverged reading counts as where it must have a value.
        missing: points without a value that did not diverge.
    """

    def __init__(
        self, readings: Sequence[Reading], factors: Sequence[str], free: Collection[str], higher: bool
    ) -> None:
        import numpy as np

        known, loose = frozenset(factors), frozenset(free)
        self.trained = [key for key in factors if key not in loose]
        self.free = [key for key in factors if key in loose]
        self.higher = higher
        best: dict[Point, Reading] = {}
        for reading in readings:
            if (reading.value is None or not math.isfinite(reading.value)) and not reading.diverged:
                continue
            best.setdefault(reading.point, reading)
        finite = [r.value for r in best.values() if r.value is not None and not r.diverged]
        if not finite:
            raise StudyError("no run of the study has a value", expected="one or more finished runs")
        self.worst = min(finite) if higher else max(finite)
        self.missing = len({r.point for r in readings}) - len(best)
        self.readings: dict[tuple[Cell, int], list[Reading]] = {}
        for point, reading in best.items():
            if not point.cell <= known:
                raise StudyError(
                    f"a run has {', '.join(sorted(point.cell - known))} on, which is no factor",
                    expected="cells of " + ", ".join(factors),
                )
            self.readings.setdefault((point.cell - loose, point.seed), []).append(reading)
        self.seeds = sorted({seed for _, seed in self.readings})
        place = {seed: i for i, seed in enumerate(self.seeds)}
        self.block = tuple(place[seed] for _, seed in self.readings)
        self.x = np.array([[key in cell for key in self.trained] for cell, _ in self.readings], bool)
        self.diverged = [all(r.diverged for r in found) for found in self.readings.values()]

    def finished(self) -> Runs:
        """The same without the runs that diverged."""
        if not any(self.diverged):
            return self
        kept = [
            reading
            for found, gone in zip(self.readings.values(), self.diverged, strict=True)
            if not gone
            for reading in found
        ]
        return Runs(kept, [*self.trained, *self.free], self.free, self.higher)

    def patterns(self) -> list[tuple[tuple[tuple[bool, ...], ...], list[float]]]:
        """Settings of the free factors at which each run was read, and the values."""
        return [
            (
                tuple(tuple(key in r.point.cell for key in self.free) for r in found),
                [self._value(r) for r in found],
            )
            for found in self.readings.values()
        ]

    def _value(self, reading: Reading) -> float:
        return self.worst if reading.diverged or reading.value is None else reading.value

    def means(self, effects: Mapping[str, float]) -> Floats:
        """Mean of each run halfway between the levels of the free factors; the worst value if it diverged."""
        import numpy as np

        known = {key: value for key, value in effects.items() if math.isfinite(value)}
        found = []
        for readings, gone in zip(self.readings.values(), self.diverged, strict=True):
            if gone:
                found.append(self.worst)
                continue
            off = [sum(v if k in r.point.cell else -v for k, v in known.items()) / 2 for r in readings]
            values = [self._value(r) - o for r, o in zip(readings, off, strict=True)]
            found.append(math.fsum(values) / len(values))
        return np.array(found)

    def divergence(self) -> dict[str, Divergence]:
        """Counts by trained factor; empty if no run diverged."""
        if not any(self.diverged):
            return {}
        counts = {}
        for j, key in enumerate(self.trained):
            on = [gone for gone, with_it in zip(self.diverged, self.x[:, j], strict=True) if with_it]
            off = [gone for gone, with_it in zip(self.diverged, self.x[:, j], strict=True) if not with_it]
            p = _fisher(len(on), len(off), sum(on) + sum(off))[sum(on)]
            counts[key] = Divergence(sum(on), len(on), sum(off), len(off), p)
        return counts

    def residuals(
        self, fitted: Model, y: Floats, effects: Mapping[str, float]
    ) -> tuple[tuple[Point, float, float], ...]:
        """Fitted values and residuals of the finished readings."""
        left = fitted.error.project @ y
        found = []
        for readings, center in zip(self.readings.values(), y - left, strict=True):
            for r in readings:
                if r.value is not None and not r.diverged:
                    off = sum(effects[k] if k in r.point.cell else -effects[k] for k in self.free) / 2
                    found.append((r.point, float(center + off), float(r.value - center - off)))
        return tuple(found)


@lru_cache(maxsize=256)
def _fisher(with_it: int, without: int, gone: int) -> dict[int, float]:
    """Fisher's two-sided p-values, by how many of the ``gone`` runs are among those with the factor.

    Ours, since SciPy's takes about a millisecond for each of them.
    """
    ways = {
        a: math.comb(with_it, a) * math.comb(without, gone - a)
        for a in range(max(0, gone - without), min(with_it, gone) + 1)
    }
    # Whole numbers: ties are exact.
    return {
        a: sum(n for n in ways.values() if n <= own) / math.comb(with_it + without, gone)
        for a, own in ways.items()
    }
