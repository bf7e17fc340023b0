"""What the runs of a study say about each factor: effects, intervals, verdicts, and what was out of reach.

Values are percentage points of the primary metric (0 to 100), or another metric in its own unit. Runs that
share a seed form a block.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from trickbag.errors import StudyError, nearest
from trickbag.study.blocks import Values
from trickbag.study.equivalence import within_margin
from trickbag.study.noise import EXTRA_DF, STANDS_OUT_LEVEL, equal_noise_p, guard
from trickbag.study.power import noncentrality
from trickbag.study.table import Measured, Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

Verdict = Literal["helps", "hurts", "equivalent", "undetected"]

POWER = 0.8
HETEROSCEDASTIC_LEVEL = 0.01


@dataclass(frozen=True)
class Contrast:
    """One question: what does ``factor`` buy, read off as arm ``plus`` minus arm ``minus``."""

    factor: str
    plus: str
    minus: str


@dataclass(frozen=True)
class Effect:
    """The answer to one contrast, in percentage points.

    Attributes:
        factor: what was switched.
        estimate: effect; None if the arms share no usable run.
        low: lower end of the individual ``1 - alpha`` interval; None if there is no estimate of the noise.
        high: its upper end.
        low_simultaneous: lower end of the Bonferroni interval over all factors.
        high_simultaneous: its upper end.
        se: standard error.
        df: degrees of freedom of ``se``.
        p: two-sided p-value.
        p_holm: p-value after Holm's correction over all factors.
        verdict: helps, hurts, equivalent (to zero, within the margin), or undetected.
        detectable: smallest effect found with 80 % power at the Bonferroni-corrected level, by the noise of
            this study.
        n_pairs: seeds for which both arms have a value.
        pairs: ``(seed, difference)`` for each of them.
        plus: arm with the factor.
        minus: arm without it.
        note: why an interval is missing, how many runs diverged, or what else to know.
        p_equivalence: p-value of two one-sided tests of an effect outside the margin, not corrected (the
            verdict is); None without a margin or a standard error.
        q: p-value after Benjamini and Hochberg's correction over all factors: calling all effects with
            ``q <= x`` real is wrong for a share of at most ``x`` of them, in expectation. Verdicts do not
            use it.
    """

    factor: str
    estimate: float | None
    low: float | None
    high: float | None
    low_simultaneous: float | None
    high_simultaneous: float | None
    se: float | None
    df: float | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    detectable: float | None
    n_pairs: int
    pairs: tuple[tuple[int, float], ...]
    plus: str
    minus: str
    note: str = ""
    p_equivalence: float | None = None
    q: float | None = None


@dataclass(frozen=True)
class Analysis:
    """All effects of a study and the noise they were judged by.

    Attributes:
        effects: one for each contrast, in the order given.
        sd_paired: standard deviation of the difference of two runs with one seed; None if not estimable.
        sd_unpaired: the same for two runs with different seeds.
        correlation: correlation between runs with one seed; ``(sd_paired / sd_unpaired)**2`` is one minus it.
        heteroscedastic: True if the factors' noise differs, and each was judged by its own differences.
        heteroscedastic_p: p-value of that check; None if it could not be made.
        method: the method in words, fit for a paper.
        missing: ``(arm, seed)`` of each run without a value, less those in ``diverged``.
        alpha: level of the tests.
        delta: margin of equivalence in points.
        overall: candidate minus baseline, outside the family of the factors.
        diverged: ``(arm, seed)`` of each run that counted as diverged.
        residuals: ``(arm, seed, fitted value, residual)`` of the block model for each finished run; empty
            without residual degrees of freedom. Where ``heteroscedastic``, effects do not rest on it.
    """

    effects: tuple[Effect, ...]
    sd_paired: float | None
    sd_unpaired: float | None
    correlation: float | None
    heteroscedastic: bool
    heteroscedastic_p: float | None
    method: str
    missing: tuple[tuple[str, int], ...]
    alpha: float
    delta: float
    overall: Effect | None = None
    diverged: tuple[tuple[str, int], ...] = ()
    residuals: tuple[tuple[str, int, float, float], ...] = ()


def analyze(
    values: Values,
    contrasts: Sequence[Contrast],
    *,
    alpha: float = 0.05,
    delta: float = 0.0,
    overall: Contrast | None = None,
    diverged: Collection[tuple[str, int]] = (),
    higher_is_better: bool = True,
    others: Collection[float] = (),
    runs: Mapping[str, str] | None = None,
) -> Analysis:
    """Judge every contrast of a study.

    The model is a randomized block design, ``y[arm, seed] = arm + seed + e``, fitted by least squares:
    paired differences whose variance is pooled over the factors, done right for factors that share an arm.
    A shared arm, and one that stands out, may be noisier: see :class:`trickbag.study.blocks.Noise`. Where a
    check at 1 % finds that the factors' noise differs, each contrast is judged by its own paired t test
    instead.

    Arms that one training gave are no independent runs. A contrast between two of them is judged by its own
    paired differences, within runs; the pooled variance and its df are those of the trainings, one arm each.
    Effects in a table without holes are mean paired differences either way.

    Divergence is an outcome, not a missing value. A run that diverged counts as the worst value of the whole
    table; it stays out of the model and of its noise, so that it cannot drown the other factors, and the
    contrasts that it belongs to are judged by :meth:`trickbag.study.table.Table.measure`: exactly,
    without an interval, and never as equivalent.

    Args:
        values: primary metric in points by arm and seed; None, NaN or absence means a run without a value.
        contrasts: one for each factor.
        alpha: family-wise level of the claims, and level of the intervals.
        delta: margin within which an effect counts as zero, in points; 0 claims no equivalence.
        overall: candidate against baseline, judged by itself.
        diverged: ``(arm, seed)`` of runs that diverged, whatever ``values`` has for them.
        higher_is_better: which sign of an effect is called helping, and which end of the table is the worst.
        others: values of the study's runs that are not in the table: the worst may be among them.
        runs: name of the training that an arm was read off, by arm; one that is not named had its own.

    Raises:
        StudyError: a contrast, ``diverged`` or ``runs`` names an unknown arm, a factor comes twice, or alpha
            or delta is out of range.
    """
    _check(values, contrasts, alpha, delta, overall, diverged)
    for arm in runs or ():
        check_arm(arm, values, f"an arm {arm!r} that has no values is said to be read off a training")
    table = Table(values, diverged, higher_is_better, others, runs, [(c.plus, c.minus) for c in contrasts])
    fit = table.fit
    check_p = equal_noise_p(table.y, table.twins, table.between, table.groups)
    heteroscedastic = check_p is not None and check_p <= HETEROSCEDASTIC_LEVEL

    def measure(contrast: Contrast) -> Measured:
        return table.measure(contrast.plus, contrast.minus, own=heteroscedastic)

    measured = [measure(c) for c in contrasts]
    p = [m.p for m in measured]
    sign = 1 if higher_is_better else -1
    judged = zip(contrasts, measured, holm(p), discovery_rates(p), strict=True)
    effects = _call_equivalent(
        [_judge(c, m, p_holm, q, alpha, delta, len(contrasts), sign) for c, m, p_holm, q in judged],
        delta,
        alpha,
    )
    whole = None
    if overall is not None:
        m = measure(overall)
        (whole,) = _call_equivalent([_judge(overall, m, m.p, m.p, alpha, delta, 1, sign)], delta, alpha)
    sd_unpaired, correlation = fit.unpaired()
    return Analysis(
        effects=effects,
        sd_paired=None if fit.mse is None else math.sqrt(2 * fit.mse),
        sd_unpaired=sd_unpaired,
        correlation=correlation,
        heteroscedastic=heteroscedastic,
        heteroscedastic_p=check_p,
        method=_method(alpha, delta, heteroscedastic, check_p, table),
        missing=table.missing,
        alpha=alpha,
        delta=delta,
        overall=whole,
        diverged=tuple(run for run in product(table.arms, table.seeds) if run in diverged),
        residuals=tuple(
            (table.arms[i], table.seeds[j], *found) for (i, j), found in sorted(fit.residuals().items())
        ),
    )


def equivalence_p(estimate: float, se: float, df: float, delta: float) -> float:
    """p-value of two one-sided t tests against "the effect is ``delta`` or more away from zero".

    An effect alone is equivalent to zero at level ``alpha`` if this is below ``alpha``; that is, if its
    ``1 - 2 * alpha`` interval lies within ``(-delta, delta)``. For the verdicts of a study see
    :func:`trickbag.study.equivalence.within_margin`.

    Source: Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657-680.

    Args:
        estimate: of the effect.
        se: standard error, in the same unit; 0 for an effect that is known.
        df: degrees of freedom of ``se``.
        delta: margin, in the same unit.
    """
    from scipy.special import stdtr

    if se == 0:
        return 0.0 if abs(estimate) < delta else 1.0
    return float(stdtr(df, (abs(estimate) - delta) / se))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's correction for the planned family; one that is None still counts in it.

    The same numbers as statsmodels' ``multipletests``, which collects garbage at every call: that takes most
    of the time of an analysis in a process that has torch loaded.

    Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted: list[float | None] = [None] * len(p)
    largest = 0.0
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    for rank, (value, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(p) - rank) * value))
        adjusted[i] = largest
    return adjusted


def discovery_rates(p: Sequence[float | None]) -> list[float | None]:
    """q-values of Benjamini and Hochberg for the planned family; one that is None still counts in it.

    Source: Benjamini and Hochberg 1995, J. Royal Statistical Society B 57, 289-300.
    """
    if not any(value is not None for value in p):
        return [None] * len(p)
    from scipy.stats import false_discovery_control

    rates = false_discovery_control([1.0 if value is None else value for value in p]).tolist()
    return [None if value is None else q for value, q in zip(p, rates, strict=True)]


def smallest_detectable(
    sd_paired: float,
    seeds: int,
    factors: int,
    arms: int,
    alpha: float = 0.05,
    power: float = POWER,
    *,
    shared: bool = False,
) -> float:
    """Smallest effect that such a study finds with probability ``power``, in the unit of ``sd_paired``.

    Two-sided, at the Bonferroni-corrected level ``alpha / factors``, with the variance pooled over ``arms``,
    those of distinct trainings. Infinite with fewer than two seeds or two arms: such a study has no estimate
    of its noise.

    Args:
        sd_paired: standard deviation of the difference of two runs with one seed.
        seeds: of each arm.
        factors: contrasts of the family.
        arms: trainings a seed.
        alpha: family-wise level.
        power: 0.5 to 1.
        shared: all factors share an arm, as in leave-one-out and one-at-a-time: then the guard against a
            noisier shared arm costs some power.
    """
    df = (arms - 1) * (seeds - 1)
    if df < 1:
        return math.inf
    widened = sd_paired * (guard(arms - 1, seeds) if shared else 1.0)
    return widened / math.sqrt(seeds) * noncentrality(df, alpha / max(1, factors), power)


def binomial_sd(accuracy: float, images: int) -> float:
    """Standard deviation, in points, of an accuracy (in points, 0 to 100) measured on ``images`` images.

    Raises:
        StudyError: accuracy outside 0 to 100, or no images.
    """
    if not 0 <= accuracy <= 100 or images < 1:
        raise StudyError(
            f"accuracy {accuracy:g} on {images} images",
            expected="an accuracy in percentage points from 0 to 100, on one or more images",
        )
    return math.sqrt(accuracy * (100 - accuracy) / images)


def guess_paired_sd(accuracy: float, images: int, correlation: float = 0.5) -> float:
    """Guess, before any run, the sd of the difference of two runs with one seed, in points.

    Treats a run's accuracy as binomial. That is rough, good to a factor of two or so: images that every run
    gets right add no noise (the guess is too high), unstable training adds more (too low). The default
    correlation is what named random streams gave on small nets. Use it to plan, then plan again
    with the sd a study prints.
    """
    return binomial_sd(accuracy, images) * math.sqrt(2 * (1 - correlation))


def paired(
    baseline: Mapping[int, float | None], candidate: Mapping[int, float | None], alpha: float = 0.05
) -> Effect:
    """Paired t test of candidate minus baseline over shared seeds: the confirmation on the test split."""
    values: Values = {"baseline": baseline, "candidate": candidate}
    contrast = Contrast("candidate", "candidate", "baseline")
    return analyze(values, [contrast], alpha=alpha).effects[0]


def _check(
    values: Values,
    contrasts: Sequence[Contrast],
    alpha: float,
    delta: float,
    overall: Contrast | None,
    diverged: Collection[tuple[str, int]],
) -> None:
    if not 0 < alpha < 0.5:
        raise StudyError(f"alpha is {alpha:g}", expected="a level between 0 and 0.5", fix="use 0.05")
    if not 0 <= delta < math.inf:
        raise StudyError(f"delta is {delta:g}", expected="a margin of zero or more points")
    names = [c.factor for c in contrasts]
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"factor {name!r} comes twice", expected="one contrast a factor")
    for contrast in [*contrasts, *([overall] if overall else [])]:
        for arm in (contrast.plus, contrast.minus):
            check_arm(arm, values, f"factor {contrast.factor!r} compares an arm {arm!r} that was not run")
    for arm, seed in diverged:
        check_arm(arm, values, f"seed {seed} of an arm {arm!r} that was not run is said to have diverged")


def check_arm(arm: str, values: Values, problem: str) -> None:
    """Raise a StudyError that states the problem unless the arm has runs."""
    if arm not in values:
        near = nearest(arm, values)
        raise StudyError(
            problem,
            expected=f"one of {', '.join(values)}",
            fix=f"did you mean {near!r}?" if near else None,
        )


def _judge(
    contrast: Contrast,
    m: Measured,
    p_holm: float | None,
    q: float | None,
    alpha: float,
    delta: float,
    family: int,
    sign: int,
) -> Effect:
    from scipy.special import stdtrit

    low = high = low_simultaneous = high_simultaneous = detectable = p_equivalence = None
    verdict: Verdict = "undetected"
    if m.estimate is not None and m.se is not None and m.df is not None:
        half = float(stdtrit(m.df, 1 - alpha / 2)) * m.se
        wide = float(stdtrit(m.df, 1 - alpha / 2 / family)) * m.se
        low, high = m.estimate - half, m.estimate + half
        low_simultaneous, high_simultaneous = m.estimate - wide, m.estimate + wide
        if m.se > 0:
            found = [(m.se, m.df), *([m.planned] if m.planned else [])]
            detectable = max(se * noncentrality(_whole(df), alpha / family, POWER) for se, df in found)
        if delta > 0:
            p_equivalence = equivalence_p(m.estimate, m.se, m.df, delta)
    if m.estimate is not None and p_holm is not None and p_holm < alpha:
        verdict = "helps" if sign * m.estimate > 0 else "hurts"
    return Effect(
        contrast.factor,
        m.estimate,
        low,
        high,
        low_simultaneous,
        high_simultaneous,
        m.se,
        m.df,
        m.p,
        p_holm,
        verdict,
        detectable,
        len(m.pairs),
        m.pairs,
        contrast.plus,
        contrast.minus,
        m.note,
        p_equivalence,
        q,
    )


def _call_equivalent(effects: Sequence[Effect], delta: float, alpha: float) -> tuple[Effect, ...]:
    """The effects of a family, with those that are equivalent to zero called so."""
    found = within_margin(
        [e.p_equivalence for e in effects], [e.low for e in effects], [e.high for e in effects], delta, alpha
    )
    return tuple(
        replace(e, verdict="equivalent") if small and e.verdict == "undetected" else e
        for e, small in zip(effects, found, strict=True)
    )


def _whole(df: float) -> int:
    """Degrees of freedom for a power, which takes time to find: rounded down, coarsely where many."""
    step = 1 if df < 12 else 2 if df < 30 else 10
    return max(1, int(df) if df == int(df) else step * int(df / step))


def _method(alpha: float, delta: float, heteroscedastic: bool, check_p: float | None, table: Table) -> str:
    level = f"{100 * (1 - alpha):g}"
    check = "" if check_p is None else f" (check of equal noise: p = {check_p:.2g})"
    fit, missing, diverged = table.fit, len(table.missing), int(table.diverged.sum())
    if len(table.seeds) < 2 or (fit.mse is None and not diverged):
        return (
            "Arms were compared at the same seed. With a single seed there is no estimate of the noise, so "
            "neither intervals nor p-values are given and nothing is claimed."
        )
    if heteroscedastic:
        model = (
            f"The factors' noise differed{check}, so each effect was estimated by its own paired t test over "
            "seeds, without pooling of variances."
        )
    else:
        model = (
            "Effects were estimated by least squares in a randomized block design, value = arm + seed + "
            "error, so that runs with one seed are compared with each other and the error variance is pooled "
            f"over all trainings ({fit.df} degrees of freedom{f'; {check[2:-1]}' if check else ''})."
        )
        if table.noise.shared is not None:
            model += (
                " All effects share an arm, whose variance was also estimated apart, against the mean of the "
                "other arms: where that gives the larger standard error it was used, with Satterthwaite's "
                f"degrees of freedom (counting {EXTRA_DF} more for that variance, by simulation)."
            )
        if fit.arms > 2:
            names = [arm for arm, row in zip(table.arms, fit.index, strict=True) if row in table.noise.loud]
            loud = "none did" if not names else ", ".join(names)
            model += (
                f" An arm that stood out as noisier (F tests, {100 * STANDS_OUT_LEVEL:g} % over all arms: "
                f"{loud}) was judged by its own differences where those vary more."
            )
        model += " Apart from these checks the noise is taken not to depend on the arm."
    if any(ends not in table.between and table.twins[ends[0]] != table.twins[ends[1]] for ends in table.ends):
        model += (
            " Factors that act only when predicting were judged by differences within runs, by their own "
            "paired t tests."
        )
    text = (
        f"{model} Intervals are {level} % t intervals, individual and Bonferroni-simultaneous; p-values are "
        f"two-sided and corrected for the number of factors by Holm's method at a family-wise level of "
        f"{alpha:g}. Both are over seeds (initialization, order of the images, random draws), with the "
        "images of the splits as they are: they say nothing of other images."
    )
    if delta > 0:
        text += (
            f" A factor is called equivalent to zero if two one-sided tests at level {alpha:g} (corrected "
            f"over factors by Holm's method) place its effect within ±{delta:g} points, and its {level} % "
            "interval lies there."
        )
    text += " Detectable effects are those found with 80 % power at the Bonferroni-corrected level."
    if diverged:
        worst = f" ({table.worst:.4g})" if math.isfinite(table.worst) else ""
        text += (
            f" {diverged} {'run' if diverged == 1 else 'runs'} diverged, and counted as the worst value of "
            f"all runs{worst}. Effects that rest on them were judged by an exact matched-pairs test on the "
            "number of diverged runs and a t test on the pairs that finished, at 4/5 and 1/5 of the level; "
            "they have no interval and are not called equivalent."
        )
    if missing:
        text += f" {missing} {'run' if missing == 1 else 'runs'} without a value entered as missing cells."
    return text
