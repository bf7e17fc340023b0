"""Model tricks against timm, torchvision, torch.nn.init and arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models import resnet50 as torchvision_resnet50
from torchvision.models import vgg11_bn

from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.functional.initialization import zero_gamma
from trickbag.functional.surgery import CannotOperate, pool_shortcuts, resnet_variant
from trickbag.plan import Context
from trickbag.recipe.model import ModelSpec, Recipe
from trickbag.rng import Stream
from trickbag.tasks.classification import build_model
from trickbag.tasks.nets import NETS
from trickbag.tricks.architecture import ResNetVariant
from trickbag.tricks.initialization import HeInit, XavierInit, ZeroGamma

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
    ],
)
def test_initial_values_have_the_variance_of_the_formula(trick, variance):
    weight = trick.edit(small(), STREAM)[4].weight.detach()
    assert abs(float(weight.var()) / variance - 1) < 0.02
    if trick.distribution == "uniform":
        bound = math.sqrt(3 * variance)
        assert bound * 0.999 < float(weight.abs().max()) <= bound


def test_adding_a_layer_changes_no_other_draw():
    plain = nn.Sequential()
    plain.add_module("first", nn.Conv2d(3, 8, 3))
    plain.add_module("last", nn.Conv2d(8, 8, 3))
    longer = nn.Sequential()
    for name, channels in (("first", 3), ("extra", 8), ("last", 8)):
        longer.add_module(name, nn.Conv2d(channels, 8, 3))
    for trick in (XavierInit(), HeInit()):
        a, b = trick.edit(plain, STREAM), trick.edit(longer, STREAM)
        assert torch.equal(a.last.weight, b.last.weight)
        assert torch.equal(a.first.weight, b.first.weight)
        assert not torch.equal(b.last.weight, b.extra.weight)


def test_switched_off_and_on_the_meta_device():
    for trick in (XavierInit, HeInit, ZeroGamma):
        model = torchvision_resnet18()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        trick.null().edit(model, STREAM)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        trick.sample().edit(meta("resnet18"), STREAM)
        with pytest.raises(PlanError, match=trick.kind):
            trick.sample().edit(nn.Sequential(nn.ReLU()), STREAM)
