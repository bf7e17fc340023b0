"""Tricks of fast training against NumPy, torch, timm and the listings of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from contract import recipe
from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.functional.gradients import clip_adaptive, clip_norm, clip_value
from trickbag.functional.layers import first_layer, last_layers
from trickbag.functional.schedules import ramped_size
from trickbag.functional.whitening import patch_moments, whiten_first_layer, whitening_weight
from trickbag.plan import Context, compile
from trickbag.rng import Stream
from trickbag.tricks.gradients import GradientAccumulation, GradientClipping
from trickbag.tricks.inference import TTAFlip, TTAViews
from trickbag.tricks.resolution import ResolutionRamp
from trickbag.tricks.stages import Timeline
from trickbag.tricks.whitening import Whitening

FACTS = DataFacts("x", ("a", "b", "c", "d"), 3, {"train": 80}, (24, 24), "f")


def pictures(count=40, size=12, channels=3, seed=0):
    """Smooth noise: neighboring pixels and channels are correlated, as in photos."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, channels, size + 2, size + 2))
    smooth = sum(np.roll(noise, (dy, dx), (2, 3)) for dy in range(3) for dx in range(3))[:, :, 2:, 2:]
    return torch.tensor(smooth + smooth.mean(1, keepdims=True), dtype=torch.float32)


# Whitening


@pytest.mark.parametrize(("kernel", "channels"), [(2, 3), (3, 3), (1, 3), (2, 1)])
def test_patch_moments_equal_those_of_every_patch_in_turn(kernel, channels):
    images = pictures(6, 7, channels)
    patches = [
        images[n, :, y : y + kernel, x : x + kernel].numpy().astype(np.float64).ravel()
        for n in range(6)
        for y in range(8 - kernel)
        for x in range(8 - kernel)
    ]
    wanted = np.mean([np.outer(p, p) for p in patches], axis=0)
    for batches in ([images], [images[:1], images[1:]]):
        found = patch_moments(batches, kernel)
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_whitening_equals_the_papers_listing():
    """Jordan 2024, listing 4: eigenvectors over the root of eigenvalue + eps, and their negatives."""
    images, eps = pictures(), 5e-4
    found = whitening_weight(patch_moments([images], 2), 3, eps).numpy().reshape(24, 12)
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).numpy()
    values, vectors = np.linalg.eigh(patches.T.astype(np.float64) @ patches / len(patches))
    wanted = (vectors / np.sqrt(values + eps)).T[::-1]
    signs = np.sign((wanted * found[:12]).sum(1, keepdims=True))
    np.testing.assert_allclose(found[:12] * signs, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[12:], -found[:12])
    assert (found[np.arange(12), abs(found[:12]).argmax(1)] > 0).all()


def test_whitening_makes_patches_white():
    trick = Whitening(bias=False, pad=False, eps=1e-9)
    model = trick.edit(timm.create_model("test_resnet", num_classes=4, stem_type=""), Stream(0))
    images = pictures()
    trick.calibrate(model, images.split(7))
    out = model.conv1.whiten(images)
    assert out.shape == (40, 24, 11, 11)
    flat = out[:, :12].double().movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(flat.T @ flat / len(flat), torch.eye(12).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "tf_efficientnet_lite0"])
