"""Building models, their weights, and the metrics of what they predict."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn import metrics as sk
from torch import nn

from trickbag import tasks
from trickbag.data.base import DataFacts
from trickbag.errors import CheckpointError, PlanError, RecipeError
from trickbag.recipe.model import ModelSpec
from trickbag.rng import Stream
from trickbag.tasks.classification import build_model
from trickbag.tasks.metrics import classification_metrics
from trickbag.tasks.nets import NETS
from trickbag.tasks.preprocessing import preprocessing_of

STREAM = Stream(3, "init")


def facts(classes=10, channels=3):
    return DataFacts("x", tuple(map(str, range(classes))), channels, {"train": 100}, (32, 32), "f")


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# built-in nets


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("channels", [1, 3])
def test_built_in_nets_take_any_size_and_learn(name, channels):
    options = {"width": 1} if name.startswith("wrn") else {"width": 4}
    model = build_model(ModelSpec(name=name, options=options), facts(7, channels), STREAM)
    for size in (8, 13, 32):
        logits = model(torch.rand(2, channels, size, size))
        assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_built_in_names_are_not_timms():
    assert not set(NETS) & set(timm.list_models())


def test_cifar_nets_are_the_papers():
    """He et al. 2016, table 6: 0.27 and 0.85 million parameters; section 4.2: 6n + 2 layers."""
    for name, depth, millions in (("resnet20", 20, 0.27), ("resnet56", 56, 0.85)):
        model = NETS[name](10)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth
    assert len(list(NETS["resnet20"](10, shortcut="B").modules())) > len(list(NETS["resnet20"](10).modules()))


def test_option_a_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    shortcut = NETS["resnet20"](10).stages[1][0].downsample
    x = torch.rand(2, 16, 7, 7)
    y = shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert not y[:, 16:].any()


# random initial weights


@pytest.mark.parametrize("name", ["mini_resnet", "resnet18", "vit_tiny_patch16_224"])
def test_weights_depend_on_the_stream_alone(name):
    spec = ModelSpec(name=name)
    torch.manual_seed(0)
    a = build_model(spec, facts(), STREAM)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    b = build_model(spec, facts(), STREAM)
    assert same(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(a, build_model(spec, facts(), Stream(4, "init")))


def test_gamma_is_one_unless_asked_for():
    spec = ModelSpec(name="resnet18")
    assert all(m.bn2.weight.all() for m in build_model(spec, facts(), STREAM).modules() if hasattr(m, "bn2"))
    zeroed = build_model(ModelSpec(name="resnet18", options={"zero_init_last": True}), facts(), STREAM)
    assert not zeroed.layer1[0].bn2.weight.any()


def test_building_is_quiet(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_model(ModelSpec(name="resnet18"), facts(1000, 1), STREAM, "meta")
        build_model(ModelSpec(name="mini_resnet"), facts(), STREAM)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["resnet50.a1_in1k", "swin_tiny_patch4_window7_224", "resnet9", "levit_128s"]
)
def test_meta_models_hold_shapes_and_need_no_weights(name):
    spec = ModelSpec(name=name, weights="nowhere.pth", pretrained=True)
    model = build_model(spec, facts(4), STREAM, "meta").eval()
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 4)


# what cannot be built


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "resnet_50"}, "did you mean resnet50"),
        ({"name": "mini_resnt"}, "did you mean mini_resnet"),
        ({"name": "resnet50.nope"}, "resnet50.a1_in1k"),
        ({"name": "resnet50", "options": {"foo": 1}}, "option 'foo'"),
        ({"name": "mini_resnet", "options": {"widht": 8}}, "did you mean width"),
        ({"name": "cifar_resnet", "options": {"depth": 21}}, "6 n"),
        ({"name": "wrn", "options": {"depth": 15}}, "6 n"),
        ({"name": "resnet20", "options": {"shortcut": "C"}}, "shortcut"),
        ({"name": "mini_resnet", "options": {"in_chans": 1}}, "follows from the data"),
        ({"name": "mini_resnet", "pretrained": True}, "no pretrained weights"),
        ({"name": "resnet10t", "options": {"num_classes": 3}}, "follows from the data"),
    ],
)
def test_wrong_names_and_options_are_explained(spec, message):
    with pytest.raises(PlanError, match=message):
        build_model(ModelSpec(**spec), facts(), STREAM, "meta")


def test_an_unreachable_hub_is_explained(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(CheckpointError, match=r"resnet18: Name or service not known") as caught:
        build_model(ModelSpec(name="resnet18", pretrained=True), facts(), STREAM)
    assert "model.weights" in str(caught.value)


def test_a_downloaded_model_keeps_its_head_only_for_its_own_classes(monkeypatch):
    donor = timm.create_model("resnet18", num_classes=10)
    create = timm.create_model

    def offline(name, pretrained=False, **arguments):
        model = create(name, **{"num_classes": 10, **arguments})
        if pretrained:
            model.load_state_dict(donor.state_dict())
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    spec = ModelSpec(name="resnet18", pretrained=True)
    assert same(build_model(spec, facts(10), STREAM), donor)
    a, b = (build_model(spec, facts(4), STREAM) for _ in range(2))
    assert same(a, b)
    assert a.fc.weight.shape == (4, 512)
    assert torch.equal(a.layer4[1].bn2.weight, donor.layer4[1].bn2.weight)


def test_unknown_task():
    with pytest.raises(RecipeError, match="classification"):
        tasks.of("clasification")


# weights from files


@pytest.fixture(scope="module")
def donor():
    torch.manual_seed(5)
    model = timm.create_model("resnet18", num_classes=10)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value))
    return model


def load(path, classes=10, channels=3, name="resnet18"):
    return build_model(ModelSpec(name=name, weights=str(path)), facts(classes, channels), STREAM)


@pytest.mark.parametrize("wrap", ["plain", "module", "compiled lightning", "safetensors", "renamed"])
def test_weights_are_found_under_their_usual_names(donor, tmp_path, wrap):
    state = donor.state_dict()
    path = tmp_path / "weights.pth"
    if wrap == "plain":
        torch.save(state, path)
    elif wrap == "module":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif wrap == "compiled lightning":
        torch.save({"model": {f"model._orig_mod.{k}": v for k, v in state.items()}}, path)
    elif wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:  # other names, the same order and shapes
        torch.save({f"layer.{i}": v for i, v in enumerate(state.values()) if v.ndim}, path)
    assert same(load(path), donor) or wrap == "renamed"
    loaded = load(path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in state.items() if v.ndim)


@pytest.mark.parametrize("renamed", [False, True])
def test_a_head_for_other_classes_is_made_anew_from_its_stream(donor, tmp_path, renamed):
    state = {k: v for k, v in donor.state_dict().items() if v.ndim}
    path = tmp_path / "weights.pth"
    torch.save({f"layer.{i}": v for i, v in enumerate(state.values())} if renamed else state, path)
    torch.manual_seed(0)
    a = load(path, classes=4)
    torch.manual_seed(1)
    b = load(path, classes=4)
    assert a.fc.weight.shape == (4, 512)
    assert same(a, b)
    assert all(torch.equal(v, a.state_dict()[k]) for k, v in state.items() if not k.startswith("fc."))


def test_a_missing_head_is_made_anew(donor, tmp_path):
    path = tmp_path / "backbone.pth"
    torch.save({k: v for k, v in donor.state_dict().items() if not k.startswith("fc.")}, path)
    assert torch.equal(load(path).conv1.weight, donor.conv1.weight)


def test_the_first_convolution_is_adapted_as_timm_does_it(donor, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(donor.state_dict(), path)
    gray = load(path, channels=1)
    torch.testing.assert_close(gray.conv1.weight, donor.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(gray.fc.weight, donor.fc.weight)


def test_built_in_nets_load_their_own_weights(tmp_path):
    first = build_model(ModelSpec(name="mini_resnet"), facts(), Stream(9, "init"))
    path = tmp_path / "weights.safetensors"
    save_file(first.state_dict(), path)
    assert same(load(path, name="mini_resnet"), first)
    other = load(path, classes=3, channels=1, name="mini_resnet")
    assert torch.equal(other.stages[1][0].conv2.weight, first.stages[1][0].conv2.weight)


def test_weights_that_do_not_fit_are_listed(donor, tmp_path):
    state = dict(donor.state_dict())
    path = tmp_path / "weights.pth"
    state["layer1.0.extra"] = state.pop("layer1.0.bn1.weight")
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "missing: layer1.0.bn1.weight" in str(caught.value)
    assert "unknown: layer1.0.extra" in str(caught.value)
    with pytest.raises(CheckpointError, match="do not fit"):
        load(path, name="resnet34")
    state = {f"layer.{i}": v for i, v in enumerate(donor.state_dict().values()) if v.ndim}
    state["layer.0"] = torch.zeros(64, 3, 5, 5)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"layer.0 \(64, 3, 5, 5\) for conv1.weight \(64, 3, 7, 7\)"):
        load(path)


def test_files_that_are_no_weights_are_explained(tmp_path):
    cases = {
        "none.pth": (None, "no such file"),
        "weights.onnx": (b"x", "safetensors"),
        "bad.pth": (b"not a checkpoint", "cannot be read|more than plain tensors"),
        "bad.safetensors": (b"not a checkpoint", "cannot be read"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / name)
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(CheckpointError, match="more than plain tensors"):
        load(tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(CheckpointError, match="no tensors"):
        load(tmp_path / "empty.pt")


# preprocessing


def test_preprocessing_is_timms():
    found = preprocessing_of(ModelSpec(name="tf_efficientnet_lite0"))
    assert (found.mean, found.std, found.image_size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (found.crop_fraction, found.interpolation) == (0.875, "bicubic")
    tagged = preprocessing_of(ModelSpec(name="resnet50.a1_in1k"))
    assert tagged.mean == (0.485, 0.456, 0.406)
    assert tagged.crop_fraction == 0.95
    assert preprocessing_of(ModelSpec(name="mini_resnet")) is None


# metrics


def predictions(seed, n, classes, sharpness=2.0):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(n, classes)) * sharpness, dtype=torch.float32)
    labels = torch.tensor(rng.integers(classes, size=n))
    return logits.softmax(1), labels


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(2, 80), st.integers(2, 12))
def test_metrics_equal_scikit_learns(seed, n, classes):
    p, y = predictions(seed, n, classes)
    found = classification_metrics(p, y)
    q, predicted, every = p.double().numpy(), p.argmax(1).numpy(), range(classes)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are predicted and do not occur
        assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, predicted))
        assert found["nll"] == pytest.approx(sk.log_loss(y, q, labels=every), rel=1e-5)
    assert ("top5_accuracy" in found) == (classes > 5)
    if classes > 5:
        assert found["top5_accuracy"] == pytest.approx(sk.top_k_accuracy_score(y, q, k=5, labels=every))
    assert all(type(value) is float for value in found.values())


def test_calibration_error_equals_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = predictions(1, 5000, 10)
    expected = float(multiclass_calibration_error(p, y, num_classes=10, n_bins=15))
    assert classification_metrics(p, y)["ece"] == pytest.approx(expected, abs=1e-6)


def test_temperature_undoes_a_known_one():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(4000, 8)))
    honest = logits.softmax(1)
    labels = torch.multinomial(honest, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    sharp = classification_metrics((logits * 3).softmax(1), labels)
    plain = classification_metrics(honest, labels)
    assert sharp["nll"] > plain["nll"] + 0.1
    assert sharp["ece"] > 0.1
    assert sharp["nll_calibrated"] == pytest.approx(plain["nll_calibrated"], abs=1e-7)
    grid = np.exp(np.linspace(-1, 2, 3001))
    own = [float(nn.functional.cross_entropy(logits * 3 / t, labels)) for t in grid]
    assert sharp["nll_calibrated"] == pytest.approx(min(own), abs=1e-6)


def test_metrics_of_extreme_predictions_stay_finite():
    y = torch.tensor([0, 1, 2])
    perfect = classification_metrics(torch.eye(3), y)
    assert perfect["accuracy"] == 1
    assert perfect["nll"] == perfect["nll_calibrated"] == perfect["ece"] == 0
    wrong = classification_metrics(torch.eye(3).roll(1, 0), y)
    assert wrong["accuracy"] == 0
    assert 80 < wrong["nll"] < 88
    broken = torch.eye(3)
    broken[0] = torch.nan
    assert classification_metrics(broken, y)["accuracy"] == pytest.approx(2 / 3)
    assert all(np.isfinite(v) for v in classification_metrics(broken, y).values())


def test_task_is_what_the_engine_expects():
    task = tasks.of("classification")
    y = torch.tensor([2, 0])
    dense = task.targets(y, 3)
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    expected = nn.functional.cross_entropy(logits, y, reduction="none")
    assert task.primary in task.metrics(logits.softmax(1), y)
    torch.testing.assert_close(task.loss(logits, dense), expected)


def test_a_new_head_starts_with_small_logits(tmp_path):
    """timm draws EfficientNet's classifier from U(-1/sqrt(classes), 1/sqrt(classes))."""
    donor = build_model(ModelSpec(name="tf_efficientnet_lite0"), facts(5), STREAM)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    spec = ModelSpec(name="tf_efficientnet_lite0", weights=str(tmp_path / "weights.pth"))
    head = build_model(spec, facts(2), STREAM).classifier
    assert head.weight.shape == (2, 1280)
    assert head.weight.abs().max() <= 1280**-0.5
