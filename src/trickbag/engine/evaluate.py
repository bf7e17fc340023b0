"""Evaluation: one trained run gives the numbers of every read-out of its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from trickbag import tasks
from trickbag.data.base import DataSet, Split
from trickbag.engine import checkpoint
from trickbag.engine.batches import eval_batches
from trickbag.engine.files import read_json, write_json
from trickbag.engine.run import Run
from trickbag.errors import CheckpointError
from trickbag.plan import Plan
from trickbag.rng import Stream
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.tricks.stages import Predictor

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
        """Hash of everything that the numbers depend on besides the run."""
        parts = [self.weights, {t.kind: t.settings() for t in self.tricks}, self.resize, self.crop]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


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
    """A model with several sets of weights, used without copying them into the model."""

    def __init__(self, model: nn.Module, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model, self.averages = model, averages

    def predictor(self, readout: ReadOut) -> Predictor:
        """Normalized images -> float32 probabilities."""
        average = None if readout.weights == RAW else dict(self.averages[readout.weights])

        def plain(images: Tensor) -> Tensor:
            logits: Tensor
            if average is None:
                logits = self.model(images)
            else:
                logits = torch.func.functional_call(self.model, average, (images,))
            return logits.softmax(dim=1)

        predict: Predictor = plain
        for trick in readout.tricks:
            predict = trick.wrap(predict)
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


def evaluate(
    run: Run,
    plan: Plan,
    data: DataSet,
    readouts: Sequence[ReadOut],
    split: str,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, float]]:
    """Metrics of a finished run by read-out digest; cached in the run's directory.

    Raises:
        CheckpointError: the run has not finished, or lacks the weights that a read-out wants.
    """
    if (run.result() or {}).get("status") != "finished":
        raise CheckpointError(f"run {run.id} has not finished", fix="train it to its end first")
    folder = run.path / "evaluations"
    files = {r.digest: folder / f"{split}-{data.facts.fingerprint[:12]}-{r.digest}.json" for r in readouts}
    found: dict[str, dict[str, float]] = {}
    weights: Weights | None = None
    for readout in readouts:
        path = files[readout.digest]
        try:
            found[readout.digest] = read_json(path)["metrics"]
            continue
        except (OSError, ValueError, KeyError, TypeError):
            pass
        weights = weights or load_weights(run, plan, device)
        if readout.weights not in (RAW, *weights.averages):
            raise CheckpointError(
                f"run {run.id} holds no {readout.weights} weights",
                expected="one of " + ", ".join((RAW, *weights.averages)),
            )
        found[readout.digest] = measure(weights, readout, plan, data.splits[split])
        folder.mkdir(exist_ok=True)
        write_json(path, {"readout": readout.label, "split": split, "metrics": found[readout.digest]})
    return found
