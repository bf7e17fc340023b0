"""Mixup, CutMix and mosaic on dense targets, with explicit weights, boxes, centers and partners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trickbag.functional.augment import box_mask, per_image


def partner(batch: Tensor, how: str = "reverse") -> Tensor:
    """For each element of a batch, the one it is mixed with.

    Args:
        batch: ``(batch, ...)``.
        how: ``reverse`` pairs the first with the last, as timm does; ``roll`` pairs each element with the
            one before it, as torchvision does.

    Raises:
        ValueError: ``how`` is neither.
    """
    if how == "reverse":
        return batch.flip(0)
    if how == "roll":
        return batch.roll(1, 0)
    raise ValueError(f"partner is {how!r}; expected 'reverse' or 'roll'")


def beta_weights(
    alpha: float, count: int, generator: torch.Generator | None = None, *, p: float = 1.0
) -> Tensor:
    """Weights of the original images: Beta(alpha, alpha) with probability ``p``, else 1.

    Args:
        alpha: both parameters of the Beta distribution; at 0 every weight is 1.
        count: how many.
        generator: CPU generator; None for torch's global one.
        p: probability of mixing.

    Returns:
        ``(count,)`` float64, 0 to 1.
    """
    uniform = torch.rand((count, 3), generator=generator, dtype=torch.float64)
    if alpha == 0:
        return torch.ones(count, dtype=torch.float64)
    # Gamma(a) = Gamma(a + 1) * U ** (1 / a), compared as logarithms: both would underflow at small alpha.
    shape = torch.full((count, 2), alpha + 1, dtype=torch.float64)
    logs = torch._standard_gamma(shape, generator=generator).log() + (1 - uniform[:, 1:]).log() / alpha
    return torch.where(uniform[:, 0] < p, torch.sigmoid(logs[:, 0] - logs[:, 1]), 1.0)


def mixup(images: Tensor, targets: Tensor, weights: Tensor, how: str = "reverse") -> tuple[Tensor, Tensor]:
    """Blend each image, and its target, with its partner's.

    Args:
        images: float ``(batch, channels, height, width)``.
        targets: dense float ``(batch, classes)``.
        weights: ``(batch,)`` weight of the image itself, 0 to 1; at 1 image and target stay bit for bit.
        how: see ``partner``.

    Source:
        Zhang et al. 2018, arXiv:1710.09412, equation 1 and section 2.
    """
    alone = weights == 1
    mixed = torch.lerp(partner(images, how), images, per_image(weights.to(images.dtype)))
    labels = torch.lerp(partner(targets, how), targets, weights.to(targets.dtype)[:, None])
    return torch.where(per_image(alone), images, mixed), torch.where(alone[:, None], targets, labels)


def cutmix_boxes(weights: Tensor, centers: Tensor, height: int, width: int) -> Tensor:
    """Boxes that leave a share ``weights`` of an image, before they are clipped at its border.

    Args:
        weights: ``(batch,)`` float64, 0 to 1.
        centers: ``(batch, 2)`` int64 (row, column), inside the image.
        height: height of the images.
        width: width of the images.

    Returns:
        ``(batch, 4)`` int64 (top, left, height, width), clipped; empty where the weight is 1.
    """
    size = torch.tensor((height, width), device=centers.device)
    half = (0.5 * (1 - weights.double()).sqrt()[:, None] * size).floor().long()
    start, stop = (centers - half).clamp(min=0), torch.minimum(centers + half, size)
    return torch.cat((start, stop - start), 1)


def cutmix(images: Tensor, targets: Tensor, boxes: Tensor, how: str = "reverse") -> tuple[Tensor, Tensor]:
    """Paste a box of its partner into each image; targets are weighted by the pixels that changed hands.

    Args:
        images: ``(batch, channels, height, width)``.
        targets: dense float ``(batch, classes)``.
        boxes: ``(batch, 4)`` int64 (top, left, height, width) inside the images; an empty one leaves image
            and target bit for bit.
        how: see ``partner``.

    Source:
        Yun et al. 2019, arXiv:1905.04899, equations 1 and 2.
    """
    height, width = images.shape[-2:]
    mixed = torch.where(box_mask(boxes, height, width), partner(images, how), images)
    pasted = (boxes[:, 2] * boxes[:, 3])[:, None]
    pixels = height * width
    ours, theirs = ((count.to(targets.dtype) / pixels) for count in (pixels - pasted, pasted))
    labels = targets * ours + partner(targets, how) * theirs
    return mixed, torch.where(pasted == 0, targets, labels)


def mosaic(images: Tensor, targets: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Put four images of the batch into the quadrants of each; targets are weighted by their pixels.

    Image i keeps its upper left; a quarter, a half and three quarters of the batch further on (around its
    end) are the images of the upper right, the lower left and the lower right. Every quadrant shows the same
    place of its image: nothing is resized or moved.

    Args:
        images: ``(batch, channels, height, width)``.
        targets: dense float ``(batch, classes)``.
        centers: ``(batch, 2)`` int64 (row, column) of the first pixel of the lower right quadrant, 0 to
            (height, width); at (height, width) image and target stay bit for bit.

    Source:
        Bochkovskiy et al. 2020, arXiv:2004.10934, section 3.3; for classification as in their code
        (AlexeyAB/darknet, ``load_data_augment``), and without moving the parts as Takahashi et al. 2018,
        arXiv:1811.09030, section III do.
    """
    count, (height, width) = len(images), images.shape[-2:]
    offsets = [count * k // 4 for k in range(4)]
    row, column = centers.unbind(1)
    upper = (torch.arange(height, device=images.device) < row[:, None])[:, None, :, None]
    left = (torch.arange(width, device=images.device) < column[:, None])[:, None, None, :]
    own, right, below, across = (images.roll(-offset, 0) for offset in offsets)
    mixed = torch.where(upper, torch.where(left, own, right), torch.where(left, below, across))
    rows, columns = (row, height - row), (column, width - column)
    pixels = [tall * wide for tall in rows for wide in columns]
    labels = torch.zeros_like(targets)
    for offset, part in zip(offsets, pixels, strict=True):
        labels += targets.roll(-offset, 0) * (part.to(targets.dtype) / (height * width))[:, None]
    alone = pixels[0] == height * width
    return torch.where(per_image(alone), images, mixed), torch.where(alone[:, None], targets, labels)


def pick(shares: Sequence[float], count: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions in ``shares``, each drawn with a probability in proportion to its share.

    Args:
        shares: 0 or more each, not all 0.
        count: how many to draw.
        generator: CPU generator; None for torch's global one.

    Returns:
        ``(count,)`` int64.

    Raises:
        ValueError: all shares are 0.
    """
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    if not edges[-1] > 0:
        raise ValueError(f"shares are {tuple(shares)}; expected one of them above 0")
    return torch.searchsorted(edges / edges[-1], uniform, right=True)
