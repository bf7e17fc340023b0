"""``study plan | run | resume | status | report | export``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trickbag.cli.common import (
    DataArgument,
    DeviceOption,
    JsonOption,
    RunsOption,
    SetOption,
    WithOption,
    WithoutOption,
    console,
    keeping_options,
    load_compiled,
    print_json,
    read_data,
    read_recipe,
    reading,
)

if TYPE_CHECKING:
    from rich.console import Console

    from trickbag.study.conduct import Conduct
    from trickbag.study.executor import Event, Executor
    from trickbag.study.spec import StudySpec

app = typer.Typer(help="Measure what separates two recipes.", no_args_is_help=True, rich_markup_mode=None)

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's directory.")]
BaselineOption = Annotated[str | None, typer.Option(metavar="RECIPE", help="Recipe without the factors.")]
CandidateOption = Annotated[str | None, typer.Option(metavar="RECIPE", help="Recipe with all of them.")]
DesignOption = Annotated[
    str,
    typer.Option(
        help="auto (pilot, screen, refine, confirm; needs --budget), screen (Plackett-Burman with foldover), "
        "leave-one-out, one-at-a-time, ladder or factorial."
    ),
]
SeedsOption = Annotated[
    str, typer.Option(help="How many seeds, or which (0,1,7); 3, or as many as fit --budget.")
]
BudgetOption = Annotated[
    str, typer.Option(metavar="AMOUNT", help="What may be spent: 96 runs, 400 epochs, 90min, 2h.")
]
MetricOption = Annotated[str, typer.Option(help="What counts: accuracy, balanced_accuracy or top5_accuracy.")]
TieOption = Annotated[list[str] | None, typer.Option(metavar="A,B,...", help="Changes that form one factor.")]
ApartOption = Annotated[
    bool, typer.Option("--apart", help="Do not tie factors that require or exclude each other.")
]
OrderOption = Annotated[str, typer.Option(metavar="A,B,...", help="Order of a ladder's rungs.")]
CrossOption = Annotated[str, typer.Option(metavar="A,B,...", help="Factors that a factorial crosses; all.")]
PriceOption = Annotated[
    float, typer.Option(min=0, help="Points that a doubling of training time must gain to be recommended.")
]
OnOption = Annotated[str, typer.Option("--on", metavar="EXECUTOR", help="local, ray or slurm.")]
DeltaOption = Annotated[
    float, typer.Option(min=0, max=100, help="Effects within this many points count as none.")
]
AlphaOption = Annotated[float, typer.Option(min=0.0001, max=0.49, help="Family-wise error rate.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at once; one a core or GPU unless told.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of each run.")]
OutOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The study's directory.")]

MOST_SEEDS = 10_000
MOST_FITTED = 30
"""Seeds that a budget alone may buy."""
FITTED = ("leave-one-out", "one-at-a-time", "ladder", "factorial")


def describe(
    data: str,
    baseline: str | None,
    candidate: str | None,
    set_: list[str] | None,
    with_: list[str] | None,
    without: list[str] | None,
    design: str,
    seeds: str,
    budget: str,
    metric: str,
    tie: list[str] | None,
    apart: bool,
    order: str,
    cross: str,
    delta: float,
    alpha: float,
    price: float,
    device: str,
    workers: int | None,
    threads: int = 1,
    on: str = "local",
) -> StudySpec:
    """The study that a command line describes."""
    from trickbag import api
    from trickbag.errors import UsageError, nearest
    from trickbag.study.layout import DESIGNS
    from trickbag.study.spec import METRICS, Budget, StudySpec

    if design not in DESIGNS:
        near = nearest(design, DESIGNS)
        fix = f"did you mean {near}?" if near else None
        raise UsageError(
            f"no design is called {design!r}", where="--design", expected=", ".join(DESIGNS), fix=fix
        )
    if order and design != "ladder":
        raise UsageError(
            f"a {design} study has no order", where="--order", fix="remove it, or add --design ladder"
        )
    if cross and design != "factorial":
        raise UsageError(f"a {design} study crosses nothing", where="--cross", fix="add --design factorial")
    if metric not in METRICS:
        near = nearest(metric, METRICS)
        raise UsageError(
            f"studies do not judge by {metric!r}",
            where="--metric",
            expected=", ".join(METRICS),
            fix=f"did you mean {near}?" if near else "losses are reported beside it",
        )
    if on != "local" and workers is None and Budget.parse(budget or "1 run").unit == "seconds":
        what = f"how much {budget} is on a cluster depends on how many runs it makes at once"
        raise UsageError(what, where="--budget", fix="add --workers N, or give a number of runs or epochs")
    if design == "auto" and not budget:
        raise UsageError("an auto study shares out a budget", where="--design", fix="add --budget 2h")
    if baseline and candidate and (with_ or without):
        raise UsageError(
            "--with and --without make one recipe from the other", expected="only one of the two recipes"
        )
    if not (baseline or candidate) or not ((baseline and candidate) or with_ or without):
        raise UsageError(
            "a study needs two recipes",
            expected="--baseline and --candidate, or one of them with --with or --without",
        )
    first = read_recipe(baseline or candidate or "", set_, (), ())
    changed = read_recipe(candidate or baseline or "", set_, with_, without)
    chosen = (first, changed) if baseline else (changed, first)
    return StudySpec(
        baseline=chosen[0],
        candidate=chosen[1],
        data=read_data(data, set_),
        design=design,  # type: ignore[arg-type]
        seeds=_seeds(seeds or (str(MOST_FITTED) if budget and design in FITTED else "3")),
        budget=Budget.parse(budget, api.count_workers(device, workers, threads)) if budget else None,
        metric=metric,  # type: ignore[arg-type]
        ties=tuple(tuple(_parts(text)) for text in tie or ()),
        apart=apart,
        order=tuple(_parts(order)),
        crossed=tuple(_parts(cross)),
        delta=delta,
        alpha=alpha,
        price=price,
        device=device,
    )


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


@app.command()
@keeping_options
def plan(
    data: DataArgument,
    baseline: BaselineOption = None,
    candidate: CandidateOption = None,
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
    design: DesignOption = "leave-one-out",
    seeds: SeedsOption = "",
    budget: BudgetOption = "",
    metric: MetricOption = "accuracy",
    tie: TieOption = None,
    apart: ApartOption = False,
    order: OrderOption = "",
    cross: CrossOption = "",
    delta: DeltaOption = 0.5,
    alpha: AlphaOption = 0.05,
    price: PriceOption = 0.0,
    measure: Annotated[bool, typer.Option(help="Time a few steps, for a cost in minutes.")] = False,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a study would train and what it could see, and train nothing."""
    from trickbag.study.outline import outline

    spec = describe(
        data,
        baseline,
        candidate,
        set_,
        with_,
        without,
        design,
        seeds,
        budget,
        metric,
        tie,
        apart,
        order,
        cross,
        delta,
        alpha,
        price,
        "cpu" if not measure else device,
        workers,
    )
    out = console(quiet=as_json)
    if not measure:
        figures = outline(spec)
        show_outline(out, figures)
    else:
        import tempfile

        from trickbag import api
        from trickbag.engine.device import Device

        spec = spec.model_copy(update={"device": Device(device).type})
        with tempfile.TemporaryDirectory() as folder:
            conduct = _conduct(spec, Path(folder) / "study", Path(folder) / "runs", out)
            executor = api.make_executor(spec.device, workers)
            costs = _costs(conduct, executor, 1, out)
            figures = outline(spec, conduct.data.facts, conduct.seconds)
            spent = sum(stage["cost"] for stage in figures.get("stages", ()))
            timed = spec.budget is not None and spec.budget.unit == "seconds"
            seconds = spent / executor.workers if timed else conduct.estimate(costs, executor.workers)
        figures["seconds"] = seconds
        show_outline(out, figures)
        first = "" if timed or spec.design != "auto" else " for the pilot"
        out.print(f"about {_duration(seconds)}{first} with {executor.workers} runs at once")
    if as_json:
        print_json(figures)


