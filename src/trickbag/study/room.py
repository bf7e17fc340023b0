"""Telling that nothing more can be written from what was raised."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from trickbag.errors import TrickbagError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of the operating system after which trying again is of no use."""


def out_of_room(error: BaseException) -> str | None:
    """Why nothing more can be written, if that is what an error comes from; else None.

    A full disk, an exhausted quota, a limit on file sizes, a file system that became read-only.
    """
    for one in _origins(error):
        if isinstance(one, OSError) and one.errno in FULL:
            return os.strerror(one.errno)
        if getattr(one, "sqlite_errorname", None) in ("SQLITE_FULL", "SQLITE_READONLY"):
            return str(one)
        # safetensors has no number, only the words of Rust.
        code = re.search(r"\(os error (\d+)\)", str(one))
        if code and int(code[1]) in FULL:
            return os.strerror(int(code[1]))
    return None


def place_of(error: BaseException) -> str | None:
    """Which file or folder an error is about, if it says so."""
    for one in _origins(error):
        if isinstance(one, TrickbagError) and one.problems[0].where:
            return one.problems[0].where
        if isinstance(one, OSError) and one.filename:
            return str(one.filename)
    return None


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
