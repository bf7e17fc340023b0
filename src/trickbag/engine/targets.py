"""What is learned about each training image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from trickbag import tasks
from trickbag.data.base import DataSet, Split
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
    """

    split: Split
    plan: Plan
    dense: Tensor | None = None

    def targets(self, indices: np.ndarray) -> Tensor:
        """Dense targets ``(batch, classes)`` of the images at ``indices``."""
        rows = torch.from_numpy(indices)
        if self.dense is not None:
            return self.dense[rows]
        labels = torch.from_numpy(self.split.labels)[rows]
        return tasks.of(self.plan.recipe.task).targets(labels, self.plan.facts.num_classes)


def learned(plan: Plan, data: DataSet, upstreams: Mapping[str, Upstreams]) -> Learned:
    """The training images and targets of a plan, pseudo-labels and added images included."""
    trick, train = plan.target, data.splits["train"]
    if trick is None:
        return Learned(train, plan)
    pool = data.splits[trick.pool] if trick.pool else None
    upstream = next(iter(upstreams[trick.kind].values()))
    found = trick.targets(train.labels, plan.facts.num_classes, 0 if pool is None else len(pool), upstream)
    kept = ~np.isnan(found).any(axis=1)
    dense = np.ascontiguousarray(found[kept], dtype=np.float32)
    split = joined(train, pool, np.flatnonzero(kept[len(train) :]))
    split = replace(cast(Any, split), labels=dense.argmax(axis=1).astype(np.int64))
    return Learned(split, plan, torch.from_numpy(dense))


def joined(train: Split, pool: Split | None, chosen: np.ndarray | None = None) -> Split:
    """The training images and those at ``chosen`` (all, if None) of a pool that is held in the same place."""
    if pool is None:
        return train
    one, other = cast(Any, train), cast(Any, pool)
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
