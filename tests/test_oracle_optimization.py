"""Optimizers against float64 formulas, parameter groups against timm, precision against the hardware."""

from __future__ import annotations

import inspect
import re
from itertools import permutations

import numpy as np
import pytest
import timm
import timm.layers
import torch
import torchvision.ops
from pydantic import ValidationError
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.optim._param_groups import _matches_pattern
from torch import nn
from torchvision.models import convnext_tiny

from trickbag.data.base import DataFacts
from trickbag.functional import muon
from trickbag.functional.param_groups import decayed_names, head_names, is_norm, split_decay, stage_layers
from trickbag.plan import Context, parameter_groups
from trickbag.recipe.model import Recipe
from trickbag.tasks import nets
from trickbag.tricks import precision
from trickbag.tricks.optimization import DEFAULT, SGD, AdamW, Muon, Nesterov
from trickbag.tricks.param_groups import BackboneLR, LayerDecay, NoBiasNormDecay
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
    for trick in (SGD, Nesterov, AdamW, Muon):
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
        (Muon, {"momentum": 1}),
        (Muon, {"steps": 0}),
        (Muon, {"scale": "spectral"}),
        (Muon, {"head_lr": 0}),
    ],
)
def test_settings_out_of_bounds_are_refused(trick, bad):
    with pytest.raises(ValidationError):
        trick(**bad)


