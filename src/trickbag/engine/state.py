"""What a run must remember to go on exactly where it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trickbag.engine import checkpoint
from trickbag.engine.files import read_json
from trickbag.engine.run import Run
from trickbag.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass
class Clock:
    """Seconds spent, by what they were spent on."""

    data: float = 0.0
    augment: float = 0.0
    step: float = 0.0
    other: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0

    @property
    def training(self) -> float:
        """Seconds of the loop itself, without evaluation and checkpoints."""
        return self.data + self.augment + self.step + self.other


@dataclass
class State:
    """Progress of a run.

    Attributes:
        step: updates done.
        evaluated: step of the last evaluation.
        loss_sum: sum of training losses since then.
        history: primary metric of the raw weights at each evaluation.
        stopped: a stop trick ended training.
        clock: time spent so far.
    """

    step: int = 0
    evaluated: int = 0
    loss_sum: float = 0.0
    history: list[float] = field(default_factory=list)
    stopped: bool = False
    clock: Clock = field(default_factory=Clock)


@dataclass
class Trainee:
    """Everything that training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averages: Mapping[str, dict[str, Tensor]]
    scaler: Any
    state: State

    def save(self, run: Run, *, finished: bool) -> None:
        """Write a checkpoint; a finished run keeps no optimizer state."""
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict()}
        tensors |= {f"average-{kind}": average for kind, average in self.averages.items()}
        values: dict[str, Any] = {}
        if not finished:
            tensors["optimizer"], values = checkpoint.pack_optimizer(self.optimizer)
        more = {
            "state": asdict(self.state),
            "optimizer": values,
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "metrics_size": run.metrics_size(),
        }
        checkpoint.save(run.path / "checkpoint", self.state.step, tensors, more)

    def restore(self, run: Run) -> None:
        """Load the newest checkpoint, if there is one, and forget what was logged after it.

        Raises:
            CheckpointError: it does not fit the model.
        """
        folder = checkpoint.newest(run.path / "checkpoint")
        if folder is None:
            run.truncate_metrics(0)
            return
        saved = read_json(folder / checkpoint.STATE)
        tensors = {name: checkpoint.load_tensors(folder / f"{name}.safetensors") for name in saved["files"]}
        try:
            self.model.load_state_dict(tensors["model"])
            if "optimizer" in tensors:
                checkpoint.unpack_optimizer(self.optimizer, tensors["optimizer"], saved["optimizer"])
            for kind, average in self.averages.items():
                for name, value in average.items():
                    value.copy_(tensors[f"average-{kind}"][name])
            if self.scaler and saved["scaler"]:
                self.scaler.load_state_dict(saved["scaler"])
            values = saved["state"]
            self.state.__dict__.update(values | {"clock": Clock(**values["clock"])})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run: {error}", where=str(folder), fix=f"delete {run.path}"
            ) from None
        run.truncate_metrics(saved["metrics_size"])
