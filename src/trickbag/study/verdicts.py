"""Verdicts on effects that were estimated with different errors, and intervals of interactions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trickbag.study.equivalence import within_margin
from trickbag.study.power import noncentrality
from trickbag.study.readings import Divergence
from trickbag.study.statistics import POWER, Effect, Verdict, equivalence_p

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

SUSPECT = 0.1
"""Fisher's p-value from which a factor counts as one that divergence may depend on."""
COUNTS_SHARE = 0.8
"""Largest share of a factor's level that is spent on how many of its runs diverged."""


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


@dataclass(frozen=True)
class Pair:
    """An interaction: what ``first`` buys more when ``second`` is on, in points.

    Attributes:
        first, second: keys.
        estimate: of the interaction.
        low, high: ``1 - alpha`` interval, simultaneous (Bonferroni's) over all interactions that are
            estimated; None without an estimate of the noise.
        aliased: interactions that the design cannot tell from it, as ``"a × b"``: the estimate is of their
            signed sum.
    """

    first: str
    second: str
    estimate: float
    low: float | None
    high: float | None
    aliased: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """An interaction before it is judged beside the others.

    Attributes:
        first, second: keys.
        estimate: of the interaction.
        se: its standard error; NaN without an estimate of the noise.
        df: degrees of freedom of ``se``.
        aliased: as in :class:`Pair`.
    """

    first: str
    second: str
    estimate: float
    se: float
    df: int
    aliased: tuple[str, ...] = ()


def suspects(
    divergence: Mapping[str, Divergence], finished: Mapping[str, float], imputed: Mapping[str, float]
) -> dict[str, float]:
    """Factors that divergence may depend on: these are judged by counts. Their estimates, by factor.

    They are those whose counts differ at Fisher's p-value of :data:`SUSPECT`, and those with differing counts
    that the finished runs do not tell apart. The choice rests on the counts alone.

    Args:
        divergence: counts by factor.
        finished: estimates by the finished runs; NaN for what is not estimable.
        imputed: estimates with the worst value for each diverged run.
    """
    return {
        key: imputed[key]
        for key, one in divergence.items()
        if math.isfinite(imputed[key])
        and one.excess != 0
        and (one.p <= SUSPECT or not math.isfinite(finished[key]))
    }


