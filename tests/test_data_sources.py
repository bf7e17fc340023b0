"""Where images come from: digits, folders, Parquet files, torchvision sets, data files."""

import gzip
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_helpers import encoded, fill, picture
from trickbag import data
from trickbag.data import Request
from trickbag.data.digits import CONTENT, COUNTS, list_digits
from trickbag.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRICKBAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRICKBAG_DATA", raising=False)


def images(split, size):
    (batch,) = split.batches([Request(np.arange(len(split)), None, size, "bilinear")])
    return batch.numpy()


def parquet(path, rows, label="label", names=None, image="image", plain=False, **columns):
    """Write (png bytes, path, label) rows the way the hub does."""
    cells = [b for b, _, _ in rows] if plain else [{"bytes": b, "path": p} for b, p, _ in rows]
    table = pa.table({image: cells, label: [y for _, _, y in rows]} | columns)
    if names:
        features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)


def rows(count, start=0, labels=(0, 1)):
    return [(encoded(picture(start + i)), f"{start + i}.png", labels[i % len(labels)]) for i in range(count)]


# digits


def test_digits():
    from sklearn.datasets import load_digits

    loaded = data.load(data.spec("digits"))
    assert loaded.facts.classes == tuple("0123456789")
    assert loaded.facts.channels == 1
    assert sum(len(s) for s in loaded.splits.values()) == 1797
    source = load_digits()
    for split in loaded.splits.values():
        at = [int(name) for name in split.names]
        np.testing.assert_array_equal(split.labels, source.target[at])
        np.testing.assert_array_equal(images(split, 8)[:, 0], np.round(source.images[at] / 16 * 255))
    train = images(loaded.splits["train"], 8) / 255
    assert loaded.facts.mean == pytest.approx([train.mean()], abs=1e-5)
    assert loaded.facts.std == pytest.approx([train.std()], abs=1e-5)


def test_facts_of_digits_are_those_of_the_loaded_set():
    listing = list_digits()
    assert listing.content == CONTENT
    assert tuple(np.bincount(listing.labels)) == COUNTS
    for options in ({}, {"split_seed": 3, "train_size": 100}, {"mode": "rgb", "test": 0.3}):
        spec = data.spec("digits", **options)
        quick, full = data.facts(spec), data.load(spec).facts
        for name in ("name", "classes", "channels", "image_size", "fingerprint"):
            assert getattr(quick, name) == getattr(full, name)
        assert dict(quick.sizes) == dict(full.sizes)


def test_facts_of_digits_import_nothing_heavy():
    code = (
        "import sys; from trickbag import data; data.facts(data.spec('digits'));"
        "print([m for m in ('torch', 'sklearn', 'pyarrow', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fingerprints_tell_splits_and_modes_apart():
    options = [{}, {"split_seed": 1}, {"selection": 0.2}, {"test": 0.3}, {"train_size": 50}, {"mode": "rgb"}]
    assert len({data.facts(data.spec("digits", **o)).fingerprint for o in options}) == len(options)


# folders


def test_folder_without_splits(tmp_path):
    fill(tmp_path / "set", {"cat": 30, "dog": 20})
    spec = data.spec(str(tmp_path / "set"))
    quick, loaded = data.facts(spec), data.load(spec)
    assert quick.fingerprint == loaded.facts.fingerprint
    assert dict(quick.sizes) == dict(loaded.facts.sizes)
    assert loaded.facts.classes == ("cat", "dog")
    assert loaded.facts.image_size == (12, 10)
    assert dict(loaded.facts.sizes) == {"train": 32, "selection": 8, "test": 10}
    names = [name for split in loaded.splits.values() for name in split.names]
    assert len(names) == len(set(names)) == 50
    for split in loaded.splits.values():
        assert list(split.names) == sorted(split.names)
        assert [name[:3] for name in split.names] == [("cat", "dog")[y] for y in split.labels]
    assert data.facts(spec).mean == loaded.facts.mean


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "selection"])
def test_folder_with_splits(tmp_path, name):
    root = tmp_path / "set"
    for number, split in enumerate(("train", name, "test")):
        fill(root / split, {"a": 4, "b": 5}, start=10_000 * number)
    loaded = data.load(data.spec(str(root)))
    assert dict(loaded.facts.sizes) == {"train": 9, "selection": 9, "test": 9}
    assert all(n.startswith(f"{name}/") for n in loaded.splits["selection"].names)
    shutil_test = data.load(data.spec(str(root), split_seed=4))
    assert shutil_test.facts.fingerprint == loaded.facts.fingerprint, "there was nothing to cut"


