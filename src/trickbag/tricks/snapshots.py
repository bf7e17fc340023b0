"""Tricks that keep several sets of weights of one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import Timeline, WeightsTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.plan import Context


class SnapshotEnsemble(WeightsTrick):
    """Keeps the weights at several moments of one run, and averages the probabilities of all of them.

    Attributes:
        count: how many; the last one is the end of the run.
        every: epochs between two of them; None divides the run into ``count`` equal parts.
    """

    kind = "snapshot_ensemble"
    # After whatever averages weights: what it holds is no set of weights that others could go on from.
    rank = 95
    null_setting = {"count": 1}
    example = {"count": 2}
    card = Card(
        title="Snapshot ensemble",
        summary="Keeps the weights at the ends of equal parts of the run, and averages the probabilities "
        "that they predict: an ensemble for the training of one model. Training itself does not change.",
        formula="p = (p[1] + ... + p[count]) / count, of the weights after each part of the run",
        source="Huang et al. 2017, arXiv:1704.00109, section 3",
        null="count = 1 (the last weights alone)",
        cost="Memory and disk for `count` more copies of the weights; a copy of them at each step before the "
        "first is kept; predictions, those of evaluations during training too, take up to `count` times as "
        "long.",
        suggested="With warm_restarts whose cycles end when snapshots are taken: multiplier 1 and first = "
        "epochs / count, 3 to 6 cycles. Without a schedule that falls in between, early snapshots are much "
        "worse than the last and drag it down. One cosine over the whole budget is a strong competitor, and "
        "so are ensembles of separate runs, which differ more.",
        aliases=("checkpoint ensemble", "snapshot ensembles", "ensemble of checkpoints", "cyclic ensemble"),
        library="torch.func.functional_call, which predicts with each set of weights",
        snippet="""\
import torch
from trickbag.functional.snapshots import snapshots_of, start_snapshots, take_snapshot

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
state = start_snapshots(model, count=3)
for step in range(9):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 3 == 0:
        take_snapshot(state, model, step // 3)
with torch.inference_mode():
    each = [torch.func.functional_call(model, one, (images,)).softmax(1) for one in snapshots_of(state)]
    probabilities = torch.stack(each).mean(0)
""",
    )

    count: int = Field(default=3, ge=1, le=100)
    every: float | None = Field(default=None, gt=0)

    def moments(self, timeline: Timeline) -> tuple[int, ...]:
        """The numbers of updates, from 1, after which weights are kept; the last is the end of the run."""
        apart = timeline.steps / self.count
        if self.every is not None:
            apart = self.every * timeline.steps_per_epoch
        return tuple(round(timeline.steps - k * apart) for k in reversed(range(self.count)))

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """``count`` copies of the tensors of ``model.state_dict()``."""
        from trickbag.functional.snapshots import start_snapshots

        return start_snapshots(model, self.count)

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Keep the weights if it is time; before any are kept, the first ones follow the model."""
        from trickbag.functional.snapshots import take_snapshot

        moments = self.moments(timeline)
        if step + 1 in moments:
            take_snapshot(average, model, moments.index(step + 1))
        elif step + 1 < moments[0]:
            take_snapshot(average, model, 0, keep=False)

    def check(self, context: Context) -> Iterable[Problem]:
        """All moments must lie within the run, and differ."""
        moments = self.moments(context.timeline)
        if moments[0] < 1 or len(set(moments)) < self.count:
            steps, per_epoch = context.timeline.steps, context.timeline.steps_per_epoch
            yield self.problem(
                f"{steps} updates ({steps / per_epoch:g} epochs) have no room for {self.count} snapshots",
                expected="fewer of them, or less far apart",
                fix=f"--set {self.kind}.every=null, or remove it: --without {self.kind}",
            )
