"""The report's figures as inline SVG, drawn for a given width and styled by the page's style sheet."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ArmResult, ReportData, duration, interval, points
from trickbag.report.wording import cost_multiple
from trickbag.study.statistics import Effect

WIDE, NARROW = 940, 350
HIGHLIGHTS = 8
_POINTS_A_LINE = 150


def forest(data: ReportData, width: int) -> Markup:
    """Effects with individual (thick) and simultaneous (thin) intervals, largest first."""
    wide = width >= 600
    effects = data.ranked
    row, top = (44, 50) if wide else (82, 4)
    left, right = (250, 632) if wide else (8, width - 8)
    bottom = top + row * len(effects)
    reach = [0.0, -data.delta, data.delta]
    for e in effects:
        reach += [v for v in (e.estimate, e.low, e.high) if v is not None]
    low, high = min(reach), max(reach)
    pad = 0.14 * max(high - low, 0.1)
    x = svg.Scale(low - pad, high + pad, left, right)
    strips = (
        [(top, bottom)] if wide else [(top + row * i + 48, top + row * i + 74) for i in range(len(effects))]
    )
    marks = _x_axis(x, strips, bottom, 8 if wide else 5, signed=True)
    for start, end in strips:
        if data.delta > 0:
            width_ = x(data.delta) - x(-data.delta)
            marks.append(
                svg.tag("rect", x=x(-data.delta), y=start, width=width_, height=end - start, class_="band")
            )
        marks.append(svg.line(x(0), start, x(0), end, "zero"))
    if data.delta > 0 and wide:
        marks.append(svg.words(x(0), top - 8, f"±{data.delta:g}", "note", "middle"))
    if wide:
        marks += [
            svg.words(0, 20, "Factor", "head"),
            svg.words(650, 20, "Effect and interval", "head"),
            svg.words(width, 20, "Verdict", "head", "end"),
        ]
    for i, effect in enumerate(effects):
        y = top + row * i
        marks.append(svg.line(0, y, width, y, "rule"))
        marks += _forest_row(data, effect, x, y, row, width, wide)
    center = bottom + 40
    marks.append(svg.words((left + right) / 2, center, f"points of {data.metric}", "note", "middle"))
    marks.append(svg.words(left, center, "◂ hurts", "note"))
    marks.append(svg.words(right, center, "helps ▸", "note", "end"))
    return svg.svg(
        width, bottom + 50, "Effect of each factor with its intervals", marks, "wide" if wide else "narrow"
    )


def _forest_row(
    data: ReportData, e: Effect, x: svg.Scale, top: float, row: float, width: float, wide: bool
) -> list[Markup]:
    label = data.label(e.factor)
    known = "no interval" if e.low is None else interval(e.low, e.high)
    numbers = "no estimate" if e.estimate is None else f"{points(e.estimate)} {known}"
    y = top + row / 2 if wide else top + 61
    if wide:
        marks = [
            svg.label(0, y, label, 240),
            svg.words(650, y + 5, numbers, "number"),
            svg.words(width, y + 5, e.verdict, f"verdict {e.verdict}", "end"),
        ]
    else:
        marks = [
            svg.label(0, top + 19, label, width - 100, most=1),
            svg.words(width, top + 24, e.verdict, f"verdict {e.verdict}", "end"),
            svg.words(0, top + 43, numbers, "number"),
        ]
    if e.estimate is None:
        return marks
    title = svg.tag("title", f"{label}: {numbers}, {e.verdict}{f' ({e.note})' if e.note else ''}")
    if e.low is not None and e.high is not None:
        wide_low, wide_high = e.low_simultaneous, e.high_simultaneous
        if wide_low is not None and wide_high is not None:
            start, end = max(x(wide_low), x.start), min(x(wide_high), x.end)
            marks.append(svg.line(start, y, end, y, f"thin {e.verdict}"))
            for at, cut in ((start, wide_low < x.low), (end, wide_high > x.high)):
                sign = -1 if at == start else 1
                path = (
                    f"M{at - 6 * sign:.2f} {y - 4:.2f}l{6 * sign} 4l{-6 * sign} 4"
                    if cut
                    else f"M{at:.2f} {y - 4:.2f}v8"
                )
                marks.append(svg.tag("path", d=path, class_=f"thin {e.verdict}"))
        marks.append(svg.line(x(e.low), y, x(e.high), y, f"thick {e.verdict}"))
    marks.append(svg.glyph(e.verdict, x(e.estimate), y, 7.5, title))
    return marks


def _x_axis(
    x: svg.Scale, strips: Sequence[tuple[float, float]], bottom: float, count: int, signed: bool = False
) -> list[Markup]:
    """Axis at ``bottom`` with grid lines in the strips ``(top, bottom)`` only, clear of text between them."""
    at = svg.ticks(x.low, x.high, count)
    marks = [svg.line(x(t), start, x(t), end, "grid") for t in at for start, end in strips]
    marks += [svg.words(x(t), bottom + 18, svg.number(t, at, signed), "tick", "middle") for t in at]
    return [*marks, svg.line(x.start, bottom, x.end, bottom, "axis")]


def ordered_arms(data: ReportData) -> list[ArmResult]:
    """Arms as the design reads: rungs in order, otherwise the rest by their mean between the two ends."""
    ends = {data.baseline, data.candidate}
    if data.design == "ladder":
        return data.arms
    descending = data.design == "one-at-a-time"
    rest = [a for a in data.arms if a.name not in ends]
    rest.sort(key=lambda a: (a.mean is None, (-1 if descending else 1) * (a.mean or 0.0)))
    first, last = (data.baseline, data.candidate) if descending else (data.candidate, data.baseline)
    return [a for a in (data.arm(first), *rest, data.arm(last) if last != first else None) if a is not None]


def ladder(data: ReportData, width: int) -> Markup | None:
    """Arms as rows: a bar to the mean, a dot for each seed, and what a run costs. None without any value."""
    values = [v for arm in data.arms for v in arm.values.values()]
    if not values:
        return None
    wide = width >= 600
    arms = ordered_arms(data)
    multiples = {a.name: cost_multiple(data, a) for a in arms}
    dearest = max((m for m in multiples.values() if m is not None), default=None)
    row, top = (38, 40) if wide else (70 if dearest else 54, 8)
    left, right = (250, 640 if dearest else 840) if wide else (0, width - 4)
    bottom = top + row * len(arms)
    low, high = min(values), max(values)
    pad = max(high - low, 0.5)
    x = svg.Scale(max(0.0, low - 0.25 * pad), high + 0.06 * pad, left, right)
    strips = [(top, bottom)] if wide else [(top + row * i + 22, top + row * i + 47) for i in range(len(arms))]
    marks = _x_axis(x, strips, bottom, 6 if wide else 4)
    if wide:
        marks.append(svg.words(left, 20, f"Mean {data.metric} and each seed", "head"))
        if dearest:
            marks.append(svg.words(768, 20, "Time of a run", "head"))
    reference = data.arm(data.candidate if data.design == "leave-one-out" else data.baseline)
    for i, arm in enumerate(arms):
        y = top + row * i
        kind = {data.baseline: "baseline", data.candidate: "candidate"}.get(arm.name, "other")
        marks += _ladder_row(arm, x, y, width, wide, kind)
        multiple = multiples[arm.name]
        if multiple is not None and dearest is not None and arm.seconds is not None:
            y += 11 if wide else 46
            start, room = (768.0, 52.0) if wide else (0.0, 120.0)
            length = max(2.0, room * multiple / dearest)
            cost = f"×{multiple:.2f} · {duration(arm.seconds)}"
            thick = 16 if wide else 8
            marks.append(
                svg.tag(
                    "rect", svg.tag("title", cost), x=start, y=y, width=length, height=thick, class_="cost"
                )
            )
            marks.append(svg.words(start + length + 7, y + thick / 2 + 4.5, cost, "note"))
    if reference is not None and reference.mean is not None:
        marks += [
            svg.line(x(reference.mean), start, x(reference.mean), end, "reference") for start, end in strips
        ]
    marks.append(
        svg.words(
            (left + right) / 2, bottom + 38, f"{data.metric} on the selection split, %", "note", "middle"
        )
    )
    kind = "wide" if wide else "narrow"
    return svg.svg(width, bottom + 48, "Mean of each arm with its seeds and its cost", marks, kind)


def _ladder_row(
    arm: ArmResult, x: svg.Scale, top: float, width: float, wide: bool, kind: str
) -> list[Markup]:
    y, height = (top + 8, 22) if wide else (top + 27, 15)
    if wide:
        marks = [svg.label(0, y + height / 2, arm.label, 240)]
    else:
        marks = [svg.label(0, top + 13, arm.label, width - 70, most=1)]
    if arm.mean is None:
        said = ", ".join(sorted({r.status for r in arm.runs})) or "not run"
        return [*marks, svg.words(x.start + 6, y + height / 2 + 5, f"no value: {said}", "note")]
    mean = f"{arm.mean:.2f}"
    title = svg.tag("title", f"{arm.label}: mean {mean} over {len(arm.values)} seeds")
    marks.append(
        svg.tag(
            "rect", title, x=x.start, y=y, width=x(arm.mean) - x.start, height=height, class_=f"bar {kind}"
        )
    )
    lost = len(arm.runs) - len(arm.values)
    shown = f"{mean}{f' · {lost} lost' if lost and wide else ''}"
    place = (
        (x.end + 12, y + height / 2 + 5, shown, "number")
        if wide
        else (width, top + 18, shown, "number", "end")
    )
    marks.append(svg.words(*place))
    for seed, value in arm.values.items():
        tip = svg.tag("title", f"{arm.label}, seed {seed}: {value:.2f}")
        marks.append(svg.tag("circle", tip, cx=x(value), cy=y + height / 2, r=4.2, class_="seed"))
    return marks


def slopes(data: ReportData) -> list[tuple[str, str, Markup]]:
    """For each factor: its label, how many seeds rose, and a line a seed from without to with it.

    All panels have the same number of points to the pixel, so slopes can be compared.
    """
    panels = []
    for effect in data.ranked:
        ends = data.arm(effect.minus), data.arm(effect.plus)
        if ends[0] is not None and ends[1] is not None and effect.pairs:
            minus, plus = ends[0].values, ends[1].values
            lines = [(s, minus[s], plus[s]) for s, _ in effect.pairs if s in minus and s in plus]
            if lines:
                panels.append((effect, lines))
    spans = [max(max(a, b) for _, a, b in lines) - min(min(a, b) for _, a, b in lines) for _, lines in panels]
    usual = 3 * median(spans) if spans else 0.0
    shared = max((s for s in spans if s <= usual), default=1.0)
    out = []
    for (effect, lines), span in zip(panels, spans, strict=True):
        up, down = sum(b > a for _, a, b in lines), sum(b < a for _, a, b in lines)
        said = f"{up} up, {down} down" + (
            f", {len(lines) - up - down} equal" if up + down < len(lines) else ""
        )
        out.append((data.label(effect.factor), said, _slope(data, effect, lines, max(span, shared, 0.1))))
    return out


def _slope(
    data: ReportData, effect: Effect, lines: Sequence[tuple[int, float, float]], span: float
) -> Markup:
    width, height, left, right, top, bottom = 200, 170, 62, 176, 12, 138
    ends = [v for _, a, b in lines for v in (a, b)]
    middle = (min(ends) + max(ends)) / 2
    y = svg.Scale(middle - 0.55 * span, middle + 0.55 * span, bottom, top)
    at = svg.ticks(y.low, y.high, 4)
    marks = [svg.line(left - 14, y(t), right + 14, y(t), "grid") for t in at]
    marks += [svg.words(left - 20, y(t) + 4, svg.number(t, at), "tick", "end") for t in at]
    for seed, a, b in lines:
        kind = "helps" if b > a else "hurts" if b < a else "undetected"
        tip = svg.tag("title", f"seed {seed}: {a:.2f} → {b:.2f} ({points(b - a)})")
        marks.append(
            svg.tag(
                "g",
                tip,
                svg.line(left, y(a), right, y(b), f"slope {kind}"),
                svg.tag("circle", cx=left, cy=y(a), r=3.4, class_=f"end {kind}"),
                svg.tag("circle", cx=right, cy=y(b), r=3.4, class_=f"end {kind}"),
            )
        )
    marks.append(svg.words(left, height - 14, "without", "tick", "middle"))
    marks.append(svg.words(right, height - 14, "with", "tick", "middle"))
    return svg.svg(
        width, height, f"{data.label(effect.factor)}: value without and with it, by seed", marks, "small"
    )


def highlighted(data: ReportData) -> list[ArmResult]:
    """Arms whose learning curves are drawn in color: both ends, then those of the largest effects."""
    wanted = [data.baseline, data.candidate]
    for effect in sorted(data.analysis.effects, key=lambda e: -abs(e.estimate or 0.0)):
        wanted += [effect.plus, effect.minus]
    arms = (data.arm(name) for name in dict.fromkeys(wanted))
    return [a for a in arms if a is not None and any(r.curve for r in a.runs)][:HIGHLIGHTS]


def curves(data: ReportData, width: int) -> Markup | None:
    """Learning curves: a thin line a seed, a thick one for the mean. None if no run has a curve."""
    drawn = [a for a in data.arms if any(len(_clean(r.curve)) > 1 for r in a.runs)]
    if not drawn:
        return None
    wide = width >= 600
    height, left, right, top = (400, 52, width - 8, 14) if wide else (300, 40, width - 6, 12)
    bottom = height - 46
    everything = [p for a in drawn for r in a.runs for p in _clean(r.curve)]
    last = max(e for e, _ in everything)
    late = [v for e, v in everything if e >= 0.4 * last]
    low, high = min(late), max(late)
    pad = 0.08 * max(high - low, 0.5)
    x = svg.Scale(min(0.0, min(e for e, _ in everything)), last, left, right)
    y = svg.Scale(low - pad, high + pad, bottom, top)
    clip = f"clip-{width}"
    area = svg.tag("rect", x=left, y=top, width=right - left, height=bottom - top)
    marks = [svg.tag("clipPath", area, id=clip), *_x_axis(x, [], bottom, 8 if wide else 5)]
    at = svg.ticks(y.low, y.high, 6)
    marks += [svg.line(left, y(t), right, y(t), "grid") for t in at]
    marks += [svg.words(left - 8, y(t) + 4, svg.number(t, at), "tick", "end") for t in at]
    colored = highlighted(data)
    quiet = [a for a in drawn if a not in colored]
    lines: list[Markup] = []
    for arm in [*quiet, *reversed(colored)]:
        style = f"curve c{colored.index(arm)}" if arm in colored else "curve quiet"
        if arm in colored:
            lines += [
                _path(r.curve, x, y, f"{style} thread", f"{arm.label}, seed {r.seed}")
                for r in arm.runs
                if r.curve
            ]
        lines.append(_path(_mean_curve(arm), x, y, style, f"{arm.label}, mean"))
    marks.append(svg.tag("g", *lines, clip_path=f"url(#{clip})"))
    marks.append(svg.words((left + right) / 2, height - 8, "epoch", "note", "middle"))
    return svg.svg(width, height, f"{data.metric} by epoch", marks, "wide" if wide else "narrow")


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
    curve: Sequence[tuple[float, float]], x: svg.Scale, y: svg.Scale, class_: str, title: str
) -> Markup:
    clean = _clean(curve)
    step = max(1, math.ceil(len(clean) / _POINTS_A_LINE))
    kept = clean[::-1][::step][::-1]
    d = "M" + "L".join(f"{x(e):.1f} {y(v):.1f}" for e, v in kept) if kept else ""
    return svg.tag("path", svg.tag("title", title), d=d, class_=class_)
