"""Choosing what executes a program: compiled code on the CPU, or torch on any device."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trickbag.errors import UsageError
from trickbag.imageops.program import Program, Step

if TYPE_CHECKING:
    from torch import Tensor

BACKENDS = ("numba", "torch")
VARIABLE = "TRICKBAG_IMAGES"
"""Environment variable that names a back end; the faster one that is there is taken without it."""


@functools.cache
def numba_works() -> bool:
    """Whether compiled code can be had."""
    try:
        import numba  # noqa: F401
    except Exception:  # A numba that does not fit the installed NumPy fails in many ways.
        return False
    return True


def choose(device_type: str = "cpu") -> str:
    """The back end for images on a device: ``"numba"`` or ``"torch"``; both give the same images.

    Raises:
        UsageError: the environment names another, or numba where it is not installed.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *BACKENDS):
        raise UsageError(
            f"there is no back end {wanted!r} for images", where=VARIABLE, expected="numba or torch"
        )
    if device_type != "cpu" or wanted == "torch":
        return "torch"
    if numba_works():
        return "numba"
    if wanted == "numba":
        raise UsageError("numba is not installed", where=VARIABLE, fix='pip install "trickbag[fast]"')
    return "torch"


def execute(images: Tensor, program: Program, levels: bool = False, backend: str | None = None) -> Tensor:
    """Execute a program.

    Args:
        images: uint8 ``(batch, channels, height, width)``, 1 or 3 channels, on any device.
        program: for as many images.
        levels: stop before the table, with uint8 values.
        backend: ``"numba"`` (CPU) or ``"torch"``; None for the faster one.

    Returns:
        float32 (or uint8, with ``levels``) of the same shape, in ``channels_last`` memory.
    """
    backend = backend or choose(images.device.type)
    if backend == "torch":
        from trickbag.imageops.tensors import execute as in_torch

        return in_torch(images, program, levels)
    import torch

    from trickbag.imageops.compiled import execute as compiled

    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(compiled(pixels, None, program, levels)).permute(0, 3, 1, 2)


def act(images: Tensor, steps: Sequence[Step], table: np.ndarray | None, late: bool) -> Tensor:
    """What one trick's steps, or its table, make of a batch; see ``ImageTrick.__call__``."""
    from trickbag.imageops import tensors

    if table is not None:
        if images.is_floating_point():
            raise UsageError("normalization takes uint8 images", expected="uint8")
        return execute(images, Program(tuple(steps), table))
    if late:
        return tensors.late(images, tuple(steps))
    return execute(images, Program(tuple(steps)), levels=True)
