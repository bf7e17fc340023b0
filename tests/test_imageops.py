"""Both back ends against Pillow, one image at a time, and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from conftest import CLASSES, draw
from pillow_reference import execute as reference
from pillow_reference import pillow
from trickbag.functional.geometric import affine_matrix, rotation_matrix
from trickbag.imageops import act, tensors
from trickbag.imageops.backend import BACKENDS, execute, numba_works
from trickbag.imageops.program import Op, Program, Step

SIZES = ((3, 3), (5, 4), (17, 33), (32, 32), (64, 31))
THERE = BACKENDS if numba_works() else ("torch",)
ONES = tuple(op for op in Op if op < Op.SAVE)
PILLOW = tuple(op for op in ONES if op not in (Op.GAMMA, Op.BLUR, Op.NOISE, Op.CLAHE))
"""Operations that ``pillow_reference`` knows; the others have their references in test_oracle_corruptions."""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "numba":
        pytest.importorskip("numba")
    return request.param


def pictures(batch: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Noise, shapes, flat and almost flat images: uint8 ``(batch, channels, *size)``."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, channels, *size), dtype=np.uint8)
    for i in range(0, batch, 2):
        images[i] = draw(CLASSES[i // 2 % 4], max(size), rng)[: size[0], : size[1], :channels].transpose(
            2, 0, 1
        )
    images[1::9] = images[1::9] // 32 + 90
    images[3::9] = rng.integers(0, 256, (len(images[3::9]), channels, 1, 1))
    return torch.from_numpy(images)


def arguments(op: Op, rng: np.random.Generator, channels: int, size: tuple[int, int]) -> list[float]:
    """Valid arguments of an operation, usual and unusual ones."""
    height, width = size
    match op:
        case Op.FLIP:
            return rng.integers(0, 2, 2).tolist()
        case Op.SHIFT:
            return [*rng.integers(-6, 7, 2).tolist(), int(rng.integers(2))]
        case Op.AFFINE:
            center = (width * 0.5, height * 0.5)
            matrix = (
                rotation_matrix(rng.uniform(-180, 180), height, width),
                affine_matrix(shear=(rng.uniform(-45, 45), 0)),
                affine_matrix(shear=(0, rng.uniform(-45, 45))),
                affine_matrix(
                    translate=(int(rng.integers(-9, 10)), int(rng.integers(-9, 10))), center=center
                ),
                tuple(rng.normal(0, 1, 6) * (1, 1, width, 1, 1, height)),
            )[rng.integers(5)]
            return [*map(float, matrix), int(rng.choice([0, 2, 3])), *rng.integers(0, 256, 3).tolist()]
        case Op.POSTERIZE:
            return [int(rng.integers(0, 9))]
        case Op.SOLARIZE:
            return [float(rng.choice([rng.uniform(-1, 258), rng.integers(0, 257)]))]
        case Op.SOLARIZE_ADD:
            return [int(rng.integers(0, 256)), int(rng.integers(0, 257))]
        case Op.ADD:
            return rng.uniform(-255, 255, 3).tolist()
        case Op.HUE:
            return [float(rng.choice([-0.5, 0.0, 0.5, rng.uniform(-0.5, 0.5)]))]
        case Op.BRIGHTNESS | Op.CONTRAST | Op.SATURATION | Op.SHARPNESS:
            return [float(rng.choice([0.0, 1.0, rng.uniform(0, 2), rng.uniform(-1, 4)]))]
        case Op.ERASE:
            return [*rng.integers(-1, 5, 4).clip(0).tolist(), 0, *rng.integers(0, 256, 3).tolist()]
        case Op.GAMMA:
            return [float(rng.choice([1.0, rng.uniform(0.05, 5)]))]
        case Op.BLUR:
            sigma = rng.uniform(0.01, 4)
            return [int(rng.choice([0, math.ceil(3 * sigma), 7])), math.exp(-0.5 / sigma**2)]
        case Op.NOISE:
            return [float(rng.uniform(0, 60)), *rng.integers(0, 2**31, 2).tolist()]
        case Op.CLAHE:
            return [
                float(rng.choice([0.0, 40.0, rng.uniform(0.5, 5)])),
                int(rng.choice([1, 2, 3, 8])),
                int(rng.integers(2)),
            ]
        case Op.SAVE | Op.ACCUMULATE:
            return [float(rng.uniform(0, 0.6))]
    return []


def step(op: Op, rng: np.random.Generator, batch: int, channels: int, size: tuple[int, int]) -> Step:
    rows = [arguments(op, rng, channels, size) for _ in range(batch)]
    return Step.of(op, *np.array(rows, dtype=float).T, batch=batch)


def mixed(
    rng: np.random.Generator,
    batch: int,
    channels: int,
    size: tuple[int, int],
    among: tuple[Op, ...] = ONES,
) -> Step:
    """An operation of its own for each image."""
    ops = rng.choice(among, batch)
    args = np.zeros((batch, 10))
    for i, op in enumerate(ops):
        row = arguments(Op(op), rng, channels, size)
        args[i, : len(row)] = row
    return Step(ops.astype(np.uint8), args)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("op", PILLOW, ids=lambda op: op.name)
def test_every_operation_is_that_of_pillow(op: Op, channels: int, backend: str) -> None:
    for size in SIZES:
        rng = np.random.default_rng(op * 100 + sum(size))
        images = pictures(24, channels, size)
        steps = (step(op, rng, 24, channels, size),)
        got = execute(images, Program(steps), levels=True, backend=backend)
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got, reference(images, steps)), size


@pytest.mark.parametrize("op", PILLOW, ids=lambda op: op.name)
def test_every_operation_at_224_px(op: Op, backend: str) -> None:
    rng = np.random.default_rng(op)
    images = pictures(3, 3, (224, 200), seed=op)
    steps = (step(op, rng, 3, 3, (224, 200)),)
    got = execute(images, Program(steps), levels=True, backend=backend)
    assert torch.equal(got, reference(images, steps))


SPACES = {
    "trivial": TrivialAugmentWide()._augmentation_space(31),
    "rand": RandAugment()._augmentation_space(31, (32, 32)),
}
NAMED = {
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.SATURATION,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Identity": Op.IDENTITY,
}


def row(name: str, magnitude: float, height: int, width: int) -> tuple[Op, list[float]]:
    """torchvision's operation as one of ours."""
    center, degrees = (width * 0.5, height * 0.5), math.degrees(math.atan(magnitude))
    match name:
        case "ShearX":
            return Op.AFFINE, list(affine_matrix(shear=(degrees, 0.0)))
        case "ShearY":
            return Op.AFFINE, list(affine_matrix(shear=(0.0, degrees)))
        case "TranslateX":
            return Op.AFFINE, list(affine_matrix(translate=(int(magnitude), 0), center=center))
        case "TranslateY":
            return Op.AFFINE, list(affine_matrix(translate=(0, int(magnitude)), center=center))
        case "Rotate":
            return Op.AFFINE, list(rotation_matrix(magnitude, height, width))
        case "Posterize" | "Solarize":
            return NAMED[name], [magnitude]
    return NAMED[name], [1.0 + magnitude]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 17, 24)], ids=str)
