"""Weights of classes in the loss, from how many training images each has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import LossTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Loss


class _Weighted(LossTrick):
    """What both kinds of weights share."""

    slot = "class_weights"
    rank = 30

    def _wrapped(self, loss: Loss, weights: Sequence[float]) -> Loss:
        """The loss on targets multiplied by the weights of their classes."""
        if all(weight == 1 for weight in weights):
            return loss
        placed: dict[object, Tensor] = {}

        def weighted(logits: Tensor, targets: Tensor) -> Tensor:
            import torch

            key = targets.device, targets.dtype
            if key not in placed:
                placed[key] = torch.tensor(weights, dtype=targets.dtype, device=targets.device)
            return loss(logits, targets * placed[key])

        return weighted

    def _problems(self, given: Sequence[float] | None, name: str, context: Context) -> Iterable[Problem]:
        """What is wrong with one number a class, or with the counts that it would be taken from."""
        facts = context.facts
        some = ", ".join(facts.classes[:8])
        if given is None and not facts.counts:
            yield self.problem(
                "the data do not tell how many images each class has",
                fix=f"give {name} in the order of the classes: {some}",
            )
        elif given is not None and len(given) != facts.num_classes:
            yield self.problem(
                f"{len(given)} {name} for {facts.num_classes} classes",
                expected=f"one for each of {some}",
                fix=f"leave {name} out, to have them from the training images",
            )

    def _empty(self, counts: Sequence[int], context: Context) -> Iterable[Problem]:
        """Classes without a training image, which no weight makes up for."""
        empty = [c for c, n in zip(context.facts.classes, counts, strict=False) if n == 0]
        if empty:
            yield self.problem(
                f"no training image is of class {', '.join(empty[:8])}",
                fix=f"leave the class out of the data, or remove the trick: --without {self.kind}",
            )


class ClassWeights(_Weighted):
    """Weights the loss of each class by the inverse of its number of training images.

    Attributes:
        weights: of each class, in the order of the classes; None takes counts ** -power, scaled so that the
            mean over the training images is 1.
        power: 1 for the inverse count, 0.5 for its square root, 0 for no weights at all.
    """

    kind = "class_weights"
    null_setting = {"power": 0}
    example = {"weights": (0.5, 1.0, 2.0, 0.25)}
    card = Card(
        title="Class-weighted loss",
        summary="Multiplies the loss of each image by a weight of its class (of a mixed image: by those of "
        "its classes, in their shares), so that rare classes are not drowned out. Counts come from the "
        "training split alone.",
        source="King and Zeng 2001, Logistic Regression in Rare Events Data, Political Analysis 9(2); power "
        "0.5: Mahajan et al. 2018, arXiv:1805.00932, for sampling",
        formula="w_c = n_c^-power sum_k n_k / sum_k n_k^(1 - power)",
        null="power = 0",
        cost="None.",
        suggested="power 1 if all classes matter alike (balanced accuracy), 0.5 as a milder choice; with "
        "thousands of images in one class and tens in another, power 1 makes gradients noisy. Usually lowers "
        "plain accuracy, and makes probabilities those of balanced classes.",
        aliases=(
            "weighted cross entropy",
            "balanced loss",
            "inverse frequency",
            "cost-sensitive",
            "class weight",
        ),
        library="torch: equals cross_entropy(weight=...) before its mean over the batch, which torch "
        "divides by the sum of the batch's weights; weights equal scikit-learn's 'balanced'.",
        snippet="""\
import torch
from trickbag.functional.losses import frequency_weights, soft_cross_entropy

