"""What is learned: building the model, the form of targets, the loss and the metrics of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trickbag.errors import RecipeError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbag.data.base import DataFacts
    from trickbag.recipe.model import ModelSpec
    from trickbag.rng import Stream

__all__ = ["TASKS", "Task", "of"]

TASKS = ("classification",)


class Task(Protocol):
    """What a module of this package offers."""

    primary: str
    """Name of the metric that counts; higher is better."""

    def build_model(
        self, spec: ModelSpec, facts: DataFacts, stream: Stream, device: str | torch.device = "cpu"
    ) -> nn.Module:
        """The model with its initial weights."""

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Dense targets from labels."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Losses, one an image."""

    def metrics(self, probabilities: Tensor, labels: Tensor) -> dict[str, float]:
        """Metrics of predictions on one split."""


def of(task: str) -> Task:
    """The task called ``task``.

    Raises:
        RecipeError: there is no such task.
    """
    if task != "classification":
        near = nearest(task, TASKS)
        raise RecipeError(
            f"no task is called {task!r}", expected=" or ".join(TASKS), fix=near and f"task: {near}"
        )
    from trickbag.tasks import classification

    return classification
