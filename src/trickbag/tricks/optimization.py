"""Optimizers. An empty slot means ``DEFAULT``, plain gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trickbag.tricks.base import Card, OptimizerTrick, ParamGroup, Trick

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT", "SGD", "AdamW", "Nesterov"]

_KERNELS = "torch.optim, with its fused kernels where the device has them"
_NULL = "without an optimizer in the bag: plain SGD, learning rate 0.1, no momentum, no weight decay"
_TRAP = " timm's optimizer called `sgd` is Nesterov's; its `momentum` is this one without it."


class _Optimizer(OptimizerTrick):
    null_setting = {}

    lr: float = Field(default=0.1, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)

    @classmethod
    def null(cls) -> Trick:
        """What an empty slot means."""
        return DEFAULT


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum.

    Attributes:
        lr: learning rate, before any schedule.
        momentum: share of the last update that is kept.
        weight_decay: added to the gradient as ``weight_decay * parameter``.
        dampening: share of the gradient that momentum leaves out.
    """

    kind = "sgd"
    null_setting = {"lr": 0.1, "momentum": 0.0}
    example = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    card = Card(
        title="SGD with momentum",
        summary="Gradient descent along a running sum of gradients (heavy ball). Weight decay is L2.",
        source="Polyak 1964; Sutskever et al. 2013, in the form of torch.optim.SGD",
        null=_NULL,
        cost="one buffer of the size of the model",
        suggested="lr 0.1 for batch 256 with momentum 0.9 and weight decay 1e-4 (ImageNet), 5e-4 (CIFAR)."
        + _TRAP,
        snippet="""\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(16, 4)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
for step in range(20):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss:.3f}")
""",
        aliases=("momentum", "heavy ball", "stochastic gradient descent"),
        library=_KERNELS,
    )

    momentum: float = Field(default=0.9, ge=0, lt=1)
    dampening: float = Field(default=0.0, ge=0, le=1)

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``torch.optim.SGD`` over ``groups``."""
        import torch

        from trickbag.functional.param_groups import implementation

        return torch.optim.SGD(groups, **self.model_dump(), **implementation(groups))


class Nesterov(_Optimizer):
    """SGD with Nesterov's momentum.

    Attributes:
        lr: learning rate, before any schedule.
        momentum: share of the last update that is kept.
        weight_decay: added to the gradient as ``weight_decay * parameter``.
    """

    kind = "nesterov"
    example = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    card = Card(
        title="Nesterov momentum",
        summary="SGD that looks ahead along the momentum: it steps by gradient + momentum * new buffer.",
        source="Nesterov 1983; Sutskever et al. 2013, in the form of torch.optim.SGD(nesterov=True)",
        null=_NULL,
        cost="one buffer of the size of the model",
        suggested="lr 0.1 for batch 256 with momentum 0.9 (He et al. 2019)." + _TRAP,
        snippet="""\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(16, 4)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
for step in range(20):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss:.3f}")
""",
        aliases=("NAG", "Nesterov accelerated gradient", "Nesterov SGD"),
        library=_KERNELS,
    )

    momentum: float = Field(default=0.9, gt=0, lt=1)

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``torch.optim.SGD`` with ``nesterov=True`` over ``groups``."""
        import torch

        from trickbag.functional.param_groups import implementation

        return torch.optim.SGD(groups, nesterov=True, **self.model_dump(), **implementation(groups))


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(_Optimizer):
    """Adam with decoupled weight decay.

    Attributes:
        lr: learning rate, before any schedule.
        betas: decay of the running means of gradient and squared gradient.
        eps: added to the root of the squared gradient.
        weight_decay: share of each parameter taken off per update, times the learning rate.
    """

    kind = "adamw"
    example = {"lr": 2e-3, "weight_decay": 0.05}
    card = Card(
        title="AdamW",
        summary="Scales steps by running means of gradients and their squares; decays weights beside that.",
        source="Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2",
        null=_NULL,
        cost="two buffers of the size of the model",
        suggested="lr 1e-3 for batch 1024, weight decay 0.05 with warmup for transformers; 0.01 otherwise.",
        snippet="""\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(16, 4)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.05)
for step in range(20):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss:.3f}")
""",
        aliases=("Adam with decoupled weight decay", "decoupled weight decay"),
        library=_KERNELS,
    )

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``torch.optim.AdamW`` over ``groups``."""
        import torch

        from trickbag.functional.param_groups import implementation

        settings: dict[str, Any] = self.model_dump() | implementation(groups)
        return torch.optim.AdamW(groups, **settings)


DEFAULT = SGD(lr=0.1, momentum=0.0)
"""The optimizer of a bag that holds none."""
