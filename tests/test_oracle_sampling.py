"""Repeated augmentation and balanced sampling against timm's sampler, torch's sampler and the formula."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from trickbag.data.base import DataFacts
from trickbag.engine.batches import TrainBatches
from trickbag.functional import sampling
from trickbag.rng import Stream
from trickbag.tricks import Bag
from trickbag.tricks.augmentation import AlternatingFlip, RandomResizedCrop
from trickbag.tricks.color import ColorJitter
from trickbag.tricks.sampling import BalancedSampling, RepeatedAugmentation
from trickbag.tricks.stages import CropTrick, ImageTrick, SamplerTrick, Timeline

quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
sizes = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)
powers = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def permutation(count: int, seed: int = 0) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


def labels_of(counts, seed: int = 0) -> np.ndarray:
    """Labels with so many images of each class, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def training(*tricks, labels: np.ndarray, batch: int = 8, seed: int = 5) -> TrainBatches:
    """The batches of a run, without a recipe around them."""
    bag, count = Bag(tricks), len(labels)
    per_epoch = count // batch
    plan = SimpleNamespace(
        samplers=bag.of(SamplerTrick),
        train_images=bag.of(ImageTrick),
        crop=next(iter(bag.of(CropTrick)), None),
        timeline=Timeline(3 * per_epoch, per_epoch, 0, batch),
        image_size=lambda step: 16,
        facts=SimpleNamespace(channels=3),
        recipe=SimpleNamespace(interpolation="bilinear"),
    )

    class Images:
        sizes = np.full((count, 2), 32)

        def __len__(self) -> int:
            return count

    split = Images()
    split.labels = labels
    return TrainBatches(plan, split, seed)


def epoch_of(batches: TrainBatches, epoch: int) -> np.ndarray:
    steps = batches.plan.timeline.steps_per_epoch
    return np.concatenate([batches.indices(epoch * steps + step) for step in range(steps)])


# Repeated augmentation


@pytest.mark.parametrize("repeats", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [10, 24, 100, 700])
def test_repeated_augmentation_equals_timm_s_sampler(count, repeats):
    from timm.data.distributed_sampler import RepeatAugSampler

    trick = RepeatedAugmentation(repeats=repeats)
    for epoch in range(3):
        ours = trick.epoch_order(permutation(count, epoch), np.zeros(count, np.int64), Stream(0), epoch)
        for rounding in (0, 256):  # 256, as torchvision and DeiT, drops the last images of an epoch
            theirs = RepeatAugSampler(
                range(count), num_replicas=1, rank=0, num_repeats=repeats, selected_round=rounding
            )
            theirs.set_epoch(epoch)
            assert ours[: len(theirs)].tolist() == [*theirs]
        assert len(ours) == count


