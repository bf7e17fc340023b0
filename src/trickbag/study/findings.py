"""What the runs of a study say: effects, claims, the recommendation, what was confirmed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from trickbag.errors import StudyError
from trickbag.recipe.read import dump
from trickbag.report.content import (
    ArmResult,
    Comparison,
    Metric,
    PairEffect,
    Recommendation,
    Residual,
    interval,
)
from trickbag.study.comparing import chance_of, compare
from trickbag.study.conduct import Conduct
from trickbag.study.design import BASELINE, CANDIDATE
from trickbag.study.known import POINTS
from trickbag.study.protocol import Cell, Reading, Seen
from trickbag.study.statistics import Analysis, Contrast, Effect, analyze

if TYPE_CHECKING:
    from trickbag.study.auto import Recommended
    from trickbag.study.regression import FactorFit

MOST_PAIRS = 60
DRAWS = 999
"""Bootstrap resamples of the factors' effects."""
JUDGED_BY_SCREEN = "screen"


@dataclass(frozen=True)
class Findings:
    """Everything that is computed from the numbers of a study.

    Attributes:
        conduct: the study.
        arms: results by name.
        metrics: what was measured, the primary metric first.
        opened: arms and seeds whose numbers on the sealed split may be read.
    """

    conduct: Conduct
    arms: Mapping[str, ArmResult]
    metrics: Sequence[Metric]
    opened: Collection[tuple[str, int]] = ()

    @cached_property
    def seen(self) -> list[Seen]:
        """Rounds and their readings."""
        return self.conduct.seen

    @cached_property
    def analysis(self) -> Analysis:
        """Effects in terms of the primary metric, and their verdicts."""
        return self._analysis(self.metrics[0])

    @cached_property
    def analyses(self) -> dict[str, Analysis]:
        """The same in terms of the other metrics."""
        return {metric.name: self._analysis(metric) for metric in self.metrics[1:]}

    def _values(self, metric: Metric) -> dict[str, dict[int, float | None]]:
        """Shown values by arm and seed; the primary metric is stored in points already."""
        found: dict[str, dict[int, float | None]] = {}
        for name, arm in self.arms.items():
            found[name] = {}
            for run in arm.runs:
                if metric is self.metrics[0]:
                    found[name][run.seed] = run.value
                else:
                    stored = run.metrics.get(metric.name, run.costs.get(metric.name))
                    found[name][run.seed] = None if stored is None else metric.scale * stored
        return found

    @property
    def diverged(self) -> tuple[tuple[str, int], ...]:
        """Arms and seeds of the runs that diverged."""
        return tuple(
            (name, run.seed)
            for name, arm in self.arms.items()
            for run in arm.runs
            if run.status == "diverged"
        )

    def _analysis(self, metric: Metric) -> Analysis:
        spec, primary = self.conduct.spec, metric is self.metrics[0]
        up = metric.higher_is_better is not False
        values = self._values(metric)
        overall = Contrast(CANDIDATE, CANDIDATE, BASELINE)
        ends = {name: values[name] for name in (CANDIDATE, BASELINE)}
        if not self.conduct.adaptive:
            found = analyze(
                values,
                self.conduct.layout.contrasts,
                alpha=spec.alpha,
                delta=spec.delta if primary else 0.0,
                overall=overall,
                diverged=self.diverged if primary else (),
                higher_is_better=up,
                runs={name: self.conduct.training_of(name).arms[0] for name in values},
            )
        else:
            fit = self._fit(metric, values)
            whole = analyze(
                ends,
                (),
                alpha=spec.alpha,
                delta=spec.delta if primary else 0.0,
                overall=overall,
                diverged=tuple(one for one in self.diverged if one[0] in ends) if primary else (),
                higher_is_better=up,
                others=[v for runs in values.values() for v in runs.values() if v is not None],
            )
            found = Analysis(
                effects=tuple(_with_bootstrap(e, fit.bootstrap) for e in fit.effects) if fit else (),
                sd_paired=None if fit is None or fit.sd is None else math.sqrt(2) * fit.sd,
                sd_unpaired=None if fit is None else fit.sd_unpaired,
                correlation=fit.correlation if fit else None,
                heteroscedastic=False,
                heteroscedastic_p=None,
                method=fit.method if fit else "No run that effects are judged by has a value.",
                missing=tuple(
                    (name, seed)
                    for name, runs in values.items()
                    for seed, value in runs.items()
                    if value is None and (name, seed) not in self.diverged
                ),
                diverged=self.diverged,
                alpha=spec.alpha,
                delta=spec.delta,
                overall=whole.overall,
            )
        found = replace(found, missing=tuple(run for run in found.missing if run not in self.pending))
        if self.pending and found.overall is not None:
            found = replace(found, overall=replace(found.overall, verdict="undetected"))
        return found if self.judged_in_full else _unclaimed(found)

    @cached_property
    def pending(self) -> frozenset[tuple[str, int]]:
        """Arms and seeds of the runs that have not ended."""
        runs = ((arm.name, run) for arm in self.arms.values() for run in arm.runs)
        return frozenset((name, run.seed) for name, run in runs if run.status == "pending")

    @property
    def judged_in_full(self) -> bool:
        """Whether every run has ended that effects are judged by: who looks earlier claims too much."""
        if not self.conduct.adaptive:
            return not self.pending
        points = (r.point for r in self._judged(self.metrics[0], {}))
        return not any((self.conduct.space.name(p.cell), p.seed) in self.pending for p in points)

    def _judged(self, metric: Metric, values: Mapping[str, Mapping[int, float | None]]) -> list[Reading]:
        """Readings of the fixed part of the design: claims must not come from points chosen by results."""
        stages = {seen.round.stage for seen in self.seen}
        chosen = JUDGED_BY_SCREEN if JUDGED_BY_SCREEN in stages else None
        readings = [
            reading
            for seen in self.seen
            if self.conduct.spec.design != "auto" or seen.round.stage == chosen
            for reading in seen.readings
        ]
        if metric is self.metrics[0]:
            return readings
        return [
            replace(r, value=values[self.conduct.space.name(r.point.cell)].get(r.point.seed), diverged=False)
            for r in readings
        ]

    def _fit(self, metric: Metric, values: Mapping[str, Mapping[int, float | None]]) -> FactorFit | None:
        from trickbag.study.regression import fit_factors

        readings = self._judged(metric, values)
        if not any(reading.value is not None for reading in readings):
            return None
        spec, conduct = self.conduct.spec, self.conduct
        try:
            return fit_factors(
                readings,
                conduct.space.keys,
                conduct.free,
                alpha=spec.alpha,
                delta=spec.delta if metric is self.metrics[0] else 0.0,
                pairs=metric is self.metrics[0],
                draws=DRAWS if metric is self.metrics[0] else 0,
                higher_is_better=metric.higher_is_better is not False,
            )
        except StudyError:
            return None

    @cached_property
    def _primary_fit(self) -> FactorFit | None:
        if not self.conduct.adaptive:
            return None
        return self._fit(self.metrics[0], self._values(self.metrics[0]))

    @cached_property
    def interactions(self) -> list[PairEffect]:
        """Pairs of factors, largest first."""
        fit = self._primary_fit
        if fit is None:
            return []
        pairs = sorted(fit.pairs, key=lambda pair: -abs(pair.estimate))[:MOST_PAIRS]
        return [PairEffect(p.first, p.second, p.estimate, p.low, p.high, list(p.aliased)) for p in pairs]

    @property
    def aliases(self) -> list[str]:
        """What the design cannot tell apart."""
        if not self.conduct.adaptive or self._primary_fit is None:
            return []
        from trickbag.study.aliasing import aliases_of

        points = [r.point for r in self._judged(self.metrics[0], {})]
        return list(aliases_of(points, [k for k in self.conduct.space.keys if k not in self.conduct.free]))

    @property
    def residuals(self) -> list[Residual]:
        """What the model left unexplained."""
        if self.conduct.adaptive:
            fit = self._primary_fit
            rows = (
                []
                if fit is None
                else [(self.conduct.space.name(p.cell), p.seed, f, r) for p, f, r in fit.residuals]
            )
        else:
            rows = list(self.analysis.residuals)
        return [Residual(*row) for row in rows]

    @cached_property
    def chances(self) -> dict[str, float]:
        """Probability that a run with a factor beats the run of the same seed without it."""
        analysis = self.analysis
        fit = self._primary_fit
        # In fixed designs an arm may be noisier, and an effect within runs has a noise of its own.
        free, pooled = (fit.within_sd, analysis.sd_paired) if fit else ({}, None)
        found = {}
        for effect in analysis.effects:
            chance = chance_of(effect, free.get(effect.factor, pooled))
            if chance is not None:
                found[effect.factor] = chance
        return found

    @cached_property
    def _recommended(self) -> Recommended | None:
        from trickbag.study.auto import Auto

        values = [r.value for seen in self.seen for r in seen.readings if r.value is not None]
        seeds = {r.point.seed for seen in self.seen for r in seen.readings if r.value is not None}
        if len(values) < 4 or len(seeds) < 2:
            return None
        return Auto().recommend(self.conduct.question(), self.seen)

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The recipe to use: a decision, not a claim."""
        found = self._recommended
        if found is None:
            return None
        name = self.conduct.space.name(found.cell)
        return Recommendation(
            factors_on=[key for key in self.conduct.space.keys if key in found.cell],
            arm=name if name in self.arms else None,
            recipe=dump(self.conduct.space.recipe(found.cell)),
            gain=found.gain,
            low=found.low,
            high=found.high,
            cost_multiple=self._multiple(found.cell, found.cost_multiple),
            reasons=dict(found.reasons),
        )

    def _multiple(self, cell: Cell, timed: float) -> float | None:
        """Training time as a multiple of the baseline's: as measured, or as the timing predicts it."""
        here, base = (self.arms.get(self.conduct.space.name(one)) for one in (cell, frozenset[str]()))
        if here and base:
            seconds = [
                {run.seed: run.costs.get("training_seconds", 0.0) for run in a.runs} for a in (here, base)
            ]
            common = [s for s in seconds[0] if seconds[0][s] > 0 and seconds[1].get(s, 0.0) > 0]
            if common:
                return sum(seconds[0][s] for s in common) / sum(seconds[1][s] for s in common)
        return timed if self.conduct.costs else None

    @cached_property
    def attribution(self) -> dict[str, float]:
        """Shares of the factors in the gain of the recommended recipe."""
        from trickbag.study.auto import attribute

        found = self._recommended
        return {} if found is None else attribute(self.conduct.question(), self.seen, found.cell)

    @cached_property
    def final(self) -> str:
        """The arm that was confirmed on the sealed split: the candidate unless the study chose another."""
        told = [seen.round.why.get("recipe") for seen in self.seen if seen.round.sealed]
        if self.conduct.spec.design != "auto" or not told or not isinstance(told[-1], list):
            return CANDIDATE
        return self.conduct.space.name(frozenset(told[-1]))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The arms of the confirmation, on its seeds alone; nothing was chosen by looking at these."""
        rounds = [seen.round for seen in self.seen if seen.round.sealed]
        if self.conduct.spec.design != "auto" or not rounds:
            return []
        seeds = list(dict.fromkeys(point.seed for one in rounds for point in one.sealed))
        names = list(dict.fromkeys(self.conduct.space.name(p.cell) for one in rounds for p in one.sealed))
        wanted = [(self.final, BASELINE), (self.final, CANDIDATE), (CANDIDATE, BASELINE)]
        there = [(a, b) for a, b in wanted if a != b and a in names and b in names]
        pairs = list({frozenset(pair): pair for pair in reversed(there)}.values())[::-1]
        found: list[Comparison] = []
        for split in ("selection", "test"):
            values: dict[str, dict[int, float | None]] = {}
            for name in names:
                shown = [s for s in seeds if split == "selection" or (name, s) in self.opened]
                read = {seed: self.conduct.read(name, seed, split) for seed in shown}
                values[name] = {s: POINTS * m[self.conduct.spec.metric] for s, m in read.items() if m}
            diverged = tuple(one for one in self.diverged if one[0] in names and one[1] in seeds)
            for c in compare(values, pairs, alpha=self.conduct.spec.alpha, diverged=diverged):
                if c.difference is not None:
                    found.append(Comparison(**{**vars(c), "split": split, "pairs": list(c.pairs)}))
        return found


def _unclaimed(analysis: Analysis) -> Analysis:
    """Estimates of an unfinished design, without verdicts."""
    effects = tuple(replace(e, verdict="undetected", p_holm=None, q=None) for e in analysis.effects)
    method = f"The design is not complete: nothing is claimed yet. {analysis.method}"
    return replace(analysis, effects=effects, method=method)


def _with_bootstrap(effect: Effect, intervals: Mapping[str, tuple[float, float]]) -> Effect:
    """An effect whose note tells the bootstrap interval, a check of the t interval."""
    if effect.factor not in intervals:
        return effect
    low, high = intervals[effect.factor]
    if not (math.isfinite(low) and math.isfinite(high)):
        return effect
    told = f"bootstrap interval {interval(low, high)}"
    return replace(effect, note=f"{effect.note}; {told}" if effect.note else told)
