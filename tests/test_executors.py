"""Executors: what all do alike, and what workers withstand."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chores import RECIPE, Chore
from executor_helpers import Contract, chore
from trickbag.data.base import DataSpec
from trickbag.engine.heartbeat import NAME, Heartbeat
from trickbag.engine.run import Run
from trickbag.errors import StudyError, UsageError
from trickbag.study import exclusion, worker
from trickbag.study import executor as executors
from trickbag.study.executor import Event, Executor, LocalExecutor
from trickbag.study.worker import Job

__all__ = ["chore"]

Chores = Callable[..., Chore]


class TestLocal(Contract):
    @pytest.fixture
    def make(self) -> Callable[..., Executor]:
        return LocalExecutor


# submitit leaves the logs of its stand-in open.
@pytest.mark.filterwarnings("ignore:.*DEBUG_.*_log:pytest.PytestUnraisableExceptionWarning")
class TestSlurmStandIn(Contract):
    parallel = False

    @pytest.fixture
    def make(self) -> Callable[..., Executor]:
        def make(workers: int, **values: Any) -> Executor:
            return executors.make("slurm", workers=workers, cluster="debug", **values)

        return make


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_a_slurm_job_writes_its_checkpoint_when_it_is_cancelled(chore: Chores, tmp_path: Path) -> None:
    """As a process of its own, which is how submitit runs jobs without a cluster."""
    events: list[Event] = []

    def interrupt() -> None:
        while not (tmp_path / "one is training").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        slurm = executors.make("slurm", workers=1, cluster="local")
        assert not slurm.run([chore("one", "train until stopped"), chore("two")], events.append)
    assert [(e.job.name, e.kind) for e in events] == [("one", "started"), ("one", "stopped")]
    assert (tmp_path / "one wrote its checkpoint").exists()


# Choosing one


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert executors.make("local", workers=3).workers == 3
    with pytest.raises(UsageError, match=r"no executor 'slrum'(.|\n)*did you mean slurm"):
        executors.make("slrum")
    with pytest.raises(UsageError, match="sbatch"):
        executors.make("slurm")
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package submitit(.|\n)*pip install 'trickbag\[slurm\]'"):
        executors.make("slurm")
    with pytest.raises(UsageError, match=r"pip install 'trickbag\[ray\]'"):
        executors.make("ray")


def test_no_ray_cluster_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**values: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError, match=r"no Ray cluster at 'auto': Could not(.|\n)*ray start --head"):
        executors.make("ray")


# Signs of life


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


def test_a_silent_worker_is_found(chore: Chores) -> None:
    events: list[Event] = []
    assert LocalExecutor(workers=1, silence=5.0).run([chore("hung", "hang once")], events.append)
    assert kinds(events) == ["started", "retried", "started", "done"]
    assert events[1].detail == "no sign of life for 5 s"


def test_a_worker_that_waits_is_not_silent(chore: Chores, tmp_path: Path) -> None:
    """However long another process holds the run that it wants."""
    events: list[Event] = []
    run = Run(tmp_path / "run")
    held = run.lock()
    held.__enter__()
    threading.Timer(4.0, lambda: held.__exit__(None, None, None)).start()
    began = time.monotonic()
    job = chore("patient", "wait for a run")
    assert LocalExecutor(workers=1, silence=2.0).run([job], events.append)
    assert time.monotonic() - began > 3.5
    assert kinds(events) == ["started", "waiting", "done"]
    assert events[1].detail == str(run.path)


def test_clocks_that_jump_kill_nobody(chore: Chores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wall clock, nor the other one when we are put to sleep together with our workers."""
    wall, steady, shift = time.time, time.monotonic, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall() + 1e6 * shift[0])
    monkeypatch.setattr(time, "monotonic", lambda: steady() + shift[0])
    events: list[Event] = []

    def hear(event: Event) -> None:
        events.append(event)
        if event.kind == "started":
            shift[0] += 7200.0

    assert LocalExecutor(workers=1).run([chore("one", "tell"), chore("two", "tell")], hear)
    assert kinds(events) == ["started", "status", "done"] * 2


