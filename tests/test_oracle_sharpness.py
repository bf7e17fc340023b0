"""Sharpness-aware minimization against explicit computations in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call

from trickbag.functional.sharpness import climb, sharpness_aware
from trickbag.tricks.sharpness import SAM


class Bowl(nn.Module):
    """Half of w A w, less b w."""

    def __init__(self, a, b, w):
        super().__init__()
        self.a, self.b, self.w = torch.tensor(a), torch.tensor(b), nn.Parameter(torch.tensor(w))

    def compute(self):
        loss = self.w @ self.a @ self.w / 2 - self.b @ self.w
        loss.backward()
        return loss.detach()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.floats(0.01, 3), st.booleans())
def test_sam_on_a_quadratic_is_the_papers_formula(seed, rho, adaptive):
    """Foret et al. 2021, equations 2 and 3; Kwon et al. 2021 with T = |w| + 0.01."""
    rng = np.random.default_rng(seed)
    root, b, w = rng.normal(size=(5, 5)), rng.normal(size=5), rng.normal(size=5)
    a = root @ root.T
    g = a @ w - b
    t = np.abs(w) + 0.01 if adaptive else np.ones(5)
    up = w + rho * t**2 * g / np.linalg.norm(t * g)
    bowl = Bowl(a, b, w)
    loss = SAM(rho=rho, adaptive=adaptive).gradients(bowl.compute, bowl)
    np.testing.assert_allclose(bowl.w.grad.numpy(), a @ up - b, rtol=1e-9, atol=1e-9)
    assert float(loss) == pytest.approx(w @ a @ w / 2 - b @ w)
    assert (bowl.w.detach().numpy() == w).all()


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 5)
    ).to(dtype)


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 3, 6, 6, dtype=dtype, generator=generator)
    return images, torch.randint(5, (12,), generator=generator)


def passes(model, images, labels, parts=1, scale=1.0):
    """As the engine computes: the same dropout in each call, the sum over parts."""

    def compute():
        torch.manual_seed(7)
        total = torch.zeros((), dtype=torch.float64)
        for share, target in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            loss = nn.functional.cross_entropy(model(share), target, reduction="sum") / len(images)
            (scale * loss).backward()
            total += loss.detach()
        return total

    return compute


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 5])
def test_sam_on_a_net_is_the_gradient_at_the_perturbed_weights(parts, adaptive):
    model, (images, labels) = net(), batch()
    other = copy.deepcopy(model)

    def loss_at(weights):
        torch.manual_seed(7)
        total = 0.0
        for share, target in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            logits = functional_call(other, weights, (share,))
            total = total + nn.functional.cross_entropy(logits, target, reduction="sum") / len(images)
        return total

    weights = dict(other.named_parameters())
    first = torch.autograd.grad(loss_at(weights), list(weights.values()))
    statistics = copy.deepcopy(dict(other.named_buffers()))  # after one pass
    t = [p.abs() + 0.01 if adaptive else torch.ones_like(p) for p in weights.values()]
    norm = sum(((a * g) ** 2).sum() for a, g in zip(t, first, strict=True)).sqrt()
    up = {
        name: (p + 0.4 * a**2 * g / norm).detach().requires_grad_()
        for (name, p), a, g in zip(weights.items(), t, first, strict=True)
    }
    wanted = torch.autograd.grad(loss_at(up), list(up.values()))

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = SAM(rho=0.4, adaptive=adaptive).gradients(passes(model, images, labels, parts), model)
    for (name, p), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-12)
        assert torch.equal(p, before[name])
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=0, atol=1e-12)
    assert float(loss) == pytest.approx(float(passes(copy.deepcopy(other), images, labels, parts)()))


def test_statistics_and_weights_are_those_of_a_plain_pass_to_the_bit():
    plain, sharp, (images, labels) = net(torch.float32), net(torch.float32), batch(torch.float32)
    passes(plain, images, labels)()
    SAM(rho=3.0).gradients(passes(sharp, images, labels), sharp)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, sharp.state_dict()[name]), name
    assert int(sharp[1].num_batches_tracked) == 1
    assert not torch.equal(plain[0].weight.grad, sharp[0].weight.grad)


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_scale_of_mixed_precision_cancels(adaptive):
    images, labels = batch(torch.float32)
    gradients = []
    for scale in (1.0, 2.0**16):
        model = net(torch.float32)
        SAM(rho=0.2, adaptive=adaptive).gradients(passes(model, images, labels, scale=scale), model)
        gradients.append([p.grad / scale for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_an_overflow_leaves_gradients_that_a_scaler_skips_and_weights_as_they_were():
    model, (images, labels) = net(torch.float32), batch(torch.float32)
    before = copy.deepcopy(dict(model.named_parameters()))
    sharpness_aware(passes(model, images, labels, scale=float("inf")), model)
    assert not all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.isfinite(b).all() for b in model.buffers())


def test_frozen_parameters_stay_and_a_failing_pass_leaves_the_model_as_it_was():
    model, (images, labels) = net(), batch()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    plain = passes(model, images, labels)

    def compute():
        calls.append({name: p.detach().clone() for name, p in model.named_parameters()})
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return plain()

    with pytest.raises(RuntimeError, match="out of memory"):
        sharpness_aware(compute, model, rho=0.1)
    assert torch.equal(calls[1]["0.weight"], before["0.weight"])
    moved = sum(((calls[1][n] - before[n]) ** 2).sum() for n in calls[1]) ** 0.5
    assert float(moved) == pytest.approx(0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_no_gradient_no_climb_and_null_is_one_pass():
    parameter = nn.Parameter(torch.ones(3))
    climb([parameter], 1.0)
    parameter.grad = torch.zeros(3)
    climb([parameter], 1.0)
    assert torch.equal(parameter, torch.ones(3))
    model, (images, labels) = net(), batch()
    calls = []
    plain = passes(model, images, labels)
    loss = SAM.null().gradients(lambda: calls.append(1) or plain(), model)
    assert len(calls) == 1
    assert torch.isfinite(loss)
    with pytest.raises(ValidationError):
        SAM(rho=-0.1)
