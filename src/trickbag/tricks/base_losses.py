"""Losses that take the place of cross entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import LossTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Loss


class BCE(LossTrick):
    """Binary cross entropy of each class on its own.

    Attributes:
        target_threshold: targets above it become 1, all others 0 (after mixing and smoothing, so that the
            loss of mixed targets is no mixture any more); None keeps them as they are.
        reduction: whether the values of an image's classes are averaged or added up.
        share: weight of this loss; the rest, 1 - share, is cross entropy.
    """

    kind = "bce"
    slot = "base_loss"
    rank = 10
    null_setting = {"share": 0}
    example = {}
    card = Card(
        title="Binary cross entropy",
        summary="Asks of each class on its own whether it is in the image, instead of which one is: a mixed "
        "image may fully hold two classes. Mixing and smoothing make targets soft; a threshold hardens them.",
        source="Wightman et al. 2021 (ResNet strikes back), arXiv:2110.00476, section 3",
        formula="-mean_c (t_c log s(z_c) + (1 - t_c) log(1 - s(z_c))), s the sigmoid",
        null="share = 0",
        cost="None.",
        suggested="With mixup and cutmix: target_threshold 0.2, and lamb. The mean over many classes is a "
        "small number: raise the learning rate, or take the sum. Probabilities are still read off a softmax; "
        "they need not sum to 1 as they are trained.",
        aliases=(
            "binary cross-entropy",
            "sigmoid loss",
            "BCE with logits",
            "bce_target_thresh",
            "multi-label",
        ),
        library="torch's binary_cross_entropy_with_logits; equals timm's BinaryCrossEntropy, whose "
        "smoothing of labels is label_smoothing here (smoothing / classes off the label) and, unlike "
        "timm's, acts on mixed targets too.",
        snippet="""\
