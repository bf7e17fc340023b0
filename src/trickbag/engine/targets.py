"""What is learned about each training image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from trickbag import tasks
from trickbag.data.base import DataSet, Split
from trickbag.engine.run import Run
from trickbag.errors import UsageError
from trickbag.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.tricks.stages import Upstreams


@dataclass(frozen=True)
class Learned:
    """The training images and their targets.

    Attributes:
        split: the images; its labels are those of the most probable class.
        plan: for the number of classes and the task.
        dense: ``(n, classes)`` float32, or None where the labels are learned.
        added: images of another split among them.
        relabeled: training images whose target is not their label alone.
    """

    split: Split
    plan: Plan
    dense: Tensor | None = None
    added: int = 0
    relabeled: int = 0

    def targets(self, indices: np.ndarray) -> Tensor:
        """Dense targets ``(batch, classes)`` of the images at ``indices``."""
        rows = torch.from_numpy(indices)
        if self.dense is not None:
            return self.dense[rows]
        labels = torch.from_numpy(self.split.labels)[rows]
        return tasks.of(self.plan.recipe.task).targets(labels, self.plan.facts.num_classes)


def learned(plan: Plan, data: DataSet, upstreams: Mapping[str, Upstreams]) -> Learned:
    """The training images and targets of a plan, pseudo-labels and added images included.

    Processes that train together get those of the first one: images near a threshold may fall on either
    side of it where kernels are not deterministic.

    Raises:
        UsageError: the plan's target trick changes no target and adds no image.
    """
    trick, train = plan.target, data.splits["train"]
    if trick is None or not trick.sources():
        return Learned(train, plan)
    pool = data.splits[trick.pool] if trick.pool else None
    upstream = next(iter(upstreams[trick.kind].values()))
    classes = plan.facts.num_classes
    found = _of_first(trick.targets(train.labels, classes, 0 if pool is None else len(pool), upstream))
    kept = ~np.isnan(found).any(axis=1)
    if not kept[: len(train)].all():
        raise ValueError(f"{trick.kind} leaves training images without a target")
    dense = torch.from_numpy(np.ascontiguousarray(found[kept], dtype=np.float32))
    known = tasks.of(plan.recipe.task).targets(torch.from_numpy(train.labels), classes)
    relabeled = int((dense[: len(train)] != known).any(dim=1).sum())
    added = int(kept.sum()) - len(train)
    if not (added or relabeled):
        raise UsageError(
            f"{trick.kind} adds no image, and no prediction that it trusts differs from a label",
            where=f"trick {trick.kind}",
            fix=f"lower its threshold, or remove it: --without {trick.kind}",
        )
    split = joined(train, pool, np.flatnonzero(kept[len(train) :]))
    split = replace(cast(Any, split), labels=dense.argmax(dim=1).numpy())
    return Learned(split, plan, dense, added, relabeled)


def _of_first(found: np.ndarray) -> np.ndarray:
    """The first process's array, in every process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return found
    held = [found]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def joined(train: Split, pool: Split | None, chosen: np.ndarray | None = None) -> Split:
    """The training images and those at ``chosen`` (all, if None) of a pool that is held in the same place.

    The pool's labels are not looked at: they are 0 here.
    """
    if pool is None:
        return train
    one, other = cast(Any, train), cast(Any, pool)
    assert one.images is other.images, "splits of one data set share what holds their images"
    chosen = np.arange(len(pool)) if chosen is None else chosen
    return cast(
        Split,
        replace(
            one,
            rows=np.concatenate([one.rows, other.rows[chosen]]),
            labels=np.concatenate([one.labels, np.zeros(len(chosen), np.int64)]),
            names=(*one.names, *(other.names[k] for k in chosen.tolist())),
            sizes=np.concatenate([one.sizes, other.sizes[chosen]]),
        ),
    )


def transductive(plan: Plan) -> bool:
    """Whether test images, without their labels, took part in a run's training, or in what it builds upon.

    Args:
        plan: settled: its tricks' sources are runs and models.
    """
    if plan.target is not None and plan.target.sources() and plan.target.transductive:
        return True
    runs = [
        source.run
        for trick in plan.bag.values()
        if not trick.passive
        for source in trick.sources().values()
        if source.run is not None
    ]
    return any(bool((Run(Path(run)).result() or {}).get("transductive")) for run in runs)
