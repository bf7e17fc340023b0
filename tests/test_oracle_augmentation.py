"""Image tricks against torchvision, timm, NumPy and the papers' formulas; and what they promise."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms.v2 import functional as tv

from trickbag.data.base import DataFacts
from trickbag.functional import augment, color, erasing
from trickbag.plan import Context
from trickbag.recipe.model import Recipe
from trickbag.tricks.augmentation import PadAndCrop, RandomFlip, RandomResizedCrop
from trickbag.tricks.base import Bag
from trickbag.tricks.color import ColorJitter, Normalize, PCANoise
from trickbag.tricks.erasing import RandomErasing

quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed))


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


def test_flip_draws_each_image_and_direction_on_its_own():
    draws = RandomFlip(p=0.3, vertical=0.6).draw(torch.Size((20000, 3, 4, 4)), generator())
    assert abs(draws["horizontal"].double().mean() - 0.3) < 0.015
    assert abs(draws["vertical"].double().mean() - 0.6) < 0.015
    both = (draws["horizontal"] & draws["vertical"]).double().mean()
    assert abs(both - 0.18) < 0.015


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
    offsets = PadAndCrop(padding=2).draw(torch.Size((10000, 1, 8, 8)), generator())["offsets"]
    table = torch.bincount(offsets[:, 0] * 5 + offsets[:, 1], minlength=25)
    assert stats.chisquare(table.numpy()).pvalue > 1e-3


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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_color_operations_equal_torchvision_s(name, channels):
    images = batch(64, channels, 9, 8)
    images[0], images[1], images[2, :, :4] = 0.0, 1.0, 0.5
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    amounts = low + (high - low) * torch.rand(64, generator=generator(1))
    ours = getattr(color, f"adjust_{name}")(images, amounts)
    theirs = torch.stack(
        [getattr(tv, f"adjust_{name}")(x, a.item()) for x, a in zip(images, amounts, strict=True)]
    )
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_equals_torchvision_s_operations_in_the_drawn_order(channels):
    images = batch(48, channels, 6, 5)
    trick = ColorJitter(brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)
    draws = trick.draw(images.shape, generator(2))
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    expected = images.clone()
    for i in range(len(images)):
        for k in draws["order"][i].tolist():
            if k == color.HUE:
                expected[i] = tv.adjust_hue(expected[i], draws["turns"][i].item())
            else:
                expected[i] = operations[k](expected[i], draws["factors"][i, k].item())
    torch.testing.assert_close(trick.apply(images, draws), expected, atol=5e-6, rtol=0)


def test_color_jitter_draws_uniform_coefficients_and_orders():
    trick = ColorJitter(brightness=0.4, contrast=0.1, saturation=0.9, hue=0.2)
    draws = trick.draw(torch.Size((12000, 3, 2, 2)), generator())
    for column, reach in enumerate((0.4, 0.1, 0.9)):
        uniform = stats.uniform(1 - reach, 2 * reach)
        assert stats.kstest(draws["factors"][:, column].numpy(), uniform.cdf).pvalue > 1e-3
    assert stats.kstest(draws["turns"].numpy(), stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3
    code = draws["order"] @ torch.tensor([64, 16, 4, 1])
    counts = code.unique(return_counts=True)[1].numpy()
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_pca_noise_follows_alexnet_s_formula_on_the_published_axes():
    # Eigenvalues as MXNet gives them, for values from 0 to 255.
    eigenvalues = np.array([55.46, 4.794, 1.148]) / 255
    axes = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-4)
    amounts = torch.randn((50, 3), generator=generator(), dtype=torch.float64)
    expected = (axes @ (amounts.numpy() * eigenvalues).T).T
    np.testing.assert_allclose(color.pca_shift(amounts).numpy(), expected, atol=2e-4)
    images = 0.4 + 0.2 * batch(50, 3, 4, 4).double()
    added = color.pca_noise(images, 0.1 * color.pca_shift(amounts)) - images
    np.testing.assert_allclose(added.mean((2, 3)).numpy(), 0.1 * expected, atol=2e-5)


def test_pca_noise_draws_have_the_papers_covariance():
    shift = PCANoise(std=0.1).draw(torch.Size((200000, 3, 2, 2)), generator())["shift"].double().numpy()
    axes, scales = np.array(color.PCA_EIGENVECTORS), np.array(color.PCA_EIGENVALUES)
    expected = axes @ np.diag((0.1 * scales) ** 2) @ axes.T
    np.testing.assert_allclose(np.cov(shift.T), expected, atol=0.01 * expected.max())


def test_normalize_equals_torchvision_s_to_the_bit():
    images = batch(4, 3, 5, 6)
    mean, std = Normalize.IMAGENET_MEAN, Normalize.IMAGENET_STD
    assert torch.equal(Normalize(mean=mean, std=std).apply(images, {}), tv.normalize(images, mean, std))


def test_normalize_he_constants_are_those_of_the_paper():
    images = torch.randint(0, 256, (4, 3, 5, 6), generator=generator()).double()
    mean, std = ([123.68, 116.779, 103.939], [58.393, 57.12, 57.375])
    expected = (images.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    trick = Normalize(mean=Normalize.HE_MEAN, std=Normalize.HE_STD)
    np.testing.assert_allclose(trick.apply(images / 255, {}).numpy(), expected, rtol=1e-10, atol=1e-12)


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
    draws = RandomErasing(fill="pixel").draw(torch.Size((40, 3, 32, 32)), generator())
    uniform = erasing.uniform_noise(draws["seeds"], (40, 3, 32, 32))
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


@pytest.mark.parametrize(("when", "reference"), [("before", "uniform"), ("after", "norm")])
def test_erasing_colors_one_a_box_and_channel(when, reference):
    trick = RandomErasing(p=1, area=(0.3, 0.3), aspect=(1, 1), fill="channel", when=when)
    images = torch.full((1500, 3, 8, 8), 7.0)
    erased = trick.apply(images, trick.draw(images.shape, generator()))
    mask = erased != 7
    assert (mask.flatten(1).sum(1) == 3 * 16).all()
    values = erased[mask].view(1500, 3, 16)
    assert (values == values[:, :, :1]).all()
    assert stats.kstest(values[:, :, 0].flatten().double().numpy(), reference).pvalue > 1e-3


def test_erasing_acts_on_its_side_of_normalization():
    normalize = Normalize()
    assert RandomErasing(when="before").order < normalize.order < RandomErasing(when="after").order
    assert ColorJitter().order < RandomErasing(when="before").order
    for trick in (ColorJitter(), PCANoise(), PadAndCrop(), RandomFlip()):
        assert trick.order < normalize.order


# ---------------------------------------------------------------- promises of every image trick

PHOTOMETRIC = [
    ColorJitter(brightness=1, contrast=1, saturation=1, hue=0.5),
    ColorJitter(saturation=0),
    PCANoise(std=5),
    RandomErasing(p=0.7, fill="channel", when="before"),
    RandomErasing(p=0.7, fill="pixel", when="before"),
]
IMAGE_TRICKS = [
    *PHOTOMETRIC,
    RandomFlip(vertical=0.5),
    PadAndCrop(padding=3),
    PadAndCrop(padding=3, mode="reflect"),
    Normalize(mean=(0.4,), std=(0.2,)),
    RandomErasing(p=0.7, value=0.3),
    RandomErasing(p=0.7, fill="pixel"),
]
each_image_trick = pytest.mark.parametrize("trick", IMAGE_TRICKS, ids=repr)
shapes = st.tuples(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))


def take(draws, index):
    return {name: tensor[index] for name, tensor in draws.items()}


def usable(trick, shape):
    return (shape[0], 3, *shape[2:]) if trick.kind == "pca_noise" else shape


@each_image_trick
@settings(deadline=None, max_examples=15)
@given(shapes, seeds, st.data())
def test_image_tricks_act_on_each_image_by_its_draws_alone(trick, shape, seed, data):
    images = batch(*usable(trick, shape), seed=seed)
    before = images.clone()
    draws = trick.draw(images.shape, generator(seed))
    assert all(len(tensor) == len(images) for tensor in draws.values())
    result = trick.apply(images, draws)
    assert result.shape == images.shape
    assert result.dtype == images.dtype
    assert torch.equal(images, before), "changed its input"
    assert torch.equal(trick.apply(images, draws), result), "not a function of images and draws"
    if trick in PHOTOMETRIC:
        assert result.min() >= 0
        assert result.max() <= 1
    order = torch.tensor(data.draw(st.permutations(range(len(images)))))
    torch.testing.assert_close(
        trick.apply(images[order], take(draws, order)), result[order], atol=2e-6, rtol=0
    )
    start = data.draw(st.integers(0, len(images) - 1))
    part = slice(start, data.draw(st.integers(start + 1, len(images))))
    torch.testing.assert_close(trick.apply(images[part], take(draws, part)), result[part], atol=2e-6, rtol=0)


@each_image_trick
def test_image_tricks_draw_from_their_generator_alone(trick):
    shape = torch.Size((5, 3, 8, 8))
    torch.manual_seed(1)
    first = trick.draw(shape, generator(4))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = trick.draw(shape, generator(4))
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "moved the global generator"
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "trick", sorted({type(t) for t in IMAGE_TRICKS}, key=lambda t: t.kind), ids=lambda t: t.kind
)
@settings(deadline=None, max_examples=15)
@given(shapes, seeds)
def test_image_tricks_at_null_return_the_same_bits(trick, shape, seed):
    null = trick.null()
    images = batch(*usable(null, shape), seed=seed)
    images.view(-1)[:1] = -0.0
    result = null.apply(images, null.draw(images.shape, generator(seed)))
    assert torch.equal(result.view(torch.int32), images.view(torch.int32))


def test_unchosen_images_keep_their_bits():
    images = batch(200, 3, 6, 6)
    trick = RandomErasing(p=0.5, fill="pixel")
    draws = trick.draw(images.shape, generator())
    spared = draws["boxes"][:, 2] == 0
    assert 60 < spared.sum() < 140
    assert torch.equal(trick.apply(images, draws)[spared], images[spared])
    assert (trick.apply(images, draws)[~spared] != images[~spared]).flatten(1).any(1).all()


def test_probability_does_not_move_the_draws_of_images_that_stay_chosen():
    shape = torch.Size((300, 3, 8, 8))
    rare, often = (RandomErasing(p=p).draw(shape, generator(1))["boxes"] for p in (0.2, 0.6))
    chosen = rare[:, 2] > 0
    assert torch.equal(rare[chosen], often[chosen])


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
