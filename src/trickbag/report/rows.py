"""The report's tables: effects, recipes, runs, as values ready to be written."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import stdev
from typing import Any

from trickbag.report.content import ArmResult, Factor, Metric, ReportData, RunResult, duration
from trickbag.report.interactions import turned, turns
from trickbag.report.ladder import ordered_arms
from trickbag.report.names import ingredients, opaque
from trickbag.report.shown import (
    TIME,
    anchor,
    arm_label,
    behind,
    decimals,
    kind_of,
    lost,
    mean,
    metrics,
    primary,
    reading,
    readings,
    unstudied,
    word,
    written,
)
from trickbag.report.times import cost_multiple, run_seconds
from trickbag.study.statistics import Effect


@dataclass(frozen=True)
class Cell:
    """A number of a metric in a table: as text, and as what it is sorted by."""

    text: str
    value: float | str
    metric: int


@dataclass(frozen=True)
class EffectRow:
    """One factor's effect.

    Attributes:
        arms: addresses and labels of the two that were compared, if only two.
        runs: what the effect rests on, in words.
        word: its verdict, in words.
        notes: what else to know.
    """

    index: int
    effect: Effect
    label: str
    factor: Factor | None
    chance: float | None
    share: float | None
    time: float | None
    arms: tuple[tuple[int, str], ...]
    runs: str
    word: str
    notes: tuple[str, ...]


def effect_rows(data: ReportData) -> list[EffectRow]:
    """Factors, largest effect first."""
    number = {e.factor: i for i, e in enumerate(data.analysis.effects)}
    position = {arm.name: i for i, arm in enumerate(data.arms)}
    factors = {f.key: f for f in data.factors}
    ticking = data.analyses.get(TIME)
    times = {e.factor: e.estimate for e in ticking.effects} if ticking else {}
    turning: dict[str, list[str]] = {}
    for turn in turns(data):
        turning.setdefault(turn.factor, []).append(turned(data, turn))
    found = []
    for e in data.ranked:
        with_, without = behind(data, e.factor)
        names = {arm for arm, _ in [*with_, *without]}
        pair = (e.plus, e.minus) if names and names <= {e.plus, e.minus} else ()
        found.append(
            EffectRow(
                number[e.factor],
                e,
                data.label(e.factor),
                factors.get(e.factor),
                data.chances.get(e.factor),
                data.attribution.get(e.factor),
                times.get(e.factor),
                tuple((position[name], arm_label(data, name)) for name in pair if name in position),
                readings(data, [*with_, *without]),
                word(data, e),
                (*turning.get(e.factor, ()), *([e.note] if e.note and not unstudied(data, e) else [])),
            )
        )
    return found


def arm_rows(data: ReportData) -> list[dict[str, Any]]:
    """Recipes with the mean of every metric, its noise and its cost."""
    shown = metrics(data)
    position = {arm.name: i for i, arm in enumerate(data.arms)}
    return [_arm_row(data, arm, shown, position[arm.name]) for arm in ordered_arms(data)]


def _arm_row(data: ReportData, arm: ArmResult, shown: list[Metric], index: int) -> dict[str, Any]:
    known = list(arm.values.values())
    multiple, seconds = cost_multiple(data, arm), run_seconds(arm)
    return {
        "index": index,
        "label": arm_label(data, arm.name),
        "name": arm.label,
        "inside": ingredients(data, arm),
        "opaque": opaque(data, arm),
        "single": len(known) < 2,
        "kind": kind_of(data, arm),
        "finished": sum(r.status == "finished" for r in arm.runs),
        "runs": len(arm.runs),
        "sd": f"{stdev(known):.2f}" if len(known) > 1 else "–",
        "time": "–" if seconds is None else duration(seconds),
        "seconds": "" if seconds is None else seconds,
        "multiple": "–" if multiple is None else f"×{multiple:.2f}",
        "cells": [_cell(mean(data, arm, m), decimals(data, m), i) for i, m in enumerate(shown)],
    }


def _cell(value: float | None, places: int, metric: int) -> Cell:
    return Cell(written(value, places), "" if value is None else value, metric)


def run_rows(data: ReportData) -> list[dict[str, Any]]:
    """Every run of every arm, with an address for the first row of each run."""
    shown = metrics(data)
    places = [decimals(data, m) for m in shown]
    seen: set[str] = set()
    found = []
    for index, arm in enumerate(data.arms):
        for run in arm.runs:
            name = anchor(run.run_id)
            found.append(
                {
                    "label": arm_label(data, arm.name),
                    "inside": ingredients(data, arm),
                    "sealed": written(run.sealed, 2),
                    "index": index,
                    "run": run,
                    "id": name if name not in seen and run.run_id else None,
                    "cells": [
                        _cell(reading(data, run, m), p, i)
                        for i, (m, p) in enumerate(zip(shown, places, strict=True))
                    ],
                }
            )
            seen.add(name)
    return found


def trouble(data: ReportData) -> list[tuple[ArmResult, RunResult]]:
    """Runs that diverged or failed."""
    return [(arm, run) for arm in data.arms for run in lost(arm)]


def facts(data: ReportData) -> dict[str, Any]:
    """What the page's script has to know: metrics, and the rows of runs that each number rests on."""
    row: dict[tuple[str, int], int] = {}
    for arm in data.arms:
        for run in arm.runs:
            row[arm.name, run.seed] = len(row)

    def rows(pairs: list[tuple[str, int]]) -> list[int]:
        return [row[pair] for pair in pairs if pair in row]

    ends = (data.candidate, data.baseline)
    pairs = data.analysis.overall.pairs if data.analysis.overall else ()
    opened = {a.name: [(a.name, r.seed) for r in a.runs if r.sealed is not None] for a in data.arms}
    whole = {
        "on the selection split": [[(name, seed) for seed, _ in pairs] for name in ends],
        "on the sealed split": [opened.get(name, []) for name in ends],
    }
    return {
        "overalls": [
            {"label": f"candidate − baseline {where}", "sides": [rows(side) for side in sides]}
            for where, sides in whole.items()
        ],
        "metrics": [{"name": m.name, "label": m.label} for m in metrics(data)],
        "primary": primary(data).name,
        "effects": [
            {"label": data.label(e.factor), "sides": [rows(side) for side in behind(data, e.factor)]}
            for e in data.analysis.effects
        ],
        "comparisons": [
            {
                "label": f"{arm_label(data, c.plus)} − {arm_label(data, c.minus)}",
                "sides": [rows([(name, seed) for seed, _ in c.pairs]) for name in (c.plus, c.minus)],
            }
            for c in data.comparisons
        ],
    }
