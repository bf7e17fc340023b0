"""Losses, averaged weights, stopping and predicting against torch, timm, NumPy and plain definitions."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trickbag.data.base import DataFacts
from trickbag.functional.averaging import start_average, update_average, warm_decay
from trickbag.functional.losses import smooth_targets, soft_cross_entropy
from trickbag.functional.predicting import average_predictions, predict_with_flip
from trickbag.functional.stopping import should_stop
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks import augmentation, averaging, color, erasing, inference, losses, mixing, stopping
from trickbag.tricks.averaging import EMA
from trickbag.tricks.base import Bag, Trick
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.losses import LabelSmoothing
from trickbag.tricks.stages import ScheduleTrick, Timeline
from trickbag.tricks.stopping import EarlyStopping

quick = settings(deadline=None, max_examples=30)
seeds = st.integers(0, 2**31)
timeline = Timeline(steps=20, steps_per_epoch=10)

MODULES = (augmentation, averaging, color, erasing, inference, losses, mixing, stopping)
TRICKS = sorted(
    {
        t
        for m in MODULES
        for t in vars(m).values()
        if isinstance(t, type) and issubclass(t, Trick) and "kind" in vars(t)
    },
    key=lambda t: t.kind,
)


@pytest.mark.parametrize("trick", TRICKS, ids=lambda t: t.kind)
def test_snippets_run(trick):
    exec(compile(trick.card.snippet, trick.kind, "exec"), {})
    assert trick.null() != trick.sample()


# ---------------------------------------------------------------- losses


@quick
@given(st.integers(1, 6), st.integers(2, 9), seeds, st.sampled_from([1.0, 30.0]))
def test_soft_cross_entropy_equals_float64_numpy(count, classes, seed, scale):
    rng = np.random.default_rng(seed)
    logits, targets = scale * rng.normal(size=(count, classes)), rng.dirichlet(np.ones(classes), count)
    shifted = logits - logits.max(1, keepdims=True)
    expected = -(targets * (shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))).sum(1)
    result = soft_cross_entropy(torch.tensor(logits), torch.tensor(targets))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-12)
    half = soft_cross_entropy(torch.tensor(logits).bfloat16(), torch.tensor(targets))
    assert half.dtype == torch.float32
    assert half.shape == (count,)


@quick
@given(st.integers(2, 9), st.floats(0, 0.99), seeds)
def test_label_smoothing_equals_torch_s(classes, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((5, classes), generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(classes, (5,), generator=generator)
    expected = F.cross_entropy(logits, labels, label_smoothing=epsilon, reduction="none")
    loss = LabelSmoothing(epsilon=epsilon).wrap(soft_cross_entropy)(
        logits, F.one_hot(labels, classes).double()
    )
    torch.testing.assert_close(loss, expected, atol=1e-10, rtol=1e-10)
    ours, theirs = (torch.autograd.grad(x.sum(), logits)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_label_smoothing_of_dense_targets_equals_torch_s():
    logits, targets = torch.randn(6, 5), torch.rand(6, 5).softmax(1)
    loss = LabelSmoothing(epsilon=0.2).wrap(soft_cross_entropy)(logits, targets)
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(smooth_targets(targets, 0.2).sum(1), torch.ones(6))


def test_label_smoothing_null_is_the_loss_itself():
    assert LabelSmoothing.null().wrap(soft_cross_entropy) is soft_cross_entropy


# ---------------------------------------------------------------- averaged weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)).train()


def trained(model: nn.Module, steps: int, seed: int = 0):
    """Train by SGD and yield after each step."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        images = torch.rand((4, 3, 6, 6), generator=generator)
        loss = (model(images) - 1).pow(2).mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.05 * parameter.grad
        yield step


@pytest.fixture
def model() -> nn.Module:
    net = network()
    net(torch.rand(4, 3, 6, 6))
    return net


def test_ema_equals_torch_s_averaged_model(model):
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(model)  # the first call copies
    trick = EMA(decay=0.9)
    average = trick.start(model)
    for step in trained(model, 6):
        trick.update(average, model, step, timeline)
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    assert average.keys() == expected.keys()
    for name, tensor in average.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, expected[name], atol=1e-7, rtol=1e-6)


