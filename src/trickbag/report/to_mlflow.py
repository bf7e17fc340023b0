"""A study in MLflow: a parent run for the study, a child for each arm and seed, the report as artifacts."""

from __future__ import annotations

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.errors import StudyError
from trickbag.report.content import ReportData
from trickbag.report.curves import step_unit
from trickbag.report.mlflow_runs import LETTERS, TAG, VALUE, batches, child_of, key_of, log_run
from trickbag.report.tables import study_digest, tables

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


def to_mlflow(
    data: ReportData,
    out: Path,
    *,
    runs: Path | None = None,
    tracking_uri: str | None = None,
    name: str = "",
) -> list[Path | str]:
    """Log a study; doing so again updates the same runs.

    A study is found by its digest (:func:`~trickbag.report.tables.study_digest`), its runs by arm and seed:
    arms that are read off one training run share its id. A run that was trained anew replaces the old one.

    Args:
        data: the study.
        out: folder of ``mlflow.db`` (SQLite) and ``mlflow-artifacts``, unless there is a tracking URI.
        runs: folder of run directories: with it, the whole learning curves, recipe values and times.
        tracking_uri: of a server or store. Artifacts of an SQLite file go beside it.
        name: of the experiment; the study's title if empty.

    Returns:
        The database, or the tracking URI.

    Raises:
        StudyError: MLflow says no.
    """
    with _quiet():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        database = out.resolve() / "mlflow.db"
        try:
            uri = tracking_uri or f"sqlite:///{database}"
            client = MlflowClient(tracking_uri=uri)
            experiment = _experiment(client, name or data.title, _beside(uri))
            _log_study(client, experiment, data, runs)
        except MlflowException as error:
            what = str(error).splitlines()[0]
            raise StudyError(f"MLflow at {tracking_uri or database} says no: {what}") from error
    return [tracking_uri or database]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow without its telemetry, its progress messages and the warnings it gives itself."""
    # Read when MLflow is imported and before each of its events; it stays off in this process.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    with warnings.catch_warnings():
        # MLflow's own table definitions, with SQLAlchemy 2.1.
        warnings.filterwarnings("ignore", message=".*noload.*loader strategy", category=DeprecationWarning)
        import mlflow  # noqa: F401  (it sets the levels of its loggers)

        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _beside(uri: str) -> str | None:
    """Where artifacts go: beside an SQLite file, not where MLflow is run; otherwise the server knows."""
    scheme, _, path = uri.partition(":///")
    return (
        (Path(path).resolve().parent / "mlflow-artifacts").as_uri() if scheme == "sqlite" and path else None
    )


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    name = " ".join(name.split())[:LETTERS] or "trickbag"
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name, artifact_location=artifacts))
    if found.lifecycle_stage == "deleted":
        raise StudyError(
            f"the MLflow experiment {name!r} was deleted",
            fix=f"restore it (mlflow experiments restore -x {found.experiment_id}), or choose another name",
        )
    return str(found.experiment_id)


def _log_study(client: MlflowClient, experiment: str, data: ReportData, runs: Path | None) -> None:
    digest = study_digest(data)
    known = _search(client, experiment, f"tags.`trickbag.study` = '{digest}'")
    parent = next((run for run in known if run.data.tags.get("trickbag.role") == "study"), None)
    tags = {"trickbag.study": digest, "trickbag.role": "study"}
    if parent is None:
        parent = client.create_run(experiment, tags=tags, run_name=data.title)
    top = parent.info.run_id
    client.update_run(top, status="RUNNING", name=data.title)
    unit = step_unit(data, runs)
    old = {(r.data.tags.get("trickbag.arm"), r.data.tags.get("trickbag.seed")): r for r in known}
    for arm in data.arms:
        for run in arm.runs:
            child = child_of(data, arm, run, runs, unit)
            common = tags | {"trickbag.role": "run", "mlflow.parentRunId": top}
            log_run(client, experiment, child, common, old.get((arm.name, str(run.seed))))
    _log_parent(client, top, data)
    client.set_terminated(top, "FINISHED")


def _search(client: MlflowClient, experiment: str, text: str) -> list[MlflowRun]:
    found: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([experiment], text, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _plain(value: Any) -> Any:
    """A value that JSON has: browsers do not read NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- the study ------------------------------------------------------------------------------


def _log_parent(client: MlflowClient, run: str, data: ReportData) -> None:
    from mlflow.entities import Metric, Param, RunTag

    from trickbag.report.html import render
    from trickbag.report.text import markdown

    fixed = {"design": data.design, "data": data.data_name, "metric": data.metric}
    fixed |= {f"factor/{factor.key}": f"{factor.before} -> {factor.after}" for factor in data.factors}
    params = [Param(key_of(key), value[:VALUE]) for key, value in fixed.items()]
    for some in batches(params, 100):
        client.log_batch(run, params=some)
    now = round(1000 * time.time())
    shown = {f"effect/{e.factor}": e.estimate for e in data.analysis.effects}
    overall = data.analysis.overall
    if overall is not None:
        shown |= {"gain": overall.estimate, "gain_low": overall.low, "gain_high": overall.high}
    if data.confirm is not None:
        shown[f"gain_{data.confirm.split}"] = data.confirm.difference
    held = client.get_run(run).data.metrics
    metrics = [
        Metric(key_of(key), value, now, 0)
        for key, value in shown.items()
        if value is not None and held.get(key_of(key)) != value
    ]
    for some in batches(metrics, 1000):
        client.log_batch(run, metrics=some)
    text = markdown(data)
    loose = {
        "trickbag.alpha": f"{data.alpha:g}",
        "trickbag.delta": f"{data.delta:g}",
        "trickbag.seeds": ", ".join(map(str, data.seeds)),
        "mlflow.note.content": text,
        "mlflow.loggedArtifacts": json.dumps([{"path": "effects.json", "type": "table"}]),
        **{f"trickbag.provenance.{key}": str(value) for key, value in data.provenance.items()},
    }
    tags = [RunTag(key_of(key), value[:TAG]) for key, value in loose.items()]
    for some in batches(tags, 100):
        client.log_batch(run, tags=some)
    effects = tables(data)["effects"].drop_columns(["pairs"])
    rows = [[_plain(value) for value in row.values()] for row in effects.to_pylist()]
    client.log_text(run, json.dumps({"columns": effects.column_names, "data": rows}), "effects.json")
    client.log_text(run, render(data), "report.html")
    client.log_text(run, data.to_json(), "report.json")
    client.log_text(run, text, "report.md")
    for name, recipe in data.recipes.items():
        client.log_text(run, recipe, f"recipes/{key_of(name).replace('/', '_')}.yaml")
