"""Tricks that choose the images over which batch norm takes its statistics."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import PlanError, Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick, Timeline, WeightsTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["BNReestimation", "GhostBatchNorm", "SyncBatchNorm"]


class GhostBatchNorm(ModelTrick):
    """Let batch norm see parts of the batch.

    Attributes:
        size: least number of images in a ghost batch; None leaves batch norm as it is.
    """

    kind = "ghost_batch_norm"
    rank = 30
    slot = "batch_norm"
    null_setting = {"size": None}
    example = {"size": 3}
    card = Card(
        title="Ghost batch normalization",
        summary="While training, batch norm normalizes parts of the batch, each by its own mean and "
        "variance: the noise of small batches, which regularizes, at the speed of large ones.",
        source="Hoffer et al. 2017, arXiv:1705.08741, section 4 and algorithm 1",
        null="size: null; a size of at least the batch is batch norm too, to the bit",
        cost="Saves no memory. Slower: one kernel for each ghost batch, and a copy of every output.",
        suggested="32 (16 to 64) for batches of 256 and more, whose statistics have hardly any noise left. "
        "Hurts with batches of less than about 64: parts of few images have poor statistics. A batch of n is "
        "cut into n // size parts. Running statistics move once a step, toward the mean over the parts "
        "(algorithm 1: once a part), so evaluation is that of batch norm.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.normalization import ghost_norms

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
images = torch.rand(64, 3, 8, 8)
names = list(model.state_dict())
print(ghost_norms(model, size=16), model)
assert list(model.state_dict()) == names
first = model(images)[:16]
torch.testing.assert_close(first, model(images[:16]))  # the first ghost batch sees itself alone
""",
        aliases=("ghost BN", "GBN", "virtual batch size", "virtual batch normalization", "split batch norm"),
        formula="y = (x - mean_g) / sqrt(var_g + eps) * weight + bias, over the ghost batch g of x\n"
        "running statistics move toward the mean over g of (mean_g, var_g)",
        library="trickbag: neither torch nor timm has one that keeps a model's own norms (timm's split_bn "
        "gives each part weights of its own).",
    )

    size: int | None = Field(default=32, ge=2)

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; names and weights stay as they are.

        Raises:
            PlanError: the model has no batch norm of images.
        """
        if self.size is None:
            return model
        from trickbag.functional.normalization import ghost_norms
        from trickbag.functional.surgery import CannotOperate

        try:
            ghost_norms(model, self.size)
        except CannotOperate as error:
            raise PlanError(self.problem(str(error), expected="a model with batch norm")) from None
        return model

    def notes(self, context: Context) -> Iterable[str]:
        """A batch of less than two ghost batches is not cut."""
        batch = context.recipe.batch_size
        if self.size is not None and batch < 2 * self.size:
            yield f"a batch of {batch} holds less than two ghost batches of {self.size}: this is batch norm"


class SyncBatchNorm(ModelTrick):
    """Let batch norm see the images of all processes."""

    kind = "sync_batch_norm"
    rank = 30
    slot = "batch_norm"
    alone = False
    null_setting = {}
    card = Card(
        title="Synchronized batch normalization",
        summary="Where several processes train together, batch norm normalizes by the mean and variance of "
        "the images of all of them, as one process with the whole batch would.",
        source="Peng et al. 2018, arXiv:1711.07240, section 3.3; Ioffe and Szegedy 2015, arXiv:1502.03167",
        null="a single process: there is nothing to synchronize, and it is batch norm",
        cost="Processes wait for each other at every batch norm, forward and backward.",
        suggested="Where a process has fewer than about 16 images (large images, detection, segmentation). "
        "Costs time and helps nothing where each has 32 and more. It makes results independent of the number "
        "of processes.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.normalization import synchronized_norms

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
images = torch.rand(4, 3, 8, 8)
before = model(images)
print(synchronized_norms(model), model)
assert torch.equal(model(images), before)  # alone, it is batch norm
# then torch.distributed.init_process_group() and DistributedDataParallel(model), in each process
""",
        aliases=("SyncBN", "SyncBatchNorm", "cross-GPU batch norm", "CGBN", "synchronised BN"),
        formula="y = (x - mean) / sqrt(var + eps) * weight + bias\n"
        "mean and var over the images of all processes",
        library="torch.nn.SyncBatchNorm on CUDA; a differentiable sum over processes of ours elsewhere, "
        "since torch's needs CUDA.",
    )

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; names and weights stay as they are.

        Raises:
            PlanError: the model has no batch norm.
        """
        from trickbag.functional.normalization import synchronized_norms
        from trickbag.functional.surgery import CannotOperate

        try:
            synchronized_norms(model)
        except CannotOperate as error:
            raise PlanError(self.problem(str(error), expected="a model with batch norm")) from None
        return model


class BNReestimation(WeightsTrick):
    """Keeps the recipe's weights with batch norm's statistics estimated anew once training has ended.

    The weights are the average that the recipe would be read out with otherwise, or the raw ones.

    Attributes:
        images: number of training images, evenly spaced, as evaluation shows them; 0 keeps the statistics.
    """

    kind = "bn_reestimation"
    rank = 90
    null_setting = {"images": 0}
    example = {"images": 16}
    card = Card(
        title="Batch norm re-estimation",
        summary="The running statistics of batch norm lag behind the weights and come from augmented images. "
        "This replaces them, in a further set of weights, by those of a population of training images, as "
        "evaluation shows them. Training itself does not change.",
        source="Wu and Johnson 2021, arXiv:2105.07576, section 3 (PreciseBN)",
        null="images = 0 (the statistics stay)",
        cost="Memory for one more copy of the weights, and a copy of them at each step; `images` forward "
        "passes at the end; one more evaluation.",
        suggested="1,024 images or more. Helps where weights still move fast at the end (high learning rate, "
        "small batches), after averaging weights, and where evaluation shows images of another size or "
        "without augmentation. Changes little after a decay to 0. Do not use it with layers that were frozen "
        "with the statistics of their pretraining.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.averaging import reestimate_statistics

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
images = torch.rand(64, 3, 16, 16)
model.eval()
state = {name: value.clone() for name, value in model.state_dict().items()}
print(reestimate_statistics(model, state, images.split(32)))
model.load_state_dict(state)
maps = model[0](images)
torch.testing.assert_close(model[1].running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
torch.testing.assert_close(model[1].running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
""",
        aliases=("PreciseBN", "precise batch norm", "BN recalibration", "update_bn", "BN re-estimation"),
        formula="mean = E[mean_b], var = E[var_b + mean_b^2] - mean^2, over batches b of training images",
        library="trickbag: torch's update_bn and fvcore's PreciseBN work in place, and torch's leaves out "
        "the variance between batches.",
    )

    images: int = Field(default=1024, ge=0)

    def start(self, model: nn.Module) -> dict[str, Tensor]:
        """Copies of the tensors of ``model.state_dict()``."""
        from trickbag.functional.averaging import start_average

        return start_average(model)

    def update(self, average: dict[str, Tensor], model: nn.Module, step: int, timeline: Timeline) -> None:
        """Until the end of training, ``average`` equals the model."""
        from trickbag.functional.averaging import update_average

        update_average(average, model, 0)

    def rule(self, step: int, timeline: Timeline) -> Hashable:
        """A copy, at every step."""
        return None

    @property
    def sample_size(self) -> int:
        """``images``; 1 if that is 0, since the weights are still to be copied."""
        return self.images or 1

    def finish(
        self, averages: Mapping[str, dict[str, Tensor]], model: nn.Module, images: Iterable[Tensor]
    ) -> None:
        """Copy the last average of lower rank, or the raw weights, and estimate the statistics anew."""
        from trickbag.functional.averaging import reestimate_statistics

        kinds = list(averages)
        before = kinds[: kinds.index(self.kind)]
        source = averages[before[-1]] if before else model.state_dict()
        mine = averages[self.kind]
        for name, value in mine.items():
            value.copy_(source[name])
        if self.images:
            reestimate_statistics(model, mine, images)

    def check(self, context: Context) -> Iterable[Problem]:
        """There must be statistics to estimate, and images enough."""
        from trickbag.functional.averaging import batch_norms

        if self.images and not batch_norms(context.model):
            yield self.problem(f"{context.recipe.model.name} has no batch norm")
        elif self.images == 1:
            yield self.problem("statistics of one image mean nothing", expected="images: 0, or 2 and more")
