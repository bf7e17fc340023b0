"""The colors of lighting noise, and normalization."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

PCA_EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Scales of ImageNet's principal color axes for values 0 to 1, as fb.resnet.torch and MXNet use them."""
PCA_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""ImageNet's principal color axes: one a column, rows red, green and blue."""


def pca_shift(amounts: Tensor) -> Tensor:
    """Color of lighting noise from its amounts along the principal axes of ImageNet's colors.

    Args:
        amounts: ``(batch, 3)``; AlexNet draws them from N(0, 0.1).

    Returns:
        ``(batch, 3)`` values to add to red, green and blue, on the scale 0 to 1.

    Source:
        Krizhevsky et al. 2012, "ImageNet Classification with Deep CNNs", section 4.1.
    """
    axes, scales = amounts.new_tensor(PCA_EIGENVECTORS), amounts.new_tensor(PCA_EIGENVALUES)
    return ((amounts * scales)[:, None, :] * axes).sum(-1)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images - mean) / std`` channel by channel; one value serves all channels.

    Args:
        images: float ``(batch, channels, height, width)``.
        mean: one value a channel, or one for all.
        std: likewise, above 0.
    """
    return (images - _channels(mean, images)) / _channels(std, images)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    # Filled value by value: a tensor built from a list would make the host wait for the device.
    filled = like.new_empty((1, len(values), 1, 1))
    for channel, value in enumerate(values):
        filled[:, channel] = value
    return filled
