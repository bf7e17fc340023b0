"""Effects of many factors at once, by least squares over all runs of a screen or factorial.

Values are percentage points of the primary metric, or another metric in its own unit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from trickbag.errors import StudyError
from trickbag.study.protocol import Point, Reading
from trickbag.study.readings import Divergence, Runs
from trickbag.study.statistics import Effect
from trickbag.study.strata import Model, Pooled, model, reader, wild_bootstrap, within_runs
from trickbag.study.verdicts import (
    COUNTS_SHARE,
    SUSPECT,
    Estimates,
    Pair,
    Term,
    judge,
    simultaneous,
    suspects,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]


BOOTSTRAP_DF = 4
"""With fewer degrees of freedom left, resampled standard errors come close to zero: no bootstrap interval."""


@dataclass(frozen=True)
class FactorFit:
    """Effects of all factors and the noise that they were judged by.

    Attributes:
        effects: one for each factor, in the order given. ``estimate`` is the change when it is switched on,
            averaged over both levels of the other factors. ``pairs`` holds an estimate for each seed whose
            runs alone suffice for it.
        q: Benjamini and Hochberg's p-value by factor, None where nothing could be tested.
        active: factors with ``q`` at or below the level asked for.
        pairs: interactions, largest first.
        residuals: ``(point, fitted, residual)`` of the finished readings.
        mse: error variance of a trained run (of the mean of its readings); None without degrees of freedom.
        df: its degrees of freedom.
        sd: its square root.
        block_sd: standard deviation between seeds; None with one seed.
        within_sd: by free factor, the standard deviation over runs of what it changes within a run.
        correlation: of two runs with one seed.
        method: the method in words, fit for a paper.
        divergence: counts by trained factor; empty if no run diverged.
        bootstrap: bootstrap-t interval by factor, beside the t interval; empty without draws.
    """

    effects: tuple[Effect, ...]
    q: dict[str, float | None]
    active: tuple[str, ...]
    pairs: tuple[Pair, ...]
    residuals: tuple[tuple[Point, float, float], ...]
    mse: float | None
    df: int
    sd: float | None
    block_sd: float | None
    correlation: float | None
    method: str
    divergence: dict[str, Divergence] = field(default_factory=dict)
    bootstrap: dict[str, tuple[float, float]] = field(default_factory=dict)
    within_sd: dict[str, float] = field(default_factory=dict)

    @property
    def sd_unpaired(self) -> float | None:
        """Standard deviation of the difference of two runs with different seeds."""
        if self.sd is None or self.block_sd is None:
            return None
        return math.sqrt(2) * math.hypot(self.sd, self.block_sd)


def fit_factors(
    readings: Sequence[Reading],
    factors: Sequence[str],
    free: Collection[str] = (),
    *,
    alpha: float = 0.05,
    delta: float = 0.0,
    pairs: bool = False,
    q: float = 0.1,
    draws: int = 0,
    higher_is_better: bool = True,
) -> FactorFit:
    """Judge every factor by all runs.

    ``value = seed + sum of effects (+ interactions) + error``, by least squares, in two strata: several
    readings of one run never count as several runs. Factors that cost training are judged by the runs' means,
    free ones by differences within runs. The error of the first is that of the model, or one that no
    interaction of two factors is in (:meth:`trickbag.study.strata.Model.judge_by`).

    Runs that diverged are missing cells: effects are those where training finishes, so that one factor's
    divergence cannot drown the others. A factor that divergence may depend on is judged by how many of its
    runs diverged, exactly, and by the finished runs (:func:`trickbag.study.verdicts.judge`); its estimate
    counts a diverged run as the worst finished value, and has no interval. A reading without a value that did
    not diverge is missing. Factors that the runs do not tell apart have no estimate, and do not count in the
    family.

    Args:
        readings: any number, in any order; of several of one point, the first with a value counts.
        factors: keys of all factors.
        free: those that cost no training.
        alpha: family-wise level of the claims, and level of the intervals.
        delta: margin within which an effect counts as zero; 0 claims no equivalence.
        pairs: estimate interactions, together with the effects where the design can, one by one otherwise.
        q: false discovery rate of ``active``.
        draws: bootstrap resamples; 0 for none.
        higher_is_better: which sign of an effect is called helping, and which value is the worst.

    Raises:
        StudyError: no reading has a value, an unknown factor is on, or a level is out of range.

    Source:
        Box, Hunter and Hunter 2005, Statistics for Experimenters, chapters 5, 6 and 9 (split plots);
        Miller and Sitter 2001, Technometrics 43(1), for the two errors of a folded design.
    """
    import numpy as np

    runs = Runs(readings, factors, free, higher_is_better)
    if not 0 < alpha < 0.5 or not 0 < q < 1 or not 0 <= delta < math.inf:
        raise StudyError(
            f"alpha {alpha:g}, q {q:g}, delta {delta:g}",
            expected="levels between 0 and 0.5 (alpha) and 0 and 1 (q), and a margin of zero or more points",
        )
    done = runs.finished()
    fitted = model(done.x.tobytes(), done.x.shape[1], done.block, pairs)
    within, free_terms, within_sd = _fit_within(done, np.isfinite(fitted.scale), alpha, pairs, draws)
    free_effects = dict(zip(within.keys, within.value.tolist(), strict=True))
    y = done.means(free_effects)
    error = fitted.judge_by(y)
    mse = float(error.mse(y)) if error.df > 0 else math.nan
    if mse < (1e-10 * max(1.0, float(abs(y).max()))) ** 2:
        mse = math.nan
    trained = Estimates(
        done.trained,
        _estimates(fitted, y),
        np.sqrt(fitted.scale * mse),
        [error.df] * len(done.trained),
        wild_bootstrap(fitted.solve, fitted.scale, error, y, draws, 1 - alpha, 0)
        if draws and math.isfinite(mse) and len(done.trained) and error.df >= BOOTSTRAP_DF
        else None,
    )
    divergence = runs.divergence()
    own, counted = _by_seed(fitted, done, y), dict[str, float]()
    if divergence:
        whole = model(runs.x.tobytes(), runs.x.shape[1], runs.block, pairs)
        worst = runs.means(free_effects)
        imputed = dict(zip(runs.trained, _estimates(whole, worst).tolist(), strict=True))
        finished = dict(zip(done.trained, trained.value.tolist(), strict=True))
        counted = suspects(divergence, finished, imputed)
        own |= {key: found for key, found in _by_seed(whole, runs, worst).items() if key in counted}
    sign = 1 if higher_is_better else -1
    judged = judge([trained, within], own, divergence, alpha, delta, sign, counted)
    effects = tuple(judged[key] for key in factors)
    adjusted = {key: judged[key].q for key in factors}
    intervals = {
        key: (float(v - h), float(v + h))
        for part in (trained, within)
        if part.half is not None
        for key, v, h in zip(part.keys, part.value, part.half, strict=True)
        if math.isfinite(v) and math.isfinite(h) and key not in counted
    }
    block_sd, correlation = _between(fitted, done, y, mse)
    found = simultaneous([*_trained_terms(fitted, done.trained, y, mse, error), *free_terms], alpha)
    return FactorFit(
        effects=effects,
        q=adjusted,
        active=tuple(key for key in factors if (p := adjusted[key]) is not None and p <= q),
        pairs=tuple(sorted(found, key=lambda pair: -abs(pair.estimate))),
        residuals=done.residuals(fitted, y, {key: judged[key].estimate or 0.0 for key in done.free}),
        mse=mse if math.isfinite(mse) else None,
        df=error.df,
        sd=math.sqrt(mse) if math.isfinite(mse) else None,
        block_sd=block_sd,
        correlation=correlation,
        method=_method(runs, done, fitted, error, within, len(found), alpha, delta, draws),
        divergence=divergence,
        bootstrap=intervals,
        within_sd=within_sd,
    )


def _estimates(fitted: Model, y: Floats) -> Floats:
    """Effects of the trained factors; NaN for what is not estimable."""
    import numpy as np

    return np.where(np.isfinite(fitted.scale), fitted.solve @ y, np.nan)


def _fit_within(
    runs: Runs, told_apart: NDArray[Any], alpha: float, pairs: bool, draws: int
) -> tuple[Estimates, list[Term], dict[str, float]]:
    """Free factors: one difference for each run, so that its noise cannot pass for that of many."""
    import numpy as np

    size = len(runs.free)
    nothing = Estimates(runs.free, np.full(size, np.nan), np.full(size, np.nan), [0] * size)
    if not size:
        return nothing, [], {}
    patterns = runs.patterns()
    crossed = pairs and size > 1 and all(reader(p, True) is not None for p, _ in patterns)
    rows, kept = [], []
    for i, (settings, values) in enumerate(patterns):
        read = reader(settings, crossed)
        if read is not None:
            rows.append(read @ np.array(values))
            kept.append(i)
    if not rows:
        return nothing, [], {}
    d = np.array(rows)
    spread = d[:, :size].std(0, ddof=1).tolist() if len(d) > 1 else []
    names = [key for key, told in zip(runs.trained, told_apart, strict=True) if told]
    solve, scale, error, adjust = within_runs(runs.x[kept][:, told_apart])
    coefficients, df = solve @ d, error.df
    mse = error.mse(d) if df > 0 else np.full(d.shape[1], np.nan)
    tiny = 1e-10 * max(1.0, abs(runs.worst))
    mse = np.where(mse < tiny**2, 0.0, mse)
    coefficients = np.where(abs(coefficients) < tiny, 0.0, coefficients)
    se = np.sqrt(np.outer(scale, mse))
    half = None
    if draws and df >= BOOTSTRAP_DF:
        half = np.array(
            [
                wild_bootstrap(solve[:1], scale[:1], error, d[:, j], draws, 1 - alpha, 1 + j)[0]
                for j in range(size)
            ]
        )
    terms: list[tuple[int, int, str, str]] = []
    if crossed:
        both = [(key, other) for i, key in enumerate(runs.free) for other in runs.free[:i]]
        terms = [(size + j, 0, *names_of) for j, names_of in enumerate(both)]
    if adjust and pairs:
        grid = product(enumerate(runs.free), enumerate(names, 1))
        terms += [(j, i, key, other) for (j, key), (i, other) in grid if math.isfinite(scale[i])]
    found = []
    for column, row, first, second in terms:
        unit = 2.0 if row else 1.0
        value, noise = float(coefficients[row, column]), float(se[row, column])
        found.append(Term(first, second, unit * value, unit * noise, df))
    effects = Estimates(runs.free, coefficients[0, :size], se[0, :size], [df] * size, half)
    return effects, found, dict(zip(runs.free, spread, strict=False))


def _trained_terms(fitted: Model, names: Sequence[str], y: Floats, mse: float, error: Pooled) -> list[Term]:
    import numpy as np

    found = []
    for (i, j), others, value, se in zip(
        fitted.pairs,
        fitted.aliased,
        (fitted.solve_pairs @ y).tolist(),
        np.sqrt(fitted.scale_pairs * mse).tolist(),
        strict=True,
    ):
        aliased = tuple(f"{names[a]} × {names[b]}" for a, b in others)
        found.append(Term(names[i], names[j], value, se, error.df, aliased))
    return found


def _by_seed(fitted: Model, runs: Runs, y: Floats) -> dict[str, tuple[tuple[int, float], ...]]:
    """Estimates of each seed by itself, for the factors that its runs suffice for."""
    found: dict[str, list[tuple[int, float]]] = {key: [] for key in runs.trained}
    for seed, solve in zip(runs.seeds, fitted.own, strict=True):
        for key, value in zip(runs.trained, (solve @ y).tolist(), strict=True):
            if math.isfinite(value):
                found[key].append((seed, value))
    return {key: tuple(values) for key, values in found.items()}


def _between(fitted: Model, runs: Runs, y: Floats, mse: float) -> tuple[float | None, float | None]:
    """Standard deviation between seeds, and the correlation of runs with one seed that it makes."""
    import numpy as np

    count = len(runs.seeds)
    if count < 2 or not math.isfinite(mse):
        return None, None
    effects = np.where(np.isfinite(fitted.scale), fitted.solve @ y, 0.0)
    rest = y - np.where(runs.x, 0.5, -0.5) @ effects
    sizes = np.bincount(runs.block, minlength=count)
    means = np.bincount(runs.block, rest, minlength=count) / sizes
    variance = max(0.0, float(means.var(ddof=1)) - mse * float((1 / sizes).mean()))
    return math.sqrt(variance), variance / (variance + mse) if variance + mse > 0 else None


def _method(
    runs: Runs,
    done: Runs,
    fitted: Model,
    error: Pooled,
    within: Estimates,
    pairs: int,
    alpha: float,
    delta: float,
    draws: int,
) -> str:
    count = len(done.block)
    also = ", and two-factor interactions" if fitted.joint else ""
    text = (
        f"Effects were estimated together by least squares from {count} training runs in "
        f"{len(done.seeds)} seed block{'s' if len(done.seeds) > 1 else ''}: value = seed + main effects"
        f"{also} + error, where an effect is the change when a factor is switched on, averaged over both "
        "levels of the others."
    )
    if error.df < 1:
        text += " The runs leave no degrees of freedom for the noise: nothing is claimed."
    elif error is fitted.clean and error.df < fitted.error.df:
        text += (
            " The error variance is that of mirrored pairs of runs and of repeated recipes, which no "
            f"two-factor interaction enters ({error.df} degrees of freedom)."
        )
    else:
        text += f" The error variance is that of the model's residuals ({error.df} degrees of freedom)."
    if runs.free:
        text += (
            " Factors that act only when predicting were judged by differences within runs, one for each "
            f"run ({within.df[0]} degrees of freedom)."
        )
    text += (
        f" Intervals are {100 * (1 - alpha):g} % t intervals, individual and Bonferroni-simultaneous; "
        "p-values are two-sided and corrected for the number of factors by Holm's method at a family-wise "
        f"level of {alpha:g}; q-values are Benjamini and Hochberg's."
    )
    if pairs:
        text += f" Intervals of interactions are Bonferroni-simultaneous over all {pairs} that are estimated."
    if draws:
        text += f" Bootstrap-t intervals are from {draws} wild bootstrap samples within blocks."
    if delta > 0:
        text += (
            f" A factor is called equivalent to zero if two one-sided tests at level {alpha:g} (corrected "
            f"over factors by Holm's method) place its effect within ±{delta:g} points, and its individual "
            "interval lies within them too."
        )
    text += " Detectable effects are those found with 80 % power at the Bonferroni-corrected level."
    if gone := sum(runs.diverged):
        text += (
            f" {gone} {'run' if gone == 1 else 'runs'} diverged and entered as missing cells, so that "
            "effects are those where training finishes"
            + ("" if fitted.joint else "; without their mirror images they may hold a part of interactions")
            + f". A factor whose runs diverged more or less often (Fisher's p of {SUSPECT:g} or less, or any "
            "difference if the finished runs do not tell it apart) was judged by Fisher's exact test, at no "
            f"more than {COUNTS_SHARE:g} of its level, and by a t test of the finished runs at the rest: its "
            f"estimate counts a diverged run as the worst finished value ({runs.worst:.4g}) and has no "
            "interval. No factor is called equivalent that diverged more or less often at all."
        )
    if runs.missing:
        some = "reading" if runs.missing == 1 else "readings"
        text += f" {runs.missing} {some} without a value {'was' if runs.missing == 1 else 'were'} left out."
    return text
