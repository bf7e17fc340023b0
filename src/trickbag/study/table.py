"""The runs of a study as a table, and what each contrast of two of its arms measures.

Runs that diverged are no part of the block model. A contrast that has some is judged by how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trickbag.study.blocks import BlockFit, Values, denoised, find_twins, group, table
from trickbag.study.noise import Noise, guard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

_DIVERGENCE_SHARE = 0.8
"""Share of a contrast's level that is spent on the counts of its diverged runs."""


@dataclass(frozen=True)
class Measured:
    """A contrast before it is judged; what could not be estimated is None.

    ``planned`` is the standard error and its df by the noise of all arms, widened by what the guard against a
    noisier shared arm costs; None where there is no guard.
    """

    estimate: float | None
    se: float | None
    df: float | None
    p: float | None
    pairs: tuple[tuple[int, float], ...]
    note: str = ""
    planned: tuple[float, float] | None = None


def measure_contrast(
    y: Floats, seeds: Sequence[int], fit: BlockFit, noise: Noise | None, plus: int, minus: int
) -> Measured:
    """Estimate one contrast by the block model, or by its own paired differences without ``noise``.

    Args:
        y: values ``(arms, seeds)``.
        seeds: names of the columns.
        fit: in which ``plus`` and ``minus`` stand for themselves.
        noise: by whose variances it is judged.
        plus, minus: rows.
    """
    import numpy as np
    from scipy.special import stdtr

    difference = y[plus] - y[minus]
    both = np.isfinite(difference)
    pairs = _paired(seeds, difference)
    observed = difference[both]
    short = len(seeds) - len(observed)
    note = f"{short} of {len(seeds)} pairs incomplete" if short else ""
    if len(observed) >= 2 and not observed.any():
        note = f"bit-identical in all {len(observed)} pairs of runs"
        return Measured(0.0, 0.0, float(len(observed) - 1), 1.0, pairs, note)
    found = None if noise is None else fit.contrast(plus, minus)
    if len(observed) == 0 if noise is None else found is None:
        return Measured(None, None, None, None, pairs, "no seed finished in both arms")
    variance: float | None = None
    planned = None
    if noise is None or found is None:
        estimate, df = float(observed.mean()), float(len(observed) - 1)
        if df:
            variance = denoised(float(observed.var(ddof=1)), y[[plus, minus]][:, both]) / len(observed)
    else:
        (estimate, squares), df = found, float(noise.fit.df)
        if noise.fit.mse is not None:
            rows = fit.index[plus], fit.index[minus]
            common = noise.fit.mse * float(squares.sum())
            variance, df = noise.own(rows, *noise.variance(rows, squares), observed)
            if noise.shared in rows:
                planned = math.sqrt(common) * guard(noise.fit.arms - 1, len(seeds)), float(noise.fit.df)
            if not noise.loud.isdisjoint(rows):
                note += ("; " if note else "") + "noisier than the other arms, and judged by its own noise"
    if variance is None:
        note = "a single seed gives no estimate of the noise, hence no interval"
        return Measured(estimate, None, None, None, pairs, note)
    if variance == 0:
        note = "differs by exactly the same amount at every seed: too coarse a metric to estimate the noise"
        return Measured(estimate, None, None, None, pairs, note)
    se = math.sqrt(variance)
    p = float(2 * stdtr(df, -abs(estimate) / se))
    return Measured(estimate, se, df, p, pairs, note, planned)


def _paired(seeds: Sequence[int], difference: Floats) -> tuple[tuple[int, float], ...]:
    known = zip(seeds, difference.tolist(), strict=True)
    return tuple((seed, d) for seed, d in known if math.isfinite(d))


def divergence_p(discordant: int, pairs: int) -> float:
    """Two-sided p-value of a difference between two arms in how often their runs diverge.

    The exact unconditional test of matched pairs (Suissa and Shuster 1991, Biometrics 47, 361-372). Its
    nuisance parameter, the probability ``r`` that only the one run of a pair diverges, is at most 1/4 as long
    as runs of one seed are independent given the seed, or resemble each other; the tail grows with ``r``, and
    at 1/4 the statistic is a fair binomial of ``2 * pairs`` trials. It holds whatever the seeds'
    probabilities are.

    Args:
        discordant: pairs in which only the first run diverged, minus those in which only the second did.
        pairs: number of pairs.
    """
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(2 * pairs, pairs + k) for k in range(abs(discordant), pairs + 1))
    return float(2 * tail / 4**pairs)


