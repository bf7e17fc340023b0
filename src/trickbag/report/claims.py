"""Sentences on what a study recommends, and, apart from it, on what it may claim."""

from __future__ import annotations

from collections.abc import Sequence

from trickbag.report.content import Comparison, Opening, ReportData, interval, p_value, points
from trickbag.report.shown import arm_label, finding, role

_NAMED = 6


def count(n: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def join(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return "" if not words else words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def advice(data: ReportData) -> str | None:
    """The recommended recipe, its expected gain and its cost, in a sentence; None without one."""
    one = data.recommendation
    if one is None:
        return None
    names = [data.label(key) for key in one.factors_on]
    if not names:
        return "Recommended: the baseline as it is. No factor is expected to be worth its training time."
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
    cost = "" if one.cost_multiple is None else f", at ×{one.cost_multiple:.2f} the training time"
    return f"Recommended: {what}, for {gain}{sure} over the baseline{cost}."


def weighty(data: ReportData) -> list[Comparison]:
    """Comparisons that claims rest on: those on the sealed split where there are any."""
    sealed = [c for c in data.comparisons if c.split != "selection"]
    return sealed or data.comparisons


def claims(data: ReportData) -> list[str]:
    """What survives the corrected interval, and what does not, a sentence for each comparison."""
    return [_claim(data, c) for c in weighty(data)]


def _claim(data: ReportData, c: Comparison) -> str:
    plus, minus, look = role(data, c.plus), role(data, c.minus), finding(data, c)
    size = f"{points(c.difference)} points of {data.metric}"
    sure = [] if c.low is None else [f"corrected interval {interval(c.low, c.high)}"]
    if c.p_holm is not None:
        sure.append(f"Holm p {'' if c.p_holm < 0.001 else '= '}{p_value(c.p_holm)}")
    brackets = f" ({', '.join(sure)})" if sure else ""
    where = f"on the {'sealed ' if c.split != 'selection' else ''}{c.split} split"
    seeds = f"over {count(len(c.pairs), 'fresh seed')}" if c.pairs else "on fresh seeds"
    chance = (
        ""
        if c.chance is None
        else f" With one seed for both, a new run of the first is better with probability {c.chance:.2f}."
    )
    if look in ("helps", "hurts"):
        verb = "beats" if look == "helps" else "is worse than"
        return f"Shown: {plus} {verb} {minus} {where}, {size}{brackets} {seeds}.{chance}"
    if look == "equivalent":
        within = f"to within ±{data.delta:g} points"
        return f"Shown: {plus} equals {minus} {within} {where}, {size}{brackets} {seeds}."
    return f"Not shown: a difference between {plus} and {minus} {where}, {size}{brackets} {seeds}."


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
