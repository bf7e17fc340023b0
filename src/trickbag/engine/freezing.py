"""Keeping parts of a model as they are for a part of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trickbag.errors import UsageError
from trickbag.plan import Plan

if TYPE_CHECKING:
    from torch import nn


class Freezer:
    """Freezes and thaws what a plan's freeze tricks say, update by update.

    Make one, and bring the model into its first state, before processes agree on what gradients they share.
    A frozen parameter has no gradient, so that optimizers pass it over.
    """

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        processes: int = 1,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._wanted = {name: p.requires_grad for name, p in model.named_parameters()}
        lengths = ((trick, trick.until(plan.timeline)) for trick in plan.freezes)
        self._frozen = [(until, *trick.frozen(model)) for trick, until in lengths if until > 0]
        self._now: tuple[bool, ...] = ()
        if processes > 1 and any(until < plan.timeline.steps for until, *_ in self._frozen):
            raise UsageError(
                "what is frozen at first and trained later needs a single process",
                fix="train with one process, or freeze to the end",
            )

    def apply(self, step: int) -> None:
        """Bring the model into the state in which the update numbered ``step`` finds it."""
        now = tuple(step < until for until, *_ in self._frozen)
        if now == self._now:
            return
        self._now = now
        active = [entry for entry, on in zip(self._frozen, now, strict=True) if on]
        parameters = {name for _, names, _ in active for name in names}
        quiet = {name for _, _, names in active for name in names}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._wanted[name] and name not in parameters)
            if not parameter.requires_grad:
                parameter.grad = None
        for name, module in self.model.named_modules():
            # A module's children follow on their own: ``train`` would recurse.
            module.training = not any(name == one or name.startswith(f"{one}.") for one in quiet)
        if self.optimizer is not None:
            _fill_momentum(self.optimizer)


def _fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give momentum of 0 to trained parameters that have none while others of their group do.

    It is what optimizers with momentum alone begin with, but the fused SGD of torch wants it of all or none.
    """
    for group in optimizer.param_groups:
        begun = [p for p in group["params"] if optimizer.state.get(p)]
        if any(set(optimizer.state[p]) != {"momentum_buffer"} for p in begun):
            continue
        if any(optimizer.state[p]["momentum_buffer"] is None for p in begun):
            continue
        for parameter in group["params"] if begun else ():
            if parameter.requires_grad and not optimizer.state.get(parameter):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
