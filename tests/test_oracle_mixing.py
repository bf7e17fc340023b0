"""Mixup and CutMix against torchvision, timm, scipy and the pixels themselves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torch.nn import functional as F
from torchvision.transforms import v2

from trickbag.functional import losses, mixing
from trickbag.tricks.mixing import CutMix, Mixup

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
@given(seeds, st.floats(0, 0.9), st.sampled_from([Mixup(alpha=1), CutMix(per="image")]))
def test_smoothing_and_mixing_commute(seed, epsilon, trick):
    images, _, targets = examples((6, 3, 8, 8), seed)
    draws = trick.draw(images.shape, generator(seed))
    smooth_last = losses.smooth_targets(trick.mix(images, targets, draws)[1], epsilon)
    smooth_first = trick.mix(images, losses.smooth_targets(targets, epsilon), draws)[1]
    torch.testing.assert_close(smooth_first, smooth_last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("trick", [Mixup(), CutMix()], ids=repr)
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
