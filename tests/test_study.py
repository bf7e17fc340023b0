"""Studies: designs, sharing, and what survives crashes, kills and a dead coordinator."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from conftest import write_shapes
from trickbag import api, interactions
from trickbag.data.base import DataSpec
from trickbag.errors import PlanError, StudyError
from trickbag.recipe import Recipe
from trickbag.report.content import ReportData
from trickbag.study import worker
from trickbag.study.collect import collect
from trickbag.study.conduct import Conduct
from trickbag.study.design import BASELINE, CANDIDATE, find_factors
from trickbag.study.executor import Event, LocalExecutor, _Active
from trickbag.study.jobs import share
from trickbag.study.layout import lay_out
from trickbag.study.outline import outline
from trickbag.study.spec import StudyFolder, StudySpec
from trickbag.study.worker import Job
from trickbag.tricks.augmentation import RandomFlip
from trickbag.tricks.averaging import EMA
from trickbag.tricks.color import Normalize
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.losses import LabelSmoothing
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD
from trickbag.tricks.schedules import CosineDecay, StepDecay

DESIGNS = ("ladder", "leave-one-out", "one-at-a-time")


def recipe(*tricks: Any, **values: Any) -> Recipe:
    plain = {"model": "mini_resnet", "epochs": 2, "batch_size": 8, "image_size": 8} | values
    return Recipe(**plain, tricks=[SGD(lr=0.05), *tricks])


FULL = recipe(RandomFlip(), Mixup(), CosineDecay(), EMA(decay=0.9), TTAFlip())


# Designs


@pytest.mark.parametrize("design", DESIGNS)
def test_contrasts_differ_by_their_factor_alone(design: str) -> None:
    layout = lay_out(recipe(), FULL, design)
    arms = {arm.name: set(arm.on) for arm in layout.arms}
    keys = {factor.key for factor in layout.factors}
    assert {c.factor for c in layout.contrasts} == keys
    for contrast in layout.contrasts:
        assert arms[contrast.plus] - arms[contrast.minus] == {contrast.factor}
        assert arms[contrast.minus] <= arms[contrast.plus]
    recipes = {arm.name: arm.recipe for arm in layout.arms}
    assert recipes[BASELINE] == recipe()
    assert recipes[CANDIDATE] == FULL


def test_a_ladder_keeps_the_order_that_is_asked_for() -> None:
    layout = lay_out(recipe(), FULL, "ladder", order=["mixup", "ema"])
    assert [c.factor for c in layout.contrasts][:2] == ["mixup", "ema"]
    assert [c.minus for c in layout.contrasts][1:] == [c.plus for c in layout.contrasts][:-1]


def test_changes_can_be_tied_and_mistakes_are_named() -> None:
    after = recipe(Mixup(), CosineDecay(), epochs=4, batch_size=16)
    assert len(find_factors(recipe(), after)) == 4
    tied = find_factors(recipe(), after, [["epochs", "batch_size"]])
    assert [factor.key for factor in tied] == ["epochs & batch_size", "mixup", "decay"] or len(tied) == 3
    with pytest.raises(StudyError, match="did you mean mixup"):
        find_factors(recipe(), after, [["mixp", "epochs"]])
    with pytest.raises(StudyError, match="same recipe"):
        find_factors(after, after)
    with pytest.raises(StudyError, match="did you mean ladder"):
        lay_out(recipe(), after, "lader")


def test_tricks_that_exclude_each_other_are_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    row = interactions.Interaction(("mixup", "label_smoothing"), "for this test", "error")
    monkeypatch.setattr(interactions, "INTERACTIONS", (row,))
    factors = find_factors(recipe(LabelSmoothing()), recipe(Mixup(), RandomFlip()))
    assert sorted(len(factor.changes) for factor in factors) == [1, 2]
    monkeypatch.setattr(interactions, "INTERACTIONS", ())
    monkeypatch.setattr(Mixup, "requires", ("label_smoothing",))
    factors = find_factors(recipe(), recipe(Mixup(), LabelSmoothing(), RandomFlip()))
    assert sorted(len(factor.changes) for factor in factors) == [1, 2]


def test_a_swap_in_a_slot_is_one_factor() -> None:
    layout = lay_out(recipe(StepDecay(milestones=(1.0,))), recipe(CosineDecay()), "leave-one-out")
    assert [factor.key for factor in layout.factors] == ["decay"]
    assert len(layout.arms) == 2


# Sharing


def test_arms_that_differ_in_reading_share_a_run() -> None:
    layout = lay_out(recipe(), FULL, "leave-one-out")
    trainings = share(layout.arms)
    shared = {frozenset(t.arms) for t in trainings}
    assert frozenset({CANDIDATE, "without ema", "without tta_flip"}) in shared
    assert len(trainings) == len(layout.arms) - 2
    evaluation = recipe(eval_size=12)
    assert len(share(lay_out(recipe(), evaluation, "one-at-a-time").arms)) == 1


def test_two_settings_of_one_average_are_two_runs() -> None:
    layout = lay_out(recipe(EMA(decay=0.9)), recipe(EMA(decay=0.5)), "one-at-a-time")
    assert len(share(layout.arms)) == 2


# Whole studies


def listener(events: list[Event]) -> Any:
    return events.append


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    images = write_shapes(tmp_path_factory.mktemp("study") / "shapes", count=16, size=8)
    source = DataSpec(source=str(images), selection=0.3, test=0.2)
    return StudySpec(baseline=recipe(), candidate=FULL, data=source, seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the unbroken study and its runs are."""
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture(scope="module")
def unbroken(spec: StudySpec, home: Path) -> ReportData:
    """The study, run from start to end; its numbers are what every broken one must reach."""
    folder = home
    conduct = api.prepare_study(spec, folder / "study", folder / "runs")
    events: list[Event] = []
    assert api.run_study(conduct, workers=2, listen=events.append)
    done = [event for event in events if event.kind == "done" and event.job.split == "selection"]
    assert len(done) == len(conduct.trainings) * len(spec.seeds) == 15
    assert not [event for event in events if event.kind in ("failed", "retried")]
    return ReportData.from_json((folder / "study" / "report.json").read_text())


