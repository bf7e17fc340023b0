"""What optimizers of other libraries need to be stopped, resumed, frozen and thawed."""

from __future__ import annotations

from typing import Any

import torch


def keep_group_steps(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let the count of updates that an optimizer keeps in its groups travel with its state.

    timm's Lamb counts in ``group["step"]``, which a checkpoint of the state alone loses, and with it the
    bias correction. After this, each parameter's state has a ``step`` too, and loading takes it back.

    Args:
        optimizer: changed in place, by hooks.

    Returns:
        The optimizer.
    """

    def give(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p in optimizer.state and "step" in group:
                    optimizer.state[p]["step"] = group["step"]

    def take(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            states = [optimizer.state[p] for p in group["params"] if p in optimizer.state]
            counts = [state["step"] for state in states if "step" in state]
            if counts:
                latest = max(counts, key=float)
                group["step"] = latest.clone() if isinstance(latest, torch.Tensor) else latest

    optimizer.register_step_post_hook(give)
    optimizer.register_load_state_dict_post_hook(take)
    return optimizer


def allow_late_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Let parameters get their first gradient later than others of their group, as thawed ones do.

    torch's fused SGD wants either all or none of a group's momentum buffers: late ones start from 0.

    Args:
        optimizer: ``torch.optim.SGD``; changed in place, by a hook.

    Returns:
        The optimizer.
    """

    def fill(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if not group["momentum"]:
                continue
            moving = [p for p in group["params"] if p.grad is not None]
            late = [p for p in moving if optimizer.state.get(p, {}).get("momentum_buffer") is None]
            if len(late) < len(moving):
                for p in late:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)

    optimizer.register_step_pre_hook(fill)
    return optimizer
