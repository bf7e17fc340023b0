"""The training loop: a straight line over the stages of a plan."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trickbag import tasks
from trickbag.data.base import DataSet, Split
from trickbag.data.resident import on_device
from trickbag.engine import checkpoint
from trickbag.engine.batches import TrainBatches, eval_batches
from trickbag.engine.device import Device
from trickbag.engine.evaluate import (
    RAW,
    Reader,
    ReadOut,
    Weights,
    all_readouts,
    evaluate,
    main_readout,
    measure,
)
from trickbag.engine.files import read_json, write_json
from trickbag.engine.forks import Fork, find
from trickbag.engine.freezing import Freezer
from trickbag.engine.heartbeat import Heartbeat
from trickbag.engine.interrupt import Interrupt
from trickbag.engine.prefix import evaluation_steps as evaluation_steps
from trickbag.engine.run import Run, code_version, run_id, versions
from trickbag.engine.state import State, Trainee
from trickbag.engine.targets import Learned, learned, transductive
from trickbag.engine.upstream import ensure, settle, upstreams_of
from trickbag.errors import CheckpointError, PlanError, Problem, UsageError
from trickbag.plan import Plan
from trickbag.rng import Stream

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from trickbag.tricks.stages import Objective

SAMPLE_BATCH = 64
"""Images in a batch from which weights or statistics are computed before or after training."""
CUDA_CHECK = 50
"""Steps between looks at values on a CUDA device, each of which waits for it."""


@dataclass(frozen=True)
class Status:
    """Where a run is, for people who wait for it.

    Attributes:
        step, steps: updates done and planned.
        epoch: epochs done.
        loss: mean training loss since the last evaluation; NaN just after one.
        metric: last primary metric of the raw weights on the selection split; None before the first.
        images_per_second: over the whole time that this run itself has spent training.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    metric: float | None
    images_per_second: float


Progress = Callable[[Status], None]


class Stopped(Exception):
    """Training was interrupted after writing a checkpoint; the message is the run's directory."""


def train(
    plan: Plan,
    data: DataSet,
    *,
    seed: int = 42,
    runs: str | Path = "runs",
    device: Device | None = None,
    checkpoint_seconds: float = 60.0,
    splits: Sequence[str] = ("selection", "test"),
    readouts: Sequence[ReadOut] | None = None,
    progress: Progress | None = None,
    report_seconds: float = 0.2,
    lock_seconds: float = 0.0,
    upstream_runs: str | Path | None = None,
    keep: Sequence[int] = (),
    fork: Fork | None = None,
    attempt: int = 0,
) -> Run:
    """Train a plan with one seed, or go on with a run that was interrupted, or return a finished one.

    Args:
        plan: what to train.
        data: its images; must be what the plan was made for.
        seed: seed of every random stream.
        runs: folder of run directories.
        device: where to compute; None chooses.
        checkpoint_seconds: seconds between checkpoints.
        splits: splits on which the read-outs are measured at the end.
        readouts: what is measured at the end; None means raw and averaged, with and without predict tricks.
        progress: told where the run is.
        report_seconds: least time between two calls of ``progress``.
        lock_seconds: how long to wait for another process that trains this very run.
        upstream_runs: folder of the runs that this one builds upon, which are trained if they are missing;
            None means ``runs``.
        keep: numbers of updates after which the run leaves a fork point; if it stops before one of them,
            where it stops. :func:`trickbag.engine.forks.forget_forks` deletes them.
        fork: start from a fork point of another run, if it is there and fits, and there is no checkpoint yet.
            Numbers are those of a run that starts from scratch, and so is its name.
        attempt: how often this run has been tried before, for its heartbeat.

    Returns:
        The run; ``run.result()["status"]`` is ``"finished"`` or ``"diverged"``.

    Raises:
        Stopped: SIGINT or SIGTERM arrived; the same call goes on from there.
        CheckpointError: another process trains this run, or its directory holds something else.
    """
    device = device or Device()
    place = device.type if device.world == 1 else f"{device.type} x {device.world}"
    plan, missing = settle(plan, seed, Path(upstream_runs or runs), place)
    for other in missing:
        ensure(other, data, device, progress)
    run = Run(Path(runs) / run_id(plan.recipe, data.facts, seed, place))
    for trick in plan.bag.values():
        for name, source in trick.sources().items():
            if source.run is not None and Path(source.run).resolve().name == run.id:
                what = "the run itself: it would count twice"
                raise PlanError(Problem(what, f"trick {trick.kind}, {name}", fix="give it a seed of its own"))
    every = checkpoint_seconds, report_seconds
    if device.rank > 0:
        if run.result() is None:
            _train(run, plan, data, seed, device, place, every, None, keep, fork, attempt)
        return run
    with run.lock(lock_seconds):
        if run.result() is None:
            result = _train(run, plan, data, seed, device, place, every, progress, keep, fork, attempt)
            write_json(run.path / "result.json", result | {"log": run.log_digest()})
        _measure_finished(run, plan, data, splits, readouts or all_readouts(plan), device)
    return run


