"""The randomized-block model behind a study's effects: value = arm + seed + error, with missing cells.

Runs that diverged are no part of the model. A contrast that has some is judged by how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

Values = Mapping[str, Mapping[int, float | None]]
"""Primary metric in points, by arm and seed; None or NaN for a run without a value."""
_NULL_DRAWS = 1999
_DIVERGENCE_SHARE = 0.8
"""Share of a contrast's level that is spent on the counts of its diverged runs."""


def table(
    values: Values, arms: Sequence[str], seeds: Sequence[int]
) -> tuple[Floats, tuple[tuple[str, int], ...]]:
    """Values as an array ``(arms, seeds)`` with NaN for a missing run, and the missing runs."""
    import numpy as np

    y = np.full((len(arms), len(seeds)), np.nan)
    missing = []
    for i, arm in enumerate(arms):
        for j, seed in enumerate(seeds):
            value = values[arm].get(seed)
            if value is None or not math.isfinite(value):
                missing.append((arm, seed))
            else:
                y[i, j] = value
    return y, tuple(missing)


def find_twins(y: Floats) -> list[int]:
    """For each arm, the first one with bit-identical values: counted twice they would fake df."""
    import numpy as np

    first: dict[bytes, int] = {}
    known = np.isfinite(y).sum(1) >= 2
    return [first.setdefault(row.tobytes(), i) if known[i] else i for i, row in enumerate(y)]


class BlockFit:
    """Least squares of arm + seed effects; arms that are bit-identical count once."""

    def __init__(self, y: Floats, twins: Sequence[int]) -> None:
        import numpy as np

        kept = sorted(set(twins))
        self.index = [kept.index(t) for t in twins]
        self.y = y[kept]
        present = np.isfinite(self.y)
        solve, self.covariance, self.estimable, rank = _design(present.tobytes(), present.shape)
        self.arms, self.seeds = present.shape
        observed = self.y[present]
        self.beta = solve @ observed
        self.df = int(present.sum()) - rank
        self.mse: float | None = None
        if self.df > 0:
            fitted = (self.beta[: self.arms, None] + self.beta[None, self.arms :])[present]
            self.mse = _denoised(float(((observed - fitted) ** 2).sum()) / self.df, observed)

    def contrast(self, plus: int, minus: int) -> tuple[float, float] | None:
        """Estimate and its variance in units of the residual variance; None if not estimable."""
        import numpy as np

        c = np.zeros(len(self.beta))
        c[self.index[plus]] += 1
        c[self.index[minus]] -= 1
        if abs(self.estimable @ c - c).max() > 1e-8:
            return None
        return float(c @ self.beta), float(c @ self.covariance @ c)

    def residuals(self) -> dict[tuple[int, int], tuple[float, float]]:
        """Fitted value and residual by (index of the arm, index of the seed); empty without residual df."""
        if self.df == 0:
            return {}
        found = {}
        for arm, row in enumerate(self.index):
            for seed, value in enumerate(self.y[row].tolist()):
                if math.isfinite(value):
                    fitted = float(self.beta[row] + self.beta[self.arms + seed])
                    found[arm, seed] = fitted, value - fitted
        return found

    def unpaired(self) -> tuple[float | None, float | None]:
        """Standard deviation of the difference of runs with different seeds, and the pairing correlation."""
        import numpy as np

        rows = [row[np.isfinite(row)] for row in self.y]
        df = sum(max(0, len(row) - 1) for row in rows)
        if df == 0 or self.mse is None:
            return None, None
        within = sum(float(((row - row.mean()) ** 2).sum()) for row in rows if len(row)) / df
        within = _denoised(within, np.concatenate(rows))
        return math.sqrt(2 * within), (1 - self.mse / within if within > 0 else None)


@lru_cache(maxsize=64)
def _design(present: bytes, shape: tuple[int, int]) -> tuple[Floats, Floats, Floats, int]:
    """Pseudo-inverse, unscaled covariance, projector on the estimable space, rank, for a pattern of cells."""
    import numpy as np

    arm, seed = np.nonzero(np.frombuffer(present, dtype=bool).reshape(shape))
    x = np.zeros((len(arm), sum(shape)))
    x[np.arange(len(arm)), arm] = 1
    x[np.arange(len(arm)), shape[0] + seed] = 1
    solve = np.linalg.pinv(x)
    estimable = solve @ x
    return solve, solve @ solve.T, estimable, round(float(np.trace(estimable)))


def _denoised(variance: float, observed: Floats) -> float:
    """A variance that is only rounding error is zero."""
    scale = max(1.0, float(abs(observed).max()))
    return 0.0 if variance < (1e-10 * scale) ** 2 else variance


@dataclass(frozen=True)
class Measured:
    """A contrast before it is judged; what could not be estimated is None."""

    estimate: float | None
    se: float | None
    df: float | None
    p: float | None
    pairs: tuple[tuple[int, float], ...]
    note: str = ""


