"""The ladder: recipes as bars with their seeds and costs; and the shares of a gain as a waterfall."""

from __future__ import annotations

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ArmResult, Metric, ReportData, duration, points
from trickbag.report.forest import x_axis
from trickbag.report.shown import ENTIRE, decimals, mean, primary, values, written
from trickbag.report.wording import cost_multiple, run_seconds

MOST = 16


def ordered_arms(data: ReportData) -> list[ArmResult]:
    """Arms as the design reads: rungs in order, otherwise the rest by their mean between the two ends."""
    ends = {data.baseline, data.candidate}
    if data.design == "ladder":
        return data.arms
    if data.design not in ENTIRE:
        return sorted(data.arms, key=lambda a: (a.mean is None, -(a.mean or 0.0)))
    descending = data.design == "one-at-a-time"
    rest = [a for a in data.arms if a.name not in ends]
    rest.sort(key=lambda a: (a.mean is None, (-1 if descending else 1) * (a.mean or 0.0)))
    first, last = (data.baseline, data.candidate) if descending else (data.candidate, data.baseline)
    return [a for a in (data.arm(first), *rest, data.arm(last) if last != first else None) if a is not None]


def drawn_arms(data: ReportData) -> list[ArmResult]:
    """Arms of the bar ladder: all of a classic design, else the ends, the recommended one, and the surest."""
    arms = ordered_arms(data)
    if data.design in ENTIRE:
        return arms
    named = {data.baseline, data.candidate, data.recommendation.arm if data.recommendation else None}
    named |= {name for c in data.comparisons for name in (c.plus, c.minus)}
    # The mean is left out on purpose: picking the best of many single runs shows luck, not recipes.
    fewest = min((len(a.values) for a in arms), default=0)
    repeated = [a for a in arms if a.name in named or len(a.values) > fewest]
    surest = sorted(
        repeated if len(repeated) > 3 else arms, key=lambda a: (a.name not in named, -len(a.values))
    )
    surest = surest[:MOST]
    return [a for a in arms if a in surest]


def ladder(data: ReportData, metric: Metric, width: int) -> Markup | None:
    """Arms as rows: a bar to the mean, a dot for each seed, and what a run costs. None without any value."""
    arms = drawn_arms(data)
    known = [v for arm in arms for v in values(data, arm, metric).values()]
    if not known:
        return None
    wide, places = width >= 600, decimals(data, metric)
    multiples = {a.name: cost_multiple(data, a) for a in arms}
    dearest = max((m for m in multiples.values() if m is not None), default=None)
    row, top = (38, 40) if wide else (70 if dearest else 54, 8)
    left, right = (250, 640 if dearest else 840) if wide else (0, width - 4)
    bottom = top + row * len(arms)
    low, high = min(known), max(known)
    pad = max(high - low, 0.5 if metric.name == primary(data).name else 0.05 * abs(high) or 1.0)
    start_at = low - 0.25 * pad
    x = svg.Scale(max(0.0, start_at) if low >= 0 else start_at, high + 0.06 * pad, left, right)
    strips = [(top, bottom)] if wide else [(top + row * i + 22, top + row * i + 47) for i in range(len(arms))]
    marks = x_axis(x, strips, bottom, 6 if wide else 4)
    if wide:
        marks.append(svg.words(left, 20, f"Mean and seeds: {metric.label}", "head"))
        if dearest:
            marks.append(svg.words(768, 20, "Time of a run", "head"))
    for i, arm in enumerate(arms):
        kind = kind_of(data, arm)
        content = _row(data, arm, metric, x, width, places, kind)
        multiple, seconds = multiples[arm.name], run_seconds(arm)
        if multiple is not None and dearest is not None and seconds is not None:
            y, start, room, thick = (11, 768.0, 52.0, 16) if wide else (46, 0.0, 120.0, 8)
            length = max(2.0, room * multiple / dearest)
            content += [
                svg.tag("rect", x=start, y=y, width=length, height=thick, class_="cost"),
                svg.words(
                    start + length + 7, y + thick / 2 + 4.5, f"×{multiple:.2f} · {duration(seconds)}", "note"
                ),
            ]
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


def kind_of(data: ReportData, arm: ArmResult) -> str:
    """Role of an arm: recommended, baseline, candidate or other."""
    if data.recommendation is not None and arm.name == data.recommendation.arm:
        return "recommended"
    return {data.baseline: "baseline", data.candidate: "candidate"}.get(arm.name, "other")


def arm_tip(data: ReportData, arm: ArmResult, metric: Metric) -> str:
    """Exact numbers of an arm, its seeds and its cost."""
    found, places = values(data, arm, metric), decimals(data, metric)
    average = mean(data, arm, metric)
    kind = kind_of(data, arm)
    lines = [arm.label + (f" ({kind})" if kind == "recommended" else "")]
    if average is not None:
        seeds = "1 seed" if len(found) == 1 else f"{len(found)} seeds"
        lines.append(f"{metric.label}: {written(average, places)}, mean of {seeds}")
        lines += [f"seed {seed}: {written(value, places)}" for seed, value in list(found.items())[:12]]
        if len(found) > 12:
            lines.append(f"and {len(found) - 12} more")
    lost = [run for run in arm.runs if run.status != "finished"]
    lines += [f"seed {run.seed}: {run.status}" for run in lost[:6]]
    multiple, seconds = cost_multiple(data, arm), run_seconds(arm)
    if multiple is not None and seconds is not None:
        lines.append(f"a run takes {duration(seconds)}, ×{multiple:.2f}")
    return "\n".join(lines)


