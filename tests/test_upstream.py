"""Runs that build upon other trained models: found or trained, the same model at work, or refused."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract import Bench, fingerprint, recipe, rows
from trickbag import data
from trickbag import plan as planning
from trickbag.engine import train as training
from trickbag.engine.batches import eval_batches
from trickbag.engine.evaluate import RAW, ReadOut, load_weights, probabilities
from trickbag.engine.run import Run, run_id
from trickbag.engine.train import Status, Stopped
from trickbag.engine.upstream import Knowledge, know, settle
from trickbag.errors import CheckpointError, Diverged, PlanError
from trickbag.functional.layers import last_layers
from trickbag.recipe import Recipe, dump, load
from trickbag.rng import Stream
from trickbag.tricks.averaging import EMA
from trickbag.tricks.color import Normalize
from trickbag.tricks.distillation import Distillation
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.sources import Source

CPU = torch.device("cpu")
SMALL = {"name": "mini_resnet", "options": {"width": 4}}
PLAIN: dict[str, Any] = {"model": SMALL, "epochs": 1, "batch_size": 8, "image_size": 16, "eval_resize": 16}
TEACHER = PLAIN | {"tricks": {"sgd": {"lr": 0.05}}}
SEED = 7


def small(*tricks: Any, **values: Any) -> Recipe:
    return recipe(*tricks, **(PLAIN | values))


def student(temperature: float = 4.0, **teacher: Any) -> Recipe:
    return small(Distillation(teacher=Source(**teacher), temperature=temperature))


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1, train_size=24)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def finished(bench: Bench) -> Run:
    """A run of the teacher's recipe."""
    return bench.train(load_plain(TEACHER), seed=SEED)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that were trained, in order."""
    names: list[str] = []
    work = training._train

    def counted(run: Run, *rest: Any) -> dict[str, Any]:
        names.append(run.id)
        return work(run, *rest)

    monkeypatch.setattr(training, "_train", counted)
    return names


def keep(bench: Bench, folder: Path, chosen: Recipe, steps: int = 3, **options: Any) -> Run:
    """A finished run, beside those that it builds upon."""
    kept = Bench(bench.data, folder)
    return kept.train(chosen, steps, seed=SEED, fresh=False, upstream_runs=folder, **options)


def load_plain(values: dict[str, Any]) -> Recipe:
    return planning.recipe_of(Source(recipe=values))


def id_of(bench: Bench, chosen: Recipe, seed: int = SEED) -> str:
    return run_id(bench.plan(chosen).recipe, bench.data.facts, seed)


def upstream(bench: Bench, chosen: Recipe, source: Source, same_classes: bool = True) -> Knowledge:
    return know(source, bench.plan(chosen), bench.data, CPU, same_classes)


def problems(bench: Bench, chosen: Recipe) -> list[str]:
    with pytest.raises(PlanError) as caught:
        bench.plan(chosen)
    return [str(problem) for problem in caught.value.problems]


def seen(bench: Bench, chosen: Recipe) -> torch.Tensor:
    """The training images, as a model of this recipe sees them when predicting."""
    plan, split = bench.plan(chosen), bench.data.splits["train"]
    return torch.cat([*eval_batches(plan, split, (16, 16), 64, range(len(split)), CPU)])


# ---------------------------------------------------------------- trained once, then found


def test_a_teacher_is_trained_once_and_shared(bench: Bench, tmp_path: Path, trained: list[str]) -> None:
    first = keep(bench, tmp_path, student(recipe=TEACHER))
    teacher = id_of(bench, load_plain(TEACHER))
    assert trained == [teacher, first.id]
    second = keep(bench, tmp_path, student(recipe=TEACHER, temperature=2))
    assert trained == [teacher, first.id, second.id]
    again = keep(bench, tmp_path, student(recipe=TEACHER))
    assert again.path == first.path
    assert len(trained) == 3
    assert {path.name for path in tmp_path.iterdir()} == set(trained)
    assert fingerprint(first) != fingerprint(second)
    named = keep(bench, tmp_path, student(run=str(tmp_path / teacher)))
    assert named.path == first.path
    assert len(trained) == 3


def test_a_teacher_lives_where_upstream_runs_are_kept(
    bench: Bench, tmp_path: Path, trained: list[str]
) -> None:
    for folder in ("one", "other"):
        Bench(bench.data, tmp_path / folder).train(
            student(recipe=TEACHER), seed=SEED, fresh=False, upstream_runs=tmp_path / "shared"
        )
    assert len(trained) == 3
    assert {path.name for path in (tmp_path / "shared").iterdir()} == {trained[0]}


def test_the_name_of_a_student_follows_its_teacher(bench: Bench, finished: Run) -> None:
    by_recipe = id_of(bench, student(recipe=TEACHER))
    assert by_recipe == id_of(bench, student(run=str(finished.path)))
    assert by_recipe == id_of(bench, student(recipe=TEACHER, seed=SEED))
    others = [
        id_of(bench, small()),
        id_of(bench, student(recipe=TEACHER, set=("epochs=2",))),
        id_of(bench, student(recipe=TEACHER, seed=1)),
        id_of(bench, student(recipe=TEACHER, averaged=False)),
        id_of(bench, student(recipe=TEACHER, temperature=3)),
        id_of(bench, student(recipe=TEACHER), seed=1),
    ]
    assert len({by_recipe, *others}) == 7


def test_predict_tricks_of_a_teacher_do_not_rename_its_student(bench: Bench) -> None:
    flipped = TEACHER | {"tricks": TEACHER["tricks"] | {"tta_flip": {}}}
    assert TTAFlip.kind in flipped["tricks"]
    assert id_of(bench, student(recipe=flipped)) == id_of(bench, student(recipe=TEACHER))


def test_a_settled_plan_names_runs_the_deepest_first(bench: Bench, tmp_path: Path) -> None:
    middle = PLAIN | {"tricks": {"distillation": {"teacher": {"recipe": TEACHER, "seed": 3}}}}
    plan = bench.plan(student(recipe=middle))
    settled, ahead = settle(plan, SEED, tmp_path, "cpu")
    assert [one.seed for one in ahead] == [3, SEED]
    assert [one.plan.recipe.model for one in ahead] == [plan.recipe.model] * 2
    source = settled.bag["distillation"].sources()["teacher"]
    assert source.run == str(ahead[1].path)
    assert ahead[1].plan.bag["distillation"].sources()["teacher"].run == str(ahead[0].path)
    assert run_id(settled.recipe, plan.facts, SEED) == run_id(plan.recipe, plan.facts, SEED)
    run = keep(bench, tmp_path, student(recipe=middle))
    assert {path.name for path in tmp_path.iterdir()} == {run.id, *(one.path.name for one in ahead)}


def test_a_plan_without_upstream_runs_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    plan = bench.plan(small(Distillation.null()))
    assert settle(plan, SEED, tmp_path, "cpu") == (plan, ())


def test_a_run_s_recipe_file_names_its_teacher_s_run(bench: Bench, tmp_path: Path) -> None:
    run = keep(bench, tmp_path, student(recipe=TEACHER))
    source = run.recipe().tricks["distillation"].sources()["teacher"]
    assert Run(Path(source.run or "")).result()
    chosen = student(recipe=TEACHER, set=("epochs=2",), seed=3)
    (tmp_path / "recipe.yaml").write_text(dump(chosen))
    assert load(tmp_path / "recipe.yaml") == chosen


def test_interrupted_while_the_teacher_trains(bench: Bench, tmp_path: Path, trained: list[str]) -> None:
    chosen = student(recipe=TEACHER | {"epochs": 30})
    unbroken = bench.train(chosen, steps=6, seed=SEED)
    trained.clear()

    def stop(status: Status) -> None:
        if status.step < status.steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        keep(bench, tmp_path, chosen, 6, progress=stop)
    assert len(trained) == 1
    run = keep(bench, tmp_path, chosen, 6)
    assert len(trained) == 3
    assert trained[0] == trained[1]
    assert fingerprint(run) == fingerprint(unbroken)
    assert rows(run) == rows(unbroken)


# ---------------------------------------------------------------- the model at work


def test_a_student_learns_from_its_teacher(bench: Bench, finished: Run) -> None:
    """The gradient of the teacher's part alone pulls the student towards it."""
    chosen = small(Distillation(teacher=Source(run=str(finished.path)), alpha=1, temperature=1))
    teacher = upstream(bench, chosen, Source(run=str(finished.path)))
    wanted = teacher.logits(seen(bench, chosen)).softmax(1)
    split = bench.data.splits["train"]

    def distance(steps: int) -> float:
        run = bench.train(chosen, steps=steps, seed=1)
        plan = bench.plan(chosen)
        found = probabilities(load_weights(run, plan), ReadOut(RAW, (), 16, 16), plan, split)
        return float((wanted * (wanted / found).log()).sum(1).mean())

    assert distance(60) < 0.7 * distance(1)


