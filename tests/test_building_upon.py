"""Runs that build upon runs: names, splits that stay closed, changes, and how recipes name them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from contract import Bench, fingerprint, recipe
from trickbag import api, data
from trickbag.engine.run import run_id
from trickbag.engine.train import Stopped
from trickbag.errors import CheckpointError, PlanError
from trickbag.recipe import load
from trickbag.recipe.fitting import fit
from trickbag.tricks.distillation import Distillation
from trickbag.tricks.ensembling import Ensemble
from trickbag.tricks.gradients import GradientClipping
from trickbag.tricks.sources import Source
from trickbag.tricks.transfer import Freeze, StartFrom

TINY = {
    "model": {"name": "mini_resnet", "options": {"width": 4}},
    "epochs": 1,
    "batch_size": 16,
    "image_size": 8,
    "tricks": {"sgd": {"lr": 0.05}},
}


@pytest.fixture(scope="module")
def bench(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    spec = data.spec(str(shapes), selection=0.1, test=0.1)
    return Bench(data.load(spec), tmp_path_factory.mktemp("runs"))


def test_a_directory_is_known_by_its_run_not_by_its_name(bench: Bench, tmp_path: Path) -> None:
    one, other = (bench.train(recipe(), steps=2, seed=seed) for seed in (1, 2))
    names = []
    for run, folder in ((one, "teacher"), (other, "teacher"), (one, "copy")):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        shutil.copytree(run.path, tmp_path / folder)
        chosen = recipe(StartFrom(source=Source(run=str(tmp_path / folder))))
        names.append(run_id(bench.plan(chosen).recipe, bench.data.facts, 1))
    assert names[0] != names[1]
    assert names[0] == names[2]


def test_what_is_built_upon_is_not_measured_on_the_test_split(bench: Bench, tmp_path: Path) -> None:
    teacher = Source(recipe=recipe(lr_only()).data())
    Bench(bench.data, tmp_path / "runs").train(
        recipe(Distillation(teacher=teacher)), steps=2, fresh=False, upstream_runs=tmp_path / "up"
    )
    assert list((tmp_path / "up").glob("*/result.json"))
    assert not list((tmp_path / "up").glob("*/evaluations/*"))


def lr_only() -> Any:
    from trickbag.tricks.optimization import SGD

    return SGD(lr=0.01)


@pytest.mark.parametrize("mode", ["norm", "value", "adaptive"])
def test_clipping_a_thawed_model_resumes_to_the_bit(bench: Bench, tmp_path: Path, mode: str) -> None:
    clipping = GradientClipping(limit=0.01, mode=mode)  # type: ignore[arg-type]
    chosen = recipe(Freeze(epochs=0.2), clipping)
    steps = 8
    whole = bench.train(chosen, steps=steps)

    def stop(status: Any) -> None:
        if status.step in (1, 6):
            os.kill(os.getpid(), signal.SIGTERM)

    place = Bench(bench.data, tmp_path)
    for _ in range(4):
        try:
            broken = place.train(chosen, steps=steps, fresh=False, progress=stop, report_seconds=0)
            break
        except Stopped:
            continue
    assert fingerprint(broken) == fingerprint(whole)


def test_a_student_can_be_read_otherwise_after_its_teacher_is_gone(tmp_path: Path) -> None:
    student = api.load_recipe(_write(tmp_path, TINY)).with_tricks(Distillation(teacher=Source(recipe=TINY)))
    run = api.train(student, "digits", runs=tmp_path / "runs", threads=1)
    (teacher,) = (path for path in (tmp_path / "runs").iterdir() if path.name != run.id)
    shutil.rmtree(teacher)

    def flipped(old: Any) -> Any:
        return load(run.path / "recipe.yaml", with_=["tta_flip"])

    assert set(api.evaluate(run, change=flipped)) == {"raw", "raw+tta_flip"}
    with pytest.raises(CheckpointError, match="needed training"):
        api.evaluate(run, change=lambda old: load(run.path / "recipe.yaml", without=["distillation"]))


def _write(folder: Path, values: dict[str, Any]) -> Path:
    from ruamel.yaml import YAML

    with open(folder / "tiny.yaml", "w") as file:
        YAML().dump(values, file)
    return folder / "tiny.yaml"


def test_a_member_counts_once(tmp_path: Path) -> None:
    tiny = load(_write(tmp_path, TINY))
    runs = [api.train(tiny, "digits", seed=seed, runs=tmp_path / "runs", threads=1) for seed in (1, 2)]
    with pytest.raises(PlanError, match="count twice"):
        api.evaluate([runs[0], runs[1].path, f"{runs[1].path.parent}/../runs/{runs[1].id}"])
    own = tiny.with_tricks(Ensemble(members=(Source(recipe=TINY),)))
    with pytest.raises(PlanError, match="run itself"):
        api.train(own, "digits", seed=1, runs=tmp_path / "runs", threads=1)


def test_recipes_beside_a_file_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, TINY)
    student = TINY | {"tricks": {"distillation": {"teacher": {"recipe": "tiny.yaml"}}}}
    (tmp_path / "sub").mkdir()
    path = _write(tmp_path / "sub", student).rename(tmp_path / "student.yaml")
    monkeypatch.chdir(tmp_path / "sub")
    trick = load(path).tricks["distillation"]
    assert isinstance(trick, Distillation)
    assert trick.teacher is not None
    assert trick.teacher.recipe == str(tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    "change",
    ["distillation.teacher={recipe: digits_baseline}", "distillation.teacher.recipe=digits_baseline"],
)
def test_naming_a_model_replaces_the_one_named_before(change: str) -> None:
    trick = load("he2019_distillation", set_=[change]).tricks["distillation"]
    assert isinstance(trick, Distillation)
    assert trick.teacher == Source(recipe="digits_baseline")


def test_short_forms_of_a_source() -> None:
    assert Source.model_validate("digits_bag") == Source(recipe="digits_bag")
    assert Source.model_validate({"recipe": "digits_bag", "set": "epochs=1"}).set == ("epochs=1",)


def test_fitting_without_a_teacher() -> None:
    facts = data.facts(data.spec("digits"))
    chosen = load("digits_baseline").with_tricks(Distillation(alpha=0.0, teacher=None))
    assert "distillation" in fit(chosen, facts).recipe.tricks


def test_a_study_keeps_what_it_builds_upon(tmp_path: Path) -> None:
    from trickbag.study.spec import StudySpec

    path = _write(tmp_path, TINY)
    student = load(path).with_tricks(Distillation(teacher=Source(recipe=str(path), set=("epochs=2",))))
    spec = StudySpec(baseline=load(path), candidate=student, data=data.spec("digits"))
    path.unlink()
    trick = spec.candidate.tricks["distillation"]
    assert isinstance(trick, Distillation)
    assert trick.teacher is not None
    assert isinstance(trick.teacher.recipe, dict)
    assert trick.teacher.recipe["epochs"] == 2
    assert [change.key for change in spec.layout.factors[0].changes] == ["distillation"]
