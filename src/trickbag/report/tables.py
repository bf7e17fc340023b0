"""A study as tidy tables: its runs, effects, learning curves, comparisons and interactions.

One row is one observation; the same columns go to CSV and to Parquet. Effects and primary values are in
percentage points; ``metric.*`` and ``cost.*`` are the numbers as they were measured.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import types
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from trickbag.report.content import Comparison, PairEffect, ReportData
from trickbag.report.curves import curve_points
from trickbag.study.statistics import Analysis, Effect

if TYPE_CHECKING:
    import pyarrow as pa

    Rows = list[dict[str, Any]]

FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""


def study_digest(data: ReportData) -> str:
    """Identity of a study, 16 hexadecimal digits: recipes, factors, data and code.

    Seeds, level, margin and title do not count: a study that goes on remains the same study.
    """
    code = data.provenance.get("code", data.provenance.get("code version"))
    pinned = data.provenance.get("data fingerprint", data.provenance.get("data"))
    sides = [data.recipes.get(name) for name in ("baseline", "candidate")]
    factors = [[factor.key, factor.before, factor.after] for factor in data.factors]
    parts = [data.design, data.data_name, data.metric, pinned, code, sides, factors]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def tables(data: ReportData, runs: Path | None = None, name: str = "") -> dict[str, pa.Table]:
    """Every table of a study by name: ``runs``, ``effects``, ``curves``, ``comparisons``, ``interactions``.

    ``runs`` has a row for each arm and seed, with one column of zeros and ones for each factor. ``effects``
    has a row for each factor and one of kind ``overall``, in terms of each metric; ``primary`` marks those
    that verdicts are about. ``curves`` is long: a row for each epoch and metric.

    Args:
        data: the study.
        runs: folder of run directories, for the whole learning curves.
        name: what to call the study; its title if empty.
    """
    import pyarrow as pa

    about = json.dumps(_about(data), default=str, ensure_ascii=False)
    made = {
        "runs": _runs(data),
        "effects": _effects(data),
        "curves": _curves(data, runs),
        "comparisons": _plain(Comparison, data.comparisons),
        "interactions": _plain(PairEffect, data.interactions),
    }
    both = [pa.field("study", pa.string()), pa.field("design", pa.string())]
    same = {"study": name or data.title, "design": data.design}
    return {
        key: pa.Table.from_pylist(
            [same | row for row in rows], pa.schema([*both, *columns], metadata={"trickbag": about})
        )
        for key, (columns, rows) in made.items()
    }


def _about(data: ReportData) -> dict[str, Any]:
    from trickbag.report.wording import methods

    kept = ("title", "data_name", "design", "baseline", "candidate", "metric", "delta", "alpha", "provenance")
    return {
        "digest": study_digest(data),
        **{name: getattr(data, name) for name in kept},
        "methods": methods(data),
        "factors": [asdict(factor) for factor in data.factors],
        "metrics": [asdict(metric) for metric in data.metrics],
    }


def _runs(data: ReportData) -> tuple[list[pa.Field], Rows]:
    import pyarrow as pa

    def names(kind: str) -> list[str]:
        found = dict.fromkeys(key for arm in data.arms for run in arm.runs for key in getattr(run, kind))
        first = [metric.name for metric in data.metrics if metric.name in found]
        return list(dict.fromkeys([*first, *found]))

    labels = {metric.name: metric.label for metric in data.metrics}
    metrics, costs = names("metrics"), names("costs")
    text, number = pa.string(), pa.float64()
    columns = [
        pa.field("data", text),
        pa.field("arm", text),
        pa.field("arm_label", text),
        *(pa.field(f"factor.{f.key}", pa.int8(), metadata={"label": f.label}) for f in data.factors),
        pa.field("seed", pa.int64()),
        pa.field("run_id", text),
        pa.field("status", text),
        pa.field("stage", text),
        pa.field("value", number, metadata={"label": f"{data.metric}, selection split, points"}),
        pa.field("transductive", pa.bool_()),
        *(pa.field(f"metric.{name}", number, metadata={"label": labels.get(name, name)}) for name in metrics),
        *(pa.field(f"cost.{name}", number, metadata={"label": labels.get(name, name)}) for name in costs),
        pa.field("seconds", number),
        pa.field("message", text),
    ]
    rows = [
        {
            "data": data.data_name,
            "arm": arm.name,
            "arm_label": arm.label,
            **{f"factor.{factor.key}": int(factor.key in arm.factors_on) for factor in data.factors},
            **{f"metric.{name}": run.metrics.get(name) for name in metrics},
            **{f"cost.{name}": run.costs.get(name) for name in costs},
            **{f.name: getattr(run, f.name) for f in fields(run)},
        }
        for arm in data.arms
        for run in arm.runs
    ]
    return columns, rows


def _effects(data: ReportData) -> tuple[list[pa.Field], Rows]:
    import pyarrow as pa

    columns = [
        pa.field("metric", pa.string()),
        pa.field("primary", pa.bool_()),
        pa.field("kind", pa.string()),
        pa.field("factor", pa.string()),
        pa.field("label", pa.string()),
        pa.field("before", pa.string()),
        pa.field("after", pa.string()),
        *(column for column in _columns(Effect) if column.name != "factor"),
        pa.field("chance", pa.float64()),
        pa.field("attribution", pa.float64()),
    ]
    about = {factor.key: factor for factor in data.factors}

    def rows(metric: str, analysis: Analysis, primary: bool) -> Iterable[dict[str, Any]]:
        for effect in (*analysis.effects, *([analysis.overall] if analysis.overall else [])):
            factor = about.get(effect.factor) if effect is not analysis.overall else None
            yield {
                **_row(effect),
                "metric": metric,
                "primary": primary,
                "kind": "overall" if effect is analysis.overall else "factor",
                "label": factor.label if factor else effect.factor,
                "before": factor.before if factor else None,
                "after": factor.after if factor else None,
                "chance": data.chances.get(effect.factor) if primary and factor else None,
                "attribution": data.attribution.get(effect.factor) if primary and factor else None,
            }

    found = list(rows(data.metric, data.analysis, True))
    for metric, analysis in data.analyses.items():
        if metric != data.metric:
            found += rows(metric, analysis, False)
    return columns, found


def _curves(data: ReportData, runs: Path | None) -> tuple[list[pa.Field], Rows]:
    import pyarrow as pa

    columns = [
        pa.field("arm", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("run_id", pa.string()),
        pa.field("epoch", pa.float64()),
        pa.field("step", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("metric", pa.string()),
        pa.field("value", pa.float64()),
    ]
    rows = [
        {"arm": arm.name, "seed": run.seed, "run_id": run.run_id, **asdict(point)}
        for arm in data.arms
        for run in arm.runs
        for point in curve_points(data, run, runs)
    ]
    return columns, rows


def _plain(kind: type, values: Iterable[Any]) -> tuple[list[pa.Field], Rows]:
    return _columns(kind), [_row(value) for value in values]


def _columns(kind: type) -> list[pa.Field]:
    import pyarrow as pa

    hints = get_type_hints(kind)
    return [pa.field(field.name, _type(hints[field.name])) for field in fields(kind)]


def _type(hint: Any) -> pa.DataType:
    import pyarrow as pa

    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return pa.string()
    if get_origin(hint) in (list, tuple):
        inner = get_args(hint)[0]
        pair = pa.struct([("seed", pa.int64()), ("difference", pa.float64())])
        return pa.list_(pair if get_origin(inner) is tuple else _type(inner))
    return {float: pa.float64(), int: pa.int64(), bool: pa.bool_(), str: pa.string()}[hint]


def _row(value: Any) -> dict[str, Any]:
    row = {field.name: getattr(value, field.name) for field in fields(value)}
    if "pairs" in row:
        row["pairs"] = [{"seed": seed, "difference": difference} for seed, difference in row["pairs"]]
    return row


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
