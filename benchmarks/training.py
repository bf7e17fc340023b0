"""Training by the engine, and by plain PyTorch as someone who knows it well would write it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1

from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.data.holding import Pixels
from trickbag.engine.device import Device
from trickbag.engine.train import Status
from trickbag.engine.train import train as engine
from trickbag.plan import Plan
from trickbag.recipe import Recipe
from trickbag.tasks.nets import NETS


class Pictures(Dataset):
    """Decoded images and labels, augmented by torchvision on Pillow images."""

    def __init__(self, data: DataSet, policy: Sequence[Any]) -> None:
        split: Any = data.splits["train"]
        assert isinstance(split.images, Pixels)
        stack, slots = split.images.stack(split.rows)
        self.pictures = [Image.fromarray(image) for image in stack[slots]]
        self.labels = split.labels.tolist()
        self.change = v1.Compose([v1.RandomCrop(32, 4), v1.RandomHorizontalFlip(), *policy, np.array])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.change(self.pictures[index]), self.labels[index]


def collate(items: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    """uint8 ``(batch, height, width, channels)`` and labels: a quarter of the bytes of floats."""
    images, labels = zip(*items, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def model_of(net: str, options: dict[str, Any], classes: int) -> nn.Module:
    torch.manual_seed(0)
    return NETS[net](classes, 3, **options).to(memory_format=torch.channels_last)


def loop(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], parts: int = 1, lr: float = 0.1
) -> Iterator[float]:
    """A bare training loop: yields the time after each step; batches go through the model in ``parts``."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    model.train()
    for images, labels in batches:
        for some, own in zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True):
            loss = nn.functional.cross_entropy(model(some), own) / parts
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield time.perf_counter()


def by_dataloader(
    data: DataSet,
    pictures: Dataset,
    net: tuple[str, dict[str, Any]],
    *,
    batch: int,
    epochs: int,
    workers: int,
    threads: int,
    most: int | None = None,
) -> float:
    """Images a second of a tuned DataLoader loop, from the first request to the last step.

    Args:
        data: for mean, standard deviation and number of classes.
        pictures: from :class:`Pictures`.
        net: name and options of a built-in net.
        batch: images in a batch.
        epochs: passes.
        workers: processes that augment.
        threads: threads that compute.
        most: batches after which to stop.
    """
    torch.set_num_threads(threads)
    more: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
    loader = DataLoader(
        pictures, batch, shuffle=True, drop_last=True, num_workers=workers, collate_fn=collate, **more
    )
    mean = 255 * torch.tensor(data.facts.mean).view(1, 3, 1, 1)
    scale = 1 / (255 * torch.tensor(data.facts.std).view(1, 3, 1, 1))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            for images, labels in loader:
                # Already channels_last in memory.
                yield images.permute(0, 3, 1, 2).to(torch.float32).sub_(mean).mul_(scale), labels

    model = model_of(*net, data.facts.num_classes)
    began, source = time.perf_counter(), loop(model, batches())
    stamps = list(islice(source, most))
    return len(stamps) * batch / (stamps[-1] - began)


def by_engine(
    plan: Plan, data: DataSet, threads: int, steps: int | None = None, seed: int = 0
) -> tuple[dict[str, Any], list[float]]:
    """Train with the engine, measuring nothing at the end.

    Returns:
        The run's ``cost``, and the time after each step.
    """
    if steps is not None:
        plan = replace(plan, timeline=replace(plan.timeline, steps=steps))
    stamps: list[float] = []

    def stamp(status: Status) -> None:
        stamps.append(time.perf_counter())

    with TemporaryDirectory() as folder:
        run = engine(
            plan,
            data,
            seed=seed,
            runs=Path(folder),
            device=Device("cpu", threads=threads),
            checkpoint_seconds=1e9,
            splits=(),
            readouts=[],
            progress=stamp,
            report_seconds=0.0,
        )
        result = run.result()
    if result is None or result["status"] != "finished":
        raise RuntimeError("the run did not finish")
    return result["cost"], stamps


def plan_of(recipe: Recipe, data: DataSet) -> Plan:
    """The recipe's plan for the CPU; evaluated at the end only."""
    return planning.compile(recipe.replace(evaluate_every=recipe.epochs), data.facts, "cpu")
