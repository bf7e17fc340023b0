"""Augmentation policies and Cutout against torchvision, timm, Pillow, the authors' code and theory."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import timm.data.auto_augment as timm_policies
import torch
from PIL import Image
from pydantic import ValidationError
from scipy import stats
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

import pillow_reference as reference
from trickbag.imageops import execute
from trickbag.imageops.program import Op, Program, Step
from trickbag.rng import Stream
from trickbag.tricks import policy_ops
from trickbag.tricks.base import Bag
from trickbag.tricks.color import Normalize
from trickbag.tricks.cutout import Cutout
from trickbag.tricks.policies import AugMix, AutoAugment, RandAugment, TrivialAugment
from trickbag.tricks.stages import Batch

POLICIES = {
    "TrivialAugment": TrivialAugment(),
    "TrivialAugment, half": TrivialAugment(p=0.5, interpolation="bicubic", fill=(9, 99, 199)),
    "RandAugment, torchvision": RandAugment(num_ops=3, magnitude=14),
    "RandAugment, timm": RandAugment(semantics="timm", mstd=0.5, increasing=True),
    "RandAugment, weighted": RandAugment(semantics="timm", num_ops=4, p=1, weighted=True, increasing=True),
    "RandAugment, uniform": RandAugment(semantics="timm", mstd="uniform", interpolation="bilinear"),
    "AutoAugment, imagenet": AutoAugment(),
    "AutoAugment, cifar10": AutoAugment(policy="cifar10"),
    "AutoAugment, svhn": AutoAugment(policy="svhn", p=0.7),
    "AugMix": AugMix(),
    "AugMix, half": AugMix(p=0.5, mixture_width=2, chain_depth=4, severity=8, all_ops=False),
}
FILL = (124, 116, 104)


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Pictures with slopes, so that every operation changes them, and some noise; uint8."""
    count, channels, height, width = shape
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    slopes = rng.uniform(-150, 150, (2, count, channels, 1, 1))
    values = 120 + slopes[0] * (x - 0.5) + slopes[1] * (y - 0.5) + rng.normal(0, 25, shape)
    return torch.from_numpy(values.clip(3, 250).astype(np.uint8))


def draw(trick, *shape: int, seed: int = 0, step: int = 0) -> tuple[Step, ...]:
    return tuple(trick.draw(Batch(shape, step), Stream(seed, trick.kind)))


def table_steps(table: policy_ops.Table) -> Step:
    """A step in which the k-th image meets the k-th row after the first."""
    return table.steps(np.arange(1, len(table) + 1)[None])[0]


def context(*tricks, channels=3, mean=(0.2, 0.4, 0.6), preprocessing=None):
    return SimpleNamespace(
        facts=SimpleNamespace(channels=channels, mean=mean, std=(0.2,) * len(mean)),
        recipe=SimpleNamespace(
            tricks=Bag(tricks), model=SimpleNamespace(starts_pretrained=preprocessing is not None)
        ),
        preprocessing=preprocessing,
    )


def expected_image(
    image: torch.Tensor, name: str, magnitude: float, interpolation: str, fill
) -> torch.Tensor:
    """One operation by torchvision, on a Pillow image; no bits at all are black, as they are on tensors."""
    if (name, magnitude) == ("Posterize", 0):
        return torch.zeros_like(image)
    picture = _apply_op(reference.pillow(image), name, magnitude, InterpolationMode(interpolation), fill)
    return F.pil_to_tensor(picture)


def check_rows(rows: list[tuple[str, float]], table: policy_ops.Table, shape, interpolation, fill) -> None:
    """Every row of a table does to a picture what torchvision does."""
    assert len(rows) == len(table)
    image = pictures(1, *shape)
    result = reference.execute(image.expand(len(rows), *shape), [table_steps(table)])
    wanted = {row: expected_image(image[0], *row, interpolation, list(fill[: shape[0]])) for row in set(rows)}
    for row, got in zip(rows, result, strict=True):
        assert torch.equal(got, wanted[row]), row


