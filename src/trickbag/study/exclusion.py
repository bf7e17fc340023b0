"""Waiting for a run that another process writes."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trickbag.errors import CheckpointError

if TYPE_CHECKING:
    from trickbag.engine.run import Run

Send = Callable[[tuple[str, Any]], None]
"""Tells the coordinator something: kind and detail of an event."""
SIGN_SECONDS = 60.0
"""Seconds between two signs of life of a worker that waits."""
QUIET_SECONDS = 120.0
"""Seconds without a heartbeat after which a run on another machine counts as abandoned."""


def until_free(run: Run, send: Send) -> None:
    """Wait until no other process writes a run, as long as that takes: its own coordinator looks after it.

    Two things keep writers apart. A lock on a file does on one machine, and on network file systems that
    pass locks on. Where they do not, a heartbeat in the run's directory that another machine has renewed
    within ``QUIET_SECONDS`` counts as much; its age is told by the time stamps of the file server alone.
    Should both fail, as when two start at the same moment: training is deterministic and files appear by
    renaming, so that the two write the same.
    """
    said = -math.inf
    while held(run) or _beats_elsewhere(run):
        if said == -math.inf:
            send(("waiting", str(run.path)))
        if time.monotonic() - said > SIGN_SECONDS:
            said = time.monotonic()
            send(("alive", None))
        time.sleep(0.5)


def held(run: Run) -> bool:
    """True if a process holds the lock of a run."""
    try:
        with run.lock():
            return False
    except CheckpointError:
        return True


def _beats_elsewhere(run: Run) -> bool:
    from trickbag.engine.heartbeat import NAME, read_heartbeat

    beat = read_heartbeat(run.path)
    if beat is None or beat.ended or beat.host == socket.gethostname() or run.result() is not None:
        return False
    now = run.path / ".now"
    now.touch()
    try:
        return now.stat().st_mtime - (run.path / NAME).stat().st_mtime < QUIET_SECONDS
    finally:
        now.unlink(missing_ok=True)
