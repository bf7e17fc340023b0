"""Nothing is lost: kills at random moments, full disks, jumping clocks, damage, a second coordinator."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import write_shapes
from trickbag import api
from trickbag.data.base import DataSpec
from trickbag.engine.run import code_version, versions
from trickbag.errors import StudyError
from trickbag.recipe import Recipe
from trickbag.report.content import ReportData
from trickbag.study.collect import collect, write_report
from trickbag.study.spec import Budget, StudyFolder, StudySpec
from trickbag.study.store import FILE
from trickbag.tricks.augmentation import RandomFlip
from trickbag.tricks.averaging import EMA
from trickbag.tricks.inference import TTAFlip
from trickbag.tricks.mix_control import MixOff
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD

ROUNDS = 6
SLOW_ROUNDS = 60


def recipe(*tricks: Any) -> Recipe:
    return Recipe(
        model="mini_resnet", epochs=3, batch_size=8, image_size=8, tricks=[SGD(lr=0.05), Mixup(), *tricks]
    )


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    """An adaptive study with a fork (mixing off late) and two factors that cost no training."""
    images = write_shapes(tmp_path_factory.mktemp("survival") / "shapes", count=16, size=8)
    return StudySpec(
        baseline=recipe(),
        candidate=recipe(RandomFlip(), MixOff(epochs=1.0), EMA(decay=0.9), TTAFlip()),
        data=DataSpec(source=str(images), selection=0.3, test=0.2),
        design="auto",
        budget=Budget(amount=24, unit="runs"),
    )


def conduct(spec: StudySpec, folder: Path) -> None:
    """A coordinator's whole life."""
    study = api.prepare_study(spec, folder / "study", folder / "runs")
    api.run_study(study, workers=2)


def numbers(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on what happened on the way."""
    home = StudyFolder(folder / "study")
    found = json.loads(collect(api.prepare_study(home.spec(), home.path, home.runs)).to_json())
    for arm in found["arms"]:
        for run in arm["runs"]:
            del run["seconds"], run["costs"]
    names = ("arms", "analysis", "comparisons", "interactions", "attribution", "recommendation")
    kept = {name: found[name] for name in names}
    if kept["recommendation"]:
        del kept["recommendation"]["cost_multiple"]
    with home.store(readonly=True) as store:
        kept["decisions"] = [(r.stage, r.points, r.sealed) for r in store.rounds()]
    kept["test"] = {key: value for key, value in found["confirm"].items() if key != "opened"}
    return kept


@pytest.fixture(scope="module")
def home(spec: StudySpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken study."""
    folder = tmp_path_factory.mktemp("unbroken")
    conduct(spec, folder)
    return folder


@pytest.fixture(scope="module")
def expected(home: Path) -> dict[str, Any]:
    return numbers(home)


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """The finished study, moved to another place, to be damaged."""
    shutil.copytree(home, tmp_path / "copy")
    path = tmp_path / "copy" / "study" / "study.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps(text | {"runs": str(tmp_path / "copy" / "runs")}))
    return tmp_path / "copy"


def coordinator(spec: StudySpec, folder: Path) -> Any:
    """A coordinator in a process of its own, forked from the one that workers are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trickbag.study.warm"])
    process = context.Process(target=conduct, args=(spec, folder))
    process.start()
    return process


def workers(process: Any) -> list[int]:
    """Workers are children of their coordinator's fork server."""
    try:
        return [p.pid for server in psutil.Process(process.pid).children() for p in server.children()]
    except psutil.NoSuchProcess:
        return []


def test_the_unbroken_study_is_worth_breaking(home: Path, expected: dict[str, Any]) -> None:
    stages = [stage for stage, *_ in expected["decisions"]]
    assert stages[:2] == ["pilot", "screen"]
    assert stages[-1] == "confirm"
    report = ReportData.from_json((home / "study" / "report.json").read_text())
    assert len(report.openings) == 1
    origins = [json.loads(path.read_text()).get("forked_from") for path in (home / "runs").glob("*/run.json")]
    assert any(origins)
    results, runs = report.plan["results"], report.plan["training_runs"]
    assert isinstance(results, int)
    assert isinstance(runs, int)
    assert results > runs


@pytest.mark.timeout(1500)
@pytest.mark.slow
@pytest.mark.parametrize("rounds", [ROUNDS, SLOW_ROUNDS])
def test_killed_at_random_moments(
    spec: StudySpec, expected: dict[str, Any], tmp_path: Path, rounds: int
) -> None:
    """SIGKILL of coordinators and workers; a new study begins whenever one is complete."""
    rng = random.Random(rounds)
    killed, studies = {"coordinator": 0, "worker": 0}, 0
    folder = tmp_path / "0"
    while sum(killed.values()) < rounds or studies == 0:
        process, lives = coordinator(spec, folder), 2
        # The fork server takes a while to import torch: mostly, wait until something is trained.
        patient = rng.random() < 0.7
        while patient and process.is_alive() and not workers(process):
            time.sleep(0.02)
        while process.is_alive() and sum(killed.values()) < rounds:
            time.sleep(rng.uniform(0.0, 1.2))
            alive = workers(process)
            # A job is tried three times.
            if alive and lives and rng.random() < 0.6:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(alive), signal.SIGKILL)
                    killed["worker"] += 1
                    lives -= 1
            elif process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                killed["coordinator"] += 1
                process.join(30)
        process.join(200)
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            assert numbers(folder) == expected
            studies += 1
            shutil.rmtree(folder)
            folder = tmp_path / str(studies)
    assert min(killed.values()) >= rounds // 6, killed