def keyed(steps) -> list[bytes]:
    """Each image's program as something to count."""
    columns = [part for step in steps for part in (step.ops[:, None], step.args)]
    return [row.tobytes() for row in np.hstack(columns) + 0.0]


def fits(counted: Counter, shares: dict, at_least: float = 1e-4) -> bool:
    """Counts agree with shares, by a chi-square test; what is too rare for one is counted together."""
    total = counted.total()
    assert set(counted) <= {key for key, share in shares.items() if share > 0}
    assert sum(shares.values()) == pytest.approx(1)
    common = [key for key, share in shares.items() if share * total >= 8]
    observed, expected = [counted[key] for key in common], [shares[key] * total for key in common]
    observed.append(total - sum(observed))
    expected.append(total - sum(expected))
    if expected[-1] < 8:
        assert observed[-1] < 40
        observed, expected = observed[:-1], expected[:-1]
        expected = [e * sum(observed) / sum(expected) for e in expected]
    return stats.chisquare(observed, expected).pvalue > at_least


# What torchvision does with an operation and a magnitude.

SPACES = {
    "wide": (T.TrivialAugmentWide()._augmentation_space(31), 31, (40, 52)),
    "rand": (T.RandAugment()._augmentation_space(31, (40, 52)), 31, (40, 52)),
    "few": (T.RandAugment()._augmentation_space(11, (224, 224)), 11, (224, 224)),
    "auto": (T.AutoAugment()._augmentation_space(10, (32, 32)), 10, (32, 32)),
    "mix": (T.AugMix()._augmentation_space(10, (40, 52)), 10, (40, 52)),
}


@pytest.mark.parametrize("name", SPACES)
def test_magnitudes_are_torchvision_s_for_trivial_rand_auto_augment_and_aug_mix(name):
    theirs, bins, size = SPACES[name]
    ours = policy_ops.space({"few": "rand", "auto": "rand"}.get(name, name), bins, *size)
    assert set(ours) == set(theirs) - {"Invert"} | ({"Identity"} if name == "auto" else set())
    for each in set(ours) & set(theirs):
        values, signed = theirs[each]
        assert ours[each][1] == signed
        # torch.linspace differs in its last bit from one processor to the next.
        np.testing.assert_allclose(ours[each][0], values.flatten().numpy(), rtol=3e-7)


@pytest.mark.parametrize(
    ("shape", "interpolation"),
    [
        *[((3, 32, 32), "nearest"), ((3, 29, 41), "nearest"), ((1, 32, 32), "nearest")],
        *[((3, 24, 24), "bilinear"), ((3, 20, 27), "bicubic"), ((1, 21, 20), "bilinear")],
    ],
)
@pytest.mark.parametrize("name", ["wide", "rand", "mix"])
def test_every_row_of_trivial_augment_rand_augment_and_aug_mix_acts_as_torchvision(
    name, shape, interpolation
):
    bins = 10 if name == "mix" else 31
    fill = FILL if interpolation != "nearest" else (0, 0, 0)
    levels = range(bins)
    table = policy_ops.uniform_table(
        name, bins, levels, True, *shape[1:], policy_ops.FILTERS[interpolation], fill
    )
    rows = [
        (each, sign * values[level % len(values)])
        for each, (values, signed) in policy_ops.space(name, bins, *shape[1:]).items()
        for level in levels
        for sign in (1, -1 if signed else 1)
    ]
    check_rows(rows, table, shape, interpolation, fill)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
@pytest.mark.parametrize(("shape", "interpolation"), [((3, 32, 32), "nearest"), ((1, 19, 30), "bicubic")])
def test_every_pair_of_auto_augment_acts_as_torchvision(policy, shape, interpolation):
    theirs = T.AutoAugment(T.AutoAugmentPolicy(policy)).policies
    ours = policy_ops.pairs(policy)
    assert [[half[:2] for half in pair] for pair in ours] == [[half[:2] for half in pair] for pair in theirs]
    values = policy_ops.space("rand", 10, *shape[1:]) | {"Invert": ([0.0], False)}
    rows = []
    for name, _, level in (half for pair in theirs for half in pair):
        assert (level is None) == (len(values[name][0]) == 1)
        value = values[name][0][level or 0]
        rows += [(name, value), (name, -value if values[name][1] else value)]
    table, probabilities = policy_ops.pair_table(policy, *shape[1:], policy_ops.FILTERS[interpolation], FILL)
    assert probabilities.T.tolist() == [[p for _, p, _ in pair] for pair in theirs]
    check_rows(rows, table, shape, interpolation, FILL)


