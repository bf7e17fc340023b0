"""Small pieces of SVG: scales, ticks, tags, text that fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from trickbag.report.content import points


@dataclass(frozen=True)
class Scale:
    """Linear map from ``[low, high]`` in data to ``[start, end]`` in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` lies, in pixels."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers from ``low`` to ``high``."""
    rough = max(high - low, 1e-9 * max(1.0, abs(high))) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float, all_ticks: Sequence[float], signed: bool = False) -> str:
    """A tick's number, with as many digits as its neighbors need."""
    step = all_ticks[1] - all_ticks[0] if len(all_ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return points(value, digits) if signed else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An SVG element; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.5g}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{}{}>{}</{}>").format(
        Markup(name), written, Markup("").join(map(escape, children)), Markup(name)
    )


def svg(width: float, height: float, label: str, children: Iterable[Any], kind: str) -> Markup:
    """A drawing that scales with its place on the page."""
    content = Markup("").join(map(escape, children))
    return tag(
        "svg",
        content,
        class_=f"chart {kind}",
        viewBox=f"0 0 {width:g} {height:g}",
        role="group" if "<a " in content else "img",
        aria_label=label,
    )


def words(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    """Text at a point."""
    return tag("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, *children: Any) -> Markup:
    """A straight line."""
    return tag("line", *children, x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def fit(text: str, width: float, size: float = 14) -> str:
    """A label cut to a width in pixels."""
    room = max(4, int(width / (size * 0.56)))
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def lines(text: str, width: float, size: float = 14, most: int = 2) -> list[str]:
    """Break a label into at most ``most`` lines; the last one is cut if need be."""
    room = max(4, int(width / (size * 0.56)))
    found = [""]
    for word in text.split():
        if found[-1] and len(found[-1]) + 1 + len(word) > room and len(found) < most:
            found.append(word)
        else:
            found[-1] = f"{found[-1]} {word}".strip()
    return [fit(each, width, size) for each in found]


def label(
    x: float,
    y: float,
    text: str,
    width: float,
    class_: str = "label",
    most: int = 2,
    title: str | None = None,
    size: float = 14,
) -> Markup:
    """A label centered on ``y``, with ``title`` as its tooltip, if any."""
    parts = lines(text, width, size, most)
    top = y + 5 - 8.5 * (len(parts) - 1)
    spans = [tag("tspan", part, x=x, y=top + 17 * i) for i, part in enumerate(parts)]
    return tag("text", tag("title", title) if title else "", *spans, class_=class_)


def link(href: str, tip: str, *children: Any, **attributes: Any) -> Markup:
    """What leads to the runs behind a mark; ``tip`` says its numbers, the first line being its name."""
    return tag("a", tag("title", tip), *children, href=href, **attributes)


def group(y: float, *children: Any, **attributes: Any) -> Markup:
    """Elements moved down by ``y``, so that rows can change places."""
    return tag("g", *children, transform=f"translate(0 {y:g})", **attributes)


def star(x: float, y: float, size: float, class_: str) -> Markup:
    """A star with five points."""
    turns = [(size if i % 2 == 0 else size * 0.45, math.pi * (i / 5 - 0.5)) for i in range(10)]
    corners = "L".join(f"{x + r * math.cos(t):.2f} {y + r * math.sin(t):.2f}" for r, t in turns)
    return tag("path", d=f"M{corners}z", class_=class_)


def diamond(x: float, y: float, size: float, class_: str) -> Markup:
    """A square on its corner."""
    d = f"M{x:.2f} {y - size:.2f}l{size:g} {size:g}l{-size:g} {size:g}l{-size:g} {-size:g}z"
    return tag("path", d=d, class_=class_)


def glyph(verdict: str, x: float, y: float, size: float, *children: Any) -> Markup:
    """Mark of a verdict: its shape says what its color says."""
    s = size
    shapes = {
        "helps": f"M{x:.2f} {y - s:.2f}l{s:.2f} {1.8 * s:.2f}h{-2 * s:.2f}z",
        "hurts": f"M{x:.2f} {y + s:.2f}l{s:.2f} {-1.8 * s:.2f}h{-2 * s:.2f}z",
        "equivalent": f"M{x - s * 0.8:.2f} {y - s * 0.8:.2f}h{1.6 * s:.2f}v{1.6 * s:.2f}h{-1.6 * s:.2f}z",
    }
    if verdict in shapes:
        return tag("path", *children, d=shapes[verdict], class_=f"mark {verdict}")
    return tag("circle", *children, cx=x, cy=y, r=s * 0.85, class_="mark undetected")
