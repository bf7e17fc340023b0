"""Training with TrivialAugment end to end: trickbag's engine against a tuned PyTorch loop with a DataLoader.

    python benchmarks/end_to_end.py --data CIFAR10

Both train the same small nets on the same decoded pictures with crop, flip, TrivialAugmentWide and
normalization: images a second of wall time, from the first request for a batch to the last update, without
evaluation.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import statistics
from typing import Any

import torch
from torchvision import transforms as v1

from common import Row, arguments, case_of, parsed, report
from training import Pictures, by_dataloader, by_engine, plan_of
from trickbag import data as trickbag_data
from trickbag.engine.device import available_cores
from trickbag.recipe import Recipe

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet8": ("cifar_resnet", {"depth": 8}),
    "resnet8 of width 8": ("cifar_resnet", {"depth": 8, "width": 8}),
    "fast_resnet": ("fast_resnet", {}),
    "resnet20": ("resnet20", {}),
}


def recipe_of(net: tuple[str, dict[str, Any]], batch: int, epochs: int) -> Recipe:
    return Recipe(
        model={"name": net[0], "options": net[1]},
        batch_size=batch,
        epochs=epochs,
        image_size=32,
        tricks={
            "random_flip": {},
            "pad_and_crop": {"padding": 4},
            "trivial_augment": {},
            "normalize": {},
            "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
        },
    )


def main() -> None:
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_240, help="images in an epoch")
    parser.add_argument("--threads", type=int, default=available_cores())
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: labeled 32 px images, such as torchvision:CIFAR10")
    if options.quick:
        options.images, options.epochs, options.nets = 512, 1, options.nets[:1]
    data = trickbag_data.load(trickbag_data.spec(options.data, train_size=options.images, selection=0.005))
    pictures = Pictures(data, [v1.TrivialAugmentWide()])
    batch, epochs, threads = options.batch, options.epochs, options.threads
    cases = [one(name, data, pictures, batch, epochs, threads, options) for name in options.nets]
    report(
        "end_to_end",
        "Images a second of wall time while training with crop, flip, TrivialAugmentWide and normalization.",
        cases,
        options,
        data=f"{data.facts.name}, {len(pictures):,} training images, {epochs} epochs a round",
        threads=f"at most {threads}",
        notes=[
            "Both sides: decoded pictures in memory, channels_last, fused SGD with Nesterov momentum, batch "
            f"{batch}.",
            "The DataLoader loop: torchvision v1 on Pillow images, uint8 batches normalized at once, "
            "persistent workers with 4 batches ahead; the best number of workers and threads.",
        ],
    )


def one(
    name: str, data: Any, pictures: Any, batch: int, epochs: int, threads: int, options: Any
) -> dict[str, Any]:
    net = NETS[name]
    plan = plan_of(recipe_of(net, batch, epochs), data)
    most = 3 if options.quick else max(20, len(pictures) // batch)
    settings = [(workers, count) for workers in range(threads + 1) for count in range(1, threads + 1)]
    print(name)
    theirs = Row("DataLoader loop", "", False, "")
    for workers, count in settings:
        rate = by_dataloader(
            data, pictures, net, batch=batch, epochs=epochs, workers=workers, threads=count, most=most
        )
        theirs.tried[f"{workers} workers, threads: {count}"] = round(rate, 1)
        print(f"    {workers} workers, threads {count}: {rate:,.0f} images/s", flush=True)
    theirs.way = max(theirs.tried, key=lambda way: theirs.tried[way])
    workers, count = settings[list(theirs.tried).index(theirs.way)]
    ours = Row("trickbag", f"threads: {threads}", True, "")
    shares = []
    by_engine(plan, data, threads, steps=3)
    for number in range(options.repeats):
        for side in (0, 1) if number % 2 else (1, 0):
            if side:
                rate = by_dataloader(
                    data, pictures, net, batch=batch, epochs=epochs, workers=workers, threads=count
                )
                theirs.rates.append(rate)
                continue
            torch.set_num_threads(threads)
            cost, _ = by_engine(plan, data, threads, seed=number)
            ours.rates.append(cost["images_per_second"])
            parts = cost["by_part"]
            shares.append((parts["data"] + parts["augment"]) / max(cost["training_seconds"], 1e-9))
    share = statistics.median(shares)
    ours.way += f"; waiting for augmented images: {share:.1%} of the time"
    ours.more = {"share_of_time_for_images": shares}
    for row in (theirs, ours):
        print(f"    {row.name}: {statistics.median(row.rates):,.0f} images/s ({row.way})")
    return case_of(name, [theirs, ours])


if __name__ == "__main__":
    main()
