"""What a trick is: a frozen value with a stage, a rank, a card, and one narrow interface a stage.

Nothing here imports torch at run time: reading, listing and comparing tricks must stay instant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from trickbag.errors import Problem

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbag.imageops.program import Step
    from trickbag.plan import Context
    from trickbag.rng import Stream

    Loss = Callable[[Tensor, Tensor], Tensor]
    """(logits ``(batch, classes)``, dense targets ``(batch, classes)``) -> losses ``(batch,)``."""
    Predictor = Callable[[Tensor], Tensor]
    """Images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``."""


T = TypeVar("T", bound="Trick")


class Stage(IntEnum):
    """Where in a training step a trick acts, in the order of execution."""

    RESOLUTION = 1
    CROP = 2
    AUGMENT = 3
    MIX = 4
    MICRO_BATCH = 5
    MODEL = 6
    LOSS = 7
    PRECISION = 8
    GRADIENTS = 9
    PARAM_GROUPS = 10
    OPTIMIZER = 11
    SCHEDULE = 12
    WEIGHTS = 13
    STOP = 14
    PREDICT = 15


@dataclass(frozen=True)
class Card:
    """What a person needs to know before putting a trick in the bag.

    Attributes:
        title: the field's name for the trick.
        summary: one or two sentences on what it does.
        source: paper and section, or specification, that defines it.
        null: the setting at which the trick does nothing, in words.
        cost: what it costs in time and memory.
        suggested: values to start from, and when it helps or hurts.
        snippet: a self-contained plain-PyTorch program that uses the trick's functional form.
        aliases: other names people search for.
        library: which library does the work, or why trickbag does it itself.
    """

    title: str
    summary: str
    source: str
    null: str
    cost: str
    suggested: str
    snippet: str
    aliases: tuple[str, ...] = ()
    library: str = "trickbag"


class Trick(BaseModel):
    """A frozen, typed value. Subclass one of the stage interfaces below, never this class directly.

    Class attributes:
        kind: the trick's name in recipes; unique in the catalogue.
        stage: where it acts.
        rank: order among the tricks of its stage (ties break by ``kind``).
        slot: at most one trick of a recipe may fill a slot; None if it takes none.
        card: documentation.
        null_setting: field values at which training is bit-identical to training without the trick.
        example: field values for tests and documentation at which the trick visibly acts.
        requires: kinds that must be in the bag too.
        excludes: kind -> reason, for tricks that must not be in the same bag.
        passive: True if the trick leaves the trajectory of the raw weights untouched, so that runs
            with and without it can share one training run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    stage: ClassVar[Stage]
    rank: ClassVar[int] = 50
    slot: ClassVar[str | None] = None
    card: ClassVar[Card]
    null_setting: ClassVar[Mapping[str, Any]]
    example: ClassVar[Mapping[str, Any]] = {}
    requires: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[Mapping[str, str]] = {}
    passive: ClassVar[bool] = False

    @classmethod
    def null(cls) -> Trick:
        """The setting at which training is bit-identical to training without the trick.

        A trick whose slot is never empty (optimizers) returns the one that an empty slot means.
        """
        return cls(**cls.null_setting)

    @classmethod
    def sample(cls) -> Self:
        """The setting that tests and documentation use."""
        return cls(**cls.example)

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key that makes a bag into a sequence: stage, rank, kind."""
        return int(self.stage), self.rank, self.kind

    def settings(self) -> dict[str, Any]:
        """The field values as plain data (what a recipe file holds)."""
        return self.model_dump(mode="json")

    def resolve(self, context: Context) -> Self:
        """This trick with every field that depends on data, weights or model filled in."""
        return self

    def check(self, context: Context) -> Iterable[Problem]:
        """Everything that keeps this trick from acting on this recipe, model and data."""
        return ()

    def notes(self, context: Context) -> Iterable[str]:
        """Things worth telling the user that are not errors."""
        return ()

    def problem(self, what: str, *, expected: str | None = None, fix: str | None = None) -> Problem:
        """A Problem that names this trick and, unless told otherwise, how to do without it."""
        return Problem(what, f"trick {self.kind}", expected, fix or f"remove it: --without {self.kind}")


class ResolutionTrick(Trick):
    """Chooses the size of training images, step by step."""

    stage = Stage.RESOLUTION
    slot = "resolution"

    def size(self, step: int, timeline: Timeline, image_size: int) -> int:
        """Height and width in pixels of the images of the update numbered ``step``; the same all epoch.

        Args:
            step: 0 to ``timeline.steps`` - 1.
            timeline: length of the run.
            image_size: the recipe's size.
        """
        raise NotImplementedError


class CropTrick(Trick):
    """Chooses which part of each source image becomes the training image."""

    stage = Stage.CROP

    def boxes(self, sizes: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one box an image.

        Args:
            sizes: source sizes in pixels, ``(batch, 2)`` int64, (height, width).
            generator: CPU generator of this trick's stream at this step.

        Returns:
            ``(batch, 4)`` float64 boxes (top, left, height, width) in source pixels, inside the image;
            each is resized to the training resolution by the loader.
        """
        raise NotImplementedError


