"""Runs in real processes: killed, damaged, diverged, shared by two processes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contract import Bench, fingerprint, full_bag, recipe, rows, sample, tensors
from trickbag import data
from trickbag.engine import checkpoint
from trickbag.engine.batches import TrainBatches, eval_batches
from trickbag.engine.device import Device
from trickbag.engine.evaluate import all_readouts, evaluate, load_weights, main_readout
from trickbag.engine.files import write_json
from trickbag.engine.run import Run, run_id
from trickbag.engine.train import Status, Stopped, evaluation_steps, train
from trickbag.errors import CheckpointError, UsageError
from trickbag.functional.whitening import patch_moments, whitening_weight
from trickbag.rng import Stream
from trickbag.tricks import Stage
from trickbag.tricks.averaging import EMA
from trickbag.tricks.base import Trick
from trickbag.tricks.gradients import GradientAccumulation, GradientClipping
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD
from trickbag.tricks.resolution import ResolutionRamp
from trickbag.tricks.whitening import Whitening

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


def in_child(work: object, *args: object) -> multiprocessing.process.BaseProcess:
    """Start a forked process; warnings about forking a threaded parent are what we are here for."""
    process = FORK.Process(target=work, args=args)
    process.start()
    return process


ALONE = (trick for trick in full_bag() if trick.stage != Stage.STOP and not trick.sources())
LONG = recipe(*ALONE, evaluate_every=0.3)


def _train_slowly(bench: Bench, steps: int, folder: Path) -> None:
    Bench(bench.data, folder).train(
        LONG,
        steps=steps,
        fresh=False,
        checkpoint_seconds=0.0,
        report_seconds=0.0,
        progress=lambda status: time.sleep(0.02),
    )


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_sigkill_at_any_moment_costs_nothing(bench: Bench, tmp_path: Path) -> None:
    unbroken = bench.train(LONG, steps=60)
    rng, kills = random.Random(0), 0
    for _ in range(40):
        process = in_child(_train_slowly, bench, 60, tmp_path)
        process.join(timeout=rng.uniform(0.5, 2.5))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert kills >= 2
    (path,) = [path for path in tmp_path.iterdir() if (path / "result.json").exists()]
    run = Run(path)
    assert fingerprint(run) == fingerprint(unbroken)
    assert rows(run) == rows(unbroken)
    for average in unbroken.newest_checkpoint().glob("average-*"):
        assert fingerprint(run, average.stem) == fingerprint(unbroken, average.stem)


def test_a_finished_run_is_never_paid_for_twice(bench: Bench, tmp_path: Path) -> None:
    place = Bench(bench.data, tmp_path)
    told: list[Status] = []
    first = place.train(recipe(), fresh=False)
    before = (first.path / "metrics.jsonl").stat().st_mtime_ns
    again = place.train(recipe(), fresh=False, progress=told.append, report_seconds=0)
    assert again == first
    assert not told
    assert (first.path / "metrics.jsonl").stat().st_mtime_ns == before
    predicted = place.train(recipe(TTAFlip()), fresh=False, splits=("selection",), readouts=None)
    assert predicted == first
    assert set(predicted.result()["metrics"]["selection"]) == {"raw", "raw+tta_flip"}  # type: ignore[index]


def test_the_name_of_a_run_depends_on_what_determines_it(bench: Bench, shapes: Path) -> None:
    facts = bench.data.facts
    plain = run_id(recipe(), facts, 1)
    assert plain == run_id(recipe(), facts, 1)
    assert plain == run_id(recipe(TTAFlip(), eval_size=32), facts, 1)
    other = data.load(data.spec(str(shapes), selection=0.1, test=0.1, split_seed=1)).facts
    names = {
        plain,
        run_id(recipe(), facts, 2),
        run_id(recipe(), other, 1),
        run_id(recipe(Mixup()), facts, 1),
        run_id(recipe(EMA()), facts, 1),
        run_id(recipe(epochs=2), facts, 1),
        run_id(recipe(), facts, 1, "cuda"),
        run_id(recipe(sample("early_stopping")), facts, 1),
        run_id(recipe(sample("early_stopping"), eval_size=32), facts, 1),
    }
    assert len(names) == 9


def test_raw_and_averaged_weights_are_both_reported(bench: Bench) -> None:
    run = bench.train(recipe(EMA(decay=0.5), TTAFlip()), splits=("selection", "test"), readouts=None)
    result = run.result()
    assert result is not None
    assert set(result["metrics"]["test"]) == {"raw", "ema", "raw+tta_flip", "ema+tta_flip"}
    assert result["main"] == "ema+tta_flip"
    assert all({"raw", "ema"} <= set(row) for row in run.metrics())


def test_a_nan_loss_is_a_recorded_outcome_with_a_diagnosis(bench: Bench, tmp_path: Path) -> None:
    place = Bench(bench.data, tmp_path)
    explosive = recipe(SGD(lr=1e30, momentum=0.0))
    run = place.train(explosive, steps=9, fresh=False)
    result = run.result()
    assert result is not None
    assert result["status"] == "diverged"
    diagnosis = result["diagnosis"]
    assert 1 <= diagnosis["step"] < 9
    assert diagnosis["learning_rate"] == 1e30
    assert diagnosis["loss"] in ("nan", "inf")
    assert "gradient_norm" in diagnosis
    assert place.train(explosive, steps=9, fresh=False).result() == result


def test_a_damaged_checkpoint_or_result_does_not_stop_a_run(bench: Bench, tmp_path: Path) -> None:
    place = Bench(bench.data, tmp_path)
    run = place.train(recipe(), fresh=False)
    wanted = fingerprint(run)
    (run.path / "result.json").write_text('{"status": "fini')
    (run.newest_checkpoint() / "state.json").write_text("{")
    again = place.train(recipe(), fresh=False)
    assert again.path == run.path
    assert fingerprint(again) == wanted


def test_weights_of_another_model_are_refused(bench: Bench, tmp_path: Path) -> None:
    place = Bench(bench.data, tmp_path)
    chosen = recipe(EMA())
    run = place.train(chosen, fresh=False)
    (run.newest_checkpoint() / "model.safetensors").write_bytes(b"damaged")
    plan = place.plan(chosen)
    with pytest.raises(CheckpointError, match="cannot read weights"):
        evaluate(run, plan, bench.data, all_readouts(plan), "train")
    with pytest.raises(CheckpointError, match="not a run"):
        Run(tmp_path).about()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_two_processes_cannot_train_one_run(bench: Bench, tmp_path: Path) -> None:
    process = in_child(_train_slowly, bench, 200, tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/run.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(CheckpointError, match="another process"):
            _train_slowly(bench, 200, tmp_path)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()


def _train_as_rank(bench: Bench, rank: int, world: int, port: int, folder: Path, *more: Trick) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        GROUP_RANK="0",
        LOCAL_WORLD_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        GLOO_SOCKET_IFNAME="lo",
    )
    import warnings

    warnings.simplefilter("ignore")
    device = Device("cpu", threads=1)
    vit = {"name": "test_vit", "options": {"img_size": 16}}
    chosen = recipe(sample("random_flip"), sample("pad_and_crop"), *more, model=vit, image_size=16)
    plan = Bench(bench.data, folder).plan(chosen, 6)
    train(plan, bench.data, seed=7, runs=folder, device=device, splits=(), readouts=[])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_two_processes_share_a_batch_and_agree_with_one(bench: Bench, tmp_path: Path) -> None:
    """Without batch norm, whose statistics are per process, the weights agree to float error.

    The two cut their shares of four images into three parts each; the one does not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parts = (GradientAccumulation(steps=3), GradientClipping(limit=0.5))
    pair = [in_child(_train_as_rank, bench, rank, 2, port, tmp_path / "two", *parts) for rank in (0, 1)]
    for process in pair:
        process.join(timeout=120)
        assert process.exitcode == 0
    alone = in_child(_train_as_rank, bench, 0, 1, port, tmp_path / "one", *parts[1:])
    alone.join(timeout=120)
    assert alone.exitcode == 0
    (two,), (one,) = ([Run(p) for p in (tmp_path / name).iterdir()] for name in ("two", "one"))
    found, wanted = tensors(two), tensors(one)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-5)


