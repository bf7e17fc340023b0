"""Losses on dense targets, one value an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy between dense targets and the softmax of logits.

    Args:
        logits: ``(batch, classes)``; half precision is widened to float32 first.
        targets: ``(batch, classes)``, rows sum to 1.

    Returns:
        ``(batch,)`` losses in nats.
    """
    logits = _wide(logits)
    return F.cross_entropy(logits, targets.to(logits.dtype), reduction="none")


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    target_threshold: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cross entropy of each class on its own, between dense targets and the sigmoid of logits.

    Equals timm's ``BinaryCrossEntropy`` with smoothing 0.

    Args:
        logits: ``(batch, classes)``; half precision is widened to float32 first.
        targets: ``(batch, classes)``, each 0 to 1.
        target_threshold: targets above it become 1, all others 0; None keeps them as they are.
        reduction: what becomes of the values of an image's classes.

    Returns:
        ``(batch,)`` losses in nats.

    Source:
        Wightman et al. 2021, arXiv:2110.00476, section 3.
    """
    logits = _wide(logits)
    targets = targets.to(logits.dtype)
    if target_threshold is not None:
        targets = targets.gt(target_threshold).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.mean(dim=-1) if reduction == "mean" else losses.sum(dim=-1)


def focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross entropy in which classes that are predicted well count little: ``-sum t (1 - p)^gamma log p``.

    Linear in the targets.

    Args:
        logits: ``(batch, classes)``; half precision is widened to float32 first.
        targets: dense ``(batch, classes)``.
        gamma: 0 (cross entropy) or more.

    Returns:
        ``(batch,)`` losses in nats.

    Source:
        Lin et al. 2017, arXiv:1708.02002, equation 4, with p the softmax of the logits.
    """
    logs = _wide(logits).log_softmax(dim=-1)
    missing = -torch.expm1(logs)
    return -(targets.to(logs.dtype) * _power(missing, gamma) * logs).sum(dim=-1)


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Binary cross entropy of each class in which what is predicted well counts little, summed over classes.

    Equals torchvision's ``sigmoid_focal_loss`` for targets that are 0 or 1. Linear in the targets: that of
    mixed ones is the mixture of the losses, where torchvision's is not.

    Args:
        logits: ``(batch, classes)``; half precision is widened to float32 first.
        targets: ``(batch, classes)``, each 0 to 1.
        gamma: 0 (binary cross entropy) or more.
        alpha: factor, 0 to 1, of a class that is there; 1 - alpha for one that is not. None for none.

    Returns:
        ``(batch,)`` losses in nats.

    Source:
        Lin et al. 2017, arXiv:1708.02002, equation 5.
    """
    logits = _wide(logits)
    targets = targets.to(logits.dtype)
    present = -_power(torch.sigmoid(-logits), gamma) * F.logsigmoid(logits)
    absent = -_power(torch.sigmoid(logits), gamma) * F.logsigmoid(-logits)
    if alpha is not None:
        present, absent = alpha * present, (1 - alpha) * absent
    return (targets * present + (1 - targets) * absent).sum(dim=-1)


def _power(share: Tensor, gamma: float) -> Tensor:
    """``share ** gamma`` with gradients that stay finite where ``share`` is 0 and ``gamma`` below 1."""
    return share.clamp(min=torch.finfo(share.dtype).tiny).pow(gamma)


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def smooth_targets(targets: Tensor, epsilon: float) -> Tensor:
    """Move a share ``epsilon`` of every target's mass evenly to all classes: ``t (1 - e) + e / classes``.

    Linear, so smoothing and mixing commute.

    Args:
        targets: dense ``(batch, classes)``, rows sum to 1.
        epsilon: 0 (returns ``targets`` itself) to 1.

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    return targets if epsilon == 0 else targets * (1 - epsilon) + epsilon / targets.shape[-1]


def hardest(losses: Tensor, keep: float) -> Tensor:
    """Losses of the hardest images, scaled so that the mean over all images is theirs; 0 for the others.

    Of equal losses, those of earlier images count as larger.

    Args:
        losses: ``(batch,)``.
        keep: share of the images, 0 to 1; rounded to whole images, at least one.

    Returns:
        ``(batch,)``. Gradients flow through the kept ones alone.

    Source:
        Shrivastava et al. 2016, arXiv:1604.03540, section 4.
    """
    count = len(losses)
    kept = kept_images(count, keep)
    if kept == count:
        return losses
    order = losses.detach().argsort(descending=True, stable=True)
    chosen = torch.zeros_like(losses, dtype=torch.bool)
    chosen[order[:kept]] = True
    return torch.where(chosen, losses * (count / kept), 0.0)


def kept_images(count: int, keep: float) -> int:
    """How many of ``count`` images the share ``keep`` is."""
    return min(count, max(1, int(count * keep + 0.5)))


def frequency_weights(counts: Sequence[int], power: float = 1.0) -> tuple[float, ...]:
    """Weights proportional to ``counts ** -power`` whose mean over all images is 1.

    Power 1 is scikit-learn's "balanced": all classes together weigh the same.

    Args:
        counts: images of each class, at least 1 each.
        power: 0 (all weights are 1) to 1.
    """
    shares = [count**-power for count in counts]
    mean = sum(count * share for count, share in zip(counts, shares, strict=True)) / sum(counts)
    return tuple(share / mean for share in shares)


def effective_number_weights(counts: Sequence[int], beta: float) -> tuple[float, ...]:
    """Weights proportional to ``(1 - beta) / (1 - beta ** count)`` whose mean over the classes is 1.

    Args:
        counts: images of each class, at least 1 each.
        beta: 0 (all weights are 1) to below 1, where weights approach the inverse of the counts.

    Source:
        Cui et al. 2019, arXiv:1901.05555, section 4.
    """
    shares = [(1 - beta) / (1 - beta**count) for count in counts]
    mean = sum(shares) / len(shares)
    return tuple(share / mean for share in shares)