def test_ema_equals_timm_s(model):
    from timm.utils import ModelEmaV3

    theirs = ModelEmaV3(model, decay=0.8)
    average = start_average(model)
    for _ in trained(model, 6):
        update_average(average, model, 0.8)
        theirs.update(model)
    assert not torch.equal(average["0.weight"], model[0].weight)
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(average[name], tensor, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    "trick", [EMA(decay=0.9), EMA(decay=0.7, every=3), EMA(decay=0.95, warmup=True)], ids=repr
)
def test_ema_follows_the_recursion_in_float64(model, trick):
    average = trick.start(model)
    expected = {name: tensor.double() for name, tensor in average.items()}
    updates = 0
    for step in trained(model, 8):
        trick.update(average, model, step, timeline)
        if (step + 1) % trick.every:
            continue
        decay = min(trick.decay, (1 + updates) / (10 + updates)) if trick.warmup else trick.decay
        updates += 1
        for name, tensor in model.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * tensor.double()
            expected[name] = mean if tensor.is_floating_point() else tensor.clone()
    assert updates == 8 // trick.every
    assert all(tensor.isfinite().all() for tensor in average.values())
    for name, tensor in average.items():
        torch.testing.assert_close(tensor.double(), expected[name].double(), atol=1e-6, rtol=1e-5)


def test_ema_copies_integer_buffers_and_averages_float_ones(model):
    average = start_average(model)
    start = {name: tensor.clone() for name, tensor in average.items()}
    for _ in trained(model, 3):
        pass
    update_average(average, model, 0.5)
    assert average["1.num_batches_tracked"] == model[1].num_batches_tracked == 4
    halfway = (start["1.running_mean"] + model[1].running_mean) / 2
    torch.testing.assert_close(average["1.running_mean"], halfway)
    assert not torch.equal(halfway, model[1].running_mean)


def test_ema_null_equals_the_raw_weights_to_the_bit(model):
    trick = EMA.null()
    average = trick.start(model)
    for step in trained(model, 3):
        trick.update(average, model, step, timeline)
        for name, tensor in model.state_dict().items():
            assert torch.equal(average[name], tensor)


def test_ema_never_touches_the_model_or_its_gradients(model):
    average = start_average(model)
    for _ in trained(model, 1):
        pass
    before = copy.deepcopy(model.state_dict())
    update_average(average, model, 0.3)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(tensor.requires_grad for tensor in average.values())
    storages = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not storages & {tensor.data_ptr() for tensor in average.values()}


def test_ema_goes_on_exactly_in_another_process(model):
    """A copied model and a reloaded dictionary go on alike: nothing is kept elsewhere."""
    trick = EMA(decay=0.9, every=2, warmup=True)
    average = trick.start(model)
    for step in trained(model, 4, seed=1):
        trick.update(average, model, step, timeline)
    other, reloaded = copy.deepcopy(model), {name: tensor.clone() for name, tensor in average.items()}
    for net, kept in ((model, average), (other, reloaded)):
        for step in trained(net, 5, seed=2):
            trick.update(kept, net, 4 + step, timeline)
    assert all(torch.equal(average[name], reloaded[name]) for name in average)


def test_ema_loads_into_the_model_and_leaves_temporary_buffers_out(model):
    model.register_buffer("scratch", torch.zeros(2), persistent=False)
    average = start_average(model)
    update_average(average, model, 0.5)
    assert average.keys() == model.state_dict().keys()
    model.load_state_dict(average, strict=True)


def test_ema_sees_tensors_that_replace_others(model):
    average = start_average(model)
    update_average(average, model, 0.5)
    model[1].running_mean = torch.full((4,), 3.0)
    model[3].weight = nn.Parameter(torch.full_like(model[3].weight, 2.0))
    update_average(average, model, 0)
    assert (average["1.running_mean"] == 3).all()
    assert (average["3.weight"] == 2).all()
    model[3] = nn.Linear(64, 5)
    restarted = start_average(model)
    update_average(restarted, model, 0)
    assert torch.equal(restarted["3.weight"], model[3].weight)


