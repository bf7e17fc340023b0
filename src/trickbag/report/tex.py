"""Tables in LaTeX with booktabs: they fit the column of ``article``, and long ones go over several pages."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from trickbag.report.typeset import Sheet

WIDE, LINES = 28, 32
"""Letters beyond which the first column wraps, and lines beyond which a table goes over several pages."""

COLUMN, LETTER, SIGN, BETWEEN = 345.0, 4.7, 7.2, 8.0
r"""In points: the column of ``article``; in ``\small`` a letter, a wide sign, and what parts two columns."""

_WORD = 14
_BREAK = re.compile(r"[^_=,:;/()]{1,12}[_=,:;/()]*|[_=,:;/()]+")
"""Letters beyond which a word may be broken in a narrow column, and the parts that a line may end after."""

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


def breakable(text: str) -> str:
    """The same, for a narrow column: lines may end within long words, after a mark or twelve letters."""
    parts = (_BREAK.findall(word) if len(word) > _WORD else [word] for word in text.split())
    return " ".join(r"\penalty500 ".join(escape_latex(part) for part in word) for word in parts)


def latex(sheet: Sheet) -> str:
    r"""A table to be read by ``\input``; columns without a value are left out."""
    sheet = _filled(sheet)
    share = _share(sheet)
    align = list(sheet.align)
    if share is not None:
        align[0] = rf"p{{{share:.2f}\linewidth}}"
    long = sum(_lines(row, share) for row in sheet.rows) > LINES
    caption = rf"\caption[{escape_latex(sheet.title)}]{{{escape_latex(sheet.caption)}}}"
    label = rf"\label{{tab:trickbag-{sheet.name}}}"
    columns = f"@{{}}{''.join(align)}@{{}}"
    head = [r"  \toprule", _line(sheet.head), r"  \midrule"]
    body = [_line(row, share, len(align)) for row in sheet.rows]
    packages = rf"% \usepackage{{booktabs{',longtable' if long else ''}}}"
    look = r"\small\setlength{\tabcolsep}{4pt}"
    if long:
        top = [
            rf"{{{look}",
            rf"\begin{{longtable}}{{{columns}}}",
            rf"  {caption}{label} \\",
            *head,
            r"  \endfirsthead",
        ]
        again = [*head, r"  \endhead", r"  \bottomrule", r"  \endlastfoot"]
        lines = [packages, *top, *again, *body, r"\end{longtable}}"]
    else:
        top = [
            r"\begin{table}[t]",
            r"\centering",
            caption,
            label,
            rf"\par\medskip{look}",
            rf"\begin{{tabular}}{{{columns}}}",
        ]
        lines = [packages, *top, *head, *body, r"  \bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _filled(sheet: Sheet) -> Sheet:
    rows = [row for row in sheet.rows if len(row) > 1]
    kept = [n for n in range(len(sheet.head)) if n == 0 or not rows or any(row[n] != "–" for row in rows)]

    def few(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cells) if len(cells) == 1 else tuple(cells[n] for n in kept)

    return Sheet(
        sheet.name,
        sheet.title,
        sheet.caption,
        few(sheet.head),
        "".join(sheet.align[n] for n in kept),
        tuple(few(row) for row in sheet.rows),
    )


def _width(text: str) -> float:
    return sum(SIGN if letter in "+−±×%→" else LETTER for letter in text)


def _share(sheet: Sheet) -> float | None:
    """Share of the line that a first column with long cells gets; None where it need not wrap."""
    rows = [sheet.head, *(row for row in sheet.rows if len(row) > 1)]
    if max(len(row[0]) for row in rows) <= WIDE:
        return None
    others = (max(_width(row[n]) for row in rows) for n in range(1, len(sheet.head)))
    free = COLUMN - sum(others) - BETWEEN * (len(sheet.head) - 1)
    return max(0.2, math.floor(100 * min(free, max(_width(row[0]) for row in rows)) / COLUMN) / 100)


def _lines(row: Sequence[str], share: float | None) -> int:
    wide = COLUMN * (share or 1.0) if len(row) > 1 else COLUMN
    return math.ceil(_width(row[0]) / wide)


def _line(cells: Sequence[str], share: float | None = None, span: int = 0) -> str:
    """A row; one of a single cell is a heading over the whole width."""
    if len(cells) == 1:
        long = _width(cells[0]) > COLUMN
        kind, start = (r"p{\linewidth}", r"\raggedright ") if long else ("l", "")
        return rf"  \multicolumn{{{span}}}{{@{{}}{kind}@{{}}}}{{{start}{breakable(cells[0])}}} \\"
    text = " & ".join(escape_latex(cell) for cell in cells)
    if share is not None:
        text = rf"\raggedright {' & '.join([breakable(cells[0]), *map(escape_latex, cells[1:])])}"
    # After the line above, a bracket or a star would be read as an argument.
    return f"  {'{}' if text.startswith(('[', '*')) else ''}{text} \\\\"
