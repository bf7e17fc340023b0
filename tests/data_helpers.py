"""Small image sets for the tests of the data room."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """A folder of the shared data; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path.name} in ../shared/data")
    return path


def picture(seed: int, height: int = 12, width: int = 10, mode: str = "RGB") -> Image.Image:
    """A random picture."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode=None)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def fill(root: Path, counts: dict[str, int], size: tuple[int, int] | None = (12, 10), start: int = 0) -> None:
    """Write ``counts`` pictures below ``root`` for each class; ``size`` None varies."""
    rng = np.random.default_rng(start)
    for number, (label, count) in enumerate(counts.items()):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            height, width = size or rng.integers(8, 30, 2).tolist()
            seed = start + 1000 * number + i
            (root / label / f"{seed:06d}.png").write_bytes(encoded(picture(seed, height, width)))
