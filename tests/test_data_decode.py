"""Every kind of image is read the way a person sees it."""

import io
import itertools
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from data_helpers import encoded, picture, shared
from trickbag.data import decode as decoding
from trickbag.data import jpeg
from trickbag.data.decode import Unreadable, check, decode, header_size, quiet


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def test_rgb_and_gray():
    image = picture(1)
    np.testing.assert_array_equal(decode(encoded(image), "rgb"), rgb(image))
    np.testing.assert_array_equal(decode(encoded(image), "gray")[..., 0], np.asarray(image.convert("L")))
    gray = picture(2, mode="L")
    assert decode(encoded(gray), "rgb").shape == (12, 10, 3)
    np.testing.assert_array_equal(decode(encoded(gray), "gray")[..., 0], np.asarray(gray))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    image = picture(3, mode=mode)
    values = np.asarray(image).astype(float)
    color, alpha = values[..., :-1], values[..., -1:] / 255
    expected = np.broadcast_to(color * alpha + 255 * (1 - alpha), (12, 10, 3))
    assert np.abs(decode(encoded(image), "rgb") - expected).max() <= 1


def test_palettes_with_and_without_transparency():
    image = picture(4).quantize(16)
    np.testing.assert_array_equal(decode(encoded(image), "rgb"), rgb(image))
    data = encoded(image, transparency=5)
    expected = rgb(image).copy()
    expected[np.asarray(image) == 5] = 255
    assert (np.asarray(image) == 5).any()
    np.testing.assert_array_equal(decode(data, "rgb"), expected)
    many = bytes(range(0, 256, 16))
    assert decode(encoded(image, transparency=many), "gray").shape == (12, 10, 1)


def test_transparent_color_of_rgb_and_gray():
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    assert decode(encoded(image, transparency=(1, 2, 3)), "rgb").tolist() == [[[10, 20, 30], [255, 255, 255]]]
    gray = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert decode(encoded(gray, transparency=9), "gray").ravel().tolist() == [7, 255]


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535, 300]], dtype=np.uint16)
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(
            decode(encoded(Image.fromarray(values), kind), "gray")[..., 0], expected
        )


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_float_tiff(full):
    values = np.array([[0, 0.5, 1, 0.25]], dtype=np.float32) * np.float32(full)
    result = decode(encoded(Image.fromarray(values), "TIFF"), "gray")[..., 0]
    assert np.abs(result - values / full * 255).max() <= 0.5


def test_float_tiff_with_holes():
    values = np.array([[np.nan, np.inf, 0.5, -3]], dtype=np.float32)
    assert decode(encoded(Image.fromarray(values), "TIFF"), "gray").ravel().tolist() == [0, 0, 128, 0]


def test_dark_integers_stay_dark():
    values = np.array([[0, 1]], dtype=np.int32)
    assert decode(encoded(Image.fromarray(values), "TIFF"), "gray").ravel().tolist() == [0, 1]


