"""Errors that a user can act on: what is wrong, where, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        what: what is wrong, naming the value at fault.
        where: file and line, flag, or trick that it comes from.
        expected: what would have been accepted.
        fix: what to do about it.
    """

    what: str
    where: str | None = None
    expected: str | None = None
    fix: str | None = None

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            text += f"\n  expected: {self.expected}"
        if self.fix:
            text += f"\n  to do: {self.fix}"
        return text


class TrickbagError(Exception):
    """Base of every error that is the input's fault; the command line prints it without a traceback."""

    exit_code = 1

    def __init__(
        self,
        problem: str | Problem | Iterable[Problem],
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        if isinstance(problem, str):
            problem = Problem(problem, where, expected, fix)
        self.problems = (problem,) if isinstance(problem, Problem) else tuple(problem)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[TrickbagError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class UsageError(TrickbagError):
    """A flag or argument makes no sense."""

    exit_code = 2


class RecipeError(TrickbagError):
    """A recipe cannot be read or holds an invalid value."""

    exit_code = 3


class DataError(TrickbagError):
    """The data set cannot be read, split or decoded."""

    exit_code = 4


class PlanError(TrickbagError):
    """A recipe and a data set do not go together; holds every conflict found."""

    exit_code = 5


class CheckpointError(TrickbagError):
    """A checkpoint or a run directory is missing, damaged or belongs to something else."""

    exit_code = 6


class Diverged(TrickbagError):
    """The loss became NaN or infinite; the run has recorded its diagnosis."""

    exit_code = 7


class StudyError(TrickbagError):
    """A study cannot be planned, run or reported."""

    exit_code = 8


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name in ``known`` that ``name`` most resembles, or None if none comes near."""
    matches = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
