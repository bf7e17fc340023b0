"""Batches, whatever way the images are held; and the cache that holds them."""

import logging
import os
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_helpers import encoded, fill, picture
from trickbag import data
from trickbag.data import Request
from trickbag.data.resident import ResidentSplit
from trickbag.errors import DataError
from trickbag.imageops import Op, Program, Step, execute

TINY = 1e-9
"""A share of memory into which nothing fits."""
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRICKBAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["cached", "resident", "decoding"])
def held(request):
    """Options for each way of holding images."""
    return {
        "cached": {},
        "resident": {"cache": False},
        "decoding": {"memory_share": TINY},
    }[request.param] | {"expect": request.param}


@pytest.fixture(params=[(24, 24), None], ids=["uniform", "varied"])
def folder(request, tmp_path):
    fill(tmp_path / "set", {"a": 20, "b": 20}, request.param)
    return tmp_path / "set"


def load(folder, expect=None, **options):
    loaded = data.load(data.spec(str(folder), **options))
    if expect:
        assert {split.held for split in loaded.splits.values()} == {expect}
    return loaded


def boxes(sizes, seed=0):
    rng = np.random.default_rng(seed)
    extent = sizes * rng.uniform(0.2, 1, sizes.shape)
    return np.concatenate([rng.uniform(0, 1, sizes.shape) * (sizes - extent), extent], axis=1)


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_batches_are_what_pillow_makes(folder, held, interpolation):
    split = load(folder, **held).splits["train"]
    order = np.random.default_rng(1).permutation(len(split))
    wanted = boxes(split.sizes[order])
    parts = [slice(i, i + 5) for i in range(0, len(order), 5)]
    batches = list(split.batches(Request(order[p], wanted[p], 9, interpolation) for p in parts))
    assert [len(b) for b in batches] == [len(order[p]) for p in parts]
    together = torch.cat(batches)
    assert together.dtype == torch.uint8
    assert together.shape == (len(order), 3, 9, 9)
    for image, index, (top, left, height, width) in zip(together, order, wanted, strict=True):
        source = Image.open(folder / split.names[index])
        assert (source.height, source.width) == tuple(split.sizes[index])
        theirs = source.resize((9, 9), FILTERS[interpolation], box=(left, top, left + width, top + height))
        # From version 13 on, Pillow takes the passes over some tall images in another order.
        tall = interpolation != "nearest" and source.height > source.width
        ours = image.numpy().transpose(1, 2, 0).astype(int)
        assert abs(ours - np.asarray(theirs)).max() <= (16 if tall else 0)


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_batches_are_the_same_without_compiled_code(folder, held, interpolation, monkeypatch):
    split = load(folder, **held).splits["train"]
    order = np.flatnonzero(split.sizes[:, 0] <= split.sizes[:, 1])
    request = Request(order, boxes(split.sizes[order]), 9, interpolation)
    (compiled,) = split.batches([request])
    monkeypatch.setattr("trickbag.data.serving.numba_works", lambda: False)
    (pillow,) = split.batches([request])
    assert torch.equal(compiled, pillow)


def test_programs_are_executed_while_reading(folder, held):
    split = load(folder, **held).splits["train"]
    order = np.random.default_rng(3).permutation(len(split))
    wanted = boxes(split.sizes[order])
    count = len(order)
    steps = (Step.of(Op.FLIP, 1, batch=count), Step.of(Op.BRIGHTNESS, np.linspace(0.2, 1.8, count)))
    program = Program(steps, np.linspace(-1, 1, 256, dtype=np.float32)[None])
    parts = [slice(i, i + 5) for i in range(0, len(order), 5)]
    plain = torch.cat(list(split.batches(Request(order[p], wanted[p], 9) for p in parts)))
    requests = (Request(order[p], wanted[p], 9, program=program.part(p)) for p in parts)
    found = torch.cat([batch.clone() for batch in split.batches(requests, workers=3)])
    assert found.dtype == torch.float32
    assert torch.equal(found, execute(plain, program))


def test_a_batch_stays_as_it_is_while_others_are_read(folder, held):
    split = load(folder, **held).splits["train"]
    order = np.arange(len(split))
    requests = [Request(order[k : k + 3], None, 7) for k in range(0, len(order) - 2, 3)]
    kept = list(split.batches(requests))
    again = [batch.clone() for batch in split.batches(requests)]
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


def test_images_on_a_device_are_read_alike(tmp_path):
    fill(tmp_path / "small", {"a": 10, "b": 10}, (12, 12))
    split = load(tmp_path / "small").splits["train"]
    resident = ResidentSplit(split, "cpu")
    order = np.random.default_rng(0).permutation(len(split))
    for wanted in (None, boxes(split.sizes[order]), np.tile([2.0, 3.0, 8.0, 8.0], (len(order), 1))):
        request = Request(order, wanted, 8, "bilinear")
        (one,), (other,) = split.batches([request]), resident.batches([request])
        assert torch.equal(one, other)


