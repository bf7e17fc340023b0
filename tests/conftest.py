"""Shared fixtures: a small folder of color images, and a home for caches."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

LONGEST = (
    "test_study_survival",
    "test_contract",
    "test_study",
    "test_cli",
    "test_engine",
    "test_study_designs",
    "test_executors",
    "test_forks",
    "test_statistics",
    "test_report",
    "test_auto",
    "test_docs",
)
"""Files that take long: begun first, so that no process waits for the last one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


CLASSES = ("circle", "cross", "square", "stripes")


def draw(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """One noisy picture of a shape: uint8 ``(size, size, 3)``."""
    yy, xx = np.mgrid[:size, :size].astype(float) / (size - 1) * 2 - 1
    yy, xx = yy - rng.uniform(-0.2, 0.2), xx - rng.uniform(-0.2, 0.2)
    mask = {
        "circle": np.hypot(yy, xx) < 0.6,
        "cross": (abs(yy) < 0.25) | (abs(xx) < 0.25),
        "square": (abs(yy) < 0.5) & (abs(xx) < 0.5),
        "stripes": np.sin(8 * xx) > 0,
    }[kind]
    front, back = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    image = np.where(mask[..., None], front, back) + rng.normal(0, 12, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8)


def write_shapes(folder: Path, count: int = 24, size: int = 16, seed: int = 0) -> Path:
    """An image folder with ``count`` pictures of each of four shapes."""
    rng = np.random.default_rng(seed)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(draw(kind, size, rng)).save(folder / kind / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images of tests go to a folder of their own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["TRICKBAG_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 96 pictures, four classes, 16 px."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes")
