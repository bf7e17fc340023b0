"""Pseudo-labels and label propagation against formulas in NumPy, scikit-learn, and what must never leak."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.datasets import make_moons
from sklearn.semi_supervised import LabelSpreading

from contract import Bench, recipe, tensors
from trickbag import data
from trickbag.data.base import Request
from trickbag.engine.batches import TrainBatches
from trickbag.engine.files import write_json
from trickbag.engine.run import Run
from trickbag.engine.targets import Learned, joined, learned, transductive
from trickbag.engine.upstream import settle
from trickbag.errors import PlanError, UsageError
from trickbag.functional.pseudo_labels import certainty, pseudo_labels, relabel
from trickbag.plan import Plan
from trickbag.tricks.semisupervised import LabelPropagation, SelfTraining, spread_labels
from trickbag.tricks.sources import Source
from trickbag.tricks.transfer import StartFrom

SMALL = {"model": {"name": "mini_resnet"}, "batch_size": 8, "image_size": 16, "eval_resize": None}
TEACHER = Source(recipe=recipe(**SMALL).data())


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


class Oracle:
    """A trained model that says what it is told to say."""

    def __init__(self, found: np.ndarray) -> None:
        self.found = found.astype(np.float32)

    def probabilities(self) -> np.ndarray:
        return self.found

    features = probabilities


def rows(seed: int, n: int, classes: int, sharp: float = 3.0) -> np.ndarray:
    logits = sharp * np.random.default_rng(seed).normal(size=(n, classes))
    found: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return found


# formulas


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 9),
    classes=st.integers(2, 7),
    threshold=st.floats(0, 1),
    share=st.floats(0, 1),
    hard=st.booleans(),
)
def test_pseudo_labels_follow_the_formula(
    seed: int, n: int, classes: int, threshold: float, share: float, hard: bool
) -> None:
    found = rows(seed, n, classes)
    labels = np.random.default_rng(seed).integers(classes, size=n)
    made = pseudo_labels(torch.from_numpy(found), threshold, hard=hard)
    blended = relabel(torch.from_numpy(labels), made, share)
    for k in range(n):
        known = np.eye(classes)[labels[k]]
        wanted = np.eye(classes)[found[k].argmax()] if hard else found[k]
        if found[k].max() < threshold:
            assert made[k].isnan().all()
            np.testing.assert_array_equal(blended[k], known)
        else:
            np.testing.assert_allclose(made[k], wanted)
            np.testing.assert_allclose(blended[k], (1 - share) * known + share * wanted, atol=1e-12)
    np.testing.assert_allclose(blended.sum(dim=1), 1)
    scipy = 1 - entropy(found, axis=1) / np.log(classes)
    np.testing.assert_allclose(certainty(torch.from_numpy(found)), scipy, atol=1e-12)


def test_certainty_is_0_for_ignorance_and_1_for_knowledge() -> None:
    found = torch.stack([torch.full((4,), 0.25), torch.eye(4)[2]])
    torch.testing.assert_close(certainty(found), torch.tensor([0.0, 1.0]))
    assert certainty(torch.full((1, 4), torch.nan)).isnan().all()


def closed_form(
    features: np.ndarray, labels: np.ndarray, classes: int, neighbors: int, alpha: float
) -> np.ndarray:
    """Zhou et al. 2004: F = (I - alpha S)^-1 Y, on the directed graph of nearest neighbors by cosine."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    w = np.zeros_like(similar)
    for row, order in zip(w, np.argsort(-similar, axis=1), strict=True):
        row[order[:neighbors]] = 1
    degree = np.where(w.sum(axis=0) > 0, w.sum(axis=0), 1)
    s = w / np.sqrt(np.outer(degree, degree))
    y = np.eye(classes)[labels] * (labels >= 0)[:, None]
    f: np.ndarray = np.linalg.solve(np.eye(len(labels)) - alpha * s, y)
    return f / f.sum(axis=1, keepdims=True)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), neighbors=st.integers(3, 8), alpha=st.sampled_from([0.4, 0.8, 0.9, 0.99]))