def test_whitening_goes_before_the_models_own_first_layer_and_keeps_sizes(name):
    options = {"img_size": 32} if "vit" in name else {}
    model = timm.create_model(name, num_classes=4, **options)
    position, old = first_layer(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    images, seen = torch.rand(2, 3, 32, 32), {}
    hook = old.register_forward_hook(lambda module, inputs, output: seen.update(old=output.shape))
    wanted = model.eval()(images).shape
    hook.remove()
    assert Whitening().edit(model, Stream(0)) is model
    new = model.get_submodule(position)
    assert [n for n, _ in new.named_children()] == ["pad", "whiten", "act", "conv"]
    assert type(new.conv) is type(old)
    assert (new.conv.stride, new.conv.padding, new.conv.kernel_size) == (
        old.stride,
        old.padding,
        old.kernel_size,
    )
    assert new.conv.weight.shape == (old.out_channels, 24, *old.kernel_size)
    assert new(images).shape == seen["old"]
    assert model(images).shape == wanted
    assert not new.whiten.weight.requires_grad
    assert new.whiten.bias.requires_grad
    others = {n: p for n, p in model.named_parameters() if not n.startswith(f"{position}.")}
    assert all(torch.equal(p, before[n]) for n, p in others.items())


def test_whitening_draws_from_its_stream_alone_and_says_no():
    def stem(seed):
        return whiten(Stream(seed)).conv1.conv.weight

    def whiten(stream):
        return Whitening().edit(timm.create_model("test_resnet", num_classes=4, stem_type=""), stream)

    assert torch.equal(stem(1), stem(1))
    assert not torch.equal(stem(1), stem(2))
    wide = stem(1)
    assert wide.std().item() == pytest.approx((2 / (wide.shape[0] * wide[0, 0].numel())) ** 0.5, rel=0.1)
    for model in (
        nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)),
        nn.Sequential(nn.ReLU()),
        timm.create_model("test_nfnet", num_classes=2),  # its convolutions normalize their own weights
        nn.Conv2d(3, 4, 3),
    ):
        with pytest.raises(PlanError, match=r"whitening"):
            Whitening().edit(model, Stream(0))
        assert Whitening.null().edit(model, Stream(0)) is model
    (problem,) = Whitening().check(Context(recipe(model={"name": "resnet18", "pretrained": True}), FACTS))
    assert "pretrained" in problem.what
    (problem,) = Whitening(kernel=5).check(Context(recipe(image_size=4), FACTS))
    assert "4 px" in problem.what
    assert (Whitening.null().sample_size, Whitening(images=7).sample_size) == (0, 7)
    assert list(Whitening.null().check(Context(recipe(image_size=4), FACTS))) == []
    with pytest.raises(ValueError, match="no patch"):
        patch_moments([], 2)


def test_whitening_without_padding_is_smaller_and_the_plan_says_where_it_does_not_fit():
    model = timm.create_model("test_resnet", num_classes=4, stem_type="")
    whiten_first_layer(model, 3, pad=False, bias=False)
    assert [n for n, _ in model.conv1.named_children()] == ["whiten", "act", "conv"]
    assert model.conv1.whiten.weight.shape == (54, 3, 3, 3)
    assert model.conv1.whiten.bias is None
    vit = {"model": {"name": "test_vit", "options": {"img_size": 16}}, "image_size": 16}
    with pytest.raises(PlanError, match="16 px"):
        compile(recipe(Whitening(pad=False), **vit), FACTS)
    compile(recipe(Whitening(), **vit), FACTS)


def test_first_and_last_layers():
    model = timm.create_model("test_resnet", num_classes=4)
    assert (first_layer(model)[0], last_layers(model)) == ("conv1.0", ["fc"])
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=4)
    assert (first_layer(model)[0], last_layers(model)) == ("patch_embed.proj", ["head", "head_dist"])
    assert last_layers(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))) == ["1"]
    for look in (first_layer, last_layers):
        with pytest.raises(ValueError, match="no convolution"):
            look(nn.ReLU())


# Resolution


def test_resolution_ramp_follows_ffcvs_schedule():
    """``np.interp`` of the epoch, rounded to multiples: 160 to 192 px from epoch 11 to 13 of 16."""
    trick = ResolutionRamp(start=160 / 192, begin=11 / 16, until=13 / 16, multiple=32)
    timeline = Timeline(steps=16 * 5, steps_per_epoch=5)
    for epoch in range(16):
        wanted = int(np.round(np.interp([epoch], [11, 13], [160, 192])[0] / 32 + 1e-9)) * 32
        assert {trick.size(epoch * 5 + i, timeline, 192) for i in range(5)} == {wanted}


