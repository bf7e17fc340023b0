"""Reading one image the way a person sees it."""

from __future__ import annotations

import io
import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from trickbag.data import jpeg
from trickbag.data.listing import Mode

if TYPE_CHECKING:
    from PIL import Image

    from trickbag.data.listing import Encoded

READER = "1"
"""Changes whenever :func:`decode` reads some file differently; part of every cache key."""

_SUFFIXES = "jpg jpeg jpe jfif png apng bmp dib gif webp avif tif tiff ppm pgm pbm pnm jp2 j2k tga"
SUFFIXES = frozenset(f".{name}" for name in _SUFFIXES.split())
"""File names with these endings, in any case, count as images."""


class Unreadable(Exception):
    """An image that cannot be decoded."""


def quiet() -> None:
    """Ignore Pillow's warnings about odd files (they are read anyway) from here on, in all threads.

    Among them is the warning about large images: up to twice ``Image.MAX_IMAGE_PIXELS`` pixels they
    are photos, past it Pillow refuses and the file counts as unreadable.
    """
    rule = ("ignore", r"PIL\.")
    if not any(f[0] == rule[0] and f[3] is not None and f[3].pattern == rule[1] for f in warnings.filters):
        warnings.filterwarnings("ignore", module=rule[1])


def decode(source: Encoded, mode: Mode) -> np.ndarray:
    """Decode one image to ``(height, width, 3)`` for rgb or ``(height, width, 1)`` for gray, uint8.

    EXIF rotation is applied; of animations and multi-page files the first frame counts; transparency
    is laid over white; 16-bit gray is scaled to 8 bits (65535 -> 255); CMYK is converted. Float and
    32-bit integer images are taken as 0..1, 0..255, 0..65535 or 0..2^32-1, the narrowest that holds
    their largest value. The pixels are Pillow's; simplejpeg, where it is installed, only finds them sooner.

    Raises:
        Unreadable: the file is damaged, truncated, not an image, or larger than Pillow's limit for
            decompression bombs (twice ``Image.MAX_IMAGE_PIXELS``).
    """
    try:
        source = _contents(source)
        if isinstance(source, bytes) and (array := jpeg.pixels(source, mode)) is not None:
            return array if jpeg.plain(source) else _turned(array, _orientation(_open(source)))
        array = _pixels(_open(source), mode)
    except Unreadable:
        raise
    except Exception as error:  # Pillow's plugins raise anything on damaged files.
        raise Unreadable(f"{type(error).__name__}: {error}") from None
    return array if array.ndim == 3 else array[:, :, None]


def check(source: Encoded) -> tuple[int, int]:
    """(height, width) after rotation of an image that can be decoded; for JPEG faster than decoding.

    Raises:
        Unreadable: as :func:`decode`.
    """
    try:
        source = _contents(source)
        if isinstance(source, bytes) and jpeg.plain(source) and (quick := jpeg.size(source)):
            return quick
        image = _open(source)
        size = _rotated_size(image)
        image.draft(None, (1, 1))
        image.load()
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None
    return size


def header_size(source: Encoded) -> tuple[int, int]:
    """(height, width) after rotation, from the header alone.

    Raises:
        Unreadable: the header cannot be read.
    """
    try:
        return _rotated_size(_open(_contents(source)))
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def _contents(source: Encoded) -> bytes | Image.Image | np.ndarray:
    if source is None:
        raise Unreadable("there are no bytes")
    if isinstance(source, os.PathLike):
        return source.read_bytes()
    return bytes(source) if isinstance(source, memoryview) else source


def _open(source: bytes | Image.Image | np.ndarray) -> Image.Image:
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    return Image.open(io.BytesIO(source))


def _rotated_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # Damaged EXIF does not make a picture unreadable.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _pixels(image: Image.Image, mode: Mode) -> np.ndarray:
    from PIL import Image

    image.load()
    turn = _orientation(image)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_levels(np.asarray(image), sixteen=image.mode.startswith("I;16")))
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if transparent:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    image = image.convert("L" if mode == "gray" else "RGB")
    return _turned(np.asarray(image), turn)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation (1 to 8) of ``(height, width[, channels])``."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_levels(values: np.ndarray, sixteen: bool) -> np.ndarray:
    floating = np.issubdtype(values.dtype, np.floating)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    if sixteen:
        full = 65535.0
    elif floating and top <= 1.0:
        full = 1.0
    else:
        full = next((limit for limit in (255.0, 65535.0, 2.0**32 - 1) if top <= limit), float(top))
    return np.clip(np.floor(values * (255.0 / full) + 0.5), 0, 255).astype(np.uint8)
