"""Tables of a study in words, for a paper (LaTeX) and for a pull request (GitHub Markdown)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from trickbag.report.claims import count
from trickbag.report.content import ArmResult, Comparison, ReportData, interval, p_value, points
from trickbag.report.shown import ENTIRE, arm_label, dressed, is_advised, word
from trickbag.report.wording import cost_multiple


@dataclass(frozen=True)
class Sheet:
    """A table of words, ready to be set.

    Attributes:
        name: of its file, and of its label.
        title: heading.
        caption: what it shows, how it was computed, and what it rests on.
        head: headings of the columns.
        align: ``l``, ``c`` or ``r`` for each column.
        rows: their cells; a row of a single cell is a heading of those below it.
    """

    name: str
    title: str
    caption: str
    head: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]


def sheets(data: ReportData) -> list[Sheet]:
    """Effects, arms and, if some were made, comparisons on fresh seeds."""
    data = dressed(data)
    found = [_effects(data), _arms(data)]
    if data.comparisons:
        found.append(_comparisons(data))
    return found


def _level(data: ReportData) -> str:
    return f"{100 * (1 - data.alpha):g} %"


def _ranges(numbers: Sequence[int]) -> str:
    """``0–2, 5``."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]}" if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)


def _seeds(numbers: Sequence[int]) -> str:
    found = set(numbers)
    return f"{count(len(found), 'seed')}{f' ({_ranges(numbers)})' if found else ''}"


def rests_on(data: ReportData) -> str:
    """The seeds that the effects rest on, and the training runs where a model is fitted to all of them."""
    known = [effect for effect in data.analysis.effects if effect.estimate is not None]
    if known and all(effect.pairs for effect in known):
        return _seeds([seed for effect in known for seed, _ in effect.pairs])
    fitted = {(one.arm, one.seed) for one in data.residuals}
    valued = {
        (arm.name, run.seed): run.run_id
        for arm in data.arms
        for run in arm.runs
        if (arm.name, run.seed) in fitted or (not fitted and run.value is not None)
    }
    return f"{count(len(set(valued.values())), 'training run')}, {_seeds([seed for _, seed in valued])}"


def recipe_name(data: ReportData, name: str) -> str:
    """What to call an arm where there is no room for a legend: a mix of factors by these."""
    arm, label = data.arm(name), arm_label(data, name)
    if arm is not None and label == name and name.startswith("mix "):
        return f"mix of {', '.join(arm.factors_on)}"
    return label


def _effects(data: ReportData) -> Sheet:
    method = data.analysis.method.split(". ")[0].rstrip(".")
    family = sum(effect.p_holm is not None for effect in data.analysis.effects)
    caption = (
        f"Effect of each factor on {data.metric} ({data.data_name}, selection split, percentage points; "
        f"design: {data.design}; {rests_on(data)}). {method}. Intervals: {_level(data)}, individual; p: "
        f"corrected by Holm's method over {count(family, 'factor')}."
    )
    if data.delta > 0:
        caption += f" Equivalent: zero to within ±{data.delta:g} points."
    rows = [
        (
            data.label(effect.factor),
            "–" if effect.estimate is None else points(effect.estimate),
            interval(effect.low, effect.high),
            p_value(effect.p_holm),
            word(data, effect),
        )
        for effect in data.ranked
    ]
    head = ("Factor", "Effect", f"{_level(data)} interval", "Holm p", "Verdict")
    return Sheet("effects", "Effects", caption, head, "lrcrl", tuple(rows))


def _arms(data: ReportData) -> Sheet:
    shown = _notable(data)
    rows = []
    for arm in shown:
        values, multiple = list(arm.values.values()), cost_multiple(data, arm)
        mean = "–" if arm.mean is None else f"{arm.mean:.2f}"
        if len(values) > 1:
            mean += f" ± {stdev(values):.2f}"
        n = f"{len(values)}" if len(values) == len(arm.runs) else f"{len(values)} of {len(arm.runs)}"
        rows.append((_titled(data, arm), mean, n, "–" if multiple is None else f"{multiple:.2f}"))
    caption = (
        f"{data.metric[:1].upper()}{data.metric[1:]} of {'each recipe' if shown == data.arms else 'recipes'} "
        f"({data.data_name}, selection split, percent): mean ± standard deviation over the n runs that "
        "finished, and training time as a multiple of the baseline's."
    )
    if shown != data.arms:
        others = len(data.arms) - len(shown)
        caption += f" Left out: {count(others, 'recipe')} of one run{' each' if others > 1 else ''}."
    head = ("Recipe", f"{data.metric} (%)", "n", "Cost (×)")
    return Sheet("arms", "Recipes", caption, head, "lrrr", tuple(rows))


def _notable(data: ReportData) -> list[ArmResult]:
    """Arms with a role or with two seeds; all of them where the design gives each a role."""
    roles = (data.baseline, data.candidate)
    kept = [a for a in data.arms if a.name in roles or is_advised(data, a.name) or len(a.runs) > 1]
    return kept if kept and data.design not in ENTIRE else data.arms


def _titled(data: ReportData, arm: ArmResult) -> str:
    if not is_advised(data, arm.name):
        return recipe_name(data, arm.name)
    label = arm_label(data, arm.name)
    if label == "recommended":
        return f"recommended: {', '.join(arm.factors_on)}"
    return f"{label} (recommended)"


def _comparisons(data: ReportData) -> Sheet:
    def cells(one: Comparison) -> tuple[str, ...]:
        chance = "–" if one.chance is None else f"{100 * one.chance:.0f} %"
        return (
            one.split,
            points(one.difference),
            interval(one.low, one.high),
            interval(one.low_bca, one.high_bca),
            p_value(one.p_holm),
            chance,
            str(len(one.pairs)),
        )

    bca = any(one.low_bca is not None for one in data.comparisons)
    intervals = "t and bootstrap (BCa) intervals" if bca else "t interval"
    caption = (
        f"Recipes compared on seeds that no decision was based on ({data.data_name}, {data.metric}, "
        f"percentage points): mean paired difference, {intervals} at the corrected level, p by a paired t "
        "test corrected by Holm's method over the comparisons of a split, the chance that a new run of the "
        "first beats one of the second with the same seed, and n seeds."
    )
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for one in data.comparisons:
        pairs.setdefault((one.plus, one.minus), []).append(one)
    rows: list[tuple[str, ...]] = []
    for (plus, minus), found in pairs.items():
        rows += [(f"{recipe_name(data, plus)} against {recipe_name(data, minus)}",), *map(cells, found)]
    head = ("Split", "Difference", "t interval", "BCa interval", "Holm p", "Chance", "n")
    return Sheet("comparisons", "Comparisons", caption, head, "lrccrrr", tuple(rows))


# ---- Markdown -------------------------------------------------------------------------------


def markdown_tables(data: ReportData) -> str:
    """The report's Markdown, and a table of the recipes."""
    from trickbag.report.text import markdown

    return "\n".join([markdown(data), *(_markdown(one) for one in sheets(data) if one.name == "arms")])


def _markdown(sheet: Sheet) -> str:
    from trickbag.report.text import escape

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(escape(cell) for cell in cells)} |"

    rule = "|".join({"l": ":--", "c": ":-:", "r": "--:"}[side] for side in sheet.align)
    body = [line(row) for row in sheet.rows]
    return "\n".join(
        [f"### {sheet.title}", "", escape(sheet.caption), "", line(sheet.head), f"|{rule}|", *body, ""]
    )