# What timm does with an operation and a level.


def test_operations_and_weights_of_rand_augment_are_timm_s():
    assert set(policy_ops.DECREASING) == set(timm_policies._RAND_TRANSFORMS)
    assert set(policy_ops.INCREASING) == set(timm_policies._RAND_INCREASING_TRANSFORMS)
    assert policy_ops.WEIGHTS == timm_policies._RAND_WEIGHTED_0


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 23, 30), (1, 24, 24)])
def test_every_level_of_rand_augment_acts_as_timm(shape, increasing, monkeypatch):
    names = policy_ops.INCREASING if increasing else policy_ops.DECREASING
    levels = policy_ops.timm_levels(names, *shape[1:], FILL)
    image = pictures(1, *shape)
    cases = list(
        product(
            range(len(names)),
            (0.0, 0.3, 3.7, 5.0, 9.0, 10.0, 14.2, 30.0),
            (False, True),
            ("nearest", "bilinear", "bicubic"),
        )
    )
    which, level, negative, filters = (np.array(column)[None] for column in zip(*cases, strict=True))
    resample = np.vectorize(policy_ops.FILTERS.get)(filters)
    steps = levels.steps(1 + which, level, negative, resample)
    result = reference.execute(image.expand(len(cases), *shape), steps)
    for (k, magnitude, minus, name), got in zip(cases, result, strict=True):
        monkeypatch.setattr(timm_policies, "_randomly_negate", lambda v, minus=minus: -v if minus else v)
        hparams = {
            "img_mean": FILL if shape[0] == 3 else FILL[0],
            "interpolation": Image.Resampling[name.upper()],
            "magnitude_max": 40,
        }
        op = timm_policies.AugmentOp(names[k], prob=1, magnitude=magnitude, hparams=hparams)
        if names[k].startswith("Posterize") and op.level_fn(magnitude, {})[0] < 1:
            wanted = torch.zeros_like(image[0])  # no bits at all, which newer versions of Pillow refuse
        else:
            wanted = F.pil_to_tensor(op(reference.pillow(image[0])))
        assert torch.equal(got, wanted), (names[k], magnitude, minus, name)


def recorded(transform, count: int) -> list[list[tuple[str, tuple]]]:
    """Names and arguments of what timm applies to ``count`` images, and the filter of affine ones."""
    calls: list[tuple[str, tuple]] = []
    for op in transform.ops:
        op.aug_fn = lambda picture, *args, name=op.name, **kwargs: calls.append((name, args)) or picture
    found = []
    for _ in range(count):
        calls.clear()
        transform("picture")
        found.append(list(calls))
    return found


