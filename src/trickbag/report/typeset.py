"""Tables of a study for a paper (LaTeX with booktabs) and for a pull request (GitHub Markdown)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from trickbag.report.content import Comparison, ReportData, interval, p_value, points
from trickbag.report.shown import arm_label, clean
from trickbag.report.wording import cost_multiple

LONG = 40
"""Rows beyond which a table is set over several pages, and letters beyond which a column wraps."""


@dataclass(frozen=True)
class Sheet:
    """A table of words, ready to be set.

    Attributes:
        name: of its file, and of its label.
        title: heading.
        caption: what it shows, how it was computed, and over how many seeds.
        head: headings of the columns.
        align: ``l``, ``c`` or ``r`` for each column.
        rows: their cells.
    """

    name: str
    title: str
    caption: str
    head: tuple[str, ...]
    align: str
    rows: tuple[tuple[str, ...], ...]


def sheets(data: ReportData) -> list[Sheet]:
    """Effects, arms and, if some were made, comparisons on fresh seeds."""
    data = clean(data)
    found = [_effects(data), _arms(data)]
    if data.comparisons:
        found.append(_comparisons(data))
    return found


def _level(data: ReportData) -> str:
    return f"{100 * (1 - data.alpha):g} %"


def _seeds(data: ReportData) -> str:
    return "1 seed" if len(data.seeds) == 1 else f"{len(data.seeds)} seeds"


def _effects(data: ReportData) -> Sheet:
    method = data.analysis.method.split(". ")[0].rstrip(".")
    caption = (
        f"Effect of each factor on {data.metric} ({data.data_name}, selection split, percentage points; "
        f"design: {data.design}; {_seeds(data)}). {method}. Intervals: {_level(data)}, individual; p: "
        f"corrected by Holm's method over {len(data.analysis.effects)} factors."
    )
    if data.delta > 0:
        caption += f" Equivalent: zero to within ±{data.delta:g} points."
    rows = [
        (
            data.label(effect.factor),
            "–" if effect.estimate is None else points(effect.estimate),
            interval(effect.low, effect.high),
            p_value(effect.p_holm),
            effect.verdict,
        )
        for effect in data.ranked
    ]
    head = ("Factor", "Effect (points)", f"{_level(data)} interval", "Holm p", "Verdict")
    return Sheet("effects", "Effects", caption, head, "lrcrl", tuple(rows))


def _arms(data: ReportData) -> Sheet:
    rows = []
    for arm in data.arms:
        values, multiple = list(arm.values.values()), cost_multiple(data, arm)
        mean = "–" if arm.mean is None else f"{arm.mean:.2f}"
        if len(values) > 1:
            mean += f" ± {stdev(values):.2f}"
        count = f"{len(values)}" if len(values) == len(arm.runs) else f"{len(values)} of {len(arm.runs)}"
        rows.append((arm.label, mean, count, "–" if multiple is None else f"{multiple:.2f}"))
    caption = (
        f"{data.metric[:1].upper()}{data.metric[1:]} of each recipe ({data.data_name}, selection split, "
        f"percent; {_seeds(data)}): mean ± standard deviation over the n runs that finished, and training "
        "time as a multiple of the baseline's."
    )
    head = ("Recipe", f"{data.metric} (%)", "n", "Cost (×)")
    return Sheet("arms", "Recipes", caption, head, "lrrr", tuple(rows))


def _comparisons(data: ReportData) -> Sheet:
    def cells(one: Comparison) -> tuple[str, ...]:
        chance = "–" if one.chance is None else f"{100 * one.chance:.0f} %"
        return (
            f"{arm_label(data, one.plus)} against {arm_label(data, one.minus)}",
            one.split,
            points(one.difference),
            interval(one.low, one.high),
            interval(one.low_bca, one.high_bca),
            p_value(one.p_holm),
            chance,
            str(len(one.pairs)),
        )

    caption = (
        f"Recipes compared on seeds that no decision was based on ({data.data_name}, {data.metric}, "
        "percentage points): mean paired difference, t and bootstrap (BCa) intervals at the corrected level, "
        "p by a paired t test corrected by Holm's method over the comparisons of a split, the chance that a "
        "new run of the first beats one of the second with the same seed, and n seeds."
    )
    head = ("Comparison", "Split", "Difference", "t interval", "BCa interval", "Holm p", "Chance", "n")
    return Sheet(
        "comparisons", "Comparisons", caption, head, "llrccrrr", tuple(cells(one) for one in data.comparisons)
    )


# ---- Markdown -------------------------------------------------------------------------------


def markdown_tables(data: ReportData) -> str:
    """The report's Markdown, and a table of the recipes."""
    from trickbag.report.text import markdown

    return "\n".join([markdown(data), *(_markdown(one) for one in sheets(data) if one.name == "arms")])


