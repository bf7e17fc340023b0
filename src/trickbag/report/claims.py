"""Sentences on what a study recommends, and, apart from it, on what it may claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trickbag.report.content import Comparison, Opening, ReportData, interval, p_value, points
from trickbag.report.names import short
from trickbag.report.shown import arm_label, finding, is_advised, role, sealed_name
from trickbag.report.times import advised_multiple
from trickbag.study.statistics import Effect, Verdict

_NAMED = 6


@dataclass(frozen=True)
class Claim:
    """What was shown, or was not, in a sentence; ``href`` leads to the runs that it rests on."""

    text: str
    look: Verdict
    href: str


def count(n: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def join(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return "" if not words else words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def advice(data: ReportData) -> str | None:
    """The recommended recipe, its gain and its cost, in a sentence; None without one.

    What was shown of it on the sealed split comes first; otherwise what is expected of it.
    """
    one = data.recommendation
    if one is None:
        return None
    if not one.factors_on:
        if data.unfinished:
            return "So far the best recipe is the baseline: no factor is expected to be worth its time."
        return "Recommended: the baseline as it is. No factor is expected to be worth its training time."
    names = [short(data, key) for key in one.factors_on]
    if len(names) == len(data.factors) and len(names) > 1:
        what = f"the candidate, with all {len(names)} factors"
    elif len(names) > _NAMED:
        what = f"{len(names)} of the {len(data.factors)} factors"
    else:
        what = join(names)
    gain = (
        "an unknown gain" if one.gain is None else f"an expected {points(one.gain)} points of {data.metric}"
    )
    sure = "" if one.low is None or one.high is None else f" {interval(one.low, one.high)}"
    multiple = advised_multiple(data)
    cost = "" if multiple is None else f", at ×{multiple:.2f} the training time"
    if data.unfinished:
        return f"So far the best recipe is {what}, for {gain}{sure} over the baseline{cost}."
    proof = _proof(data)
    if proof is None:
        return f"Recommended: {what}, for {gain}{sure} over the baseline{cost}."
    hoped = "" if one.gain is None else f" (expected on the selection split: {points(one.gain)}{sure})"
    return (
        f"{points(proof.difference)} points of {data.metric} over the baseline on the sealed {proof.split} "
        f"split {interval(proof.low, proof.high)}: use {what}{hoped}{cost}."
    )


def _proof(data: ReportData) -> Comparison | None:
    """The recommended recipe against the baseline on the sealed split, if a gain was shown there."""
    for c in data.comparisons:
        if is_advised(data, c.plus) and c.minus == data.baseline and c.split != "selection":
            return c if finding(data, c) == "helps" and c.low is not None else None
    return None


def weighty(data: ReportData) -> list[Comparison]:
    """Comparisons that claims rest on: those on the sealed split where there are any."""
    sealed = [c for c in data.comparisons if c.split != "selection"]
    return sealed or data.comparisons


def foremost(data: ReportData) -> Comparison | None:
    """The comparison to read first: the recommended recipe against the baseline, on the sealed split."""
    order = sorted(
        data.comparisons,
        key=lambda c: (not is_advised(data, c.plus), c.split == "selection", c.minus != data.baseline),
    )
    return order[0] if order else None


def untested(data: ReportData) -> bool:
    """True if the sealed split was opened, and not for the recommended recipe."""
    one = data.recommendation
    if one is None:
        return False
    sealed = [c for c in data.comparisons if c.split != "selection"]
    tested = {name for c in sealed for name in (c.plus, c.minus)}
    tested |= {a.name for a in data.arms if any(r.sealed is not None for r in a.runs)}
    tested |= {name for o in data.openings for name in o.arms}
    if data.confirm is not None:
        tested |= {data.baseline, data.candidate}
    return bool(tested) and one.arm not in tested


def claims(data: ReportData) -> list[Claim]:
    """What survives the corrected interval, and what does not, a claim for each comparison."""
    found = [_claim(data, c) for c in weighty(data)]
    return [*found, *_nothing(data)] if found else []


def whole_claims(data: ReportData) -> list[Claim]:
    """What was shown of the whole candidate, in studies without comparisons on fresh seeds."""
    found = []
    if data.analysis.overall is not None and data.analysis.overall.estimate is not None:
        found.append(_overall(data, data.analysis.overall))
    if data.confirm is not None:
        found.append(_confirmed(data))
    return [*found, *_nothing(data)]


def _nothing(data: ReportData) -> list[Claim]:
    if not untested(data):
        return []
    text = (
        f"Not shown: anything of the recommended recipe on the sealed {sealed_name(data)} split. It was not "
        "tested there."
    )
    return [Claim(text, "undetected", "#recommended")]


def _overall(data: ReportData, e: Effect) -> Claim:
    size = f"on the selection split, {points(e.estimate or 0.0)} points of {data.metric}"
    sure = "" if e.low is None else f" ({100 * (1 - data.alpha):g} % interval {interval(e.low, e.high)})"
    rest = f"{size}{sure} over {count(e.n_pairs, 'seed')}{f'; {e.note}' if e.low is None and e.note else ''}."
    look: Verdict = "undetected" if e.low is None else e.verdict
    return Claim(_sentence(data, look, "the candidate", "the baseline", rest), look, "#overall-0")


def _confirmed(data: ReportData) -> Claim:
    c = data.confirm
    if c is None:
        raise ValueError("no result on the sealed split")
    look: Verdict = "undetected"
    if c.low is not None and c.high is not None and (c.low > 0 or c.high < 0):
        look = "helps" if c.low > 0 else "hurts"
    sure = "" if c.low is None else f" ({100 * (1 - data.alpha):g} % interval {interval(c.low, c.high)})"
    rest = (
        f"on the sealed {c.split} split, {c.candidate:.2f} against {c.baseline:.2f}: "
        f"{points(c.difference)} points{sure} over {count(c.n, 'seed')}."
    )
    return Claim(_sentence(data, look, "the candidate", "the baseline", rest), look, "#overall-1")


def _sentence(data: ReportData, look: Verdict, plus: str, minus: str, rest: str) -> str:
    if look in ("helps", "hurts"):
        return f"Shown: {plus} {'beats' if look == 'helps' else 'is worse than'} {minus} {rest}"
    if look == "equivalent":
        return f"Shown: {plus} equals {minus} to within ±{data.delta:g} points {rest}"
    return f"Not shown: a difference between {plus} and {minus} {rest}"


def _claim(data: ReportData, c: Comparison) -> Claim:
    plus, minus, look = role(data, c.plus), role(data, c.minus), finding(data, c)
    size = f"{points(c.difference)} points of {data.metric}"
    sure = [] if c.low is None else [f"corrected interval {interval(c.low, c.high)}"]
    if c.p_holm is not None:
        sure.append(f"Holm p {'' if c.p_holm < 0.001 else '= '}{p_value(c.p_holm)}")
    brackets = f" ({', '.join(sure)})" if sure else ""
    where = f"on the {'sealed ' if c.split != 'selection' else ''}{c.split} split"
    seeds = f"over {count(len(c.pairs), 'fresh seed')}" if c.pairs else "on fresh seeds"
    note = f"; {c.note}" if c.note else ""
    chance = (
        f" With one seed for both, a new run of the first is better with probability {c.chance:.2f}."
        if c.chance is not None and look in ("helps", "hurts")
        else ""
    )
    rest = f"{where}, {size}{brackets} {seeds}{note}.{chance}"
    href = f"#comparison-{data.comparisons.index(c)}"
    return Claim(_sentence(data, look, plus, minus, rest), look, href)


def openings(data: ReportData) -> list[str]:
    """Every look at the sealed split, a sentence each."""
    if data.openings:
        return [_opening(data, one) for one in data.openings]
    if data.confirm is not None and data.confirm.opened:
        return [f"The {data.confirm.split} split was opened on {', '.join(data.confirm.opened)}."]
    return []


def _opening(data: ReportData, one: Opening) -> str:
    arms = f" for {join([arm_label(data, a) for a in one.arms])}" if one.arms else ""
    seeds = f" on {'seed' if len(one.seeds) == 1 else 'seeds'} {ranges(one.seeds)}" if one.seeds else ""
    return f"The {one.split} split was opened on {one.time}{arms}{seeds}."


def ranges(seeds: Sequence[int]) -> str:
    """``0–4, 7, 100–102``."""
    found: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if found and seed == found[-1][1] + 1:
            found[-1][1] = seed
        else:
            found.append([seed, seed])
    return ", ".join(str(a) if a == b else f"{a}–{b}" if b > a + 1 else f"{a}, {b}" for a, b in found)
