"""More optimizers; SGD, AdamW and Muon are in ``optimization.py``, LARS and LAMB in ``large_batch.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.optimization import _KERNELS, _NULL, Beta, _Optimizer
from trickbag.tricks.stages import ParamGroup

if TYPE_CHECKING:
    import torch

__all__ = ["Adam", "Lion", "RMSprop"]

_LOOP = """\
torch.manual_seed(0)
model = nn.Linear(16, 4)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
{optimizer}
for step in range(20):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"{{loss:.3f}}")
"""
_TORCH = "import torch\nfrom torch import nn\n\n" + _LOOP
TIMM = "import timm.optim\nimport torch\nfrom torch import nn\n\n" + _LOOP


def foreach(optimizer: type[torch.optim.Optimizer]) -> dict[str, bool]:
    """``foreach`` for those that know it: not every timm gives it to all of its optimizers."""
    import inspect

    return {"foreach": True} if "foreach" in inspect.signature(optimizer).parameters else {}


class Adam(_Optimizer):
    """Adam; its weight decay is L2.

    Attributes:
        lr: learning rate, before any schedule.
        betas: decay of the running means of gradient and squared gradient.
        eps: added to the root of the squared gradient.
        weight_decay: added to the gradient as ``weight_decay * parameter``, before it is scaled.
    """

    kind = "adam"
    example = {"lr": 2e-3, "weight_decay": 1e-3}
    card = Card(
        title="Adam",
        summary="Scales steps by running means of gradients and their squares.",
        source="Kingma and Ba 2015, arXiv:1412.6980, algorithm 1",
        formula="g = gradient + weight_decay * w\n"
        "m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2\n"
        "w = w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)",
        null=_NULL,
        cost="Two buffers of the size of the model.",
        suggested="lr 1e-3. With weight decay prefer AdamW: L2 goes through the same scaling as the gradient "
        "and hardly decays weights whose gradients are large.",
        snippet=_TORCH.format(optimizer="optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)"),
        aliases=("adaptive moment estimation",),
        library=_KERNELS,
    )

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``torch.optim.Adam`` over ``groups``."""
        import torch

        from trickbag.functional.param_groups import implementation

        settings: dict[str, Any] = self.model_dump() | implementation(groups)
        return torch.optim.Adam(groups, **settings)


class RMSprop(_Optimizer):
    """Steps scaled by the root of a running mean of squared gradients.

    Attributes:
        lr: learning rate, before any schedule.
        alpha: decay of that mean.
        eps: added to the root (``torch``) or under it (``tensorflow``).
        momentum: share of the last update that is kept.
        weight_decay: added to the gradient as ``weight_decay * parameter``.
        style: ``torch``; or ``tensorflow``: eps under the root, a mean that starts from 1, and a momentum of
            steps that carry the learning rate of their time.
    """

    kind = "rmsprop"
    example = {"lr": 2e-3, "alpha": 0.9, "momentum": 0.9, "weight_decay": 1e-3}
    card = Card(
        title="RMSprop",
        summary="Scales steps by the root of a running mean of squared gradients; momentum on top.",
        source="Tieleman and Hinton 2012, lecture 6.5; EfficientNet: Tan and Le 2019, arXiv:1905.11946, "
        "section 5.2",
        formula="g = gradient + weight_decay * w, v = alpha * v + (1 - alpha) * g^2\n"
        "torch:      m = momentum * m + g / (sqrt(v) + eps), w = w - lr * m\n"
        "tensorflow: m = momentum * m + lr * g / sqrt(v + eps), w = w - m; v is 1 at first",
        null=_NULL,
        cost="One buffer of the size of the model, two with momentum.",
        suggested="EfficientNet and MobileNetV3 in timm: style tensorflow, alpha 0.9, eps 1e-3, momentum "
        "0.9, weight_decay 1e-5, lr 0.016 for batch 256. torchvision's MobileNetV3 takes torch's style with "
        "eps 0.0316, the root of that. Results differ between the styles: keep to the recipe's.",
        snippet=_TORCH.format(
            optimizer="optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, alpha=0.9, momentum=0.9)"
        ),
        aliases=("RMSpropTF", "root mean square propagation"),
        library="torch.optim.RMSprop, or timm's RMSpropTF for the style tensorflow; foreach kernels",
    )

    lr: float = Field(default=0.01, gt=0)
    alpha: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    style: Literal["torch", "tensorflow"] = "torch"

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``torch.optim.RMSprop`` or ``timm.optim.RMSpropTF`` over ``groups``."""
        settings: dict[str, Any] = self.model_dump(exclude={"style"})
        if self.style == "torch":
            import torch

            return torch.optim.RMSprop(groups, foreach=True, **settings)
        from timm.optim import RMSpropTF

        built: torch.optim.Optimizer = RMSpropTF(groups, **settings, **foreach(RMSpropTF))
        return built


class Lion(_Optimizer):
    """Steps of one size for every weight: the sign of an interpolated momentum.

    Attributes:
        lr: learning rate, before any schedule: what each weight moves by per update.
        betas: share of the momentum in the step's direction; decay of the momentum.
        weight_decay: share of each parameter taken off per update, times the learning rate.
    """

    kind = "lion"
    example = {"lr": 1e-3, "weight_decay": 0.1}
    card = Card(
        title="Lion",
        summary="Moves every weight by the learning rate, up or down by the sign of gradient and momentum "
        "together; decays weights separately.",
        source="Chen et al. 2023, arXiv:2302.06675, algorithm 2",
        formula="w = (1 - lr * weight_decay) * w - lr * sign(b1 m + (1 - b1) g)\nm = b2 m + (1 - b2) g",
        null=_NULL,
        cost="One buffer of the size of the model: half of AdamW's.",
        suggested="A third to a tenth of AdamW's lr, and three to ten times its weight_decay; lr 1e-4 with "
        "weight_decay 0.5 to 1 for vision transformers at batch 4,096. Wants batches of 64 and more, and a "
        "schedule that goes down: its steps never get shorter by themselves.",
        snippet=TIMM.format(
            optimizer="optimizer = timm.optim.Lion(model.parameters(), lr=3e-3, weight_decay=0.1)"
        ),
        aliases=("EvoLved Sign Momentum", "sign momentum", "signSGD"),
        library="timm.optim.Lion, with foreach kernels; torch has none",
    )

    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.99)

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """``timm.optim.Lion`` over ``groups``."""
        from timm.optim import Lion as Optimizer

        settings: dict[str, Any] = self.model_dump() | foreach(Optimizer)
        built: torch.optim.Optimizer = Optimizer(groups, **settings)
        return built