def _train(
    run: Run,
    plan: Plan,
    data: DataSet,
    seed: int,
    device: Device,
    place: str,
    every: tuple[float, float],
    progress: Progress | None,
    keep: Sequence[int],
    fork: Fork | None,
    attempt: int,
) -> dict[str, Any]:
    timeline, recipe = plan.timeline, plan.recipe
    checkpoint_seconds, report_seconds = every
    if timeline.batch_size % device.world:
        raise UsageError(
            f"batch_size {timeline.batch_size} cannot be shared evenly by {device.world} processes",
            fix="choose a multiple of the number of processes",
        )
    task = tasks.of(recipe.task)
    main = device.rank == 0
    if main:
        run.create(recipe, _about(plan, data, seed, device))
    threads = run.about()["threads"] if main else device.threads or 1
    torch.set_num_threads(threads)
    heart = Heartbeat(run.path if main else None, attempt, timeline.steps, timeline.steps_per_epoch)
    heart.beat(0, None)
    fabric = device.start(plan.precision)
    begun = checkpoint.newest(run.path / "checkpoint") is not None
    point = None if begun else find(fork, plan, seed, place, threads)
    if device.agree(point is None):
        point = None

    model = plan.build_model(Stream(seed))
    model = model.to(device.torch_device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    upstreams = upstreams_of(plan, data, device.torch_device)
    if not begun and point is None:
        heirs = [trick for trick in plan.models if trick.sources()]
        for heir in heirs:
            heir.inherit(model, upstreams[heir.kind])
        if not heirs:
            _calibrate(plan, model, data.splits["train"], device)
    optimizer = plan.build_optimizer(model)
    averages = {trick.kind: trick.start(model) for trick in plan.weights}
    state = State()
    trainee = Trainee(model, optimizer, averages, getattr(fabric._precision, "scaler", None), state)
    if point is not None:
        rows = trainee.go_on_from(point, plan)
        if main:
            run.start_metrics(rows)
    elif main or (run.path / "checkpoint").exists():
        trainee.restore(run)
    if main:
        run.note("forked_from", asdict(state.origin) if state.origin else None)
    transformations = [t for trick in plan.gradients if (t := trick.transformation(model))]
    # Processes agree on what has gradients when the model is set up: freeze before.
    freezer = Freezer(plan, model, device.world)
    model.train()
    freezer.apply(state.step)
    forward, stepper = fabric.setup(device.compiled(model), optimizer)
    weights, objective = Weights(model, averages), plan.objective(upstreams)

    known: Learned = learned(plan, data, upstreams)
    train_split = on_device(known.split, device.torch_device)
    selection = data.splits["selection"]
    batches = TrainBatches(plan, train_split, seed, device.rank, device.world, device.type)
    dropout = Stream(seed, "model")
    evaluations = evaluation_steps(plan)
    check_every = 1 if device.type == "cpu" else CUDA_CHECK
    clock = state.clock
    loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=device.torch_device)
    saved = reported = time.perf_counter()

    with Interrupt() as interrupt, heart:
        heart.beat(state.step, state.history[-1] if state.history else None, now=True)
        if state.stopped and point is not None:
            _finish(plan, model, averages, data.splits["train"], device)
        if point is not None and main and (state.stopped or state.step == timeline.steps):
            trainee.save(run, finished=True)
        source = iter(train_split.batches(batches.requests(state.step), device.workers))
        while state.step < timeline.steps and not state.stopped:
            step = state.step
            began = time.perf_counter()
            images = next(source).to(device.torch_device, non_blocking=True)
            fetched = time.perf_counter()
            own = known.targets(batches.indices(step)[batches.slice]).to(device.torch_device)
            images, targets = batches.prepare(images, own, step)
            augmented = time.perf_counter()

            freezer.apply(step)
            key, parts = dropout.key(step * device.world + device.rank), plan.parts(len(images))
            shares = list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))

            compute = partial(_gradients, fabric, forward, objective, shares, key, device)
            loss = compute() if plan.step is None else plan.step.gradients(compute, model)
            loss_sum += loss
            looking = (step + 1) % check_every == 0 or step + 1 in evaluations
            if looking and device.agree(not math.isfinite(float(loss_sum))):
                return _diverged(run, plan, trainee, float(loss), device)
            rate = plan.learning_rate(step)
            momentum = plan.momentum(step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
                if momentum is not None:
                    _set_momentum(group, momentum)
            if transformations and trainee.scaler:
                trainee.scaler.unscale_(optimizer)
            for transformation in transformations:
                transformation()
            stepper.step()
            stepper.zero_grad()
            stepped = time.perf_counter()
            for trick in plan.weights:
                trick.update(averages[trick.kind], model, step, timeline)
            state.step = step = step + 1
            if step == timeline.steps:
                _finish(plan, model, averages, data.splits["train"], device)
            done = time.perf_counter()
            clock.data += fetched - began
            clock.augment += augmented - fetched
            clock.step += stepped - augmented
            clock.other += done - stepped

            if step in evaluations:
                row: dict[str, Any] = {
                    "step": step,
                    "epoch": step / timeline.steps_per_epoch,
                    "lr": rate,
                    "train_loss": device.mean(loss_sum) / (step - state.evaluated),
                }
                for kind in (RAW, *averages):
                    row[kind] = measure(weights, ReadOut(kind, (), *recipe.evaluation), plan, selection)
                clock.evaluate += time.perf_counter() - done
                if main:
                    run.append(row | {"seconds": round(clock.training, 3)})
                state.history.append(row[RAW][task.primary])
                state.evaluated = step
                loss_sum.zero_()
                state.stopped = any(trick.stop(state.history) for trick in plan.stops)
            if main and (step in keep or (state.stopped and step < max(keep, default=0))):
                state.loss_sum = float(loss_sum)
                before = time.perf_counter()
                with suppress(CheckpointError):
                    # A saving for others, who start from scratch without it.
                    trainee.leave_fork(run)
                clock.checkpoint += time.perf_counter() - before
            if state.stopped and step < timeline.steps:
                _finish(plan, model, averages, data.splits["train"], device)

            now = time.perf_counter()
            if progress and (now - reported >= report_seconds or step == timeline.steps):
                reported = now
                since = step - state.evaluated
                progress(
                    Status(
                        step,
                        timeline.steps,
                        step / timeline.steps_per_epoch,
                        float(loss_sum) / since if since else math.nan,
                        state.history[-1] if state.history else None,
                        state.trained * timeline.batch_size / max(clock.training, 1e-9),
                    )
                )
            heart.beat(step, state.history[-1] if state.history else None)
            finished = step == timeline.steps or state.stopped
            drain = step % check_every == 0 and device.agree(interrupt.requested)
            if main and (finished or drain or now - saved > checkpoint_seconds):
                state.loss_sum = float(loss_sum)
                trainee.save(run, finished=finished)
                saved = time.perf_counter()
                clock.checkpoint += saved - now
            if drain and not finished:
                raise Stopped(str(run.path))
    return _outcome(run, plan, trainee, "finished", device)


def _gradients(
    fabric: Fabric,
    forward: Any,
    objective: Objective,
    parts: Sequence[tuple[Tensor, Tensor]],
    key: int,
    device: Device,
) -> Tensor:
    """Add the gradients of a batch, in parts, to ``grad``; the mean loss, float64."""
    _seed(key, device)
    count = sum(len(images) for images, _ in parts)
    loss = torch.zeros((), dtype=torch.float64, device=device.torch_device)
    for number, (images, targets) in enumerate(parts, start=1):
        with fabric.no_backward_sync(forward, enabled=number < len(parts)):
            share = objective(forward(images), targets, images).sum() / count
            fabric.backward(share)
        loss += share.detach()
    return loss


def _seed(key: int, device: Device) -> None:
    """What ``torch.manual_seed`` does, less what takes it 0.1 ms: kinds of devices that are not in use."""
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(key)


def _set_momentum(group: dict[str, Any], value: float) -> None:
    if "momentum" in group:
        group["momentum"] = value
    elif "betas" in group:
        group["betas"] = (value, *group["betas"][1:])


def _calibrate(plan: Plan, model: nn.Module, split: Split, device: Device) -> None:
    """Let model tricks compute weights from training images."""
    size = plan.recipe.image_size
    for trick in plan.models:
        if trick.sample_size:
            trick.calibrate(model, _sample(plan, split, trick.sample_size, (size, size), device))


def _finish(
    plan: Plan, model: nn.Module, averages: dict[str, dict[str, Tensor]], split: Split, device: Device
) -> None:
    """Let weights tricks complete their averages."""
    for trick in plan.weights:
        if trick.sample_size:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()
            with torch.no_grad():
                images = _sample(plan, split, trick.sample_size, plan.recipe.evaluation, device)
                trick.finish(averages, model, images)
            for module, training in modes:
                module.training = training


def _sample(
    plan: Plan, split: Split, wanted: int, evaluation: tuple[int, int], device: Device
) -> Iterator[Tensor]:
    """Batches of training images, evenly spaced, as evaluation shows them; each spans the split."""
    count = min(wanted, len(split))
    batches = -(-count // SAMPLE_BATCH)
    # Splits keep the order of their source, in which classes often come one after the other.
    order = [index for start in range(batches) for index in range(start, count, batches)]
    positions = [index * len(split) // count for index in order]
    return eval_batches(plan, split, evaluation, SAMPLE_BATCH, positions, device.torch_device)


def _about(plan: Plan, data: DataSet, seed: int, device: Device) -> dict[str, Any]:
    return {
        "seed": seed,
        "recipe": plan.recipe.digest,
        "data": data.spec.model_dump(mode="json"),
        "facts": vars(data.facts) | {"sizes": dict(data.facts.sizes)},
        "code": code_version(),
        "versions": versions(),
        "device": device.type,
        "threads": device.threads,
        "processes": device.world,
    }


def _outcome(run: Run, plan: Plan, trainee: Trainee, status: str, device: Device) -> dict[str, Any]:
    state, clock = trainee.state, trainee.state.clock
    images = state.trained * plan.timeline.batch_size
    origin = {"forked_from": asdict(state.origin)} if state.origin else {}
    return {
        "status": status,
        "run": run.id,
        "steps": state.step,
        "epochs": state.step / plan.timeline.steps_per_epoch,
        "stopped_early": state.stopped,
        "transductive": transductive(plan),
        "parameters": sum(p.numel() for p in trainee.model.parameters()),
        **origin,
        "shared_steps": state.step - state.trained,
        "metrics": {},
        "cost": {
            "epochs_trained": state.trained / plan.timeline.steps_per_epoch,
            "seconds": round(clock.training + clock.evaluate + clock.checkpoint, 3),
            "training_seconds": round(clock.training, 3),
            "images_per_second": round(images / max(clock.training, 1e-9), 1),
            "outside_forward_backward": round(1 - clock.step / max(clock.training, 1e-9), 4),
            "by_part": {name: round(value, 3) for name, value in asdict(clock).items()},
            "peak_memory_bytes": device.peak_memory(),
        },
    }


def _diverged(run: Run, plan: Plan, trainee: Trainee, loss: float, device: Device) -> dict[str, Any]:
    scale = trainee.scaler.get_scale() if trainee.scaler else 1.0
    gradients = [p.grad.norm() / scale for p in trainee.model.parameters() if p.grad is not None]
    step = trainee.state.step
    rows = run.metrics()
    return _outcome(run, plan, trainee, "diverged", device) | {
        "diagnosis": {
            "step": step,
            "epoch": step / plan.timeline.steps_per_epoch,
            "loss": repr(loss),
            "learning_rate": plan.learning_rate(step),
            "gradient_norm": repr(float(torch.stack(gradients).norm())) if gradients else None,
            "last_finite_loss": rows[-1]["train_loss"] if rows else None,
            "seen_within_steps": 1 if device.type == "cpu" else CUDA_CHECK,
        }
    }


def _measure_finished(
    run: Run, plan: Plan, data: DataSet, splits: Sequence[str], readouts: Sequence[ReadOut], device: Device
) -> None:
    result = read_json(run.path / "result.json")
    if result["status"] != "finished":
        return
    before = json.dumps(result)
    for split in splits:
        found = evaluate(run, plan, data, readouts, split, device.torch_device)
        labelled = {readout.label: found[readout.digest] for readout in readouts}
        result["metrics"][split] = result["metrics"].get(split, {}) | labelled
    result["main"] = main_readout(plan).label
    if chosen := Reader(run, plan, data).choices(readouts):
        result["chosen"] = result.get("chosen", {}) | chosen
    if json.dumps(result) != before:
        write_json(run.path / "result.json", result)
