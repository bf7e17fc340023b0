"""Everything a report shows, as plain values that go to JSON and back, and the verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from trickbag.errors import StudyError
from trickbag.study.statistics import Analysis, Effect

Status = Literal["finished", "diverged", "failed"]

DESIGNS = {
    "ladder": "ladder: factors are added one after another, each rung judged against the one below",
    "leave-one-out": "leave-one-out: the candidate against itself without each factor",
    "one-at-a-time": "one at a time: the baseline against itself with each factor",
}


@dataclass(frozen=True)
class RunResult:
    """One run of an arm.

    Attributes:
        seed: its seed.
        run_id: content address of the run.
        status: finished, diverged or failed.
        value: primary metric on the selection split in points; None without one.
        metrics: everything else that was measured, by name.
        seconds: wall time of training and evaluation.
        curve: ``(epoch, value)`` of the primary metric on the selection split.
        message: why it diverged or failed.
    """

    seed: int
    run_id: str
    status: Status
    value: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True)
class ArmResult:
    """One recipe of the study and its runs."""

    name: str
    label: str
    factors_on: list[str]
    runs: list[RunResult]

    @property
    def values(self) -> dict[int, float]:
        """Primary metric by seed, of the runs that have one."""
        return {r.seed: r.value for r in self.runs if r.value is not None and math.isfinite(r.value)}

    @property
    def mean(self) -> float | None:
        """Mean of the primary metric; None if no run has one."""
        return fmean(self.values.values()) if self.values else None

    @property
    def seconds(self) -> float | None:
        """Mean wall time of the finished runs; None without one."""
        times = [r.seconds for r in self.runs if r.status == "finished" and r.seconds > 0]
        return fmean(times) if times else None


@dataclass(frozen=True)
class Factor:
    """One entry of ``diff(baseline, candidate)``; ``passive`` ones cost no training run of their own."""

    key: str
    label: str
    before: str
    after: str
    passive: bool = False


@dataclass(frozen=True)
class Confirmation:
    """Baseline against candidate on the sealed split, in points.

    Attributes:
        baseline: mean of the baseline.
        candidate: mean of the candidate.
        difference: candidate minus baseline.
        low: lower end of the interval; None with a single seed.
        high: its upper end.
        p: two-sided p-value of the paired test.
        n: seeds.
        opened: when the split was opened, ISO 8601, every time.
        split: its name.
    """

    baseline: float
    candidate: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    opened: list[str] = field(default_factory=list)
    split: str = "test"


@dataclass(frozen=True)
class ReportData:
    """A finished study, ready to be shown.

    Attributes:
        title: heading.
        data_name: name of the data set.
        design: ``"ladder"``, ``"leave-one-out"`` or ``"one-at-a-time"``.
        baseline: name of the baseline's arm.
        candidate: name of the candidate's arm.
        delta: margin of equivalence in points.
        alpha: family-wise level.
        arms: in the order of the design.
        analysis: effects; its factors are the keys of ``factors``.
        factors: what was switched, by key.
        metric: name of the primary metric.
        confirm: result on the sealed split; None while it is sealed.
        plan: figures of the plan: ``runs``, ``trained``, ``shared``, ``seconds_estimated``,
            ``seconds_actual``, ``detectable``, or others. Keys that begin with ``seconds``
            are shown as durations.
        provenance: code version, data fingerprint, data facts, seeds, hardware, versions, command.
        recipes: YAML by name.
    """

    title: str
    data_name: str
    design: str
    baseline: str
    candidate: str
    delta: float
    alpha: float
    arms: list[ArmResult]
    analysis: Analysis
    factors: list[Factor]
    metric: str = "accuracy"
    confirm: Confirmation | None = None
    plan: dict[str, float | int | str | None] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, if it was run."""
        return next((a for a in self.arms if a.name == name), None)

    def label(self, key: str) -> str:
        """What to call the factor with that key."""
        return next((f.label for f in self.factors if f.key == key), key)

    @property
    def seeds(self) -> list[int]:
        """Every seed that was run."""
        return sorted({r.seed for arm in self.arms for r in arm.runs})

    @property
    def ranked(self) -> list[Effect]:
        """Effects, largest first; those without an estimate last."""
        return sorted(
            self.analysis.effects,
            key=lambda e: (e.estimate is None, -(e.estimate or 0.0), self.label(e.factor)),
        )

    def to_json(self) -> str:
        """The content as JSON."""
        from pydantic import TypeAdapter

        return TypeAdapter(ReportData).dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ReportData:
        """Inverse of :meth:`to_json`.

        Raises:
            StudyError: the text is not a report's content.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(ReportData).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its start"
            raise StudyError(
                f"not the content of a report: {first['msg']} at {place}",
                expected="JSON as written by ReportData.to_json",
            ) from error


def points(value: float, digits: int = 2) -> str:
    """A signed difference, with a true minus sign: ``+0.52``, ``−1.30``, ``0.00``."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """``[−0.10, +0.52]``, or a dash without an interval."""
    return "–" if low is None or high is None else f"[{points(low)}, {points(high)}]"


def p_value(p: float | None) -> str:
    """``< 0.001``, ``0.021``, ``0.34``, or a dash."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """``42 s``, ``3.5 min``, ``2.1 h``, ``4.0 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= 90):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


