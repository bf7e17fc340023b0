"""Tricks that change how a trained model predicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Predictor, Upstreams


class TTAFlip(PredictTrick):
    """Averages the predictions for each image and its mirror image.

    Attributes:
        flip: False to predict the image alone.
        average: ``probabilities`` for their mean; ``logits`` for the softmax of the mean logits. Logits are
            recovered as log-probabilities: the two differ by a constant a view, which softmax cancels.
    """

    kind = "tta_flip"
    slot = "views"
    null_setting = {"flip": False}
    example = {"average": "logits"}
    card = Card(
        title="Test-time augmentation by flipping",
        summary="Predicts each image and its mirror image, and averages the two predictions.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1; Simonyan and "
        "Zisserman 2015, arXiv:1409.1556, section 3.2",
        formula="p = (p(image) + p(mirrored)) / 2, or softmax((log p(image) + log p(mirrored)) / 2)",
        null="flip = False",
        cost="Prediction takes twice as long; training is untouched.",
        suggested="Helps a little where random_flip helps in training. Hurts where left and "
        "right carry meaning. Averaging logits or probabilities rarely makes a difference.",
        aliases=("test-time augmentation", "TTA", "flip TTA", "horizontal flip at test time"),
        snippet="""\
import torch
from trickbag.functional.predicting import predict_with_flip

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.inference_mode():
    probabilities = predict_with_flip(lambda x: model(x).softmax(1), images)
""",
    )

    flip: bool = True
    average: Literal["probabilities", "logits"] = "probabilities"

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """The predictor that averages two views."""
        if not self.flip:
            return predict

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_with_flip

            return predict_with_flip(predict, images, self.average)

        return averaged


class TTAViews(PredictTrick):
    """Averages the predictions for each image, for shifted copies, and for the mirror images of them all.

    Attributes:
        shift: pixels, down and right in one view and up and left in another, of images as the model sees
            them; the border is mirrored. 0 for no shifted views.
        flip: whether to predict mirror images too.
        average: ``probabilities`` for their weighted mean; ``logits`` for the softmax of the weighted mean of
            the logits, as in the paper (see ``tta_flip``).
    """

    kind = "tta_views"
    slot = "views"
    null_setting = {"shift": 0, "flip": False}
    example = {"shift": 1}
    card = Card(
        title="Test-time augmentation by flipping and shifting",
        summary="Predicts each image, two copies shifted along the diagonals, and the mirror images of the "
        "three. The image in place and its mirror image weigh half, all shifted ones the other half.",
        source="Jordan 2024, arXiv:2404.00498, section 3.6 and listing (airbench, level 2)",
        formula="z = (z(image) + z(mirrored)) / 4 + (sum of z over the 4 shifted views) / 8, p = softmax(z)",
        null="shift = 0 and flip = False",
        cost="Prediction takes six times as long (three times without flip); training is untouched.",
        suggested="shift = 1 for 32 px, where training shifts images too (pad_and_crop). Helps nets with "
        "strides most, whose predictions depend on where the grid falls. Takes the place of tta_flip.",
        aliases=("multi-crop evaluation", "multi-view TTA", "shift TTA"),
        snippet="""\
import torch
from trickbag.functional.predicting import predict_with_views

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.inference_mode():
    probabilities = predict_with_views(lambda x: model(x).softmax(1), images, shift=1)
""",
    )

    shift: int = Field(default=1, ge=0)
    flip: bool = True
    average: Literal["probabilities", "logits"] = "logits"

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """The predictor that averages all views."""
        if not self.shift and not self.flip:
            return predict

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_with_views

            return predict_with_views(predict, images, self.shift, flip=self.flip, average=self.average)

        return averaged

    def check(self, context: Context) -> Iterable[Problem]:
        """A mirrored border is narrower than the image."""
        size = context.recipe.evaluation[1]
        if self.shift >= size:
            yield self.problem(
                f"images of {size} px cannot be shifted by {self.shift}",
                expected=f"shift below {size}",
                fix=f"--set {self.kind}.shift=1, or remove it: --without {self.kind}",
            )
