"""Decoding all images of a data set once, or finding that they are decoded already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbag.data.base import DataSpec
from trickbag.data.cache import artifact, load_arrays
from trickbag.data.copies import check_room, must_make, vanished
from trickbag.data.decode import Unreadable, decode
from trickbag.data.holding import WORKERS, Decoding, Held, Pixels, ahead
from trickbag.data.listing import Listing, Mode, Progress
from trickbag.data.recoding import Recoding
from trickbag.data.rows import Blob
from trickbag.data.surveying import Source, survey, surveyed

if TYPE_CHECKING:
    from trickbag.data.listing import Encoded

log = logging.getLogger("trickbag.data")

SAMPLE = 50
"""Images that are encoded to tell how large a JPEG copy will be."""
TINY = 48 * 48
"""Pixels."""


class _TooLarge(Exception):
    pass


def hold(listing: Listing, mode: Mode, spec: DataSpec, budget: float, progress: Progress | None) -> Held:
    """Decode a listing's images, or see that they are already decoded.

    Args:
        listing: the images.
        mode: color mode to convert to.
        spec: what is done to them, and how they are kept.
        budget: bytes of decoded images to hold where ``keep`` is ``auto``; past that they are decoded each
            time.
        progress: called while decoding.

    Raises:
        DataError: a copy that ``keep`` asks for cannot be written.
    """
    if listing.pixels is not None and spec.as_found:
        pixels = _convert(listing.pixels, mode)
        sizes = np.tile(np.array(pixels.shape[1:3], dtype=np.int64), (len(pixels), 1))
        return Pixels(pixels.reshape(-1), sizes, pixels.shape[3])
    source = Source.of(listing, mode, Recoding.of(spec))
    if spec.keep == "raw":
        return _raw(source, progress)
    if spec.keep == "jpeg":
        return _jpeg(source, progress)
    if spec.keep == "auto" and (held := _decoded(source, budget, spec.cache, progress)):
        return held
    known = surveyed(source) if spec.cache else None
    sizes = survey(source, spec.cache, progress) if known is None else known
    reader, recoding = source.reader, source.recoding
    if spec.cache and hasattr(reader, "at_random"):
        try:
            reader = reader.at_random(source.original)
        except OSError as error:
            log.info("cannot copy encoded images to the cache (%s); they are read into memory", error)
    return Decoding(reader, mode, recoding.sizes(sizes), source.channels, recoding)


def artifact_key(source: Source, keep: str) -> str:
    """Name in the cache of the copy that ``keep`` (auto, raw or jpeg) makes."""
    return f"{source.key}-jpeg" if keep == "jpeg" else source.key


def _decoded(source: Source, budget: float, cache: bool, progress: Progress | None) -> Pixels | None:
    """All images decoded, on disk or in memory; None if they do not fit the budget."""
    if cache:
        if held := _cached(source, budget):
            return held
        sizes = surveyed(source)
        if sizes is not None and source.total(source.recoding.sizes(sizes)) > budget:
            return None
    if source.expected > budget * 1.5:
        return None
    try:
        if cache:
            try:
                artifact(source.key, lambda folder: _write(folder, source, budget, progress))
                return _cached(source, budget)
            except OSError as error:
                log.info("cannot keep decoded images on disk (%s); they are kept in memory", error)
        chunks: list[np.ndarray] = []
        sizes = _put_all(source, budget, progress, chunks.append)
    except _TooLarge:
        return None
    flat = np.concatenate([chunk.reshape(-1) for chunk in chunks]) if chunks else np.zeros(0, dtype=np.uint8)
    return Pixels(flat, sizes, source.channels)


def _cached(source: Source, budget: float) -> Pixels | None:
    folder = artifact(source.key, None)
    arrays = load_arrays(folder / "index.npz") if folder else None
    if folder is None or arrays is None or source.total(arrays["sizes"]) > budget:
        return None
    return Pixels(folder / "pixels.npy", arrays["sizes"], source.channels)


def _raw(source: Source, progress: Progress | None) -> Pixels:
    def build(folder: Path) -> None:
        check_room(
            folder, "decoded", source.expected, "take --keep jpeg or a smaller --short-side, or make room"
        )
        _write(folder, source, np.inf, progress)

    held = _cached(source, np.inf)
    if held is None:
        must_make(artifact_key(source, "raw"), build)
        held = _cached(source, np.inf)
    if held is None:
        raise vanished()
    return held


def _jpeg(source: Source, progress: Progress | None) -> Decoding:
    key = artifact_key(source, "jpeg")
    folder = artifact(key, None) or must_make(key, lambda folder: _write_jpeg(folder, source, progress))
    arrays = load_arrays(folder / "index.npz")
    if arrays is None:
        raise vanished()
    return Decoding(
        Blob(folder / "bytes.bin", arrays["starts"]), source.mode, arrays["sizes"], source.channels
    )


def _write(folder: Path, source: Source, budget: float, progress: Progress | None) -> None:
    def header(total: int) -> dict[str, Any]:
        return {"descr": "|u1", "fortran_order": False, "shape": (total,)}

    with (folder / "pixels.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header(0))
        start = file.tell()
        sizes = _put_all(source, budget, progress, file.write)
        total = file.tell() - start
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header(total))
        if file.tell() != start:
            raise OSError("the header of pixels.npy does not fit")
    np.savez(folder / "index.npz", sizes=sizes)


def _write_jpeg(folder: Path, source: Source, progress: Progress | None) -> None:
    check_room(
        folder, "encoded", _expected_jpeg(source), "take a smaller --short-side or --quality, or make room"
    )

    def work(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
        return image.shape[:2], source.recoding.encode(image)

    sizes, lengths = [], [0]
    with (folder / "bytes.bin").open("wb") as file:
        for size, data in (found or ((0, 0), b"") for found in _each(source, work, progress)):
            sizes.append(size)
            lengths.append(file.write(data))
    np.savez(
        folder / "index.npz",
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        starts=np.cumsum(lengths, dtype=np.int64),
    )


def _expected_jpeg(source: Source) -> float:
    sample = source.reader.sample()
    lengths = []
    for encoded in sample[:: max(1, len(sample) // SAMPLE)]:
        try:
            lengths.append(len(source.recoding.encode(source.recoding.pixels(decode(encoded, source.mode)))))
        except Unreadable:
            continue
    return float(np.mean(lengths)) * len(source.reader) if lengths else 0.0


def _put_all(
    source: Source, budget: float, progress: Progress | None, put: Callable[[Any], Any]
) -> np.ndarray:
    """Hand over every image; sizes ``(n, 2)``, zero for unreadable ones."""
    total, sizes = 0, []
    for image in _each(source, np.ascontiguousarray, progress):
        if image is None:
            sizes.append((0, 0))
            continue
        total += image.size
        if total > budget:
            raise _TooLarge
        put(image)
        sizes.append(image.shape[:2])
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _each(source: Source, finish: Callable[[np.ndarray], Any], progress: Progress | None) -> Iterator[Any]:
    """What ``finish`` makes of every image, in order; None for an unreadable one. Works in threads."""
    done, count, mode, change = 0, len(source.reader), source.mode, source.recoding.pixels

    def work(block: Sequence[Encoded]) -> list[Any]:
        found: list[Any] = []
        for encoded in block:
            try:
                found.append(finish(change(decode(encoded, mode))))
            except Unreadable:
                found.append(None)
        return found

    # Threads that decode tiny images spend their time passing the interpreter's lock around.
    workers = WORKERS if source.area > TINY else 1
    with closing(ahead(work, source.blocks(), workers, 2 * workers)) as results:
        for found in results:
            yield from found
            done += len(found)
            if progress:
                progress("decode", done, count)


def _convert(pixels: np.ndarray, mode: Mode) -> np.ndarray:
    if pixels.shape[3] == (1 if mode == "gray" else 3):
        return np.ascontiguousarray(pixels)
    if mode == "rgb":
        return np.repeat(pixels, 3, axis=3)
    return np.stack([decode(image, "gray") for image in pixels])
