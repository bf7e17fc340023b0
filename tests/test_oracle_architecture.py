"""Model tricks against timm, torchvision, torch.nn.init and arithmetic by hand."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath as TimmDropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import convnext_tiny as torchvision_convnext
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models import swin_t as torchvision_swin
from torchvision.models import vgg11_bn
from torchvision.ops import StochasticDepth as TorchvisionStochasticDepth

from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.functional.initialization import zero_gamma
from trickbag.functional.regularization import DropPath, depth_rates, stochastic_depth
from trickbag.functional.surgery import CannotOperate, pool_shortcuts, resnet_variant
from trickbag.plan import Context
from trickbag.recipe.model import ModelSpec, Recipe
from trickbag.rng import Stream
from trickbag.tasks.classification import build_model
from trickbag.tasks.nets import NETS
from trickbag.tricks.architecture import ResNetVariant
from trickbag.tricks.initialization import HeInit, TruncNormalInit, XavierInit, ZeroGamma
from trickbag.tricks.regularization import Dropout, StochasticDepth

STREAM = Stream(0, "init")
FACTS = DataFacts("x", tuple("abcdefghij"), 3, {"train": 1000}, (32, 32), "f")


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def context(trick, **model):
    recipe = Recipe(
        model={"name": "resnet50", **model}, epochs=1, batch_size=8, image_size=32, tricks=[trick]
    )
    return Context(recipe, FACTS)


def multiply_adds(model, size=224):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def multiply_adds_of_resnet50a():
    """He et al. 2016, table 1, counted by hand: (cost of convolutions and of the classifier)."""
    total = 112 * 112 * 64 * 3 * 49 + 2048 * 1000
    channels = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        area = (56 // 2**stage) ** 2
        for block in range(blocks):
            # variant A: already the first 1x1 works on the small map
            total += area * (channels * width + 9 * width * width + width * 4 * width)
            if block == 0:
                total += area * channels * 4 * width
            channels = 4 * width
    return total


@pytest.mark.parametrize(("variant", "billions"), [("a", 3.8), ("b", 4.1), ("c", 4.3), ("d", 4.3)])
def test_resnet50_variants_cost_what_the_paper_says(variant, billions):
    model = ResNetVariant(variant=variant).edit(meta("resnet50"), STREAM)
    assert abs(multiply_adds(model) / 1e9 - billions) < 0.06


def test_variant_a_costs_what_it_costs_by_hand():
    model = ResNetVariant(variant="a").edit(meta("resnet50"), STREAM)
    assert multiply_adds(model) == multiply_adds_of_resnet50a()
    assert sum(p.numel() for p in model.parameters()) == 25_557_032


def test_variants_have_the_structure_of_timms():
    assert shapes(ResNetVariant(variant="b").edit(meta("resnet50"), STREAM)) == shapes(meta("resnet50"))
    assert shapes(ResNetVariant(variant="c").edit(meta("resnet50"), STREAM)) == shapes(meta("resnet50c"))
    assert shapes(ResNetVariant(variant="d").edit(meta("resnet50"), STREAM)) == shapes(meta("resnet50d"))
    for ours, theirs in (("c", "resnet50c"), ("d", "resnet50d")):
        model = ResNetVariant(variant=ours).edit(meta("resnet50"), STREAM)
        assert multiply_adds(model) == multiply_adds(meta(theirs))


@pytest.mark.parametrize("size", [64, 71])
@pytest.mark.parametrize(
    ("base", "variant", "reference", "options"),
    [
        ("resnet26", "d", "resnet26d", {}),
        ("resnet18", "d", "resnet18d", {}),
        ("resnet26", "c", "resnet26", {"stem_type": "deep", "stem_width": 32}),
    ],
)
def test_variants_compute_what_timms_compute(base, variant, reference, options, size):
    model = ResNetVariant(variant=variant).edit(timm.create_model(base, num_classes=7), STREAM).eval()
    other = timm.create_model(reference, num_classes=7, **options).eval()
    other.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model(images), other(images))


def test_variant_a_computes_what_its_definition_says():
    model = timm.create_model("resnet26", num_classes=7).eval()
    block = model.layer2[0]
    x = torch.rand(2, 256, 14, 14)
    ResNetVariant(variant="a").edit(model, STREAM)
    with torch.no_grad():
        # a strided 1x1 convolution sees every second pixel and no other
        small = block.act1(block.bn1(nn.functional.conv2d(x[:, :, ::2, ::2], block.conv1.weight)))
        small = block.act2(block.bn2(nn.functional.conv2d(small, block.conv2.weight, padding=1)))
        branch = block.bn3(nn.functional.conv2d(small, block.conv3.weight))
        expected = block.act3(branch + block.downsample(x))
        torch.testing.assert_close(block(x), expected)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ResNetVariant(variant="b").edit(model, STREAM)
    assert block.conv2.stride == (2, 2)
    assert block.conv1.stride == (1, 1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_untouched_modules_keep_their_weights_and_new_ones_come_from_the_stream():
    torch.manual_seed(1)
    model = timm.create_model("resnet18")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ResNetVariant(variant="d").edit(model, STREAM)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if k in after and "downsample" not in k)
    assert torch.equal(after["layer2.0.downsample.1.weight"], before["layer2.0.downsample.0.weight"])
    expected = torch.empty(64, 32, 3, 3)
    generator = STREAM.child("conv1.6").torch()
    nn.init.kaiming_normal_(expected, mode="fan_out", nonlinearity="relu", generator=generator)
    assert torch.equal(after["conv1.6.weight"], expected)
    torch.manual_seed(99)
    again = ResNetVariant(variant="d").edit(timm.create_model("resnet18"), STREAM).state_dict()
    assert torch.equal(again["conv1.0.weight"], after["conv1.0.weight"])


def test_variants_work_on_torchvision_and_twice():
    with torch.device("meta"):
        model = torchvision_resnet50()
    assert shapes(resnet_variant(model, "d")) == shapes(meta("resnet50d"))
    assert shapes(resnet_variant(model, "d")) == shapes(meta("resnet50d"))


def test_absent_variant_leaves_the_model_alone():
    model = meta("resnet50")
    assert shapes(ResNetVariant.null().edit(model, STREAM)) == shapes(meta("resnet50"))
    assert model.layer2[0].conv2.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "variant", "reason"),
    [
        ("resnet18", "a", "basic blocks"),
        ("resnet50d", "b", "deep stem"),
        ("resnet50d", "c", "pooled"),
        ("vit_tiny_patch16_224", "d", "not a ResNet"),
        ("regnety_002", "d", "not a ResNet"),
        ("skresnet18", "d", "not a ResNet"),
    ],
)
def test_variant_refuses_what_it_cannot_do(name, variant, reason):
    with pytest.raises(PlanError, match=reason) as caught:
        ResNetVariant(variant=variant).edit(meta(name), STREAM)
    assert "resnet_variant" in str(caught.value)


def test_variant_refuses_built_in_nets_and_odd_shortcuts():
    with pytest.raises(PlanError, match="not a ResNet"):
        ResNetVariant().edit(build_model(ModelSpec(name="resnet20"), FACTS, STREAM, "meta"), STREAM)
    with pytest.raises(CannotOperate, match="1x1"):
        pool_shortcuts(meta("resnet18", down_kernel_size=3))


def test_surgery_and_initialization_refuse_pretrained_weights():
    for trick in (
        ResNetVariant(variant="c"),
        ResNetVariant(variant="d"),
        XavierInit(),
        HeInit(),
        TruncNormalInit(),
        ZeroGamma(),
    ):
        (problem,) = trick.check(context(trick, pretrained=True))
        assert "resnet50" in problem.what
        assert trick.kind in problem.where
        assert list(trick.check(context(trick, weights="x.pth"))) != []
        assert list(trick.check(context(trick))) == []
        assert list(type(trick).null().check(context(trick, pretrained=True))) == []
    variant = ResNetVariant(variant="a")
    assert list(variant.check(context(variant, pretrained=True))) == []
    assert list(variant.notes(context(variant, pretrained=True))) != []


@pytest.mark.parametrize("name", ["resnet26", "resnet18", "regnety_002", "seresnet18"])
def test_zero_gamma_equals_timms_zero_init_last(name):
    ours, theirs = timm.create_model(name), timm.create_model(name, zero_init_last=True)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    ZeroGamma().edit(ours, STREAM)
    zero = {k for k, v in ours.named_parameters() if k.endswith("weight") and not v.any()}
    assert zero == {k for k, v in theirs.named_parameters() if k.endswith("weight") and not v.any()}
    assert zero


def test_zero_gamma_equals_torchvisions_zero_init_residual():
    model = torchvision_resnet18()
    names = zero_gamma(model)
    other = torchvision_resnet18(zero_init_residual=True)
    assert set(names) == {k for k, v in other.named_parameters() if k.endswith("weight") and not v.any()}
    assert all(not model.get_parameter(name).any() for name in names)


@pytest.mark.parametrize("name", sorted(NETS))
def test_zero_gamma_makes_every_block_of_the_built_in_nets_an_identity(name):
    model = ZeroGamma().edit(build_model(ModelSpec(name=name), FACTS, STREAM), STREAM).eval()
    blocks = [m for m in model.modules() if hasattr(m, "zero_init_last")]
    assert blocks
    assert all(not b.bn2.weight.any() for b in blocks)
    for block in blocks:
        x = torch.rand(1, block.conv1.in_channels, 4, 4)
        shortcut = x if block.downsample is None else block.downsample(x)
        assert torch.equal(block(x), shortcut.relu())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "tf_efficientnet_lite0", "resnetv2_50"])
def test_zero_gamma_refuses_models_without_a_last_norm(name):
    with pytest.raises(PlanError, match="no residual branch that ends in a batch norm"):
        ZeroGamma().edit(meta(name), STREAM)
    with torch.device("meta"), pytest.raises(PlanError, match="zero_gamma"):
        ZeroGamma().edit(vgg11_bn(), STREAM)


def test_zero_gamma_spares_what_is_no_norm():
    model = timm.create_model("resnetv2_50", layers=(1, 1, 1, 1), zero_init_last=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert zero_gamma(model) == []
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def small():
    return nn.Sequential(
        nn.Conv2d(3, 40, 5),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3, groups=4),
        nn.Linear(700, 300),
    )


@pytest.mark.parametrize(
    ("trick", "draw"),
    [
        (XavierInit(), lambda w, g: nn.init.xavier_uniform_(w, generator=g)),
        (XavierInit(distribution="normal", gain=2), lambda w, g: nn.init.xavier_normal_(w, 2, generator=g)),
        (HeInit(), lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g)),
        (
            HeInit(distribution="uniform", mode="fan_out"),
            lambda w, g: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu", generator=g),
        ),
        (TruncNormalInit(), lambda w, g: nn.init.trunc_normal_(w, 0.0, 0.02, -2.0, 2.0, generator=g)),
    ],
)
def test_initial_values_are_torchs_from_a_stream_for_each_layer(trick, draw):
    model = small()
    norm = {k: v.clone() for k, v in model[1].state_dict().items()}
    trick.edit(model, STREAM)
    for name in ("0", "3", "4"):
        layer = model.get_submodule(name)
        assert torch.equal(layer.weight, draw(torch.empty_like(layer.weight), STREAM.child(name).torch()))
        assert not layer.bias.any()
    assert all(torch.equal(norm[k], v) for k, v in model[1].state_dict().items())


@pytest.mark.parametrize(
    ("trick", "variance"),
    [
        (XavierInit(), 2 / (700 + 300)),
        (XavierInit(distribution="normal", gain=0.5), 0.25 * 2 / (700 + 300)),
        (HeInit(), 2 / 700),
        (HeInit(mode="fan_out"), 2 / 300),
        (HeInit(distribution="uniform"), 2 / 700),
        (TruncNormalInit(), 0.02**2),
        (TruncNormalInit(std=1), 0.7737413),  # 1 - 4 pdf(2) / (cdf(2) - cdf(-2))
    ],
)
def test_initial_values_have_the_variance_of_the_formula(trick, variance):
    weight = trick.edit(small(), STREAM)[4].weight.detach()
    assert abs(float(weight.var()) / variance - 1) < 0.02
    if getattr(trick, "distribution", None) == "uniform":
        bound = math.sqrt(3 * variance)
        assert bound * 0.999 < float(weight.abs().max()) <= bound


def test_adding_a_layer_changes_no_other_draw():
    plain = nn.Sequential()
    plain.add_module("first", nn.Conv2d(3, 8, 3))
    plain.add_module("last", nn.Conv2d(8, 8, 3))
    longer = nn.Sequential()
    for name, channels in (("first", 3), ("extra", 8), ("last", 8)):
        longer.add_module(name, nn.Conv2d(channels, 8, 3))
    for trick in (XavierInit(), HeInit(), TruncNormalInit()):
        a, b = trick.edit(plain, STREAM), trick.edit(longer, STREAM)
        assert torch.equal(a.last.weight, b.last.weight)
        assert torch.equal(a.first.weight, b.first.weight)
        assert not torch.equal(b.last.weight, b.extra.weight)


def test_switched_off_and_on_the_meta_device():
    for trick in (XavierInit, HeInit, TruncNormalInit, ZeroGamma):
        model = torchvision_resnet18()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        trick.null().edit(model, STREAM)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        trick.sample().edit(meta("resnet18"), STREAM)
        with pytest.raises(PlanError, match=trick.kind):
            trick.sample().edit(nn.Sequential(nn.ReLU()), STREAM)


def test_initial_weights_of_swin_are_distributed_as_timms_are():
    ours, theirs = timm.create_model("swin_tiny_patch4_window7_224"), meta("swin_tiny_patch4_window7_224")
    before = copy.deepcopy(ours)
    TruncNormalInit().edit(ours, STREAM)
    for name, layer in before.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight.numel() > 5000:
            weight = ours.get_submodule(name).weight
            assert abs(float(weight.detach().std() / layer.weight.detach().std()) - 1) < 0.05, name
            assert not torch.equal(weight, layer.weight)
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert torch.equal(ours.get_parameter(table), before.get_parameter(table))
    assert shapes(ours) == shapes(theirs)


# Stochastic depth and dropout.


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 2**31), st.sampled_from([(), (5,), (2, 3, 4)]))
def test_drop_path_equals_timms_and_torchvisions(batch, p, seed, rest):
    x = torch.randn(batch, *rest, dtype=torch.float64).requires_grad_()
    found = []
    for module in (DropPath(p), TimmDropPath(p), TorchvisionStochasticDepth(p, "row")):
        torch.manual_seed(seed)
        out = module(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        found.append((out, gradient))
        assert torch.equal(module.eval()(x), x)
    assert all(torch.equal(found[0][0], other[0]) and torch.equal(found[0][1], other[1]) for other in found)
    kept = (found[0][1].reshape(batch, -1) != 0).all(1)
    torch.testing.assert_close(found[0][0][kept], x[kept] / (1 - p))  # whole samples, scaled
    assert not found[0][0][~kept].any()


def test_depth_rates_follow_equation_4_and_timms():
    paper = depth_rates(54, 0.5, "paper")  # ResNet-110 of the paper
    for number, rate in enumerate(paper, start=1):
        assert math.isclose(1 - rate, 1 - number / 54 * (1 - 0.5))
    assert depth_rates(3, 0.2, "uniform") == [0.2, 0.2, 0.2]
    assert depth_rates(1, 0.2) == [0.2]
    timms = timm.layers.drop.calculate_drop_path_rates(0.3, 12)
    assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(depth_rates(12, 0.3), timms, strict=True))
    with pytest.raises(ValueError, match="linear"):
        depth_rates(3, 0.1, "cosine")
    with pytest.raises(ValueError, match="below 1"):
        DropPath(1.0)


def rates_of(model):
    kinds = (DropPath, TimmDropPath)
    found = {name: m.drop_prob for name, m in model.named_modules() if isinstance(m, kinds)}
    return {name: rate for name, rate in found.items() if rate}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "resnetv2_50",
        "regnety_002",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "convnext_tiny",
        "fastvit_t8",
        "poolformer_s12",
        "test_vit",
    ],
)
def test_stochastic_depth_is_where_timm_puts_it(name):
    model, other = StochasticDepth(p=0.3).edit(meta(name), STREAM), meta(name, drop_path_rate=0.3)
    ours, theirs = rates_of(model), rates_of(other)
    assert list(ours) == list(theirs)
    assert len(ours) >= 7
    assert all(abs(ours[place] - theirs[place]) < 1e-6 for place in theirs)
    assert shapes(model) == shapes(meta(name))
    assert rates_of(StochasticDepth(p=0.1, schedule="uniform").edit(other, STREAM)) == dict.fromkeys(
        stochastic_depth(meta(name), 0.1), 0.1
    )  # what options have set is replaced


def test_stochastic_depth_scales_timms_efficientnets_to_the_last_block():
    ours = rates_of(StochasticDepth(p=0.3).edit(meta("efficientnet_b0"), STREAM))
    theirs = rates_of(meta("efficientnet_b0", drop_path_rate=0.3))
    assert list(ours) == list(theirs)
    assert all(math.isclose(ours[place] * 15 / 16, theirs[place], rel_tol=1e-6) for place in theirs)


@pytest.mark.parametrize(("build", "p"), [(torchvision_convnext, 0.1), (torchvision_swin, 0.2)])
def test_stochastic_depth_equals_torchvisions(build, p):
    with torch.device("meta"):
        model, other = build(), build()
    places = stochastic_depth(model, p)
    expected = {n: m.p for n, m in other.named_modules() if isinstance(m, TorchvisionStochasticDepth)}
    assert set(places) == set(expected)
    assert all(math.isclose(places[name], expected[name], abs_tol=1e-9) for name in expected)


@pytest.mark.parametrize("name", ["resnet26", "vit_tiny_patch16_224"])
def test_stochastic_depth_computes_what_timms_computes(name):
    options = {"num_classes": 7, "img_size": 32} if "vit" in name else {"num_classes": 7}
    other = timm.create_model(name, drop_path_rate=0.5, **options)
    model = StochasticDepth(p=0.5).edit(timm.create_model(name, **options), STREAM)
    model.load_state_dict(other.state_dict())
    images = torch.rand(6, 3, 32, 32)
    outs = []
    for one in (model, other):
        torch.manual_seed(3)
        outs.append(one(images))
    torch.testing.assert_close(*outs)
    assert torch.equal(model.eval()(images), other.eval()(images))


@pytest.mark.parametrize("name", [*sorted(NETS), "torchvision"])
def test_stochastic_depth_drops_the_branches_of_nets_that_do_not_foresee_it(name):
    model = (
        torchvision_resnet18() if name == "torchvision" else build_model(ModelSpec(name=name), FACTS, STREAM)
    )
    names = list(model.state_dict())
    places = stochastic_depth(model, 0.5, "uniform")
    assert list(model.state_dict()) == names
    blocks = [m for m in model.modules() if hasattr(m, "conv2")]
    assert len(places) == len(blocks)
    model = copy.deepcopy(model)
    block = next(m for m in model.modules() if hasattr(m, "conv2"))
    x = torch.rand(12, block.conv1.in_channels, 6, 6)
    drop = block.drop_path
    for prob in (1 - 1e-9, 0.5, 0.0):
        drop.drop_prob = prob
        torch.manual_seed(1)
        out = block(x)
        torch.manual_seed(1)
        keep = torch.empty(12, 1, 1, 1).bernoulli_(1 - prob) / (1 - prob)
        branch = block.bn1(block.conv1(x)).relu()
        branch = nn.functional.batch_norm(
            block.conv2(branch), None, None, block.bn2.weight, block.bn2.bias, True
        )
        shortcut = x if block.downsample is None else block.downsample(x)
        expected = (shortcut + (branch * keep if prob else branch)).relu()
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    drop.drop_prob = 0.5
    model.eval()
    assert not drop.training
    assert torch.equal(block(x), block(x))
    assert list(stochastic_depth(model, 0.25)) == list(places)  # again: other probabilities, no second layer
    assert sum(len(m._forward_hooks) for m in model.modules()) == len(blocks)


def test_stochastic_depth_refuses_models_without_known_residual_blocks():
    for name in ("vgg11", "densenet121", "inception_v3"):
        with pytest.raises(PlanError, match="stochastic_depth"):
            StochasticDepth().edit(meta(name), STREAM)
    model = StochasticDepth.null().edit(meta("resnet18", drop_path_rate=0.1), STREAM)
    assert rates_of(model) == rates_of(meta("resnet18", drop_path_rate=0.1))


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_tiny", "vgg11"]
)
def test_dropout_acts_on_the_inputs_of_any_classifier(name):
    model = Dropout(p=0.4).edit(meta(name), STREAM)
    assert shapes(model) == shapes(meta(name))
    (found,) = [n for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p == 0.4]
    assert found == model.pretrained_cfg["classifier"] + ".dropout"
    size = 224
    seen = []
    model.get_submodule(found).register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 1000)
    assert seen[0].shape == (2, model.get_classifier().in_features)


def test_dropout_equals_timms_drop_rate():
    """Where timm has dropout right before the classifier, as in its ResNets."""
    other = timm.create_model("resnet18", num_classes=7, drop_rate=0.3)
    model = Dropout(p=0.3).edit(timm.create_model("resnet18", num_classes=7), STREAM)
    model.load_state_dict(other.state_dict())
    model = copy.deepcopy(model)
    images = torch.rand(6, 3, 32, 32)
    outs = []
    for one in (model, other):
        torch.manual_seed(3)
        outs.append(one(images))
    assert torch.equal(*outs)
    assert torch.equal(model.eval()(images), other.eval()(images))


def test_dropout_before_two_classifiers_built_in_nets_and_none():
    model = Dropout().edit(meta("deit_tiny_distilled_patch16_224"), STREAM)
    assert {n for n, m in model.named_modules() if n.endswith(".dropout")} == {
        "head.dropout",
        "head_dist.dropout",
    }
    for name in NETS:
        net = Dropout(p=0.5).edit(build_model(ModelSpec(name=name), FACTS, STREAM, "meta"), STREAM)
        assert net.fc.dropout.p == 0.5
        Dropout(p=0.1).edit(net, STREAM)
        assert net.fc.dropout.p == 0.1
        assert len(net.fc._forward_pre_hooks) == 1
    for nothing in (nn.Sequential(nn.ReLU()), nn.Sequential(nn.Conv2d(3, 4, 1)), meta("resnet18").layer1):
        with pytest.raises(PlanError, match="dropout"):
            Dropout().edit(nothing, STREAM)
    assert "dropout" not in dict(Dropout.null().edit(meta("resnet18"), STREAM).fc.named_children())
    assert list(Dropout().notes(context(Dropout(), options={"drop_rate": 0.1}))) != []
    assert list(Dropout().notes(context(Dropout()))) == []
