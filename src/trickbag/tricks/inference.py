"""Tricks that change how a trained model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trickbag.tricks.base import Card, PredictTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.tricks.base import Predictor


class TTAFlip(PredictTrick):
    """Averages the predictions for each image and its mirror image.

    Attributes:
        flip: False to predict the image alone.
        average: ``probabilities`` for their mean; ``logits`` for the softmax of the mean logits. Logits are
            recovered as log-probabilities: the two differ by a constant a view, which softmax cancels.
    """

    kind = "tta_flip"
    null_setting = {"flip": False}
    example = {"average": "logits"}
    card = Card(
        title="Test-time augmentation by flipping",
        summary="Predicts each image and its mirror image, and averages the two predictions.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1; Simonyan and "
        "Zisserman 2015, arXiv:1409.1556, section 3.2",
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

    def wrap(self, predict: Predictor) -> Predictor:
        """The predictor that averages two views."""
        if not self.flip:
            return predict

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_with_flip

            return predict_with_flip(predict, images, self.average)

        return averaged
