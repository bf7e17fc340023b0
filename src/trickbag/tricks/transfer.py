"""Tricks that start from what another training has learned."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from trickbag.errors import CheckpointError, Problem, TrickbagError
from trickbag.tricks.base import Card
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import FreezeTrick, ModelTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context
    from trickbag.rng import Stream
    from trickbag.tricks.stages import Timeline, Upstreams

__all__ = ["Freeze", "StartFrom"]

FIXRES = (
    "FixRes (Touvron et al. 2019) trains at a low resolution, then fine-tunes classifier and last norm at "
    "that of the test: start_from the first recipe, freeze with train: head_and_norm, the larger image_size, "
    "no random resized crop, a few epochs at a tenth of the learning rate"
)


class StartFrom(ModelTrick):
    """Start from the weights of another run instead of random ones.

    In a recipe, the settings of ``source`` may stand beside the others: ``start_from: {run: DIRECTORY}``.

    Attributes:
        source: the other training; None starts from random weights.
        head: ``keep`` takes its classifier too, ``new`` draws one; None keeps it if the classes agree.
        partial: take what fits and let the rest start from random weights; False refuses.
    """

    kind = "start_from"
    rank = 95
    same_classes = False
    null_setting = {"source": None}
    example = {
        "source": Source(
            recipe={
                "model": {"name": "test_resnet", "options": {"stem_type": "", "avg_down": False}},
                "epochs": 1,
                "batch_size": 8,
                "image_size": 24,
                "tricks": {"sgd": {"lr": 0.05}},
            }
        ),
        "partial": True,
    }
    card = Card(
        title="Start from another run",
        summary="Training starts from the weights of another recipe, run or model, which is trained first if "
        "there is no such run yet. Optimizer, schedule and averages start anew.",
        source="Yosinski et al. 2014, arXiv:1411.1792; Kornblith et al. 2019, arXiv:1805.08974; for FixRes "
        "Touvron et al. 2019, arXiv:1906.06423, section 4.2",
        null="source: null",
        cost="The other training, once for all runs that share it (source.seed fixes one for all seeds).",
        suggested="Small data, a changed data set, another resolution, or a second stage of training: a "
        "learning rate of a tenth or less, short warmup. Weights of another model can do harm where images "
        f"are normalized in another way or the data is large enough. {FIXRES}. Transformers with a table of "
        "positions take another image_size only with options {dynamic_img_size: true} in both recipes.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.transfer import inherit

def net(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, classes))

trained, model = net(10, 3), net(4, 1)
taken = inherit(model, trained.state_dict())  # adapts the first layer, leaves the new classifier
assert taken == ["0.weight", "0.bias"]
gray = torch.rand(2, 1, 8, 8)
assert torch.allclose(model[:4](gray), trained[:4](gray.expand(-1, 3, -1, -1)), atol=1e-6)
""",
        aliases=(
            "transfer learning",
            "fine-tuning",
            "finetune",
            "warm start",
            "initialize from checkpoint",
            "pretraining",
            "FixRes",
            "second stage",
        ),
    )

    source: Source | None = None
    head: Literal["keep", "new"] | None = None
    partial: bool = False

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, settings: Any) -> Any:
        if isinstance(settings, Mapping) and "source" not in settings:
            own = {name: value for name, value in settings.items() if name not in Source.model_fields}
            if len(own) < len(settings):
                return {**own, "source": {n: v for n, v in settings.items() if n not in own}}
        return settings

    def sources(self) -> Mapping[str, Source]:
        """The other training."""
        return {} if self.source is None else {"source": self.source}

    def resolve(self, context: Context) -> Self:
        """The classifier is kept if the classes agree; of a plain model it is kept if it fits."""
        if self.source is None or self.head is not None or self.source.model is not None:
            return self
        keep = self.source.run is None or _classes(self.source.run) in (None, context.facts.classes)
        return self.model_copy(update={"head": "keep" if keep else "new"})

    def check(self, context: Context) -> Iterable[Problem]:
        """One start, and weights that fit."""
        if self.source is None:
            return
        if context.recipe.model.starts_pretrained:
            yield self.problem(
                f"{context.recipe.model.name} starts from pretrained weights: training can start from one",
                fix="set model.pretrained: false and no model.weights, or --without start_from",
            )
        # Problems of the source itself, and of other edits, are reported where they arise.
        try:
            other, model = context.upstream_model(self.source), _edited(context)
        except (TrickbagError, OSError, ValueError, KeyError):
            return
        try:
            self._take(model, other.state_dict())
        except CheckpointError as error:
            yield error.problems[0]

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Return the model as it is: it gets its weights once all edits are done."""
        return model

    def inherit(self, model: nn.Module, upstreams: Upstreams) -> None:
        """Copy the weights.

        Raises:
            CheckpointError: they do not fit.
        """
        self._take(model, upstreams["source"].state)

    def _take(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        from trickbag.functional.transfer import inherit

        try:
            inherit(model, state, head=self.head or "fit", partial=self.partial)
        except ValueError as error:
            raise CheckpointError(
                self.problem(
                    f"weights of the source do not fit {type(model).__name__}: {error}",
                    expected="a source with the same model.name, model.options and edits",
                    fix="make them agree, or take what fits: --set start_from.partial=true (and "
                    "start_from.head=new for other classes)",
                )
            ) from None


def _classes(run: str) -> tuple[str, ...] | None:
    try:
        return tuple(json.loads((Path(run) / "run.json").read_text())["facts"]["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _edited(context: Context) -> nn.Module:
    from trickbag.rng import Stream

    model = copy.deepcopy(context.model)
    for trick in context.recipe.tricks.of(ModelTrick):
        model = trick.resolve(context).edit(model, Stream(0))
    return model


class Freeze(FreezeTrick):
    """Train only a part of the model, to the end or at first.

    Attributes:
        train: ``head`` for the classifier; ``head_and_norm`` for it and the normalization before the global
            pooling, which is what FixRes fine-tunes; ``all`` for everything.
        epochs: epochs after which the rest is trained too; None never.
        statistics: whether batch norms of the frozen part go on to normalize by the batch and to update
            their running statistics; False lets them behave as in evaluation.
    """

    kind = "freeze"
    null_setting = {"train": "all"}
    example = {"train": "head", "epochs": 0.7}
    card = Card(
        title="Freezing",
        summary="Trains the classifier alone, or with the last normalization, and keeps the rest as it is, "
        "for a number of epochs or to the end. What is frozen is not decayed, gathers no momentum and costs "
        "no gradient; once thawed it is trained as if it were new to the optimizer.",
        source="Yosinski et al. 2014, arXiv:1411.1792; Kumar et al. 2022, arXiv:2202.10054 (head first, then "
        "everything); Touvron et al. 2019, arXiv:1906.06423, section 4.2 (head and norm)",
        null="train: all, or epochs: 0",
        cost="Saves the backward pass of the frozen part: about two thirds of a step, if only the head is "
        "trained. With several processes it lasts to the end or not at all.",
        suggested="On pretrained weights or after start_from. train: head to the end where data is scarce or "
        "out of distribution; for 1 to 3 epochs, so that a new classifier does not wreck the weights below "
        "it. It hurts where there is data enough to move the features, and makes no sense on random "
        f"weights. {FIXRES}.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.freezing import freeze

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(8, 10))
model.train()
assert freeze(model, "head") == ["5.weight", "5.bias"]
before = {name: value.clone() for name, value in model.state_dict().items()}
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
for _ in range(2):
    loss = nn.functional.cross_entropy(model(torch.rand(8, 3, 8, 8)), torch.arange(8))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
assert moved == ["5.weight", "5.bias"]
""",
        aliases=(
            "frozen backbone",
            "linear probing",
            "linear probe",
            "LP-FT",
            "freeze backbone",
            "unfreezing",
            "frozen batch norm",
            "FixRes fine-tuning",
            "feature extraction",
        ),
    )

    train: Literal["head", "head_and_norm", "all"] = "head"
    epochs: float | None = Field(default=None, ge=0)
    statistics: bool = False

    def until(self, timeline: Timeline) -> int:
        """First update in which everything is trained."""
        if self.train == "all":
            return 0
        if self.epochs is None:
            return timeline.steps
        steps = self.epochs * timeline.steps_per_epoch
        return min(timeline.steps, max(1, round(steps))) if steps else 0

    def frozen(self, model: nn.Module) -> tuple[set[str], set[str]]:
        """All but the part to be trained, and its batch norms."""
        from trickbag.functional.freezing import split_frozen

        return split_frozen(model, self.train, self.statistics)

    def part(self) -> Hashable:
        """Everything but for how long."""
        return self.train, self.statistics

    def check(self, context: Context) -> Iterable[Problem]:
        """There is a part to train, and one to freeze."""
        from trickbag.functional.freezing import split_frozen

        try:
            split_frozen(context.model, self.train)
        except ValueError as error:
            yield self.problem(str(error))

    def notes(self, context: Context) -> Iterable[str]:
        """What is trained, and for how long."""
        from trickbag.functional.freezing import split_frozen

        timeline = context.timeline
        if not self.until(timeline):
            return
        try:
            frozen, _ = split_frozen(context.model, self.train)
        except ValueError:
            return
        sizes = {name: p.numel() for name, p in context.model.named_parameters()}
        names = [name for name in sizes if name not in frozen]
        some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        length = "to the end" if self.until(timeline) == timeline.steps else f"for {self.epochs:g} epochs"
        count = sum(sizes[name] for name in names)
        yield f"trains {some} alone {length}: {count:,} of {sum(sizes.values()):,} values"