def test_a_batch_that_cannot_be_shared_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="shared evenly by 3"):
        bench.train(recipe())


def test_predict_only_changes_reuse_a_run_and_change_its_numbers(bench: Bench, tmp_path: Path) -> None:
    place = Bench(bench.data, tmp_path)
    small, large = recipe(), recipe(eval_size=32, eval_resize=36)
    runs = [place.train(r, fresh=False) for r in (small, large)]
    assert runs[0] == runs[1]
    found = [
        evaluate(runs[0], place.plan(r), bench.data, [main_readout(place.plan(r))], "train")
        for r in (small, large)
    ]
    assert next(iter(found[0].values()))["nll"] != next(iter(found[1].values()))["nll"]


def test_the_log_is_json_lines(bench: Bench) -> None:
    run = bench.train(recipe(EMA()), steps=6)
    for line in run.metrics_file.read_text().splitlines():
        row = json.loads(line)
        assert {"step", "epoch", "lr", "train_loss", "raw", "seconds"} <= set(row)


def _stopped_at(bench: Bench, folder: Path, step: int) -> Run:
    """A run of 12 steps that was interrupted."""

    def stop(status: Status) -> None:
        if status.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        Bench(bench.data, folder).train(LONG, steps=12, fresh=False, progress=stop, report_seconds=0)
    (path,) = folder.iterdir()
    return Run(path)