def test_spreading_is_the_closed_form(seed: int, neighbors: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(40, 5)) + 2 * np.eye(5)[np.arange(40) % 4]
    labels = np.where(np.arange(40) < 12, np.arange(40) % 4, -1)
    found = spread_labels(features, labels, 4, neighbors=neighbors, alpha=alpha)
    wanted = closed_form(features, labels, 4, neighbors, alpha)
    reached = ~np.isnan(found).any(axis=1)
    np.testing.assert_allclose(found[reached], wanted[reached], atol=1e-5)
    assert np.isnan(wanted[~reached]).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_spreading_is_scikit_learns() -> None:
    points, truth = make_moons(200, noise=0.05, random_state=0)
    features = np.stack([np.cos(points[:, 0]), np.sin(points[:, 0]), points[:, 1], np.ones(200)], axis=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels = np.full(200, -1)
    for label in (0, 1):
        labels[np.flatnonzero(truth == label)[:5]] = label
    theirs = LabelSpreading(kernel="knn", n_neighbors=8, alpha=0.9, max_iter=1000, tol=1e-9)
    wanted = theirs.fit(features, labels).label_distributions_
    np.testing.assert_allclose(spread_labels(features, labels, 2, neighbors=7, alpha=0.9), wanted, atol=1e-6)


def test_labels_that_arrive_nowhere_are_nan_and_classes_keep_their_place() -> None:
    features = np.array([[1, 0.01 * k] for k in range(5)] + [[-1, 0.01 * k] for k in range(5)])
    labels = np.array([2, -1, -1, -1, -1, -1, -1, -1, -1, -1])
    found = spread_labels(features, labels, 4, neighbors=3)
    np.testing.assert_array_equal(found[:5], np.eye(4)[[2] * 5])
    assert np.isnan(found[5:]).all()
    trick = LabelPropagation(features=TEACHER, pool="test", neighbors=3)
    made = trick.targets(labels[:1], 4, 9, Oracle(features))  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.isnan(made).any(axis=1), np.arange(10) >= 5)


def test_noisy_labels_are_corrected_by_their_neighbors() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(90) % 3
    features = np.eye(3)[truth] + 0.2 * rng.normal(size=(90, 3))
    noisy = np.where(rng.random(90) < 0.3, rng.integers(3, size=90), truth)
    trick = LabelPropagation(features=TEACHER, relabel=True)
    found = trick.targets(noisy, 3, 0, Oracle(features))  # type: ignore[arg-type]
    assert (noisy == truth).mean() < 0.85
    assert (found.argmax(axis=1) == truth).mean() > 0.95


# what is trained on


def of(trick: Any, bench: Bench, found: np.ndarray, **poison: Any) -> tuple[Plan, Learned]:
    plan = bench.plan(recipe(trick, **SMALL))
    splits = dict(bench.data.splits)
    for name, labels in poison.items():
        split = splits[name]
        splits[name] = dataclasses.replace(split, labels=np.full(len(split), labels))  # type: ignore[type-var]
    changed = dataclasses.replace(bench.data, splits=splits)
    (name,) = trick.sources()
    return plan, learned(plan, changed, {trick.kind: {name: Oracle(found)}})  # type: ignore[dict-item]


