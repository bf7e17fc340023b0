"""Bootstrap over seeds: intervals that do not assume normal noise, for means and for anything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

FEWEST = 5
"""Seeds below which no bootstrap interval is given: three can be resampled in only ten ways."""


def expanded_level(level: float, n: int) -> float:
    """Level at which a bootstrap of ``n`` values is run so that its interval has about the level asked for.

    Resampling divides by ``n`` where a variance wants ``n - 1``, and knows no t quantiles. The tail
    probability ``a`` is replaced by ``Phi(-sqrt(n / (n - 1)) * t[a, n - 1])``.

    Source: Hesterberg 2015, The American Statistician 69, 371-386 (the expanded percentile interval).
    """
    import math

    from scipy.special import ndtr, stdtrit

    return float(1 - 2 * ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - level) / 2)))


def bca_limits(
    differences: Floats, level: float = 0.95, *, resamples: int = 9999, seed: int = 0
) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated bootstrap limits of a mean, at the expanded level.

    Source: Efron 1987, J. American Statistical Association 82, 171-185, as in ``scipy.stats.bootstrap``.

    Args:
        differences: values ``(..., n)``, the last axis resampled, ``n`` at least 2.
        level: 0 to 1.
        resamples: drawn, the same ones for the whole array.
        seed: of the draws.

    Returns:
        Lower and upper limits ``(...)``; NaN where all values are equal.
    """
    import warnings

    import numpy as np
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        found = bootstrap(
            (differences,),
            np.mean,
            axis=-1,
            method="BCa",
            n_resamples=resamples,
            batch=max(1, 10_000_000 // differences.size),
            confidence_level=expanded_level(level, differences.shape[-1]),
            rng=np.random.default_rng(seed),
        )
    low, high = found.confidence_interval
    return np.asarray(low), np.asarray(high)


def bca_interval(
    differences: Sequence[float], level: float = 0.95, *, resamples: int = 9999, seed: int = 0
) -> tuple[float, float] | None:
    """BCa bootstrap interval of the mean of paired differences; None where it could not be believed.

    It is honest about skewed noise, which a t interval ignores, but not about few seeds. Simulated coverage
    of a nominal 95 % interval under normal noise: as usually computed .72 with 3 seeds, .84 with 5, .89 with
    8; at the expanded level, as here, .76 with 3, .87 with 4, .91 with 5, .93 with 6, .94 with 8. Under
    exponential noise .88 with 5 and .91 with 8, where the t interval has .89 and .89. Hence there is none
    with fewer than five seeds, nor where all differences are equal.

    Args:
        differences: one for each seed.
        level: 0 to 1.
        resamples: drawn.
        seed: of the draws: the same differences always give the same interval.
    """
    import numpy as np

    x = np.asarray(differences, dtype=float)
    if len(x) < FEWEST or np.ptp(x) <= 1e-10 * max(1.0, float(abs(x).max())):
        return None
    low, high = bca_limits(x, level, resamples=resamples, seed=seed)
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


@dataclass(frozen=True)
class Resampled:
    """A function of a study's table, and how it varies with the seeds.

    Attributes:
        estimate: its value on the table as it is ``(...)``.
        draws: its value on each resampled table ``(resamples, ...)``.
        low, high: ends of the expanded percentile interval ``(...)``; None with fewer than five seeds.
    """

    estimate: Floats
    draws: Floats
    low: Floats | None
    high: Floats | None


def block_bootstrap(
    table: Floats,
    statistic: Callable[[Floats], Any],
    level: float = 0.95,
    *,
    resamples: int = 1999,
    seed: int = 0,
    vectorized: bool = False,
) -> Resampled:
    """Resample seeds, each with the runs of all its arms, and compute any function of the table anew.

    Whole blocks are drawn, so that runs of one seed stay together, whatever their correlation. For functions
    that are smooth in the values (means, contrasts, regression coefficients) intervals have about their
    level: .92 of .95 with five seeds, .94 with eight. For others (the best of several arms, a rank) read the
    draws as stability, not as confidence.

    Args:
        table: values ``(arms, seeds)``; the function must cope with what is NaN in it.
        statistic: from a table ``(arms, seeds)`` to a number or an array of a fixed shape ``(...)``.
        level: of the interval, 0 to 1.
        resamples: drawn; an interval at five seeds wants several thousand, since it reads far tails.
        seed: of the draws.
        vectorized: ``statistic`` takes ``(resamples, arms, seeds)`` and gives ``(resamples, ...)``.
    """
    import numpy as np

    n = table.shape[1]
    picked = np.random.default_rng(seed).integers(0, n, (resamples, n))
    estimate = np.asarray(statistic(table[None])[0] if vectorized else statistic(table), dtype=float)
    if vectorized:
        draws = np.asarray(statistic(np.moveaxis(table[:, picked], 0, 1)), dtype=float)
    else:
        draws = np.array([statistic(table[:, columns]) for columns in picked], dtype=float)
    if n < FEWEST:
        return Resampled(estimate, draws, None, None)
    tail = (1 - expanded_level(level, n)) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return Resampled(estimate, draws, low, high)