def test_boxes_of_whole_pixels_are_copies(folder, held):
    split = load(folder, **held).splits["train"]
    corner = np.random.default_rng(0).integers(0, split.sizes - 6, split.sizes.shape)
    wanted = np.concatenate([corner, np.full_like(corner, 7)], axis=1).astype(float)
    (batch,) = split.batches([Request(np.arange(len(split)), wanted, 7, "bicubic")])
    for image, name, (top, left) in zip(batch.numpy(), split.names, corner, strict=True):
        source = np.asarray(Image.open(folder / name))
        np.testing.assert_array_equal(image.transpose(1, 2, 0), source[top : top + 7, left : left + 7])


def test_no_box_is_the_centered_square(tmp_path, held):
    fill(tmp_path / "wide", {"a": 10, "b": 10}, (8, 13))
    split = load(tmp_path / "wide", **held).splits["train"]
    (batch,) = split.batches([Request(np.array([2]), None, 8)])
    np.testing.assert_array_equal(
        batch[0].numpy().transpose(1, 2, 0),
        np.asarray(Image.open(tmp_path / "wide" / split.names[2]))[:, 2:10],
    )


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.integers(1, 40))
def test_digits_as_gray_and_as_color(seed, size):
    gray, color = (data.load(data.spec("digits", mode=mode)).splits["test"] for mode in ("gray", "rgb"))
    chosen = np.random.default_rng(seed).integers(0, len(gray), 6)
    request = Request(chosen, boxes(gray.sizes[chosen], seed), size, "bilinear")
    (one,), (three,) = gray.batches([request]), color.batches([request])
    assert one.shape == (6, 1, size, size)
    assert torch.equal(one.expand_as(three), three)


def test_requests_are_read_only_a_little_ahead(folder):
    split = load(folder).splits["train"]
    asked = []

    def requests():
        for i in range(100):
            asked.append(i)
            yield Request(np.array([0, 1]), None, 9)

    stream = split.batches(requests())
    next(stream)
    assert len(asked) <= 4
    stream.close()
    assert list(split.batches([])) == []


