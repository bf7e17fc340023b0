"""What one worker process does: train one run, or time a few of its steps."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from trickbag.data.base import DataSpec
from trickbag.errors import TrickbagError
from trickbag.recipe.model import Recipe

LOCK_SECONDS = 1800.0
"""How long a worker waits for another study, or an orphan that still drains, to let go of a shared run."""


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


def work(job: Job, pipe: Connection, environment: dict[str, str]) -> None:
    """Entry point of the process; everything it has to say goes through ``pipe``.

    If the coordinator dies, the run writes a checkpoint and stops.
    """
    os.environ.update(environment)
    threading.Thread(target=_watch, args=(pipe,), daemon=True).start()
    send = _sender(pipe)
    try:
        send(("done", _time(job) if job.timing else _train(job, send)))
    except TrickbagError as error:
        send(("failed", str(error)))
    except BaseException as error:
        from trickbag.engine.train import Stopped

        if isinstance(error, Stopped | KeyboardInterrupt):
            send(("stopped", None))
        else:
            import traceback

            send(("crashed", "".join(traceback.format_exception(error))))
            os._exit(1)


def _watch(pipe: Connection) -> None:
    try:
        pipe.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)


def _sender(pipe: Connection) -> Callable[[Any], None]:
    def send(message: Any) -> None:
        try:
            pipe.send(message)
        except OSError:
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def _prepare(job: Job) -> tuple[Any, Any, Any]:
    import torch

    from trickbag import plan as planning
    from trickbag.data import load
    from trickbag.engine.device import Device

    torch.set_num_threads(job.threads)
    data = load(job.data)
    return planning.compile(job.recipe, data.facts, job.device), data, Device(job.device, threads=job.threads)


def _train(job: Job, send: Callable[[Any], None]) -> dict[str, Any]:
    from trickbag import plan as planning
    from trickbag.engine.evaluate import main_readout
    from trickbag.engine.train import train
    from trickbag.engine.upstream import ensure, settle

    plan, data, device = _prepare(job)
    readers = [planning.compile(recipe, data.facts, job.device) for recipe in job.readers]
    readouts = [main_readout(reader) for reader in readers]
    for reader in readers:
        for ahead in settle(reader, job.seed, Path(job.runs), device.type)[1]:
            ensure(ahead, data, device, lambda status: send(("status", status)))
    unique = list({readout.digest: readout for readout in readouts}.values())
    run = train(
        plan,
        data,
        seed=job.seed,
        runs=job.runs,
        device=device,
        checkpoint_seconds=30,
        lock_seconds=LOCK_SECONDS,
        splits=(job.split,),
        readouts=unique,
        progress=lambda status: send(("status", status)),
    )
    return {"run": run.id}


def _time(job: Job) -> dict[str, Any]:
    """Seconds a step and a selection evaluation take, from a short throw-away run after one that warms up."""
    from trickbag.engine.train import evaluation_steps, train

    plan, data, device = _prepare(job)
    from trickbag.engine.upstream import ensure, settle

    plan, missing = settle(plan, job.seed, Path(job.runs), device.type)
    for ahead in missing:
        ensure(ahead, data, device)
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
