"""Tricks that say which mixes act, when, and on which images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import MixControlTrick, MixTrick, Timeline

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trickbag.plan import Context

__all__ = ["MixOff", "MixSwitch"]

Weight = Annotated[float, Field(ge=0, le=1e6)]


class MixSwitch(MixControlTrick):
    """Lets exactly one of the bag's mixes act at a time.

    Attributes:
        shares: relative share of each mix, by kind; a mix that is not named has 1.
        per: draw one mix a ``batch``, or one an ``image``; ``off`` lets all act, one after the other.
    """

    kind = "mix_switch"
    null_setting = {"per": "off"}
    example = {"per": "image"}
    card = Card(
        title="Switching between mixup, CutMix and mosaic",
        summary="Draws, for each batch or each image, which one of the mixes in the bag acts. Each mixes "
        "the batch as it is, not what another has made of it.",
        source="timm's Mixup (switch_prob) and MMPretrain's RandomBatchAugment, as in DeiT (Touvron et "
        "al. 2021, arXiv:2012.12877, section 6) and Swin (Liu et al. 2021, arXiv:2103.14030, appendix A2.1)",
        formula="P(mix k) = share_k / (sum of the shares of all mixes in the bag)",
        null="per = off",
        cost="None: one mix a batch instead of several. With per = image every mix is computed for the "
        "whole batch.",
        suggested="mixup.alpha = 0.8 and cutmix.alpha = 1 with equal shares (DeiT, Swin). timm's "
        "Mixup(prob=P, switch_prob=S): p = P in both mixes, shares {mixup: 1 - S, cutmix: S}; mode=elem: "
        "per = image here and in both mixes; mode=pair has no counterpart. MMPretrain's probs [a, b], "
        "nothing for the rest: p = a + b in both, shares {mixup: a, cutmix: b}. Helps long training of "
        "large models; hurts what mixing hurts: short training, small models.",
        aliases=("switch_prob", "mixup-switch-prob", "RandomBatchAugment", "mixup cutmix switch"),
        library="trickbag: timm's draws from a global generator and knows two mixes",
        snippet="""\
import torch
from trickbag.functional.mixing import beta_weights, cutmix, cutmix_boxes, mixup, pick

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = torch.nn.functional.one_hot(labels, 10).float()
for _ in range(3):
    if pick([0.5, 0.5], 1).item() == 0:
        mixed, mixed_targets = mixup(images, targets, beta_weights(0.8, 1).expand(8))
    else:
        boxes = cutmix_boxes(beta_weights(1.0, 8), torch.randint(16, (8, 2)), 16, 16)
        mixed, mixed_targets = cutmix(images, targets, boxes)
    loss = torch.nn.functional.cross_entropy(model(mixed), mixed_targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    shares: dict[str, Weight] = Field(default_factory=dict)
    per: Literal["batch", "image", "off"] = "batch"

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.shares.items())), self.per))

    def choose(self, mixes: Sequence[MixTrick], batch: int, generator: torch.Generator) -> Tensor | None:
        """Positions in ``mixes``: the same for all images, or one for each."""
        if self.per == "off":
            return None
        from trickbag.functional.mixing import pick

        shares = [self.shares.get(mix.kind, 1.0) for mix in mixes]
        return pick(shares, batch if self.per == "image" else 1, generator).expand(batch)

    def check(self, context: Context) -> Iterable[Problem]:
        """Shares of mixes alone, one of them above 0."""
        if self.per == "off":
            return
        from trickbag.tricks import catalogue

        mixes = [kind for kind, trick in catalogue().items() if issubclass(trick, MixTrick)]
        if strange := sorted(self.shares.keys() - set(mixes)):
            yield self.problem(
                f"shares name {', '.join(strange)}, which mixes nothing", expected=" or ".join(mixes)
            )
        kinds = [mix.kind for mix in context.recipe.tricks.of(MixTrick)]
        if kinds and not any(self.shares.get(kind, 1.0) for kind in kinds):
            yield self.problem("all shares are 0", expected="at least one of them above 0")

    def notes(self, context: Context) -> Iterable[str]:
        """What comes of shares of 0, and of shares that were not given."""
        shares = {mix.kind: self.shares.get(mix.kind, 1.0) for mix in context.recipe.tricks.of(MixTrick)}
        if self.per == "off" or (shares and not any(shares.values())):
            return
        if len(shares) < 2:
            # Not an error: a study takes the mixes out one by one.
            found = f"only {next(iter(shares))}" if shares else "none"
            yield f"nothing to switch between: of mixup, cutmix and mosaic the recipe has {found}"
            return
        if never := [kind for kind, share in shares.items() if share == 0]:
            yield f"{' and '.join(never)} never act{'s' if len(never) == 1 else ''}: the share is 0"
        if self.shares and shares.keys() - self.shares.keys():
            total = sum(shares.values())
            parts = ", ".join(f"{kind} {share / total:.0%}" for kind, share in shares.items())
            yield f"what shares do not name has a share of 1: {parts}"