@pytest.mark.parametrize("world", [2, 4])
def test_an_update_sees_the_images_that_timm_s_processes_see_together(world):
    from timm.data.distributed_sampler import RepeatAugSampler

    count, share = 96, 6
    ours = RepeatedAugmentation(repeats=3).epoch_order(permutation(count), np.zeros(count), Stream(0), 0)
    ranks = [
        [*RepeatAugSampler(range(count), num_replicas=world, rank=rank, num_repeats=3, selected_round=0)]
        for rank in range(world)
    ]
    for step in range(count // (share * world)):
        together = [k for rank in ranks for k in rank[step * share : (step + 1) * share]]
        batch = ours[step * share * world : (step + 1) * share * world]
        assert sorted(together) == sorted(batch.tolist())


@quick
@given(st.integers(1, 60), st.integers(1, 9), seeds)
def test_repeats_keep_the_length_and_show_the_first_images(count, repeats, seed):
    order = permutation(count, seed)
    shown = RepeatedAugmentation(repeats=repeats).epoch_order(order, order, Stream(seed), 0)
    assert shown.dtype == order.dtype
    assert len(shown) == count
    times = np.bincount(shown, minlength=count)
    assert (times > 0).sum() == -(-count // repeats)
    assert (times[shown[:-1]] == repeats).sum() >= count - 1 - repeats
    assert [*dict.fromkeys(shown.tolist())] == order[: -(-count // repeats)].tolist()
    if repeats == 1:
        assert (shown == order).all()


@pytest.mark.parametrize("tricks", [(), (RepeatedAugmentation(repeats=3),), (BalancedSampling(),)], ids=str)
def test_an_epoch_keeps_its_steps_and_others_get_other_images(tricks):
    labels = labels_of([30, 10, 5])
    batches = training(*tricks, labels=labels)
    epochs = [epoch_of(batches, epoch) for epoch in range(3)]
    assert all(len(epoch) == 40 for epoch in epochs)
    assert {*epochs[0].tolist()} != {*epochs[1].tolist()}
    again = training(*tricks, labels=labels)
    assert all((epoch_of(again, k) == epochs[k]).all() for k in (2, 0, 1))


def test_every_repeat_is_augmented_differently():
    batches = training(
        RepeatedAugmentation(repeats=4), ColorJitter(), RandomResizedCrop(), labels=labels_of([40, 24])
    )
    requests = batches.requests(0)
    for step in range(6):
        indices, boxes = batches.indices(step), next(requests).boxes
        assert (indices.reshape(2, 4) == indices[::4, None]).all()
        args = np.concatenate([part.args for part in batches.program(step).steps], axis=1)
        for k in range(0, 8, 4):
            assert len({tuple(row) for row in args[k : k + 4].tolist()}) == 4
            assert len({tuple(row) for row in boxes[k : k + 4].tolist()}) == 4


def test_what_depends_on_the_image_alone_is_shared_by_its_repeats():
    batches = training(RepeatedAugmentation(repeats=4), AlternatingFlip(), labels=labels_of([40, 24]))
    flips = np.concatenate([batches.program(step).steps[0].args[:, 0] for step in range(4)])
    assert (flips.reshape(-1, 4) == flips[::4, None]).all()


def test_the_notes_of_repeated_augmentation_count_images():
    context = SimpleNamespace(
        timeline=Timeline(30, 3, 0, 8), facts=DataFacts("x", ("a",), 3, {"train": 26}, (8, 8), "f")
    )
    (note,) = RepeatedAugmentation(repeats=3).notes(context)
    assert note == "an epoch shows 8 of the 26 training images, 3 times each"
    assert not [*RepeatedAugmentation.null().notes(context)]
    assert len([*RepeatedAugmentation(repeats=9).notes(context)]) == 2
    labels = labels_of([26])
    assert len({*epoch_of(training(RepeatedAugmentation(repeats=3), labels=labels), 0).tolist()}) == 8


# Balanced sampling


def shares_of(counts, power: float) -> np.ndarray:
    """Kang et al. 2020, section 3, with q = 1 - power; a class without images has none."""
    counts = np.asarray(counts, dtype=np.float64)
    weights = np.array([n ** (1 - power) if n else 0.0 for n in counts])
    return weights / weights.sum()


@quick
@given(sizes, powers, seeds)
def test_classes_get_their_shares_rounded_down_or_up(counts, power, seed):
    count, labels = sum(counts), labels_of(counts, seed)
    order = permutation(count, seed)
    shown = BalancedSampling(power=power).epoch_order(order, labels, Stream(seed), 0)
    assert len(shown) == count
    found = np.bincount(labels[shown], minlength=len(counts))
    assert (abs(found - count * shares_of(counts, power)) < 1 + 1e-9).all()
    if power == 0:
        assert (shown == order).all()


@quick
@given(sizes, powers, seeds)
def test_no_image_comes_again_before_all_of_its_class_have_come(counts, power, seed):
    labels = labels_of(counts, seed)
    order = permutation(len(labels), seed)
    shown = BalancedSampling(power=power).epoch_order(order, labels, Stream(seed), 0)
    times = np.bincount(shown, minlength=len(labels))
    for label in range(len(counts)):
        own = times[order[labels[order] == label]]  # those that come once more are the first in the order
        assert not len(own) or (own[:-1] >= own[1:]).all()
        assert not len(own) or own[0] - own[-1] <= 1


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_mean_frequencies_are_those_of_the_formula_and_of_torch_s_weighted_sampler(power):
    from torch.utils.data import WeightedRandomSampler

    counts = [50, 23, 7, 0, 1]
    labels = labels_of(counts)
    trick, stream = BalancedSampling(power=power), Stream(1, "balanced_sampling")
    epochs = 3000
    ours = np.zeros(len(labels))
    for epoch in range(epochs):
        shown = trick.epoch_order(permutation(len(labels), epoch), labels, stream, epoch)
        ours += np.bincount(shown, minlength=len(labels)) / epochs
    weights = np.asarray(counts, dtype=np.float64)[labels] ** -power
    expected = len(labels) * weights / weights.sum()  # of each image, with torch's sampler
    np.testing.assert_allclose(ours, expected, atol=0.06)
    per_class = np.bincount(labels, ours, minlength=5) / len(labels)
    np.testing.assert_allclose(per_class, shares_of(counts, power), atol=1e-3)
    draws = 200_000
    generator = torch.Generator().manual_seed(0)
    theirs = WeightedRandomSampler(weights.tolist(), draws, replacement=True, generator=generator)
    found = np.bincount(labels[[*theirs]], minlength=5) / draws
    np.testing.assert_allclose(per_class, found, atol=5e-3)


def test_which_classes_are_rounded_up_is_chance_without_bias():
    counts = torch.tensor([3, 3, 3, 1])
    quotas = [sampling.class_quotas(counts, 10, 1.0, (k + 0.5) / 1000) for k in range(1000)]
    mean = torch.stack(quotas).double().mean(0)
    torch.testing.assert_close(mean, torch.full((4,), 2.5, dtype=torch.float64))
    assert all(q.sum() == 10 and q.min() >= 2 and q.max() <= 3 for q in quotas)


def test_a_balanced_epoch_is_shuffled():
    labels = labels_of([400, 100, 20])
    shown = BalancedSampling().epoch_order(permutation(520), labels, Stream(0, "x"), 0)
    halves = [np.bincount(labels[half], minlength=3) for half in np.split(shown, 2)]
    assert all(abs(half - 520 / 6).max() < 30 for half in halves)
    other = BalancedSampling().epoch_order(permutation(520), labels, Stream(0, "x"), 1)
    assert (shown != other).any()


def test_balanced_sampling_and_repeated_augmentation_compose():
    labels = labels_of([1000, 120, 20])
    batches = training(BalancedSampling(), RepeatedAugmentation(repeats=3), labels=labels, batch=12)
    found = np.zeros(3)
    for epoch in range(3):
        shown = epoch_of(batches, epoch)
        assert (shown.reshape(-1, 3) == shown[::3, None]).all()
        found += np.bincount(labels[shown], minlength=3) / (3 * len(shown))
    np.testing.assert_allclose(found, 1 / 3, atol=0.07)


def test_null_samplers_leave_the_order_alone():
    labels = labels_of([30, 10, 5])
    plain = training(labels=labels)
    null = training(BalancedSampling.null(), RepeatedAugmentation.null(), labels=labels)
    assert all((plain.indices(step) == null.indices(step)).all() for step in range(15))


def test_the_notes_of_balanced_sampling_tell_how_often_images_come():
    def notes(counts, **settings):
        facts = DataFacts("x", ("cat", "dog", "emu"), 3, {"train": sum(counts)}, (8, 8), "f", counts=counts)
        return [*BalancedSampling(**settings).notes(SimpleNamespace(facts=facts))]

    (note,) = notes((90, 20, 10))
    assert "each of the 10 images of emu 4 times" in note
    assert "each of the 90 images of cat 0.44 times" in note
    assert "equal size" in notes((5, 5, 5))[0]
    assert not notes(())
    assert not notes((90, 20, 10), power=0)


@pytest.mark.parametrize(
    ("trick", "values"),
    [
        (RepeatedAugmentation, {"repeats": 0}),
        (RepeatedAugmentation, {"repeats": 1.5}),
        (BalancedSampling, {"power": -0.1}),
        (BalancedSampling, {"power": 1.1}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(trick, values):
    with pytest.raises(ValidationError):
        trick(**values)
