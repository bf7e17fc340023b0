"""Photometric and geometric operations of ``functional/`` against Pillow, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import functional as F

from conftest import CLASSES, draw
from trickbag.functional import filters, geometric, photometric

SIZES = ((3, 3), (1, 5), (2, 4), (7, 3), (32, 32), (33, 17), (57, 224))


def pictures(channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Noise, shapes, flat colors, narrow ranges, two colors: uint8 ``(24, channels, *size)``."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (24, channels, *size), dtype=np.uint8)
    for i in range(8):
        shape = draw(CLASSES[i % 4], max(*size, 2), rng)[: size[0], : size[1], :channels]
        images[i] = shape.transpose(2, 0, 1)
    images[8], images[9], images[10] = 0, 255, rng.integers(0, 256, (channels, 1, 1))
    images[11:14] = images[11:14] // 64 * 85
    images[14:17] = images[14:17] // 16 + 100
    images[17, :, :, : size[1] // 2] = 3
    return torch.from_numpy(images)


def each(images: Tensor, act: Callable[[Image.Image, int], Image.Image]) -> Tensor:
    """What Pillow makes of every image alone."""
    return torch.stack([F.pil_to_tensor(act(F.to_pil_image(image), i)) for i, image in enumerate(images)])


def factors(count: int) -> Tensor:
    rng = np.random.default_rng(1)
    some = np.array([0, 1, 0.5, 2, -0.2, 1e-3, 0.999, 1.99])
    return torch.from_numpy(np.concatenate((some, rng.uniform(-0.5, 3, count - len(some)))))


@pytest.fixture(params=[(channels, size) for channels in (1, 3) for size in SIZES], ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    return pictures(*request.param)


@pytest.mark.parametrize(
    ("act", "enhance"),
    [
        (photometric.brightness, ImageEnhance.Brightness),
        (photometric.contrast, ImageEnhance.Contrast),
        (photometric.saturation, ImageEnhance.Color),
        (photometric.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancing(
    images: Tensor, act: Callable[..., Tensor], enhance: Callable[..., ImageEnhance._Enhance]
) -> None:
    f = factors(len(images))
    expected = each(images, lambda picture, i: enhance(picture).enhance(f[i].item()))
    assert torch.equal(act(images, f), expected)
    assert torch.equal(act(images.contiguous(memory_format=torch.channels_last), f), expected)


def test_histograms_and_inversion(images: Tensor) -> None:
    assert torch.equal(photometric.autocontrast(images), each(images, lambda p, i: ImageOps.autocontrast(p)))
    assert torch.equal(photometric.equalize(images), each(images, lambda p, i: ImageOps.equalize(p)))
    assert torch.equal(photometric.invert(images), each(images, lambda p, i: ImageOps.invert(p)))
    counts = photometric.histogram(images).flatten(1)
    assert counts.tolist() == [F.to_pil_image(image).histogram() for image in images]


def test_thresholds_and_bits(images: Tensor) -> None:
    bits = torch.arange(len(images)) % 8 + 1
    expected = each(images, lambda p, i: ImageOps.posterize(p, int(bits[i])))
    assert torch.equal(photometric.posterize(images, bits), expected)
    assert not photometric.posterize(images, bits * 0).any()
    thresholds = torch.linspace(-1, 257, len(images), dtype=torch.float64)
    expected = each(images, lambda p, i: ImageOps.solarize(p, thresholds[i].item()))
    assert torch.equal(photometric.solarize(images, thresholds), expected)
    amounts = torch.arange(len(images)) * 5
    grown = (images.int() + amounts.view(-1, 1, 1, 1)).clamp(max=255).to(torch.uint8)
    expected = torch.where(images < thresholds.view(-1, 1, 1, 1), grown, images)
    assert torch.equal(photometric.solarize_add(images, amounts, thresholds), expected)


def test_adding_a_color(images: Tensor) -> None:
    colors = np.random.default_rng(2).uniform(-255, 255, images.shape[:2])
    colors[:4] = [[0.5], [-0.5], [1.5], [0.0]]
    exact = np.floor(images.numpy().astype(float) + colors[:, :, None, None] + 0.5).clip(0, 255)
    assert torch.equal(
        photometric.add_color(images, torch.from_numpy(colors)).double(), torch.from_numpy(exact)
    )


def test_gamma(images: Tensor) -> None:
    rng = np.random.default_rng(6)
    exponents = torch.from_numpy(rng.uniform(0.05, 5, len(images)))
    exponents[:4] = torch.tensor([1.0, 0.5, 2.0, 3.0])
    expected = each(images, lambda picture, i: F.adjust_gamma(picture, exponents[i].item()))
    assert torch.equal(photometric.gamma(images, exponents), expected)


def test_hue(images: Tensor) -> None:
    turns = torch.linspace(-0.5, 0.5, len(images), dtype=torch.float64)
    expected = each(images, lambda picture, i: F.adjust_hue(picture, turns[i].item()))
    assert torch.equal(photometric.hue(images, turns), expected)


def test_hue_of_a_sixteenth_of_all_colors() -> None:
    rng = np.random.default_rng(3)
    colors = torch.arange(int(rng.integers(16)), 2**24, 16)
    images = torch.stack((colors >> 16, colors >> 8 & 255, colors & 255)).to(torch.uint8)
    images = images.view(3, 16, 256, 256).transpose(0, 1).contiguous()
    turns = torch.from_numpy(rng.uniform(-0.5, 0.5, 16))
    expected = each(images, lambda picture, i: F.adjust_hue(picture, turns[i].item()))
    assert torch.equal(photometric.hue(images, turns), expected)


def test_luma_of_an_eighth_of_all_colors() -> None:
    colors = torch.arange(3, 2**24, 8)
    images = torch.stack((colors >> 16, colors >> 8 & 255, colors & 255)).to(torch.uint8)
    images = images.view(3, 8, 512, 512).transpose(0, 1).contiguous()
    assert torch.equal(photometric.luma(images), each(images, lambda p, i: p.convert("L")).float())


@given(shape=st.tuples(*[st.integers(1, 3)] * 4), data=st.data())
@settings(max_examples=30, deadline=None)
def test_lookup(shape: tuple[int, ...], data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    b, c = data.draw(st.sampled_from((1, shape[0]))), data.draw(st.sampled_from((1, shape[1])))
    tables = torch.rand((b, c, 256), generator=torch.Generator().manual_seed(seed))
    full = tables.expand(*shape[:2], 256)
    expected = torch.stack(
        [full[i, j][images[i, j].long()] for i in range(shape[0]) for j in range(shape[1])]
    )
    assert torch.equal(photometric.lookup(images, tables), expected.view(shape))


def matrices(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Matrices for each way that Pillow goes, tame and wild."""
    height, width = size
    center = (width * 0.5, height * 0.5)
    kinds: list[Callable[[], tuple[float, ...]]] = [
        lambda: geometric.rotation_matrix(rng.uniform(-400, 400), height, width),
        lambda: geometric.rotation_matrix(90.0 * rng.integers(-4, 5), height, width),
        lambda: geometric.affine_matrix(shear=(rng.uniform(-50, 50), 0)),
        lambda: geometric.affine_matrix(shear=(0, rng.uniform(-50, 50))),
        lambda: geometric.affine_matrix(translate=(rng.integers(-width, width + 1), 0), center=center),
        lambda: geometric.affine_matrix(translate=tuple(rng.uniform(-9, 9, 2)), center=center),
        lambda: (rng.normal(), 0.0, rng.uniform(-width, width), 0.0, rng.normal(), rng.uniform(0, height)),
        lambda: tuple(rng.normal(0, 1, 6) * (1, 1, width, 1, 1, height)),
        lambda: tuple(rng.normal(0, 1, 6) * (1e4, 1, width, 1, 1e5, height)),
        lambda: tuple(np.round(rng.normal(0, 1, 6) * (2, 2, width, 2, 2, height)) / 2),
    ]
    return [tuple(float(x) for x in kinds[i % len(kinds)]()) for i in range(count)]


