"""Initial values: Xavier, He, truncated normal, and zero gamma."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from trickbag.functional.param_groups import is_norm

Generators = Callable[[str], torch.Generator]
"""Name of a module -> CPU generator of its own."""


def fill(tensor: Tensor, draw: Callable[[Tensor], object]) -> None:
    """Fill ``tensor`` in place with what ``draw`` puts into a CPU tensor of its shape and dtype.

    The values do not depend on the device; on the meta device nothing is drawn.
    """
    if tensor.is_meta:
        return
    values = torch.empty(tensor.shape, dtype=tensor.dtype)
    draw(values)
    with torch.no_grad():
        tensor.copy_(values)


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every convolution (also transposed) and linear layer with its qualified name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)]


def xavier_init(
    model: nn.Module, generators: Generators, *, distribution: str = "uniform", gain: float = 1.0
) -> list[str]:
    """Draw all convolution and linear weights as Glorot and Bengio do; set their biases to 0.

    Uniform on ``[-b, b]`` with ``b = gain sqrt(6 / (fan_in + fan_out))``, or normal with the same
    variance ``gain^2 2 / (fan_in + fan_out)``.

    Args:
        model: edited in place.
        generators: gives each layer, by qualified name, its own generator.
        distribution: ``"uniform"`` or ``"normal"``.
        gain: multiplies the standard deviation.

    Returns:
        Names of the layers.

    Source:
        Glorot and Bengio 2010, equation 16; He et al. 2019, arXiv:1812.01187, section 2.1.
    """
    draw = {"uniform": nn.init.xavier_uniform_, "normal": nn.init.xavier_normal_}[distribution]
    return _init(model, generators, lambda weight, generator: draw(weight, gain, generator=generator))


def he_init(
    model: nn.Module, generators: Generators, *, distribution: str = "normal", mode: str = "fan_in"
) -> list[str]:
    """Draw all convolution and linear weights as He et al. do; set their biases to 0.

    Normal with variance ``2 / fan``, or uniform on ``[-b, b]`` with ``b = sqrt(6 / fan)``. As in PyTorch,
    ``fan_out`` of a grouped convolution counts the output channels of all groups.

    Args:
        model: edited in place.
        generators: gives each layer, by qualified name, its own generator.
        distribution: ``"uniform"`` or ``"normal"``.
        mode: ``"fan_in"`` keeps the variance of activations, ``"fan_out"`` that of gradients.

    Returns:
        Names of the layers.

    Source:
        He et al. 2015, arXiv:1502.01852, equations 10 and 14.
    """
    draw = {"uniform": nn.init.kaiming_uniform_, "normal": nn.init.kaiming_normal_}[distribution]

    def draw_one(weight: Tensor, generator: torch.Generator) -> None:
        draw(weight, mode=mode, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]

    return _init(model, generators, draw_one)


def trunc_normal_init(model: nn.Module, generators: Generators, *, std: float = 0.02) -> list[str]:
    """Draw all convolution and linear weights from N(0, ``std``^2), cut off at ±2; set their biases to 0.

    The cut is at the values ±2, as in torch's default and in the code of ViT, Swin and ConvNeXt: at their
    ``std`` of 0.02 it lies a hundred standard deviations away.

    Args:
        model: edited in place.
        generators: gives each layer, by qualified name, its own generator.
        std: standard deviation before the cut.

    Returns:
        Names of the layers.

    Source:
        Liu et al. 2021, arXiv:2103.14030 (Swin), and timm's Vision Transformer: their code.
    """

    def draw(weight: Tensor, generator: torch.Generator) -> None:
        nn.init.trunc_normal_(weight, std=std, generator=generator)

    return _init(model, generators, draw)


def _init(
    model: nn.Module, generators: Generators, draw: Callable[[Tensor, torch.Generator], object]
) -> list[str]:
    names = []
    for name, layer in weight_layers(model):
        generator = generators(name)
        fill(layer.weight, lambda values, generator=generator: draw(values, generator))  # type: ignore[arg-type,misc]
        if layer.bias is not None:
            fill(layer.bias, nn.init.zeros_)  # type: ignore[arg-type]
        names.append(name)
    return names


def zero_gamma(model: nn.Module) -> list[str]:
    """Set the weight of the last normalization of every residual branch to 0, in place.

    Each block then starts as the identity. Blocks that know how (timm's, the built-in nets': they have
    ``zero_init_last()``) do it themselves; torchvision's ``BasicBlock`` and ``Bottleneck`` are known too.

    Returns:
        Names of the parameters that are now 0; empty if the model has no such block.

    Source:
        Goyal et al. 2017, arXiv:1706.02677, section 5.1; He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    changed: list[str] = []
    for prefix, block in model.named_modules():
        zero = getattr(block, "zero_init_last", None)
        if callable(zero):
            before = {name: (p._version, p.detach().clone()) for name, p in block.named_parameters()}
            zero()
            touched = [name for name, p in block.named_parameters() if p._version != before[name][0]]
            found = [name for name in touched if _owner_is_norm(block, name)]
            with torch.no_grad():  # timm's pre-activation blocks zero a convolution instead
                for name in set(touched) - set(found):
                    block.get_parameter(name).copy_(before[name][1])
        elif hasattr(block, "downsample") and hasattr(block, "conv2"):
            found = [f"{'bn3' if hasattr(block, 'bn3') else 'bn2'}.weight"]
            if not _owner_is_norm(block, found[0]):
                continue
            nn.init.zeros_(block.get_parameter(found[0]))
        else:
            continue
        changed += [f"{prefix}.{name}" if prefix else name for name in found]
    return list(dict.fromkeys(changed))


def _owner_is_norm(block: nn.Module, name: str) -> bool:
    owner, _, local = name.rpartition(".")
    try:
        module = block.get_submodule(owner)
    except AttributeError:
        return False
    return is_norm(module) and module._parameters.get(local) is not None
