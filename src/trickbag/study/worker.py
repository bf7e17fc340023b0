"""What one worker process does: train one run, or time a few of its steps."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.data.base import DataSpec
from trickbag.errors import CheckpointError, StudyError, TrickbagError
from trickbag.recipe.model import Recipe
from trickbag.study.exclusion import Send, held, until_free
from trickbag.study.room import out_of_room, place_of

if TYPE_CHECKING:
    from trickbag.data.base import DataSet
    from trickbag.engine.device import Device
    from trickbag.engine.forks import Fork
    from trickbag.engine.run import Run
    from trickbag.engine.upstream import Ahead
    from trickbag.plan import Plan


@dataclass(frozen=True)
class Job:
    """One run, or one timing.

    Attributes:
        name: for people.
        recipe: what to train.
        data: on which images.
        seed: with which seed.
        runs: folder of run directories.
        readers: recipes of the arms that are read off the run.
        split: split on which they are read.
        device: device type.
        threads: CPU threads.
        timing: only time a few steps.
        attempt: how often it has been tried before.
        after: name of a job that must have ended, in whatever way, before this one starts.
        ready: path whose existence is enough to start earlier.
        fork: where the run may go on from another one; see :func:`trickbag.engine.train.train`.
        keep: numbers of updates after which it leaves a fork point for others.
        code: version of the code that the coordinator runs; "" does not look.
    """

    name: str
    recipe: Recipe
    data: DataSpec
    seed: int
    runs: str
    readers: tuple[Recipe, ...] = ()
    split: str = "selection"
    device: str = "cpu"
    threads: int = 1
    timing: bool = False
    attempt: int = 0
    after: str = ""
    ready: str = ""
    fork: Fork | None = None
    keep: tuple[int, ...] = ()
    code: str = ""

    def perform(self, send: Send) -> dict[str, Any]:
        """Do it, in the worker; what is returned is the detail of the event ``done``."""
        return _time(self, send) if self.timing else _train(self, send)


def work(job: Job, pipe: Connection, environment: dict[str, str]) -> None:
    """Entry point of the process; everything it has to say goes through ``pipe``.

    If the coordinator dies, the run writes a checkpoint and stops.
    """
    os.environ.update(environment)
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    send = _sender(pipe)
    try:
        _check_code(job)
        send(("done", job.perform(send)))
    except BaseException as error:
        word = _last_word(error, job)
        send(word)
        if word[0] == "crashed":
            os._exit(1)


def _check_code(job: Job) -> None:
    if job.code:
        from trickbag.engine.run import code_version

        if job.code != code_version():
            raise StudyError(
                f"{socket.gethostname()} runs other code than the coordinator: numbers would not compare",
                fix="install the same versions everywhere, and edit nothing while a study runs",
            )


def _last_word(error: BaseException, job: Job) -> tuple[str, Any]:
    from trickbag.engine.train import Stopped

    if isinstance(error, Stopped | KeyboardInterrupt):
        return "stopped", None
    reason = out_of_room(error)
    if reason is not None:
        return "halted", f"{reason} ({place_of(error) or job.runs})"
    if isinstance(error, TrickbagError):
        return "failed", str(error)
    return "crashed", "".join(traceback.format_exception(error))


def _watch(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _sender(pipe: Connection) -> Send:
    def send(message: tuple[str, Any]) -> None:
        try:
            pipe.send(message)
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def _nobody(message: tuple[str, Any]) -> None:
    pass


def _prepare(job: Job) -> tuple[Plan, DataSet, Device]:
    import torch

    from trickbag import plan as planning
    from trickbag.data import load
    from trickbag.engine.device import Device

    torch.set_num_threads(job.threads)
    data = load(job.data)
    return planning.compile(job.recipe, data.facts, job.device), data, Device(job.device, threads=job.threads)


def _train(job: Job, send: Send) -> dict[str, Any]:
    from trickbag import plan as planning
    from trickbag.engine.evaluate import main_readout
    from trickbag.engine.upstream import settle

    plan, data, device = _prepare(job)
    readers = [planning.compile(recipe, data.facts, job.device) for recipe in job.readers]
    readouts = [main_readout(reader) for reader in readers]
    for reader in readers:
        _ensure(settle(reader, job.seed, Path(job.runs), device.type)[1], data, device, send)
    unique = list({readout.digest: readout for readout in readouts}.values())
    run = _trained(
        plan,
        data,
        device,
        send,
        seed=job.seed,
        runs=job.runs,
        splits=(job.split,),
        readouts=unique,
        fork=job.fork,
        keep=job.keep,
        attempt=job.attempt,
    )
    return {"run": run.id}


def _trained(plan: Plan, data: DataSet, device: Device, send: Send, **how: Any) -> Run:
    """:func:`~trickbag.engine.train.train`, with signs of life while another process holds the run."""
    from trickbag.engine.run import Run, run_id
    from trickbag.engine.train import train
    from trickbag.engine.upstream import settle

    runs = Path(how["runs"])
    settled, missing = settle(plan, how["seed"], runs, device.type)
    _ensure(missing, data, device, send)
    run = Run(runs / run_id(settled.recipe, data.facts, how["seed"], device.type))
    while True:
        until_free(run, send)
        try:
            return train(
                plan,
                data,
                device=device,
                checkpoint_seconds=30,
                progress=lambda status: send(("status", status)),
                **how,
            )
        except CheckpointError:
            if not held(run):
                raise


def _ensure(missing: Iterable[Ahead], data: DataSet, device: Device, send: Send) -> None:
    """Train what others build upon."""
    from trickbag.engine.run import Run
    from trickbag.engine.upstream import ensure

    for ahead in missing:
        if Run(ahead.path).result() is None:
            # The test split is not for those who build upon a run: nothing is measured.
            how = {"seed": ahead.seed, "runs": ahead.runs, "splits": (), "readouts": ()}
            _trained(ahead.plan, data, device, send, **how)
        ensure(ahead, data, device)


def _time(job: Job, send: Send = _nobody) -> dict[str, Any]:
    """Seconds a step and a selection evaluation take, from a short throw-away run after one that warms up."""
    from trickbag.engine.train import evaluation_steps, train
    from trickbag.engine.upstream import settle

    plan, data, device = _prepare(job)
    plan, missing = settle(plan, job.seed, Path(job.runs), device.type)
    _ensure(missing, data, device, send)
    result: dict[str, Any] = {}
    for steps in (3, 13):
        short = replace(plan, timeline=replace(plan.timeline, steps=min(steps, plan.timeline.steps)))
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run = train(
                short,
                data,
                seed=job.seed,
                runs=Path(folder),
                device=device,
                splits=(),
                readouts=[],
                upstream_runs=job.runs,
            )
            wall = time.perf_counter() - began
            result = run.result() or {}
    parts = result["cost"]["by_part"]
    training = sum(parts[name] for name in ("data", "augment", "step", "other"))
    return {
        "step": training / max(1, result["steps"]),
        "evaluation": parts["evaluate"] / len(evaluation_steps(short)),
        "overhead": max(0.0, wall - training - parts["evaluate"]),
    }
