"""crop_resize against Pillow, and against torch for floating point."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from trickbag.functional.resize import crop_resize

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def pil(image: torch.Tensor, box: torch.Tensor, size: int, interpolation: str) -> np.ndarray:
    top, left, height, width = box.tolist()
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    box_ = (left, top, min(left + width, picture.width), min(top + height, picture.height))
    result = np.asarray(picture.resize((size, size), FILTERS[interpolation], box=box_))
    return result[None] if result.ndim == 2 else result.transpose(2, 0, 1)


def random_case(seed: int, batch: int, channels: int, height: int, width: int):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (batch, channels, height, width), dtype=np.uint8))
    extent = rng.uniform(0.05, 1, (batch, 2)) * (height, width)
    corner = rng.uniform(0, 1, (batch, 2)) * ((height, width) - extent)
    return images, torch.from_numpy(np.concatenate([corner, extent], axis=1))


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40)),
    size=st.integers(1, 48),
    interpolation=st.sampled_from(sorted(FILTERS)),
    whole=st.booleans(),
)
@example(seed=0, shape=(2, 3, 32, 32), size=32, interpolation="bicubic", whole=True)
@example(seed=0, shape=(2, 3, 33, 29), size=11, interpolation="nearest", whole=True)
def test_equals_pillow(seed, shape, size, interpolation, whole):
    # Some Pillow versions take the vertical pass first for tall images, which rounds differently.
    shape = (*shape[:2], min(shape[2:]), max(shape[2:]))
    images, boxes = random_case(seed, *shape)
    if whole:
        boxes = torch.tensor([[0.0, 0.0, shape[2], shape[3]]], dtype=torch.float64).expand(shape[0], 4)
    ours = crop_resize(images, boxes, size, interpolation)
    assert ours.dtype == torch.uint8
    assert ours.shape == (*shape[:2], size, size)
    theirs = np.stack([pil(i, b, size, interpolation) for i, b in zip(images, boxes, strict=True)])
    np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
@pytest.mark.parametrize("size", [5, 24, 61])
def test_tall_images_are_within_one_level_of_pillow(interpolation, size):
    images, boxes = random_case(11, 8, 3, 50, 24)
    images = images // 2 + 64  # away from 0 and 255: clipping between the passes depends on their order
    ours = crop_resize(images, boxes, size, interpolation).numpy().astype(int)
    theirs = np.stack([pil(i, b, size, interpolation) for i, b in zip(images, boxes, strict=True)])
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("interpolation", sorted(FILTERS))
def test_boxes_of_whole_pixels_at_native_size_are_copies(interpolation):
    images, _ = random_case(3, 4, 3, 20, 24)
    corners = [(0, 0), (4, 12), (8, 3), (1, 1)]
    boxes = torch.tensor([[t, left, 12, 12] for t, left in corners], dtype=torch.float64)
    ours = crop_resize(images, boxes, 12, interpolation)
    for image, (top, left), result in zip(images, corners, ours, strict=True):
        assert torch.equal(result, image[:, top : top + 12, left : left + 12])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floating_point_equals_torch_antialias(interpolation, dtype):
    # torch antialiases with the same filters (a = -0.5) when the box is the whole image.
    images = torch.rand(3, 3, 37, 37, dtype=dtype, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 37, 37]], dtype=torch.float64).expand(3, 4)
    for size in (9, 37, 50):
        theirs = F.interpolate(images, (size, size), mode=interpolation, antialias=True)
        torch.testing.assert_close(crop_resize(images, boxes, size, interpolation), theirs, rtol=0, atol=1e-5)


def test_half_precision_keeps_its_dtype_and_differentiates():
    images = torch.rand(2, 1, 8, 8, dtype=torch.float16)
    boxes = torch.tensor([[0.5, 1, 6, 6], [0, 0, 8, 8]], dtype=torch.float64)
    assert crop_resize(images, boxes, 5).dtype == torch.float16
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: crop_resize(x, boxes, 3, "bicubic"), (images,))


def test_result_of_an_image_does_not_depend_on_its_batch():
    images, boxes = random_case(7, 6, 3, 30, 21)
    together = crop_resize(images, boxes, 16, "bicubic")
    alone = torch.cat([crop_resize(images[i : i + 1], boxes[i : i + 1], 16, "bicubic") for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("box", "interpolation", "message"),
    [
        ([0, 0, 9, 8], "bilinear", "not inside"),
        ([-1, 0, 4, 4], "bilinear", "not inside"),
        ([0, 0, 0, 4], "nearest", "not inside"),
        ([0, 0, 4, 4], "lanczos", "lanczos"),
    ],
)
def test_says_what_is_wrong(box, interpolation, message):
    boxes = torch.tensor([box], dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        crop_resize(torch.zeros(1, 1, 8, 8), boxes, 4, interpolation)
