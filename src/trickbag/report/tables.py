"""A study as tidy tables: its runs, effects, learning curves, comparisons, and what was decided.

One row is one observation; the same columns go to CSV and to Parquet. Every number is in the unit of the
report (:mod:`trickbag.report.units`): shares of images and their differences in percentage points. Where the
unit depends on the row, a column ``unit`` says it; in Parquet, the metadata of each other column does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.report.columns import column, columns, plain, row
from trickbag.report.content import (
    Comparison,
    Confirmation,
    Opening,
    PairEffect,
    Recommendation,
    ReportData,
    Residual,
    Stage,
)
from trickbag.report.curves import curve_points
from trickbag.report.identity import about
from trickbag.report.units import (
    POINTS,
    PROBABILITY,
    SECONDS,
    cost_names,
    costs,
    metric_names,
    plain_name,
    primary_name,
    readings,
    unit_of,
)
from trickbag.study.statistics import Analysis, Effect

if TYPE_CHECKING:
    import pyarrow as pa

    from trickbag.report.columns import Made

BY_ROW = "see the column unit"


def tables(data: ReportData, runs: Path | None = None, name: str = "") -> dict[str, pa.Table]:
    """Every table of a study by name.

    - ``runs``: a row for each arm and seed, with one column of zeros and ones for each factor. Runs that have
      not ended are ``pending``.
    - ``effects``: a row for each factor and one of kind ``overall``, in terms of each metric; ``primary``
      marks those that verdicts are about.
    - ``curves``: a row for each epoch and metric.
    - ``comparisons``: recipes on fresh seeds. ``confirmation``: the baseline against the candidate on the
      sealed split. ``openings``: every look at that split.
    - ``interactions``: pairs of factors.
    - ``recommendation``: one row, or none. Why a factor is in it or out stands with its effect.
    - ``stages`` and ``plan``: what was done, and what it cost.
    - ``residuals``: what the model left unexplained of each run.

    Args:
        data: the study.
        runs: folder of run directories, for the whole learning curves.
        name: what to call the study; its title if empty.
    """
    import pyarrow as pa

    told = json.dumps(about(data), default=str, ensure_ascii=False)
    advised = [] if data.recommendation is None else [data.recommendation]
    confirmed = [] if data.confirm is None else [data.confirm]
    made = {
        "runs": _runs(data),
        "effects": _effects(data),
        "curves": _curves(data, runs),
        "comparisons": plain(Comparison, data.comparisons),
        "confirmation": plain(Confirmation, confirmed),
        "interactions": plain(PairEffect, data.interactions),
        "recommendation": plain(Recommendation, advised, but=("reasons",)),
        "stages": plain(Stage, data.stages),
        "plan": _plan(data),
        "openings": plain(Opening, data.openings),
        "residuals": plain(Residual, data.residuals),
    }
    both = [pa.field("study", pa.string()), pa.field("design", pa.string())]
    same = {"study": name or data.title, "design": data.design}
    return {
        key: pa.Table.from_pylist(
            [same | one for one in rows], pa.schema([*both, *described], metadata={"trickbag": told})
        )
        for key, (described, rows) in made.items()
    }


def _runs(data: ReportData) -> Made:
    import pyarrow as pa

    labels = {plain_name(metric.name): metric.label for metric in data.metrics}
    metrics, spent, primary = metric_names(data), cost_names(data), primary_name(data)
    text, number = pa.string(), pa.float64()
    described = [
        column("data", text),
        column("arm", text),
        column("arm_label", text),
        *(column(f"factor.{f.key}", pa.int8(), label=f.label) for f in data.factors),
        column("seed", pa.int64()),
        column("run_id", text),
        column("status", text),
        column("stage", text),
        column("value", number, POINTS, f"{primary}, selection split"),
        column("sealed", number, POINTS, f"{primary}, sealed split"),
        column("transductive", pa.bool_()),
        *(column(f"metric.{name}", number, unit_of(data, name), labels.get(name, name)) for name in metrics),
        *(column(f"cost.{name}", number, unit_of(data, name), labels.get(name, name)) for name in spent),
        column("seconds", number, SECONDS, "training and evaluation"),
        column("message", text),
    ]
    rows = [
        {
            "data": data.data_name,
            "arm": arm.name,
            "arm_label": arm.label,
            **{f"factor.{factor.key}": int(factor.key in arm.factors_on) for factor in data.factors},
            **{f"metric.{name}": value for name, value in readings(data, run).items()},
            **{f"cost.{name}": value for name, value in costs(data, run).items()},
            **{f.name: getattr(run, f.name) for f in fields(run)},
        }
        for arm in data.arms
        for run in arm.runs
    ]
    return described, rows


def _effects(data: ReportData) -> Made:
    import pyarrow as pa

    text = pa.string()
    described = [
        column("metric", text),
        column("unit", text),
        column("primary", pa.bool_()),
        column("kind", text),
        column("factor", text),
        column("label", text),
        column("before", text),
        column("after", text),
        *(one for one in columns(Effect, BY_ROW) if one.name != "factor"),
        column("chance", pa.float64(), PROBABILITY),
        column("attribution", pa.float64(), POINTS),
        column("recommended", pa.bool_()),
        column("reason", text),
    ]
    known = {factor.key: factor for factor in data.factors}
    advised = data.recommendation

    def rows(metric: str, analysis: Analysis, primary: bool) -> Iterable[dict[str, Any]]:
        for effect in (*analysis.effects, *([analysis.overall] if analysis.overall else [])):
            factor = known.get(effect.factor) if effect is not analysis.overall else None
            judged = factor.key if primary and factor else ""
            yield {
                **row(effect),
                "metric": metric,
                "unit": unit_of(data, metric),
                "primary": primary,
                "kind": "overall" if effect is analysis.overall else "factor",
                "label": factor.label if factor else effect.factor,
                "before": factor.before if factor else None,
                "after": factor.after if factor else None,
                "chance": data.chances.get(judged),
                "attribution": data.attribution.get(judged),
                "recommended": judged in advised.factors_on if advised and judged else None,
                "reason": advised.reasons.get(judged) if advised else None,
            }

    found = list(rows(primary_name(data), data.analysis, True))
    for metric, analysis in data.analyses.items():
        if plain_name(metric) != primary_name(data):
            found += rows(plain_name(metric), analysis, False)
    return described, found


def _curves(data: ReportData, runs: Path | None) -> Made:
    import pyarrow as pa

    described = [
        column("arm", pa.string()),
        column("seed", pa.int64()),
        column("run_id", pa.string()),
        column("epoch", pa.float64(), "epochs"),
        column("step", pa.int64(), "optimizer steps"),
        column("seconds", pa.float64(), SECONDS),
        column("metric", pa.string()),
        column("value", pa.float64(), BY_ROW),
        column("unit", pa.string()),
    ]
    rows = [
        {
            "arm": arm.name,
            "seed": run.seed,
            "run_id": run.run_id,
            "unit": unit_of(data, point.metric.rpartition("/")[2]),
            **asdict(point),
        }
        for arm in data.arms
        for run in arm.runs
        for point in curve_points(data, run, runs)
    ]
    return described, rows


def _plan(data: ReportData) -> Made:
    import pyarrow as pa

    described = [
        column("figure", pa.string()),
        column("value", pa.float64(), BY_ROW),
        column("text", pa.string()),
        column("unit", pa.string()),
    ]
    rows = [
        {
            "figure": plain_name(key),
            "value": float(value),
            "unit": _FIGURES.get(key.partition("_")[0], "count"),
        }
        if isinstance(value, int | float)
        else {"figure": plain_name(key), "text": value}
        for key, value in data.plan.items()
    ]
    return described, rows


_FIGURES = {"seconds": SECONDS, "epochs": "epochs"}