def show_outline(out: Console, figures: dict[str, Any]) -> None:
    """Print what :func:`trickbag.study.outline.outline` found."""
    from rich.table import Table

    if out.stderr:
        return
    table = Table("factor", "change", "", title=f"{len(figures['factors'])} factors", title_justify="left")
    for factor in figures["factors"]:
        table.add_row(factor["key"], factor["label"], "no training" if factor["free"] else "")
    out.print(table)
    if figures.get("needs_timing"):
        out.print(
            f"{figures['design']} within {figures['budget']}: how many runs that is depends on their speed; "
            "add --measure to time a few steps of each factor"
        )
        return
    if "stages" in figures:
        stages = Table("stage", "runs", "what for", title="at most", title_justify="left")
        for stage in figures["stages"]:
            stages.add_row(stage["stage"], str(stage["runs"]), stage["text"])
        out.print(stages)
        out.print(f"auto: {figures['runs']} training runs within {figures['budget']}")
    else:
        _show_counts(out, figures)
    sd = figures["detectable_in_sd"]
    if sd is None:
        out.print("[yellow]too few runs to estimate the noise: no interval, no verdict[/yellow]")
    else:
        out.print(
            f"smallest effect it finds with 80 % power: {sd:.1f} sd of a paired difference; roughly "
            f"{figures['detectable_points']:.1f} points, if accuracy lies near 80 % on "
            f"{figures['selection_images']} selection images"
        )


