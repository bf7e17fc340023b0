"""The graph of runs: trained models that a run builds upon are found by name, or trained first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trickbag import plan as planning
from trickbag import tasks
from trickbag.data.base import DataFacts, DataSet, Split
from trickbag.engine import evaluate as evaluation
from trickbag.engine.device import Device
from trickbag.engine.run import Run, run_id
from trickbag.engine.targets import joined
from trickbag.errors import CheckpointError, Diverged
from trickbag.plan import Plan
from trickbag.recipe.model import ModelSpec
from trickbag.rng import Stream
from trickbag.tricks.base import Bag, Trick
from trickbag.tricks.sources import Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.tricks.stages import Upstreams

WAIT = 7 * 24 * 3600.0
"""Seconds to wait for another process that trains what this one builds upon."""


@dataclass(frozen=True)
class Ahead:
    """A run that must be finished before another can begin.

    Attributes:
        plan: what to train.
        seed: its seed.
        runs: folder of run directories.
        path: its own directory.
    """

    plan: Plan
    seed: int
    runs: Path
    path: Path


def settle(plan: Plan, seed: int, runs: Path, place: str) -> tuple[Plan, tuple[Ahead, ...]]:
    """Replace the recipes that tricks build upon by the directories of their runs.

    Args:
        plan: its tricks' sources may hold recipes.
        seed: the seed of the run that builds upon them.
        runs: folder of run directories.
        place: kind and number of devices, as in a run's name.

    Returns:
        The plan without recipes in its sources, and the runs that they stand for, the deepest first.
    """
    ahead: list[Ahead] = []
    tricks = [_settled(trick, plan, seed, runs, place, ahead) for trick in plan.bag.values()]
    if not any(trick.sources() for trick in tricks):
        return plan, ()
    return replace(plan, recipe=plan.recipe.replace(tricks=Bag(tricks))), tuple(ahead)


def _settled(trick: Trick, plan: Plan, seed: int, runs: Path, place: str, ahead: list[Ahead]) -> Trick:
    found: dict[str, Source] = {}
    for name, source in trick.sources().items():
        if source.recipe is not None:
            own = seed if source.seed is None else source.seed
            recipe = planning.recipe_of(source)
            other, deeper = settle(planning.compile(recipe, plan.facts, place.split()[0]), own, runs, place)
            path = (runs / run_id(other.recipe, plan.facts, own, place)).absolute()
            ahead += [*deeper, Ahead(other, own, runs, path)]
            found[name] = Source(run=str(path), averaged=source.averaged)
    return trick.with_sources(found) if found else trick


def ensure(
    ahead: Ahead, data: DataSet, device: Device, progress: Callable[[Any], None] | None = None
) -> None:
    """Train a run that another builds upon, unless it is finished already.

    Raises:
        Diverged: its loss became NaN or infinite.
    """
    from trickbag.engine.train import train

    result = Run(ahead.path).result()
    if result is None:
        run = train(
            ahead.plan,
            data,
            seed=ahead.seed,
            runs=ahead.runs,
            device=device,
            progress=progress,
            lock_seconds=WAIT,
        )
        result = run.result()
    if device.rank == 0 and (result or {}).get("status") != "finished":
        raise Diverged(
            "training of a run that this one builds upon diverged",
            where=str(ahead.path),
            fix="lower its learning rate, or add or lengthen warmup",
        )


class Knowledge:
    """A trained model at work; see :class:`trickbag.tricks.sources.Upstream`."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        ours: Plan,
        data: DataSet | None,
        device: torch.device,
        name: str = "",
    ) -> None:
        self.model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.model.requires_grad_(False)
        self.name = name
        self._plan, self._ours, self._data = plan, ours, data
        scale, shift = _renormalization(ours, plan)
        self._scale, self._shift = (
            torch.from_numpy(value).to(device)[:, None, None] for value in (scale, shift)
        )
        self._same = bool((scale == 1).all() and (shift == 0).all())

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Its weights by name."""
        state: Mapping[str, Tensor] = self.model.state_dict()
        return state

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """``(batch, classes)`` float32 of images as the run's own model sees them."""
        # Its own normalization may be another one.
        seen = images if self._same else torch.addcmul(self._shift, images, self._scale)
        found: Tensor = self.model(seen)
        return found.float()

    @cached_property
    def _split(self) -> Split:
        assert self._data is not None
        trick = self._ours.target
        pool = self._data.splits[trick.pool] if trick is not None and trick.pool else None
        return joined(self._data.splits["train"], pool)

    def probabilities(self) -> np.ndarray:
        """``(n + pool, classes)`` float32 of the training images and those that would join them."""
        weights = evaluation.Weights(self.model, {})
        readout = evaluation.ReadOut(evaluation.RAW, (), *self._plan.recipe.evaluation)
        return evaluation.probabilities(weights, readout, self._plan, self._split).numpy()

    def features(self) -> np.ndarray:
        """``(n + pool, width)`` float32 of the same images: what the last linear layer sees."""
        seen: list[Tensor] = []
        hook = _head(self.model).register_forward_pre_hook(
            lambda module, given: seen.append(given[0].flatten(1).float().cpu())
        )
        try:
            self.probabilities()
        finally:
            hook.remove()
        return torch.cat(seen).numpy()


