"""Predictions averaged over several views of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def average_predictions(probabilities: Tensor, average: str = "probabilities") -> Tensor:
    """Merge the predictions for several views of the same images.

    Args:
        probabilities: ``(views, batch, classes)``, rows sum to 1.
        average: ``probabilities`` for their arithmetic mean; ``logits`` for the softmax of the mean logits,
            which is the normalized geometric mean of the probabilities. (Logits are known from
            probabilities up to a constant a row, and softmax cancels it.)

    Returns:
        ``(batch, classes)``, rows sum to 1.

    Raises:
        ValueError: ``average`` is neither.
    """
    if average == "probabilities":
        return probabilities.mean(0)
    if average == "logits":
        floor = torch.finfo(probabilities.dtype).tiny
        return probabilities.clamp(min=floor).log().mean(0).softmax(-1)
    raise ValueError(f"average is {average!r}; expected 'probabilities' or 'logits'")


def predict_with_flip(
    predict: Callable[[Tensor], Tensor], images: Tensor, average: str = "probabilities"
) -> Tensor:
    """Predict images and their mirror images, and merge the two.

    Args:
        predict: images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``.
        images: what to predict.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.
    """
    return average_predictions(torch.stack((predict(images), predict(images.flip(-1)))), average)