def newton_schulz(matrix, steps=5):
    """Jordan et al. 2024, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


SHAPES = [(16, 16), (16, 24), (16, 144), (144, 16), (24, 16), (1, 9), (9, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_orthogonalize_equals_newton_schulz_in_float64(shape, steps):
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(3, *shape))
    u, s, v = np.linalg.svd(matrices[2], full_matrices=False)
    matrices[2] = u * 10.0 ** -np.arange(len(s)) @ v  # far from orthogonal
    wanted = np.stack([newton_schulz(m, steps) for m in matrices])
    found = muon.orthogonalize(torch.tensor(matrices), steps)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-10)
    single = muon.orthogonalize(torch.tensor(matrices, dtype=torch.float32), steps)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), wanted, rtol=0, atol=5e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_brings_singular_values_near_1_and_keeps_singular_vectors(shape):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ muon.orthogonalize(matrix[None])[0] @ vh.T
    torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0, atol=1e-9)
    large = s > 0.01 * s.norm()
    assert inner.diagonal()[large].min() > 0.65
    assert inner.diagonal().max() < 1.25
    assert not muon.orthogonalize(torch.zeros(2, 3, 4)).any()


def run(optimizer, parameters, gradients):
    for at_step in gradients:
        for p, g in zip(parameters, at_step, strict=True):
            p.grad = torch.tensor(g, dtype=p.dtype).reshape(p.shape)
        optimizer.step()


@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torchs_on_matrices(nesterov, scale):
    """torch computes in bfloat16, whose 8 bits bound the difference."""
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape) for shape in ((8, 12), (12, 8), (8, 12), (6, 6))]
    gradients = [[rng.normal(size=w.shape) for w in starts] for _ in range(5)]
    ours, theirs = ([nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in starts] for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.3}
    run(muon.Muon(ours, scale=scale, **settings), ours, gradients)
    run(torch.optim.Muon(theirs, adjust_lr_fn=scale, **settings), theirs, gradients)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_kernels_for_matrices_and_follows_the_formula(layout, normalize):
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=shape) for shape in ((6, 4, 3, 3), (6, 4, 3, 3), (40, 2, 3, 3), (5, 7))]
    gradients = [[rng.normal(size=w.shape) for w in starts] for _ in range(4)]
    parameters = [
        nn.Parameter(torch.tensor(w).to(memory_format=layout) if w.ndim == 4 else torch.tensor(w))
        for w in starts
    ]
    trick = Muon(lr=0.1, momentum=0.6, weight_decay=0.2, normalize=normalize, steps=3)
    run(trick.build([{"params": parameters}]), parameters, gradients)
    for index, start in enumerate(starts):
        w, m = start.reshape(len(start), -1), 0.0
        for at_step in gradients:
            g = at_step[index].reshape(w.shape)
            m = 0.6 * m + g
            if normalize:  # airbench94_muon.py
                w = w * len(w) ** 0.5 / np.linalg.norm(w)
            u = newton_schulz(g + 0.6 * m, 3) * max(1, w.shape[0] / w.shape[1]) ** 0.5
            w = w * (1 - 0.1 * 0.2) - 0.1 * u
        np.testing.assert_allclose(parameters[index].detach().numpy(), w.reshape(start.shape), rtol=1e-8)


@pytest.mark.parametrize("other", ["adamw", "nesterov"])
def test_muon_leaves_the_rest_to_torch_optimizers_with_rates_of_their_own(other):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(20, 2)
        ).double()

    ours, theirs = net(), net()
    names = [n for n, _ in ours.named_parameters()]
    assert names[4] == "2.weight"
    trick = Muon(
        lr=0.02, other=other, other_lr=0.01, other_weight_decay=0.1, head_lr=0.3, head_weight_decay=0.0
    )
    optimizer = trick.build(trick.groups(ours, parameter_groups(ours)))
    rest = [p for n, p in theirs.named_parameters() if n not in ("2.weight", "4.weight")]
    groups = [
        {"params": rest, "lr": 0.01, "weight_decay": 0.1},
        {"params": [theirs[4].weight], "lr": 0.3, "weight_decay": 0.0},
    ]
    if other == "adamw":
        reference = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    else:
        reference = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)
    rng = np.random.default_rng(0)
    for step in range(4):
        values = [rng.normal(size=p.shape) for p in ours.parameters()]
        rate = 1 / (1 + step)  # a schedule, as the engine applies it
        for group in optimizer.param_groups:
            group["lr"] = trick.lr * rate * group.get("lr_scale", 1.0)
        for group, base in zip(reference.param_groups, (0.01, 0.3), strict=True):
            group["lr"] = base * rate
        run(optimizer, list(ours.parameters()), [values])
        run(reference, list(theirs.parameters()), [values])
        if step == 1:  # and a state that has been saved and loaded
            optimizer.load_state_dict(optimizer.state_dict())
    for name, p in ours.named_parameters():
        if name != "2.weight":
            torch.testing.assert_close(p, theirs.get_parameter(name), rtol=1e-10, atol=1e-12)
    assert not torch.equal(ours[2].weight, theirs[2].weight)
    assert set(optimizer.state[ours[2].weight]) == {"momentum_buffer"}


def test_muon_acts_on_hidden_weights_and_on_nothing_else():
    for name, count in (("resnet18", 19), ("vit_tiny_patch16_224", 48), ("mobilenetv3_small_100", 41)):
        model = meta(name)
        groups = parameter_groups(model, (NoBiasNormDecay(),))
        found = Muon(weight_decay=0.1, other_weight_decay=0.2).groups(model, groups)
        names = [n for g in found for n in g["names"]]
        assert sorted(names) == sorted(n for n, _ in model.named_parameters())
        hidden = {n for g in found if g["muon"] for n in g["names"]}
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        inner = list(layers)[1:-1]
        assert hidden == {f"{n}.weight" for n in inner if getattr(layers[n], "groups", 1) == 1}
        assert len(hidden) == count
        assert [g["names"] for g in found if g["head"]] == [[f"{list(layers)[-1]}.weight"]]
        for group in found:
            assert all(
                model.get_parameter(n) is p for n, p in zip(group["names"], group["params"], strict=True)
            )
            spared = not any(n in decayed_names(model) for n in group["names"])
            wanted = 0.0 if spared else None if group["muon"] else 0.2
            assert group.get("weight_decay") == wanted
            assert group.get("lr_scale", 1.0) == pytest.approx(1.0 if group["muon"] else 1e-3 / 0.02)
        everything = Muon(first=True, last=True).groups(model, groups)
        assert len({n for g in everything if g["muon"] for n in g["names"]}) == count + 2
    scaled = [{**g, "lr_scale": 0.5} for g in parameter_groups(meta("resnet18"))]
    scales = {g["muon"]: g["lr_scale"] for g in Muon(lr=0.02, other_lr=0.01).groups(meta("resnet18"), scaled)}
    assert scales == {True: 0.5, False: 0.25}


def test_muon_says_where_it_cannot_act():
    with pytest.raises(ValueError, match=r"not for parameters of shape \(3,\)"):
        muon.Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="no other optimizer"):
        muon.Muon([{"params": [nn.Parameter(torch.zeros(3))], "muon": False}])
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = muon.Muon([weight], scale="odd")
    with pytest.raises(ValueError, match="expected 'original'"):
        run(optimizer, [weight], [[np.ones((3, 3))]])
    assert list(Muon().check(context())) == []
    linear = context()
    vars(linear)["model"] = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    (problem,) = Muon().check(linear)
    assert "no weights of hidden layers" in problem.what
    vars(linear)["model"] = nn.Flatten()
    (problem,) = Muon().check(linear)
    assert "no convolution or linear layer" in problem.what


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


def scales(model, *tricks):
    """Name -> (lr_scale, weight_decay) of each parameter."""
    found = {}
    for group in parameter_groups(model, tricks):
        for name, p in zip(group["names"], group["params"], strict=True):
            assert model.get_parameter(name) is p
            assert name not in found
            found[name] = group.get("lr_scale", 1.0), group.get("weight_decay")
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


@pytest.mark.parametrize("rate", [0.75, 0.6])
@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224", "convnext_tiny", "test_vit"]
)
def test_layer_decay_gives_each_parameter_timms_scale(name, rate):
    model = meta(name)
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = param_groups_layer_decay(model, 0.05, no_weight_decay_list=listed, layer_decay=rate)
    names = {p: n for n, p in model.named_parameters()}
    wanted = {names[p]: g["lr_scale"] for g in theirs for p in g["params"]}
    found = scales(model, LayerDecay(rate=rate))
    assert {n: scale for n, (scale, _) in found.items()} == pytest.approx(wanted, rel=1e-12)
    assert len(set(wanted.values())) > 5
    assert all(found[n][0] == 1 for n in head_names(model))
    assert list(LayerDecay(rate=rate).check(context())) == []


def test_layer_decay_goes_by_stem_stages_and_classifier_in_built_in_nets():
    for build in nets.NETS.values():
        with torch.device("meta"):
            model = build(10)
        layers = stage_layers(model)
        count = len(model.stages)
        assert layers["stem.0.weight"] == 0
        assert layers["fc.bias"] == count + 1
        assert {layers[n] for n in layers if n.startswith(f"stages.{count - 1}.")} == {count}
        found = scales(model, LayerDecay(rate=0.5))
        assert found["stem.0.weight"][0] == 0.5 ** (count + 1)
        assert found["fc.weight"][0] == 1


def test_layer_decay_says_where_it_cannot_act():
    linear = context()
    vars(linear)["model"] = meta("pit_ti_224")  # without a group_matcher
    (problem,) = LayerDecay().check(linear)
    assert "does not say" in problem.what
    vars(linear)["model"] = nn.Linear(3, 2)
    vars(linear)["model"].group_matcher = lambda coarse: {"head": ".*"}
    (problem,) = LayerDecay().check(linear)
    assert "single layer" in problem.what
    assert list(LayerDecay.null().check(linear)) == []


HEADS = {
    "resnet18": {"fc"},
    "swin_tiny_patch4_window7_224": {"head.fc"},
    "convnext_tiny": {"head.fc"},
    "deit_tiny_distilled_patch16_224": {"head", "head_dist"},
    "mobilenetv3_small_100": {"classifier"},
    "resnetv2_50x1_bit": {"head.fc"},  # a convolution
    "levit_128s": {"head.linear", "head_dist.linear"},
    "nasnetalarge": {"last_linear"},
}


@pytest.mark.parametrize("name", HEADS)
def test_backbone_lr_spares_the_classifier_that_timm_resets(name):
    model = meta(name)
    head = head_names(model)
    assert head == {f"{module}.{part}" for module in HEADS[name] for part in ("weight", "bias")}
    found = scales(model, BackboneLR(factor=0.1))
    assert all(scale == (1.0 if n in head else 0.1) for n, (scale, _) in found.items())
    before = dict(model.named_parameters())
    with torch.device("meta"):
        model.reset_classifier(3)
    changed = {n for n, p in model.named_parameters() if p is not before[n]}
    assert {n for n, p in model.named_parameters() if p.shape != before[n].shape} <= head <= changed


def test_classifiers_are_found_without_timms_listing():
    model = meta("resnet18")
    model.pretrained_cfg = {}
    assert head_names(model) == {"fc.weight", "fc.bias"}  # get_classifier()
    with torch.device("meta"):
        assert head_names(convnext_tiny()) == {"classifier.2.weight", "classifier.2.bias"}
        net = nets.mini_resnet(4)
        net.fc = nn.Sequential(nn.Dropout(), net.fc)  # as a trick may wrap it
    assert head_names(net) == {"fc.1.weight", "fc.1.bias"}
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        head_names(nn.BatchNorm2d(3))


def test_group_tricks_compose_in_any_order_and_with_muon():
    model = meta("test_vit")
    tricks = (NoBiasNormDecay(), BackboneLR(factor=0.1), LayerDecay(rate=0.75))
    alone = [scales(model, trick) for trick in tricks]
    for order in permutations(tricks):
        for name, (scale, decay) in scales(model, *order).items():
            assert scale == pytest.approx(alone[1][name][0] * alone[2][name][0], rel=1e-12)
            assert decay == alone[0][name][1]
    for trick in (BackboneLR, LayerDecay):
        start = parameter_groups(model)
        assert trick.null().groups(model, start) is start
    groups = Muon(lr=0.02, other_lr=0.01).groups(model, parameter_groups(model, tricks))
    together = scales(model, *tricks)
    for group in groups:
        for name in group["names"]:
            own = 1.0 if group["muon"] else 0.5
            assert group["lr_scale"] == pytest.approx(own * together[name][0])


def test_the_engines_rates_follow_the_scales():
    model = nets.mini_resnet(4)
    optimizer = SGD(lr=0.1).build(parameter_groups(model, (BackboneLR(factor=0.25),)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for group in optimizer.param_groups:  # as engine.train sets them
        group["lr"] = 0.1 * group.get("lr_scale", 1.0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        moved = (before[name] - p.detach()).double()
        rate = 0.1 if name.startswith("fc.") else 0.025
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-4, atol=1e-6)


def test_slow_layers_from_random_weights_are_worth_a_note():
    for trick in (BackboneLR(), LayerDecay()):
        assert list(trick.notes(context(trick))) != []
        pretrained = context(trick)
        recipe = pretrained.recipe.replace(model={"name": "resnet18", "pretrained": True})
        assert list(trick.notes(Context(recipe, FACTS))) == []
        assert list(trick.null().notes(context(trick))) == []
    assert list(BackboneLR(factor=2).notes(context())) == []
    for bad in ((BackboneLR, {"factor": 0}), (LayerDecay, {"rate": 0}), (LayerDecay, {"rate": 1.1})):
        with pytest.raises(ValidationError):
            bad[0](**bad[1])


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
