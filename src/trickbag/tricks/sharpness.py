"""Sharpness-aware minimization."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import StepTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["SAM"]


class SAM(StepTrick):
    """Take each gradient not at the weights but where the loss is highest nearby.

    Attributes:
        rho: how far away that is: the norm of the change of all weights together; 0 does nothing.
        adaptive: measure the distance relative to the size of each weight (ASAM).
    """

    kind = "sam"
    null_setting = {"rho": 0.0}
    example = {"rho": 0.5}
    card = Card(
        title="Sharpness-aware minimization",
        summary="Climbs a short way up the gradient, takes the gradient there, and steps with it from where "
        "it started: flat minima are preferred to sharp ones.",
        source="Foret et al. 2021, arXiv:2010.01412, algorithm 1; adaptive: Kwon et al. 2021, "
        "arXiv:2102.11600, algorithm 1",
        formula="g = gradient of the loss at w + rho * g_0 / |g_0|, g_0 = gradient at w\n"
        "adaptive: at w + rho * t^2 g_0 / |t g_0|, t = |w| + 0.01 for each weight",
        null="rho: 0",
        cost="Two passes per update: about twice the time. A copy of the weights. Compare with twice the "
        "epochs of plain training.",
        suggested="rho 0.05, up to 0.1 to 0.2 for transformers and long training; adaptive wants about ten "
        "times as much (0.5 for CIFAR-10, 1 for ImageNet). Helps most on small data, noisy labels and vision "
        "transformers; too large a rho underfits. The climb is that of the whole batch; with small parts of "
        "it (m-sharpness) the paper's gains are a little larger.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.sharpness import sharpness_aware

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

def compute():
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach()

for step in range(20):
    optimizer.zero_grad()
    loss = sharpness_aware(compute, model, rho=0.05)
    optimizer.step()
print(f"{loss:.3f}")
""",
        aliases=("ASAM", "adaptive sharpness-aware minimization", "SAM optimizer", "flat minima"),
        library="trickbag: torch and timm have none; weights come back to the bit and batch norm's running "
        "statistics see each batch once",
    )

    rho: float = Field(default=0.05, ge=0)
    adaptive: bool = False

    def gradients(self, compute: Callable[[], Tensor], model: nn.Module) -> Tensor:
        """Gradients at the perturbed weights, by two calls of ``compute``; one if ``rho`` is 0."""
        if self.rho == 0:
            return compute()
        from trickbag.functional.sharpness import sharpness_aware

        return sharpness_aware(compute, model, self.rho, adaptive=self.adaptive)
