"""Tricks that treat some parameters differently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trickbag.tricks.base import Card
from trickbag.tricks.stages import OptimizerTrick, ParamGroup, ParamGroupTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context

__all__ = ["NoBiasNormDecay"]


class NoBiasNormDecay(ParamGroupTrick):
    """Spare biases, normalization layers, tokens and position tables from weight decay.

    Attributes:
        enabled: False decays every parameter.
    """

    kind = "no_bias_norm_decay"
    slot = None
    null_setting = {"enabled": False}
    example = {"enabled": True}
    card = Card(
        title="No bias and norm decay",
        summary=(
            "Decays the weights of convolutions, linear layers and embeddings only; biases, normalization "
            "layers, layer scales, class tokens and position tables are left out."
        ),
        source=(
            "He et al. 2019, arXiv:1812.01187, section 3.1; Jia et al. 2018, arXiv:1807.11205; tokens and "
            "position tables Liu et al. 2021, arXiv:2103.14030"
        ),
        null="enabled: false",
        cost="nothing",
        suggested="Nearly always, above all with large batches or strong decay. Needs weight_decay > 0.",
        snippet="""\
import torch
from torchvision.models import resnet18
from trickbag.functional.param_groups import split_decay

model = resnet18(num_classes=10)
decayed, spared = split_decay(model)
print(len(decayed["params"]), "decayed;", len(spared["params"]), "spared, e.g.", spared["names"][:2])
optimizer = torch.optim.SGD([decayed, spared], lr=0.1, momentum=0.9, weight_decay=5e-4)
assert "layer2.0.downsample.1.weight" in spared["names"]  # a norm, whatever its name
model(torch.rand(2, 3, 32, 32)).sum().backward()
optimizer.step()
""",
        aliases=("no bias decay", "drop bias decay", "no weight decay on norm", "norm_weight_decay 0"),
        library=(
            "timm and torchvision tell by name, dimension or a list of types; trickbag goes by the kind of "
            "module and the shape of the parameter, and heeds timm's no_weight_decay()."
        ),
    )

    enabled: bool = True

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Split each group into a decayed and a spared one; ``names`` stay parallel to ``params``."""
        if not self.enabled:
            return groups
        from trickbag.functional.param_groups import split_decay

        return split_decay(model, groups)

    def notes(self, context: Context) -> Iterable[str]:
        """Without weight decay there is nothing to be spared from."""
        decay = next((t.weight_decay for t in context.recipe.tricks.of(OptimizerTrick)), 0.0)
        if self.enabled and decay == 0:
            yield "changes nothing here: the optimizer's weight_decay is 0"
