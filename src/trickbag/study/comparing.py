"""Arms against each other on fresh seeds, and the probability that one beats the other."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from trickbag.errors import StudyError
from trickbag.study.blocks import Values
from trickbag.study.resampling import bca_interval
from trickbag.study.statistics import Effect, check_arm, holm
from trickbag.study.table import Table


@dataclass(frozen=True)
class Compared:
    """Two arms on the same seeds, in the unit of the values.

    Attributes:
        plus, minus: names of the arms.
        difference: mean of plus minus minus; None if they share no seed.
        low, high: t interval, at the level of Holm's procedure: it excludes 0 exactly if ``p_holm`` is below
            alpha; None without an estimate of the noise.
        low_bca, high_bca: bootstrap interval at that level; None with fewer than five seeds.
        p: two-sided p-value of the paired t test; None without an estimate of the noise.
        p_holm: after Holm's correction over the comparisons.
        chance: probability that a new run of plus beats a new run of minus with the same seed; None with
            fewer than two seeds.
        pairs: ``(seed, difference)``.
        note: why an interval is missing, how many runs diverged, or what else to know.
    """

    plus: str
    minus: str
    difference: float | None
    low: float | None
    high: float | None
    low_bca: float | None
    high_bca: float | None
    p: float | None
    p_holm: float | None
    chance: float | None
    pairs: tuple[tuple[int, float], ...]
    note: str = ""


def compare(
    values: Values,
    pairs: Sequence[tuple[str, str]],
    *,
    alpha: float = 0.05,
    diverged: Collection[tuple[str, int]] = (),
    higher_is_better: bool = True,
) -> tuple[Compared, ...]:
    """Compare arms on seeds that no decision has seen: each pair by its own paired t test.

    Nothing is pooled over arms, so a comparison rests on its own runs alone. Claims go by Holm's p-values,
    and intervals agree with them (:func:`holm_levels`). Diverged runs count as the worst value, and their
    comparisons are judged as in :func:`trickbag.study.statistics.analyze`, without intervals.

    Args:
        values: metric by arm and seed, of the fresh seeds only.
        pairs: ``(plus, minus)``, each a comparison of the family, none of them twice or in both directions.
        alpha: family-wise level.
        diverged: ``(arm, seed)`` of runs that diverged.
        higher_is_better: which difference beats; higher is better unless False.

    Raises:
        StudyError: an arm is unknown, or alpha is not between 0 and 0.5.
    """
    if not 0 < alpha < 0.5:
        raise StudyError(f"alpha is {alpha:g}", expected="a level between 0 and 0.5", fix="use 0.05")
    for arm in [*(arm for pair in pairs for arm in pair), *(arm for arm, _ in diverged)]:
        check_arm(arm, values, f"an arm {arm!r} that was not run is to be compared")
    from scipy.special import stdtrit

    table = Table(values, diverged, higher_is_better)
    measured = [table.measure(plus, minus, own=True) for plus, minus in pairs]
    p = [m.p for m in measured]
    found = []
    for (plus, minus), m, p_holm, each in zip(pairs, measured, holm(p), holm_levels(p, alpha), strict=True):
        level = 1 - each
        low = high = bca = None
        if m.estimate is not None and m.se is not None and m.df is not None:
            half = float(stdtrit(m.df, (1 + level) / 2)) * m.se
            low, high = m.estimate - half, m.estimate + half
            bca = bca_interval([d for _, d in m.pairs], level)
        sd = None if m.se is None else m.se * math.sqrt(len(m.pairs))
        chance = _chance(m.estimate, m.se, m.df, sd, m.pairs, higher_is_better)
        low_bca, high_bca = bca or (None, None)
        found.append(
            Compared(
                plus, minus, m.estimate, low, high, low_bca, high_bca, m.p, p_holm, chance, m.pairs, m.note
            )
        )
    return tuple(found)


def holm_levels(p: Sequence[float | None], alpha: float) -> list[float]:
    """Level of each comparison's interval, so that it excludes 0 exactly if Holm's method rejects.

    Of ``m`` comparisons, the one with the smallest p-value but ``r`` gets ``alpha / (m - r)`` if it is
    rejected; those that are not rejected get ``alpha / (m - R)``, with ``R`` the number of those that are.
    Each such interval is right with at least the probability ``1 - alpha``, and none that excludes 0 wrongly
    is among them but in a share ``alpha`` of families. They do not hold all together like Bonferroni's:
    where two of two independent differences are found, of very different size, .93 of families have no
    interval that misses its difference, and .91 where three of three are; .95 if they are alike.

    Args:
        p: p-values of the family; one that is None still counts in it.
        alpha: family-wise level.

    Source:
        Serlin 1993, Journal of Experimental Education 61(4), 350-360;
        Ludbrook 2000, Clinical and Experimental Pharmacology and Physiology 27(10), 819-821.
    """
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    rejected = next((r for r, (value, _) in enumerate(order) if value * (len(p) - r) >= alpha), len(order))
    levels = [alpha / max(1, len(p) - rejected)] * len(p)
    for rank, (_, i) in enumerate(order[:rejected]):
        levels[i] = alpha / (len(p) - rank)
    return levels


def chance_of(effect: Effect, sd_paired: float | None, *, higher_is_better: bool = True) -> float | None:
    """Probability that a new run with a factor beats the run of the same seed without it.

    The difference of a new pair has a t predictive distribution: centered at the estimate, with variance
    ``se**2 + sd_paired**2`` and the degrees of freedom of the estimate of the noise. It is exact in this
    sense: the predictive distribution function at the new difference is uniform over studies and new runs.
    It uses no prior, so read chances near 0 and 1 with care where effects are small: with three seeds, of
    those above .9 (.95 on average) .95 come true if the effects' standard deviation is twice that of a
    pair's difference, .84 if it is equal, .67 if it is half.

    Where there is no standard error (runs diverged, or the difference is constant) it is
    ``(wins + ties / 2 + 1/2) / (n + 1)``, the mean under Jeffreys' prior.

    Args:
        effect: of the factor.
        sd_paired: standard deviation of the difference of two runs with one seed, as in ``Analysis``; None
            takes the one that the effect was judged by, as is right for all effects of ``analyze``: an arm
            may be noisier, and effects within runs have their own.
        higher_is_better: which difference beats.

    Returns:
        0 to 1; None without an estimate of the noise or two pairs.

    Source: Gelman et al. 2013, Bayesian Data Analysis, section 3.2 (predictive distribution of a normal
    observation, variance unknown).
    """
    if sd_paired is None and effect.se is not None and effect.n_pairs >= 2:
        sd_paired = effect.se * math.sqrt(effect.n_pairs)
    return _chance(effect.estimate, effect.se, effect.df, sd_paired, effect.pairs, higher_is_better)


def _chance(
    estimate: float | None,
    se: float | None,
    df: float | None,
    sd_paired: float | None,
    pairs: Sequence[tuple[int, float]],
    higher_is_better: bool,
) -> float | None:
    if estimate is None:
        return None
    sign = 1 if higher_is_better else -1
    if not se or df is None or sd_paired is None:
        if len(pairs) < 2:
            return None
        wins = sum(1.0 if sign * d > 0 else 0.5 if d == 0 else 0.0 for _, d in pairs)
        return (wins + 0.5) / (len(pairs) + 1)
    from scipy.special import stdtr

    return float(stdtr(df, sign * estimate / math.hypot(se, sd_paired)))
