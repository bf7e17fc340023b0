"""Batch norm's relatives against torch's batch norm, float64 NumPy, and one process with the whole batch."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.functional.averaging import reestimate_statistics, start_average
from trickbag.functional.normalization import (
    GhostBatchNorm2d,
    SynchronizedBatchNorm,
    ghost_batch_norm,
    ghost_norms,
    synchronized_norms,
)
from trickbag.functional.surgery import CannotOperate
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.rng import Stream
from trickbag.tricks.normalization import BNReestimation, GhostBatchNorm, SyncBatchNorm
from trickbag.tricks.stages import Timeline

STREAM = Stream(0, "init")
FACTS = DataFacts("x", tuple("abcdefghij"), 3, {"train": 1000}, (32, 32), "f")


def context(trick, batch_size=8, name="resnet18"):
    recipe = Recipe(model={"name": name}, epochs=1, batch_size=batch_size, image_size=32, tricks=[trick])
    return Context(recipe, FACTS)


def norm_values(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(channels, generator=generator) + 0.5 for _ in range(4)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(1, 4), st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_ghost_batch_norm_equals_float64_numpy(count, size, side, seed, momentum):
    if count * side == 1:
        count = 2
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, side, side + 1, generator=generator, dtype=torch.float64) * 3 + 1
    mean, var, weight, bias = (v.double() for v in norm_values(3, seed))
    got_mean, got_var = mean.clone(), var.clone()
    got = ghost_batch_norm(x, got_mean, got_var, weight, bias, size, momentum, 1e-3)
    parts = np.array_split(x.numpy(), max(1, count // size))
    assert all(len(part) >= min(size, count) for part in parts)
    out, means, variances = [], 0, 0
    for part in parts:
        mu, v = part.mean((0, 2, 3)), part.var((0, 2, 3))
        normed = (part - mu[:, None, None]) / np.sqrt(v[:, None, None] + 1e-3)
        out.append(normed * weight.numpy()[:, None, None] + bias.numpy()[:, None, None])
        means += mu * len(part) / count
        variances += part.var((0, 2, 3), ddof=1) * len(part) / count
    np.testing.assert_allclose(got, np.concatenate(out), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(got_mean, (1 - momentum) * mean.numpy() + momentum * means, rtol=1e-9)
    np.testing.assert_allclose(got_var, (1 - momentum) * var.numpy() + momentum * variances, rtol=1e-9)


@pytest.mark.parametrize("size", [12, 7, 100])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("name", ["test_resnet", "densenet121"])
def test_ghost_of_the_whole_batch_is_batch_norm_to_the_bit(size, momentum, name):
    options = {} if name == "test_resnet" else {"growth_rate": 4, "block_config": (2, 2), "norm_layer": None}
    options = {k: v for k, v in options.items() if v is not None}
    plain = timm.create_model(name, num_classes=5, **options)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    ghost = GhostBatchNorm(size=size).edit(copy.deepcopy(plain), STREAM)
    assert list(ghost.state_dict()) == list(plain.state_dict())
    images = torch.rand(12, 3, 32, 32).to(memory_format=torch.channels_last)
    for model in (plain, ghost):
        model(images).square().sum().backward()
    state = ghost.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    pairs = zip(plain.named_parameters(), ghost.named_parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for (_, a), (_, b) in pairs)
    assert any(type(m).__name__.startswith("Ghost") for m in ghost.modules())


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d])
def test_ghost_batches_see_themselves_alone_and_evaluation_is_batch_norms(make):
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), make(6))
    ghost = GhostBatchNorm(size=4).edit(copy.deepcopy(plain), STREAM)
    images = torch.randn(13, 3, 8, 8)
    together = ghost(images)
    one = copy.deepcopy(plain)
    apart = torch.cat([one(part) for part in images.tensor_split(3)])
    assert torch.equal(together, apart)
    assert int(ghost[1].num_batches_tracked) == 1
    together.square().mean().backward()
    apart.square().mean().backward()
    torch.testing.assert_close(ghost[0].weight.grad, one[0].weight.grad)
    for model in (plain, ghost):
        model.load_state_dict(one.state_dict())
        model.eval()
    assert torch.equal(plain(images), ghost(images))
    assert (together.min() >= 0) == (make is BatchNormAct2d)


def test_ghost_batch_norm_without_running_statistics_or_weights():
    x = torch.randn(8, 3, 4, 4)
    norm = GhostBatchNorm2d(3, 4, affine=False, track_running_stats=False)
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in x.split(4)])
    assert torch.equal(norm(x), expected)


def test_ghost_batch_norm_compiles_and_copies():
    model = ghost_model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    ghost_norms(ghost_model, 2)
    images = torch.randn(6, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    assert torch.equal(compiled(images), model(images))
    assert ghost_norms(model, 3) == ["1"]  # again: another size
    assert model[1].ghost_size == 3
    assert type(model[1]) is GhostBatchNorm2d


def test_models_without_batch_norm_are_refused_and_switched_off_is_absent():
    for trick in (GhostBatchNorm(), SyncBatchNorm()):
        with torch.device("meta"), pytest.raises(PlanError, match=trick.kind):
            trick.edit(timm.create_model("test_vit"), STREAM)
    with pytest.raises(CannotOperate, match="no batch norm"):
        ghost_norms(nn.Sequential(nn.BatchNorm1d(3)), 4)  # of features, not images
    model = GhostBatchNorm.null().edit(nn.Sequential(nn.BatchNorm2d(3)), STREAM)
    assert type(model[0]) is nn.BatchNorm2d
    assert list(GhostBatchNorm(size=8).notes(context(GhostBatchNorm(size=8), 15))) != []
    assert list(GhostBatchNorm(size=8).notes(context(GhostBatchNorm(size=8), 16))) == []
    assert list(GhostBatchNorm.null().notes(context(GhostBatchNorm.null()))) == []
    with pytest.raises(ValidationError):
        GhostBatchNorm(size=1)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, BatchNormAct2d, nn.BatchNorm1d])
def test_synchronized_batch_norm_alone_is_batch_norm_to_the_bit(make):
    plain = make(6)
    synced = SyncBatchNorm().edit(nn.Sequential(copy.deepcopy(plain)), STREAM)
    x = torch.randn(5, 6) if make is nn.BatchNorm1d else torch.randn(5, 6, 4, 4)
    assert isinstance(synced[0], SynchronizedBatchNorm)
    assert not isinstance(synced[0], nn.SyncBatchNorm)  # DistributedDataParallel refuses it on the CPU
    for _ in range(2):
        assert torch.equal(synced(x), plain(x))
        assert torch.equal(synced[0].running_var, plain.running_var)
    # What a CUDA device gets: torch's own, which falls back to batch norm where nothing is distributed.
    again = nn.SyncBatchNorm.forward(synced[0], x)
    expected = (
        nn.BatchNorm1d.forward(plain, x) if make is nn.BatchNorm1d else nn.BatchNorm2d.forward(plain, x)
    )
    assert torch.equal(again, expected)
    assert torch.equal(synced.eval()(x), plain.eval()(x))
    assert synchronized_norms(synced) == ["0"]


TWO_PROCESSES = """
import copy
import torch
import torch.distributed as dist
from torch import nn
from trickbag.functional.normalization import sync_batch_norm, synchronized_norms

