"""Schedules, at every step, against torch's and timm's schedulers and against formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from trickbag.data.base import DataFacts
from trickbag.functional.schedules import cosine_decay, linear_warmup
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks.cycles import OneCycle, PiecewiseLinear, WarmRestarts
from trickbag.tricks.decays import ConstantCooldown, PolynomialDecay
from trickbag.tricks.optimization import SGD
from trickbag.tricks.scaling import LinearLRScaling, SqrtLRScaling
from trickbag.tricks.schedules import CosineDecay, StepDecay, Warmup
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
    kinds = (Warmup, CosineDecay, StepDecay, LinearLRScaling, SqrtLRScaling, WarmRestarts, OneCycle)
    for trick in (*kinds, PolynomialDecay, ConstantCooldown, PiecewiseLinear):
        assert all(trick.null().momentum(s, line) is None for s in range(50))
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


# Recipes whose rate changes once an epoch, and other ways of counting.


def product(tricks, line):
    return [math.prod(t.factor(step, line) for t in tricks) for step in range(line.steps)]


@pytest.mark.parametrize(("epochs", "warm", "per_epoch"), [(90, 5, 3), (12, 5, 1), (7, 1, 4)])
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_torchvisions_warmup_and_cosine_by_epoch(epochs, warm, per_epoch):
    """references/classification/train.py: LinearLR and CosineAnnealingLR, stepped once an epoch."""
    opt = optimizer()
    ramp = LinearLR(opt, start_factor=0.01, total_iters=warm)
    decay = CosineAnnealingLR(opt, T_max=epochs - warm, eta_min=0.0)
    by_epoch = curve(SequentialLR(opt, [ramp, decay], [warm]), opt, epochs)
    tricks = Warmup(epochs=warm, start=0.01, reaches="start", stepping="epoch"), CosineDecay(stepping="epoch")
    ours = product(tricks, timeline(epochs * per_epoch, per_epoch, *tricks))
    assert ours == pytest.approx(list(np.repeat(by_epoch, per_epoch)), abs=1e-9)


@pytest.mark.parametrize(("epochs", "warm", "per_epoch"), [(30, 20, 5), (21, 20, 1), (6, 2, 7)])
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_mmpretrains_warmup_by_update_and_cosine_by_epoch(epochs, warm, per_epoch):
    """MMEngine's LinearLR has its end value at update ``end - 1``; its cosine is torch's."""
    peak, floor = 1e-3, 1e-5
    updates = warm * per_epoch
    ramp = curve(LinearLR(opt := optimizer(peak), 1e-3, total_iters=updates - 1), opt, updates)
    decay = CosineAnnealingLR(opt := optimizer(peak), T_max=epochs - warm, eta_min=floor)
    wanted = [*ramp, *np.repeat(curve(decay, opt, epochs - warm), per_epoch)]
    tricks = (
        Warmup(epochs=warm, start=1e-3, reaches="both"),
        CosineDecay(final=floor / peak, stepping="epoch"),
    )
    ours = product(tricks, timeline(epochs * per_epoch, per_epoch, *tricks))
    assert [peak * factor for factor in ours] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("by_epoch", [False, True])
def test_timms_warmup_and_cosine_to_a_floor(prefix, by_epoch):
    """timm's train.py as ResNet strikes back ran it: 5 epochs from 1e-6, cosine to 1e-6."""
    epochs, warm, per_epoch, peak, floor = 20, 5, 3, 5e-3, 1e-6
    unit = 1 if by_epoch else per_epoch
    theirs = CosineLRScheduler(
        optimizer(peak),
        t_initial=(epochs - warm if prefix else epochs) * unit,
        lr_min=floor,
        warmup_t=warm * unit,
        warmup_lr_init=1e-6,
        warmup_prefix=prefix,
        t_in_epochs=by_epoch,
    )
    stepping = "epoch" if by_epoch else "update"
    tricks = (
        Warmup(epochs=warm, start=1e-6 / peak, reaches="start", stepping=stepping),
        CosineDecay(final=floor / peak, underneath=not prefix, stepping=stepping),
    )
    ours = product(tricks, timeline(epochs * per_epoch, per_epoch, *tricks))
    wanted = [theirs._get_lr(step // per_epoch if by_epoch else step)[0] for step in range(60)]
    assert [peak * factor for factor in ours] == pytest.approx(wanted, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.floats(0, 7), st.integers(1, 6), st.integers(1, 50), st.sampled_from(["peak", "start", "both"]))
def test_any_length_of_warmup_by_epoch_rises_and_any_cosine_falls(epochs, per_epoch, steps, reaches):
    tricks = (
        Warmup(epochs=epochs, start=0.1, reaches=reaches, stepping="epoch"),
        CosineDecay(stepping="epoch"),
    )
    line = timeline(steps, per_epoch, *tricks)
    ramp = [tricks[0].factor(s, line) for s in range(steps)]
    fall = [tricks[1].factor(s, line) for s in range(steps)]
    assert ramp == sorted(ramp)
    assert fall == sorted(fall, reverse=True)
    assert all(0.1 <= a <= 1 and 0 <= b <= 1 for a, b in zip(ramp, fall, strict=True))
    assert all(factor == 1 for factor in ramp[line.warmup :])
    assert linear_warmup(0, 1, 0.1, reaches="both") == cosine_decay(0, 1) == 1.0


# The other decays.


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 120), st.floats(0, 1), st.integers(0, 9))
def test_warm_restarts_equal_torchs(first, multiplier, steps, final, warmup):
    opt = optimizer()
    theirs = CosineAnnealingWarmRestarts(opt, T_0=first, T_mult=multiplier, eta_min=final)
    wanted = [1.0] * warmup + curve(theirs, opt, steps)
    trick = WarmRestarts(first=first, multiplier=multiplier, final=final)
    line = Timeline(warmup + steps, 1, warmup)
    ours = [trick.factor(s, line) for s in range(line.steps)]
    assert ours == pytest.approx(wanted, abs=1e-9)


