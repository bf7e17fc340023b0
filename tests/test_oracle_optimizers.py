"""Adam, RMSprop, LARS, LAMB and Lion against the papers' formulas in float64, and through checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import timm.optim
import torch
from pydantic import ValidationError
from torch import nn

from trickbag.data.base import DataFacts
from trickbag.engine.checkpoint import pack_optimizer, unpack_optimizer
from trickbag.functional.optimizers import keep_group_steps
from trickbag.plan import Context, parameter_groups
from trickbag.recipe.model import Recipe
from trickbag.tricks.large_batch import LAMB, LARS
from trickbag.tricks.optimization import DEFAULT, SGD, AdamW, Muon, Nesterov
from trickbag.tricks.optimizers import Adam, Lion, RMSprop
from trickbag.tricks.param_groups import NoBiasNormDecay

ALL = (Adam, RMSprop, LARS, LAMB, Lion)
RATES = [1.0, 0.5, 2.0, 0.1, 0.7]
"""A schedule, as the engine applies it to each group."""


def adam(w, gradients, rates, decay, betas, eps):
    """Kingma and Ba 2015, algorithm 1, of the loss plus ``decay / 2 |w|^2``."""
    m = v = np.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g + decay * w
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


def rmsprop(w, gradients, rates, decay, alpha, eps, momentum):
    """Hinton's lecture 6.5, with momentum of the scaled gradients."""
    v = b = np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        g = g + decay * w
        v = alpha * v + (1 - alpha) * g**2
        b = momentum * b + g / (np.sqrt(v) + eps)
        w = w - lr * b
    return w


def rmsprop_tf(w, gradients, rates, decay, alpha, eps, momentum):
    """tf.compat.v1.train.RMSPropOptimizer, whose documentation gives these three lines."""
    v, b = np.ones_like(w), np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        g = g + decay * w
        v = alpha * v + (1 - alpha) * g**2
        b = momentum * b + lr * g / np.sqrt(v + eps)
        w = w - b
    return w


def lars(w, gradients, rates, decay, momentum, trust, always=False, nesterov=False):
    """You et al. 2017, equation 6 and algorithm 1, one layer; the global rate multiplies the momentum."""
    b = np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        local = trust * np.linalg.norm(w) / (np.linalg.norm(g) + decay * np.linalg.norm(w) + 1e-8)
        g = (g + decay * w) * (local if decay or always else 1.0)
        b = momentum * b + g
        w = w - lr * (g + momentum * b if nesterov else b)
    return w


def lamb(w, gradients, rates, decay, betas, eps, limit, always=False):
    """You et al. 2020, algorithm 2, one layer with phi(x) = x, on gradients clipped to a norm."""
    m = v = np.zeros_like(w)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        g = g / max(1.0, np.linalg.norm(g) / limit)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps) + decay * w
        ratio = np.linalg.norm(w) / np.linalg.norm(r) if decay or always else 1.0
        w = w - lr * ratio * r
    return w


def lion(w, gradients, rates, decay, betas):
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(w)
    for g, lr in zip(gradients, rates, strict=True):
        c = betas[0] * m + (1 - betas[0]) * g
        w = w - lr * (np.sign(c) + decay * w)
        m = betas[1] * m + (1 - betas[1]) * g
    return w


