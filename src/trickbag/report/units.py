"""Names and units of what is exported: those of the report, with underscores in names.

Shares of images (accuracies, calibration error) and their differences are in percentage points, as in the
report; losses are in nats, times in seconds. :func:`unit_of` tells for each name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trickbag.report.content import Metric, ReportData, RunResult

if TYPE_CHECKING:
    from collections.abc import Iterable

POINTS, PROBABILITY, SECONDS = "points", "probability", "s"
RECORDED = "as recorded"
"""Unit of what the report does not show: the learning rate, the training loss, metrics of other makers."""

COSTS = {"training_seconds": SECONDS, "inference_ms": "ms an image", "memory_mb": "MB", "epochs": "epochs"}
SHARES = ("accuracy", "balanced_accuracy", "top5_accuracy", "ece")
"""Recorded as fractions; a study without a finished run lists none of them but its primary metric."""


def plain_name(name: str) -> str:
    """A name without spaces: ``balanced_accuracy``."""
    return "_".join(name.split())


def primary_name(data: ReportData) -> str:
    """Name of the metric that verdicts are about, with underscores."""
    return plain_name(data.metrics[0].name if data.metrics else data.metric)


def scale_of(data: ReportData, name: str) -> float:
    """What a recorded number of that name is multiplied by to be in the unit of the report."""
    known = _listed(data).get(name)
    if known is not None:
        return known.scale
    share = name == primary_name(data) or (data.metrics and name in SHARES)
    return 100.0 if share else 1.0


def unit_of(data: ReportData, name: str) -> str:
    """Unit of the exported numbers of that name: ``points``, ``nats``, ``s``, ``MB``, or ``as recorded``."""
    known = _listed(data).get(name)
    if name == primary_name(data) or scale_of(data, name) == 100:
        return POINTS
    told = known.label.rpartition(", ")[2] if known is not None and ", " in known.label else ""
    return told or COSTS.get(name, RECORDED)


def metric_names(data: ReportData) -> list[str]:
    """Every metric that a run of the study holds, the primary one first, then in the report's order."""
    found = _held(data, (name for arm in data.arms for run in arm.runs for name in run.metrics))
    return list(dict.fromkeys([primary_name(data), *found]))


def cost_names(data: ReportData) -> list[str]:
    """Every cost that a run of the study holds, in the report's order."""
    return _held(data, (name for arm in data.arms for run in arm.runs for name in run.costs))


def readings(data: ReportData, run: RunResult) -> dict[str, float]:
    """Metrics of a run on the selection split by name, the primary one among them."""
    found = {
        name: scale_of(data, name) * float(value)
        for name, value in ((plain_name(key), value) for key, value in run.metrics.items())
    }
    if run.value is not None:
        found[primary_name(data)] = float(run.value)
    return found


def costs(data: ReportData, run: RunResult) -> dict[str, float]:
    """Costs of a run by name."""
    plain = ((plain_name(key), value) for key, value in run.costs.items())
    return {name: scale_of(data, name) * float(value) for name, value in plain}


def _listed(data: ReportData) -> dict[str, Metric]:
    return {plain_name(metric.name): metric for metric in data.metrics}


def _held(data: ReportData, names: Iterable[str]) -> list[str]:
    held = dict.fromkeys(plain_name(name) for name in names)
    return list(dict.fromkeys([*(name for name in _listed(data) if name in held), *held]))
