"""Sharpness-aware minimization: the gradient of an update, taken where the loss is highest nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

ETA = 0.01
"""Added to the size of each weight by the adaptive form, so that zeros move too (Kwon et al.'s eta)."""


@torch.no_grad()
def climb(parameters: Iterable[nn.Parameter], rho: float = 0.05, *, adaptive: bool = False) -> None:
    """Move parameters, in place, to where the loss is highest within ``rho``, to first order.

    With gradients g: ``w + rho g / |g|``; adaptive, with t = |w| + 0.01 entry by entry:
    ``w + rho t^2 g / |t g|``. Norms go over all parameters together. A common factor of all gradients makes
    no difference; parameters stay where they are if all gradients are 0. Gradients are overwritten.

    Args:
        parameters: those without a gradient are left alone.
        rho: radius of the neighborhood, at least 0.
        adaptive: measure the radius relative to the size of each weight.

    Source:
        Foret et al. 2021, arXiv:2010.01412, equation 2. Adaptive: Kwon et al. 2021, arXiv:2102.11600,
        section 3 and algorithm 1, with the element-wise operator on all parameters.
    """
    chosen: list[Tensor] = [p for p in parameters if p.grad is not None]
    if not chosen:
        return
    steps: list[Tensor] = [p.grad for p in chosen]  # type: ignore[misc]
    sizes: list[Tensor] = []
    if adaptive:
        sizes = list(torch._foreach_abs(chosen))
        torch._foreach_add_(sizes, ETA)
        torch._foreach_mul_(steps, sizes)
    norms = torch._foreach_norm(steps)
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    if adaptive:
        torch._foreach_mul_(steps, sizes)
    torch._foreach_mul_(steps, torch.where(norm > 0, rho / norm, 0.0))
    torch._foreach_add_(chosen, steps)


def sharpness_aware(
    compute: Callable[[], Tensor], model: nn.Module, rho: float = 0.05, *, adaptive: bool = False
) -> Tensor:
    """Leave the gradients at the perturbed weights (see :func:`climb`) in ``grad``; two passes.

    Weights come back to the bit. Buffers, such as the running statistics of batch norm, keep what the first
    pass made of them.

    Args:
        compute: adds gradients to ``grad`` of the model's parameters and returns the loss; called twice.
        model: its gradients must be None or 0 at the start.
        rho: radius of the neighborhood.
        adaptive: measure the radius relative to the size of each weight.

    Returns:
        The loss of the first pass, at the weights themselves.

    Source:
        Foret et al. 2021, arXiv:2010.01412, algorithm 1.
    """
    loss = compute()
    parameters = [p for p in model.parameters() if p.grad is not None]
    buffers = [(m, name, b) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    weights, before = [p.detach().clone() for p in parameters], [b.clone() for *_, b in buffers]
    try:
        climb(parameters, rho, adaptive=adaptive)
        for p in parameters:
            p.grad = None
        compute()
    finally:
        with torch.no_grad():
            for p, weight in zip(parameters, weights, strict=True):
                p.copy_(weight)
            for (module, name, buffer), value in zip(buffers, before, strict=True):
                module._buffers[name] = buffer.copy_(value)
    return loss
