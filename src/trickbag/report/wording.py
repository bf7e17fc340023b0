"""A study in plain words: the verdict, and a methods paragraph fit for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trickbag.report.content import DESIGNS, ArmResult, ReportData, interval, points
from trickbag.study.statistics import Effect


@dataclass(frozen=True)
class Verdict:
    """The study in plain words.

    Attributes:
        headline: what the candidate gains over the baseline, in one sentence.
        remarks: the sealed split, transductive use, what could not be resolved, cost, trouble; a sentence
            each.
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
    remarks = [*sealed, *_transductive(data), *_limits(data, groups["undetected"], detectable)]
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


def _transductive(data: ReportData) -> list[str]:
    arms = [arm.label for arm in data.arms if arm.transductive]
    if not arms:
        return []
    those = "all arms" if len(arms) == len(data.arms) and len(arms) > 1 else _join(arms)
    return [
        f"Transductive: {those} trained on the images of the test split, without their labels. What they "
        "score on it does not tell how they do on new images."
    ]


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
    text += "".join(f" {sentence}" for sentence in _transductive(data))
    if data.confirm is not None:
        times = len(data.confirm.opened)
        text += (
            f" The {data.confirm.split} split was used only to compare baseline and candidate by a paired t "
            f"test{f', and opened {times} times' if times > 1 else ', and opened once' if times else ''}."
        )
    return text
