"""Image tricks against Pillow, torchvision, timm, NumPy and the papers' formulas; and what they promise."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as tv

from trickbag.data.base import DataFacts
from trickbag.functional import augment, color, erasing
from trickbag.imageops import Op, Program, Step, execute
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.rng import Stream
from trickbag.tricks.augmentation import (
    AlternatingFlip,
    PadAndCrop,
    RandomFlip,
    RandomResizedCrop,
    splitmix64,
)
from trickbag.tricks.base import Bag
from trickbag.tricks.color import ColorJitter, Normalize, PCANoise
from trickbag.tricks.erasing import RandomErasing
from trickbag.tricks.stages import Batch

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed))


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)


def draw(trick, *shape, seed: int = 0, step: int = 0, **where) -> tuple[Step, ...]:
    return tuple(trick.draw(Batch(shape, step, **where), Stream(seed, trick.kind)))


def drawn(trick, *shape, **values) -> np.ndarray:
    """Arguments ``(batch, 10)`` of a trick that draws one step."""
    (step,) = draw(trick, *shape, **values)
    return step.args


def levels(images: torch.Tensor, *steps: Step) -> torch.Tensor:
    return execute(images, Program(steps), levels=True)


def performed(trick, images: torch.Tensor, steps: tuple[Step, ...]) -> torch.Tensor:
    """What a trick makes of images: uint8, or float32 where it acts on floats."""
    table = trick.table(images.shape[1])
    if trick.late:
        return execute(images, Program((), None, steps))
    return levels(images, *steps) if table is None else execute(images, Program(steps, table))


def context(*tricks, channels=3, image_size=32, mean=(), std=(), pretrained=False):
    facts = DataFacts("x", ("a", "b"), channels, {"train": 64}, (32, 32), "f", mean, std)
    model = {"name": "resnet18", "pretrained": pretrained}
    recipe = Recipe(model=model, epochs=1, batch_size=8, image_size=image_size, tricks=Bag(tricks))
    return Context(recipe, facts)


# ---------------------------------------------------------------- flips and crops


def test_flip_mirrors_each_chosen_image_as_torchvision_does():
    images = batch(8, 3, 5, 7)
    horizontal, vertical = torch.rand((2, 8), generator=generator(1)) < 0.5
    flipped = augment.flip(images, horizontal, vertical)
    for i, image in enumerate(images):
        image = tv.horizontal_flip(image) if horizontal[i] else image
        image = tv.vertical_flip(image) if vertical[i] else image
        assert torch.equal(flipped[i], image)


def test_random_flip_draws_each_image_and_direction_on_its_own():
    (step,) = draw(RandomFlip(p=0.3, vertical=0.6), 20000, 3, 4, 4)
    assert (step.ops == Op.FLIP).all()
    horizontal, vertical = step.args[:, 0], step.args[:, 1]
    assert set(np.unique(step.args[:, :2])) == {0, 1}
    assert abs(horizontal.mean() - 0.3) < 0.015
    assert abs(vertical.mean() - 0.6) < 0.015
    assert abs((horizontal * vertical).mean() - 0.18) < 0.015


def test_random_flip_mirrors_as_torchvision_does():
    images = pixels(12, 3, 5, 7)
    (step,) = draw(RandomFlip(vertical=0.5), *images.shape)
    for image, args, result in zip(images, step.args, levels(images, step), strict=True):
        image = tv.horizontal_flip(image) if args[0] else image
        assert torch.equal(result, tv.vertical_flip(image) if args[1] else image)


def test_alternating_flip_shows_both_versions_in_every_two_epochs():
    indices = np.random.default_rng(0).permutation(5000)
    shape = (len(indices), 3, 2, 3)
    epochs = [drawn(AlternatingFlip(), *shape, epoch=e, indices=indices)[:, 0] for e in range(5)]
    assert abs(epochs[0].mean() - 0.5) < 0.03
    for one, other in pairwise(epochs):
        np.testing.assert_array_equal(one, 1 - other)
    images = pixels(8, 3, 2, 3)
    for epoch in (0, 1):
        steps = draw(AlternatingFlip(), *images.shape, epoch=epoch, indices=indices[:8])
        expected = augment.flip(images, torch.from_numpy(epochs[epoch][:8] == 1))
        assert torch.equal(levels(images, *steps), expected)


def test_alternating_flip_tosses_by_position_and_seed_alone():
    indices, rng = np.arange(100, 1100), np.random.default_rng(0)
    first = drawn(AlternatingFlip(), 1000, 1, 2, 2, indices=indices)[:, 0]
    for step in (3, 900):
        order = rng.permutation(1000)
        again = drawn(AlternatingFlip(), 1000, 1, 2, 2, step=step, epoch=2, indices=indices[order])[:, 0]
        np.testing.assert_array_equal(again, first[order])
    other = drawn(AlternatingFlip(), 1000, 1, 2, 2, seed=1, indices=indices)[:, 0]
    assert 420 < (first == other).sum() < 580
    runs = 1 + (first[1:] != first[:-1]).sum()
    assert 420 < runs < 580, "neighbors in the split are related"


def test_alternating_flip_share_takes_part_and_the_others_stay():
    shape, indices = (20000, 1, 2, 2), np.arange(20000)
    whole, some = (
        [drawn(AlternatingFlip(share=x), *shape, epoch=e, indices=indices)[:, 0] for e in (0, 1)]
        for x in (1, 0.3)
    )
    part = some[0] + some[1]
    assert set(part) == {0, 1}
    assert abs(part.mean() - 0.3) < 0.015
    for epoch in (0, 1):
        np.testing.assert_array_equal(some[epoch], whole[epoch] * part)


def test_alternating_flip_hashes_are_those_of_splitmix64():
    def reference(state, count):
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            yield z ^ z >> 31

    assert next(reference(1234567, 1)) == 6457827717110365317  # published test vector
    for seed in (0, 1234567, 2**63 - 1):
        assert splitmix64(seed, np.arange(50)).tolist() == list(reference(seed, 50))


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize(("height", "width", "padding"), [(5, 7, 2), (4, 4, 4), (3, 2, 5), (1, 6, 1)])
def test_pad_and_crop_equals_numpy_pad_then_slice(mode, numpy_mode, height, width, padding):
    side = 2 * padding + 1
    offsets = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    images = batch(len(offsets), 2, height, width)
    cropped = augment.pad_and_crop(images, offsets, padding, mode)
    for image, (top, left), result in zip(images.numpy(), offsets.tolist(), cropped.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode=numpy_mode)
        np.testing.assert_array_equal(result, padded[:, top : top + height, left : left + width])


def test_pad_and_crop_draws_every_offset_equally_often():
    args = drawn(PadAndCrop(padding=2), 10000, 1, 8, 8)
    table = np.bincount(((args[:, 0] + 2) * 5 + args[:, 1] + 2).astype(int), minlength=25)
    assert len(table) == 25
    assert stats.chisquare(table).pvalue > 1e-3


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize(("height", "width", "padding"), [(5, 7, 2), (3, 2, 5), (1, 6, 1)])
def test_pad_and_crop_cuts_the_drawn_windows(mode, height, width, padding):
    images = pixels(40, 3, height, width)
    (step,) = draw(PadAndCrop(padding=padding, mode=mode), *images.shape)
    offsets = torch.from_numpy(step.args[:, :2]).long() + padding
    expected = augment.pad_and_crop(images, offsets, padding, mode)
    assert torch.equal(levels(images, step), expected)


def test_pad_and_crop_rejects_unknown_mode():
    with pytest.raises(ValueError, match="expected 'zero' or 'reflect'"):
        augment.pad_and_crop(batch(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.long), 1, "wrap")


@pytest.mark.parametrize("size", [(400, 300), (90, 210)])
def test_random_resized_crop_boxes_are_distributed_as_torchvision_s(size):
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    theirs = np.array(
        [TorchvisionCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)], float
    )
    sizes = torch.tensor([size]).expand(15000, 2)
    ours = augment.random_resized_crop_boxes(sizes, generator()).numpy()

    def features(boxes):
        top, left, height, width = boxes.T
        slack_y, slack_x = size[0] - height, size[1] - width
        return height * width, width / height, top / (slack_y + 1), left / (slack_x + 1), height, top

    for a, b in zip(features(theirs), features(ours), strict=True):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize("size", [(10, 200), (200, 10), (31, 400), (400, 33), (1, 50)])
def test_random_resized_crop_falls_back_as_torchvision_does(size):
    limits = [0.95, 1.0], [3 / 4, 4 / 3]
    theirs = TorchvisionCrop.get_params(torch.empty(3, *size), *limits)
    ours = augment.random_resized_crop_boxes(
        torch.tensor([size]), generator(), area=limits[0], ratio=limits[1]
    )
    assert ours[0].tolist() == list(theirs)


@quick
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20), seeds)
def test_random_resized_crop_boxes_are_whole_pixels_inside_the_images(sizes, seed):
    sizes = torch.tensor(sizes)
    boxes = RandomResizedCrop().boxes(sizes, generator(seed))
    assert boxes.dtype == torch.float64
    assert torch.equal(boxes, boxes.round())
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()


@quick
@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20), seeds)
def test_random_resized_crop_null_is_the_largest_centered_square(sizes, seed):
    boxes = RandomResizedCrop.null().boxes(torch.tensor(sizes), generator(seed))
    squares = [[(h - min(h, w)) // 2, (w - min(h, w)) // 2, min(h, w), min(h, w)] for h, w in sizes]
    assert boxes.tolist() == squares


def test_random_resized_crop_p_keeps_the_other_boxes():
    sizes = torch.randint(20, 90, (500, 2), generator=generator())
    half, always = (RandomResizedCrop(p=p).boxes(sizes, generator(3)) for p in (0.5, 1))
    square = augment.center_square_boxes(sizes)
    kept = (half == always).all(1)
    assert ((half == square).all(1) | kept).all()
    assert 0.4 < kept.double().mean() < 0.65


# ---------------------------------------------------------------- colors


JITTER_OPS = {Op.BRIGHTNESS: 0, Op.CONTRAST: 1, Op.SATURATION: 2, Op.HUE: 3}  # torchvision's numbers


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("reach", "hue"), [((0.4, 0.3, 0.2), 0.1), ((1, 1, 1), 0.5), ((0.4, 0, 0.4), 0)])
def test_color_jitter_equals_torchvision_s_on_pillow_images_to_the_bit(channels, reach, hue, monkeypatch):
    images = pixels(40, channels, 6, 5)
    images[0], images[1], images[2, :, :3] = 0, 255, 128
    brightness, contrast, saturation = reach
    trick = ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    steps = draw(trick, *images.shape, seed=2)
    result = levels(images, *steps)
    for i, image in enumerate(images):
        order = [JITTER_OPS[Op(step.ops[i])] for step in steps]
        amounts = [None] * 4
        for k, step in zip(order, steps, strict=True):
            amounts[k] = step.args[i, 0]
        monkeypatch.setattr(TorchvisionJitter, "get_params", lambda *_, o=order, a=amounts: (o, *a))
        expected = TorchvisionJitter()(tv.to_pil_image(image))
        assert torch.equal(result[i], tv.pil_to_tensor(expected))


def test_color_jitter_draws_uniform_amounts_and_orders():
    trick = ColorJitter(brightness=0.4, contrast=0.1, saturation=0.9, hue=0.2)
    steps = draw(trick, 12000, 3, 2, 2)
    ops = np.stack([step.ops for step in steps], 1)
    amounts = np.stack([step.args[:, 0] for step in steps], 1)
    assert (np.sort(ops, 1) == sorted(JITTER_OPS)).all()
    for op, center, reach in zip(JITTER_OPS, (1, 1, 1, 0), (0.4, 0.1, 0.9, 0.2), strict=True):
        uniform = stats.uniform(center - reach, 2 * reach)
        assert stats.kstest(amounts[ops == op], uniform.cdf).pvalue > 1e-3
    counts = np.unique(ops.astype(int) @ [1000, 100, 10, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_color_jitter_leaves_out_what_is_not_used_and_nothing_else():
    whole = draw(ColorJitter(hue=0.1), 500, 3, 2, 2)
    less = draw(ColorJitter(hue=0, contrast=0), 500, 3, 2, 2)
    assert len(less) == 2
    for i in range(500):
        kept = [(s.ops[i], s.args[i, 0]) for s in whole if s.ops[i] in (Op.BRIGHTNESS, Op.SATURATION)]
        assert kept == [(s.ops[i], s.args[i, 0]) for s in less]


def test_pca_noise_follows_alexnet_s_formula_on_the_published_axes():
    # Eigenvalues as MXNet gives them, for values from 0 to 255.
    eigenvalues = np.array([55.46, 4.794, 1.148]) / 255
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-4)
    amounts = torch.randn((50, 3), generator=generator(), dtype=torch.float64)
    expected = (axes @ (amounts.numpy() * eigenvalues).T).T
    np.testing.assert_allclose(color.pca_shift(amounts).numpy(), expected, atol=2e-4)


def test_pca_noise_draws_have_the_papers_covariance():
    shift = drawn(PCANoise(std=0.1), 200000, 3, 2, 2)[:, :3] / 255
    axes, scales = np.array(color.PCA_EIGENVECTORS), np.array(color.PCA_EIGENVALUES)
    expected = axes @ np.diag((0.1 * scales) ** 2) @ axes.T
    np.testing.assert_allclose(np.cov(shift.T), expected, atol=0.01 * expected.max())


@pytest.mark.parametrize("std", [0.1, 10])
def test_pca_noise_adds_the_drawn_colors(std):
    images = pixels(60, 3, 4, 5)
    (step,) = draw(PCANoise(std=std), *images.shape)
    assert (abs(step.args) <= 255).all()
    exact = images.numpy() + step.args[:, :3, None, None]
    result = levels(images, step).numpy()
    np.testing.assert_allclose(result, exact.clip(0, 255), atol=0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_equals_torchvision_s(channels):
    images = pixels(4, channels, 5, 6)
    mean, std = Normalize.IMAGENET_MEAN[:channels], Normalize.IMAGENET_STD[:channels]
    trick = Normalize(mean=mean, std=std)
    expected = tv.normalize(images.float() / 255, mean, std)
    found = performed(trick, images, draw(trick, *images.shape))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(trick(images), found)
    assert torch.equal(color.normalize(images.float() / 255, mean, std), expected)
    ramp = torch.arange(256).float().expand(1, channels, 1, 256) / 255
    expected = color.normalize(ramp, mean, std)[0, :, 0]
    torch.testing.assert_close(torch.from_numpy(trick.table(channels)), expected, rtol=1e-6, atol=1e-6)


def test_normalize_gives_one_value_to_all_channels_and_knows_imagenet_s():
    one, three = Normalize(mean=(0.4,), std=(0.2,)), Normalize(mean=(0.4,) * 3, std=(0.2,) * 3)
    np.testing.assert_array_equal(one.table(3), three.table(3))
    given = Normalize(mean=Normalize.IMAGENET_MEAN, std=Normalize.IMAGENET_STD)
    np.testing.assert_array_equal(Normalize().table(3), given.table(3))
    assert Normalize().table(1).shape == (1, 256)
    assert Normalize().table(1).dtype == np.float32


def test_normalize_he_constants_are_those_of_the_paper():
    mean, std = ([123.68, 116.779, 103.939], [58.393, 57.12, 57.375])
    expected = (np.arange(256.0) - np.reshape(mean, (3, 1))) / np.reshape(std, (3, 1))
    trick = Normalize(mean=Normalize.HE_MEAN, std=Normalize.HE_STD)
    np.testing.assert_allclose(trick.table(3), expected, rtol=1e-5, atol=1e-6)


def test_normalize_resolves_from_weights_then_data_then_imagenet():
    class Weights:
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.1)

    with_weights = context(pretrained=True, mean=(0.1,) * 3, std=(0.2,) * 3)
    vars(with_weights)["preprocessing"] = Weights()
    resolved = Normalize().resolve(with_weights)
    assert (resolved.mean, resolved.std) == (Weights.mean, Weights.std)
    assert Normalize(mean=(0.7,)).resolve(with_weights).mean == (0.7,)
    resolved = Normalize().resolve(context(channels=1, mean=(0.1,), std=(0.0,)))
    assert (resolved.mean, resolved.std) == ((0.1,), (1.0,))
    resolved = Normalize().resolve(context())
    assert (resolved.mean, resolved.std) == (Normalize.IMAGENET_MEAN, Normalize.IMAGENET_STD)
    assert len(Normalize().resolve(context(channels=1)).mean) == 1
    given_both = Normalize(mean=(0.0,), std=(1.0,))
    assert given_both.resolve(with_weights) == given_both


# ---------------------------------------------------------------- erasing


def test_erase_equals_torchvision_s_erase():
    images = batch(16, 3, 9, 11)
    boxes = erasing.random_erasing_boxes(images.shape, generator(1), p=0.8)
    noise, colors = torch.randn((16, 3, 9, 11)), torch.randn((16, 3, 1, 1))
    for fill in (0.25, colors, noise):
        ours = erasing.erase(images, boxes, fill)
        for i, (top, left, height, width) in enumerate(boxes.tolist()):
            v = torch.tensor(fill) if isinstance(fill, float) else fill[i]
            v = v if v.shape[-2:] != (9, 11) else v[:, top : top + height, left : left + width]
            assert torch.equal(ours[i], tv.erase(images[i], top, left, height, width, v))
    assert torch.equal(ours[(boxes[:, 2] == 0)], images[boxes[:, 2] == 0])


def test_erasing_boxes_are_distributed_as_timm_s():
    from timm.data.random_erasing import RandomErasing as TimmErasing

    random.seed(0)
    images = torch.ones(1200, 1, 40, 30)
    TimmErasing(probability=0.8, min_area=0.02, max_area=1 / 3, min_aspect=0.3, device="cpu")(images)
    gone = images[:, 0] == 0
    rows, columns = gone.any(2), gone.any(1)
    theirs = np.stack(
        [rows.int().argmax(1), columns.int().argmax(1), rows.sum(1), columns.sum(1)], 1
    )  # the boxes, read off the images
    shape = torch.Size((12000, 1, 40, 30))
    ours = erasing.random_erasing_boxes(shape, generator(), p=0.8, aspect=(0.3, 1 / 0.3)).numpy()
    assert abs((theirs[:, 2] > 0).mean() - (ours[:, 2] > 0).mean()) < 0.04
    theirs, ours = theirs[theirs[:, 2] > 0], ours[ours[:, 2] > 0]
    for of in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        assert stats.ks_2samp(of(theirs), of(ours)).pvalue > 1e-3


@quick
@given(st.integers(1, 12), st.integers(1, 12), seeds)
def test_erasing_boxes_lie_inside_and_never_cover_a_whole_side(height, width, seed):
    boxes = erasing.random_erasing_boxes((30, 1, height, width), generator(seed), p=1)
    size = torch.tensor([height, width])
    assert (boxes >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()
    assert (boxes[:, 2:] < size).all()


def test_noise_is_uniform_normal_and_independent_between_pixels_and_images():
    seeds = torch.from_numpy(drawn(RandomErasing(fill="pixel"), 40, 3, 32, 32)[:, 5:7]).long()
    assert (seeds >= 0).all()
    assert (seeds < 2**31).all()
    uniform = erasing.uniform_noise(seeds, (40, 3, 32, 32))
    assert uniform.dtype == torch.float32
    assert uniform.min() > 0
    assert uniform.max() < 1
    values = uniform.flatten().double().numpy()
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    normal = erasing.normal_noise(uniform).double()
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    bound = 4.5 / values.size**0.5
    for shifts, dims in ((1, 0), (1, 1), (1, 2), (1, 3), (2, 3), (8, 3)):
        assert abs((normal * normal.roll(shifts, dims)).mean()) < bound
    assert np.unique(values).size > 0.98 * values.size


def test_noise_of_neighboring_seeds_is_unrelated():
    close = torch.tensor([[5, 9], [6, 9], [5, 10], [0, 0], [0, 1]])
    rows = erasing.normal_noise(erasing.uniform_noise(close, (5, 1, 100, 100))).flatten(1).double()
    correlation = np.corrcoef(rows.numpy()) - np.eye(5)
    assert abs(correlation).max() < 0.045
    shifted = np.corrcoef(rows[0, 1:].numpy(), rows[1, :-1].numpy())[0, 1]
    assert abs(shifted) < 0.045


ALWAYS = {"p": 1, "area": (0.3, 0.3), "aspect": (1, 1)}


def test_random_erasing_draws_the_boxes_of_its_functional_form():
    trick = RandomErasing(p=0.6, area=(0.1, 0.4), aspect=(0.5, 2))
    boxes = erasing.random_erasing_boxes(
        (300, 3, 9, 11),
        Stream(5, "random_erasing").torch(2),
        p=trick.p,
        area=trick.area,
        aspect=trick.aspect,
    )
    (step,) = draw(trick, 300, 3, 9, 11, seed=5, step=2)
    assert (step.ops == Op.ERASE).all()
    np.testing.assert_array_equal(step.args[:, :4], boxes.numpy())


@pytest.mark.parametrize(("when", "values"), [("before", (0.3, 1)), ("after", (0.3, -2.5, 300))])
def test_random_erasing_fills_with_its_value_on_the_scale_of_the_moment(when, values):
    images = pixels(30, 3, 8, 7)
    for value in values:
        trick = RandomErasing(p=0.7, value=value, when=when)
        assert trick.late == (when == "after")
        (step,) = draw(trick, *images.shape)
        mask = augment.box_mask(torch.from_numpy(step.args[:, :4]).long(), 8, 7)
        erased = performed(trick, images, (step,))
        before = images if when == "before" else images * torch.tensor(1 / 255)
        constant = torch.tensor(round(255 * value) if when == "before" else value, dtype=before.dtype)
        assert torch.equal(erased, torch.where(mask, constant, before))


def test_random_erasing_before_normalization_fills_boxes_with_uniform_colors():
    images = torch.zeros((3000, 3, 8, 8), dtype=torch.uint8)
    trick = RandomErasing(**ALWAYS, fill="channel", when="before")
    (step,) = draw(trick, *images.shape)
    mask = augment.box_mask(torch.from_numpy(step.args[:, :4]).long(), 8, 8)
    assert (mask.sum((1, 2, 3)) == 16).all()
    values = levels(images, step).masked_select(mask).view(3000, 3, 16)
    assert (values == values[:, :, :1]).all()
    assert stats.chisquare(np.bincount(values[:, :, 0].flatten(), minlength=256)).pvalue > 1e-3
    assert abs(np.corrcoef(values[:, :, 0].T) - np.eye(3)).max() < 0.08


def test_random_erasing_after_normalization_fills_boxes_with_normal_colors():
    images = torch.zeros((1500, 3, 8, 8), dtype=torch.uint8)
    trick = RandomErasing(**ALWAYS, fill="channel")
    (step,) = draw(trick, *images.shape)
    mask = augment.box_mask(torch.from_numpy(step.args[:, :4]).long(), 8, 8)
    values = performed(trick, images, (step,)).masked_select(mask).view(1500, 3, 16)
    assert (values == values[:, :, :1]).all()
    assert stats.kstest(values[:, :, 0].flatten().double().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("when", ["before", "after"])
def test_random_erasing_fills_pixels_with_noise(when):
    images = torch.zeros((300, 3, 16, 16), dtype=torch.uint8)
    trick = RandomErasing(**ALWAYS, fill="pixel", when=when)
    (step,) = draw(trick, *images.shape)
    mask = augment.box_mask(torch.from_numpy(step.args[:, :4]).long(), 16, 16)
    values = performed(trick, images, (step,)).masked_select(mask).numpy()
    if when == "before":
        assert stats.chisquare(np.bincount(values, minlength=256)).pvalue > 1e-3
    else:
        assert stats.kstest(values.astype(float), "norm").pvalue > 1e-3


def test_erasing_acts_on_its_side_of_normalization():
    normalize = Normalize()
    assert RandomErasing(when="before").order < normalize.order < RandomErasing(when="after").order
    assert ColorJitter().order < RandomErasing(when="before").order
    assert RandomErasing(when="after").late
    assert not RandomErasing(when="before").late
    for trick in (ColorJitter(), PCANoise(), PadAndCrop(), RandomFlip(), AlternatingFlip()):
        assert trick.order < normalize.order
        assert not trick.late


# ---------------------------------------------------------------- promises of every image trick

IMAGE_TRICKS = [
    ColorJitter(brightness=1, contrast=1, saturation=1, hue=0.5),
    ColorJitter(saturation=0),
    PCANoise(std=5),
    RandomErasing(p=0.7, fill="channel", when="before"),
    RandomErasing(p=0.7, fill="pixel", when="before"),
    RandomErasing(p=0.7, value=0.3, when="before"),
    RandomFlip(vertical=0.5),
    AlternatingFlip(share=0.7),
    PadAndCrop(padding=3),
    PadAndCrop(padding=3, mode="reflect"),
    Normalize(mean=(0.4,), std=(0.2,)),
    RandomErasing(p=0.7, value=0.3),
    RandomErasing(p=0.7, fill="channel"),
    RandomErasing(p=0.7, fill="pixel"),
]
each_image_trick = pytest.mark.parametrize("trick", IMAGE_TRICKS, ids=repr)
shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def usable(trick, shape):
    return (shape[0], 3, *shape[2:]) if trick.kind == "pca_noise" else shape


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a.ops, b.ops) and np.array_equal(a.args, b.args)
        for a, b in zip(one, other, strict=True)
    )


@each_image_trick
@settings(deadline=None, max_examples=15)
@given(shapes, seeds, st.data())
def test_image_tricks_act_on_each_image_by_its_draws_alone(trick, shape, seed, data):
    images = pixels(*usable(trick, shape), seed=seed)
    before = images.clone()
    steps = draw(trick, *images.shape, seed=seed)
    assert all(step.ops.shape == (len(images),) for step in steps)
    result = performed(trick, images, steps)
    assert result.shape == images.shape
    assert torch.equal(images, before), "changed its input"
    assert torch.equal(performed(trick, images, steps), result), "not a function of images and draws"
    order = data.draw(st.permutations(range(len(images))))
    shuffled = tuple(Step(step.ops[order], step.args[order]) for step in steps)
    assert torch.equal(performed(trick, images[order], shuffled), result[order])
    start = data.draw(st.integers(0, len(images) - 1))
    part = slice(start, data.draw(st.integers(start + 1, len(images))))
    some = tuple(step.part(part) for step in steps)
    assert torch.equal(performed(trick, images[part], some), result[part])


@each_image_trick
def test_image_tricks_draw_from_their_stream_alone(trick):
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1]
        drawn.append(draw(trick, 50, 3, 8, 8, seed=4, step=6))
        assert torch.equal(states[0], torch.random.get_rng_state()), "moved a global generator"
        assert states[1] == random.getstate(), "moved a global generator"
        assert np.array_equal(states[2], np.random.get_state()[1]), "moved a global generator"
    assert same(*drawn)
    if drawn[0]:
        assert not same(drawn[0], draw(trick, 50, 3, 8, 8, seed=5, step=6))
        other = draw(trick, 50, 3, 8, 8, seed=4, step=7)
        assert same(drawn[0], other) == (trick.kind == "alternating_flip")
        assert len(other) == len(drawn[0])


@each_image_trick
def test_image_tricks_called_on_a_batch_do_what_they_draw(trick):
    images = pixels(6, 3, 7, 8)
    steps = draw(trick, *images.shape, seed=3, step=2)
    given = images * torch.tensor(1 / 255) if trick.late else images
    assert torch.equal(trick(given, seed=3, step=2), performed(trick, images, steps))


@pytest.mark.parametrize(
    "trick", sorted({type(t) for t in IMAGE_TRICKS}, key=lambda t: t.kind), ids=lambda t: t.kind
)
@settings(deadline=None, max_examples=15)
@given(shapes, seeds)
def test_image_tricks_at_null_return_the_same_bits(trick, shape, seed):
    null = trick.null()
    images = pixels(*usable(null, shape), seed=seed)
    assert draw(null, *images.shape, seed=seed) == ()
    table = null.table(images.shape[1])
    if table is not None:
        np.testing.assert_array_equal(table.view(np.int32), Program().floats(images.shape[1]).view(np.int32))


def test_unchosen_images_keep_their_bits():
    images = pixels(200, 3, 6, 6)
    for when in ("before", "after"):
        trick = RandomErasing(p=0.5, fill="pixel", when=when)
        steps = draw(trick, *images.shape)
        spared = torch.from_numpy(steps[0].args[:, 2] == 0)
        assert 60 < spared.sum() < 140
        result = performed(trick, images, steps)
        before = images if when == "before" else images * torch.tensor(1 / 255)
        assert torch.equal(result[spared], before[spared])
        assert (result[~spared] != before[~spared]).flatten(1).any(1).all()


def test_probability_does_not_move_the_draws_of_images_that_stay_chosen():
    for fill in ("channel", "pixel"):
        rare, often = (drawn(RandomErasing(p=p, fill=fill), 300, 3, 8, 8, seed=1) for p in (0.2, 0.6))
        chosen = rare[:, 2] > 0
        np.testing.assert_array_equal(rare[chosen], often[chosen])


# ---------------------------------------------------------------- saying no


@pytest.mark.parametrize(
    ("trick", "where"),
    [
        (ColorJitter(), {"channels": 1}),
        (ColorJitter(saturation=0, hue=0.1), {"channels": 1}),
        (PCANoise(), {"channels": 1}),
        (Normalize(mean=(0.5, 0.5, 0.5)), {"channels": 1}),
        (Normalize(mean=(0.5, 0.5), std=(1.0, 1.0)), {}),
        (PadAndCrop(padding=8), {"image_size": 8}),
        (RandomErasing(when="before", value=1.5), {}),
        (RandomErasing(when="before", value=-0.5), {}),
    ],
    ids=repr,
)
def test_tricks_that_cannot_act_say_so_with_a_way_out(trick, where):
    problems = list(trick.check(context(trick, **where)))
    assert problems
    for problem in problems:
        assert trick.kind in problem.where
        assert problem.expected
        assert problem.fix


@pytest.mark.parametrize("trick", [*IMAGE_TRICKS, RandomResizedCrop(), Normalize()], ids=repr)
def test_tricks_that_can_act_raise_no_problem(trick):
    assert not list(trick.check(context(trick)))


@pytest.mark.parametrize("trick", [ColorJitter, PCANoise, PadAndCrop, Normalize], ids=lambda t: t.kind)
def test_null_settings_fit_gray_images(trick):
    assert not list(trick.null().check(context(channels=1, image_size=1)))


def test_random_colors_without_normalization_are_noted():
    erasing_trick = RandomErasing(fill="pixel")
    assert list(erasing_trick.notes(context(erasing_trick)))
    assert not list(erasing_trick.notes(context(erasing_trick, Normalize())))
    assert not list(RandomErasing(fill="pixel", when="before").notes(context(erasing_trick)))


@pytest.mark.parametrize(
    ("trick", "values"),
    [
        (RandomFlip, {"p": 1.5}),
        (AlternatingFlip, {"share": -0.1}),
        (PadAndCrop, {"padding": -1}),
        (PadAndCrop, {"mode": "wrap"}),
        (RandomResizedCrop, {"area": (0.5, 0.2)}),
        (RandomResizedCrop, {"area": (0.0, 1.0)}),
        (RandomResizedCrop, {"ratio": (-1.0, 1.0)}),
        (ColorJitter, {"hue": 0.6}),
        (ColorJitter, {"brightness": -0.1}),
        (Normalize, {"std": (0.0,)}),
        (Normalize, {"std": (0.1, -0.1, 0.1)}),
        (Normalize, {"mean": ()}),
        (RandomErasing, {"area": (0.2, 1.2)}),
        (RandomErasing, {"value": float("nan")}),
        (PCANoise, {"std": -1}),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(trick, values):
    with pytest.raises(ValidationError):
        trick(**values)
