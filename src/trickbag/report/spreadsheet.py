"""A table as CSV that pandas, R and spreadsheets read alike, and that runs nothing in the last."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""


def csv_text(table: pa.Table) -> str:
    """A table as CSV that pandas, R and spreadsheets read alike, and that runs nothing in the last.

    Missing is empty, truth is ``TRUE`` or ``FALSE``, lists are JSON. A text that a spreadsheet would take
    for a formula (a label such as ``+ mixup``) gets an apostrophe in front, in every table alike.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_cell(name) for name in table.column_names])
    columns = [column.to_pylist() for column in table.columns]
    writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        value = json.dumps([list(v.values()) if isinstance(v, dict) else v for v in value])
    text = value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text