@dataclass(frozen=True)
class Verdict:
    """The study in plain words.

    Attributes:
        headline: what the candidate gains over the baseline, in one sentence.
        remarks: the sealed split, what could not be resolved, cost, trouble; a sentence each.
        findings: what helps, hurts and does nothing, with effects; a sentence each.
        helps: labels of factors that help, largest effect first.
        hurts: labels of factors that hurt, largest harm first.
        equivalent: labels of factors whose effect is zero within the margin.
        undetected: labels of factors that the study could not resolve.
        detectable: smallest effect the study could have seen for every unresolved factor, in points.
        cost: training time of the candidate as a multiple of the baseline's.
        trouble: runs that diverged or failed.
    """

    headline: str
    remarks: tuple[str, ...]
    findings: tuple[str, ...]
    helps: tuple[str, ...]
    hurts: tuple[str, ...]
    equivalent: tuple[str, ...]
    undetected: tuple[str, ...]
    detectable: float | None
    cost: float | None
    trouble: int

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything, headline first."""
        return self.headline, *self.findings, *self.remarks


def cost_multiple(data: ReportData, arm: ArmResult | None) -> float | None:
    """Mean wall time of an arm's runs as a multiple of the baseline's, or of the first arm's without one."""
    reference = data.arm(data.baseline) or (data.arms[0] if data.arms else None)
    if arm is None or reference is None or not arm.seconds or not reference.seconds:
        return None
    return arm.seconds / reference.seconds


