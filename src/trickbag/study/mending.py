"""Run directories that were damaged by hand, or by a disk: found before a study goes on, and made anew."""

from __future__ import annotations

from pathlib import Path

from trickbag.engine.files import read_json
from trickbag.engine.run import Run
from trickbag.errors import TrickbagError


def damage(run: Run, *, weights: bool) -> str | None:
    """What is wrong with a run's directory, in a few words; None if it is whole, or was never begun.

    Args:
        run: finished or not.
        weights: whether its weights are needed; users may have deleted them to save room.
    """
    if not (run.path / "run.json").exists() and not (run.path / "result.json").exists():
        return None
    try:
        run.about()
        run.recipe()
    except TrickbagError as error:
        return error.problems[0].what
    except (OSError, ValueError):
        return "recipe.yaml cannot be read"
    result = run.result()
    if result is None:
        return _unreadable_checkpoint(run)
    if result.get("log") not in (None, run.log_digest()):
        return "metrics.jsonl is not what the run wrote"
    if weights and result["status"] == "finished":
        try:
            return _unreadable_tensors(run.newest_checkpoint())
        except TrickbagError as error:
            return error.problems[0].what
    return None


def _unreadable_checkpoint(run: Run) -> str | None:
    """An unfinished run goes on from its checkpoint, if it has one."""
    try:
        return _unreadable_tensors(run.newest_checkpoint())
    except TrickbagError:
        return None


def _unreadable_tensors(folder: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    for name in read_json(folder / "state.json")["files"]:
        path = folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} cannot be read: {error}"
    return None


def set_aside(run: Run) -> Path:
    """Rename a run's directory, so that nothing of it is taken for whole; returns its new place."""
    number = 1
    while (place := run.path.with_name(f"{run.path.name}.damaged-{number}")).exists():
        number += 1
    with run.lock():
        run.path.rename(place)
    return place
