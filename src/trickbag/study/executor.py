"""The local executor: one process a run, forked from a warm parent, crashes kept to themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

from trickbag.engine.interrupt import Interrupt
from trickbag.study.worker import Job, work


@dataclass(frozen=True)
class Event:
    """What happened to a job: ``started``, ``status``, ``done``, ``failed``, ``retried``, ``stopped``."""

    kind: str
    job: Job
    detail: Any = None


@dataclass
class _Active:
    job: Job
    process: ForkServerProcess
    pipe: Connection
    lane: int
    heard: float
    last: tuple[str, Any] | None = None


@dataclass
class LocalExecutor:
    """Runs jobs on this machine.

    A job that crashes, is killed or falls silent is tried again; one whose input is at fault is not.

    Attributes:
        workers: processes at once.
        attempts: tries a job has.
        silence: seconds without a sign of life after which a worker is killed.
        gpus: number of CUDA devices to share out; 0 for none.
    """

    workers: int = 2
    attempts: int = 3
    silence: float = 3600.0
    gpus: int = 0

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> bool:
        """Run all jobs; returns False if it was interrupted, after workers wrote their checkpoints."""
        queue, lanes = deque(jobs), deque(range(self.workers))
        active: list[_Active] = []
        with Interrupt() as interrupt, _context() as context:
            try:
                while (queue and not interrupt.requested) or active:
                    while queue and lanes and not interrupt.requested:
                        job = queue.popleft()
                        active.append(self._start(context, job, lanes.popleft()))
                        on_event(Event("started", job, active[-1].process.pid))
                    if interrupt.requested:
                        for one in active:
                            self._signal(one, signal.SIGTERM)
                    wait([one.pipe for one in active] + [one.process.sentinel for one in active], timeout=0.5)
                    for one in list(active):
                        self._listen(one, on_event)
                        if time.monotonic() - one.heard > self.silence:
                            self._signal(one, signal.SIGKILL)
                        if one.process.exitcode is not None:
                            active.remove(one)
                            lanes.append(one.lane)
                            again = self._settle(one, on_event, interrupt.requested)
                            if again is not None:
                                queue.append(again)
            finally:
                for one in active:
                    self._signal(one, signal.SIGTERM)
                    one.pipe.close()
        return not interrupt.requested

    def _start(self, context: Any, job: Job, lane: int) -> _Active:
        ours, theirs = context.Pipe()
        environment = {"CUDA_VISIBLE_DEVICES": str(lane % self.gpus)} if self.gpus else {}
        process = context.Process(target=work, args=(job, theirs, environment), daemon=True)
        process.start()
        theirs.close()
        return _Active(job, process, ours, lane, time.monotonic())

    @staticmethod
    def _signal(one: _Active, number: int) -> None:
        if one.process.pid is not None and one.process.exitcode is None:
            with suppress(ProcessLookupError):  # it may have ended since
                os.kill(one.process.pid, number)

    @staticmethod
    def _listen(one: _Active, on_event: Callable[[Event], None]) -> None:
        try:
            while one.pipe.poll():
                kind, detail = one.pipe.recv()
                one.heard = time.monotonic()
                if kind == "status":
                    on_event(Event(kind, one.job, detail))
                else:
                    one.last = kind, detail
        except (EOFError, OSError):
            return

    def _settle(self, one: _Active, on_event: Callable[[Event], None], interrupted: bool) -> Job | None:
        """Report the end of a process; returns the job if it deserves another try."""
        self._listen(one, on_event)
        one.pipe.close()
        one.process.join()
        kind, detail = one.last or ("crashed", _cause(one.process.exitcode))
        if kind == "stopped" and not interrupted:
            kind, detail = "crashed", "stopped by a signal from elsewhere"
        elif kind == "crashed" and interrupted:
            kind, detail = "stopped", None
        if kind == "crashed" and one.job.attempt + 1 < self.attempts:
            on_event(Event("retried", one.job, detail))
            return replace(one.job, attempt=one.job.attempt + 1)
        on_event(Event("failed" if kind == "crashed" else kind, one.job, detail))
        return None


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by signal {signal.Signals(-code).name}"
    return f"exited with status {code} without a word"


@contextmanager
def _context() -> Iterator[Any]:
    """A forkserver whose workers compute with as many threads as they are told, and do not spin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trickbag.study.warm"])
    wanted = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
    try:
        yield context
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
