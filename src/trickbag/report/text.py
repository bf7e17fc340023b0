"""The report as text: GitHub Markdown for a pull request, and tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trickbag.report.content import Comparison, ReportData, interval, p_value, points
from trickbag.report.shown import arm_label, dressed, word
from trickbag.report.wording import verdict
from trickbag.study.statistics import Effect

if TYPE_CHECKING:
    from rich.console import Console

_COLORS = {"helps": "green", "hurts": "red", "equivalent": "blue", "undetected": "bright_black"}


def markdown(data: ReportData) -> str:
    """Headline, claims, table of effects and what could not be resolved, as GitHub Markdown."""
    data = dressed(data)
    level = f"{100 * (1 - data.alpha):g} %"
    said = verdict(data)
    lines = [
        f"## {escape(data.title)}",
        "",
        *([f"> **Unfinished:** {escape(rest)}", ""] if (rest := how_far(data)) else []),
        f"**{escape(said.headline)}**",
        "",
        *(f"{escape(claim)}\n" for claim in said.claims),
        f"| Factor | Effect (points) | {level} interval | Holm p | Verdict |",
        "|:--|--:|:-:|--:|:--|",
    ]
    for effect in data.ranked:
        cells = [escape(data.label(effect.factor)), *_cells(data, effect)]
        lines.append(f"| {' | '.join(cells)} |")
    if data.comparisons:
        lines += [
            "",
            "| On fresh seeds | Split | Seeds | Difference (points) | Interval | Holm p | Chance |",
            "|:--|:--|--:|--:|:-:|--:|--:|",
        ]
        lines += [f"| {' | '.join(_compared(data, c))} |" for c in data.comparisons]
    lines += ["", *(f"{escape(sentence)}\n" for sentence in (*said.findings, *said.remarks))]
    return "\n".join(lines).rstrip() + "\n"


def terminal(data: ReportData, console: Console) -> None:
    """Print the verdict, what may be claimed, and the table of effects."""
    from rich.table import Table
    from rich.text import Text

    data = dressed(data)
    said = verdict(data)
    console.print(Text(data.title, style="bold"))
    if rest := how_far(data):
        console.print(Text(f"Unfinished: {rest}", style="bold yellow"))
    console.print(Text(said.headline))
    for claim in said.grounds:
        console.print(Text(claim.text, style=_COLORS[claim.look]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("factor", overflow="fold")
    for name in ("effect", f"{100 * (1 - data.alpha):g} % interval", "Holm p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for effect in data.ranked:
        *numbers, judged = _cells(data, effect)
        look = _COLORS[effect.verdict]
        table.add_row(Text(data.label(effect.factor)), *numbers, Text(judged, style=look))
    if data.analysis.effects:
        console.print()
        console.print(table)
        console.print()
    for sentence in (*said.findings, *said.remarks):
        console.print(Text(sentence))


def how_far(data: ReportData) -> str:
    """How far an unfinished study is; empty for one that is complete."""
    return data.unfinished.removeprefix("Unfinished").lstrip(":. ")


def _cells(data: ReportData, effect: Effect) -> tuple[str, str, str, str]:
    estimate = "–" if effect.estimate is None else points(effect.estimate)
    return estimate, interval(effect.low, effect.high), p_value(effect.p_holm), word(data, effect)


def _compared(data: ReportData, c: Comparison) -> list[str]:
    return [
        escape(f"{arm_label(data, c.plus)} − {arm_label(data, c.minus)}"),
        escape(c.split),
        f"{len(c.pairs)}",
        points(c.difference),
        interval(c.low, c.high),
        p_value(c.p_holm),
        "–" if c.chance is None else f"{c.chance:.2f}",
    ]


def escape(text: str) -> str:
    """Text that stays in its table cell and brings no markup along."""
    text = (
        " ".join(text.split())
        .replace("\\", "\\\\")
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    for character in "|*_`[]#~":
        text = text.replace(character, "\\" + character)
    return text
