"""Jobs that train nothing. Workers import this module: it is light."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trickbag.errors import UsageError
from trickbag.recipe import Recipe
from trickbag.study import exclusion
from trickbag.study.worker import Job

RECIPE = Recipe(model="mini_resnet", epochs=1, batch_size=8, image_size=8)


@dataclass(frozen=True)
class Chore(Job):
    """A job that trains nothing; ``do`` says what it does instead. It ends after the job ``until``."""

    do: str = "nothing"
    until: str = ""

    def perform(self, send: Callable[[tuple[str, Any]], None]) -> dict[str, Any]:
        began = time.time()
        if self.do == "die once" and self.attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "crash":
            raise RuntimeError("no luck")
        if self.do == "bad input":
            raise UsageError("no such thing", fix="another thing")
        if self.do == "fill the disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{self.runs}/file")
        if self.do == "tell":
            from trickbag.engine.train import Status

            send(("status", Status(1, 2, 0.5, 0.25, None, 9.0)))
            time.sleep(1.5)  # messages through files are looked for once in a while
        if self.do == "train until stopped":
            from trickbag.engine.interrupt import Interrupt
            from trickbag.engine.train import Stopped

            with Interrupt() as interrupt:
                (Path(self.runs) / f"{self.name} is training").touch()
                while not interrupt.requested:
                    time.sleep(0.02)
                (Path(self.runs) / f"{self.name} wrote its checkpoint").touch()
                raise Stopped("here")
        if self.do == "hang once" and self.attempt == 0:
            time.sleep(60)
        if self.do == "wait for a run":
            from trickbag.engine.run import Run

            exclusion.SIGN_SECONDS = 0.2
            exclusion.until_free(Run(Path(self.runs) / "run"), send)
        if self.do == "write small files":
            limit = 20_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            return super().perform(send)
        if self.do == "touch":
            (Path(self.runs) / self.name).touch()
        while self.until and self.until not in rows(Path(self.runs)):
            assert time.time() < began + 60
            time.sleep(0.05)
        row = [self.name, began, time.time()]
        with open(Path(self.runs) / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        return {"attempt": self.attempt}


def rows(folder: Path) -> dict[str, tuple[float, float]]:
    """When jobs began and ended."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: (began, ended) for name, began, ended in map(json.loads, lines)}
