"""Real images, read the way a user would."""

import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_helpers import shared
from trickbag import data
from trickbag.data import Request
from trickbag.data.grouping import read_groups


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRICKBAG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def epoch(split, size, boxes=None):
    order = np.random.default_rng(0).permutation(len(split))
    parts = [order[i : i + 256] for i in range(0, len(order), 256)]
    start = time.perf_counter()
    count = sum(len(b) for b in split.batches(Request(p, None, size, "bilinear") for p in parts))
    assert count == len(split)
    return time.perf_counter() - start


def test_cifar10(record_property):
    spec = data.spec(str(shared("cifar10-jpeg")))
    loaded = data.load(spec)
    assert dict(loaded.facts.sizes) == {"train": 42_500, "selection": 7_500, "test": 10_000}
    assert loaded.facts.classes[:2] == ("airplane", "automobile")
    assert loaded.facts.image_size == (32, 32)
    assert loaded.facts.mean == pytest.approx([0.491, 0.482, 0.447], abs=0.01)
    assert loaded.facts.std == pytest.approx([0.247, 0.243, 0.262], abs=0.01)
    assert np.bincount(loaded.splits["selection"].labels).tolist() == [750] * 10
    test = loaded.splits["test"]
    column = pq.read_table(shared("cifar10-jpeg") / "test.parquet", columns=["label"]).column(0)
    np.testing.assert_array_equal(test.labels, column.to_numpy())
    assert all(loaded.facts.classes[y] in name for name, y in zip(test.names, test.labels, strict=True))
    start = time.perf_counter()
    again = data.load(spec)
    warm = time.perf_counter() - start
    record_property("warm load, seconds", warm)
    assert again.facts == loaded.facts
    assert warm < 3
    assert epoch(loaded.splits["train"], 32) < 5


def test_sign_digits():
    loaded = data.load(data.spec(str(shared("sign-digits"))))
    assert loaded.facts.classes == tuple("0123456789")
    assert loaded.facts.image_size == (100, 100)
    assert sum(loaded.facts.sizes.values()) == 2062
    assert not loaded.facts.bad
    assert max(split.sizes.max() for split in loaded.splits.values()) > 1000
    epoch(loaded.splits["test"], 64)


def test_magnetic_tiles_by_group():
    root = shared("magnetic-tile")
    table = root / "tile_groups.csv"
    loaded = data.load(data.spec(str(root), pattern="*.jpg", groups=str(table), mode="gray"))
    assert sum(loaded.facts.sizes.values()) == 1344
    assert loaded.facts.num_classes == 6
    groups = read_groups(table)
    parts = [{groups[name] for name in split.names} for split in loaded.splits.values()]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    counts = np.array([np.bincount(split.labels, minlength=6) for split in loaded.splits.values()])
    shares = counts / counts.sum(axis=0)
    assert np.abs(shares - np.array([[0.65], [0.15], [0.2]])).max() < 0.05
    epoch(loaded.splits["test"], 64)


def test_dogs_and_cats():
    loaded = data.load(data.spec(str(shared("dogs-cats")), pattern="*[02468].jpg", train_size=100))
    assert loaded.facts.sizes["train"] == 100
    assert loaded.facts.classes == ("cat", "dog")
    epoch(loaded.splits["train"], 96)
