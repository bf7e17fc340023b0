"""A study for other tools: CSV, Parquet, LaTeX, Markdown, MLflow, TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from trickbag.errors import UsageError, nearest
from trickbag.report.content import ReportData

KINDS = {
    "csv": "runs, effects, learning curves, comparisons and the recommendation, a file each",
    "parquet": "the same with types, and with units and the study's provenance in the metadata",
    "latex": "tables of effects, recipes and comparisons with booktabs",
    "markdown": "the same and the verdict, for GitHub",
    "mlflow": "the study as a run of MLflow, its training runs below it",
    "tensorboard": "learning curves and the HParams tab",
}
EXTRAS = ("mlflow", "tensorboard")


def export(
    data: ReportData,
    kind: str,
    out: Path,
    *,
    runs: Path | None = None,
    tracking_uri: str | None = None,
    name: str = "",
) -> list[Path | str]:
    """Write a study for another tool; doing so again replaces what was written.

    Args:
        data: the study.
        kind: one of :data:`KINDS`.
        out: folder to write into, made if need be. For MLflow, where ``mlflow.db`` and ``mlflow-artifacts``
            go; nothing is written there if ``tracking_uri`` is given.
        runs: folder of run directories: with it, learning curves hold everything that was recorded.
        tracking_uri: of an MLflow server or store.
        name: what to call the study (MLflow: the experiment); its title if empty.

    Returns:
        What was written: files, the log folder of TensorBoard, the tracking URI of MLflow.

    Raises:
        UsageError: unknown kind, a package that is not installed, or a folder that cannot be written.
        StudyError: the MLflow server says no.
    """
    if kind not in KINDS:
        near = nearest(kind, KINDS)
        raise UsageError(
            f"cannot export to {kind!r}",
            where="--to",
            expected=f"one of {', '.join(KINDS)}",
            fix=f"did you mean {near!r}?" if near else None,
        )
    if kind in EXTRAS and find_spec(kind) is None:
        raise UsageError(
            f"the package {kind!r} is not installed", where="--to", fix=f"pip install 'trickbag[{kind}]'"
        )
    if tracking_uri is not None and kind != "mlflow":
        raise UsageError(f"{kind} has no tracking URI", where="--uri", expected="--to mlflow")
    if runs is not None and not runs.is_dir():
        raise UsageError(f"{runs} is not a folder", where="runs", expected="the folder of run directories")
    try:
        if tracking_uri is None:
            out.mkdir(parents=True, exist_ok=True)
        return _WRITERS[kind](data, out, runs, tracking_uri, name)
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise UsageError(
            f"cannot write {error.filename or out}: {what}",
            where="--out",
            expected="a folder that can be written",
        ) from error


def _csv(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    from trickbag.engine.files import write_text
    from trickbag.report.spreadsheet import csv_text
    from trickbag.report.tables import tables

    written: list[Path | str] = []
    for key, table in tables(data, runs, name).items():
        write_text(out / f"{key}.csv", csv_text(table))
        written.append(out / f"{key}.csv")
    return written


def _parquet(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    import pyarrow.parquet as pq

    from trickbag.report.tables import tables

    written: list[Path | str] = []
    for key, table in tables(data, runs, name).items():
        path, part = out / f"{key}.parquet", out / f".{key}.parquet.{os.getpid()}.tmp"
        try:
            pq.write_table(table, part, compression="zstd")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        written.append(path)
    return written


def _latex(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    from trickbag.engine.files import write_text
    from trickbag.report.tex import latex
    from trickbag.report.typeset import sheets

    written: list[Path | str] = []
    for sheet in sheets(data):
        write_text(out / f"{sheet.name}.tex", latex(sheet))
        written.append(out / f"{sheet.name}.tex")
    return written


def _markdown(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    from trickbag.engine.files import write_text
    from trickbag.report.typeset import markdown_tables

    write_text(out / "tables.md", markdown_tables(data))
    return [out / "tables.md"]


def _mlflow(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    from trickbag.report.to_mlflow import to_mlflow

    return to_mlflow(data, out, runs=runs, tracking_uri=tracking_uri, name=name)


def _tensorboard(
    data: ReportData, out: Path, runs: Path | None, tracking_uri: str | None, name: str
) -> list[Path | str]:
    from trickbag.report.to_tensorboard import to_tensorboard

    return [to_tensorboard(data, out, runs=runs)]


_Writer = Callable[[ReportData, Path, Path | None, str | None, str], list[Path | str]]
_WRITERS: dict[str, _Writer] = {
    "csv": _csv,
    "parquet": _parquet,
    "latex": _latex,
    "markdown": _markdown,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
}
