"""Verdicts on effects that were estimated with different errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trickbag.study.power import noncentrality
from trickbag.study.readings import Divergence
from trickbag.study.statistics import POWER, Effect, Verdict, equivalence_p

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]


@dataclass(frozen=True)
class Estimates:
    """Effects of factors of one stratum; NaN for what is not estimable.

    Attributes:
        keys: of the factors.
        value, se: ``(factors,)``.
        df: degrees of freedom of each ``se``.
        half: ``(factors,)``, half-widths of bootstrap intervals.
    """

    keys: Sequence[str]
    value: Floats
    se: Floats
    df: Sequence[int]
    half: Floats | None = None


def judge(
    parts: Sequence[Estimates],
    own: Mapping[str, tuple[tuple[int, float], ...]],
    divergence: Mapping[str, Divergence],
    alpha: float,
    delta: float,
    sign: int,
) -> dict[str, Effect]:
    """Effects with intervals and verdicts, by factor, as one family.

    Args:
        parts: estimates.
        own: ``(seed, estimate)`` of seeds that suffice by themselves, by factor.
        divergence: by factor; one whose runs diverged more often, or less, is never called equivalent.
        alpha, delta: level and margin.
        sign: 1 if higher values are better, otherwise −1.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    keys = [key for part in parts for key in part.keys]
    value = np.concatenate([part.value for part in parts])
    se = np.concatenate([part.se for part in parts])
    df = np.array([float(n) for part in parts for n in part.df])
    degrees = np.where(df > 0, df, 1)
    known = np.isfinite(value) & np.isfinite(se) & (df > 0) & ((se > 0) | (value == 0))
    t = np.divide(abs(value), se, out=np.zeros_like(value), where=known & (se > 0))
    p = np.where(known, 2 * stdtr(degrees, -t), np.nan)
    family = max(1, int(np.isfinite(value).sum()))
    holm, q = correct(p, family)
    half = stdtrit(degrees, 1 - alpha / 2) * se
    wide = stdtrit(degrees, 1 - alpha / 2 / family) * se
    found = {}
    for i, key in enumerate(keys):
        crashed = divergence.get(key)
        uneven = crashed is not None and crashed.diverged_with != crashed.diverged_without
        notes = [str(crashed)] if uneven else []
        pairs = own.get(key, ())
        estimate = float(value[i]) if math.isfinite(value[i]) else None
        if not known[i]:
            if estimate is None:
                notes.append("the runs do not tell it from the other factors")
            elif se[i] == 0:
                notes.append("the same difference in every run: too coarse a metric to estimate the noise")
            else:
                notes.append("no estimate of the noise, hence no interval")
            found[key] = Effect(
                factor=key,
                estimate=estimate,
                low=None,
                high=None,
                low_simultaneous=None,
                high_simultaneous=None,
                se=None,
                df=None,
                p=None,
                p_holm=None,
                verdict="undetected",
                detectable=None,
                n_pairs=len(pairs),
                pairs=pairs,
                plus="with",
                minus="without",
                note="; ".join(notes),
            )
            continue
        v, s, n = float(value[i]), float(se[i]), int(df[i])
        equivalence = equivalence_p(v, s, n, delta) if delta > 0 else None
        verdict: Verdict = "undetected"
        if holm[i] < alpha:
            verdict = "helps" if sign * v > 0 else "hurts"
        elif equivalence is not None and equivalence < alpha and not uneven:
            verdict = "equivalent"
        found[key] = Effect(
            factor=key,
            estimate=v,
            low=v - float(half[i]),
            high=v + float(half[i]),
            low_simultaneous=v - float(wide[i]),
            high_simultaneous=v + float(wide[i]),
            se=s,
            df=float(n),
            p=float(p[i]),
            p_holm=float(holm[i]),
            verdict=verdict,
            detectable=s * noncentrality(n, alpha / family, POWER) if s > 0 else None,
            n_pairs=len(pairs),
            pairs=pairs,
            plus="with",
            minus="without",
            note="; ".join(notes),
            p_equivalence=equivalence,
            q=float(q[i]),
        )
    return found


def correct(p: Floats, family: int) -> tuple[Floats, Floats]:
    """Holm's and Benjamini and Hochberg's p-values; NaN stays NaN.

    Args:
        p: ``(tests,)``.
        family: tests to correct for, those with NaN included.

    Ours, since ``multipletests`` of statsmodels collects garbage at each call, which takes .1 s.
    """
    import numpy as np

    order = np.argsort(np.where(np.isfinite(p), p, np.inf), kind="stable")
    ordered = p[order]
    rank = np.arange(len(p))
    holm, q = np.empty_like(p), np.empty_like(p)
    holm[order] = np.minimum(1, np.maximum.accumulate(ordered * np.maximum(family - rank, 1)))
    rising = np.where(np.isfinite(ordered), ordered * family / (rank + 1), np.inf)
    q[order] = np.minimum(1, np.minimum.accumulate(rising[::-1])[::-1])
    return holm, np.where(np.isfinite(p), q, np.nan)
