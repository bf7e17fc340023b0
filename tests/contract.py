"""What the contract tests share: a small recipe in which every trick of the catalogue can act."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
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


def clashing(one: str, other: str) -> bool:
    """True if two kinds declare a conflict: slot or exclusion."""
    slot = catalogue()[one].slot
    return bool(slot and slot == catalogue()[other].slot) or clash(one, other)


def compatible(*kinds: str) -> bool:
    """True if no two of these, or of what they need, declare a conflict."""
    needed = (other.kind for kind in kinds for other in required(kind))
    return not any(clashing(*pair) for pair in combinations(dict.fromkeys((*kinds, *needed)), 2))


def full_bag() -> tuple[Trick, ...]:
    """As many tricks as fit into one bag, in the catalogue's order."""
    kinds: list[str] = []
    for kind in KINDS:
        if compatible(*kinds, kind):
            kinds.append(kind)
    return tuple(sample(kind) for kind in kinds)


def covering_bags(pairs: Sequence[tuple[str, str]], size: int) -> Iterator[tuple[str, ...]]:
    """Bags of up to ``size`` kinds, any two of which are among ``pairs``, such that every pair is in one."""
    friends = {kind: {other for pair in pairs if kind in pair for other in pair} - {kind} for kind in KINDS}
    left = {kind: set(others) for kind, others in friends.items()}
    for first in KINDS:
        while left[first]:
            bag = [first]
            while len(bag) < size:
                able = [kind for kind in KINDS if all(kind in friends[other] for other in bag)]
                gains = {kind: len(left[kind].intersection(bag)) for kind in able}
                best = max(able, key=lambda kind: gains[kind], default=None)
                if best is None or not gains[best]:
                    break
                bag.append(best)
            for one, other in permutations(bag, 2):
                left[one].discard(other)
            yield tuple(sorted(bag, key=KINDS.index))


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
            "upstream_runs": f"{self.folder}-upstream",
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
