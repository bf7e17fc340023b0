"""What gains cost: the recipes that no other beats in both training time and value."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ArmResult, Metric, ReportData
from trickbag.report.ladder import arm_tip
from trickbag.report.shown import TIME, arm_label, kind_of, mean, values
from trickbag.report.times import cost_multiple

_LABELS = 8


class Times(svg.Scale):
    """Multiples of a time."""

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """About ``count`` round multiples with their names."""
        at = svg.ticks(self.low, self.high, count)
        return [(t, f"×{svg.number(t, at)}") for t in at if t > 0]


class LogTimes(Times):
    """Multiples of a time that differ by much: each step is a doubling."""

    def __call__(self, value: float) -> float:
        """Where a multiple lies, in pixels."""
        return super().__call__(math.log2(value))

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Powers of two with their names."""
        powers = range(math.ceil(self.low), math.floor(self.high) + 1)
        return [(2.0**k, f"×{2.0**k:g}") for k in powers[:: math.ceil(len(powers) / count) or 1]]


def _times(low: float, high: float, start: float, end: float) -> Times:
    if high / low > 4:
        room = 0.06 * math.log2(high / low)
        return LogTimes(math.log2(low) - room, math.log2(high) + 2 * room, start, end)
    room = 0.06 * (high - low) or 0.05
    return Times(low - room, high + 2 * room, start, end)


def front(found: Sequence[tuple[ArmResult, float, float]], up: bool) -> list[tuple[ArmResult, float, float]]:
    """Arms that no other arm beats in both cost and value, cheapest first."""
    kept: list[tuple[ArmResult, float, float]] = []
    for one in sorted(found, key=lambda item: (item[1], -item[2] if up else item[2])):
        if not kept or (one[2] > kept[-1][2] if up else one[2] < kept[-1][2]):
            kept.append(one)
    return kept


def pareto(data: ReportData, metric: Metric, width: int) -> Markup | None:
    """Training time against the mean of a metric, an arm a mark, and the front of the undominated ones.

    None with fewer than two arms whose time and value are known, and for the training time itself.
    """
    found = [
        (arm, multiple, value)
        for arm in data.arms
        if (multiple := cost_multiple(data, arm)) is not None
        and (value := mean(data, arm, metric)) is not None
    ]
    if len(found) < 2 or metric.name == TIME:
        return None
    wide, up = width >= 600, metric.higher_is_better is not False
    height, left, right, top = (430, 64, width - 20, 34) if wide else (360, 48, width - 10, 30)
    bottom = height - 50
    costs, gains = [c for _, c, _ in found], [v for *_, v in found]
    x = _times(min(costs), max(costs), left, right)
    pad = 0.08 * (max(gains) - min(gains)) or 0.05 * abs(gains[0]) or 0.1
    y = svg.Scale(min(gains) - pad, max(gains) + pad, bottom, top)
    at = svg.ticks(y.low, y.high, 6)
    marks = [svg.line(left, y(t), right, y(t), "grid") for t in at]
    marks += [svg.words(left - 8, y(t) + 4, svg.number(t, at), "tick", "end") for t in at]
    for t, said in x.ticks(7 if wide else 4):
        marks.append(svg.line(x(t), top, x(t), bottom, "grid"))
        marks.append(svg.words(x(t), bottom + 18, said, "tick", "middle"))
    marks.append(svg.line(left, bottom, right, bottom, "axis"))
    better = "" if metric.higher_is_better is None else "  ▴ better" if up else "  ▾ better"
    marks.append(svg.words(0, 16, f"{metric.label}{better}", "head"))
    marks.append(svg.words((left + right) / 2, height - 10, "training time, baseline = 1", "note", "middle"))
    sure = [one for one in found if len(values(data, one[0], metric)) > 1]
    best = front(sure or found, up)
    steps = f"M{x(best[0][1]):.1f} {y(best[0][2]):.1f}" + "".join(
        f"H{x(c):.1f}V{y(v):.1f}" for _, c, v in best[1:]
    )
    marks.append(svg.tag("path", d=f"{steps}H{right:.1f}", class_="front"))
    order = ["other", "baseline", "candidate", "recommended"]
    for arm, cost, value in sorted(found, key=lambda item: order.index(kind_of(data, item[0]))):
        marks.append(_arm(data, arm, metric, x(cost), y(value), any(arm is a for a, *_ in best)))
    marks += _names(data, found, best, x, y, wide)
    name = f"{metric.label} against training time"
    return svg.svg(width, height, name, marks, "wide" if wide else "narrow")


def _arm(data: ReportData, arm: ArmResult, metric: Metric, x: float, y: float, best: bool) -> Markup:
    kind = kind_of(data, arm)
    tip = arm_tip(data, arm, metric) + ("\non the front" if best else "")
    look = f"spot {kind}{'' if len(values(data, arm, metric)) > 1 else ' single'}"
    mark = {
        "recommended": lambda: svg.star(x, y, 11, look),
        "candidate": lambda: svg.diamond(x, y, 8, look),
        "baseline": lambda: svg.tag("rect", x=x - 6, y=y - 6, width=12, height=12, class_=look),
    }.get(kind, lambda: svg.tag("circle", cx=x, cy=y, r=5.5, class_=look))()
    reach = svg.tag("circle", cx=x, cy=y, r=12, class_="hit")
    quiet = -1 if kind == "other" else None
    return svg.link(f"#arm-{data.arms.index(arm)}", tip, reach, mark, tabindex=quiet)


def _names(
    data: ReportData,
    found: Sequence[tuple[ArmResult, float, float]],
    best: Sequence[tuple[ArmResult, float, float]],
    x: svg.Scale,
    y: svg.Scale,
    wide: bool,
) -> list[Markup]:
    """Labels that overlap neither each other nor a mark: the ends and the recommended one first."""
    wanted = sorted(found, key=lambda item: kind_of(data, item[0]) == "other")
    wanted = [w for w in wanted if kind_of(data, w[0]) != "other" or any(w[0] is a for a, *_ in best)]
    spots = [(x(c) - 7, y(v) - 7, x(c) + 7, y(v) + 7) for _, c, v in found]
    taken: list[tuple[float, float, float, float]] = []
    marks: list[Markup] = []
    for arm, cost, value in wanted:
        kind = kind_of(data, arm)
        text = svg.fit(arm_label(data, arm.name), 200 if wide else 120, 12.5)
        length = 7.2 * len(text)
        own = (x(cost) - 7, y(value) - 7, x(cost) + 7, y(value) + 7)
        for anchor, dx, dy in (
            ("start", 14, 4.5),
            ("end", -14, 4.5),
            ("start", 8, -11),
            ("end", -8, -11),
            ("start", 8, 21),
            ("end", -8, 21),
        ):
            start = x(cost) + dx - (length if anchor == "end" else 0)
            box = (start, y(value) + dy - 11, start + length, y(value) + dy + 3)
            others = [*taken, *(s for s in spots if s != own)]
            inside = box[0] >= x.start and box[2] <= x.end and box[1] >= y.end - 8 and box[3] <= y.start
            if inside and not any(
                box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others
            ):
                taken.append(box)
                marks.append(svg.words(x(cost) + dx, y(value) + dy, text, f"name {kind}", anchor))
                break
        if len(marks) >= _LABELS:
            break
    return marks
