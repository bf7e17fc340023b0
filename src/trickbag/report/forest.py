"""The forest plot: effects of factors with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import Metric, ReportData, p_value, points
from trickbag.report.interactions import turned, turns
from trickbag.report.names import short
from trickbag.report.shown import (
    ENTIRE,
    TIME,
    analysis_of,
    behind,
    digits,
    primary,
    readings,
    span,
    unit,
    unstudied,
    word,
)
from trickbag.study.statistics import Effect

WIDE, NARROW = 940, 350
VERDICTS = ("helps", "hurts", "equivalent", "undetected")


def forest(data: ReportData, metric: Metric, width: int) -> Markup | None:
    """Effects with individual (thick) and simultaneous (thin) intervals, in the order of the primary metric.

    Rows of another metric keep the primary metric's verdict, and only inform. None if its effects were not
    estimated.
    """
    analysis = analysis_of(data, metric)
    if analysis is None or not data.analysis.effects:
        return None
    wide, main = width >= 600, metric.name == primary(data).name
    found = {e.factor: e for e in analysis.effects}
    rows = [(e, found[e.factor]) for e in data.ranked if e.factor in found]
    delta = data.delta if main else 0.0
    reach = [0.0, -delta, delta]
    for _, e in rows:
        reach += [v for v in (e.estimate, e.low, e.high) if v is not None]
    places = 2 if main else _places([e for _, e in rows], reach)
    row, top = (44, 50) if wide else (82, 4)
    left, right = (250, 632) if wide else (8, width - 8)
    bottom = top + row * len(rows)
    x = around(reach, left, right)
    strips = [(top, bottom)] if wide else [(top + row * i + 48, top + row * i + 74) for i in range(len(rows))]
    marks = x_axis(x, strips, bottom, 8 if wide else 5, signed=True)
    for start, end in strips:
        if delta > 0:
            breadth = x(delta) - x(-delta)
            band = {"x": x(-delta), "y": start, "width": breadth, "height": end - start, "class_": "band"}
            marks.append(svg.tag("rect", **band))
        marks.append(svg.line(x(0), start, x(0), end, "zero"))
    if delta > 0 and wide:
        marks.append(svg.words(x(0), top - 8, f"±{delta:g}", "note", "middle"))
    if wide:
        marks += [
            svg.words(0, 20, "Factor", "head"),
            svg.words(650, 20, f"{effect_name(data)} and interval", "head"),
            svg.words(width, 20, "Verdict" if main else f"Verdict on {data.metric}", "head", "end"),
        ]
    ticking = data.analyses.get(TIME)
    costs = {e.factor: e.estimate for e in ticking.effects} if ticking else {}
    number = {e.factor: i for i, e in enumerate(data.analysis.effects)}
    better = -1 if metric.higher_is_better is False else 1
    for i, (judged, effect) in enumerate(rows):
        drawn = _row(data, judged, effect, x, row, width, places, main)
        tip = _tip(data, metric, judged, effect, places, main)
        marks.append(
            svg.group(
                top + row * i,
                svg.link(f"#effect-{number[effect.factor]}", tip, *drawn),
                class_="row",
                data_effect="" if effect.estimate is None else effect.estimate * better,
                data_name=data.label(effect.factor).lower(),
                data_verdict=VERDICTS.index(judged.verdict),
                data_cost="" if (cost := costs.get(effect.factor)) is None else cost,
            )
        )
    low = bottom + 40
    marks.append(svg.words((left + right) / 2, low, unit(data, metric), "note", "middle"))
    less, more = _ends(metric, main)
    marks.append(svg.words(left, low if wide else low + 18, f"◂ {less}", "note"))
    marks.append(svg.words(right, low if wide else low + 18, f"{more} ▸", "note", "end"))
    name = f"Effect of each factor with its intervals, {unit(data, metric)}"
    return svg.svg(width, bottom + (50 if wide else 68), name, marks, "wide" if wide else "narrow")


def effect_name(data: ReportData) -> str:
    """What an effect of this design is: of two arms, or over all recipes that it was tried in."""
    return "Effect" if data.design in ENTIRE else "Average effect"


def _places(effects: Sequence[Effect], reach: Sequence[float]) -> int:
    """Decimals down to the first figure of a usual interval's half width."""
    halves = [(e.high - e.low) / 2 for e in effects if e.low is not None and e.high is not None]
    half = median(halves) if halves else 0.0
    return min(4, max(0, -math.floor(math.log10(half)))) if half > 0 else max(0, digits(reach) - 1)


def around(reach: Sequence[float], left: float, right: float, share: float = 0.14) -> svg.Scale:
    """Scale that holds some numbers with room on both sides."""
    low, high = min(reach), max(reach)
    pad = share * (high - low) or 0.1
    return svg.Scale(low - pad, high + pad, left, right)


def x_axis(
    x: svg.Scale, strips: Sequence[tuple[float, float]], bottom: float, count: int, signed: bool = False
) -> list[Markup]:
    """Axis at ``bottom`` with grid lines in the strips ``(top, bottom)`` only, clear of text between them."""
    at = svg.ticks(x.low, x.high, count)
    marks = [svg.line(x(t), start, x(t), end, "grid") for t in at for start, end in strips]
    marks += [svg.words(x(t), bottom + 18, svg.number(t, at, signed), "tick", "middle") for t in at]
    return [*marks, svg.line(x.start, bottom, x.end, bottom, "axis")]


