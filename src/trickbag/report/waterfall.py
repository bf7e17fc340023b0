"""Shares of a gain as a waterfall."""

from __future__ import annotations

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ReportData, points
from trickbag.report.forest import x_axis
from trickbag.report.names import short


def whose(data: ReportData) -> str:
    """The recipe whose gain is shared out."""
    return "candidate" if data.recommendation is None else "recommended recipe"


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
        narrow = label if len(label) * 7.84 < width - 70 else short(data, key)
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
            svg.label(0, y + height / 2, label, 240)
            if wide
            else svg.label(0, 11, narrow, width - 70, most=1),
            svg.words(width, y + height / 2 + 5 if wide else 16, points(end - start), "number", "end"),
        ]
        size = f"share of the gain {points(end - start)} points"
        tip = f"{label}\n{size}\nfrom {points(start)} to {points(end)}"
        link = f"#effect-{known[key]}" if key in known else "#effects"
        marks.append(svg.group(top + row * i, svg.link(link, tip, *content), class_="row"))
    name = whose(data)
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