def test_ema_of_tied_and_parametrized_weights():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    nn.utils.parametrizations.weight_norm(net[2])
    average = start_average(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1
    update_average(average, net, 0)
    assert all(torch.equal(average[name], tensor) for name, tensor in net.state_dict().items())


def test_ema_of_a_model_whose_state_is_made_by_a_hook():
    net = nn.Linear(2, 2)

    def doubled(module, state, prefix, metadata):
        state[prefix + "twice"] = 2 * module.weight.detach()

    net.register_state_dict_post_hook(doubled)
    average = start_average(net)
    with torch.no_grad():
        net.weight += 1
    update_average(average, net, 0)
    assert torch.equal(average["twice"], 2 * net.weight)


def test_ema_does_not_keep_models_alive():
    net = nn.Linear(2, 2)
    update_average(start_average(net), net, 0.5)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_warmup_of_the_decay():
    assert warm_decay(0.999, 0) == 0.1
    assert warm_decay(0.999, 90) == 0.91
    assert warm_decay(0.999, 10**6) == 0.999


# ---------------------------------------------------------------- stopping


@quick
@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 6))
def test_early_stopping_counts_evaluations_since_the_first_best(history, patience):
    expected = any(n - 1 - history.index(max(history[:n])) >= patience for n in range(1, len(history) + 1))
    assert EarlyStopping(patience=patience).stop(history) is expected


def test_early_stopping_min_delta_measures_against_the_last_best():
    creeping = [0.5, 0.505, 0.51, 0.515, 0.52]
    assert not should_stop(creeping, 3)
    assert should_stop(creeping, 3, min_delta=0.05)
    assert not should_stop(creeping, 3, min_delta=0.012)


def test_early_stopping_does_not_take_nan_for_progress():
    assert should_stop([0.5, math.nan, math.nan], 2)
    assert should_stop([math.nan, math.nan], 2)
    assert not should_stop([math.nan, 0.1, 0.2], 2)


@quick
@given(st.lists(st.floats(0, 1), max_size=40))
def test_early_stopping_null_never_stops(history):
    assert EarlyStopping.null().stop(history) is False


class Decay(ScheduleTrick):
    kind = "some_decay"
    slot = "decay"


def test_early_stopping_notes_that_a_decay_would_be_cut_off():
    facts = DataFacts("x", ("a", "b"), 3, {"train": 64}, (32, 32), "f")

    def notes(trick, *others):
        bag = Bag((trick, *others))
        recipe = Recipe(model="m", epochs=1, batch_size=8, image_size=32, tricks=bag)
        return list(trick.notes(Context(recipe, facts)))

    (note,) = notes(EarlyStopping(), Decay())
    assert "some_decay" in note
    assert not notes(EarlyStopping())
    assert not notes(EarlyStopping.null(), Decay())


# ---------------------------------------------------------------- predicting


def classify(images):
    weights = torch.linspace(-3, 3, 4 * images[0].numel()).sin().view(-1, 4)
    return (images.flatten(1) @ weights).softmax(1)


def logits_of(images):
    weights = torch.linspace(-3, 3, 4 * images[0].numel()).sin().view(-1, 4)
    return images.flatten(1) @ weights


@quick
@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), seeds)
def test_flip_tta_averages_both_views(count, height, width, seed):
    images = torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    mirrored = torch.tensor(images.numpy()[..., ::-1].copy())
    mean = (classify(images) + classify(mirrored)) / 2
    torch.testing.assert_close(TTAFlip().wrap(classify)(images), mean)
    merged = ((logits_of(images) + logits_of(mirrored)) / 2).softmax(1)
    by_logits = TTAFlip(average="logits").wrap(classify)(images)
    torch.testing.assert_close(by_logits, merged, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_logits.sum(1), torch.ones(count))
    torch.testing.assert_close(predict_with_flip(classify, mirrored), mean)


def test_flip_tta_null_is_the_predictor_itself():
    assert TTAFlip.null().wrap(classify) is classify


def test_averaging_logits_survives_certain_predictions():
    certain = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    merged = average_predictions(certain, "logits")
    torch.testing.assert_close(merged, torch.tensor([[0.5, 0.5, 0.0]]))


def test_unknown_average_is_refused():
    with pytest.raises(ValueError, match="expected 'probabilities' or 'logits'"):
        average_predictions(torch.ones(2, 1, 1), "median")


@pytest.mark.parametrize(
    ("trick", "values"),
    [
        (LabelSmoothing, {"epsilon": 1}),
        (LabelSmoothing, {"epsilon": -0.1}),
        (EMA, {"decay": 1}),
        (EMA, {"every": 0}),
        (EarlyStopping, {"patience": 0}),
        (EarlyStopping, {"min_delta": -1}),
        (TTAFlip, {"average": "median"}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(trick, values):
    with pytest.raises(ValidationError):
        trick(**values)
