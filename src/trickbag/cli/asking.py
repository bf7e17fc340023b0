"""The question of a study, as a command line asks it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from trickbag.cli.common import (
    DataArgument,
    SetOption,
    WithOption,
    WithoutOption,
    keeping_options,
    read_data,
    read_recipe,
)

if TYPE_CHECKING:
    from trickbag.recipe import Recipe
    from trickbag.study.spec import StudySpec

MOST_SEEDS = 10_000
MOST_FITTED = 30
"""Seeds that a budget alone may buy."""
FITTED = ("leave-one-out", "one-at-a-time", "ladder", "factorial")


@dataclass(frozen=True)
class Asked:
    """The options that say what a study asks; :func:`asking` gives them to a command."""

    data: DataArgument
    baseline: Annotated[str | None, typer.Option(metavar="RECIPE", help="Recipe without the factors.")] = None
    candidate: Annotated[str | None, typer.Option(metavar="RECIPE", help="Recipe with all of them.")] = None
    set_: SetOption = None
    with_: WithOption = None
    without: WithoutOption = None
    design: Annotated[
        str,
        typer.Option(
            help="auto (pilot, screen, refine, confirm; needs --budget), screen (Plackett-Burman with "
            "foldover), leave-one-out, one-at-a-time, ladder or factorial."
        ),
    ] = "leave-one-out"
    seeds: Annotated[
        str, typer.Option(help="How many seeds, or which (0,1,7); 3, or as many as fit --budget.")
    ] = ""
    budget: Annotated[
        str, typer.Option(metavar="AMOUNT", help="What may be spent: 96 runs, 400 epochs, 90min, 2h.")
    ] = ""
    metric: Annotated[
        str, typer.Option(help="What counts: accuracy, balanced_accuracy or top5_accuracy.")
    ] = "accuracy"
    tie: Annotated[
        list[str] | None, typer.Option(metavar="A,B,...", help="Changes that form one factor.")
    ] = None
    apart: Annotated[
        bool, typer.Option("--apart", help="Do not tie factors that require or exclude each other.")
    ] = False
    order: Annotated[str, typer.Option(metavar="A,B,...", help="Order of a ladder's rungs.")] = ""
    cross: Annotated[str, typer.Option(metavar="A,B,...", help="Factors that a factorial crosses; all.")] = ""
    delta: Annotated[
        float, typer.Option(min=0, max=100, help="Effects within this many points count as none.")
    ] = 0.5
    alpha: Annotated[float, typer.Option(min=0.0001, max=0.49, help="Family-wise error rate.")] = 0.05
    price: Annotated[
        float,
        typer.Option(min=0, help="Points that a doubling of training time must gain to be recommended."),
    ] = 0.0

    def spec(
        self, device: str, workers: int | None, *, threads: int = 1, on: str = "local", title: str = ""
    ) -> StudySpec:
        """The study that was asked for.

        Args:
            device: device type of every run.
            workers: runs at once; a budget of time counts for that many.
            threads: CPU threads of each.
            on: what runs them.
            title: of the report.

        Raises:
            UsageError: options contradict each other.
            StudyError, RecipeError, DataError: what they say makes no sense.
        """
        from trickbag import api
        from trickbag.errors import UsageError
        from trickbag.study.spec import Budget, StudySpec

        self._check()
        if on != "local" and workers is None and Budget.parse(self.budget or "1 run").unit == "seconds":
            what = f"how much {self.budget} is on a cluster depends on how many runs it makes at once"
            raise UsageError(
                what, where="--budget", fix="add --workers N, or give a number of runs or epochs"
            )
        baseline, candidate = self._recipes()
        seeds = self.seeds or (str(MOST_FITTED) if self.budget and self.design in FITTED else "3")
        at_once = api.count_workers(device, workers, threads) if self.budget else 1
        return api.checked(
            StudySpec,
            title=title,
            baseline=baseline,
            candidate=candidate,
            data=read_data(self.data, self.set_),
            design=self.design,  # type: ignore[arg-type]
            seeds=_seeds(seeds),
            budget=Budget.parse(self.budget, at_once) if self.budget else None,
            metric=self.metric,  # type: ignore[arg-type]
            ties=tuple(tuple(_parts(text)) for text in self.tie or ()),
            apart=self.apart,
            order=tuple(_parts(self.order)),
            crossed=tuple(_parts(self.cross)),
            delta=self.delta,
            alpha=self.alpha,
            price=self.price,
            device=device,
        )

    def _check(self) -> None:
        from trickbag.errors import UsageError, nearest
        from trickbag.study.layout import DESIGNS
        from trickbag.study.spec import METRICS

        design, metric = self.design, self.metric
        if design not in DESIGNS:
            near = nearest(design, DESIGNS)
            fix = f"did you mean {near}?" if near else None
            raise UsageError(
                f"no design is called {design!r}", where="--design", expected=", ".join(DESIGNS), fix=fix
            )
        if self.order and design != "ladder":
            raise UsageError(
                f"a {design} study has no order", where="--order", fix="remove it, or add --design ladder"
            )
        if self.cross and design != "factorial":
            what = f"a {design} study crosses nothing"
            raise UsageError(what, where="--cross", fix="add --design factorial")
        if metric not in METRICS:
            near = nearest(metric, METRICS)
            raise UsageError(
                f"studies do not judge by {metric!r}",
                where="--metric",
                expected=", ".join(METRICS),
                fix=f"did you mean {near}?" if near else "losses are reported beside it",
            )
        if design == "auto" and not self.budget:
            raise UsageError("an auto study shares out a budget", where="--design", fix="add --budget 2h")

    def _recipes(self) -> tuple[Recipe, Recipe]:
        from trickbag.errors import UsageError

        baseline, candidate, changes = self.baseline, self.candidate, self.with_ or self.without
        if baseline and candidate and changes:
            raise UsageError(
                "--with and --without make one recipe from the other", expected="only one of the two recipes"
            )
        if not (baseline or candidate) or not ((baseline and candidate) or changes):
            raise UsageError(
                "a study needs two recipes",
                expected="--baseline and --candidate, or one of them with --with or --without",
            )
        first = read_recipe(baseline or candidate or "", self.set_, (), ())
        changed = read_recipe(candidate or baseline or "", self.set_, self.with_, self.without)
        return (first, changed) if baseline else (changed, first)


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Asked`, and those of the data; it gets them as one value."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        asked = Asked(**{field.name: given.pop(field.name) for field in fields(Asked)})
        command(asked, **given)

    kind, types = inspect.Parameter.KEYWORD_ONLY, get_type_hints(Asked, include_extras=True)
    defaults = inspect.signature(Asked).parameters
    own = [
        inspect.Parameter(
            field.name, kind, default=defaults[field.name].default, annotation=types[field.name]
        )
        for field in fields(Asked)
    ]
    _, *rest = inspect.signature(command, eval_str=True).parameters.values()
    parameters = [*own, *(parameter.replace(kind=kind) for parameter in rest)]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return keeping_options(wrapped)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _seeds(text: str) -> tuple[int, ...]:
    from trickbag.errors import UsageError

    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if "," not in text and len(seeds) == 1:
        if seeds[0] > MOST_SEEDS:
            raise UsageError(
                f"{text} seeds are too many",
                where="--seeds",
                expected=f"at most {MOST_SEEDS}, or a list (0,1,7)",
            )
        seeds = tuple(range(seeds[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{text!r} names no seeds", where="--seeds", expected="a count (3) or a list (0,1,7)"
        )
    return seeds