@pytest.mark.parametrize("lost", [1, 10_000])
def test_a_log_shorter_than_its_checkpoint_says_stays_readable(
    bench: Bench, tmp_path: Path, lost: int
) -> None:
    """After a power cut the file may lack its end; what follows must not be glued to a torn line."""
    run = _stopped_at(bench, tmp_path, 6)
    before = len(run.metrics())
    os.truncate(run.metrics_file, max(0, run.metrics_size() - lost))
    kept = run.metrics_file.read_bytes().count(b"\n")
    assert kept < before
    Bench(bench.data, tmp_path).train(LONG, steps=12, fresh=False)
    lines = run.metrics_file.read_text().splitlines()
    assert len(run.metrics()) == len(lines) > kept
    assert run.metrics()[-1]["step"] == 12


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _stopped_at(bench, tmp_path, 5)
    before = list((run.path / "checkpoint").iterdir())

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(CheckpointError, match="No space left"):
        Bench(bench.data, tmp_path).train(LONG, steps=12, fresh=False)
    assert list((run.path / "checkpoint").iterdir()) == before
    monkeypatch.undo()
    Bench(bench.data, tmp_path).train(LONG, steps=12, fresh=False)
    assert fingerprint(run) == fingerprint(bench.train(LONG, steps=12))


def test_a_full_disk_leaves_no_half_written_result(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "result.json"
    write_json(path, {"status": "old"})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"result\.json"):
        write_json(path, {"status": "new"})
    assert [other.name for other in tmp_path.iterdir()] == ["result.json"]
    assert json.loads(path.read_text()) == {"status": "old"}


