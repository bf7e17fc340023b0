"""Batch norm over other batches: smaller ones (ghost) and those of all processes (synchronized)."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trickbag.functional.surgery import CannotOperate


def ghost_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    size: int = 32,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in training, with the statistics of parts of the batch.

    The batch of n images is cut, in order, into max(1, n // ``size``) ghost batches whose sizes differ by
    at most one; so none is smaller than ``size``, unless the batch is. One ghost batch is batch norm to
    the bit. The running statistics move once, by ``momentum``, toward the mean of the ghost batches' means
    and unbiased variances: they remember as many updates as those of batch norm. (Algorithm 1 of the paper
    moves them once for each ghost batch, so that they forget faster the larger the batch.)

    Args:
        x: ``(batch, channels, ...)`` float.
        running_mean, running_var: ``(channels,)``, changed in place; None keeps none.
        weight, bias: ``(channels,)``.
        size: images in a ghost batch.
        momentum: share of the new statistics.
        eps: added to the variances.

    Returns:
        Of the shape of ``x``.

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, section 4 and algorithm 1.
    """
    parts = max(1, len(x) // size)
    if parts == 1:
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    like = torch.empty(x.shape[1], device=x.device) if running_mean is None else running_mean
    outputs, mean, var = [], torch.zeros_like(like), torch.zeros_like(like)
    for part in x.tensor_split(parts):
        own_mean, own_var = torch.zeros_like(like), torch.zeros_like(like)
        # With momentum 1 the running statistics become those of the part.
        outputs.append(F.batch_norm(part, own_mean, own_var, weight, bias, True, 1.0, eps))
        mean.add_(own_mean, alpha=len(part) / len(x))
        var.add_(own_var, alpha=len(part) / len(x))
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var, momentum)
    return torch.cat(outputs)


def sync_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in training, with the statistics of the batches of all processes, on any device.

    Every process must call it, at the same time; batches may differ in size. Means come first and
    variances around them second, so that nothing cancels: two sums over the processes each way.

    Args:
        x: this process's ``(batch, channels, ...)`` float; reduced precision is computed in float32.
        running_mean, running_var: ``(channels,)``, changed in place; None keeps none.
        weight, bias: ``(channels,)``.
        momentum: share of the new statistics.
        eps: added to the variances.

    Returns:
        Of the shape and dtype of ``x``. Gradients flow through the statistics to every process.

    Raises:
        ValueError: all batches together have a single value a channel.

    Source:
        Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1, over the global batch; Peng et al. 2018,
        arXiv:1711.07240, section 3.3.
    """
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    others = [dim for dim in range(x.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    here = values.new_tensor([x.numel() // x.shape[1]])
    sums = _sum_over_processes(torch.cat((values.sum(others), here)))
    count = sums[-1].detach()
    if count < 2:
        raise ValueError("all processes together have one value a channel: it has no variance")
    mean = sums[:-1] / count
    centered = values - mean.reshape(shape)
    var = _sum_over_processes(centered.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.detach().to(running_mean), momentum)
            unbiased = var.detach() * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var), momentum)
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    out = centered * scale.reshape(shape)
    if bias is not None:
        out = out + bias.reshape(shape)
    return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _sum_over_processes(value: Tensor) -> Tensor:
    return cast("Tensor", _Sum.apply(value))


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of images that, in training, sees ghost batches; see :func:`ghost_batch_norm`.

    Args:
        num_features: channels.
        ghost_size: images in a ghost batch.
        options: further arguments of ``torch.nn.BatchNorm2d``.
    """

    ghost_size: int

    def __init__(self, num_features: int, ghost_size: int = 32, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to the same shape."""
        if not self.training or len(x) < 2 * self.ghost_size:
            return super().forward(x)
        self._check_input_dim(x)
        mean, var, momentum = _running(self)
        out = ghost_batch_norm(x, mean, var, self.weight, self.bias, self.ghost_size, momentum, self.eps)
        return _rest(self, out)


class SynchronizedBatchNorm(_BatchNorm):
    """Mixed into a batch norm: statistics of all processes in training, where there are several.

    On CUDA, ``torch.nn.SyncBatchNorm`` computes it, elsewhere :func:`sync_batch_norm`. With one process,
    and in evaluation, it is the batch norm that it is mixed into.
    """

    process_group = None
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same shape."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not self.training or not several or x.is_meta:
            return super().forward(x)
        if x.is_cuda:
            return _rest(self, nn.SyncBatchNorm.forward(cast("Any", self), x))
        self._check_input_dim(x)
        mean, var, momentum = _running(self)
        out = sync_batch_norm(x, mean, var, self.weight, self.bias, momentum, self.eps)
        return _rest(self, out)


def ghost_norms(model: nn.Module, size: int) -> list[str]:
    """Turn every batch norm of images into a :class:`GhostBatchNorm2d`, in place.

    Modules keep their names, parameters, buffers and hooks: only their classes change. timm's
    ``BatchNormAct2d``, which has an activation, keeps it.

    Args:
        model: edited in place.
        size: images in a ghost batch.

    Returns:
        Names of the modules.

    Raises:
        CannotOperate: there is none.
    """
    names = _change(model, GhostBatchNorm2d, nn.BatchNorm2d)
    for name in names:
        model.get_submodule(name).ghost_size = size  # type: ignore[assignment]
    return names


def synchronized_norms(model: nn.Module) -> list[str]:
    """Turn every batch norm, of one to three dimensions, into a synchronized one, in place.

    Modules keep their names, parameters, buffers and hooks: only their classes change.

    Returns:
        Names of the modules.

    Raises:
        CannotOperate: there is none.
    """
    return _change(model, SynchronizedBatchNorm, _BatchNorm)


def _change(model: nn.Module, into: Any, kind: Any) -> list[str]:
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, kind) and _known(m, into)]
    if not found:
        raise CannotOperate(f"{type(model).__name__} has no batch norm")
    for _, module in found:
        if not isinstance(module, into):
            module.__class__ = _mixed(into, cast("Any", type(module)))
    return [name for name, _ in found]


def _known(norm: nn.Module, into: type[nn.Module]) -> bool:
    """True if nothing follows the norm but modules that it holds, as in timm's ``BatchNormAct2d``."""
    return type(norm).forward in (_BatchNorm.forward, into.forward) or {"drop", "act"} <= set(norm._modules)


@cache
def _mixed(into: Any, kind: Any) -> Any:
    if issubclass(into, kind):
        return into
    prefix = into.__name__.removesuffix("2d").removesuffix("BatchNorm")
    return type(f"{prefix}{kind.__name__}", (into, kind), {"__module__": __name__})


def _running(norm: _BatchNorm) -> tuple[Tensor | None, Tensor | None, float]:
    """The statistics to update, and by how much; counts the batch, as batch norm does."""
    if not norm.track_running_stats:
        return None, None, 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.momentum is not None:
        return norm.running_mean, norm.running_var, norm.momentum
    assert norm.num_batches_tracked is not None
    return norm.running_mean, norm.running_var, 1 / float(norm.num_batches_tracked)


def _rest(norm: nn.Module, out: Tensor) -> Tensor:
    for name in ("drop", "act"):
        if name in norm._modules:
            out = norm.get_submodule(name)(out)
    return out
