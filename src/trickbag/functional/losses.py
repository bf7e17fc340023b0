"""Losses on dense targets, one value an image."""

from __future__ import annotations

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
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, targets.to(logits.dtype), reduction="none")


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
