"""Metrics as a report shows them: read off runs, scaled, and written with the digits that matter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from statistics import fmean
from typing import Any, TypeVar, cast

from trickbag.report.content import ArmResult, Comparison, Metric, ReportData, RunResult, points
from trickbag.study.statistics import Analysis, Effect, Verdict

T = TypeVar("T")
TIME = "training_seconds"
ENTIRE = ("ladder", "leave-one-out", "one-at-a-time")
"""Designs whose arms are all drawn: each says something about one factor."""


def primary(data: ReportData) -> Metric:
    """The metric that verdicts are about; its values are ``RunResult.value``, in points."""
    if data.metrics:
        return data.metrics[0]
    return Metric(data.metric, f"{data.metric}, %", 1.0, True)


def metrics(data: ReportData) -> list[Metric]:
    """What can be shown, the primary one first: those named by the study, or else whatever its runs hold."""
    first = primary(data)
    if data.metrics:
        known = list({m.name: m for m in data.metrics}.values())
    else:
        names = dict.fromkeys(n for arm in data.arms for run in arm.runs for n in run.metrics)
        known = [first, *(Metric(n, n, 1.0, None) for n in names if n != first.name)]
    return [m for m in known if m is first or any(values(data, arm, m) for arm in data.arms)]


def reading(data: ReportData, run: RunResult, metric: Metric) -> float | None:
    """A metric of a run in the unit that is shown; None if it was not measured."""
    if metric.name == primary(data).name:
        value = run.value
    else:
        found = run.metrics.get(metric.name, run.costs.get(metric.name))
        value = None if found is None else found * metric.scale
    return value if value is not None and math.isfinite(value) else None


def values(data: ReportData, arm: ArmResult, metric: Metric) -> dict[int, float]:
    """A metric of an arm by seed."""
    read = {run.seed: reading(data, run, metric) for run in arm.runs}
    return {seed: value for seed, value in read.items() if value is not None}


def mean(data: ReportData, arm: ArmResult, metric: Metric) -> float | None:
    """Mean of a metric over an arm's runs; None without one."""
    found = values(data, arm, metric)
    return fmean(found.values()) if found else None


def analysis_of(data: ReportData, metric: Metric) -> Analysis | None:
    """Effects in terms of a metric; None if they were not estimated."""
    return data.analysis if metric.name == primary(data).name else data.analyses.get(metric.name)


def digits(numbers: Iterable[float | None], most: int = 5) -> int:
    """Decimals that show the spread of some numbers to about three figures."""
    known = [n for n in numbers if n is not None and math.isfinite(n)]
    if not known:
        return 2
    spread = max(known) - min(known) or abs(known[0]) or 1.0
    return min(most, max(0, 2 - math.floor(math.log10(spread) + 1e-9)))


def decimals(data: ReportData, metric: Metric) -> int:
    """Decimals of a metric throughout the report: two for points, as many as its spread needs for others."""
    if metric.name == primary(data).name:
        return 2
    return digits(v for arm in data.arms for v in values(data, arm, metric).values())


def written(value: float | None, places: int) -> str:
    """A plain number with a true minus sign, or a dash."""
    if value is None:
        return "–"
    return f"{value:,.{places}f}".replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")


def span(low: float | None, high: float | None, places: int = 2) -> str:
    """An interval of differences, or a dash."""
    return "–" if low is None or high is None else f"[{points(low, places)}, {points(high, places)}]"


def unit(data: ReportData, metric: Metric) -> str:
    """What a difference of a metric is measured in, for an axis."""
    if metric.name == primary(data).name:
        return f"points of {data.metric}"
    return f"difference in {metric.label}"


def anchor(run_id: str) -> str:
    """The part of a run's id that is fit for the address of its row."""
    return "run-" + "".join(c for c in run_id if c.isalnum() or c in "-_")


