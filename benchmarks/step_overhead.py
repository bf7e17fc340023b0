"""What the engine and its tricks cost a step: the whole bag against a bare, hand-written PyTorch loop.

    python benchmarks/step_overhead.py --data CIFAR10

Both train resnet20 from the same reader of augmented batches (crop, flip, normalization). Blocks of steps
take turns in one process; a block counts by the median time of its steps, and ratios are taken within rounds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import torch
from torch import Tensor

from common import (
    arguments,
    command,
    digits,
    heading,
    line,
    machine,
    middle,
    number,
    parsed,
    ratio,
    save,
    versions,
)
from training import by_engine, loop, model_of, plan_of
from trickbag import data as trickbag_data
from trickbag.data.base import DataSet
from trickbag.engine.batches import TrainBatches
from trickbag.plan import Plan
from trickbag.recipe import Recipe
from trickbag.tricks import find

BASE: dict[str, dict[str, Any]] = {
    "random_flip": {},
    "pad_and_crop": {"padding": 4},
    "normalize": {},
    "nesterov": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
}
BAG: dict[str, dict[str, Any]] = {
    "ema": {"decay": 0.99},
    "gradient_clipping": {"mode": "norm", "limit": 1.0},
    "mixup": {"alpha": 0.2, "p": 0.5},
    "cutmix": {"alpha": 1.0, "p": 0.5},
    "label_smoothing": {"epsilon": 0.1},
    "cosine_decay": {},
    "warmup": {"epochs": 0.1},
}
ACCUMULATION: dict[str, dict[str, Any]] = {"gradient_accumulation": {"steps": 2}}
IN_PARTS = ", in two parts"
WARM = 3
"""Steps of a block that do not count."""


def recipe_of(options: Any, tricks: dict[str, dict[str, Any]]) -> tuple[Recipe, list[str]]:
    """A recipe with tricks by kind or by the name in the field, and the names of those that do not exist."""
    found: dict[str, dict[str, Any]] = {}
    missing = []
    for name, settings in tricks.items():
        trick = find(name)
        if trick is None:
            missing.append(name)
        else:
            found[trick.kind] = settings or dict(trick.example)
    recipe = Recipe(
        model=options.net, batch_size=options.batch, epochs=5, image_size=32, tricks={**BASE, **found}
    )
    return recipe, missing


def bare(plan: Plan, data: DataSet, options: Any, parts: int) -> list[float]:
    """Seconds of each step of the bare loop."""
    torch.set_num_threads(options.threads)
    split = data.splits["train"]
    source = TrainBatches(plan, split, 0)
    labels = torch.from_numpy(split.labels)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step, images in enumerate(split.batches(source.requests(0))):
            if not source.early:
                images, _ = source.prepare(images, torch.zeros(len(images), 1), step)
            yield images, labels[torch.from_numpy(source.indices(step))]

    model = model_of(options.net, {}, data.facts.num_classes)
    began = time.perf_counter()
    stamps = list(islice(loop(model, batches(), parts), options.steps))
    return differences([began, *stamps])


def differences(stamps: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(stamps)]


def main() -> None:
    parser = arguments(__doc__, repeats=9)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    parser.add_argument("--threads", type=int, default=1)
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: labeled 32 px images, such as torchvision:CIFAR10")
    if options.quick:
        options.net, options.batch, options.steps = "fast_resnet", 32, 6
    data = trickbag_data.load(trickbag_data.spec(options.data, selection=0.005))
    bags: dict[str, dict[str, dict[str, Any]]] = {"the engine, no tricks": {}}
    bags |= {f"with {name.replace('_', ' ')}": {name: settings} for name, settings in BAG.items()}
    bags["with the whole bag"] = BAG
    bags[f"the engine, no tricks{IN_PARTS}"] = ACCUMULATION
    bags[f"with the whole bag{IN_PARTS}"] = BAG | ACCUMULATION

    plans, absent = {}, set()
    for name, tricks in bags.items():
        recipe, missing = recipe_of(options, tricks)
        absent |= set(missing)
        if missing and (len(tricks) == 1 or set(missing) & set(ACCUMULATION)):
            continue
        plans[name] = plan_of(recipe, data)
    base = next(iter(plans.values()))
    names = ["bare", *plans]
    if any(IN_PARTS in name for name in plans):
        names.insert(len(names) - 2, "bare" + IN_PARTS)
    times: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str) -> float:
        if name.startswith("bare"):
            taken = bare(base, data, options, 2 if IN_PARTS in name else 1)
        else:
            _, stamps = by_engine(plans[name], data, options.threads, steps=options.steps + 1)
            # The last stamp follows the evaluation; the others are a step apart.
            taken = differences(stamps[:-1])
        return statistics.median(taken[WARM:])

    for name in names:
        run(name)
    for round_ in range(options.repeats):
        for k in range(len(names)):
            name = names[(k + round_) % len(names)]
            times[name].append(run(name))
        print(f"round {round_ + 1} of {options.repeats}", flush=True)

    head = ["", "ms a step (quartiles)", "over the bare loop, %", "95 % interval"]
    lines, table = ["", line(head), line(["---"] * len(head))], []
    for name, seconds in times.items():
        milli = middle([1e3 * value for value in seconds])
        low, high = milli["quartiles"]
        entry: dict[str, Any] = {"what": name, "milliseconds_a_step": milli}
        cells = [name, f"{number(milli['median'])} ({number(low)}–{number(high)})", "", ""]
        if not name.startswith("bare"):
            over = ratio(seconds, times["bare" + IN_PARTS if IN_PARTS in name else "bare"])
            entry["over_bare_percent"] = {
                key: digits(100 * (value - 1), 3)
                for key, value in zip(("median", "low", "high"), over.values(), strict=True)
            }
            percent = entry["over_bare_percent"]
            cells[2:] = [f"{percent['median']:+.2f}", f"[{percent['low']:+.2f}, {percent['high']:+.2f}]"]
        table.append(entry)
        lines.append(line(cells))
        print("   ".join(cells))
    result = {
        "what": f"Time of a training step of {options.net}, batches of {options.batch}: trickbag's engine "
        "against a bare PyTorch loop (channels_last, fused SGD, cross entropy) on the same batches.",
        "command": command(),
        "machine": machine(options.threads),
        "versions": versions(),
        "data": data.facts.name,
        "repeats": options.repeats,
        "steps_a_block": options.steps,
        "not_in_the_catalogue": sorted(absent),
        "table": table,
    }
    if absent:
        lines += ["", f"- Not in the catalogue, and so not in the bag: {', '.join(sorted(absent))}."]
    save("step_overhead", result, options)
    (options.out / "step_overhead.md").write_text(
        "\n".join([*heading(result), *lines]) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
