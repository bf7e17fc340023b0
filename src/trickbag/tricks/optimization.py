"""Optimizers. An empty slot means ``DEFAULT``, plain gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card, Trick
from trickbag.tricks.stages import OptimizerTrick, ParamGroup

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trickbag.plan import Context

__all__ = ["DEFAULT", "SGD", "AdamW", "Muon", "Nesterov"]

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


def _sgd(groups: list[ParamGroup], **settings: Any) -> torch.optim.Optimizer:
    import torch

    from trickbag.functional.optimizers import allow_late_momentum
    from trickbag.functional.param_groups import implementation

    return allow_late_momentum(torch.optim.SGD(groups, **settings, **implementation(groups)))


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
        formula="g = gradient + weight_decay * w\n"
        "m = momentum * m + (1 - dampening) * g (the first m is g)\n"
        "w = w - lr * m",
        null=_NULL,
        cost="One buffer of the size of the model.",
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
        return _sgd(groups, **self.model_dump())


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
        formula="g = gradient + weight_decay * w\nm = momentum * m + g\nw = w - lr * (g + momentum * m)",
        null=_NULL,
        cost="One buffer of the size of the model.",
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
        return _sgd(groups, nesterov=True, **self.model_dump())


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
        summary="Scales steps by running means of gradients and their squares; decays weights separately.",
        source="Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2",
        formula="m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2\n"
        "w = w - lr * weight_decay * w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)",
        null=_NULL,
        cost="Two buffers of the size of the model.",
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


class Muon(_Optimizer):
    """Orthogonalized momentum for the weights of hidden layers, another optimizer for all else.

    Attributes:
        lr: learning rate of hidden weights, before any schedule.
        momentum: share of the sum of gradients that is kept.
        nesterov: look ahead along the momentum.
        steps: Newton-Schulz iterations.
        scale: what multiplies a step of a weight with so many rows (outputs) and columns: ``original``
            sqrt(max(1, rows / columns)), ``match_rms_adamw`` 0.2 sqrt(max(rows, columns)), ``none`` 1.
        normalize: scale each hidden weight to the norm sqrt(rows) before each step.
        weight_decay: share of hidden weights taken off per update, times the learning rate.
        first, last: True to count the weight of the first layer, or the last, as hidden.
        other: optimizer of everything else: ``adamw``, or ``nesterov`` (SGD with Nesterov's momentum).
        other_lr: its learning rate; follows the same schedule.
        other_weight_decay: its weight decay (L2 for ``nesterov``).
        other_momentum: momentum of ``nesterov``.
        other_betas: decays of ``adamw``.
        head_lr, head_weight_decay: the same for the weight of the last layer; None means as the rest.
    """

    kind = "muon"
    example = {"lr": 0.02, "weight_decay": 0.01, "other": "nesterov", "other_lr": 0.05}
    card = Card(
        title="Muon",
        summary="Makes the momentum of each hidden weight matrix orthogonal before stepping along it, so "
        "that rare directions are learned as fast as common ones. First and last layer, biases and norms "
        "go to AdamW or SGD.",
        source="Jordan et al. 2024, kellerjordan.github.io/posts/muon",
        formula="m = momentum * m + g\n"
        "u = orthogonalized(g + momentum * m), which is near U V^T if that sum is U S V^T\n"
        "w = (1 - lr * weight_decay) * w - lr * s * u, s by `scale`",
        null=_NULL,
        cost="One buffer of the size of the model (two for what AdamW gets); a step takes some products of "
        "each weight with itself, which small batches feel.",
        suggested="lr 0.02, momentum 0.95 as a start. airbench94_muon (CIFAR-10, 8 epochs, batch 2,000): "
        "lr 0.24, momentum 0.6, steps 3, scale none, normalize, other nesterov with other_momentum 0.85 and, "
        "for a mean loss, other_lr 106 and head_lr 1340 (0.053 and 0.67 for a summed one, whose head divides "
        "by the number of features).",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.muon import Muon, split_hidden

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
groups = split_hidden(model)
optimizer = Muon(groups, lr=0.02, other=lambda groups: torch.optim.AdamW(groups, lr=1e-2))
for step in range(20):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{loss:.3f}")
""",
        aliases=("MomentUm Orthogonalized by Newton-Schulz", "orthogonalized momentum", "Newton-Schulz"),
        library="trickbag: torch.optim.Muon takes two-dimensional weights one at a time, in bfloat16; here "
        "equal shapes go together, kernels are flattened, and a CPU computes in float32. torch.optim's AdamW "
        "and SGD do the rest.",
    )

    lr: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    nesterov: bool = True
    steps: int = Field(default=5, ge=1, le=20)
    scale: Literal["original", "match_rms_adamw", "none"] = "original"
    normalize: bool = False
    first: bool = False
    last: bool = False
    other: Literal["adamw", "nesterov"] = "adamw"
    other_lr: float = Field(default=1e-3, gt=0)
    other_weight_decay: float = Field(default=0.0, ge=0)
    other_momentum: float = Field(default=0.9, gt=0, lt=1)
    other_betas: tuple[Beta, Beta] = (0.9, 0.95)
    head_lr: float | None = Field(default=None, gt=0)
    head_weight_decay: float | None = Field(default=None, ge=0)

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Split off hidden weights and the classifier; the rest gets its own learning rate and decay."""
        from trickbag.functional.muon import split_hidden

        result = []
        for group in split_hidden(model, groups, first=self.first, last=self.last):
            if not group["muon"]:
                rate, decay = self.other_lr, self.other_weight_decay
                if group["head"]:
                    rate = rate if self.head_lr is None else self.head_lr
                    decay = decay if self.head_weight_decay is None else self.head_weight_decay
                group["lr_scale"] = group.get("lr_scale", 1.0) * rate / self.lr
                group.setdefault("weight_decay", decay)
            result.append(group)
        return result

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """One optimizer over ``groups``; those without ``muon`` are taken for hidden weights."""
        from trickbag.functional.muon import Muon as Optimizer

        return Optimizer(
            [{**group, "lr": self.lr * group.get("lr_scale", 1.0)} for group in groups],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            steps=self.steps,
            scale=self.scale,
            normalize=self.normalize,
            other=self._build_other,
        )

    def _build_other(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        if self.other == "nesterov":
            return _sgd(groups, lr=self.other_lr, momentum=self.other_momentum, nesterov=True)
        import torch

        from trickbag.functional.param_groups import implementation

        fastest: dict[str, Any] = implementation(groups)
        return torch.optim.AdamW(groups, lr=self.other_lr, betas=self.other_betas, **fastest)

    def check(self, context: Context) -> Iterable[Problem]:
        """Refused where it would have no weight to act on."""
        from trickbag.functional.muon import split_hidden

        try:
            groups = split_hidden(context.model, first=self.first, last=self.last)
        except ValueError as error:
            yield self.problem(str(error))
            return
        if not any(group["muon"] for group in groups):
            yield self.problem(
                f"{context.recipe.model.name} has no weights of hidden layers to act on",
                fix=f"--set {self.kind}.first=true, or another optimizer",
            )


DEFAULT = SGD(lr=0.1, momentum=0.0)
"""The optimizer of a bag that holds none."""
