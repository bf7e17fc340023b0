"""Content hashes of files, remembered by path, size and times so that they are computed once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from trickbag.data.cache import cache_folder, load_arrays, save_arrays
from trickbag.data.listing import Progress

DIGEST = 16
RACY = 2_000_000_000
"""Nanoseconds: a file touched so shortly before it was hashed may change again without its times changing."""


def file_hashes(paths: Sequence[Path], root: Path, progress: Progress | None = None) -> list[bytes]:
    """BLAKE2b digests (16 bytes) of the contents of ``paths``; zeros for a file that cannot be read."""
    stats = np.array([_stat(path) for path in paths], dtype=np.int64).reshape(-1, 3)
    names = [str(path) for path in paths]
    index = cache_folder() / "index" / f"{combine([str(root.resolve()).encode()])}.npz"
    known = _read_index(index)
    hashes: list[bytes | None] = [None] * len(paths)
    todo = []
    for i, (name, stat) in enumerate(zip(names, stats.tolist(), strict=True)):
        entry = known.get(name)
        if entry is not None and entry[0] == stat:
            hashes[i] = entry[1]
        else:
            todo.append(i)
    if todo:
        now = time.time_ns()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            fresh = pool.map(_hash_file, (paths[i] for i in todo))
            for done, (i, digest) in enumerate(zip(todo, fresh, strict=True), 1):
                hashes[i] = digest
                if progress and (done % 256 == 0 or done == len(todo)):
                    progress("fingerprint", done, len(todo))
        settled = (stats[:, 1:].max(axis=1) < now - RACY) & (stats[:, 0] >= 0)
        keep = [i for i in range(len(paths)) if settled[i]]
        save_arrays(
            index,
            names=np.frombuffer(
                "\0".join(names[i] for i in keep).encode("utf-8", "surrogateescape"), np.uint8
            ),
            stats=stats[keep],
            hashes=np.frombuffer(b"".join(hashes[i] or b"" for i in keep), np.uint8),
        )
    return [digest or b"" for digest in hashes]


def combine(parts: Iterable[bytes]) -> str:
    """Hash of a sequence of byte strings, 32 hexadecimal digits; where one ends matters."""
    state = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, -1, -1
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST)).digest()
    except OSError:
        return b"\0" * DIGEST


def _read_index(path: Path) -> dict[str, tuple[list[int], bytes]]:
    arrays = load_arrays(path)
    if arrays is None:
        return {}
    names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
    stats, hashes = arrays["stats"].tolist(), arrays["hashes"].tobytes()
    if len(names) != len(stats) or len(hashes) != DIGEST * len(stats):
        return {}
    return {
        name: (stat, hashes[DIGEST * i : DIGEST * (i + 1)])
        for i, (name, stat) in enumerate(zip(names, stats, strict=True))
    }
