"""Learning-rate schedules in closed form: factors of the peak rate for update ``step``, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear_scale(batch_size: int, base_batch_size: int = 256) -> float:
    """Factor by which a learning rate that was tuned for ``base_batch_size`` grows with the batch.

    Source:
        Goyal et al. 2017, arXiv:1706.02677, section 2.1; He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    return batch_size / base_batch_size


def linear_warmup(step: int, warmup: int, start: float = 0.0) -> float:
    """Linear warmup: ``start + (1 - start) (step + 1) / warmup`` during the first ``warmup`` updates, then 1.

    ``start`` is the value just before the first update, so that no update is wasted at a rate of 0:
    update ``i`` of ``warmup``, counted from 1, has the factor ``i / warmup`` (for ``start`` 0), and the
    last one exactly 1. PyTorch's ``LinearLR`` counts from 0 instead and lags one update behind.

    Args:
        step: number of the update, from 0.
        warmup: how many updates warmup takes; 0 for none.
        start: share of the peak from which the ramp starts, 0 to 1.

    Source:
        He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    if step + 1 >= warmup:
        return 1.0
    return start + (1 - start) * (step + 1) / warmup


def cosine(fraction: float, final: float = 0.0) -> float:
    """Half a cosine from 1 (``fraction`` 0) down to ``final`` (``fraction`` 1).

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5.
    """
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def cosine_decay(
    step: int, steps: int, warmup: int = 0, final: float = 0.0, *, underneath: bool = False
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

    Source:
        False: He et al. 2019, arXiv:1812.01187, section 5.1, and torchvision's recipes.
        True: timm's ``CosineLRScheduler`` with its default, ``warmup_prefix=False``.
    """
    if step < warmup:
        return 1.0
    fraction = step / steps if underneath else (step - warmup) / max(1, steps - warmup)
    return cosine(min(1.0, fraction), final)


def step_decay(step: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """``gamma`` to the power of the number of ``milestones`` (update numbers) that ``step`` has reached."""
    return float(gamma ** sum(step >= milestone for milestone in milestones))


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
