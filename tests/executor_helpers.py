"""What every executor must do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chores import RECIPE, Chore, rows
from trickbag.data.base import DataSpec
from trickbag.errors import StudyError
from trickbag.study.executor import Event, Executor


@pytest.fixture
def chore(tmp_path: Path) -> Callable[..., Chore]:
    def chore(name: str, do: str = "nothing", **values: Any) -> Chore:
        plain = {"recipe": RECIPE, "data": DataSpec(source="digits"), "seed": 0, "runs": str(tmp_path)}
        return Chore(name=name, do=do, **plain | values)

    return chore


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