def named(step: Step) -> list[tuple[str, float] | None]:
    """Names of timm's operations, less ``Increasing``, and arguments; levels must not be 0."""
    plain = {op: name for name, op in policy_ops.NAMES.items()}
    found: list[tuple[str, float] | None] = []
    for op, args in zip(step.ops, step.args, strict=True):
        if op != Op.AFFINE:
            found.append(None if op == Op.IDENTITY else (plain[Op(op)], float(args[0])))
        elif args[1] and args[3]:
            found.append(("Rotate", float(np.degrees(np.arctan2(args[3], args[0])))))
        else:
            k = next(k for k in (1, 3, 2, 5) if args[k])
            found.append(({1: "ShearX", 3: "ShearY", 2: "TranslateXRel", 5: "TranslateYRel"}[k], args[k]))
    return found


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize(("magnitude", "mstd"), [(9, 0.5), (9, 1.5), (7, "uniform")])
def test_rand_augment_draws_as_timm_does(magnitude, mstd, increasing):
    count = 12_000
    random.seed(1)
    np.random.seed(1)
    spread = f"mstd{101 if mstd == 'uniform' else mstd}"
    theirs = timm_policies.rand_augment_transform(
        f"rand-m{magnitude}-n3-{spread}-p0.7-inc{int(increasing)}", {"img_mean": FILL}
    )
    calls = [
        (name.removesuffix("Increasing"), args[0] if args else 0.0)
        for calls in recorded(theirs, count)
        for name, args in calls
    ]
    trick = RandAugment(
        semantics="timm", num_ops=3, p=0.7, magnitude=magnitude, mstd=mstd, increasing=increasing
    )
    steps = draw(trick, count, 3, 20, 20)
    ours = [call for step in steps for call in named(step) if call]
    for calls_of in (calls, ours):
        assert abs(len(calls_of) / count / 3 - 0.7) < 0.012
        kinds = Counter(name for name, _ in calls_of)
        assert fits(
            kinds, dict.fromkeys({n.removesuffix("Increasing") for n in policy_ops.DECREASING}, 1 / 15)
        )
    for name in sorted({name for name, _ in calls}):
        a, b = ([value for each, value in calls_of if each == name] for calls_of in (calls, ours))
        if name in ("TranslateXRel", "TranslateYRel"):
            a = [20 * value for value in a]
        if name.startswith("Posterize"):
            a = [min(8, max(0, value)) for value in a]
        assert stats.ks_2samp(np.round(a, 9), np.round(b, 9)).pvalue > 1e-4, name


def test_rand_augment_draws_by_weight_without_replacement_as_timm():
    count = 15_000
    np.random.seed(2)
    theirs = timm_policies.rand_augment_transform("rand-m9-n2-p1-tweights-inc1", {"img_mean": FILL})
    pairs = [tuple(name.removesuffix("Increasing") for name, _ in calls) for calls in recorded(theirs, count)]
    trick = RandAugment(semantics="timm", p=1, magnitude=9, increasing=True, weighted=True)
    first, second = (named(step) for step in draw(trick, count, 3, 20, 20))
    ours = [(a[0], b[0]) for a, b in zip(first, second, strict=True)]
    total = sum(policy_ops.WEIGHTS.values())
    weights = {name.removesuffix("Increasing"): w / total for name, w in policy_ops.WEIGHTS.items()}
    shares = {(a, b): weights[a] * weights[b] / (1 - weights[a]) for a in weights for b in weights if a != b}
    assert fits(Counter(ours), shares)
    assert fits(Counter(pairs), shares)


def test_rand_augment_mixes_bilinear_and_bicubic_and_signs_evenly_with_timm():
    trick = RandAugment(semantics="timm", p=1, magnitude=9)
    (step, _) = draw(trick, 30_000, 3, 20, 20)
    affine = step.args[step.ops == Op.AFFINE]
    filters, counts = np.unique(affine[:, 6], return_counts=True)
    assert filters.tolist() == [2, 3]
    assert stats.binomtest(int(counts[0]), len(affine)).pvalue > 1e-4
    signs = np.sign(affine[:, [1, 2, 3, 5]].sum(1)[affine[:, 1] * affine[:, 3] == 0])
    assert stats.binomtest(int((signs > 0).sum()), len(signs)).pvalue > 1e-4
    assert affine[:, 7:].tolist() == [[128] * 3] * len(affine)  # timm's color where it knows no mean


# Draws.


def test_trivial_augment_draws_operations_magnitudes_and_signs_uniformly():
    table = policy_ops.uniform_table("wide", 31, range(31), True, 32, 32, 0, (0, 0, 0))
    assert len(table) == 14 * 31 * 2
    rows = Counter(keyed([table_steps(table)]))
    counted = Counter(keyed(draw(TrivialAugment(), 90_000, 3, 32, 32)))
    assert fits(counted, {key: count / len(table) for key, count in rows.items()})
    half = draw(TrivialAugment(p=0.5), 50_000, 3, 32, 32)[0]
    whole = draw(TrivialAugment(), 50_000, 3, 32, 32)[0]
    same = (half.ops == whole.ops) & (half.args == whole.args).all(1)
    assert ((half.ops == Op.IDENTITY) | same).all()
    assert abs((half.ops == Op.IDENTITY).mean() - (0.5 + 0.5 / 14)) < 0.01


