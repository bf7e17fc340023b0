"""Runs that begin alike go on from one another, and nobody can tell from their numbers."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from contract import KINDS, MODEL, OPTIMIZER, Bench, compatible, fingerprint, recipe, required, rows, sample
from trickbag import data
from trickbag import plan as planning
from trickbag.data.base import DataFacts
from trickbag.engine import checkpoint
from trickbag.engine.forks import Fork, find, forget_forks, forks_size, shared_steps
from trickbag.engine.heartbeat import INTERVAL, Heartbeat, read_heartbeat
from trickbag.engine.run import Run
from trickbag.engine.train import Status
from trickbag.errors import PlanError
from trickbag.plan import Plan
from trickbag.recipe import Recipe, load
from trickbag.recipe.read import published
from trickbag.study.design import Arm
from trickbag.study.forks import assign, kept_steps, saved_epochs
from trickbag.study.jobs import share
from trickbag.tricks import catalogue
from trickbag.tricks.averaging import EMA, SWA
from trickbag.tricks.base import Trick
from trickbag.tricks.cycles import OneCycle
from trickbag.tricks.decays import ConstantCooldown
from trickbag.tricks.erasing import RandomErasing
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.mix_control import MixOff, MixSwitch
from trickbag.tricks.mixing import CutMix, Mixup
from trickbag.tricks.normalization import BNReestimation
from trickbag.tricks.optimization import SGD, AdamW
from trickbag.tricks.regularization import Dropout
from trickbag.tricks.resolution import ResolutionRamp
from trickbag.tricks.schedules import CosineDecay, StepDecay, Warmup
from trickbag.tricks.stages import WeightsTrick
from trickbag.tricks.stopping import EarlyStopping
from trickbag.tricks.transfer import Freeze

PER_EPOCH = 3
"""Updates in an epoch of the bench."""
ADAM = AdamW(lr=0.01)


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


DIFFERS = ("cost", "forked_from", "shared_steps", "log")
"""What a result says of the way to its numbers; the log's hash covers seconds."""


def numbers(run: Run) -> dict[str, Any]:
    """Everything that a run found out, less what it cost."""
    result = run.result()
    assert result is not None
    files = sorted(path.stem for path in run.newest_checkpoint().glob("*.safetensors"))
    own = {name: value for name, value in result.items() if name not in DIFFERS}
    return {"result": own, "rows": rows(run), "files": {name: fingerprint(run, name) for name in files}}


def measured(bench: Bench, chosen: Recipe, steps: int, **options: Any) -> Run:
    return bench.train(chosen, steps, splits=("selection",), readouts=None, **options)


def go_on(bench: Bench, trunk: Run, chosen: Recipe, steps: int, at: int, **options: Any) -> Run:
    return measured(bench, chosen, steps, fork=Fork(str(trunk.path), at), **options)


STEPS, WSD = StepDecay(milestones=(1, 2)), (Warmup(epochs=1), ConstantCooldown(cooldown=0.25))
SWITCH = (Mixup(), CutMix(), MixSwitch())
STATISTICS = (SWA(after=0.5, every=1 / 3, images=16), BNReestimation(images=8))
PAIRS: dict[str, tuple[tuple[Trick, ...], int, tuple[Trick, ...], int, int]] = {
    "mixing ends": ((Mixup(), MixOff(epochs=1)), 9, (Mixup(),), 9, 6),
    "mixing ends sooner": (SWITCH, 9, (*SWITCH, MixOff(epochs=2)), 9, 3),
    "mixing never starts": ((Mixup(), MixOff(epochs=3)), 9, (), 9, 9),
    "more epochs of step decay": ((STEPS, ADAM), 6, (STEPS, ADAM), 9, 6),
    "a later milestone": ((STEPS,), 9, (StepDecay(milestones=(1, 2.5)),), 9, 6),
    "a longer constant rate": (WSD, 8, WSD, 12, 7),
    "a cooldown from one long run": (WSD[:1], 12, (WSD[0], ConstantCooldown(cooldown=0.5)), 9, 6),
    "SWA's statistics": ((), 9, (SWA(after=0.7, every=1 / 3, images=16),), 9, 7),
    "SWA of another length": (STATISTICS, 8, STATISTICS, 12, 6),
    "without the average": ((EMA(decay=0.8, warmup=True), Dropout(p=0.3)), 9, (Dropout(p=0.3),), 9, 9),
    "the same average": (
        (EMA(decay=0.8, every=2), Mixup()),
        9,
        (EMA(decay=0.8, every=2), Mixup(), MixOff(epochs=1)),
        9,
        6,
    ),
    "a ramp that begins alike": (
        (ResolutionRamp(start=0.7),),
        9,
        (ResolutionRamp(start=0.7, until=0.3),),
        9,
        3,
    ),
    "thawing later": (
        (Freeze(train="head", epochs=2),),
        9,
        (Freeze(train="head", epochs=1), TTAFlip()),
        9,
        3,
    ),
    "momentum follows the rate": ((OneCycle(), Mixup(), MixOff(epochs=1)), 9, (OneCycle(), Mixup()), 9, 6),
}
"""Tricks and updates of the run to go on from, those of the run that goes on, and the updates they share."""