def measure_contrast(
    y: Floats, seeds: Sequence[int], fit: BlockFit, plus: int, minus: int, *, own: bool
) -> Measured:
    """Estimate one contrast by the block model, or by its own paired differences if ``own``."""
    import numpy as np
    from scipy.special import stdtr

    difference = y[plus] - y[minus]
    both = np.isfinite(difference)
    pairs = _paired(seeds, difference)
    observed = difference[both]
    if len(observed) >= 2 and not observed.any():
        note = f"bit-identical in all {len(observed)} pairs of runs"
        return Measured(0.0, 0.0, float(len(observed) - 1), 1.0, pairs, note)
    if own:
        if len(observed) == 0:
            return Measured(None, None, None, None, pairs, "no seed finished in both arms")
        estimate, df = float(observed.mean()), len(observed) - 1
        variance = (
            _denoised(float(observed.var(ddof=1)), y[[plus, minus]][:, both]) / len(observed) if df else None
        )
    else:
        found = fit.contrast(plus, minus)
        if found is None:
            return Measured(None, None, None, None, pairs, "no seed finished in both arms")
        estimate, df = found[0], fit.df
        variance = None if fit.mse is None else fit.mse * found[1]
    if variance is None:
        note = "a single seed gives no estimate of the noise, hence no interval"
        return Measured(estimate, None, None, None, pairs, note)
    if variance == 0:
        note = "differs by exactly the same amount at every seed: too coarse a metric to estimate the noise"
        return Measured(estimate, None, None, None, pairs, note)
    se = math.sqrt(variance)
    p = float(2 * stdtr(df, -abs(estimate) / se))
    short = len(seeds) - len(observed)
    note = f"{short} of {len(seeds)} pairs incomplete" if short else ""
    return Measured(estimate, se, float(df), p, pairs, note)


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
        worst: what a diverged run counts as: the lowest value, or the highest where lower is better, with
            ``others``, of runs outside the table, included; NaN if no run has a value.
        missing: ``(arm, seed)`` of each run that neither has a value nor diverged.
        twins: for each arm, the first one with bit-identical values.
        fit: block model of ``y``.
    """

    def __init__(
        self,
        values: Values,
        diverged: Collection[tuple[str, int]] = (),
        higher_is_better: bool = True,
        others: Iterable[float] = (),
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
        self.fit = BlockFit(self.y, self.twins)

    def measure(self, plus: str, minus: str, *, own: bool) -> Measured:
        """Estimate one contrast by the block model, or by its own paired differences if ``own``."""
        ends = self.rows[plus], self.rows[minus]
        if any(self.affected[end] for end in ends):
            return self._measure_diverged(*ends, own=own)
        return measure_contrast(self.y, self.seeds, self.fit, *ends, own=own)

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
        df = len(difference) - 1 if own else self.fit.df
        variance = None if self.fit.mse is None else 2 * self.fit.mse
        if own:
            variance = _denoised(float(difference.var(ddof=1)), finished) if df > 0 else None
        if len(difference) and variance and difference.mean() * estimate > 0 and safer >= 0:
            t = abs(float(difference.mean())) / math.sqrt(variance / len(difference))
            p = min(p, 2 * float(stdtr(df, -t)) / (1 - _DIVERGENCE_SHARE))
        return Measured(estimate, None, None, min(1.0, p), pairs, note)


def equal_noise_p(y: Floats, twins: Sequence[int], ends: Sequence[tuple[int, int]]) -> float | None:
    """p-value of equal noise across contrasts, or None with fewer than two contrasts of two pairs each.

    A Levene-type statistic, the spread of the contrasts' standard deviations, against its distribution under
    normal errors with the very same shared arms and missing cells. Unlike Levene's F it keeps its level with
    shared arms and three seeds; unlike Bartlett's it is not misled by ties of a coarse metric.
    """
    import numpy as np

    kept = {twin: i for i, twin in enumerate(sorted(set(twins)))}
    present = np.isfinite(y[list(kept)])
    pairs = []
    for plus, minus in ends:
        pair = kept[twins[plus]], kept[twins[minus]]
        if pair[0] != pair[1] and pair not in pairs and (present[pair[0]] & present[pair[1]]).sum() >= 2:
            pairs.append(pair)
    if len(pairs) < 2:
        return None
    observed = float(_spread(y[list(kept)], pairs))
    if not math.isfinite(observed):
        return None
    null = _null_spread(present.tobytes(), present.shape, tuple(pairs))
    return (1 + len(null) - int(np.searchsorted(null, observed))) / (1 + len(null))


def _spread(y: Floats, pairs: Sequence[tuple[int, int]]) -> Floats:
    """Coefficient of variation of the contrasts' standard deviations; ``y`` is ``(..., arms, seeds)``."""
    import numpy as np

    plus, minus = zip(*pairs, strict=True)
    difference = y[..., list(plus), :] - y[..., list(minus), :]
    there = np.isfinite(difference)
    count = there.sum(-1)
    difference = np.where(there, difference, 0.0)
    mean = difference.sum(-1, keepdims=True) / count[..., None]
    squares = np.where(there, difference - mean, 0.0) ** 2
    sd = np.sqrt(squares.sum(-1) / (count - 1))
    center = sd.mean(-1)
    spread: Floats = np.divide(sd.std(-1), center, out=np.full_like(center, np.nan), where=center > 1e-9)
    return spread


@lru_cache(maxsize=64)
def _null_spread(present: bytes, shape: tuple[int, int], pairs: tuple[tuple[int, int], ...]) -> Floats:
    import numpy as np

    there = np.frombuffer(present, dtype=bool).reshape(shape)
    errors = np.random.default_rng(0).standard_normal((_NULL_DRAWS, *shape))
    return np.sort(_spread(np.where(there, errors, np.nan), pairs))
