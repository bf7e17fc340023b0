"""Learning from another trained model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import ObjectiveTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Loss, Objective, Upstreams


class Distillation(ObjectiveTrick):
    """Learn from the probabilities of a teacher beside the labels.

    Attributes:
        teacher: a recipe (trained first, or found), a run, a file of weights, or a model of timm's.
        temperature: divides the logits of both; the higher, the more of the teacher's second thoughts count.
        alpha: weight of the teacher's part; 0 does without a teacher.
        hard: weight of the labels' part; None means 1 - alpha.
    """

    kind = "distillation"
    null_setting = {"alpha": 0}
    example = {
        "teacher": {
            "recipe": {
                "model": {"name": "test_resnet", "options": {"stem_type": "", "avg_down": False}},
                "epochs": 1,
                "batch_size": 8,
                "image_size": 24,
                "tricks": {"sgd": {"lr": 0.05}},
            }
        }
    }
    card = Card(
        title="Knowledge distillation",
        summary="Adds alpha T^2 KL(teacher || student), both softened by the temperature T, to (1 - alpha) "
        "times the loss of the labels. The teacher sees the very images that the student sees, augmented "
        "and mixed, but normalized as they were in its own training.",
        source="Hinton et al. 2015, arXiv:1503.02531, section 2; that of He et al. 2019, arXiv:1812.01187, "
        "section 5.3, is hard = 1, alpha = 1, temperature = 20",
        formula="hard * loss(z, y) + alpha T^2 KL(softmax(z_teacher / T) || softmax(z / T))\n"
        "hard = 1 - alpha, unless it is set",
        null="alpha = 0 (and hard left alone)",
        cost="A forward pass of the teacher at every step, in float32, and its training if it is not there "
        "yet.",
        suggested="temperature 4, alpha 0.9; long training, and mixing, help most (Beyer et al. 2022, "
        "arXiv:2106.05237). Helps small students of a better teacher of the same family; hurts with a "
        "teacher that was trained with label_smoothing, or that sees images of a size it was not trained "
        "for.",
        aliases=(
            "KD",
            "teacher student",
            "dark knowledge",
            "soft targets",
            "born-again",
            "consistent teaching",
        ),
        library="torch's kl_div; a teacher that is another recipe's run is trickbag's own",
        snippet="""\
import torch
from trickbag.functional.distillation import distillation_loss

teacher, student = torch.nn.Linear(64, 10).eval(), torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
images, labels = torch.rand(8, 64), torch.randint(10, (8,))
for _ in range(3):
    with torch.no_grad():
        wanted = teacher(images)
    logits = student(images)
    hard = torch.nn.functional.cross_entropy(logits, labels)
    loss = 0.1 * hard + 0.9 * distillation_loss(logits, wanted, temperature=4.0).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
""",
    )

    teacher: Source | None = None
    temperature: float = Field(default=4.0, gt=0)
    alpha: float = Field(default=0.9, ge=0, le=1)
    hard: float | None = Field(default=None, ge=0)

    def sources(self) -> Mapping[str, Source]:
        """The teacher, if it has a say."""
        return {} if self.alpha == 0 or self.teacher is None else {"teacher": self.teacher}

    def objective(self, loss: Loss, upstreams: Upstreams) -> Objective:
        """Both parts with their weights; one without weight is not computed."""
        from trickbag.functional.distillation import distillation_loss

        hard = 1 - self.alpha if self.hard is None else self.hard
        teacher = upstreams.get("teacher")

        def labels(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
            found = loss(logits, targets)
            return found if hard == 1 else hard * found

        if teacher is None:
            return labels

        def both(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
            soft = self.alpha * distillation_loss(logits, teacher.logits(images), self.temperature)
            return soft if hard == 0 else soft + labels(logits, targets, images)

        return both

    def check(self, context: Context) -> Iterable[Problem]:
        """There is a teacher, and something to learn; a model of timm's knows these classes."""
        if self.alpha == 0:
            if self.hard == 0:
                yield self.problem(
                    "alpha and hard are both 0: nothing is learned", fix="--set distillation.hard=1"
                )
            return
        if self.teacher is None:
            yield self.problem(
                "there is no teacher",
                expected="teacher: {recipe: NAME}, {run: FOLDER} or {model: NAME, weights: FILE}",
                fix="--set distillation.teacher.recipe=NAME, or remove it: --without distillation",
            )
        elif self.teacher.model is not None and self.teacher.weights is None:
            known = _classes_of(self.teacher.model)
            if known not in (None, context.facts.num_classes):
                yield self.problem(
                    f"the weights of {self.teacher.model} are for {known} classes, "
                    f"not for these {context.facts.num_classes}",
                    fix="fine-tune it in a recipe of its own (model.pretrained: true), and take that",
                )


def _classes_of(model: str) -> int | None:
    """Number of classes of timm's weights; None if there are none."""
    import timm

    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:
        return None
    return None if config is None else int(config.num_classes)
