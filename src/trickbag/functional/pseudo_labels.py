"""Learning from predictions: pseudo-labels, and what becomes of labels that they contradict."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def certainty(probabilities: Tensor) -> Tensor:
    """How far predictions are from knowing nothing: 1 - entropy / log(classes).

    Args:
        probabilities: ``(n, classes)``, rows sum to 1.

    Returns:
        ``(n,)``: 0 for uniform rows, 1 for one-hot ones.

    Source:
        Iscen et al. 2019, arXiv:1904.04717, equation 11.
    """
    entropy: Tensor = torch.special.entr(probabilities).sum(dim=1)
    return (1 - entropy / math.log(probabilities.shape[1])).clamp(0, 1)


def pseudo_labels(
    probabilities: Tensor, threshold: float = 0.0, *, hard: bool = False, confidence: Tensor | None = None
) -> Tensor:
    """Targets from predictions.

    Args:
        probabilities: ``(n, classes)``.
        threshold: least confidence; less certain rows become NaN.
        hard: True for the most probable class alone, with weight 1.
        confidence: ``(n,)``; None takes the largest probability of each row.

    Returns:
        ``(n, classes)`` of the same dtype.

    Source:
        Lee 2013, *Pseudo-Label*, section 2.1 (hard); Xie et al. 2020, arXiv:1911.04252, section 2 (soft).
    """
    confidence = probabilities.amax(dim=1) if confidence is None else confidence
    found = probabilities
    if hard:
        found = F.one_hot(probabilities.argmax(dim=1), probabilities.shape[1]).to(probabilities.dtype)
    return torch.where((confidence >= threshold)[:, None], found, torch.nan)


def relabel(labels: Tensor, found: Tensor, share: float = 1.0) -> Tensor:
    """Blend known labels with pseudo-labels: ``(1 - share) one_hot(label) + share found``.

    Args:
        labels: ``(n,)`` int64.
        found: ``(n, classes)``; where a row is NaN, the label stays.
        share: of the pseudo-label, 0 to 1.

    Returns:
        ``(n, classes)`` of the dtype of ``found``.
    """
    known = F.one_hot(labels, found.shape[1]).to(found.dtype)
    return torch.where(found.isnan(), known, torch.lerp(known, found, share))