class BatchNormAct2d(nn.BatchNorm2d):  # as in timm, which takes long to import
    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))

def close(one, other, rtol=1e-5, atol=1e-6):  # torch.testing takes long to import
    assert torch.allclose(one.detach().double(), other.detach().double(), rtol=rtol, atol=atol), (one, other)

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(3)
whole = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), BatchNormAct2d(6),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None),
).double()
images, targets = torch.rand(10, 3, 9, 9).double() * 4 + 1, torch.randn(10, 5).double()
mine = slice(0, 5) if rank == 0 else slice(5, 10)
synced = copy.deepcopy(whole)
assert len(synchronized_norms(synced)) == 3
for step in range(2):
    for model in (whole, synced):
        model.zero_grad()
    out = whole(images)
    (out - targets).square().mean().backward()
    own = synced(images[mine])
    (own - targets[mine]).square().mean().backward()
    close(own, out[mine], rtol=1e-8, atol=1e-9)
    for (name, p), (_, q) in zip(whole.named_parameters(), synced.named_parameters()):
        dist.all_reduce(q.grad)  # as DistributedDataParallel does, which takes long to import
        q.grad /= 2
        close(p.grad, q.grad, rtol=1e-7, atol=1e-10)
    for (name, a), (_, b) in zip(whole.named_buffers(), synced.named_buffers()):
        close(a, b, rtol=1e-9, atol=1e-10)
whole.eval(), synced.eval()
close(whole(images), synced(images), rtol=1e-8, atol=1e-9)

# Shares of different sizes, and half precision.
x = torch.randn(7, 4, 3, 3)
share = x[:2] if rank == 0 else x[2:]
weight, bias = torch.rand(4), torch.rand(4)
mean, var = torch.zeros(4), torch.ones(4)
got = sync_batch_norm(share, mean, var, weight, bias)
norm = nn.BatchNorm2d(4)
norm.weight.data, norm.bias.data = weight, bias
expected = norm(x)
close(got, (expected[:2] if rank == 0 else expected[2:]).detach(), rtol=1e-5, atol=1e-5)
close(mean, norm.running_mean)
close(var, norm.running_var)
half = sync_batch_norm(share.bfloat16(), None, None)
assert half.dtype == torch.bfloat16
close(half.float(), (got - bias[:, None, None]) / weight[:, None, None], rtol=0, atol=0.05)
try:
    sync_batch_norm(torch.zeros(1 - rank, 4, 1, 1), None, None)
    raise SystemExit("one value has no variance")