def test_a_finished_run_is_left_alone_by_every_process(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that waited for the first here would wait for ever."""
    alone = Bench(bench.data, tmp_path).train(recipe(), fresh=False)
    log = alone.metrics_file.read_bytes()
    plan = Bench(bench.data, tmp_path).plan(recipe())
    run = Run(alone.path.rename(tmp_path / run_id(plan.recipe, bench.data.facts, 7, "cpu x 2")))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Device, "start", lambda *_: pytest.fail("it joined the other processes"))
    device = Device("cpu", threads=1)
    assert Bench(bench.data, tmp_path).train(recipe(), fresh=False, device=device) == run
    assert run.metrics_file.read_bytes() == log


@pytest.mark.parametrize(
    ("every", "wanted"),
    [(1e-12, range(1, 8)), (0.1, range(1, 8)), (0.5, (4, 7)), (50.0, (7,))],
    ids=("every step and less", "every step", "half an epoch", "longer than training"),
)
def test_evaluations_come_when_asked_and_at_the_end(
    bench: Bench, every: float, wanted: tuple[int, ...]
) -> None:
    plan = bench.plan(recipe(evaluate_every=every), steps=7)
    assert plan.timeline.steps_per_epoch == 9
    assert evaluation_steps(plan) == set(wanted)


def test_one_number_wherever_it_is_read(bench: Bench) -> None:
    """The log's last row, the result, and an evaluation of the checkpoint, to the bit."""
    run = bench.train(LONG, steps=6, splits=("selection",), readouts=None)
    result = run.result()
    assert result is not None
    plan = bench.plan(LONG, steps=6)
    for path in (run.path / "evaluations").iterdir():
        path.unlink()
    found = evaluate(run, plan, bench.data, all_readouts(plan), "selection")
    for readout in all_readouts(plan):
        assert found[readout.digest] == result["metrics"]["selection"][readout.label]
        if not readout.tricks:
            assert found[readout.digest] == run.metrics()[-1][readout.label]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_run_that_another_process_finishes_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    process = in_child(_train_slowly, bench, 30, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/run.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    run = Bench(bench.data, tmp_path).train(LONG, steps=30, fresh=False, lock_seconds=60.0)
    process.join()
    assert process.exitcode == 0
    assert run.result()["status"] == "finished"  # type: ignore[index]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_batch_in_parts_trains_like_the_whole(bench: Bench) -> None:
    """Eight images as 3, 3 and 2, without batch norm: the same weights and losses up to rounding."""
    plain = {"model": {"name": "test_vit", "options": {"img_size": 16}}, "image_size": 16}
    runs = [
        bench.train(recipe(Mixup(), *more, **plain), steps=6)
        for more in ((), (GradientAccumulation(steps=3),))
    ]
    wanted, found = map(tensors, runs)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    assert runs[1].metrics()[-1]["train_loss"] == pytest.approx(runs[0].metrics()[-1]["train_loss"], rel=1e-5)


def test_clipped_gradients_move_the_weights_by_no_more_than_the_rate(bench: Bench) -> None:
    limit, rate = 0.01, 0.5
    chosen = recipe(SGD(lr=rate, momentum=0.0), GradientClipping(limit=limit))
    run = bench.train(chosen, steps=1)
    start = bench.plan(chosen, steps=1).build_model(Stream(7))
    moved = [tensors(run)[name] - p.detach() for name, p in start.named_parameters()]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(rate * limit, rel=1e-3)


def test_images_grow_epoch_by_epoch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    prepare = TrainBatches.prepare

    def spy(self: TrainBatches, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        sizes.append(images.shape[-1])
        return prepare(self, images, targets, step)

    monkeypatch.setattr(TrainBatches, "prepare", spy)
    bench.train(recipe(ResolutionRamp(start=0.5, until=0.6), sample("cutmix")), steps=36)
    assert sizes == [12] * 9 + [16] * 9 + [24] * 18


def test_whitening_is_computed_once_from_training_images_and_stays(bench: Bench, tmp_path: Path) -> None:
    chosen = recipe(Whitening(images=10), sample("normalize"), sample("random_flip"), EMA(decay=0.5))
    asked: list[Tensor] = []
    calibrate = Whitening.calibrate

    def spy(self: Whitening, model: nn.Module, images: Iterable[Tensor]) -> None:
        asked.extend(images)
        calibrate(self, model, asked)

    def stop(status: Status) -> None:
        if status.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    place = Bench(bench.data, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Whitening, "calibrate", spy)
        with pytest.raises(Stopped):
            place.train(chosen, steps=6, fresh=False, progress=stop, report_seconds=0)
        run = place.train(chosen, steps=6, fresh=False)
    (images,) = asked
    train = bench.data.splits["train"]
    positions = [k * len(train) // 10 for k in range(10)]
    plan = place.plan(chosen, steps=6)
    (wanted,) = eval_batches(plan, train, (24, 24), 64, positions, torch.device("cpu"))
    assert torch.equal(images, wanted)
    assert images.std() == pytest.approx(1, abs=0.3)
    filters = whitening_weight(patch_moments([images], 2), 3).float()
    for name in ("model", "average-ema"):
        assert torch.equal(tensors(run, name)["conv1.whiten.weight"], filters)
    assert tensors(run)["conv1.whiten.bias"].any()
    loaded = load_weights(run, plan).model.get_parameter("conv1.whiten.weight")
    assert torch.equal(loaded.cpu(), filters)