def _show_counts(out: Console, figures: dict[str, Any]) -> None:
    shared = figures["naive_runs"] - figures["runs"]
    out.print(
        f"{figures['design']}: {len(figures['arms'])} recipes, {figures['seeds']} seeds: "
        f"{figures['naive_runs']} results from {figures['runs']} training runs of {figures['steps']} steps"
        + (f" ({shared} shared)" if shared else "")
    )
    saved = {name: figures[f"{name}_epochs"] for name in ("shared", "forked")}
    if any(saved.values()):
        told = {"shared": "runs that serve several recipes", "forked": "beginnings that runs have in common"}
        parts = [f"{value:g} by {told[name]}" for name, value in saved.items() if value]
        share = figures["epochs"] / figures["naive_epochs"]
        out.print(
            f"{figures['epochs']:g} epochs instead of {figures['naive_epochs']:g} ({share:.0%}): saves "
            + " and ".join(parts)
        )


def _conduct(spec: StudySpec, folder: Path, runs: Path, out: Console) -> Conduct:
    from trickbag import api

    with reading(out) as progress:
        return api.prepare_study(spec, folder, runs, progress)


@app.command()
@keeping_options
def run(
    data: DataArgument,
    baseline: BaselineOption = None,
    candidate: CandidateOption = None,
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
    design: DesignOption = "leave-one-out",
    seeds: SeedsOption = "",
    budget: BudgetOption = "",
    metric: MetricOption = "accuracy",
    tie: TieOption = None,
    apart: ApartOption = False,
    order: OrderOption = "",
    cross: CrossOption = "",
    delta: DeltaOption = 0.5,
    alpha: AlphaOption = 0.05,
    price: PriceOption = 0.0,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "",
    out: OutOption = None,
    runs: RunsOption = "runs",
    workers: WorkersOption = None,
    threads: ThreadsOption = 1,
    device: DeviceOption = "auto",
    on: OnOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Plan, train what is missing, and report. The same command again goes on where it stopped."""
    spec = describe(
        data,
        baseline,
        candidate,
        set_,
        with_,
        without,
        design,
        seeds,
        budget,
        metric,
        tie,
        apart,
        order,
        cross,
        delta,
        alpha,
        price,
        device,
        workers,
        threads,
        on,
    )
    from trickbag.engine.device import Device

    spec = spec.model_copy(update={"device": Device(device).type, "title": title})
    folder = out or Path("studies") / f"{spec.design}-{spec.digest}"
    conduct_and_show(spec, folder, Path(runs), workers, threads, as_json, on)


@app.command()
def resume(
    study: StudyArgument,
    runs: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where its run directories are now, if moved.")
    ] = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = 1,
    on: OnOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Go on with a study that was interrupted or killed; finished runs are not repeated."""
    from trickbag.study.spec import StudyFolder

    folder = StudyFolder(study)
    conduct_and_show(folder.spec(), study, runs or folder.runs, workers, threads, as_json, on)


def conduct_and_show(
    spec: StudySpec,
    folder: Path,
    runs: Path,
    workers: int | None,
    threads: int,
    as_json: bool,
    on: str = "local",
) -> None:
    """Run a study to its report, with live progress; exit status 130 if it was interrupted."""
    from trickbag import api
    from trickbag.study.design import CANDIDATE
    from trickbag.study.outline import outline

    out = console(quiet=as_json)
    executor = api.make_executor(spec.device, workers, threads, on)
    conduct = _conduct(spec, folder, runs, out)
    # What the candidate's own training would say is said before it is paid for.
    notes = conduct.compile(conduct.arms[CANDIDATE].recipe).notes
    load_compiled(out)
    costs = _costs(conduct, executor, threads, out)
    show_outline(out, outline(spec, conduct.data.facts, conduct.seconds))
    for note in notes:
        out.print(f"[yellow]note[/yellow] {note}", soft_wrap=True)
    left = conduct.pending(threads)
    if left:
        seconds = conduct.estimate(costs, executor.workers)
        more = " for its first stage" if conduct.adaptive and not conduct.rounds else ""
        out.print(f"{len(left)} runs to do, {executor.workers} at once: about {_duration(seconds)}{more}")
    # Ray prints what it thinks of the cluster wherever it likes.
    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with aside, _progress(out, conduct) as listen:
        done = api.run_study(conduct, workers=executor.workers, threads=threads, listen=listen, on=on)
    if not done:
        out.print(f"interrupted; go on with: trickbag study resume {folder}", soft_wrap=True)
        raise typer.Exit(130)
    show_report(conduct, out, as_json)


def show_report(conduct: Conduct, out: Console, as_json: bool) -> None:
    """Print a finished study's verdict and where its report is."""
    from trickbag.report.content import ReportData
    from trickbag.report.text import terminal

    path = conduct.folder.path
    text = (path / "report.json").read_text(encoding="utf-8")
    if as_json:
        print(text)
        return
    terminal(ReportData.from_json(text), out)
    out.print(f"report: {path / 'report.html'}", soft_wrap=True)


def _costs(conduct: Conduct, executor: Executor, threads: int, out: Console) -> dict[str, Any]:
    with out.status("timing a few steps of each recipe"):
        return conduct.measure_costs(executor, threads, lambda event: None)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _progress(out: Console, conduct: Conduct) -> Iterator[Callable[[Event], None]]:
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

        def count() -> None:
            done, total = conduct.progress()
            stage = conduct.rounds[-1].stage if conduct.rounds else ""
            bar.update(overall, total=total, completed=done, description=stage or "runs")

        def listen(event: Event) -> None:
            name = event.job.name
            if event.kind == "status":
                if name not in tasks:
                    tasks[name] = bar.add_task(name, total=event.detail.steps, text="")
                metric = event.detail.metric
                text = "" if metric is None else f"selection {metric:.1%}"
                bar.update(tasks[name], completed=event.detail.step, text=text)
            elif event.kind in ("started", "waiting"):
                count()
            else:
                if name in tasks:
                    bar.remove_task(tasks.pop(name))
                count()
                if event.kind in ("failed", "retried", "halted"):
                    last = str(event.detail).strip().splitlines()[-1]
                    bar.console.print(f"{event.kind}: {name}: {last}", style="yellow", soft_wrap=True)

        yield listen


@app.command()
def status(study: StudyArgument, as_json: JsonOption = False) -> None:
    """Say how far a study is."""
    from trickbag import api
    from trickbag.study.spec import StudyFolder
    from trickbag.study.telling import tell

    folder = StudyFolder(study)
    conduct = api.prepare_study(folder.spec(), study, folder.runs)
    rows = conduct.states()
    counts = {
        state: sum(row["state"] == state for row in rows)
        for state in ("finished", "diverged", "begun", "to do")
    }
    with folder.store(readonly=True) as store:
        failures = [event for event in store.events() if event["event"] in ("failed", "retried")]
        openings = store.openings()
    stages: list[dict[str, Any]] = [
        {"stage": one.stage, "points": len(one.points), "text": tell(one), "why": dict(one.why)}
        for one in conduct.rounds
    ]
    if as_json:
        known = {"counts": counts, "decisions": stages, "openings": openings, "runs": rows}
        print_json(known | {"failures": failures, "report": (study / "report.html").exists()})
        return
    out = console()
    out.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    for number, decided in enumerate(stages, start=1):
        out.print(f"{number}. {decided['stage']}: {decided['text']}", soft_wrap=True)
    for row in openings:
        seeds = ", ".join(map(str, row["seeds"]))
        out.print(
            f"{row['time']} {row['split']} split opened for {', '.join(row['arms'])}, seeds {seeds}",
            soft_wrap=True,
        )
    for event in failures:
        last = (event["detail"].strip().splitlines() or [""])[-1]
        out.print(f"{event['time']} {event['event']}: {event['job']}: {last}", soft_wrap=True)
    if (study / "report.html").exists():
        out.print(f"report: {study / 'report.html'}", soft_wrap=True)


@app.command()
def report(
    study: StudyArgument,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the verdict table as Markdown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the report of what a study has so far; trains nothing."""
    from trickbag import api
    from trickbag.study.collect import write_report
    from trickbag.study.spec import StudyFolder

    folder = StudyFolder(study)
    conduct = api.prepare_study(folder.spec(), study, folder.runs)
    write_report(conduct)
    if markdown and not as_json:
        print((study / "report.md").read_text(encoding="utf-8"), end="")
        return
    show_report(conduct, console(quiet=as_json), as_json)


@app.command()
def export(
    study: StudyArgument,
    to: Annotated[
        str, typer.Option(metavar="KIND", help="csv, parquet, markdown, latex, mlflow or tensorboard.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; STUDY/export/KIND unless told.")
    ] = None,
    uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow tracking server; a SQLite file unless told.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a study's runs and effects for other tools; trains nothing."""
    from trickbag import api
    from trickbag.report.exports import export as write
    from trickbag.study.collect import collect
    from trickbag.study.spec import StudyFolder

    folder = StudyFolder(study)
    conduct = api.prepare_study(folder.spec(), study, folder.runs)
    written = write(
        collect(conduct),
        to,
        out or (study if to == "mlflow" else study / "export" / to),
        runs=folder.runs,
        tracking_uri=uri,
        name=f"{conduct.spec.design}-{conduct.spec.digest}",
    )
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        console().print(str(path), soft_wrap=True)
