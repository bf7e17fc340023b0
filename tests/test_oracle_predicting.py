"""Tricks of predicting against torchvision, Pillow and NumPy, and how read-outs use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from contract import Bench, recipe
from trickbag import api, data
from trickbag.cli.main import main
from trickbag.data.base import DataFacts
from trickbag.engine.batches import eval_batches
from trickbag.engine.evaluate import Reader, all_readouts, evaluate, main_readout
from trickbag.engine.readout import ReadOut
from trickbag.errors import CheckpointError, PlanError
from trickbag.functional.predicting import five_crops, patch_multiple, refusal, scaled_side
from trickbag.functional.snapshots import snapshots_of
from trickbag.plan import Context, compile
from trickbag.tricks.averaging import EMA
from trickbag.tricks.color import Normalize
from trickbag.tricks.ensembling import Ensemble
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.multiview import TTACrops, TTAScales
from trickbag.tricks.snapshots import SnapshotEnsemble
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import Timeline
from trickbag.tricks.tuning import ResizeTuning

FACTS = DataFacts("x", ("a", "b", "c", "d"), 3, {"train": 80}, (24, 24), "f")
VIT = {
    "model": {"name": "test_vit", "options": {"img_size": 32, "dynamic_img_size": False}},
    "image_size": 32,
    "eval_resize": 40,
}


def classify(images):
    """A predictor that cares for where things are, and takes any size."""
    height, width = images.shape[-2:]
    weight = torch.linspace(-1, 1, height)[:, None] * 2 + torch.linspace(-1, 1, width)
    features = torch.stack(
        [images.mean((1, 2, 3)), (images * weight).mean((1, 2, 3)), images.amax((1, 2, 3))], 1
    )
    return (features * 5).softmax(1)


def pictures(count=3, size=12, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Crops


@given(st.integers(1, 12), st.integers(0, 7), st.integers(0, 7))
@settings(max_examples=60)
def test_five_crops_are_those_of_torchvision(size, more, wider):
    images = torch.rand(2, 3, size + more, size + wider)
    wanted = v2.FiveCrop(size)(images)
    found = five_crops(images, size)
    if more == wider == 0:
        assert len(found) == 1
        assert torch.equal(found[0], images)
    else:
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("crops", [5, 10])
def test_tta_crops_average_torchvisions_crops(crops, average):
    images = pictures(size=15)
    views = (v2.TenCrop(12) if crops == 10 else v2.FiveCrop(12))(images)
    each = torch.stack([classify(view) for view in views]).double().numpy()
    mean = each.mean(0) if average == "probabilities" else np.exp(np.log(each).mean(0))
    wanted = mean / mean.sum(1, keepdims=True)
    found = TTACrops(crops=crops, average=average).wrap(classify, size=12)(images)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


def test_tta_crops_of_images_that_are_one_crop_are_mirror_images():
    images = pictures()
    torch.testing.assert_close(TTACrops().wrap(classify)(images), TTAFlip().wrap(classify)(images))
    torch.testing.assert_close(TTACrops(crops=5).wrap(classify, size=12)(images), classify(images))
    assert TTACrops.null().wrap(classify, size=9) is classify
    assert TTACrops.null().view(28, 24) == (28, 24)
    assert TTACrops().view(28, 24) == (28, 28)
    with pytest.raises(ValueError, match="hold no crop of 13 px"):
        TTACrops().wrap(classify, size=13)(images)


def test_tta_crops_say_where_there_is_nothing_to_crop_from():
    (problem,) = TTACrops().check(Context(recipe(eval_resize=24), FACTS))
    assert "24 px is the whole image" in problem.what
    assert "--set eval_resize=27" in problem.fix
    assert not list(TTACrops().check(Context(recipe(), FACTS)))
    tuned = recipe(ResizeTuning(), eval_resize=24)
    assert not list(TTACrops().check(Context(tuned, FACTS)))


# Scales


def pillow_resized(images, size):
    planes = [
        [
            np.asarray(
                Image.fromarray(plane.numpy(), mode=None).resize((size, size), Image.Resampling.BILINEAR)
            )
            for plane in image
        ]
        for image in images
    ]
    return torch.from_numpy(np.array(planes))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_tta_scales_average_what_pillow_resizes(average):
    images = pictures(size=16)
    each = [classify(view) for view in (pillow_resized(images, 12), images, pillow_resized(images, 22))]
    probabilities = torch.stack(each).double().numpy()
    mean = probabilities.mean(0) if average == "probabilities" else np.exp(np.log(probabilities).mean(0))
    wanted = mean / mean.sum(1, keepdims=True)
    found = TTAScales(scales=(0.75, 1.0, 1.375), average=average).wrap(classify)(images)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4)


@given(st.integers(1, 600), st.floats(0.01, 8), st.integers(1, 40))
def test_tta_scales_round_to_the_nearest_multiple(side, scale, multiple):
    found = scaled_side(side, scale, multiple)
    if scale == 1:
        assert found == side
    else:
        assert found % multiple == 0
        assert found > 0
        assert found == multiple or abs(found - side * scale) <= multiple / 2 + 1e-9


def test_tta_scales_leave_the_image_alone_at_scale_1():
    seen = []

    def spy(images):
        seen.append(images)
        return classify(images)

    images = pictures()
    TTAScales(scales=(1.0, 1.25)).wrap(spy)(images)
    assert seen[0] is images
    assert seen[1].shape == (3, 3, 15, 15)
    assert TTAScales.null().wrap(classify) is classify


def test_tta_scales_know_which_sizes_a_model_takes():
    trick = TTAScales().resolve(Context(recipe(**VIT), FACTS))
    assert trick.multiple == patch_multiple(Context(recipe(**VIT), FACTS).model) == 16
    assert TTAScales().resolve(Context(recipe(), FACTS)).multiple == 1
    assert TTAScales(multiple=8).resolve(Context(recipe(**VIT), FACTS)).multiple == 8
    with pytest.raises(PlanError, match="cannot take images of 48 px"):
        compile(recipe(TTAScales(scales=(1.0, 1.5)), **VIT), FACTS)
    any_size = VIT | {"model": {"name": "test_vit", "options": {"img_size": 32, "dynamic_img_size": True}}}
    compile(recipe(TTAScales(scales=(1.0, 1.5)), **any_size), FACTS)
    with pytest.raises(PlanError, match=r"scales 1 and 1\.01 of 24 px come to the same size of 24 px"):
        compile(recipe(TTAScales(scales=(1.0, 1.01))), FACTS)


def test_a_refusal_leaves_the_model_as_it_is():
    model = Context(recipe(**VIT), FACTS).model.train()
    assert refusal(model, 3, 32) is None
    assert "48" in refusal(model, 3, 48)
    assert all(module.training for module in model.modules())


# Views within a read-out


class Linear(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.layer = torch.nn.Linear(3 * size * size, 4)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.2, test=0.2, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


SMALL = {"model": {"name": "mini_resnet", "options": {"width": 4}}, "image_size": 12, "eval_resize": 15}


@pytest.fixture(scope="module")
def trained(bench: Bench) -> Path:
    return bench.train(recipe(Normalize(), **SMALL), steps=6).path


def reader_of(path, bench, *tricks, **values):
    from trickbag.engine.run import Run

    run = Run(path)
    plan = bench.plan(run.recipe().replace(epochs=1, **values).with_tricks(*tricks), steps=6)
    return Reader(run, plan, bench.data), main_readout(plan)


def test_read_outs_with_tta_crops_and_tta_scales_see_the_crops_of_the_whole_square(bench, trained):
    scales = TTAScales(scales=(1.0, 1.25))
    reader, readout = reader_of(trained, bench, TTACrops(), scales)
    assert [trick.kind for trick in readout.tricks] == ["tta_scales", "tta_crops"]
    assert readout.view == (15, 15)
    split = bench.data.splits["test"]
    (images,) = eval_batches(reader.plan, split, (15, 15), 64, range(len(split)), torch.device("cpu"))
    model = reader._weights(readout).model.eval()
    with torch.no_grad():
        views = [
            view
            for crop in v2.TenCrop(12)(images)
            for view in (crop, v2.functional.resize(crop, [15, 15], antialias=True))
        ]
        wanted = torch.stack([model(view).softmax(1) for view in views]).mean(0)
    torch.testing.assert_close(reader.probabilities(readout, split), wanted, rtol=1e-4, atol=1e-5)


# Resize tuning


def test_resize_tuning_tries_ratios_and_sizes():
    assert ResizeTuning(ratios=(1.0, 1.25)).candidates(28, 24) == ((28, 24), (24, 24), (30, 24))
    assert ResizeTuning(ratios=(), sizes=(20, 24)).candidates(48, 24) == ((48, 24), (40, 20))
    assert ResizeTuning(ratios=(1.0,), sizes=(20, 24)).candidates(24, 24) == ((24, 24), (20, 20))
    assert ResizeTuning.null().candidates(28, 24) == ()
    (problem,) = ResizeTuning(ratios=(1.0,)).check(Context(recipe(eval_resize=24), FACTS))
    assert "the only candidate is the recipe's own" in problem.what
    with pytest.raises(PlanError, match="cannot take images of 48 px"):
        compile(recipe(ResizeTuning(sizes=(48,)), **VIT), FACTS)
    assert any("selection split" in note for note in compile(recipe(ResizeTuning()), FACTS).notes)


def test_resize_tuning_takes_the_best_on_the_selection_split_and_never_looks_at_the_test_split(
    bench, trained, tmp_path
):
    path = Path(shutil.copytree(trained, tmp_path / "copy"))
    tuner = ResizeTuning(ratios=(1.0, 1.5, 2.0, 3.0))
    reader, readout = reader_of(path, bench, tuner, TTAFlip())
    found = reader.metrics(readout, "test")
    plain = ReadOut("raw", (TTAFlip(),), 15, 12)
    tried = {
        (resize, 12): reader.metrics(ReadOut("raw", (TTAFlip(),), resize, 12), "selection")["accuracy"]
        for resize in (12, 15, 18, 24, 36)
    }
    best = max(tried.values())
    wanted = min((size for size in tried if tried[size] == best), key=lambda size: abs(size[0] - 15))
    (choice,) = (path / "evaluations").glob("tuned-*.json")
    row = json.loads(choice.read_text())
    assert row["chosen"] == {"eval_resize": wanted[0], "eval_size": 12}
    assert {one["eval_resize"]: one["metrics"]["accuracy"] for one in row["candidates"]} == {
        resize: accuracy for (resize, _), accuracy in tried.items()
    }
    assert len(list((path / "evaluations").glob("test-*"))) == 2
    assert found == reader.metrics(ReadOut("raw", plain.tricks, *wanted), "test")
    assert len(list((path / "evaluations").glob("test-*"))) == 2
    assert reader.choices([readout, plain]) == {"raw+resize_tuning+tta_flip": row["chosen"]}

    row["chosen"]["eval_resize"] = 36
    choice.write_text(json.dumps(row))
    split = bench.data.splits["test"]
    alone = Reader(reader.run, reader.plan)
    wide = reader.probabilities(ReadOut("raw", (TTAFlip(),), 36, 12), split)
    assert torch.equal(alone.probabilities(readout, split), wide)


def test_resize_tuning_takes_the_nearest_of_equals(bench, trained, tmp_path, monkeypatch):
    path = Path(shutil.copytree(trained, tmp_path / "copy"))
    reader, readout = reader_of(path, bench, ResizeTuning(ratios=(1.0, 1.5, 2.0)))
    accuracies = {12: 0.5, 15: 0.25, 18: 0.5, 24: 0.5}
    monkeypatch.setattr(
        "trickbag.engine.evaluate.measure",
        lambda weights, readout, plan, split: {"accuracy": accuracies[readout.resize]},
    )
    reader.metrics(readout, "test")
    assert reader.choices([readout]) == {"raw+resize_tuning": {"eval_resize": 12, "eval_size": 12}}


def test_a_choice_is_made_on_the_runs_own_data_before_anything_is_predicted(bench, trained, shapes, tmp_path):
    path = Path(shutil.copytree(trained, tmp_path / "copy"))
    reader, readout = reader_of(path, bench, ResizeTuning())
    with pytest.raises(CheckpointError, match="no evaluation size has been chosen") as caught:
        Reader(reader.run, reader.plan).probabilities(readout, bench.data.splits["test"])
    assert f"trickbag evaluate {path}" in str(caught.value)
    other = data.load(data.spec(str(shapes), selection=0.3, test=0.1))
    with pytest.raises(CheckpointError, match="the run's own data"):
        Reader(reader.run, reader.plan, other).metrics(readout, "test")
    reader.metrics(readout, "selection")
    assert Reader(reader.run, reader.plan, other).metrics(readout, "test")


# Ensembles


class Known:
    def __init__(self, logits):
        self.fixed = logits

    def logits(self, images):
        return self.fixed


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_an_ensemble_weighs_all_members_alike(average):
    images, rng = pictures(), np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 3))
    own = classify(images).double().numpy()
    others = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    each = np.stack([own, *others])
    mean = each.mean(0) if average == "probabilities" else np.exp(np.log(each).mean(0))
    wanted = mean / mean.sum(1, keepdims=True)
    members = (Source(run="one"), Source(run="two"))
    upstreams = {f"members.{k}": Known(torch.from_numpy(logits[k])) for k in range(2)}
    found = Ensemble(members=members, average=average).wrap(
        lambda x: classify(x).double(), upstreams=upstreams
    )
    np.testing.assert_allclose(found(images).numpy(), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match=r"members\.1"):
        Ensemble(members=members).wrap(classify, upstreams={"members.0": upstreams["members.0"]})
    assert Ensemble.null().wrap(classify) is classify


def test_an_ensemble_replaces_its_members_by_name():
    one, two, three = (Source(run=name) for name in ("one", "two", "three"))
    trick = Ensemble(members=(one, two))
    assert trick.sources() == {"members.0": one, "members.1": two}
    assert trick.with_sources({"members.1": three}) == Ensemble(members=(one, three))


def test_an_ensemble_refuses_members_that_say_nothing_of_the_classes():
    twice = Ensemble(members=(Source(run="one"), Source(run="one")))
    (problem,) = twice.check(Context(recipe(), FACTS))
    assert "members.1 is members.0 once more" in problem.what
    (problem,) = Ensemble(members=(Source(model="resnet18"),)).check(Context(recipe(), FACTS))
    assert "predicts 1000 classes" in problem.what
    assert "4 classes" in problem.expected
    (problem,) = Ensemble(members=(Source(model="mini_resnet"),)).check(Context(recipe(), FACTS))
    assert "not pretrained" in problem.what


OTHER = {
    "model": {"name": "mini_resnet", "options": {"width": 6}},
    "epochs": 1,
    "batch_size": 8,
    "image_size": 16,
    "tricks": {"normalize": {"mean": [0.3, 0.4, 0.5], "std": [0.5, 0.4, 0.3]}, "ema": {"decay": 0.5}},
}


def test_members_that_are_recipes_are_trained_first_and_see_images_as_in_their_own_training(bench):
    member = Source(recipe=OTHER, seed=3)
    chosen = recipe(Normalize(), EMA(decay=0.5), Ensemble(members=(member,)), **SMALL)
    run = bench.train(chosen, steps=3)
    plan = bench.plan(chosen)
    readouts = all_readouts(plan)
    assert [r.label for r in readouts] == ["raw", "ema", "raw+ensemble", "ema+ensemble"]
    reader = Reader(run, plan, bench.data)
    (other,) = reader.settled(readouts[-1]).tricks[0].members
    assert str(Path(other.run).parent) == f"{bench.folder}-upstream"
    theirs, _ = reader_of(Path(other.run), bench)
    split = bench.data.splits["test"]
    own = reader.probabilities(ReadOut("ema", (), 15, 12), split)
    alone = theirs.probabilities(ReadOut("ema", (), 15, 12), split)
    wanted = (own + alone) / 2
    torch.testing.assert_close(reader.probabilities(readouts[-1], split), wanted, rtol=1e-3, atol=1e-4)

    found = evaluate(run, plan, bench.data, readouts, "test")
    kept = {path.name for path in (run.path / "evaluations").iterdir()}
    # However a member is named, it is the same one.
    named = bench.plan(recipe(Normalize(), EMA(decay=0.5), Ensemble(members=(other,)), **SMALL))
    again = evaluate(run, named, bench.data, all_readouts(named), "test")
    assert list(found.values()) == list(again.values())
    assert kept == {path.name for path in (run.path / "evaluations").iterdir()}
    assert reader.known(readouts[-1], "test", bench.data.facts) == found[readouts[-1].digest]
    assert reader.known(readouts[-1], "train", bench.data.facts) is None


def test_a_member_that_is_missing_or_the_run_itself_is_refused(bench, trained):
    reader, readout = reader_of(trained, bench, Ensemble(members=(Source(recipe=OTHER, seed=99),)))
    with pytest.raises(
        CheckpointError, match=r"trick ensemble, members\.0: .* has not been trained"
    ) as caught:
        reader.metrics(readout, "test")
    assert f"trickbag train {trained}/recipe.yaml" in str(caught.value)
    reader, readout = reader_of(trained, bench, Ensemble(members=(Source(run=str(trained)),)))
    with pytest.raises(CheckpointError, match="is the run itself"):
        reader.metrics(readout, "test")


def test_several_runs_are_evaluated_and_predict_as_their_ensemble(bench, trained, shapes):
    other = bench.train(recipe(Normalize(), **SMALL), steps=6, seed=8)
    third = bench.train(recipe(Normalize(), **SMALL), steps=6, seed=9)
    runs = [trained, other, third.path]
    found = api.evaluate(runs, split="test")
    assert set(found) == {"raw", "raw+ensemble"}
    assert found["raw"] == api.evaluate(trained)["raw"]
    split = bench.data.splits["test"]
    each = [
        reader_of(path, bench)[0].probabilities(ReadOut("raw", (), 15, 12), split)
        for path in (trained, other.path, third.path)
    ]
    mean = torch.stack(each).mean(0)
    wanted = float((mean.argmax(1) == torch.from_numpy(split.labels)).float().mean())
    assert found["raw+ensemble"]["accuracy"] == pytest.approx(wanted)
    files = [shapes / name for name in split.names]
    predictions, _ = api.predict(runs, files, top=4)
    classes = bench.data.facts.classes
    for row, prediction in zip(mean.tolist(), predictions, strict=True):
        by_class = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert [by_class[name] for name in classes] == pytest.approx(row, abs=1e-4)
    with pytest.raises(CheckpointError, match="is the run itself"):
        api.evaluate([trained, trained])
    assert api.evaluate([trained]) == api.evaluate(trained)


# Snapshots


def test_snapshot_ensemble_takes_the_ends_of_equal_parts_or_every_so_many_epochs():
    line = Timeline(steps=100, steps_per_epoch=10)
    assert SnapshotEnsemble(count=4).moments(line) == (25, 50, 75, 100)
    assert SnapshotEnsemble(count=3).moments(line) == (33, 67, 100)
    assert SnapshotEnsemble(count=3, every=1.5).moments(line) == (70, 85, 100)
    context = Context(recipe(epochs=2), FACTS)
    (problem,) = SnapshotEnsemble(count=3, every=1).check(context)
    assert "no room for 3 snapshots" in problem.what
    assert not list(SnapshotEnsemble(count=2, every=1).check(context))
    (problem,) = SnapshotEnsemble(count=30).check(context)
    assert "no room" in problem.what


def test_a_snapshot_ensemble_predicts_as_runs_that_ended_at_its_moments(bench):
    """Nothing in the recipe depends on the length of the run: a shorter one is the start of a longer one."""
    plain = recipe(Normalize(), **SMALL)
    run = bench.train(plain.with_tricks(SnapshotEnsemble(count=3)), steps=6)
    split = bench.data.splits["test"]
    ends = [bench.train(plain, steps=steps).path for steps in (2, 4, 6)]
    each = [reader_of(path, bench)[0].probabilities(ReadOut("raw", (), 15, 12), split) for path in ends]
    reader, readout = reader_of(run.path, bench)
    assert readout.label == "snapshot_ensemble"
    torch.testing.assert_close(reader.probabilities(readout, split), torch.stack(each).mean(0))
    weights = reader._weights(readout)
    (images,) = eval_batches(reader.plan, split, (15, 12), 64, range(len(split)), torch.device("cpu"))
    together = weights.loaded("snapshot_ensemble").eval()(images).softmax(1)
    torch.testing.assert_close(together, torch.stack(each).mean(0))

    averaged = bench.train(plain.with_tricks(EMA(decay=0)), steps=2)
    weights = reader_of(averaged.path, bench)[0]._weights(ReadOut("ema", (), 15, 12))
    assert weights.loaded("raw") is weights.model
    raw = {name: value.clone() for name, value in weights.model.state_dict().items()}
    assert all(torch.equal(value, raw[name]) for name, value in weights.loaded("ema").state_dict().items())


def test_snapshots_that_have_not_been_taken_do_not_count():
    model = torch.nn.Linear(2, 2)
    line, trick = Timeline(steps=6, steps_per_epoch=6), SnapshotEnsemble(count=3)
    state = trick.start(model)
    for step, held in enumerate([(1,), (2,), (2,), (2, 4), (2, 4), (2, 4, 6)]):
        with torch.no_grad():
            model.weight.fill_(step + 1)
        trick.update(state, model, step, line)
        found = snapshots_of(state)
        assert tuple(int(one["weight"][0, 0]) for one in found) == held
        assert all(one.keys() == model.state_dict().keys() for one in found)
    assert len(snapshots_of(model.state_dict())) == 1


def test_the_command_line_takes_several_runs_and_shows_the_chosen_size(
    bench, trained, shapes, tmp_path, monkeypatch, capsys
):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["trickbag", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0, *capsys.readouterr()
        return 0, *capsys.readouterr()

    monkeypatch.setenv("COLUMNS", "200")
    path = Path(shutil.copytree(trained, tmp_path / "copy"))
    other = bench.train(recipe(Normalize(), **SMALL), steps=6, seed=8).path
    code, out, _ = call("evaluate", path, other, "--with", "resize_tuning", "--json")
    assert code == 0
    found = json.loads(out)["raw+ensemble+resize_tuning"]
    assert found["eval_size"] == 12
    assert found["eval_resize"] >= 12
    code, out, _ = call("evaluate", path, other, "--with", "resize_tuning")
    assert f"short side to {found['eval_resize']} px, crop of 12 px, chosen on the selection split" in out
    code, out, _ = call("predict", path, other, shapes / "circle", "--with", "resize_tuning", "--json")
    assert code == 0
    assert len(json.loads(out)["predictions"]) == 24
    code, _, err = call("evaluate", path, "nowhere", other)
    assert code == 2
    assert "nowhere is not a run directory" in err
    code, _, err = call("predict", path, other)
    assert code == 2
    assert "no image is named" in err
