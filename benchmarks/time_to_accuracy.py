"""How accurate a recipe is after so many seconds: training from scratch, without test-time augmentation.

    python benchmarks/time_to_accuracy.py --data CIFAR10 --recipe small_fast --budget 60 300

Every run is a process of its own. Its wall time counts from its start, with imports and reading the data
(cached before), up to the trained weights; measuring them on the test split is not part of it. For a
budget in seconds, the number of epochs follows from a short trial; `--epochs` names it instead.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import arguments, command, digits, heading, line, machine, parsed, save, versions


def child(options: Any) -> None:
    """Train once and print what came of it as JSON."""
    from trickbag import data as trickbag_data
    from trickbag import plan as planning
    from trickbag.engine.device import Device
    from trickbag.engine.evaluate import all_readouts
    from trickbag.engine.train import train
    from trickbag.recipe import load as load_recipe
    from trickbag.tricks.stages import PredictTrick

    settings = [*options.set, f"epochs={options.epochs[0]}"]
    if not options.evaluate:
        settings.append(f"evaluate_every={options.epochs[0]}")
    recipe = load_recipe(options.recipe, set_=settings, with_=options.with_, without=options.without)
    recipe = recipe.without(*(trick.kind for trick in recipe.tricks.of(PredictTrick)))
    data = trickbag_data.load(trickbag_data.spec(options.data, selection=options.selection))
    device = Device(options.device, threads=options.threads)
    plan = planning.compile(recipe, data.facts, device.type)
    if options.trial:
        plan = replace(plan, timeline=replace(plan.timeline, steps=min(options.trial, plan.timeline.steps)))
    with tempfile.TemporaryDirectory() as folder:
        more = {"seed": options.seed, "runs": Path(folder), "device": device, "checkpoint_seconds": 1e9}
        run = train(plan, data, splits=(), readouts=[], **more)
        wall = time.time() - float(os.environ["BENCHMARK_BEGAN"])
        if not options.trial:
            train(plan, data, splits=("test",), readouts=list(all_readouts(plan)), **more)
        result: Any = run.result()
    found = {
        "wall": wall,
        "cost": result["cost"],
        "steps": result["steps"],
        "steps_an_epoch": plan.timeline.steps_per_epoch,
        "status": result["status"],
        "test": {key: 100 * value["accuracy"] for key, value in result["metrics"].get("test", {}).items()},
    }
    print("RESULT " + json.dumps(found))


def process(options: Any, epochs: float, seed: int, trial: int = 0) -> dict[str, Any]:
    """One run, in a process of its own."""
    words = ["--child", "--data", options.data, "--recipe", options.recipe, "--epochs", str(epochs)]
    words += ["--seed", str(seed), "--trial", str(trial), "--device", options.device]
    words += ["--selection", str(options.selection)]
    words += ["--threads", str(options.threads)] if options.threads else []
    words += ["--evaluate"] if options.evaluate else []
    for name, values in (("set", options.set), ("with", options.with_), ("without", options.without)):
        words += [f"--{name}", *values] if values else []
    environment = os.environ | {"BENCHMARK_BEGAN": str(time.time())}
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    last = next(row for row in done.stdout.splitlines()[::-1] if row.startswith("RESULT "))
    result: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
    return result


def epochs_within(options: Any, seconds: float) -> float:
    """Whole quarters of epochs that fit, by trials of two lengths (the recipe's ramp, if any, is ignored)."""
    short, long = (process(options, 50, 0, trial) for trial in ((2, 6) if options.quick else (30, 130)))
    a_step = (long["wall"] - short["wall"]) / max(1, long["steps"] - short["steps"])
    start = short["wall"] - a_step * short["steps"]
    epochs = options.margin * (seconds - start) / (max(a_step, 1e-6) * long["steps_an_epoch"])
    return max(0.25, int(4 * epochs) / 4)


def main() -> None:
    parser = arguments(__doc__, repeats=3)
    parser.add_argument("--recipe", default="small_fast")
    parser.add_argument("--epochs", type=float, nargs="*", default=[])
    parser.add_argument("--budget", type=float, nargs="*", default=[], help="seconds of wall time")
    parser.add_argument("--margin", type=float, default=0.96, help="share of a budget to plan with")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--with", dest="with_", nargs="*", default=[])
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument(
        "--selection", type=float, default=0.02, help="share of the training images set apart"
    )
    parser.add_argument("--evaluate", action="store_true", help="evaluate as often as the recipe says")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--name", default="time_to_accuracy", help="of the files of results")
    for name in ("--seed", "--trial"):
        parser.add_argument(name, type=int, default=0, help="used inside")
    parser.add_argument("--child", action="store_true", help="used inside")
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: labeled images, such as torchvision:CIFAR10")
    if options.child:
        child(options)
        return
    if options.quick:
        options.epochs, options.budget, options.repeats = [0.02], [], 1
        options.recipe = "small_baseline"
    process(options, 1, 0, trial=2)  # reads and caches the data

    plans = [(epochs, None) for epochs in options.epochs]
    plans += [(epochs_within(options, seconds), seconds) for seconds in options.budget]
    table = []
    head = ["epochs", "budget, s", "wall, s", "training, s", "images/s", "test accuracy, % (mean of runs)"]
    lines = ["", line(head), line(["---"] * len(head))]
    for epochs, budget in plans:
        runs = []
        for seed in range(options.repeats):
            runs.append(process(options, epochs, seed))
            print(f"{epochs:g} epochs, seed {seed}: {runs[-1]['wall']:.1f} s, {runs[-1]['test']}", flush=True)
        test = {key: [digits(run["test"][key]) for run in runs] for key in runs[0]["test"]}
        wall = [digits(run["wall"]) for run in runs]
        training = [run["cost"]["training_seconds"] for run in runs]
        rates = [run["cost"]["images_per_second"] for run in runs]
        table.append(
            {
                "epochs": epochs,
                "budget_seconds": budget,
                "wall_seconds": wall,
                "training_seconds": training,
                "images_per_second": rates,
                "test_accuracy": test,
            }
        )
        accuracies = ", ".join(
            f"{key} {statistics.mean(values):.2f} ({min(values):.2f}–{max(values):.2f})"
            for key, values in test.items()
        )
        cells = [f"{epochs:g}", f"{budget:g}" if budget else "", f"{statistics.median(wall):.1f}"]
        cells += [f"{statistics.median(training):.1f}", f"{statistics.median(rates):,.0f}", accuracies]
        lines.append(line(cells))
    result = {
        "what": f"Recipe {options.recipe}, trained from scratch: wall time of the whole process up to the "
        "trained weights (medians), and accuracy on the test split without test-time augmentation.",
        "command": command(),
        "machine": machine(options.threads or "one a core", options.device),
        "versions": versions(),
        "data": Path(options.data).name,
        "repeats": options.repeats,
        "selection": options.selection,
        "table": table,
    }
    save(options.name, result, options)
    (options.out / f"{options.name}.md").write_text(
        "\n".join([*heading(result), *lines]) + "\n", encoding="utf-8"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
