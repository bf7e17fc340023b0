"""Checkpoints: safetensors for tensors, JSON for the rest, made visible by one rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.engine.files import read_json, sync_folder, write_json
from trickbag.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATE = "state.json"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file; ones that share memory are written apart."""
    from safetensors.torch import save_file

    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    save_file(plain, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights: {error}", where=str(path)) from None


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> None:
    """Write the checkpoint of ``step`` below ``folder``, then remove older ones.

    Args:
        folder: the run's ``checkpoint`` folder.
        step: number of updates done.
        tensors: file name (without suffix) -> named tensors.
        state: JSON values.

    Raises:
        CheckpointError: it cannot be written; older ones are still there.
    """
    final = write(folder, step, tensors, state)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def write(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    seal: bool = False,
) -> Path:
    """Write the checkpoint of ``step`` below ``folder``, beside others; see :func:`save`.

    Args:
        folder: where checkpoints of a run lie.
        step: number of updates done.
        tensors: file name (without suffix) -> named tensors.
        state: JSON values.
        seal: note the hashes of the files, for those who will read them and cannot compute them anew.

    Returns:
        Its own folder.
    """
    from safetensors import SafetensorError

    final = folder / name_of(step)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, named in tensors.items():
            save_tensors(temporary / f"{name}.safetensors", named)
            with open(temporary / f"{name}.safetensors", "rb+") as file:
                os.fsync(file.fileno())
        about = {"step": step, "files": sorted(tensors), **state}
        if seal:
            about["sha256"] = {name: _hash(temporary / f"{name}.safetensors") for name in tensors}
        write_json(temporary / STATE, about)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write a checkpoint: {error}",
            where=str(folder),
            fix="make room; the same command goes on from the last checkpoint",
        ) from None
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync_folder(folder)
    return final


def name_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def all_of(folder: Path) -> dict[int, Path]:
    """The checkpoints below ``folder`` by step, whole or not."""
    found = ((path.name.removeprefix("step-"), path) for path in folder.glob("step-*"))
    return {int(number): path for number, path in found if number.isdecimal()}


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint below ``folder``."""
    found = sorted(all_of(folder).items(), reverse=True)
    return next((path for _, path in found if is_complete(path)), None)


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]] | None:
    """What a sealed checkpoint holds: JSON values, and tensors by file; None unless every bit is there."""
    try:
        state: dict[str, Any] = read_json(path / STATE)
        hashes = {name: _hash(path / f"{name}.safetensors") for name in state["files"]}
        if hashes != state["sha256"]:
            return None
        return state, {name: load_tensors(path / f"{name}.safetensors") for name in hashes}
    except (OSError, ValueError, KeyError, TypeError, CheckpointError):
        return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(path: Path) -> bool:
    """True if all files of a checkpoint are there."""
    try:
        state = read_json(path / STATE)
        return all((path / f"{name}.safetensors").is_file() for name in state["files"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return False


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON values."""
    import torch

    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            elif value is not None:
                values[f"{index}.{name}"] = value
    return tensors, values


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Undo :func:`pack_optimizer` on a fresh optimizer over the same parameters.

    State takes the memory layout of its parameter: fused optimizers pair the two by position in memory.
    """
    import torch

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values}.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
