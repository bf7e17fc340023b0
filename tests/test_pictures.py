"""Pictures show what training does, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from trickbag import api, data
from trickbag.cli.main import app
from trickbag.engine.batches import TrainBatches
from trickbag.recipe import load
from trickbag.report import pictures


def planned(folder: Path, *with_: str, **values: object):  # type: ignore[no-untyped-def]
    set_ = [
        f"{name}={value}"
        for name, value in {"epochs": 2, "batch_size": 4, "image_size": 24, **values}.items()
    ]
    recipe = load("small_baseline", set_=set_, with_=with_)
    return api.compile_plan(recipe, data.spec(str(folder)), "cpu")


def test_nothing_is_changed_without_tricks(shapes: Path) -> None:
    plan, loaded = planned(shapes)
    bare = replace(plan, recipe=plan.recipe.replace(tricks=[]))
    shown = pictures.views(bare, loaded, images=3, draws=2)
    assert shown.mixed is None
    assert (shown.draws == shown.originals).all()
    assert all(
        shares == ((name, 1.0),)
        for draw in shown.labels
        for name, shares in zip(shown.names, draw, strict=True)
    )


def test_draws_are_those_of_training(shapes: Path) -> None:
    plan, loaded = planned(shapes, "mixup:alpha=1.0", "trivial_augment")
    split = loaded.splits["train"]
    batches = TrainBatches(plan, split, seed=3)
    rows = batches.indices(0)
    shown = pictures.views_of(plan, split, rows, [0], seed=3)
    batches.early = True
    images = next(iter(split.batches(batches.requests(0))))
    table = next(t for t in (trick.table(3) for trick in plan.train_images) if t is not None)
    assert (pictures._visible(images, table) == shown.draws[0]).all()
    targets = torch.eye(plan.facts.num_classes)[torch.from_numpy(split.labels[rows])]
    _, mixed = batches.prepare(images, targets, 0)
    for weights, shares in zip(mixed.tolist(), shown.labels[0], strict=True):
        assert sum(weight for _, weight in shares) == pytest.approx(
            sum(w for w in weights if w > pictures.SHARE)
        )


def test_curves_have_a_panel_for_all_that_changes(shapes: Path) -> None:
    plan, _ = planned(shapes)
    assert [ax.get_ylabel() for ax in pictures.curves(plan).axes] == ["learning rate"]
    ramp, _ = planned(shapes, "resolution_ramp:start=0.5", image_size=32)
    assert [ax.get_ylabel() for ax in pictures.curves(ramp).axes] == ["learning rate", "image size in pixels"]
    line = pictures.curves(plan).axes[0].lines[0]
    wanted = [plan.learning_rate(step) for step in range(plan.timeline.steps)]
    np.testing.assert_allclose(line.get_ydata(), wanted)


def test_the_command_writes_pictures(shapes: Path, tmp_path: Path) -> None:
    arguments = [
        "show",
        "small_baseline",
        str(shapes),
        "--out",
        str(tmp_path),
        "--with",
        "cutmix",
        "--images",
        "2",
    ]
    done = CliRunner().invoke(
        app, [*arguments, "--draws", "2", "--set", "image_size=24", "--set", "batch_size=4"]
    )
    assert done.exit_code == 0, done.output
    for name in ("images", "curves"):
        picture = Image.open(tmp_path / f"small_baseline-{name}.png")
        assert min(picture.size) > 100
        assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 10
