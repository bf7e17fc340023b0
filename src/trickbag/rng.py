"""Named random streams.

Every random number in trickbag comes from a stream that is keyed by (seed, name, step) and by
nothing else. A trick that draws more numbers, or is removed, therefore changes no other trick's
draws, a run can be resumed at any step without saved generator states, and two recipes that share
a seed share initial weights, data order and the draws of every trick they have in common.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Stream:
    """A source of independent generators, one a step.

    Attributes:
        seed: the run's seed.
        name: path of the stream, for example ``"mixup"`` or ``"init/stem"``.
    """

    seed: int
    name: str = ""

    def child(self, name: str) -> Stream:
        """The stream called ``name`` below this one."""
        return Stream(self.seed, f"{self.name}/{name}" if self.name else name)

    def key(self, step: int = 0) -> int:
        """A 63-bit key that depends on seed, name and ``step`` alone."""
        text = f"{self.seed}\0{self.name}\0{step}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def torch(self, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
        """A torch generator for ``step`` on ``device``."""
        import torch

        return torch.Generator(device=device).manual_seed(self.key(step))

    def numpy(self, step: int = 0) -> np.random.Generator:
        """A NumPy generator for ``step``."""
        import numpy as np

        return np.random.Generator(np.random.PCG64(self.key(step)))