@pytest.mark.parametrize("pool", ["test", "unlabeled"])
def test_a_pool_joins_without_its_labels(pool: str, bench: Bench) -> None:
    train, other = bench.data.splits["train"], bench.data.splits[pool]
    n = len(train) + len(other)
    found = rows(1, n, 4)
    trick = SelfTraining(teacher=TEACHER, pool=pool, threshold=0.8)  # type: ignore[arg-type]
    plan, known = of(trick, bench, found, **{pool: -77})
    sure = np.flatnonzero(found[len(train) :].astype(np.float32).max(axis=1) >= 0.8)
    assert 0 < len(sure) < len(other)
    assert (known.added, known.relabeled) == (len(sure), 0)
    assert len(known.split) == len(train) + len(sure)
    assert known.split.names == (*train.names, *(other.names[k] for k in sure))
    np.testing.assert_array_equal(known.split.labels[: len(train)], train.labels)
    np.testing.assert_array_equal(known.split.labels[len(train) :], found[len(train) :][sure].argmax(axis=1))
    positions = np.arange(len(known.split))
    targets = known.targets(positions)
    assert targets.dtype == torch.float32
    np.testing.assert_array_equal(targets[: len(train)], np.eye(4)[train.labels])
    np.testing.assert_allclose(targets[len(train) :], found[len(train) :][sure], rtol=1e-6)
    whole = next(iter(known.split.batches([Request(positions[len(train) :], None, 16)])))
    alone = next(iter(other.batches([Request(sure, None, 16)])))
    assert torch.equal(whole, alone)
    # The plan's epochs keep their length; every image is drawn sooner or later.
    assert plan.timeline.steps_per_epoch == len(train) // 8
    batches = TrainBatches(plan, known.split, seed=0)
    seen = {k for step in range(90) for k in batches.indices(step).tolist()}
    assert seen == set(range(len(known.split)))


def test_labels_are_blended_where_the_teacher_is_sure(bench: Bench) -> None:
    train = bench.data.splits["train"]
    found = rows(2, len(train), 4).astype(np.float32)
    trick = SelfTraining(teacher=TEACHER, relabel=True, threshold=0.9, share=0.25, hard=True)
    _, known = of(trick, bench, found)
    assert known.dense is not None
    hard, own = np.eye(4)[found.argmax(axis=1)], np.eye(4)[train.labels]
    wanted = np.where(found.max(axis=1, keepdims=True) >= 0.9, 0.75 * own + 0.25 * hard, own)
    np.testing.assert_allclose(known.dense, wanted, atol=1e-7)
    assert known.relabeled == (wanted != own).any(axis=1).sum() > 0
    assert known.added == 0


def test_a_trick_that_changes_nothing_says_so(bench: Bench) -> None:
    train = bench.data.splits["train"]
    flat = np.full((len(train), 4), 0.25)
    with pytest.raises(UsageError, match="no prediction that it trusts differs"):
        of(SelfTraining(teacher=TEACHER, relabel=True, threshold=0.5), bench, flat)
    with pytest.raises(UsageError, match="adds no image"):
        of(SelfTraining(teacher=TEACHER, relabel=True), bench, np.eye(4)[train.labels])


def test_only_splits_that_share_their_images_are_joined(bench: Bench) -> None:
    train, other = bench.data.splits["train"], data.load(data.spec("digits")).splits["test"]
    assert joined(train, None) is train
    with pytest.raises(AssertionError, match="share"):
        joined(train, other)


@pytest.mark.parametrize(
    ("trick", "said"),
    [
        (SelfTraining(relabel=True), "it needs a model to ask: teacher"),
        (LabelPropagation(pool="test"), "it needs a model to ask: features"),
        (LabelPropagation(features=TEACHER, relabel=True, neighbors=24), "24 neighbors, of 24 images"),
    ],
)
def test_what_cannot_act_is_refused(trick: Any, said: str, bench: Bench) -> None:
    with pytest.raises(PlanError, match=said):
        bench.plan(recipe(trick, **SMALL))


def test_a_run_learns_from_its_teacher(bench: Bench) -> None:
    """End to end: with the whole share, a student of a hard teacher never sees a label of its own."""
    trick = SelfTraining(teacher=TEACHER, relabel=True, pool="test", hard=True)
    plan = bench.plan(recipe(trick, **SMALL))
    assert (
        "self_training: transductive: images of the test split, without their labels, are trained on"
        in plan.notes
    )
    first = bench.train(recipe(trick, **SMALL))
    test = bench.data.splits["test"]
    before = test.labels.copy()
    try:
        test.labels[:] = (test.labels + 1) % 4
        again = bench.train(recipe(trick, **SMALL))
    finally:
        test.labels[:] = before
    other = bench.train(recipe(SelfTraining(teacher=TEACHER, relabel=True, hard=True), **SMALL))
    one, same, without = (tensors(run)["fc.weight"] for run in (first, again, other))
    assert torch.equal(one, same)
    assert not torch.equal(one, without)


