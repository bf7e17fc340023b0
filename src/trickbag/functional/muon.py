"""Muon: momentum whose matrices are made orthogonal before each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from trickbag.functional.initialization import weight_layers
from trickbag.functional.layers import first_layer, last_layers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial a x + b x^3 + c x^5, which takes singular values in (0, 1] to about 0.7 to 1.2."""

Groups = list[dict[str, Any]]


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring all singular values of each matrix near 1; the singular vectors stay.

    Wide matrices are iterated on their Gram matrix, which is the same in exact arithmetic: one iteration
    is ``X -> P X`` with ``P = a + b G + c G^2`` and ``G = X X^T``, which becomes ``P G P``.

    Args:
        matrices: ``(n, rows, columns)``. float16 and bfloat16 are computed in float32 on a CPU; on a GPU
            all but float64 is computed in bfloat16, as the reference does.
        steps: Newton-Schulz iterations; 5 bring singular values down to 0.003 of the norm near 1.

    Returns:
        ``(n, rows, columns)``, of the dtype of the computation.

    Source:
        Jordan et al. 2024, kellerjordan.github.io/posts/muon; coefficients from there.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    if x.dtype != torch.float64:
        x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if x.shape[2] >= 2 * x.shape[1] and x.dtype != torch.bfloat16:
        gram = x @ x.mT
        total = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand_as(gram)
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            total = factor @ total if step else factor
            if step + 1 < steps:
                gram = factor @ gram @ factor
        x = total @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, factor, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for groups of matrices, and another optimizer for the rest, as one optimizer.

    A kernel ``(out, in, height, width)`` counts as a matrix ``(out, in * height * width)``. Per update, with
    gradient g: ``m = momentum m + g``; ``u = orthogonalize(g + momentum m)`` (``orthogonalize(m)`` without
    ``nesterov``); ``w = (1 - lr weight_decay) w - lr s u``, where s is given by ``scale``.

    Args:
        params: parameters, or groups of them. Groups with ``muon: False`` belong to ``other``.
        lr, momentum, nesterov, weight_decay: see above.
        steps: Newton-Schulz iterations.
        scale: ``original`` for s = sqrt(max(1, rows / columns)); ``match_rms_adamw`` for
            s = 0.2 sqrt(max(rows, columns)) (Liu et al. 2025, arXiv:2502.16982); ``none`` for 1.
        normalize: first give each matrix the norm sqrt(rows), as airbench94_muon does.
        other: makes the optimizer of the groups with ``muon: False``, for example
            ``lambda groups: torch.optim.AdamW(groups, lr=1e-3)``.

    Raises:
        ValueError: a parameter of less than two dimensions, or groups for ``other`` without it.

    Source:
        Jordan et al. 2024, kellerjordan.github.io/posts/muon. ``torch.optim.Muon`` is the same for
        two-dimensional weights, one at a time, in bfloat16 (very slow on most CPUs).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        steps: int = 5,
        scale: str = "original",
        normalize: bool = False,
        other: Callable[[Groups], torch.optim.Optimizer] | None = None,
    ) -> None:
        items = list(params)
        groups: Groups = items if items and isinstance(items[0], dict) else [{"params": items}]
        rest = [group for group in groups if not group.get("muon", True)]
        if rest and other is None:
            raise ValueError("there are groups for another optimizer, but no other optimizer")
        self._other = other(rest) if rest and other else None  # fills in its own defaults
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        defaults |= {"steps": steps, "scale": scale, "normalize": normalize, "muon": True}
        super().__init__(groups, defaults)
        thin = [p.shape for g in self.param_groups if g["muon"] for p in g["params"] if p.ndim < 2]
        if thin:
            raise ValueError(
                f"Muon is for matrices and kernels, not for parameters of shape {tuple(thin[0])}"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._update(group)
        if self._other is not None:
            # Loading a state dict replaces both, so they are handed over anew each time.
            self._other.state = self.state
            self._other.param_groups = [group for group in self.param_groups if not group["muon"]]
            self._other.step()
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        lr, momentum = group["lr"], group["momentum"]
        gradients: list[Tensor] = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        updates = buffers
        if group["nesterov"]:
            updates = list(torch._foreach_add(gradients, buffers, alpha=momentum))
        if group["normalize"]:
            factors = torch._foreach_norm(parameters)
            torch._foreach_reciprocal_(factors)
            torch._foreach_mul_(factors, [len(p) ** 0.5 for p in parameters])
            torch._foreach_mul_(parameters, factors)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
        for index, p in enumerate(parameters):
            alike.setdefault((p.shape, p.dtype), []).append(index)
        for (shape, dtype), members in alike.items():
            # Columns may come in any order: this one is that of memory in channels-last kernels.
            matrices = torch.stack([updates[i].movedim(1, -1).flatten(1) for i in members])
            rate = lr * _scale(group["scale"], *matrices.shape[1:])
            done = orthogonalize(matrices, group["steps"]).to(dtype)
            done = done.reshape(len(members), shape[0], *shape[2:], shape[1]).movedim(-1, 2)
            torch._foreach_add_([parameters[i] for i in members], list(done.unbind()), alpha=-rate)


def _scale(name: str, rows: int, columns: int) -> float:
    if name == "original":
        return math.sqrt(max(1.0, rows / columns))
    if name == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if name == "none":
        return 1.0
    raise ValueError(f"scale is {name!r}; expected 'original', 'match_rms_adamw' or 'none'")


def split_hidden(
    model: nn.Module, groups: Groups | None = None, *, first: bool = False, last: bool = False
) -> Groups:
    """Split every group into weights of hidden layers, the weights of classifiers, and the rest.

    Weights of hidden layers are those of linear layers and of convolutions that are neither grouped nor
    transposed, less the first and the last layer of the model (see :mod:`trickbag.functional.layers`).

    Args:
        model: what the parameters belong to.
        groups: parameter groups with ``params`` and, parallel to it, ``names``; None means one group of
            all trainable parameters. Other entries of a group are kept.
        first, last: True to count the first layer, or the last, among the hidden ones.

    Returns:
        Groups that hold the same parameters, each once, with ``muon`` (True for hidden weights) and
        ``head`` (True for the classifier's weight, where it is not among them).
    """
    if groups is None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for _, p in named], "names": [name for name, _ in named]}]
    outer = set() if first else {first_layer(model)[0]}
    heads = set() if last else set(last_layers(model))
    hidden = {
        f"{name}.weight"
        for name, layer in weight_layers(model)
        if name not in outer | heads
        and getattr(layer, "groups", 1) == 1
        and not isinstance(layer, _ConvTransposeNd)
    }
    head = {f"{name}.weight" for name in heads}
    result: Groups = []
    for group in groups:
        kinds: dict[tuple[bool, bool], list[tuple[nn.Parameter, str]]] = {}
        for p, name in zip(group["params"], group["names"], strict=True):
            kinds.setdefault((name in hidden and p.ndim >= 2, name in head), []).append((p, name))
        for (muon, is_head), pairs in kinds.items():
            part = {"params": [p for p, _ in pairs], "names": [name for _, name in pairs]}
            result.append({**group, **part, "muon": muon, "head": is_head})
    return result
