"""What Ray and Slurm share: a task is a local executor of one job, somewhere on a shared file system."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from trickbag.errors import StudyError
from trickbag.study.executor import LocalExecutor
from trickbag.study.supervisor import Event, Supervisor
from trickbag.study.worker import Job

MAIL_SECONDS = 1.0
"""Least time between two messages of a task through the file system."""


def errand(job: Job, mailbox: str, environment: dict[str, str]) -> tuple[str, Any]:
    """What a task does: run one job in a process of its own, and look after that.

    If this process dies, the job writes its checkpoint and stops.

    Args:
        job: the job; trying again is up to who sends it.
        mailbox: file on the shared file system that the last message is written to.
        environment: variables for the job.

    Returns:
        Its last word: kind and detail of the event that ends it, or ``("crashed", why)``.
    """
    if not Path(mailbox).parent.is_dir():
        what = f"{socket.gethostname()} does not see {Path(mailbox).parent}"
        return "failed", str(StudyError(what, fix="put --runs on a file system that all nodes share"))
    written = -MAIL_SECONDS

    def hear(event: Event) -> None:
        nonlocal written
        if event.kind == "waiting" or (event.kind == "status" and time.monotonic() - written > MAIL_SECONDS):
            written = time.monotonic()
            _write(Path(mailbox), event)

    alone = _Alone(workers=1, environment=environment)
    alone.run([job], hear)
    return alone.word


class _Alone(LocalExecutor):
    """Runs one job once, and keeps its last word."""

    word: tuple[str, Any] = ("stopped", None)

    def _start(self, context: Any, job: Job, lane: int) -> Any:
        # A worker begins by importing the program that starts it, in case its task is defined there. Ours is
        # not, and that program is Ray's or submitit's.
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return super()._start(context, job, lane)
        finally:
            sys.modules["__main__"] = program

    def _settle(self, one: Any, on_event: Callable[[Event], None], interrupted: bool) -> None:
        self.word = self._last_word(one, on_event, interrupted)


def _write(mailbox: Path, event: Event) -> None:
    detail = event.detail if event.kind == "waiting" else asdict(event.detail)
    temporary = mailbox.with_suffix(".tmp")
    with suppress(OSError):  # the job itself will say so when the disk is full
        temporary.write_text(json.dumps([event.kind, detail]))
        os.replace(temporary, mailbox)


@dataclass
class Sent:
    """A job that has been sent away.

    Attributes:
        job: the job.
        lane: its number among those sent.
        ticket: by which the transport knows it.
        mailbox: file that its messages come through.
        last: its last word.
        seen: time stamp of the last message.
        asked: it has been asked to stop.
    """

    job: Job
    lane: int
    ticket: Any
    mailbox: Path
    last: tuple[str, Any] | None = None
    seen: int = 0
    asked: bool = False


class RemoteExecutor(Supervisor[Sent]):
    """Sends each job as a task that calls :func:`errand`; subclasses know how."""

    attempts: int

    def submit(self, job: Job, mailbox: str, environment: dict[str, str]) -> Any:
        """Have ``errand`` called with these somewhere; returns a ticket."""
        raise NotImplementedError

    def outcome(self, ticket: Any) -> tuple[str, Any] | None:
        """What ``errand`` returned, ``("crashed", why)`` if it never will, or None while it may."""
        raise NotImplementedError

    def cancel(self, ticket: Any, *, force: bool) -> None:
        """Interrupt a task as Ctrl-C would, or take it out of the queue; ``force`` kills it."""
        raise NotImplementedError

    def sleep(self, tickets: Sequence[Any]) -> None:
        """Wait until a task may have ended, half a second at most."""
        time.sleep(0.5)

    def _open(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _start(self, context: Any, job: Job, lane: int) -> Sent:
        from trickbag.engine.run import code_version

        folder = Path(job.runs).absolute() / ".jobs"
        folder.mkdir(parents=True, exist_ok=True)
        mailbox = folder / f"{uuid.uuid4().hex}.json"
        environment = {name: value for name, value in os.environ.items() if name.startswith("TRICKBAG_")}
        job = replace(job, runs=str(folder.parent), code=code_version())
        return Sent(job, lane, self.submit(job, str(mailbox), environment), mailbox)

    def _place(self, one: Sent) -> str:
        return str(one.ticket)

    def _wait(self, active: Sequence[Sent]) -> None:
        self.sleep([one.ticket for one in active])

    def _listen(self, one: Sent, on_event: Callable[[Event], None]) -> None:
        try:
            stamp = one.mailbox.stat().st_mtime_ns
            if stamp == one.seen:
                return
            kind, detail = json.loads(one.mailbox.read_text())
        except (OSError, ValueError):
            return
        one.seen = stamp
        if kind == "status":
            from trickbag.engine.train import Status

            detail = Status(**detail)
        on_event(Event(kind, one.job, detail))

    def _ended(self, one: Sent) -> bool:
        one.last = self.outcome(one.ticket)
        return one.last is not None

    def _close(self, one: Sent) -> str:
        with suppress(OSError):
            one.mailbox.unlink(missing_ok=True)
        return ""

    def _stop(self, one: Sent, *, force: bool) -> None:
        if force or not one.asked:
            one.asked = True
            self.cancel(one.ticket, force=force)