def numbers(report: ReportData) -> dict[str, Any]:
    """Everything that must not depend on how often a study was interrupted."""
    found = json.loads(report.to_json())
    for arm in found["arms"]:
        for run in arm["runs"]:
            del run["seconds"], run["costs"]
    confirm = {key: value for key, value in found["confirm"].items() if key != "opened"}
    return {"arms": found["arms"], "analysis": found["analysis"], "confirm": confirm}


def test_a_study_measures_every_arm_and_opens_the_test_split_once(unbroken: ReportData) -> None:
    assert all(run.status == "finished" for arm in unbroken.arms for run in arm.runs)
    assert {effect.factor for effect in unbroken.analysis.effects} == {f.key for f in unbroken.factors}
    assert unbroken.confirm is not None
    assert unbroken.confirm.n == 3
    assert len(unbroken.confirm.opened) == 1
    results, runs = unbroken.plan["results"], unbroken.plan["training_runs"]
    assert isinstance(results, int)
    assert isinstance(runs, int)
    assert results - runs == 6
    assert not unbroken.unfinished
    for arm in unbroken.arms:
        sealed = [run.sealed for run in arm.runs if run.sealed is not None]
        mean = {"baseline": unbroken.confirm.baseline, "candidate": unbroken.confirm.candidate}.get(arm.name)
        assert len(sealed) == (0 if mean is None else 3)
        assert mean is None or sum(sealed) / 3 == pytest.approx(mean)


def test_a_passive_factor_is_measured_from_the_shared_run(unbroken: ReportData) -> None:
    arms = {arm.name: arm for arm in unbroken.arms}
    for one, other in zip(arms[CANDIDATE].runs, arms["without ema"].runs, strict=True):
        assert one.run_id == other.run_id
        assert one.metrics["nll"] != other.metrics["nll"]


def test_only_baseline_and_candidate_saw_the_test_split(home: Path, unbroken: ReportData) -> None:
    names = {
        run.run_id: arm.name for arm in unbroken.arms for run in arm.runs if arm.name in (BASELINE, CANDIDATE)
    }
    seen = [path.parent.parent.name for path in (home / "runs").glob("*/evaluations/test-*.json")]
    assert sorted(seen) == sorted(names)
    assert len(seen) == 2 * 3
    assert len(list((home / "runs").glob("*/evaluations/selection-*.json"))) == 7 * 3


