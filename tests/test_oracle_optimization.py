"""Optimizers against float64 formulas, parameter groups against timm, precision against the hardware."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import timm
import timm.layers
import torch
import torchvision.ops
from pydantic import ValidationError
from timm.optim import param_groups_weight_decay
from timm.optim._param_groups import _matches_pattern
from torch import nn
from torchvision.models import convnext_tiny

from trickbag.data.base import DataFacts
from trickbag.functional.param_groups import decayed_names, is_norm, split_decay
from trickbag.plan import Context, parameter_groups
from trickbag.recipe.model import Recipe
from trickbag.tricks import precision
from trickbag.tricks.optimization import DEFAULT, SGD, AdamW, Nesterov
from trickbag.tricks.param_groups import NoBiasNormDecay
from trickbag.tricks.precision import MixedPrecision

FACTS = DataFacts("x", ("a", "b"), 3, {"train": 320}, (32, 32), "f")


def context(*tricks, device="cpu"):
    recipe = Recipe(model="resnet18", epochs=1, batch_size=8, image_size=32, tricks=tricks)
    return Context(recipe, FACTS, device)


def sgd(w, gradients, lr, momentum, decay, dampening=0.0, nesterov=False):
    buffer = None
    for g in gradients:
        g = g + decay * w
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        w = w - lr * (g + momentum * buffer if nesterov else buffer)
    return w


def adamw(w, gradients, lr, betas, eps, decay):
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        w = w * (1 - lr * decay)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return w


CASES = [
    (DEFAULT, lambda w, g, d: sgd(w, g, 0.1, 0.0, d)),
    (SGD(lr=0.05, weight_decay=0.02), lambda w, g, d: sgd(w, g, 0.05, 0.9, d)),
    (SGD(lr=0.05, momentum=0.5, dampening=0.3), lambda w, g, d: sgd(w, g, 0.05, 0.5, d, 0.3)),
    (Nesterov(lr=0.05, weight_decay=0.02), lambda w, g, d: sgd(w, g, 0.05, 0.9, d, nesterov=True)),
    (
        AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
        lambda w, g, d: adamw(w, g, 0.01, (0.8, 0.95), 1e-6, d),
    ),
]


@pytest.mark.parametrize(("trick", "formula"), CASES)
@pytest.mark.parametrize("own_decay", [None, 0.0, 0.3])
def test_optimizers_follow_their_formulas_and_a_groups_own_decay_wins(trick, formula, own_decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), rng.normal(size=(7, 4, 3))
    parameter = nn.Parameter(torch.tensor(start))
    group = {"params": [parameter], "names": ["w"]}
    if own_decay is not None:
        group["weight_decay"] = own_decay
    optimizer = trick.build([group])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    decay = trick.weight_decay if own_decay is None else own_decay
    np.testing.assert_allclose(
        parameter.detach().numpy(), formula(start, gradients, decay), rtol=1e-10, atol=1e-12
    )


def test_optimizers_use_fused_kernels_and_keep_names():
    for trick in (SGD(), Nesterov(), AdamW()):
        optimizer = trick.build(parameter_groups(nn.Linear(3, 2)))
        assert optimizer.defaults["fused"] is True
        assert optimizer.param_groups[0]["names"] == ["weight", "bias"]
        assert optimizer.param_groups[0]["lr"] == trick.lr
        meta = trick.build(parameter_groups(nn.Linear(3, 2, device="meta")))
        assert meta.defaults["foreach"] is True


def test_an_empty_slot_is_plain_sgd():
    for trick in (SGD, Nesterov, AdamW):
        assert trick.null() == DEFAULT
        assert trick.slot == "optimizer"
    assert (DEFAULT.lr, DEFAULT.momentum, DEFAULT.weight_decay) == (0.1, 0.0, 0.0)
    assert SGD(**SGD.null_setting) == DEFAULT


@pytest.mark.parametrize(
    ("trick", "bad"),
    [
        (SGD, {"lr": 0}),
        (SGD, {"momentum": 1}),
        (SGD, {"weight_decay": -1e-4}),
        (Nesterov, {"momentum": 0}),
        (AdamW, {"betas": (0.9, 1.0)}),
        (AdamW, {"eps": 0}),
    ],
)
def test_settings_out_of_bounds_are_refused(trick, bad):
    with pytest.raises(ValidationError):
        trick(**bad)


def meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10)


def layer_weights(model):
    """Names of the weights of convolutions, linear layers and embeddings, found the plain way."""
    layers = (nn.Conv2d, nn.Conv1d, nn.Linear, nn.Embedding)
    return {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, layers)}


MODELS = [
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "convnext_tiny",
    "tf_efficientnet_lite0",  # BatchNormAct2d
    "mobilenetv3_small_100",
    "regnety_002",
    "dm_nfnet_f0",  # gains of shape (out, 1, 1, 1)
    "xcit_nano_12_p16_224",  # temperatures of shape (heads, 1, 1)
    "levit_128s",  # attention biases
    "maxvit_tiny_tf_224",
    "resnetv2_50x1_bit",  # GroupNormAct
    "evonorm",  # a resnet26 with EvoNorm
]


@pytest.mark.parametrize("name", MODELS)
def test_decay_falls_on_the_weights_of_layers_and_on_nothing_else(name):
    if name == "evonorm":
        with torch.device("meta"):
            model = timm.create_model("resnet26", norm_layer=timm.layers.EvoNorm2dB0)
    else:
        model = meta(name)
    decayed, spared = NoBiasNormDecay().groups(model, parameter_groups(model))
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    listed = {n for n in layer_weights(model) if _matches_pattern(n, listed)}
    assert set(decayed["names"]) == layer_weights(model) - listed
    assert listed <= {"pos_embed.token_projection.weight"}  # xcit's, which it lists as "pos_embed.*"
    assert spared["weight_decay"] == 0
    assert "weight_decay" not in decayed
    assert sorted(decayed["names"] + spared["names"]) == sorted(n for n, _ in model.named_parameters())
    for group in (decayed, spared):
        assert all(model.get_parameter(n) is p for n, p in zip(group["names"], group["params"], strict=True))


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_groups_equal_timms_where_timm_is_right(name):
    model = meta(name)
    decayed, spared = split_decay(model)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = {
        g["weight_decay"]: g["params"]
        for g in param_groups_weight_decay(model, 0.05, no_weight_decay_list=listed)
    }
    assert {id(p) for p in decayed["params"]} == {id(p) for p in theirs[0.05]}
    assert {id(p) for p in spared["params"]} == {id(p) for p in theirs[0.0]}


def test_a_models_own_list_is_heeded_also_inside_a_wrapper():
    model = meta("swinv2_tiny_window8_256")
    listed = set(model.no_weight_decay())
    assert any("cpb_mlp" in name for name in listed)
    assert decayed_names(model) == layer_weights(model) - listed
    wrapped = nn.Sequential(model)
    assert decayed_names(wrapped) == {f"0.{name}" for name in layer_weights(model) - listed}


def test_layer_scales_of_torchvision_are_spared():
    with torch.device("meta"):
        model = convnext_tiny()
    assert decayed_names(model) == layer_weights(model)
    assert model.features[1][0].layer_scale.ndim == 3


def norms():
    """Every class that normalizes activations, in torch, timm and torchvision."""
    wanted = re.compile(r"Norm|InplaceAbn")
    containers = re.compile(r"Conv|Mlp|Head|Instance.*Lazy|Lazy")
    for module in (torch.nn, timm.layers, torchvision.ops):
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, nn.Module) and wanted.search(name) and not containers.search(name):
                yield pytest.param(cls, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("cls", list(norms()))
def test_no_parameter_of_any_norm_is_decayed(cls):
    try:
        norm = cls(4, 64) if cls is nn.GroupNorm else cls(64)
    except ImportError as error:
        pytest.skip(f"{cls.__name__} needs another package: {error}")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), norm)
    assert decayed_names(model) == {"0.weight"}
    if [*norm.parameters(), *norm.buffers()]:
        assert any(is_norm(module) for module in norm.modules())


def test_norms_over_several_dimensions_are_spared():
    model = nn.Sequential(nn.LayerNorm((4, 8, 8)), nn.RMSNorm((8, 8)), nn.Linear(8, 1), nn.PReLU(4))
    assert decayed_names(model) == {"2.weight"}


def test_attention_recurrent_and_parametrized_weights_are_decayed():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2, add_bias_kv=True),
            "lstm": nn.LSTM(4, 4),
            "normed": nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
            "embedding": nn.Embedding(5, 4),
        }
    )
    assert decayed_names(model) == {
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "normed.parametrizations.weight.original1",
        "embedding.weight",
    }


def test_groups_keep_their_other_entries_frozen_parameters_stay_out_and_null_is_absence():
    model = timm.create_model("resnet18", num_classes=4)
    model.conv1.weight.requires_grad_(False)
    start = parameter_groups(model)
    assert NoBiasNormDecay.null().groups(model, start) is start
    start = [{**start[0], "lr_scale": 0.5}]
    groups = NoBiasNormDecay().groups(model, start)
    assert [g["lr_scale"] for g in groups] == [0.5, 0.5]
    assert "conv1.weight" not in groups[0]["names"] + groups[1]["names"]
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied.b.weight = tied.a.weight
    assert sorted(n for g in split_decay(tied) for n in g["names"]) == ["a.bias", "a.weight", "b.bias"]


def test_sparing_from_no_decay_is_worth_a_note():
    trick = NoBiasNormDecay()
    assert list(trick.notes(context(trick))) != []
    assert list(trick.notes(context(trick, SGD()))) != []
    assert list(trick.notes(context(trick, SGD(weight_decay=1e-4)))) == []


def test_precision_speaks_fabrics_words():
    from lightning_fabric import Fabric

    names = {dtype: MixedPrecision(dtype=dtype).precision() for dtype in ("bf16", "fp16", "fp32")}
    assert names == {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
    fabric = Fabric(accelerator="cpu", devices=1, precision=names["bf16"])
    layer = nn.Linear(2, 2)
    wrapped = fabric.setup_module(layer)
    with fabric.autocast():
        assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    assert wrapped(torch.ones(1, 2)).dtype == torch.float32


def test_fp16_is_refused_on_a_cpu_and_slow_bf16_is_announced(monkeypatch):
    (problem,) = MixedPrecision(dtype="fp16").check(context())
    assert "bf16" in problem.fix
    assert "CPU" in problem.what
    assert list(MixedPrecision(dtype="fp16").check(context(device="cuda"))) == []
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for native in (True, False):
        for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, probe, lambda native=native: native, raising=False)
        assert bool(list(MixedPrecision().notes(context()))) is not native
    assert list(MixedPrecision(dtype="fp32").notes(context())) == []
    assert list(MixedPrecision(dtype="fp32").check(context())) == []
