"""What does not go together, or not as people expect: one list, with a reason each.

Errors stop a plan; notes come with it. A row without ``when`` holds whenever all of its tricks are in the
bag. What a trick refuses by itself (no batch norm to act on, say) is told by the trick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trickbag.errors import Problem
from trickbag.tricks.base import Bag
from trickbag.tricks.stages import MixTrick

if TYPE_CHECKING:
    from trickbag.plan import Context

When = Callable[[Any, "Context"], bool]
"""(the bag, the context of the plan) -> whether a row applies."""


@dataclass(frozen=True)
class Interaction:
    """One row.

    Attributes:
        kinds: tricks that must all be in the bag.
        reason: why it matters, in one sentence.
        level: ``error`` stops the plan, ``note`` comes with it.
        fix: what to do; None suggests to take one of them out.
        when: further condition.
    """

    kinds: tuple[str, ...]
    reason: str
    level: Literal["error", "note"] = "note"
    fix: str | None = None
    when: When | None = None

    def applies(self, bag: Bag, context: Context | None) -> bool:
        """Whether it concerns a bag; conditions are left out where there is no context to judge them by."""
        if any(kind not in bag for kind in self.kinds):
            return False
        return self.when is None or (context is not None and self.when(bag, context))


def _trained(bag: Any, context: Context) -> bool:
    given = "start_from" in bag and bag["start_from"].source is not None
    return context.recipe.model.starts_pretrained or given


def _random(bag: Any, context: Context) -> bool:
    return not _trained(bag, context)


def _mixes(bag: Any, context: Context) -> bool:
    return bool(bag.of(MixTrick))


def _two_mixes(bag: Any, context: Context) -> bool:
    switched = "mix_switch" in bag and bag["mix_switch"].per != "off"
    return not switched and all(mix.p == 1 for mix in bag.of(MixTrick) if mix.kind != "mosaic")


def _neighbors(bag: Any, context: Context) -> bool:
    rolled = any(getattr(mix, "partner", None) == "roll" for mix in bag.of(MixTrick))
    return bool(rolled and bag["repeated_augmentation"].repeats > 1)


def _without_bn_update(bag: Any, context: Context) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    swa = bag["swa"]
    has_norm = any(isinstance(module, _BatchNorm) for module in context.model.modules())
    return bool(swa.images == 0 and swa.after < 1 and has_norm and "bn_reestimation" not in bag)


def _slow_average(bag: Any, context: Context) -> bool:
    """More than 5 % of the average would still be the initial weights at the end."""
    ema, timeline = bag["ema"], context.timeline
    decay = ema.decay_at_end(timeline) if hasattr(ema, "decay_at_end") else ema.decay
    every = getattr(ema, "every", 1)
    return bool(decay > 0 and decay ** (timeline.steps / every) > 0.05)


def _adaptive(bag: Any, context: Context) -> bool:
    optimizers = {"adam", "adamw", "lamb", "lion", "rmsprop"}
    return any(kind in optimizers for kind in bag)


def _sigmoid(bag: Any, context: Context) -> bool:
    return bool(bag["focal"].form == "sigmoid")


def _sum_of_sigmoids(bag: Any, context: Context) -> bool:
    terms = bag["loss_sum"]
    return bool(terms.bce > 0 or (terms.focal > 0 and terms.form == "sigmoid"))


def _threshold(bag: Any, context: Context) -> bool:
    return bag["bce"].target_threshold is not None


def _partly_frozen(bag: Any, context: Context) -> bool:
    return bool(bag["freeze"].train != "all")


TAILS = ("cosine_decay", "one_cycle", "polynomial_decay", "constant_cooldown", "piecewise_linear")
OVERWRITTEN = ("xavier_init", "he_init", "trunc_normal_init", "zero_gamma", "whitening")
"""What writes weights that ``start_from`` replaces; filters of whitening come from the other run, too."""

INTERACTIONS: tuple[Interaction, ...] = (
    # Errors: the result would not be what the recipe says.
    *(
        Interaction(
            (weights, "bce"),
            "weights of classes multiply the targets; binary cross entropy would take them for targets "
            "above 1, and its negative classes would stay unweighted",
            "error",
            "balance by sampling: --with balanced_sampling, or take cross entropy: --without bce",
        )
        for weights in ("class_weights", "class_balanced")
    ),
    *(
        Interaction(
            (weights, "focal"),
            "weights of classes multiply the targets, which the sigmoid form takes for targets above 1",
            "error",
            "--set focal.form=softmax, or balance by sampling: --with balanced_sampling",
            _sigmoid,
        )
        for weights in ("class_weights", "class_balanced")
    ),
    *(
        Interaction(
            (weights, "loss_sum"),
            "weights of classes multiply the targets, which losses of sigmoids take for targets above 1",
            "error",
            "--set loss_sum.bce=0 --set loss_sum.form=softmax",
            _sum_of_sigmoids,
        )
        for weights in ("class_weights", "class_balanced")
    ),
    Interaction(
        ("swa",),
        "averaged weights with the batch-norm statistics of other weights predict badly",
        "error",
        "--set swa.images=1024",
        _without_bn_update,
    ),
    # Notes: it may be what you want; more often it is not.
    Interaction(
        ("distillation", "label_smoothing"),
        "smoothing blurs the hard targets beside a teacher that is soft already, and a teacher trained with "
        "smoothing teaches worse (Müller et al. 2019, arXiv:1906.02629)",
    ),
    *(
        Interaction(
            ("early_stopping", tail),
            "most of the gain comes while the learning rate falls; stopping before its end throws that away",
            fix="train for fewer epochs instead",
        )
        for tail in TAILS
    ),
    Interaction(
        ("early_stopping", "warm_restarts"),
        "the metric falls after each restart, which looks like the end",
        fix="a patience longer than a cycle",
    ),
    Interaction(
        ("ema",),
        "the average is too slow for so few steps: at the end, more than 5 % of it are still initial weights",
        fix="lower ema.decay, or train longer",
        when=_slow_average,
    ),
    *(
        Interaction(
            ("swa", tail),
            "weights averaged while the learning rate falls to 0 hardly differ from each other",
            fix="constant_cooldown or a floor keeps the rate up while weights are collected",
        )
        for tail in ("cosine_decay", "one_cycle", "polynomial_decay")
    ),
    Interaction(
        ("repeated_augmentation",),
        "neighbors in a batch are repeats of one image: with partner = roll most are mixed with themselves",
        fix="partner: reverse",
        when=_neighbors,
    ),
    Interaction(
        ("repeated_augmentation", "alternating_flip"),
        "flips alternate between epochs: all repeats of an image in one epoch are flipped alike",
        fix="random_flip",
    ),
    *(
        Interaction(
            pair,
            "both act, one after the other",
            fix="--with mix_switch, so that one of them acts at a time",
            when=_two_mixes,
        )
        for pair in (("mixup", "cutmix"), ("mosaic", "mixup"), ("mosaic", "cutmix"))
    ),
    Interaction(
        ("ohem",),
        "the hardest images of a mixed batch are those that were mixed most",
        fix="--without ohem, or no mixing",
        when=_mixes,
    ),
    Interaction(
        ("ohem", "distillation"), "easy images count no more for the labels, but still for the teacher"
    ),
    *(
        Interaction((weights, "distillation"), "what the teacher says is not weighted by class")
        for weights in ("class_weights", "class_balanced")
    ),
    Interaction(
        ("ohem", "gradient_accumulation"), "the hardest images are chosen within each part of a batch"
    ),
    Interaction(
        ("focal", "label_smoothing"),
        "focal loss plays down what is predicted well, which smoothed targets never are",
    ),
    Interaction(
        ("bce", "label_smoothing"),
        "the threshold makes smoothed targets hard again: smoothing does nothing, or, where its share of a "
        "class exceeds the threshold, makes every target 1",
        fix="--without label_smoothing",
        when=_threshold,
    ),
    Interaction(
        ("random_flip", "vertical_flip"),
        "both flip top and bottom, so that their chances combine",
        fix="--set random_flip.vertical=0",
        when=lambda bag, context: bag["random_flip"].vertical > 0,
    ),
    *(
        Interaction((schedule, "warmup"), "both let the learning rate rise, and their factors multiply")
        for schedule in ("one_cycle", "piecewise_linear")
    ),
    Interaction(("lamb", "gradient_clipping"), "LAMB clips the whole gradient by itself (max_norm)"),
    Interaction(("backbone_lr", "layer_decay"), "both slow down lower layers, and their factors multiply"),
    *(
        Interaction(
            (kind, "no_bias_norm_decay"),
            "what is spared from decay is spared from the trust ratio too, and takes unscaled steps",
            fix=f"--set {kind}.always_adapt=true",
        )
        for kind in ("lars", "lamb")
    ),
    Interaction(("sam",), "an update takes two passes", fix="compare it with a run of twice the epochs"),
    Interaction(
        ("resize_tuning",),
        "on the selection split it cannot look worse than the recipe's own size, which is among those tried",
        fix="believe the test split",
    ),
    Interaction(
        ("early_stopping", "snapshot_ensemble"),
        "a run that stops early lacks its last snapshots",
    ),
    Interaction(
        ("snapshot_ensemble",),
        "early snapshots drag the ensemble down unless the learning rate falls before each",
        fix="--with warm_restarts",
        when=lambda bag, context: "warm_restarts" not in bag,
    ),
    *(
        Interaction((kind, "snapshot_ensemble"), "the snapshots are of the raw weights, and predict alone")
        for kind in ("ema", "swa", "bn_reestimation")
    ),
    Interaction(("cutout", "random_erasing"), "both erase parts of the same images"),
    Interaction(
        ("gradient_accumulation", "ghost_batch_norm"),
        "batch norm already sees each part of a batch on its own",
    ),
    Interaction(
        ("linear_lr_scaling",),
        "for Adam and its kin the rate goes with the square root of the batch size",
        fix="sqrt_lr_scaling",
        when=_adaptive,
    ),
    *(
        Interaction(
            ("balanced_sampling", weights),
            "both correct for unequal classes: rare ones are favored twice",
            fix=f"--without balanced_sampling or --without {weights}",
        )
        for weights in ("class_weights", "class_balanced")
    ),
    Interaction(
        ("freeze",),
        "what is frozen has random weights",
        fix="start from trained ones: model.pretrained, model.weights or start_from",
        when=lambda bag, context: _partly_frozen(bag, context) and _random(bag, context),
    ),
    *(
        Interaction(
            (kind,),
            "it is meant for fine-tuning; from random weights it only slows down the lower layers",
            when=_random,
        )
        for kind in ("layer_decay", "backbone_lr")
    ),
    *(
        Interaction(
            ("freeze", kind),
            "the statistics of frozen layers, which belong to the weights, are estimated anew as well",
            when=_partly_frozen,
        )
        for kind in ("swa", "bn_reestimation")
    ),
    Interaction(
        ("dropout", "stochastic_depth"),
        "both draw from one generator: taking stochastic_depth out changes the masks of dropout too",
    ),
    *(
        Interaction(
            (pseudo, weights),
            "weights of classes come from the labels alone, not from images that join or change their class",
        )
        for pseudo in ("self_training", "label_propagation")
        for weights in ("class_weights", "class_balanced")
    ),
    *(
        Interaction(("start_from", kind), "the weights that training starts from overwrite it")
        for kind in OVERWRITTEN
    ),
)


def errors(bag: Bag, context: Context | None = None) -> Iterator[Problem]:
    """Problems of a bag; without a context only those that hold for any model and data."""
    for row in INTERACTIONS:
        if row.level == "error" and row.applies(bag, context):
            first = row.kinds[0]
            fix = row.fix or "remove one: " + " or ".join(f"--without {kind}" for kind in row.kinds)
            what = row.reason
            if len(row.kinds) > 1:
                what = f"{' and '.join(row.kinds)} do not go together: {row.reason}"
            yield Problem(what, f"trick {first}", fix=fix)


def notes(bag: Bag, context: Context) -> Iterator[str]:
    """Notes on a bag."""
    for row in INTERACTIONS:
        if row.level == "note" and row.applies(bag, context):
            text = f"{' with '.join(row.kinds)}: {row.reason}"
            yield f"{text} ({row.fix})" if row.fix else text


def of(kind: str) -> tuple[Interaction, ...]:
    """The rows that concern a trick."""
    return tuple(row for row in INTERACTIONS if kind in row.kinds)


def clash(one: str, other: str) -> bool:
    """Whether two tricks are never accepted together."""
    return any(
        row.level == "error" and row.when is None and set(row.kinds) == {one, other} for row in INTERACTIONS
    )