@pytest.mark.parametrize("name", PAIRS)
def test_a_forked_run_is_the_unshared_one(name: str, bench: Bench) -> None:
    tricks, length, others, steps, shared = PAIRS[name]
    trunk, chosen = recipe(*tricks), recipe(*others)
    plans = bench.plan(trunk, length), bench.plan(chosen, steps)
    assert shared_steps(*plans) == shared
    left = bench.train(trunk, length, keep=(shared,))
    alone = measured(bench, chosen, steps)
    forked = go_on(bench, left, chosen, steps, shared)
    assert forked.id == alone.id
    assert numbers(forked) == numbers(alone)
    result, before = forked.result(), alone.result()
    assert result is not None
    assert before is not None
    assert result["forked_from"] == forked.about()["forked_from"] == {"run": left.id, "step": shared}
    assert result["shared_steps"] == shared
    assert result["cost"]["epochs_trained"] == (steps - shared) / PER_EPOCH
    assert "forked_from" not in before
    assert before["cost"]["epochs_trained"] == before["epochs"] == steps / PER_EPOCH


def test_a_run_that_stopped_early_is_gone_on_from(bench: Bench) -> None:
    stopping, plain = recipe(EarlyStopping(patience=1, min_delta=0.9), EMA(decay=0.5)), recipe(EMA(decay=0.5))
    trained = bench.plan(stopping, 12), bench.plan(plain, 12)
    assert shared_steps(*trained) == 12
    assert shared_steps(*reversed(trained)) == PER_EPOCH, "the second run may stop after its first evaluation"
    trunk = bench.train(stopping, 12, keep=(12,))
    stopped = trunk.result()
    assert stopped is not None
    assert stopped["stopped_early"]
    forked = go_on(bench, trunk, plain, 12, 12)
    result = forked.result()
    assert result is not None
    assert result["shared_steps"] == stopped["steps"] < 12
    assert numbers(forked) == numbers(measured(bench, plain, 12))
    # Another that would have stopped at the same time has nothing left to train, but averages to complete.
    same = stopping.with_tricks(BNReestimation(images=16))
    forked, alone = go_on(bench, trunk, same, 12, 12), measured(bench, same, 12)
    assert numbers(forked) == numbers(alone)
    assert (forked.result() or {})["cost"]["epochs_trained"] == 0


def test_chains_of_forks_and_what_they_cost(bench: Bench) -> None:
    recipes = [recipe(Mixup(), MixOff(epochs=off)) for off in (0, 1, 2)]
    plans = {f"off {off}": bench.plan(chosen, 9) for off, chosen in enumerate(recipes)}
    found = assign(plans)
    assert found == {"off 1": ("off 0", 6), "off 2": ("off 0", 3)}
    assert saved_epochs(plans, found) == 3
    assert kept_steps(found) == {"off 0": (3, 6)}
    trunk = bench.train(recipes[0], 9, keep=(6,))
    middle = go_on(bench, trunk, recipes[1], 9, 6, keep=(3, 8))
    assert set(checkpoint.all_of(middle.path / "forks")) == {8}, "of step 3 it knows nothing"
    last = go_on(bench, middle, recipes[1].with_tricks(EarlyStopping(patience=9)), 9, 8)
    assert "forked_from" not in (last.result() or {}), "a run that may stop starts from scratch"
    same = recipes[1].with_tricks(BNReestimation(images=16))
    last = go_on(bench, middle, same, 9, 8)
    assert (last.result() or {})["forked_from"] == {"run": middle.id, "step": 8}
    assert numbers(last) == numbers(measured(bench, same, 9))


# What cannot be shared.

