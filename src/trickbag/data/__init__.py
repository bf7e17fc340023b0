"""Where images come from: one call reads, splits, decodes once and serves batches of uint8 images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trickbag.data.base import SPLITS, DataFacts, DataSet, DataSpec, Request, Split

if TYPE_CHECKING:
    from trickbag.data.listing import Progress

__all__ = [
    "SPLITS",
    "DataFacts",
    "DataSet",
    "DataSpec",
    "Request",
    "Split",
    "describe",
    "facts",
    "load",
    "spec",
]


def spec(text: str, **options: Any) -> DataSpec:
    """Read the command line's DATA argument.

    Args:
        text: ``digits``, a folder, a Parquet file or a folder with them, ``torchvision:NAME``, or a
            ``.yaml`` file with fields of DataSpec (relative paths in it are relative to the file).
        options: fields of DataSpec that win over the file's; None means not given.

    Raises:
        DataError: no such data, or an invalid field, with file, line and nearest name.
    """
    from trickbag.data.arguments import read_spec

    return read_spec(text, options)


def facts(spec: DataSpec) -> DataFacts:
    """Facts of a data set without decoding its images.

    ``mean``, ``std`` and ``bad`` are filled in only if the data set has been loaded before; the
    fingerprint is the one that :func:`load` gives.

    Raises:
        DataError: the data set cannot be read or split.
    """
    if spec.source == "digits" and spec.groups is None and spec.as_found:
        from trickbag.data.digits import digits_facts

        return digits_facts(spec)
    from trickbag.data.loading import facts_of

    return facts_of(spec)


def load(spec: DataSpec, progress: Progress | None = None) -> DataSet:
    """Read a data set: find images and labels, split, decode (once; later loads use the cache).

    Args:
        spec: which images, how to read and how to split them.
        progress: called as ``progress(what, done, total)`` while files are hashed and decoded.

    Raises:
        DataError: the data set cannot be read, split or decoded.
    """
    from trickbag.data.loading import load_set

    return load_set(spec, progress)


def describe(data: DataSet) -> str:
    """One line for people: sizes of the splits, how the images are held, unreadable files."""
    from trickbag.data.loading import describe_set

    return describe_set(data)