@given(st.integers(8, 300), st.floats(0.1, 1), st.floats(0, 0.5), st.floats(0.5, 1), st.integers(1, 32))
def test_resolution_ramp_grows_to_full_size(image_size, start, begin, until, multiple):
    sizes = [ramped_size(k / 50, image_size, start, begin, until, multiple) for k in range(51)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == image_size
    for k, size in enumerate(sizes):
        exact = image_size * np.interp(k / 50, [begin, until], [start, 1]) if until > begin else None
        assert size == image_size or size % multiple == 0
        if exact is not None and size < image_size:
            assert abs(size - exact) <= max(multiple / 2, multiple - exact) + 1e-6


def test_resolution_ramp_at_plan_time():
    plan = compile(recipe(ResolutionRamp(start=0.5, until=0.8), epochs=10, image_size=32), FACTS)
    assert [plan.image_size(step) for step in range(0, 100, 10)] == [16, 20, 20, 24, 24, 28, 28, 32, 32, 32]
    assert plan.image_sizes == (16, 20, 24, 28, 32)
    assert any("16 to 32 px in 10 epochs" in note for note in plan.notes)
    assert compile(recipe(ResolutionRamp.null(), image_size=30), FACTS).image_sizes == (30,)
    assert compile(recipe(image_size=30), FACTS).image_sizes == (30,)
    short = compile(recipe(ResolutionRamp(), epochs=1, image_size=32), FACTS)
    assert any("ends before they reach 32 px" in note for note in short.notes)
    with pytest.raises(PlanError, match="multiple=1"):
        compile(recipe(ResolutionRamp(start=0.95), image_size=24), FACTS)
    vit = {"model": "vit_tiny_patch16_224", "image_size": 224, "epochs": 9}
    with pytest.raises(PlanError, match=r"resolution_ramp.*cannot take images of 112 px"):
        compile(recipe(ResolutionRamp(start=0.5), **vit), FACTS)
    with pytest.raises(ValidationError, match="comes after"):
        ResolutionRamp(begin=0.9, until=0.5)


# Gradients


def with_gradients(seed=0, scale=1.0):
    """A small net with weights, kernels, biases, gains, a scalar, and one parameter without a gradient."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, 5))
    model.gain = nn.Parameter(torch.tensor(0.3))
    model.unused = nn.Parameter(torch.rand(3))
    model.zeros = nn.Parameter(torch.zeros(4, 2))
    for name, p in model.named_parameters():
        if name != "unused":
            p.grad = scale * torch.randn(p.shape)
    model[0].weight.grad[2] = 0
    return model


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e4])
@pytest.mark.parametrize("mode", ["norm", "value", "adaptive"])
def test_gradient_clipping_equals_torchs_and_timms(mode, limit):
    ours, theirs = with_gradients(), with_gradients()
    if mode == "norm":
        wanted = nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        assert clip_norm(with_gradients().parameters(), limit) == pytest.approx(float(wanted), rel=1e-5)
    elif mode == "value":
        nn.utils.clip_grad_value_(theirs.parameters(), limit)
    else:
        spared = {id(p) for p in theirs[3].parameters()}
        adaptive_clip_grad([p for p in theirs.parameters() if id(p) not in spared], limit, 1e-3)
    GradientClipping(mode=mode, limit=limit).transformation(ours)()
    for name, gradient in gradients(theirs).items():
        torch.testing.assert_close(gradients(ours)[name], gradient, rtol=2e-5, atol=1e-9)
    if limit == 1e4:
        assert all(torch.equal(g, gradients(with_gradients())[n]) for n, g in gradients(ours).items())


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_gradient_clipping_keeps_its_limits(seed, scale, limit):
    model = with_gradients(seed, scale)
    clip_value(model.parameters(), limit)
    assert max(float(g.abs().max()) for g in gradients(model).values()) <= limit * (1 + 1e-6)
    model = with_gradients(seed, scale)
    clip_norm(model.parameters(), limit)
    total = sum(float(g.double().square().sum()) for g in gradients(model).values()) ** 0.5
    assert total <= limit * (1 + 1e-5)
    model = with_gradients(seed, scale)
    clip_adaptive(model.parameters(), limit)
    for name, g in gradients(model).items():
        rows = len(g) if g.ndim > 1 else 1
        weights = model.get_parameter(name).detach().reshape(rows, -1).norm(dim=1).clamp(min=1e-3)
        ratio = g.reshape(rows, -1).norm(dim=1) / weights
        assert float(ratio.max()) <= limit * (1 + 1e-5)


def test_gradient_clipping_null_and_nothing_to_clip():
    assert GradientClipping.null().transformation(with_gradients()) is None
    bare = nn.Linear(2, 2)
    assert clip_norm(bare.parameters(), 1.0) is None
    clip_value(bare.parameters(), 1.0)
    clip_adaptive(bare.parameters(), 1.0)
    assert bare.weight.grad is None
    for bad in ({"limit": 0}, {"mode": "agc"}, {"eps": 0}):
        with pytest.raises(ValidationError):
            GradientClipping(**bad)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_gradient_accumulation_equals_the_whole_batch(steps):
    """The engine's rule (losses of a part summed, over the size of the batch) against one backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    images, labels = torch.randn(8, 3, 2, 2).double(), torch.randint(3, (8,))
    F.cross_entropy(model(images), labels).backward()
    wanted = {n: g.clone() for n, g in gradients(model).items()}
    model.zero_grad()
    parts = GradientAccumulation(steps=steps).parts(8)
    pieces = list(zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True))
    assert len(pieces) == parts == steps
    assert max(len(x) for x, _ in pieces) - min(len(x) for x, _ in pieces) <= 1
    for x, y in pieces:
        (F.cross_entropy(model(x), y, reduction="sum") / 8).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-12, atol=1e-15)


