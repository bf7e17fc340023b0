"""Files that can be made again: written once, atomically, checked when read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

log = logging.getLogger("trickbag.data")


def cache_folder() -> Path:
    """``$TRICKBAG_CACHE``, else ``$XDG_CACHE_HOME/trickbag``, else ``~/.cache/trickbag``."""
    if own := os.environ.get("TRICKBAG_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "trickbag"


def artifact(key: str, build: Callable[[Path], None] | None) -> Path | None:
    """The folder of a cached result; made by ``build`` if it is absent or damaged.

    Two processes that want one result at once agree: one builds while the other waits, and where
    locks do not work both build and the first to finish wins.

    Args:
        key: hash of everything that the result depends on.
        build: writes files into the empty folder that it is given; None only looks.

    Returns:
        The folder, or None if there is none and ``build`` is None.

    Raises:
        OSError: the cache cannot be written; what ``build`` raises.
    """
    final = cache_folder() / "images" / key
    if _sound(final):
        return final
    if build is None:
        return None
    final.parent.mkdir(parents=True, exist_ok=True)
    with _lock(final.with_suffix(".lock")) as alone:
        if _sound(final):
            return final
        if alone:
            # What is left of processes that were killed; it can be as large as the result.
            for left in final.parent.glob(f"{key}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        if final.exists():
            log.info("cache %s is damaged; building it again", final)
            _remove(final)
        temporary = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=final.parent))
        try:
            build(temporary)
            _seal(temporary)
            try:
                temporary.rename(final)
            except OSError:
                if not _sound(final):
                    raise
            _sync_folder(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def state(key: str) -> Literal["absent", "sound", "damaged"]:
    """What there is of a cached result."""
    folder = cache_folder() / "images" / key
    if _sound(folder):
        return "sound"
    return "damaged" if folder.exists() else "absent"


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write a small ``.npz`` atomically; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.info("cannot write %s: %s", path, error)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read a ``.npz``; None if it is absent or damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.info("cache %s is damaged (%s); it will be made again", path, error)
        return None


def save_json(path: Path, value: Any) -> None:
    """Write JSON atomically; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as file:
            file.write(json.dumps(value).encode())
    except OSError as error:
        log.info("cannot write %s: %s", path, error)


def load_json(path: Path) -> Any:
    """Read JSON; None if it is absent or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _seal(folder: Path) -> None:
    """Write down size and a hash of the ends of every file, last of all."""
    files = {path.name: _mark(path) for path in sorted(folder.iterdir())}
    for name in files:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    with (folder / "seal.json").open("w") as file:
        json.dump(files, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _sound(folder: Path) -> bool:
    files = load_json(folder / "seal.json")
    if not isinstance(files, dict):
        return False
    try:
        return all(_mark(folder / name) == mark for name, mark in files.items())
    except OSError:
        return False


def _mark(path: Path, window: int = 1 << 16) -> list[Any]:
    size = path.stat().st_size
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for start in sorted({0, max(0, size // 2 - window // 2), max(0, size - window)}):
            file.seek(start)
            state.update(file.read(window))
    return [size, state.hexdigest()]


def _remove(folder: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix="damaged.", suffix=".tmp", dir=folder.parent))
    folder.rename(aside / "old")
    shutil.rmtree(aside, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock while entered; False where locks do not work."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is making %s; waiting", path.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
