"""A first layer that whitens patches of the images, computed from them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trickbag.functional.initialization import Generators, fill
from trickbag.functional.layers import first_layer
from trickbag.functional.surgery import CannotOperate


def patch_moments(images: Iterable[Tensor], kernel: int) -> Tensor:
    """Mean of x x^T over all patches x of all images.

    Args:
        images: batches ``(batch, channels, height, width)``, as the model sees them.
        kernel: height and width of a patch.

    Returns:
        ``(d, d)`` float64 on the CPU, d = channels * kernel * kernel, ordered like a kernel's weights.

    Raises:
        ValueError: there is no patch.
    """
    total, count = torch.zeros(()), 0
    for batch in images:
        for few in batch.split(max(1, 2**18 // (batch.shape[2] * batch.shape[3]))):
            patches = F.unfold(few.double().contiguous(), kernel)
            total = total.to(patches) + torch.einsum("nip,njp->ij", patches, patches)
            count += patches.shape[0] * patches.shape[2]
    if not count:
        raise ValueError("there is no patch to whiten")
    return (total / count).cpu()


def whitening_weight(moments: Tensor, channels: int, eps: float = 5e-4) -> Tensor:
    """Filters whose outputs are uncorrelated and of the same power, and their negatives.

    Args:
        moments: ``(d, d)``, see :func:`patch_moments`.
        channels: of the images; d = channels * kernel * kernel.
        eps: added to the eigenvalues, so that directions that hardly occur are not blown up.

    Returns:
        ``(2 d, channels, kernel, kernel)`` float64: eigenvectors / sqrt(eigenvalue + eps), the strongest
        first, each with its largest entry positive; then the same, negated.

    Source:
        Jordan 2024, arXiv:2404.00498, section 3.1, after Page 2018, How to train your ResNet, part 8.
    """
    values, vectors = torch.linalg.eigh(moments.double())
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    filters = (vectors * largest.sign() / (values.clamp(min=0) + eps).sqrt()).T
    kernel = round((len(filters) / channels) ** 0.5)
    return torch.cat((filters, -filters)).reshape(-1, channels, kernel, kernel)


def whiten_first_layer(
    model: nn.Module,
    kernel: int = 2,
    *,
    bias: bool = True,
    pad: bool = True,
    generators: Generators | None = None,
) -> str:
    """Put a whitening convolution and GELU before the model's first convolution, in place.

    The first convolution becomes ``Sequential(whiten, [pad,] act, conv)``: ``whiten`` has frozen weights,
    which :func:`calibrate` computes, ``conv`` is the old one for more channels, drawn from N(0, 2 / fan_out).

    Args:
        model: its first layer must be a plain convolution.
        kernel: height and width of the whitening convolution.
        bias: give it a bias that is trained; it starts at 0.
        pad: add zeros below and to the right, so that maps keep the size of the images.
        generators: gives the new convolution, by qualified name, its own CPU generator; None uses torch's
            global generator.

    Returns:
        Name of the new first layer.

    Raises:
        CannotOperate: the model does not begin with a convolution of its images.
    """
    try:
        name, old = first_layer(model)
    except ValueError as error:
        raise CannotOperate(str(error)) from None
    if not isinstance(old, nn.Conv2d):
        raise CannotOperate(
            f"the first layer, {name}, is a {type(old).__name__}, not a convolution of images"
        )
    plain = set(old._parameters) == {"weight", "bias"} and not old._buffers and not old._modules
    if old.groups != 1 or not plain or not name:
        raise CannotOperate(f"the first layer, {name or 'the model'}, is not a plain convolution")
    place = {"device": old.weight.device, "dtype": old.weight.dtype}
    channels, width = old.in_channels, 2 * old.in_channels * kernel**2
    whiten = nn.Conv2d(channels, width, kernel, bias=bias, **place)  # type: ignore[arg-type]
    whiten.weight.requires_grad_(False)
    if whiten.bias is not None:
        nn.init.zeros_(whiten.bias)
    nn.init.zeros_(whiten.weight)
    conv = copy.deepcopy(old)
    conv.in_channels = width
    weight = old.weight.new_empty(old.out_channels, width, *old.kernel_size)
    conv.weight = nn.Parameter(weight)
    generator = generators(f"{name}.conv") if generators else torch.default_generator
    fill(conv.weight, lambda values: nn.init.kaiming_normal_(values, mode="fan_out", generator=generator))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pad and kernel > 1:
        layers["pad"] = nn.ZeroPad2d((0, kernel - 1, 0, kernel - 1))
    layers |= {"whiten": whiten, "act": nn.GELU(), "conv": conv}
    parent, _, local = name.rpartition(".")
    setattr(model.get_submodule(parent), local, nn.Sequential(layers))
    return name


@torch.no_grad()
def calibrate(model: nn.Module, images: Iterable[Tensor], eps: float = 5e-4) -> None:
    """Compute the weights of the whitening convolution that :func:`whiten_first_layer` put in.

    Args:
        model: the model; its first layer is the whitening convolution.
        images: batches ``(batch, channels, height, width)``, as the model sees them.
        eps: see :func:`whitening_weight`.
    """
    _, layer = first_layer(model)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    filters = whitening_weight(patch_moments(images, weight.shape[-1]), weight.shape[1], eps)
    weight.copy_(filters)