def test_selection_is_cut_from_train_and_never_from_test(tmp_path):
    root = tmp_path / "set"
    fill(root / "train", {"a": 20, "b": 20})
    fill(root / "test", {"a": 5, "b": 5}, start=10_000)
    loaded = data.load(data.spec(str(root)))
    assert dict(loaded.facts.sizes) == {"train": 34, "selection": 6, "test": 10}
    assert all(n.startswith("test/") for n in loaded.splits["test"].names)


def test_class_folders_called_train_are_classes(tmp_path):
    fill(tmp_path / "set", {"train": 10, "car": 10})
    assert data.facts(data.spec(str(tmp_path / "set"))).classes == ("car", "train")


def test_suffixes_patterns_and_hidden_files(tmp_path):
    root = tmp_path / "set"
    fill(root, {"a/deep/er": 8, "b": 8})
    for label in "ab":
        (root / label / "X.JPG").write_bytes(encoded(picture(1), "JPEG"))
        (root / label / "notes.txt").write_text("no image")
        (root / label / ".hidden.png").write_text("no image")
    (root / ".git").mkdir()
    loaded = data.load(data.spec(str(root)))
    assert sum(loaded.facts.sizes.values()) == 18
    assert sum(data.facts(data.spec(str(root), pattern="*.png")).sizes.values()) == 16


def test_pattern_for_images_with_masks(tmp_path, caplog):
    root = tmp_path / "set"
    fill(root, {"a": 6, "b": 6})
    for path in list(root.rglob("*.png")):
        path.with_suffix(".jpg").write_bytes(encoded(picture(1), "JPEG"))
    assert sum(data.facts(data.spec(str(root), pattern="*.jpg")).sizes.values()) == 12
    assert "pattern" not in caplog.text
    data.facts(data.spec(str(root)))
    assert "12 pairs of images differ in their suffix only" in caplog.text


def test_content_is_what_identifies_a_folder(tmp_path):
    for name in ("one", "two"):
        fill(tmp_path / name, {"a": 8, "b": 8})
    facts = [data.facts(data.spec(str(tmp_path / n))) for n in ("one", "two")]
    assert facts[0].fingerprint == facts[1].fingerprint
    victim = next((tmp_path / "two" / "a").iterdir())
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    assert data.facts(data.spec(str(tmp_path / "two"))).fingerprint != facts[0].fingerprint


@pytest.mark.parametrize(
    ("counts", "extra", "message"),
    [
        ({}, (), "holds no images"),
        ({"a": 9}, (), "has one class only: a"),
        ({"a": 9, "b": 9, "c": 0}, (), "1 class folders hold no images"),
        ({".": 5}, (), "holds 5 images, but no class folders"),
        ({"train": 5, "test": 5}, (), "holds no class folders"),
        ({"val/a": 5, "test/a": 5}, (), "but no train folder"),
        (
            {"train/a": 5, "train/b": 5, "test/a": 5, "test/B": 5},
            (),
            "classes that train lacks: B(.|\n)*did you mean b",
        ),
        ({"train/a": 5, "train/b": 5, "val/a": 5, "valid/a": 5}, (), "both val and valid"),
    ],
)
def test_folders_that_are_no_image_folders(tmp_path, counts, extra, message):
    root = tmp_path / "set"
    root.mkdir()
    fill(root, counts)
    with pytest.raises(DataError, match=message):
        data.load(data.spec(str(root)))


# unreadable files


def test_unreadable_files_are_left_out_and_named(tmp_path):
    root = tmp_path / "set"
    fill(root, {"a": 50, "b": 50})
    (root / "a" / "broken.png").write_bytes(encoded(picture(1, 40, 40))[:300])
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    loaded = data.load(data.spec(str(root), max_bad=0.05))
    assert loaded.facts.bad == ("a/broken.png", "b/gone.png")
    assert sum(loaded.facts.sizes.values()) == 100
    assert not {n for s in loaded.splits.values() for n in s.names} & set(loaded.facts.bad)
    assert "2 unreadable images left out" in data.describe(loaded)
    for split in loaded.splits.values():
        assert images(split, 8).shape == (len(split), 3, 8, 8)
    with pytest.raises(DataError, match=r"2 of 102 images of set cannot be read: a/broken.png, b/gone.png"):
        data.load(data.spec(str(root)))