def test_a_second_coordinator_is_refused(spec: StudySpec, tmp_path: Path) -> None:
    first = coordinator(spec, tmp_path)
    lock = tmp_path / "study" / ".lock"
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").glob("*")):
        assert time.monotonic() < deadline
        assert first.is_alive()
        time.sleep(0.02)
    assert lock.exists()
    with pytest.raises(StudyError, match="another process conducts"):
        conduct(spec, tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.join()


def _jumping(spec: StudySpec, folder: Path) -> None:
    """A coordinator whose clock jumps by up to a year, back and forth, whenever it is read."""
    rng, honest = random.Random(1), time.time
    time.time = lambda: honest() + rng.uniform(-3e7, 3e7)
    conduct(spec, folder)


@pytest.mark.slow
def test_a_jumping_clock_changes_nothing(spec: StudySpec, expected: dict[str, Any], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_jumping, args=(spec, tmp_path))
    process.start()
    process.join(250)
    assert process.exitcode == 0
    assert numbers(tmp_path) == expected
    with StudyFolder(tmp_path / "study").store(readonly=True) as store:
        assert not [event for event in store.events() if event["event"] in ("failed", "retried")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system of 1 MiB, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip("may not mount a file system here")

    def grow(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield folder, grow
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("part", [pytest.param("runs", marks=pytest.mark.slow), "everything"])
def test_a_full_disk_stops_the_study_and_loses_nothing(
    spec: StudySpec,
    expected: dict[str, Any],
    tmp_path: Path,
    small_disk: tuple[Path, Callable[[str], None]],
    part: str,
) -> None:
    disk, grow = small_disk
    folder = disk if part == "everything" else tmp_path
    runs = disk / "runs"
    study = api.prepare_study(spec, folder / "study", runs)
    with pytest.raises(StudyError, match=r"room|full|space"):
        api.run_study(study, workers=2)
    grow("200m")
    again = api.prepare_study(spec, folder / "study", runs)
    assert api.run_study(again, workers=2)
    home = tmp_path / "seen"
    home.mkdir()
    (home / "study").symlink_to(folder / "study")
    assert numbers(home) == expected


def _all_runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def _truncate(name: str) -> Callable[[Path], None]:
    def harm(run: Path) -> None:
        for path in run.glob(name):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return harm


def _garbage(name: str) -> Callable[[Path], None]:
    def harm(run: Path) -> None:
        for path in run.glob(name):
            path.write_bytes(b"\x00garbage\xff" * 50)

    return harm


def _without(*names: str) -> Callable[[Path], None]:
    def harm(run: Path) -> None:
        for name in names:
            for path in [*run.glob(name)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return harm


SLOW_HARMS = ("result and evaluations gone", "evaluations are garbage", "run.json is garbage")
HARMS = {
    "result cut off": _truncate("result.json"),
    "result and evaluations gone": _without("result.json", "evaluations"),
    "evaluations are garbage": _garbage("evaluations/*"),
    "weights are garbage, nothing was read": lambda run: (
        _garbage("checkpoint/*/*.safetensors")(run),
        _without("evaluations")(run),
    ),
    "no checkpoint, nothing was read": _without("checkpoint", "evaluations"),
    "run.json is garbage": _garbage("run.json"),
    "recipe is garbage": _garbage("recipe.yaml"),
    "log is garbage": _garbage("metrics.jsonl"),
    "everything is gone": lambda run: shutil.rmtree(run),
}


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    "harm", [pytest.param(h, marks=pytest.mark.slow) if h in SLOW_HARMS else h for h in HARMS]
)
def test_a_damaged_run_is_made_whole(
    spec: StudySpec, expected: dict[str, Any], copy: Path, harm: str
) -> None:
    rng = random.Random(harm)
    for run in rng.sample(_all_runs(copy), 4):
        HARMS[harm](run)
    conduct(spec, copy)
    assert numbers(copy) == expected


@pytest.mark.parametrize("harm", ["gone", "garbage"])
def test_the_store_is_rebuilt_from_the_run_directories(
    spec: StudySpec, expected: dict[str, Any], copy: Path, harm: str
) -> None:
    for path in (copy / "study").glob(f"{FILE}*"):
        path.write_bytes(b"garbage" * 1000) if harm == "garbage" else path.unlink()
    before = {path: path.stat().st_mtime for path in (copy / "runs").glob("*/result.json")}
    conduct(spec, copy)
    assert numbers(copy) == expected
    assert {path: path.stat().st_mtime for path in (copy / "runs").glob("*/result.json")} == before
    with StudyFolder(copy / "study").store(readonly=True) as store:
        (opening,) = store.openings()
        assert "read off the run directories" in opening["note"]
        assert store.readings()


@pytest.fixture
def upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if libraries had been upgraded since."""
    then = versions()
    monkeypatch.setattr("trickbag.engine.run.versions", lambda: then | {"torch": "9.0"})
    monkeypatch.setattr("trickbag.engine.run.code_version", lambda: "edited")
    monkeypatch.setattr("trickbag.study.timing.code_version", lambda: "edited")


@pytest.mark.usefixtures("upgraded")
def test_a_finished_study_outlives_an_upgrade(spec: StudySpec, expected: dict[str, Any], copy: Path) -> None:
    before = sorted(copy.rglob("runs/*/*"))
    conduct(spec, copy)
    assert numbers(copy) == expected
    assert sorted(copy.rglob("runs/*/*")) == before
    data = collect(api.prepare_study(spec, copy / "study", copy / "runs"))
    assert data.provenance["code"] == code_version()
    assert "torch 9.0" not in data.provenance["versions"]


@pytest.mark.usefixtures("upgraded")
@pytest.mark.parametrize("store", ["there", "lost"])
def test_an_unfinished_study_is_not_mixed_with_runs_of_other_code(
    spec: StudySpec, copy: Path, store: str
) -> None:
    shutil.rmtree(_all_runs(copy)[3])
    for path in (copy / "study").glob(f"{FILE}*") if store == "lost" else ():
        path.unlink()
    before = sorted(copy.rglob("runs/*"))
    with pytest.raises(StudyError, match=r"trained with other code.*torch was \S+, is 9.0"):
        conduct(spec, copy)
    assert sorted(copy.rglob("runs/*")) == before


@pytest.mark.usefixtures("upgraded")
def test_a_report_that_cannot_be_made_again_is_kept(spec: StudySpec, copy: Path) -> None:
    for path in _all_runs(copy):
        shutil.rmtree(path / "evaluations")
    report = (copy / "study" / "report.json").read_text()
    with pytest.raises(StudyError, match="cannot be found with this code"):
        write_report(api.prepare_study(spec, copy / "study", copy / "runs"))
    assert (copy / "study" / "report.json").read_text() == report


def test_a_study_that_has_trained_nothing_takes_the_code_at_hand(
    spec: StudySpec, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    with study.folder.store() as store:
        store.decide(study.planned[0])
    request.getfixturevalue("upgraded")
    again = api.prepare_study(spec, tmp_path / "study", tmp_path / "runs")
    again.check_code()
    assert again.folder.changed
    calls: list[Any] = []

    class Nothing:
        workers = 1

        def run(self, jobs: Any, on_event: Any) -> bool:
            calls.append(jobs)
            return False

    assert not again.run(Nothing(), 1, lambda event: None)
    assert not again.folder.changed
    assert {job.code for job in calls[0]} == {"edited"}
