"""Published recipes against the facts they encode: numbers, steps, schedules, groups, ranges, targets."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from trickbag.data.base import DataFacts
from trickbag.plan import Plan, compile, parameter_groups
from trickbag.recipe import apply_changes, diff, load, published
from trickbag.rng import Stream
from trickbag.tricks.stages import ParamGroupTrick

IMAGENET = DataFacts(
    name="imagenet",
    classes=tuple(map(str, range(1000))),
    channels=3,
    sizes={"train": 1_281_167, "selection": 25_000, "test": 25_000},
    image_size=(375, 500),
    fingerprint="0" * 16,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    counts=(1281,) * 1000,
)
TOP_1 = {
    "he2019_baseline": 75.87,
    "he2019_scaling": 75.17,
    "he2019_warmup": 75.93,
    "he2019_zero_gamma": 76.37,
    "he2019_no_bias_decay": 76.03,
    "he2019_efficient": 76.21,
    "he2019_b": 76.66,
    "he2019_c": 76.87,
    "he2019_d": 77.16,
    "he2019_cosine": 77.91,
    "he2019_smoothing": 78.31,
    "he2019_distillation": 78.67,
    "he2019_mixup": 79.15,
    "he2019_both": 79.29,
    "tv_baseline": 76.130,
    "tv_lr": 76.494,
    "tv_trivial_augment": 76.806,
    "tv_long": 78.606,
    "tv_erasing": 78.796,
    "tv_smoothing": 79.114,
    "tv_mixup": 79.232,
    "tv_cutmix": 79.510,
    "tv_decay": 80.036,
    "tv_fixres": 80.196,
    "tv_ema": 80.450,
    "tv_resize": 80.674,
    "tv_repeated": 80.858,
    "swin_tiny": 81.18,
    "swin_small": 83.02,
    "swin_base": 83.36,
    "rsb_a1": 80.4,
    "rsb_a2": 79.8,
    "rsb_a3": 78.1,
    "ffcv_rn50": 73.8,
    "ffcv_rn18": 66.9,
}
OURS = ("small_strong", "small_transfer")
STEPS = {
    ("he2019_baseline", "he2019_scaling"): {"batch_size", "linear_lr_scaling"},
    ("he2019_scaling", "he2019_warmup"): {"warmup"},
    ("he2019_warmup", "he2019_zero_gamma"): {"zero_gamma"},
    ("he2019_zero_gamma", "he2019_no_bias_decay"): {"no_bias_norm_decay"},
    ("he2019_no_bias_decay", "he2019_efficient"): {"mixed_precision"},
    ("he2019_efficient", "he2019_b"): {"resnet_variant.variant"},
    ("he2019_b", "he2019_c"): {"resnet_variant.variant"},
    ("he2019_c", "he2019_d"): {"resnet_variant.variant"},
    ("he2019_d", "he2019_cosine"): {"decay"},
    ("he2019_cosine", "he2019_smoothing"): {"label_smoothing"},
    ("he2019_smoothing", "he2019_distillation"): {"distillation"},
    ("he2019_smoothing", "he2019_mixup"): {"epochs", "mixup"},
    ("he2019_mixup", "he2019_both"): {"distillation"},
    ("tv_baseline", "tv_lr"): {"batch_size", "sgd.lr", "warmup", "decay"},
    ("tv_lr", "tv_trivial_augment"): {"trivial_augment"},
    ("tv_trivial_augment", "tv_long"): {"epochs"},
    ("tv_long", "tv_erasing"): {"random_erasing"},
    ("tv_erasing", "tv_smoothing"): {"label_smoothing"},
    ("tv_smoothing", "tv_mixup"): {"mixup"},
    ("tv_mixup", "tv_cutmix"): {"cutmix", "mix_switch"},
    ("tv_cutmix", "tv_decay"): {"sgd.weight_decay", "no_bias_norm_decay"},
    ("tv_decay", "tv_fixres"): {"image_size"},
    ("tv_fixres", "tv_ema"): {"ema"},
    ("tv_ema", "tv_resize"): {"eval_resize"},
    ("tv_resize", "tv_repeated"): {"repeated_augmentation"},
    ("swin_tiny", "swin_small"): {"model", "stochastic_depth.p"},
    ("swin_tiny", "swin_base"): {"model", "stochastic_depth.p"},
    ("rsb_a1", "rsb_a2"): {"epochs", "label_smoothing", "mixup.alpha", "lamb.weight_decay"},
    ("ffcv_rn50", "ffcv_rn18"): {"model", "batch_size", "sgd.lr", "sgd.weight_decay"},
}


@lru_cache
def plan(name: str, probe: bool = False) -> Plan:
    """The recipe on ImageNet; without ``probe`` nothing is resolved, which schedules do not need."""
    return compile(load(name), IMAGENET, "cuda", probe=probe)


@pytest.mark.parametrize("name", [*TOP_1, *OURS])
def test_every_recipe_compiles_for_imagenet(name: str) -> None:
    assert plan(name, True).timeline.steps > 0


@pytest.mark.parametrize("name", TOP_1)
def test_every_recipe_carries_its_source_and_its_numbers(name: str) -> None:
    about = load(name).about
    assert about.published["top-1"] == TOP_1[name]
    assert about.published["training images"] == 1_281_167
    assert len(about.source) > 20
    if name.startswith("he2019") or name == "rsb_a2":
        assert "secondary source" in about.notes


@pytest.mark.parametrize("name", OURS)
def test_our_own_claim_no_accuracy(name: str) -> None:
    about = load(name).about
    assert "Not published; chosen by us" in about.notes
    assert not about.published


def test_small_strong_holds_eight_tricks_and_more_beside_normalization_and_optimizer() -> None:
    assert len(load("small_strong").tricks) - 2 >= 8


@pytest.mark.parametrize(("before", "after"), STEPS, ids=str)
def test_consecutive_recipes_differ_by_exactly_the_step(before: str, after: str) -> None:
    old, new = load(before), load(after)
    changes = diff(old, new)
    assert {change.key for change in changes} == STEPS[before, after]
    assert apply_changes(old, changes).digest == new.digest


def test_both_ladders_are_whole() -> None:
    he = [pair for pair in STEPS if pair[0].startswith("he2019")]
    tv = [pair for pair in STEPS if pair[0].startswith("tv_")]
    assert len(tv) == 12
    assert all(a[1] == b[0] for a, b in pairwise(tv))
    assert {name for pair in he + tv for name in pair} == {n for n in TOP_1 if n[:2] in ("he", "tv")}
    assert set(TOP_1) | set(OURS) <= set(published())


# Learning rates


def by_epoch(name: str) -> list[float]:
    """The rate of each epoch, which its first and its last update share."""
    p = plan(name)
    steps = p.timeline.steps_per_epoch
    rates = [p.learning_rate(epoch * steps) for epoch in range(round(p.recipe.epochs))]
    assert rates == [p.learning_rate((epoch + 1) * steps - 1) for epoch in range(len(rates))]
    return rates


def stepped(scheduler: object, optimizer: torch.optim.Optimizer, epochs: int) -> list[float]:
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # type: ignore[attr-defined]
    return rates


def sgd(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


@pytest.mark.parametrize(("name", "epochs"), [("tv_lr", 90), ("tv_long", 600), ("tv_repeated", 600)])
def test_torchvision_rates_are_those_of_torch_schedulers(name: str, epochs: int) -> None:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    optimizer = sgd(0.5)
    first = LinearLR(optimizer, start_factor=0.01, total_iters=5)
    then = CosineAnnealingLR(optimizer, T_max=epochs - 5)
    expected = stepped(SequentialLR(optimizer, [first, then], milestones=[5]), optimizer, epochs)
    assert by_epoch(name) == pytest.approx(expected, rel=1e-9)


def test_torchvision_baseline_steps_every_30_epochs() -> None:
    optimizer = sgd(0.1)
    expected = stepped(torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.1), optimizer, 90)
    assert by_epoch("tv_baseline") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "epochs", "rate"), [("rsb_a1", 600, 5e-3), ("rsb_a2", 300, 5e-3), ("rsb_a3", 100, 8e-3)]
)
def test_rsb_rates_are_those_of_timm(name: str, epochs: int, rate: float) -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = sgd(rate)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, warmup_prefix=False
    )
    expected = []
    for epoch in range(epochs):
        scheduler.step(epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    assert by_epoch(name) == pytest.approx(expected, rel=1e-9)
    assert expected[4] < expected[5] < rate, "the prefix trap: after warmup the cosine has already begun"


def test_swin_warms_up_per_update_and_then_falls_per_epoch() -> None:
    """MMEngine's LinearLR from 0.001 over 20 epochs of updates; CosineAnnealingLR from epoch 20 of 300."""
    p = plan("swin_tiny")
    an_epoch = p.timeline.steps_per_epoch
    assert an_epoch == 1251
    warm = 20 * an_epoch
    for step in [*range(0, warm, 97), warm - 1]:
        expected = 1e-3 * (1e-3 + (1 - 1e-3) * step / (warm - 1))
        assert p.learning_rate(step) == pytest.approx(expected, rel=1e-12)
    for step in range(warm, p.timeline.steps, 613):
        expected = 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * (step // an_epoch - 20) / 280)) / 2
        assert p.learning_rate(step) == pytest.approx(expected, rel=1e-12)
    assert p.learning_rate(warm - 1) == pytest.approx(1e-3)


@pytest.mark.parametrize("name", ["he2019_efficient", "he2019_cosine", "he2019_both"])
def test_he_rates_in_closed_form(name: str) -> None:
    p = plan(name)
    an_epoch, steps = p.timeline.steps_per_epoch, p.timeline.steps
    warm = 5 * an_epoch
    for step in [*range(0, steps, 331), warm - 1, warm, steps - 1]:
        if step < warm:
            expected = 0.4 * (step + 1) / warm
        elif name == "he2019_efficient":
            expected = 0.4 * 0.1 ** sum(step >= m * an_epoch for m in (30, 60, 90))
        else:
            expected = 0.2 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        assert p.learning_rate(step) == pytest.approx(expected, rel=1e-9)
    assert plan("he2019_baseline").learning_rate(0) == 0.1
    assert plan("he2019_baseline").learning_rate(100 * 5004) == pytest.approx(1e-4)
    assert plan("he2019_scaling").learning_rate(0) == 0.4


@pytest.mark.parametrize(("name", "peak"), [("ffcv_rn50", 1.7), ("ffcv_rn18", 0.5)])
def test_ffcv_rates_and_sizes(name: str, peak: float) -> None:
    """As ffcv computes them: ends of each epoch, joined by straight lines over its updates."""
    p = plan(name)
    an_epoch = p.timeline.steps_per_epoch

    def end(epoch: int) -> float:
        return float(np.interp([epoch], [0, 2, 16], [1e-4 * peak, peak, 0])[0])

    def size(epoch: int) -> int:
        if epoch <= 11:
            return 160
        return 192 if epoch >= 13 else int(np.round(np.interp(epoch, [11, 13], [160, 192]) / 32)) * 32

    for epoch in range(16):
        rates = np.interp(np.arange(an_epoch), [0, an_epoch], [end(epoch), end(epoch + 1)])
        found = [p.learning_rate(epoch * an_epoch + step) for step in range(0, an_epoch, 41)]
        assert found == pytest.approx(rates[::41].tolist(), rel=1e-9, abs=1e-12)
        assert p.image_size(epoch * an_epoch) == size(epoch)
    assert p.recipe.evaluation == (round(256 / (224 / 256)), 256)


# Models and parameter groups


def built(name: str) -> tuple[Plan, nn.Module]:
    p = plan(name, True)
    return p, p.build_model(Stream(0), "meta")


NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
SPARED = ("relative_position_bias_table", "absolute_pos_embed")


@pytest.mark.parametrize(
    "name", ["he2019_no_bias_decay", "he2019_d", "tv_decay", "rsb_a1", "ffcv_rn18", "swin_tiny"]
)
def test_no_decay_on_norms_biases_and_position_tables(name: str) -> None:
    p, model = built(name)
    expected = {}
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(prefix, recurse=False):
            own = local.rpartition(".")[2]
            assert isinstance(parameter, nn.Parameter)
            expected[local] = not (isinstance(module, NORMS) or own == "bias" or own in SPARED)
    decay = p.optimizer.weight_decay
    groups = parameter_groups(model, p.bag.of(ParamGroupTrick))
    found = {n: group.get("weight_decay", decay) for group in groups for n in group["names"]}
    assert {n: value > 0 for n, value in found.items()} == expected
    assert set(found.values()) == {0.0, decay}
    kinds = {n.rpartition(".")[2] for n, kept in expected.items() if not kept}
    assert ("relative_position_bias_table" in kinds) == name.startswith("swin")
    if name.startswith(("rsb", "tv")):
        assert not expected["layer1.0.downsample.1.weight"]


@pytest.mark.parametrize("name", ["tv_baseline", "he2019_zero_gamma"])
def test_the_steps_before_decay_everything(name: str) -> None:
    p, model = built(name)
    groups = parameter_groups(model, p.bag.of(ParamGroupTrick))
    assert len(groups) == 1
    assert len(groups[0]["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "rate"), [("swin_tiny", 0.2), ("swin_small", 0.3), ("swin_base", 0.5), ("rsb_a1", 0.05)]
)
def test_drop_path_rates_are_those_that_timm_computes(name: str, rate: float) -> None:
    import timm

    p, model = built(name)
    with torch.device("meta"):
        reference = timm.create_model(p.recipe.model.name, drop_path_rate=rate)

    def rates(net: nn.Module) -> dict[str, float]:
        return {
            n: m.drop_prob for n, m in net.named_modules() if type(m).__name__ == "DropPath" and m.drop_prob
        }

    expected = rates(reference)
    assert max(expected.values()) == pytest.approx(rate)
    assert rates(model) == pytest.approx(expected)


def test_step_variants_build_the_models_they_name() -> None:
    sizes = {name: sum(x.numel() for x in built(name)[1].parameters()) for name in ("he2019_b", "he2019_d")}
    assert sizes == {"he2019_b": 25_557_032, "he2019_d": 25_576_264}
    variants = {
        name: load(name).tricks["resnet_variant"].settings()["variant"]
        for name in ("he2019_baseline", "he2019_c")
    }
    assert variants == {"he2019_baseline": "a", "he2019_c": "c"}


# Images and targets


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swin_tiny", "rand-m9-mstd0.5-inc1"),
        ("rsb_a1", "rand-m7-mstd0.5-inc1"),
        ("rsb_a2", "rand-m7-mstd0.5-inc1"),
        ("rsb_a3", "rand-m6-mstd0.5-inc1"),
    ],
)
def test_rand_augment_means_what_timm_reads_from_its_name(name: str, text: str) -> None:
    from timm.data.auto_augment import rand_augment_transform

    from trickbag.tricks import policy_ops

    reference = rand_augment_transform(text, {})
    trick = load(name).tricks["rand_augment"]
    assert trick.semantics == "timm"  # type: ignore[attr-defined]
    assert trick.num_ops == reference.num_layers == 2  # type: ignore[attr-defined]
    assert {op.magnitude for op in reference.ops} == {trick.magnitude}  # type: ignore[attr-defined]
    assert {op.magnitude_std for op in reference.ops} == {trick.mstd}  # type: ignore[attr-defined]
    assert {op.prob for op in reference.ops} == {trick.p}  # type: ignore[attr-defined]
    assert {op.name for op in reference.ops} == set(policy_ops.INCREASING)
    assert len(reference.ops) == len(policy_ops.INCREASING) == 15
    assert trick.fill == tuple(min(255, round(255 * x)) for x in IMAGENET.mean)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "p", "low", "high", "narrow"),
    [("swin_tiny", 0.25, 0.02, 1 / 3, 0.3), ("tv_erasing", 0.1, 0.02, 0.33, 0.3)],
)
def test_erased_areas(name: str, p: float, low: float, high: float, narrow: float) -> None:
    from trickbag.functional.erasing import random_erasing_boxes

    trick = load(name).tricks["random_erasing"]
    assert trick.fill == ("pixel" if name == "swin_tiny" else "constant")  # type: ignore[attr-defined]
    assert trick.when == "after"  # type: ignore[attr-defined]
    settings = {key: getattr(trick, key) for key in ("p", "area", "aspect")}
    boxes = random_erasing_boxes((20_000, 3, 224, 224), torch.Generator().manual_seed(0), **settings)
    sides = boxes[:, 2:].double()
    erased = sides.prod(1) > 0
    assert erased.double().mean() == pytest.approx(p, abs=0.01)
    shares = sides[erased].prod(1) / 224**2
    assert low - 0.005 < shares.min() < low + 0.01
    assert high - 0.01 < shares.max() < high + 0.005
    ratio = sides[erased, 0] / sides[erased, 1]
    assert narrow - 0.02 < ratio.min()
    assert ratio.max() < 1 / narrow + 0.3


