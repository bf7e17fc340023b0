"""A study in MLflow: a parent run for the study, a child for each arm and seed, the report as artifacts."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trickbag.errors import StudyError
from trickbag.report.content import ReportData
from trickbag.report.curves import ended, step_unit
from trickbag.report.identity import study_digest
from trickbag.report.mlflow_runs import LETTERS, child_of, log_run
from trickbag.report.mlflow_study import log_study, may_go_on

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

    A study is found by its digest (:func:`~trickbag.report.identity.study_digest`), its runs by arm and
    seed: arms that are read off one training run share its id. A run that was trained anew replaces the old
    one; runs that have not ended are left out, and the study's own is ``RUNNING`` until it is complete.
    Numbers are in the units of the report: shares of images in points.

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
    if parent is not None and not may_go_on(parent, data):
        client.delete_run(parent.info.run_id)
        parent = None
    if parent is None:
        parent = client.create_run(experiment, tags=tags, run_name=data.title)
    top = parent.info.run_id
    client.update_run(top, status="RUNNING", name=data.title)
    unit = step_unit(data, runs)
    old = {
        (run.data.tags["trickbag.arm"], run.data.tags["trickbag.seed"]): run
        for run in known
        if "trickbag.arm" in run.data.tags
    }
    over = {(arm.name, str(run.seed)): (arm, run) for arm in data.arms for run in arm.runs if ended(run)}
    for key, (arm, run) in over.items():
        child = child_of(data, arm, run, runs, unit)
        common = tags | {"trickbag.role": "run", "mlflow.parentRunId": top}
        log_run(client, experiment, child, common, old.get(key))
    for key in old.keys() - over.keys():
        client.delete_run(old[key].info.run_id)
    log_study(client, top, data)
    if not data.unfinished:
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