Draws = Mapping[str, "Tensor"]
"""Per-image random parameters; every tensor's first dimension is the batch."""


@dataclass(frozen=True)
class Batch:
    """The batch that an image trick draws for.

    Attributes:
        shape: ``(batch, channels, height, width)`` of the *global* batch; processes take slices.
        step: number of the update, from 0.
        epoch: number of the epoch, from 0.
        indices: ``(batch,)`` int64 positions of the images in the training split.
    """

    shape: tuple[int, int, int, int]
    step: int = 0
    epoch: int = 0
    indices: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


class ImageTrick(Trick):
    """Changes images after they have been cropped and resized: draws a program, which the engine executes.

    Images are uint8 until the table of one trick (normalization) makes them float32.
    """

    stage = Stage.AUGMENT
    training_only: ClassVar[bool] = True

    @property
    def late(self) -> bool:
        """True if the steps come after the table."""
        return False

    def draw(self, batch: Batch, stream: Stream) -> Sequence[Step]:
        """Draw what happens to each image of a batch; the same steps, in number and order, for every batch.

        Args:
            batch: what to draw for.
            stream: this trick's stream; ``stream.numpy(batch.step)`` generates what belongs to this batch.
        """
        return ()

    def table(self, channels: int) -> np.ndarray | None:
        """``(channels, 256)`` float32, what a model sees for each value; None: another trick says."""
        return None

    def __call__(self, images: Tensor, seed: int = 0, step: int = 0) -> Tensor:
        """Act on a batch, in a training loop of your own.

        Args:
            images: uint8 ``(batch, channels, height, width)`` on any device.
            seed: seed of the trick's random stream.
            step: number of the update; other numbers, other draws.

        Returns:
            Images of the same shape and type; float32 from tricks that act on floats (normalization, and
            erasing after it), which take float32 too.
        """
        from trickbag.imageops import act
        from trickbag.rng import Stream

        batch = Batch((images.shape[0], images.shape[1], images.shape[2], images.shape[3]), step)
        steps = tuple(self.draw(batch, Stream(seed, self.kind)))
        return act(images, steps, self.table(images.shape[1]), self.late)


