"""The ladder: recipes as bars with their seeds and costs; and the shares of a gain as a waterfall."""

from __future__ import annotations

from statistics import fmean

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.claims import count
from trickbag.report.content import ArmResult, Metric, ReportData, duration, points
from trickbag.report.forest import x_axis
from trickbag.report.names import ingredients, opaque
from trickbag.report.shown import (
    ENTIRE,
    arm_label,
    decimals,
    kind_of,
    lost,
    mean,
    primary,
    values,
    written,
)
from trickbag.report.times import cost_multiple, run_seconds

MOST = 16


def ordered_arms(data: ReportData) -> list[ArmResult]:
    """Arms as the design reads: rungs in order, or the rest by their mean between the two ends.

    In other designs those with a role come first, and then those that are known best: sorted by their means,
    the luckiest single runs would come first.
    """
    ends = {data.baseline, data.candidate}
    if data.design == "ladder":
        return data.arms
    if data.design not in ENTIRE:
        roles = ["recommended", "candidate", "baseline", "other"]
        return sorted(
            data.arms,
            key=lambda a: (roles.index(kind_of(data, a)), -len(a.values), a.mean is None, -(a.mean or 0.0)),
        )
    descending = data.design == "one-at-a-time"
    rest = [a for a in data.arms if a.name not in ends]
    rest.sort(key=lambda a: (a.mean is None, (-1 if descending else 1) * (a.mean or 0.0)))
    first, last = (data.baseline, data.candidate) if descending else (data.candidate, data.baseline)
    return [a for a in (data.arm(first), *rest, data.arm(last) if last != first else None) if a is not None]


def drawn_arms(data: ReportData) -> list[ArmResult]:
    """Arms of the bar ladder: all of a classic design, else those with a role, and the surest."""
    arms = ordered_arms(data)
    return arms if data.design in ENTIRE else arms[:MOST]


def gain(data: ReportData, arm: ArmResult, metric: Metric) -> tuple[float, int] | None:
    """Mean of an arm over the baseline's on the seeds that both have, and their number; None without one."""
    reference = data.arm(data.baseline)
    if reference is None:
        return None
    own, base = values(data, arm, metric), values(data, reference, metric)
    common = own.keys() & base.keys()
    return (fmean(own[s] - base[s] for s in common), len(common)) if common else None


def ladder(data: ReportData, metric: Metric, width: int) -> Markup | None:
    """Arms as rows: a bar to the mean, a dot for each seed, and what a run costs. None without any value."""
    arms = drawn_arms(data)
    known = [v for arm in arms for v in values(data, arm, metric).values()]
    if not known:
        return None
    wide, places = width >= 600, decimals(data, metric)
    multiples = {a.name: cost_multiple(data, a) for a in arms}
    dearest = max((m for m in multiples.values() if m is not None), default=None)
    row, top = (40, 40) if wide else (76 if dearest else 60, 8)
    left, right = (250, 600 if dearest else 770) if wide else (0, width - 4)
    bottom = top + row * len(arms)
    low, high = min(known), max(known)
    gains = {a.name: gain(data, a, metric) for a in arms}
    pad = max(high - low, 0.5 if metric.name == primary(data).name else 0.05 * abs(high) or 1.0)
    start_at = low - 0.25 * pad
    x = svg.Scale(max(0.0, start_at) if low >= 0 else start_at, high + 0.06 * pad, left, right)
    strips = [(top, bottom)] if wide else [(top + row * i + 31, top + row * i + 51) for i in range(len(arms))]
    marks = x_axis(x, strips, bottom, 6 if wide else 4)
    if wide:
        marks.append(svg.words(left, 20, f"Mean and seeds: {metric.label}", "head"))
        if dearest:
            marks.append(svg.words(768, 20, "Time of a run", "head"))
    for i, arm in enumerate(arms):
        kind = kind_of(data, arm)
        content = _row(data, arm, metric, x, width, places, kind, gains[arm.name])
        multiple, seconds = multiples[arm.name], run_seconds(arm)
        if dearest is not None and seconds is not None:
            said = duration(seconds) if multiple is None else f"×{multiple:.2f} · {duration(seconds)}"
            y, start, room, thick = (11, 768.0, 52.0, 16) if wide else (52, 0.0, 120.0, 8)
            length = 0.0 if multiple is None else max(2.0, room * multiple / dearest)
            if length:
                content.append(svg.tag("rect", x=start, y=y, width=length, height=thick, class_="cost"))
            content.append(svg.words(start + length + 7, y + thick / 2 + 4.5, said, "note"))
        hit = svg.tag("rect", x=-6, y=0, width=width + 12, height=row, class_="hit")
        tip = arm_tip(data, arm, metric)
        index = data.arms.index(arm)
        marks.append(svg.group(top + row * i, svg.link(f"#arm-{index}", tip, hit, *content), class_="row"))
    reference = data.arm(data.candidate if data.design == "leave-one-out" else data.baseline)
    level = None if reference is None else mean(data, reference, metric)
    if level is not None:
        marks += [svg.line(x(level), start, x(level), end, "reference") for start, end in strips]
    label = f"{metric.label}, on the selection split" if metric.name not in _run_costs(data) else metric.label
    marks.append(svg.words((left + right) / 2, bottom + 38, label, "note", "middle"))
    name = f"Mean {metric.label} of each arm with its seeds and its cost"
    return svg.svg(width, bottom + 48, name, marks, "wide" if wide else "narrow")


