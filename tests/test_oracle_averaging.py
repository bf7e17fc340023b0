"""SWA against torch's AveragedModel and update_bn; the rescaled decay of EMA against torchvision's."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from trickbag.data.base import DataFacts
from trickbag.functional.averaging import rescaled_decay, start_average, update_average, update_mean
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks.averaging import EMA, SWA
from trickbag.tricks.stages import Timeline

TIMELINE = Timeline(steps=20, steps_per_epoch=4, batch_size=8)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))


def train(model, steps, seed=1):
    """Yields the number of each update, after it."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        loss = model(torch.randn(8, 3, 8, 8, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


@pytest.mark.parametrize("images", [0, 16])
def test_swa_equals_torchs_averaged_model_and_update_bn(images):
    model, trick = net(), SWA(after=0.5, every=0.5, images=images)
    average, reference = trick.start(model), AveragedModel(model, use_buffers=True)
    for step in train(model, 20):
        trick.update(average, model, step, TIMELINE)
        if step + 1 in (10, 12, 14, 16, 18, 20):
            reference.update_parameters(model)
    if images:
        batch = torch.randn(16, 3, 8, 8)
        model.eval()
        trick.finish({"swa": average}, model, iter((batch,)))
        update_bn((batch,), reference)
    expected = reference.module.state_dict()
    assert trick.sample_size == images
    for name in average:
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("after", "every", "when"),
    [
        (0.75, 1.0, [16, 20]),
        (0.5, 0.75, [11, 14, 17, 20]),
        (0.0, 2.0, [4, 12, 20]),
        (0.0, 0.01, list(range(1, 21))),
        (0.7, 100.0, [20]),
        (1.0, 0.25, [20]),
        (0.95, 0.25, [19, 20]),
    ],
)
def test_swa_collects_after_the_start_and_the_last_weights_always(after, every, when):
    assert list(SWA(after=after, every=every).collected(TIMELINE)) == when


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 60), st.floats(0, 1), st.floats(0.001, 30))
def test_swa_never_collects_too_early_or_nothing(steps, per_epoch, after, every):
    when = SWA(after=after, every=every).collected(Timeline(steps, per_epoch))
    assert when[-1] == steps
    assert when[0] >= max(1, after * steps - 1e-6)
    gap = max(1, round(every * per_epoch))
    assert when[0] - gap < max(1, after * steps)


def test_swa_equals_the_model_before_anything_is_collected_and_at_its_null_setting():
    model, null, trick = net(), SWA.null(), SWA(after=0.9, images=0)
    averages = {one: one.start(model) for one in (null, trick)}
    for step in train(model, 20):
        for one, average in averages.items():
            one.update(average, model, step, TIMELINE)
        if step < 17:
            same = all(torch.equal(averages[trick][n], v) for n, v in model.state_dict().items())
            assert same
    assert all(torch.equal(averages[null][name], value) for name, value in model.state_dict().items())
    assert null.sample_size == 0


def test_swa_depends_on_nothing_but_its_arguments():
    model, trick = net(), SWA(after=0.2, every=0.25, images=0)
    average, again = trick.start(model), None
    for step in train(model, 20):
        trick.update(average, model, step, TIMELINE)
        if step == 9:
            again = {name: value.clone() for name, value in average.items()}
        elif again is not None:
            SWA(**trick.settings()).update(again, copy.deepcopy(model), step, TIMELINE)
    assert all(torch.equal(average[name], again[name]) for name in average)


def test_swa_says_what_it_cannot_do():
    facts = DataFacts("x", ("a", "b"), 3, {"train": 80}, (32, 32), "f")
    recipe = Recipe(model={"name": "mini_resnet"}, epochs=2, batch_size=8, image_size=32)
    context = Context(recipe, facts)
    assert list(SWA().notes(context)) != []
    assert list(SWA(every=0.1).notes(context)) == []
    assert list(SWA.null().notes(context)) == []
    assert list(SWA().check(context)) == []
    (problem,) = SWA(images=1).check(context)
    assert "swa" in problem.where


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_mean_of_weights_is_the_mean(values):
    model = nn.Linear(1, 1, bias=False).double()
    average = start_average(model)
    for count, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        update_mean(average, model, count)
    torch.testing.assert_close(
        average["weight"].item(),
        torch.tensor(values, dtype=torch.float64).mean().item(),
        rtol=1e-9,
        atol=1e-9,
    )


def torchvisions_decay(decay, world_size, batch_size, every, epochs):
    """references/classification/train.py of torchvision 0.15."""
    adjust = world_size * batch_size * every / epochs
    alpha = 1.0 - decay
    alpha = min(1.0, alpha * adjust)
    return 1.0 - alpha


def test_rescaled_ema_has_torchvisions_decay():
    """EMA of the recipe of ResNet-50: 600 epochs, 8 x 128 images, every 32 steps."""
    trick = EMA(decay=0.99998, every=32, rescale=True)
    assert trick.decay_at_end(Timeline(1251 * 600, 1251, 0, 1024)) == torchvisions_decay(
        0.99998, 8, 128, 32, 600
    )
    assert abs(trick.decay_at_end(Timeline(1251 * 600, 1251, 0, 1024)) - 0.9989) < 1e-4
    assert trick.decay_at_end(Timeline(6, 3, 0, 4096)) == torchvisions_decay(0.99998, 1, 4096, 32, 2)
    assert rescaled_decay(0.5, 100, 1, 1) == 0  # never below


def test_rescaled_ema_equals_torchs_averaged_model():
    model, trick = net(), EMA(decay=0.998, every=2, rescale=True)
    decay = torchvisions_decay(0.998, 1, 8, 2, 5)
    average = trick.start(model)
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    reference.n_averaged.fill_(1)  # trickbag's average starts from the initial weights
    for step in train(model, 20):
        trick.update(average, model, step, TIMELINE)
        if step % 2:
            reference.update_parameters(model)
    expected = reference.module.state_dict()
    for name in average:
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-7)


def test_ema_without_rescaling_is_what_it_was():
    model, trick = net(), EMA(decay=0.9)
    average, plain = trick.start(model), start_average(model)
    for step in train(model, 4):
        trick.update(average, model, step, TIMELINE)
        update_average(plain, model, 0.9)
    assert trick.decay_at_end(TIMELINE) == 0.9
    assert all(torch.equal(average[name], plain[name]) for name in average)
