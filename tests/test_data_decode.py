"""Every kind of image is read the way a person sees it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from data_helpers import encoded, picture
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
