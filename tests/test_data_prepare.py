"""Copies of images that are quick to read: what is in them, when they are made, and when they are not."""

import io
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from data_helpers import encoded, fill, picture
from trickbag import api, data
from trickbag.cli.main import main
from trickbag.data import jpeg
from trickbag.errors import DataError

TINY = 1e-9
"""A share of memory into which nothing fits."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRICKBAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Photos of many sizes, upright and not, color and gray, JPEG and PNG; 40 of two classes."""
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for i in range(20):
            height, width = rng.integers(10, 90, 2).tolist()
            rough = picture(i, 5, 5, "L" if i % 7 == 3 else "RGB").resize((width, height), Image.BICUBIC)
            exif = Image.Exif()
            exif[0x0112] = i % 8 + 1
            options = ("JPEG", {"exif": exif}) if i % 2 else ("PNG", {})
            path = tmp_path / "set" / label / f"{i:02d}.{options[0].lower()}"
            path.write_bytes(encoded(rough, options[0], **options[1]))
    return tmp_path / "set"


def original(path, mode="RGB"):
    return ImageOps.exif_transpose(Image.open(path)).convert(mode)


def shrunk(image, short_side):
    """The definition, by Pillow."""
    short = min(image.size)
    if short <= short_side:
        return image
    size = tuple(int(side * short_side / short + 0.5) for side in image.size)
    return image.resize(size, Image.BICUBIC)


def read(loaded):
    """Every image by name."""
    found = {}
    for split in loaded.splits.values():
        assert split.sizes.shape == (len(split), 2)
        for name, row, size in zip(split.names, split.rows.tolist(), split.sizes.tolist(), strict=True):
            found[name] = split.images.image(row)
            assert list(found[name].shape[:2]) == size
    return found


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, image in wanted.items():
        np.testing.assert_array_equal(found[name], np.asarray(image).reshape(found[name].shape))


def copies(cache):
    return sorted(p.name for p in (cache / "images").iterdir() if p.is_dir())


# what is in a copy


@pytest.mark.parametrize("mode", ["rgb", "gray"])
@pytest.mark.parametrize("keep", ["raw", "auto", "encoded", "auto, too large"])
def test_images_are_shrunk_once_however_they_are_kept(folder, keep, mode):
    options = {"memory_share": TINY} if "large" in keep else {}
    spec = data.spec(str(folder), short_side=24, keep=keep.split(",")[0], mode=mode, **options)
    loaded = data.load(spec)
    color = {"rgb": "RGB", "gray": "L"}[mode]
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.*")}
    same(read(loaded), {name: shrunk(original(path, color), 24) for name, path in paths.items()})
    held = "decoding" if keep in ("encoded", "auto, too large") else "cached"
    assert loaded.splits["train"].held == held
    assert max(s.sizes.min(axis=1).max() for s in loaded.splits.values()) == 24
    assert loaded.facts.fingerprint == data.facts(spec).fingerprint
    assert loaded.facts.image_size == data.facts(spec).image_size
    assert "short side at most 24" in data.describe(loaded)


@pytest.mark.parametrize("short_side", [None, 30])
@pytest.mark.parametrize("mode", ["rgb", "gray"])
def test_a_jpeg_copy_is_what_pillow_encodes(folder, short_side, mode):
    loaded = data.load(data.spec(str(folder), short_side=short_side, keep="jpeg", quality=80, mode=mode))
    wanted = {}
    for path in folder.rglob("*.*"):
        image = shrunk(original(path, "RGB" if mode == "rgb" else "L"), short_side or 1000)
        file = encoded(image, "JPEG", quality=80, subsampling="4:2:0")
        wanted[path.relative_to(folder).as_posix()] = Image.open(io.BytesIO(file))
    same(read(loaded), wanted)
    assert loaded.splits["train"].held == "decoding"
    assert "JPEG copy of quality 80" in data.describe(loaded)


def test_a_copy_does_not_depend_on_simplejpeg(folder, cache, monkeypatch):
    def copy():
        made = api.prepare(data.spec(str(folder), short_side=20, keep="jpeg"))
        return (made.path / "bytes.bin").read_bytes(), made.data.facts

    quick = copy()
    cache.rename(cache.with_name("first"))
    monkeypatch.setattr(jpeg, "_libraries", lambda: (None, Image))
    assert copy() == quick


