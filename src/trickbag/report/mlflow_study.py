"""A study as the parent run of MLflow: what it found, what it recommends, and its report."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from trickbag.report.content import Comparison, ReportData
from trickbag.report.mlflow_runs import TAG, VALUE, batches, key_of
from trickbag.report.shown import arm_label, clean
from trickbag.report.tables import tables
from trickbag.report.units import plain_name, primary_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

STATES = ("finished", "diverged", "failed", "pending")
VERDICTS = ("helps", "hurts", "equivalent", "undetected")


def study_params(data: ReportData) -> dict[str, str]:
    """What was asked: it stays the same however far the study is."""
    fixed = {"design": data.design, "data": data.data_name, "metric": primary_name(data)}
    fixed |= {f"factor/{factor.key}": f"{factor.before} -> {factor.after}" for factor in data.factors}
    return {key_of(key): value[:VALUE] for key, value in fixed.items()}


def study_metrics(data: ReportData) -> dict[str, float]:
    """What was found: effects, gains, comparisons and counts, in points where they are shares of images."""
    data = clean(data)
    found = _effects(data) | _gains(data) | _comparisons(data) | _counts(data)
    return {key_of(key): float(value) for key, value in found.items() if value is not None}


def study_tags(data: ReportData) -> dict[str, str]:
    """Verdicts, the recommendation, how far the study is, and where its numbers come from."""
    advised = data.recommendation
    found = {
        "trickbag.alpha": f"{data.alpha:g}",
        "trickbag.delta": f"{data.delta:g}",
        "trickbag.seeds": ", ".join(map(str, data.seeds)),
        "trickbag.unfinished": data.unfinished,
        "trickbag.recommendation": ", ".join(advised.factors_on) or "no factor" if advised else "",
        "trickbag.recommendation.arm": (advised.arm or "") if advised else "",
        "mlflow.loggedArtifacts": json.dumps([{"path": "effects.json", "type": "table"}]),
        **{f"trickbag.verdict.{effect.factor}": effect.verdict for effect in data.analysis.effects},
        **{f"trickbag.plan.{key}": value for key, value in data.plan.items() if isinstance(value, str)},
        **{f"trickbag.provenance.{plain_name(key)}": str(value) for key, value in data.provenance.items()},
    }
    return {key_of(key): value[:TAG] for key, value in found.items()}


def may_go_on(old: MlflowRun, data: ReportData) -> bool:
    """Whether a run can be brought up to date: parameters cannot be changed, nor metrics taken back."""
    params, metrics = study_params(data), study_metrics(data)
    same = all(params.get(key, value) == value for key, value in old.data.params.items())
    return same and old.data.metrics.keys() <= metrics.keys()


def log_study(client: MlflowClient, run: str, data: ReportData) -> None:
    """Bring the run of a study up to date."""
    from mlflow.entities import Metric, Param, RunTag

    from trickbag.report.html import render
    from trickbag.report.text import markdown

    for some in batches([Param(key, value) for key, value in study_params(data).items()], 100):
        client.log_batch(run, params=some)
    now, held = round(1000 * time.time()), client.get_run(run).data.metrics
    new = [Metric(key, v, now, 0) for key, v in study_metrics(data).items() if held.get(key) != v]
    for some in batches(new, 1000):
        client.log_batch(run, metrics=some)
    text = markdown(data)
    tags = study_tags(data) | {"mlflow.note.content": text[:TAG]}
    for some in batches([RunTag(key, value) for key, value in tags.items()], 100):
        client.log_batch(run, tags=some)
    effects = tables(data)["effects"].drop_columns(["pairs"])
    rows = [[_plain(value) for value in row.values()] for row in effects.to_pylist()]
    client.log_text(run, json.dumps({"columns": effects.column_names, "data": rows}), "effects.json")
    client.log_text(run, render(data), "report.html")
    client.log_text(run, data.to_json(), "report.json")
    client.log_text(run, text, "report.md")
    recipes = dict(data.recipes)
    if data.recommendation is not None and data.recommendation.recipe:
        recipes["recommended"] = data.recommendation.recipe
    for name, recipe in recipes.items():
        client.log_text(run, recipe, f"recipes/{key_of(name).replace('/', '_')}.yaml")


def _plain(value: Any) -> Any:
    """A value that JSON has: browsers do not read NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


_Found = dict[str, float | None]


def _effects(data: ReportData) -> _Found:
    found: _Found = {}
    for effect in data.analysis.effects:
        # Not effect/<factor>/low: in a store of files, effect/<factor> is a file.
        found[f"effect/{effect.factor}"] = effect.estimate
        found[f"effect_low/{effect.factor}"] = effect.low
        found[f"effect_high/{effect.factor}"] = effect.high
        found[f"p_holm/{effect.factor}"] = effect.p_holm
    return found


def _gains(data: ReportData) -> _Found:
    found: _Found = {}
    overall, confirmed, advised = data.analysis.overall, data.confirm, data.recommendation
    if overall is not None:
        found |= {"gain": overall.estimate, "gain_low": overall.low, "gain_high": overall.high}
    if confirmed is not None:
        name = f"gain_{confirmed.split}"
        found |= {name: confirmed.difference, f"{name}_low": confirmed.low, f"{name}_high": confirmed.high}
    if advised is not None:
        found |= {
            "recommendation/gain": advised.gain,
            "recommendation/gain_low": advised.low,
            "recommendation/gain_high": advised.high,
            "recommendation/cost_multiple": advised.cost_multiple,
            "recommendation/factors": len(advised.factors_on),
        }
    return found


def _comparisons(data: ReportData) -> _Found:
    found: _Found = {}
    names: dict[tuple[str, str], str] = {}
    for one in data.comparisons:
        name = f"comparison/{names.setdefault((one.plus, one.minus), _name(data, one, names))}/{one.split}"
        for field in ("difference", "low", "high", "p_holm", "chance"):
            found[f"{name}/{field}"] = getattr(one, field)
    return found


def _name(data: ReportData, one: Comparison, names: dict[tuple[str, str], str]) -> str:
    sides = (re.sub(r"[^\w.-]+", "_", arm_label(data, arm)).strip("_") for arm in (one.plus, one.minus))
    name = "_vs_".join(sides)
    while name in names.values():
        name += "_"
    return name


def _counts(data: ReportData) -> _Found:
    states: Counter[str] = Counter(run.status for arm in data.arms for run in arm.runs)
    verdicts: Counter[str] = Counter(effect.verdict for effect in data.analysis.effects)
    return {
        **{f"runs/{name}": states[name] for name in STATES},
        **{f"factors/{name}": verdicts[name] for name in VERDICTS},
        **{f"plan/{plain_name(k)}": v for k, v in data.plan.items() if isinstance(v, int | float)},
    }