@pytest.mark.parametrize("magnitude", [0, 9, 15, 30])
def test_rand_augment_draws_14_operations_uniformly_and_independently(magnitude):
    table = policy_ops.uniform_table("rand", 31, range(magnitude, magnitude + 1), True, 32, 32, 0, (0, 0, 0))
    assert len(table) == 14 * 2
    step = table_steps(table)
    rows = Counter(a + b for a, b in product(keyed([step]), keyed([step])))
    counted = Counter(keyed(draw(RandAugment(magnitude=magnitude), 60_000, 3, 32, 32)))
    assert fits(counted, {key: count / 28**2 for key, count in rows.items()})


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_draws_pairs_with_their_probabilities(policy):
    table, probabilities = policy_ops.pair_table(policy, 32, 32, 0, (0, 0, 0))
    nothing = Step.of(Op.IDENTITY, batch=1)
    shares: Counter = Counter()
    for pair, first, second in product(range(25), range(3), range(3)):
        share, parts = 1 / 25, []
        for half, sign in enumerate((first, second)):
            p = probabilities[half, pair]
            share *= 1 - p if sign == 2 else p / 2
            row = np.array([[1 + 4 * pair + 2 * half + sign]])
            parts.append(nothing if sign == 2 else table.steps(row)[0])
        shares[keyed(parts)[0]] += share
    counted = Counter(keyed(draw(AutoAugment(policy=policy), 60_000, 3, 32, 32)))
    assert fits(counted, dict(shares))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_aug_mix_draws_chains_and_weights_as_torchvision(alpha):
    count, trick = 20_000, AugMix(alpha=alpha)
    steps = draw(trick, count, 3, 30, 30)
    kinds = [Op(step.ops[0]) if (step.ops == step.ops[0]).all() else None for step in steps]
    assert kinds == [Op.SAVE, *[None, None, None, Op.ACCUMULATE] * 3, Op.TAKE]
    original = steps[0].args[:, 0]
    weights = np.stack([steps[k].args[:, 0] for k in (4, 8, 12)])
    np.testing.assert_allclose(original + weights.sum(0), 1, atol=1e-6)
    assert (steps[0].args[:, 0].astype(np.float32) == original).all()
    assert stats.kstest(original, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    shares = weights / weights.sum(0)
    for share in shares[:, original < 0.999]:
        assert stats.kstest(share, stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-4
    torch.manual_seed(3)
    theirs = torch._sample_dirichlet(torch.full((count, 3), alpha, dtype=torch.float64)).numpy()
    assert stats.ks_2samp(shares.max(0), theirs.max(1)).pvalue > 1e-4
    # No row but the first leaves an image alone by its number, so depths can be read off.
    table = policy_ops.uniform_table("mix", 10, range(3), True, 30, 30, 2, (0, 0, 0))
    rows = Counter(keyed([table_steps(table)]))
    assert len(table) == 13 * 3 * 2
    for chain in range(3):
        chosen = steps[1 + 4 * chain : 4 + 4 * chain]
        depth = sum((step.ops != Op.IDENTITY).astype(int) for step in chosen)
        assert fits(Counter(depth.tolist()), dict.fromkeys((1, 2, 3), 1 / 3))
        assert (chosen[0].ops != Op.IDENTITY).all()
        assert fits(Counter(keyed(chosen[:1])), {key: n / len(table) for key, n in rows.items()})


def test_aug_mix_follows_torchvision_s_formula_with_pillow_s_operations():
    images = pictures(40, 3, 26, 31)
    steps = draw(AugMix(chain_depth=2), 40, 3, 26, 31)
    mixed = reference.execute(images, steps)
    chains = [reference.execute(images, steps[k : k + 2]) for k in (1, 4, 7)]
    columns = [torch.from_numpy(steps[k].args[:, 0]).float()[:, None, None, None] for k in (0, 3, 6, 9)]
    expected = columns[0] * images
    for weight, chain in zip(columns[1:], chains, strict=True):
        expected.add_(weight * chain)
    assert torch.equal(mixed, expected.to(torch.uint8))
    assert not torch.equal(mixed, images)


# What all of them owe.


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 27)])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_policies_do_to_images_what_their_steps_mean_to_pillow(name, shape, backend):
    """TrivialAugment, RandAugment, AutoAugment and AugMix, executed by both back ends."""
    if backend == "numba":
        pytest.importorskip("numba")
    images = pictures(64, *shape, seed=5)
    steps = draw(POLICIES[name], 64, *shape)
    result = execute(images, Program(steps), levels=True, backend=backend)
    assert torch.equal(result, reference.execute(images, steps))
    assert not torch.equal(result, images)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_draw_from_shape_stream_and_step_alone(name):
    trick = POLICIES[name]
    first = draw(trick, 50, 3, 16, 16, step=3)
    np.random.seed(0)
    again = draw(trick, 50, 3, 16, 16, step=3)
    assert keyed(first) == keyed(again)
    assert keyed(first) != keyed(draw(trick, 50, 3, 16, 16, step=4))
    assert keyed(first) != keyed(draw(trick, 50, 3, 16, 16, step=3, seed=1))
    assert len({len(draw(trick, 5, 3, 16, 16, step=k)) for k in range(20)}) == 1
    assert all(step.ops.dtype == np.uint8 and step.args.shape == (50, 10) for step in first)


