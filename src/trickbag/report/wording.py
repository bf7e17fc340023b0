"""A study in plain words: the verdict, and a methods paragraph fit for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trickbag.report.claims import advice, claims, count, join, weighty
from trickbag.report.content import DESIGNS, ArmResult, ReportData, interval, points
from trickbag.report.shown import ENTIRE, TIME, role
from trickbag.study.statistics import Effect


@dataclass(frozen=True)
class Verdict:
    """The study in plain words.

    Attributes:
        headline: what is recommended; where nothing is, what the candidate gains over the baseline.
        claims: what was shown on fresh seeds, after correction, and what was not; without fresh seeds, what
            was shown of the whole candidate; a sentence each.
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
    claims: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything, headline first."""
        return self.headline, *self.claims, *self.findings, *self.remarks


def run_seconds(arm: ArmResult) -> float | None:
    """Mean training time of an arm's runs, or else their mean wall time; None without either."""
    known = [run.costs[TIME] for run in arm.runs if run.costs.get(TIME, 0) > 0]
    return fmean(known) if known else arm.seconds


def cost_multiple(data: ReportData, arm: ArmResult | None) -> float | None:
    """Time of an arm's runs as a multiple of the baseline's, or of the first arm's without one.

    Runs with the same seeds are compared, if there are any: they were made at about the same time, and the
    machine may have had more to do at others.
    """
    reference = data.arm(data.baseline) or (data.arms[0] if data.arms else None)
    if arm is None or reference is None:
        return None
    ended = [{run.seed for run in a.runs if run.status == "finished"} for a in (arm, reference)]
    if common := ended[0] & ended[1]:
        arm, reference = (
            replace(a, runs=[run for run in a.runs if run.seed in common]) for a in (arm, reference)
        )
    timed = all(any(run.costs.get(TIME, 0) > 0 for run in a.runs) for a in (arm, reference))
    own, other = (run_seconds(a) if timed else a.seconds for a in (arm, reference))
    return own / other if own and other else None


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
    whole, *sealed = _gain(data)
    recommended = advice(data)
    overall = [] if data.analysis.overall is None else [whole]
    shown, remarks = claims(data), list(sealed)
    if any(c.split != "selection" for c in data.comparisons):
        remarks = []
    if recommended is not None and shown:
        remarks = overall + remarks
    elif recommended is not None:
        shown, remarks = overall + remarks, []
    remarks += [*_transductive(data), *_limits(data, groups["undetected"], detectable)]
    if cost is not None:
        remarks.append(f"A run of the candidate takes {cost:.2f} times as long as one of the baseline.")
    remarks += _trouble(data)
    return Verdict(
        recommended or whole,
        tuple(remarks),
        tuple(_findings(data, groups)),
        labels["helps"],
        labels["hurts"],
        labels["equivalent"],
        labels["undetected"],
        detectable,
        cost,
        trouble,
        tuple(shown),
    )


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
            f"On the sealed {sealed.split} split it scores {sealed.candidate:.2f} against "
            f"{sealed.baseline:.2f}: {points(sealed.difference)} points{sure} over "
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


def _transductive(data: ReportData) -> list[str]:
    arms = [arm.label for arm in data.arms if arm.transductive]
    if not arms:
        return []
    those = "all arms" if len(arms) == len(data.arms) and len(arms) > 1 else join(arms)
    return [
        f"Transductive: {those} trained on the images of the test split, without their labels. What they "
        "score on it does not tell how they do on new images."
    ]


def _limits(data: ReportData, unresolved: Sequence[Effect], detectable: float | None) -> list[str]:
    if not unresolved:
        return []
    names = join([data.label(e.factor) for e in unresolved])
    if detectable is None:
        return [f"Not resolved: {names}; the study has no estimate of their noise."]
    return [
        f"Not resolved: {names}. With 80 % power this study could have seen effects of {detectable:.2f} "
        "points or more; smaller ones may be there."
    ]


def methods(data: ReportData) -> str:
    """A methods paragraph fit for a paper."""
    analysis = data.analysis
    sizes = sorted({len(arm.runs) for arm in data.arms})
    runs = sum(len(arm.runs) for arm in data.arms)
    each = f"each with {count(len(data.seeds), 'seed')}"
    if sizes and sizes != [len(data.seeds)]:
        fewest, most = sizes[0], sizes[-1]
        number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        each = f"each with {number} of {count(len(data.seeds), 'seed')}, {runs} readings in all"
    sentences = [
        f"We compared {count(len(data.arms), 'training recipe')} on {data.data_name} "
        f"({DESIGNS.get(data.design, data.design)}), {each}."
    ]
    if data.stages:
        went = [f"{stage.name} ({count(stage.runs, 'run')})" for stage in data.stages]
        sentences.append(f"The study went in stages: {join(went)}.")
    sentences.append(
        "Runs with one seed share initial weights, data order and the draws of every trick they have in "
        f"common. The primary metric is {data.metric} on the selection split; differences are in percentage "
        f"points. {analysis.method}"
    )
    paired, unpaired, correlation = analysis.sd_paired, analysis.sd_unpaired, analysis.correlation
    if paired is not None and unpaired is not None and correlation is not None:
        sentences.append(
            f"The standard deviation of a paired difference was {paired:.3g} points, of an unpaired one "
            f"{unpaired:.3g} (correlation between runs with one seed: {points(correlation)})."
        )
    if data.recommendation is not None:
        sentences.append(
            "The recommended recipe has the best expected value less the price of its training time, as "
            "estimated on the selection split; it is a recommendation, not a claim."
        )
    if data.attribution:
        whose = "Its" if data.recommendation is not None else "The candidate's"
        sentences.append(
            f"{whose} gain was attributed to factors as the effect of each and half of its interactions."
        )
    sentences += _transductive(data)
    return " ".join([*sentences, *_confirming(data)]).strip()


def _confirming(data: ReportData) -> list[str]:
    if data.comparisons:
        fewest, most = min(n := [len(c.pairs) for c in data.comparisons]), max(n)
        number = count(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        bca = " and BCa bootstrap intervals" if any(c.low_bca is not None for c in data.comparisons) else ""
        told = [
            f"{count(len(data.comparisons), 'comparison')} of recipes used {number} that no earlier stage "
            f"had seen: paired t tests{bca}, corrected by Holm's method "
            f"over the comparisons of a split. Claims rest on the {weighty(data)[0].split} split."
        ]
    elif data.confirm is not None:
        told = [
            f"The {data.confirm.split} split was used only to compare baseline and candidate by a paired "
            "t test."
        ]
    else:
        return []
    times = len(data.openings) or len(data.confirm.opened if data.confirm else [])
    split = data.openings[0].split if data.openings else data.confirm.split if data.confirm else "test"
    if times:
        told.append(f"The {split} split was {'opened once' if times == 1 else f'opened {times} times'}.")
    return told