# Parquet


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_folder(tmp_path, plain):
    root = tmp_path / "set"
    parquet(root / "data/train-00000-of-00002.parquet", rows(30), names=["no", "yes"], plain=plain)
    parquet(root / "data/train-00001-of-00002.parquet", rows(10, 100), names=["no", "yes"], plain=plain)
    parquet(root / "data/validation-00000-of-00001.parquet", rows(10, 200), names=["no", "yes"], plain=plain)
    parquet(root / "data/test-00000-of-00001.parquet", rows(10, 300), names=["no", "yes"], plain=plain)
    spec = data.spec(str(root))
    quick, loaded = data.facts(spec), data.load(spec)
    assert quick.fingerprint == loaded.facts.fingerprint
    assert loaded.facts.classes == ("no", "yes")
    assert dict(loaded.facts.sizes) == {"train": 40, "selection": 10, "test": 10}
    test = loaded.splits["test"]
    (batch,) = test.batches([Request(np.arange(10), np.tile([1.0, 2, 8, 8], (10, 1)), 8)])
    for i in range(10):
        np.testing.assert_array_equal(
            batch[i].numpy().transpose(1, 2, 0), np.asarray(picture(300 + i))[1:9, 2:10]
        )
    assert test.names[0] == ("data/test-00000-of-00001:0" if plain else "300.png")