def test_warm_restarts_count_in_epochs_and_say_where_a_run_should_end():
    line = Timeline(300, 10)
    trick = WarmRestarts(first=0.1 + 0.2, multiplier=1.5)  # 3 updates, then 4 or 5 (4.5), then 7 (6.75)
    ones = [s for s in range(20) if trick.factor(s, line) == 1]
    assert ones == [0, 3, 7, 14]
    trick = WarmRestarts(first=1, multiplier=2)
    assert list(trick.notes(context(trick, epochs=3.0))) == []
    (note,) = trick.notes(context(trick, epochs=4.0))
    assert "1 epochs fewer or 3 more" in note


@settings(deadline=None, max_examples=40)
@given(
    st.integers(4, 90),
    st.floats(0, 1),
    st.sampled_from(["cos", "linear"]),
    st.floats(1, 100),
    st.floats(1, 1e5),
    st.booleans(),
)
def test_one_cycle_equals_torchs_in_rate_and_momentum(steps, peak_at, shape, div, final_div, adam):
    parameter = torch.zeros(1, requires_grad=True)
    opt = torch.optim.AdamW([parameter]) if adam else torch.optim.SGD([parameter], lr=1, momentum=0.9)
    if abs(peak_at * steps - 1) < 1e-9:
        return  # torch divides by zero
    theirs = OneCycleLR(
        opt,
        max_lr=3.0,
        total_steps=steps,
        pct_start=peak_at,
        anneal_strategy=shape,
        div_factor=div,
        final_div_factor=final_div,
        base_momentum=0.8,
        max_momentum=0.97,
    )
    trick = OneCycle(
        start_factor=1 / div,
        final=1 / div / final_div,
        peak_at=peak_at,
        shape=shape,
        momentum_range=(0.8, 0.97),
    )
    line = Timeline(steps, 1)
    for step in range(steps):
        group = opt.param_groups[0]
        assert 3.0 * trick.factor(step, line) == pytest.approx(group["lr"], rel=1e-6, abs=1e-9)
        wanted = group["betas"][0] if adam else group["momentum"]
        assert trick.momentum(step, line) == pytest.approx(wanted, abs=1e-9)
        opt.step()
        theirs.step() if step + 1 < steps else None


