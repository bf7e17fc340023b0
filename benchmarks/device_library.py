"""What a device library costs a training step: bare torch, Lightning Fabric, Accelerate, side by side.

Run ``uv run python benchmarks/device_library.py``; it prints a table and writes
``benchmarks/results/device_library.json``. One CPU thread, interleaved repeats, medians.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from lightning_fabric import Fabric

from trickbag.tasks.nets import NETS

CASES = [("mini_resnet", 8, 32), ("fast_resnet", 32, 32), ("fast_resnet", 32, 128), ("resnet20", 32, 128)]
ROUNDS, STEPS = 25, 4


def make_step(library: str, net: str, size: int, batch: int) -> Callable[[], None]:
    """One optimizer step of ``net`` under a library."""
    torch.manual_seed(0)
    model: torch.nn.Module = NETS[net](10, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
    if library == "fabric":
        fabric = Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(model, optimizer)
        backward = fabric.backward
    elif library == "accelerate":
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        backward = accelerator.backward
    images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step() -> None:
        backward(torch.nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table = []
    for net, size, batch in CASES:
        steps = {name: make_step(name, net, size, batch) for name in ("bare", "fabric", "accelerate")}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                step()
                began = time.perf_counter()
                for _ in range(STEPS):
                    step()
                times[name].append((time.perf_counter() - began) / STEPS * 1e3)
        medians = {name: statistics.median(values) for name, values in times.items()}
        pairs = {
            name: statistics.median(b / a for a, b in zip(times["bare"], times[name], strict=True))
            for name in ("fabric", "accelerate")
        }
        row = {"net": net, "px": size, "batch": batch, "ms": medians, "ratio": pairs}
        table.append(row)
        print(
            f"{net:12} {size:3} px, batch {batch:3}: bare {medians['bare']:8.3f} ms, "
            f"fabric x{pairs['fabric']:.4f}, accelerate x{pairs['accelerate']:.4f}"
        )
    result = {
        "what": "milliseconds a step (medians) and median of paired ratios to bare torch",
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "versions": {n: version(n) for n in ("torch", "lightning-fabric", "accelerate")},
        "rounds": ROUNDS,
        "table": table,
    }
    path = Path(__file__).parent / "results" / "device_library.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