except ValueError:
    pass
dist.destroy_process_group()
"""


def test_synchronized_batch_norm_equals_one_process_with_the_whole_batch():
    """SyncBatchNorm: outputs, gradients and running statistics of two gloo processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        BatchNormAct2d(4),
        nn.Dropout(0.9),
    )


def test_reestimated_statistics_equal_torchs_update_bn():
    """BNReestimation: of one batch, all that torch says; of several, also the variance between them."""
    images = torch.randn(32, 3, 8, 8) * 2 + torch.linspace(-2, 2, 32)[:, None, None, None]
    for batches in (images.split(32), images.split(8)):
        model, reference = small().eval(), small()
        reference[5].p = 0
        means = []

        def see(module, inputs, means=means):
            means.append(inputs[0].mean((0, 2, 3)))

        reference[1].register_forward_pre_hook(see)
        update_bn(batches, reference)
        state = start_average(model)
        assert reestimate_statistics(model, state, batches) == ["1", "4"]
        for name in ("1", "4"):
            torch.testing.assert_close(
                state[f"{name}.running_mean"],
                reference.get_submodule(name).running_mean,
                rtol=1e-4,
                atol=1e-5,
            )
        pixels, count = len(batches[0]) * 36, len(images) * 36
        within = reference[1].running_var * (pixels - 1) / pixels
        between = torch.stack(means).var(0, correction=0)
        torch.testing.assert_close(state["1.running_var"], (within + between) * count / (count - 1))
        assert (between.max() > 0.01) == (len(batches) > 1)


def test_reestimated_statistics_are_those_of_the_population():
    model = small().eval()
    images = torch.randn(50, 3, 8, 8)
    state = start_average(model)
    reestimate_statistics(model, state, images.split(17))
    maps = model[0](images).double()
    torch.testing.assert_close(state["1.running_mean"].double(), maps.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state["1.running_var"].double(), maps.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_reestimation_uses_the_given_weights_and_leaves_the_model_alone():
    model = small().eval()
    model[1].train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value * 2 if value.is_floating_point() else value for name, value in before.items()}
    state = {name: value.clone() for name, value in other.items()}
    batches = (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8))
    reestimate_statistics(model, state, batches)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model[1].training
    assert not model[4].training
    assert not any(m._forward_pre_hooks for m in model.modules())
    kept = [name for name in state if "running" not in name]
    assert all(torch.equal(other[name], state[name]) for name in kept)
    torch.manual_seed(5)
    same = copy.deepcopy(model)
    same.load_state_dict(other)
    again = start_average(same)
    reestimate_statistics(same, again, batches)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_last_image_alone_is_left_out_and_no_image_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 6, 8), nn.BatchNorm2d(6)).eval()  # one value a channel and image
    images = torch.randn(9, 3, 8, 8)
    states = [start_average(model) for _ in range(2)]
    reestimate_statistics(model, states[0], images.split(4))
    reestimate_statistics(model, states[1], images[:8].split(4))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(ValueError, match="no image"):
        reestimate_statistics(model, states[0], [])

    def never():
        raise AssertionError("nobody looks at them")
        yield

    assert reestimate_statistics(nn.Linear(2, 2), {}, never()) == []


def test_bn_reestimation_takes_the_average_before_it_or_the_raw_weights():
    model = small().eval()
    trick = BNReestimation(images=8)
    images = [torch.randn(8, 3, 8, 8)]
    mine = trick.start(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    trick.update(mine, model, 0, Timeline(4, 2))
    raw = start_average(model)
    assert all(torch.equal(mine[name], raw[name]) for name in raw)
    averages = {"ema": {n: v * 3 for n, v in raw.items()}, "swa": {n: v * 2 for n, v in raw.items()}}
    for before in ({}, {"ema": averages["ema"]}, averages):
        expected = {n: v.clone() for n, v in (list(before.values()) or [raw])[-1].items()}
        given = {**before, trick.kind: mine}
        BNReestimation.null().finish(given, model, iter(()))
        assert all(torch.equal(mine[name], expected[name]) for name in expected)
        trick.finish(given, model, images)
        reestimate_statistics(model, expected, images)
        assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert (trick.sample_size, BNReestimation.null().sample_size) == (8, 1)


def test_bn_reestimation_says_where_it_cannot_act():
    assert list(BNReestimation().check(context(BNReestimation()))) == []
    (problem,) = BNReestimation().check(context(BNReestimation(), name="test_vit"))
    assert "no batch norm" in problem.what
    (problem,) = BNReestimation(images=1).check(context(BNReestimation(images=1)))
    assert "one image" in problem.what
    assert list(BNReestimation.null().check(context(BNReestimation.null(), name="test_vit"))) == []
