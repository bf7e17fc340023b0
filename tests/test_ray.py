"""Studies on a Ray cluster of two nodes: what an executor must do, a lost node, a lost driver."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import write_shapes
from executor_helpers import Contract, chore
from trickbag import api
from trickbag.data.base import DataSpec
from trickbag.engine.heartbeat import read_heartbeat
from trickbag.engine.run import Run
from trickbag.recipe import Recipe
from trickbag.study import worker
from trickbag.study.conduct import Conduct
from trickbag.study.executor import Event, Executor, make
from trickbag.study.spec import StudySpec
from trickbag.tricks.averaging import EMA
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD

__all__ = ["chore"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # Ray leaves files, sockets and processes to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core, on this machine; what runs on them finds the tests' modules."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        config = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
        # Processes, and the libraries that they have loaded, are kept from test to test.
        config |= {"num_workers_soft_limit": 8, "idle_worker_killing_time_threshold_ms": 600_000}
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": config})
        cluster.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


class TestRay(Contract):
    @pytest.fixture
    def make(self, cluster: Any) -> Callable[..., Executor]:
        def make_ray(workers: int, **values: Any) -> Executor:
            return make("ray", workers=workers, **values)

        return make_ray


def spec_of(folder: Path) -> StudySpec:
    base = {"model": "mini_resnet", "epochs": 20, "batch_size": 8, "image_size": 8}
    baseline = Recipe(**base, tricks=[SGD(lr=0.05)])
    candidate = Recipe(**base, tricks=[SGD(lr=0.05), Mixup(), EMA(decay=0.9)])
    data = DataSpec(source=str(folder), selection=0.3, test=0.2)
    return StudySpec(baseline=baseline, candidate=candidate, data=data, seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return spec_of(write_shapes(tmp_path_factory.mktemp("ray") / "shapes", count=16, size=8))


def prepare(spec: StudySpec, folder: Path) -> Conduct:
    return api.prepare_study(spec, folder / "study", folder / "runs")


def numbers(conduct: Conduct) -> dict[tuple[str, int, str], Any]:
    return {
        (arm, seed, split): conduct.read(arm, seed, split)
        for arm in conduct.arms
        for seed in conduct.spec.seeds
        for split in ("selection", "test")
    }


@pytest.fixture(scope="module")
def unbroken(spec: StudySpec, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The numbers of the same study, trained one run after the other in this process."""

    class Here:
        workers = 1

        def run(self, jobs: Any, on_event: Callable[[Event], None]) -> bool:
            for job in jobs:
                worker._train(job, lambda message: None)
            return True

    conduct = prepare(spec, tmp_path_factory.mktemp("unbroken"))
    assert conduct.run(Here(), 1, lambda event: None)
    found = numbers(conduct)
    assert all(found[arm, 0, "selection"] for arm in conduct.arms)
    return found


def finished(folder: Path) -> int:
    return len(list((folder / "runs").glob("*/result.json")))


def test_a_driver_that_dies_is_started_again(
    cluster: Any, spec: StudySpec, unbroken: dict[Any, Any], tmp_path: Path
) -> None:
    script = f"""
from pathlib import Path
import test_ray
conduct = test_ray.prepare(test_ray.spec_of(Path({spec.data.source!r})), Path({str(tmp_path)!r}))
conduct.run(test_ray.make("ray", workers=1), 1, lambda event: None)
"""
    (tmp_path / "driver.py").write_text(script)
    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py")])
    deadline = time.monotonic() + 200
    while finished(tmp_path) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    conduct = prepare(spec, tmp_path)
    assert conduct.pending(1)
    assert conduct.run(make("ray"), 1, lambda event: None)
    assert numbers(conduct) == unbroken


def kill_node(cluster: Any, runs: Path) -> None:
    """Kill everything on the second node as soon as a job trains there and others are finished."""
    node = next(iter(cluster.worker_nodes))
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        there = {process.pid: process for process in raylet.children(recursive=True)}
        unfinished = [path.parent for path in runs.glob("*/run.json") if Run(path.parent).result() is None]
        beats = [beat for path in unfinished if (beat := read_heartbeat(path)) is not None]
        if list(runs.glob("*/result.json")) and any(beat.pid in there for beat in beats):
            for process in there.values():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            cluster.remove_node(node, allow_graceful=False)
            return
        time.sleep(0.02)


def test_a_node_that_dies_takes_no_run_with_it(
    cluster: Any, spec: StudySpec, unbroken: dict[Any, Any], tmp_path: Path
) -> None:
    executor = make("ray")
    assert executor.workers == 2
    events: list[Event] = []
    conduct = prepare(spec, tmp_path)
    killer = threading.Thread(target=kill_node, args=(cluster, tmp_path / "runs"))
    killer.start()
    assert conduct.run(executor, 1, events.append)
    killer.join()
    assert [event for event in events if event.kind == "retried"]
    assert not [event for event in events if event.kind == "failed"]
    assert executor.workers == 1
    assert numbers(conduct) == unbroken
    assert not list((tmp_path / "runs" / ".jobs").glob("*.json"))
