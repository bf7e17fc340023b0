"""One narrow interface a stage. The engine knows these, and no trick by name.

Nothing here imports torch at run time: reading, listing and comparing tricks must stay instant.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trickbag.tricks.base import Stage, Trick

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbag.imageops.program import Step
    from trickbag.rng import Stream
    from trickbag.tricks.sources import Upstream

    Loss = Callable[[Tensor, Tensor], Tensor]
    """(logits ``(batch, classes)``, dense targets ``(batch, classes)``) -> losses ``(batch,)``."""
    Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
    """(logits, dense targets, the images ``(batch, channels, height, width)``) -> losses ``(batch,)``."""
    Predictor = Callable[[Tensor], Tensor]
    """Images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``."""
    Upstreams = Mapping[str, Upstream]
    """Trained models by the names of :meth:`Trick.sources`."""


class TargetTrick(Trick):
    """Chooses, once, before training, what the training images are and what is learned about each.

    Attributes:
        pool: split whose images, without their labels, join the training images; None for none.
    """

    stage = Stage.TARGETS
    slot = "targets"

    pool: str | None = None

    @property
    def transductive(self) -> bool:
        """Whether test images, without their labels, are trained on."""
        return self.pool == "test"

    def targets(self, known: np.ndarray, classes: int, pool: int, upstream: Upstream) -> np.ndarray:
        """What is learned about each image.

        Args:
            known: ``(n,)`` int64 labels of the training images.
            classes: number of classes.
            pool: number of images that would join.
            upstream: the trained model of :meth:`sources`, which predicts both: ``upstream.probabilities``
                and ``upstream.features`` give an array of ``n + pool`` rows, training images first.

        Returns:
            ``(n + pool, classes)`` float32 dense targets; a row of NaN leaves an image of the pool out.
            Not called if :meth:`sources` is empty: then the labels are learned.
        """
        raise NotImplementedError


class SamplerTrick(Trick):
    """Chooses which images make up an epoch, and in which order."""

    stage = Stage.SAMPLER

    def epoch_order(self, order: np.ndarray, labels: np.ndarray, stream: Stream, epoch: int) -> np.ndarray:
        """The order of one epoch.

        An epoch keeps its number of steps: only the entries that make up whole batches are used.

        Args:
            order: ``(n,)`` int64, the order without this trick: a random permutation of the positions.
            labels: ``(n,)`` int64 labels of all training images.
            stream: this trick's stream; ``stream.numpy(epoch)`` generates what belongs to this epoch.
            epoch: number of the epoch, from 0.

        Returns:
            ``(n,)`` int64 positions; an image may come several times or never.
        """
        raise NotImplementedError


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


class MixControlTrick(Trick):
    """Says which mixes act, and on which images."""

    stage = Stage.MIX
    rank = 10

    def active(self, mixes: Sequence[MixTrick], step: int, timeline: Timeline) -> Sequence[MixTrick]:
        """The mixes that act at the update numbered ``step``, out of ``mixes``."""
        return mixes

    def choose(self, mixes: Sequence[MixTrick], batch: int, generator: torch.Generator) -> Tensor | None:
        """Which of the mixes acts on each image, if only one does.

        Args:
            mixes: those that are active; at least two.
            batch: images of the global batch.
            generator: CPU generator of this trick's stream at this step.

        Returns:
            ``(batch,)`` int64 positions in ``mixes``; None if all act, one after the other.
        """
        return None


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

    def inherit(self, model: nn.Module, upstreams: Upstreams) -> None:
        """Take weights from other trained models, once, after all edits; only called if it has sources.

        Args:
            model: changed in place.
            upstreams: what :meth:`sources` asks for.

        Raises:
            CheckpointError: they do not fit.
        """

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


class FreezeTrick(Trick):
    """Keeps a part of the model as it is for a part of the training."""

    stage = Stage.FREEZE

    def until(self, timeline: Timeline) -> int:
        """Number of the first update in which nothing is frozen any more; ``timeline.steps`` for never."""
        raise NotImplementedError

    def frozen(self, model: nn.Module) -> tuple[set[str], set[str]]:
        """Names of the parameters that are frozen, and of the modules that behave as in evaluation."""
        raise NotImplementedError

    def part(self) -> Hashable:
        """What :meth:`frozen` depends on besides the model: equal for tricks that freeze the same part."""
        return self


class LossTrick(Trick):
    """Wraps the loss function.

    Class attributes:
        linear: True if the loss of mixed targets is the same mixture of the losses of pure ones.
    """

    stage = Stage.LOSS
    linear: ClassVar[bool] = True

    def wrap(self, loss: Loss) -> Loss:
        """Return the new loss; see ``Loss`` for shapes."""
        raise NotImplementedError


class ObjectiveTrick(Trick):
    """Adds to the loss what depends on the images themselves, such as what another model says of them."""

    stage = Stage.OBJECTIVE
    slot = "objective"

    def objective(self, loss: Loss, upstreams: Upstreams) -> Objective:
        """The new objective around the wrapped loss; see ``Objective`` for shapes."""
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


class StepTrick(Trick):
    """Computes the gradients of an update in its own way, for example in two passes."""

    stage = Stage.STEP
    slot = "step"

    def gradients(self, compute: Callable[[], Tensor], model: nn.Module) -> Tensor:
        """Leave the gradients of one update in ``grad`` of the model's parameters.

        Args:
            compute: adds the gradients of the whole batch (all its parts) to ``grad`` and returns the mean
                loss. It may be called several times; dropout then draws the same again. Under mixed precision
                gradients come multiplied by an unknown factor, the same in each call.
            model: its parameters may be changed in between, and must be back to the bit in the end.

        Returns:
            The loss to report.
        """
        raise NotImplementedError


ParamGroup = dict[str, Any]
"""A torch parameter group; ``names`` (list of str) runs parallel to ``params``; ``lr_scale`` (float, 1 if
missing) multiplies the learning rate of the group."""


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

    def momentum(self, step: int, timeline: Timeline) -> float | None:
        """Momentum (SGD) or first beta (Adam and its kin) for that update; None leaves it alone."""
        return None


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

    def rule(self, step: int, timeline: Timeline) -> Hashable:
        """What :meth:`update` does in a run of this length, for comparison with a run of another length.

        Two runs whose trajectories are the same so far, and whose rules have been equal in every update, have
        the same average, and one can go on from the other. None: after this update, the average is what
        :meth:`start` makes of the model as it is then, whatever it was before.

        Args:
            step: number of the update, from 0.
            timeline: length of the run.

        Returns:
            Unless told otherwise, the timeline: only runs of the same length average alike.
        """
        return timeline

    @property
    def sample_size(self) -> int:
        """Number of training images that :meth:`finish` wants to see."""
        return 0

    def finish(
        self, averages: Mapping[str, dict[str, Tensor]], model: nn.Module, images: Iterable[Tensor]
    ) -> None:
        """Complete this trick's average once training has ended; only called if ``sample_size`` is not 0.

        Args:
            averages: the averages of all weights tricks by kind, in order of rank; those before this one are
                finished.
            model: in evaluation mode; raw weights, which must be back to the bit in the end.
            images: batches ``(batch, channels, size, size)`` of training images as the model sees them in
                evaluation, each of which spans the split; the same ones for every seed.
        """


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

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """Return the new predictor; see ``Predictor`` for shapes.

        Args:
            predict: the predictor of all tricks before this one.
            size: height and width in pixels of the images that ``predict`` is meant for; those that the new
                predictor is given are what :meth:`view` says. None: the same.
            upstreams: what :meth:`sources` asks for.
        """
        return predict

    def view(self, resize: int, crop: int) -> tuple[int, int]:
        """(resize of the short side, center crop) in pixels of the images that the predictor is given.

        ``resize`` and ``crop`` are what the recipe, or the predictor that this trick wraps, asks for.
        """
        return resize, crop

    def candidates(self, resize: int, crop: int) -> Sequence[tuple[int, int]]:
        """(resize, crop) to try on the selection split, the given one among them; the best one is taken.

        A trick that names some does nothing else: it is left out of the predictors that are compared.
        """
        return ()
