"""Tricks that change what the network computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from trickbag.errors import PlanError, Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["ResNetVariant"]


class ResNetVariant(ModelTrick):
    """Turn a ResNet into variant A, B, C or D of He et al. 2019.

    Attributes:
        variant: ``a`` (stride on the first 1x1 convolution), ``b`` (on the 3x3), ``c`` (b with a deep
            stem), ``d`` (c with pooled shortcuts), or None for the model as it comes.
    """

    kind = "resnet_variant"
    rank = 10
    slot = None
    null_setting = {"variant": None}
    example = {"variant": "d"}
    card = Card(
        title="ResNet-A/B/C/D",
        summary=(
            "Moves the stride of bottleneck blocks to the 3x3 convolution (B), replaces the 7x7 stem by "
            "three 3x3 ones (C) and shrinks shortcuts by average pooling (D): no activation is thrown away."
        ),
        source="He et al. 2019, arXiv:1812.01187, section 4 and figure 2",
        null="variant: null",
        cost="ResNet-50 at 224 px: A 3.8, B 4.1, C 4.3, D 4.3 billion multiply-adds.",
        suggested="d. Reported for ResNet-50 on ImageNet: A 76.21, B 76.66, C 76.87, D 77.16 % top-1.",
        snippet="""\
import torch
from torchvision.models import resnet50
from trickbag.functional.surgery import resnet_variant

with torch.device("meta"):  # leave this line out to train
    model = resnet50()
resnet_variant(model, "d")
images = torch.empty(2, 3, 224, 224, device="meta")
print(model(images).shape, model.layer2[0].downsample[0])
assert model.conv1[0].stride == (2, 2) and model.conv1[3].stride == (1, 1)
""",
        aliases=(
            "ResNet-D",
            "ResNet-C",
            "ResNet-B",
            "ResNet-A",
            "model tweaks",
            "deep stem",
            "resnet50d",
            "v1d",
        ),
        library="timm builds B, C and D as separate models; trickbag edits a given ResNet, which adds A.",
    )

    variant: Literal["a", "b", "c", "d"] | None = "d"

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; new layers are drawn from ``stream.child(name)``.

        Raises:
            PlanError: the model is no ResNet of timm's, or cannot become this variant.
        """
        if self.variant is None:
            return model
        from trickbag.functional.surgery import CannotOperate, resnet_variant

        try:
            return resnet_variant(model, self.variant, lambda name: stream.child(name).torch())
        except CannotOperate as error:
            expected = "a timm ResNet with a 7x7 stem, such as resnet50 (or resnet18 for b, c and d)"
            raise PlanError(self.problem(str(error), expected=expected)) from None

    def check(self, context: Context) -> Iterable[Problem]:
        """Variants C and D bring a new stem, which pretrained weights do not fit."""
        model = context.recipe.model
        if self.variant in ("c", "d") and model.starts_pretrained:
            yield self.problem(
                f"variant {self.variant} replaces the stem of {model.name} by random weights, "
                "which the pretrained layers behind it have never seen",
                fix=f"start from a model made that way, such as {model.name.split('.')[0]}{self.variant}, "
                f"or remove it: --without {self.kind}",
            )

    def notes(self, context: Context) -> Iterable[str]:
        """Variant A computes something else with the same weights."""
        if self.variant == "a" and context.recipe.model.starts_pretrained:
            yield "timm's ResNet weights were trained as variant B; as A they start from a lower accuracy"