def _run_costs(data: ReportData) -> set[str]:
    return {name for arm in data.arms for run in arm.runs for name in run.costs}


def arm_tip(data: ReportData, arm: ArmResult, metric: Metric) -> str:
    """Name, factors, exact numbers of an arm, its seeds and its cost."""
    found, places = values(data, arm, metric), decimals(data, metric)
    average = mean(data, arm, metric)
    label = arm_label(data, arm.name)
    lines = [label if label == arm.label else f"{label} ({arm.label})", ingredients(data, arm)]
    if average is not None:
        lines.append(f"{metric.label}: {written(average, places)}, mean of {count(len(found), 'seed')}")
        more = gain(data, arm, metric) if arm.name != data.baseline else None
        if more is not None:
            lines.append(f"{points(more[0], places)} over the baseline on {count(more[1], 'common seed')}")
        lines += [f"seed {seed}: {written(value, places)}" for seed, value in list(found.items())[:12]]
        if len(found) > 12:
            lines.append(f"and {len(found) - 12} more")
    unknown = [run for run in arm.runs if run.status != "finished"]
    lines += [f"seed {run.seed}: {run.status}" for run in unknown[:6]]
    multiple, seconds = cost_multiple(data, arm), run_seconds(arm)
    if seconds is not None:
        lines.append(f"a run takes {duration(seconds)}{'' if multiple is None else f', ×{multiple:.2f}'}")
    return "\n".join(lines)


def _row(
    data: ReportData,
    arm: ArmResult,
    metric: Metric,
    x: svg.Scale,
    width: float,
    places: int,
    kind: str,
    more: tuple[float, int] | None,
) -> list[Markup]:
    wide = width >= 600
    y, height = (8, 22) if wide else (32, 15)
    label = arm_label(data, arm.name)
    if wide:
        marks = [svg.label(0, y + height / 2 - (8 if opaque(data, arm) else 0), label, 240)]
        if opaque(data, arm):
            inside = svg.fit(ingredients(data, arm), 240, 12.5)
            marks.append(svg.words(0, y + height / 2 + 13, inside, "note"))
    else:
        marks = [svg.label(0, 13, label, width - 130, most=1)]
    average, found = mean(data, arm, metric), values(data, arm, metric)
    if average is None:
        said = ", ".join(sorted({r.status for r in arm.runs} - {"finished"})) or "not measured"
        return [*marks, svg.words(x.start + 6, y + height / 2 + 5, f"no value: {said}", "note")]
    apart = more is None and data.arm(data.baseline) is not None
    bar = {"x": x.start, "y": y, "width": max(0.0, x(average) - x.start), "height": height}
    marks.append(svg.tag("rect", **bar, class_=f"bar {kind}{' apart' if apart else ''}"))
    gone = len(lost(arm))
    seeds = count(len(found), "seed") + (f", {gone} lost" if gone else "")
    shown = f"{written(average, places)} · {seeds}"
    if arm.name == data.baseline:
        against = ""
    elif more is None:
        against = "other seeds" if apart else ""
    else:
        against = points(more[0], places) + (f" on {more[1]} of them" if more[1] < len(found) else "")
    if wide:
        marks.append(svg.words(x.end + 12, y + 9, shown, "number"))
        marks.append(svg.words(x.end + 12, y + 25, against, "note"))
    else:
        marks.append(svg.words(width, 11, shown, "number", "end"))
        marks.append(svg.words(width, 25, against, "note", "end"))
    for value in found.values():
        marks.append(svg.tag("circle", cx=x(value), cy=y + height / 2, r=4.2, class_="seed"))
    return marks