# Two writers


def beat_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        run.path.mkdir(exist_ok=True)
        Heartbeat(run.path, 0, 10, 5).beat(1, None, now=True)


def test_a_run_that_another_machine_trains_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where locks do not reach from machine to machine."""
    run = Run(tmp_path / "run")
    beat_elsewhere(run, monkeypatch)
    sent: list[Any] = []
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) < 4:
            beat_elsewhere(run, monkeypatch)
        else:
            long_ago = time.time() - 2 * exclusion.QUIET_SECONDS
            os.utime(run.path / NAME, (long_ago, long_ago))

    monkeypatch.setattr(time, "sleep", nap)
    exclusion.until_free(run, sent.append)
    assert len(naps) == 4
    assert sent == [("waiting", str(run.path)), ("alive", None)]
    assert sorted(path.name for path in run.path.iterdir()) == [".lock", NAME]


def test_other_code_is_refused(chore: Chores) -> None:
    events: list[Event] = []
    assert LocalExecutor(workers=1).run([chore("old", code="another version")], events.append)
    assert kinds(events) == ["started", "failed"]
    assert "runs other code than the coordinator" in events[1].detail


# Out of room


def trainings(runs: Path, shapes: Path) -> list[Job]:
    data = DataSpec(source=str(shapes), selection=0.3, test=0.2)
    return [Job(f"seed {seed}", RECIPE, data, seed, str(runs), readers=(RECIPE,)) for seed in range(3)]


def results(runs: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text())["metrics"] for path in runs.glob("*/result.json")}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a file system of some bytes; a second call changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(size: int) -> Path:
        again = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={size}"]
        if subprocess.run(["mount", *again, "tmpfs", str(folder)], capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        return folder

    yield size
    if folder.is_mount():
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_a_study_that_goes_on_when_there_is_room(
    disk: Callable[[int], Path], shapes: Path, tmp_path: Path
) -> None:
    for job in trainings(tmp_path / "runs", shapes):
        worker._train(job, lambda message: None)
    needed = sum(path.stat().st_blocks * 512 for path in (tmp_path / "runs").rglob("*"))
    runs = disk(needed // 2) / "runs"
    jobs = trainings(runs, shapes)
    events: list[Event] = []
    with pytest.raises(StudyError, match=r"No space left on device(.|\n)*make room, then resume"):
        LocalExecutor(workers=1).run(jobs, events.append)
    assert "retried" not in kinds(events)
    assert kinds(events).count("halted") == 1
    assert str(runs) in next(event.detail for event in events if event.kind == "halted")
    assert disk(2 * needed)
    assert LocalExecutor(workers=2).run(jobs, events.append)
    assert results(runs) == results(tmp_path / "runs")


def test_a_limit_on_file_sizes_counts_as_full(chore: Chores, shapes: Path, tmp_path: Path) -> None:
    """Also if the one who writes is safetensors, whose errors have no number."""
    events: list[Event] = []
    data = DataSpec(source=str(shapes), selection=0.3, test=0.2)
    job = chore("cramped", "write small files", data=data, runs=str(tmp_path / "runs"))
    with pytest.raises(StudyError, match="File too large"):
        LocalExecutor(workers=1).run([job, chore("never")], events.append)
    assert [e.kind for e in events if e.kind != "status"] == ["started", "halted"]


def test_a_listener_that_cannot_write_halts_the_study(chore: Chores, tmp_path: Path) -> None:
    def hear(event: Event) -> None:
        if event.kind == "started":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StudyError, match="No space left on device"):
        LocalExecutor(workers=1).run([chore("one", "train until stopped"), chore("two")], hear)
    assert not (tmp_path / "log.jsonl").exists()
