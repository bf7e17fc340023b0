"""Exponential moving average of a model's weights, kept as a plain dictionary of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Home = Mapping[str, Tensor | None]
Slots = list[tuple[str, Home, str]]

_slots_of: WeakKeyDictionary[nn.Module, Slots | None] = WeakKeyDictionary()


def start_average(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors of ``model.state_dict()``, by name.

    Call it once the model has its final shape: updates expect the same modules.
    """
    _slots_of.pop(model, None)
    return {name: tensor.detach().clone() for name, tensor in _state(model).items()}


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move ``average`` toward the model, in place: ``decay * average + (1 - decay) * model``.

    Parameters and float buffers are averaged, all in one fused call a device and dtype; integer and bool
    buffers (such as batch norm's counter) are copied. At ``decay`` 0 the average equals the model exactly.

    Args:
        average: name -> tensor, with the names of ``model.state_dict()``.
        model: the model that is being trained; it is not changed.
        decay: 0 to 1.

    Raises:
        KeyError: ``average`` lacks a tensor of the model.

    Source:
        Polyak and Juditsky 1992; Szegedy et al. 2016, arXiv:1512.00567, section 8.
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for name, tensor in _state(model).items():
        ours, theirs = groups.setdefault((tensor.device, tensor.dtype), ([], []))
        ours.append(average[name])
        theirs.append(tensor)
    for (_, dtype), (ours, theirs) in groups.items():
        if dtype.is_floating_point or dtype.is_complex:
            torch._foreach_lerp_(ours, theirs, 1 - decay)
        else:
            torch._foreach_copy_(ours, theirs)


def warm_decay(decay: float, updates: int) -> float:
    """``min(decay, (1 + t) / (10 + t))`` after ``t = updates`` earlier updates: short memory at the start."""
    return min(decay, (1 + updates) / (10 + updates))


def _state(model: nn.Module) -> dict[str, Tensor]:
    # Walking the modules takes longer than the average itself, so where each tensor lives is remembered;
    # the tensor is looked up anew each time, since moving a model replaces its buffers.
    if model not in _slots_of:
        _slots_of[model] = _find_slots(model)
    slots = _slots_of[model]
    if slots is None:
        return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: tensor for name, home, key in slots if (tensor := home[key]) is not None}


def _find_slots(model: nn.Module) -> Slots | None:
    homes: dict[int, tuple[Home, str]] = {}
    for module in model.modules():
        for home in (module._parameters, module._buffers):
            homes |= {id(tensor): (home, key) for key, tensor in home.items() if tensor is not None}
    state = model.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if any(id(tensor) not in homes for tensor in tensors.values()):
        return None  # a state-dict hook makes tensors of its own
    return [(name, *homes[id(tensor)]) for name, tensor in tensors.items()]
