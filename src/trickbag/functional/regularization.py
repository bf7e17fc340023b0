"""Layers that leave things out while training: dropout before the classifier, stochastic depth."""

from __future__ import annotations

import re

from torch import Tensor, nn

from trickbag.functional.layers import last_layers
from trickbag.functional.param_groups import is_norm
from trickbag.functional.surgery import CannotOperate

SLOT = re.compile(r"(\w+_)?(drop_path|stochastic_depth)\d*")
"""Attributes in which timm's and torchvision's residual blocks hold their stochastic depth."""


class DropPath(nn.Module):
    """Leaves out a residual branch, for each sample on its own, while training.

    The branch of a sample becomes 0 with probability ``drop_prob``, and is divided by ``1 - drop_prob``
    otherwise, so that its expectation stays what it is in evaluation, where nothing happens. The same
    numbers as timm's ``DropPath`` and torchvision's ``StochasticDepth(mode="row")``.

    Args:
        drop_prob: 0 to less than 1.

    Source:
        Huang et al. 2016, arXiv:1603.09382, section 3; scaled while training, not in evaluation.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        if not 0 <= drop_prob < 1:
            raise ValueError(f"drop_prob must be at least 0 and below 1, not {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, ...)`` to the same shape and dtype."""
        if not self.drop_prob or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)
        return x * mask

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"drop_prob={self.drop_prob:.3f}"


def depth_rates(depth: int, p: float, schedule: str = "linear") -> list[float]:
    """Probabilities with which the residual branches of a net are left out, from input to output.

    Args:
        depth: number of residual blocks L.
        p: probability at the last block.
        schedule: ``"linear"`` from 0 at the first block, p (l - 1) / (L - 1) for l = 1..L, as in timm,
            torchvision and Swin; ``"paper"`` from 0 at the input, p l / L; ``"uniform"`` p everywhere.

    Raises:
        ValueError: no such schedule.

    Source:
        Huang et al. 2016, arXiv:1603.09382, equation 4 (``"paper"``) and figure 2.
    """
    if schedule == "uniform":
        return [p] * depth
    if schedule == "paper":
        return [p * index / depth for index in range(1, depth + 1)]
    if schedule == "linear":
        return [p * index / (depth - 1) for index in range(depth)] if depth > 1 else [p] * depth
    raise ValueError(f"schedule is 'linear', 'paper' or 'uniform', not {schedule!r}")


def stochastic_depth(model: nn.Module, p: float, schedule: str = "linear") -> dict[str, float]:
    """Put a :class:`DropPath` into every residual branch of a model, in place.

    Blocks that foresee it, as those of timm and of torchvision's newer nets do, have attributes called
    ``drop_path``, ``drop_path1``, ``stochastic_depth`` ...: all of one module count as one block, and
    what they hold is replaced. In other residual blocks (the built-in nets', torchvision's ResNets) it
    follows the last batch norm of the branch. Names of parameters and buffers stay as they are.

    Args:
        model: edited in place.
        p: probability at the last block, 0 to less than 1.
        schedule: see :func:`depth_rates`.

    Returns:
        Qualified names of the places, in order, and their probabilities.

    Raises:
        CannotOperate: no residual block is known in this model.

    Source:
        Huang et al. 2016, arXiv:1603.09382, section 3.
    """
    blocks = [(name, m, slots) for name, m in model.named_modules() if (slots := _slots(m))]
    if not blocks:
        raise CannotOperate(f"{type(model).__name__} has no residual block with a known place to drop it")
    found: dict[str, float] = {}
    for (name, block, slots), rate in zip(blocks, depth_rates(len(blocks), p, schedule), strict=True):
        for slot in slots:
            if slot not in block._modules and slot not in vars(block):
                drop = DropPath(rate)
                block.add_module(slot, drop)
                last_norm(block).register_forward_hook(_Follow(drop))
            elif rate or getattr(block, slot) is not None:
                setattr(block, slot, DropPath(rate) if rate else nn.Identity())
            found[f"{name}.{slot}" if name else slot] = rate
    return found


def last_norm(block: nn.Module) -> nn.Module:
    """The norm that ends the residual branch of a ResNet's basic or bottleneck block: ``bn3`` or ``bn2``.

    Raises:
        CannotOperate: the block has none.
    """
    norm = block._modules.get("bn3", block._modules.get("bn2"))
    if norm is None or not is_norm(norm) or not hasattr(block, "conv2") or not hasattr(block, "downsample"):
        raise CannotOperate(f"{type(block).__name__} is not a residual block that ends in a norm")
    return norm


def dropout(model: nn.Module, p: float) -> list[str]:
    """Put dropout before the classifier of a model, or before each of several, in place.

    The classifier gets a child called ``dropout`` that acts on its input; the names of its parameters
    stay as they are.

    Args:
        model: edited in place; its classifier is what ``pretrained_cfg`` calls so, else its last layer.
        p: probability with which an input of the classifier is set to 0; the others are divided by 1 - p.

    Returns:
        Names of the classifiers.

    Raises:
        CannotOperate: the model does not end in a linear layer and names no classifier.

    Source:
        Srivastava et al. 2014, Dropout, section 4, at the last layer alone, as in timm's ``drop_rate``.
    """
    try:
        names = last_layers(model)
    except ValueError as error:
        raise CannotOperate(str(error)) from None
    listed = bool((getattr(model, "pretrained_cfg", None) or {}).get("classifier"))
    if not listed and not isinstance(model.get_submodule(names[0]), nn.Linear):
        raise CannotOperate(f"{type(model).__name__} does not end in a linear classifier")
    for name in names:
        layer = model.get_submodule(name)
        if "dropout" not in layer._modules:
            layer.register_forward_pre_hook(_drop_input)
        layer.add_module("dropout", nn.Dropout(p))
    return names


class _Follow:
    """A forward hook that passes the output through a module; copied along with the model."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        dropped: Tensor = self.module(output)
        return dropped


def _drop_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    drop = layer.get_submodule("dropout")
    return (drop(inputs[0]), *inputs[1:])


def _slots(block: nn.Module) -> list[str]:
    """Names of the attributes of a module that hold, or are to hold, stochastic depth."""
    known = {name: value for name, value in vars(block).items() if value is None} | block._modules
    kinds = ("NoneType", "Identity", "DropPath", "StochasticDepth")
    slots = [n for n, value in known.items() if SLOT.fullmatch(n) and type(value).__name__ in kinds]
    if slots:
        return slots
    try:
        last_norm(block)
    except CannotOperate:
        return []
    return ["drop_path"]