def transform(picture: Image.Image, matrix: tuple[float, ...], method: int, fill: list[int]) -> Image.Image:
    color = tuple(fill) if len(fill) > 1 else fill[0]
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling(method), fillcolor=color
    )


@pytest.mark.parametrize("method", [geometric.NEAREST, geometric.BILINEAR, geometric.BICUBIC])
def test_affine(images: Tensor, method: int) -> None:
    rng = np.random.default_rng(4)
    images = images.repeat(2, 1, 1, 1)
    chosen = matrices(rng, len(images), (images.shape[2], images.shape[3]))
    fill = torch.from_numpy(rng.integers(0, 256, images.shape[:2]))
    methods = torch.full((len(images),), method)
    expected = each(images, lambda p, i: transform(p, chosen[i], method, fill[i].tolist()))
    assert torch.equal(
        geometric.affine(images, torch.tensor(chosen, dtype=torch.float64), methods, fill), expected
    )


@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 40), width=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_affine_with_a_filter_of_its_own_for_each_image(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (20, 3, height, width), dtype=np.uint8))
    chosen = matrices(rng, 20, (height, width))
    methods, fill = (
        torch.from_numpy(rng.choice([0, 2, 3], 20)),
        torch.from_numpy(rng.integers(0, 256, (20, 3))),
    )
    got = geometric.affine(images, torch.tensor(chosen, dtype=torch.float64), methods, fill)
    assert torch.equal(
        got, each(images, lambda p, i: transform(p, chosen[i], int(methods[i]), fill[i].tolist()))
    )