def test_gradient_accumulation_at_plan_time():
    assert GradientAccumulation(steps=5).parts(3) == 3
    assert compile(recipe(), FACTS).parts(8) == 1
    assert compile(recipe(GradientAccumulation(steps=3)), FACTS).parts(8) == 3
    with pytest.raises(PlanError, match="cut into 9 parts"):
        compile(recipe(GradientAccumulation(steps=9)), FACTS)


# Views


def classify(images):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(images[0].numel(), 4, generator=generator)
    return (images.flatten(1) @ weight / 9).softmax(1)


def listing(images, net):
    """airbench94.py, ``infer_mirror_translate``: on logits."""

    def mirror(x):
        return 0.5 * net(x) + 0.5 * net(x.flip(-1))

    padded = F.pad(images, (1,) * 4, "reflect")
    size = images.shape[-1]
    moved = [padded[:, :, 0:size, 0:size], padded[:, :, 2 : size + 2, 2 : size + 2]]
    return 0.5 * mirror(images) + 0.5 * torch.stack([mirror(x) for x in moved]).mean(0)


@given(st.integers(1, 5), st.integers(3, 9), st.integers(0, 1000))
@settings(max_examples=25)
def test_tta_views_equal_the_listing_of_airbench(count, size, seed):
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    wanted = listing(images, lambda x: classify(x).log()).softmax(1)
    torch.testing.assert_close(TTAViews().wrap(classify)(images), wanted)
    mean = listing(images, classify)
    torch.testing.assert_close(TTAViews(average="probabilities").wrap(classify)(images), mean)


def test_tta_views_shift_by_any_number_of_pixels_and_without_mirror():
    images = torch.rand(2, 1, 7, 9)
    seen = []

    def spy(x):
        seen.append(x.clone())
        return classify(x)

    TTAViews(shift=3, flip=False).wrap(spy)(images)
    assert torch.equal(seen[0], images)
    assert torch.equal(seen[1][..., 3:, 3:], images[..., :-3, :-3])
    assert torch.equal(seen[2][..., :-3, :-3], images[..., 3:, 3:])
    assert torch.equal(seen[1][..., 2, 3:], images[..., 1, :-3])  # the row above the border is the second one


def test_tta_views_without_shift_is_flipping_and_null_is_the_predictor_itself():
    images = torch.rand(3, 3, 6, 6)
    flip = TTAFlip(average="logits").wrap(classify)(images)
    torch.testing.assert_close(TTAViews(shift=0).wrap(classify)(images), flip)
    assert TTAViews.null().wrap(classify) is classify
    (problem,) = TTAViews(shift=24).check(Context(recipe(), FACTS))
    assert "24 px cannot be shifted by 24" in problem.what
    assert list(TTAViews(shift=23).check(Context(recipe(), FACTS))) == []
