"""Tricks that leave out a part of the network while training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.errors import PlanError
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["Dropout", "StochasticDepth"]


class Dropout(ModelTrick):
    """Drop inputs of the classifier.

    Attributes:
        p: probability with which an input of the classifier is set to 0; the others are divided by 1 - p.
    """

    kind = "dropout"
    rank = 36
    null_setting = {"p": 0}
    example = {"p": 0.3}
    card = Card(
        title="Dropout",
        summary="While training, each input of the classifier is set to 0 with probability p and divided by "
        "1 - p otherwise, so that no class can rely on a few features.",
        source="Srivastava et al. 2014, Dropout: a simple way to prevent neural networks from "
        "overfitting, section 4; at the classifier alone, as in timm's drop_rate",
        null="p = 0",
        cost="None.",
        suggested="0.2 to 0.5 for fine-tuning and small data; 0.2 (B0) to 0.5 (B7) in EfficientNet. Little "
        "for a ResNet trained from scratch under strong augmentation and mixing, and too much of it "
        "underfits short runs.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.regularization import dropout

model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
names = list(model.state_dict())
print(dropout(model, p=0.2), model)
assert list(model.state_dict()) == names  # weights load as before
images = torch.rand(4, 3, 16, 16)
assert not torch.equal(model(images), model(images))
model.eval()
assert torch.equal(model(images), model(images))
""",
        aliases=("drop rate", "drop_rate", "head dropout", "classifier dropout"),
        formula="x = x * keep / (1 - p), keep = 1 with probability 1 - p, else 0, for each feature",
        library="torch.nn.Dropout, put before the classifier of any model; timm's models have it in "
        "different places, and some not at all.",
    )

    p: float = Field(default=0.2, ge=0, lt=1)

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; masks come from the training step's own generator.

        Raises:
            PlanError: the model has no classifier.
        """
        if not self.p:
            return model
        from trickbag.functional.regularization import dropout
        from trickbag.functional.surgery import CannotOperate

        try:
            dropout(model, self.p)
        except CannotOperate as error:
            raise PlanError(self.problem(str(error), expected="a model with a classifier")) from None
        return model

    def notes(self, context: Context) -> Iterable[str]:
        """Some models drop their last features already."""
        own = context.recipe.model.options.get("drop_rate")
        if self.p and own:
            yield f"the model has a dropout of {own:g} of its own (option drop_rate): both act"


class StochasticDepth(ModelTrick):
    """Leave out residual branches at random, for each image on its own.

    Attributes:
        p: probability at the last block.
        schedule: ``linear`` from 0 at the first block to p at the last; ``paper`` from p / L at the first
            of L blocks; ``uniform`` p everywhere.
    """

    kind = "stochastic_depth"
    rank = 35
    null_setting = {"p": 0}
    example = {"p": 0.3}
    card = Card(
        title="Stochastic depth",
        summary="While training, each residual branch is left out with a probability that grows with depth, "
        "for each image on its own, and divided by the probability of keeping it otherwise: an ensemble of "
        "nets of different depth that share weights. Branches are dropped, not images.",
        source="Huang et al. 2016, arXiv:1603.09382, section 3 and equation 4",
        null="p = 0",
        cost="None: a branch is computed for the whole batch, also where it is left out.",
        suggested="0.05 to 0.1 for ResNet-50 over 300 epochs and more, 0.2 / 0.3 / 0.5 for Swin-T / S / B. "
        "Helps deep nets and long training; a small net or a short run loses accuracy. linear is what "
        "timm, torchvision and Swin compute from one rate (timm's EfficientNets end a little below it, "
        "torchvision's too); paper is equation 4, which drops the first block too. Probabilities that the "
        "model's options set (drop_path_rate) are replaced.",
        snippet="""\
import torch
from torchvision.models import resnet18
from trickbag.functional.regularization import stochastic_depth

model = resnet18(num_classes=10)
rates = stochastic_depth(model, p=0.2)
print(rates)
assert rates["layer1.0.drop_path"] == 0 and rates["layer4.1.drop_path"] == 0.2
images = torch.rand(4, 3, 32, 32)
assert model(images).shape == (4, 10)
model.eval()
assert torch.equal(model(images), model(images))
""",
        aliases=(
            "drop path",
            "drop_path_rate",
            "drop connect",
            "drop branch",
            "survival probability",
            "stochastic depth rate",
            "layer drop",
        ),
        formula="y = shortcut(x) + branch(x) * keep / (1 - p_l), keep = 1 with probability 1 - p_l, else 0\n"
        "block l of L: p_l = p (l - 1) / (L - 1) (linear), p l / L (paper), p (uniform)",
        library="The numbers of timm's DropPath, in a module of ours: it is also put where timm's models "
        "have none, in the built-in nets and torchvision's ResNets.",
    )

    p: float = Field(default=0.1, ge=0, lt=1)
    schedule: Literal["linear", "paper", "uniform"] = "linear"

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; masks come from the training step's own generator.

        Raises:
            PlanError: the model has no residual block that could be dropped.
        """
        if not self.p:
            return model
        from trickbag.functional.regularization import stochastic_depth
        from trickbag.functional.surgery import CannotOperate

        try:
            stochastic_depth(model, self.p, self.schedule)
        except CannotOperate as error:
            expected = "a residual net: ResNet, RegNet, EfficientNet, ConvNeXt, ViT, Swin or a built-in one"
            raise PlanError(self.problem(str(error), expected=expected)) from None
        return model
