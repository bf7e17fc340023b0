"""Mixup, CutMix, mosaic and their switch against torchvision, timm, scipy and the pixels themselves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import v2

from trickbag.engine.batches import TrainBatches
from trickbag.functional import losses, mixing
from trickbag.tricks import Bag
from trickbag.tricks.mix_control import MixOff, MixSwitch
from trickbag.tricks.mixing import CutMix, Mixup, Mosaic
from trickbag.tricks.stages import MixControlTrick, MixTrick, Timeline

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**31)
shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))
CLASSES = 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(shape, seed=0):
    images = torch.rand(shape, generator=generator(seed))
    labels = torch.randint(CLASSES, (shape[0],), generator=generator(seed + 1))
    return images, labels, F.one_hot(labels, CLASSES).float()


def fixed(value: float):
    return SimpleNamespace(sample=lambda size: torch.tensor([value]))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.85, 1.0])
def test_mixup_equals_torchvision_s(weight):
    images, labels, targets = examples((6, 3, 5, 4))
    theirs = v2.MixUp(num_classes=CLASSES)
    theirs._dist = fixed(weight)
    ours = mixing.mixup(images, targets, torch.full((6,), weight), "roll")
    for mine, other in zip(ours, theirs(images, labels), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_equals_timm_s_with_smoothing(smoothing):
    from timm.data.mixup import Mixup as TimmMixup

    images, labels, targets = examples((6, 3, 5, 4))
    theirs = TimmMixup(mixup_alpha=0.4, label_smoothing=smoothing, num_classes=CLASSES)
    theirs._params_per_batch = lambda: (0.37, False)
    expected = theirs(images.clone(), labels)
    mixed, soft = mixing.mixup(images, targets, torch.full((6,), 0.37), "reverse")
    torch.testing.assert_close(mixed, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(losses.smooth_targets(soft, smoothing), expected[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_cutmix_equals_torchvision_s(seed):
    height, width = 9, 12
    images, labels, targets = examples((6, 3, height, width), seed)
    weight = torch.rand((), generator=generator(seed)).item()
    theirs = v2.CutMix(num_classes=CLASSES)
    theirs._dist = fixed(weight)
    torch.manual_seed(seed)
    expected = theirs(images, labels)
    torch.manual_seed(seed)
    column, row = torch.randint(width, (1,)), torch.randint(height, (1,))
    boxes = mixing.cutmix_boxes(torch.tensor([weight]), torch.stack((row, column), 1), height, width)
    ours = mixing.cutmix(images, targets, boxes.expand(6, 4), "roll")
    assert torch.equal(ours[0], expected[0])
    torch.testing.assert_close(ours[1], expected[1], atol=1e-6, rtol=0)


@quick
@given(shapes, seeds, st.sampled_from(["reverse", "roll"]), st.sampled_from(["batch", "image"]))
def test_cutmix_label_weight_is_exactly_the_share_of_pixels(shape, seed, partner, per):
    count, _, height, width = shape
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(shape).contiguous()
    targets = torch.eye(count)
    trick = CutMix(partner=partner, per=per)
    mixed, labels = trick.mix(images, targets, trick.draw(images.shape, generator(seed)))
    for image, label in zip(mixed, labels, strict=True):
        for owner in range(count):
            pixels = (image[0] == owner + 1).sum()
            assert label[owner] == pixels / (height * width)


@quick
@given(st.integers(2, 6), seeds, st.sampled_from(["reverse", "roll"]), st.sampled_from(["batch", "image"]))
def test_mixup_then_cutmix_keeps_targets_true_to_the_pixels(count, seed, partner, per):
    """Images whose channels are their classes: the mean of channel k must stay the target of class k."""
    targets = F.one_hot(torch.randint(CLASSES, (count,), generator=generator(seed)), CLASSES).float()
    images = targets[:, :, None, None].expand(-1, -1, 8, 10).contiguous()
    labels = targets
    for trick in (Mixup(alpha=1, partner=partner, per=per), CutMix(partner=partner, per=per)):
        images, labels = trick.mix(images, labels, trick.draw(images.shape, generator(seed + trick.rank)))
    torch.testing.assert_close(images.mean((2, 3)), labels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.005, 0.2, 0.8, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha):
    weights = mixing.beta_weights(alpha, 4000, generator()).numpy()
    assert ((weights >= 0) & (weights <= 1)).all()
    if alpha < 0.1:  # nearly all mass within rounding of 0 and 1
        assert abs((weights > 0.5).mean() - 0.5) < 0.04
        return
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_boxes_before_clipping_have_the_papers_area():
    weights = torch.linspace(0, 1, 50, dtype=torch.float64)
    boxes = mixing.cutmix_boxes(weights, torch.full((50, 2), 500), 1000, 1000)
    share = (boxes[:, 2] * boxes[:, 3]).double() / 1e6
    torch.testing.assert_close(share, 1 - weights, atol=5e-3, rtol=0)


def test_cutmix_boxes_are_centered_anywhere_in_the_image():
    trick = CutMix(per="image", alpha=1)
    boxes = trick.draw(torch.Size((6000, 3, 20, 30)), generator())["boxes"]
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([20, 30])).all()
    inner = boxes[(boxes[:, 2] == 4) & (boxes[:, 1] > 0)]
    rows = torch.bincount(inner[:, 0], minlength=17)[1:16].numpy()
    assert stats.chisquare(rows).pvalue > 1e-3


@pytest.mark.parametrize("trick", [Mixup(p=0.4, per="image"), CutMix(p=0.4, per="image", alpha=4)], ids=repr)
def test_p_is_the_share_of_images_that_mix(trick):
    draws = trick.draw(torch.Size((8000, 3, 16, 16)), generator())
    acts = draws["weights"] < 1 if "weights" in draws else draws["boxes"][:, 2] > 0
    assert abs(acts.double().mean() - 0.4) < 0.025


@pytest.mark.parametrize("trick", [Mixup, CutMix])
def test_one_draw_a_batch_or_one_an_image(trick):
    shape = torch.Size((16, 3, 16, 16))
    for per, distinct in (("batch", False), ("image", True)):
        draws = [trick(per=per, alpha=1).draw(shape, generator(seed)) for seed in range(3)]
        for (tensor,) in (draw.values() for draw in draws):
            assert len(tensor) == 16
            assert (len(tensor.unique(dim=0)) > 1) is distinct


@quick
@given(shapes, seeds, st.sampled_from([Mixup, CutMix]), st.sampled_from(["alpha", "p"]))
def test_null_keeps_images_and_targets_to_the_bit(shape, seed, trick, knob):
    images, _, targets = examples(shape, seed)
    images.view(-1)[0] = -0.0
    images.view(-1)[-1] = float("inf")
    null = trick.null() if knob == "alpha" else trick(p=0)
    mixed, labels = null.mix(images, targets, null.draw(images.shape, generator(seed)))
    assert torch.equal(mixed.view(torch.int32), images.view(torch.int32))
    assert torch.equal(labels.view(torch.int32), targets.view(torch.int32))


@quick
@given(
    shapes,
    seeds,
    st.sampled_from([Mixup, CutMix]),
    st.sampled_from(["batch", "image"]),
    st.sampled_from(["reverse", "roll"]),
)
def test_mixing_keeps_shapes_ranges_inputs_and_total_mass(shape, seed, kind, per, partner):
    images, _, targets = examples(shape, seed)
    before = images.clone(), targets.clone()
    trick = kind(alpha=1, per=per, partner=partner)
    draws = trick.draw(images.shape, generator(seed))
    mixed, labels = trick.mix(images, targets, draws)
    assert mixed.shape == images.shape
    assert mixed.dtype == images.dtype
    assert labels.shape == targets.shape
    assert labels.dtype == targets.dtype
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    assert mixed.min() >= images.min() - 1e-6
    assert mixed.max() <= images.max() + 1e-6
    torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)), atol=1e-6, rtol=0)
    part = slice(0, (len(images) + 1) // 2)  # what one of two processes sees
    sliced, soft = trick.mix(images[part], targets[part], {k: v[part] for k, v in draws.items()})
    assert sliced.shape == images[part].shape
    torch.testing.assert_close(soft.sum(1), torch.ones(len(soft)), atol=1e-6, rtol=0)


@quick
@given(seeds, st.floats(0, 0.9), st.sampled_from([Mixup(alpha=1), CutMix(per="image"), Mosaic()]))
def test_smoothing_and_mixing_commute(seed, epsilon, trick):
    images, _, targets = examples((6, 3, 8, 8), seed)
    draws = trick.draw(images.shape, generator(seed))
    smooth_last = losses.smooth_targets(trick.mix(images, targets, draws)[1], epsilon)
    smooth_first = trick.mix(images, losses.smooth_targets(targets, epsilon), draws)[1]
    torch.testing.assert_close(smooth_first, smooth_last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("trick", [Mixup(), CutMix(), Mosaic()], ids=repr)
def test_draws_come_from_their_generator_alone(trick):
    shape = torch.Size((4, 3, 8, 8))
    state = torch.random.get_rng_state()
    first, second = (trick.draw(shape, generator(5)) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unknown_partner_is_refused():
    with pytest.raises(ValueError, match="expected 'reverse' or 'roll'"):
        mixing.partner(torch.zeros(2), "shuffle")


@pytest.mark.parametrize(
    "values", [{"alpha": -1}, {"p": 2}, {"per": "pixel"}, {"partner": "shuffle"}], ids=str
)
@pytest.mark.parametrize("trick", [Mixup, CutMix])
def test_impossible_settings_are_refused(trick, values):
    with pytest.raises(ValidationError):
        trick(**values)


# Mosaic


def mosaic_in_numpy(images, targets, centers):
    """Pixel by pixel, as darknet's classifier does, with partners a quarter, half, three quarters away."""
    images, targets = images.double().numpy(), targets.double().numpy()
    count, _, height, width = images.shape
    mixed, labels = np.empty_like(images), np.zeros_like(targets)
    for i, (row, column) in enumerate(centers.tolist()):
        for y in range(height):
            for x in range(width):
                quadrant = 2 * (y >= row) + (x >= column)
                source = (i + count * quadrant // 4) % count
                mixed[i, :, y, x] = images[source, :, y, x]
                labels[i] += targets[source] / (height * width)
    return mixed, labels


@quick
@given(shapes, seeds)
def test_mosaic_equals_a_loop_over_pixels(shape, seed):
    images, _, targets = examples(shape, seed)
    size = torch.tensor(shape[-2:])
    centers = (torch.rand((shape[0], 2), generator=generator(seed)) * (size + 1)).floor().long()
    mixed, labels = mixing.mosaic(images, targets, centers)
    expected = mosaic_in_numpy(images, targets, centers)
    assert torch.equal(mixed.double(), torch.from_numpy(expected[0]))
    torch.testing.assert_close(labels.double(), torch.from_numpy(expected[1]), atol=1e-6, rtol=0)


@quick
@given(shapes, seeds, st.sampled_from([(0.25, 0.75), (0.5, 0.5), (0.01, 1.0)]))
def test_mosaic_weights_targets_by_the_pixels_of_each_image(shape, seed, center):
    count = shape[0]
    images = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(shape).contiguous()
    trick = Mosaic(p=0.7, center=center)
    mixed, labels = trick.mix(images, torch.eye(count), trick.draw(images.shape, generator(seed)))
    for image, label in zip(mixed, labels, strict=True):
        share = torch.stack([(image[0] == k + 1).float().mean() for k in range(count)])
        torch.testing.assert_close(label, share, atol=1e-6, rtol=0)


def test_mosaic_shows_four_images_around_a_center_in_its_range():
    size, low, high = 200, 0.25, 0.75
    images = torch.arange(1.0, 9).view(-1, 1, 1, 1).expand(8, 1, size, size)
    centers = torch.cat([Mosaic(p=1).draw(images.shape, generator(seed))["centers"] for seed in range(400)])
    assert centers.min() == low * size
    assert centers.max() == high * size
    assert stats.kstest(centers.flatten() / size, stats.uniform(low, high - low).cdf).pvalue > 1e-3
    mixed, labels = mixing.mosaic(images, torch.eye(8), torch.full((8, 2), size // 2))
    assert all(len(image.unique()) == 4 for image in mixed)
    assert torch.equal(labels.sort(1).values[:, 4:], torch.full((8, 4), 0.25))


def test_mosaic_acts_on_a_share_p_of_images():
    shape = torch.Size((8000, 3, 16, 12))
    draws = Mosaic(p=0.3).draw(shape, generator())
    acts = (draws["centers"] < torch.tensor(shape[-2:])).any(1)
    assert abs(acts.double().mean() - 0.3) < 0.025
    more = Mosaic(p=0.6).draw(shape, generator())
    assert torch.equal(more["centers"][acts], draws["centers"][acts])


@quick
@given(shapes, seeds)
def test_mosaic_s_null_keeps_images_and_targets_to_the_bit(shape, seed):
    images, _, targets = examples(shape, seed)
    images.view(-1)[0], images.view(-1)[-1] = -0.0, float("inf")
    targets[-1, 0] = -0.0
    null = Mosaic.null()
    mixed, labels = null.mix(images, targets, null.draw(images.shape, generator(seed)))
    assert torch.equal(mixed.view(torch.int32), images.view(torch.int32))
    assert torch.equal(labels.view(torch.int32), targets.view(torch.int32))


# Which mix acts


def batches(*tricks, batch=8, seed=3, steps=600, **where):
    """What the engine mixes, without a recipe around it."""
    bag = Bag(tricks)
    timeline = Timeline(steps, max(1, steps // 10), 0, batch)
    plan = SimpleNamespace(mix=bag.of(MixTrick), mix_controls=bag.of(MixControlTrick), timeline=timeline)
    return TrainBatches(plan, None, seed, **where)


MIXES = (Mixup(alpha=0.8), CutMix(alpha=1.0))


def test_a_switch_chooses_by_its_shares():
    mixes = (*MIXES, Mosaic())
    for shares in ({}, {"mixup": 3, "cutmix": 1, "mosaic": 2}, {"cutmix": 0}, {"mixup": 0.5, "mosaic": 0.25}):
        expected = np.array([shares.get(mix.kind, 1) for mix in mixes], dtype=float)
        switch = MixSwitch(shares=shares, per="image")
        found = switch.choose(mixes, 20_000, generator()).bincount(minlength=3).numpy()
        acts = expected > 0
        assert (found[~acts] == 0).all()
        assert stats.chisquare(found[acts], 20_000 * expected[acts] / expected.sum()).pvalue > 1e-3
        switch = MixSwitch(shares=shares)
        each = torch.stack([switch.choose(mixes, 5, generator(seed)) for seed in range(3000)])
        assert (each == each[:, :1]).all()
        found = each[:, 0].bincount(minlength=3).numpy()
        assert stats.chisquare(found[acts], 3000 * expected[acts] / expected.sum()).pvalue > 1e-3
    assert MixSwitch(per="off").choose(mixes, 5, generator()) is None
    with pytest.raises(ValueError, match="above 0"):
        mixing.pick([0, 0], 3)


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("inner", ["batch", "image"])
def test_one_mix_acts_on_the_batch_as_it_was(per, inner):
    mixes = Mixup(alpha=0.8, per=inner), CutMix(per=inner), Mosaic(p=1)
    images, _, targets = examples((8, 3, 12, 10))
    pure = [batches(mix) for mix in mixes]
    switched = batches(*mixes, MixSwitch(per=per))
    seen = set()
    for step in range(12):
        alone = [mixer._mix(images, targets, step) for mixer in pure]
        mixed, labels = switched._mix(images, targets, step)
        chosen = []
        for k in range(8):
            equal = [torch.equal(mixed[k], x[k]) and torch.equal(labels[k], y[k]) for x, y in alone]
            assert any(equal)
            chosen.append(equal.index(True))
        assert per == "image" or len(set(chosen)) == 1
        seen |= set(chosen)
    assert seen == {0, 1, 2}


def test_the_switch_leaves_the_draws_of_the_mixes_alone():
    shape = torch.Size((8, 3, 12, 10))
    runs = [batches(*MIXES), batches(*MIXES, MixSwitch(per="image")), batches(*MIXES, MixOff(epochs=1))]
    for mix in MIXES:
        for step in range(3):
            first, *others = (run._draws(mix, shape, step, torch.device("cpu")) for run in runs)
            assert all(torch.equal(first[name], other[name]) for other in others for name in first)


def test_a_switch_that_is_off_lets_all_act():
    images, _, targets = examples((8, 3, 12, 10))
    for step in range(4):
        plain, null = (
            batches(*MIXES, *more)._mix(images, targets, step) for more in ((), (MixSwitch.null(),))
        )
        assert all(map(torch.equal, plain, null))


def test_processes_agree_on_what_acts():
    images, _, targets = examples((8, 3, 12, 10))
    tricks = *MIXES, MixSwitch()
    whole = batches(*tricks)
    for step in range(6):
        choice = whole.plan.mix_controls[0].choose(MIXES, 8, whole.stream.child("mix_switch").torch(step))
        parts = []
        for rank in range(2):
            share = slice(4 * rank, 4 * rank + 4)
            mixer = batches(*tricks, rank=rank, world=2)
            parts.append(mixer._mix(images[share], targets[share], step))
            only = batches(MIXES[choice[0]], rank=rank, world=2)._mix(images[share], targets[share], step)
            assert all(map(torch.equal, parts[-1], only))


def test_a_switch_a_batch_equals_timm_s_mixup(monkeypatch):
    from timm.data import mixup as theirs

    images, labels, targets = examples((8, 3, 12, 10))
    mixer = batches(*MIXES, MixSwitch(shares={"mixup": 0.5, "cutmix": 0.5}))
    reference = theirs.Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0, num_classes=CLASSES
    )
    acted = set()
    for step in range(10):
        choice = mixer.plan.mix_controls[0].choose(MIXES, 8, mixer.stream.child("mix_switch").torch(step))
        weight, boxes = (drawn(mixer, mix, images, step) for mix in MIXES)
        monkeypatch.setattr(theirs, "rand_bbox", lambda *a, box=boxes[0], **k: corners(box))
        cutting = bool(choice[0])
        lam = 0.5 if cutting else weight[0].item()
        reference._params_per_batch = lambda lam=lam, cut=cutting: (lam, cut)
        expected = reference(images.clone(), labels)
        for mine, other in zip(mixer._mix(images, targets, step), expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
        acted.add(cutting)
    assert acted == {True, False}


def test_a_switch_an_image_equals_timm_s_mixup_by_element(monkeypatch):
    from timm.data import mixup as theirs

    images, labels, targets = examples((8, 3, 12, 10))
    mixes = Mixup(alpha=0.8, per="image"), CutMix(per="image")
    mixer = batches(*mixes, MixSwitch(per="image"))
    reference = theirs.Mixup(
        cutmix_alpha=1.0, mode="elem", switch_prob=0.5, label_smoothing=0, num_classes=CLASSES
    )
    for step in range(6):
        choice = mixer.plan.mix_controls[0].choose(mixes, 8, mixer.stream.child("mix_switch").torch(step))
        weights, boxes = (drawn(mixer, mix, images, step) for mix in mixes)
        cutting = choice.bool().numpy()
        pasted = iter(boxes[choice.bool()])
        monkeypatch.setattr(theirs, "rand_bbox", lambda *a, pasted=pasted, **k: corners(next(pasted)))
        lam = np.where(cutting, 0.5, weights.numpy()).astype(np.float32)
        reference._params_per_elem = lambda count, lam=lam, cut=cutting: (lam, cut)
        expected = reference(images.clone(), labels)
        for mine, other in zip(mixer._mix(images, targets, step), expected, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


def drawn(mixer, mix, images, step):
    (tensor,) = mixer._draws(mix, images.shape, step, torch.device("cpu")).values()
    return tensor


def corners(box):
    top, left, height, width = box.tolist()
    return top, top + height, left, left + width


@pytest.mark.parametrize(
    ("tricks", "said"),
    [
        ((MixSwitch(shares={"mixup": 1, "cutmx": 1}), *MIXES), "shares name cutmx"),
        ((MixSwitch(shares={"mixup": 0, "cutmix": 0}), *MIXES), "all shares are 0"),
    ],
    ids=["stranger", "zeros"],
)
def test_what_cannot_act_is_refused(tricks, said):
    bag = Bag(tricks)
    context = SimpleNamespace(recipe=SimpleNamespace(tricks=bag), timeline=Timeline(100, 10))
    (problem,) = (p for trick in tricks for p in trick.check(context))
    assert said in problem.what
    assert problem.fix


@pytest.mark.parametrize(
    ("tricks", "said"),
    [
        ((MixSwitch(),), "has none"),
        ((MixSwitch(shares={"mixup": 1, "cutmix": 2}), Mixup()), "has only mixup"),
        ((MixOff(),), "mixes nothing"),
    ],
    ids=["no mix", "one mix", "off without a mix"],
)
def test_a_control_without_mixes_says_so(tricks, said):
    """An arm of a study may lack them: that is no error."""
    recipe = SimpleNamespace(tricks=Bag(tricks), epochs=10)
    context = SimpleNamespace(recipe=recipe, timeline=Timeline(100, 10))
    assert not list(tricks[0].check(context))
    (note,) = tricks[0].notes(context)
    assert said in note


def test_what_acts_and_what_is_absent_is_not_refused():
    for tricks in (
        (MixSwitch(), *MIXES),
        (MixSwitch(shares={"mosaic": 2, "cutmix": 1}), Mosaic(), CutMix()),
        (MixSwitch.null(),),
        (MixOff.null(),),
        (MixOff(epochs=1), CutMix()),
    ):
        recipe = SimpleNamespace(tricks=Bag(tricks), epochs=10)
        context = SimpleNamespace(recipe=recipe, timeline=Timeline(100, 10))
        assert not [*tricks[0].check(context), *tricks[0].notes(context)]
    context = SimpleNamespace(recipe=SimpleNamespace(tricks=Bag(MIXES)))
    (note,) = MixSwitch(shares={"mixup": 0, "cutmix": 1}).notes(context)
    assert note == "mixup never acts: the share is 0"
    (note,) = MixSwitch(shares={"cutmix": 3}).notes(context)
    assert "mixup 25%, cutmix 75%" in note


def test_switches_with_equal_shares_are_equal_and_hash_alike():
    one, other = (MixSwitch(shares=dict(pairs)) for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert one == other
    assert hash(Bag([one])) == hash(Bag([other]))
    for shares in ({"mixup": -1}, {"mixup": float("inf")}, {"mixup": float("nan")}):
        with pytest.raises(ValidationError):
            MixSwitch(shares=shares)


# Until when


@pytest.mark.parametrize(("epochs", "last"), [(0, 100), (1, 90), (1.25, 88), (0.04, 100), (10, 0), (50, 0)])
def test_mixing_ends_so_many_epochs_before_the_end(epochs, last):
    timeline = Timeline(100, 10)
    trick = MixOff(epochs=epochs)
    acts = [len(trick.active(MIXES, step, timeline)) == 2 for step in range(100)]
    assert acts == [step < last for step in range(100)]
    context = SimpleNamespace(recipe=SimpleNamespace(tricks=Bag(MIXES), epochs=10), timeline=timeline)
    assert any(trick.notes(context)) is (epochs != 0 and last in (0, 100))


def test_images_of_the_last_epochs_are_not_mixed():
    """timm's --mixup-off-epoch 8 of 10 is MixOff(epochs=2)."""
    images, _, targets = examples((8, 3, 12, 10))
    mixer = batches(*MIXES, MixSwitch(), MixOff(epochs=2), steps=100)
    for step in (0, 79, 80, 99):
        mixed, labels = mixer._mix(images, targets, step)
        same = mixed is images and labels is targets
        assert same is (step // 10 >= 8)
        if not same:
            expected = batches(*MIXES, MixSwitch(), steps=100)._mix(images, targets, step)
            assert all(map(torch.equal, (mixed, labels), expected))
