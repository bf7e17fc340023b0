"""Learning curves and final values of the runs of a study, in the units of :mod:`trickbag.report.units`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trickbag.report.content import ReportData, RunResult
from trickbag.report.units import costs, plain_name, primary_name, readings, scale_of


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation in the course of a training run.

    Attributes:
        metric: ``selection/<primary metric>``, as the study reads it; from the run's directory also
            ``train_loss``, ``lr`` and ``<weights>/<metric>``.
        epoch: epochs trained, from 0; fractional between epochs.
        value: of the metric, in the unit of the report: shares of images in points.
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
    points = [CurvePoint(f"selection/{primary_name(data)}", epoch, value) for epoch, value in run.curve]
    if runs is None or not run.run_id:
        return points
    from trickbag.engine.run import Run

    rows = (row for row in Run(runs / run.run_id).metrics() if isinstance(row, dict) and "epoch" in row)
    recorded = {row["epoch"]: row for row in rows}  # of an epoch that was repeated the last counts
    for epoch, row in sorted(recorded.items()):
        points += [
            CurvePoint(name, epoch, value, row.get("step"), row.get("seconds"))
            for name, value in _recorded(data, row).items()
        ]
    return points


def _recorded(data: ReportData, row: Mapping[str, Any]) -> dict[str, float]:
    values = {name: row[name] for name in ("train_loss", "lr") if _number(row.get(name))}
    for weights, measured in row.items():
        if isinstance(measured, Mapping):
            plain = {plain_name(name): value for name, value in measured.items() if _number(value)}
            values |= {f"{weights}/{name}": scale_of(data, name) * value for name, value in plain.items()}
    return {name: float(value) for name, value in values.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def ended(run: RunResult) -> bool:
    """Whether a run is over: trackers hold no others."""
    return run.status != "pending"


def final_values(data: ReportData, run: RunResult) -> dict[str, float]:
    """What trackers keep of a run: ``final/<metric>``, ``sealed/<metric>``, ``cost/<cost>``."""
    found = {f"final/{name}": value for name, value in readings(data, run).items()}
    found |= {f"cost/{name}": value for name, value in costs(data, run).items()}
    found["cost/seconds"] = float(run.seconds)
    if run.sealed is not None:
        found[f"sealed/{primary_name(data)}"] = float(run.sealed)
    return found


def step_unit(data: ReportData, runs: Path | None = None) -> int:
    """Steps an epoch for trackers whose axis holds whole numbers: 1, or 1000 if a study evaluates between."""
    epochs = (p.epoch for arm in data.arms for run in arm.runs for p in curve_points(data, run, runs))
    return 1 if all(float(epoch).is_integer() for epoch in epochs) else 1000
