"""What is done to images once, before training sees them: a smaller size, another encoding."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from trickbag.data.base import DataSpec
from trickbag.data.hashing import combine
from trickbag.errors import DataError

RECODER = "1"
"""Changes whenever :class:`Recoding` gives other pixels for the same settings."""
SIDE = 65_500
"""The largest height or width of a JPEG file."""


@dataclass(frozen=True)
class Recoding:
    """A change of images that happens once.

    Attributes:
        short_side: images whose shorter side is larger are resized to it; None leaves all as they are.
        quality: JPEG quality of the copy; None if there is no JPEG copy.
    """

    short_side: int | None = None
    quality: int | None = None

    @classmethod
    def of(cls, spec: DataSpec) -> Recoding:
        """The change that a spec asks for."""
        return cls(spec.short_side, spec.quality if spec.keep == "jpeg" else None)

    def mark(self, content: str) -> str:
        """Hash of the changed images, given the hash of the original ones; the same if nothing changes."""
        if self == Recoding():
            return content
        settings = f"{RECODER} short_side={self.short_side} quality={self.quality}"
        return combine((content.encode(), settings.encode()))

    def sizes(self, sizes: np.ndarray) -> np.ndarray:
        """``(n, 2)`` int64 (height, width) of the changed images, given those of the original ones.

        A zero size (an unreadable image) stays.
        """
        short = sizes.min(axis=1, keepdims=True)
        if self.short_side is None or not len(sizes):
            return sizes
        scaled = np.floor(sizes * self.short_side / np.maximum(short, 1) + 0.5).astype(np.int64)
        return np.where(short > self.short_side, scaled, sizes)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Resize ``(height, width, channels)`` uint8 if its shorter side is too large.

        Pillow's bicubic filter, antialiased.
        """
        if self.short_side is None or min(image.shape[:2]) <= self.short_side:
            return image
        from PIL import Image

        ((height, width),) = self.sizes(np.array([image.shape[:2]])).tolist()
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        result = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        return result.reshape(height, width, image.shape[2])

    def encode(self, image: np.ndarray) -> bytes:
        """A JPEG file (baseline, 4:2:0) of ``(height, width, channels)`` uint8.

        Always by Pillow: other encoders round differently, and what is installed beside it must not
        matter to a run.

        Raises:
            DataError: the image is larger than a JPEG file can be.
        """
        from PIL import Image

        assert self.quality is not None
        if max(image.shape[:2]) > SIDE:
            raise DataError(
                f"{image.shape[0]} x {image.shape[1]} pixels are too many for a JPEG file",
                expected=f"at most {SIDE} a side",
                fix="set short_side, or keep: raw",
            )
        picture, file = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image), io.BytesIO()
        picture.save(file, "JPEG", quality=self.quality, subsampling=2)
        return file.getvalue()
