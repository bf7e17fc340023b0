"""When to stop training."""

from __future__ import annotations

from collections.abc import Iterable


def should_stop(history: Iterable[float], patience: int, min_delta: float = 0.0) -> bool:
    """Whether ``patience`` evaluations in a row have brought no improvement, at any time so far.

    Args:
        history: the metric after each evaluation, oldest first, higher is better; NaN never improves.
        patience: evaluations without improvement, 1 or more.
        min_delta: gain over the best value so far that counts as improvement, in units of the metric.

    Source:
        Prechelt 1998, "Early Stopping - But When?", section 2.
    """
    best, waited = float("-inf"), 0
    for value in history:
        if value > best + min_delta:
            best, waited = value, 0
        else:
            waited += 1
        if waited >= patience:
            return True
    return False
