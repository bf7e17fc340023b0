"""The randomized-block model behind a study's effects: value = arm + seed + error, with missing cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

Values = Mapping[str, Mapping[int, float | None]]
"""Primary metric in points, by arm and seed; None or NaN for a run without a value."""


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


def group(twins: Sequence[int], runs: Sequence[str]) -> list[int]:
    """For each arm, the first one that was read off the same training, or has bit-identical values.

    Args:
        twins: as from ``find_twins``.
        runs: name of each arm's training.
    """
    first: dict[str, int] = {}
    groups = list(twins)
    for i, (twin, run) in enumerate(zip(twins, runs, strict=True)):
        joined = {groups[twin], groups[i], groups[first.setdefault(run, i)]}
        groups = [min(joined) if g in joined else g for g in groups]
    return groups


class BlockFit:
    """Least squares of arm + seed effects; arms of one group count once.

    Args:
        y: values ``(arms, seeds)``, NaN where missing.
        groups: for each arm, the one that stands for it.
    """

    def __init__(self, y: Floats, groups: Sequence[int]) -> None:
        import numpy as np

        kept = list(dict.fromkeys(groups))
        self.index = [kept.index(g) for g in groups]
        self.y = y[kept]
        self._all = y
        present = np.isfinite(self.y)
        self.solve, self.estimable, rank = design_of(present.tobytes(), present.shape)
        self.arms, self.seeds = present.shape
        self.full = bool(present.all())
        observed = self.y[present]
        self.beta = self.solve @ observed
        self.df = int(present.sum()) - rank
        self.mse: float | None = None
        if self.df > 0:
            fitted = (self.beta[: self.arms, None] + self.beta[None, self.arms :])[present]
            self.mse = denoised(float(((observed - fitted) ** 2).sum()) / self.df, observed)

    def contrast(self, plus: int, minus: int) -> tuple[float, Floats] | None:
        """Estimate, and by row of ``y`` the sum of its squared weights; None if not estimable."""
        import numpy as np

        if not self.seeds:
            return None
        if self.full:
            squares = np.zeros(self.arms)
            squares[[self.index[plus], self.index[minus]]] = 1 / self.seeds
            return float(self.beta[self.index[plus]] - self.beta[self.index[minus]]), squares
        c = np.zeros(len(self.beta))
        c[self.index[plus]] += 1
        c[self.index[minus]] -= 1
        if abs(self.estimable @ c - c).max() > 1e-8:
            return None
        weights = np.zeros(self.y.shape)
        weights[np.isfinite(self.y)] = (c @ self.solve) ** 2
        return float(c @ self.beta), weights.sum(1)

    def matrix(self) -> Floats:
        """Residuals ``(arms, seeds)`` of the rows of ``y``, NaN where missing."""
        found: Floats = self.y - self.beta[: self.arms, None] - self.beta[None, self.arms :]
        return found

    def residuals(self) -> dict[tuple[int, int], tuple[float, float]]:
        """Fitted value and residual by (index of the arm, index of the seed); empty without residual df.

        Of a group they are those of the arm that stands for it, and of arms that equal it.
        """
        if self.df == 0:
            return {}
        found = {}
        for arm, row in enumerate(self.index):
            if self._all[arm].tobytes() != self.y[row].tobytes():
                continue
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
        within = denoised(within, np.concatenate(rows))
        return math.sqrt(2 * within), (1 - self.mse / within if within > 0 else None)


@lru_cache(maxsize=64)
def design_of(present: bytes, shape: tuple[int, int]) -> tuple[Floats, Floats, int]:
    """Pseudo-inverse, projector on the estimable space, and rank, for a pattern of cells."""
    import numpy as np

    arm, seed = np.nonzero(np.frombuffer(present, dtype=bool).reshape(shape))
    x = np.zeros((len(arm), sum(shape)))
    x[np.arange(len(arm)), arm] = 1
    x[np.arange(len(arm)), shape[0] + seed] = 1
    solve = np.linalg.pinv(x)
    estimable = solve @ x
    return solve, estimable, round(float(np.trace(estimable)))


def denoised(variance: float, observed: Floats) -> float:
    """A variance that is only rounding error is zero."""
    scale = max(1.0, float(abs(observed).max()))
    return 0.0 if variance < (1e-10 * scale) ** 2 else variance
