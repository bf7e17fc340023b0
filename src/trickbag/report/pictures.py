"""Pictures of what a recipe does: to images, to the learning rate, to the size of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbag.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from trickbag.data.base import DataSet, Split
    from trickbag.plan import Plan

SHARE = 0.005
"""Least weight of a class that is written under a mixed image."""


@dataclass(frozen=True)
class Views:
    """Images as a recipe shows them to the model, made visible again.

    Attributes:
        originals: ``(images, size, size, channels)`` uint8, as evaluation crops them.
        draws: ``(draws, images, size, size, channels)`` uint8, augmented.
        mixed: the same after mixing; None where the recipe mixes nothing.
        labels: for each draw and image, its classes and their weights.
        names: class of each image.
    """

    originals: np.ndarray
    draws: np.ndarray
    mixed: np.ndarray | None
    labels: tuple[tuple[tuple[tuple[str, float], ...], ...], ...]
    names: tuple[str, ...]


def views(
    plan: Plan, data: DataSet, *, images: int = 4, draws: int = 6, seed: int = 42, split: str = "train"
) -> Views:
    """What the first updates of a run with ``seed`` would do to some images.

    Args:
        plan: its image and mix tricks act.
        data: where the images come from: evenly spaced ones of ``split``.
        images: how many; they make up the batch, so that they are mixed with each other.
        draws: how many times each is augmented.
        seed: seed of the streams.
        split: name of the split.
    """
    source = data.splits[split]
    count = min(images, len(source))
    rows = np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64))
    small = replace(plan, timeline=replace(plan.timeline, batch_size=len(rows)))
    return views_of(small, source, rows, range(draws), seed)


def views_of(plan: Plan, split: Split, rows: np.ndarray, steps: Sequence[int], seed: int) -> Views:
    """As :func:`views`, for given images and steps; the plan's batch size must be ``len(rows)``."""
    import torch

    from trickbag import tasks
    from trickbag.data.base import Request
    from trickbag.engine.batches import TrainBatches, eval_program, program_of
    from trickbag.imageops.backend import execute
    from trickbag.rng import Stream
    from trickbag.tricks.stages import Batch

    facts, stream, size = plan.facts, Stream(seed), plan.recipe.image_size
    classes = facts.classes
    targets = tasks.of(plan.recipe.task).targets(torch.from_numpy(split.labels[rows]), facts.num_classes)
    plain = next(iter(split.batches([Request(rows, None, size, plan.recipe.interpolation)])))
    batches = TrainBatches(plan, split, seed)
    batches.early = True
    table = eval_program(plan).floats(facts.channels)
    drawn, mixed, labels = [], [], []
    for step in steps:
        boxes = None
        if plan.crop is not None:
            sizes = torch.from_numpy(split.sizes[rows])
            boxes = plan.crop.boxes(sizes, stream.child(plan.crop.kind).torch(step)).numpy()
        seen = next(iter(split.batches([Request(rows, boxes, size, plan.recipe.interpolation)])))
        batch = Batch((len(rows), facts.channels, size, size), step, step, rows)
        floats = execute(seen, program_of(plan.train_images, batch, stream))
        drawn.append(_visible(floats, table))
        both, shares = batches.prepare(floats.clone(), targets.clone(), step)
        mixed.append(_visible(both, table))
        labels.append(tuple(_shares(row, classes) for row in shares.tolist()))
    return Views(
        plain.permute(0, 2, 3, 1).numpy(),
        np.stack(drawn),
        np.stack(mixed) if plan.mix else None,
        tuple(labels),
        tuple(classes[label] for label in split.labels[rows]),
    )


def _visible(images: Tensor, table: np.ndarray) -> np.ndarray:
    """Normalized images back to uint8 ``(batch, height, width, channels)``."""
    low, high = (table[:, k].astype(np.float64)[:, None, None] for k in (0, 255))
    values = (images.double().numpy() - low) / (high - low) * 255
    return np.rint(values).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _shares(weights: Sequence[float], classes: Sequence[str]) -> tuple[tuple[str, float], ...]:
    order = sorted(range(len(weights)), key=lambda k: -weights[k])
    return tuple((classes[k], weights[k]) for k in order if weights[k] > SHARE)


def pyplot() -> Any:
    """Matplotlib's figure class, without a display.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib", fix="pip install 'trickbag[pictures]'") from None
    return Figure


def grid(shown: Views, title: str = "") -> Figure:
    """A figure: a row an image, the original first, then its draws; mixed ones, with weights, below."""
    rows = len(shown.originals)
    blocks = 1 if shown.mixed is None else 2
    columns = 1 + shown.draws.shape[0]
    figure: Figure = pyplot()(figsize=(1.5 * columns, 1.55 * rows * blocks + 0.5), layout="constrained")
    axes = figure.subplots(rows * blocks, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for row in range(rows):
        _image(axes[row, 0], shown.originals[row], f"original: {shown.names[row]}")
        for k in range(columns - 1):
            _image(axes[row, k + 1], shown.draws[k, row], f"draw {k + 1}" if row == 0 else "")
        if shown.mixed is not None:
            for k in range(columns - 1):
                text = "\n".join(f"{weight:.2f} {name}" for name, weight in shown.labels[k][row][:3])
                _image(axes[rows + row, k + 1], shown.mixed[k, row], text)
    if shown.mixed is not None:
        axes[rows, 0].text(0.5, 0.5, "mixed,\nwith the weights\nof the classes", ha="center", va="center")
    if title:
        figure.suptitle(title)
    return figure


def _image(ax: Any, image: np.ndarray, text: str) -> None:
    gray = image.shape[2] == 1
    near = "nearest" if max(image.shape[:2]) < 100 else "antialiased"
    ax.imshow(image[:, :, 0] if gray else image, cmap="gray" if gray else None, interpolation=near)
    ax.set_title(text, fontsize=7, pad=2)


def curves(plan: Plan) -> Figure:
    """A figure of everything that changes over a run: learning rate, momentum, image size."""
    timeline = plan.timeline
    count = min(timeline.steps, 2000)
    steps = np.unique(np.linspace(0, timeline.steps - 1, count).astype(np.int64)).tolist()
    epochs = [step / timeline.steps_per_epoch for step in steps]
    lines: list[tuple[str, list[float]]] = [("learning rate", [plan.learning_rate(s) for s in steps])]
    momentum = [plan.momentum(step) for step in steps]
    if any(value is not None for value in momentum):
        lines.append(("momentum", [np.nan if value is None else value for value in momentum]))
    if len(plan.image_sizes) > 1:
        lines.append(("image size in pixels", [float(plan.image_size(step)) for step in steps]))
    figure: Figure = pyplot()(figsize=(7, 0.6 + 1.9 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), 1, squeeze=False, sharex=True)[:, 0]
    for ax, (name, values) in zip(axes, lines, strict=True):
        ax.step(epochs, values, where="post", color="#0072b2") if "size" in name else ax.plot(
            epochs, values, color="#0072b2"
        )
        ax.set_ylabel(name)
        ax.set_ylim(bottom=0 if name == "learning rate" else None)
        ax.grid(alpha=0.3)
    axes[-1].set_xlabel("epoch")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG (or what the suffix says).

    Raises:
        UsageError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}", fix="choose another --out") from None
