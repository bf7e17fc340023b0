"""Making a copy of the images that is quick to read, ahead of training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from trickbag.data.base import DataSet, DataSpec
from trickbag.data.cache import artifact, cache_folder, state
from trickbag.data.copies import amount
from trickbag.data.decode import quiet
from trickbag.data.filling import artifact_key
from trickbag.data.listing import Progress
from trickbag.data.loading import budget_of, list_and_cut, load_listed
from trickbag.data.recoding import Recoding
from trickbag.data.surveying import Source
from trickbag.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """A copy of a data set's images in the cache.

    Attributes:
        data: the data set, read from the copy.
        path: folder of the copy.
        images: images in it.
        bytes: its size on disk.
        seconds: what it took to make it, or to find it.
        found: ``absent`` if it had to be made, ``damaged`` if it had to be made again, ``sound`` if it was
            there.
    """

    data: DataSet
    path: Path
    images: int
    bytes: int
    seconds: float
    found: str

    @property
    def images_per_second(self) -> float:
        """How fast it was made."""
        return self.images / max(self.seconds, 1e-9)


def prepare(spec: DataSpec, progress: Progress | None = None) -> Prepared:
    """Make the copy that ``spec.keep`` asks for; loading with the same spec then finds it.

    ``auto`` makes what loading would make: decoded images, if they fit the memory share.

    Raises:
        DataError: there is nothing to prepare, the data cannot be read, or the copy cannot be written.
    """
    quiet()
    if spec.keep == "encoded" or not spec.cache:
        reason = "keep is encoded" if spec.keep == "encoded" else "cache is false"
        raise DataError(f"there is nothing to prepare: {reason}", expected="keep raw or jpeg, and the cache")
    listing, mode, place, facts = list_and_cut(spec, progress)
    if listing.pixels is not None and spec.as_found:
        raise DataError(
            f"there is nothing to prepare: {listing.name} is in memory as pixels", fix="train on it as it is"
        )
    source = Source.of(listing, mode, Recoding.of(spec))
    key = artifact_key(source, spec.keep)
    found = state(key)
    if spec.keep == "auto" and source.expected > 1.5 * budget_of(spec):
        raise _too_large(source)
    start = time.perf_counter()
    data = load_listed(spec, listing, mode, place, facts, progress)
    seconds = time.perf_counter() - start
    held, path = getattr(data.splits["train"], "held", ""), artifact(key, None)
    if spec.keep == "auto" and held == "decoding":
        raise _too_large(source)
    if path is None:
        raise DataError("the copy cannot be kept", where=str(cache_folder()), fix="set TRICKBAG_CACHE")
    size = sum(file.stat().st_size for file in path.iterdir())
    return Prepared(data, path, len(listing) - len(data.facts.bad), size, seconds, found)


def _too_large(source: Source) -> DataError:
    return DataError(
        f"decoded images would be about {amount(source.expected)}: too much for the memory share",
        expected="a way to keep them",
        fix="--keep raw (that much on disk), --keep jpeg (less), or a smaller --short-side",
    )