class MixTrick(Trick):
    """Combines images of a batch with each other, and their dense targets with them."""

    stage = Stage.MIX

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """Draw the parameters of a batch on the CPU; first dimensions as in ImageTrick."""
        raise NotImplementedError

    def mix(self, images: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mix images ``(batch, channels, height, width)`` and targets ``(batch, classes)``."""
        raise NotImplementedError


class MicroBatchTrick(Trick):
    """Cuts a batch, after mixing, into parts that go through the model one after the other."""

    stage = Stage.MICRO_BATCH
    slot = "micro_batch"

    def parts(self, images: int) -> int:
        """Number of parts, 1 to ``images``; their sizes differ by at most one."""
        raise NotImplementedError


class ModelTrick(Trick):
    """Edits the model once, before training: architecture (rank < 50) or initial values (>= 50)."""

    stage = Stage.MODEL

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Return the edited model (in place or new). Randomness comes from ``stream`` alone.

        Raises:
            PlanError: nothing in ``model`` matches. Called on the meta device at plan time.
        """
        raise NotImplementedError

    @property
    def sample_size(self) -> int:
        """Number of training images that :meth:`calibrate` wants to see."""
        return 0

    def calibrate(self, model: nn.Module, images: Iterable[Tensor]) -> None:
        """Compute weights from images, once, after all edits; only called if ``sample_size`` is not 0.

        Args:
            model: changed in place, on its device.
            images: batches ``(batch, channels, height, width)`` of training images, as the model sees them
                in evaluation; the same ones for every seed.
        """


class LossTrick(Trick):
    """Wraps the loss function."""

    stage = Stage.LOSS

    def wrap(self, loss: Loss) -> Loss:
        """Return the new loss; see ``Loss`` for shapes."""
        raise NotImplementedError


class PrecisionTrick(Trick):
    """Chooses the arithmetic of forward and backward passes."""

    stage = Stage.PRECISION
    slot = "precision"

    def precision(self) -> str:
        """A precision of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``."""
        raise NotImplementedError


class GradientTrick(Trick):
    """Changes gradients, once they are complete and unscaled, before the optimizer sees them."""

    stage = Stage.GRADIENTS

    def transformation(self, model: nn.Module) -> Callable[[], None] | None:
        """The function that changes ``grad`` of the model's parameters in place, or None for none.

        It is called at every step: it must not wait for the device.
        """
        raise NotImplementedError


ParamGroup = dict[str, Any]
"""A torch parameter group; ``names`` (list of str) runs parallel to ``params``."""


class ParamGroupTrick(Trick):
    """Splits or annotates parameter groups."""

    stage = Stage.PARAM_GROUPS

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Return new groups that hold the same parameters, each exactly once."""
        raise NotImplementedError


class OptimizerTrick(Trick):
    """Builds the optimizer. Every optimizer has ``lr`` and ``weight_decay``."""

    stage = Stage.OPTIMIZER
    slot = "optimizer"
    lr: float
    weight_decay: float

    def groups(self, model: nn.Module, groups: list[ParamGroup]) -> list[ParamGroup]:
        """Groups as this optimizer wants them: the same parameters, each once. Called before ``build``."""
        return groups

    def build(self, groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """An optimizer over ``groups``; a group's own ``weight_decay`` wins over the trick's."""
        raise NotImplementedError


@dataclass(frozen=True)
class Timeline:
    """The length of a training run in optimizer steps.

    Attributes:
        steps: total number of steps.
        steps_per_epoch: steps in one epoch.
        warmup: steps taken by warmup tricks at the start.
        batch_size: images in one step over all processes.
    """

    steps: int
    steps_per_epoch: int
    warmup: int = 0
    batch_size: int = 1

    def fraction_after_warmup(self, step: int) -> float:
        """Share of the steps after warmup that lie before ``step``: 0 to 1."""
        length = self.steps - self.warmup
        return min(1.0, max(0.0, (step - self.warmup) / length)) if length > 0 else 1.0


class ScheduleTrick(Trick):
    """Multiplies the learning rate. The factors of all schedule tricks are multiplied together."""

    stage = Stage.SCHEDULE

    def warmup_steps(self, timeline: Timeline) -> int:
        """Steps at the start that this trick takes for warmup."""
        return 0

    def factor(self, step: int, timeline: Timeline) -> float:
        """Factor for the update numbered ``step`` (0 to ``timeline.steps`` - 1)."""
        raise NotImplementedError


class WeightsTrick(Trick):
    """Keeps averaged weights beside the raw ones. Never touches the raw ones."""

    stage = Stage.WEIGHTS
    passive = True

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """The averaged state at step 0: a copy of ``model.state_dict()``, detached."""
        raise NotImplementedError

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Update ``average`` in place after the optimizer step numbered ``step`` (from 0)."""
        raise NotImplementedError


class StopTrick(Trick):
    """Decides, after each evaluation on the selection split, whether to stop."""

    stage = Stage.STOP

    def stop(self, history: Sequence[float]) -> bool:
        """True to stop. ``history``: primary metric of the raw weights, oldest first, higher is better."""
        raise NotImplementedError


class PredictTrick(Trick):
    """Changes how probabilities are computed from a trained model; costs no training."""

    stage = Stage.PREDICT
    passive = True

    def wrap(self, predict: Predictor) -> Predictor:
        """Return the new predictor; see ``Predictor`` for shapes."""
        raise NotImplementedError


class Bag(Mapping[str, Trick]):
    """An unordered, hashable collection of tricks, at most one of a kind."""

    __slots__ = ("_tricks",)

    def __init__(self, tricks: Iterable[Trick] = ()) -> None:
        items = sorted(tricks, key=lambda trick: trick.kind)
        self._tricks = {trick.kind: trick for trick in items}
        if len(self._tricks) != len(items):
            kinds = [trick.kind for trick in items]
            twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
            raise ValueError(f"more than one {', '.join(twice)} in a bag")

    def __getitem__(self, kind: str) -> Trick:
        return self._tricks[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tricks)

    def __len__(self) -> int:
        return len(self._tricks)

    def __hash__(self) -> int:
        return hash(tuple(self._tricks.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bag) and self._tricks == other._tricks

    def __repr__(self) -> str:
        return f"Bag({', '.join(map(repr, self._tricks.values()))})"

    def with_(self, *tricks: Trick) -> Bag:
        """This bag with ``tricks`` added; one of the same kind or slot is replaced."""
        kinds = {trick.kind for trick in tricks}
        slots = {trick.slot for trick in tricks if trick.slot}
        kept = (t for t in self.values() if t.kind not in kinds and t.slot not in slots)
        return Bag((*kept, *tricks))

    def without(self, *kinds: str) -> Bag:
        """This bag less the named kinds."""
        return Bag(trick for kind, trick in self.items() if kind not in kinds)

    def of(self, interface: type[T]) -> tuple[T, ...]:
        """The tricks of one stage interface, in order of execution."""
        return tuple(sorted((t for t in self.values() if isinstance(t, interface)), key=lambda t: t.order))
