"""Whole studies of the newer designs, through the command line and the Python interface."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner

from conftest import write_shapes
from trickbag import api
from trickbag.cli.main import app
from trickbag.data.base import DataSpec
from trickbag.errors import StudyError
from trickbag.recipe import Recipe, dump
from trickbag.report.content import ReportData
from trickbag.study.collect import collect
from trickbag.study.executor import Event
from trickbag.study.outline import outline
from trickbag.study.spec import Budget, StudyFolder, StudySpec
from trickbag.tricks.augmentation import RandomFlip
from trickbag.tricks.averaging import EMA
from trickbag.tricks.color import Normalize
from trickbag.tricks.distillation import Distillation
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.losses import LabelSmoothing
from trickbag.tricks.mixing import CutMix, Mixup
from trickbag.tricks.optimization import SGD
from trickbag.tricks.schedules import CosineDecay
from trickbag.tricks.sources import Source


def recipe(*tricks: Any, **values: Any) -> Recipe:
    plain = {"model": "mini_resnet", "epochs": 2, "batch_size": 8, "image_size": 8} | values
    return Recipe(**plain, tricks=[SGD(lr=0.05), Normalize(), *tricks])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    folder = write_shapes(tmp_path_factory.mktemp("designs") / "shapes", count=16, size=8)
    return DataSpec(source=str(folder), selection=0.3, test=0.2)


def study(spec: StudySpec, folder: Path) -> ReportData:
    conduct = api.prepare_study(spec, folder / "study", folder / "runs")
    assert api.run_study(conduct, workers=2)
    return ReportData.from_json((folder / "study" / "report.json").read_text())


def test_a_screen_judges_every_factor_by_all_runs(images: DataSpec, tmp_path: Path) -> None:
    full = recipe(RandomFlip(), Mixup(), LabelSmoothing(), EMA(decay=0.9), TTAFlip())
    spec = StudySpec(baseline=recipe(), candidate=full, data=images, design="screen", seeds=(0, 1))
    report = study(spec, tmp_path)
    assert {e.factor for e in report.analysis.effects} == {f.key for f in report.factors}
    assert all(e.estimate is not None for e in report.analysis.effects)
    # Three factors are trained: four runs and their mirror images, baseline and candidate with both seeds.
    runs = {run.run_id for arm in report.arms for run in arm.runs}
    assert report.plan["training_runs"] == len(runs) == len(list((tmp_path / "runs").iterdir())) <= 10
    assert report.plan["results"] == sum(len(arm.runs) for arm in report.arms) > len(runs)
    assert report.residuals
    assert report.recommendation is not None
    assert sum(report.attribution.values()) == pytest.approx(report.recommendation.gain, abs=1e-6)
    assert {m.name for m in report.metrics} >= {"accuracy", "nll", "ece", "training_seconds", "inference_ms"}
    assert set(report.analyses) == {m.name for m in report.metrics[1:]}


def test_a_factorial_crosses_what_it_is_told_to(images: DataSpec, tmp_path: Path) -> None:
    full = recipe(RandomFlip(), Mixup(), LabelSmoothing())
    spec = StudySpec(
        baseline=recipe(),
        candidate=full,
        data=images,
        design="factorial",
        crossed=("mixup", "label_smoothing"),
        seeds=(0, 1),
    )
    report = study(spec, tmp_path)
    crossed = {tuple(sorted(set(arm.factors_on) & set(spec.crossed))) for arm in report.arms}
    assert len(crossed) == 4
    assert {(p.first, p.second) for p in report.interactions} >= {("mixup", "label_smoothing")} or any(
        {p.first, p.second} == {"mixup", "label_smoothing"} for p in report.interactions
    )


def test_a_budget_of_epochs_is_kept(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(
        baseline=recipe(epochs=1),
        candidate=recipe(RandomFlip(), Mixup(), epochs=2),
        data=images,
        design="auto",
        budget=Budget(amount=30, unit="epochs"),
    )
    report = study(spec, tmp_path)
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert sum(result["epochs"] for result in results) <= 30
    assert sum(stage.runs for stage in report.stages) == len(results)
    assert [stage.name for stage in report.stages][:2] == ["pilot", "screen"]
    assert report.comparisons
    assert {c.split for c in report.comparisons} == {"selection", "test"}
    fresh = {run.seed for arm in report.arms for run in arm.runs if run.stage == "confirm"}
    earlier = {run.seed for arm in report.arms for run in arm.runs if run.stage != "confirm"}
    assert fresh
    assert not fresh & earlier
    assert [set(opening.seeds) for opening in report.openings] == [fresh]
    seen = {path.parent.parent.name for path in (tmp_path / "runs").glob("*/evaluations/test-*.json")}
    confirmed = {run.run_id for arm in report.arms for run in arm.runs if run.stage == "confirm"}
    assert seen == confirmed


def test_too_small_a_budget_is_refused_before_anything_is_trained(images: DataSpec, tmp_path: Path) -> None:
    full = recipe(RandomFlip(), Mixup(), LabelSmoothing())
    for design in ("auto", "leave-one-out", "screen"):
        spec = StudySpec(
            baseline=recipe(),
            candidate=full,
            data=images,
            design=design,  # type: ignore[arg-type]
            budget=Budget(amount=3, unit="runs"),
        )
        with pytest.raises(StudyError, match="budget"):
            outline(spec)
        conduct = api.prepare_study(spec, tmp_path / design, tmp_path / "runs")
        with pytest.raises(StudyError, match="budget"):
            conduct.pending(1)
    assert not (tmp_path / "runs").exists()


def test_recipes_that_cannot_be_are_avoided_when_factors_stay_apart(images: DataSpec, tmp_path: Path) -> None:
    full = recipe(RandomFlip(), LabelSmoothing(), CosineDecay(), Mixup(), CutMix())
    spec = StudySpec(baseline=recipe(), candidate=full, data=images, design="screen", seeds=(0,))
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    refused: list[frozenset[str]] = []
    trainable = type(conduct)._trainable

    class Stubborn(type(conduct)):  # type: ignore[misc]
        def _trainable(self, cell: frozenset[str]) -> bool:
            bad = {"mixup", "cutmix"} <= cell and cell != frozenset(self.space.keys)
            if bad:
                refused.append(cell)
            return not bad and trainable(self, cell)

    found = Stubborn(conduct.folder, conduct.spec, conduct.data).propose()
    assert found is not None
    assert len(refused) > 1
    everything = frozenset(conduct.space.keys)
    assert not [p for p in found.points if {"mixup", "cutmix"} <= p.cell and p.cell != everything]


def test_an_a_a_study_on_digits_claims_nothing(tmp_path: Path) -> None:
    """Factors too small to matter, but large enough to send every run another way."""
    base = Recipe(
        model="mini_resnet",
        epochs=8,
        batch_size=20,
        image_size=8,
        tricks=[SGD(lr=0.1, weight_decay=5e-4), Normalize()],
    )
    nothing = base.with_tricks(
        SGD(lr=0.1 * (1 + 1e-5), weight_decay=5e-4 * (1 + 1e-4)),
        LabelSmoothing(epsilon=1e-6),
        EMA(decay=1e-6),
        Mixup(alpha=1e-4),
    )
    data = DataSpec(source="digits", train_size=100, selection=0.4, test=0.4)
    spec = StudySpec(baseline=base, candidate=nothing, data=data, design="screen", seeds=(0, 1, 2))
    report = study(spec, tmp_path)
    assert len(report.analysis.effects) == 5
    values = {run.value for arm in report.arms for run in arm.runs}
    assert len(values) > 3
    assert not [e.factor for e in report.analysis.effects if e.verdict in ("helps", "hurts")]


class Failing:
    """An executor all of whose jobs fail: a disk that is not there, code that has changed."""

    workers = 2

    def run(self, jobs: Any, on_event: Any) -> bool:
        for job in jobs:
            on_event(Event("failed", job, "no such disk"))
        return True


def test_nothing_is_decided_on_failed_runs(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(
        baseline=recipe(),
        candidate=recipe(RandomFlip(), Mixup()),
        data=images,
        design="auto",
        budget=Budget(amount=20, unit="runs"),
    )
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    for _ in range(2):
        with pytest.raises(StudyError, match="nothing is decided"):
            conduct.run(Failing(), 1, lambda event: None)
    with conduct.folder.store(readonly=True) as store:
        assert [one.stage for one in store.rounds()] == ["pilot"]


def test_a_candidate_that_diverges_does_not_keep_the_test_split_shut(
    images: DataSpec, tmp_path: Path
) -> None:
    spec = StudySpec(
        baseline=recipe(epochs=1),
        candidate=recipe(RandomFlip(), Mixup(), epochs=1).with_tricks(SGD(lr=1e30)),
        data=images,
        design="auto",
        budget=Budget(amount=16, unit="runs"),
    )
    report = study(spec, tmp_path)
    assert report.analysis.diverged
    assert not set(report.analysis.diverged) & set(report.analysis.missing)
    assert report.recommendation is not None
    assert "sgd.lr" not in report.recommendation.factors_on
    told = {arm for opening in report.openings for arm in opening.arms}
    final = next(iter(told - {"baseline"}), None)
    assert final is None or final != "candidate"
    assert any(c.split == "test" for c in report.comparisons) or not told


def test_numbers_that_another_study_opened_stay_sealed_in_this_one(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(
        baseline=recipe(epochs=1), candidate=recipe(Mixup(), epochs=1), data=images, seeds=(0, 1)
    )
    assert study(spec, tmp_path).confirm is not None
    other = spec.model_copy(update={"delta": 0.6})
    conduct = api.prepare_study(other, tmp_path / "other", tmp_path / "runs")
    assert collect(conduct).confirm is None
    events: list[Event] = []
    assert api.run_study(conduct, workers=1, listen=events.append)
    assert not events
    report = ReportData.from_json((tmp_path / "other" / "report.json").read_text())
    assert report.confirm is not None
    assert len(report.openings) == 1


def test_a_budget_of_time_waits_for_its_timing(images: DataSpec, tmp_path: Path) -> None:
    conduct = api.make_study(
        recipe(),
        recipe(RandomFlip(), Mixup()),
        images,
        design="auto",
        budget="1h",
        workers=2,
        out=tmp_path / "study",
        runs=tmp_path / "runs",
        device="cpu",
    )
    assert conduct.spec.budget == Budget(amount=7200, unit="seconds")
    assert conduct.pending(1) == []
    assert collect(conduct).arms
    write = {
        t.recipe.digest: {"step": 0.1, "evaluation": 1.0, "overhead": 0.5} for t in conduct._timed().values()
    }
    (tmp_path / "study" / "costs.json").write_text(json.dumps(write))
    first = conduct.propose()
    assert first is not None
    assert first.stage == "pilot"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"design": "lo"}, "design"),
        ({"metric": "acc"}, "metric"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (-1, 0)}, "seed -1"),
        ({"alpha": 0.5}, "alpha"),
        ({"price": float("nan")}, "price"),
        ({"metric": "top5_accuracy"}, "top-5"),
    ],
)
def test_mistakes_in_python_are_named(
    images: DataSpec, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(StudyError, match=said):
        api.make_study(
            recipe(), recipe(Mixup()), images, out=tmp_path / "s", runs=tmp_path / "r", device="cpu", **values
        )
    assert not (tmp_path / "s").exists()


def test_a_teacher_counts_in_a_budget_of_time(images: DataSpec, tmp_path: Path) -> None:
    taught = recipe(Distillation(teacher=Source(recipe=recipe(epochs=20).data())), epochs=2)
    conduct = api.make_study(
        recipe(epochs=2),
        taught,
        images,
        design="one-at-a-time",
        budget="1h",
        workers=1,
        out=tmp_path / "study",
        runs=tmp_path / "runs",
        device="cpu",
    )

    class Timing:
        workers = 1

        def run(self, jobs: Any, on_event: Any) -> bool:
            for job in jobs:
                detail = {"step": 0.1, "evaluation": 0.0, "overhead": 0.0}
                on_event(Event("done", job, detail))
            return True

    assert len(conduct.measure_costs(Timing(), 1, lambda event: None)) == 3
    alone, both = (conduct.seconds(frozenset(keys)) for keys in ((), ("distillation",)))
    assert both == pytest.approx(11 * alone)


@pytest.mark.parametrize("design", ["screen", "factorial"])
def test_factors_that_cost_no_training_alone_are_judged(
    images: DataSpec, tmp_path: Path, design: Literal["screen", "factorial"]
) -> None:
    full = recipe(EMA(decay=0.9), TTAFlip(), epochs=1)
    spec = StudySpec(baseline=recipe(epochs=1), candidate=full, data=images, design=design, seeds=(0, 1, 2))
    report = study(spec, tmp_path)
    assert all(effect.estimate is not None for effect in report.analysis.effects)
    assert report.plan["training_runs"] == 3


def test_plan_and_run_charge_a_teacher_alike(images: DataSpec, tmp_path: Path) -> None:
    taught = recipe(Distillation(teacher=Source(recipe=recipe(epochs=1).data())), epochs=1)
    budget = Budget(amount=10, unit="runs")
    spec = StudySpec(
        baseline=recipe(epochs=1), candidate=taught, data=images, budget=budget, seeds=tuple(range(30))
    )
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    assert outline(spec, conduct.data.facts)["seeds"] == len(conduct.seeds) == 3


def test_timings_are_kept_one_by_one_and_damaged_ones_made_anew(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(baseline=recipe(), candidate=recipe(Mixup()), data=images, seeds=(0, 1))
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")

    class Half:
        workers = 1

        def run(self, jobs: Any, on_event: Any) -> bool:
            on_event(Event("done", jobs[0], {"step": 0.1, "evaluation": 0.0, "overhead": 0.0}))
            return False

    with pytest.raises(KeyboardInterrupt):
        conduct.measure_costs(Half(), 1, lambda event: None)
    assert len(conduct.costs) == 1
    (tmp_path / "study" / "costs.json").write_text('{"a":')
    assert conduct.costs == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "99999999999999999999,1"], "2**63"),
        (["--price", "inf"], "finite"),
        (["--budget", "9" * 400 + " runs"], "cannot read"),
        (["--runs", "a_file"], "is a file"),
    ],
)
def test_slips_of_the_hand_are_named(
    run: Any, images: DataSpec, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "base.yaml").write_text(dump(recipe()))
    words = [str(tmp_path / word) if word == "a_file" else word for word in words]
    ask = ["study", "run", images.source, "--baseline", str(tmp_path / "base.yaml"), "--with", "mixup"]
    result = run(*ask, "--out", str(tmp_path / "s"), *words)
    assert result.exit_code != 0
    assert said in str(result.exception) + result.output


def test_a_study_killed_before_its_first_run_goes_on(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(baseline=recipe(), candidate=recipe(Mixup()), data=images, seeds=(0, 1))
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    with conduct.folder.store() as store:
        store.decide(conduct.planned[0])
    again = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    assert len(again.pending(1)) == 4


def test_moved_runs_are_asked_for(images: DataSpec, tmp_path: Path) -> None:
    spec = StudySpec(
        baseline=recipe(epochs=1), candidate=recipe(Mixup(), epochs=1), data=images, seeds=(0, 1)
    )
    before = study(spec, tmp_path)
    (tmp_path / "runs").rename(tmp_path / "moved")
    home = StudyFolder(tmp_path / "study")
    with pytest.raises(StudyError, match="--runs"):
        api.prepare_study(spec, home.path, home.runs)
    again = api.prepare_study(spec, home.path, tmp_path / "moved")
    assert not again.pending(1)
    assert collect(again).analysis == before.analysis


# The command line


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, list(words), catch_exceptions=True)

    return call


def test_the_command_line_plans_runs_tells_and_exports(images: DataSpec, tmp_path: Path, run: Any) -> None:
    (tmp_path / "base.yaml").write_text(dump(recipe(epochs=1)))
    (tmp_path / "full.yaml").write_text(dump(recipe(RandomFlip(), Mixup(), TTAFlip(), epochs=1)))
    words = [
        *("study", "X", images.source, "--baseline", "base.yaml", "--candidate", "full.yaml"),
        *("--design", "auto", "--budget", "16 runs", "--set", "data.selection=0.3", "--set", "data.test=0.2"),
    ]
    planned = run(*[word if word != "X" else "plan" for word in words], "--json")
    assert planned.exit_code == 0, planned.output
    figures = json.loads(planned.output)
    assert sum(stage["cost"] for stage in figures["stages"]) <= 16
    done = run(
        *[word if word != "X" else "run" for word in words], "--out", "s", "--workers", "2", "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "runs").iterdir())) <= 16
    told = run("study", "status", "s")
    assert "pilot" in told.output
    assert "test split opened" in told.output
    for kind in ("csv", "markdown", "latex"):
        assert run("study", "export", "s", "--to", kind).exit_code == 0
    with open(tmp_path / "s" / "export" / "csv" / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    home = StudyFolder(tmp_path / "s")
    report = collect(api.prepare_study(home.spec(), home.path, home.runs))
    assert len(rows) == sum(len(arm.runs) for arm in report.arms)
    wrong = run("study", "export", "s", "--to", "excel")
    assert wrong.exit_code != 0
    assert "excel" in str(wrong.output) + str(wrong.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--design", "auto"], "budget"),
        (["--design", "screen", "--cross", "mixup"], "crosses nothing"),
        (["--metric", "nll"], "judge"),
        (["--budget", "plenty"], "cannot read"),
        (["--design", "scren"], "did you mean screen"),
    ],
)
def test_mistakes_are_named(run: Any, words: list[str], said: str) -> None:
    names = ["--baseline", "digits_baseline", "--candidate", "digits_bag"]
    failed = run("study", "plan", "digits", *names, *words)
    assert failed.exit_code != 0
    assert said in str(failed.output) + str(failed.exception)
