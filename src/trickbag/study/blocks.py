"""The randomized-block model behind a study's effects: value = arm + seed + error, with missing cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

Values = Mapping[str, Mapping[int, float | None]]
"""Primary metric in points, by arm and seed; None or NaN for a run without a value."""
_NULL_DRAWS = 1999


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
        if not np.allclose(self.estimable @ c, c, atol=1e-8):
            return None
        return float(c @ self.beta), float(c @ self.covariance @ c)

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
    pairs = tuple((seed, float(d)) for seed, d in zip(seeds, difference, strict=True) if np.isfinite(d))
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
