"""What every executor does alike: jobs start when they may, crashes are tried again, all stop together."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from trickbag.engine.interrupt import Interrupt
from trickbag.errors import StudyError
from trickbag.study.room import out_of_room
from trickbag.study.worker import Job

GRACE = 300.0
"""Seconds that jobs have to write their checkpoints once they are asked to stop."""


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    ``started`` (detail: where); any number of ``status`` (:class:`~trickbag.engine.train.Status`) and
    ``waiting`` (the run directory that another process holds); ``retried`` (why) and ``started`` again; at
    the end one of ``done`` (what the job returns), ``failed`` (why), ``stopped``, ``halted`` (why).
    """

    kind: str
    job: Job
    detail: Any = None


class Queue:
    """Jobs that have not started, in order; one waits for the end of another, or for a path.

    Jobs that wait for each other in a circle, or for a name that nobody has, do not wait.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = deque(jobs)
        self._open = Counter(job.name for job in jobs)
        self._circular = _circular(jobs)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> Job | None:
        """Take the first job that may start now, if there is one."""
        for index, job in enumerate(self._waiting):
            if self._may_start(job):
                del self._waiting[index]
                return job
        return None

    def again(self, job: Job) -> None:
        """Put a job back at the end."""
        self._waiting.append(job)

    def end(self, job: Job) -> None:
        """A job will not be tried again: who waits for it may start."""
        self._open[job.name] -= 1

    def _may_start(self, job: Job) -> bool:
        if not self._open[job.after] or job.name in self._circular:
            return True
        return bool(job.ready) and Path(job.ready).exists()


def _circular(jobs: Sequence[Job]) -> set[str]:
    """Names of jobs that wait, over others, for themselves."""
    after: dict[str, set[str]] = {}
    for job in jobs:
        after.setdefault(job.name, set()).add(job.after)
    found = set()
    for name, first in after.items():
        seen: set[str] = set()
        ahead = list(first)
        while ahead:
            other = ahead.pop()
            if other not in seen:
                seen.add(other)
                ahead += after.get(other, ())
        if name in seen:
            found.add(name)
    return found


class Task(Protocol):
    """A job on its way; ``last`` is its last word: the kind and detail of the event that ends it."""

    job: Job
    lane: int
    last: tuple[str, Any] | None


T = TypeVar("T", bound=Task)


class Supervisor(Generic[T]):
    """The loop of an executor over a few things that its kind of tasks can do."""

    attempts: int

    @property
    def workers(self) -> int:
        """How many jobs may run at once now."""
        raise NotImplementedError

    def _open(self) -> AbstractContextManager[Any]:
        """What tasks are started with."""
        raise NotImplementedError

    def _start(self, context: Any, job: Job, lane: int) -> T:
        raise NotImplementedError

    def _place(self, one: T) -> Any:
        """Where a task runs, for people."""
        raise NotImplementedError

    def _wait(self, active: Sequence[T]) -> None:
        """Sleep until something may have happened, half a second at most."""
        raise NotImplementedError

    def _listen(self, one: T, on_event: Callable[[Event], None]) -> None:
        """Pass on what a task says; keep its last word."""
        raise NotImplementedError

    def _ended(self, one: T) -> bool:
        raise NotImplementedError

    def _close(self, one: T) -> str:
        """Let go of a task that has ended; returns what probably ended it if it left no last word."""
        raise NotImplementedError

    def _stop(self, one: T, *, force: bool) -> None:
        """Ask a task to write its checkpoint and stop, or make it. Called again and again."""
        raise NotImplementedError

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> bool:
        """Run all jobs.

        Returns:
            False if it was interrupted, after workers wrote their checkpoints.

        Raises:
            StudyError: nothing more can be written, here or where jobs run; workers have stopped.
        """
        queue, active = Queue(jobs), list[T]()
        halted: list[str] = []

        def tell(event: Event) -> None:
            if event.kind == "halted":
                halted.append(event.detail)
                if len(halted) > 1:
                    event = Event("stopped", event.job)
            try:
                on_event(event)
            except Exception as error:
                reason = out_of_room(error)
                if reason is None:
                    raise
                halted.append(reason)

        with Interrupt() as interrupt, self._open() as context:
            asked: float | None = None
            try:
                while active or (queue and asked is None):
                    if asked is None and (interrupt.requested or halted):
                        asked = time.monotonic()
                    if asked is None:
                        self._fill(context, queue, active, tell)
                    else:
                        for one in active:
                            self._stop(one, force=time.monotonic() - asked > GRACE)
                    self._wait(active)
                    for one in list(active):
                        self._listen(one, tell)
                        if self._ended(one):
                            active.remove(one)
                            again = self._settle(one, tell, asked is not None or interrupt.requested)
                            if again is None:
                                queue.end(one.job)
                            else:
                                queue.again(again)
            finally:
                for one in active:
                    self._stop(one, force=False)
                    self._close(one)
        if halted:
            raise StudyError(
                f"the study has stopped because nothing more can be written: {halted[0]}",
                fix="make room, then resume it; every run goes on from its last checkpoint",
            )
        return not interrupt.requested

    def _fill(self, context: Any, queue: Queue, active: list[T], tell: Callable[[Event], None]) -> None:
        lanes = sorted(set(range(self.workers)) - {one.lane for one in active})
        for lane in lanes:
            job = queue.next()
            if job is None:
                return
            active.append(self._start(context, job, lane))
            tell(Event("started", job, self._place(active[-1])))

    def _settle(self, one: T, on_event: Callable[[Event], None], interrupted: bool) -> Job | None:
        """Report the end of a task; returns the job if it deserves another try."""
        kind, detail = self._last_word(one, on_event, interrupted)
        if kind == "crashed" and one.job.attempt + 1 < self.attempts:
            on_event(Event("retried", one.job, detail))
            return replace(one.job, attempt=one.job.attempt + 1)
        on_event(Event("failed" if kind == "crashed" else kind, one.job, detail))
        return None

    def _last_word(self, one: T, on_event: Callable[[Event], None], interrupted: bool) -> tuple[str, Any]:
        """Let go of a task that has ended; ``crashed`` stands for all that may go well another time."""
        self._listen(one, on_event)
        cause = self._close(one)
        kind, detail = one.last or ("crashed", cause)
        if kind == "stopped" and not interrupted:
            return "crashed", "stopped by a signal from elsewhere"
        if kind == "crashed" and interrupted:
            return "stopped", None
        return kind, detail
