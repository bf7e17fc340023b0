"""The training runs of a study as runs of MLflow."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.report.content import ArmResult, ReportData, RunResult
from trickbag.report.curves import CurvePoint, curve_points, final_values

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

STATUS = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
"""MLflow knows no divergence: the tag ``trickbag.status`` tells it from a crash."""

LETTERS, VALUE, TAG = 250, 500, 5000  # what the oldest supported servers take


@dataclass(frozen=True)
class Child:
    """What is logged of one run.

    Attributes:
        name: shown.
        params, tags: as MLflow takes them.
        metrics: ``(name, step, milliseconds since the run began, value)``.
        status: of MLflow.
        began: milliseconds since 1970; None if unknown.
        lasted: milliseconds.
    """

    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: list[tuple[str, int, int, float]]
    status: str
    began: int | None
    lasted: int

    @property
    def digest(self) -> str:
        """Hash of everything but when it was."""
        parts = [self.name, self.params, self.tags, self.metrics, self.status, self.lasted]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def child_of(data: ReportData, arm: ArmResult, run: RunResult, runs: Path | None, unit: int) -> Child:
    """What is logged of a run; ``unit`` steps make an epoch."""
    params = {"arm": arm.name[:VALUE], "seed": str(run.seed)}
    params |= {key_of(f"factor/{f.key}"): "on" if f.key in arm.factors_on else "off" for f in data.factors}
    params |= {key_of(f"recipe/{key}"): value[:VALUE] for key, value in _recipe(data, arm, run, runs).items()}
    tags = {
        "trickbag.arm": arm.name,
        "trickbag.label": arm.label,
        "trickbag.seed": str(run.seed),
        "trickbag.run": run.run_id,
        "trickbag.status": run.status,
        "trickbag.stage": run.stage,
        "trickbag.message": run.message,
        "trickbag.transductive": str(run.transductive).lower(),
        "trickbag.steps_per_epoch": str(unit),
    }
    points = curve_points(data, run, runs)
    last = max((point.epoch for point in points), default=0.0)

    def spent(point: CurvePoint) -> int:
        guess = run.seconds * point.epoch / (last or 1.0)
        return round(1000 * (guess if point.seconds is None else point.seconds))

    metrics = [(key_of(p.metric), round(p.epoch * unit), spent(p), p.value) for p in points]
    lasted = max([round(1000 * run.seconds), *(when for _, _, when, _ in metrics)])
    # Of values at one step the latest counts, of steps the highest.
    metrics += [(key_of(k), 0, lasted, v) for k, v in final_values(data, run).items()]
    about = None if runs is None else runs / run.run_id / "run.json"
    began = round(1000 * about.stat().st_mtime) if about is not None and about.exists() else None
    name = f"{arm.label}, seed {run.seed}"
    return Child(
        name, params, {k: v[:TAG] for k, v in tags.items()}, metrics, STATUS[run.status], began, lasted
    )


def key_of(text: str) -> str:
    """A name of a parameter or metric that every MLflow store takes."""
    return re.sub(r"[^\w\-. /]", "_", text, flags=re.ASCII)[:LETTERS]


def _recipe(data: ReportData, arm: ArmResult, run: RunResult, runs: Path | None) -> dict[str, str]:
    """Values of the recipe that a run was trained with, by path; nothing where it is not known.

    Arms share a training run where they differ in factors that act when predicting: those that an arm does
    without are left out.
    """
    from trickbag.engine.run import Run
    from trickbag.recipe.read import yaml_value

    text = data.recipes.get(arm.name)
    if runs is not None and run.run_id and (runs / run.run_id / "recipe.yaml").exists():
        text = (Run(runs / run.run_id).path / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    plain = yaml_value(text) if text else None
    if not isinstance(plain, Mapping):
        return {}
    absent = {
        f"tricks/{factor.key}"
        for factor in data.factors
        if factor.passive and factor.before == "absent" and factor.key not in arm.factors_on
    }
    flat = _flat({key: value for key, value in plain.items() if key != "about"})
    return {path: value for path, value in flat if "/".join(path.split("/")[:2]) not in absent}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}" if path else str(key))
    else:
        yield path, "on" if value == {} or value is None else str(value)


def log_run(
    client: MlflowClient, experiment: str, child: Child, common: dict[str, str], old: MlflowRun | None
) -> None:
    """Create a run, or bring ``old`` up to date; ``common`` are tags that all runs of the study have."""
    from mlflow.entities import Metric, Param, RunTag

    if old is not None:
        if old.data.tags.get("trickbag.content") == child.digest and old.data.tags.items() >= common.items():
            return
        if not _extends(child, old):
            client.delete_run(old.info.run_id)
            old = None
    tags = common | child.tags
    if old is None:
        began = child.began or round(1000 * time.time()) - child.lasted
        made = client.create_run(experiment, start_time=began, tags=tags, run_name=child.name)
    else:
        made, began = old, old.info.start_time
        client.update_run(made.info.run_id, name=child.name)
    identity = made.info.run_id
    metrics = _fresh(client, old, child.metrics)
    params = [Param(key, value) for key, value in child.params.items()]
    for some in batches(params, 100):
        client.log_batch(identity, params=some)
    points = [Metric(key, value, began + when, step) for key, step, when, value in metrics]
    for some in batches(points, 1000):
        client.log_batch(identity, metrics=some)
    client.set_terminated(identity, child.status, began + child.lasted)
    # Last: a run without it, or with another one, is completed by the next export.
    tags["trickbag.content"] = child.digest
    client.log_batch(identity, tags=[RunTag(key, value) for key, value in tags.items()])


def _extends(child: Child, old: MlflowRun) -> bool:
    """Whether the run can be brought up to date: parameters cannot be changed, nor values taken back."""
    if old.data.tags.get("trickbag.run") != child.tags["trickbag.run"]:
        return False  # The curves of two trainings must not be mixed.
    held = {key for key in old.data.metrics if key.startswith(("final/", "sealed/"))}
    same = all(child.params.get(key, value) == value for key, value in old.data.params.items())
    return same and held <= {key for key, *_ in child.metrics}


def _fresh(
    client: MlflowClient, old: MlflowRun | None, metrics: Sequence[tuple[str, int, int, float]]
) -> list[tuple[str, int, int, float]]:
    """Points that a run does not hold yet; what changed comes later in time, so that it counts."""
    if old is None:
        return list(metrics)
    fresh = []
    for key in dict.fromkeys(key for key, *_ in metrics):
        history = {m.step: m for m in sorted(_history(client, old, key), key=lambda m: m.timestamp)}
        for _, step, when, value in (metric for metric in metrics if metric[0] == key):
            held = history.get(step)
            if held is None or repr(float(held.value)) != repr(float(value)):
                late = when if held is None else max(when, held.timestamp - old.info.start_time + 1)
                fresh.append((key, step, late, value))
    return fresh


def _history(client: MlflowClient, old: MlflowRun, key: str) -> list[Any]:
    return client.get_metric_history(old.info.run_id, key) if key in old.data.metrics else []


def batches(values: list[Any], size: int) -> Iterator[list[Any]]:
    """Values in portions that one request takes."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
