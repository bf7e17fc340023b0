"""What recipes cost in time, against the baseline: read off runs that are fit to be compared."""

from __future__ import annotations

from statistics import fmean

from trickbag.report.content import ArmResult, ReportData, RunResult, duration
from trickbag.report.shown import TIME

ROUGH = 1.2
"""Spread of the baseline's own training times, as a ratio, from which multiples of them are rough."""


def _time(run: RunResult, name: str) -> float | None:
    """Training time of a finished run, or with another name its wall time; None without one."""
    found = run.costs.get(TIME, 0.0) if name == TIME else run.seconds
    return found if run.status == "finished" and found > 0 else None


def run_seconds(arm: ArmResult) -> float | None:
    """Mean training time of an arm's finished runs, or else their mean wall time; None without either."""
    known = [t for run in arm.runs if (t := _time(run, TIME)) is not None]
    return fmean(known) if known else arm.seconds


def cost_multiple(data: ReportData, arm: ArmResult | None) -> float | None:
    """Time of an arm's finished runs as a multiple of the baseline's; None where no seed has both.

    Only runs with the same seeds are compared: they were made at about the same time, and the machine may
    have had more to do at others.
    """
    reference = data.arm(data.baseline)
    if arm is None or reference is None:
        return None
    for name in (TIME, "seconds"):
        own, base = (
            {run.seed: t for run in a.runs if (t := _time(run, name)) is not None} for a in (arm, reference)
        )
        if common := own.keys() & base.keys():
            return fmean(own[seed] for seed in common) / fmean(base[seed] for seed in common)
    return None


def advised_multiple(data: ReportData) -> float | None:
    """Training time of the recommended recipe, baseline = 1: measured, or else as the study expects it."""
    one = data.recommendation
    if one is None:
        return None
    measured = cost_multiple(data, data.arm(one.arm)) if one.arm else None
    return one.cost_multiple if measured is None else measured


def roughness(data: ReportData) -> str | None:
    """By how much the baseline's own times differ, in a sentence; None where they agree."""
    baseline = data.arm(data.baseline)
    runs = [] if baseline is None else baseline.runs
    for name in (TIME, "seconds"):
        times = [t for run in runs if (t := _time(run, name)) is not None]
        if len(times) > 1:
            low, high = min(times), max(times)
            if high / low <= ROUGH:
                return None
            return (
                f"Multiples of a time are rough: runs of the baseline itself took from {duration(low)} to "
                f"{duration(high)}, which differ by a factor of {high / low:.1f}."
            )
    return None
