"""Decoding all images of a data set once, or finding that they are decoded already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbag.data.cache import artifact, load_arrays
from trickbag.data.decode import READER, Unreadable, check, decode, header_size
from trickbag.data.hashing import combine
from trickbag.data.holding import WORKERS, Decoding, Held, Pixels, ahead
from trickbag.data.listing import Listing, Mode, Progress, Reader

if TYPE_CHECKING:
    from trickbag.data.listing import Encoded

log = logging.getLogger("trickbag.data")


class _TooLarge(Exception):
    pass


def hold(listing: Listing, mode: Mode, budget: float, cache: bool, progress: Progress | None) -> Held:
    """Decode a listing's images, or see that they are already decoded.

    Args:
        listing: the images.
        mode: color mode to convert to.
        budget: bytes of decoded images to hold at most; past that they are decoded each time.
        cache: keep decoded images, or what is known of them, on disk.
        progress: called while decoding.
    """
    channels = 1 if mode == "gray" else 3
    if listing.pixels is not None:
        pixels = _convert(listing.pixels, mode)
        sizes = np.tile(np.array(pixels.shape[1:3], dtype=np.int64), (len(pixels), 1))
        return Pixels(pixels.reshape(-1), sizes, channels)
    reader = listing.reader
    assert reader is not None
    import PIL

    key = combine((listing.content.encode(), mode.encode(), READER.encode(), PIL.__version__.encode()))
    if cache and (held := _cached(key, channels, budget)):
        return held
    surveyed = _surveyed(key) if cache else None
    too_large = surveyed is not None and _total(surveyed, channels) > budget
    if not too_large and _estimate(reader, channels) <= budget * 1.5:
        try:
            return _decode_all(key, reader, mode, budget, cache, progress)
        except _TooLarge:
            pass
    sizes = surveyed if surveyed is not None else _survey(key, reader, cache, progress)
    if cache and hasattr(reader, "at_random"):
        try:
            reader = reader.at_random(key)
        except OSError as error:
            log.info("cannot copy encoded images to the cache (%s); they are read into memory", error)
    return Decoding(reader, mode, sizes, channels)


def _cached(key: str, channels: int, budget: float) -> Pixels | None:
    folder = artifact(key, None)
    arrays = load_arrays(folder / "index.npz") if folder else None
    if folder is None or arrays is None or _total(arrays["sizes"], channels) > budget:
        return None
    return Pixels(folder / "pixels.npy", arrays["sizes"], channels)


def _decode_all(
    key: str, reader: Reader, mode: Mode, budget: float, cache: bool, progress: Progress | None
) -> Pixels:
    channels = 1 if mode == "gray" else 3
    if cache:
        try:
            folder = artifact(key, lambda folder: _write(folder, reader, mode, budget, progress))
            held = _cached(key, channels, budget) if folder else None
            if held is not None:
                return held
            raise _TooLarge
        except OSError as error:
            log.info("cannot keep decoded images on disk (%s); they are kept in memory", error)
    chunks: list[np.ndarray] = []
    sizes = [_size(image, chunks.append) for image in _decoded(reader, mode, budget, progress)]
    flat = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.uint8)
    return Pixels(flat, np.array(sizes, dtype=np.int64).reshape(-1, 2), channels)


def _write(folder: Path, reader: Reader, mode: Mode, budget: float, progress: Progress | None) -> None:
    def header(total: int) -> dict[str, Any]:
        return {"descr": "|u1", "fortran_order": False, "shape": (total,)}

    with (folder / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header(0))
        start = file.tell()
        sizes = [_size(image, file.write) for image in _decoded(reader, mode, budget, progress)]
        total = file.tell() - start
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header(total))
        if file.tell() != start:
            raise OSError("the header of pixels.npy does not fit")
    np.savez(folder / "index.npz", sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2))


def _size(image: np.ndarray | None, put: Callable[[Any], Any]) -> tuple[int, int]:
    if image is None:
        return 0, 0
    put(np.ascontiguousarray(image).reshape(-1))
    return image.shape[0], image.shape[1]


def _decoded(
    reader: Reader, mode: Mode, budget: float, progress: Progress | None
) -> Iterator[np.ndarray | None]:
    """Every image in order, None for an unreadable one."""
    total, count, done = 0, len(reader), 0

    def work(block: Sequence[Encoded]) -> list[np.ndarray | None]:
        return [_try(partial(decode, source, mode)) for source in block]

    with closing(ahead(work, _small(reader.blocks()), WORKERS, 2 * WORKERS)) as results:
        for images in results:
            for image in images:
                total += 0 if image is None else image.size
                if total > budget:
                    raise _TooLarge
                yield image
            done += len(images)
            if progress:
                progress("decode", done, count)


def _survey(key: str, reader: Reader, cache: bool, progress: Progress | None) -> np.ndarray:
    """Sizes of all images, after seeing that each can be read to its end."""
    sizes: list[tuple[int, int]] = []

    def work(block: Sequence[Encoded]) -> list[tuple[int, int]]:
        return [_try(partial(check, source)) or (0, 0) for source in block]

    with closing(ahead(work, _small(reader.blocks()), WORKERS, 2 * WORKERS)) as results:
        for found in results:
            sizes += found
            if progress:
                progress("check", len(sizes), len(reader))
    result = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    if cache:
        try:
            artifact(f"{key}-sizes", lambda folder: np.savez(folder / "index.npz", sizes=result))
        except OSError as error:
            log.info("cannot write the cache: %s", error)
    return result


def _surveyed(key: str) -> np.ndarray | None:
    folder = artifact(f"{key}-sizes", None)
    arrays = load_arrays(folder / "index.npz") if folder else None
    return None if arrays is None else arrays["sizes"]


def _small(blocks: Iterable[Sequence[Any]], size: int = 32) -> Iterator[Sequence[Any]]:
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]


def _try(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Unreadable:
        return None


def _total(sizes: np.ndarray, channels: int) -> int:
    return int(sizes.prod(axis=1).sum()) * channels


def _estimate(reader: Reader, channels: int) -> float:
    found = [_try(partial(header_size, source)) for source in reader.sample()]
    areas = [height * width for height, width in filter(None, found)]
    return float(np.mean(areas)) * channels * len(reader) if areas else 0.0


def _convert(pixels: np.ndarray, mode: Mode) -> np.ndarray:
    if pixels.shape[3] == (1 if mode == "gray" else 3):
        return np.ascontiguousarray(pixels)
    if mode == "rgb":
        return np.repeat(pixels, 3, axis=3)
    return np.stack([decode(image, "gray") for image in pixels])
