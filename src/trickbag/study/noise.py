"""By which noise the contrasts of a block design are judged: that of all arms, unless one is noisier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trickbag.study.blocks import BlockFit, design_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

_NULL_DRAWS = 1999
STANDS_OUT_LEVEL = 0.2
"""Level, for all arms together, of the check whether one arm is noisier than the others."""
EXTRA_DF = 2
"""Degrees of freedom by which a variance that is cut off from below is worth more; found by simulation."""


@lru_cache(maxsize=64)
def _own_parts(present: bytes, shape: tuple[int, int]) -> tuple[tuple[Floats, int], ...]:
    """For each arm, the form that gives what its residuals alone add to the sum of squares, and their df."""
    import numpy as np

    arm, seed = np.nonzero(np.frombuffer(present, dtype=bool).reshape(shape))
    x = np.zeros((len(arm), sum(shape)))
    x[np.arange(len(arm)), arm] = 1
    x[np.arange(len(arm)), shape[0] + seed] = 1
    rest = np.eye(len(arm)) - x @ design_of(present, shape)[0]
    found = []
    for i in range(shape[0]):
        block = rest[np.ix_(arm == i, arm == i)]
        inverse = np.linalg.pinv(block, rcond=1e-8, hermitian=True)
        found.append((inverse, round(float(np.trace(inverse @ block)))))
    return tuple(found)


class Noise:
    """By which variance each contrast is judged: that of all arms, unless one arm is noisier.

    The noise of an arm that all contrasts share is in each of them, and hides among many quiet arms. So its
    variance is estimated apart, and the larger of the two estimates counts: ``(s_shared**2 + s_others**2) /
    n`` or the common ``2 * s**2 / n``. The degrees of freedom are Satterthwaite's, with two more for the
    shared arm's variance: cut off from below it varies less. That is a rule found by simulation. With eight
    factors and three, five, eight seeds, family-wise errors of .05 nominal are .02 if noise is equal, and at
    most .06, .04, .03 if the shared arm's is 1.5 to 3 times as large (.19, .20, .20 by the common variance).
    The smallest detectable effect is 1.18, 1.12, 1.07 times as large. With two seeds it is .09 instead of
    .16 at a ratio of 3.

    Any other arm that stands out, by an F test at 20 % for all of them together, has its contrasts judged by
    the larger of that variance and the one of their own differences, with no more than twice their degrees
    of freedom. With one arm three times as noisy the same errors are .06, .05, .05 (.10 without). On a
    ladder, where such a rung is in two contrasts, they are .08 (.13 without): a test at few seeds misses
    some.

    Attributes:
        shared: row of the fit that all contrasts share; None without one, or without two others.
        loud: rows of arms that stand out.
    """

    def __init__(self, fit: BlockFit, ends: Sequence[tuple[int, int]]) -> None:
        import numpy as np
        from scipy.special import fdtrc

        self.fit = fit
        self.shared: int | None = None
        self.loud: frozenset[int] = frozenset()
        if not fit.mse:
            return
        pairs = {frozenset((fit.index[a], fit.index[b])) for a, b in ends}
        pairs = {pair for pair in pairs if len(pair) == 2}
        common = frozenset.intersection(*pairs) if len(pairs) > 1 else frozenset[int]()
        rows = [i for i in range(fit.arms) if i not in common]
        others = BlockFit(fit.y[rows], range(len(rows))) if common else fit
        if common and others.mse and fit.df > others.df:
            (self.shared,) = common
            self._rest = others.mse, others.df
            added = max(0.0, fit.mse * fit.df - others.mse * others.df)
            here = np.isfinite(fit.y[self.shared])
            beside = float(np.isfinite(others.y[:, here]).sum(0).mean())
            # The arm is measured against the mean of those beside it, whose noise is in the difference.
            self._apart = added / (fit.df - others.df) * (1 + 1 / beside), fit.df - others.df, 1 / beside
        elif common:
            rows, others = list(range(fit.arms)), fit
        if not others.mse:
            return
        present = np.isfinite(others.y)
        residuals = others.matrix()
        loud = set()
        for i, (form, df) in enumerate(_own_parts(present.tobytes(), present.shape)):
            own = residuals[i][present[i]]
            own_squares = float(own @ form @ own)
            rest, rest_df = others.mse * others.df - own_squares, others.df - df
            if df < 1 or rest_df < 1:
                continue
            ratio = own_squares / df / (rest / rest_df) if rest > 0 else math.inf
            if fdtrc(df, rest_df, ratio) < STANDS_OUT_LEVEL / len(rows):
                loud.add(rows[i])
        self.loud = frozenset(loud)

    def variance(self, rows: tuple[int, int], squares: Floats) -> tuple[float, float]:
        """Variance and degrees of freedom of a contrast.

        Args:
            rows: of its arms, in the fit.
            squares: by row, the sum of its squared weights.
        """
        assert self.fit.mse is not None
        variance, df = self.fit.mse * float(squares.sum()), float(self.fit.df)
        if self.shared in rows:
            mine = float(squares[self.shared])
            (apart, apart_df, beside), (rest, rest_df) = self._apart, self._rest
            a, b = mine * apart, max(0.0, float(squares.sum()) - mine - mine * beside) * rest
            variance = max(variance, a + b)
            if a + b > 0:
                df = min(df, (a + b) ** 2 / (a**2 / (apart_df + EXTRA_DF) + b**2 / rest_df))
        return variance, df

    def own(
        self, rows: tuple[int, int], variance: float, df: float, difference: Floats
    ) -> tuple[float, float]:
        """The same where an arm of the contrast stands out, given its ``variance`` and paired differences."""
        if self.loud.isdisjoint(rows) or len(difference) < 2:
            return variance, df
        own = float(difference.var(ddof=1)) / len(difference)
        return max(variance, own), min(df, 2.0 * (len(difference) - 1))


def guard(factors: int, seeds: int) -> float:
    """How much larger the smallest detectable effect is for the guard against a noisier shared arm.

    Agrees with simulations of 4 to 20 factors and 2 to 8 seeds within about .03, by :class:`Noise`.

    Args:
        factors: contrasts that share an arm, as few as one.
        seeds: of each.
    """
    return 1 + 0.36 * math.log(max(1, factors)) / (seeds + 1)


def equal_noise_p(
    y: Floats, twins: Sequence[int], ends: Sequence[tuple[int, int]], groups: Sequence[int] | None = None
) -> float | None:
    """p-value of equal noise across contrasts, or None with fewer than two contrasts of two pairs each.

    A Levene-type statistic, the spread of the contrasts' standard deviations, against its distribution under
    normal errors with the very same shared arms and missing cells. Unlike Levene's F it keeps its level with
    shared arms and three seeds; unlike Bartlett's it is not misled by ties of a coarse metric. A noisier arm
    that all contrasts share escapes it: for that see :class:`Noise`.

    Args:
        y: values ``(arms, seeds)``.
        twins: for each arm, the first one with bit-identical values.
        ends: rows of each contrast.
        groups: for each arm, the one whose errors it has; None: those of its twin.
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
    errors = tuple((groups or twins)[twin] for twin in kept)
    null = _null_spread(present.tobytes(), present.shape, tuple(pairs), errors)
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
def _null_spread(
    present: bytes, shape: tuple[int, int], pairs: tuple[tuple[int, int], ...], alike: tuple[int, ...]
) -> Floats:
    import numpy as np

    there = np.frombuffer(present, dtype=bool).reshape(shape)
    errors = np.random.default_rng(0).standard_normal((_NULL_DRAWS, *shape))
    errors = errors[:, [alike.index(one) for one in alike]]
    return np.sort(_spread(np.where(there, errors, np.nan), pairs))