def test_wrong_requests(folder, held):
    split = load(folder, **held).splits["train"]
    for request, message in [
        (Request(np.array([len(split)]), None, 4), "of 26 images"),
        (Request(np.array([0]), np.array([[0, 0, 99.0, 4]]), 4), "not inside an image"),
        (Request(np.array([0]), np.array([[0, 0, 4.0]]), 4), "boxes are"),
        (Request(np.array([0]), None, 4, "lanczos"), "lanczos"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(split.batches([request]))


def test_a_file_that_vanishes_while_training(folder):
    split = load(folder, "decoding", memory_share=TINY).splits["train"]
    (folder / split.names[3]).unlink()
    with pytest.raises(DataError, match=f"{split.names[3]} can no longer be read"):
        list(split.batches([Request(np.array([2, 3]), None, 5)]))


def test_splits_travel_to_other_processes(folder, held):
    split = load(folder, **held).splits["test"]
    request = Request(np.arange(len(split)), None, 6)
    (before,) = split.batches([request])
    packed = pickle.dumps(split)
    (after,) = pickle.loads(packed).batches([request])
    assert torch.equal(before, after)
    if held["expect"] == "cached":
        assert len(packed) < 10_000, "pixels are mapped, not copied"


def test_decoded_once(folder, monkeypatch):
    first = load(folder, "cached")
    monkeypatch.setattr("trickbag.data.filling.decode", lambda *a: pytest.fail("decoded again"))
    again = load(folder, "cached")
    assert again.facts == first.facts
    again = load(folder, "cached", split_seed=1, selection=0.3)
    assert again.facts.fingerprint != first.facts.fingerprint


def test_a_changed_file_is_decoded_anew(folder):
    split = load(folder).splits["train"]
    path = folder / split.names[0]
    stat = path.stat()
    height, width = split.sizes[0]
    new = picture(99, int(height), int(width))
    path.write_bytes(encoded(new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    split = load(folder).splits["train"]
    side = int(min(height, width))
    wanted = np.array([[0.0, 0, side, side]])
    (batch,) = split.batches(
        [Request(np.array([split.names.index(path.relative_to(folder).as_posix())]), wanted, side)]
    )
    np.testing.assert_array_equal(batch[0].numpy().transpose(1, 2, 0), np.asarray(new)[:side, :side])


@pytest.mark.parametrize("damage", ["truncate", "scribble", "index", "seal", "remove"])
def test_a_damaged_cache_is_built_again(folder, cache, caplog, damage):
    before = load(folder).splits["train"]
    request = Request(np.arange(len(before)), None, 8)
    (good,) = before.batches([request])
    good = good.clone()
    (kept,) = [p for p in (cache / "images").iterdir() if p.is_dir()]
    pixels = kept / "pixels.npy"
    if damage == "truncate":
        pixels.write_bytes(pixels.read_bytes()[:-50])
    elif damage == "scribble":
        pixels.write_bytes(b"junk" * 100 + pixels.read_bytes()[400:])
    elif damage == "index":
        (kept / "index.npz").write_bytes(b"junk")
    elif damage == "seal":
        (kept / "seal.json").write_text("{")
    else:
        pixels.unlink()
    with caplog.at_level(logging.INFO, "trickbag.data"):
        after = load(folder, "cached").splits["train"]
    assert "damaged" in caplog.text
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    assert torch.equal(next(iter(after.batches([request]))), good)


def test_two_processes_build_one_cache(tmp_path, cache):
    fill(tmp_path / "set", {"a": 60, "b": 60}, (64, 64))
    code = (
        "import sys, numpy as np; from trickbag import data;"
        "d = data.load(data.spec(sys.argv[1]));"
        "i = d.splits['train'].images; print(d.facts.fingerprint, i.held, int(np.asarray(i.flat).sum()))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "set")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    outputs = {run.communicate()[0] for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert len(outputs) == 1
    assert " cached " in outputs.pop()
    assert len([p for p in (cache / "images").iterdir() if p.is_dir()]) == 1
    assert not list(cache.rglob("*.tmp"))


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRICKBAG_CACHE", str(blocked))
    loaded = load(folder, "resident")
    assert loaded.facts.mean


def test_too_large_for_memory_keeps_no_pixels(folder, cache):
    large, small = load(folder, "decoding", memory_share=TINY), load(folder, "cached")
    assert large.facts == small.facts
    assert "decoded each time" in data.describe(large)
    assert "cached on disk" in data.describe(small)


def test_decoding_finds_truncated_files(folder):
    victim = next((folder / "a").iterdir())
    victim.write_bytes(victim.read_bytes()[:-40])
    loaded = load(folder, "decoding", memory_share=TINY, max_bad=0.1)
    assert loaded.facts.bad == (victim.relative_to(folder).as_posix(),)


def test_parquet_is_read_at_random_when_it_does_not_fit(tmp_path, held):
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [encoded(picture(i, 10 + i % 3, 12)) for i in range(40)]
    pq.write_table(
        pa.table({"image": cells, "label": [i % 2 for i in range(40)]}),
        tmp_path / "x.parquet",
        row_group_size=9,
    )
    split = load(tmp_path / "x.parquet", **held).splits["train"]
    order = np.random.default_rng(0).permutation(len(split))
    (batch,) = pickle.loads(pickle.dumps(split)).batches(
        [Request(order, np.tile([0.0, 0, 10, 10], (len(order), 1)), 10)]
    )
    for image, index in zip(batch.numpy(), order, strict=True):
        number = int(split.names[index].split(":")[1])
        np.testing.assert_array_equal(
            image.transpose(1, 2, 0), np.asarray(picture(number, 10 + number % 3, 12))[:10, :10]
        )


def test_mean_and_std_weigh_every_image_alike(tmp_path):
    root = tmp_path / "set"
    for label in "ab":
        (root / label).mkdir(parents=True)
        for i in range(10):
            size = 8 if i % 2 else 32
            Image.new("L", (size, size), 255 if i % 2 else 0).save(root / label / f"{i}.png")
    loaded = load(root)
    bright = np.mean([int(n[2:-4]) % 2 for n in loaded.splits["train"].names])
    assert loaded.facts.mean == pytest.approx([bright] * 3, abs=1e-5)
    assert loaded.facts.std == pytest.approx([np.sqrt(bright - bright**2)] * 3, abs=1e-5)


def test_progress_is_told(folder):
    told = []
    data.load(data.spec(str(folder)), progress=lambda *a: told.append(a))
    assert ("fingerprint", 40, 40) in told
    assert ("decode", 40, 40) in told


def test_unchanged_files_are_not_hashed_again(folder, monkeypatch):
    old = time.time() - 100
    for path in folder.rglob("*.png"):
        os.utime(path, (old, old))
    monkeypatch.setattr("trickbag.data.hashing.RACY", -1)
    first = data.facts(data.spec(str(folder)))
    monkeypatch.setattr("trickbag.data.hashing._hash_file", lambda path: pytest.fail("hashed again"))
    assert data.facts(data.spec(str(folder))).fingerprint == first.fingerprint
