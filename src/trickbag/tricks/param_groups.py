"""Tricks that treat some parameters differently."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick, OptimizerTrick, ParamGroup, ParamGroupTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context

__all__ = ["BackboneLR", "LayerDecay", "NoBiasNormDecay"]


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
        formula="weight_decay = 0 for all parameters but the weights of layers",
        null="enabled: false",
        cost="None.",
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


def _untrained(context: Context) -> Iterable[str]:
    """Small rates are for weights that have been trained."""
    heirs = any(trick.sources() for trick in context.recipe.tricks.of(ModelTrick))
    if not context.recipe.model.starts_pretrained and not heirs:
        yield "slows down layers that start from random weights"


class BackboneLR(ParamGroupTrick):
    """Another learning rate for everything but the classifier.

    Attributes:
        factor: what the learning rate of the rest of the model is multiplied by; 1 does nothing.
    """

    kind = "backbone_lr"
    null_setting = {"factor": 1.0}
    example = {"factor": 0.1}
    card = Card(
        title="Backbone learning rate",
        summary="Multiplies the learning rate of all layers but the classifier: what has been trained "
        "before moves slowly, what is new moves fast.",
        source="Yosinski et al. 2014, arXiv:1411.1792; Howard and Ruder 2018, arXiv:1801.06146, section 3.2 "
        "(discriminative fine-tuning)",
        formula="lr of the classifier = lr, lr of all else = factor * lr",
        null="factor: 1",
        cost="None.",
        suggested="0.1 for pretrained weights and a small data set; nearer to 1 the more data there is and "
        "the more it differs. Hurts where the backbone starts from random weights.",
        snippet="""\
import torch
from torchvision.models import resnet18
from trickbag.functional.param_groups import head_names, scale_rates

model = resnet18(num_classes=10)
names, params = zip(*model.named_parameters())
head = head_names(model)
groups = scale_rates([{"params": params, "names": names}], {n: 0.1 for n in names if n not in head})
optimizer = torch.optim.SGD([{**g, "lr": 0.1 * g["lr_scale"]} for g in groups], momentum=0.9)
print([(round(g["lr"], 3), len(g["params"])) for g in optimizer.param_groups])
model(torch.rand(2, 3, 32, 32)).sum().backward()
optimizer.step()
""",
        aliases=(
            "discriminative learning rates",
            "differential learning rates",
            "head learning rate",
            "lr_mult",
            "head_lr",
        ),
    )

    factor: float = Field(default=0.1, gt=0)

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Split each group into backbone and classifier."""
        if self.factor == 1:
            return groups
        from trickbag.functional.param_groups import head_names, scale_rates

        head = head_names(model)
        names = (name for group in groups for name in group["names"])
        return scale_rates(groups, {name: self.factor for name in names if name not in head})

    def notes(self, context: Context) -> Iterable[str]:
        """Small rates are for weights that have been trained."""
        return _untrained(context) if self.factor < 1 else ()


class LayerDecay(ParamGroupTrick):
    """A learning rate that shrinks from the classifier down, layer by layer.

    Attributes:
        rate: factor from each layer to the one below; the classifier keeps the full rate. 1 does nothing.
    """

    kind = "layer_decay"
    null_setting = {"rate": 1.0}
    example = {"rate": 0.75}
    card = Card(
        title="Layer-wise learning-rate decay",
        summary="Multiplies the learning rate of a layer by rate ** (number of layers above it), the "
        "classifier being the top one: low layers, whose features are general, hardly move.",
        source="Clark et al. 2020, arXiv:2003.10555, appendix (ELECTRA); for images Bao et al. 2022, "
        "arXiv:2106.08254 (BEiT)",
        formula="lr of layer l = lr * rate^(L - l), l = 0, ..., L from the first layer to the classifier",
        null="rate: 1",
        cost="None.",
        suggested="0.65 to 0.75 for fine-tuning vision transformers of 12 layers, 0.75 to 0.9 for deeper "
        "ones and convolutional nets. Hurts where training starts from random weights.",
        snippet="""\
import timm
import torch
from timm.models import group_parameters
from trickbag.functional.param_groups import layer_scales, scale_rates

model = timm.create_model("test_vit", num_classes=10, img_size=16)
names, params = zip(*model.named_parameters())
scales = layer_scales(group_parameters(model, model.group_matcher(), reverse=True), rate=0.75)
groups = scale_rates([{"params": params, "names": names}], scales)
optimizer = torch.optim.AdamW([{**g, "lr": 1e-3 * g["lr_scale"]} for g in groups])
print([(f"{g['lr']:.1e}", len(g["params"])) for g in optimizer.param_groups])
model(torch.rand(2, 3, 16, 16)).sum().backward()
optimizer.step()
""",
        aliases=("layer-wise lr decay", "LLRD", "layer_decay", "layer-wise learning rate decay"),
        library="timm says which layer each parameter of its models belongs to (group_matcher); built-in "
        "nets go by stem, stages and classifier",
    )

    rate: float = Field(default=0.75, gt=0, le=1)

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Split each group by layer."""
        if self.rate == 1:
            return groups
        from trickbag.functional.param_groups import layer_scales, scale_rates

        return scale_rates(groups, layer_scales(_layers(model), self.rate))

    def check(self, context: Context) -> Iterable[Problem]:
        """Refused where nobody knows which layer is above which."""
        if self.rate == 1:
            return
        name = context.recipe.model.name
        try:
            layers = _layers(context.model)
        except ValueError:
            yield self.problem(f"timm does not say how the layers of {name} follow each other")
        else:
            if len(set(layers.values())) < 2:
                yield self.problem(f"{name} has a single layer")

    def notes(self, context: Context) -> Iterable[str]:
        """Small rates are for weights that have been trained."""
        return _untrained(context) if self.rate < 1 else ()


def _layers(model: nn.Module) -> dict[str, int]:
    """Number of each parameter's layer, from the bottom.

    Raises:
        ValueError: it is not known.
    """
    from timm.models import group_parameters

    from trickbag.functional.param_groups import stage_layers

    matcher = getattr(model, "group_matcher", None)
    if not callable(matcher):
        return stage_layers(model)
    found: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return found