class Table:
    """The runs of a study, arms by seeds, and the block model of those that finished.

    Attributes:
        arms: names of the rows.
        seeds: names of the columns.
        rows: row of each arm.
        y: values ``(arms, seeds)``, NaN where a run has none or diverged.
        diverged: bool ``(arms, seeds)``.
        affected: for each arm, whether a run of it diverged.
        direction: 1, or -1 where lower is better.
        runs: name of each arm's training.
        worst: what a diverged run counts as: the lowest value, or the highest where lower is better, with
            ``others``, of runs outside the table, included; NaN if no run has a value.
        missing: ``(arm, seed)`` of each run that neither has a value nor diverged.
        twins: for each arm, the first one with bit-identical values.
        groups: for each arm, the one that stands for its training in ``fit``.
        fit: block model of ``y``, one arm a training.
        noise: by which variances contrasts are judged.
    """

    def __init__(
        self,
        values: Values,
        diverged: Collection[tuple[str, int]] = (),
        higher_is_better: bool = True,
        others: Iterable[float] = (),
        runs: Mapping[str, str] | None = None,
        contrasts: Iterable[tuple[str, str]] = (),
    ) -> None:
        import numpy as np

        diverged = frozenset(diverged)
        self.arms = list(values)
        self.seeds = sorted({seed for runs in values.values() for seed in runs} | {s for _, s in diverged})
        self.y, missing = table(values, self.arms, self.seeds)
        self.missing = tuple(run for run in missing if run not in diverged)
        self.diverged: Floats = np.zeros(self.y.shape, dtype=bool)
        for arm, seed in diverged:
            self.diverged[self.arms.index(arm), self.seeds.index(seed)] = True
        self.y[self.diverged] = np.nan
        self.rows = {arm: i for i, arm in enumerate(self.arms)}
        self.affected: list[bool] = [any(row) for row in self.diverged.tolist()]
        self.direction = 1 if higher_is_better else -1
        finished = self.y[np.isfinite(self.y)]
        known = self.direction * np.array([*finished.tolist(), *others])
        self.worst = float(self.direction * known.min()) if len(known) else math.nan
        self.twins = find_twins(self.y)
        groups = group(self.twins, [(runs or {}).get(arm, f"arm {arm}") for arm in self.arms])
        self.ends = [(self.rows[plus], self.rows[minus]) for plus, minus in contrasts]
        self.between = [(a, b) for a, b in self.ends if groups[a] != groups[b]]
        stand = {groups[end]: end for pair in reversed(self.between) for end in reversed(pair)}
        self.groups = [stand.get(g, g) for g in groups]
        self.fit = BlockFit(self.y, self.groups)
        self.noise = Noise(self.fit, self.between)

    def within(self, plus: str, minus: str) -> bool:
        """Whether two arms were read off one training."""
        return self.groups[self.rows[plus]] == self.groups[self.rows[minus]]

    def measure(self, plus: str, minus: str, *, own: bool) -> Measured:
        """Estimate one contrast by the block model, or by its own paired differences.

        The latter if ``own``, or if both arms were read off one training: then its noise is that of reading.
        """
        ends = self.rows[plus], self.rows[minus]
        own = own or self.within(plus, minus)
        if any(self.affected[end] for end in ends):
            return self._measure_diverged(*ends, own=own)
        standing = {self.groups[end]: end for end in ends}
        fit = self.fit
        if not own and any(g != end for g, end in standing.items()):
            fit = BlockFit(self.y, [standing.get(g, g) for g in self.groups])
        return measure_contrast(self.y, self.seeds, fit, None if own else self.noise, *ends)

    def _measure_diverged(self, plus: int, minus: int, *, own: bool) -> Measured:
        """Estimate a contrast some of whose runs diverged, and count each of those as the worst value.

        Such differences are a mixture that no t distribution describes, constant ones included. The p-value
        is the smaller of two, each at its share of the level: ``divergence_p`` at 4/5, and the t test of the
        pairs in which both runs finished, with the noise of the study's finished runs, at 1/5. Either counts
        only if it points where the estimate does, the latter also only if the side it favors did not diverge
        more often. There is neither a standard error nor an interval.
        """
        import numpy as np
        from scipy.special import stdtr

        y, diverged = self.y[[plus, minus]], self.diverged[[plus, minus]]
        there = diverged | np.isfinite(y)
        filled = np.where(diverged, self.worst, y)
        pairs = _paired(self.seeds, filled[0] - filled[1])
        counts = [f"{d.sum()} of {t.sum()}" for d, t in zip(diverged, there, strict=True)]
        note = f"diverged in {counts[0]} runs with it, {counts[1]} without"
        if len(pairs) < len(self.seeds):
            note += f"; {len(self.seeds) - len(pairs)} of {len(self.seeds)} pairs incomplete"
        if not pairs:
            return Measured(None, None, None, None, pairs, note)
        estimate = sum(d for _, d in pairs) / len(pairs)
        if len(pairs) < 2:
            return Measured(estimate, None, None, None, pairs, f"{note}; a single seed gives no interval")
        p = 1.0
        with_it, without = diverged[:, there.all(0)].sum(1).tolist()
        safer = (without - with_it) * estimate * self.direction
        if safer > 0:
            p = divergence_p(without - with_it, len(pairs)) / _DIVERGENCE_SHARE
        finished = y[:, np.isfinite(y).all(0)]
        difference = finished[0] - finished[1]
        count, variance, df = len(difference), None, 0.0
        if own and count > 1:
            df, variance = count - 1.0, denoised(float(difference.var(ddof=1)), finished) / count
        elif not own and count and self.fit.mse is not None:
            rows = self.fit.index[plus], self.fit.index[minus]
            squares = np.zeros(self.fit.arms)
            squares[list(rows)] = 1 / count
            variance, df = self.noise.own(rows, *self.noise.variance(rows, squares), difference)
        if variance and difference.mean() * estimate > 0 and safer >= 0:
            t = abs(float(difference.mean())) / math.sqrt(variance)
            p = min(p, 2 * float(stdtr(df, -t)) / (1 - _DIVERGENCE_SHARE))
        return Measured(estimate, None, None, min(1.0, p), pairs, note)
