"""What every executor must do, and jobs that do it in an instant."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trickbag.data.base import DataSpec
from trickbag.engine.run import Run
from trickbag.errors import StudyError, UsageError
from trickbag.recipe import Recipe
from trickbag.study import worker
from trickbag.study.executor import Event, Executor
from trickbag.study.worker import Job

RECIPE = Recipe(model="mini_resnet", epochs=1, batch_size=8, image_size=8)


@dataclass(frozen=True)
class Chore(Job):
    """A job that trains nothing; ``do`` says what it does instead. It ends after the job ``until``."""

    do: str = "nothing"
    until: str = ""

    def perform(self, send: Callable[[tuple[str, Any]], None]) -> dict[str, Any]:
        began = time.time()
        if self.do == "die once" and self.attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "crash":
            raise RuntimeError("no luck")
        if self.do == "bad input":
            raise UsageError("no such thing", fix="another thing")
        if self.do == "fill the disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.runs}/file")
        if self.do == "tell":
            from trickbag.engine.train import Status

            send(("status", Status(1, 2, 0.5, 0.25, None, 9.0)))
            time.sleep(1.5)  # messages through files are looked for once in a while
        if self.do == "train until stopped":
            from trickbag.engine.interrupt import Interrupt
            from trickbag.engine.train import Stopped

            with Interrupt() as interrupt:
                (Path(self.runs) / f"{self.name} is training").touch()
                while not interrupt.requested:
                    time.sleep(0.02)
                (Path(self.runs) / f"{self.name} wrote its checkpoint").touch()
                raise Stopped("here")
        if self.do == "hang once" and self.attempt == 0:
            time.sleep(60)
        if self.do == "wait for a run":
            worker.SIGN_SECONDS = 0.2
            worker.until_free(Run(Path(self.runs) / "run"), send)
        if self.do == "write small files":
            limit = 20_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return super().perform(send)
        if self.do == "touch":
            (Path(self.runs) / self.name).touch()
        while self.until and self.until not in rows(Path(self.runs)):
            assert time.time() < began + 60
            time.sleep(0.05)
        row = [self.name, began, time.time()]
        with open(Path(self.runs) / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        return {"attempt": self.attempt}


@pytest.fixture
def chore(tmp_path: Path) -> Callable[..., Chore]:
    def chore(name: str, do: str = "nothing", **values: Any) -> Chore:
        plain = {"recipe": RECIPE, "data": DataSpec(source="digits"), "seed": 0, "runs": str(tmp_path)}
        return Chore(name=name, do=do, **plain | values)

    return chore


def rows(folder: Path) -> dict[str, tuple[float, float]]:
    """When jobs began and ended."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: (began, ended) for name, began, ended in map(json.loads, lines)}


class Contract:
    """Tests of one executor; a subclass has a fixture ``make``, which makes one with some workers."""

    parallel = True

    def test_jobs_end_in_events(self, make: Callable[..., Executor], chore: Callable[..., Chore]) -> None:
        events: list[Event] = []
        jobs = [
            chore("good"),
            chore("unlucky", "die once"),
            chore("cursed", "crash"),
            chore("bad", "bad input"),
        ]
        assert make(2, attempts=2).run(jobs, events.append)
        told = {job.name: [e.kind for e in events if e.job.name == job.name] for job in jobs}
        assert told == {
            "good": ["started", "done"],
            "unlucky": ["started", "retried", "started", "done"],
            "cursed": ["started", "retried", "started", "failed"],
            "bad": ["started", "failed"],
        }
        details = {(e.job.name, e.kind): e.detail for e in events}
        assert details["unlucky", "done"] == {"attempt": 1}
        assert "SIGKILL" in details["unlucky", "retried"]
        assert "no luck" in details["cursed", "failed"]
        assert details["bad", "failed"] == "no such thing\n  to do: another thing"

    def test_a_job_waits_for_another_while_lanes_stay_busy(
        self, make: Callable[..., Executor], chore: Callable[..., Chore], tmp_path: Path
    ) -> None:
        jobs = [
            chore("first", until="other" if self.parallel else ""),
            chore("second", after="first", ready=str(tmp_path / "never")),
            chore("failing", "bad input"),
            chore("third", after="failing"),
            chore("other"),
        ]
        assert make(2).run(jobs, lambda event: None)
        when = rows(tmp_path)
        assert set(when) == {"first", "second", "third", "other"}
        assert when["second"][0] >= when["first"][1]

    def test_a_job_starts_early_when_what_it_waits_for_is_there(
        self, make: Callable[..., Executor], chore: Callable[..., Chore], tmp_path: Path
    ) -> None:
        jobs = [
            chore("long", "touch", until="early" if self.parallel else ""),
            chore("early", after="long", ready=str(tmp_path / "long")),
        ]
        assert make(2).run(jobs, lambda event: None)
        assert set(rows(tmp_path)) == {"long", "early"}

    def test_circles_and_strangers_do_not_wait(
        self, make: Callable[..., Executor], chore: Callable[..., Chore], tmp_path: Path
    ) -> None:
        jobs = [
            chore("self", after="self"),
            chore("a", after="b"),
            chore("b", after="a"),
            chore("tail", after="a"),
            chore("stranger", after="nobody"),
        ]
        assert make(1).run(jobs, lambda event: None)
        assert set(rows(tmp_path)) == {job.name for job in jobs}

    def test_status_is_passed_on(self, make: Callable[..., Executor], chore: Callable[..., Chore]) -> None:
        events: list[Event] = []
        assert make(1).run([chore("talker", "tell")], events.append)
        assert [e.detail.step for e in events if e.kind == "status"] == [1]

    def test_a_full_disk_halts_the_study_once(
        self, make: Callable[..., Executor], chore: Callable[..., Chore], tmp_path: Path
    ) -> None:
        events: list[Event] = []
        jobs = [chore("one", "train until stopped")] if self.parallel else []
        jobs += [chore("full", "fill the disk"), chore("never")]
        with pytest.raises(StudyError, match=r"No space left on device(.|\n)*make room, then resume"):
            make(2 if self.parallel else 1).run(jobs, events.append)
        kinds = [(e.job.name, e.kind) for e in events if e.kind != "started"]
        assert ("full", "halted") in kinds
        assert sum(kind == "halted" for _, kind in kinds) == 1
        assert {kind for _, kind in kinds} <= {"halted", "stopped"}
        assert not (tmp_path / "log.jsonl").exists()

    def test_an_interrupt_lets_jobs_write_their_checkpoints(
        self, make: Callable[..., Executor], chore: Callable[..., Chore], tmp_path: Path
    ) -> None:
        if not self.parallel:
            pytest.skip("jobs run in this process")
        events: list[Event] = []

        def interrupt() -> None:
            while not (tmp_path / "one is training").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        assert not make(1).run([chore("one", "train until stopped"), chore("two")], events.append)
        assert [(e.job.name, e.kind) for e in events] == [("one", "started"), ("one", "stopped")]
        assert (tmp_path / "one wrote its checkpoint").exists()
        assert not (tmp_path / "log.jsonl").exists()
