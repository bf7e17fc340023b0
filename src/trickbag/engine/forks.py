"""Fork points: where a run leaves what others that begin like it go on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag import plan as planning
from trickbag.engine import checkpoint
from trickbag.engine.prefix import shared_steps
from trickbag.engine.run import Run, run_id
from trickbag.errors import TrickbagError
from trickbag.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Fork",
    "Origin",
    "Point",
    "find",
    "folder_of",
    "forget_forks",
    "forks_size",
    "shared_steps",
]

FOLDER = "forks"


@dataclass(frozen=True)
class Fork:
    """Where a run may start instead of at its beginning.

    Attributes:
        run: directory of the run to go on from.
        step: after so many of its updates, or fewer if it has left nothing there (it may have stopped early).
    """

    run: str
    step: int

    @property
    def path(self) -> Path:
        """Where that run leaves the fork point."""
        return folder_of(Path(self.run), self.step)


@dataclass(frozen=True)
class Origin:
    """Where a run did start: updates up to ``step`` were made by the run of that name."""

    run: str
    step: int


@dataclass(frozen=True)
class Point:
    """A fork point in memory.

    Attributes:
        origin: whose it is.
        saved: what its checkpoint says besides tensors, with the ``rows`` logged so far.
        tensors: file name (without suffix) -> named tensors, on the CPU.
    """

    origin: Origin
    saved: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


def folder_of(run: Path, step: int) -> Path:
    """Where a run leaves the fork point of ``step``."""
    return run / FOLDER / checkpoint.name_of(step)


def find(fork: Fork | None, plan: Plan, seed: int, place: str, threads: int) -> Point | None:
    """The fork point from which a run can go on as if it had been there from its beginning.

    It must be whole, and come from a run with the same data, seed, device, threads and code whose plan
    computes the same up to there: this is checked here, whatever those who planned it believe.

    Args:
        fork: where to look.
        plan: of the run, settled.
        seed: its seed.
        place: kind and number of devices, as in a run's name.
        threads: its CPU threads.

    Returns:
        The last one that will do, or None: then the run starts from scratch, which is never wrong.
    """
    if fork is None:
        return None
    trunk = Run(Path(fork.run))
    try:
        recipe = trunk.recipe()
        if trunk.about()["threads"] != threads or run_id(recipe, plan.facts, seed, place) != trunk.id:
            return None
    except (TrickbagError, OSError, ValueError, KeyError, TypeError):
        return None
    timeline = planning.Context(recipe, plan.facts, place.split()[0]).timeline
    last = min(fork.step, shared_steps(Plan(recipe, plan.facts, timeline), plan))
    for step, folder in sorted(checkpoint.all_of(trunk.path / FOLDER).items(), reverse=True):
        if 0 < step <= last and (found := checkpoint.read_sealed(folder)) is not None:
            return Point(Origin(trunk.id, step), *found)
    return None


def forks_size(run: Run) -> int:
    """Bytes that a run's fork points take."""
    return sum(path.stat().st_size for path in (run.path / FOLDER).rglob("*") if path.is_file())


def forget_forks(run: Run) -> int:
    """Delete a run's fork points; runs that started from them do not need them any more.

    Returns:
        Bytes freed.
    """
    freed = forks_size(run)
    shutil.rmtree(run.path / FOLDER, ignore_errors=True)
    return freed