def test_a_second_start_repeats_nothing(spec: StudySpec, unbroken: ReportData, tmp_path: Path) -> None:
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    assert api.run_study(conduct, workers=2)
    events: list[Event] = []
    again = Conduct(conduct.folder, conduct.spec, conduct.data)
    assert api.run_study(again, workers=2, listen=events.append)
    assert not events
    assert numbers(collect(again)) == numbers(unbroken)


@pytest.mark.timeout(200)
def test_killed_workers_are_isolated_retried_and_change_nothing(
    spec: StudySpec, unbroken: ReportData, tmp_path: Path
) -> None:
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    events: list[Event] = []
    killed: list[int] = []

    def kill(event: Event) -> None:
        events.append(event)
        if event.kind == "status" and len(killed) < 3 and event.job.attempt == 0:
            pids = [e.detail for e in events if e.kind == "started" and e.job is event.job]
            if pids and pids[-1] not in killed and psutil.pid_exists(pids[-1]):
                os.kill(pids[-1], signal.SIGKILL)
                killed.append(pids[-1])

    assert api.run_study(conduct, workers=2, listen=kill)
    retried = [event for event in events if event.kind == "retried"]
    assert len(killed) == 3
    assert 1 <= len(retried) <= 3
    assert all("SIGKILL" in event.detail for event in retried)
    assert numbers(collect(conduct)) == numbers(unbroken)


def _coordinate(spec: StudySpec, folder: Path) -> None:
    conduct = api.prepare_study(spec, folder / "study", folder / "runs")
    api.run_study(conduct, workers=2)


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_killed_coordinator_leaves_no_orphans_and_the_study_resumes(
    spec: StudySpec, unbroken: ReportData, tmp_path: Path
) -> None:
    long = spec.model_copy(update={"seeds": (0, 1, 2)})
    process = multiprocessing.get_context("spawn").Process(target=_coordinate, args=(long, tmp_path))
    process.start()
    deadline = time.monotonic() + 150
    while len(list((tmp_path / "runs").glob("*/result.json"))) < 3:
        assert time.monotonic() < deadline
        assert process.exitcode is None
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    folder = StudyFolder(tmp_path / "study")
    conduct = api.prepare_study(folder.spec(), folder.path, folder.runs)
    left = conduct.pending(threads=1)
    assert 0 < len(left) < 15
    assert api.run_study(conduct, workers=2)
    assert numbers(collect(conduct)) == numbers(unbroken)


def test_an_interrupted_study_drains_and_resumes(
    spec: StudySpec, unbroken: ReportData, tmp_path: Path
) -> None:
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    sent = threading.Event()

    def interrupt(event: Event) -> None:
        if event.kind == "done" and not sent.is_set():
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)

    assert not api.run_study(conduct, workers=2, listen=interrupt)
    again = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    assert 0 < len(again.pending(threads=1)) < 15
    assert api.run_study(again, workers=2)
    assert numbers(collect(again)) == numbers(unbroken)


def test_a_run_that_cannot_succeed_fails_alone(spec: StudySpec, tmp_path: Path) -> None:
    small = spec.model_copy(update={"candidate": recipe(Mixup(), LabelSmoothing()), "seeds": (0, 1)})
    conduct = api.prepare_study(small, tmp_path / "study", tmp_path / "runs")
    blocked = conduct.run_of(conduct.training_of("without mixup"), 1)
    blocked.path.parent.mkdir(parents=True)
    blocked.path.write_text("a file where a run's folder should be")
    events: list[Event] = []
    assert conduct.run(LocalExecutor(workers=2), 1, listener(events))
    failed = [event.job.name for event in events if event.kind == "failed"]
    assert failed == ["without mixup, seed 1"]
    report = collect(conduct)
    states = {(arm.name, run.seed): run.status for arm in report.arms for run in arm.runs}
    assert states.pop(("without mixup", 1)) == "failed"
    assert set(states.values()) == {"finished"}
    assert ("without mixup", 1) in report.analysis.missing


def test_divergence_is_an_outcome_not_a_failure(spec: StudySpec, tmp_path: Path) -> None:
    wild = recipe().with_tricks(SGD(lr=1e30, momentum=0.0))
    small = spec.model_copy(update={"candidate": wild, "seeds": (0, 1)})
    conduct = api.prepare_study(small, tmp_path / "study", tmp_path / "runs")
    events: list[Event] = []
    assert api.run_study(conduct, workers=2, listen=events.append)
    assert not [event for event in events if event.kind in ("failed", "retried")]
    report = ReportData.from_json((conduct.folder.path / "report.json").read_text())
    diverged = [run for arm in report.arms for run in arm.runs if run.status == "diverged"]
    assert diverged
    assert all("step" in run.message for run in diverged)
    assert not conduct.pending(1)


