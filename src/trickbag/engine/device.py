"""Devices, precision and processes, through Lightning Fabric."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

from trickbag.errors import UsageError
from trickbag.imageops.backend import VARIABLE

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor, nn


@dataclass
class Device:
    """Where and how a run computes.

    Several processes are started by ``torchrun``; each takes an equal share of every batch.

    Attributes:
        type: ``"cpu"``, ``"cuda"``; ``"auto"`` takes CUDA if there is any.
        threads: CPU threads; None means one a core (shared out among local processes).
        workers: threads that read images; None means as many as compute (CPU), or one a core (CUDA).
        compile: compile the model with ``torch.compile``.
        deterministic: forbid kernels that do not give the same bits twice (CUDA).
    """

    type: str = "auto"
    threads: int | None = None
    workers: int | None = None
    compile: bool = False
    deterministic: bool = False
    rank: int = field(init=False)
    world: int = field(init=False)
    _fabric: Any = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        if self.type == "auto":
            self.type = "cuda" if torch.cuda.is_available() else "cpu"
        if self.type not in ("cpu", "cuda"):
            raise UsageError(f"there is no device {self.type!r}", expected="auto, cpu or cuda")
        if self.type == "cuda" and not torch.cuda.is_available():
            raise UsageError("this machine has no CUDA device that torch can use", fix="--device cpu")
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        cores = max(1, available_cores() // local)
        if self.threads is None:
            self.threads = cores
        if self.workers is None:
            self.workers = min(16, self.threads if self.type == "cpu" else cores)

    def describe(self) -> str:
        """What computes, in one line, and how to change it."""
        from trickbag.imageops.backend import choose

        images = choose(self.type)
        if self.type == "cpu" and images == "torch" and not os.environ.get(VARIABLE):
            images = 'torch (numba is about six times as fast: pip install "trickbag[fast]")'
        waiting = os.environ.get("OMP_WAIT_POLICY", "").lower() or "spinning"
        return (
            f"{self.type}; {self.threads} compute threads (--threads), {self.workers} reading threads "
            f"(--workers); images by {images}; OpenMP threads wait {waiting} (OMP_WAIT_POLICY)"
        )

    def start(self, precision: str) -> Fabric:
        """Set up Fabric for this process."""
        from lightning_fabric import Fabric

        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(self.deterministic)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        fabric = Fabric(
            accelerator=self.type,
            devices=local if self.world > 1 else 1,
            num_nodes=self.world // local,
            strategy="ddp" if self.world > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
        self._fabric = fabric
        return fabric

    @property
    def torch_device(self) -> torch.device:
        """The device that this process computes on."""
        local = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device(self.type, local) if self.type == "cuda" else torch.device("cpu")

    def compiled(self, model: nn.Module) -> nn.Module:
        """The model, compiled if asked for."""
        if not self.compile:
            return model
        return cast("nn.Module", torch.compile(model))

    def agree(self, flag: bool) -> bool:
        """True in every process if it is in one."""
        if self.world == 1:
            return flag
        value = torch.tensor(float(flag), device=self.torch_device)
        return bool(self._fabric.all_reduce(value, reduce_op="sum") > 0)

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over the processes."""
        return float(value if self.world == 1 else self._fabric.all_reduce(value.clone(), reduce_op="mean"))

    def peak_memory(self) -> int:
        """Most memory held so far, in bytes: device memory on CUDA, else resident memory."""
        import resource

        if self.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
