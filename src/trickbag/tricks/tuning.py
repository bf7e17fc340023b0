"""Tricks that choose on the selection split how a trained model predicts best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import PredictTrick

if TYPE_CHECKING:
    from trickbag.plan import Context

Ratio = Annotated[float, Field(ge=1, le=16)]
Size = Annotated[int, Field(ge=1, le=2**16)]


class ResizeTuning(PredictTrick):
    """Tries several sizes of evaluation images on the selection split and keeps the best one.

    Attributes:
        ratios: eval_resize / eval_size to try; empty keeps the recipe's own ratio.
        sizes: eval_size to try, each with every ratio; empty keeps the recipe's own.

    What the recipe says itself is always tried too. The best primary metric on the selection split wins; of
    equals, the one nearest to the recipe's.
    """

    kind = "resize_tuning"
    null_setting = {"ratios": (), "sizes": ()}
    example = {"ratios": (1.0, 1.5, 2.0, 3.0)}
    card = Card(
        title="Inference-resize tuning",
        summary="After training, measures the selection split at several resizes of the short side before "
        "the center crop (and several crop sizes, if asked), and predicts with the best one.",
        source="Vryniotis 2021, How to train state-of-the-art models using TorchVision's latest primitives, "
        "section Inference resize tuning; Touvron et al. 2019, arXiv:1906.06423, section 5",
        formula="(resize, crop) = argmax of the primary metric on the selection split",
        null="ratios = () and sizes = ()",
        cost="One evaluation of the selection split a candidate; no training.",
        suggested="The default ratios at a fixed size. Objects look larger in random resized crops than in "
        "center crops of the same images, so that a larger eval_size, or a smaller ratio, tends to help nets "
        "trained with random_resized_crop; sizes = 1, 1.14 and 1.29 times image_size. With a small selection "
        "split the best of many is luck: use few candidates. Its number on the selection split flatters it; "
        "that on the test split does not.",
        aliases=(
            "inference resize",
            "test resolution tuning",
            "eval resize search",
            "resize tuning",
            "crop ratio",
        ),
        library="the evaluation that measures everything else",
        snippet="""\
import torch
from trickbag.functional.resize import crop_resize

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def accuracy(selection: torch.Tensor, labels: torch.Tensor, ratio: float) -> float:
    side = 16 / ratio  # resizing to 16 * ratio and cropping 16 pixels sees this much of the image
    box = torch.tensor([[(16 - side) / 2, (16 - side) / 2, side, side]], dtype=torch.float64)
    seen = crop_resize(selection, box.expand(len(selection), -1), 16)
    with torch.inference_mode():
        return float((model(seen).argmax(1) == labels).float().mean())


best = max((1.0, 1.143, 1.3), key=lambda ratio: accuracy(images, labels, ratio))
""",
    )

    ratios: tuple[Ratio, ...] = (1.0, 1.1, 1.143, 1.25, 1.3)
    sizes: tuple[Size, ...] = ()

    def candidates(self, resize: int, crop: int) -> tuple[tuple[int, int], ...]:
        """The recipe's own first, then the others, smallest first; none at the null setting."""
        if not self.ratios and not self.sizes:
            return ()
        ratios = self.ratios or (resize / crop,)
        tried = {(round(ratio * size), size) for size in self.sizes or (crop,) for ratio in ratios}
        return (resize, crop), *sorted(tried - {(resize, crop)})

    def check(self, context: Context) -> Iterable[Problem]:
        """There must be something to choose from, and the model must take it."""
        from trickbag.functional.predicting import refusal

        own = context.recipe.evaluation
        tried = self.candidates(*own)
        if len(tried) == 1:
            yield self.problem(
                f"the only candidate is the recipe's own: resize to {own[0]} px, crop of {own[1]} px",
                expected="other ratios or sizes",
                fix=f"--set {self.kind}.ratios=[1.0,1.143,1.3], or remove it: --without {self.kind}",
            )
        for size in dict.fromkeys(crop for _, crop in tried if crop != own[1]):
            reason = refusal(context.model, context.facts.channels, size)
            if reason is not None:
                yield self.problem(
                    f"model {context.recipe.model.name} cannot take images of {size} px: {reason}",
                    fix=f"take it out of {self.kind}.sizes, or remove it: --without {self.kind}",
                )

    def notes(self, context: Context) -> Iterable[str]:
        """The best of several flatters itself on the images it was chosen on."""
        count = len(self.candidates(*context.recipe.evaluation))
        if count:
            yield (
                f"the best of {count} sizes on the selection split: its number there is too good, "
                "the test split confirms it"
            )