def judge(
    parts: Sequence[Estimates],
    own: Mapping[str, tuple[tuple[int, float], ...]],
    divergence: Mapping[str, Divergence],
    alpha: float,
    delta: float,
    sign: int,
    counted: Mapping[str, float] | None = None,
) -> dict[str, Effect]:
    """Effects with intervals and verdicts, by factor, as one family.

    Where runs diverged, a factor's level is divided between an exact test of its counts and a t test of the
    finished runs. The exact test may have :data:`COUNTS_SHARE` of it; what its p-values cannot use, since
    there are only so many of them, goes to the t test: all of it where few runs diverged.

    Args:
        parts: estimates by the finished runs.
        own: ``(seed, estimate)`` of seeds that suffice by themselves, by factor.
        divergence: by factor; one whose runs diverged more often, or less, is never called equivalent.
        alpha, delta: level and margin.
        sign: 1 if higher values are better, otherwise −1.
        counted: the estimate of each factor that divergence may depend on, as from :func:`suspects`. It has
            no interval, and either test of it counts only if it points where the estimate does.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    counted = counted or {}
    keys = [key for part in parts for key in part.keys]
    value = np.concatenate([part.value for part in parts])
    se = np.concatenate([part.se for part in parts])
    df = np.array([float(n) for part in parts for n in part.df])
    degrees = np.where(df > 0, df, 1)
    known = np.isfinite(value) & np.isfinite(se) & (df > 0) & ((se > 0) | (value == 0))
    member = np.isfinite(value) | np.array([key in counted for key in keys], bool)
    family = max(1, int(member.sum()))
    spent = np.array([_spent(divergence.get(key), alpha / family) for key in keys])
    t = np.divide(abs(value), se, out=np.zeros_like(value), where=known & (se > 0))
    p = np.where(known, np.minimum(1, 2 * stdtr(degrees, -t) / (1 - spent)), np.nan)
    for i, key in enumerate(keys):
        if key in counted:
            p[i] = _p_counted(divergence[key], counted[key], value[i], p[i], spent[i], sign)
    holm, q = correct(p, family)
    half = stdtrit(degrees, 1 - alpha / 2) * se
    level = alpha * (1 - spent) / family
    wide = stdtrit(degrees, 1 - level / 2) * se
    uneven = [key in divergence and divergence[key].excess != 0 for key in keys]
    tested = [
        equivalence_p(float(value[i]), float(se[i]), float(df[i]), delta)
        if delta > 0 and known[i] and key not in counted
        else None
        for i, key in enumerate(keys)
    ]
    those = np.flatnonzero(member).tolist()
    within = dict(
        zip(
            those,
            within_margin(
                [None if uneven[i] else tested[i] for i in those],
                (value - half)[those].tolist(),
                (value + half)[those].tolist(),
                delta,
                alpha,
            ),
            strict=True,
        )
    )
    found = {}
    for i, key in enumerate(keys):
        notes = [str(divergence[key])] if uneven[i] else []
        pairs = own.get(key, ())
        estimate = counted.get(key, float(value[i]) if math.isfinite(value[i]) else None)
        claim: Verdict = "undetected"
        if holm[i] < alpha and estimate:
            claim = "helps" if sign * estimate > 0 else "hurts"
        if key in counted or not known[i]:
            if key in counted:
                notes.append("judged by these counts; the estimate takes the worst value for a diverged run")
            elif estimate is None:
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
                p=float(p[i]) if math.isfinite(p[i]) else None,
                p_holm=float(holm[i]) if math.isfinite(p[i]) else None,
                verdict=claim,
                detectable=None,
                n_pairs=len(pairs),
                pairs=pairs,
                plus="with",
                minus="without",
                note="; ".join(notes),
                q=float(q[i]) if math.isfinite(q[i]) else None,
            )
            continue
        v, s, n = float(value[i]), float(se[i]), int(df[i])
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
            verdict="equivalent" if claim == "undetected" and within[i] else claim,
            detectable=s * noncentrality(n, float(level[i]), POWER) if s > 0 else None,
            n_pairs=len(pairs),
            pairs=pairs,
            plus="with",
            minus="without",
            note="; ".join(notes),
            p_equivalence=tested[i],
            q=float(q[i]),
        )
    return found


def _spent(crashed: Divergence | None, level: float) -> float:
    """Share of a level that the exact test of counts takes: what its possible p-values can use of it."""
    # A hair more, so that the largest p-value is below the level, and not at it.
    return crashed.largest_p(COUNTS_SHARE * level) / level * (1 + 1e-9) if crashed else 0.0


def _p_counted(
    crashed: Divergence, estimate: float, finished: float, p: float, spent: float, sign: int
) -> float:
    """p-value of a factor that divergence may depend on; ``p`` is that of the finished runs, or NaN."""
    safer = crashed.excess * estimate * sign < 0
    found = [1.0]
    if safer and spent > 0:
        found.append(crashed.p / spent)
    if safer and finished * estimate > 0 and math.isfinite(p):
        found.append(p)
    return min(found)


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


def simultaneous(terms: Sequence[Term], alpha: float) -> list[Pair]:
    """Interactions with intervals that all cover together; those that are aliased count once."""
    from scipy.special import stdtrit

    found = []
    for one in terms:
        low = high = None
        if one.df > 0 and math.isfinite(one.se):
            half = float(stdtrit(one.df, 1 - alpha / 2 / len(terms))) * one.se
            low, high = one.estimate - half, one.estimate + half
        found.append(Pair(one.first, one.second, one.estimate, low, high, one.aliased))
    return found