@pytest.mark.parametrize("space", SPACES)
def test_every_magnitude_of_the_policies(space: str, shape: tuple[int, int, int], backend: str) -> None:
    calls = []
    for name, (magnitudes, signed) in SPACES[space].items():
        for magnitude in magnitudes.view(-1).tolist():
            calls += [(name, sign * magnitude) for sign in ((1, -1) if signed else (1,))]
    images = pictures(len(calls), shape[0], shape[1:])
    ops, args = np.zeros(len(calls), np.uint8), np.zeros((len(calls), 10))
    for i, (name, magnitude) in enumerate(calls):
        ops[i], values = row(name, magnitude, *shape[1:])
        args[i, : len(values)] = values
    got = execute(images, Program((Step(ops, args),)), levels=True, backend=backend)
    for image, (name, magnitude), one in zip(images, calls, got, strict=True):
        expected = _apply_op(pillow(image), name, magnitude, InterpolationMode.NEAREST, None)
        assert torch.equal(one, F.pil_to_tensor(expected)), (name, magnitude)


@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 40),
    channels=st.sampled_from((1, 3)),
    size=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    count=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_programs_of_mixed_steps(
    seed: int, batch: int, channels: int, size: tuple[int, int], count: int
) -> None:
    rng = np.random.default_rng(seed)
    images = pictures(batch, channels, size, seed)
    steps = tuple(mixed(rng, batch, channels, size, PILLOW) for _ in range(count))
    expected = reference(images, steps)
    for backend in THERE:
        assert torch.equal(execute(images, Program(steps), levels=True, backend=backend), expected), backend


