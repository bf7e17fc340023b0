"""Optimizers with a step length of each layer's own, for very large batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.optimization import _NULL, Beta, _Optimizer
from trickbag.tricks.optimizers import TIMM, foreach
from trickbag.tricks.stages import ParamGroup

if TYPE_CHECKING:
    import torch

    from trickbag.plan import Context

__all__ = ["LAMB", "LARS"]


class LARS(_Optimizer):
    """SGD with a rate for each layer: that of its weights' norm to its gradient's.

    Attributes:
        lr: learning rate, before any schedule.
        momentum: share of the last update that is kept.
        nesterov: look ahead along the momentum.
        weight_decay: added to the gradient as ``weight_decay * parameter``.
        trust: length of a step, as a share of the length of the weights, at learning rate 1.
        eps: added to the norm of the gradient.
        always_adapt: False steps as SGD does where there is no weight decay (biases and norms, if they are
            spared), as is usual; True adapts the rate of every parameter.
    """

    kind = "lars"
    example = {"lr": 1.0, "weight_decay": 0.02, "trust": 0.02}
    card = Card(
        title="LARS",
        summary="Momentum SGD whose steps are, in each layer, in proportion to the norm of the weights: no "
        "layer moves too far at the large rates of large batches.",
        source="You et al. 2017, arXiv:1708.03888, algorithm 1, with the learning rate outside of the "
        "momentum (the same at a constant rate), as in timm and LARC",
        formula="r = trust * |w| / (|g| + weight_decay * |w| + eps) if the parameter is decayed, else 1\n"
        "m = momentum * m + r * (g + weight_decay * w)\n"
        "w = w - lr * m",
        null=_NULL,
        cost="One buffer of the size of the model, two norms per parameter.",
        suggested="For batches of 4,096 and more, with no_bias_norm_decay, warmup and polynomial_decay of "
        "power 2: lr about 10 for 4,096 to 30 for 32,768 images, trust 0.001, weight_decay 1e-4. No gain for "
        "small batches.",
        snippet=TIMM.format(
            optimizer="optimizer = timm.optim.Lars(model.parameters(), lr=5.0, momentum=0.9, "
            "weight_decay=1e-4)"
        ),
        aliases=("layer-wise adaptive rate scaling", "LARC"),
        library="timm.optim.Lars; torch has none",
    )

    lr: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=1e-4, ge=0)
    trust: float = Field(default=1e-3, gt=0)
    eps: float = Field(default=1e-8, ge=0)
    always_adapt: bool = False

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``timm.optim.Lars`` over ``groups``."""
        from timm.optim import Lars

        settings = self.model_dump(exclude={"trust"}) | foreach(Lars)
        built: torch.optim.Optimizer = Lars(groups, trust_coeff=self.trust, **settings)
        return built

    def notes(self, context: Context) -> Iterable[str]:
        """Without weight decay nothing is adapted."""
        if self.weight_decay == 0 and not self.always_adapt:
            yield "weight_decay is 0, so no layer's rate is adapted (always_adapt does): this is plain SGD"


class LAMB(_Optimizer):
    """AdamW's step, of a length in proportion to the weights of each layer.

    Attributes:
        lr: learning rate, before any schedule.
        betas: decay of the running means of gradient and squared gradient.
        eps: added to the root of the squared gradient.
        weight_decay: added to the step as ``weight_decay * parameter``, before its length is set.
        max_norm: all gradients together are scaled down to this norm first; None leaves them alone.
        always_adapt: False keeps the length of Adam's step where there is no weight decay (biases and norms,
            if they are spared); True sets the length of every parameter's step.
    """

    kind = "lamb"
    example = {"lr": 0.02, "weight_decay": 0.02}
    card = Card(
        title="LAMB",
        summary="Takes Adam's direction in each layer and steps along it by a share of the norm of the "
        "layer's weights.",
        source="You et al. 2020, arXiv:1904.00962, algorithm 2, in NVIDIA's form: gradients are clipped to a "
        "common norm first, and phi is the identity",
        formula="g = gradient / max(1, |all gradients together| / max_norm)\n"
        "m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2\n"
        "u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w\n"
        "w = w - lr * |w| / |u| * u for each decayed parameter, w - lr * u for others",
        null=_NULL,
        cost="Two buffers of the size of the model, two norms per parameter.",
        suggested="ResNet strikes back (Wightman et al. 2021): lr 5e-3 to 8e-3 for batch 2,048, weight_decay "
        "0.01 to 0.02, with binary cross-entropy. It clips gradients by itself (max_norm).",
        snippet=TIMM.format(
            optimizer="optimizer = timm.optim.Lamb(model.parameters(), lr=0.05, weight_decay=0.02)"
        ),
        aliases=("FusedLAMB", "NvLamb", "layer-wise adaptive moments"),
        library="timm.optim.Lamb; its count of updates is made to survive checkpoints",
    )

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_norm: float | None = Field(default=1.0, gt=0)
    always_adapt: bool = False

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``timm.optim.Lamb`` over ``groups``."""
        from timm.optim import Lamb

        from trickbag.functional.optimizers import keep_group_steps

        settings = self.model_dump(exclude={"max_norm"}) | foreach(Lamb)
        return keep_group_steps(Lamb(groups, max_grad_norm=self.max_norm, **settings))

    def notes(self, context: Context) -> Iterable[str]:
        """Without weight decay nothing is adapted."""
        if self.weight_decay == 0 and not self.always_adapt:
            yield "weight_decay is 0, so no layer's step is rescaled (always_adapt does): this is Adam"