def test_one_parquet_file_with_text_labels_and_a_group_column(tmp_path):
    path = tmp_path / "things.parquet"
    parquet(path, rows(60, labels=("wolf", "ant", "bee")), label="animal", scene=[i // 4 for i in range(60)])
    with pytest.raises(DataError, match=r"2 columns could hold the labels: animal, scene(.|\n)*label_column"):
        data.facts(data.spec(str(path)))
    loaded = data.load(data.spec(str(path), label_column="animal", groups="scene"))
    assert loaded.facts.classes == ("ant", "bee", "wolf")
    assert loaded.facts.name == "things"
    scenes = [{int(n.removesuffix(".png")) // 4 for n in s.names} for s in loaded.splits.values()]
    assert sum(map(len, scenes)) == len(set.union(*scenes)) == 15


def test_splits_by_folder_name_and_unlabeled_tests(tmp_path):
    root = tmp_path / "set"
    parquet(root / "train/0000.parquet", rows(40), names=["no", "yes"])
    parquet(root / "test/0000.parquet", rows(10, 300, labels=(-1,)), names=["no", "yes"])
    loaded = data.load(data.spec(str(root)))
    assert sum(loaded.facts.sizes.values()) == 40
    assert loaded.facts.sizes["test"] == 8


def test_unreadable_cells(tmp_path):
    broken = rows(40)
    broken[3] = (None, "3.png", 1)
    broken[4] = (b"junk", "4.png", 0)
    parquet(tmp_path / "x.parquet", broken)
    loaded = data.load(data.spec(str(tmp_path / "x.parquet"), max_bad=0.1))
    assert loaded.facts.bad == ("3.png", "4.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "imag"}, "no column 'imag'(.|\n)*did you mean image"),
        ({"label_column": "labl"}, "column 'labl' is missing(.|\n)*did you mean label"),
        ({"groups": "nope"}, "neither a column of the data nor a file"),
    ],
)
def test_parquet_errors(tmp_path, options, message):
    parquet(tmp_path / "x.parquet", rows(20), names=["no", "yes"])
    with pytest.raises(DataError, match=message):
        data.facts(data.spec(str(tmp_path / "x.parquet"), **options))


def test_parquet_labels_must_have_names_and_not_be_missing(tmp_path):
    parquet(tmp_path / "x.parquet", rows(20, labels=(0, 7)), names=["no", "yes"])
    with pytest.raises(DataError, match="label 7 has no class name"):
        data.facts(data.spec(str(tmp_path / "x.parquet")))
    parquet(tmp_path / "x.parquet", rows(20, labels=(0, 1, None)))
    with pytest.raises(DataError, match="6 of 20 labels are missing"):
        data.facts(data.spec(str(tmp_path / "x.parquet")))
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a Parquet file"):
        data.facts(data.spec(str(tmp_path / "x.parquet")))


# torchvision


def mnist(root, count=40):
    """The files that torchvision's MNIST reads."""
    rng = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", count), ("t10k", 10)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels.tobytes())
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))


def test_torchvision_arrays(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setenv("TRICKBAG_DATA", str(tmp_path))
    mnist(tmp_path)
    loaded = data.load(data.spec("torchvision:mnist", selection=0.25))
    assert loaded.facts.name == "MNIST"
    assert loaded.facts.channels == 1
    assert dict(loaded.facts.sizes) == {"train": 30, "selection": 10, "test": 10}
    theirs = MNIST(str(tmp_path), train=False)
    np.testing.assert_array_equal(images(loaded.splits["test"], 28)[:, 0], theirs.data.numpy())
    np.testing.assert_array_equal(loaded.splits["test"].labels, theirs.targets.numpy())
    assert data.load(data.spec("torchvision:MNIST", mode="rgb")).facts.channels == 3


def test_torchvision_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TRICKBAG_DATA", str(tmp_path))
    fill(tmp_path / "EuroSAT/eurosat/2750", {"Forest": 12, "River": 12})
    loaded = data.load(data.spec("torchvision:EuroSAT"))
    assert loaded.facts.classes == ("Forest", "River")
    assert dict(loaded.facts.sizes) == {"train": 15, "selection": 4, "test": 5}
    assert images(loaded.splits["train"], 10).shape == (15, 3, 10, 10)


def test_torchvision_errors(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no data set 'CIFAR1'(.|\n)*did you mean CIFAR10"):
        data.facts(data.spec("torchvision:CIFAR1"))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match=r"torchvision:CIFAR10 is not in .* cannot be downloaded"):
        data.facts(data.spec("torchvision:cifar10"))


# the DATA argument


def test_data_files(tmp_path):
    fill(tmp_path / "set", {"a": 20, "b": 20})
    names = sorted(p.relative_to(tmp_path / "set").as_posix() for p in (tmp_path / "set").rglob("*.png"))
    lines = "\n".join(f"{n},{i // 4}" for i, n in enumerate(names))
    (tmp_path / "groups.csv").write_text("path,group\n" + lines)
    file = tmp_path / "mine.yaml"
    file.write_text("source: set\ngroups: groups.csv\nselection: 0.3\n")
    spec = data.spec(str(file), split_seed=7, mode=None)
    assert spec == data.DataSpec(
        source=str(tmp_path / "set"), groups=str(tmp_path / "groups.csv"), selection=0.3, split_seed=7
    )
    loaded = data.load(spec)
    group = {n: i // 4 for i, n in enumerate(names)}
    parts = [{group[n] for n in s.names} for s in loaded.splits.values()]
    assert sum(map(len, parts)) == 10
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(lines.splitlines()[2:]))
    with pytest.raises(DataError, match=f"2 of 40 images have no group: {names[0]}, {names[1]}"):
        data.load(spec)


def test_data_files_say_where_they_are_wrong(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("source: digits\nselecton: 0.3\n")
    with pytest.raises(DataError, match=r"mine.yaml:2: selecton(.|\n)*did you mean selection"):
        data.spec(str(file))
    file.write_text("source: digits\nselection: 3\n")
    with pytest.raises(DataError, match=r"mine.yaml:2: selection: 3 is not valid"):
        data.spec(str(file))
    file.write_text("source: nowhere\n")
    with pytest.raises(DataError, match=r"mine.yaml:1: there is no data"):
        data.spec(str(file))
    file.write_text("source: [\n")
    with pytest.raises(DataError, match="not valid YAML"):
        data.spec(str(file))
    with pytest.raises(DataError, match="cannot read"):
        data.spec(str(tmp_path / "other.yaml"))
    file.write_text("source: digits\n")
    assert data.spec(str(file)).source == "digits"


def test_arguments_that_are_no_data(tmp_path):
    (tmp_path / "pets").mkdir()
    with pytest.raises(DataError, match="did you mean pets"):
        data.spec(str(tmp_path / "pet"))
    with pytest.raises(DataError, match="did you mean digits"):
        data.spec("digit")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(DataError, match="of an unknown kind"):
        data.spec(str(tmp_path / "x.csv"))
    with pytest.raises(DataError, match="split_seed: -1 is not valid"):
        data.spec("digits", split_seed=-1)


def test_a_folder_that_cannot_be_read_is_no_folder_without_images(tmp_path, monkeypatch):
    fill(tmp_path / "set", {"cat": 6, "dog": 6})
    (tmp_path / "set" / "dog" / "more").mkdir()
    scan = os.scandir

    def refuse(path="."):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"more: Permission denied"):
        data.load(data.spec(str(tmp_path / "set")))


def test_a_table_without_rows(tmp_path):
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none.parquet: the table has no rows"):
        data.load(data.spec(str(tmp_path / "none.parquet")))
