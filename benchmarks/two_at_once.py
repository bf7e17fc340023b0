"""Two seeds at once with half the threads each, against one after the other with all of them.

    python benchmarks/two_at_once.py --data CIFAR10

The study executor runs both; data are cached beforehand. Start-up of the processes is part of the time.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import tempfile
import time
from collections.abc import Callable
from typing import Any

from common import Row, arguments, case_of, parsed, report
from trickbag import data as trickbag_data
from trickbag.data.base import DataSpec
from trickbag.recipe import Recipe
from trickbag.recipe import load as load_recipe
from trickbag.study.executor import LocalExecutor
from trickbag.study.worker import Job


def together(recipe: Recipe, spec: DataSpec, seeds: int, workers: int, threads: int) -> float:
    """Seconds that all seeds take."""
    failed: list[str] = []

    def listen(event: Any) -> None:
        if event.kind in ("failed", "retried"):
            failed.append(str(event.detail))

    with tempfile.TemporaryDirectory() as folder:
        jobs = [Job(f"seed {k}", recipe, spec, k, folder, (recipe,), threads=threads) for k in range(seeds)]
        began = time.perf_counter()
        LocalExecutor(workers=workers).run(jobs, listen)
        seconds = time.perf_counter() - began
    if failed:
        raise SystemExit("\n".join(failed))
    return seconds


def main() -> None:
    from trickbag.engine.device import available_cores

    cores = available_cores()
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--recipe", nargs="+", default=["small_fast"])
    parser.add_argument(
        "--set", nargs="*", default=["epochs=2"], help="changes, as `trickbag train` takes them"
    )
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--images", type=int, help="training images; default all")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--threads", type=int, default=cores, help="threads of one after the other")
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: labeled images, such as torchvision:CIFAR10")
    if options.quick:
        options.images, options.set = 256, [*options.set, "epochs=1", "batch_size=64"]
    spec = trickbag_data.spec(options.data, train_size=options.images)
    name = trickbag_data.load(spec).facts.name
    count, threads = options.at_once, options.threads
    share = max(1, threads // count)
    cases = []
    for one in options.recipe:
        recipe = load_recipe(one, set_=options.set, without=options.without)
        ways: dict[str, Callable[[], float]] = {
            f"one after the other, threads: {threads}": lambda r=recipe: together(r, spec, count, 1, threads),
            f"{count} at once, threads: {share} each": lambda r=recipe: together(
                r, spec, count, count, share
            ),
        }
        rows = [Row(title, "", k == 1, "") for k, title in enumerate(ways)]
        for number in range(options.repeats):
            pairs = list(zip(rows, ways.values(), strict=True))
            for row, work in pairs if number % 2 else pairs[::-1]:
                row.rates.append(3600 * count / work())
                print(f"    {one}, {row.name}: {row.rates[-1]:.1f} runs an hour", flush=True)
        cases.append(case_of(f"{one}, {' '.join(options.set)}", rows))
    report(
        "two_at_once",
        f"Runs an hour of wall time: {count} seeds of a recipe by the study executor.",
        cases,
        options,
        data=name,
        threads=threads,
        unit="runs/h",
    )


if __name__ == "__main__":
    main()
