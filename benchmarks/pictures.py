"""Images for the benchmarks: those of ``--data``, or made-up ones with the statistics of photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trickbag import data
from trickbag.data.holding import Pixels
from trickbag.data.serving import ImageSplit

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def made_up(count: int, height: int, width: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Smoothed noise at several scales with a few shapes and some grain: ``(height, width, 3)`` uint8."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        total = np.zeros((height, width, 3))
        for side in (2, 5, 11, 23, 47):
            if side < min(height, width):
                coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
                total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / side**0.7
        total = (total - total.min()) / (np.ptp(total) + 1e-9) * 255
        picture = Image.fromarray(total.astype(np.uint8))
        draw = ImageDraw.Draw(picture)
        for shape in (draw.ellipse, draw.rectangle, draw.ellipse):
            left, top = rng.integers(0, width), rng.integers(0, height)
            right, bottom = left + rng.integers(1, width // 2), top + rng.integers(1, height // 2)
            color = tuple(rng.integers(0, 256, 3).tolist())
            shape((int(left), int(top), int(right), int(bottom)), fill=color)
        grain = rng.normal(0, 4, (height, width, 1))
        yield np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)


def small(path: str | None, count: int, size: int = 32) -> tuple[str, ImageSplit]:
    """Name and split of small images of one size, decoded, in memory.

    Args:
        path: data set whose training images are taken (evenly spaced); None makes images up.
        count: how many.
        size: height and width of made-up images.
    """
    if path is None:
        return "made-up images", held(np.stack(list(made_up(count, size, size))))
    loaded = data.load(data.spec(path))
    split = loaded.splits["train"]
    if not (isinstance(split.images, Pixels) and split.images.uniform):
        raise SystemExit(f"{path}: this benchmark takes images of one size")
    stack, slots = split.images.stack(split.rows)
    chosen = np.linspace(0, len(slots) - 1, min(count, len(slots))).astype(int)
    return f"{Path(path).name}, {len(chosen):,} training images", held(stack[slots[chosen]])


def held(stack: np.ndarray) -> ImageSplit:
    """A split of ``(n, height, width, channels)`` uint8 images without labels."""
    n, height, width, channels = stack.shape
    sizes = np.tile(np.array([[height, width]], dtype=np.int64), (n, 1))
    names = tuple(map(str, range(n)))
    pixels = Pixels(np.ascontiguousarray(stack).reshape(-1), sizes, channels)
    return ImageSplit(pixels, np.arange(n), np.zeros(n, np.int64), names, sizes)


def photos(path: str | None, count: int, folder: Path) -> tuple[str, str]:
    """Name and path of a folder of photographs; without ``path``, made-up ones of 500 x 375 pixels."""
    if path is not None:
        return Path(path).name, path
    for number, image in enumerate(made_up(count, 375, 500)):
        place = folder / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:05}.jpg", quality=90)
    return "made-up photographs, 500 × 375, JPEG quality 90", str(folder / "photos")
