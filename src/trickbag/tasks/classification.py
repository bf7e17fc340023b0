"""Image classification: models (built-in nets and timm's), dense targets, soft cross entropy, metrics."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trickbag.errors import CheckpointError, PlanError, nearest
from trickbag.tasks.metrics import PRIMARY, classification_metrics

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trickbag.data.base import DataFacts
    from trickbag.recipe.model import ModelSpec
    from trickbag.rng import Stream

_DERIVED = {
    "num_classes": "it follows from the data",
    "in_chans": "it follows from the data",
    "pretrained": "it is a setting of the model itself",
    "checkpoint_path": "give model.weights",
}

primary = PRIMARY
metrics = classification_metrics


def targets(labels: Tensor, num_classes: int) -> Tensor:
    """Dense float32 targets ``(batch, classes)`` from int64 labels ``(batch,)``."""
    from torch.nn.functional import one_hot

    return one_hot(labels, num_classes).float()


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Soft cross entropy ``(batch,)`` of logits and dense targets, both ``(batch, classes)``."""
    from trickbag.functional.losses import soft_cross_entropy

    return soft_cross_entropy(logits, targets)


def build_model(
    spec: ModelSpec, facts: DataFacts, stream: Stream, device: str | torch.device = "cpu"
) -> nn.Module:
    """The network that ``spec`` names, for the classes and channels of the data.

    Random values depend on ``stream`` alone: torch's global generator is neither read nor moved. timm
    zeroes the last batch norm of residual branches by default; here that is a trick (``zero_gamma``), so
    they start at 1 unless ``options`` sets ``zero_init_last``. A pretrained model keeps its classifier
    if the number of classes is the same; otherwise a new one is drawn from ``stream.child("head")``.

    Args:
        spec: which network and where its weights come from.
        facts: number of classes and channels.
        stream: source of random values.
        device: ``"meta"`` gives shapes only: nothing is drawn, downloaded or read.

    Raises:
        PlanError: no such model, an option that it does not take, or no pretrained weights of that name.
        CheckpointError: the weights cannot be downloaded, read, or do not fit.
    """
    import torch

    from trickbag.tasks.nets import NETS

    builtin = spec.name in NETS
    for name in spec.options:
        if name in _DERIVED:
            reason = _DERIVED[name]
            raise PlanError(
                f"{name} is not an option: {reason}", where="recipe, model.options", fix="remove it"
            )
    if not builtin:
        _check_timm_name(spec)
    elif spec.pretrained and spec.weights is None:
        raise PlanError(
            f"the built-in net {spec.name} has no pretrained weights to download",
            where="recipe, model",
            fix="give a file (model.weights), or set pretrained: false",
        )
    build = _build_builtin if builtin else _build_timm
    if torch.device(device).type == "meta":
        with _seeded(stream), torch.device("meta"):
            return build(spec, facts.num_classes, facts.channels)
    if not spec.starts_pretrained:
        with _seeded(stream):
            model = build(spec, facts.num_classes, facts.channels)
        if "zero_init_last" not in spec.options:
            _undo_zero_gamma(model)
    elif spec.weights is not None:
        from trickbag.tasks.weights import load_into

        with _seeded(stream):
            model = build(spec, facts.num_classes, facts.channels)
        if not load_into(model, spec.weights):
            _new_head(model, facts.num_classes, stream)
    else:
        model = _download(spec, facts, stream)
    return model.to(device)


def _download(spec: ModelSpec, facts: DataFacts, stream: Stream) -> nn.Module:
    try:
        with _seeded(stream):
            model = _create(spec, pretrained=True, in_chans=facts.channels)
    except PlanError:
        raise
    except Exception as error:  # timm, the hub and its transport each raise their own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"cannot download the pretrained weights of {spec.name}: {reason}",
            where="recipe, model",
            fix="check the connection, or download them elsewhere and give the file: model.weights",
        ) from None
    if model.num_classes != facts.num_classes:
        _new_head(model, facts.num_classes, stream)
    return model