model = torch.nn.Linear(64, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
weights = torch.tensor(frequency_weights([70, 20, 10]))
images, labels = torch.rand(8, 64), torch.randint(3, (8,))
for _ in range(3):
    loss = soft_cross_entropy(model(images), torch.eye(3)[labels] * weights).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    power: float = Field(default=1.0, ge=0)

    def resolve(self, context: Context) -> Self:
        """This trick with ``weights`` filled in."""
        counts = context.facts.counts
        if self.weights is not None or self.power == 0 or not counts or min(counts) == 0:
            return self
        from trickbag.functional.losses import frequency_weights

        return self.model_copy(update={"weights": frequency_weights(counts, self.power)})

    def wrap(self, loss: Loss) -> Loss:
        """The loss on weighted targets."""
        if self.power == 0 or self.weights is None:
            return loss
        return self._wrapped(loss, self.weights)

    def check(self, context: Context) -> Iterable[Problem]:
        """There is a weight for every class, and one that is not 0."""
        if self.power == 0:
            return
        yield from self._problems(self.weights, "weights", context)
        if self.weights is None:
            yield from self._empty(context.facts.counts, context)
        elif not any(self.weights):
            yield self.problem("every weight is 0", expected="a weight above 0")

    def notes(self, context: Context) -> Iterable[str]:
        """Tell when all weights are the same."""
        if self.weights and self.power and all(weight == 1 for weight in self.weights):
            yield "every class weighs the same: it does nothing"


class ClassBalanced(_Weighted):
    """Weights the loss of each class by the inverse of its effective number of training images.

    Attributes:
        beta: 0 for no weights at all; the nearer to 1, the nearer they come to the inverse of the counts.
        counts: training images of each class; None takes them from the data.
    """

    kind = "class_balanced"
    null_setting = {"beta": 0}
    example = {"beta": 0.999, "counts": (40, 20, 10, 5)}
    card = Card(
        title="Class-balanced loss (effective number)",
        summary="Weights each class by (1 - beta) / (1 - beta^n), n its training images: each further image "
        "of a class adds less than the one before. Counts come from the training split alone. The mean "
        "weight over the classes is 1, as in the paper; over the images it is then smaller.",
        source="Cui et al. 2019, arXiv:1901.05555, section 4",
        formula="w_c proportional to (1 - beta) / (1 - beta^n_c), with mean 1 over the classes",
        null="beta = 0",
        cost="None.",
        suggested="0.9, 0.99, 0.999, 0.9999: beta belongs to the counts, since weights level off for "
        "classes of more than some 1 / (1 - beta) images. As the images of large classes weigh less than 1, "
        "the learning rate acts as a smaller one.",
        aliases=("effective number of samples", "CB loss", "class-balanced cross entropy", "long-tailed"),
        snippet="""\
import torch
from trickbag.functional.losses import effective_number_weights, soft_cross_entropy

model = torch.nn.Linear(64, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
weights = torch.tensor(effective_number_weights([700, 200, 10], beta=0.99))
images, labels = torch.rand(8, 64), torch.randint(3, (8,))
for _ in range(3):
    loss = soft_cross_entropy(model(images), torch.eye(3)[labels] * weights).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    beta: float = Field(default=0.999, ge=0, lt=1)
    counts: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    def resolve(self, context: Context) -> Self:
        """This trick with ``counts`` filled in."""
        if self.counts is not None or self.beta == 0 or not context.facts.counts:
            return self
        return self.model_copy(update={"counts": tuple(context.facts.counts)})

    def wrap(self, loss: Loss) -> Loss:
        """The loss on weighted targets."""
        if self.beta == 0 or self.counts is None:
            return loss
        from trickbag.functional.losses import effective_number_weights

        return self._wrapped(loss, effective_number_weights(self.counts, self.beta))

    def check(self, context: Context) -> Iterable[Problem]:
        """Every class has training images."""
        if self.beta != 0:
            yield from self._problems(self.counts, "counts", context)
            yield from self._empty(self.counts or (), context)

    def notes(self, context: Context) -> Iterable[str]:
        """Tell when all weights are the same."""
        if self.counts and self.beta and len(set(self.counts)) == 1:
            yield "every class has the same number of training images: it does nothing"
