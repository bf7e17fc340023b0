"""Tricks that predict several crops, or several sizes, of each image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.plan import Context
    from trickbag.tricks.stages import Predictor, Upstreams

Scale = Annotated[float, Field(gt=0, le=8)]


def evaluation_sizes(context: Context) -> list[tuple[int, int]]:
    """Every (resize, crop) at which a recipe may be evaluated: its own first, then what it tries."""
    own = context.recipe.evaluation
    tried = (trick.candidates(*own) for trick in context.recipe.tricks.of(PredictTrick))
    return list(dict.fromkeys([own, *(size for sizes in tried for size in sizes)]))


class TTACrops(PredictTrick):
    """Averages the predictions for the corners and the center of each image, and of its mirror image.

    Attributes:
        crops: 10 for the four corners, the center and their mirror images; 5 without mirror images; 0 for
            the center alone.
        average: ``probabilities`` for their mean; ``logits`` for the softmax of the mean logits (see
            ``tta_flip``).
    """

    kind = "tta_crops"
    slot = "views"
    null_setting = {"crops": 0}
    example = {"crops": 10}
    card = Card(
        title="Five and ten crop",
        summary="Resizes the short side to eval_resize, takes the centered square of it, and averages the "
        "predictions for its four corners and its center, each of eval_size, and their mirror images.",
        source="Krizhevsky et al. 2012, ImageNet Classification with Deep CNNs, section 4.1",
        formula="p(x) = mean over the crops c of p(c)",
        null="crops = 0",
        cost="Prediction takes ten times as long (five times without mirror images); training is untouched.",
        suggested="eval_resize = 1.143 x eval_size (256 for 224). Helps where objects are off center or cut "
        "off; a larger eval_size often gains as much for less. Corners are those of the centered square: "
        "those of a wide image may not show the object at all. Mirror images hurt where left and right "
        "carry meaning: crops = 5. Takes the place of tta_flip.",
        aliases=("ten crop", "10-crop", "five crop", "5-crop", "multi-crop testing", "corner crops"),
        library="slices; crop for crop torchvision's FiveCrop and TenCrop, which make a list an image",
        snippet="""\
import torch
from trickbag.functional.predicting import predict_with_crops

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
larger = torch.rand(8, 3, 20, 20)
with torch.inference_mode():
    probabilities = predict_with_crops(lambda x: model(x).softmax(1), larger, size=16)
""",
    )

    crops: Literal[10, 5, 0] = 10
    average: Literal["probabilities", "logits"] = "probabilities"

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """The predictor that averages the crops of ``size``; None: of images that are one crop already."""
        if not self.crops:
            return predict

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_with_crops

            side, flip = size or images.shape[-1], self.crops == 10
            return predict_with_crops(predict, images, side, flip=flip, average=self.average)

        return averaged

    def view(self, resize: int, crop: int) -> tuple[int, int]:
        """The whole square of ``resize`` pixels."""
        return (resize, resize) if self.crops else (resize, crop)

    def check(self, context: Context) -> Iterable[Problem]:
        """There is nothing to crop from where the short side is resized to the size of the crop."""
        if self.crops and all(resize == crop for resize, crop in evaluation_sizes(context)):
            crop = context.recipe.evaluation[1]
            yield self.problem(
                f"the crop of {crop} px is the whole image: all crops are the same",
                expected=f"eval_resize above {crop}",
                fix=f"--set eval_resize={max(crop + 1, round(1.143 * crop))}, or remove it: "
                f"--without {self.kind}",
            )


class TTAScales(PredictTrick):
    """Averages the predictions for each image at several sizes.

    Attributes:
        scales: sizes as a share of the evaluation image's own; 1 leaves it alone, all others are resized
            (bilinear, antialiased) from the image as the model would see it.
        multiple: pixels to whose multiples sizes are rounded; None: the patch size of models with patches,
            1 for others.
        average: ``probabilities`` for their mean; ``logits`` for the softmax of the mean logits (see
            ``tta_flip``).
    """

    kind = "tta_scales"
    slot = "scales"
    rank = 30
    null_setting = {"scales": (1.0,)}
    example = {"scales": (1.0, 1.25)}
    card = Card(
        title="Multi-scale testing",
        summary="Predicts each image at several sizes and averages the predictions. Goes with tta_flip, "
        "tta_views or tta_crops: each of their views is then predicted at every size.",
        source="Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2; He et al. 2016, arXiv:1512.03385, "
        "section 3.4",
        formula="p(x) = mean over the scales s of p(x resized by s)",
        null="scales = (1,)",
        cost="Prediction takes the sum of the squared scales times as long: 3.03 at the default. Training is "
        "untouched.",
        suggested="scales between 0.8 and 1.3: what a net sees at other scales than in training it "
        "predicts worse. Helps most where objects vary in size and training crops did too "
        "(random_resized_crop). Try one larger eval_size first: it often gives the same for less.",
        aliases=("multi-scale evaluation", "scale jittering at test time", "multi-resolution testing", "MS"),
        library="torch.nn.functional.interpolate with antialias=True",
        snippet="""\
import torch
from trickbag.functional.predicting import predict_with_scales

pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *pool, torch.nn.Linear(8, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.inference_mode():
    probabilities = predict_with_scales(lambda x: model(x).softmax(1), images, (0.875, 1.0, 1.125))
""",
    )

    scales: tuple[Scale, ...] = Field(default=(0.875, 1.0, 1.125), min_length=1)
    multiple: int | None = Field(default=None, ge=1)
    average: Literal["probabilities", "logits"] = "probabilities"

    def resolve(self, context: Context) -> TTAScales:
        """The patch size of the model, if it has patches."""
        from trickbag.functional.predicting import patch_multiple

        if self.multiple is not None:
            return self
        return self.model_copy(update={"multiple": patch_multiple(context.model)})

    def wrap(
        self, predict: Predictor, *, size: int | None = None, upstreams: Upstreams | None = None
    ) -> Predictor:
        """The predictor that averages all sizes."""
        if self.scales == (1,):
            return predict

        def averaged(images: Tensor) -> Tensor:
            from trickbag.functional.predicting import predict_with_scales

            multiple = self.multiple or 1
            return predict_with_scales(predict, images, self.scales, multiple=multiple, average=self.average)

        return averaged

    def check(self, context: Context) -> Iterable[Problem]:
        """The model must take every size, and no two scales may come to the same one."""
        from trickbag.functional.predicting import refusal, scaled_side

        for _, crop in evaluation_sizes(context):
            sizes = [scaled_side(crop, scale, self.multiple or 1) for scale in self.scales]
            twice = {size for size in sizes if sizes.count(size) > 1}
            if twice:
                same = " and ".join(
                    f"{scale:g}" for scale, size in zip(self.scales, sizes, strict=True) if size in twice
                )
                yield self.problem(
                    f"scales {same} of {crop} px come to the same size of {min(twice)} px",
                    expected=f"sizes that differ, in multiples of {self.multiple or 1} px",
                    fix=f"--set {self.kind}.scales=..., or remove it: --without {self.kind}",
                )
            for size in dict.fromkeys(sizes):
                reason = None if size == crop else refusal(context.model, context.facts.channels, size)
                if reason is not None:
                    yield self.problem(
                        f"model {context.recipe.model.name} cannot take images of {size} px: {reason}",
                        expected="a model that takes images of any size",
                        fix=f"--set {self.kind}.scales=..., --set {self.kind}.multiple=..., or remove it: "
                        f"--without {self.kind}",
                    )
