"""What the contract tests share: a small recipe in which every trick of the catalogue can act."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.engine import checkpoint
from trickbag.engine.device import Device
from trickbag.engine.run import Run
from trickbag.engine.train import train
from trickbag.errors import PlanError
from trickbag.interactions import clash
from trickbag.plan import Plan
from trickbag.recipe import ModelSpec, Recipe
from trickbag.tricks import Bag, catalogue
from trickbag.tricks.base import Trick
from trickbag.tricks.optimization import SGD

KINDS = tuple(catalogue())
MODEL = ModelSpec(name="test_resnet", options={"stem_type": "", "avg_down": False})
"""A timm ResNet of 0.4 M parameters in its plainest form, so that every model trick has work to do."""


OPTIMIZER = SGD(lr=0.05, momentum=0.5, weight_decay=0.02)


def recipe(*tricks: Trick, optimizer: bool = True, **values: Any) -> Recipe:
    """The contract recipe with ``tricks``, and an optimizer that decays weights if none is among them."""
    plain: dict[str, Any] = {"model": MODEL, "epochs": 1, "batch_size": 8, "image_size": 24}
    plain["eval_resize"] = values.get("eval_size", values.get("image_size", 24)) + 4
    if optimizer and not any(trick.slot == OPTIMIZER.slot for trick in tricks):
        tricks = (*tricks, OPTIMIZER)
    return Recipe(**(plain | values), tricks=Bag(tricks))


def sample(kind: str) -> Trick:
    """The setting of a trick that its tests use."""
    return catalogue()[kind].sample()


BESIDE = {"mix_switch": ("mixup", "cutmix"), "mix_off": ("mixup",)}
"""What tricks act upon that ask for any of several others."""


def required(kind: str) -> tuple[Trick, ...]:
    """What a trick needs beside itself in the bag."""
    return tuple(sample(other) for other in (*catalogue()[kind].requires, *BESIDE.get(kind, ())))


def compatible(*kinds: str) -> bool:
    """True if no two of these declare a conflict: slot or exclusion."""
    tricks = [catalogue()[kind] for kind in kinds]
    return all(
        not (a.slot and a.slot == b.slot) and not clash(a.kind, b.kind) for a, b in combinations(tricks, 2)
    )


def full_bag() -> tuple[Trick, ...]:
    """As many tricks as fit into one bag, in the catalogue's order."""
    kinds: list[str] = []
    for kind in KINDS:
        if compatible(*kinds, kind):
            kinds.append(kind)
    return tuple(sample(kind) for kind in kinds)


@dataclass
class Bench:
    """Trains short runs of the contract recipe."""

    data: DataSet
    folder: Path

    def plan(self, chosen: Recipe, steps: int = 3) -> Plan:
        """The plan, cut to a few steps."""
        epochs = steps / max(1, self.data.facts.sizes["train"] // chosen.batch_size)
        return planning.compile(chosen.replace(epochs=epochs), self.data.facts)

    def train(self, chosen: Recipe, steps: int = 3, seed: int = 7, fresh: bool = True, **options: Any) -> Run:
        """A finished run of a few steps, in a folder of its own."""
        import tempfile

        runs = tempfile.mkdtemp(dir=self.folder) if fresh else self.folder
        options = {
            "splits": (),
            "readouts": [],
            "device": Device("cpu", threads=1),
            "upstream_runs": self.folder / "upstream",
        } | options
        return train(self.plan(chosen, steps), self.data, seed=seed, runs=runs, **options)

    def print(self, chosen: Recipe, steps: int = 3, **options: Any) -> str:
        """Fingerprint of the raw weights after a few steps."""
        return fingerprint(self.train(chosen, steps, **options))

    def conflicts(self, chosen: Recipe) -> str | None:
        """What compiling says, or None if it has nothing to say."""
        try:
            self.plan(chosen)
        except PlanError as error:
            return str(error)
        return None


def tensors(run: Run, name: str = "model") -> dict[str, torch.Tensor]:
    """Tensors of a run's last checkpoint."""
    return checkpoint.load_tensors(run.newest_checkpoint() / f"{name}.safetensors")


def fingerprint(run: Run, name: str = "model") -> str:
    """Hash of every bit of a run's weights."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors(run, name).items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def rows(run: Run) -> list[dict[str, Any]]:
    """What a run logged, less the time it took."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.metrics()]
