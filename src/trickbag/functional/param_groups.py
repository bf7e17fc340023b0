"""Splitting a model's parameters into optimizer groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def head_names(model: nn.Module) -> set[str]:
    """Names of the parameters of the classifier, or of all classifiers if there are several.

    Classifiers are what ``pretrained_cfg`` lists (timm's models, built-in nets), else what
    ``get_classifier()`` returns, else the last convolution or linear layer.

    Raises:
        ValueError: the model has no convolution or linear layer.
    """
    from trickbag.functional.layers import last_layers

    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def under(modules: Iterable[str]) -> set[str]:
        prefixes = tuple(f"{module}." for module in modules)
        return {name for name in names if name.startswith(prefixes)}

    listed = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    found = under((listed,) if isinstance(listed, str) else listed)
    if not found and callable(getter := getattr(model, "get_classifier", None)):
        given = getter()
        own = list(given) if isinstance(given, tuple | list) else [given]
        found = under(name for name, module in model.named_modules() if any(module is one for one in own))
    return found or under(last_layers(model))


def stage_layers(model: nn.Module) -> dict[str, int]:
    """Number of the layer that each parameter belongs to: stem 0, stages 1 and up, all else on top.

    Raises:
        ValueError: the model has no children called ``stem`` and ``stages``.
    """
    stages = [name for name, _ in getattr(model, "stages", nn.Identity()).named_children()]
    if not stages or not hasattr(model, "stem"):
        raise ValueError(f"{type(model).__name__} has no stem and stages")
    numbers = {f"stages.{name}.": number for number, name in enumerate(stages, start=1)} | {"stem.": 0}
    return {
        name: next((n for prefix, n in numbers.items() if name.startswith(prefix)), len(stages) + 1)
        for name, _ in model.named_parameters()
    }


def layer_scales(layers: Mapping[str, int], rate: float) -> dict[str, float]:
    """``rate`` to the power of the number of layers above, by parameter.

    Args:
        layers: number of the layer that each parameter belongs to; the top one keeps 1.
        rate: factor from one layer to the one below it.

    Source:
        Bao et al. 2022, arXiv:2106.08254, appendix; timm's ``param_groups_layer_decay``.
    """
    top = max(layers.values(), default=0)
    return {name: rate ** (top - layer) for name, layer in layers.items()}


def scale_rates(groups: Iterable[dict[str, Any]], scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """Split every group by the factor of its parameters, and multiply its ``lr_scale`` by that.

    Args:
        groups: parameter groups with ``params`` and, parallel to it, ``names``. Other entries are kept.
        scales: factor of the learning rate by name; 1 for parameters that it does not name.

    Returns:
        Groups that hold the same parameters, each once. A training loop sets ``lr`` of each group to the
        scheduled rate times its ``lr_scale``.
    """
    result = []
    for group in groups:
        parts: dict[float, list[tuple[nn.Parameter, str]]] = {}
        for p, name in zip(group["params"], group["names"], strict=True):
            parts.setdefault(scales.get(name, 1.0), []).append((p, name))
        for scale, pairs in parts.items():
            part = {"params": [p for p, _ in pairs], "names": [name for _, name in pairs]}
            result.append({**group, **part, "lr_scale": group.get("lr_scale", 1.0) * scale})
    return result


def implementation(groups: Iterable[dict[str, Any]]) -> dict[str, bool]:
    """The fastest kernel that a torch optimizer has for these parameters: ``fused``, else ``foreach``."""
    parameters: list[torch.Tensor] = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return {"fused": True} if fused else {"foreach": True}