def behind(data: ReportData, factor: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Runs that an effect rests on, ``(arm, seed)``: with the factor, and without it.

    Two arms where the design compares two; every run with a value where a model is fitted to all of them.
    """
    effect = next((e for e in data.analysis.effects if e.factor == factor), None)
    if effect is not None and effect.pairs and data.arm(effect.plus) and data.arm(effect.minus):
        seeds = [seed for seed, _ in effect.pairs]
        return [(effect.plus, s) for s in seeds], [(effect.minus, s) for s in seeds]
    sides: tuple[list[tuple[str, int]], list[tuple[str, int]]] = ([], [])
    fitted = {(r.arm, r.seed) for r in data.residuals}
    for arm in data.arms:
        for run in arm.runs:
            if (arm.name, run.seed) in fitted or (not fitted and run.value is not None):
                sides[factor not in arm.factors_on].append((arm.name, run.seed))
    return sides


def arm_label(data: ReportData, name: str) -> str:
    """What to call an arm: its label, unless it is the one that a reader looks for by its role."""
    arm = data.arm(name)
    if is_advised(data, name) and name not in (data.baseline, data.candidate):
        return "recommended"
    return name if arm is None else arm.label


def is_advised(data: ReportData, name: str) -> bool:
    """True for the arm of the recommended recipe."""
    return data.recommendation is not None and name == data.recommendation.arm


def kind_of(data: ReportData, arm: ArmResult) -> str:
    """Role of an arm: recommended, baseline, candidate or other."""
    if is_advised(data, arm.name):
        return "recommended"
    return {data.baseline: "baseline", data.candidate: "candidate"}.get(arm.name, "other")


def role(data: ReportData, name: str) -> str:
    """What to call an arm in a sentence."""
    if is_advised(data, name):
        return "the recommended recipe"
    return {data.baseline: "the baseline", data.candidate: "the candidate"}.get(name, arm_label(data, name))


def unstudied(data: ReportData, effect: Effect) -> bool:
    """True for a factor that a factorial did not cross: no runs tell it from the others, by design."""
    if data.design != "factorial" or effect.estimate is not None:
        return False
    arms = [a for a in data.arms if a.name != data.baseline]
    own = [effect.factor in a.factors_on for a in arms]
    others = [f.key for f in data.factors if f.key != effect.factor]
    return len(set(own)) < 2 or any(own == [key in a.factors_on for a in arms] for key in others)


def word(data: ReportData, effect: Effect) -> str:
    """The verdict on a factor as people read it."""
    return "not studied" if unstudied(data, effect) else effect.verdict


def readings(data: ReportData, pairs: Iterable[tuple[str, int]]) -> str:
    """``24 runs``, or ``96 readings of 24 runs`` where runs were evaluated in more than one way."""
    wanted = set(pairs)
    found = [r.run_id for a in data.arms for r in a.runs if (a.name, r.seed) in wanted]
    runs = len(set(found))
    noun = f"{runs} run{'' if runs == 1 else 's'}"
    return noun if runs == len(found) else f"{len(found)} readings of {noun}"


def sealed_name(data: ReportData) -> str:
    """Name of the sealed split."""
    named = [o.split for o in data.openings] + [c.split for c in data.comparisons if c.split != "selection"]
    return named[0] if named else data.confirm.split if data.confirm else "test"


def any_sealed(data: ReportData) -> bool:
    """True if some run has a value on the sealed split."""
    return any(run.sealed is not None for arm in data.arms for run in arm.runs)


def lost(arm: ArmResult) -> list[RunResult]:
    """Runs that diverged or failed; those that have not ended are not among them."""
    return [run for run in arm.runs if run.status in ("diverged", "failed")]


def finding(data: ReportData, c: Comparison) -> Verdict:
    """Verdict on a comparison, after Holm's correction; nothing is shown by an interval that holds 0."""
    across = c.low is not None and c.high is not None and c.low <= 0 <= c.high
    if c.p_holm is not None and c.p_holm < data.alpha and not across:
        return "helps" if c.difference > 0 else "hurts"
    if c.low is not None and c.high is not None and -data.delta < c.low and c.high < data.delta:
        return "equivalent"
    return "undetected"


def dressed(data: ReportData) -> ReportData:
    """The content fit for people: :func:`clean`, with arrows and minus signs in its labels."""
    tidy = clean(data)
    factors = [
        replace(f, label=_arrows(f.label), before=_arrows(f.before), after=_arrows(f.after))
        for f in tidy.factors
    ]
    arms = [replace(a, label=_arrows(a.label)) for a in tidy.arms]
    return replace(tidy, factors=factors, arms=arms, aliases=[_arrows(one) for one in tidy.aliases])


def _arrows(text: str) -> str:
    text = text.replace(" -> ", " → ")
    return f"− {text[2:]}" if text.startswith("- ") else text


def clean(data: ReportData) -> ReportData:
    """The content without numbers that are not finite: None where one may be missing, else left out."""
    tidy = _finite(data)
    confirm = tidy.confirm
    if confirm is not None and None in (confirm.difference, confirm.baseline, confirm.candidate):
        confirm = None
    arms = [replace(a, runs=[replace(r, seconds=r.seconds or 0.0) for r in a.runs]) for a in tidy.arms]
    return replace(
        tidy,
        arms=arms,
        confirm=confirm,
        delta=tidy.delta or 0.0,
        alpha=tidy.alpha or 0.05,
        metrics=[replace(m, scale=1.0 if m.scale is None else m.scale) for m in tidy.metrics],
        interactions=[p for p in tidy.interactions if p.estimate is not None],
        comparisons=[c for c in tidy.comparisons if c.difference is not None],
        residuals=[r for r in tidy.residuals if None not in (r.fitted, r.residual)],
        stages=[replace(s, seconds=s.seconds or 0.0) for s in tidy.stages],
    )


def _finite(value: T) -> T:
    found: Any = value
    if isinstance(value, float):
        found = value if math.isfinite(value) else None
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{f.name: _finite(getattr(value, f.name)) for f in fields(value)})
    elif isinstance(value, dict):
        found = {k: cleaned for k, v in value.items() if (cleaned := _finite(v)) is not None or v is None}
    elif isinstance(value, list | tuple):
        every = [_finite(v) for v in value]
        kept = [v for v in every if not (isinstance(v, tuple) and None in v)]
        found = type(value)(kept)
    return cast(T, found)
