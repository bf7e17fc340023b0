"""From a spec to a data set: list, cut, decode, sum up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from trickbag.data.base import SPLITS, DataFacts, DataSet, DataSpec
from trickbag.data.cache import cache_folder, load_json, save_json
from trickbag.data.cut import UNLABELED, Shares, assign, fingerprint_of
from trickbag.data.decode import Unreadable, header_size, quiet
from trickbag.data.filling import hold
from trickbag.data.grouping import groups_of
from trickbag.data.holding import WORKERS, Held, Pixels, ahead
from trickbag.data.listing import Listing, Mode, Progress
from trickbag.data.recoding import Recoding
from trickbag.data.serving import ImageSplit
from trickbag.errors import DataError

SAMPLE = 2000
"""Training images over which mean and standard deviation are taken."""


def load_set(spec: DataSpec, progress: Progress | None = None) -> DataSet:
    """See :func:`trickbag.data.load`."""
    quiet()
    return load_listed(spec, *list_and_cut(spec, progress), progress)


def load_listed(
    spec: DataSpec,
    listing: Listing,
    mode: Mode,
    place: np.ndarray,
    facts: DataFacts,
    progress: Progress | None = None,
) -> DataSet:
    """A data set from what :func:`list_and_cut` found.

    Raises:
        DataError: too many images are unreadable, or a copy cannot be written.
    """
    images = hold(listing, mode, spec, budget_of(spec), progress)
    readable = images.sizes[:, 0] > 0
    bad = tuple(listing.names[i] for i in np.flatnonzero(~readable))
    _check_bad(bad, listing, spec)
    known = _remembered(facts.fingerprint, place)
    splits: dict[str, ImageSplit] = {}
    for number, split in (*enumerate(SPLITS), (-1, UNLABELED)):
        rows = np.flatnonzero(readable & (place == number))
        labels = listing.labels[rows]
        if split == UNLABELED:
            if not len(rows):
                continue
            labels = np.full_like(labels, -1)
        elif not len(rows):
            raise DataError(f"every image of the {split} split is unreadable", fix="replace the files")
        names = tuple(listing.names[i] for i in rows)
        splits[split] = ImageSplit(images, rows, labels, names, images.sizes[rows])
    if known is None or not known.mean or not known.counts or known.bad != bad:
        mean, std = statistics(images, splits["train"].rows)
        sizes = {name: len(split) for name, split in splits.items()}
        counts = tuple(np.bincount(splits["train"].labels, minlength=facts.num_classes).tolist())
        known = dataclasses.replace(facts, sizes=sizes, mean=mean, std=std, counts=counts, bad=bad)
        if spec.cache:
            save_json(_memory(facts.fingerprint), dataclasses.asdict(known))
    facts = dataclasses.replace(known, name=facts.name, sizes=MappingProxyType(dict(known.sizes)))
    return DataSet(spec, facts, splits)


def budget_of(spec: DataSpec) -> float:
    """Bytes of decoded images that may stay in memory."""
    import psutil

    return float(spec.memory_share * psutil.virtual_memory().total)


def facts_of(spec: DataSpec) -> DataFacts:
    """See :func:`trickbag.data.facts`."""
    quiet()
    return list_and_cut(spec, None)[3]


def describe_set(data: DataSet) -> str:
    """See :func:`trickbag.data.describe`."""
    facts, spec = data.facts, data.spec
    held = {
        "resident": "in memory",
        "cached": "decoded once, cached on disk",
        "decoding": {
            "jpeg": f"decoded each time from a JPEG copy of quality {spec.quality}",
            "encoded": "decoded each time",
        }.get(spec.keep, "decoded each time (too large for memory)"),
    }[getattr(data.splits["train"], "held", "resident")]
    if spec.short_side is not None:
        held = f"short side at most {spec.short_side}, {held}"
    sizes = ", ".join(f"{name} {facts.sizes[name]:,}" for name in (*SPLITS, UNLABELED) if name in facts.sizes)
    height, width = facts.image_size
    text = f"{facts.name}: {facts.num_classes} classes, about {height} x {width} pixels; {sizes}; {held}"
    return text + (f"; {len(facts.bad)} unreadable images left out" if facts.bad else "")


def statistics(images: Held, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel, 0 to 1, over up to 2,000 evenly spaced images.

    Every image counts alike, whatever its size; of large ones every k-th row and column is taken.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(np.int64)]
    if isinstance(images, Pixels) and images.uniform and images.sizes.max() <= 64:
        stack, slots = images.stack(chosen)
        values = stack[slots].astype(np.float64) / 255
        mean, square = values.mean(axis=(0, 1, 2)), (values**2).mean(axis=(0, 1, 2))
    else:

        def moments(row: int) -> np.ndarray:
            image = images.image(row)
            step = max(1, min(image.shape[:2]) // 128)
            values = image[::step, ::step].astype(np.float32) / 255
            return np.stack([values.mean(axis=(0, 1)), (values**2).mean(axis=(0, 1))]).astype(np.float64)

        found = list(ahead(moments, chosen.tolist(), WORKERS, 4 * WORKERS))
        mean, square = np.mean(found, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(round(float(v), 6) for v in mean), tuple(round(float(v), 6) for v in std)


def list_and_cut(spec: DataSpec, progress: Progress | None) -> tuple[Listing, Mode, np.ndarray, DataFacts]:
    """What there is before anything is decoded.

    Returns:
        The listing, the color mode, ``(n,)`` the split of every image (-1 for none), and facts; of data
        that has not been loaded before without mean, std and unreadable images.

    Raises:
        DataError: the data set cannot be read or split.
    """
    listing = _list(spec, progress)
    mode: Mode = spec.mode or listing.mode
    groups = groups_of(listing, spec.groups)
    shares = Shares.of(spec, listing.counts)
    place = assign(listing.labels, listing.classes, listing.given, groups, spec)
    content = Recoding.of(spec).mark(listing.content)
    fingerprint = fingerprint_of(content, shares, spec, mode, groups)
    known = _remembered(fingerprint, place)
    if known is not None:
        return listing, mode, place, dataclasses.replace(known, name=listing.name)
    facts = DataFacts(
        name=listing.name,
        classes=listing.classes,
        channels=1 if mode == "gray" else 3,
        sizes=_sizes(place),
        image_size=_typical_size(listing, spec),
        fingerprint=fingerprint,
        counts=tuple(np.bincount(listing.labels[place == 0], minlength=len(listing.classes)).tolist()),
    )
    return listing, mode, place, facts


def _sizes(place: np.ndarray) -> dict[str, int]:
    sizes = {split: int((place == number).sum()) for number, split in enumerate(SPLITS)}
    left_out = int((place == -1).sum())
    return sizes | ({UNLABELED: left_out} if left_out else {})


def _list(spec: DataSpec, progress: Progress | None) -> Listing:
    if spec.source == "digits":
        from trickbag.data.digits import list_digits

        return list_digits()
    prefix, colon, name = spec.source.partition(":")
    if colon and prefix.lower() == "torchvision":
        from trickbag.data.vision import list_vision

        return list_vision(name, progress)
    source = Path(spec.source).expanduser()
    if not source.exists():
        raise DataError(
            f"there is no {spec.source}", expected="a folder or a Parquet file", fix="check the path"
        )
    if source.is_file() or _has_tables(source):
        from trickbag.data.table import list_table

        return list_table(source, spec, progress)
    from trickbag.data.folder import list_folder

    return list_folder(source, spec, progress)


def _has_tables(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet", "*/*/*.parquet"))


def _typical_size(listing: Listing, spec: DataSpec) -> tuple[int, int]:
    sizes = [] if listing.pixels is None else [listing.pixels.shape[1:3]]
    for source in listing.reader.sample() if listing.reader is not None else ():
        try:
            sizes.append(header_size(source))
        except Unreadable:
            continue
    if not sizes:
        raise DataError(
            f"none of the images of {listing.name} can be read", fix="check that the files are images"
        )
    height, width = np.median(Recoding.of(spec).sizes(np.array(sizes, dtype=np.int64)), axis=0)
    return round(float(height)), round(float(width))


def _check_bad(names: tuple[str, ...], listing: Listing, spec: DataSpec) -> None:
    total = len(listing)
    if len(names) <= spec.max_bad * total:
        return
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(
        f"{len(names)} of {total} images of {listing.name} cannot be read: {some}",
        expected=f"at most {spec.max_bad:.3g} of them (max_bad)",
        fix="replace or remove the files, or raise max_bad",
    )


def _memory(fingerprint: str) -> Path:
    return cache_folder() / "facts" / f"{fingerprint}.json"


def _remembered(fingerprint: str, place: np.ndarray) -> DataFacts | None:
    known: Any = load_json(_memory(fingerprint))
    if not isinstance(known, Mapping):
        return None
    try:
        facts = DataFacts.of(known)
    except TypeError:
        return None
    # What was written before there was a split of unlabeled images does not count it.
    counted = UNLABELED in facts.sizes or UNLABELED not in _sizes(place)
    return facts if facts.fingerprint == fingerprint and counted else None
