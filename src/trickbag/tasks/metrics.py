"""Metrics of classification."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PRIMARY = "accuracy"
ECE_BINS = 15
FLOOR = 2.0**-126
"""Smallest probability that enters a logarithm: the smallest normal float32; a loss stays below 88."""


def classification_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics of predicted probabilities, computed in float64 on the CPU.

    Args:
        probabilities: ``(n, classes)``, rows sum to 1. A row that is not finite counts as wrong, with
            probability 0 for its label.
        labels: int64 ``(n,)``.

    Returns:
        - ``accuracy``: share of images whose likeliest class is right (the first one in a tie);
        - ``top5_accuracy``: share whose class is among the five likeliest, if there are more than five;
        - ``balanced_accuracy``: mean over the classes present of the share that is right in each;
        - ``nll``: mean negative log likelihood, in nats;
        - ``ece``: expected calibration error with 15 bins of equal width (Guo et al. 2017,
          arXiv:1706.04599, equation 3), 0 to 1;
        - ``nll_calibrated``: ``nll`` after the best temperature (same source, section 4.2). The temperature
          is fitted on these same images, so this is a bound on what calibration can give, not an
          estimate of what it will give on others.
    """
    import numpy as np
    import torch

    p = probabilities.detach().cpu().double()
    y = labels.detach().cpu().long()
    n, classes = p.shape
    if n == 0:
        raise ValueError("metrics of no images")
    finite = torch.isfinite(p).all(dim=1)
    p = torch.where(finite[:, None], p, torch.zeros_like(p))
    own = p.gather(1, y[:, None])[:, 0]
    right = ((p.argmax(dim=1) == y) & finite).double()
    metrics = {"accuracy": float(right.mean())}
    if classes > 5:
        top = p.topk(5, dim=1).indices
        metrics["top5_accuracy"] = float(((top == y[:, None]).any(dim=1) & finite).double().mean())
    counts = np.bincount(y.numpy(), minlength=classes)
    hits = np.bincount(y.numpy(), weights=right.numpy(), minlength=classes)
    metrics["balanced_accuracy"] = float((hits[counts > 0] / counts[counts > 0]).mean())
    nll = float(-own.clamp(min=FLOOR).log().mean())
    metrics["nll"] = nll
    metrics["ece"] = _ece(p.amax(dim=1).numpy(), right.numpy())
    metrics["nll_calibrated"] = min(nll, _calibrated(p.clamp(min=FLOOR).log(), y))
    return metrics


def _ece(confidence: np.ndarray, right: np.ndarray) -> float:
    import numpy as np

    # torchmetrics has this in float32 only
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _calibrated(log_probabilities: Tensor, labels: Tensor) -> float:
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        scaled = (log_probabilities * math.exp(-log_temperature)).log_softmax(dim=1)
        return -float(scaled.gather(1, labels[:, None]).mean())

    # the NLL is flat at its minimum: an error of 1e-4 here changes it by some 1e-9
    found = minimize_scalar(nll, bounds=(-4.0, 4.0), method="bounded", options={"xatol": 1e-4})
    return float(found.fun)