class MixOff(MixControlTrick):
    """Stops mixing towards the end of training.

    Attributes:
        epochs: epochs at the end in which nothing is mixed; a fraction is allowed, 0 mixes to the end.
    """

    kind = "mix_off"
    null_setting = {"epochs": 0}
    example = {"epochs": 0.4}
    card = Card(
        title="No mixing in the last epochs",
        summary="Trains the last epochs on images that are not mixed, as the model will meet them.",
        source="Ge et al. 2021 (YOLOX), arXiv:2107.08430, section 2.1: mosaic and mixup off for the last 15 "
        "epochs; timm's --mixup-off-epoch, which counts from the start (N there is total epochs - N here)",
        formula="mixing in update i = 0, 1, ... while i < updates - epochs * updates per epoch",
        null="epochs = 0",
        cost="None; the last epochs save the mixing.",
        suggested="epochs = 15 of 300, or 5 to 10 % of training. Helps where mixed images are far from real "
        "ones (mosaic, CutMix at high p) and after long training; hurts when the model overfits as soon as "
        "mixing ends, which a rising validation loss shows. Label smoothing and augmentation go on.",
        aliases=("mixup-off-epoch", "mixup_off_epoch", "close mosaic", "close mixup", "no_aug_epochs"),
        library="trickbag: a comparison of two numbers",
        snippet="""\
import torch
from trickbag.functional.mixing import beta_weights, mixup

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
targets = torch.nn.functional.one_hot(labels, 10).float()
epochs, off = 6, 2
for epoch in range(epochs):
    batch = images, targets
    if epoch < epochs - off:
        batch = mixup(images, targets, beta_weights(0.8, 1).expand(8))
    loss = torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    epochs: float = Field(default=15, ge=0, le=1e6)

    def last(self, timeline: Timeline) -> int:
        """Number of the first update without mixing; ``timeline.steps`` for none."""
        return max(0, timeline.steps - round(self.epochs * timeline.steps_per_epoch))

    def active(self, mixes: Sequence[MixTrick], step: int, timeline: Timeline) -> Sequence[MixTrick]:
        """All of them, and none towards the end."""
        return mixes if step < self.last(timeline) else ()

    def notes(self, context: Context) -> Iterable[str]:
        """Whether it takes all or nothing of the run."""
        timeline = context.timeline
        first = self.last(timeline)
        if self.epochs and not context.recipe.tricks.of(MixTrick):
            yield "the recipe mixes nothing that could end"
        elif self.epochs and first == 0:
            yield (
                f"the last {self.epochs:g} epochs are the whole run of {context.recipe.epochs:g}: nothing is "
                f"ever mixed (--set {self.kind}.epochs={context.recipe.epochs / 20:.2g})"
            )
        elif self.epochs and first == timeline.steps:
            yield f"{self.epochs:g} epochs are less than a step: mixing goes on to the end"
