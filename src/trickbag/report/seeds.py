"""Seed by seed: paired slopes and learning curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ArmResult, Metric, ReportData, points
from trickbag.report.forest import x_axis
from trickbag.report.names import ingredients, short
from trickbag.report.shown import arm_label, decimals, kind_of, values, written

HIGHLIGHTS = 8
THREADS = 40
"""Most arms whose curves are gray: beyond that, a figure is a cloud."""
_POINTS_A_LINE, _POINTS_A_THREAD = 120, 60

Lines = list[tuple[int, float, float]]


def slopes(data: ReportData, metric: Metric) -> list[tuple[str, str, str, Markup]]:
    """For each factor: its address, its label, how many seeds rose, and a line a seed from without to with.

    Recipes compared on fresh seeds of the selection split come first. All panels have the same number of
    points to the pixel, so slopes can be compared.
    """
    panels: list[tuple[str, str, tuple[str, str], Lines]] = []
    for i, c in enumerate(data.comparisons):
        lines = _lines(data, metric, c.minus, c.plus, [seed for seed, _ in c.pairs])
        if c.split == "selection" and lines:
            ends = arm_label(data, c.minus), arm_label(data, c.plus)
            panels.append((f"#comparison-{i}", f"{ends[1]} against {ends[0]}", ends, lines))
    number = {e.factor: i for i, e in enumerate(data.analysis.effects)}
    for e in data.ranked:
        lines = _lines(data, metric, e.minus, e.plus, [seed for seed, _ in e.pairs])
        if lines:
            panels.append((f"#effect-{number[e.factor]}", short(data, e.factor), ("without", "with"), lines))
    spans = [
        max(max(a, b) for _, a, b in lines) - min(min(a, b) for _, a, b in lines) for *_, lines in panels
    ]
    usual = 3 * median(spans) if spans else 0.0
    shared = max((s for s in spans if s <= usual), default=1.0)
    least = 0.1 if metric.scale != 1 or metric.name == data.metric else 1e-9
    places = decimals(data, metric)
    better = 1 if metric.higher_is_better is not False else -1
    out = []
    for (href, label, ends, lines), extent in zip(panels, spans, strict=True):
        up, down = sum(b > a for _, a, b in lines), sum(b < a for _, a, b in lines)
        equal = len(lines) - up - down
        said = f"{up} up, {down} down" + (f", {equal} equal" if equal else "")
        room = max(extent, shared, least) or 1.0
        out.append((href, label, said, _slope(label, ends, lines, room, places, better)))
    return out


def _lines(data: ReportData, metric: Metric, minus: str, plus: str, seeds: Sequence[int]) -> Lines:
    ends = data.arm(minus), data.arm(plus)
    if ends[0] is None or ends[1] is None:
        return []
    before, after = values(data, ends[0], metric), values(data, ends[1], metric)
    return [(s, before[s], after[s]) for s in seeds if s in before and s in after]


def _slope(
    label: str, names: tuple[str, str], lines: Lines, extent: float, places: int, better: int
) -> Markup:
    width, height, left, right, top, bottom = 200, 170, 62, 176, 12, 138
    ends = [v for _, a, b in lines for v in (a, b)]
    middle = (min(ends) + max(ends)) / 2
    y = svg.Scale(middle - 0.55 * extent, middle + 0.55 * extent, bottom, top)
    at = svg.ticks(y.low, y.high, 4)
    marks = [svg.line(left - 14, y(t), right + 14, y(t), "grid") for t in at]
    marks += [svg.words(left - 20, y(t) + 4, svg.number(t, at), "tick", "end") for t in at]
    for seed, a, b in lines:
        rise = better * (b - a)
        kind = "helps" if rise > 0 else "hurts" if rise < 0 else "undetected"
        text = f"seed {seed}\n{written(a, places)} → {written(b, places)}\n{points(b - a, places)}"
        marks.append(
            svg.tag(
                "g",
                svg.tag("title", text),
                svg.line(left, y(a), right, y(b), "hit"),
                svg.line(left, y(a), right, y(b), f"slope {kind}"),
                svg.tag("circle", cx=left, cy=y(a), r=3.4, class_=f"end {kind}"),
                svg.tag("circle", cx=right, cy=y(b), r=3.4, class_=f"end {kind}"),
                class_="thread-group",
            )
        )
    marks.append(svg.words(left, height - 14, svg.fit(names[0], 84, 12.5), "tick", "middle"))
    marks.append(svg.words(right + 22, height - 14, svg.fit(names[1], 92, 12.5), "tick", "end"))
    return svg.svg(width, height, f"{label}: {names[0]} and {names[1]}, by seed", marks, "small")


def highlighted(data: ReportData) -> list[ArmResult]:
    """Arms whose learning curves are in color: the ends, the recommended one, those of large effects."""
    wanted = [
        data.baseline,
        data.candidate,
        *(a.name for a in data.arms if kind_of(data, a) == "recommended"),
    ]
    for effect in sorted(data.analysis.effects, key=lambda e: -abs(e.estimate or 0.0)):
        wanted += [effect.plus, effect.minus]
    arms = (data.arm(name) for name in dict.fromkeys(wanted))
    return [a for a in arms if a is not None and any(r.curve for r in a.runs)][:HIGHLIGHTS]


def _with_curves(data: ReportData) -> list[ArmResult]:
    return [a for a in data.arms if any(len(_clean(r.curve)) > 1 for r in a.runs)]


def quiet_arms(data: ReportData) -> list[ArmResult]:
    """Arms whose curves are gray: those with the most runs."""
    colored = highlighted(data)
    rest = [a for a in _with_curves(data) if a not in colored]
    return sorted(rest, key=lambda a: -sum(bool(r.curve) for r in a.runs))[:THREADS]


def _frame(everything: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Range of the values drawn: all but the first epochs fit, which may lie far below."""
    last = max(e for e, _ in everything)
    late = [v for e, v in everything if e >= 0.4 * last]
    pad = 0.08 * max(max(late) - min(late), 0.5)
    return min(late) - pad, max(late) + pad