@given(seed=st.integers(0, 2**32 - 1), part=st.tuples(st.integers(0, 20), st.integers(0, 20)))
@settings(max_examples=20, deadline=None)
def test_a_slice_of_a_batch_gives_the_slice_of_the_result(seed: int, part: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    images = pictures(20, 3, (12, 9), seed)
    steps = (*(mixed(rng, 20, 3, (12, 9)) for _ in range(3)), noise(rng, 20, 1))
    program = Program(
        steps, rng.normal(size=(3, 256)).astype(np.float32), (noise(rng, 20, 2), noise(rng, 20, 1))
    )
    share = slice(min(part), max(part))
    for backend in THERE:
        whole = execute(images, program, backend=backend)
        if share.start < share.stop:
            assert torch.equal(execute(images[share], program.part(share), backend=backend), whole[share])


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.sampled_from((1, 3)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=25, deadline=None)
def test_back_ends_agree_on_every_operation(seed: int, channels: int, size: tuple[int, int]) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(seed)
    images = pictures(30, channels, (max(size[0], 2), max(size[1], 2)), seed)[..., : size[0], : size[1]]
    steps = tuple(mixed(rng, 30, channels, size) for _ in range(3))
    one, other = (execute(images, Program(steps), backend=backend) for backend in BACKENDS)
    assert torch.equal(one, other)


@pytest.mark.parametrize("op", [op for op in ONES if op not in PILLOW], ids=lambda op: op.name)
def test_back_ends_agree_on_large_images(op: Op) -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(op)
    images = pictures(6, 3, (200, 224), seed=op)
    program = Program((step(op, rng, 6, 3, (200, 224)),))
    one, other = (execute(images, program, levels=True, backend=backend) for backend in BACKENDS)
    assert torch.equal(one, other)


def noise(rng: np.random.Generator, batch: int, kind: int) -> Step:
    """Erasing with noise, of some images."""
    boxes = rng.integers(0, 8, (4, batch))
    return Step.of(Op.ERASE, *boxes, kind, rng.integers(0, 2**31, batch), rng.integers(0, 2**31, batch))


def test_the_result_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = pictures(50, 3, (16, 16))
    steps = (step(Op.SHIFT, rng, 50, 3, (16, 16)), step(Op.SAVE, rng, 50, 3, (16, 16)))
    steps += (
        mixed(rng, 50, 3, (16, 16)),
        step(Op.ACCUMULATE, rng, 50, 3, (16, 16)),
        Step.of(Op.TAKE, batch=50),
    )
    program = Program((*steps, mixed(rng, 50, 3, (16, 16))))
    whole = tensors.execute(images, program)
    monkeypatch.setattr(tensors, "PIECE", 7 * 3 * 16 * 16)
    assert torch.equal(tensors.execute(images, program), whole)
    monkeypatch.setattr(tensors, "PIECE", 1)
    assert torch.equal(tensors.execute(images, program), whole)


@given(seed=st.integers(0, 2**32 - 1), channels=st.sampled_from((1, 3)), uniform=st.booleans())
@settings(max_examples=20, deadline=None)
def test_mixtures(seed: int, channels: int, uniform: bool) -> None:
    rng = np.random.default_rng(seed)
    batch, size = 12, (9, 11)
    images = pictures(batch, channels, size, seed)
    steps: list[Step] = []
    for op in (Op.SAVE, None, Op.ACCUMULATE, None, None, Op.ACCUMULATE, Op.TAKE, None):
        steps.append(
            mixed(rng, batch, channels, size, PILLOW) if op is None else step(op, rng, batch, channels, size)
        )
    if not uniform:  # Half of the batch does something else at that time.
        steps = [Step(np.where(np.arange(batch) % 2, s.ops, np.uint8(Op.IDENTITY)), s.args) for s in steps]
    expected = reference(images, steps)
    for backend in THERE:
        got = execute(images, Program(tuple(steps)), levels=True, backend=backend)
        assert torch.equal(got, expected), backend


def test_a_program_that_makes_no_sense_is_refused(backend: str) -> None:
    images = pictures(2, 3, (8, 8))
    with pytest.raises(ValueError, match="starts with SAVE"):
        execute(images, Program((Step.of(Op.TAKE, batch=2),)), backend=backend)
    with pytest.raises(ValueError, match="3 images meets 2"):
        execute(images, Program((Step.of(Op.INVERT, batch=3),)), backend=backend)


@pytest.mark.parametrize("matrix", [(900.0, 3.0, -9.0, 2.0, 1200.0, 5.0), (1.0, 1e5, 0.5, 1e4, 1.0, 2.0)])
def test_far_away_places(matrix: tuple[float, ...], backend: str) -> None:
    images = pictures(2, 3, (37, 41))
    steps = [Step.of(Op.AFFINE, *matrix, 0, 10, 20, 30, batch=2)]
    assert torch.equal(execute(images, Program(tuple(steps)), True, backend), reference(images, steps))


@pytest.mark.parametrize("channels", [1, 3])
def test_tables(channels: int, backend: str) -> None:
    images = pictures(9, channels, (7, 5))
    got = execute(images, Program(), backend=backend)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, images.float() * torch.tensor(1 / 255))
    slopes, offsets = np.linspace(0.01, 0.02, channels, dtype=np.float32), np.float32(-1.7)
    line = np.arange(256, dtype=np.float32) * slopes[:, None] + offsets
    for table in (line, np.random.default_rng(0).normal(size=(channels, 256)).astype(np.float32)):
        expected = torch.stack([torch.from_numpy(table)[c][images[:, c].long()] for c in range(channels)], 1)
        assert torch.equal(execute(images, Program((), table), backend=backend), expected)
    for layout in (images.contiguous(memory_format=torch.channels_last), images.flip(3).flip(3)[:, :, :, :]):
        assert torch.equal(execute(layout, Program((), table), backend=backend), expected)