def _ends(metric: Metric, main: bool) -> tuple[str, str]:
    if metric.higher_is_better is None:
        return "less", "more"
    bad, good = ("hurts", "helps") if main else ("worse", "better")
    return (bad, good) if metric.higher_is_better else (good, bad)


def _tip(data: ReportData, metric: Metric, judged: Effect, e: Effect, places: int, main: bool) -> str:
    if e.estimate is None:
        why = ["not crossed in this design"] if unstudied(data, judged) else [e.note] if e.note else []
        return "\n".join([data.label(e.factor), "no estimate", *why])
    with_, without = behind(data, e.factor)
    lines = [
        data.label(e.factor),
        f"{effect_name(data).lower()} {points(e.estimate, places)} {unit(data, metric)}",
        f"{100 * (1 - data.alpha):g} % interval {span(e.low, e.high, places)}"
        if e.low is not None
        else "no interval",
    ]
    if e.low_simultaneous is not None:
        lines.append(f"all factors at once {span(e.low_simultaneous, e.high_simultaneous, places)}")
    if main:
        lines.append(f"{judged.verdict}, Holm p {p_value(e.p_holm)}")
        if e.detectable is not None:
            lines.append(f"detectable with 80 % power: {e.detectable:.2f}")
        lines += [turned(data, turn) for turn in turns(data) if turn.factor == e.factor]
        if e.factor in data.chances:
            lines.append(f"chance that a run gains by it: {data.chances[e.factor]:.2f}")
    else:
        lines.append(f"on {data.metric}: {judged.verdict}")
    if e.note:
        lines.append(e.note)
    lines.append(f"rests on {readings(data, with_)} with it and {readings(data, without)} without")
    return "\n".join(lines)


def _row(
    data: ReportData,
    judged: Effect,
    e: Effect,
    x: svg.Scale,
    row: float,
    width: float,
    places: int,
    main: bool,
) -> list[Markup]:
    """One factor, drawn as if its row began at zero."""
    wide = width >= 600
    label, said = data.label(e.factor), word(data, judged)
    partners = [short(data, t.partner) for t in turns(data) if t.factor == e.factor] if main else []
    known = "no interval" if e.low is None else span(e.low, e.high, places)
    numbers = "no estimate" if e.estimate is None else f"{points(e.estimate, places)} {known}"
    look = f"verdict {judged.verdict}"
    y = row / 2 if wide else 61
    marks = [
        svg.tag("rect", x=-6, y=0, width=width + 12, height=row, class_="hit"),
        svg.line(0, 0, width, 0, "rule"),
    ]
    if wide:
        marks += [
            svg.label(0, y, label, 240),
            svg.words(650, y - 3 if partners else y + 5, numbers, "number"),
            svg.words(width, y + 5, said, look, "end"),
        ]
        if partners:
            marks.append(svg.words(650, y + 14, svg.fit(f"depends on {partners[0]}", 190, 12.5), "note"))
    else:
        name = (
            label
            if len(label) * 7.84 < width - 106
            else f"+ {short(data, e.factor)}"[2 * (label[:2] != "+ ") :]
        )
        marks += [
            svg.label(0, 19, name, width - 106, most=1),
            svg.words(width, 24, said, look, "end"),
            svg.words(0, 43, numbers, "number"),
        ]
    if e.estimate is None:
        return marks
    tone = judged.verdict if main else "plain"
    marks += whiskers(x, y, e.low, e.high, e.low_simultaneous, e.high_simultaneous, tone)
    if main:
        return [*marks, svg.glyph(e.verdict, x(e.estimate), y, 7.5)]
    sure = e.low is not None and e.high is not None and (e.low > 0 or e.high < 0)
    if sure:
        return [*marks, svg.diamond(x(e.estimate), y, 7.5, "mark plain")]
    return [*marks, svg.tag("circle", cx=x(e.estimate), cy=y, r=6, class_="mark undetected plain")]


def whiskers(
    x: svg.Scale,
    y: float,
    low: float | None,
    high: float | None,
    low_wide: float | None,
    high_wide: float | None,
    tone: str,
) -> list[Markup]:
    """A thick interval inside a thin one, which ends in an arrow where it runs off the figure."""
    marks: list[Markup] = []
    if low is None or high is None:
        return marks
    if low_wide is not None and high_wide is not None:
        start, end = max(x(low_wide), x.start), min(x(high_wide), x.end)
        marks.append(svg.line(start, y, end, y, f"thin {tone}"))
        for at, cut, sign in ((start, low_wide < x.low, -1), (end, high_wide > x.high, 1)):
            arrow = f"M{at - 6 * sign:.2f} {y - 4:.2f}l{6 * sign} 4l{-6 * sign} 4"
            marks.append(
                svg.tag("path", d=arrow if cut else f"M{at:.2f} {y - 4:.2f}v8", class_=f"thin {tone}")
            )
    return [*marks, svg.line(x(low), y, x(high), y, f"thick {tone}")]