def test_costs_are_measured_before_anything_is_spent(spec: StudySpec, tmp_path: Path) -> None:
    conduct = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    executor = LocalExecutor(workers=2)
    costs = conduct.measure_costs(executor, 1, lambda event: None)
    assert set(costs) == {training.recipe.digest for training in conduct.trainings}
    assert all(cost.step > 0 for cost in costs.values())
    assert conduct.estimate(costs, 2) > 0
    assert not list((tmp_path / "runs").glob("*"))
    events: list[Event] = []
    assert conduct.measure_costs(executor, 1, events.append) == costs
    assert not events


def test_impossible_arms_are_refused_together_before_any_run(spec: StudySpec, tmp_path: Path) -> None:
    bad = spec.model_copy(update={"candidate": FULL.replace(batch_size=5000)})
    with pytest.raises(PlanError, match="batch_size 5000"):
        api.prepare_study(bad, tmp_path / "study", tmp_path / "runs")
    assert not (tmp_path / "study").exists()


def test_a_folder_keeps_one_study(spec: StudySpec, tmp_path: Path) -> None:
    api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    other = spec.model_copy(update={"seeds": (5, 6)})
    with pytest.raises(StudyError, match="another study"):
        api.prepare_study(other, tmp_path / "study", tmp_path / "runs")
    assert StudyFolder(tmp_path / "study").spec() == spec


def test_the_outline_counts_what_is_trained(spec: StudySpec) -> None:
    figures = outline(spec)
    assert figures["runs"] == 15
    assert figures["naive_runs"] == 21
    assert figures["detectable_points"] > 0
    assert outline(spec.model_copy(update={"seeds": (0,)}))["detectable_points"] is None


def test_a_seed_is_named_once(spec: StudySpec) -> None:
    with pytest.raises(StudyError, match="twice"):
        StudySpec(baseline=recipe(), candidate=FULL, data=spec.data, seeds=(3, 3))


def _ended_worker(code: int | None, attempt: int) -> _Active:
    """A worker whose process is gone, without a word."""
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    job = replace(Job("job", recipe(), DataSpec(source="digits"), 0, "runs"), attempt=attempt)
    process: Any = SimpleNamespace(pid=2**22 + 1, exitcode=code, join=lambda: None)
    return _Active(job, process, ours, 0, time.monotonic())


def test_a_worker_that_ends_while_it_is_signalled_does_no_harm() -> None:
    LocalExecutor._signal(_ended_worker(None, 0), signal.SIGTERM)


@pytest.mark.parametrize(("interrupted", "kind"), [(True, "stopped"), (False, "failed")])
def test_a_worker_killed_by_an_interrupt_has_not_failed(interrupted: bool, kind: str) -> None:
    events: list[Event] = []
    again = LocalExecutor()._settle(_ended_worker(-signal.SIGTERM, 2), events.append, interrupted)
    assert again is None
    assert [event.kind for event in events] == [kind]


def test_the_test_split_stays_sealed_without_a_pair(spec: StudySpec, tmp_path: Path) -> None:
    """A seed that baseline or candidate lacks opens nothing; the means are those of the pairs."""
    small = spec.model_copy(update={"candidate": recipe(Mixup()), "seeds": (0, 1, 2)})
    conduct = api.prepare_study(small, tmp_path / "study", tmp_path / "runs")
    for job in conduct.pending(threads=1):
        if (job.name, job.seed) != ("candidate, seed 1", 1):
            worker._train(job, lambda message: None)
    conduct.rounds.extend(conduct.planned)
    with conduct.folder.store() as store:
        store.decide(conduct.rounds[0])
        for job in conduct._confirmation(threads=1, store=store):
            assert job.seed != 1
            worker._train(job, lambda message: None)
        (opening,) = store.openings()
    assert sorted(opening["seeds"]) == [0, 2]
    confirm = collect(conduct).confirm
    assert confirm is not None
    assert confirm.n == 2
    assert confirm.candidate - confirm.baseline == pytest.approx(confirm.difference, abs=1e-9)
    assert {job.seed for job in conduct.pending(threads=1)} == {1}


