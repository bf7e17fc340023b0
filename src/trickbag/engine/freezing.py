"""Keeping parts of a model as they are for a part of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trickbag.errors import UsageError
from trickbag.plan import Plan

if TYPE_CHECKING:
    from torch import nn


class Freezer:
    """Freezes and thaws what a plan's freeze tricks say, update by update.

    Make one, and bring the model into its first state, before processes agree on what gradients they share.
    A frozen parameter has no gradient, so that optimizers pass it over.
    """

    def __init__(self, plan: Plan, model: nn.Module, processes: int = 1) -> None:
        self.model = model
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
