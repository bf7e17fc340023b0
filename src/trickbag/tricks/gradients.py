"""Tricks that act on gradients: clipping, and their accumulation over parts of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import GradientTrick, MicroBatchTrick

if TYPE_CHECKING:
    from torch import nn

    from trickbag.plan import Context

__all__ = ["GradientAccumulation", "GradientClipping"]


class GradientClipping(GradientTrick):
    """Limit the size of gradients.

    Attributes:
        mode: ``norm`` limits the norm of all gradients together; ``value`` each entry; ``adaptive`` the
            norm of each unit's gradient (a row of a weight) relative to that of its weights, except in
            the classifier.
        limit: the limit; None does nothing.
        eps: shortest norm that a unit's weights are taken for (``adaptive``).
    """

    kind = "gradient_clipping"
    slot = "clipping"
    null_setting = {"limit": None}
    example = {"mode": "norm", "limit": 0.1}
    card = Card(
        title="Gradient clipping",
        summary="Scales gradients down where they are larger than a limit, so that one odd batch cannot "
        "throw the weights far off. Adaptive clipping measures them against the weights they belong to.",
        source="Norm: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1. Adaptive: Brock et al. 2021, "
        "arXiv:2102.06171, section 4.1",
        formula="norm:     g = g * min(1, limit / |g|), |g| over all parameters\n"
        "value:    g = min(max(g, -limit), limit)\n"
        "adaptive: g_i = g_i * min(1, limit * max(|w_i|, eps) / |g_i|), for each unit i",
        null="limit: null",
        cost="One pass over the gradients; nothing waits for the device.",
        suggested="norm with limit 1 for transformers, 2 to 10 for convolutional nets without warmup; "
        "adaptive with 0.01 for nets without normalization, larger for batches below 1,024. Of little use to "
        "muon, whose steps do not depend on the size of gradients.",
        aliases=("clip grad norm", "grad clip", "adaptive gradient clipping", "AGC", "clip value"),
        library="torch._foreach ops; torch.nn.utils.clip_grad_norm_ and timm's adaptive_clip_grad go tensor "
        "by tensor on a CPU.",
        snippet="""\
import torch
from torch import nn
from trickbag.functional.gradients import clip_norm

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
for step in range(3):
    nn.functional.cross_entropy(model(images), labels).backward()
    print("norm before clipping", clip_norm(model.parameters(), 0.1))
    optimizer.step()
    optimizer.zero_grad()
""",
    )

    mode: Literal["norm", "value", "adaptive"] = "norm"
    limit: float | None = Field(default=1.0, gt=0)
    eps: float = Field(default=1e-3, gt=0)

    def transformation(self, model: nn.Module) -> Callable[[], None] | None:
        """What clips all gradients of the model."""
        if self.limit is None:
            return None
        from trickbag.functional import gradients
        from trickbag.functional.layers import last_layers

        limit, eps = self.limit, self.eps
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if self.mode == "adaptive":
            heads = tuple(f"{name}." for name in last_layers(model))
            chosen = [p for name, p in named.items() if not name.startswith(heads)]
            return lambda: gradients.clip_adaptive(chosen, limit, eps)
        parameters = list(named.values())
        if self.mode == "value":
            return lambda: gradients.clip_value(parameters, limit)

        def clip() -> None:
            gradients.clip_norm(parameters, limit)

        return clip


class GradientAccumulation(MicroBatchTrick):
    """Send each batch through the model in parts, and add up their gradients.

    Attributes:
        steps: number of parts; 1 for the whole batch at once. With several processes, of each one's share.
    """

    kind = "gradient_accumulation"
    null_setting = {"steps": 1}
    example = {"steps": 3}
    card = Card(
        title="Gradient accumulation",
        summary="Cuts a batch, after mixing, into parts that go through the model one after the other; the "
        "optimizer steps once, on the gradient of the whole batch. batch_size stays the size of that batch.",
        source="Common practice; Ott et al. 2018, arXiv:1806.00187, section 3.2 (delayed updates)",
        formula="g = sum over parts k of (n_k / n) * gradient(mean loss of part k), n_k images of n",
        null="steps: 1",
        cost="Memory for the activations of one part only. As much arithmetic in smaller pieces: a little "
        "slower.",
        suggested="The smallest number that fits the memory. Gradients are those of the whole batch up to "
        "rounding, except that batch norm sees the statistics of a part.",
        aliases=("grad accumulation", "micro-batches", "delayed updates", "virtual batch size"),
        snippet="""\
import torch
from torch import nn

model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
for part, target in zip(images.tensor_split(3), labels.tensor_split(3)):  # 22, 21 and 21 images
    loss = nn.functional.cross_entropy(model(part), target, reduction="sum") / len(images)
    loss.backward()
summed = model.weight.grad.clone()
optimizer.step()
optimizer.zero_grad()
""",
    )

    steps: int = Field(default=1, ge=1)

    def parts(self, images: int) -> int:
        """``steps``, or one for each image if there are fewer."""
        return min(self.steps, images)

    def check(self, context: Context) -> Iterable[Problem]:
        """There are no more parts than images."""
        size = context.recipe.batch_size
        if self.steps > size:
            yield self.problem(
                f"a batch of {size} images cannot be cut into {self.steps} parts",
                expected=f"steps of at most {size}",
                fix=f"--set {self.kind}.steps={max(1, size // 2)}, or remove it: --without {self.kind}",
            )
