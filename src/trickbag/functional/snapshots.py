"""Several copies of a model's weights, taken while it trains, in one plain dictionary of tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

TAKEN = "taken"
"""Name of the number of snapshots taken so far, int64 ``()``."""


def start_snapshots(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Room for ``count`` snapshots, none of them taken: ``0/NAME``, ``1/NAME``, ... and :data:`TAKEN`.

    The first one holds the model as it is.
    """
    state = {
        f"{number}/{name}": value.detach().clone()
        for number in range(count)
        for name, value in model.state_dict().items()
    }
    return state | {TAKEN: torch.zeros((), dtype=torch.int64)}


@torch.no_grad()
def take_snapshot(state: dict[str, Tensor], model: nn.Module, number: int, *, keep: bool = True) -> None:
    """Copy the weights and buffers of a model, in place.

    Args:
        state: from :func:`start_snapshots`.
        model: it is not changed.
        number: which snapshot, from 0.
        keep: False if it is to be overwritten: it then counts only as long as there is no other.
    """
    for name, value in model.state_dict().items():
        state[f"{number}/{name}"].copy_(value)
    if keep:
        state[TAKEN].fill_(number + 1)


def snapshots_of(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The snapshots taken so far, each under the names of the model; a state that holds no several is one."""
    if TAKEN not in state:
        return [dict(state)]
    found: list[dict[str, Tensor]] = [{} for _ in range(max(1, int(state[TAKEN])))]
    for key, value in state.items():
        number, _, name = key.partition("/")
        if name and int(number) < len(found):
            found[int(number)][name] = value
    return found


class Together(nn.Module):
    """Models of one kind that predict together: the softmax of what it returns is the mean of their softmax.

    Args:
        model: is copied, once for each of ``states``.
        states: weights and buffers by name.
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Tensor]]) -> None:
        super().__init__()
        self.members = nn.ModuleList(copy.deepcopy(model) for _ in states)
        for member, state in zip(self.members, states, strict=True):
            member.load_state_dict(state)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, classes)``: the logarithm of the mean probabilities."""
        each = torch.stack([member(images).log_softmax(dim=1) for member in self.members])
        return each.logsumexp(dim=0) - math.log(len(self.members))
