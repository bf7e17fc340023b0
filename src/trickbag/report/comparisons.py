"""Recipes compared on fresh seeds, as a forest plot with a dot for each seed."""

from __future__ import annotations

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import Comparison, ReportData, p_value, points
from trickbag.report.forest import around, whiskers, x_axis
from trickbag.report.names import ingredients
from trickbag.report.shown import arm_label, finding, span


def fresh(data: ReportData, width: int) -> Markup | None:
    """Recipes on fresh seeds: a dot for the difference of each seed, and the interval of their mean."""
    if not data.comparisons:
        return None
    wide = width >= 600
    row, top = (58, 40) if wide else (100, 4)
    left, right = (290, 660) if wide else (8, width - 8)
    bottom = top + row * len(data.comparisons)
    reach = [0.0, -data.delta, data.delta]
    for c in data.comparisons:
        reach += [c.difference, *(v for v in (c.low, c.high) if v is not None), *(d for _, d in c.pairs)]
    x = around(reach, left, right, 0.06)
    offset = 0 if wide else 54
    strips = [(top + row * i + offset, top + row * (i + 1) - 6) for i in range(len(data.comparisons))]
    marks = x_axis(x, [(top, bottom)] if wide else strips, bottom, 7 if wide else 5, signed=True)
    if wide:
        marks += [
            svg.words(0, 20, "Compared", "head"),
            svg.words(680, 20, "Difference and interval", "head"),
            svg.words(width, 20, "Holm p", "head", "end"),
        ]
    for start, end in [(top, bottom)] if wide else strips:
        if data.delta > 0:
            breadth = x(data.delta) - x(-data.delta)
            band = {"x": x(-data.delta), "y": start, "width": breadth, "height": end - start}
            marks.append(svg.tag("rect", **band, class_="band"))
        marks.append(svg.line(x(0), start, x(0), end, "zero"))
    # The sealed split first: claims rest on it.
    order = sorted(enumerate(data.comparisons), key=lambda item: item[1].split == "selection")
    for place, (i, c) in enumerate(order):
        marks.append(svg.group(top + row * place, _compared(data, i, c, x, row, width), class_="row"))
    name = f"points of {data.metric}"
    marks.append(svg.words((left + right) / 2, bottom + 40, name, "note", "middle"))
    return svg.svg(width, bottom + 50, "Recipes compared on fresh seeds", marks, "wide" if wide else "narrow")


def _compared(data: ReportData, index: int, c: Comparison, x: svg.Scale, row: float, width: float) -> Markup:
    wide = width >= 600
    look, y = finding(data, c), (row / 2 if wide else 72)
    title = f"{arm_label(data, c.plus)} − {arm_label(data, c.minus)}"
    ends = data.arm(c.plus), data.arm(c.minus)
    where = f"{c.split} split, {len(c.pairs)} seeds"
    numbers = f"{points(c.difference)} {'no interval' if c.low is None else span(c.low, c.high)}"
    marks = [
        svg.tag("rect", x=-6, y=0, width=width + 12, height=row, class_="hit"),
        svg.line(0, 0, width, 0, "rule"),
    ]
    if wide:
        marks += [
            svg.label(0, y - 9, title, 275, most=1),
            svg.words(0, y + 15, where, "note"),
            svg.words(680, y + 5, numbers, "number"),
            svg.words(width, y + 5, p_value(c.p_holm), f"number verdict {look}", "end"),
        ]
    else:
        marks += [
            svg.label(0, 15, title, width, most=1),
            svg.words(0, 40, numbers, "number"),
            svg.words(width, 40, where, "note", "end"),
        ]
    marks += whiskers(x, y, c.low, c.high, None, None, look)
    for _, difference in c.pairs:
        marks.append(svg.tag("circle", cx=x(difference), cy=y + 13, r=3.6, class_="seed"))
    marks.append(svg.glyph(look, x(c.difference), y, 7))
    lines = [title, where, *(f"{arm_label(data, a.name)}: {ingredients(data, a)}" for a in ends if a)]
    lines += [f"{numbers}, points", *([c.note] if c.note else [])]
    if c.low_bca is not None:
        lines.append(f"BCa bootstrap interval {span(c.low_bca, c.high_bca)}")
    lines.append(f"p {p_value(c.p)}, after Holm {p_value(c.p_holm)}")
    if c.chance is not None:
        lines.append(f"chance that a new run is better: {c.chance:.2f}")
    lines += [f"seed {seed}: {points(d)}" for seed, d in c.pairs[:12]]
    return svg.link(f"#comparison-{index}", "\n".join(lines), *marks)
