"""A study in plain words: the verdict, and a methods paragraph fit for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trickbag.report.claims import Claim, advice, claims, count, join, whole_claims
from trickbag.report.content import ReportData, interval, points
from trickbag.report.interactions import depends
from trickbag.report.method import methods as methods
from trickbag.report.method import transductive
from trickbag.report.shown import ENTIRE, lost, role, word
from trickbag.report.times import cost_multiple as cost_multiple
from trickbag.report.times import roughness
from trickbag.study.statistics import Effect


@dataclass(frozen=True)
class Verdict:
    """The study in plain words.

    Attributes:
        headline: what is recommended; where nothing is, what the candidate gains over the baseline.
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
        grounds: what was shown on fresh seeds, after correction, and what was not; without fresh seeds, what
            was shown of the whole candidate.
        unstudied: labels of factors that the design did not set apart from others.
        depends: factors that help with a partner and hurt without it, or the reverse; among ``findings``.
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
    grounds: tuple[Claim, ...] = ()
    unstudied: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()

    @property
    def claims(self) -> tuple[str, ...]:
        """The sentences of ``grounds``."""
        return tuple(claim.text for claim in self.grounds)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything, headline first."""
        return self.headline, *self.claims, *self.findings, *self.remarks


def verdict(data: ReportData) -> Verdict:
    """Say what the study found, what it did not, and what it could not have found."""
    groups: dict[str, list[Effect]] = {
        "helps": [], "hurts": [], "equivalent": [], "undetected": [], "not studied": [],
    }  # fmt: skip
    for effect in data.ranked:
        groups[word(data, effect)].append(effect)
    groups["hurts"].reverse()
    labels = {name: tuple(data.label(e.factor) for e in effects) for name, effects in groups.items()}
    unresolved = [e.detectable for e in groups["undetected"] if e.detectable is not None]
    detectable = max(unresolved, default=None)
    cost = cost_multiple(data, data.arm(data.candidate))
    whole, *sealed = _gain(data)
    recommended = advice(data)
    grounds = claims(data)
    if grounds:
        remarks = _pilot_included(data)
    elif recommended is not None:
        grounds, remarks = whole_claims(data), []
        if data.analysis.overall is None or data.analysis.overall.estimate is None:
            remarks = [] if data.analysis.overall is None else [whole]
    else:
        remarks = list(sealed)
    headline = recommended or whole
    if data.unfinished and recommended is None:
        headline = f"So far: {headline[0].lower()}{headline[1:]}"
    turning = depends(data)
    remarks += [*transductive(data), *_limits(data, groups["undetected"], detectable), *_unstudied(labels)]
    if cost is not None:
        remarks.append(f"A run of the candidate takes {cost:.2f} times as long as one of the baseline.")
    if cost is not None and (rough := roughness(data)) is not None:
        remarks.append(rough)
    remarks += _trouble(data)
    return Verdict(
        headline,
        tuple(remarks),
        (*_findings(data, groups), *turning),
        labels["helps"],
        labels["hurts"],
        labels["equivalent"],
        labels["undetected"],
        detectable,
        cost,
        sum(len(lost(arm)) for arm in data.arms),
        tuple(grounds),
        labels["not studied"],
        tuple(turning),
    )


def _pilot_included(data: ReportData) -> list[str]:
    """The candidate on all of its seeds, where claims rest on fresh ones only."""
    e = data.analysis.overall
    if e is None or e.estimate is None:
        return []
    sure = "" if e.low is None else f" ({100 * (1 - data.alpha):g} % interval {interval(e.low, e.high)})"
    return [
        "On the selection split, pilot seeds included (not a claim): the candidate differs from the baseline "
        f"by {points(e.estimate)} points of {data.metric}{sure} over {count(e.n_pairs, 'seed')}."
    ]


def _unstudied(labels: dict[str, tuple[str, ...]]) -> list[str]:
    names = labels["not studied"]
    return [f"Not studied, because not crossed: {join(names)}."] if names else []


def _trouble(data: ReportData) -> list[str]:
    told = []
    for status, rest in (
        ("diverged", "which counts as an outcome" if data.design not in ENTIRE else ""),
        ("failed", ""),
    ):
        found = [role(data, arm.name) for arm in data.arms for run in arm.runs if run.status == status]
        if found:
            arms = list(dict.fromkeys(found))
            of = f" of {join(arms)}" if len(arms) <= 4 else f" of {len(arms)} recipes"
            told.append(f"{count(len(found), 'run')}{of} {status}{f', {rest}' if rest else ''}.")
    if told:
        told[-1] = told[-1][:-1] + "; the list is with the runs."
    return told


def _gain(data: ReportData) -> list[str]:
    level = f"{100 * (1 - data.alpha):g} %"
    overall, sealed = data.analysis.overall, data.confirm
    sentences = []
    if overall is None or overall.estimate is None:
        sentences.append(
            f"This study judges {count(len(data.factors), 'factor')} one by one; it did not compare the "
            "whole candidate with the baseline."
            if overall is None
            else "Candidate and baseline share no finished run, so the overall gain is unknown."
        )
    else:
        size = f"{points(overall.estimate)} points of {data.metric} on the selection split"
        seeds = f"over {count(overall.n_pairs, 'seed')}"
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
            f"On the sealed {sealed.split} split the candidate scores {sealed.candidate:.2f} against the "
            f"baseline's {sealed.baseline:.2f}: {points(sealed.difference)} points{sure} over "
            f"{count(sealed.n, 'seed')}."
        )
    return sentences


def _findings(data: ReportData, groups: dict[str, list[Effect]]) -> list[str]:
    def named(effects: Sequence[Effect]) -> str:
        return join([f"{data.label(e.factor)} ({points(e.estimate or 0.0)})" for e in effects])

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
    measured = [data.label(e.factor) for e in unresolved if e.detectable is not None]
    blind = [data.label(e.factor) for e in unresolved if e.detectable is None]
    told = []
    if measured and detectable is not None:
        told.append(
            f"Not resolved: {join(measured)}. With 80 % power this study could have seen effects of "
            f"{detectable:.2f} points or more; smaller ones may be there."
        )
    if blind:
        told.append(f"Not resolved: {join(blind)}; the study has no estimate of their noise.")
    return told
