"""Executors, and the local one: one process a run, forked from a warm parent, crashes kept to themselves.

An executor has ``workers``, the number of jobs it runs at once, and ``run(jobs, on_event) -> bool``:

1. It calls ``on_event`` from the thread that called ``run``; see :class:`Event`.
2. Jobs start in the order given, but never before ``job.after`` has ended or the path ``job.ready`` exists.
3. A job trains in its run directory and returns a few values: nothing else travels.
4. A job that crashes, is killed or falls silent is tried again, from its checkpoint, ``attempts`` times.
5. A job whose input is at fault fails at once, alone.
6. SIGINT and SIGTERM ask jobs to write their checkpoints and stop: then ``run`` returns False.
7. When nothing more can be written all stop, and ``run`` raises a StudyError.
8. Otherwise it returns True when every job has ended. Calling it again repeats nothing that is finished.
9. If the executor dies, its jobs write their checkpoints and stop, or end unheard: both do no harm.
10. Two writers of one run exclude each other; see :func:`trickbag.study.exclusion.until_free`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any, Protocol

from trickbag.errors import UsageError, nearest
from trickbag.study.supervisor import Event, Supervisor
from trickbag.study.worker import Job, work

PAUSE = 60.0
"""Seconds between two looks at the workers after which we must have been put to sleep, maybe with them."""


class Executor(Protocol):
    """What runs the jobs of a study; the docstring of this module says how."""

    @property
    def workers(self) -> int:
        """Jobs at once."""
        ...

    def run(self, jobs: Sequence[Job], on_event: Callable[[Event], None]) -> bool:
        """Run all jobs; False if it was interrupted."""
        ...


def make(name: str, *, workers: int = 0, threads: int = 1, device: str = "cpu", **options: Any) -> Executor:
    """An executor by name.

    Args:
        name: ``local``, ``ray`` or ``slurm``.
        workers: jobs at once; 0 for as many as there are free cores or devices (``local``, ``ray``), or four
            (``slurm``).
        threads: CPU threads, and cores, of each job.
        device: ``cpu``, ``cuda`` or ``auto``; each job gets one device.
        options: of the executor's constructor, such as Ray's ``address`` or Slurm's ``slurm_partition``.

    Raises:
        UsageError: there is none of that name, its library is not installed, or there is no cluster.
    """
    if name == "local":
        from trickbag.engine.device import available_cores

        gpus = _cuda_devices(device)
        return LocalExecutor(workers or gpus or max(1, available_cores() // threads), gpus=gpus, **options)
    library = {"ray": "ray", "slurm": "submitit"}.get(name)
    if library is None:
        near = nearest(name, ("local", "ray", "slurm"))
        hint = f"did you mean {near}?" if near else None
        raise UsageError(f"no executor {name!r}", expected="local, ray or slurm", fix=hint)
    if find_spec(library) is None:
        raise UsageError(f"{name} needs the package {library}", fix=f"pip install 'trickbag[{name}]'")
    gpus = min(1, _cuda_devices(device)) if device != "cuda" else 1
    if name == "ray":
        from trickbag.study.ray_executor import RayExecutor

        return RayExecutor(workers=workers, cpus=threads, gpus=gpus, **options)
    from trickbag.study.slurm_executor import SlurmExecutor

    return SlurmExecutor(workers=workers or 4, cpus=threads, gpus=gpus, **options)


def _cuda_devices(device: str) -> int:
    if device == "cpu":
        return 0
    from trickbag.engine.device import Device

    if Device(device).type != "cuda":
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass
class _Active:
    job: Job
    process: ForkServerProcess
    pipe: Connection
    lane: int
    heard: float
    last: tuple[str, Any] | None = None


@dataclass
class LocalExecutor(Supervisor[_Active]):
    """Runs jobs on this machine.

    Attributes:
        workers: processes at once.
        attempts: tries a job has.
        silence: seconds without a sign of life after which a worker is killed.
        gpus: number of CUDA devices to share out; 0 for none.
        environment: variables that workers get besides those of this process.
    """

    workers: int = 2
    attempts: int = 3
    silence: float = 3600.0
    gpus: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    _looked: float = field(default=0.0, init=False, repr=False, compare=False)

    def _open(self) -> Any:
        self._looked = time.monotonic()
        return _context()

    def _start(self, context: Any, job: Job, lane: int) -> _Active:
        ours, theirs = context.Pipe()
        environment = {**self.environment, **self._devices(lane)}
        process = context.Process(target=work, args=(job, theirs, environment), daemon=True)
        process.start()
        theirs.close()
        return _Active(job, process, ours, lane, time.monotonic())

    def _devices(self, lane: int) -> dict[str, str]:
        # Workers are forked from a process whose environment is that of its first day.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if not self.gpus:
            return {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        names = visible.split(",") if visible else [str(number) for number in range(self.gpus)]
        return {"CUDA_VISIBLE_DEVICES": names[lane % min(self.gpus, len(names))]}

    def _place(self, one: _Active) -> int | None:
        return one.process.pid

    def _wait(self, active: Sequence[_Active]) -> None:
        wait([one.pipe for one in active] + [one.process.sentinel for one in active], timeout=0.5)
        now = time.monotonic()
        if now - self._looked > PAUSE:
            for one in active:
                one.heard += now - self._looked
        self._looked = now

    def _listen(self, one: _Active, on_event: Callable[[Event], None]) -> None:
        for kind, detail in _received(one.pipe):
            one.heard = time.monotonic()
            if kind in ("status", "waiting"):
                on_event(Event(kind, one.job, detail))
            elif kind != "alive":
                one.last = kind, detail
        if time.monotonic() - one.heard > self.silence and one.process.exitcode is None:
            one.last = one.last or ("crashed", f"no sign of life for {self.silence:.0f} s")
            self._signal(one, signal.SIGKILL)

    def _ended(self, one: _Active) -> bool:
        return one.process.exitcode is not None

    def _close(self, one: _Active) -> str:
        one.pipe.close()
        if one.process.exitcode is None:
            return ""
        one.process.join()
        if one.process.exitcode < 0:
            return f"killed by signal {signal.Signals(-one.process.exitcode).name}"
        return f"exited with status {one.process.exitcode} without a word"

    def _stop(self, one: _Active, *, force: bool) -> None:
        self._signal(one, signal.SIGKILL if force else signal.SIGTERM)

    @staticmethod
    def _signal(one: _Active, number: int) -> None:
        if one.process.pid is not None and one.process.exitcode is None:
            with suppress(ProcessLookupError):  # it may have ended since
                os.kill(one.process.pid, number)


def _received(pipe: Connection) -> list[tuple[str, Any]]:
    messages = []
    with suppress(EOFError, OSError):
        while pipe.poll():
            messages.append(pipe.recv())
    return messages


def _start_forkserver() -> None:
    """Start it deaf to Ctrl-C, which a terminal sends to it too: the coordinator asks the workers to stop."""
    from multiprocessing.forkserver import ensure_running

    if threading.current_thread() is not threading.main_thread():
        ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _context() -> Iterator[Any]:
    """A forkserver whose workers compute with as many threads as they are told, and do not spin."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trickbag.study.warm"])
    wanted = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
    try:
        _start_forkserver()
        yield context
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
