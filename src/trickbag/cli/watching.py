"""What a study's people see while it goes on: bars in a terminal, lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from trickbag.study.conduct import Conduct
    from trickbag.study.executor import Event

EVERY = 10.0
"""Seconds between lines of progress, at least."""
TROUBLES = ("failed", "retried", "halted")


def duration(seconds: float) -> str:
    """Seconds in words: ``45 s``, ``32 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def watching(out: Console, conduct: Conduct) -> Iterator[Callable[[Event], None]]:
    """While entered, show how far a study is: its decisions, its runs, and what goes wrong.

    Yields:
        What listens to the study's events.
    """
    decisions = _Decisions(out, conduct)
    with (_bars if out.is_terminal else _lines)(out, conduct) as show:

        def listen(event: Event) -> None:
            if event.kind != "status":
                decisions.tell()
            show(event)
            if event.kind in TROUBLES:
                last = (str(event.detail).strip().splitlines() or [""])[-1]
                out.print(f"{event.kind}: {event.job.name}: {last}", style="yellow", soft_wrap=True)

        yield listen
        decisions.tell()


class _Decisions:
    """Each decision of a study that has stages is told once, when it is taken."""

    def __init__(self, out: Console, conduct: Conduct) -> None:
        self.out, self.conduct = out, conduct
        self.told = len(conduct.rounds)

    def tell(self) -> None:
        from trickbag.study.telling import tell

        new = self.conduct.rounds[self.told :]
        for one in new if self.conduct.spec.design == "auto" else ():
            self.out.print(f"{one.stage}: {tell(one)}", soft_wrap=True, markup=False)
        self.told += len(new)


def _stage(conduct: Conduct) -> str:
    return conduct.rounds[-1].stage if conduct.rounds else "runs"


@contextmanager
def _bars(out: Console, conduct: Conduct) -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=out) as bar:
        overall = bar.add_task("runs", total=None, completed=0, text="")
        tasks: dict[str, TaskID] = {}

        def show(event: Event) -> None:
            name = event.job.name
            if event.kind == "status":
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=event.detail.steps, text="")
                metric = event.detail.metric
                text = "" if metric is None else f"selection {metric:.1%}"
                bar.update(tasks[name], completed=event.detail.step, text=text)
                return
            if event.kind not in ("started", "waiting") and name in tasks:
                bar.remove_task(tasks.pop(name))
            done, total = conduct.progress()
            bar.update(overall, total=total, completed=done, description=_stage(conduct))

        yield show


@contextmanager
def _lines(out: Console, conduct: Conduct) -> Iterator[Callable[[Event], None]]:
    began = shown = time.monotonic()
    first: int | None = None
    told = (0, 0)

    def show(event: Event) -> None:
        nonlocal first, shown, told
        if event.kind == "status":
            return
        done, total = conduct.progress()
        first = done if first is None else first
        now = time.monotonic()
        if event.kind != "done" or told == (done, total) or (done < total and now - shown < EVERY):
            return
        shown, told = now, (done, total)
        left = (total - done) * (now - began) / max(1, done - first)
        rest = f", about {duration(left)} left for these" if done < total else ""
        out.print(f"{_stage(conduct)}: {done} of {total} runs{rest}", soft_wrap=True, markup=False)

    yield show