DIFFERENT: dict[str, tuple[Recipe, Recipe]] = {
    "weights": (recipe(), recipe(model=MODEL.model_copy(update={"options": {"stem_type": "deep"}}))),
    "order": (recipe(), recipe(sample("repeated_augmentation"))),
    "batches": (recipe(), recipe(batch_size=6)),
    "images": (recipe(), recipe(RandomErasing(p=1))),
    "sizes": (recipe(), recipe(image_size=20, eval_size=24)),
    "filter": (recipe(), recipe(interpolation="bicubic")),
    "mixing": (recipe(), recipe(Mixup())),
    "how mixes are drawn": (recipe(Mixup(), CutMix()), recipe(Mixup(), CutMix(), MixSwitch())),
    "loss": (recipe(), recipe(sample("label_smoothing"))),
    "precision": (recipe(), recipe(sample("mixed_precision"))),
    "rates": (recipe(), recipe(Warmup(epochs=1))),
    "length of a cosine": (recipe(CosineDecay(), epochs=2), recipe(CosineDecay(), epochs=3)),
    "optimizer": (recipe(), recipe(OPTIMIZER.model_copy(update={"weight_decay": 0.0}))),
    "an average from the start": (recipe(), recipe(EMA(decay=0.9))),
    "another average": (recipe(EMA(decay=0.8)), recipe(EMA(decay=0.9))),
    "decay by length": (recipe(EMA(rescale=True), epochs=2), recipe(EMA(rescale=True), epochs=3)),
    "a gradient's norm": (recipe(), recipe(sample("gradient_clipping"))),
    "groups": (recipe(), recipe(sample("no_bias_norm_decay"))),
    "two passes": (recipe(), recipe(sample("sam"))),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_nothing_is_shared_by_what_differs_from_the_start(name: str, bench: Bench) -> None:
    first, second = DIFFERENT[name]
    plans = [bench.plan(one, round(one.epochs * PER_EPOCH)) for one in (first, second)]
    # A cosine starts at its peak whatever its length: that one update is the same.
    assert shared_steps(*plans) == (1 if name == "length of a cosine" else 0)


def test_evaluations_must_be_those_of_the_run_itself(bench: Bench) -> None:
    plain, often = bench.plan(recipe(), 9), bench.plan(recipe(evaluate_every=2 / 3), 9)
    assert shared_steps(plain, often) == 1, "one of them is evaluated after update 2"
    assert shared_steps(plain, bench.plan(recipe(eval_size=28), 9)) == PER_EPOCH - 1
    # A run is evaluated after its last update; a longer one goes on.
    assert shared_steps(bench.plan(recipe(), 8), plain) == 7
    assert shared_steps(plain, plain) == 9


def test_a_fork_point_that_will_not_do_costs_nothing_but_time(bench: Bench) -> None:
    ending = recipe(Mixup(), MixOff(epochs=1))
    left = bench.train(recipe(Mixup()), 9, keep=(6,))
    fork, plan = Fork(str(left.path), 6), bench.plan(ending, 9)
    assert fork.path.is_dir()
    assert find(fork, plan, 7, "cpu", 1) is not None
    assert find(Fork(str(left.path), 9), plan, 7, "cpu", 1) is not None, "an earlier one will do"
    assert find(Fork(str(left.path), 5), plan, 7, "cpu", 1) is None
    assert find(fork, plan, 8, "cpu", 1) is None, "another seed"
    assert find(fork, plan, 7, "cpu", 2) is None, "other threads"
    assert find(fork, plan, 7, "cuda", 1) is None, "another device"
    assert find(Fork("nowhere", 6), plan, 7, "cpu", 1) is None
    unlike = bench.plan(recipe(Mixup(), MixOff(epochs=1), RandomErasing(p=1)), 9)
    assert find(fork, unlike, 7, "cpu", 1) is None, "it does not begin alike, whoever says so"
    weights, about = fork.path / "model.safetensors", fork.path / checkpoint.STATE
    whole, text = weights.read_bytes(), about.read_text()
    for damaged in (whole[:-1], whole[:-5] + bytes([whole[-5] ^ 16]) + whole[-4:], b""):
        weights.write_bytes(damaged)
        assert find(fork, plan, 7, "cpu", 1) is None
    weights.write_bytes(whole)
    for words in ("{", "[]", "{}", text.replace("model", "modes")):
        about.write_text(words)
        assert find(fork, plan, 7, "cpu", 1) is None
    about.write_text(text)
    assert find(fork, plan, 7, "cpu", 1) is not None
    weights.unlink()
    forked = go_on(bench, left, ending, 9, 6)
    assert (forked.result() or {})["shared_steps"] == 0
    assert numbers(forked) == numbers(measured(bench, ending, 9))


def test_a_resumed_run_prefers_its_own_checkpoint(bench: Bench, tmp_path: Path) -> None:
    trunk, chosen = recipe(Mixup(), EMA(decay=0.5)), recipe(Mixup(), EMA(decay=0.5), MixOff(epochs=1))
    left = bench.train(trunk, 9, keep=(6,))
    place = Bench(bench.data, tmp_path)

    def torn(status: Status) -> None:
        if status.step == 8:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"fresh": False, "checkpoint_seconds": 0.0, "report_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        go_on(place, left, chosen, 9, 6, progress=torn, **options)
    assert forks_size(left) == forget_forks(left) > 0
    assert not forks_size(left)
    resumed = go_on(place, left, chosen, 9, 6, **options)
    result = resumed.result()
    assert result is not None
    assert result["forked_from"] == {"run": left.id, "step": 6}
    assert result["cost"]["epochs_trained"] == 1
    assert numbers(resumed) == numbers(measured(bench, chosen, 9))


def _killed_at(moment: str, bench: Bench, folder: Path) -> None:
    write, rename = checkpoint.write_json, os.rename

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def written(path: Path, value: Any) -> None:
        if moment == "before the list" and "forks" in path.parts:
            die()
        write(path, value)

    def renamed(one: Path, other: Path) -> None:
        if moment == "before the name" and "forks" in other.parts:
            die()
        rename(one, other)
        if moment == "after the name" and "forks" in other.parts:
            die()

    checkpoint.write_json, checkpoint.os.rename = written, renamed  # type: ignore[assignment, attr-defined]
    Bench(bench.data, folder).train(recipe(Mixup()), 9, fresh=False, keep=(6,), checkpoint_seconds=0.0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("moment", ["before the list", "before the name", "after the name"])
def test_sigkill_while_a_fork_point_is_written(moment: str, bench: Bench, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(moment, bench, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (path,) = tmp_path.iterdir()
    plan = bench.plan(recipe(Mixup(), MixOff(epochs=1)), 9)
    there = find(Fork(str(path), 6), plan, 7, "cpu", 1)
    assert (there is not None) == (moment == "after the name")
    left = Bench(bench.data, tmp_path).train(recipe(Mixup()), 9, fresh=False, keep=(6,))
    forked = go_on(bench, left, recipe(Mixup(), MixOff(epochs=1)), 9, 6)
    assert (forked.result() or {})["shared_steps"] == 6
    assert numbers(forked) == numbers(measured(bench, recipe(Mixup(), MixOff(epochs=1)), 9))
    assert [one.name for one in (left.path / "forks").iterdir() if one.name.startswith("step")] == [
        "step-00000006"
    ]


def test_a_fork_point_that_cannot_be_written_stops_nobody(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save_tensors

    def full(path: Path, tensors: Any) -> None:
        if "forks" in path.parts:
            raise OSError(28, "No space left on device")
        save(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    run = bench.train(recipe(), 6, keep=(3,))
    assert (run.result() or {})["status"] == "finished"
    assert forks_size(run) == 0


# Whatever two plans are: what is shared is the same.

ALONE = [
    kind for kind in KINDS if not sample(kind).sources() and not issubclass(catalogue()[kind], WeightsTrick)
]
PLAIN = [
    kind
    for kind in ALONE
    if kind not in ("early_stopping", "mix_off", "freeze", "resolution_ramp", "step_decay")
]
part = st.sampled_from([0.25, 0.5, 0.75, 1.0])
LATE: dict[str, st.SearchStrategy[Trick]] = {
    "mix_off": st.builds(MixOff, epochs=st.sampled_from([0.4, 1, 2, 5])),
    "swa": st.builds(SWA, after=part, every=st.just(1 / 3), images=st.just(16)),
    "ema": st.builds(EMA, decay=st.just(0.5), every=st.sampled_from([1, 2])),
    "bn_reestimation": st.just(BNReestimation(images=8)),
    "constant_cooldown": st.builds(ConstantCooldown, cooldown=part),
    "step_decay": st.builds(StepDecay, milestones=st.sampled_from([(1,), (2,), (1, 2)])),
    "freeze": st.builds(Freeze, epochs=st.sampled_from([0.7, 1, None])),
    "resolution_ramp": st.builds(ResolutionRamp, start=st.just(0.7), until=part),
    "early_stopping": st.builds(EarlyStopping, patience=st.sampled_from([1, 3]), min_delta=st.just(0.3)),
    "tta_flip": st.just(TTAFlip()),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Trick], list[Trick], int, int]:
    """Tricks that two runs have in common with some that only one has, and their lengths."""
    common = {kind: sample(kind) for kind in draw(st.lists(st.sampled_from(PLAIN), max_size=2, unique=True))}
    if draw(st.booleans()):
        common |= {"mixup": Mixup()}
    late = draw(st.lists(st.sampled_from(sorted(LATE)), max_size=3, unique=True))
    common |= {kind: draw(LATE[kind]) for kind in late}
    bags = []
    for _ in range(2):
        own = draw(st.lists(st.sampled_from(sorted(LATE)), max_size=1))
        bags.append([*(common | {kind: draw(LATE[kind]) for kind in own}).values()])
    length = draw(st.sampled_from([6, 9]))
    return bags[0], bags[1], length, draw(st.sampled_from([length, length, 8]))


def planned(bench: Bench, tricks: list[Trick], steps: int) -> tuple[Recipe, Plan] | None:
    kinds = [trick.kind for trick in tricks]
    if not compatible(*kinds):
        return None
    needed = [trick for kind in kinds for trick in required(kind) if trick.kind not in kinds]
    chosen = recipe(*{trick.kind: trick for trick in (*tricks, *needed)}.values())
    try:
        return chosen, bench.plan(chosen, steps)
    except PlanError:
        return None


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(pairs())
def test_whatever_is_shared_is_bit_identical(
    bench: Bench, pair: tuple[list[Trick], list[Trick], int, int]
) -> None:
    one, other = planned(bench, pair[0], pair[2]), planned(bench, pair[1], pair[3])
    assume(one is not None and other is not None)
    assert one is not None
    assert other is not None
    steps = shared_steps(one[1], other[1])
    assume(steps > 0)
    left = bench.train(one[0], pair[2], keep=(steps,))
    forked, alone = go_on(bench, left, other[0], pair[3], steps), measured(bench, other[0], pair[3])
    assert numbers(forked) == numbers(alone)
    result, stopped = forked.result(), left.result()
    assert result is not None
    assert stopped is not None
    assert result["shared_steps"] == min(steps, stopped["steps"])


# Which run goes on from which.


def _best(shared: dict[tuple[str, str], int], names: list[str]) -> int:
    """The most steps that any assignment saves, by trying all."""
    best = 0

    def extend(index: int, chosen: dict[str, str]) -> None:
        nonlocal best
        if index == len(names):
            best = max(best, sum(shared[trunk, name] for name, trunk in chosen.items()))
            return
        extend(index + 1, chosen)
        for trunk in names:
            above: str | None = trunk
            while above is not None and above != names[index]:
                above = chosen.get(above)
            if above is None and shared.get((trunk, names[index]), 0):
                extend(index + 1, chosen | {names[index]: trunk})

    extend(0, {})
    return best


def _saved(assigned: dict[str, tuple[str, int]]) -> int:
    return sum(steps for _, steps in assigned.values())


def test_no_assignment_saves_more(bench: Bench) -> None:
    bags: list[tuple[Trick, ...]] = [
        (),
        (EMA(decay=0.5),),
        (EMA(decay=0.5), SWA(after=0.5, every=1 / 3)),
        (ConstantCooldown(cooldown=0.5),),
        (ConstantCooldown(cooldown=0.5), EMA(decay=0.5)),
        (ConstantCooldown(cooldown=0.25),),
    ]
    plans = {f"{number}": bench.plan(recipe(*tricks), 12) for number, tricks in enumerate(bags)}
    plans["longer"] = replace(plans["1"], timeline=replace(plans["1"].timeline, steps=15))
    shared = {(a, b): shared_steps(plans[a], plans[b]) for a in plans for b in plans if a != b}
    found = assign(plans)
    assert _saved(found) == _best(shared, list(plans))
    assert len(plans) - len(found) == 1
    for name, (trunk, steps) in found.items():
        assert shared[trunk, name] == steps
        assert found.get(trunk, ("", 0))[1] < steps, "a run leaves what it has trained itself"
    assert not {name for name, (_, steps) in assign(plans, least=10).items() if steps < 10}
    backward = assign(dict(reversed(plans.items())))
    assert _saved(backward) == _saved(found)


def test_what_the_graph_saves_of_the_ladder_of_torchvision() -> None:
    """13 rungs; why it cannot be more than that is in docs/log.md."""
    facts = DataFacts("x", ("a", "b"), 3, {"train": 10_000, "selection": 9, "test": 9}, (32, 32), "f")
    arms = [Arm(name, (), load(name)) for name in published() if name.startswith("tv_")]
    assert len(arms) == 13
    trainings = share(arms)
    plans = {t.arms[0]: planning.compile(t.recipe, facts, probe=False) for t in trainings}
    naive = sum(arm.recipe.epochs for arm in arms)
    shared = sum(plan.recipe.epochs for plan in plans.values())
    least = min(plan.timeline.steps_per_epoch for plan in plans.values())
    forked = saved_epochs(plans, assign(plans, least=least))
    assert (naive, shared) == (6270, 5070)
    assert {"tv_ema", "tv_resize", "tv_fixres"} in [set(t.arms) for t in trainings]
    # 90 and 600 epochs of one cosine have no more in common than their warmup.
    assert forked == pytest.approx(6, abs=0.2)


def test_assigning_needs_no_torch() -> None:
    script = """
import sys
from trickbag import plan
from trickbag.data.base import DataFacts
from trickbag.recipe import load
from trickbag.study.forks import assign
facts = DataFacts("x", ("a", "b"), 3, {"train": 10_000, "selection": 9, "test": 9}, (32, 32), "f")
names = ["tv_lr", "tv_trivial_augment", "tv_mixup", "tv_cutmix", "tv_ema", "tv_resize"]
found = assign({name: plan.compile(load(name), facts, probe=False) for name in names})
assert found == {"tv_resize": ("tv_ema", 8)}, found  # up to the first evaluation, which is of another size
assert not {"torch", "scipy", "pandas"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# Signs of life.


def test_a_heartbeat_is_not_written_more_often_than_agreed(tmp_path: Path) -> None:
    seconds = [100.0]
    heart = Heartbeat(tmp_path, 2, steps=50, per_epoch=10, clock=lambda: seconds[0])
    with heart:
        heart.beat(0, None)
        heart.beat(5, None)
        first = read_heartbeat(tmp_path)
        assert first is not None
        assert (first.attempt, first.pid, first.step, first.steps, first.metric) == (
            2,
            os.getpid(),
            0,
            50,
            None,
        )
        seconds[0] += INTERVAL
        heart.beat(15, 0.5)
        heart.beat(16, 0.5)
        again = read_heartbeat(tmp_path)
        assert again is not None
        assert (again.step, again.epoch, again.metric) == (15, 1.5, 0.5)
    last = read_heartbeat(tmp_path)
    assert last is not None
    assert last.step == 16
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat.json"]


def test_a_wall_clock_that_jumps_changes_no_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heart = Heartbeat(tmp_path, 0, steps=50, per_epoch=10)
    heart.beat(1, None)
    monkeypatch.setattr("trickbag.engine.heartbeat.time.time", lambda: -1e9)
    heart.beat(2, None)
    monkeypatch.setattr("trickbag.engine.heartbeat.time.time", lambda: 1e12)
    heart.beat(3, None)
    found = read_heartbeat(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_run_says_who_trains_it_and_where_it_is(bench: Bench, tmp_path: Path) -> None:
    seen: list[int] = []
    place: Callable[[], Path] = lambda: next(tmp_path.iterdir())  # noqa: E731

    def progress(status: Status) -> None:
        beat = read_heartbeat(place())
        assert beat is not None
        seen.append(beat.step)

    Bench(bench.data, tmp_path).train(
        recipe(), 6, fresh=False, attempt=3, progress=progress, report_seconds=0
    )
    assert seen[0] == 0
    last = read_heartbeat(place())
    assert last is not None
    assert (last.attempt, last.pid, last.step, last.steps, last.epoch) == (3, os.getpid(), 6, 6, 2.0)
    assert last.metric == rows(Run(place()))[-1]["raw"]["accuracy"]
    (place() / "heartbeat.json").write_text(json.dumps({"pid": 1}))
    assert read_heartbeat(place()) is None
    assert read_heartbeat(tmp_path / "nowhere") is None


def test_a_beat_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    with Heartbeat(tmp_path / "gone", 0, steps=5, per_epoch=5) as heart:
        heart.beat(1, None)
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverged_leaves_no_fork_point(bench: Bench) -> None:
    run = bench.train(recipe(SGD(lr=1e30, momentum=0.0)), 9, keep=(9,))
    assert (run.result() or {})["status"] == "diverged"
    assert forks_size(run) == 0
