"""Vertical flips, gray, gamma, CLAHE, blur and noise against torchvision, SciPy, OpenCV and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage, stats
from scipy.special import ndtri
from torchvision.transforms import RandomGrayscale as TorchvisionGrayscale
from torchvision.transforms import functional as F

from conftest import CLASSES
from conftest import draw as picture
from trickbag.data.base import DataFacts
from trickbag.functional import filters
from trickbag.imageops import Op, Program, Step, execute
from trickbag.imageops.backend import BACKENDS, numba_works
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.rng import Stream
from trickbag.tricks.augmentation import RandomFlip, VerticalFlip
from trickbag.tricks.base import Bag
from trickbag.tricks.color import ColorJitter, Normalize, PCANoise
from trickbag.tricks.corruptions import GaussianBlur, GaussianNoise
from trickbag.tricks.policies import RandAugment
from trickbag.tricks.stages import Batch
from trickbag.tricks.tones import CLAHE, RandomGamma, RandomGrayscale

THERE = BACKENDS if numba_works() else ("torch",)
OURS = (VerticalFlip, RandomGamma, CLAHE, RandomGrayscale, GaussianBlur, GaussianNoise)
SIZES = ((1, 1), (3, 5), (16, 16), (17, 30), (64, 31))
quick = settings(deadline=None, max_examples=20)
sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def pictures(batch: int, channels: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Noise, shapes, and images of little contrast: uint8 ``(batch, channels, *size)``."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, channels, *size), dtype=np.uint8)
    for i in range(0, batch, 2):
        shape = picture(CLASSES[i // 2 % 4], max(*size, 2), rng)[: size[0], : size[1], :channels]
        images[i] = shape.transpose(2, 0, 1)
    images[1::4] = images[1::4] // 16 + 100
    return torch.from_numpy(images)


def draw(trick, *shape: int, seed: int = 0, step: int = 0) -> Step:
    (drawn,) = trick.draw(Batch(shape, step), Stream(seed, trick.kind))
    return drawn


def each_back_end(images: torch.Tensor, *steps: Step) -> np.ndarray:
    """What all back ends make of the images, as they should: one and the same."""
    made = [execute(images, Program(steps), levels=True, backend=backend) for backend in THERE]
    assert all(torch.equal(made[0], other) for other in made[1:])
    return made[0].numpy()


def context(*tricks, channels: int = 3, image_size: int = 32) -> Context:
    facts = DataFacts("x", ("a", "b"), channels, {"train": 64}, (32, 32), "f", (), ())
    recipe = Recipe(
        model={"name": "resnet18"}, epochs=1, batch_size=8, image_size=image_size, tricks=Bag(tricks)
    )
    return Context(recipe, facts)


# ---------------------------------------------------------------- what all of them promise


@pytest.mark.parametrize("kind", OURS)
def test_each_image_is_chosen_with_its_probability(kind):
    assert kind(p=0).draw(Batch((8, 3, 4, 4)), Stream(0, kind.kind)) == ()
    for p in (0.3, 1.0):
        ops = draw(kind(p=p), 20000, 3, 4, 4).ops
        assert len(set(ops) - {Op.IDENTITY}) == 1
        assert abs((ops != Op.IDENTITY).mean() - p) < 0.015


def test_they_act_after_policies_and_before_normalization():
    tricks = [kind() for kind in OURS] + [RandomFlip(), RandAugment(), ColorJitter(), PCANoise(), Normalize()]
    order = [trick.kind for trick in sorted(tricks, key=lambda trick: trick.order)]
    assert order == [
        "random_flip",
        "vertical_flip",
        "rand_augment",
        "color_jitter",
        "pca_noise",
        "random_gamma",
        "clahe",
        "random_grayscale",
        "gaussian_blur",
        "gaussian_noise",
        "normalize",
    ]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (RandomGamma, {"gamma": (1.5, 0.5)}),
        (RandomGamma, {"gamma": (0, 1)}),
        (GaussianBlur, {"sigma": (0, 1)}),
        (GaussianBlur, {"sigma": (2, 1)}),
        (GaussianNoise, {"std": (-0.1, 1)}),
        (CLAHE, {"clip_limit": (0, 1)}),
        (CLAHE, {"tiles": 0}),
        (VerticalFlip, {"p": 1.1}),
    ],
)
def test_settings_out_of_range_are_refused(kind, values):
    with pytest.raises(ValidationError):
        kind(**values)


# ---------------------------------------------------------------- vertical flip


def test_vertical_flip_is_that_of_torchvision():
    images = pictures(16, 3, (7, 5))
    step = draw(VerticalFlip(), *images.shape)
    assert 0 < (step.ops == Op.FLIP).sum() < 16
    for image, op, result in zip(images, step.ops, each_back_end(images, step), strict=True):
        assert torch.equal(torch.from_numpy(result), F.vflip(image) if op == Op.FLIP else image)


def test_vertical_flip_composes_with_random_flip():
    images = pictures(64, 3, (6, 9))
    across, down = draw(RandomFlip(), *images.shape), draw(VerticalFlip(), *images.shape)
    made = each_back_end(images, across, down)
    seen = set()
    for i, result in enumerate(made):
        one, other = bool(across.args[i, 0]), bool(down.ops[i] == Op.FLIP)
        expected = F.hflip(images[i]) if one else images[i]
        assert torch.equal(torch.from_numpy(result), F.vflip(expected) if other else expected)
        seen.add((one, other))
    assert len(seen) == 4


# ---------------------------------------------------------------- gray and gamma


@pytest.mark.parametrize("size", SIZES)
def test_random_grayscale_is_that_of_torchvision_on_pillow_images(size):
    images = pictures(12, 3, size)
    step = draw(RandomGrayscale(p=0.5), *images.shape)
    reference = TorchvisionGrayscale(p=1)
    for image, op, result in zip(images, step.ops, each_back_end(images, step), strict=True):
        expected = F.pil_to_tensor(reference(F.to_pil_image(image))) if op else image
        assert torch.equal(torch.from_numpy(result), expected)


def test_random_grayscale_refuses_gray_images():
    assert not list(RandomGrayscale().check(context()))
    assert not list(RandomGrayscale(p=0).check(context(channels=1)))
    (problem,) = RandomGrayscale().check(context(channels=1))
    assert "gray" in problem.what


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_random_gamma_is_that_of_torchvision_on_pillow_images(size, channels):
    images = pictures(12, channels, size)
    step = draw(RandomGamma(p=0.7, gamma=(0.3, 3.0)), *images.shape)
    for image, op, args, result in zip(images, step.ops, step.args, each_back_end(images, step), strict=True):
        expected = F.pil_to_tensor(F.adjust_gamma(F.to_pil_image(image), args[0])) if op else image
        assert torch.equal(torch.from_numpy(result), expected)


def test_random_gamma_brightens_as_often_as_it_darkens():
    drawn = np.log(draw(RandomGamma(gamma=(0.5, 2.0)), 20000, 3, 4, 4).args[:, 0])
    assert stats.kstest(drawn, stats.uniform(-math.log(2), 2 * math.log(2)).cdf).pvalue > 1e-3


# ---------------------------------------------------------------- CLAHE


def adaptive(plane: np.ndarray, clip: float, tiles: int) -> np.ndarray:
    """CLAHE of one channel ``(height, width)`` uint8, as OpenCV does it, tile by tile and pixel by pixel."""
    height, width = plane.shape
    below, right = -height % tiles, -width % tiles
    if below or right:  # OpenCV pads by a whole pixel a tile where only the other side does not divide.
        below, right = below or tiles, right or tiles
    whole = np.pad(plane, ((0, below), (0, right)), mode="reflect")
    tall, wide = whole.shape[0] // tiles, whole.shape[1] // tiles
    tables = np.empty((tiles, tiles, 256), np.float32)
    for row, column in np.ndindex(tiles, tiles):
        tile = whole[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
        counts = np.bincount(tile.ravel(), minlength=256)
        if clip:
            limit = max(int(clip * tile.size / 256), 1)
            excess = np.maximum(counts - limit, 0).sum()
            counts = np.minimum(counts, limit) + excess // 256
            if rest := excess % 256:
                counts[:: max(256 // rest, 1)][:rest] += 1
        share = np.float32(255) / np.float32(tile.size)
        tables[row, column] = np.rint(counts.cumsum().astype(np.float32) * share).clip(0, 255)
    result = np.empty_like(plane)
    one = np.float32(1)
    for y, x in np.ndindex(height, width):
        down, across = (np.float32(y) * (one / np.float32(tall)), np.float32(x) * (one / np.float32(wide)))
        down, across = down - np.float32(0.5), across - np.float32(0.5)
        top, left = math.floor(down), math.floor(across)
        down, across = down - np.float32(top), across - np.float32(left)
        bottom, side = min(top + 1, tiles - 1), min(left + 1, tiles - 1)
        top, left = max(top, 0), max(left, 0)
        corners = tables[[top, top, bottom, bottom], [left, side, left, side], plane[y, x]]
        upper = corners[0] * (one - across) + corners[1] * across
        lower = corners[2] * (one - across) + corners[3] * across
        result[y, x] = np.rint(upper * (one - down) + lower * down).clip(0, 255)
    return result


def adapted(image: np.ndarray, equalize, each: bool) -> np.ndarray:
    """What equalizing one channel makes of an image ``(channels, height, width)``."""
    if each or len(image) == 1:
        return np.stack([equalize(plane) for plane in image])
    gray = np.array(F.to_pil_image(torch.from_numpy(image)).convert("L"))
    return (image + (equalize(gray).astype(int) - gray)).clip(0, 255)


@given(seed=seeds, size=st.tuples(sides, sides), tiles=st.sampled_from((1, 2, 3, 8)), each=st.booleans())
@quick
def test_clahe_is_the_algorithm_of_opencv(seed, size, tiles, each):
    images = pictures(2, 3, size, seed)
    trick = CLAHE(p=1, clip_limit=(0.5, 6), tiles=tiles, channels="each" if each else "luma")
    step = draw(trick, *images.shape, seed=seed)
    for image, args, result in zip(images.numpy(), step.args, each_back_end(images, step), strict=True):
        clip = args[0]
        np.testing.assert_array_equal(result, adapted(image, lambda p, c=clip: adaptive(p, c, tiles), each))


@pytest.mark.parametrize("each", [False, True], ids=["luma", "each"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (24, 24), (64, 56), (225, 200)])
def test_clahe_is_that_of_opencv(size, channels, each):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(sum(size))
    images = pictures(8, channels, size)
    limits, tiles = rng.choice([0.0, 1.0, 2.5, 40.0], 8), rng.choice([1, 2, 5, 8], 8)
    made = each_back_end(images, Step.of(Op.CLAHE, limits, tiles, each))
    for image, limit, count, result in zip(images.numpy(), limits, tiles, made, strict=True):
        reference = cv2.createCLAHE(float(limit), (int(count), int(count)))
        np.testing.assert_array_equal(result, adapted(image, reference.apply, each))


def test_clahe_draws_its_limit_uniformly():
    step = draw(CLAHE(p=1, clip_limit=(2, 5), tiles=4, channels="each"), 20000, 3, 4, 4)
    assert stats.kstest(step.args[:, 0], stats.uniform(2, 3).cdf).pvalue > 1e-3
    assert (step.args[:, 1:3] == (4, 1)).all()


def test_clahe_keeps_the_differences_between_channels():
    images = pictures(4, 3, (32, 32)) // 4 + 90
    made = filters.clahe(images, torch.full((4,), 1.5), tiles=2).short()
    inside = ((made > 0) & (made < 255)).all(1, keepdim=True)
    change = made - images
    assert inside.float().mean() > 0.9
    assert ((change == change[:, :1]) | ~inside).all()


def test_clahe_notes_tiles_that_are_too_small():
    (said,) = CLAHE().notes(context(image_size=32))
    assert "4 x 4 pixels" in said
    assert "clahe.tiles to 2" in said
    assert not list(CLAHE(tiles=2).notes(context(image_size=32)))
    assert not list(CLAHE().notes(context(image_size=224)))
    assert not list(CLAHE(p=0).notes(context(image_size=32)))
    assert not list(CLAHE(tiles=1).notes(context(image_size=8)))


# ---------------------------------------------------------------- blur


@given(seed=seeds, size=st.tuples(sides, sides), channels=st.sampled_from((1, 3)))
@quick
def test_gaussian_blur_is_the_convolution_but_for_rounding(seed, size, channels):
    images = pictures(6, channels, size, seed)
    sigmas = np.random.default_rng(seed).uniform(0.02, 5, 6)
    made = filters.gaussian_blur(images, torch.from_numpy(sigmas)).numpy()
    for image, sigma, result in zip(images.double().numpy(), sigmas, made, strict=True):
        radius = math.ceil(3 * sigma)
        for axis in (1, 2):
            image = ndimage.gaussian_filter1d(image, sigma, axis, mode="mirror", radius=radius)
        np.testing.assert_allclose(result, image, rtol=0, atol=0.515)


@pytest.mark.parametrize("size", [(16, 16), (33, 30), (224, 200)])
def test_gaussian_blur_is_that_of_torchvision_within_one_level(size):
    images = pictures(6, 3, size)
    step = draw(GaussianBlur(p=1.0), *images.shape)
    assert (step.ops == Op.BLUR).all()
    made = each_back_end(images, step).astype(int)
    for image, (radius, ratio), result in zip(images, step.args[:, :2], made, strict=True):
        sigma = math.sqrt(-0.5 / math.log(ratio))
        assert radius == math.ceil(3 * sigma)
        expected = F.gaussian_blur(image, 2 * int(radius) + 1, sigma).numpy()
        assert np.abs(result - expected).max() <= 1
        assert (result == expected).mean() > 0.97


def test_gaussian_blur_draws_sigma_uniformly():
    ratios = draw(GaussianBlur(p=1.0, sigma=(0.5, 2)), 20000, 3, 4, 4).args[:, 1]
    assert stats.kstest(np.sqrt(-0.5 / np.log(ratios)), stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3


@given(sigma=st.floats(0.01, 10), level=st.integers(0, 255))
@quick
def test_blur_leaves_flat_images_alone(sigma, level):
    images = torch.full((1, 3, 5, 4), level, dtype=torch.uint8)
    radii, ratios = filters.blur_shape(torch.tensor([sigma]))
    assert (each_back_end(images, Step.of(Op.BLUR, radii.numpy(), ratios.numpy())) == level).all()
    weights = filters.blur_kernels(radii, ratios)[0]
    assert weights[0] + 2 * weights[1:].sum() == 65536
    assert (weights >= 0).all()


# ---------------------------------------------------------------- noise


def hashed(x: np.ndarray) -> np.ndarray:
    for _ in range(2):
        x = (x ^ (x >> np.uint64(16))) * np.uint64(0x45D9F3B) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


@pytest.mark.parametrize("channels", [1, 3])
def test_gaussian_noise_is_value_plus_normal_rounded(channels):
    images = pictures(10, channels, (13, 11))
    step = draw(GaussianNoise(p=0.8, std=(0.0, 0.3)), *images.shape)
    made = each_back_end(images, step)
    for image, op, args, result in zip(images.numpy(), step.ops, step.args, made, strict=True):
        if op == Op.IDENTITY:
            np.testing.assert_array_equal(result, image)
            continue
        first, second = (np.array([seed], np.uint64) for seed in args[1:3])
        places = np.arange(image.size, dtype=np.uint64)
        bits = hashed(hashed(places ^ hashed(first)) ^ hashed(hashed(first) ^ second))
        normal = ndtri(((bits >> np.uint64(16)).astype(float) + 0.5) / 65536).reshape(image.shape)
        exact = (image + args[0] * normal).clip(0, 255)
        np.testing.assert_allclose(result, exact, rtol=0, atol=0.5001)


def test_gaussian_noise_is_normal_and_independent():
    images = torch.full((24, 3, 64, 64), 128, dtype=torch.uint8)
    step = draw(GaussianNoise(p=1.0, std=(0.1, 0.1)), *images.shape)
    noise = each_back_end(images, step).astype(float) - 128
    assert abs(noise.mean()) < 0.2
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), 25.5, rtol=0.03)
    assert abs(stats.skew(noise.ravel())) < 0.03
    assert abs(stats.kurtosis(noise.ravel())) < 0.06
    flat = noise.reshape(72, -1)
    between = np.corrcoef(flat)[~np.eye(72, dtype=bool)]
    assert np.abs(between).max() < 0.08
    for axis in (2, 3):
        next_to = np.corrcoef(np.roll(noise, 1, axis).ravel(), noise.ravel())[0, 1]
        assert abs(next_to) < 0.01


def test_gaussian_noise_has_a_strength_of_its_own_for_each_image():
    step = draw(GaussianNoise(p=1.0), 20000, 3, 4, 4)
    assert stats.kstest(step.args[:, 0] / 255, stats.uniform(0, 0.05).cdf).pvalue > 1e-3
    assert len(np.unique(step.args[:, 1:3], axis=0)) == 20000
    images = pictures(4, 3, (8, 8))
    np.testing.assert_array_equal(each_back_end(images, Step.of(Op.NOISE, 0, 1, 2, batch=4)), images)
