"""Copies of images that somebody asked for: where the cache cannot hold one, that is an error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from trickbag.data.cache import artifact, cache_folder
from trickbag.errors import DataError


def must_make(key: str, build: Callable[[Path], None]) -> Path:
    """As :func:`trickbag.data.cache.artifact`.

    Raises:
        DataError: the cache cannot be written; what ``build`` raises.
    """
    try:
        folder = artifact(key, build)
    except OSError as error:
        raise DataError(
            f"cannot write a copy of the images: {error.strerror or error}",
            where=str(cache_folder()),
            fix="make room, or set TRICKBAG_CACHE to a folder that can be written",
        ) from None
    assert folder is not None
    return folder


def check_room(folder: Path, what: str, need: float, fix: str) -> None:
    """Refuse what does not fit the disk, before it is begun.

    Args:
        folder: where it is to be written.
        what: the kind of images, for the message.
        need: bytes.
        fix: what helps, beside a larger disk.

    Raises:
        DataError: there is less room than that.
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{what} images need about {amount(need)} of disk, and {amount(free)} are free",
            where=str(cache_folder()),
            fix=f"set TRICKBAG_CACHE to a folder on a larger disk, {fix}",
        )


def vanished() -> DataError:
    """A copy was sound a moment ago."""
    return DataError(
        "the copy of the images was damaged while it was read", where=str(cache_folder()), fix="start anew"
    )


def amount(size: float) -> str:
    """Bytes, for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
