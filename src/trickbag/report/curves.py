"""Learning curves and final values of the runs of a study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trickbag.report.content import ReportData, RunResult


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation in the course of a training run.

    Attributes:
        metric: ``selection/<primary metric>`` in points, as the study reads it; from the run's directory also
            ``train_loss``, ``lr`` and ``<weights>/<metric>`` as recorded.
        epoch: epochs trained, from 0; fractional between epochs.
        value: of the metric.
        step: optimizer steps taken, where the run's directory tells.
        seconds: training time up to here, where it tells.
    """

    metric: str
    epoch: float
    value: float
    step: int | None = None
    seconds: float | None = None


def curve_points(data: ReportData, run: RunResult, runs: Path | None = None) -> list[CurvePoint]:
    """Learning curves of a run.

    Args:
        data: the study.
        run: one of its runs.
        runs: folder of run directories; a run without one there has the curve of its primary metric alone.
    """
    points = [CurvePoint(f"selection/{data.metric}", epoch, value) for epoch, value in run.curve]
    if runs is None or not run.run_id:
        return points
    from trickbag.engine.run import Run

    rows = (row for row in Run(runs / run.run_id).metrics() if isinstance(row, dict) and "epoch" in row)
    recorded = {row["epoch"]: row for row in rows}  # of an epoch that was repeated the last counts
    for epoch, row in sorted(recorded.items()):
        values: dict[str, Any] = {name: row[name] for name in ("train_loss", "lr") if name in row}
        for weights, measured in row.items():
            if isinstance(measured, Mapping):
                values |= {f"{weights}/{name}": value for name, value in measured.items()}
        points += [
            CurvePoint(name, epoch, float(value), row.get("step"), row.get("seconds"))
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
    return points


def final_values(data: ReportData, run: RunResult) -> dict[str, float]:
    """``final/<metric>`` and ``cost/<cost>`` of a run: what trackers keep beside its curves."""
    found = {f"final/{name}": float(value) for name, value in run.metrics.items()}
    found |= {f"cost/{name}": float(value) for name, value in run.costs.items()}
    found["cost/seconds"] = float(run.seconds)
    if run.value is not None:
        found[f"final/{data.metric}"] = float(run.value)
    return found


def step_unit(data: ReportData, runs: Path | None = None) -> int:
    """Steps an epoch for trackers whose axis holds whole numbers: 1, or 1000 if a study evaluates between."""
    epochs = (p.epoch for arm in data.arms for run in arm.runs for p in curve_points(data, run, runs))
    return 1 if all(float(epoch).is_integer() for epoch in epochs) else 1000
