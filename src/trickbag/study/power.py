"""Power of a t test in plain Python: planning must answer before SciPy could be imported."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

_POINTS = 2000


def t_level(t: float, df: int) -> float:
    """Two-sided p-value of a t statistic, exact for whole degrees of freedom.

    Source: Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    if df % 2 == 0:
        term = total = 1.0
        for k in range(2, df - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return 1 - sine * total
    term, total = cosine, cosine if df > 1 else 0.0
    for k in range(3, df - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 1 - 2 / math.pi * (angle + sine * total)


@lru_cache(maxsize=512)
def noncentrality(df: int, level: float, power: float) -> float:
    """Noncentrality at which a two-sided t test at ``level`` rejects with probability ``power``.

    The far tail, which adds less than ``level / 2``, is left out.

    Args:
        df: degrees of freedom, at least 1.
        level: 0 to 1.
        power: 0.5 to 1.
    """
    critical = _solve(lambda t: level - t_level(t, df), 1.0)
    low = max(0.0, 1 - 10 / math.sqrt(2 * df))
    step = (1 + 10 / math.sqrt(2 * df) - low) / _POINTS
    scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    spread = [low + step * (i + 0.5) for i in range(_POINTS)]
    weights = [step * math.exp(scale + (df - 1) * math.log(s) - df * s * s / 2) for s in spread]

    def rejects(shift: float) -> float:
        """P(Z + shift > critical * s), averaged over the estimated standard deviation s."""
        pairs = zip(spread, weights, strict=True)
        return sum(w * math.erfc((critical * s - shift) / math.sqrt(2)) / 2 for s, w in pairs)

    return _solve(lambda shift: rejects(shift) - power, critical + 2)


def _solve(increasing: Callable[[float], float], start: float) -> float:
    low, high = 0.0, start
    while increasing(high) < 0:
        high *= 2
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return high
