"""A study as TensorBoard logs: learning curves of every run, and the HParams tab over its factors."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.report.content import ArmResult, ReportData, RunResult
from trickbag.report.curves import curve_points, ended, final_values, step_unit
from trickbag.report.units import primary_name

if TYPE_CHECKING:
    from collections.abc import Iterable

SUFFIX = ".trickbag"


def folder_name(arm: str) -> str:
    """A name for an arm's logs that every file system takes, at most 80 letters; distinct arms differ."""
    plain = re.sub(r"[^\w.+=,()-]", "_", arm, flags=re.ASCII)
    if plain == arm and 0 < len(arm) <= 80 and not arm.startswith("."):
        return arm
    return f"{plain.lstrip('.')[:71]}-{hashlib.sha256(arm.encode()).hexdigest()[:8]}"


def to_tensorboard(data: ReportData, out: Path, *, runs: Path | None = None) -> Path:
    """Write ``<out>/<arm>/seed<seed>`` for every run; files that an earlier export wrote there are replaced.

    Scalars are ``selection/<primary metric>``, what the runs recorded, and at the end ``final/``, ``sealed/``
    and ``cost/``, in the units of the report: shares of images in points. Steps are epochs, or thousandths of
    one if some run was evaluated in between. In the HParams tab the factors are switches, and the seeds of an
    arm are one group, shown by its mean. Runs that have not ended are left out.

    Args:
        data: the study.
        out: log folder.
        runs: folder of run directories, for all that they recorded.

    Returns:
        The log folder, for ``tensorboard --logdir``.
    """
    from tensorboard.plugins.hparams import summary_v2 as hparams

    unit = step_unit(data, runs)
    names = dict.fromkeys(n for a in data.arms for r in a.runs if ended(r) for n in final_values(data, r))
    primary = f"final/{primary_name(data)}"
    shown = [primary, *(name for name in names if name != primary)]
    config = hparams.hparams_config_pb(
        [hparams.HParam(f.key, hparams.Discrete([False, True]), f.label) for f in data.factors],
        [hparams.Metric(name, display_name=name) for name in shown],
        time_created_secs=0.0,
    )
    _write(out, [(config, None, time.time())])
    for arm in data.arms:
        for run in arm.runs:
            folder = out / folder_name(arm.name) / f"seed{run.seed}"
            if ended(run):
                _write(folder, _summaries(data, arm, run, runs, unit))
            else:
                _clear(folder)
    return out


def _summaries(
    data: ReportData, arm: ArmResult, run: RunResult, runs: Path | None, unit: int
) -> Iterable[tuple[Any, int | None, float]]:
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

    points = curve_points(data, run, runs)
    began = time.time() - run.seconds
    settings = {factor.key: factor.key in arm.factors_on for factor in data.factors}
    yield summary_v2.hparams_pb(settings, trial_id=arm.name, start_time_secs=began), None, began
    last = max((point.epoch for point in points), default=0.0)
    for point in points:
        spent = point.seconds if point.seconds is not None else run.seconds * point.epoch / (last or 1.0)
        value = summary_pb2.Summary.Value(tag=point.metric, simple_value=point.value)
        yield summary_pb2.Summary(value=[value]), round(point.epoch * unit), began + spent
    ended = began + run.seconds
    for name, number in final_values(data, run).items():
        value = summary_pb2.Summary.Value(tag=name, simple_value=number)
        yield summary_pb2.Summary(value=[value]), round(last * unit), ended
    status = api_pb2.STATUS_SUCCESS if run.status == "finished" else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended)
    plugin = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    closing = summary_pb2.Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=plugin, tensor=metadata.NULL_TENSOR
    )
    yield summary_pb2.Summary(value=[closing]), None, ended


def _write(folder: Path, summaries: Iterable[tuple[Any, int | None, float]]) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    _clear(folder)
    writer = EventFileWriter(str(folder), filename_suffix=SUFFIX)
    try:
        for summary, step, when in summaries:
            writer.add_event(event_pb2.Event(wall_time=when, step=step, summary=summary))
    finally:
        writer.close()


def _clear(folder: Path) -> None:
    for path in list(folder.glob(f"events.out.tfevents.*{SUFFIX}")):
        path.unlink()
