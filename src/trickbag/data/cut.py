"""Cutting the splits that a source does not bring: stratified by class, whole groups, by seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trickbag.data.base import SPLITS, DataSpec
from trickbag.data.decode import READER
from trickbag.data.hashing import combine
from trickbag.data.listing import SELECTION, TEST, TRAIN, Mode
from trickbag.errors import DataError
from trickbag.rng import Stream

CUTTER = "1"
"""Changes whenever the same seed cuts differently; part of every fingerprint."""
UNLABELED = "unlabeled"
"""Split of the images that ``train_size`` leaves out: their labels are unknown to everyone."""


@dataclass(frozen=True)
class Shares:
    """Share of the pool (the source's train split) that goes to each missing split."""

    selection: float
    test: float

    @classmethod
    def of(cls, spec: DataSpec, given: Sequence[int]) -> Shares:
        """Shares for a source with so many images in its own (train, selection, test).

        Raises:
            DataError: nothing would be left to train on.
        """
        selection = 0.0 if given[SELECTION] else spec.selection
        test = 0.0 if given[TEST] else spec.test
        if selection + test >= 1:
            raise DataError(
                f"selection {selection:g} and test {test:g} leave nothing to train on",
                expected="selection + test below 1",
            )
        return cls(selection, test)

    def identity(self, spec: DataSpec) -> str:
        """The part of a fingerprint that tells how the pool is cut."""
        if not (self.selection or self.test or spec.train_size):
            return "as given"
        seed, size = spec.split_seed, spec.train_size
        return f"{CUTTER} seed={seed} selection={self.selection!r} test={self.test!r} train_size={size}"


def assign(
    labels: np.ndarray, classes: Sequence[str], given: np.ndarray, groups: np.ndarray | None, spec: DataSpec
) -> np.ndarray:
    """The split of every image.

    Args:
        labels: ``(n,)`` int64.
        classes: class names, for messages.
        given: ``(n,)`` the split in which the source has each image.
        groups: ``(n,)`` int64 group of each image, or None.
        spec: shares, seed and size.

    Returns:
        ``(n,)`` int8: 0 train, 1 selection, 2 test, -1 left out by ``train_size``.

    Raises:
        DataError: there is too little to split, or the source's own splits tear a group apart.
    """
    given = given.astype(np.int8)
    shares = Shares.of(spec, np.bincount(given, minlength=3)[:3].tolist())
    result = given.copy()
    pool = np.flatnonzero(given == TRAIN)
    rng = Stream(spec.split_seed, "split").numpy()
    if groups is not None:
        _check_torn(given, groups)
    if shares.selection or shares.test:
        if groups is None:
            result[pool] = _by_image(labels[pool], len(classes), shares, rng)
        else:
            result[pool] = _by_group(labels[pool], groups[pool], len(classes), shares, rng)
    for split in (TRAIN, SELECTION, TEST):
        if not (result == split).any():
            units = "images" if groups is None else "groups"
            raise DataError(
                f"too few {units} ({len(pool) if groups is None else len(np.unique(groups[pool]))}) to cut a "
                f"{SPLITS[split]} split",
                fix="bring more images or larger shares, or make the splits yourself (train, val, test)",
            )
    train = np.flatnonzero(result == TRAIN)
    used = np.bincount(labels, minlength=len(classes)) > 0
    missing = np.flatnonzero(used & (np.bincount(labels[train], minlength=len(classes)) == 0))
    if len(missing):
        names = ", ".join(classes[c] for c in missing[:5])
        raise DataError(
            f"{len(missing)} of {len(classes)} classes have no training images: {names}",
            fix="bring images of these classes, or remove the classes",
        )
    if spec.train_size is not None:
        size = _train_size(spec, len(train), int(used.sum()))
        result[train[subset_order(labels[train], spec)[size:]]] = -1
    return result


def split_sizes(counts: Sequence[int], shares: Shares, spec: DataSpec) -> dict[str, int]:
    """Sizes of the splits cut from a pool with ``counts`` images a class, without groups."""
    take = _quotas(np.asarray(counts), shares)
    train = available = int(sum(counts) - take.sum())
    if spec.train_size is not None:
        train = _train_size(spec, train, len(counts))
    sizes = {"train": train, "selection": int(take[0].sum()), "test": int(take[1].sum())}
    return sizes | ({UNLABELED: available - train} if train < available else {})


def train_counts(counts: Sequence[int], shares: Shares, spec: DataSpec) -> tuple[int, ...]:
    """Training images by class of a pool with ``counts`` images a class; empty if only some are used."""
    if spec.train_size is not None:
        return ()
    left = np.asarray(counts) - _quotas(np.asarray(counts), shares).sum(axis=0)
    return tuple(left.tolist())


def subset_order(labels: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Positions such that the first k are a stratified subset for every k, one of each class first."""
    rng = Stream(spec.split_seed, "split").child("train_size").numpy()
    shuffled = rng.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
        place[members[0]] = -1
    order: np.ndarray = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order


def _train_size(spec: DataSpec, available: int, classes: int) -> int:
    assert spec.train_size is not None
    if not classes <= spec.train_size <= available:
        raise DataError(
            f"train_size is {spec.train_size}, of {available} training images in {classes} classes",
            expected=f"{classes} to {available}",
        )
    return spec.train_size


def _quotas(counts: np.ndarray, shares: Shares) -> np.ndarray:
    """``(2, classes)``: images of each class for selection and test; every class keeps one for train."""
    left = np.maximum(counts - 1, 0)
    quotas = np.zeros((2, len(counts)), dtype=np.int64)
    for row, share in ((1, shares.test), (0, shares.selection)):
        if share:
            quotas[row] = _largest_remainder(counts, share, left)
            left = left - quotas[row]
    return quotas


def _largest_remainder(counts: np.ndarray, share: float, limit: np.ndarray) -> np.ndarray:
    exact = counts * share
    quota: np.ndarray = np.minimum(np.floor(exact).astype(np.int64), limit)
    # A class of four or more is seen in every split, however small the share.
    quota = np.maximum(quota, np.where((counts >= 4) & (limit > 0), 1, 0))
    wanted = max(1, round(float(exact.sum()))) - int(quota.sum())
    open_ = np.flatnonzero(quota < limit)
    order = open_[np.argsort(-(exact - quota)[open_], kind="stable")]
    quota[order[: max(0, wanted)]] += 1
    return quota


def _by_image(labels: np.ndarray, classes: int, shares: Shares, rng: np.random.Generator) -> np.ndarray:
    quotas = _quotas(np.bincount(labels, minlength=classes), shares)
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[order], np.arange(classes))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[labels[order]]
    test = rank < quotas[1][labels]
    selection = ~test & (rank < (quotas[0] + quotas[1])[labels])
    split: np.ndarray = np.where(test, TEST, np.where(selection, SELECTION, TRAIN)).astype(np.int8)
    return split


def _by_group(
    labels: np.ndarray, groups: np.ndarray, classes: int, shares: Shares, rng: np.random.Generator
) -> np.ndarray:
    """Greedy: groups from large to small, each to the split that lacks its classes most."""
    unique, member = np.unique(groups, return_inverse=True)
    counts = np.zeros((len(unique), classes))
    np.add.at(counts, (member, labels), 1)
    total = np.maximum(counts.sum(axis=0), 1)
    weight = counts / total
    target = np.array([1 - shares.selection - shares.test, shares.selection, shares.test])
    shuffled = rng.permutation(len(unique))
    order = shuffled[np.argsort(-weight.max(axis=1)[shuffled], kind="stable")]
    filled = np.zeros((3, classes))
    place = np.empty(len(unique), dtype=np.int8)
    closed = target == 0
    for group in order:
        lack = ((target[:, None] - filled) * weight[group]).sum(axis=1)
        lack[closed] = -np.inf
        place[group] = choice = int(lack.argmax())
        filled[choice] += weight[group]
    for label in np.flatnonzero((counts[place == TRAIN].sum(axis=0) == 0) & (counts.sum(axis=0) > 0)):
        having = np.flatnonzero(counts[:, label])
        place[having[counts[having].sum(axis=1).argmin()]] = TRAIN
    result: np.ndarray = place[member]
    return result


def _check_torn(given: np.ndarray, groups: np.ndarray) -> None:
    first = np.full(groups.max() + 1, -1, dtype=np.int8)
    first[groups] = given
    torn = np.unique(groups[first[groups] != given])
    if len(torn):
        raise DataError(
            f"{len(torn)} groups straddle the splits that the data set itself brings",
            where="groups",
            fix="put all images into one train split and let trickbag cut it, or leave groups out",
        )


def fingerprint_of(
    content: str, shares: Shares, spec: DataSpec, mode: Mode, groups: np.ndarray | None
) -> str:
    """Hash of content, split and color mode, 32 hexadecimal digits."""
    grouped = b"" if groups is None else groups.astype(np.int64).tobytes()
    return combine(
        (content.encode(), shares.identity(spec).encode(), mode.encode(), READER.encode(), grouped)
    )
