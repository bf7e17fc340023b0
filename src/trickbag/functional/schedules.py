"""Learning-rate schedules in closed form: factors of the peak rate for update ``step``, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def linear_scale(batch_size: int, base_batch_size: int = 256) -> float:
    """Factor by which a learning rate that was tuned for ``base_batch_size`` grows with the batch.

    Source:
        Goyal et al. 2017, arXiv:1706.02677, section 2.1; He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    return batch_size / base_batch_size


def sqrt_scale(batch_size: int, base_batch_size: int = 256) -> float:
    """Square root of :func:`linear_scale`: the rule for optimizers whose steps do not grow with gradients.

    Source:
        Krizhevsky 2014, arXiv:1404.5997; for Adam and RMSprop Malladi et al. 2022,
        arXiv:2205.10287; for LAMB You et al. 2020, arXiv:1904.00962.
    """
    return math.sqrt(batch_size / base_batch_size)


def linear_warmup(
    step: int, warmup: int, start: float = 0.0, *, reaches: str = "peak", stride: int = 1
) -> float:
    """A ramp from ``start`` to 1 that takes the first ``warmup`` updates.

    With m updates, counted by i from 1, the factor is ``start + (1 - start) x``, and x is

    - ``"peak"``: i / m. The last update has all of the peak; ``start`` is the value just before the first,
      so that none is wasted at a rate of 0.
    - ``"start"``: (i - 1) / m. The first update has ``start`` itself, and the peak comes after warmup.
    - ``"both"``: (i - 1) / (m - 1).

    Args:
        step: number of the update, from 0.
        warmup: how many updates warmup takes; 0 for none.
        start: share of the peak from which the ramp starts, 0 to 1.
        reaches: which end of the ramp an update gets.
        stride: updates that get the same rate before it changes, for example those of an epoch; i and m
            then count strides.

    Source:
        ``peak``: He et al. 2019, arXiv:1812.01187, section 3.1. ``start``: torch's ``LinearLR`` and timm's
        schedulers. ``both``: MMEngine's ``LinearLR``.
    """
    done = step // stride + (reaches == "peak")
    length = warmup / stride - (reaches == "both")
    if step >= warmup or done >= length:
        return 1.0
    return start + (1 - start) * done / length


def cosine(fraction: float, final: float = 0.0) -> float:
    """Half a cosine from 1 (``fraction`` 0) down to ``final`` (``fraction`` 1).

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5.
    """
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def cosine_decay(
    step: int,
    steps: int,
    warmup: int = 0,
    final: float = 0.0,
    *,
    underneath: bool = False,
    stride: int = 1,
) -> float:
    """Cosine decay of a run of ``steps`` updates; 1 during the first ``warmup`` of them.

    The curve arrives at ``final`` where the run ends, that is just after the last update, which still
    gets a little more than that.

    Args:
        step: number of the update, from 0.
        steps: updates in the run.
        warmup: updates at the start that belong to warmup.
        final: share of the peak at which the curve ends.
        underneath: False lets the cosine start when warmup is over; True lets it run, unseen, from
            update 0, so that the rate drops by a step when warmup ends.
        stride: updates that get the same rate before it changes, for example those of an epoch.

    Source:
        False: He et al. 2019, arXiv:1812.01187, section 5.1, and torchvision's recipes.
        True: timm's ``CosineLRScheduler`` with its default, ``warmup_prefix=False``.
    """
    if step < warmup:
        return 1.0
    step = step // stride * stride
    fraction = step / steps if underneath else max(0, step - warmup) / max(1, steps - warmup)
    return cosine(min(1.0, fraction), final)