def test_a_diverged_run_loses_its_seed_on_the_sealed_split(spec: StudySpec, tmp_path: Path) -> None:
    """Only comparing the seeds that went well would flatter a recipe that sometimes diverges."""
    small = spec.model_copy(update={"candidate": recipe(Mixup()), "seeds": (0, 1, 2)})
    conduct = api.prepare_study(small, tmp_path / "study", tmp_path / "runs")
    for job in conduct.pending(threads=1):
        worker._train(job, lambda message: None)
    path = conduct.run_of(conduct.training_of("candidate"), 1).path / "result.json"
    result = json.loads(path.read_text())
    diagnosis = {"loss": "nan", "step": 3}
    path.write_text(json.dumps(result | {"status": "diverged", "diagnosis": diagnosis}))
    again = api.prepare_study(small, tmp_path / "study", tmp_path / "runs")
    again.rounds.extend(again.planned)
    with again.folder.store() as store:
        store.decide(again.rounds[0])
        for job in again._confirmation(threads=1, store=store):
            worker._train(job, lambda message: None)
        opened = {(arm, seed) for row in store.openings() for arm in row["arms"] for seed in row["seeds"]}
    ends = [(arm, seed) for arm in ("baseline", "candidate") for seed in (0, 1, 2)]
    assert opened == {one for one in ends if one != ("candidate", 1)}
    data = collect(again)
    assert data.confirm is not None
    assert data.confirm.n == 3
    assert data.confirm.low is None
    sealed = {(a.name, r.seed): r.sealed for a in data.arms for r in a.runs}
    worst = min(value for value in sealed.values() if value is not None)
    values = [worst if sealed["candidate", s] is None else sealed["candidate", s] for s in (0, 1, 2)]
    known = [
        v - b
        for v, s in zip(values, (0, 1, 2), strict=True)
        if (b := sealed["baseline", s]) is not None and v is not None
    ]
    assert data.confirm.difference == pytest.approx(sum(known) / 3)


def test_an_unfinished_study_claims_nothing(
    spec: StudySpec, unbroken: ReportData, home: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    runs = tmp_path / "copy" / "runs"
    study = api.prepare_study(spec, tmp_path / "copy" / "study", runs)
    gone = study.run_of(study.training_of("candidate"), 1)
    shutil.rmtree(gone.path)
    data = collect(api.prepare_study(spec, tmp_path / "copy" / "study", runs))
    total = unbroken.plan["training_runs"]
    assert isinstance(total, int)
    assert data.unfinished.startswith(f"{total - 1} of the {total} training runs")
    assert f"trickbag study resume {tmp_path}" in data.unfinished
    lost = {(a.name, r.seed) for a in data.arms for r in a.runs if r.status == "pending"}
    assert ("candidate", 1) in lost
    assert not lost & set(data.analysis.missing)
    assert data.plan["training_runs"] == total - 1
    assert {e.verdict for e in data.analysis.effects} == {"undetected"}
    assert all(e.p_holm is None for e in data.analysis.effects)
    assert any(e.estimate is not None for e in data.analysis.effects)
    assert "nothing is claimed" in data.analysis.method


def test_the_cost_of_an_evaluation_is_that_of_one(
    spec: StudySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trickbag.engine import train as engine

    calls: list[object] = []

    def slow(*arguments: object) -> dict[str, float]:
        calls.append(arguments)
        time.sleep(0.05)
        return {"accuracy": 0.5}

    monkeypatch.setattr(engine, "measure", slow)
    job = Job("timing", recipe(evaluate_every=0.1), spec.data, 0, "", timing=True)
    assert 0.05 <= worker._time(job)["evaluation"] < 0.1
    assert len(calls) > 10


def test_recipes_that_resolve_alike_on_the_data_are_trained_once(spec: StudySpec, tmp_path: Path) -> None:
    resolved = (
        api.prepare_study(
            spec.model_copy(
                update={"baseline": recipe(Normalize()), "candidate": recipe(Normalize(), Mixup())}
            ),
            tmp_path / "one",
            tmp_path / "runs",
        )
        .plans[BASELINE]
        .recipe.tricks["normalize"]
    )
    spelled = spec.model_copy(update={"baseline": recipe(Normalize()), "candidate": recipe(resolved)})
    conduct = api.prepare_study(spelled, tmp_path / "two", tmp_path / "runs")
    assert len(conduct.layout.arms) == 4
    assert len(conduct.trainings) == 1
