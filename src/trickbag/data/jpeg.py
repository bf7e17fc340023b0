"""JPEG files by libjpeg-turbo's own interface (simplejpeg), where that gives the pixels that Pillow gives."""

from __future__ import annotations

import functools
import io
import itertools
import logging
from typing import Any

import numpy as np

from trickbag.data.listing import Mode

log = logging.getLogger("trickbag.data")

START = b"\xff\xd8\xff"
SCAN = 0xDA
TABLES = frozenset((0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE))
"""Segments of a header that say nothing about rotation or further images: frame, tables, JFIF, comments."""
SPACES = frozenset(("YCbCr", "RGB", "Gray"))
"""Color spaces whose conversion is libjpeg's alone; CMYK and YCCK are Pillow's."""


def pixels(data: bytes, mode: Mode) -> np.ndarray | None:
    """Decode a JPEG file without regard to its EXIF rotation, several times as fast as Pillow if it is small.

    The interpreter's lock is free meanwhile.

    Returns:
        ``(height, width, 3)`` for rgb or ``(height, width, 1)`` for gray, uint8: what Pillow gives; or
        None for whatever is not a sound, ordinary JPEG, and without simplejpeg: ask Pillow then.
    """
    size = _header(data)
    if size is None:
        return None
    jpeg, pillow = _libraries()
    gray = mode == "gray"
    try:
        image: np.ndarray = jpeg.decode_jpeg(data, "GRAY" if gray and size[2] == "Gray" else "RGB")
    except Exception:  # Damaged: Pillow says how, or reads it in spite of that.
        return None
    if gray and image.shape[2] == 3:
        image = np.asarray(pillow.fromarray(image).convert("L"))[:, :, None]
    return image


def size(data: bytes) -> tuple[int, int] | None:
    """(height, width) before rotation of a JPEG file that can be decoded to its end.

    Returns:
        None as :func:`pixels`.
    """
    found = _header(data)
    if found is None:
        return None
    try:
        _libraries()[0].decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except Exception:
        return None
    return found[:2]


def plain(data: bytes) -> bool:
    """Whether a JPEG file's header is nothing but tables.

    If not, it may hold EXIF, XMP, an index of several images, or damage that Pillow minds.
    """
    at, end = 2, len(data) - 4
    while at < end and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == SCAN:
            return True
        if kind not in TABLES:
            return False
        at += 2 + 256 * data[at + 2] + data[at + 3]
    return False


def _header(data: bytes) -> tuple[int, int, str] | None:
    jpeg, pillow = _libraries()
    if jpeg is None or data[:3] != START:
        return None
    try:
        height, width, space, _ = jpeg.decode_jpeg_header(data)
    except Exception:
        return None
    limit = pillow.MAX_IMAGE_PIXELS
    if space not in SPACES or (limit is not None and height * width > 2 * limit):
        return None
    return height, width, space


@functools.cache
def _libraries() -> tuple[Any, Any]:
    """The module simplejpeg (None if it is absent, or differs from Pillow) and ``PIL.Image``."""
    from PIL import Image

    try:
        import simplejpeg

        same = _agrees(simplejpeg, Image)
    except ImportError:
        return None, Image
    except Exception as error:
        log.info("simplejpeg does not work (%s: %s); Pillow decodes", type(error).__name__, error)
        return None, Image
    if not same:
        log.info("simplejpeg and this Pillow decode JPEG to different pixels; Pillow decodes")
    return (simplejpeg if same else None), Image


def _agrees(jpeg: Any, pillow: Any) -> bool:
    """Whether two builds of libjpeg round alike: inverse DCT, color conversion, upsampling of chroma."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 37, 51, 3), dtype=np.uint8)
    noise[1] = noise[1] // 64 + np.arange(51, dtype=np.uint8)[:, None] * 4
    for values, subsampling, progressive in itertools.product(noise, (0, 1, 2), (False, True)):
        for mode in ("RGB", "L"):
            image, file = pillow.fromarray(values).convert(mode), io.BytesIO()
            image.save(file, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
            data = file.getvalue()
            if not np.array_equal(
                jpeg.decode_jpeg(data, "RGB"), np.asarray(pillow.open(file).convert("RGB"))
            ):
                return False
            try:
                jpeg.decode_jpeg(data[:-20], "RGB")
            except ValueError:
                continue
            return False
    return True