NORMALIZATIONS = [(), (Normalize(),), (Normalize(mean=(0.1, 0.5, 0.9), std=(0.9, 0.3, 0.5)),)]


@pytest.mark.parametrize("ours", NORMALIZATIONS, ids=str)
@pytest.mark.parametrize("theirs", NORMALIZATIONS, ids=str)
def test_each_model_sees_images_as_it_was_trained_on(bench: Bench, ours: Any, theirs: Any) -> None:
    taught = small(*theirs)
    run = bench.train(taught, seed=SEED)
    teacher = upstream(bench, small(*ours), Source(run=str(run.path)))
    given = seen(bench, small(*ours))
    with torch.no_grad():
        expected = teacher.model(seen(bench, taught))
    torch.testing.assert_close(teacher.logits(given), expected, atol=1e-4, rtol=1e-4)
    plan = bench.plan(taught)
    own = probabilities(load_weights(run, plan), ReadOut(RAW, (), 16, 16), plan, bench.data.splits["train"])
    torch.testing.assert_close(teacher.logits(given).softmax(1), own, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(teacher.probabilities(), own.numpy(), atol=1e-6)


def test_features_are_what_the_classifier_sees(bench: Bench, finished: Run) -> None:
    known = upstream(bench, small(), Source(run=str(finished.path)))
    features = known.features()
    assert features.shape[0] == 24
    head = known.model.get_submodule(last_layers(known.model)[0])
    with torch.no_grad():
        logits = known.model(seen(bench, small()))
        from_features = head(torch.from_numpy(features))
    scale = (logits[0, 0] - logits[0, 1]) / (from_features[0, 0] - from_features[0, 1])
    torch.testing.assert_close(from_features * scale, logits, atol=1e-4, rtol=1e-3)


def test_a_model_at_work_does_not_change(bench: Bench, finished: Run) -> None:
    known = upstream(bench, small(), Source(run=str(finished.path)))
    before = {name: value.clone() for name, value in known.state.items()}
    assert not known.model.training
    assert not known.logits(torch.rand(4, 3, 16, 16)).requires_grad
    assert not any(p.requires_grad for p in known.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in known.state.items())


def test_averaged_weights_are_taken_if_there_are_some(bench: Bench) -> None:
    run = bench.train(small(EMA(decay=0.5)), seed=SEED)
    weights = load_weights(run, bench.plan(small(EMA(decay=0.5))))
    raw, average = weights.model.state_dict(), weights.averages["ema"]
    for averaged, wanted in ((True, average), (False, raw)):
        state = upstream(bench, small(), Source(run=str(run.path), averaged=averaged)).state
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
    assert any(not torch.equal(raw[name], value) for name, value in average.items())


def test_a_teacher_outlives_what_it_was_taught_by(bench: Bench, tmp_path: Path) -> None:
    middle = keep(bench, tmp_path, student(recipe=TEACHER))
    shutil.rmtree(tmp_path / id_of(bench, load_plain(TEACHER)))
    run = keep(bench, tmp_path, student(run=str(middle.path)))
    assert run.result()["status"] == "finished"  # type: ignore[index]


# ---------------------------------------------------------------- teachers from a file


def saved(name: str, classes: int, path: Path) -> dict[str, torch.Tensor]:
    """Write random weights of a model for so many classes."""
    from safetensors.torch import save_file

    from trickbag.data.base import DataFacts
    from trickbag.recipe import ModelSpec
    from trickbag.tasks.classification import build_model

    facts = DataFacts("x", tuple(map(str, range(classes))), 3, {}, (16, 16), "")
    state = build_model(ModelSpec(name=name), facts, Stream(5)).state_dict()
    save_file(state, path)
    return state


@pytest.mark.parametrize("name", ["mini_resnet", "test_efficientnet"])
def test_a_file_of_weights_teaches(name: str, bench: Bench, tmp_path: Path) -> None:
    state = saved(name, 4, tmp_path / "weights.safetensors")
    source = Source(model=name, weights=str(tmp_path / "weights.safetensors"))
    chosen = small(Normalize(mean=(0.2,) * 3, std=(0.5,) * 3), Distillation(teacher=source))
    known = upstream(bench, chosen, source)
    assert all(torch.equal(known.state[key], value) for key, value in state.items())
    given = seen(bench, chosen)
    imagenet = Normalize(mean=Normalize.IMAGENET_MEAN, std=Normalize.IMAGENET_STD)
    with torch.no_grad():
        expected = known.model(given if name == "mini_resnet" else seen(bench, small(imagenet)))
    torch.testing.assert_close(known.logits(given), expected, atol=1e-4, rtol=1e-4)
    run = bench.train(chosen, seed=SEED)
    assert fingerprint(run) != fingerprint(bench.train(chosen.without("distillation"), seed=SEED))
    other = tmp_path / "other.safetensors"
    shutil.copy(source.weights or "", other)
    moved = chosen.with_tricks(Distillation(teacher=Source(model=name, weights=str(other))))
    assert id_of(bench, moved) == run.id


def test_a_file_for_other_classes_is_no_teacher(bench: Bench, tmp_path: Path) -> None:
    saved("test_efficientnet", 9, tmp_path / "nine.safetensors")
    source = Source(model="test_efficientnet", weights=str(tmp_path / "nine.safetensors"))
    with pytest.raises(CheckpointError, match="is not for the 4 classes"):
        bench.train(small(Distillation(teacher=source)))
    known = upstream(bench, small(), source, same_classes=False)
    assert known.logits(torch.rand(2, 3, 16, 16)).shape == (2, 4)


def test_a_teacher_of_another_size_is_named(bench: Bench, tmp_path: Path) -> None:
    name, path = "vit_tiny_patch16_224", tmp_path / "vit.safetensors"
    saved(name, 4, path)
    with pytest.raises(CheckpointError) as caught:
        bench.train(student(model=name, weights=str(path)))
    assert str(caught.value).startswith(f"trick distillation, teacher: {name} cannot take images of 16 px")


# ---------------------------------------------------------------- refused


def altered(run: Run, folder: Path, old: str, new: str) -> Path:
    """A copy of a run with another text in what identifies it."""
    shutil.copytree(run.path, folder)
    file = folder / "run.json"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return folder


def test_runs_that_cannot_teach_are_problems_beside_others(
    bench: Bench, finished: Run, tmp_path: Path
) -> None:
    other = altered(finished, tmp_path / "other", '"circle"', '"disc"')
    unfinished = shutil.copytree(finished.path, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    for path, said in (
        (tmp_path / "nothing", "is not a run"),
        (unfinished, "is not finished"),
        (other, "was trained on other classes: disc"),
    ):
        found = problems(bench, student(run=str(path)).replace(eval_resize=4))
        assert len(found) == 2
        assert any("eval_resize 4" in text for text in found)
        assert any(text.startswith("trick distillation, teacher: ") and said in text for text in found)


def test_a_run_that_vanished_or_does_not_fit_is_refused(bench: Bench, finished: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not finished"):
        upstream(bench, small(), Source(run=str(tmp_path / "nothing")))
    gray = altered(finished, tmp_path / "gray", '"channels": 3', '"channels": 1')
    with pytest.raises(CheckpointError, match="images of 1 channel"):
        upstream(bench, small(), Source(run=str(gray)))


def test_a_wrong_recipe_for_a_teacher_is_told_with_the_rest(bench: Bench) -> None:
    wrong = TEACHER | {"tricks": {"sgd": {"lr": -1}, "mixupp": {}}}
    found = problems(bench, student(recipe=wrong).replace(eval_resize=4))
    assert len(found) == 3
    assert sum(text.startswith("trick distillation, teacher: ") for text in found) == 2
    assert any("did you mean mixup?" in text for text in found)
    unfit = TEACHER | {"batch_size": 1000}
    (text,) = problems(bench, student(recipe=unfit))
    assert "batch_size 1000 is more than the 24 training images" in text
    (text,) = problems(bench, student(recipe="no_such_recipe"))
    assert "no recipe is called 'no_such_recipe'" in text


def test_a_circle_of_recipes_is_one_problem(bench: Bench, tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(dump(student(recipe=str(other))))
    other.write_text(dump(student(recipe=str(one))))
    found = problems(bench, student(recipe=str(one)).replace(eval_resize=4))
    assert len(found) == 2
    assert sum("recipes build upon each other" in text for text in found) == 1
    assert any("break the circle" in text for text in found)


def test_a_missing_file_of_weights_is_a_problem(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "missing.safetensors"
    (text,) = problems(bench, student(model="mini_resnet", weights=str(path)))
    assert f"there is no file {path}" in text


def test_a_diverged_teacher_ends_it(bench: Bench) -> None:
    wild = TEACHER | {"epochs": 20, "tricks": {"sgd": {"lr": 1e30}}}
    with pytest.raises(Diverged, match="builds upon diverged"):
        bench.train(student(recipe=wild))