def _markdown(sheet: Sheet) -> str:
    from trickbag.report.text import escape

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(escape(cell) for cell in cells)} |"

    rule = "|".join({"l": ":--", "c": ":-:", "r": "--:"}[side] for side in sheet.align)
    body = [line(row) for row in sheet.rows]
    return "\n".join(
        [f"### {sheet.title}", "", escape(sheet.caption), "", line(sheet.head), f"|{rule}|", *body, ""]
    )


# ---- LaTeX ----------------------------------------------------------------------------------

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{character: f"${character}$" for character in "<>|"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    '"': r"{\char34}",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "∞": r"$\infty$",
    "°": r"$^\circ$",
    "²": "$^2$",
    "³": "$^3$",
    "µ": r"$\mu$",
    "…": r"\ldots{}",
    "‘": "`",  # noqa: RUF001
    "’": "'",  # noqa: RUF001
    "“": "``",
    "”": "{}''",
}
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_SPECIAL |= {
    letter: f"$\\{name}$"
    for letter, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", _GREEK.split(), strict=True)
}
# What pdfLaTeX has in its default encoding. Anything else is set by XeLaTeX and LuaLaTeX only.
_PLAIN = r"\x20-\x7e\u00c0-\u00cf\u00d1-\u00d6\u00d8-\u00dd\u00df-\u00ef\u00f1-\u00f6\u00f8-\u00fd\u00ff"
_PIECE = re.compile(rf"--|[{re.escape(''.join(_SPECIAL))}]|[^{_PLAIN}{re.escape(''.join(_SPECIAL))}]+")


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it stands; pdfLaTeX sets ``?`` for letters that its fonts lack."""

    def replace(found: re.Match[str]) -> str:
        piece = found[0]
        if piece == "--":
            return "-{}-"
        return _SPECIAL.get(piece) or rf"\ifdefined\Umathcode {piece}\else ?\fi{{}}"

    printable = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return _PIECE.sub(replace, printable)


def latex(sheet: Sheet) -> str:
    r"""A table with booktabs, to be read by ``\input``; over several pages (longtable) if it is long."""
    long = len(sheet.rows) > LONG
    align = list(sheet.align)
    if max((len(row[0]) for row in sheet.rows), default=0) > LONG:
        align[0] = r"p{.4\linewidth}"

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(escape_latex(cell) for cell in cells)
        # After the line above, a bracket or a star would be read as an argument.
        return f"  {'{}' if text.startswith(('[', '*')) else ''}{text} \\\\"

    caption = rf"\caption{{{escape_latex(sheet.caption)}}}"
    label = rf"\label{{tab:trickbag-{sheet.name}}}"
    columns = f"@{{}}{''.join(align)}@{{}}"
    head = [r"  \toprule", line(sheet.head), r"  \midrule"]
    body = [line(row) for row in sheet.rows]
    packages = rf"% \usepackage{{booktabs{',longtable' if long else ''}}}"
    if long:
        top = [rf"\begin{{longtable}}{{{columns}}}", rf"  {caption}{label} \\", *head, r"  \endfirsthead"]
        again = [*head, r"  \endhead", r"  \bottomrule", r"  \endlastfoot"]
        lines = [packages, *top, *again, *body, r"\end{longtable}"]
    else:
        top = [
            r"\begin{table}[t]",
            r"\centering",
            caption,
            label,
            r"\par\medskip",
            rf"\begin{{tabular}}{{{columns}}}",
        ]
        lines = [packages, *top, *head, *body, r"  \bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"