def below_frame(data: ReportData) -> bool:
    """True if some points of the learning curves lie below the frame."""
    everything = [p for a in _with_curves(data) for r in a.runs for p in _clean(r.curve)]
    return bool(everything) and min(v for _, v in everything) < _frame(everything)[0]


def curves(data: ReportData, width: int) -> Markup | None:
    """Learning curves: a thin line a seed, a thick one for the mean. None if no run has a curve."""
    drawn = _with_curves(data)
    if not drawn:
        return None
    wide = width >= 600
    height, left, right, top = (414, 52, width - 8, 30) if wide else (316, 40, width - 6, 28)
    bottom = height - 46
    everything = [p for a in drawn for r in a.runs for p in _clean(r.curve)]
    first, last = min(e for e, _ in everything), max(e for e, _ in everything)
    low, high = _frame(everything)
    x = svg.Scale(first, last if last > first else first + 1, left, right)
    y = svg.Scale(low, high, bottom, top)
    clip = f"clip-{width}"
    area = svg.tag("rect", x=left, y=top, width=right - left, height=bottom - top)
    marks = [svg.tag("clipPath", area, id=clip), *x_axis(x, [], bottom, 8 if wide else 5)]
    at = svg.ticks(y.low, y.high, 6)
    marks += [svg.line(left, y(t), right, y(t), "grid") for t in at]
    marks += [svg.words(left - 8, y(t) + 4, svg.number(t, at), "tick", "end") for t in at]
    colored = highlighted(data)
    quiet = quiet_arms(data)
    lines: list[Markup] = []
    for arm in [*quiet, *reversed(colored)]:
        index = colored.index(arm) if arm in colored else None
        style = "curve quiet" if index is None else f"curve c{index}"
        if index is not None:
            lines += [
                _path(
                    r.curve, x, y, f"{style} thread", _curve_tip(data, arm, r.curve, f"seed {r.seed}"), index
                )
                for r in arm.runs
                if r.curve
            ]
        course = _mean_curve(arm)
        count = sum(bool(r.curve) for r in arm.runs)
        lines.append(_path(course, x, y, style, _curve_tip(data, arm, course, f"mean of {count}"), index))
    marks.append(svg.tag("g", *lines, clip_path=f"url(#{clip})"))
    marks.append(svg.words(0, 13, f"{data.metric}, points", "head"))
    marks.append(svg.words((left + right) / 2, height - 8, "epoch", "note", "middle"))
    return svg.svg(width, height, f"{data.metric} by epoch", marks, "wide" if wide else "narrow")


def _curve_tip(data: ReportData, arm: ArmResult, curve: Sequence[tuple[float, float]], who: str) -> str:
    clean = _clean(curve)
    end = f"\n{clean[-1][1]:.2f} at epoch {clean[-1][0]:g}" if clean else ""
    return f"{arm_label(data, arm.name)}\n{ingredients(data, arm)}\n{who}{end}"


def _clean(curve: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(e, v) for e, v in curve if math.isfinite(v)]


def _mean_curve(arm: ArmResult) -> list[tuple[float, float]]:
    """Mean over the runs that have a value, at the epochs that all of them have."""
    runs = [r for r in arm.runs if r.curve and r.status == "finished"] or [r for r in arm.runs if r.curve]
    at: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        for epoch, value in _clean(run.curve):
            at[epoch].append(value)
    return [(e, fmean(v)) for e, v in sorted(at.items()) if len(v) == len(runs)]


def _path(
    curve: Sequence[tuple[float, float]], x: svg.Scale, y: svg.Scale, class_: str, tip: str, arm: int | None
) -> Markup:
    clean = _clean(curve)
    most = _POINTS_A_LINE if arm is not None and "thread" not in class_ else _POINTS_A_THREAD
    step = max(1, math.ceil(len(clean) / most))
    kept = clean[::-1][::step][::-1]
    d = "M" + "L".join(f"{x(e):.1f} {y(v):.1f}" for e, v in kept) if kept else ""
    return svg.tag("path", svg.tag("title", tip), d=d, class_=class_, data_arm=arm)