@pytest.mark.parametrize("name", ["swin_tiny", "rsb_a1", "rsb_a2", "tv_repeated"])
def test_targets_after_mixing_and_smoothing(name: str) -> None:
    """Against timm's dense targets, and torch's losses over them."""
    from timm.data.mixup import mixup_target
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (8,), generator=generator)
    logits = torch.randn(8, 1000, generator=generator)
    smoothing = 0.0 if name == "rsb_a2" else 0.1
    expected = mixup_target(labels, 1000, 0.3, smoothing)
    mixed = 0.3 * F.one_hot(labels, 1000).float() + 0.7 * F.one_hot(labels.flip(0), 1000).float()
    if name.startswith("rsb"):
        reference = F.binary_cross_entropy_with_logits(logits, expected, reduction="none").mean(1)
    elif name == "swin_tiny":
        reference = -(expected * logits.log_softmax(1)).sum(1)
    else:
        reference = F.cross_entropy(logits, mixed, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(plan(name).loss()(logits, mixed), reference)


@pytest.mark.parametrize(
    ("name", "mixup", "partner"),
    [
        ("swin_tiny", 0.8, "reverse"),
        ("rsb_a1", 0.2, "reverse"),
        ("rsb_a3", 0.1, "reverse"),
        ("tv_cutmix", 0.2, "roll"),
    ],
)
def test_one_of_two_mixes_acts_on_each_batch(name: str, mixup: float, partner: str) -> None:
    p = plan(name)
    assert [(trick.kind, trick.alpha, trick.p, trick.per, trick.partner) for trick in p.mix] == [  # type: ignore[attr-defined]
        ("mixup", mixup, 1.0, "batch", partner),
        ("cutmix", 1.0, 1.0, "batch", partner),
    ]
    chosen = [p.mix_controls[0].choose(p.mix, 4, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert all(picked is not None and len(set(picked.tolist())) == 1 for picked in chosen)
    assert np.mean([picked[0].item() for picked in chosen if picked is not None]) == pytest.approx(
        0.5, abs=0.1
    )


def test_torchvision_average_forgets_a_ninehundredth_every_32_steps() -> None:
    p = plan("tv_repeated")
    (ema,) = p.weights
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    average = {"weight": torch.zeros(1, 1)}
    for step in range(64):
        ema.update(average, model, step, p.timeline)
    kept = 1 - 2e-5 * 1024 * 32 / 600
    assert kept == pytest.approx(0.9989, abs=1e-5)
    assert average["weight"].item() == pytest.approx(1 - kept**2, rel=1e-4)


def test_sizes_of_training_and_evaluation() -> None:
    found = {
        name: (load(name).image_size, *load(name).evaluation)
        for name in ("tv_baseline", "tv_fixres", "tv_resize", "rsb_a1", "rsb_a3", "swin_base", "he2019_both")
    }
    assert found == {
        "tv_baseline": (224, 256, 224),
        "tv_fixres": (176, 256, 224),
        "tv_resize": (176, 232, 224),
        "rsb_a1": (224, math.floor(224 / 0.95), 224),
        "rsb_a3": (160, math.floor(224 / 0.95), 224),
        "swin_base": (224, 256, 224),
        "he2019_both": (224, 256, 224),
    }


def test_he_normalization_is_the_papers() -> None:
    from trickbag.tricks.color import Normalize

    trick = load("he2019_both").tricks["normalize"]
    assert isinstance(trick, Normalize)
    assert trick.mean == pytest.approx(Normalize.HE_MEAN)
    assert trick.std == pytest.approx(Normalize.HE_STD)


def test_distillation_is_the_papers_sum() -> None:
    """Cross entropy of the labels plus T^2 times that of the teacher: weights 1 and 1, T = 20."""
    trick = load("he2019_distillation").tricks["distillation"].settings()
    assert (trick["alpha"], trick["hard"], trick["temperature"]) == (1.0, 1.0, 20.0)
    assert trick["teacher"]["model"] == "resnet152d"
