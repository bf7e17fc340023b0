"""Schedules, at every step, against torch's and timm's schedulers and against formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from trickbag.data.base import DataFacts
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks.optimization import SGD
from trickbag.tricks.schedules import CosineDecay, LinearLRScaling, StepDecay, Warmup
from trickbag.tricks.stages import Timeline


def optimizer(lr=1.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def curve(scheduler, opt, steps):
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


def timeline(steps, per_epoch, *tricks, batch_size=1):
    bare = Timeline(steps, per_epoch, 0, batch_size)
    return Timeline(steps, per_epoch, sum(t.warmup_steps(bare) for t in tricks), batch_size)


def context(*tricks, epochs=3.0, batch_size=32, count=320):
    facts = DataFacts("x", ("a", "b"), 3, {"train": count}, (32, 32), "f")
    return Context(
        Recipe(model="resnet18", epochs=epochs, batch_size=batch_size, image_size=32, tricks=tricks), facts
    )


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(1, 60), st.floats(0, 1), st.floats(0, 0.9))
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_warmup_and_cosine_equal_torchs_linear_and_cosine_annealing(warmup, rest, final, start):
    tricks = Warmup(epochs=warmup, start=start), CosineDecay(final=final)
    line = timeline(warmup + rest, 1, *tricks)
    opt = optimizer()
    first = start + (1 - start) / warmup  # torch counts from 0, He et al. from 1
    ramp = LinearLR(opt, start_factor=first, end_factor=1.0, total_iters=warmup - 1)
    decay = CosineAnnealingLR(opt, T_max=rest, eta_min=final)
    expected = curve(SequentialLR(opt, [ramp, decay], [warmup]), opt, line.steps)
    ours = [math.prod(t.factor(step, line) for t in tricks) for step in range(line.steps)]
    assert ours == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.floats(0, 1))
def test_cosine_alone_equals_torchs(steps, final):
    opt = optimizer()
    expected = curve(CosineAnnealingLR(opt, T_max=steps, eta_min=final), opt, steps)
    line = Timeline(steps, 1)
    ours = [CosineDecay(final=final).factor(s, line) for s in range(steps)]
    assert ours == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(2, 60), st.floats(0, 1), st.floats(0, 0.9), st.booleans())
def test_both_cosines_equal_timms(warmup, rest, final, start, underneath):
    tricks = Warmup(epochs=warmup, start=start), CosineDecay(final=final, underneath=underneath)
    steps = warmup + rest
    line = timeline(steps, 1, *tricks)
    theirs = CosineLRScheduler(
        optimizer(),
        t_initial=steps if underneath else rest,
        lr_min=final,
        warmup_t=warmup,
        warmup_lr_init=start,
        warmup_prefix=not underneath,
        t_in_epochs=False,
    )
    for step in range(steps):
        ours = math.prod(t.factor(step, line) for t in tricks)
        if step >= warmup:
            assert ours == pytest.approx(theirs._get_lr(step)[0], abs=1e-9)
        elif step + 1 < warmup:  # timm's warmup lags one update behind
            assert ours == pytest.approx(theirs._get_lr(step + 1)[0], abs=1e-9)


def test_hidden_cosine_drops_when_warmup_ends():
    tricks = Warmup(epochs=5), CosineDecay(underneath=True)
    line = timeline(20, 1, *tricks)
    rates = [math.prod(t.factor(s, line) for t in tricks) for s in range(20)]
    assert rates[4] == 1.0
    assert rates[5] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True), st.floats(0.01, 1), st.integers(1, 7)
)
def test_step_decay_equals_torchs(milestones, gamma, per_epoch):
    milestones = sorted(milestones)
    opt = optimizer()
    scheduler = MultiStepLR(opt, [m * per_epoch for m in milestones], gamma)
    expected = curve(scheduler, opt, 32 * per_epoch)
    line = Timeline(32 * per_epoch, per_epoch)
    trick = StepDecay(milestones=milestones, gamma=gamma)
    assert [trick.factor(s, line) for s in range(line.steps)] == pytest.approx(expected, rel=1e-9)


def test_step_decay_counts_fractions_of_epochs_from_the_start_of_training():
    trick = StepDecay(milestones=(0.5, 1.25), gamma=0.1)
    line = timeline(8, 4, Warmup(epochs=1))
    rates = [trick.factor(s, line) for s in range(8)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("batches", [1, 2, 5, 100])
def test_warmup_is_he_et_als_i_over_m_and_wastes_no_update(batches):
    trick = Warmup(epochs=0.5)
    line = timeline(4 * batches, 2 * batches, trick)
    assert line.warmup == batches
    ours = [trick.factor(i - 1, line) for i in range(1, batches + 1)]
    assert ours == pytest.approx([i / batches for i in range(1, batches + 1)])
    assert ours[0] > 0
    assert ours[-1] == 1.0
    assert trick.factor(batches, line) == 1.0


def test_cosine_is_one_at_the_end_of_warmup_and_near_final_at_the_last_update():
    trick = CosineDecay(final=0.1)
    line = Timeline(1000, 10, 50)
    assert trick.factor(0, line) == trick.factor(49, line) == trick.factor(50, line) == 1.0
    assert 0.1 < trick.factor(999, line) < 0.1 + 1e-5
    assert CosineDecay().factor(3, Timeline(4, 1, 4)) == 1.0  # all of it warmup


def test_null_settings_are_exactly_one():
    line = Timeline(50, 5, 0, 384)
    for trick in (Warmup, CosineDecay, StepDecay, LinearLRScaling):
        assert all(trick.null().factor(s, line) == 1.0 for s in range(50))
        assert trick.null().warmup_steps(line) == 0


def test_linear_scaling_is_the_ratio_of_batches_and_says_so():
    trick = LinearLRScaling()
    assert trick.factor(0, Timeline(1, 1, 0, 1024)) == trick.factor(7, Timeline(9, 1, 0, 1024)) == 4.0
    (note,) = trick.notes(context(SGD(lr=0.1), trick, batch_size=64))
    assert note == "peak learning rate 0.1 * 64 / 256 = 0.025"
    assert list(LinearLRScaling.null().notes(context(trick))) == []


def test_settings_that_cannot_be_meant_are_reported():
    trick = Warmup(epochs=5)
    (problem,) = trick.check(context(trick, epochs=3))
    assert "5" in problem.what
    assert "3" in problem.what
    assert list(trick.check(context(trick, epochs=5))) == []
    decay = StepDecay(milestones=(1, 30, 60))
    (note,) = decay.notes(context(decay, epochs=3))
    assert "30, 60" in note
    for bad in (
        {"milestones": (2, 1)},
        {"milestones": (1, 1)},
        {"milestones": (0,)},
        {"gamma": 0},
        {"gamma": 1.5},
    ):
        with pytest.raises(ValidationError):
            StepDecay(**bad)
    for bad in ({"epochs": -1}, {"start": 1.1}):
        with pytest.raises(ValidationError):
            Warmup(**bad)
    with pytest.raises(ValidationError):
        CosineDecay(final=-0.1)
    with pytest.raises(ValidationError):
        LinearLRScaling(base_batch_size=0)