def test_cmyk():
    image = picture(5).convert("CMYK")
    np.testing.assert_array_equal(decode(encoded(image, "TIFF"), "rgb"), rgb(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(6), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data, "rgb"), expected)
    assert header_size(data) == check(data) == expected.shape[:2]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_animations(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, "rgb") == [255, 0, 0]).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_unreadable(kind):
    data = encoded(picture(7, 64, 64), kind)
    for read in (lambda d: decode(d, "rgb"), check):
        read(data)
        with pytest.raises(Unreadable):
            read(data[: len(data) // 2])


@pytest.mark.parametrize("data", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_other_things_are_unreadable(data):
    for read in (lambda d: decode(d, "rgb"), check, header_size):
        with pytest.raises(Unreadable):
            read(data)


def test_large_photos_are_read_and_bombs_are_not(monkeypatch):
    # Pillow warns from MAX_IMAGE_PIXELS and refuses past twice that.
    quiet()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(encoded(picture(8, 30, 50)), "rgb").shape == (30, 50, 3)
    with pytest.raises(Unreadable, match="bomb"):
        decode(encoded(picture(8, 50, 50)), "rgb")


# JPEG by simplejpeg: whatever Pillow alone would give


@pytest.fixture
def afresh():
    """Look for simplejpeg again, now and afterwards."""
    jpeg._libraries.cache_clear()
    yield
    jpeg._libraries.cache_clear()


def smooth(height, width):
    """A picture with edges and slopes, so that chroma is upsampled and overshoots."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 9 % 256, y * 7 % 256, (x // 3 + y // 5) % 2 * 255], axis=2)
    noise = np.random.default_rng(height * 1000 + width).integers(0, 30, values.shape)
    return Image.fromarray((values // 2 + noise * 4).astype(np.uint8))


def outcome(read):
    try:
        return read()
    except Unreadable:
        return None


def with_and_without(read, monkeypatch):
    """What is read with simplejpeg, and with Pillow alone."""
    quick = outcome(read)
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "_libraries", lambda: (None, Image))
        return quick, outcome(read)


def agree(data, monkeypatch):
    for mode in ("rgb", "gray"):
        quick, slow = with_and_without(lambda mode=mode: decode(data, mode), monkeypatch)
        assert (quick is None) == (slow is None)
        if slow is not None:
            assert quick.dtype == np.uint8
            assert quick.flags.c_contiguous
            np.testing.assert_array_equal(quick, slow)
    quick, slow = with_and_without(lambda: check(data), monkeypatch)
    assert quick == slow


SUBSAMPLINGS = ("444", "422", "420", "440", "411")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2, "gray", "rgb"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (16, 16), (31, 33), (32, 32), (97, 61)])
def test_jpeg_pixels_are_pillows_and_pillow_is_not_asked(subsampling, progressive, size, monkeypatch):
    for image, quality in itertools.product((smooth(*size), picture(1, *size)), (30, 75, 95)):
        options = {"quality": quality, "progressive": progressive}
        if subsampling == "gray":
            image = image.convert("L")
        elif subsampling == "rgb":
            options["keep_rgb"] = True
        else:
            options["subsampling"] = subsampling
        data = encoded(image, "JPEG", **options)
        theirs = Image.open(io.BytesIO(data))
        expected = rgb(theirs), np.asarray(theirs.convert("L"))
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_open", lambda source: pytest.fail("Pillow was asked"))
            np.testing.assert_array_equal(decode(data, "rgb"), expected[0])
            np.testing.assert_array_equal(decode(memoryview(data), "gray")[..., 0], expected[1])
            assert check(data) == size


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_jpeg_of_other_encoders(subsampling, monkeypatch):
    data = simplejpeg.encode_jpeg(np.asarray(smooth(45, 38)), 85, "RGB", subsampling)
    np.testing.assert_array_equal(decode(data, "rgb"), rgb(Image.open(io.BytesIO(data))))
    agree(data, monkeypatch)


def odd_jpegs():
    image = smooth(29, 33)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "restart markers", encoded(image, "JPEG", restart_marker_blocks=1)
    yield "EXIF", encoded(image, "JPEG", exif=exif)
    yield "EXIF, progressive", encoded(image, "JPEG", exif=exif, progressive=True)
    yield "damaged EXIF", encoded(image, "JPEG", exif=b"Exif\0\0junk")
    yield "XMP", encoded(image, "JPEG", xmp=b'<x tiff:Orientation="8"/>')
    yield "CMYK", encoded(image.convert("CMYK"), "JPEG")
    yield "two frames", encoded(image, "MPO", save_all=True, append_images=[picture(3)])
    yield "a comment", encoded(image, "JPEG", comment=b"\xff\xe1 no EXIF")
    yield "something after the end", encoded(image, "JPEG") + b"\xff\xe1tail"


ODD = dict(odd_jpegs())


@pytest.mark.parametrize("name", ODD)
def test_odd_jpegs(name, monkeypatch):
    agree(ODD[name], monkeypatch)
    assert decode(ODD[name], "rgb").shape[:2] == ((33, 29) if name[:3] in ("EXI", "XMP") else (29, 33))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_exif_rotation_of_jpeg(orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(13, 21).convert(mode), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data, "rgb"), rgb(expected))
    np.testing.assert_array_equal(decode(data, "gray")[..., 0], np.asarray(expected.convert("L")))
    assert header_size(data) == check(data) == (expected.height, expected.width)


def test_truncated_jpeg_is_unreadable_wherever_it_ends():
    for options in ({}, {"progressive": True}):
        data = encoded(smooth(24, 24), "JPEG", **options)
        for end in range(len(data) - 1):
            for read in (lambda d: decode(d, "rgb"), lambda d: decode(d, "gray"), check):
                with pytest.raises(Unreadable):
                    read(data[:end])


@settings(deadline=None, max_examples=400)
@given(
    which=st.sampled_from(sorted(ODD)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=5),
    cut=st.floats(0, 1),
)
def test_damage_is_judged_as_pillow_judges_it(which, changes, cut):
    data = bytearray(ODD[which])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    if cut > 0.9:
        del data[int(cut * len(data)) :]
    with pytest.MonkeyPatch.context() as patch:
        agree(bytes(data), patch)


def test_large_jpegs_are_read_and_bombs_are_not(monkeypatch):
    quiet()
    data = [encoded(smooth(size, 50), "JPEG") for size in (30, 50)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(data[0], "rgb").shape == (30, 50, 3)
    for read in (lambda d: decode(d, "rgb"), check):
        with pytest.raises(Unreadable, match="bomb"):
            read(data[1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(data[1], "rgb").shape == (50, 50, 3)


def test_without_simplejpeg(afresh, monkeypatch):
    data = encoded(smooth(20, 30), "JPEG")
    quick = decode(data, "rgb")
    jpeg._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    np.testing.assert_array_equal(decode(data, "rgb"), quick)
    assert jpeg._libraries() == (None, Image)


@pytest.mark.parametrize("fault", ["pixels", "truncation", "interface"])
def test_a_simplejpeg_that_differs_from_pillow_is_not_used(afresh, monkeypatch, fault):
    """Another build of libjpeg may round otherwise, or let damage pass."""

    def decode_jpeg(data, colorspace="RGB", **options):
        if fault == "pixels":
            return simplejpeg.decode_jpeg(data, colorspace, fastdct=True, fastupsample=True)
        if fault == "truncation":
            return simplejpeg.decode_jpeg(data, colorspace, strict=False)
        raise TypeError("no such argument")

    other = types.SimpleNamespace(
        decode_jpeg=decode_jpeg, decode_jpeg_header=simplejpeg.decode_jpeg_header, __name__="simplejpeg"
    )
    monkeypatch.setitem(sys.modules, "simplejpeg", other)
    data = encoded(smooth(20, 30), "JPEG")
    np.testing.assert_array_equal(decode(data, "rgb"), rgb(Image.open(io.BytesIO(data))))
    assert jpeg._libraries()[0] is None
    with pytest.raises(Unreadable):
        decode(data[:-30], "rgb")


@pytest.mark.parametrize(
    "name", ["cifar10-jpeg", "dogs-cats", "sign-digits", "imagenet-sample", "magnetic-tile"]
)
def test_real_jpegs(name, monkeypatch):
    root = shared(name)
    if name == "cifar10-jpeg":
        cells = pq.read_table(root / "test.parquet", columns=["image"]).column(0)[:1000].to_pylist()
        files = [cell["bytes"] for cell in cells]
    else:
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        files = [path.read_bytes() for path in paths[:: max(1, len(paths) // 40)]]
    for data in files:
        assert jpeg.pixels(data, "rgb") is not None
        agree(data, monkeypatch)
