"""Seconds and accuracy from resident CIFAR-10 on a GPU: a recipe beside the published airbench94 settings.

    python benchmarks/gpu_time_to_accuracy.py --data CIFAR10 --recipe small_fast
    python benchmarks/gpu_time_to_accuracy.py --data CIFAR10 --device cpu --quick

Same files and machine: from images on the device to the last update, without evaluation. The first run of
each warms up and does not count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import airbench
from common import arguments, command, digits, heading, line, machine, parsed, save, versions
from trickbag import data as trickbag_data
from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.engine.device import Device
from trickbag.engine.evaluate import all_readouts
from trickbag.engine.train import train
from trickbag.recipe import load as load_recipe


def pixels_of(data: DataSet, names: tuple[str, ...], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``(n, 3, h, w)`` uint8 and labels of some splits, on the device."""
    images, labels = [], []
    for name in names:
        split: Any = data.splits[name]
        stack, slots = split.images.stack(split.rows)
        images.append(torch.from_numpy(stack[slots]).permute(0, 3, 1, 2))
        labels.append(torch.from_numpy(split.labels))
    return torch.cat(images).contiguous().to(device), torch.cat(labels).to(device)


def main() -> None:
    parser = arguments(__doc__, repeats=10)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--recipe", nargs="+", default=["small_fast"])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--with", dest="with_", nargs="*", default=[])
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--compile", action="store_true", help="torch.compile, on both sides")
    parser.add_argument("--selection", type=float, default=0.02)
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: CIFAR-10, such as torchvision:CIFAR10")
    settings, changes, size = airbench.Settings(), list(options.set), None
    if options.quick:
        settings = replace(settings, epochs=0.5, batch=64, widths=(8, 16, 16))
        changes += ["model.name=mini_resnet", "epochs=2", "batch_size=64"]
        options.repeats, size = 1, 256
    data = trickbag_data.load(trickbag_data.spec(options.data, selection=options.selection, train_size=size))
    torch.backends.cudnn.benchmark = True
    images, labels = pixels_of(data, ("train",), options.device)
    test = pixels_of(data, ("test",), options.device)

    def published(seed: int) -> tuple[float, float, dict[str, float]]:
        net, seconds = airbench.train(images, labels, settings, seed, options.compile)
        found = {f"tta {level}": 100 * airbench.accuracy(net, *test, level) for level in range(3)}
        return seconds, seconds, found

    def recipe_of(name: str) -> Any:
        return load_recipe(name, set_=changes, with_=options.with_, without=options.without)

    def ours(name: str, seed: int) -> tuple[float, float, dict[str, float]]:
        recipe = recipe_of(name)
        recipe = recipe.replace(evaluate_every=recipe.epochs)
        plan = planning.compile(recipe, data.facts, options.device)
        place = Device(options.device, compile=options.compile)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            more: dict[str, Any] = {"seed": seed, "runs": Path(folder), "device": place}
            run = train(plan, data, splits=(), readouts=[], checkpoint_seconds=1e9, **more)
            wall = time.perf_counter() - began
            train(plan, data, splits=("test",), readouts=list(all_readouts(plan)), **more)
            result: Any = run.result()
        found = {key: 100 * value["accuracy"] for key, value in result["metrics"]["test"].items()}
        return result["cost"]["training_seconds"], wall, found

    works = {"airbench94's settings": published}
    works |= {f"trickbag, {name}": lambda seed, name=name: ours(name, seed) for name in options.recipe}
    found: dict[str, list[tuple[float, float, dict[str, float]]]] = {name: [] for name in works}
    for name, work in works.items():
        print(f"{name}: warming up", flush=True)
        work(10**6)
    for seed in range(options.repeats):
        for name, work in works.items():
            found[name].append(work(seed))
            seconds, wall, scores = found[name][-1]
            print(f"{name}, seed {seed}: {seconds:.2f} s ({wall:.2f} s), {scores}", flush=True)
    head = ["", "training, s (median)", "wall, s", "test accuracy, % (mean ± standard deviation)"]
    lines, table = ["", line(head), line(["---"] * len(head))], []
    for name, runs in found.items():
        scores = {key: [run[2][key] for run in runs] for key in runs[0][2]}
        spread = {k: statistics.stdev(v) if len(v) > 1 else 0.0 for k, v in scores.items()}
        text = ", ".join(f"{k} {statistics.mean(v):.2f} ± {spread[k]:.2f}" for k, v in scores.items())
        training, wall = ([digits(run[k]) for run in runs] for k in (0, 1))
        table.append({"name": name, "training_seconds": training, "wall_seconds": wall, "test": scores})
        lines.append(
            line([name, f"{statistics.median(training):.2f}", f"{statistics.median(wall):.2f}", text])
        )
    result = {
        "what": "Training CIFAR-10 from images on the device: seconds up to the last update, and accuracy. "
        "Wall time of trickbag adds building the model, evaluating the selection split and a checkpoint.",
        "command": command(),
        "machine": machine(torch.get_num_threads(), options.device),
        "versions": versions(),
        "data": f"{data.facts.name}, {len(labels):,} training images",
        "repeats": options.repeats,
        "recipes": {name: recipe_of(name).data() for name in options.recipe},
        "table": table,
    }
    save("gpu_time_to_accuracy", result, options)
    text = "\n".join([*heading(result), *lines]) + "\n"
    (options.out / "gpu_time_to_accuracy.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
