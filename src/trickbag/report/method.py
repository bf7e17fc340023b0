"""The methods paragraph of a study, fit for a paper."""

from __future__ import annotations

from trickbag.report.claims import count, join, weighty
from trickbag.report.content import DESIGNS, ReportData, points
from trickbag.report.shown import arm_label, readings


def methods(data: ReportData) -> str:
    """A methods paragraph fit for a paper."""
    analysis = data.analysis
    ended = [[r for r in arm.runs if r.status != "pending"] for arm in data.arms]
    sizes = sorted({len(runs) for runs in ended})
    every = [(arm.name, r.seed) for arm, runs in zip(data.arms, ended, strict=True) for r in runs]
    seeds = len({seed for _, seed in every})
    each = f"each with {count(seeds, 'seed')}"
    if sizes and sizes != [seeds]:
        fewest, most = sizes[0], sizes[-1]
        number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        each = f"each with {number} of {count(seeds, 'seed')}, {readings(data, every)} in all"
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
            "estimated on the selection split; it is a recommendation, not a claim, and the interval of its "
            "expected gain is the model's."
        )
    if data.attribution:
        whose = "Its" if data.recommendation is not None else "The candidate's"
        sentences.append(
            f"{whose} gain was attributed to factors as the effect of each and half of its interactions."
        )
    sentences += transductive(data)
    return " ".join([*sentences, *_confirming(data)]).strip()


def _confirming(data: ReportData) -> list[str]:
    if data.comparisons:
        fewest, most = min(n := [len(c.pairs) for c in data.comparisons]), max(n)
        number = count(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
        bca = " and BCa bootstrap intervals" if any(c.low_bca is not None for c in data.comparisons) else ""
        told = [
            f"{count(len(data.comparisons), 'comparison')} of recipes used {number} that no earlier stage "
            f"had seen: paired t tests{bca}, corrected by Holm's method "
            f"over the comparisons of a split. Claims rest on the {weighty(data)[0].split} split. "
            f"Factors and comparisons are two families of claims, each at a level of {100 * data.alpha:g} %."
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


def transductive(data: ReportData) -> list[str]:
    """What took part in training that should not have, in a sentence, if anything did."""
    arms = [arm_label(data, arm.name) for arm in data.arms if arm.transductive]
    if not arms:
        return []
    those = "all arms" if len(arms) == len(data.arms) and len(arms) > 1 else join(arms)
    return [
        f"Transductive: {those} trained on the images of the test split, without their labels. What they "
        "score on it does not tell how they do on new images."
    ]