def _row(
    data: ReportData, arm: ArmResult, metric: Metric, x: svg.Scale, width: float, places: int, kind: str
) -> list[Markup]:
    wide = width >= 600
    y, height = (8, 22) if wide else (27, 15)
    if wide:
        marks = [svg.label(0, y + height / 2, arm.label, 240, titled=False)]
    else:
        marks = [svg.label(0, 13, arm.label, width - 70, most=1, titled=False)]
    average, found = mean(data, arm, metric), values(data, arm, metric)
    if average is None:
        said = ", ".join(sorted({r.status for r in arm.runs} - {"finished"})) or "not measured"
        return [*marks, svg.words(x.start + 6, y + height / 2 + 5, f"no value: {said}", "note")]
    bar = {"x": x.start, "y": y, "width": max(0.0, x(average) - x.start), "height": height}
    marks.append(svg.tag("rect", **bar, class_=f"bar {kind}"))
    lost = len(arm.runs) - len(found)
    shown = f"{written(average, places)}{f' · {lost} lost' if lost and wide else ''}"
    place = (x.end + 12, y + height / 2 + 5, shown, "number") if wide else (width, 18, shown, "number", "end")
    marks.append(svg.words(*place))
    for value in found.values():
        marks.append(svg.tag("circle", cx=x(value), cy=y + height / 2, r=4.2, class_="seed"))
    return marks


def waterfall(data: ReportData, width: int) -> Markup | None:
    """Shares of the factors in a gain, one on top of the other. None where nothing was attributed.

    An account of the model of the study, not of recipes that were run.
    """
    if not data.attribution:
        return None
    shares = sorted(data.attribution.items(), key=lambda item: -item[1])
    total = sum(data.attribution.values())
    level, steps = 0.0, []
    for key, share in shares:
        steps.append((key, level, level + share))
        level += share
    wide = width >= 600
    row, top = (34, 30) if wide else (46, 4)
    left, right = (250, 840) if wide else (4, width - 8)
    bottom = top + row * (len(steps) + 1)
    ends = [0.0, total, *(v for _, a, b in steps for v in (a, b))]
    room = 0.06 * (max(ends) - min(ends)) or 0.1
    x = svg.Scale(min(ends) - (room if min(ends) < 0 else 0), max(ends) + room, left, right)
    strips = (
        [(top, bottom)]
        if wide
        else [(top + row * i + 20, top + row * (i + 1) - 4) for i in range(len(steps) + 1)]
    )
    marks = x_axis(x, strips, bottom, 7 if wide else 4, signed=True)
    marks += [svg.line(x(0), start, x(0), end, "zero") for start, end in strips]
    if wide:
        marks.append(svg.words(0, 16, "Factor", "head"))
        marks.append(svg.words(width, 16, "Share, points", "head", "end"))
    known = {e.factor: i for i, e in enumerate(data.analysis.effects)}
    y, height = (7, 20) if wide else (22, 16)
    for i, (key, start, end) in enumerate(steps):
        label = data.label(key)
        content = [
            svg.tag("rect", x=-6, y=0, width=width + 12, height=row, class_="hit"),
            svg.tag(
                "rect",
                x=x(min(start, end)),
                y=y,
                width=max(1.0, abs(x(end) - x(start))),
                height=height,
                class_="bar up" if end >= start else "bar down",
            ),
            svg.line(x(end), y + height, x(end), row + y, "step"),
            svg.label(0, y + height / 2, label, 240, titled=False)
            if wide
            else svg.label(0, 11, label, width - 70, most=1, titled=False),
            svg.words(width, y + height / 2 + 5 if wide else 16, points(end - start), "number", "end"),
        ]
        tip = f"{label}\n{points(end - start)} points of the gain\nfrom {points(start)} to {points(end)}"
        link = f"#effect-{known[key]}" if key in known else "#effects"
        marks.append(svg.group(top + row * i, svg.link(link, tip, *content), class_="row"))
    name = "recommended recipe" if data.recommendation is not None else "candidate"
    middle = y + height / 2
    sum_bar = {"x": x(min(0.0, total)), "y": y, "width": abs(x(total) - x(0)), "height": height}
    marks.append(
        svg.group(
            top + row * len(steps),
            svg.tag("rect", **sum_bar, class_="bar recommended"),
            svg.words(0, middle + 5 if wide else 16, "whole gain, by the model", "strong"),
            svg.words(width, middle + 5 if wide else 16, points(total), "number strong", "end"),
        )
    )
    axis = f"points of {data.metric} over the baseline"
    marks.append(svg.words((left + right) / 2, bottom + 38, axis, "note", "middle"))
    title = f"Share of each factor in the gain of the {name}"
    return svg.svg(width, bottom + 48, title, marks, "wide" if wide else "narrow")
