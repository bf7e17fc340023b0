"""Predictions averaged over several views of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def average_predictions(
    probabilities: Tensor, average: str = "probabilities", weights: Sequence[float] | None = None
) -> Tensor:
    """Merge the predictions for several views of the same images.

    Args:
        probabilities: ``(views, batch, classes)``, rows sum to 1.
        average: ``probabilities`` for their arithmetic mean; ``logits`` for the softmax of the mean logits,
            which is the normalized geometric mean of the probabilities. (Logits are known from
            probabilities up to a constant a row, and softmax cancels it.)
        weights: one a view, sum 1; None weighs all alike.

    Returns:
        ``(batch, classes)``, rows sum to 1.

    Raises:
        ValueError: ``average`` is neither.
    """

    def mean(values: Tensor) -> Tensor:
        if weights is None:
            return values.mean(0)
        merged: Tensor = torch.tensordot(values.new_tensor(weights), values, 1)
        return merged

    if average == "probabilities":
        return mean(probabilities)
    if average == "logits":
        floor = torch.finfo(probabilities.dtype).tiny
        return mean(probabilities.clamp(min=floor).log()).softmax(-1)
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


def predict_with_views(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    shift: int = 1,
    *,
    flip: bool = True,
    average: str = "logits",
) -> Tensor:
    """Predict images, images shifted along both diagonals, and the mirror images of them all.

    The images in place, together with their mirror images, weigh as much as all shifted ones together.

    Args:
        predict: images ``(batch, channels, height, width)`` -> probabilities ``(batch, classes)``.
        images: what to predict.
        shift: pixels, down and right in one view, up and left in another; what moves in is the mirrored
            border. 0 for no shifted views.
        flip: whether to predict mirror images.
        average: see ``average_predictions``.

    Returns:
        ``(batch, classes)`` probabilities.

    Source:
        Jordan 2024, arXiv:2404.00498, section 3.6 and listing (multi-crop evaluation).
    """
    views, weights = [images], [1.0]
    if shift:
        height, width = images.shape[2:]
        padded = F.pad(images, (shift,) * 4, mode="reflect")
        views += [padded[..., :height, :width], padded[..., 2 * shift :, 2 * shift :]]
        weights = [0.5, 0.25, 0.25]
    if flip:
        views += [view.flip(-1) for view in views]
        weights = [weight / 2 for weight in weights] * 2
    predicted = torch.stack([predict(view) for view in views])
    return average_predictions(predicted, average, weights)
