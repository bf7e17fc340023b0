"""Read-outs: the ways to read predictions off the weights of one trained run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trickbag import tasks
from trickbag.data.base import Split
from trickbag.engine import checkpoint
from trickbag.engine.batches import eval_batches
from trickbag.engine.run import Run, name_of
from trickbag.errors import CheckpointError
from trickbag.functional.snapshots import Together, snapshots_of
from trickbag.plan import Plan
from trickbag.rng import Stream
from trickbag.tricks.base import Trick
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.tricks.stages import Predictor, Upstreams

RAW = "raw"


@dataclass(frozen=True)
class ReadOut:
    """One way to read predictions off a trained run.

    Attributes:
        weights: ``"raw"``, or the kind of a weights trick.
        tricks: what changes predictions.
        resize, crop: evaluation size in pixels, see ``Recipe``.
    """

    weights: str
    tricks: tuple[PredictTrick, ...]
    resize: int
    crop: int

    @property
    def view(self) -> tuple[int, int]:
        """(resize, crop) of the images that the outermost predictor is given."""
        view = self.resize, self.crop
        for trick in self.tricks:
            view = trick.view(*view)
        return view

    @property
    def label(self) -> str:
        """``raw``, ``ema``, ``ema+tta_flip``, ..."""
        return "+".join((self.weights, *(trick.kind for trick in self.tricks)))

    @property
    def digest(self) -> str:
        """Hash of everything that the numbers depend on besides the run.

        Other runs count by their names, wherever they lie, and files by their bytes.
        """
        settings = {trick.kind: _by_name(trick).settings() for trick in self.tricks}
        parts = [self.weights, settings, self.resize, self.crop]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def candidates(self) -> tuple[ReadOut, ...]:
        """The read-outs that are compared on the selection split instead of this one; none is the rule."""
        sizes = {t.kind: t.candidates(self.resize, self.crop) for t in self.tricks}
        rest = tuple(trick for trick in self.tricks if not sizes[trick.kind])
        found = dict.fromkeys(size for several in sizes.values() for size in several)
        return tuple(ReadOut(self.weights, rest, *size) for size in found)


def _by_name(trick: Trick) -> Trick:
    """The trick with run directories replaced by the names of the runs, and files by hashes."""
    found = {}
    for name, source in trick.sources().items():
        if source.run is not None:
            found[name] = source.model_copy(update={"run": name_of(Path(source.run))})
        elif source.weights is not None:
            with open(source.weights, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = source.model_copy(update={"weights": digest})
    return trick.with_sources(found) if found else trick


def main_readout(plan: Plan) -> ReadOut:
    """The read-out that a recipe prescribes: its last average, all its predict tricks."""
    weights = plan.weights[-1].kind if plan.weights else RAW
    return ReadOut(weights, plan.predict, *plan.recipe.evaluation)


def all_readouts(plan: Plan) -> tuple[ReadOut, ...]:
    """Raw and every average, plain and with the predict tricks; the main one last."""
    tricks = [(), plan.predict] if plan.predict else [()]
    weights = [RAW, *(trick.kind for trick in plan.weights)]
    return tuple(ReadOut(w, t, *plan.recipe.evaluation) for t in tricks for w in weights)


class Weights:
    """A model with several sets of weights, used without copying them into the model.

    Args:
        model: the model with its raw weights.
        averages: other weights by the kind of their trick.
        upstreams: the trained models that predict tricks ask for, by kind and setting.
    """

    def __init__(
        self,
        model: nn.Module,
        averages: Mapping[str, Mapping[str, Tensor]],
        upstreams: Mapping[str, Upstreams] | None = None,
    ) -> None:
        self.model, self.averages, self.upstreams = model, averages, upstreams or {}

    def loaded(self, kind: str) -> nn.Module:
        """The model with ``"raw"`` or other weights in it; of several snapshots, one that uses them all."""
        if kind != RAW:
            states = snapshots_of(self.averages[kind])
            if len(states) > 1:
                return Together(self.model, states)
            self.model.load_state_dict(states[0])
        return self.model

    def predictor(self, readout: ReadOut) -> Predictor:
        """Normalized images -> float32 probabilities."""
        states = [] if readout.weights == RAW else snapshots_of(self.averages[readout.weights])

        def plain(images: Tensor) -> Tensor:
            logits: Tensor
            if not states:
                logits = self.model(images)
                return logits.softmax(dim=1)
            each = [
                torch.func.functional_call(self.model, state, (images,)).softmax(dim=1) for state in states
            ]
            return each[0] if len(each) == 1 else torch.stack(each).mean(dim=0)

        predict: Predictor = plain
        view = readout.resize, readout.crop
        for trick in readout.tricks:
            predict = trick.wrap(predict, size=view[1], upstreams=self.upstreams.get(trick.kind))
            view = trick.view(*view)
        return predict


@torch.no_grad()
def probabilities(
    weights: Weights,
    readout: ReadOut,
    plan: Plan,
    split: Split,
    positions: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Predicted probabilities ``(n, classes)``, float32, on the CPU."""
    positions = range(len(split)) if positions is None else positions
    size = batch_size or max(plan.recipe.batch_size, 64)
    device = next(weights.model.parameters()).device
    batches = eval_batches(plan, split, readout.view, size, positions, device)
    predict = weights.predictor(readout)
    modes = [(module, module.training) for module in weights.model.modules()]
    weights.model.eval()
    try:
        parts = [predict(images).cpu() for images in batches]
    finally:
        for module, training in modes:
            module.training = training
    return torch.cat(parts)


def measure(weights: Weights, readout: ReadOut, plan: Plan, split: Split) -> dict[str, float]:
    """The task's metrics of one read-out on one split."""
    found = probabilities(weights, readout, plan, split)
    return tasks.of(plan.recipe.task).metrics(found, torch.from_numpy(split.labels))


def load_weights(run: Run, plan: Plan, device: str | torch.device = "cpu") -> Weights:
    """The trained model of a run and its averages.

    Raises:
        CheckpointError: no checkpoint, or one that does not fit the recipe.
    """
    folder = run.newest_checkpoint()
    # The checkpoint holds every weight: where training started from may be gone by now.
    bare = plan.recipe.model.model_copy(update={"pretrained": False, "weights": None})
    model = replace(plan, recipe=plan.recipe.replace(model=bare)).build_model(Stream(run.about()["seed"]))
    try:
        model.load_state_dict(checkpoint.load_tensors(folder / "model.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"weights do not fit the recipe: {error}", where=str(folder)) from None
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averages = {}
    for path in sorted(folder.glob("average-*.safetensors")):
        kind = path.stem.removeprefix("average-")
        averages[kind] = {
            name: _as_in_training(t, device) for name, t in checkpoint.load_tensors(path).items()
        }
    return Weights(model, averages)


def _as_in_training(tensor: Tensor, device: str | torch.device) -> Tensor:
    """On the device, and in the memory format that training uses: another one rounds differently."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    return tensor.to(device, memory_format=layout)
