"""Turning one ResNet into another: the variants A, B, C and D of He et al. 2019, figure 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trickbag.functional.initialization import Generators, fill


class CannotOperate(ValueError):
    """The model has nothing that the operation could act on, or what it has cannot be changed."""


def resnet_variant(model: nn.Module, variant: str, generators: Generators | None = None) -> nn.Module:
    """Turn a ResNet of timm or torchvision into variant A, B, C or D, in place.

    A: the first 1x1 convolution of a bottleneck has the stride. B: the 3x3 has it. C: B with a stem of
    three 3x3 convolutions, of which only the first has stride 2. D: C with 2x2 average pooling and a
    convolution of stride 1 in the shortcut. Parameters keep their values where their module stays.

    Args:
        model: timm's ``ResNet`` or torchvision's, of bottleneck or basic blocks.
        variant: ``"a"``, ``"b"``, ``"c"`` or ``"d"``.
        generators: gives each new layer, by qualified name, its own CPU generator; None uses torch's
            global generator.

    Raises:
        CannotOperate: not such a ResNet; basic blocks and variant A; or the model is further on in the
            alphabet already.

    Source:
        He et al. 2019, arXiv:1812.01187, section 4.
    """
    blocks = residual_blocks(model)
    if variant in ("a", "b") and isinstance(model.conv1, nn.Sequential):
        raise CannotOperate(
            f"the model has a deep stem (variant C or later) and cannot become {variant.upper()}"
        )
    pooled = any(isinstance(part, nn.AvgPool2d) for b in blocks for part in _shortcut(b))
    if variant != "d" and pooled:
        raise CannotOperate(f"the model has pooled shortcuts (variant D) and cannot become {variant.upper()}")
    place_stride(model, first=variant == "a")
    if variant in ("c", "d"):
        deepen_stem(model, generators)
    if variant == "d":
        pool_shortcuts(model)
    return model


def residual_blocks(model: nn.Module) -> list[Any]:
    """The bottleneck and basic blocks of a ResNet.

    Raises:
        CannotOperate: the model is not a ResNet as timm and torchvision build them.
    """
    stem = all(hasattr(model, name) for name in ("conv1", "bn1", "layer1", "fc"))
    blocks = [
        m for m in model.modules() if hasattr(m, "downsample") and hasattr(m, "bn2") and hasattr(m, "conv1")
    ]
    plain = all(isinstance(b.conv1, nn.Conv2d) and isinstance(b.conv2, nn.Conv2d) for b in blocks)
    if not stem or not blocks or not plain:
        raise CannotOperate(f"{type(model).__name__} is not a ResNet with a 7x7 stem and residual blocks")
    return blocks


def place_stride(model: nn.Module, *, first: bool) -> None:
    """Put the stride of every strided bottleneck on its first 1x1 (``first``) or on its 3x3 convolution."""
    for block in residual_blocks(model):
        if not hasattr(block, "conv3"):
            if first:
                raise CannotOperate("variant A moves the stride of bottleneck blocks; these are basic blocks")
            continue
        conv1, conv2 = block.conv1, block.conv2
        if first and not isinstance(getattr(block, "aa", nn.Identity()), nn.Identity):
            raise CannotOperate("variant A cannot be combined with anti-aliasing layers in the blocks")
        if first:
            conv1.stride, conv2.stride = _times(conv1.stride, conv2.stride), (1, 1)
        else:
            conv2.stride, conv1.stride = _times(conv1.stride, conv2.stride), (1, 1)


def deepen_stem(model: nn.Module, generators: Generators | None = None) -> None:
    """Replace the 7x7 convolution of the stem by three 3x3 ones (half, half and full width).

    New convolutions are drawn from N(0, 2 / fan_out) as timm does.
    """
    old = model.conv1
    if isinstance(old, nn.Sequential):
        return
    if not isinstance(old, nn.Conv2d) or old.kernel_size != (7, 7):
        raise CannotOperate("the stem is not one 7x7 convolution")
    place = {"device": old.weight.device, "dtype": old.weight.dtype}
    norm: Any = type(model.bn1)
    act: Any = type(getattr(model, "act1", None) or model.relu)
    widths = (old.out_channels // 2, old.out_channels // 2, old.out_channels)
    layers: list[nn.Module] = []
    channels = old.in_channels
    for index, width in enumerate(widths):
        stride = old.stride if index == 0 else (1, 1)
        layers.append(nn.Conv2d(channels, width, 3, stride, 1, bias=False, **place))  # type: ignore[arg-type]
        if index < 2:
            layers += [norm(width, **place), act(inplace=True)]
        channels = width
    model.conv1 = nn.Sequential(*layers)
    for name, layer in model.conv1.named_children():
        if isinstance(layer, nn.Conv2d):
            generator = generators(f"conv1.{name}") if generators else torch.default_generator
            fill(
                layer.weight,
                lambda values, generator=generator: nn.init.kaiming_normal_(  # type: ignore[misc]
                    values, mode="fan_out", nonlinearity="relu", generator=generator
                ),
            )


def pool_shortcuts(model: nn.Module) -> None:
    """Let 2x2 average pooling, not a strided 1x1 convolution, shrink the shortcuts.

    As in timm, odd sizes are rounded up and shortcuts that do not shrink get an identity in its place.
    """
    for block in residual_blocks(model):
        parts = list(_shortcut(block))
        if not parts or not isinstance(parts[0], nn.Conv2d):
            continue
        conv = parts[0]
        if conv.kernel_size != (1, 1):
            raise CannotOperate("variant D needs 1x1 convolutions in the shortcuts")
        pool: nn.Module = nn.Identity()
        if conv.stride != (1, 1):
            pool = nn.AvgPool2d(2, (conv.stride[0], conv.stride[1]), ceil_mode=True, count_include_pad=False)
        conv.stride = (1, 1)
        block.downsample = nn.Sequential(pool, *parts)


def _shortcut(block: Any) -> tuple[nn.Module, ...]:
    return tuple(block.downsample) if isinstance(block.downsample, nn.Sequential) else ()


def _times(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] * b[0], a[1] * b[1]
