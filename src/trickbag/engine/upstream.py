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
from trickbag.engine.device import Device
from trickbag.engine.readout import RAW, ReadOut, Weights, load_weights, main_readout, probabilities
from trickbag.engine.run import Run, run_id
from trickbag.engine.targets import joined
from trickbag.errors import CheckpointError, Diverged
from trickbag.functional.layers import last_layers
from trickbag.plan import Plan
from trickbag.recipe.model import ModelSpec
from trickbag.rng import Stream
from trickbag.tricks.base import Bag, Trick
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import ObjectiveTrick

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


def settle(
    plan: Plan, seed: int, runs: Path, place: str, code: str | None = None
) -> tuple[Plan, tuple[Ahead, ...]]:
    """Replace the recipes that tricks build upon by the directories of their runs.

    Args:
        plan: its tricks' sources may hold recipes.
        seed: the seed of the run that builds upon them.
        runs: folder of run directories.
        place: kind and number of devices, as in a run's name.
        code: version of the code that trained the runs; None means the code at hand.

    Returns:
        The plan without recipes in its sources, and the runs that they stand for, the deepest first.
    """
    ahead: list[Ahead] = []
    tricks = [_settled(trick, plan, seed, runs, place, code, ahead) for trick in plan.bag.values()]
    if not any(trick.sources() for trick in tricks):
        return plan, ()
    return replace(plan, recipe=plan.recipe.replace(tricks=Bag(tricks))), tuple(ahead)


def _settled(
    trick: Trick, plan: Plan, seed: int, runs: Path, place: str, code: str | None, ahead: list[Ahead]
) -> Trick:
    found: dict[str, Source] = {}
    for name, source in trick.sources().items():
        if source.recipe is not None:
            own = seed if source.seed is None else source.seed
            recipe = planning.recipe_of(source)
            compiled = planning.compile(recipe, plan.facts, place.split()[0])
            other, deeper = settle(compiled, own, runs, place, code)
            path = (runs / run_id(other.recipe, plan.facts, own, place, code)).absolute()
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
            # Nothing is measured: the test split is not for those who build upon a run.
            splits=(),
            readouts=(),
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

    def check(self, size: int, where: str) -> None:
        """See that it takes images of a size, in pixels, and says something of our classes.

        Raises:
            CheckpointError: it does not; ``where`` says who asks.
        """
        facts = self._ours.facts
        images = torch.zeros(1, facts.channels, size, size, device=self._scale.device)
        try:
            classes = self.logits(images).shape[1]
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            what = f"{self.name} cannot take images of {size} px: {reason}"
            raise CheckpointError(what, where=where, fix="choose another model, or another size") from None
        if classes != facts.num_classes:
            what = f"{self.name} predicts {classes} classes"
            raise CheckpointError(what, where=where, expected=str(facts.num_classes))

    @cached_property
    def _split(self) -> Split:
        assert self._data is not None
        trick = self._ours.target
        pool = self._data.splits[trick.pool] if trick is not None and trick.pool else None
        return joined(self._data.splits["train"], pool)

    def probabilities(self) -> np.ndarray:
        """``(n + pool, classes)`` float32 of the training images and those that would join them."""
        weights = Weights(self.model, {})
        readout = ReadOut(RAW, (), *self._plan.recipe.evaluation)
        return probabilities(weights, readout, self._plan, self._split).numpy()

    def features(self) -> np.ndarray:
        """``(n + pool, width)`` float32 of the same images: what the classifier sees."""
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
    try:
        return model.get_submodule(last_layers(model)[0])
    except ValueError as error:
        raise CheckpointError(f"{error}: nothing whose input could be features") from None


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
    found: dict[str, dict[str, Knowledge]] = {}
    for trick in plan.bag.values():
        for name, source in trick.sources().items() if not trick.passive else ():
            known = know(source, plan, data, device, trick.same_classes)
            found.setdefault(trick.kind, {})[name] = known
            if isinstance(trick, ObjectiveTrick):
                for size in plan.image_sizes:
                    known.check(size, f"trick {trick.kind}, {name}")
    return dict(found)


def know(
    source: Source, plan: Plan, data: DataSet | None, device: torch.device, same_classes: bool = True
) -> Knowledge:
    """The model of one settled source, for a run of ``plan``.

    Args:
        source: a run, or a model.
        plan: of the run that asks.
        data: its images; None if neither probabilities nor features will be asked for.
        device: where to compute.
        same_classes: refuse a file of weights whose classifier does not fit the classes, instead of drawing
            a new one.

    Raises:
        CheckpointError: as :func:`upstreams_of`.
    """
    if source.run is not None:
        return _of_run(Run(Path(source.run)), source, plan, data, device)
    assert source.model is not None
    from trickbag.tasks.preprocessing import normalized, preprocessing_of
    from trickbag.tasks.weights import load_into

    spec = ModelSpec(name=source.model, weights=source.weights, pretrained=True)
    build = tasks.of(plan.recipe.task).build_model
    if source.weights is None:
        model = build(spec, plan.facts, Stream(0, "upstream"))
    else:
        model = build(ModelSpec(name=source.model), plan.facts, Stream(0, "upstream"))
        if not load_into(model, source.weights) and same_classes:
            raise CheckpointError(
                f"the classifier in {source.weights} is not for the {plan.facts.num_classes} classes here",
                fix="fine-tune it in a recipe of its own (model.weights), and name that recipe instead",
            )
    wanted = preprocessing_of(spec)
    # Of a built-in net's file nothing is known: it sees what the run that asks sees.
    tricks = Bag(plan.eval_images) if wanted is None else normalized(wanted)
    theirs = Plan(plan.recipe.replace(model=spec, tricks=tricks), plan.facts, plan.timeline)
    return Knowledge(model, theirs, plan, data, device, source.model)


def _of_run(run: Run, source: Source, plan: Plan, data: DataSet | None, device: torch.device) -> Knowledge:
    if (run.result() or {}).get("status") != "finished":
        raise CheckpointError(f"{run.path} is not finished", fix="train it to its end first")
    facts = DataFacts.of(run.about()["facts"])
    if facts.channels != plan.facts.channels:
        raise CheckpointError(
            f"{run.path} was trained on images of {facts.channels} channels, these have {plan.facts.channels}"
        )
    # A run's recipe is resolved already. What that run itself was built upon may be gone by now.
    recipe = run.reading_recipe()
    theirs = Plan(recipe, facts, planning.Context(recipe, facts, device.type).timeline)
    weights = load_weights(run, theirs)
    kind = main_readout(theirs).weights if source.averaged else RAW
    return Knowledge(weights.loaded(kind), theirs, plan, data, device, f"run {run.id}")
