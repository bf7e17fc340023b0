"""Starting from the weights of another model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trickbag.functional.layers import first_layer, last_layers

HEADS = ("fit", "keep", "new")


def inherit(
    model: nn.Module, state: Mapping[str, Tensor], *, head: str = "fit", partial: bool = False
) -> list[str]:
    """Copy weights and buffers of another model, by name, in place.

    A first convolution for another number of channels is adapted, see :func:`adapt_channels`. Shapes are
    looked at before anything is written, and nothing is written from or to the meta device: models there
    tell whether weights would fit.

    Args:
        model: takes the weights.
        state: names and tensors of the other model.
        head: what becomes of the classifiers (:func:`trickbag.functional.layers.last_layers`): ``"fit"``
            takes them from ``state`` if it has them in the same shape, ``"keep"`` insists on it, ``"new"``
            leaves the model's own.
        partial: True to take what fits and leave the rest of the model as it is.

    Returns:
        Names of the tensors that are taken.

    Raises:
        ValueError: names or shapes differ; with ``partial``, if nothing fits.
    """
    if head not in HEADS:
        raise ValueError(f"head is {head!r}; expected one of {', '.join(HEADS)}")
    target = model.state_dict()
    stem = f"{first_layer(model)[0]}.weight"

    def fits(name: str) -> bool:
        if name not in state:
            return False
        one, other = state[name].shape, target[name].shape
        return one == other or (name == stem and _adaptable(one, other))

    prefixes = tuple(f"{name}." for name in last_layers(model))
    heads = [name for name in target if name.startswith(prefixes)]
    body = [name for name in target if name not in heads]
    taken = [name for name in body if fits(name)]
    missing = _weights(name for name in body if name not in state)
    unlike = _weights(name for name in body if name in state and not fits(name))
    extra = _weights(name for name in state if name not in target and not name.startswith(prefixes))
    if not _weights(taken) or (not partial and (missing or unlike or extra)):
        raise ValueError(_difference({"missing": missing, "of another shape": unlike, "unknown": extra}))
    agree = bool(heads) and all(fits(name) for name in heads)
    if head == "keep" and not agree:
        raise ValueError(_difference({"of another shape": [name for name in heads if not fits(name)]}))
    if agree and head != "new":
        taken += heads
    with torch.no_grad():
        for name in taken:
            value, own = state[name], target[name]
            if not (value.is_meta or own.is_meta):
                own.copy_(value if value.shape == own.shape else adapt_channels(value, own.shape[1]))
    return taken


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution for gray images from one for color ones, or the other way round.

    Either answers a gray picture, shown in three equal channels or in one, as the other does.

    Args:
        weight: ``(out, in, height, width)``.
        channels: 1, or any number if ``in`` is 1.

    Returns:
        ``(out, channels, height, width)``: the sum over the channels, or equal shares.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return (weight / channels).expand(-1, channels, -1, -1)


def _adaptable(one: torch.Size, other: torch.Size) -> bool:
    alike = len(one) == len(other) == 4 and (one[0], *one[2:]) == (other[0], *other[2:])
    return alike and 1 in (one[1], other[1])


def _weights(names: Iterable[str]) -> list[str]:
    """Without the counters of batch norms, which not every file has."""
    return [name for name in names if not name.endswith("num_batches_tracked")]


def _difference(groups: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in groups.items()
        if names
    )
