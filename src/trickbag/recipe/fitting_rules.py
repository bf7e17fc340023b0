"""The rules of :mod:`trickbag.recipe.fitting`, in the order in which they are applied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trickbag.recipe.adjusting import Work
from trickbag.recipe.model import ModelSpec, Scalar
from trickbag.tricks.stages import OptimizerTrick

SMALL_NETS = (
    "mini_resnet",
    "fast_resnet",
    "resnet9",
    "cifar_resnet",
    "resnet20",
    "resnet56",
    "wrn",
    "wrn16_4",
)
SMALL, TINY = 64, 16
LEAST_SIDE = 8
LEAST_BATCH, LEAST_UPDATES_AN_EPOCH = 16, 100
LEAST_UPDATES, MOST_UPDATES = 2_000, 20_000
LINEAR = ("sgd", "nesterov", "lars")
IN_EPOCHS: Mapping[str, str] = {
    "warmup": "epochs",
    "step_decay": "milestones",
    "warm_restarts": "first",
    "mix_off": "epochs",
    "freeze": "epochs",
    "swa": "every",
    "snapshot_ensemble": "every",
}
"""Settings that count epochs, by the trick that they belong to."""
SHORT_WARMUP = 2
IMAGENET_CLASSES = 1000


def sizes_and_model(work: Work) -> None:
    """Shrink all sizes together, and exchange a network that cannot follow."""
    recipe, side = work.recipe, min(work.facts.image_size)
    resize, crop = recipe.evaluation
    largest = max(resize, recipe.image_size)
    factor = min(1.0, max(side, LEAST_SIDE) / largest)
    size, model = _scaled(recipe.image_size, factor), recipe.model
    replaced = factor < 1 and size < SMALL and not model.starts_pretrained and model.name not in SMALL_NETS
    if factor < 1 and (replaced or not (model.starts_pretrained or _takes_one_size(model))):
        sizes = {"image_size": size}
        if recipe.eval_resize is not None:
            sizes["eval_resize"] = max(_scaled(resize, factor), _scaled(crop, factor))
        if recipe.eval_size is not None:
            sizes["eval_size"] = _scaled(crop, factor)
        work.plain("sizes", f"images have {side} px, not {largest}", **sizes)
    if replaced:
        _replace_model(work, size)
    largest = max(work.recipe.evaluation[0], work.recipe.image_size)
    if largest > side:
        more = ", more than twice: they gain no detail by that" if largest > 2 * side else ""
        work.notes.append(
            f"images of {side} px are enlarged {largest / side:.3g} times, to {largest} px{more}"
        )


def _replace_model(work: Work, size: int) -> None:
    old = work.recipe.model
    name = "mini_resnet" if size < TINY else "fast_resnet"
    options: dict[str, Scalar] = {"width": 16} if size < TINY else {}
    reason = f"{old.name} is made for {work.original.image_size} px; of {size} px its strides leave one pixel"
    work.plain("model", reason, model=ModelSpec(name=name, options=options))
    for kind in NEEDS_MODEL:
        if kind in work.recipe.tricks:
            work.drop(kind, "model", f"{name} has no place for it")


NEEDS_MODEL = ("resnet_variant", "start_from")
"""Tricks that are about a model that :func:`_replace_model` takes away."""


def _scaled(size: int, factor: float) -> int:
    if factor == 1:
        return size
    exact = size * factor
    return max(LEAST_SIDE, round(exact) if exact < 16 else 4 * round(exact / 4))


def _takes_one_size(model: ModelSpec) -> bool:
    if model.name in SMALL_NETS:
        return False
    import timm

    config = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    return bool(config is not None and config.fixed_input_size)


def batch(work: Work) -> None:
    """The batch, what cuts it, and the rate that belongs to it."""
    recipe, images = work.recipe, work.images
    most = max(LEAST_BATCH, _power_of_two(images // LEAST_UPDATES_AN_EPOCH))
    if most > images:
        most = _power_of_two(images)
    if recipe.batch_size <= most:
        return
    before = recipe.batch_size
    reason = f"{images} images make {images // most} updates an epoch, not {images // before}"
    work.plain("batch", reason, batch_size=most)
    for kind in ("gradient_accumulation",):
        if kind in recipe.tricks and work.get(kind).steps > 1:
            work.drop(kind, "batch", f"a batch of {most} needs no parts")
    _rate(work, most / before)


def _rate(work: Work, ratio: float) -> None:
    tricks = work.recipe.tricks
    if any(trick.slot == "lr_scaling" for trick in tricks.values()):
        kind = next(kind for kind, trick in tricks.items() if trick.slot == "lr_scaling")
        work.notes.append(f"{kind} makes the learning rate follow the batch")
        return
    for trick in tricks.of(OptimizerTrick):
        for name in ("lr", "other_lr", "head_lr"):
            rate = getattr(trick, name, None)
            if rate is None:
                continue
            linear = trick.kind in LINEAR or (name != "lr" and getattr(trick, "other", "") == "nesterov")
            reason = f"the batch has {ratio:g} of its size" + ("" if linear else ", whose square root counts")
            value = _rounded(rate * (ratio if linear else math.sqrt(ratio)))
            work.setting(trick.kind, name, value, "rate", reason)


def epochs(work: Work, told: float | None) -> None:
    """How long to train."""
    recipe = work.recipe
    an_epoch = max(1, work.images // recipe.batch_size)
    if told is not None:
        work.plain("epochs", "as told", epochs=told)
        return
    if work.meant_for == work.images:
        return
    updates = recipe.epochs * an_epoch
    reason = f"{recipe.epochs:g} epochs of {an_epoch} would make {updates:,.0f} updates"
    if updates < LEAST_UPDATES:
        work.plain("epochs", reason, epochs=math.ceil(LEAST_UPDATES / an_epoch))
    elif updates > MOST_UPDATES:
        work.plain("epochs", reason, epochs=max(1, MOST_UPDATES // an_epoch))


def schedule(work: Work) -> None:
    """What counts epochs."""
    ratio = work.recipe.epochs / work.original.epochs
    if ratio == 1:
        return
    reason = f"the run has {work.recipe.epochs:g} epochs, not {work.original.epochs:g}"
    for kind, name in IN_EPOCHS.items():
        if kind in work.recipe.tricks:
            value = getattr(work.get(kind), name)
            if isinstance(value, tuple):
                value = tuple(_rounded(each * ratio) for each in value)
            elif value is not None:
                value = _rounded(value * ratio)
            work.setting(kind, name, value, "schedule", reason)
    lines = work.get("piecewise_linear")
    if lines is not None and lines.unit == "epochs":
        least = 1 / max(1, work.images // work.recipe.batch_size)
        points: list[tuple[Any, float]] = []
        for place, factor in lines.points:
            if place != "end":
                place = _rounded(place * ratio)
                place = max(place, points[-1][0] + least) if points else place
            points.append((place, factor))
        work.setting("piecewise_linear", "points", tuple(points), "schedule", reason)
    warmup = work.get("warmup")
    if warmup is not None and warmup.epochs < SHORT_WARMUP:
        reason = f"warmup takes {warmup.epochs:g} epochs"
        for kind, trick in work.recipe.tricks.items():
            if getattr(trick, "stepping", None) == "epoch":
                work.setting(kind, "stepping", "update", "schedule", reason)


def average(work: Work) -> None:
    """How long averaged weights remember."""
    old, new = work.steps
    ema = work.get("ema")
    if ema is None or old == new or not ema.decay:
        return
    reason = f"the run has {new:,.0f} updates, not {old:,.0f}"
    every = min(ema.every, max(1, round(ema.every * new / old)))
    forgets = (1 - ema.decay) * old / new * every / ema.every
    if getattr(ema, "rescale", False):
        forgets = (1 - ema.decay) * work.meant_for / work.images
    work.setting("ema", "every", every, "average", reason)
    work.setting("ema", "decay", _rounded(1 - min(0.5, forgets), 8), "average", reason)


def pixels(work: Work) -> None:
    """What counts pixels, and the smallest crop."""
    recipe = work.recipe
    size, before = recipe.image_size, work.original.image_size
    crop = work.get("random_resized_crop")
    if crop is not None and size < SMALL:
        low, high = crop.area
        source = min(work.facts.image_size)
        reason = f"{low:g} of an image of {source} px is {math.sqrt(low) * source:.0f} px in each direction"
        work.setting("random_resized_crop", "area", (max(low, min(0.25, high)), high), "crops", reason)
    if size == before:
        return
    reason = f"images are trained on at {size} px, not {before}"
    if (padding := work.get("pad_and_crop")) is not None and padding.padding:
        scaled = min(size - 1, max(1, round(padding.padding * size / before)))
        work.setting("pad_and_crop", "padding", scaled, "pixels", reason)
    if (tuning := work.get("resize_tuning")) is not None:
        sizes = tuple(_scaled(each, size / before) for each in tuning.sizes)
        work.setting("resize_tuning", "sizes", sizes, "pixels", reason)
    ramp = work.get("resolution_ramp")
    if ramp is not None and ramp.start < 1:
        start = max(ramp.start, LEAST_SIDE / size)
        gap = size * (1 - start)
        if gap <= 0.5:
            work.drop("resolution_ramp", "pixels", f"{reason}, which leaves it no room")
        else:
            multiple = min(ramp.multiple, _power_of_two(int(gap)))
            work.setting("resolution_ramp", "start", start, "pixels", reason)
            work.setting("resolution_ramp", "multiple", multiple, "pixels", reason)


def colors(work: Work) -> None:
    """Colors of the data instead of ImageNet's; nothing that acts on color alone where there is none."""
    gray = work.facts.channels == 1
    _normalization(work, gray)
    for kind, trick in work.recipe.tricks.items():
        fill = getattr(trick, "fill", None)
        if isinstance(fill, tuple) and len(fill) > 1:
            work.setting(kind, "fill", "mean", "colors", "the mean of the data, not of ImageNet")
    if not gray:
        return
    jitter = work.get("color_jitter")
    if jitter is not None:
        for name in ("saturation", "hue"):
            work.setting("color_jitter", name, 0, "colors", "images are gray")
    if "pca_noise" in work.recipe.tricks:
        work.drop("pca_noise", "colors", "images are gray")