CASES = [
    (Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1), lambda *a: adam(*a, (0.8, 0.95), 1e-6)),
    (Adam(), lambda *a: adam(*a, (0.9, 0.999), 1e-8)),
    (
        RMSprop(lr=0.02, alpha=0.9, eps=1e-3, momentum=0.8, weight_decay=0.1),
        lambda *a: rmsprop(*a, 0.9, 1e-3, 0.8),
    ),
    (RMSprop(), lambda *a: rmsprop(*a, 0.99, 1e-8, 0.0)),
    (
        RMSprop(lr=0.02, alpha=0.9, eps=1e-3, momentum=0.8, weight_decay=0.1, style="tensorflow"),
        lambda *a: rmsprop_tf(*a, 0.9, 1e-3, 0.8),
    ),
    (RMSprop(style="tensorflow"), lambda *a: rmsprop_tf(*a, 0.99, 1e-8, 0.0)),
    (LARS(lr=2.0, momentum=0.8, weight_decay=0.1, trust=0.02), lambda *a: lars(*a, 0.8, 0.02)),
    (LARS(lr=2.0, nesterov=True, trust=0.02), lambda *a: lars(*a, 0.9, 0.02, nesterov=True)),
    (LARS(weight_decay=0, always_adapt=True), lambda *a: lars(*a, 0.9, 1e-3, always=True)),
    (
        LAMB(lr=0.02, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1),
        lambda *a: lamb(*a, (0.8, 0.95), 1e-5, 1.0),
    ),
    (LAMB(max_norm=None, always_adapt=True), lambda *a: lamb(*a, (0.9, 0.999), 1e-6, np.inf, always=True)),
    (Lion(lr=0.01, betas=(0.8, 0.95), weight_decay=0.3), lambda *a: lion(*a, (0.8, 0.95))),
    (Lion(), lambda *a: lion(*a, (0.9, 0.99))),
]


@pytest.mark.parametrize(("trick", "formula"), CASES, ids=lambda value: getattr(value, "kind", ""))
@pytest.mark.parametrize("own_decay", [None, 0.0, 0.2])
def test_optimizers_follow_their_papers_under_a_schedule_and_a_groups_own_decay_wins(
    trick, formula, own_decay
):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), 2 * rng.normal(size=(5, 4, 3))
    parameter = nn.Parameter(torch.tensor(start))
    group = {"params": [parameter], "names": ["w"]}
    if own_decay is not None:
        group["weight_decay"] = own_decay
    optimizer = trick.build([group])
    for gradient, rate in zip(gradients, RATES, strict=True):
        parameter.grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = trick.lr * rate
        optimizer.step()
    decay = trick.weight_decay if own_decay is None else own_decay
    wanted = formula(start, gradients, [trick.lr * rate for rate in RATES], decay)
    np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-7, atol=1e-12)


def test_lamb_and_lars_measure_each_parameter_alone_but_lamb_clips_all_gradients_together():
    rng = np.random.default_rng(1)
    starts, gradients = rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
    for trick in (LAMB(lr=0.1), LARS(lr=10.0, weight_decay=0.1)):
        parameters = [nn.Parameter(torch.tensor(w)) for w in starts]
        optimizer = trick.build([{"params": [p]} for p in parameters])  # groups, as decay makes them
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        for p, w, g in zip(parameters, starts, gradients, strict=True):
            if isinstance(trick, LAMB):
                clipped = g / max(1.0, np.linalg.norm(gradients))
                wanted = lamb(w, [clipped], [0.1], 0.01, (0.9, 0.999), 1e-6, np.inf)
            else:
                wanted = lars(w, [g], [10.0], 0.1, 0.9, 1e-3)
            np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-9)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(
        memory_format=torch.channels_last
    )


def advance(model, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(memory_format=torch.preserve_format)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize(
    "trick",
    [
        *(kind.sample() for kind in ALL),
        RMSprop(style="tensorflow", momentum=0.9),
        RMSprop(),
        LARS(momentum=0),
    ],
    ids=lambda trick: trick.kind,
)
def test_state_survives_a_checkpoint_to_the_bit(trick):
    def build(model):
        return trick.build(parameter_groups(model, (NoBiasNormDecay(),)))

    whole, first = net(), net()
    advance(whole, build(whole), range(6))
    before = build(first)
    advance(first, before, range(3))
    tensors, values = pack_optimizer(before)
    second = net()
    second.load_state_dict(first.state_dict())
    after = build(second)
    unpack_optimizer(after, {name: t.clone() for name, t in tensors.items()}, values)
    advance(second, after, range(3, 6))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    plain = net()
    advance(plain, build(plain), range(3))
    advance(plain, build(plain), range(3, 6))  # forgets everything
    forgetful = all(torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True))
    assert forgetful == (trick == LARS(momentum=0))


