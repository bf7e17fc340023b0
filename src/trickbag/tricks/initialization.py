"""Tricks that choose initial values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.errors import PlanError, Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["HeInit", "TruncNormalInit", "XavierInit", "ZeroGamma"]


class _Initialization(ModelTrick):
    """What the tricks below share: a switch, and no business with pretrained weights.

    Attributes:
        enabled: False leaves the model as it is.
    """

    null_setting = {"enabled": False}

    enabled: bool = True

    def check(self, context: Context) -> Iterable[Problem]:
        """Pretrained weights must stay as they are."""
        model = context.recipe.model
        if self.enabled and model.starts_pretrained:
            yield self.problem(f"it would overwrite pretrained weights of {model.name}")


class XavierInit(_Initialization):
    """Xavier (Glorot) initialization of convolutions and linear layers; biases are 0.

    Attributes:
        distribution: of the weights.
        gain: multiplies the standard deviation.
        enabled: False leaves the model as it is.
    """

    kind = "xavier_init"
    rank = 50
    slot = "init"
    example = {"distribution": "uniform", "gain": 1.0}
    card = Card(
        title="Xavier initialization",
        summary=(
            "Draws the weights of convolutions and linear layers with variance 2 / (fan in + fan out), so "
            "that signals and gradients keep their size in a linear net. Biases start at 0."
        ),
        source="Glorot and Bengio 2010, equation 16; He et al. 2019, arXiv:1812.01187, section 2.1",
        formula="uniform: weight ~ U[-b, b], b = gain * sqrt(6 / (fan_in + fan_out))\n"
        "normal:  weight ~ N(0, std^2), std = gain * sqrt(2 / (fan_in + fan_out))",
        null="enabled: false",
        cost="None.",
        suggested="uniform with gain 1. Nets with ReLU usually want he_init; batch norm makes both work.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.initialization import xavier_init
from trickbag.rng import Stream

model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))
stream = Stream(seed=42, name="init")
print(xavier_init(model, lambda name: stream.child(name).torch()))
assert model[0].weight.abs().max() <= (6 / (27 + 144)) ** 0.5
assert model(torch.rand(4, 3, 8, 8)).shape == (4, 10)
""",
        aliases=("Glorot", "Glorot initialization", "Xavier"),
        library="torch.nn.init draws; trickbag gives every layer a stream of its own.",
    )

    distribution: Literal["uniform", "normal"] = "uniform"
    gain: float = Field(default=1.0, gt=0)

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Redraw in place, every layer from ``stream.child(qualified name)``.

        Raises:
            PlanError: the model has neither convolutions nor linear layers.
        """
        if not self.enabled:
            return model
        from trickbag.functional.initialization import xavier_init

        found = xavier_init(
            model, lambda name: stream.child(name).torch(), distribution=self.distribution, gain=self.gain
        )
        if not found:
            raise PlanError(self.problem(f"{type(model).__name__} has no convolution and no linear layer"))
        return model


class HeInit(_Initialization):
    """He (Kaiming) initialization of convolutions and linear layers; biases are 0.

    Attributes:
        distribution: of the weights.
        mode: whose variance is kept: ``fan_in`` that of activations, ``fan_out`` that of gradients.
        enabled: False leaves the model as it is.
    """

    kind = "he_init"
    rank = 50
    slot = "init"
    example = {"distribution": "normal", "mode": "fan_out"}
    card = Card(
        title="He initialization",
        summary=(
            "Draws the weights of convolutions and linear layers with variance 2 / fan, so that signals "
            "(fan_in) or gradients (fan_out) keep their size in a net with ReLU. Biases start at 0."
        ),
        source="He et al. 2015, arXiv:1502.01852, equations 10 and 14",
        formula="normal:  weight ~ N(0, std^2), std = sqrt(2 / fan)\n"
        "uniform: weight ~ U[-b, b], b = sqrt(6 / fan); fan = fan_in or fan_out",
        null="enabled: false",
        cost="None.",
        suggested="normal with fan_out, as torchvision and timm draw the convolutions of their ResNets.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.initialization import he_init
from trickbag.rng import Stream

model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3))
stream = Stream(seed=42, name="init")
print(he_init(model, lambda name: stream.child(name).torch(), mode="fan_out"))
assert abs(model[2].weight.std() - (2 / (256 * 9)) ** 0.5) < 1e-3
assert model(torch.rand(4, 3, 8, 8)).shape == (4, 256, 4, 4)
""",
        aliases=("Kaiming", "Kaiming initialization", "MSRA initialization", "He"),
        library="torch.nn.init draws; trickbag gives every layer a stream of its own.",
    )

    distribution: Literal["uniform", "normal"] = "normal"
    mode: Literal["fan_in", "fan_out"] = "fan_in"

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Redraw in place, every layer from ``stream.child(qualified name)``.

        Raises:
            PlanError: the model has neither convolutions nor linear layers.
        """
        if not self.enabled:
            return model
        from trickbag.functional.initialization import he_init

        found = he_init(
            model, lambda name: stream.child(name).torch(), distribution=self.distribution, mode=self.mode
        )
        if not found:
            raise PlanError(self.problem(f"{type(model).__name__} has no convolution and no linear layer"))
        return model


class TruncNormalInit(_Initialization):
    """Truncated normal initialization of convolutions and linear layers; biases are 0.

    Attributes:
        std: standard deviation of the weights, whatever the size of a layer.
        enabled: False leaves the model as it is.
    """

    kind = "trunc_normal_init"
    rank = 50
    slot = "init"
    example = {"std": 0.05}
    card = Card(
        title="Truncated normal initialization",
        summary="Draws the weights of convolutions and linear layers from one normal distribution, cut off "
        "at ±2, whatever their size. Biases start at 0. Other parameters, such as position tables, stay.",
        source="Liu et al. 2021, arXiv:2103.14030 (Swin) and 2022, arXiv:2201.03545 (ConvNeXt): their code",
        null="enabled: false",
        cost="None.",
        suggested="0.02 for ViT, Swin and ConvNeXt, whose norms and residuals keep signals in bounds; timm's "
        "draw so by themselves. The cut, a hundred standard deviations away, never acts. he_init for nets "
        "with ReLU, and for any without normalization.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.initialization import trunc_normal_init
from trickbag.rng import Stream

model = nn.Sequential(nn.Conv2d(3, 192, 16, 16), nn.Flatten(2), nn.Linear(4, 192))
stream = Stream(seed=42, name="init")
print(trunc_normal_init(model, lambda name: stream.child(name).torch(), std=0.02))
assert abs(model[0].weight.std() - 0.02) < 1e-3
assert model(torch.rand(2, 3, 32, 32)).shape == (2, 192, 192)
""",
        formula="weight ~ N(0, std^2), drawn again while |weight| > 2; bias = 0",
        aliases=("trunc_normal", "truncated normal", "ViT initialization", "Swin initialization"),
        library="torch.nn.init draws; trickbag gives every layer a stream of its own.",
    )

    std: float = Field(default=0.02, gt=0, le=1)

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Redraw in place, every layer from ``stream.child(qualified name)``.

        Raises:
            PlanError: the model has neither convolutions nor linear layers.
        """
        if not self.enabled:
            return model
        from trickbag.functional.initialization import trunc_normal_init

        if not trunc_normal_init(model, lambda name: stream.child(name).torch(), std=self.std):
            raise PlanError(self.problem(f"{type(model).__name__} has no convolution and no linear layer"))
        return model


class ZeroGamma(_Initialization):
    """Start the last batch norm of every residual branch at weight 0.

    Attributes:
        enabled: False leaves the model as it is.
    """

    kind = "zero_gamma"
    rank = 60
    slot = None
    example = {"enabled": True}
    card = Card(
        title="Zero gamma",
        summary=(
            "Sets the weight of the last normalization of each residual branch to 0, so that every block "
            "starts as the identity and the net is easier to train at first."
        ),
        source="Goyal et al. 2017, arXiv:1706.02677, sec. 5.1; He et al. 2019, arXiv:1812.01187, sec. 3.1",
        formula="y = shortcut(x) + gamma * normalized(branch(x)) + beta, gamma = 0 at the start",
        null="enabled: false (timm zeroes by default; trickbag does so only where this trick is in the bag)",
        cost="None.",
        suggested="Large batches and high learning rates. Needs residual blocks that end in a normalization.",
        snippet="""\
import torch
from torchvision.models import resnet18
from trickbag.functional.initialization import zero_gamma

model = resnet18(num_classes=10)
names = zero_gamma(model)
print(names)
assert names[0] == "layer1.0.bn2.weight" and model.layer1[0].bn2.weight.abs().sum() == 0
model.eval()
x = torch.rand(2, 64, 8, 8)
assert torch.equal(model.layer1[0](x), x)  # the block is the identity
""",
        aliases=("last BN gamma", "zero init last", "zero_init_residual", "zero-gamma", "zero init residual"),
        library="timm's zero_init_last where a block has it; torchvision's blocks are known too.",
    )

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Zero in place.

        Raises:
            PlanError: no residual branch ends in a normalization.
        """
        if not self.enabled:
            return model
        from trickbag.functional.initialization import zero_gamma

        if not zero_gamma(model):
            raise PlanError(
                self.problem(
                    f"{type(model).__name__} has no residual branch that ends in a batch norm",
                    expected="a ResNet, RegNet or built-in residual net",
                )
            )
        return model