def _new_head(model: nn.Module, num_classes: int, stream: Stream) -> None:
    """A new classifier, drawn as torch draws linear layers.

    Some of timm's constructors scale it by the number of outputs instead: with two classes and 1,280
    features the first logits are then in the tens, and fine-tuning wrecks the weights below.
    """
    with _seeded(stream.child("head")):
        model.reset_classifier(num_classes)  # type: ignore[operator]


def _build_builtin(spec: ModelSpec, num_classes: int, in_chans: int) -> nn.Module:
    from inspect import signature

    from trickbag.tasks.nets import NETS

    builder = NETS[spec.name]
    known = [name for name in signature(builder).parameters if name not in ("num_classes", "in_chans")]
    for name in spec.options:
        if name not in known:
            raise _no_option(spec.name, name, known)
    try:
        return builder(num_classes=num_classes, in_chans=in_chans, **spec.options)
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"model {spec.name} does not accept its options: {error}", where="recipe, model"
        ) from None


def _build_timm(spec: ModelSpec, num_classes: int, in_chans: int) -> nn.Module:
    return _create(spec, num_classes=num_classes, in_chans=in_chans)


def _create(spec: ModelSpec, **arguments: Any) -> nn.Module:
    import timm

    try:
        options: dict[str, Any] = {**spec.options, **arguments}
        model: nn.Module = timm.create_model(spec.name, **options)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        text = str(error).split("\n")[0]
        if "unexpected keyword argument" in text or "multiple values" in text:
            name = text.split("'")[1] if "'" in text else text
            raise _no_option(spec.name, name, ()) from None
        if not spec.options:
            raise
        raise PlanError(
            f"model {spec.name} does not accept its options: {text}", where="recipe, model"
        ) from None
    return model


def _no_option(model: str, option: str, known: list[str] | tuple[()]) -> PlanError:
    near = nearest(option, known)
    return PlanError(
        f"model {model} does not take the option {option!r}",
        where="recipe, model.options",
        expected=", ".join(known) or None,
        fix=f"did you mean {near}?" if near else "remove it",
    )


def _check_timm_name(spec: ModelSpec) -> None:
    import timm

    from trickbag.tasks.nets import NETS

    where = "recipe, model"
    architecture, _, tag = spec.name.partition(".")
    if not timm.is_model(architecture):
        import difflib

        known = [*NETS, *timm.list_models()]
        near = difflib.get_close_matches(spec.name.lower(), known, n=3, cutoff=0.5)
        raise PlanError(
            f"no model is called {spec.name!r}",
            where=where,
            expected=f"a built-in net ({', '.join(NETS)}) or a model of timm",
            fix=f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists timm's",
        )
    tagged = timm.list_pretrained(architecture)
    if tag and spec.name not in timm.list_pretrained(f"{architecture}.*"):
        near = [
            name
            for name in timm.list_pretrained(f"{architecture}*")
            if name.partition(".")[0] == architecture
        ]
        raise PlanError(
            f"{architecture} has no pretrained weights called {tag!r}",
            where=where,
            expected=", ".join(near) or "no tag",
        )
    if spec.pretrained and spec.weights is None and not tagged:
        raise PlanError(
            f"timm has no pretrained weights for {spec.name}",
            where=where,
            fix="give a file (model.weights), or set pretrained: false",
        )


def _undo_zero_gamma(model: nn.Module) -> None:
    from torch import nn

    from trickbag.functional.initialization import zero_gamma

    for name in zero_gamma(model):
        nn.init.ones_(model.get_parameter(name))


@contextmanager
def _seeded(stream: Stream) -> Iterator[None]:
    """Let what draws from torch's global generator draw from ``stream``, quietly, and put it back after."""
    import torch

    logger = logging.getLogger("timm")
    level = logger.level
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        torch.default_generator.manual_seed(stream.key())
        try:
            yield
        finally:
            logger.setLevel(level)
