"""Which layers of a model are its first and its last."""

from __future__ import annotations

from torch import nn

from trickbag.functional.initialization import weight_layers


def first_layer(model: nn.Module) -> tuple[str, nn.Module]:
    """The first convolution or linear layer, in the order in which the model holds them, and its name.

    Raises:
        ValueError: there is none.
    """
    layers = weight_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer")
    return layers[0]


def last_layers(model: nn.Module) -> list[str]:
    """Names of the classifiers: what ``pretrained_cfg`` lists (timm, built-in nets), else the last layer.

    Raises:
        ValueError: the model has no convolution or linear layer.
    """
    names = [name for name, _ in weight_layers(model)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer")
    listed = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    listed = (listed,) if isinstance(listed, str) else listed
    return [name for name in names if name in listed] or names[-1:]
