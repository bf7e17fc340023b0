"""Tricks that choose which images make up an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.tricks.base import Card
from trickbag.tricks.stages import SamplerTrick

if TYPE_CHECKING:
    import numpy as np

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["BalancedSampling", "RepeatedAugmentation"]


class BalancedSampling(SamplerTrick):
    """Draws classes in other proportions than the data's, down to as many images of each.

    Attributes:
        power: class c is drawn in proportion to ``counts[c] ** (1 - power)``: 1 for all alike, 0.5 for the
            square root of the counts, 0 for the data's own proportions.
    """

    kind = "balanced_sampling"
    rank = 30
    null_setting = {"power": 0}
    card = Card(
        title="Class-balanced sampling",
        summary="Shows rare classes more often and common ones less often; an epoch keeps its length. An "
        "image comes again only once all of its class have come: classes with fewer images than places are "
        "gone through several times, of larger ones some are left out, others in each epoch.",
        source="Kang et al. 2020, arXiv:1910.09217, section 3, sampling strategies (q there is 1 - power; "
        "0.5 is square-root sampling, Mahajan et al. 2018, arXiv:1805.00932); Shen et al. 2016, "
        "arXiv:1512.05830 (class-aware sampling)",
        formula="share of class c in an epoch = n_c^(1 - power) / sum_k n_k^(1 - power)",
        null="power = 0",
        cost="A sort of the labels an epoch.",
        suggested="power = 1 for balanced accuracy, 0.5 as a compromise. Helps when classes count alike but "
        "come unequally often. Hurts plain accuracy and calibration on data with the same imbalance, since "
        "the model learns another prior; and overfits classes of a few images, which come many times: "
        "augment strongly. class_weights and class_balanced do the same in the loss: one of them is enough.",
        aliases=(
            "class-balanced sampling",
            "balanced sampler",
            "oversampling",
            "ClassBalancedDataset",
            "square-root sampling",
            "class-aware sampling",
            "WeightedRandomSampler",
        ),
        library="trickbag: torch's WeightedRandomSampler has the same expectations, but draws every image "
        "with replacement, misses some that need not be missed, and cannot be resumed at a step",
        snippet="""\
import torch
from trickbag.functional.sampling import balance_classes

images = torch.rand(64, 3, 16, 16)
labels = torch.arange(64).clamp(min=55) - 55  # 56 images of class 0, one of each other
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    order = balance_classes(torch.randperm(64), labels, power=1.0)
    for batch in order.split(16):
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(labels[order].bincount())
""",
    )

    power: float = Field(default=1.0, ge=0, le=1)

    def epoch_order(self, order: np.ndarray, labels: np.ndarray, stream: Stream, epoch: int) -> np.ndarray:
        """Quotas of classes, filled with the first images of each in ``order``, shuffled."""
        if self.power == 0:
            return order
        import torch

        from trickbag.functional.sampling import balance_classes

        given = torch.tensor(order), torch.tensor(labels)
        return balance_classes(*given, self.power, stream.torch(epoch)).numpy()

    def notes(self, context: Context) -> Iterable[str]:
        """How often images of the rarest and of the commonest class come."""
        found = {count: k for k, count in enumerate(context.facts.counts) if count}
        if self.power == 0 or not found:
            return
        if len(found) == 1:
            yield "all classes are of equal size already: nothing changes but the order of the images"
            return
        weights = sum(count ** (1 - self.power) for count in context.facts.counts if count)

        def told(count: int) -> str:
            times = sum(context.facts.counts) * count ** (1 - self.power) / weights / count
            return f"each of the {count} images of {context.facts.classes[found[count]]} {times:.2g} times"

        yield f"an epoch shows {told(min(found))}, {told(max(found))} on average"


class RepeatedAugmentation(SamplerTrick):
    """Shows each image several times in a batch, augmented differently, and fewer images an epoch.

    Attributes:
        repeats: how often an image comes in a row; 1 for once.
    """

    kind = "repeated_augmentation"
    rank = 70
    null_setting = {"repeats": 1}
    card = Card(
        title="Repeated augmentation",
        summary="Each image comes several times, one after the other, every time with a crop and "
        "augmentation of its own. An epoch keeps its number of steps: it shows 1 / repeats of the images, "
        "others in each epoch.",
        source="Hoffer et al. 2020, arXiv:1901.09335 (batches grow there); at constant batch size Berman et "
        "al. 2019 (MultiGrain), arXiv:1902.05509, repeated augmentation; order as in the RASampler of DeiT, "
        "timm and torchvision",
        formula="epoch = first ceil(n / repeats) images of a random order, each `repeats` times in a row",
        null="repeats = 1",
        cost="None.",
        suggested="repeats = 3 (DeiT, ResNet strikes back), 4 (torchvision's ResNet-50). Helps long training "
        "with strong augmentation (Fort et al. 2021, arXiv:2105.13343). Hurts short training: in the same "
        "steps, each image is seen in fewer epochs. A batch holds fewer different images, which batch norm "
        "notices; a multiple of repeats keeps all of an image together. With several processes, the "
        "references deal repeats out to them; here they stay side by side, and the update sees the same "
        "images. With partner = roll, mixup and cutmix mix most images with their own repeats.",
        aliases=("RASampler", "RepeatAugSampler", "batch augmentation", "aug-repeats", "ra_sampler", "RA"),
        library="trickbag: timm's and torchvision's samplers shuffle for themselves, and cut epochs by the "
        "number of processes",
        snippet="""\
import torch
from trickbag.functional.augment import flip
from trickbag.functional.sampling import repeat_images

images, labels = torch.rand(48, 3, 16, 16), torch.randint(10, (48,))
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(2):
    for batch in repeat_images(torch.randperm(48), repeats=3).split(12):  # 4 images, 3 times each
        augmented = flip(images[batch], torch.rand(12) < 0.5)
        loss = torch.nn.functional.cross_entropy(model(augmented), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
""",
    )

    repeats: int = Field(default=3, ge=1)

    def epoch_order(self, order: np.ndarray, labels: np.ndarray, stream: Stream, epoch: int) -> np.ndarray:
        """The first images of ``order``, each ``repeats`` times in a row."""
        import torch

        from trickbag.functional.sampling import repeat_images

        return repeat_images(torch.tensor(order), self.repeats).numpy()

    def notes(self, context: Context) -> Iterable[str]:
        """How many different images an epoch shows."""
        if self.repeats == 1:
            return
        timeline, count = context.timeline, context.facts.sizes["train"]
        shown = math.ceil(timeline.steps_per_epoch * timeline.batch_size / self.repeats)
        yield f"an epoch shows {shown} of the {count} training images, {self.repeats} times each"
        if self.repeats > timeline.batch_size:
            yield f"a batch of {timeline.batch_size} holds a single image, or two"
