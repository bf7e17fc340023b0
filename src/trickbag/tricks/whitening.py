"""A first layer that is computed from training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from trickbag.errors import PlanError, Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import ModelTrick

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trickbag.plan import Context
    from trickbag.rng import Stream

__all__ = ["Whitening"]


class Whitening(ModelTrick):
    """Put a fixed convolution before the first one that whitens patches of the images.

    Attributes:
        kernel: height and width of the patches; 0 leaves the model as it is.
        eps: added to the eigenvalues of the patches' covariance.
        bias: give the convolution a bias, which is trained.
        images: number of training images, evenly spaced, that it is computed from.
        pad: add zeros below and to the right, so that the next layer sees maps of the images' size; False
            (the paper) makes them smaller by ``kernel`` - 1.
    """

    kind = "whitening"
    rank = 40
    null_setting = {"kernel": 0}
    example = {"images": 16}
    card = Card(
        title="Patch-whitening first layer",
        summary="A frozen convolution turns each small patch of the image into its principal components, "
        "scaled to the same power, and their negatives. After GELU, the model's own first convolution takes "
        "them instead of colors. It is computed once from training images as evaluation shows them.",
        source="Page 2018, How to train your ResNet, part 8; Jordan 2024, arXiv:2404.00498, section 3.1",
        formula="filters = eigenvectors of E[x x^T] / sqrt(eigenvalue + eps), x the patches; and -filters",
        null="kernel: 0",
        cost="One convolution more at full size (24 channels for color and kernel 2), and a first one with 8 "
        "times the inputs; seconds at the start.",
        suggested="kernel 2 for 32 px and short training: airbench's largest single gain. Fewer epochs, more "
        "gain. With muon, the old first convolution counts as a hidden layer.",
        aliases=(
            "whitened first layer",
            "patch whitening",
            "frozen whitening convolution",
            "ZCA",
            "PCA init",
        ),
        snippet="""\
import torch
from torch import nn
from trickbag.functional.whitening import calibrate, whiten_first_layer

model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 10))
images, labels = torch.rand(8, 3, 16, 16), torch.randint(10, (8,))
whiten_first_layer(model, kernel=2)
calibrate(model, [images])
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(model[0])
""",
    )

    kernel: int = Field(default=2, ge=0, le=7)
    eps: float = Field(default=5e-4, gt=0)
    bias: bool = True
    images: int = Field(default=2000, ge=1)
    pad: bool = True

    def edit(self, model: nn.Module, stream: Stream) -> nn.Module:
        """Edit in place; the widened convolution is drawn from ``stream.child(name)``.

        Raises:
            PlanError: the model does not begin with a plain convolution.
        """
        if not self.kernel:
            return model
        from trickbag.functional.surgery import CannotOperate
        from trickbag.functional.whitening import whiten_first_layer

        try:
            whiten_first_layer(
                model,
                self.kernel,
                bias=self.bias,
                pad=self.pad,
                generators=lambda name: stream.child(name).torch(),
            )
        except CannotOperate as error:
            expected = "a model whose first layer is a convolution of the images"
            raise PlanError(self.problem(str(error), expected=expected)) from None
        return model

    @property
    def sample_size(self) -> int:
        """``images``, if there is something to compute."""
        return self.images if self.kernel else 0

    def calibrate(self, model: nn.Module, images: Iterable[Tensor]) -> None:
        """Compute the frozen weights."""
        from trickbag.functional.whitening import calibrate

        calibrate(model, images, self.eps)

    def check(self, context: Context) -> Iterable[Problem]:
        """Pretrained layers know no whitened images; a patch fits into an image."""
        recipe = context.recipe
        if self.kernel and recipe.model.starts_pretrained:
            yield self.problem(
                f"it replaces the first layer of {recipe.model.name}, and the pretrained ones behind it have "
                "never seen whitened images"
            )
        elif self.kernel > recipe.image_size:
            yield self.problem(f"images of {recipe.image_size} px have no patches of {self.kernel} px")