def _normalization(work: Work, gray: bool) -> None:
    trick, model = work.get("normalize"), work.recipe.model
    if trick is None:
        return
    given = len(trick.mean or ()) > 1 or len(trick.std or ()) > 1
    if model.starts_pretrained and gray:
        if not (trick.mean and trick.std) or given:
            mean, std = _expected(model)
            for name, values in (("mean", mean), ("std", std)):
                value = (_rounded(sum(values) / len(values)),)
                work.setting("normalize", name, value, "colors", "images are gray: one value for all")
    elif given and (gray or trick.mean in PUBLISHED_MEANS):
        for name in ("mean", "std"):
            owner = "weights" if model.starts_pretrained else "data"
            work.setting("normalize", name, None, "colors", f"left empty, that of the {owner}")


def _expected(model: ModelSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if model.name not in SMALL_NETS:
        import timm

        config = timm.get_pretrained_cfg(model.name, allow_unregistered=True)
        if config is not None:
            return tuple(config.mean), tuple(config.std)
    return (0.5,), (0.25,)


PUBLISHED_MEANS = ((0.485, 0.456, 0.406), (123.68 / 255, 116.779 / 255, 103.939 / 255))
"""Means of ImageNet's colors as recipes write them."""


def rest(work: Work, device_type: str) -> None:
    """Teacher and device; what is worth knowing of what is kept."""
    tricks = work.recipe.tricks
    distillation = work.get("distillation")
    if distillation is not None and work.facts.num_classes != IMAGENET_CLASSES:
        teacher = distillation.teacher
        if teacher is not None and teacher.model is not None and teacher.weights is None:
            reason = (
                f"{teacher.model} knows the {IMAGENET_CLASSES} classes of ImageNet; one that is trained on "
                "the data first is given as distillation.teacher={recipe: ...}"
            )
            work.drop("distillation", "teacher", reason)
    precision = work.get("mixed_precision")
    if precision is not None and precision.dtype == "fp16" and device_type == "cpu":
        work.drop("mixed_precision", "device", "training is on a CPU")
    if "trivial_augment" in tricks and work.recipe.image_size < SMALL:
        work.notes.append("trivial_augment shifts images by up to 32 px, whatever their size")
    optimizer = next(iter(tricks.of(OptimizerTrick)), None)
    if optimizer is not None and optimizer.weight_decay and work.adjustments:
        decay = optimizer.weight_decay
        work.notes.append(
            f"weight decay {decay:g} is kept; its best value depends on data and length: tune it"
        )


def _power_of_two(limit: int) -> int:
    return 1 << max(0, limit.bit_length() - 1)


def _rounded(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")