def verdict(data: ReportData) -> Verdict:
    """Say what the study found, what it did not, and what it could not have found."""
    groups: dict[str, list[Effect]] = {"helps": [], "hurts": [], "equivalent": [], "undetected": []}
    for effect in data.ranked:
        groups[effect.verdict].append(effect)
    groups["hurts"].reverse()
    labels = {name: tuple(data.label(e.factor) for e in effects) for name, effects in groups.items()}
    unresolved = [e.detectable for e in groups["undetected"] if e.detectable is not None]
    detectable = max(unresolved, default=None)
    cost = cost_multiple(data, data.arm(data.candidate))
    trouble = sum(r.status != "finished" for arm in data.arms for r in arm.runs)
    headline, *sealed = _gain(data)
    remarks = [*sealed, *_limits(data, groups["undetected"], detectable)]
    if cost is not None:
        remarks.append(f"A run of the candidate takes {cost:.2f} times as long as one of the baseline.")
    if trouble:
        remarks.append(f"{_count(trouble, 'run')} diverged or failed; the list is with the costs.")
    return Verdict(
        headline,
        tuple(remarks),
        tuple(_findings(data, groups)),
        labels["helps"],
        labels["hurts"],
        labels["equivalent"],
        labels["undetected"],
        detectable,
        cost,
        trouble,
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _gain(data: ReportData) -> list[str]:
    level = f"{100 * (1 - data.alpha):g} %"
    overall, sealed = data.analysis.overall, data.confirm
    sentences = []
    if overall is None or overall.estimate is None:
        sentences.append(
            f"This study judges {_count(len(data.factors), 'factor')} one by one; it did not compare the "
            "whole candidate with the baseline."
            if overall is None
            else "Candidate and baseline share no finished run, so the overall gain is unknown."
        )
    else:
        size = f"{points(overall.estimate)} points of {data.metric} on the selection split"
        seeds = f"over {_count(overall.n_pairs, 'seed')}"
        if overall.low is None:
            sentences.append(f"The candidate differs from the baseline by {size} {seeds}; {overall.note}.")
        else:
            verb = {"helps": "beats", "hurts": "is worse than"}.get(overall.verdict, "")
            sure = f"{level} interval {interval(overall.low, overall.high)}"
            if verb:
                sentences.append(f"The candidate {verb} the baseline: {size} ({sure}) {seeds}.")
            elif overall.verdict == "equivalent":
                sentences.append(
                    f"The candidate equals the baseline to within ±{data.delta:g} points: "
                    f"{size} ({sure}) {seeds}."
                )
            else:
                sentences.append(
                    f"No difference between candidate and baseline could be shown: {size} ({sure}) {seeds}."
                )
    if sealed is not None:
        sure = "" if sealed.low is None else f" ({level} interval {interval(sealed.low, sealed.high)})"
        sentences.append(
            f"On the sealed {sealed.split} split it scores {sealed.candidate:.2f} against "
            f"{sealed.baseline:.2f}: {points(sealed.difference)} points{sure} over "
            f"{_count(sealed.n, 'seed')}."
        )
    return sentences


def _findings(data: ReportData, groups: dict[str, list[Effect]]) -> list[str]:
    def named(effects: Sequence[Effect]) -> str:
        return _join([f"{data.label(e.factor)} ({points(e.estimate or 0.0)})" for e in effects])

    sentences = []
    if groups["helps"]:
        sentences.append(f"Helping: {named(groups['helps'])}.")
    if groups["hurts"]:
        sentences.append(f"Hurting: {named(groups['hurts'])}.")
    if not groups["helps"] and not groups["hurts"]:
        sentences.append("No single factor was shown to help or to hurt.")
    if groups["equivalent"]:
        sentences.append(f"Zero to within ±{data.delta:g} points: {named(groups['equivalent'])}.")
    return sentences


def _limits(data: ReportData, unresolved: Sequence[Effect], detectable: float | None) -> list[str]:
    if not unresolved:
        return []
    names = _join([data.label(e.factor) for e in unresolved])
    if detectable is None:
        return [f"Not resolved: {names}; the study has no estimate of their noise."]
    return [
        f"Not resolved: {names}. With 80 % power this study could have seen effects of {detectable:.2f} "
        "points or more; smaller ones may be there."
    ]


def methods(data: ReportData) -> str:
    """A methods paragraph fit for a paper."""
    analysis = data.analysis
    seeds = _count(len(data.seeds), "seed")
    text = (
        f"We compared {_count(len(data.arms), 'training recipe')} on {data.data_name} "
        f"({DESIGNS.get(data.design, data.design)}), each with {seeds}. Runs with one seed share initial "
        f"weights, data order and the draws of every trick they have in common. The primary metric is "
        f"{data.metric} on the selection split; differences are in percentage points. {analysis.method}"
    )
    if analysis.sd_paired is not None and analysis.correlation is not None:
        text += (
            f" The standard deviation of a paired difference was {analysis.sd_paired:.3g} points, of an "
            f"unpaired one {analysis.sd_unpaired:.3g} (correlation between runs with one seed: "
            f"{points(analysis.correlation)})."
        )
    if data.confirm is not None:
        times = len(data.confirm.opened)
        text += (
            f" The {data.confirm.split} split was used only to compare baseline and candidate by a paired t "
            f"test{f', and opened {times} times' if times > 1 else ', and opened once' if times else ''}."
        )
    return text