def test_raw_is_mapped_even_where_memory_is_short(folder):
    loaded = data.load(data.spec(str(folder), keep="raw", memory_share=TINY))
    assert loaded.splits["train"].held == "cached"
    same(read(loaded), {p.relative_to(folder).as_posix(): original(p) for p in folder.rglob("*.*")})
    assert len(pickle.dumps(loaded.splits["train"])) < 20_000


def test_copies_of_parquet_travel_to_other_processes(tmp_path):
    cells = [encoded(picture(i, 10 + i % 3, 12)) for i in range(40)]
    table = pa.table({"image": cells, "label": [i % 2 for i in range(40)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=9)
    for keep in ("raw", "jpeg", "encoded"):
        loaded = data.load(data.spec(str(tmp_path / "x.parquet"), keep=keep))
        before = read(loaded)
        loaded.splits.update(pickle.loads(pickle.dumps(loaded.splits)))
        same(read(loaded), before)
        if keep != "jpeg":
            same(before, {f"x:{i}": picture(i, 10 + i % 3, 12) for i in range(40)})


def test_pixels_in_memory_are_shrunk_too():
    spec = data.spec("digits", short_side=5)
    loaded, quick = data.load(spec), data.facts(spec)
    assert loaded.facts.image_size == quick.image_size == (5, 5)
    assert loaded.facts.fingerprint == quick.fingerprint != data.facts(data.spec("digits")).fingerprint
    whole = read(data.load(data.spec("digits")))
    wanted = {name: shrunk(Image.fromarray(image[:, :, 0]), 5) for name, image in whole.items()}
    same(read(loaded), wanted)


def test_unreadable_images_are_left_out_of_copies(folder):
    (folder / "a" / "00.png").write_bytes(b"junk")
    (folder / "b" / "01.jpeg").write_bytes((folder / "b" / "01.jpeg").read_bytes()[:-30])
    for keep in ("raw", "jpeg", "encoded"):
        loaded = data.load(data.spec(str(folder), short_side=16, keep=keep, max_bad=0.1))
        assert loaded.facts.bad == ("a/00.png", "b/01.jpeg")
        assert len(read(loaded)) == 38
    with pytest.raises(DataError, match="2 of 40 images"):
        api.prepare(data.spec(str(folder), short_side=16, keep="jpeg"))


# identity


def test_fingerprints_tell_other_pixels_apart_and_nothing_else(folder):
    def fingerprint(**options):
        return data.facts(data.spec(str(folder), **options)).fingerprint

    plain = fingerprint()
    assert fingerprint(keep="raw") == fingerprint(keep="encoded") == plain
    assert fingerprint(keep="raw", short_side=20) == fingerprint(short_side=20)
    others = [
        {"short_side": 20},
        {"short_side": 21},
        {"keep": "jpeg"},
        {"keep": "jpeg", "quality": 80},
        {"keep": "jpeg", "short_side": 20},
    ]
    assert len({plain, *(fingerprint(**options) for options in others)}) == 6


def test_loading_finds_what_was_prepared(folder, cache, monkeypatch):
    for options in ({"keep": "raw"}, {"keep": "jpeg", "short_side": 20}, {"short_side": 20}):
        told = []
        spec = data.spec(str(folder), **options)
        made = api.prepare(spec, progress=lambda *a, told=told: told.append(a))
        assert ("decode", 40, 40) in told
        assert (made.found, made.images) == ("absent", 40)
        assert made.bytes == sum(p.stat().st_size for p in made.path.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr("trickbag.data.filling.decode", lambda *a: pytest.fail("decoded again"))
            again, loaded = api.prepare(spec), data.load(spec)
        assert (again.found, again.path) == ("sound", made.path)
        assert loaded.facts == made.data.facts
        same(read(loaded), read(made.data))
    assert len(copies(cache)) == 3


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
@pytest.mark.parametrize("change", ["edit", "add", "remove", "swap"])
def test_a_copy_is_never_stale(folder, keep, change):
    spec = data.spec(str(folder), keep=keep, short_side=24)
    before = api.prepare(spec)
    one, other = folder / "a" / "02.png", folder / "a" / "04.png"
    stat = one.stat()
    if change == "edit":
        new = picture(99, 40, 50)
        one.write_bytes(encoded(new))
        os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "add":
        (folder / "b" / "new.png").write_bytes(encoded(picture(7, 30, 30)))
    elif change == "remove":
        one.unlink()
    else:
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    after = api.prepare(spec)
    assert after.found == "absent"
    assert after.path != before.path
    assert after.data.facts.fingerprint != before.data.facts.fingerprint
    found = read(after.data)
    assert len(found) == {"add": 41, "remove": 39}.get(change, 40)
    for name, image in found.items():
        wanted = shrunk(original(folder / name), 24)
        if keep == "jpeg":
            wanted = Image.open(io.BytesIO(encoded(wanted, "JPEG", quality=90, subsampling=2)))
        np.testing.assert_array_equal(image, np.asarray(wanted))


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
@pytest.mark.parametrize("damage", ["truncate", "scribble", "index", "seal", "remove"])
def test_a_damaged_copy_is_made_again(folder, caplog, keep, damage):
    spec = data.spec(str(folder), keep=keep, short_side=24)
    before = api.prepare(spec)
    good = {name: image.copy() for name, image in read(before.data).items()}
    large = before.path / ("pixels.npy" if keep == "raw" else "bytes.bin")
    contents = large.read_bytes()
    os.rename(large, large.with_name("old"))  # What is mapped stays as it was.
    (before.path / "old").unlink()
    if damage == "truncate":
        large.write_bytes(contents[:-50])
    elif damage == "scribble":
        large.write_bytes(b"junk" * 100 + contents[400:])
    elif damage != "remove":
        large.write_bytes(contents)
        (before.path / {"index": "index.npz", "seal": "seal.json"}[damage]).write_text("{")
    with caplog.at_level(logging.INFO, "trickbag.data"):
        after = api.prepare(spec)
    assert (after.found, after.path) == ("damaged", before.path)
    assert "damaged" in caplog.text
    same(read(after.data), good)
    assert api.prepare(spec).found == "sound"


# what is refused


def test_too_little_room_is_said_before_anything_is_written(folder, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 5000, 5000))
    for keep, need in (("raw", r"decoded images need about \d+ kB"), ("jpeg", r"encoded .* \d.* kB")):
        with pytest.raises(
            DataError, match=rf"{need} of disk, and 5 kB are free(.|\n)*TRICKBAG_CACHE"
        ) as error:
            data.load(data.spec(str(folder), keep=keep))
        assert str(cache) in str(error.value)
        assert copies(cache) == []


def test_a_full_or_closed_disk_is_an_error(folder, cache, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trickbag.data.filling.np.lib.format.write_array_header_1_0", full)
        with pytest.raises(DataError, match=r"No space left on device(.|\n)*TRICKBAG_CACHE"):
            data.load(data.spec(str(folder), keep="raw"))
    assert copies(cache) == []
    blocked = cache / "file"
    blocked.write_text("")
    monkeypatch.setenv("TRICKBAG_CACHE", str(blocked))
    for keep in ("raw", "jpeg"):
        with pytest.raises(DataError, match=r"cannot write a copy of the images"):
            data.load(data.spec(str(folder), keep=keep))
    with pytest.raises(DataError, match=r"cannot be kept"):
        api.prepare(data.spec(str(folder)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "encoded"}, "nothing to prepare: keep is encoded"),
        ({"cache": False}, "nothing to prepare: cache is false"),
        ({"memory_share": TINY}, r"too much for the memory share(.|\n)*--keep raw"),
        ({"keep": "raw", "cache": False}, "auto or encoded where cache is false"),
        ({"quality": 80}, "90 unless keep is jpeg"),
        ({"quality": 101, "keep": "jpeg"}, "quality: 101 is not valid"),
        ({"short_side": 0}, "short_side: 0 is not valid"),
        ({"keep": "row"}, "'raw'"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, options, message):
    with pytest.raises(DataError, match=message):
        api.prepare(data.spec(str(folder), **options))


def test_digits_need_no_copy():
    with pytest.raises(DataError, match="digits is in memory"):
        api.prepare("digits")


def test_an_image_larger_than_jpeg_allows(tmp_path):
    fill(tmp_path / "set", {"a": 5, "b": 5})
    Image.new("L", (65_501, 2)).save(tmp_path / "set" / "a" / "wide.png")
    with pytest.raises(DataError, match=r"2 x 65501 pixels are too many(.|\n)*short_side"):
        data.load(data.spec(str(tmp_path / "set"), keep="jpeg"))


# the command line


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Call the command line in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["trickbag", *map(str, arguments)])
        found = 0
        try:
            main()
        except SystemExit as stop:
            found = int(stop.code or 0)
        captured = capsys.readouterr()
        assert found == code, captured.err
        return captured.err if code else captured.out

    return call


def test_prepare_and_train_from_the_command_line(cli, folder):
    options = ["--short-side", "24", "--keep", "jpeg", "--quality", "85"]
    said = cli("prepare", folder, *options, "--set", "data.selection=0.2")
    assert "40 images" in said
    assert "images/s" in said
    assert f"use:  trickbag train RECIPE {folder} --set data.selection=0.2 {' '.join(options)}" in said
    again = json.loads(cli("prepare", folder, *options, "--json"))
    assert again["found"] == "sound"
    assert again["path"] in said
    assert "there already" in cli("prepare", folder, *options)
    (Path(again["path"]) / "seal.json").unlink()
    assert "damaged: it has been made again" in cli("prepare", folder, *options)
    fast = ["--set", "image_size=8", "--set", "epochs=2", "--set", "batch_size=8", "--threads", "1"]
    run = json.loads(cli("train", "digits_baseline", folder, *fast, *options, "--json"))
    about = json.loads((Path(run["path"]) / "run.json").read_text())
    assert {"short_side": 24, "keep": "jpeg", "quality": 85}.items() <= about["data"].items()
    assert json.loads(cli("evaluate", run["path"], "--json"))
    assert json.loads(cli("evaluate", run["path"], folder, "--short-side", "20", "--json"))


def test_wrong_options_on_the_command_line(cli, folder):
    for command in (["prepare"], ["train", "digits_bag"]):
        assert "--keep row: keep: 'row' is not valid" in cli(*command, folder, "--keep", "row", code=4)
    assert "--set epochs=3" in cli("prepare", folder, "--set", "epochs=3", code=2)
    study = ["study", "plan", folder, "--baseline", "digits_bag", "--without", "ema"]
    assert "--quality 80" in cli(*study, "--quality", "80", code=4)
    assert "data.keep=raw" in cli("evaluate", "nowhere", "--keep", "raw", code=2)


@pytest.fixture
def slow(tmp_path):
    """A set that takes a few seconds to prepare: one large photo under many names."""
    photo = tmp_path / "photo.jpg"
    picture(1, 40, 50).resize((1000, 750), Image.BICUBIC).save(photo, quality=90)
    for label in "ab":
        (tmp_path / "slow" / label).mkdir(parents=True)
        for i in range(75):
            os.link(photo, tmp_path / "slow" / label / f"{i}.jpg")
    return tmp_path / "slow"


def begin(folder, cache, keep):
    """A process that is in the middle of writing a copy."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trickbag", "prepare", str(folder), "--short-side", "300", "--keep", keep],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.glob("images/*.tmp/*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("keep", ["raw", "jpeg"])
def test_control_c_leaves_nothing_and_the_next_one_makes_it(slow, cache, keep):
    process = begin(slow, cache, keep)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "nothing is kept" in out
    assert err == ""
    assert copies(cache) == []
    spec = data.spec(str(slow), short_side=300, keep=keep, max_bad=0)
    assert api.prepare(spec).images == 150


def test_what_a_killed_process_leaves_is_cleared_and_not_used(slow, cache):
    process = begin(slow, cache, "raw")
    process.kill()
    process.communicate()
    (left,) = copies(cache)
    assert left.endswith(".tmp")
    made = api.prepare(data.spec(str(slow), short_side=300, keep="raw"))
    assert made.found == "absent"
    assert copies(cache) == [made.path.name]


def test_processes_that_prepare_at_once_do_it_once(slow, cache):
    first = begin(slow, cache, "jpeg")
    told = []
    made = api.prepare(
        data.spec(str(slow), short_side=300, keep="jpeg"), progress=lambda *a: told.append(a[0])
    )
    assert first.communicate()[1] == ""
    assert first.returncode == 0
    assert "decode" not in told
    assert copies(cache) == [made.path.name]