EVERY = [SGD(), SGD(dampening=0.1), Nesterov(), AdamW(), Muon(last=True, other="nesterov")]


@pytest.mark.parametrize("trick", [*EVERY, *(kind() for kind in ALL)], ids=lambda trick: trick.kind)
def test_parameters_may_be_thawed_later_than_others_of_their_group(trick):
    """torch's fused SGD fails there; a parameter's first update is the same whenever it comes."""
    model, alone = net(), net()
    weights = [copy[3].bias for copy in (model, alone)]
    optimizer = trick.build(trick.groups(model, parameter_groups(model)))
    for step in range(4):
        for p in model.parameters():
            p.grad = None if p is weights[0] and step < 2 else torch.ones_like(p)
        optimizer.step()
    optimizer = trick.build(trick.groups(alone, parameter_groups(alone)))
    for _ in range(2):
        weights[1].grad = torch.ones_like(weights[1])
        optimizer.step()
    if trick != SGD(dampening=0.1) and not isinstance(trick, LAMB):  # one clips by, and counts for, all
        torch.testing.assert_close(*weights)
    assert torch.isfinite(weights[0]).all()


def test_a_count_of_updates_that_was_not_saved_is_left_alone():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    plain = timm.optim.Lamb([parameter])
    plain.step()
    saved = plain.state_dict()
    hooked = keep_group_steps(timm.optim.Lamb([parameter]))
    hooked.load_state_dict(saved)
    assert int(hooked.param_groups[0]["step"]) == 1


def test_optimizers_use_the_fastest_kernels_and_keep_names():
    for kind in ALL:
        optimizer = kind().build(parameter_groups(nn.Linear(3, 2)))
        group = optimizer.param_groups[0]
        assert group["names"] == ["weight", "bias"]
        assert (group["lr"], group["weight_decay"]) == (kind().lr, kind().weight_decay)
        if kind in (Adam, RMSprop, Lion) or "foreach" in group:
            assert group["fused" if kind is Adam else "foreach"] is True
        assert kind.null() == DEFAULT
        assert kind.slot == "optimizer"


def test_optimizers_work_without_foreach(monkeypatch):
    """timm gave it to Lars, Lamb and RMSpropTF only of late."""

    class Old(timm.optim.Lars):
        def __init__(self, params, lr=1.0, momentum=0, weight_decay=0, nesterov=False, trust_coeff=0.001,
                     eps=1e-8, always_adapt=False):  # fmt: skip
            super().__init__(
                params, lr, momentum, 0, weight_decay, nesterov, trust_coeff, eps, False, always_adapt
            )

    monkeypatch.setattr(timm.optim, "Lars", Old)
    assert isinstance(LARS().build(parameter_groups(nn.Linear(3, 2))), Old)


def test_without_weight_decay_lars_and_lamb_say_that_nothing_is_adapted():
    facts = DataFacts("x", ("a", "b"), 3, {"train": 320}, (32, 32), "f")
    context = Context(Recipe(model="resnet18", epochs=1, batch_size=8, image_size=32, tricks=()), facts)
    for kind in (LARS, LAMB):
        assert list(kind().notes(context)) == []
        assert list(kind(weight_decay=0, always_adapt=True).notes(context)) == []
        (note,) = kind(weight_decay=0).notes(context)
        assert "always_adapt" in note


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Adam, {"betas": (0.9, 1.0)}),
        (Adam, {"lr": 0}),
        (RMSprop, {"alpha": 1}),
        (RMSprop, {"style": "timm"}),
        (LARS, {"trust": 0}),
        (LARS, {"momentum": 1}),
        (LAMB, {"max_norm": 0}),
        (Lion, {"weight_decay": -1}),
    ],
)
def test_settings_out_of_bounds_are_refused(kind, bad):
    with pytest.raises(ValidationError):
        kind(**bad)