@pytest.mark.parametrize("kind", [TrivialAugment, RandAugment, AutoAugment, AugMix, Cutout])
def test_null_settings_draw_only_identities(kind):
    assert all((step.ops == Op.IDENTITY).all() for step in draw(kind.null(), 20, 3, 16, 16))
    if "p" in kind.null_setting:
        almost = kind(p=1e-12)
        steps = draw(almost, 200, 3, 16, 16)
        assert steps
        assert all((step.ops == Op.IDENTITY).all() or (step.args[:, 2] == 0).all() for step in steps)


def test_drawn_steps_are_not_the_cached_tables():
    for trick in POLICIES.values():
        before = keyed(draw(trick, 30, 3, 16, 16))
        for step in draw(trick, 30, 3, 16, 16):
            step.args[:] = -1
            step.ops[:] = Op.INVERT
        assert keyed(draw(trick, 30, 3, 16, 16)) == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"increasing": True}, "increasing"),
        ({"p": 1.0, "mstd": 0.5}, "p and mstd"),
        ({"mmax": 12}, "semantics: timm"),
        ({"semantics": "timm", "num_magnitude_bins": 10}, "semantics: torchvision"),
        ({"semantics": "timm", "weighted": True}, "set increasing to true"),
        ({"interpolation": "random"}, "timm only"),
        ({"magnitude": 31}, "0 to 30"),
        ({"magnitude": 4.5}, "whole number"),
        ({"fill": (1, 256, 3)}, "255"),
    ],
)
def test_rand_augment_refuses_settings_of_the_other_semantics(settings, words):
    with pytest.raises(ValidationError, match=words):
        RandAugment(**settings)


def test_fills_are_resolved_from_the_data_or_the_weights():
    timm = RandAugment(semantics="timm")
    resolved = timm.resolve(context())
    assert resolved.fill == (51, 102, 153)
    assert resolved.interpolation == "random"
    assert timm.resolve(context(Normalize(mean=(0.9,), std=(1.0,)))).fill == (51, 102, 153)
    weights = SimpleNamespace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert timm.resolve(context(preprocessing=weights)).fill == FILL
    assert AugMix(fill="mean").resolve(context(preprocessing=weights, channels=1)).fill == (114,)
    assert RandAugment().resolve(context()).fill == (0,)
    assert TrivialAugment(fill="mean").resolve(context(mean=(0.5,), channels=1)).fill == (128,)
    assert resolved.resolve(context(mean=(0.1,) * 3)) == resolved
    with_mean = draw(resolved, 400, 3, 8, 8)[0]
    assert (with_mean.args[with_mean.ops == Op.AFFINE, 7:] == (51, 102, 153)).all()


