"""Tricks that end training early."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import StopTrick

if TYPE_CHECKING:
    from trickbag.plan import Context


class EarlyStopping(StopTrick):
    """Stops when the metric on the selection split has not improved for a while.

    Attributes:
        patience: evaluations without improvement after which training stops; None never stops.
        min_delta: gain over the best value so far that counts as improvement, in units of the metric.
    """

    kind = "early_stopping"
    null_setting = {"patience": None}
    example = {"patience": 2}
    card = Card(
        title="Early stopping",
        summary="Ends training once the metric on the selection split has not improved for `patience` "
        "evaluations. The test split is never looked at.",
        source="Prechelt 1998, Early Stopping - But When?, section 2; counting as in Keras' EarlyStopping",
        formula="improved: metric > best so far + min_delta\n"
        "stop after `patience` evaluations in a row that have not improved",
        null="patience = None",
        cost="None; it saves the epochs that it cuts off.",
        suggested="patience = 5 to 10 evaluations with a constant learning rate, for fine-tuning small data "
        "sets. Not with a schedule that decays to the end of the run: the best epochs are the last ones.",
        aliases=("patience", "early stop"),
        snippet="""\
import torch
from trickbag.functional.stopping import should_stop

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(32, 64), torch.randint(10, (32,))
history = []
while len(history) < 50 and not should_stop(history, patience=3):
    loss = torch.nn.functional.cross_entropy(model(images[:16]), labels[:16])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append((model(images[16:]).argmax(1) == labels[16:]).float().mean().item())
""",
    )

    patience: int | None = Field(default=10, ge=1)
    min_delta: float = Field(default=0.0, ge=0)

    def stop(self, history: Sequence[float]) -> bool:
        """True if the last ``patience`` values brought no improvement. NaN never counts as one."""
        from trickbag.functional.stopping import should_stop

        return self.patience is not None and should_stop(history, self.patience, self.min_delta)

    def notes(self, context: Context) -> Iterable[str]:
        """A learning rate that decays to the end of the run and early stopping work against each other."""
        decays = [trick.kind for trick in context.recipe.tricks.values() if trick.slot == "decay"]
        if self.patience is not None and decays:
            yield (
                f"early_stopping may end training before {decays[0]} has brought the learning rate down, "
                "and the gain that comes with a low rate is then lost: a shorter run without "
                "early_stopping is often better"
            )
