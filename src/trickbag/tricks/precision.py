"""Tricks that choose the arithmetic."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from trickbag.errors import Problem
from trickbag.tricks.base import Card
from trickbag.tricks.stages import PrecisionTrick

if TYPE_CHECKING:
    from trickbag.plan import Context

__all__ = ["MixedPrecision"]

_FABRIC = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


class MixedPrecision(PrecisionTrick):
    """Compute forward and backward passes in half precision; weights stay float32.

    Attributes:
        dtype: ``bf16``, ``fp16`` (with loss scaling, GPU only) or ``fp32``.
    """

    kind = "mixed_precision"
    null_setting = {"dtype": "fp32"}
    example = {"dtype": "bf16"}
    card = Card(
        title="Mixed precision",
        summary=(
            "Runs convolutions and matrix products in 16 bits while weights, reductions and the loss stay in "
            "32; fp16 also scales the loss so that small gradients do not vanish."
        ),
        source="Micikevicius et al. 2018, arXiv:1710.03740; He et al. 2019, arXiv:1812.01187, section 3.2",
        formula="y = layer(x in 16 bits, weights in 16 bits); the weights are kept in 32 bits\n"
        "fp16: g = gradient(scale * loss) / scale; on overflow, no update and a smaller scale",
        null="dtype: fp32",
        cost=(
            "Saves time and about half the activation memory on GPUs with tensor cores. On a CPU without "
            "bfloat16 instructions it is slower by an order of magnitude."
        ),
        suggested="bf16 wherever the hardware has it; fp16 on older GPUs.",
        snippet="""\
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(16, 4)
images, labels = torch.randn(64, 16), torch.randint(4, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(10):
    with torch.autocast("cpu", dtype=torch.bfloat16):  # "cuda" on a GPU
        loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
assert model.weight.dtype == torch.float32
print(f"{loss:.3f}")
""",
        aliases=("AMP", "automatic mixed precision", "FP16", "BF16", "half precision", "autocast"),
        library="torch.amp through Lightning Fabric",
    )

    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"

    def precision(self) -> str:
        """The same in Lightning Fabric's words."""
        return _FABRIC[self.dtype]

    def check(self, context: Context) -> Iterable[Problem]:
        """Half precision with loss scaling needs a GPU."""
        if self.dtype == "fp16" and context.device_type == "cpu":
            yield self.problem(
                "fp16 with loss scaling does not run on a CPU",
                expected="dtype bf16, or a GPU",
                fix=f"--set {self.kind}.dtype=bf16, or remove it: --without {self.kind}",
            )

    def notes(self, context: Context) -> Iterable[str]:
        """Emulated bfloat16 is a great deal slower than float32."""
        if self.dtype != "bf16":
            return
        if context.device_type == "cpu" and not _cpu_has_bf16():
            yield "this CPU has no bfloat16 instructions: training will be slower by an order of magnitude"
        elif context.device_type == "cuda" and not _gpu_has_bf16():
            yield "this GPU only emulates bfloat16; fp16 is faster"


def _cpu_has_bf16() -> bool:
    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    probes = [probe for name in names if (probe := getattr(torch.cpu, name, None))]
    return not probes or any(probe() for probe in probes)


def _gpu_has_bf16() -> bool:
    import torch

    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
