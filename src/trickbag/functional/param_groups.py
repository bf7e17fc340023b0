"""Splitting a model's parameters into optimizer groups."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.normalization import CrossMapLRN2d

NORMS: tuple[type[nn.Module], ...] = (
    _NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    CrossMapLRN2d,
)
"""PyTorch's normalization classes; most of timm's and torchvision's derive from one of them."""


def is_norm(module: nn.Module) -> bool:
    """True for normalization layers: PyTorch's, what derives from them, and free-standing ones.

    A free-standing class (timm's EvoNorm, FilterResponseNorm, InplaceAbn; torchvision's
    FrozenBatchNorm2d) counts if it holds its parameters or statistics itself and it or a base is
    named after a normalization.
    """
    if isinstance(module, NORMS):
        return True
    own = [*module._parameters, *module._buffers]
    return bool(own) and any("Norm" in c.__name__ or c.__name__ == "InplaceAbn" for c in type(module).__mro__)


def decayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is meant for: the weights of layers.

    A parameter is decayed if it has two or more dimensions, is what its module calls a weight (as
    convolutions, linear layers, embeddings and attention do, and position tables, class tokens, layer
    scales and gains do not), its module is not a normalization layer, and the model does not ask for it
    to be spared by ``no_weight_decay()``, as timm's models may.
    """
    spared = spared_by_model(model)
    found = set()
    for prefix, module in model.named_modules():
        if is_norm(module):
            continue
        for local, parameter in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            if parameter.ndim >= 2 and _is_weight(module, prefix, local, parameter) and local not in spared:
                found.add(local)
    return found


def spared_by_model(model: nn.Module) -> set[str]:
    """Names that the model, or one inside it, lists in ``no_weight_decay()``; wildcards are resolved."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found: set[str] = set()
    for prefix, module in model.named_modules():
        listing = getattr(module, "no_weight_decay", None)
        if callable(listing):
            patterns = [f"{prefix}.{pattern}" if prefix else pattern for pattern in listing()]
            found.update(name for name in names if any(fnmatchcase(name, p) for p in patterns))
    return found


def _is_weight(module: nn.Module, prefix: str, name: str, parameter: nn.Parameter) -> bool:
    local = name.removeprefix(f"{prefix}.")
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        # weight_norm keeps a matrix and, beside it, gains of shape (out, 1, ...)
        return prefix.endswith("weight") and sum(size > 1 for size in parameter.shape) >= 2
    return local.startswith("weight") or local.endswith("weight")


def split_decay(model: nn.Module, groups: Iterable[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Split every group in two: weights of layers, and all else with ``weight_decay`` 0.

    Args:
        model: what the parameters belong to.
        groups: parameter groups with ``params`` and, parallel to it, ``names``; None means one group of
            all trainable parameters. Other entries of a group are kept.

    Returns:
        Groups that hold the same parameters, each once; ready for any torch optimizer.

    Source:
        He et al. 2019, arXiv:1812.01187, section 3.1 ("no bias decay"). See :func:`decayed_names`.
    """
    if groups is None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for _, p in named], "names": [name for name, _ in named]}]
    decayed = decayed_names(model)
    tied = {p for name, p in model.named_parameters(remove_duplicate=False) if name in decayed}
    result = []
    for group in groups:
        for keep in (True, False):
            pairs = [
                (p, n) for p, n in zip(group["params"], group["names"], strict=True) if (p in tied) is keep
            ]
            if pairs:
                part = {**group, "params": [p for p, _ in pairs], "names": [n for _, n in pairs]}
                result.append(part if keep else {**part, "weight_decay": 0.0})
    return result


def implementation(groups: Iterable[dict[str, Any]]) -> dict[str, bool]:
    """The fastest kernel that a torch optimizer has for these parameters: ``fused``, else ``foreach``."""
    parameters: list[torch.Tensor] = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
