"""Augmentation policies: each image meets operations drawn from a list. A bag holds one of them at most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from trickbag.errors import Problem
from trickbag.imageops.program import Op, Step
from trickbag.tricks import policy_ops
from trickbag.tricks.augmentation import Probability
from trickbag.tricks.base import Card
from trickbag.tricks.color import Normalize
from trickbag.tricks.stages import Batch, ImageTrick

if TYPE_CHECKING:
    from trickbag.plan import Context
    from trickbag.rng import Stream

Byte = Annotated[int, Field(ge=0, le=255)]
Fill = Literal["mean"] | Annotated[tuple[Byte, ...], Field(min_length=1)]
Filter = Literal["nearest", "bilinear", "bicubic"]

SNIPPET = """\
import torch
from trickbag.tricks.policies import {trick}

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
labels = torch.randint(10, (8,))
policy = {trick}({settings})
for step in range(3):
    augmented = policy(images, seed=0, step=step)
    loss = torch.nn.functional.cross_entropy(model(augmented / 255 - 0.5), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


class Policy(ImageTrick):
    """What the policies share.

    Attributes:
        p: probability, for each image, of acting on it.
        fill: the color that geometric operations bring in from outside an image, 0 to 255, one value a
            channel or one for all; or ``mean``, that of the pretrained weights, else of the training split.
    """

    rank = 30
    slot = "policy"

    p: Probability = 1.0
    fill: Fill | None = (0,)

    @property
    def acts(self) -> bool:
        """False at the null setting."""
        return self.p > 0

    @property
    def colors(self) -> bool:
        """True if ``Color`` is among the operations."""
        return True

    def resolve(self, context: Context) -> Self:
        """This trick with ``fill`` as numbers."""
        if self.fill != "mean":
            return self
        mean = Normalize().resolve(context).mean or (0.5,)
        if len(mean) != context.facts.channels:
            mean = (sum(mean) / len(mean),)
        return self.model_copy(update={"fill": tuple(min(255, max(0, round(255 * x))) for x in mean)})

    def check(self, context: Context) -> Iterable[Problem]:
        """One value a channel, or one for all."""
        channels = context.facts.channels
        if isinstance(self.fill, tuple) and len(self.fill) not in (1, channels):
            yield self.problem(
                f"fill has {len(self.fill)} values, but the images have {channels} channels",
                expected=f"{channels} values, or one for all channels",
                fix=f"set {self.kind}.fill to mean, or give one value",
            )

    def notes(self, context: Context) -> Iterable[str]:
        """Gray images have no saturation."""
        if context.facts.channels == 1 and self.acts and self.colors:
            yield "the operation Color leaves gray images alone, as it does in torchvision and timm"

    def _fill(self) -> tuple[int, int, int]:
        """Three values; without data to take a mean from, middle gray."""
        fill = self.fill if isinstance(self.fill, tuple) else (128,)
        return (fill[0], fill[0], fill[0]) if len(fill) < 3 else (fill[0], fill[1], fill[2])


class TrivialAugment(Policy):
    """One operation an image, at a magnitude drawn with it.

    Attributes:
        p: probability, for each image, of an operation.
        interpolation: how geometric operations find values between pixels.
        fill: color from outside an image, 0 to 255, one value a channel or one for all; or ``mean``.
    """

    kind = "trivial_augment"
    null_setting = {"p": 0}
    card = Card(
        title="TrivialAugment",
        summary="Applies to each image one of 14 operations (shears, shifts, rotation, brightness, contrast, "
        "color, sharpness, posterize, solarize, autocontrast, equalize, none), drawn uniformly, at one of 31 "
        "magnitudes, drawn uniformly too. Nothing to tune.",
        source="Müller and Hutter 2021, arXiv:2103.10158, algorithm 1 with the wide augmentation space; as "
        "torchvision's TrivialAugmentWide",
        formula="op(image, m), op uniform among 14, m uniform among 31 magnitudes and both signs",
        null="p = 0",
        cost="One operation an image.",
        suggested="As it is: the paper finds it at least as good as tuned policies on CIFAR, SVHN and "
        "ImageNet, and torchvision's later recipes use it. Shifts reach 32 pixels at every size, which is a "
        "whole image at 32 px. Hurts short training, and where color or orientation is the label.",
        aliases=("TrivialAugmentWide", "TA", "TAWide", "TA wide", "trivialaugment"),
        library="trickbag: torchvision augments one image at a time. Results equal its own on Pillow "
        "images, bit for bit",
        snippet=SNIPPET.format(trick="TrivialAugment", settings=""),
    )

    interpolation: Filter = "nearest"

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """One step, or nothing where ``p`` is 0."""
        if not self.acts:
            return ()
        table = policy_ops.uniform_table(
            *("wide", 31, range(31), True, *batch.shape[2:]),
            *(policy_ops.FILTERS[self.interpolation], self._fill()),
        )
        uniform = stream.numpy(batch.step).random((batch.shape[0], 2))
        return table.steps((table.pick(uniform[:, 0]) * (uniform[:, 1] < self.p))[None])


class RandAugment(Policy):
    """A few operations an image, one after the other, all at one magnitude.

    Attributes:
        semantics: whose RandAugment: ``torchvision``, or ``timm`` (which recipes write as
            ``rand-m9-mstd0.5-inc1``: magnitude 9, mstd 0.5, increasing).
        num_ops: operations an image.
        magnitude: torchvision: a whole number below ``num_magnitude_bins``. timm: 0 to 10, or up to ``mmax``.
        num_magnitude_bins: torchvision only: number of magnitudes from none to the strongest.
        p: timm only: probability of each operation, once it is drawn.
        mstd: timm only: standard deviation of the magnitude, drawn for each operation; ``uniform`` draws it
            from 0 to ``magnitude``.
        mmax: timm only: magnitudes are cut off at 0 and here.
        increasing: timm only: operations that all grow stronger with the magnitude (``inc1``).
        weighted: timm only: operations drawn by timm's weights, without replacement (``tweights``).
        interpolation: how geometric operations find values between pixels. None: ``nearest`` for torchvision;
            for timm ``random``, bilinear or bicubic at each operation.
        fill: color from outside an image, 0 to 255, one value a channel or one for all; or ``mean``. None:
            black for torchvision, ``mean`` for timm.
    """

    kind = "rand_augment"
    null_setting = {"num_ops": 0}
    example = {"semantics": "timm", "mstd": 0.5, "increasing": True}
    card = Card(
        title="RandAugment",
        summary="Applies num_ops operations (shears, shifts, rotation, brightness, contrast, color, "
        "sharpness, posterize, solarize, autocontrast, equalize) to each image, drawn uniformly, all at one "
        "magnitude.",
        source="Cubuk et al. 2020, arXiv:1909.13719, section 3; as torchvision's RandAugment (14 operations, "
        "31 magnitudes) or timm's rand_augment_transform (15 operations, magnitudes from 0 to 10)",
        formula="op_n(... op_2(op_1(image, m), m) ..., m), n = num_ops, each op_k uniform among 14 or 15\n"
        "timm: each with probability p and its own m ~ N(magnitude, mstd^2), cut off at 0 and mmax",
        null="num_ops = 0",
        cost="num_ops operations an image.",
        suggested="torchvision: num_ops 2, magnitude 9. timm: mstd 0.5, increasing, magnitude 6 or 7 for "
        "ResNet-50 (A1 to A3 of ResNet strikes back), 9 for DeiT, Swin and ConvNeXt (rand-m9-mstd0.5-inc1). "
        "Both scales are called magnitude and differ: 9 of 30 is not 9 of 10. Without increasing, some of "
        "timm's operations weaken as the magnitude grows. Helps long training; lower it for small models.",
        aliases=("RA", "RandAug", "randaugment", "rand-m9-mstd0.5-inc1", "auto-augment rand"),
        library="trickbag: torchvision and timm augment one image at a time. Results equal theirs on Pillow "
        "images, bit for bit",
        snippet=SNIPPET.format(trick="RandAugment", settings='semantics="timm", mstd=0.5, increasing=True'),
    )

    semantics: Literal["torchvision", "timm"] = "torchvision"
    num_ops: int = Field(default=2, ge=0, le=15)
    magnitude: float = Field(default=9.0, ge=0)
    num_magnitude_bins: int = Field(default=31, ge=2, le=1000)
    p: Probability = 0.5
    mstd: Annotated[float, Field(ge=0)] | Literal["uniform"] = 0.0
    mmax: float = Field(default=10.0, gt=0)
    increasing: bool = False
    weighted: bool = False
    interpolation: Filter | Literal["random"] | None = None
    fill: Fill | None = None

    @model_validator(mode="after")
    def _one_semantics(self) -> Self:
        timm = {"p", "mstd", "mmax", "increasing", "weighted"}
        foreign = timm if self.semantics == "torchvision" else {"num_magnitude_bins"}
        other = "timm" if self.semantics == "torchvision" else "torchvision"
        fields = {name: field.default for name, field in type(self).model_fields.items()}
        used = [name for name in fields if name in foreign and getattr(self, name) != fields[name]]
        if used:
            raise ValueError(
                f"{' and '.join(used)} mean something for semantics: {other} only, not for {self.semantics}"
            )
        if self.semantics == "timm":
            if self.weighted and not self.increasing:
                raise ValueError("timm's weights are for increasing operations: set increasing to true")
            return self
        if self.interpolation == "random":
            raise ValueError("interpolation random is for semantics: timm only")
        if self.magnitude % 1 or self.magnitude >= self.num_magnitude_bins:
            raise ValueError(
                f"torchvision's magnitude is a whole number from 0 to {self.num_magnitude_bins - 1}, "
                f"not {self.magnitude:g}"
            )
        return self

    @property
    def acts(self) -> bool:
        """True unless there are no operations."""
        return self.num_ops > 0 and (self.semantics == "torchvision" or self.p > 0)

    def resolve(self, context: Context) -> Self:
        """This trick with ``fill`` and ``interpolation`` filled in."""
        timm = self.semantics == "timm"
        update: dict[str, Any] = {"interpolation": self.interpolation or ("random" if timm else "nearest")}
        if self.fill is None:
            update["fill"] = "mean" if timm else (0,)
        return super(RandAugment, self.model_copy(update=update)).resolve(context)

    def notes(self, context: Context) -> Iterable[str]:
        """Magnitudes above ``mmax`` do not exist."""
        yield from super().notes(context)
        if self.acts and self.semantics == "timm" and self.magnitude > self.mmax:
            yield f"magnitude {self.magnitude:g} is cut off at mmax = {self.mmax:g}, as it is in timm"

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """``num_ops`` steps."""
        if not self.acts:
            return ()
        generator = stream.numpy(batch.step)
        if self.semantics == "timm":
            return self._draw_timm(batch, generator)
        number, filter = int(self.magnitude), policy_ops.FILTERS[self.interpolation or "nearest"]
        fill = (0, 0, 0) if self.fill is None else self._fill()
        levels = range(number, number + 1)
        table = policy_ops.uniform_table(
            "rand", self.num_magnitude_bins, levels, True, *batch.shape[2:], filter, fill
        )
        return table.steps(table.pick(generator.random((batch.shape[0], self.num_ops)).T))

    def _draw_timm(self, batch: Batch, generator: np.random.Generator) -> Sequence[Step]:
        names = policy_ops.INCREASING if self.increasing else policy_ops.DECREASING
        levels = policy_ops.timm_levels(names, *batch.shape[2:], self._fill())
        shape = (batch.shape[0], self.num_ops)
        which, applied, sign, sampled = generator.random((*shape, 4)).T
        chosen = (which * len(names)).astype(np.intp)
        if self.weighted:
            left = np.tile([policy_ops.WEIGHTS[name] for name in names], (batch.shape[0], 1))
            for k in range(self.num_ops):
                edges = left.cumsum(1)
                chosen[k] = (edges < (which[k] * edges[:, -1])[:, None]).sum(1)
                left[np.arange(len(left)), chosen[k]] = 0
        level: np.ndarray | float = self.magnitude
        if self.mstd == "uniform":
            level = self.magnitude * generator.random(shape).T
        elif self.mstd:
            level = self.magnitude + self.mstd * generator.standard_normal(shape).T
        interpolation = self.interpolation or "random"
        if interpolation == "random":
            resample = np.where(sampled < 0.5, 2, 3)
        else:
            resample = np.array(policy_ops.FILTERS[interpolation])
        chosen = np.where(applied < self.p, 1 + chosen, 0)
        return levels.steps(chosen, np.clip(level, 0.0, self.mmax), sign < 0.5, resample)


class AutoAugment(Policy):
    """Two operations an image, drawn as a pair from a list of 25 that was found by search.

    Attributes:
        policy: the data set that the list was searched on.
        p: probability, for each image, that its pair is considered.
        interpolation: how geometric operations find values between pixels.
        fill: color from outside an image, 0 to 255, one value a channel or one for all; or ``mean``.
    """

    kind = "auto_augment"
    null_setting = {"p": 0}
    card = Card(
        title="AutoAugment",
        summary="Draws one of 25 pairs of operations for each image, and applies each of the two with the "
        "pair's own probability and magnitude, all of which a search found on ImageNet, CIFAR-10 or SVHN.",
        source="Cubuk et al. 2019, arXiv:1805.09501, tables of policies in its appendix; as torchvision's "
        "AutoAugment",
        formula="op_2(op_1(image, m_1), m_2), each with its own probability, the pair uniform among 25",
        null="p = 0",
        cost="At most two operations an image.",
        suggested="The policy of the data set that is most like yours: imagenet for photographs, cifar10 for "
        "small ones, svhn for digits and signs. TrivialAugment is as good in its paper, with "
        "nothing to choose.",
        aliases=("AA", "auto augment", "learned augmentation policy", "autoaugment"),
        library="trickbag: torchvision augments one image at a time. Results equal its own on Pillow "
        "images, bit for bit",
        snippet=SNIPPET.format(trick="AutoAugment", settings='policy="imagenet"'),
    )

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    interpolation: Filter = "nearest"

    @property
    def colors(self) -> bool:
        """The policy of SVHN has no ``Color``."""
        return self.policy != "svhn"

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """Two steps, or nothing where ``p`` is 0."""
        if not self.acts:
            return ()
        table, probabilities = policy_ops.pair_table(
            self.policy, *batch.shape[2:], policy_ops.FILTERS[self.interpolation], self._fill()
        )
        uniform = stream.numpy(batch.step).random((batch.shape[0], 6)).T
        pair = (uniform[0] * probabilities.shape[1]).astype(np.intp)
        applied = (uniform[2:4] < probabilities[:, pair]) & (uniform[1] < self.p)
        rows = 1 + 4 * pair + np.array([[0], [2]]) + (uniform[4:] < 0.5)
        return table.steps(np.where(applied, rows, 0))


class AugMix(Policy):
    """A blend of an image with several chains of operations on it.

    Attributes:
        severity: 1 to 10; magnitudes are drawn from the lowest so many of ten.
        mixture_width: number of chains.
        chain_depth: operations in each chain; -1 draws 1, 2 or 3 for each.
        alpha: parameter of the Dirichlet and Beta distributions of the weights.
        all_ops: also brightness, contrast, color and sharpness, which overlap with ImageNet-C's corruptions.
        p: probability, for each image, of a blend.
        interpolation: how geometric operations find values between pixels.
        fill: color from outside an image, 0 to 255, one value a channel or one for all; or ``mean``.
    """

    kind = "aug_mix"
    null_setting = {"p": 0}
    card = Card(
        title="AugMix",
        summary="Runs each image through mixture_width chains of 1 to 3 weak operations, blends the results "
        "by Dirichlet weights, and the blend with the image by a Beta weight, for models that bear corrupted "
        "images.",
        source="Hendrycks et al. 2020, arXiv:1912.02781, algorithm 1, without its Jensen-Shannon loss; "
        "as torchvision's AugMix",
        formula="mixed = m * image + (1 - m) * sum_k w_k * chain_k(image)\n"
        "m ~ Beta(alpha, alpha), (w_1, ..., w_width) ~ Dirichlet(alpha, ..., alpha)",
        null="p = 0",
        cost="Six operations an image on average, at mixture_width 3, and the blending.",
        suggested="As it is, when images at test time differ from those of training (weather, noise, blur): "
        "it is made for that, more than for accuracy on clean images. all_ops = False for results on "
        "ImageNet-C and CIFAR-10-C, some of whose corruptions the four extra operations resemble. The paper "
        "adds a consistency loss, which is no part of this trick.",
        aliases=("AugMix", "augmix", "mixture of augmentations", "robustness augmentation"),
        library="trickbag: torchvision augments one image at a time. Operations act as they do on Pillow "
        "images; the blend, in float32, is rounded down as in torchvision",
        snippet=SNIPPET.format(trick="AugMix", settings="severity=3"),
    )

    severity: int = Field(default=3, ge=1, le=10)
    mixture_width: int = Field(default=3, ge=1, le=16)
    chain_depth: Literal[-1] | Annotated[int, Field(ge=1, le=16)] = -1
    alpha: float = Field(default=1.0, gt=0, le=1000)
    all_ops: bool = True
    interpolation: Filter = "bilinear"

    @property
    def colors(self) -> bool:
        """``Color`` is one of the four extra operations."""
        return self.all_ops

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """``SAVE``, then each chain's operations and ``ACCUMULATE``, then ``TAKE``; nothing where p is 0."""
        if not self.acts:
            return ()
        table = policy_ops.uniform_table(
            *("mix", 10, range(self.severity), self.all_ops, *batch.shape[2:]),
            *(policy_ops.FILTERS[self.interpolation], self._fill()),
        )
        count, width = batch.shape[0], self.mixture_width
        longest = self.chain_depth if self.chain_depth > 0 else 3
        generator = stream.numpy(batch.step)
        uniform = generator.random((count, 1 + width * (1 + longest))).T
        acting = uniform[0] < self.p
        depths = 1 + (uniform[1 : 1 + width] * 3).astype(np.intp) if self.chain_depth < 0 else longest
        rows = table.pick(uniform[1 + width :].reshape(longest, width, count))
        rows *= acting & (np.arange(longest)[:, None, None] < depths)
        operations = table.steps(rows.swapaxes(0, 1).reshape(width * longest, count))
        original = generator.beta(self.alpha, self.alpha, count)
        shares = generator.dirichlet([self.alpha] * width, count).T.astype(np.float32)
        weights = shares * (1 - original).astype(np.float32)
        steps = [_when(acting, Op.SAVE, original.astype(np.float32))]
        for k in range(width):
            steps += operations[k * longest : (k + 1) * longest]
            steps.append(_when(acting, Op.ACCUMULATE, weights[k]))
        return (*steps, _when(acting, Op.TAKE, 0.0))


def _when(acting: np.ndarray, op: Op, argument: np.ndarray | float) -> Step:
    """A step of the images that act, ``(batch,)`` bool; nothing happens to the others."""
    return Step.of(np.where(acting, op, Op.IDENTITY), np.where(acting, argument, 0.0))