def test_policies_say_what_does_not_fit():
    assert [p.what for p in AutoAugment(fill=(1, 2, 3)).check(context(channels=1, mean=(0.5,)))]
    assert not list(AutoAugment(fill=(1, 2, 3)).check(context()))
    gray = context(channels=1, mean=(0.5,))
    assert "Color" in " ".join(TrivialAugment().notes(gray))
    assert not list(TrivialAugment(p=0).notes(gray))
    assert not list(AutoAugment(policy="svhn").notes(gray))
    assert not list(AugMix(all_ops=False).notes(gray))
    assert "mmax" in " ".join(RandAugment(semantics="timm", magnitude=15).notes(context()))
    assert not list(RandAugment(semantics="timm", magnitude=15, mmax=15).notes(context()))


# Cutout.


def authors_box(y: int, x: int, height: int, width: int, length: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) as in the code that DeVries and Taylor published."""
    y1, y2 = np.clip(y - length // 2, 0, height), np.clip(y + length // 2, 0, height)
    x1, x2 = np.clip(x - length // 2, 0, width), np.clip(x + length // 2, 0, width)
    return int(y1), int(x1), int(y2 - y1), int(x2 - x1)


@pytest.mark.parametrize(("height", "width", "size", "length"), [(16, 16, 0.5, 8), (12, 17, 1 / 3, 4)])
def test_cutout_hides_the_squares_of_the_authors_code(height, width, size, length):
    (step,) = draw(Cutout(size=size), 60_000, 3, height, width)
    assert (step.ops == Op.ERASE).all()
    assert not step.args[:, 4:].any()
    centers = list(product(range(height), range(width)))
    shares: Counter = Counter()
    for y, x in centers:
        shares[authors_box(y, x, height, width, length)] += 1 / len(centers)
    counted = Counter(tuple(int(v) for v in row) for row in step.args[:, :4])
    assert fits(counted, dict(shares))


def test_cutout_covers_an_odd_length_whole():
    (step,) = draw(Cutout(size=0.25), 3000, 3, 20, 20)
    assert step.args[:, 2:4].max() == 5
    inside = (step.args[:, :2] > 0).all(1) & (step.args[:, :2] + step.args[:, 2:4] < 20).all(1)
    assert (step.args[inside, 2:4] == 5).all()


def test_cutout_p_leaves_the_other_squares_alone():
    (whole,), (half,) = (draw(Cutout(p=p), 5000, 3, 16, 16) for p in (1.0, 0.5))
    hidden = half.args[:, 2] > 0
    assert abs(hidden.mean() - 0.5) < 0.03
    assert (half.args[hidden] == whole.args[hidden]).all()
    assert not half.args[~hidden].any()


def test_cutout_fills_with_the_mean_after_normalization_or_black_before():
    images = pictures(6, 3, 16, 16)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.2, 0.2)
    normalize = Normalize(mean=mean, std=std)
    late, early = Cutout(size=0.5), Cutout(size=0.5, when="before")
    assert late.late
    assert not early.late
    assert late.order > normalize.order > early.order
    steps = draw(late, 6, 3, 16, 16)
    table = normalize.table(3)
    result = execute(images, Program((), table, steps))
    black = execute(images, Program(steps, table))
    plain = execute(images, Program((), table))
    for k, (top, left, tall, wide) in enumerate(steps[0].args[:, :4].astype(int)):
        hidden = torch.zeros(16, 16, dtype=torch.bool)
        hidden[top : top + tall, left : left + wide] = True
        assert (result[k][:, hidden] == 0).all()
        torch.testing.assert_close(
            black[k][:, hidden].mean(1), torch.tensor([-2.0, -2.5, -3.0]), rtol=0, atol=1e-5
        )
        assert torch.equal(result[k][:, ~hidden], plain[k][:, ~hidden])
    assert "normalize" in " ".join(late.notes(context()))
    assert not list(late.notes(context(normalize)))
    assert not list(early.notes(context()))
