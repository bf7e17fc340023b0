"""Splits: stratified, by seed alone, whole groups, nested subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from trickbag.data.base import DataSpec
from trickbag.data.cut import Shares, assign, split_sizes
from trickbag.data.grouping import match, read_groups
from trickbag.errors import DataError


def cut(labels, groups=None, given_=None, **options):
    labels = np.asarray(labels, dtype=np.int64)
    given_ = np.zeros(len(labels), dtype=np.int8) if given_ is None else np.asarray(given_, dtype=np.int8)
    classes = [f"c{i}" for i in range(labels.max() + 1)]
    return assign(labels, classes, given_, groups, DataSpec(source="x", **options))


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    seed=st.integers(0, 99),
    selection=st.floats(0.05, 0.4),
    test=st.floats(0.05, 0.4),
)
def test_stratified(counts, seed, selection, test):
    if sum(counts) < 12:
        counts = [*counts, 12]
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    options = {"split_seed": seed, "selection": selection, "test": test}
    place = cut(labels, **options)
    np.testing.assert_array_equal(place, cut(labels, **options))
    by_class = np.array([np.bincount(labels[place == s], minlength=len(counts)) for s in range(3)])
    assert (by_class[0] > 0).all()
    for number, share in ((1, selection), (2, test)):
        assert np.abs(by_class[number] - share * np.array(counts)).max() <= 1.5
        assert (by_class[number][np.array(counts) >= 4] > 0).all()
    sizes = dict(zip(("train", "selection", "test"), by_class.sum(axis=1).tolist(), strict=True))
    spec = DataSpec(source="x", **options)
    assert split_sizes(counts, Shares.of(spec, (sum(counts), 0, 0)), spec) == sizes


def test_seed_changes_the_split_and_nothing_else_does():
    labels = np.repeat(np.arange(4), 50)
    first = cut(labels)
    state = np.random.get_state()[1].tolist()
    np.random.seed(5)
    np.testing.assert_array_equal(first, cut(labels))
    assert state is not None
    assert (first != cut(labels, split_seed=1)).any()
    # The test split stays when the selection split grows.
    np.testing.assert_array_equal(first == 2, cut(labels, selection=0.3) == 2)


def test_the_splits_that_the_source_brings_stay():
    given_ = np.repeat([0, 1, 2], [60, 20, 20])
    labels = np.arange(100) % 2
    np.testing.assert_array_equal(cut(labels, given_=given_), given_)
    place = cut(labels, given_=np.repeat([0, 2], [80, 20]), selection=0.25)
    assert (place[80:] == 2).all()
    assert (place == 1).sum() == 20


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), groups=st.integers(30, 120), classes=st.integers(2, 5))
def test_groups_never_straddle(seed, groups, classes):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, groups)
    of_group = np.concatenate([np.arange(classes), rng.integers(0, classes, groups - classes)])
    member = np.repeat(np.arange(groups), sizes)
    labels = of_group[member]
    shuffle = rng.permutation(len(labels))
    member, labels = member[shuffle], labels[shuffle]
    place = cut(labels, member)
    assert all(len(np.unique(place[member == g])) == 1 for g in range(groups))
    assert abs((place == 2).mean() - 0.2) < 0.1
    assert abs((place == 1).mean() - 0.15) < 0.1
    assert set(labels[place == 0]) == set(labels)


def test_grouped_split_is_about_stratified():
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(400), 3)
    labels = rng.choice(4, 400, p=[0.7, 0.2, 0.06, 0.04])[member]
    place = cut(labels, member)
    for split, share in ((1, 0.15), (2, 0.2)):
        shares = np.bincount(labels[place == split], minlength=4) / np.bincount(labels)
        assert np.abs(shares - share).max() < 0.06
    assert mutual_info_score(labels, place) < 0.001


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(4, 100), min_size=2, max_size=4))
def test_train_size_is_nested_and_stratified(seed, sizes):
    labels = np.repeat(np.arange(4), [100, 50, 30, 20])
    full = cut(labels, split_seed=seed)
    kept = []
    for size in sorted(sizes):
        place = cut(labels, split_seed=seed, train_size=size)
        assert (place == 0).sum() == size
        np.testing.assert_array_equal(place == 1, full == 1)
        np.testing.assert_array_equal(place == 2, full == 2)
        assert (full[place == 0] == 0).all()
        have = np.bincount(labels[place == 0], minlength=4)
        expected = size * np.bincount(labels[full == 0]) / (full == 0).sum()
        assert (have >= 1).all()
        assert np.abs(have - expected).max() <= 3
        kept.append(set(np.flatnonzero(place == 0)))
    assert all(small <= large for small, large in itertools.pairwise(kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 3}, "train_size is 3"),
        ({"train_size": 500}, "train_size is 500"),
        ({"selection": 0.5, "test": 0.5}, "nothing to train on"),
    ],
)
def test_says_what_is_wrong(options, message):
    with pytest.raises(DataError, match=message):
        cut(np.repeat(np.arange(4), 50), **options)


def test_too_little_to_split():
    with pytest.raises(DataError, match="too few images"):
        cut([0, 1])
    with pytest.raises(DataError, match=r"too few groups \(2\)"):
        cut([0, 1] * 20, np.repeat([0, 1], 20))
    with pytest.raises(DataError, match="1 of 3 classes have no training images: c2"):
        cut([0] * 20 + [1] * 20 + [2], given_=[0] * 40 + [2])
    assert (cut([0] * 30 + [1]) == 0)[30], "a class of one image is trained on"


def test_groups_torn_by_the_source():
    with pytest.raises(DataError, match="1 groups straddle"):
        cut([0, 1] * 20, np.arange(40) // 2 % 19, given_=[0] * 39 + [2])


def test_csv_headers(tmp_path):
    path = tmp_path / "g.csv"
    for header in ("path,group", "file,class,group", "Image,Patient_ID", "path,lesion", "who,group"):
        width = header.count(",") + 1
        row = ["a/1.png", "7"] if width == 2 else ["a/1.png", "c", "7"]
        row = row[::-1] if header == "group,who" else row
        path.write_text(f"\ufeff{header}\n{','.join(row)}\n")
        assert read_groups(path) == {"a/1.png": "7"}, header
    path.write_text("group,path\n7,.\\a\\1.png\n")
    assert read_groups(path) == {"a\\1.png".replace("\\", "/"): "7"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a,b\n1,2\n", "cannot tell the columns apart: a, b"),
        ("path,group\nx.png,1\nx.png,2\n", r"g\.csv:3: x\.png is in group 1 and in group 2"),
        ("path,group\nx.png\n", r"g\.csv:2: the row is too short"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    path = tmp_path / "g.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_groups(path)


def test_matching_names():
    names = ["train/a/1.jpg", "train/a/2.jpg", "b/1.jpg", "b/3.jpg"]
    assert match(names, {n: n[0] for n in names}) == ["t", "t", "b", "b"]
    assert match(names, {"train/a/2.jpg": "x", "3.jpg": "y", "1.jpg": "z"}) == [None, "x", None, "y"]
    assert match(names, {"2": "x", "other/3.png": "y"}) == [None, "x", None, "y"]
