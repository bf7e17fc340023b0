"""Which part of a model is trained, and keeping the rest as it is."""

from __future__ import annotations

from torch import nn

from trickbag.functional.layers import last_layers
from trickbag.functional.param_groups import is_norm

PARTS = ("head", "head_and_norm", "all")
_SHORTCUTS = ("downsample", "shortcut")


def last_norms(model: nn.Module) -> list[str]:
    """Names of the normalization layers that come last, before the global pooling; empty without any.

    They are two where the last residual block projects its shortcut, else one. Of a transformer it is the
    one before the classifier.
    """
    norms = [name for name, module in model.named_modules() if is_norm(module)]
    if not norms:
        return []
    parts = norms[-1].split(".")
    cut = next((place for place, part in enumerate(parts) if part in _SHORTCUTS), None)
    if cut is None:
        return norms[-1:]
    block, shortcut = ".".join([*parts[:cut], ""]), ".".join([*parts[: cut + 1], ""])
    branch = [name for name in norms if name.startswith(block) and not name.startswith(shortcut)]
    return [*branch[-1:], norms[-1]]


def split_frozen(
    model: nn.Module, train: str = "head", statistics: bool = False
) -> tuple[set[str], set[str]]:
    """What stays as it is while a part of a model is trained.

    Args:
        model: is only looked at.
        train: ``"head"`` for the classifiers (see :func:`trickbag.functional.layers.last_layers`);
            ``"head_and_norm"`` for them and :func:`last_norms`; ``"all"`` for everything.
        statistics: whether batch norms of the frozen part go on to normalize by the batch and to update
            their running statistics.

    Returns:
        Names of the frozen parameters, and names of the normalization layers that behave as in evaluation.

    Raises:
        ValueError: no such part, or the model does not have it.

    Source:
        Touvron et al. 2019, arXiv:1906.06423, section 4.2 ("Fine-tuning"), for ``"head_and_norm"``.
    """
    if train not in PARTS:
        raise ValueError(f"train is {train!r}; expected one of {', '.join(PARTS)}")
    if train == "all":
        return set(), set()
    trained = list(last_layers(model))
    if train == "head_and_norm":
        norms = last_norms(model)
        if not norms:
            raise ValueError(f"{type(model).__name__} has no normalization layer")
        trained += norms

    def is_trained(name: str) -> bool:
        return any(not part or name == part or name.startswith(f"{part}.") for part in trained)

    frozen = {name for name, _ in model.named_parameters() if not is_trained(name)}
    if not frozen:
        raise ValueError(f"{type(model).__name__} has nothing but what would be trained")
    quiet = {
        name
        for name, module in model.named_modules()
        if is_norm(module) and module._buffers.get("running_mean") is not None and not is_trained(name)
    }
    return frozen, set() if statistics else quiet


def freeze(model: nn.Module, train: str = "head", statistics: bool = False) -> list[str]:
    """Freeze all but a part of a model, in place; call it after ``model.train()``.

    Frozen parameters want no gradients and have none, so no optimizer of torch changes them.

    Args:
        model: to be trained.
        train, statistics: as in :func:`split_frozen`.

    Returns:
        Names of the parameters that are left to train.

    Raises:
        ValueError: as :func:`split_frozen`.
    """
    frozen, quiet = split_frozen(model, train, statistics)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
    for name in quiet:
        model.get_submodule(name).eval()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
