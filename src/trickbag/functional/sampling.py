"""The order of an epoch: repeated images, and classes in other proportions than the data's."""

from __future__ import annotations

import torch
from torch import Tensor


def repeat_images(order: Tensor, repeats: int) -> Tensor:
    """Show the first images of an order several times in a row, and leave out the last ones.

    Args:
        order: ``(n,)`` positions.
        repeats: how often each image comes, at least 1; the last one maybe less often.

    Returns:
        ``(n,)`` positions: as many as before, of ``ceil(n / repeats)`` entries of ``order``.

    Source:
        Hoffer et al. 2020, arXiv:1901.09335; at constant batch size and epoch length as Berman et al. 2019,
        arXiv:1902.05509 (repeated augmentation), and the RASampler of DeiT, timm and torchvision.
    """
    kept = -(-len(order) // repeats)
    return order[:kept].repeat_interleave(repeats)[: len(order)]


def class_quotas(counts: Tensor, total: int, power: float, offset: float) -> Tensor:
    """Share out the places of an epoch among classes, in proportion to ``counts ** (1 - power)``.

    A class gets its exact share rounded down or up; over ``offset`` uniform in 0 to 1 the mean is exact.

    Args:
        counts: ``(classes,)`` number of images of each class; a class without images gets nothing.
        total: places.
        power: 0 for the proportions of the data, 1 for as many of each class.
        offset: 0 to below 1; which of the classes are rounded up (systematic sampling).

    Returns:
        ``(classes,)`` int64 that sum to ``total``.

    Source:
        Kang et al. 2020, arXiv:1910.09217, section 3 (sampling strategies), where 1 - power is called q.
    """
    weights = torch.where(counts > 0, counts.double() ** (1 - power), 0.0)
    edges = weights.cumsum(0)
    edges = (edges / edges[-1] * total + offset).floor().clamp(max=total)
    return edges.diff(prepend=edges.new_zeros(1)).long()


def balance_classes(
    order: Tensor, labels: Tensor, power: float, generator: torch.Generator | None = None
) -> Tensor:
    """Compose an epoch in which class c has a share in proportion to ``counts[c] ** (1 - power)``.

    No image of a class comes again before all others of its class have come: a class of m images that gets q
    places shows the first q of them, in the order given, or all of them floor(q / m) times and the first
    q mod m once more. The epoch is then shuffled.

    Args:
        order: ``(n,)`` int64 positions: a random permutation.
        labels: ``(images,)`` int64 labels at those positions.
        power: see ``class_quotas``.
        generator: CPU generator; None for torch's global one.

    Returns:
        ``(n,)`` int64 positions.
    """
    own = labels[order]
    counts = own.bincount()
    offset = torch.rand((), generator=generator, dtype=torch.float64).item()
    quotas = class_quotas(counts, len(order), power, offset)
    grouped = order[own.argsort(stable=True)]
    classes = torch.arange(len(counts)).repeat_interleave(quotas)
    place = torch.arange(len(order)) - (quotas.cumsum(0) - quotas)[classes]
    first = (counts.cumsum(0) - counts)[classes]
    picked = grouped[first + place % counts[classes]]
    return picked[torch.randperm(len(picked), generator=generator)]
