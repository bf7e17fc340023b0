"""Starting from other weights, and freezing, against load_state_dict, timm and plain PyTorch loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models import adapt_input_conv
from torch import nn

from conftest import write_shapes
from contract import MODEL, OPTIMIZER, Bench, fingerprint, recipe, tensors
from trickbag import data
from trickbag.engine.freezing import Freezer
from trickbag.engine.run import Run
from trickbag.errors import CheckpointError, PlanError
from trickbag.functional.freezing import freeze, last_norms, split_frozen
from trickbag.functional.transfer import adapt_channels, inherit
from trickbag.plan import Plan, parameter_groups
from trickbag.rng import Stream
from trickbag.tasks.nets import NETS
from trickbag.tricks.averaging import EMA
from trickbag.tricks.optimization import SGD, AdamW, Muon, Nesterov
from trickbag.tricks.sources import Source
from trickbag.tricks.transfer import Freeze, StartFrom

SMALL = {"model": {"name": "mini_resnet"}, "batch_size": 8, "image_size": 16, "eval_resize": None}


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


def net(classes: int = 5, channels: int = 3) -> nn.Module:
    return NETS["mini_resnet"](classes, channels)


def meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **options)


# start_from


def test_inheriting_is_loading_the_state() -> None:
    one, other, reference = net(), net(), net()
    nn.init.uniform_(one.stem[1].running_mean)
    taken = inherit(other, one.state_dict())
    reference.load_state_dict(one.state_dict())
    assert taken == [*(n for n in one.state_dict() if not n.startswith("fc.")), "fc.weight", "fc.bias"]
    for name, value in reference.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_classifier_of_other_classes_stays_new() -> None:
    one, other = net(5), net(7)
    before = other.fc.weight.detach().clone()
    assert "fc.weight" not in inherit(other, one.state_dict())
    assert torch.equal(other.fc.weight, before)
    assert torch.equal(other.stem[0].weight, one.stem[0].weight)
    with pytest.raises(ValueError, match=r"2 of another shape: fc\.weight, fc\.bias"):
        inherit(other, one.state_dict(), head="keep")
    same = net(5)
    before = same.fc.weight.detach().clone()
    inherit(same, one.state_dict(), head="new")
    assert torch.equal(same.fc.weight, before)


def test_channels_are_adapted_as_timm_does() -> None:
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(adapt_channels(weight, 1), adapt_input_conv(1, weight))
    color, gray = net(5, 3).eval(), net(5, 1).eval()
    images = torch.rand(2, 1, 16, 16)
    for trained, model in ((color, gray), (gray, color)):
        inherit(model, trained.state_dict())
        torch.testing.assert_close(color(images.expand(-1, 3, -1, -1)), gray(images))


def test_what_does_not_fit_is_named_and_nothing_is_written() -> None:
    wide, model = NETS["mini_resnet"](5, width=16), net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"of another shape: stem\.0\.weight"):
        inherit(model, wide.state_dict())
    state = dict(net().state_dict())
    state["other.weight"] = state.pop("stem.1.weight")
    with pytest.raises(ValueError, match=r"1 missing: stem\.1\.weight; 1 unknown: other\.weight"):
        inherit(model, state)
    with pytest.raises(ValueError, match="missing"):
        inherit(model, {"other.weight": torch.zeros(1)}, partial=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "stem.1.bias" in inherit(model, state, partial=True)
    assert torch.equal(model.stem[1].weight, before["stem.1.weight"])


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"])
def test_shapes_alone_tell_whether_weights_fit(name: str) -> None:
    model, source = meta(name, num_classes=7, in_chans=1), meta(name)
    heads = {n for n in model.state_dict() if n.startswith(f"{model.pretrained_cfg['classifier']}.")}
    assert set(model.state_dict()) - set(inherit(model, source.state_dict())) == heads
    with pytest.raises(ValueError, match="missing"):
        inherit(meta("resnet26"), source.state_dict())


def test_start_from_begins_where_the_other_run_ended(bench: Bench) -> None:
    """With everything but the head frozen, what training leaves alone is what it began with."""
    first = recipe(**SMALL)
    source = Source(recipe=first.replace(epochs=1).data())
    place = Bench(bench.data, bench.folder / "begin")
    place.folder.mkdir()
    run = place.train(
        recipe(StartFrom(source=source), Freeze(), **SMALL),
        fresh=False,
        upstream_runs=place.folder / "upstream",
    )
    (other,) = (place.folder / "upstream").iterdir()
    wanted, found = tensors(Run(other)), tensors(run)
    for name, value in wanted.items():
        assert torch.equal(found[name], value) is not name.startswith("fc."), name
    written = (other / "result.json").stat().st_mtime_ns
    again = place.train(
        recipe(StartFrom(source=source, head="new"), **SMALL),
        fresh=False,
        upstream_runs=place.folder / "upstream",
    )
    assert (other / "result.json").stat().st_mtime_ns == written
    assert len(list((place.folder / "upstream").iterdir())) == 1
    direct = place.train(
        recipe(StartFrom(run=str(other), head="new"), **SMALL),
        fresh=False,
        upstream_runs=place.folder / "upstream",
    )
    assert fingerprint(direct) == fingerprint(again)


def test_fixres_trains_head_and_last_norm_at_a_larger_size(bench: Bench) -> None:
    low = recipe(**SMALL).replace(epochs=1)
    tricks = (StartFrom(source=Source(recipe=low.data())), Freeze(train="head_and_norm"))
    place = Bench(bench.data, bench.folder / "fixres")
    place.folder.mkdir()
    run = place.train(
        recipe(*tricks, **(SMALL | {"image_size": 32})), fresh=False, upstream_runs=place.folder / "upstream"
    )
    (other,) = (place.folder / "upstream").iterdir()
    wanted, found = tensors(Run(other)), tensors(run)
    moved = {name for name, value in wanted.items() if not torch.equal(found[name], value)}
    norm = last_norms(NETS["mini_resnet"](4))[0]
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert moved == {"fc.weight", "fc.bias", *(f"{norm}.{part}" for part in parts)}


def test_a_run_of_other_classes_gives_all_but_its_classifier(bench: Bench, tmp_path: Path) -> None:
    """Their number is the same, so that shapes do not tell."""
    folder = write_shapes(tmp_path / "other", count=12)
    for path in list(folder.iterdir()):
        path.rename(folder / f"x-{path.name}")
    other = Bench(data.load(data.spec(str(folder))), tmp_path)
    source = other.train(recipe(**SMALL))
    plan = bench.plan(recipe(StartFrom(run=str(source.path)), **SMALL))
    trick = plan.bag["start_from"]
    assert isinstance(trick, StartFrom)
    assert trick.head == "new"
    assert bench.train(recipe(trick, **SMALL)).result()["status"] == "finished"  # type: ignore[index]
    own = bench.train(recipe(**SMALL))
    assert bench.plan(recipe(StartFrom(run=str(own.path)), **SMALL)).bag["start_from"].head == "keep"  # type: ignore[attr-defined]


def test_start_from_says_what_does_not_fit(bench: Bench) -> None:
    source = StartFrom(source=Source(recipe=recipe(**SMALL).data()))
    with pytest.raises(PlanError, match="trick start_from: weights of the source do not fit ResNet"):
        bench.plan(recipe(source))
    with pytest.raises(PlanError, match="training can start from one"):
        bench.plan(recipe(source, **(SMALL | {"model": {"name": "mini_resnet", "weights": "x.pth"}})))
    with pytest.raises(CheckpointError, match="trick start_from"):
        source.inherit(meta("resnet18"), {"source": _Holding(net())})  # type: ignore[dict-item]


class _Holding:
    def __init__(self, model: nn.Module) -> None:
        self.state = model.state_dict()


def test_settings_of_the_source_may_stand_beside_the_others() -> None:
    assert StartFrom(run="runs/x", head="new") == StartFrom(source=Source(run="runs/x"), head="new")
    assert StartFrom(recipe="small_fast", averaged=False).source == Source(
        recipe="small_fast", averaged=False
    )
    assert StartFrom().source is None


# freeze

LAST_NORM = {
    "resnet50": ["layer4.2.bn3"],  # the one that the authors of FixRes fine-tune
    "resnet18": ["layer4.1.bn2"],
    "test_resnet": ["layer4.0.bn2", "layer4.0.downsample.1"],
    "vit_tiny_patch16_224": ["norm"],
    "convnext_atto": ["head.norm"],
    "efficientnet_b0": ["bn2"],
}


@pytest.mark.parametrize("name", LAST_NORM)
def test_head_and_norm_is_what_fixres_fine_tunes(name: str) -> None:
    options = MODEL.options if name == "test_resnet" else {}
    model = meta(name, **options)
    assert last_norms(model) == LAST_NORM[name]
    head = model.pretrained_cfg["classifier"]
    for train, parts in (("head", [head]), ("head_and_norm", [head, *LAST_NORM[name]])):
        frozen, quiet = split_frozen(model, train)
        trained = {n for n, _ in model.named_parameters()} - frozen
        assert trained == {f"{part}.{local}" for part in parts for local in ("weight", "bias")}
        norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert quiet == norms - set(parts)
        assert split_frozen(model, train, statistics=True) == (frozen, set())
    assert split_frozen(model, "all") == (set(), set())


def test_what_cannot_be_frozen_is_refused(bench: Bench) -> None:
    with pytest.raises(ValueError, match="nothing but what would be trained"):
        split_frozen(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no normalization layer"):
        split_frozen(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), "head_and_norm")
    with pytest.raises(ValueError, match="expected one of"):
        freeze(net(), "neck")
    plain = bench.plan(recipe(Freeze(), **SMALL))
    assert any("random weights" in note for note in plain.notes)
    assert any(note.startswith("freeze: trains fc.weight, fc.bias alone to the end") for note in plain.notes)


@pytest.mark.parametrize(
    "optimizer",
    [SGD(lr=0.1, momentum=0.9, weight_decay=0.1), AdamW(weight_decay=0.5), Muon(weight_decay=0.1)],
)
def test_what_is_frozen_keeps_every_bit(optimizer: SGD | AdamW | Muon, bench: Bench) -> None:
    chosen = recipe(Freeze(), EMA(decay=0.5), optimizer, **SMALL)
    run = bench.train(chosen, steps=4)
    start = bench.plan(chosen).build_model(Stream(7)).state_dict()
    for name in ("model", "average-ema"):
        for key, value in tensors(run, name).items():
            assert torch.equal(value, start[key]) is not key.startswith("fc."), (name, key)
    thawed = tensors(bench.train(chosen.with_tricks(Freeze(epochs=1)), steps=4))
    still = [key for key in start if torch.equal(thawed[key], start[key]) and not key.startswith("fc.")]
    assert not still
    loose = tensors(bench.train(chosen.with_tricks(Freeze(statistics=True)), steps=4))
    moved = {key.rpartition(".")[2] for key in start if not torch.equal(loose[key], start[key])}
    assert moved == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    assert torch.equal(loose["stem.1.weight"], start["stem.1.weight"])


@pytest.mark.parametrize(
    ("trick", "make"),
    [
        (
            Nesterov(lr=0.1, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(
                p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True, foreach=False, fused=False
            ),
        ),
        (SGD(lr=0.1, momentum=0.0), lambda p: torch.optim.SGD(p, 0.1, foreach=False, fused=False)),
        (
            AdamW(lr=0.01, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, foreach=False, fused=False),
        ),
    ],
)
def test_thawing_is_what_a_plain_loop_does(
    trick: SGD | Nesterov | AdamW, make: Callable[..., torch.optim.Optimizer], bench: Bench
) -> None:
    """Head first, then everything, with torch's optimizers at their plainest."""
    plan = bench.plan(recipe(Freeze(epochs=1), **SMALL), steps=6)
    until = plan.timeline.steps_per_epoch
    assert until == 3
    ours = NETS["mini_resnet"](4).double()
    theirs = NETS["mini_resnet"](4).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(8, 3, 16, 16, dtype=torch.float64)
    targets = torch.arange(8) % 4
    optimizer = trick.build(parameter_groups(ours))
    reference = make(theirs.parameters())
    freezer = Freezer(plan, ours.train())
    for step in range(plan.timeline.steps):
        freezer.apply(step)
        theirs.train()
        for name, parameter in theirs.named_parameters():
            parameter.requires_grad_(step >= until or name.startswith("fc."))
        if step < until:
            for module in theirs.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            loss = nn.functional.cross_entropy(model(images), targets)
            loss.backward()
            stepper.step()
        assert (ours.stem[0].weight.grad is None) is (step < until)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, msg=name)


def test_the_thaw_comes_when_the_epochs_are_over(bench: Bench) -> None:
    def until(epochs: float | None, train: str = "head") -> int:
        plan: Plan = bench.plan(recipe(Freeze(epochs=epochs, train=train), **SMALL), steps=6)  # type: ignore[arg-type]
        return plan.freezes[0].until(plan.timeline)

    found = [until(e) for e in (None, 0.0, 0.01, 0.7, 1.0, 9.0)]
    assert found == [6, 0, 1, 2, 3, 6]
    assert until(None, "all") == 0
    assert OPTIMIZER.momentum > 0