def test_one_cycle_defaults_are_torchs():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1, momentum=0.9)
    theirs, line = OneCycleLR(opt, max_lr=1.0, total_steps=50), Timeline(50, 1)
    for step in range(50):
        assert OneCycle().factor(step, line) == pytest.approx(opt.param_groups[0]["lr"], rel=1e-9)
        assert OneCycle().momentum(step, line) == pytest.approx(opt.param_groups[0]["momentum"])
        opt.step()
        theirs.step() if step < 49 else None
    assert OneCycle(momentum_range=None).momentum(3, line) is None
    assert OneCycle(peak_at=0.1).factor(0, Timeline(10, 1)) == 1.0
    for bad in ({"momentum_range": (0.9, 0.8)}, {"momentum_range": (0, 0.9)}, {"peak_at": 1.1}):
        with pytest.raises(ValidationError):
            OneCycle(**bad)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 90), st.floats(0.1, 4), st.integers(0, 9))
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_polynomial_decay_equals_torchs(steps, power, warmup):
    opt = optimizer()
    wanted = [1.0] * warmup + curve(PolynomialLR(opt, total_iters=steps, power=power), opt, steps)
    trick, line = PolynomialDecay(power=power), Timeline(warmup + steps, 1, warmup)
    assert [trick.factor(s, line) for s in range(line.steps)] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    lifted = PolynomialDecay(power=power, final=0.25)  # MMEngine's eta_min
    assert [lifted.factor(s, line) for s in range(line.steps)] == pytest.approx(
        [0.75 * w + 0.25 for w in wanted], rel=1e-6
    )


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize(("steps", "warmup", "share"), [(100, 10, 0.2), (50, 0, 1.0), (37, 4, 0.33)])
def test_constant_cooldown_follows_the_paper(shape, steps, warmup, share):
    """Hägele et al. 2024, section 3, with N steps of which N_decay are the cooldown."""
    n, total, decay = np.arange(steps), steps, round(share * steps)
    x = (n - (total - decay)) / decay
    formulas = {"linear": 1 - x, "sqrt": 1 - np.sqrt(np.maximum(x, 0)), "cosine": (1 + np.cos(np.pi * x)) / 2}
    wanted = np.where(x > 0, 0.1 + 0.9 * formulas[shape], 1.0)
    trick, line = ConstantCooldown(cooldown=share, shape=shape, final=0.1), Timeline(steps, 1, warmup)
    np.testing.assert_allclose([trick.factor(s, line) for s in range(steps)], wanted, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_constant_cooldown_with_warmup_is_torchs_trapezoid():
    opt = optimizer()
    parts = [LinearLR(opt, 0.1, 1, 10), ConstantLR(opt, 1.0, 60), LinearLR(opt, 1.0, 0.0, 30)]
    wanted = curve(SequentialLR(opt, parts, [10, 70]), opt, 100)
    tricks = Warmup(epochs=10, start=0.1, reaches="start"), ConstantCooldown(cooldown=0.3)
    assert product(tricks, timeline(100, 1, *tricks)) == pytest.approx(wanted, abs=1e-9)
    late = Warmup(epochs=2), ConstantCooldown(cooldown=0.9)
    assert product(late, timeline(4, 1, *late)) == pytest.approx([0.5, 1, 1, 0.5])
    (note,) = late[1].notes(context(*late, epochs=4))
    assert "20 of 40" in note


def test_piecewise_linear_is_ffcv_imagenets_ramp():
    """main.py: the rate is interpolated between epochs, then over the updates of an epoch."""
    epochs, per_epoch = 16, 7
    ends = [np.interp([e], [0, 2, epochs], [1e-4 * 0.5, 0.5, 0])[0] for e in range(epochs + 1)]
    wanted = np.concatenate(
        [np.interp(np.arange(per_epoch), [0, per_epoch], [ends[e], ends[e + 1]]) for e in range(epochs)]
    )
    line = Timeline(epochs * per_epoch, per_epoch)
    trick = PiecewiseLinear(points=((0, 1e-4), (2, 1), ("end", 0)))
    assert trick == PiecewiseLinear()
    assert [0.5 * trick.factor(s, line) for s in range(line.steps)] == pytest.approx(list(wanted), rel=1e-9)


def test_piecewise_linear_is_airbenchs_triangle():
    steps = 1000  # airbench94.py: triangle(total_train_steps, start=0.2, end=0.07, peak=0.23)
    wanted = np.interp(np.arange(steps), [0, int(0.23 * steps), steps], [0.2, 1, 0.07])
    trick = PiecewiseLinear(points=((0, 0.2), (0.23, 1), (1, 0.07)), unit="share")
    ours = [trick.factor(s, Timeline(steps, 10)) for s in range(steps)]
    assert ours == pytest.approx(list(wanted), rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 3)), min_size=1, max_size=5), st.integers(1, 4))
def test_piecewise_linear_equals_numpys_interpolation(points, per_epoch):
    points = sorted(dict(points).items())
    trick, line = PiecewiseLinear(points=points), Timeline(32 * per_epoch, per_epoch)
    wanted = np.interp(np.arange(line.steps) / per_epoch, *zip(*points, strict=True))
    assert [trick.factor(s, line) for s in range(line.steps)] == pytest.approx(list(wanted), abs=1e-9)


def test_points_that_cannot_be_meant_are_reported():
    for bad in (((2, 1), (1, 0)), ((1, 1), (1, 0)), (("end", 0), (3, 1)), ((0, -1),), (("middle", 1),)):
        with pytest.raises(ValidationError):
            PiecewiseLinear(points=bad)
    trick = PiecewiseLinear()
    assert list(trick.check(context(trick, epochs=3))) == []
    (problem,) = trick.check(context(trick, epochs=1))  # the end comes before the peak
    assert "[0, 20, 10]" in problem.what
    late = PiecewiseLinear(points=((0, 1), (9, 0)))
    (note,) = late.notes(context(late, epochs=3))
    assert "90" in note
    assert list(PiecewiseLinear.null().check(context(trick))) == []


def test_sqrt_scaling_is_the_root_of_linear_scaling_and_says_so():
    trick, line = SqrtLRScaling(), Timeline(9, 1, 0, 1024)
    assert trick.factor(3, line) == LinearLRScaling().factor(3, line) ** 0.5 == 2.0
    (note,) = trick.notes(context(SGD(lr=0.1), trick, batch_size=64))
    assert note == "peak learning rate 0.1 * sqrt(64 / 256) = 0.05"
    assert trick.slot == LinearLRScaling.slot
    assert list(SqrtLRScaling.null().notes(context(trick))) == []


def test_a_first_rate_of_zero_is_reported():
    trick = Warmup(epochs=1, reaches="start")
    (problem,) = trick.check(context(trick))
    assert "is 0" in problem.what
    assert list(Warmup(epochs=0, reaches="start").check(context(trick))) == []
