"""What a run must remember to go on exactly where it was."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trickbag.engine import checkpoint
from trickbag.engine.files import read_json
from trickbag.engine.forks import Origin, Point, folder_of
from trickbag.engine.prefix import starts_late
from trickbag.engine.readout import RAW
from trickbag.engine.run import Run
from trickbag.errors import CheckpointError
from trickbag.plan import Plan

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
        clock: time spent so far, on what this run has trained itself.
        origin: where it began, if that was not at step 0.
    """

    step: int = 0
    evaluated: int = 0
    loss_sum: float = 0.0
    history: list[float] = field(default_factory=list)
    stopped: bool = False
    clock: Clock = field(default_factory=Clock)
    origin: Origin | None = None

    @property
    def trained(self) -> int:
        """Updates that this run has made itself."""
        return self.step - (self.origin.step if self.origin else 0)


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
        tensors, more = self._contents(optimizer=not finished)
        more["metrics_size"] = run.metrics_size()
        checkpoint.save(run.path / "checkpoint", self.state.step, tensors, more)

    def leave_fork(self, run: Run) -> None:
        """Write a fork point of the step it is at, unless it is there already."""
        folder = folder_of(run.path, self.state.step)
        if not checkpoint.is_complete(folder):
            tensors, more = self._contents(optimizer=True)
            more["rows"] = run.metrics()
            checkpoint.write(folder.parent, self.state.step, tensors, more, seal=True)

    def _contents(self, *, optimizer: bool) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        tensors: dict[str, Mapping[str, Tensor]] = {"model": self.model.state_dict()}
        tensors |= {f"average-{kind}": average for kind, average in self.averages.items()}
        values: dict[str, Any] = {}
        if optimizer:
            tensors["optimizer"], values = checkpoint.pack_optimizer(self.optimizer)
        scaler = self.scaler.state_dict() if self.scaler else {}
        return tensors, {"state": asdict(self.state), "optimizer": values, "scaler": scaler}

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
            self._load(saved, tensors)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit the run: {error}", where=str(folder), fix=f"delete {run.path}"
            ) from None
        run.truncate_metrics(saved["metrics_size"])

    def go_on_from(self, point: Point, plan: Plan) -> list[dict[str, Any]]:
        """Start at a fork point that :func:`trickbag.engine.forks.find` has found for this very run.

        Returns:
            The rows that it would have logged by itself until then.
        """
        late = [t for t in plan.weights if starts_late(t, plan.timeline, point.origin.step)]
        kinds = {trick.kind for trick in late}
        self._load(point.saved, point.tensors, kinds)
        for trick in late:
            for name, value in trick.start(self.model).items():
                self.averages[trick.kind][name].copy_(value)
        state = self.state
        state.clock, state.origin = Clock(), point.origin
        state.stopped = any(trick.stop(state.history) for trick in plan.stops)
        rows = []
        for row in point.saved["rows"]:
            plain = {name: value for name, value in row.items() if not isinstance(value, dict)}
            measured = {kind: row[RAW if kind in kinds else kind] for kind in (RAW, *self.averages)}
            rows.append(plain | measured | {"seconds": 0.0})
        return rows

    def _load(
        self, saved: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], late: Container[str] = ()
    ) -> None:
        """Take over what was saved, but for averages that begin late."""
        self.model.load_state_dict(tensors["model"])
        if "optimizer" in tensors:
            checkpoint.unpack_optimizer(self.optimizer, tensors["optimizer"], saved["optimizer"])
        for kind, average in self.averages.items():
            for name, value in average.items() if kind not in late else ():
                value.copy_(tensors[f"average-{kind}"][name])
        if self.scaler and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        values = saved["state"] | {"clock": Clock(**saved["state"]["clock"])}
        if values.get("origin"):
            values["origin"] = Origin(**values["origin"])
        self.state.__dict__.update(values)