def hashed(x: np.ndarray) -> np.ndarray:
    for _ in range(2):
        x = (x ^ (x >> np.uint64(16))) * np.uint64(0x45D9F3B) & np.uint64(0xFFFFFFFF)
    return x ^ (x >> np.uint64(16))


def bits(first: int, second: int, shape: tuple[int, ...]) -> np.ndarray:
    start = hashed(np.array([first], np.uint64))
    places = np.arange(math.prod(shape), dtype=np.uint64)
    return hashed(hashed(places ^ start) ^ hashed(start ^ np.uint64(second))).reshape(shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["color", "uniform", "normal"])
@pytest.mark.parametrize("after", [False, True], ids=["levels", "floats"])
def test_erasing(channels: int, kind: str, after: bool, backend: str) -> None:
    from scipy.special import ndtri

    if kind == "normal" and not after:
        pytest.skip("levels have uniform noise only")
    rng = np.random.default_rng(1)
    batch, height, width = 16, 9, 12
    images = pictures(batch, channels, (height, width))
    boxes = np.stack((rng.integers(0, 5, batch), rng.integers(0, 6, batch), *rng.integers(1, 8, (2, batch))))
    boxes[2, ::3] = 0
    boxes[:, 1] = (0, 0, height, width)
    code = ("color", "uniform", "normal").index(kind)
    colors = rng.integers(0, 256, (3, batch)) if not after else rng.normal(size=(3, batch))
    seeds = rng.integers(0, 2**31, (2, batch))
    seeds[:, :2] = [[0, 2**31 - 1], [2**31 - 1, 0]]
    erase = Step.of(Op.ERASE, *boxes, code, *(colors if kind == "color" else seeds))
    table = rng.normal(size=(channels, 256)).astype(np.float32)
    program = Program((), table, (erase,)) if after else Program((erase,))
    expected = execute(images, Program((), table) if after else Program(), not after, backend).clone().numpy()
    quantiles = ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)
    for i in range(batch):
        word = bits(*(int(s) for s in seeds[:, i]), (channels, height, width))
        if kind == "color":
            fill = np.broadcast_to(colors[:channels, i, None, None], word.shape).astype(expected.dtype)
        elif not after:
            fill = (word >> np.uint64(24)).astype(np.uint8)
        elif kind == "uniform":
            fill = ((word >> np.uint64(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
        else:
            fill = quantiles[word >> np.uint64(16)]
        top, left, tall, wide = boxes[:, i]
        inside = np.s_[:, top : top + tall, left : left + wide]
        expected[i][inside] = fill[inside]
    got = execute(images, program, levels=not after, backend=backend)
    if kind == "normal":  # Two libraries' quantiles differ in the last place.
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
    else:
        assert np.array_equal(got.numpy(), expected)


def test_back_ends_agree_on_noise() -> None:
    pytest.importorskip("numba")
    rng = np.random.default_rng(2)
    images = pictures(60, 3, (16, 16))
    program = Program(
        (noise(rng, 60, 1), mixed(rng, 60, 3, (16, 16))), None, (noise(rng, 60, 2), noise(rng, 60, 1))
    )
    one, other = (execute(images, program, backend=backend) for backend in ("torch", "numba"))
    assert torch.equal(one, other)
    assert torch.equal(
        one, execute(images.contiguous(memory_format=torch.channels_last), program, backend="torch")
    )


def test_late_steps_of_floats() -> None:
    rng = np.random.default_rng(3)
    images = torch.randn(8, 3, 9, 9)
    erase = noise(rng, 8, 2)
    before = images.clone()
    got = act(images, (erase,), None, late=True)
    assert torch.equal(images, before)
    erased = (got != images).any(1)
    for i, (top, left, tall, wide) in enumerate(erase.args[:, :4].astype(int)):
        box = torch.zeros(9, 9, dtype=torch.bool)
        box[top : top + tall, left : left + wide] = True
        assert torch.equal(erased[i], box)
    with pytest.raises(ValueError, match="only ERASE"):
        tensors.late(images, (Step.of(Op.INVERT, batch=8),))


def test_images_are_not_written_to(backend: str) -> None:
    rng = np.random.default_rng(4)
    images = pictures(30, 3, (10, 10))
    before = images.clone()
    for op in Op:
        steps = (Step.of(Op.SAVE, 0.5, batch=30), step(op, rng, 30, 3, (10, 10)))
        execute(images, Program(steps, None, (noise(rng, 30, 2),)), backend=backend)
    assert torch.equal(images, before)


def test_the_host_never_waits_for_the_device() -> None:
    """Tensors of the meta device have no values: whatever asked for one would fail."""
    rng = np.random.default_rng(5)
    images = torch.empty(80, 3, 12, 12, dtype=torch.uint8, device="meta")
    steps = [
        noise(rng, 80, 1),
        Step.of(Op.SAVE, 0.5, batch=80),
        *(mixed(rng, 80, 3, (12, 12)) for _ in range(4)),
    ]
    steps += [Step.of(op, 0.5, batch=80) for op in (Op.ACCUMULATE, Op.TAKE)]
    program = Program(tuple(steps), None, (noise(rng, 80, 1), noise(rng, 80, 2)))
    got = tensors.execute(images, program)
    assert (got.shape, got.dtype, got.device.type) == (images.shape, torch.float32, "meta")


def test_empty_batches(backend: str) -> None:
    images = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    program = Program((Step.of(Op.FLIP, 1, batch=0), Step.of(Op.INVERT, batch=0)))
    assert execute(images, program, backend=backend).shape == (0, 3, 8, 8)


@pytest.mark.skipif(not numba_works(), reason="numba is not installed")
def test_a_change_in_any_file_makes_compiled_code_stale(tmp_path):
    from trickbag.imageops import compiled, filters, kernels, resizing

    (tmp_path / "a.py").write_text("one")
    (tmp_path / "b.py").write_text("two")
    before = kernels.stamp(tmp_path)
    (tmp_path / "b.py").write_text("owt")
    assert kernels.stamp(tmp_path) != before
    for module in (compiled, filters, kernels, resizing):
        found = [value for value in vars(module).values() if hasattr(value, "py_func")]
        assert found
        assert {value._cache._cache_file._source_stamp for value in found} == {kernels.STAMP}
