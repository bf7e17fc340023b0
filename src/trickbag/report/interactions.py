"""Interactions of every two factors as a heat map."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import PairEffect, ReportData, points
from trickbag.report.names import short, short_names
from trickbag.report.shown import span


def pair_tip(data: ReportData, pair: PairEffect) -> str:
    """Exact numbers of an interaction, and what it cannot be told from."""
    lines = [
        f"{data.label(pair.first)} × {data.label(pair.second)}",
        f"{points(pair.estimate)} points of {data.metric}",
    ]
    if pair.low is not None:
        lines.append(f"interval, for all pairs at once {span(pair.low, pair.high)}")
    if pair.aliased:
        lines.append(f"not told from {', '.join(pair.aliased[:4])}{' …' if len(pair.aliased) > 4 else ''}")
    return "\n".join(lines)


def clear(pair: PairEffect) -> bool:
    """True if the interval of an interaction leaves out zero."""
    return pair.low is not None and pair.high is not None and (pair.low > 0 or pair.high < 0)


@dataclass(frozen=True)
class Turn:
    """A factor whose effect has one sign with a partner on, and the other with it off, in points."""

    factor: str
    partner: str
    off: float
    on: float


def turns(data: ReportData) -> list[Turn]:
    """Factors that a clear interaction turns around, largest first.

    An effect is the mean over both settings of a partner, and an interaction the difference between them.
    """
    effects = {e.factor: e.estimate for e in data.analysis.effects}
    found = []
    for pair in sorted(data.interactions, key=lambda p: -abs(p.estimate)):
        for factor, partner in ((pair.first, pair.second), (pair.second, pair.first)):
            effect = effects.get(factor)
            if effect is None or not clear(pair):
                continue
            off, on = effect - pair.estimate / 2, effect + pair.estimate / 2
            if off * on < 0 and max(abs(off), abs(on)) > data.delta:
                found.append(Turn(factor, partner, off, on))
    return found


def turned(data: ReportData, turn: Turn) -> str:
    """``+8.2 without cosine_decay, −1.0 with it``."""
    return f"{points(turn.off, 1)} without {short(data, turn.partner)}, {points(turn.on, 1)} with it"


def depends(data: ReportData) -> list[str]:
    """The same in sentences."""
    return [
        f"{data.label(t.factor)} depends on {short(data, t.partner)}: {points(t.off, 1)} points without it, "
        f"{points(t.on, 1)} with it."
        for t in turns(data)
    ]


def gaps(data: ReportData) -> bool:
    """True if some pair of the factors in the figure has no interaction."""
    named = {key for p in data.interactions for key in (p.first, p.second)}
    return len({frozenset((p.first, p.second)) for p in data.interactions}) < math.comb(len(named), 2)


def heatmap(data: ReportData, width: int) -> Markup | None:
    """Interactions of every two factors: color for the sign, depth for the size, bold where it is clear."""
    wide = width >= 600
    named = {key for p in data.interactions for key in (p.first, p.second)}
    keys = [e.factor for e in data.ranked if e.factor in named]
    keys += sorted(named - set(keys))
    if len(keys) < 2:
        return None
    found = {frozenset((p.first, p.second)): p for p in data.interactions}
    largest = max(abs(p.estimate) for p in data.interactions) or 1.0
    names = short_names(data)
    left = 230 if wide else 140
    cell = min(46.0 if wide else 30.0, (width - left) / (len(keys) - 1))
    top = 24
    bottom = top + cell * (len(keys) - 1)
    marks = []
    every = 1 if cell >= 13 else 5
    for column, key in enumerate(keys[:-1]):
        if column and (column + 1) % every:
            continue
        marks.append(
            svg.tag(
                "text",
                svg.tag("title", data.label(key)),
                str(column + 1),
                x=left + cell * (column + 0.5),
                y=top - 8,
                class_="tick",
                text_anchor="middle",
            )
        )
    small = cell < 16
    most = 2 if wide and cell > 34 else 1
    for row, key in enumerate(keys):
        y = top + cell * (row - 1)
        crowded = small and not wide
        # The first factor has no row of its own: its name stands above the others.
        height = y + cell / 2 if row else top - 12
        if not crowded or row == 0 or (row + 1) % every == 0:
            marks.append(
                _row_name(
                    data.label(key), names.get(key, key), row + 1, height, left, most if row else 1, crowded
                )
            )
        for column in range(row):
            pair = found.get(frozenset((key, keys[column])))
            at = {"x": left + cell * column + 0.75, "y": y + 0.75}
            size = {"width": cell - 1.5, "height": cell - 1.5, "rx": 2}
            if pair is None:
                marks.append(svg.tag("rect", **at, **size, class_="cell none"))
                continue
            depth = round(0.05 + 0.45 * abs(pair.estimate) / largest, 3)
            look = "up" if pair.estimate > 0 else "down"
            content = [
                svg.tag(
                    "rect",
                    **at,
                    **size,
                    class_=f"cell {look}{' clear' if clear(pair) else ''}",
                    fill_opacity=depth,
                ),
            ]
            middle = (left + cell * (column + 0.5), y + cell / 2)
            if cell >= 32:
                bold = "value clear" if clear(pair) else "value"
                number = points(pair.estimate, 1 if largest >= 0.95 else 2)
                content.append(svg.words(middle[0], middle[1] + 4, number, bold, "middle"))
            elif clear(pair):
                content.append(svg.tag("circle", cx=middle[0], cy=middle[1], r=cell / 7, class_="dot"))
            if pair.aliased and cell >= 12:
                corner = f"M{left + cell * (column + 1) - 1:.1f} {y + 1:.1f}v5l-5 -5z"
                content.append(svg.tag("path", d=corner, class_="corner"))
            where, quiet = f"#pair-{data.interactions.index(pair)}", None if clear(pair) else -1
            marks.append(svg.link(where, pair_tip(data, pair), *content, tabindex=quiet))
    legend, height = _legend(data, wide, width, left, cell, bottom, largest, len(keys))
    return svg.svg(
        width, height, "Interactions of every two factors", [*marks, *legend], "wide" if wide else "narrow"
    )


def _row_name(label: str, name: str, number: int, y: float, left: float, most: int, crowded: bool) -> Markup:
    full, tight = f"{number}  {label}", left < 200
    if crowded:
        return svg.tag(
            "text", svg.tag("title", full), str(number), x=left - 8, y=y + 4, class_="tick", text_anchor="end"
        )
    return svg.label(
        0, y - 1, f"{number}  {name}", left - 10, "label small" if tight else "label", most, full,
        12 if tight else 14,
    )  # fmt: skip


def _legend(
    data: ReportData,
    wide: bool,
    width: float,
    left: float,
    cell: float,
    bottom: float,
    largest: float,
    count: int,
) -> tuple[list[Markup], float]:
    """Scale of the colors: in the empty half of a wide figure that has room, else below."""
    inside = wide and count >= 5
    x, y = (width - 262.0, 52.0) if inside else (0.0, bottom + 26)
    marks = [svg.words(x, y, f"interaction, points of {data.metric}", "note")]
    for i in range(-5, 6):
        look = "up" if i > 0 else "down"
        swatch = {"x": x + 19 * (i + 5), "y": y + 10, "width": 18, "height": 12}
        depth = round(0.05 + 0.45 * abs(i) / 5, 3)
        marks.append(svg.tag("rect", **swatch, class_=f"cell {look}", fill_opacity=depth))
    places = 1 if largest >= 0.95 else 2
    for share, anchor, shift in ((-1, "start", 0.0), (0, "middle", 104.0), (1, "end", 208.0)):
        marks.append(svg.words(x + shift, y + 38, points(share * largest, places), "tick", anchor))
    marks.append(svg.words(x, y + 62, "bold or dotted: its interval leaves out 0", "note"))
    if any(p.aliased for p in data.interactions):
        marks.append(svg.words(x, y + 82, "notched: others look the same here", "note"))
    return marks, (max(bottom + 8, y + 92) if inside else y + 92)