def test_affine_with_an_unknown_filter() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected 0, 2 and 3"):
        geometric.affine(images, torch.zeros(2, 6).double(), torch.tensor([0, 1]), torch.zeros(2, 3))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_pick(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, fill = rng.integers(0, 256, (6, 3, 8, 5), np.uint8), rng.integers(0, 256, (6, 3), np.uint8)
    rows, columns = (rng.integers(-1, n, (6, n)) for n in (8, 5))
    got = geometric.pick(*map(torch.from_numpy, (images, rows, columns, fill)))
    for i, y, x in np.ndindex(6, 8, 5):
        inside = rows[i, y] >= 0 and columns[i, x] >= 0
        assert np.array_equal(got[i, :, y, x], images[i, :, rows[i, y], columns[i, x]] if inside else fill[i])
    black = geometric.pick(*map(torch.from_numpy, (images, rows, columns)))
    assert torch.equal(black, geometric.pick(*map(torch.from_numpy, (images, rows, columns, fill * 0))))


def test_rotation_matrix_is_that_of_pillow(images: Tensor) -> None:
    height, width = images.shape[2:]
    degrees = [0.0, 90.0, 180.0, 270.0, -90.0, 45.0, 360.0, 1e-9, *np.linspace(-500, 500, 16)]
    rows = [geometric.rotation_matrix(angle, height, width) for angle in degrees]
    fill = torch.zeros(images.shape[:2])
    expected = each(images, lambda p, i: p.rotate(degrees[i], Image.Resampling.BILINEAR))
    methods = torch.full((len(images),), geometric.BILINEAR)
    assert torch.equal(
        geometric.affine(images, torch.tensor(rows, dtype=torch.float64), methods, fill), expected
    )
    expected = each(images, lambda p, i: p.rotate(degrees[i]))
    assert torch.equal(
        geometric.affine(images, torch.tensor(rows, dtype=torch.float64), methods * 0, fill), expected
    )


def test_affine_matrix_is_that_of_torchvision() -> None:
    rng = np.random.default_rng(5)
    for _ in range(100):
        angle, scale, x, y, tx, ty, cx, cy = (
            float(v) for v in rng.uniform(0.3, 60, 8) * rng.choice((-1, 1), 8)
        )
        expected = F._get_inverse_affine_matrix([cx, cy], angle, [tx, ty], abs(scale), [x, y])
        got = geometric.affine_matrix(
            angle=angle, translate=(tx, ty), scale=abs(scale), shear=(x, y), center=(cx, cy)
        )
        assert list(got) == expected
    assert geometric.affine_matrix() == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    sheared = geometric.affine_matrix(shear=(math.degrees(math.atan(0.3)), 0.0))
    assert sheared == pytest.approx((1.0, 0.3, 0.0, 0.0, 1.0, 0.0))


def test_images_do_not_influence_each_other(images: Tensor) -> None:
    f = factors(len(images))
    for act in (photometric.contrast, photometric.sharpness, photometric.saturation):
        assert torch.equal(act(images, f)[5:9], act(images[5:9], f[5:9]))
    for act in (photometric.gamma, filters.gaussian_blur, filters.clahe):
        f = factors(len(images)).abs() + 0.1
        assert torch.equal(act(images, f)[5:9], act(images[5:9], f[5:9]))
    for alone in (photometric.autocontrast, photometric.equalize):
        assert torch.equal(alone(images)[5:9], alone(images[5:9]))
