"""The house's promises, over the whole catalogue: a new trick is covered by adding its file."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from contract import (
    KINDS,
    Bench,
    clashing,
    compatible,
    covering_bags,
    fingerprint,
    full_bag,
    recipe,
    required,
    rows,
    sample,
    tensors,
)
from trickbag import data, tasks
from trickbag.engine.batches import TrainBatches
from trickbag.engine.evaluate import all_readouts, evaluate
from trickbag.engine.train import Status, Stopped
from trickbag.errors import PlanError
from trickbag.functional.losses import soft_cross_entropy
from trickbag.imageops import Program, Step, execute
from trickbag.imageops.backend import BACKENDS, numba_works
from trickbag.plan import Plan
from trickbag.recipe import dump, load
from trickbag.rng import Stream
from trickbag.tricks import catalogue
from trickbag.tricks.stages import (
    Batch,
    ImageTrick,
    LossTrick,
    MixTrick,
    ModelTrick,
    SamplerTrick,
    TargetTrick,
)

PASSIVE = [kind for kind in KINDS if catalogue()[kind].passive]
ACTIVE = [kind for kind in KINDS if not catalogue()[kind].passive]
PAIRS = [pair for pair in combinations(KINDS, 2) if compatible(*pair)]
CLASHES = [pair for pair in combinations(KINDS, 2) if clashing(*pair)]


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def bare(bench: Bench) -> str:
    return bench.print(recipe())


# Promise 1: a bag, not a list.


def test_order_of_tricks_means_nothing(bench: Bench) -> None:
    tricks = list(full_bag())
    chosen = recipe(*tricks)
    wanted, prints = bench.plan(chosen), bench.print(chosen)
    for seed in range(3):
        random.Random(seed).shuffle(tricks)
        other = recipe(*tricks)
        assert other.digest == chosen.digest
        assert bench.plan(other) == wanted
        assert bench.print(other) == prints


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_file_keeps_every_setting(kind: str, tmp_path: Path) -> None:
    chosen = recipe(sample(kind))
    (tmp_path / "recipe.yaml").write_text(dump(chosen))
    assert load(tmp_path / "recipe.yaml") == chosen


# Promise 2: absent = null.


@pytest.mark.parametrize("kind", KINDS)
def test_null_setting_is_absence_to_the_bit(kind: str, bench: Bench) -> None:
    null, slot = catalogue()[kind].null(), catalogue()[kind].slot
    absent = recipe(*required(kind), optimizer=slot != "optimizer")
    present = recipe(*required(kind), null, optimizer=slot != "optimizer")
    without, with_null = bench.train(absent), bench.train(present)
    assert fingerprint(without) == fingerprint(with_null)
    plan = bench.plan(present)
    found = evaluate(with_null, plan, bench.data, all_readouts(plan), "selection")
    raw = evaluate(without, bench.plan(absent), bench.data, all_readouts(plan)[:1], "selection")
    assert all(metrics == next(iter(raw.values())) for metrics in found.values())


# Promise 3: removing one trick changes nothing else.


@pytest.mark.parametrize("kind", [trick.kind for trick in full_bag()])
def test_removing_a_trick_leaves_every_other_draw_alone(kind: str, bench: Bench) -> None:
    bag = recipe(*full_bag())
    dependents = [t.kind for t in full_bag() if kind in t.requires]
    less = bag.without(kind, *dependents)
    plans = [bench.plan(r) for r in (bag, less)]
    batches = [TrainBatches(p, bench.data.splits["train"], seed=3) for p in plans]
    gone = {trick.kind for trick in plans[0].train_images} - {trick.kind for trick in plans[1].train_images}
    if issubclass(catalogue()[kind], SamplerTrick | TargetTrick):
        # Other images in an epoch: what depends on them may differ.
        return
    for step in (0, 2):
        assert (batches[0].indices(step) == batches[1].indices(step)).all()
        whole, rest = (b.program(step) for b in batches)
        one_size = plans[0].image_size(step) == plans[1].image_size(step)
        assert are_among(rest.steps, whole.steps, one_size)
        assert are_among(rest.late, whole.late, one_size)
        if not gone:
            assert len(rest.steps) == len(whole.steps)
            assert len(rest.late) == len(whole.late)
        if "normalize" not in gone:
            assert (rest.floats(3) == whole.floats(3)).all()
        shape = torch.Size((8, 3, 16, 16))
        for other in plans[1].mix:
            draws = [b._draws(other, shape, step, torch.device("cpu")) for b in batches]
            assert draws[0].keys() == draws[1].keys()
            assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    if plans[1].crop is not None:
        boxes = [next(iter(b.requests(2))).boxes for b in batches]
        assert (boxes[0] == boxes[1]).all()
    states = [p.build_model(Stream(3)).state_dict() for p in plans]
    touched = touched_by(kind, plans[0])
    for name, value in states[1].items():
        if name not in touched and name in states[0] and states[0][name].shape == value.shape:
            assert torch.equal(states[0][name], value), name


def are_among(some: Sequence[Step], steps: Sequence[Step], one_size: bool) -> bool:
    """True if ``steps`` holds all of ``some``, in their order; lengths in pixels count at one size alone."""

    def same(one: Step, other: Step) -> bool:
        return bool((one.ops == other.ops).all() and (not one_size or (one.args == other.args).all()))

    left = iter(steps)
    return all(any(same(one, other) for other in left) for one in some)


def touched_by(kind: str, plan: Plan) -> set[str]:
    """Names of the tensors that one model trick of a plan writes."""
    init = Stream(3, "init")
    model = tasks.of("classification").build_model(plan.recipe.model, plan.facts, init, "cpu")
    for trick in plan.bag.of(ModelTrick):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model = trick.edit(model, init.child(trick.kind))
        after = model.state_dict()
        if trick.kind == kind:
            return {name for name in after if name not in before or differ(after[name], before[name])}
    return set()


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape != other.shape or not torch.equal(one, other)


def test_draws_come_from_no_global_generator(bench: Bench) -> None:
    chosen = recipe(*full_bag())
    prints = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        prints.append(bench.print(chosen))
    assert prints[0] == prints[1]


def test_another_seed_gives_other_weights(bench: Bench) -> None:
    chosen = recipe(*full_bag())
    assert bench.print(chosen, seed=1) != bench.print(chosen, seed=2)


# Promise 4: images and targets change together.

MIXES = [kind for kind in KINDS if issubclass(catalogue()[kind], MixTrick)]
LOSSES = [kind for kind in KINDS if issubclass(trick := catalogue()[kind], LossTrick) and trick.linear]


@pytest.mark.parametrize("kind", MIXES)
def test_targets_are_the_share_of_pixels(kind: str) -> None:
    trick = sample(kind)
    assert isinstance(trick, MixTrick)
    for step in range(20):
        targets = torch.eye(6, dtype=torch.float64)
        images = targets[:, :, None, None].expand(6, 6, 12, 10).clone()
        draws = trick.draw(images.shape, Stream(0, kind).torch(step))
        mixed, mixed_targets = trick.mix(images, targets, draws)
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), mixed_targets, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss_kind", LOSSES)
@pytest.mark.parametrize("kind", MIXES)
def test_loss_and_mixing_commute(kind: str, loss_kind: str, bench: Bench) -> None:
    mix, wrap = sample(kind), bench.plan(recipe(sample(loss_kind))).bag[loss_kind]
    assert isinstance(mix, MixTrick)
    assert isinstance(wrap, LossTrick)
    loss = wrap.wrap(soft_cross_entropy)
    targets = torch.eye(4, dtype=torch.float64)
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, mixed = mix.mix(images, targets, mix.draw(images.shape, Stream(0, kind).torch(4)))
    each = torch.stack([loss(logits, targets[k].expand(4, 4)) for k in range(4)], dim=1)
    torch.testing.assert_close(loss(logits, mixed), (each * mixed).sum(1), rtol=1e-6, atol=1e-9)


# Promise 5: resume is exact.


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], tuple(t.kind for t in full_bag())])
def test_a_stopped_run_goes_on_to_the_same_bits(kinds: tuple[str, ...], bench: Bench, tmp_path: Path) -> None:
    import os
    import signal

    tricks = {t.kind: t for kind in kinds for t in (*required(kind), sample(kind))}
    chosen = recipe(*tricks.values(), evaluate_every=0.2)
    unbroken = bench.train(chosen, steps=6)

    def stop(status: Status) -> None:
        if status.step in (1, 2, 4):
            os.kill(os.getpid(), signal.SIGTERM)

    broken = Bench(bench.data, tmp_path)
    times = 0
    while True:
        try:
            run = broken.train(chosen, steps=6, fresh=False, progress=stop, report_seconds=0)
            break
        except Stopped:
            times += 1
            assert times < 10
    assert times >= 2
    assert fingerprint(run) == fingerprint(unbroken)
    assert rows(run) == rows(unbroken)
    for path in unbroken.newest_checkpoint().glob("average-*"):
        assert fingerprint(run, path.stem) == fingerprint(unbroken, path.stem)


# Promise 6: composes.


BAGS = tuple(covering_bags(PAIRS, 8))


def test_bags_cover_every_pair() -> None:
    covered = {pair for bag in BAGS for pair in combinations(bag, 2)}
    assert covered >= set(PAIRS)


@pytest.mark.parametrize("bag", BAGS, ids=lambda bag: bag[0])
def test_every_pair_trains_together(bag: tuple[str, ...], bench: Bench) -> None:
    """In bags of a few tricks that hold every pair without a conflict; if one fails, pair by pair."""
    try:
        train_together(bag, bench)
    except Exception as error:
        for pair in combinations(bag, 2):
            try:
                train_together(pair, bench)
            except Exception as cause:
                raise AssertionError(f"{' and '.join(pair)}: {cause}") from cause
        raise AssertionError(f"{', '.join(bag)}: {error}") from error


def train_together(kinds: tuple[str, ...], bench: Bench) -> None:
    tricks = {t.kind: t for kind in kinds for t in (*required(kind), sample(kind))}
    run = bench.train(recipe(*tricks.values()), steps=2)
    result = run.result()
    assert result is not None
    assert result["status"] == "finished"
    assert all(torch.isfinite(value.float()).all() for value in tensors(run).values())


def test_the_full_bag_trains(bench: Bench) -> None:
    assert len(full_bag()) > len(KINDS) / 2
    assert bench.train(recipe(*full_bag()), steps=4).result()["status"] == "finished"  # type: ignore[index]


# Promise 7: says no, clearly; nothing is silently skipped.


@pytest.mark.parametrize("pair", CLASHES, ids="-".join)
def test_a_clash_is_refused_by_name(pair: tuple[str, str], bench: Bench) -> None:
    said = bench.conflicts(recipe(*map(sample, pair)))
    assert said is not None
    assert pair[0] in said
    assert pair[1] in said
    assert "--without" in said


def test_all_problems_are_reported_at_once(bench: Bench) -> None:
    tricks = [sample(kind) for pair in CLASHES[:1] for kind in pair]
    chosen = recipe(*tricks, batch_size=100_000, eval_resize=8, eval_size=16)
    with pytest.raises(PlanError) as caught:
        bench.plan(chosen)
    assert len(caught.value.problems) >= 3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if catalogue()[kind].requires])
def test_a_missing_requirement_is_named(kind: str, bench: Bench) -> None:
    said = bench.conflicts(recipe(sample(kind)))
    assert said is not None
    assert all(f"--with {needed}" in said for needed in catalogue()[kind].requires)


@pytest.mark.parametrize("kind", ACTIVE)
def test_every_trick_acts(kind: str, bench: Bench, bare: str) -> None:
    if catalogue()[kind].stage.name == "STOP":
        long = recipe(sample(kind), evaluate_every=0.1)
        result = bench.train(long, steps=60).result()
        assert result is not None
        assert result["stopped_early"]
        return
    wanted = bare if not required(kind) else bench.print(recipe(*required(kind)))
    found = bench.print(recipe(*required(kind), sample(kind)))
    assert (found != wanted) is catalogue()[kind].alone


@pytest.mark.parametrize("kind", PASSIVE)
def test_a_passive_trick_acts_on_predictions_alone(kind: str, bench: Bench, bare: str) -> None:
    assert not required(kind)
    chosen = recipe(sample(kind))
    run = bench.train(chosen)
    assert fingerprint(run) == bare
    plan = bench.plan(chosen)
    found = evaluate(run, plan, bench.data, all_readouts(plan), "train")
    values = [metrics["nll"] for metrics in found.values()]
    assert values[0] != values[-1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(catalogue()[kind], ModelTrick)])
def test_surgery_that_matches_nothing_is_refused(kind: str, bench: Bench) -> None:
    """A model without convolutions, norms or residual branches: the trick acts or says that it cannot."""
    vit = {"model": {"name": "test_vit", "options": {"img_size": 16}}, "image_size": 16}
    chosen = recipe(sample(kind), **vit)
    said = bench.conflicts(chosen)
    if said is None:
        models = [bench.plan(r).build_model(Stream(0)) for r in (recipe(**vit), chosen)]
        plain, edited = (model.state_dict() for model in models)
        changed = any(name not in edited or not torch.equal(plain[name], edited[name]) for name in plain)
        assert changed or str(models[0]) != str(models[1])
    else:
        assert kind in said


# Promise 8: stands alone.


@pytest.mark.parametrize("kind", KINDS)
def test_the_snippet_runs(kind: str) -> None:
    snippet = catalogue()[kind].card.snippet
    assert "import" in snippet
    state = torch.get_rng_state()
    exec(compile(snippet, f"<snippet of {kind}>", "exec"), {"__name__": "snippet"})
    torch.set_rng_state(state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_is_filled_in(kind: str) -> None:
    card = catalogue()[kind].card
    for text in (card.title, card.summary, card.source, card.null, card.cost, card.suggested, card.library):
        assert len(text) > 3


# Promise 9: agrees with the reference.


def test_every_trick_has_an_oracle_test() -> None:
    mentioned: set[str] = set()
    for path in Path(__file__).parent.glob("test_oracle_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                mentioned |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                mentioned |= {
                    n.value
                    for n in ast.walk(node)
                    if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
                mentioned |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
    missing = [kind for kind in KINDS if not mentioned & {kind, catalogue()[kind].__name__}]
    assert not missing


# What every image trick owes the processes that share a batch.


IMAGES = [kind for kind in KINDS if issubclass(catalogue()[kind], ImageTrick)]


def program_of(trick: ImageTrick, images: torch.Tensor, step: int = 1) -> Program:
    """What a trick alone makes of a batch."""
    shape = (images.shape[0], images.shape[1], images.shape[2], images.shape[3])
    steps = tuple(trick.draw(Batch(shape, step, 0, np.arange(len(images))), Stream(0, trick.kind)))
    table = trick.table(images.shape[1])
    return Program((), table, steps) if trick.late else Program(steps, table)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_slice_of_a_batch_is_augmented_like_the_batch(kind: str, bench: Bench) -> None:
    trick = bench.plan(recipe(sample(kind))).bag[kind]
    assert isinstance(trick, ImageTrick)
    images = torch.randint(256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    program, later = program_of(trick, images), program_of(trick, images, step=2)
    assert all(len(step) == 6 for step in (*program.steps, *program.late))
    assert len(program.steps) == len(later.steps)
    assert len(program.late) == len(later.late)
    share = slice(2, 5)
    assert torch.equal(execute(images, program)[share], execute(images[share], program.part(share)))


@pytest.mark.parametrize("kind", IMAGES)
def test_every_back_end_makes_the_same_images(kind: str, bench: Bench) -> None:
    trick = bench.plan(recipe(sample(kind))).bag[kind]
    assert isinstance(trick, ImageTrick)
    images = torch.randint(256, (20, 3, 17, 14), generator=torch.Generator().manual_seed(0)).byte()
    program = program_of(trick, images)
    made = [execute(images, program, backend=name) for name in BACKENDS if name != "numba" or numba_works()]
    assert all(torch.equal(made[0], other) for other in made[1:])