# transductive use is named


def test_transductive_use_is_inherited(bench: Bench, tmp_path: Path) -> None:
    def settled(*tricks: Any) -> Plan:
        return settle(bench.plan(recipe(*tricks, **SMALL)), 7, tmp_path, "cpu")[0]

    def finished(name: str, flag: bool) -> str:
        (tmp_path / name).mkdir()
        result = {"status": "finished", "transductive": flag, "steps": 1, "cost": {}}
        write_json(tmp_path / name / "result.json", result)
        assert Run(tmp_path / name).result()
        return str(tmp_path / name)

    assert transductive(settled(SelfTraining(teacher=TEACHER, pool="test")))
    assert not transductive(settled(SelfTraining(teacher=TEACHER, pool="unlabeled")))
    assert not transductive(settled(SelfTraining(pool=None), StartFrom(source=TEACHER)))
    plan = settled(StartFrom(source=TEACHER))
    for name, flag in (("one", True), ("other", False)):
        trick = StartFrom(run=finished(name, flag))
        again = dataclasses.replace(plan, recipe=plan.recipe.with_tricks(trick))
        assert transductive(again) is flag


def test_reports_name_transductive_arms() -> None:
    from test_report import example
    from trickbag.report.content import ReportData
    from trickbag.report.html import render
    from trickbag.report.text import markdown
    from trickbag.report.wording import methods, verdict

    plain = example(factors=2, seeds=2)
    assert "ransductive" not in render(plain) + markdown(plain)
    arms = [
        dataclasses.replace(arm, runs=[dataclasses.replace(run, transductive=True) for run in arm.runs])
        if arm.name == "candidate"
        else arm
        for arm in plain.arms
    ]
    told = dataclasses.replace(plain, arms=arms)
    assert ReportData.from_json(told.to_json()) == told
    sentence = "Transductive: candidate (all) trained on the images of the test split, without their labels."
    assert any(remark.startswith(sentence) for remark in verdict(told).remarks)
    assert sentence in methods(told)
    assert sentence in markdown(told).replace("\\", "")
    assert "finished, transductive" in render(told)


# the unlabeled split


@pytest.mark.parametrize("source", ["digits", "shapes"])
def test_images_that_train_size_leaves_out_are_a_split_without_labels(source: str, shapes: Path) -> None:
    name = str(shapes) if source == "shapes" else source
    full = data.load(data.spec(name))
    assert set(full.splits) == set(full.facts.sizes) == {"train", "selection", "test"}
    spec = data.spec(name, train_size=40)
    before = data.facts(spec)
    part = data.load(spec)
    left = part.splits["unlabeled"]
    assert dict(part.facts.sizes) == dict(before.sizes) == dict(data.facts(spec).sizes)
    assert part.facts.sizes["unlabeled"] == len(left) == len(full.splits["train"]) - 40
    assert set(left.names) | set(part.splits["train"].names) == set(full.splits["train"].names)
    assert (left.labels == -1).all()
    assert part.facts.fingerprint == before.fingerprint
    assert f"unlabeled {len(left):,}" in data.describe(part)
    for split in ("selection", "test"):
        assert part.splits[split].names == full.splits[split].names
    with pytest.raises(PlanError, match="has no unlabeled images"):
        Bench(full, shapes).plan(recipe(SelfTraining(teacher=TEACHER, pool="unlabeled"), **SMALL))


def test_facts_that_were_kept_before_there_was_such_a_split_are_counted_anew(shapes: Path) -> None:
    from trickbag.data.cache import load_json, save_json
    from trickbag.data.loading import _memory

    spec = data.spec(str(shapes), train_size=30)
    wanted = data.load(spec).facts
    path = _memory(wanted.fingerprint)
    old = load_json(path)
    assert isinstance(old, dict)
    del old["sizes"]["unlabeled"]
    save_json(path, old)
    assert data.facts(spec).sizes["unlabeled"] == wanted.sizes["unlabeled"]
    assert data.load(spec).facts == wanted
    assert load_json(path)["sizes"] == dict(wanted.sizes)  # type: ignore[index]
