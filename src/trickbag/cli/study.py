"""``study plan | run | resume | status | report | export``."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trickbag.cli.asking import Asked, asking
from trickbag.cli.common import (
    DeviceOption,
    JsonOption,
    RunsOption,
    console,
    load_compiled,
    print_json,
    reading,
)
from trickbag.cli.outlining import show_outline
from trickbag.cli.watching import duration, watching

if TYPE_CHECKING:
    from rich.console import Console

    from trickbag.study.conduct import Conduct
    from trickbag.study.executor import Executor
    from trickbag.study.spec import StudySpec

app = typer.Typer(help="Measure what separates two recipes.", no_args_is_help=True, rich_markup_mode=None)

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's directory.")]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Runs at once; one a core or GPU unless told.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="CPU threads of each run.")]
OutOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="The study's directory.")]
OnOption = Annotated[str, typer.Option("--on", metavar="EXECUTOR", help="local, ray or slurm.")]


@app.command()
@asking
def plan(
    asked: Asked,
    measure: Annotated[bool, typer.Option(help="Time a few steps, for a cost in minutes.")] = False,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what a study would train and what it could see, and train nothing."""
    from trickbag.study.outline import outline

    spec = asked.spec(device if measure else "cpu", workers)
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
        out.print(f"about {duration(seconds)}{first} with {executor.workers} runs at once")
    if as_json:
        print_json(figures)


def _conduct(spec: StudySpec, folder: Path, runs: Path, out: Console) -> Conduct:
    from trickbag import api

    with reading(out) as progress:
        return api.prepare_study(spec, folder, runs, progress)


@app.command()
@asking
def run(
    asked: Asked,
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
    from trickbag.engine.device import Device

    spec = asked.spec(device, workers, threads=threads, on=on, title=title)
    spec = spec.model_copy(update={"device": Device(device).type})
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
    conduct.check_code()
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
        out.print(f"{len(left)} runs to do, {executor.workers} at once: about {duration(seconds)}{more}")
    # Ray prints what it thinks of the cluster wherever it likes.
    aside = redirect_stdout(sys.stderr) if as_json else nullcontext()
    with aside, watching(out, conduct) as listen:
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
        known = {
            "counts": counts,
            "changed": folder.changed,
            "decisions": stages,
            "openings": openings,
            "runs": rows,
        }
        print_json(known | {"failures": failures, "report": (study / "report.html").exists()})
        return
    out = console()
    out.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    if folder.changed:
        out.print(f"[yellow]trained with other code[/yellow]: {'; '.join(folder.changed)}", soft_wrap=True)
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
        # Nothing has been trained yet, or it was moved: the report's own numbers can still be written.
        runs=folder.runs if folder.runs.is_dir() else None,
        tracking_uri=uri,
        name=f"{conduct.spec.design}-{conduct.spec.digest}",
    )
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        console().print(str(path), soft_wrap=True)