import torch
from trickbag.functional.losses import binary_cross_entropy

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
images, one, other = torch.rand(8, 64), torch.randint(10, (8,)), torch.randint(10, (8,))
hot = torch.eye(10)
targets = 0.7 * hot[one] + 0.3 * hot[other]  # as mixup makes them
for _ in range(3):
    loss = binary_cross_entropy(model(images), targets, target_threshold=0.2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    target_threshold: float | None = Field(default=None, ge=0, lt=1)
    reduction: Literal["mean", "sum"] = "mean"
    share: float = Field(default=1.0, ge=0, le=1)

    def wrap(self, loss: Loss) -> Loss:
        """Binary cross entropy, blended with the given loss."""

        def binary(logits: Tensor, targets: Tensor) -> Tensor:
            from trickbag.functional.losses import binary_cross_entropy

            return binary_cross_entropy(logits, targets, self.target_threshold, self.reduction)

        return _sum((self.share, binary), (1 - self.share, loss))


class Focal(LossTrick):
    """Cross entropy in which what is predicted well counts little.

    Attributes:
        gamma: how little; 0 is cross entropy (softmax) or binary cross entropy (sigmoid).
        form: ``softmax`` weighs the classes of an image that the targets name; ``sigmoid`` takes each class
            on its own, as in detection, and adds them up.
        alpha: factor of a class that is there, 1 - alpha of one that is not; sigmoid form only.
        share: weight of this loss; the rest, 1 - share, is cross entropy.
    """

    kind = "focal"
    slot = "base_loss"
    rank = 10
    null_setting = {"gamma": 0}
    example = {"gamma": 2}
    card = Card(
        title="Focal loss",
        summary="Multiplies the loss of a class by (1 - p)^gamma, p the probability that it has already: "
        "easy images fade, hard ones stay. Linear in the targets, so it commutes with mixing and smoothing.",
        source="Lin et al. 2017, arXiv:1708.02002, section 3, equations 4 and 5",
        formula="softmax: -sum_c t_c (1 - p_c)^gamma log p_c\n"
        "sigmoid: -sum_c (a t_c (1 - s_c)^gamma log s_c + (1 - a) (1 - t_c) s_c^gamma log(1 - s_c))\n"
        "a = alpha; without it, no factors a and 1 - a",
        null="gamma = 0 (softmax form), or share = 0",
        cost="A few operations on the logits.",
        suggested="gamma 2; 0.5 to 5 were tried. Made for many easy negatives, as in detection, with "
        "sigmoid and alpha 0.25. For images of unequal classes it often helps less than balancing; it hurts "
        "with noisy labels, which are the hardest images. The loss is smaller than cross entropy: compare "
        "learning rates.",
        aliases=("focal loss", "RetinaNet loss", "hard example weighting"),
        library="trickbag: torchvision has the sigmoid form, which it equals for hard targets, but not for "
        "mixed ones, where torchvision's is no mixture of the losses; no maintained library has the softmax "
        "form.",
        snippet="""\
import torch
from trickbag.functional.losses import focal_loss

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, targets = torch.rand(8, 64), torch.eye(10)[torch.randint(10, (8,))]
for _ in range(3):
    loss = focal_loss(model(images), targets, gamma=2.0).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    gamma: float = Field(default=2.0, ge=0)
    form: Literal["softmax", "sigmoid"] = "softmax"
    alpha: float | None = Field(default=None, ge=0, le=1)
    share: float = Field(default=1.0, ge=0, le=1)

    def wrap(self, loss: Loss) -> Loss:
        """Focal loss, blended with the given loss."""
        if self.gamma == 0 and self.form == "softmax":
            return loss

        def focal(logits: Tensor, targets: Tensor) -> Tensor:
            from trickbag.functional.losses import focal_loss, sigmoid_focal_loss

            if self.form == "sigmoid":
                return sigmoid_focal_loss(logits, targets, self.gamma, self.alpha)
            return focal_loss(logits, targets, self.gamma)

        return _sum((self.share, focal), (1 - self.share, loss))

    def check(self, context: Context) -> Iterable[Problem]:
        """Only the sigmoid form knows classes that are not there."""
        if self.alpha is not None and self.form == "softmax":
            fix = f"--set {self.kind}.form=sigmoid, or weights of classes: --with class_weights"
            yield self.problem("alpha is for the sigmoid form", expected="alpha: null", fix=fix)


class LossSum(LossTrick):
    """A weighted sum of base losses.

    Attributes:
        cross_entropy, bce, focal: weight of each.
        target_threshold, reduction: settings of ``bce``.
        gamma, form, alpha: settings of ``focal``.
    """

    kind = "loss_sum"
    slot = "base_loss"
    rank = 10
    null_setting = {"cross_entropy": 1}
    example = {"cross_entropy": 0.5, "focal": 0.5}
    card = Card(
        title="Weighted sum of losses",
        summary="Adds up cross entropy, binary cross entropy and focal loss, each with a weight.",
        source="Common practice in segmentation and detection, for example Zhu et al. 2019 (AnatomyNet), "
        "arXiv:1808.05238, which adds focal and Dice loss",
        formula="sum_k w_k loss_k",
        null="cross_entropy = 1 and nothing else",
        cost="One more look at the logits a term.",
        suggested="cross_entropy 1, focal 1. The weights also scale the gradient: those that sum to 1 keep "
        "the learning rate comparable.",
        aliases=("compound loss", "combined loss", "multi-loss"),
        library="trickbag",
        snippet="""\
import torch
from trickbag.functional.losses import focal_loss, soft_cross_entropy

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, targets = torch.rand(8, 64), torch.eye(10)[torch.randint(10, (8,))]
for _ in range(3):
    logits = model(images)
    loss = (0.5 * soft_cross_entropy(logits, targets) + 0.5 * focal_loss(logits, targets)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    cross_entropy: float = Field(default=0.0, ge=0)
    bce: float = Field(default=0.0, ge=0)
    focal: float = Field(default=0.0, ge=0)
    target_threshold: float | None = Field(default=None, ge=0, lt=1)
    reduction: Literal["mean", "sum"] = "mean"
    gamma: float = Field(default=2.0, ge=0)
    form: Literal["softmax", "sigmoid"] = "softmax"
    alpha: float | None = Field(default=None, ge=0, le=1)

    def wrap(self, loss: Loss) -> Loss:
        """The sum; the given loss is cross entropy."""
        binary = BCE(target_threshold=self.target_threshold, reduction=self.reduction)
        focal = Focal(gamma=self.gamma, form=self.form, alpha=self.alpha)
        return _sum((self.cross_entropy, loss), (self.bce, binary.wrap(loss)), (self.focal, focal.wrap(loss)))

    def check(self, context: Context) -> Iterable[Problem]:
        """Something is summed up, with settings that act."""
        if self.cross_entropy == self.bce == self.focal == 0:
            fix = f"--set {self.kind}.cross_entropy=1"
            yield self.problem("every weight is 0", expected="a weight for at least one loss", fix=fix)
        if self.alpha is not None and self.form == "softmax":
            fix = f"--set {self.kind}.form=sigmoid"
            yield self.problem("alpha is for the sigmoid form", expected="alpha: null", fix=fix)


def _sum(*terms: tuple[float, Loss]) -> Loss:
    """The sum of losses with their weights; a single one of weight 1 is returned as it is."""
    used = [(weight, loss) for weight, loss in terms if weight != 0]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]

    def total(logits: Tensor, targets: Tensor) -> Tensor:
        first, *others = (weight * loss(logits, targets) for weight, loss in used)
        for other in others:
            first = first + other
        return first

    return total
