"""Recipe + facts of the data -> Plan: resolved, checked and ordered, or every conflict at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trickbag import interactions
from trickbag.data.base import DataFacts
from trickbag.errors import PlanError, Problem, TrickbagError
from trickbag.recipe.model import ModelSpec, Recipe
from trickbag.rng import Stream
from trickbag.tricks.base import Bag
from trickbag.tricks.stages import (
    CropTrick,
    FreezeTrick,
    GradientTrick,
    ImageTrick,
    LossTrick,
    MicroBatchTrick,
    MixControlTrick,
    MixTrick,
    ModelTrick,
    ObjectiveTrick,
    OptimizerTrick,
    ParamGroup,
    ParamGroupTrick,
    PrecisionTrick,
    PredictTrick,
    ResolutionTrick,
    SamplerTrick,
    ScheduleTrick,
    StepTrick,
    StopTrick,
    TargetTrick,
    Timeline,
    WeightsTrick,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbag.tasks.preprocessing import Preprocessing
    from trickbag.tricks.base import Trick
    from trickbag.tricks.sources import Source
    from trickbag.tricks.stages import Loss, Objective, Upstreams


@dataclass(frozen=True)
class Context:
    """What a trick may look at when it resolves or checks itself.

    Attributes:
        recipe: the recipe as written.
        facts: facts of the data.
        device_type: ``"cpu"`` or ``"cuda"``.
    """

    recipe: Recipe
    facts: DataFacts
    device_type: str = "cpu"

    @cached_property
    def timeline(self) -> Timeline:
        """Length of the run in steps; an incomplete last batch of an epoch is dropped, never the only one."""
        per_epoch = max(1, self.facts.sizes["train"] // self.recipe.batch_size)
        steps = max(1, math.ceil(self.recipe.epochs * per_epoch - 1e-9))
        timeline = Timeline(steps, per_epoch, 0, self.recipe.batch_size)
        warmup = sum(t.warmup_steps(timeline) for t in self.recipe.tricks.of(ScheduleTrick))
        return Timeline(steps, per_epoch, warmup, self.recipe.batch_size)

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """Mean, std, sizes and interpolation that belong to pretrained weights; None without any."""
        from trickbag.tasks.preprocessing import preprocessing_of

        return preprocessing_of(self.recipe.model) if self.recipe.model.starts_pretrained else None

    @cached_property
    def model(self) -> nn.Module:
        """The model on the meta device, before any trick has edited it. Look, do not touch."""
        from trickbag import tasks

        build = tasks.of(self.recipe.task).build_model
        return build(self.recipe.model, self.facts, Stream(0, "init"), "meta")

    def upstream_model(self, source: Source) -> nn.Module:
        """The model of a source on the meta device, as its own recipe edits it.

        Raises:
            TrickbagError, OSError, ValueError: there is none.
        """
        if source.model is not None:
            spec = ModelSpec(name=source.model, weights=source.weights, pretrained=True)
            other, facts = self.recipe.replace(model=spec, tricks=Bag()), self.facts
        elif source.run is not None:
            from trickbag.recipe.read import load

            other = load(Path(source.run) / "recipe.yaml")
            other = other.without(*(t.kind for t in other.tricks.values() if t.sources()))
            facts = DataFacts.of(json.loads((Path(source.run) / "run.json").read_text())["facts"])
        else:
            other, facts = recipe_of(source), self.facts
        compiled = compile(other, facts, self.device_type).recipe
        return Plan(compiled, facts, self.timeline).build_model(Stream(0), "meta")


@dataclass(frozen=True)
class Plan:
    """One program: what the engine executes, in the order in which it does so.

    Attributes:
        recipe: the recipe with every trick resolved.
        facts: facts of the data.
        timeline: length of the run.
        notes: things worth telling the user.
    """

    recipe: Recipe
    facts: DataFacts
    timeline: Timeline
    notes: tuple[str, ...] = ()

    @property
    def bag(self) -> Bag:
        """The resolved tricks."""
        return self.recipe.tricks

    @cached_property
    def crop(self) -> CropTrick | None:
        """Chooses training crops; None means the largest centered square."""
        return next(iter(self.bag.of(CropTrick)), None)

    @cached_property
    def train_images(self) -> tuple[ImageTrick, ...]:
        """What happens to training images."""
        return self.bag.of(ImageTrick)

    @cached_property
    def eval_images(self) -> tuple[ImageTrick, ...]:
        """What happens to every image, also when predicting."""
        return tuple(t for t in self.bag.of(ImageTrick) if not t.training_only)

    @cached_property
    def target(self) -> TargetTrick | None:
        """Chooses what is learned about each image; None means the labels."""
        return next(iter(self.bag.of(TargetTrick)), None)

    @cached_property
    def samplers(self) -> tuple[SamplerTrick, ...]:
        """What makes up an epoch."""
        return self.bag.of(SamplerTrick)

    @cached_property
    def mix(self) -> tuple[MixTrick, ...]:
        """What combines images and targets."""
        return self.bag.of(MixTrick)

    @cached_property
    def mix_controls(self) -> tuple[MixControlTrick, ...]:
        """What says which mixes act."""
        return self.bag.of(MixControlTrick)

    @cached_property
    def freezes(self) -> tuple[FreezeTrick, ...]:
        """What keeps parts of the model as they are."""
        return self.bag.of(FreezeTrick)

    @cached_property
    def step(self) -> StepTrick | None:
        """Computes gradients in its own way; None means one pass."""
        return next(iter(self.bag.of(StepTrick)), None)

    @cached_property
    def models(self) -> tuple[ModelTrick, ...]:
        """What edits the model."""
        return self.bag.of(ModelTrick)

    @cached_property
    def gradients(self) -> tuple[GradientTrick, ...]:
        """What changes gradients."""
        return self.bag.of(GradientTrick)

    @cached_property
    def weights(self) -> tuple[WeightsTrick, ...]:
        """Averages kept beside the raw weights."""
        return self.bag.of(WeightsTrick)

    @cached_property
    def predict(self) -> tuple[PredictTrick, ...]:
        """What changes predictions."""
        return self.bag.of(PredictTrick)

    @cached_property
    def stops(self) -> tuple[StopTrick, ...]:
        """What may end training early."""
        return self.bag.of(StopTrick)

    @cached_property
    def schedules(self) -> tuple[ScheduleTrick, ...]:
        """What multiplies the learning rate."""
        return self.bag.of(ScheduleTrick)

    @cached_property
    def optimizer(self) -> OptimizerTrick:
        """The optimizer; an empty slot means plain SGD."""
        from trickbag.tricks.optimization import DEFAULT

        return next(iter(self.bag.of(OptimizerTrick)), DEFAULT)

    @property
    def precision(self) -> str:
        """Arithmetic, in Lightning Fabric's words."""
        return next((t.precision() for t in self.bag.of(PrecisionTrick)), "32-true")

    def learning_rate(self, step: int) -> float:
        """Learning rate of the update numbered ``step`` (from 0)."""
        factors = (t.factor(step, self.timeline) for t in self.schedules)
        return self.optimizer.lr * math.prod(factors)

    def momentum(self, step: int) -> float | None:
        """Momentum (or first beta) of the update numbered ``step`` if a schedule sets it."""
        found = (trick.momentum(step, self.timeline) for trick in self.schedules)
        return next((value for value in found if value is not None), None)

    def image_size(self, step: int) -> int:
        """Height and width of the training images of the update numbered ``step`` (from 0), in pixels."""
        size = self.recipe.image_size
        for trick in self._resolution:
            size = trick.size(step, self.timeline, size)
        return size

    @cached_property
    def image_sizes(self) -> tuple[int, ...]:
        """Every size that training images have at some time, the smallest first."""
        epochs = range(0, self.timeline.steps, self.timeline.steps_per_epoch)
        return tuple(sorted({self.image_size(step) for step in epochs}))

    @cached_property
    def _resolution(self) -> tuple[ResolutionTrick, ...]:
        return self.bag.of(ResolutionTrick)

    def parts(self, images: int) -> int:
        """Number of parts in which a process's share of ``images`` goes through the model."""
        return next((trick.parts(images) for trick in self._micro_batch), 1)

    @cached_property
    def _micro_batch(self) -> tuple[MicroBatchTrick, ...]:
        return self.bag.of(MicroBatchTrick)

    def build_model(self, stream: Stream, device: str = "cpu") -> nn.Module:
        """The edited model with initial weights, which depend on ``stream`` alone."""
        from trickbag import tasks

        init = stream.child("init")
        model = tasks.of(self.recipe.task).build_model(self.recipe.model, self.facts, init, device)
        for trick in self.models:
            model = trick.edit(model, init.child(trick.kind))
        return model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's parameter groups."""
        groups = parameter_groups(model, self.bag.of(ParamGroupTrick))
        return self.optimizer.build(self.optimizer.groups(model, groups))

    def loss(self) -> Loss:
        """The wrapped loss over dense targets."""
        from trickbag import tasks

        loss: Loss = tasks.of(self.recipe.task).loss
        for trick in self.bag.of(LossTrick):
            loss = trick.wrap(loss)
        return loss

    def objective(self, upstreams: Mapping[str, Upstreams]) -> Objective:
        """What is minimized.

        Args:
            upstreams: the trained models that tricks ask for, by kind and setting.
        """
        loss = self.loss()
        trick = next(iter(self.bag.of(ObjectiveTrick)), None)
        if trick is not None:
            return trick.objective(loss, upstreams.get(trick.kind, {}))

        def plain(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
            return loss(logits, targets)

        return plain


def parameter_groups(model: nn.Module, tricks: tuple[ParamGroupTrick, ...] = ()) -> list[ParamGroup]:
    """Trainable parameters in one group with their names, then split by ``tricks``."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[ParamGroup] = [{"params": [p for _, p in named], "names": [name for name, _ in named]}]
    for trick in tricks:
        groups = trick.groups(model, groups)
    return [group for group in groups if group["params"]]


MOST_DEEP = 8
"""Recipes that may build upon each other."""


def compile(
    recipe: Recipe, facts: DataFacts, device_type: str = "cpu", *, probe: bool = True, depth: int = 0
) -> Plan:
    """Resolve, check and order a recipe for a data set.

    Args:
        recipe: what to train.
        facts: facts of the data.
        device_type: ``"cpu"`` or ``"cuda"``.
        probe: also build the model on the meta device, edit it and pass one image through it. Needs
            torch; without it only conflicts that need no model are found.
        depth: how many recipes build upon this one.

    Raises:
        PlanError: with every conflict found.
    """
    problems = [*_bag_problems(recipe.tricks), *_budget_problems(recipe, facts)]
    if not probe:
        problems += interactions.errors(recipe.tricks)
    notes: list[str] = []
    context = Context(recipe, facts, device_type)
    if probe:
        try:
            _ = context.model, context.preprocessing
        except TrickbagError as error:
            raise PlanError((*problems, *error.problems)) from None
        tricks = [trick.resolve(context) for trick in recipe.tricks.values()]
        recipe = recipe.replace(tricks=Bag(tricks))
        for trick in tricks:
            problems += trick.check(context)
            problems += _source_problems(trick, context, depth)
            notes += (f"{trick.kind}: {note}" for note in trick.notes(context))
            notes += (f"{trick.kind}: {note}" for note in _source_notes(trick, facts))
        resolved = Context(recipe, facts, device_type)
        problems += interactions.errors(recipe.tricks, resolved)
        notes += interactions.notes(recipe.tricks, resolved)
        notes += _preprocessing_notes(recipe, context.preprocessing)
    plan = Plan(recipe, facts, context.timeline, tuple(notes))
    if probe:
        problems += _model_problems(plan, {p.where for p in problems})
    if problems:
        raise PlanError(problems)
    return plan


def recipe_of(source: Source) -> Recipe:
    """The recipe that a source names or holds.

    Raises:
        RecipeError: there is none, or it is wrong.
    """
    from trickbag.recipe.read import load, read_plain

    if isinstance(source.recipe, dict):
        return read_plain(source.recipe, set_=source.set)
    assert source.recipe is not None
    return load(source.recipe, set_=source.set)


def whole(recipe: Recipe, depth: int = 0) -> Recipe:
    """The recipe with those that its tricks build upon written out instead of named.

    A circle of recipes stays named from some depth on, for a plan to refuse.

    Raises:
        RecipeError: one of them cannot be read.
    """
    tricks = []
    for trick in recipe.tricks.values():
        named = {n: s for n, s in trick.sources().items() if isinstance(s.recipe, str) and depth <= MOST_DEEP}
        full = {
            name: source.model_copy(update={"recipe": whole(recipe_of(source), depth + 1).data(), "set": ()})
            for name, source in named.items()
        }
        tricks.append(trick.with_sources(full) if full else trick)
    return recipe.replace(tricks=Bag(tricks))


def _source_problems(trick: Trick, context: Context, depth: int) -> Iterator[Problem]:
    """What keeps the models that a trick builds upon from being trained or used."""
    from trickbag import tasks

    for name, source in trick.sources().items():
        where = f"trick {trick.kind}, {name}"
        if source.recipe is not None:
            if depth >= MOST_DEEP:
                fix = "break the circle of recipes that build upon each other"
                yield Problem(f"more than {MOST_DEEP} recipes build upon each other", where, fix=fix)
                continue
            try:
                compile(recipe_of(source), context.facts, context.device_type, depth=depth + 1)
            except TrickbagError as error:
                for p in error.problems:
                    yield Problem(p.what, f"{where}: {p.where}" if p.where else where, p.expected, p.fix)
        elif source.run is not None:
            yield from _run_problems(Path(source.run), trick, where, context.facts)
        elif source.weights is not None and not Path(source.weights).is_file():
            yield Problem(f"there is no file {source.weights}", where, fix="check the path")
        elif source.model is not None:
            spec = ModelSpec(name=source.model, weights=source.weights, pretrained=True)
            build = tasks.of(context.recipe.task).build_model
            try:
                build(spec, context.facts, Stream(0, "upstream"), "meta")
            except TrickbagError as error:
                for p in error.problems:
                    yield Problem(p.what, where, p.expected, p.fix)


def _run_problems(path: Path, trick: Trick, where: str, facts: DataFacts) -> Iterator[Problem]:
    """What keeps a finished run from being built upon."""
    try:
        theirs = DataFacts.of(json.loads((path / "run.json").read_text(encoding="utf-8"))["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        yield Problem(f"{path} is not a run", where, "the directory of a finished run")
        return
    try:
        status = json.loads((path / "result.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError):
        status = "not finished"
    if status != "finished":
        what = f"{path} {'has diverged' if status == 'diverged' else 'is not finished'}"
        yield Problem(what, where, fix="train it to its end first")
    elif theirs.channels != facts.channels:
        what = f"{path} was trained on images of {theirs.channels} channels, these have {facts.channels}"
        yield Problem(what, where)
    elif trick.same_classes and tuple(theirs.classes) != tuple(facts.classes):
        what = f"{path} was trained on other classes: {', '.join(theirs.classes[:8])}"
        yield Problem(what, where, expected=", ".join(facts.classes[:8]))


def _source_notes(trick: Trick, facts: DataFacts) -> Iterator[str]:
    """Runs on other images, or other splits, may have seen what this one is measured on."""
    for name, source in trick.sources().items():
        try:
            about = json.loads((Path(source.run or "") / "run.json").read_text(encoding="utf-8"))
            other = about["facts"]["fingerprint"] != facts.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if other:
            yield (
                f"{name} was trained on other data or splits: it may have seen images that are held out here"
            )


def conflicts(bag: Bag) -> tuple[Problem, ...]:
    """Slots filled twice, missing requirements and exclusions among the tricks of a bag."""
    return (*_bag_problems(bag), *interactions.errors(bag))


def _bag_problems(bag: Bag) -> Iterator[Problem]:
    slots: dict[str, list[str]] = {}
    for kind, trick in bag.items():
        if trick.slot:
            slots.setdefault(trick.slot, []).append(kind)
        for needed in trick.requires:
            if needed not in bag:
                yield Problem(f"needs {needed}", f"trick {kind}", fix=f"add it: --with {needed}")
    for slot, kinds in slots.items():
        if len(kinds) > 1:
            fix = "keep one: " + " or ".join(f"--without {kind}" for kind in kinds)
            yield Problem(f"{' and '.join(kinds)} both fill the slot {slot!r}", "recipe", fix=fix)


def _budget_problems(recipe: Recipe, facts: DataFacts) -> Iterator[Problem]:
    count = facts.sizes["train"]
    if recipe.batch_size > count:
        yield Problem(
            f"batch_size {recipe.batch_size} is more than the {count} training images",
            "recipe",
            fix=f"--set batch_size={max(1, count // 4)}",
        )
    resize, crop = recipe.evaluation
    if resize < crop:
        yield Problem(
            f"eval_resize {resize} is smaller than the crop of {crop} px taken from it",
            "recipe",
            expected=f"eval_resize of at least {crop}",
        )


def _preprocessing_notes(recipe: Recipe, wanted: Preprocessing | None) -> Iterator[str]:
    """Where a recipe feeds pretrained weights other images than they were trained on."""
    if wanted is None:
        return
    if wanted.interpolation != recipe.interpolation:
        yield f"the weights expect {wanted.interpolation} interpolation, not {recipe.interpolation}"
    if all(trick.training_only for trick in recipe.tricks.of(ImageTrick)):
        yield f"the weights expect images normalized by {wanted.mean} and {wanted.std}: add normalize"


def _model_problems(plan: Plan, known: set[str | None]) -> Iterator[Problem]:
    """Edit and run the model on the meta device; tricks that already have a problem are left out."""
    import torch

    from trickbag import tasks

    spec = plan.recipe.model
    init = Stream(0, "init")
    model = tasks.of(plan.recipe.task).build_model(spec, plan.facts, init, "meta")
    for trick in plan.bag.of(ModelTrick):
        if f"trick {trick.kind}" in known:
            continue
        try:
            model = trick.edit(model, init.child(trick.kind))
        except TrickbagError as error:
            for p in error.problems:
                fix = p.fix or f"remove it: --without {trick.kind}"
                yield Problem(p.what, f"trick {trick.kind}", p.expected, fix)
    smallest = plan.recipe.batch_size // plan.parts(plan.recipe.batch_size)
    batch = min(2, smallest)  # batch norm cannot train on a single value a channel
    sizes = {"recipe, image_size": plan.recipe.image_size, "recipe, eval_size": plan.recipe.evaluation[1]}
    sizes |= {f"trick {t.kind}": plan.image_sizes[0] for t in plan.bag.of(ResolutionTrick)}
    for where, size in sizes.items():
        model.train(where != "recipe, eval_size")
        image = torch.empty(batch, plan.facts.channels, size, size, device="meta")
        try:
            with torch.no_grad():
                out = model(image)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            yield Problem(
                f"model {spec.name} cannot take images of {size} px: {reason}",
                where,
                fix="choose another size, a larger batch, or a model made for it (see `trickbag recipes`)",
            )
            return
        shape = tuple(getattr(out, "shape", ()))
        if shape != (batch, plan.facts.num_classes):
            yield Problem(
                f"model {spec.name} returns {shape}, not ({batch}, {plan.facts.num_classes})", "recipe, model"
            )
            return