def _head(model: nn.Module) -> nn.Module:
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if not layers:
        raise CheckpointError("the model has no linear layer whose input could be its features")
    return layers[-1]


def _renormalization(ours: Plan, theirs: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift a channel that turn our normalized images into theirs: float32."""
    from trickbag.engine.batches import eval_program

    channels = ours.facts.channels
    one, other = (eval_program(plan).floats(channels).astype(np.float64) for plan in (ours, theirs))
    if np.array_equal(one, other):
        return np.ones(channels, np.float32), np.zeros(channels, np.float32)
    scale = (other[:, 255] - other[:, 0]) / (one[:, 255] - one[:, 0])
    return scale.astype(np.float32), (other[:, 0] - scale * one[:, 0]).astype(np.float32)


def upstreams_of(plan: Plan, data: DataSet | None, device: torch.device) -> dict[str, Upstreams]:
    """The trained models that a settled plan's tricks ask for, by kind and setting.

    Predict tricks load theirs when they predict.

    Raises:
        CheckpointError: a run is missing, unfinished or damaged, or weights do not fit.
    """
    return {
        trick.kind: {name: know(source, plan, data, device) for name, source in trick.sources().items()}
        for trick in plan.bag.values()
        if trick.sources() and not trick.passive
    }


def know(source: Source, plan: Plan, data: DataSet | None, device: torch.device) -> Knowledge:
    """The model of one settled source, for a run of ``plan``.

    Raises:
        CheckpointError: as :func:`upstreams_of`.
    """
    if source.run is not None:
        return _of_run(Run(Path(source.run)), source, plan, data, device)
    assert source.model is not None
    from trickbag.tasks.preprocessing import normalized, preprocessing_of

    spec = ModelSpec(name=source.model, weights=source.weights, pretrained=True)
    model = tasks.of(plan.recipe.task).build_model(spec, plan.facts, Stream(0, "upstream"))
    wanted = preprocessing_of(spec)
    recipe = plan.recipe.replace(model=spec, tricks=normalized(wanted))
    theirs = Plan(recipe, plan.facts, plan.timeline)
    return Knowledge(model, theirs, plan, data, device, source.model)


def _of_run(run: Run, source: Source, plan: Plan, data: DataSet | None, device: torch.device) -> Knowledge:
    if (run.result() or {}).get("status") != "finished":
        raise CheckpointError(f"{run.path} is not finished", fix="train it to its end first")
    facts = DataFacts.of(run.about()["facts"])
    theirs = planning.compile(run.recipe(), facts, device.type)
    weights = evaluation.load_weights(run, theirs)
    kind = evaluation.main_readout(theirs).weights if source.averaged else evaluation.RAW
    if kind != evaluation.RAW:
        weights.model.load_state_dict(weights.averages[kind])
    return Knowledge(weights.model, theirs, plan, data, device, f"run {run.id}")
