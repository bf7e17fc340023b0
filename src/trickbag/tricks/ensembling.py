"""Tricks that average the predictions of several models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.sources import Upstream
    from trickbag.tricks.stages import Predictor, Upstreams


class Ensemble(PredictTrick):
    """Averages the predictions of this run and of other trained models.

    Attributes:
        members: the others: runs, recipes (trained if they have not been; give each its own seed) or models
            of timm. All have one weight.
        average: ``probabilities`` for their mean; ``logits`` for the softmax of the mean logits (see
            ``tta_flip``).
    """

    kind = "ensemble"
    rank = 10
    null_setting = {"members": ()}
    example = {
        "members": (
            Source(
                recipe={
                    "model": {"name": "mini_resnet", "options": {"width": 8}},
                    "epochs": 1,
                    "batch_size": 8,
                    "image_size": 16,
                    "tricks": {"normalize": {}, "sgd": {"lr": 0.05}},
                },
                seed=1,
            ),
        )
    }
    card = Card(
        title="Ensemble of models",
        summary="Predicts with this run and with other trained models, and averages their probabilities. "
        "Every member sees the same images, at this recipe's evaluation size and normalized as it was in its "
        "own training; views of tta tricks are averaged over members first. The members' own predict tricks "
        "are left out.",
        source="Hansen and Salamon 1990, Neural network ensembles; Lakshminarayanan et al. 2017, "
        "arXiv:1612.01474, section 2.4",
        formula="p = (p[1] + ... + p[m]) / m, or softmax((log p[1] + ... + log p[m]) / m)",
        null="members = ()",
        cost="Prediction takes as long as all members together; each must have been trained once.",
        suggested="3 to 5 runs that differ in the seed alone: often a point of accuracy, and much better "
        "probabilities. Other architectures differ more and help more, if they are about as good. A much "
        "weaker member drags the others down. Compare with one larger model of the same cost.",
        aliases=(
            "model ensemble",
            "deep ensemble",
            "model averaging",
            "committee",
            "ensembling",
            "soft voting",
        ),
        snippet="""\
import torch
from trickbag.functional.predicting import predict_together

images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10)) for _ in range(3)]
for model in models:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.inference_mode():
    probabilities = predict_together([lambda x, m=m: m(x).softmax(1) for m in models], images)
""",
    )

    members: tuple[Source, ...] = ()
    average: Literal["probabilities", "logits"] = "probabilities"

    def sources(self) -> Mapping[str, Source]:
        """``members.0``, ``members.1``, ..."""
        return {f"members.{number}": member for number, member in enumerate(self.members)}

    def with_sources(self, sources: Mapping[str, Source]) -> Ensemble:
        """This trick with some members replaced, by name."""
        members = tuple(sources.get(name, member) for name, member in self.sources().items())
        return self.model_copy(update={"members": members})

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """The predictor that averages this run and all members.

        Raises:
            ValueError: a member is missing in ``upstreams``.
        """
        if not self.members:
            return predict
        missing = [name for name in self.sources() if name not in (upstreams or {})]
        if missing or upstreams is None:
            raise ValueError(f"no trained model for {', '.join(missing)}")
        predictors = [predict, *(_probabilities(upstreams[name]) for name in self.sources())]

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_together

            return predict_together(predictors, images, self.average)

        return averaged

    def check(self, context: Context) -> Iterable[Problem]:
        """Members must differ, and know the same classes."""
        fix = f"--set {self.kind}.members=..., or remove it: --without {self.kind}"
        for number, member in enumerate(self.members):
            if member in self.members[:number]:
                first = self.members.index(member)
                yield self.problem(
                    f"members.{number} is members.{first} once more: it would count twice",
                    expected="models that differ, for example in their seeds",
                    fix=fix,
                )
            if member.model is not None and member.weights is None:
                import timm

                config = timm.get_pretrained_cfg(member.model, allow_unregistered=True)
                known = None if config is None else config.num_classes
                if known != context.facts.num_classes:
                    what = "is not pretrained" if known is None else f"predicts {known} classes"
                    yield self.problem(
                        f"members.{number}: {member.model} {what}",
                        expected=f"a model trained for the {context.facts.num_classes} classes of the data",
                        fix="fine-tune it first and name the run: {run: ...}, or " + fix,
                    )


def _probabilities(member: Upstream) -> Predictor:
    return lambda images: member.logits(images).softmax(1)