def step_decay(step: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """``gamma`` to the power of the number of ``milestones`` (update numbers) that ``step`` has reached."""
    return float(gamma ** sum(step >= milestone for milestone in milestones))


def polynomial_decay(fraction: float, power: float = 1.0, final: float = 0.0) -> float:
    """From 1 (``fraction`` 0) down to ``final`` (``fraction`` 1) as ``(1 - fraction) ** power``.

    Source:
        Liu et al. 2015, arXiv:1506.04579 (ParseNet); torch's ``PolynomialLR``.
    """
    left: float = (1 - fraction) ** power
    return final + (1 - final) * left


def warm_restarts(step: int, first: int, multiplier: float = 1.0, final: float = 0.0) -> float:
    """Cosines from 1 to ``final``, one after the other.

    Args:
        step: number of the update, from 0.
        first: updates in the first cycle, at least 1.
        multiplier: each cycle is so many times as long as the one before (rounded to updates), at least 1.
        final: share of the peak at which each cycle ends, just before the next one starts.

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, section 3.
    """
    done, length = cycle(step, first, multiplier)
    return cosine(done / length, final)


def cycle(step: int, first: int, multiplier: float = 1.0) -> tuple[int, int]:
    """(updates done in the current cycle, its length in updates); see :func:`warm_restarts`."""
    length, number = first, 0
    if multiplier == 1:
        return step % first, first
    while step >= length:
        step -= length
        number += 1
        length = round(first * multiplier**number)
    return step, length


def one_cycle(
    step: int,
    steps: int,
    low: float = 0.04,
    final: float = 4e-6,
    peak_at: float = 0.3,
    *,
    shape: str = "cos",
    high: float = 1.0,
) -> float:
    """Up from ``low`` to ``high`` and down to ``final``.

    The peak is reached at update ``peak_at * steps - 1``, the last update has ``final``. For a momentum
    that moves the other way, swap: ``low`` the larger value, ``high`` the smaller, ``final`` the larger.

    Args:
        step: number of the update, from 0.
        steps: updates in the run.
        low: value at the first update.
        final: value at the last.
        peak_at: share of the run after which the peak comes, 0 to 1.
        shape: ``"cos"`` for half a cosine each way, ``"linear"`` for straight lines.
        high: value at the peak.

    Source:
        Smith and Topin 2018, arXiv:1708.07120, section 3, in the two phases of fast.ai and of torch's
        ``OneCycleLR``.
    """
    peak, last = peak_at * steps - 1, steps - 1
    if step <= peak or peak >= last:
        begin, end, share = low, high, step / peak if peak > 0 else 1.0
    else:
        begin, end, share = high, final, (step - peak) / (last - peak)
    share = min(1.0, max(0.0, share))
    if shape == "cos":
        share = 0.5 * (1 - math.cos(math.pi * share))
    return begin + (end - begin) * share


def constant_cooldown(
    step: int, steps: int, cooldown: int, final: float = 0.0, *, shape: str = "linear"
) -> float:
    """1, then a decay to ``final`` over the last ``cooldown`` of ``steps`` updates.

    With x the share of the cooldown that is over, the decay is 1 - x (``"linear"``), 1 - sqrt(x)
    (``"sqrt"``) or half a cosine (``"cosine"``), from 1 to ``final``.

    Args:
        step: number of the update, from 0.
        steps: updates in the run.
        cooldown: updates in the decay; 0 for none.
        final: share of the peak at which the curve arrives where training ends.
        shape: of the decay.

    Source:
        Hägele et al. 2024, arXiv:2405.18392, section 3; trapezoid: Zhai et al. 2022, arXiv:2106.04560,
        section 3.5.
    """
    begin = steps - cooldown
    if step <= begin or cooldown == 0:
        return 1.0
    x = min(1.0, (step - begin) / cooldown)
    if shape == "cosine":
        return cosine(x, final)
    return final + (1 - final) * (1 - (math.sqrt(x) if shape == "sqrt" else x))


def piecewise_linear(step: int, points: Sequence[tuple[float, float]]) -> float:
    """Straight lines between ``points`` (update number, factor), ascending; constant outside them.

    Source:
        Page 2018, "How to train your ResNet"; ffcv-imagenet's ``get_cyclic_lr``.
    """
    if step <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if step < right:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]


def ramped_size(
    progress: float,
    image_size: int,
    start: float = 0.75,
    begin: float = 0.0,
    until: float = 0.8,
    multiple: int = 4,
) -> int:
    """Size of training images that grows linearly, in pixels.

    Args:
        progress: share of training that is over at the start of the epoch, 0 to 1.
        image_size: size from ``until`` on.
        start: size before ``begin``, as a share of ``image_size``.
        begin, until: shares of training between which the size grows.
        multiple: sizes below ``image_size`` are rounded (half up) to multiples of so many pixels.

    Source:
        Howard 2018, fast.ai on DAWNBench; Tan and Le 2021, arXiv:2104.00298, algorithm 1.
    """
    if start >= 1 or progress >= until:
        return image_size
    grown = max(0.0, progress - begin) / (until - begin) if until > begin else 0.0
    size = image_size * (start + (1 - start) * grown)
    return min(image_size, max(multiple, math.floor(size / multiple + 0.5) * multiple))
