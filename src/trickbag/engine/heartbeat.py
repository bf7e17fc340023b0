"""A run's sign of life: a small file in its own directory that says who trains it, and where it is."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

NAME = "heartbeat.json"
INTERVAL = 5.0
"""Seconds between two beats, at least."""


@dataclass(frozen=True)
class Beat:
    """What a run last said of itself.

    Attributes:
        attempt: how often the run had been tried before.
        pid: process that trains it.
        host: machine on which that process is.
        time: seconds since 1970, by that machine's clock. Clocks jump and differ: whether a run is alive is
            told by beats that change, not by their age.
        step, steps: updates done and planned.
        epoch: epochs done.
        metric: last primary metric of the raw weights on the selection split; None before the first.
        ended: the process has let go of the run, finished or not.
    """

    attempt: int
    pid: int
    host: str
    time: float
    step: int
    steps: int
    epoch: float
    metric: float | None
    ended: bool = False


def read_heartbeat(path: str | Path) -> Beat | None:
    """The last beat of the run in directory ``path``; None if there is none, or a damaged one."""
    try:
        return Beat(**json.loads((Path(path) / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


class Heartbeat:
    """Writes beats, the first and the last one in any case. A beat that cannot be written is left out.

    Args:
        path: directory of the run; None writes nothing.
        attempt: how often the run has been tried before.
        steps: updates planned.
        per_epoch: updates in an epoch.
        clock: seconds that never run backward.
    """

    def __init__(
        self,
        path: Path | None,
        attempt: int,
        steps: int,
        per_epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._attempt, self._steps, self._per_epoch = path, attempt, steps, per_epoch
        self._clock = clock
        self._next = -float("inf")
        self._last: tuple[int, float | None] = (0, None)

    def beat(self, step: int, metric: float | None, *, now: bool = False, ended: bool = False) -> None:
        """Say that ``step`` updates are done; written if it is time, or ``now``."""
        self._last = step, metric
        clock = self._clock()
        if self._path is None or not (now or clock >= self._next):
            return
        self._next = clock + INTERVAL
        epoch = step / self._per_epoch
        host, pid = socket.gethostname(), os.getpid()
        beat = Beat(self._attempt, pid, host, time.time(), step, self._steps, epoch, metric, ended)
        temporary = self._path / f".{NAME}.{pid}.tmp"
        with suppress(OSError):
            # No fsync: what a power cut takes is out of date anyway.
            temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            os.replace(temporary, self._path / NAME)

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.beat(*self._last, now=True, ended=True)
