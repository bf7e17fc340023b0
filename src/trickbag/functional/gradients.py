"""Clipping of gradients, in place, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def clip_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor | None:
    """Scale all gradients together so that their common norm is at most ``limit``.

    Returns:
        The norm before; None without gradients.

    Source:
        Pascanu et al. 2013, arXiv:1211.5063, algorithm 1, as in ``torch.nn.utils.clip_grad_norm_`` (which
        goes through the tensors one by one on a CPU).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def clip_value(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Cut every entry of every gradient off at ``limit`` and ``-limit``."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)


def clip_adaptive(parameters: Iterable[nn.Parameter], limit: float, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping: each unit's gradient is at most ``limit`` times as long as its weights.

    A unit is a row of a weight (its first dimension); vectors and scalars count as one unit.

    Args:
        parameters: what to clip. The paper leaves the last linear layer out.
        limit: largest ratio of the two norms.
        eps: shortest length that weights are taken for, so that zeros can grow.

    Source:
        Brock et al. 2021, arXiv:2102.06171, section 4.1; units as in the authors' code and timm.
    """
    chosen = [p for p in parameters if p.grad is not None]
    if not chosen:
        return
    gradients: list[Tensor] = [p.grad for p in chosen]  # type: ignore[misc]
    with torch.no_grad():
        ratios = unit_norms(chosen)
        torch._foreach_clamp_min_(ratios, eps)
        torch._foreach_mul_(ratios, limit)
        torch._foreach_div_(ratios, unit_norms(gradients))
        torch._foreach_clamp_max_(ratios, 1.0)
        torch._foreach_mul_(gradients, ratios)


def unit_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Euclidean norms of the rows of each tensor, ``(rows, 1, ...)``; of all of it where it has no rows."""
    return [
        torch.linalg.vector_norm(t, dim=tuple(range(1, t.ndim)) if t.ndim > 1 else None, keepdim=t.ndim > 1)
        for t in tensors
    ]
