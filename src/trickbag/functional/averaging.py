"""Averages of a model's weights, as plain dictionaries of tensors, and batch norm's statistics in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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


def rescaled_decay(decay: float, batch_size: int, every: int, epochs: float) -> float:
    """``1 - min(1, (1 - decay) * batch_size * every / epochs)``: a decay an update.

    The average then remembers about ``epochs / (1 - decay)`` images: the same share of a run, whatever its
    batch size, its length and ``every`` are.

    Args:
        decay: for an update after each image of a run of one epoch.
        batch_size: images in a step.
        every: steps between updates.
        epochs: length of the run.

    Source:
        torchvision, references/classification/train.py, ``--model-ema-decay``.
    """
    return 1 - min(1.0, (1 - decay) * (batch_size * every / epochs))


def update_mean(average: dict[str, Tensor], model: nn.Module, count: int) -> None:
    """Add the model to ``average``, the equal mean of ``count`` earlier weights, in place.

    Parameters and float buffers are averaged, integer and bool buffers are copied. At ``count`` 0 the
    average equals the model exactly.

    Args:
        average: name -> tensor, with the names of ``model.state_dict()``.
        model: the model that is being trained; it is not changed.
        count: how many weights the mean is of so far.

    Raises:
        KeyError: ``average`` lacks a tensor of the model.

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, algorithm 1.
    """
    update_average(average, model, count / (count + 1))


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@torch.no_grad()
def reestimate_statistics(model: nn.Module, state: dict[str, Tensor], images: Iterable[Tensor]) -> list[str]:
    """Replace batch norm's running statistics in ``state`` by those of a population of images.

    The images go through the model with the weights of ``state``; each batch norm normalizes by the
    statistics of the batch, all else behaves as ``model`` is set to. The mean and (unbiased) variance
    over all batches follow from those of each: the variance of the batches' means counts too. Without
    batch norm, no image is looked at.

    Args:
        model: gives the computation; its own weights and modes are as before afterwards.
        state: name -> tensor, with the names of ``model.state_dict()``; changed in place.
        images: batches ``(batch, channels, height, width)``, each a random sample (batches of one class
            each would give wrong statistics). A batch of one image is left out, unless it is the first.

    Returns:
        Names of the batch norms.

    Raises:
        ValueError: there is no image.

    Source:
        Wu and Johnson 2021, arXiv:2105.07576, section 3.1 (PreciseBN); Izmailov et al. 2018,
        arXiv:1803.05407, section 3.2.
    """
    norms = batch_norms(model)
    if not norms:
        return []
    moments = {name: _Moments() for name in norms}
    modes = {name: norm.training for name, norm in norms.items()}
    scratch = dict(state)
    for name in norms:
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            if f"{name}.{key}" in scratch:
                scratch[f"{name}.{key}"] = scratch[f"{name}.{key}"].clone()
    hooks = [norm.register_forward_pre_hook(moments[name].see) for name, norm in norms.items()]
    batches = 0
    try:
        for norm in norms.values():
            norm.training = True
        for batch in images:
            if len(batch) > 1 or not batches:
                torch.func.functional_call(model, scratch, (batch,))
                batches += 1
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.training = modes[name]
    if not batches:
        raise ValueError("there is no image to estimate statistics from")
    for name, moment in moments.items():
        if moment.count:
            state[f"{name}.running_mean"].copy_(moment.mean)
            state[f"{name}.running_var"].copy_(moment.squares / max(1, moment.count - 1))
    return list(norms)


class _Moments:
    """Mean and sum of squared deviations, ``(channels,)`` float64, of all values seen."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A forward pre-hook. Chan et al. 1979, equation 2.1."""
        x = inputs[0]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = (t.double() for t in torch.var_mean(values, dim=others, correction=0))
        count = x.numel() // x.shape[1]
        if not self.count:
            self.count, self.mean, self.squares = count, mean, var * count
            return
        total, shift = self.count + count, mean - self.mean
        self.mean = self.mean + shift * (count / total)
        self.squares = self.squares + var * count + shift.square() * (self.count * count / total)
        self.count = total


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
