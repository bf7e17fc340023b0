"""``train``, ``evaluate`` and ``predict``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trickbag.cli.common import (
    DataArgument,
    DeviceOption,
    JsonOption,
    RecipeArgument,
    RunsOption,
    SetOption,
    ThreadsOption,
    WithOption,
    WithoutOption,
    WorkersOption,
    console,
    keeping_options,
    load_compiled,
    print_json,
    read_data,
    read_recipe,
    reading,
    split_settings,
)

if TYPE_CHECKING:
    from rich.console import Console

    from trickbag.api import Prediction
    from trickbag.data.base import DataSet
    from trickbag.engine.train import Status
    from trickbag.plan import Plan
    from trickbag.recipe import Recipe

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory.")]


@keeping_options
def train(
    recipe: RecipeArgument,
    data: DataArgument,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random stream.")] = 42,
    runs: RunsOption = "runs",
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    deterministic: Annotated[bool, typer.Option(help="Only kernels that repeat to the bit (CUDA).")] = False,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what would be done, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe on data. The same command again goes on where it stopped."""
    chosen, spec = read_recipe(recipe, set_, with_, without), read_data(data, set_)
    out = console(quiet=as_json)
    from trickbag import api

    with reading(out) as progress:
        compiled, loaded = api.compile_plan(chosen, spec, device, progress)
    _show_plan(out, compiled, loaded)
    if plan_only:
        if as_json:
            print_json(_plan_json(compiled))
        return
    from trickbag.engine.device import Device
    from trickbag.engine.train import Stopped
    from trickbag.engine.train import train as engine

    place = Device(device, threads, workers, compile_, deterministic)
    out.print(f"[bold]device[/bold] {place.describe()}", soft_wrap=True)
    load_compiled(out)
    try:
        with _progress(out) as report:
            run = engine(compiled, loaded, seed=seed, runs=runs, device=place, progress=report)
    except Stopped as stopped:
        out.print(f"stopped; checkpoint in {stopped}. Run the same command again to go on.", soft_wrap=True)
        raise typer.Exit(130) from None
    if place.rank > 0:
        return
    api.raise_if_diverged(run)
    result = run.result()
    assert result is not None
    if as_json:
        print_json(result | {"path": str(run.path)})
        return
    _show_metrics(
        out, {f"{split}, {name}": m for split, by in result["metrics"].items() for name, m in by.items()}
    )
    _show_sizes(out, result.get("chosen", {}))
    cost = result["cost"]
    early = ", stopped early" if result["stopped_early"] else ""
    out.print(
        f"{result['epochs']:g} epochs{early} in {cost['seconds']:.0f} s, "
        f"{cost['images_per_second']:.0f} images/s, "
        f"{cost['outside_forward_backward']:.1%} of the time outside forward, backward and update"
    )
    out.print(f"run: {run.path}", soft_wrap=True)


def _show_plan(out: Console, plan: Plan, data: DataSet) -> None:
    facts, timeline = plan.facts, plan.timeline
    sizes = ", ".join(f"{count} {split}" for split, count in facts.sizes.items())
    out.print(f"[bold]data[/bold]   {facts.name}: {sizes}; {facts.num_classes} classes", soft_wrap=True)
    if facts.bad:
        names = ", ".join(facts.bad[:3]) + (", ..." if len(facts.bad) > 3 else "")
        out.print(f"[yellow]left out {len(facts.bad)} unreadable images: {names}[/yellow]", soft_wrap=True)
    model = plan.recipe.model.name
    out.print(
        f"[bold]model[/bold]  {model} at {plan.recipe.image_size} px; "
        f"{timeline.steps} steps of {timeline.batch_size} ({plan.recipe.epochs:g} epochs)"
    )
    out.print(f"[bold]tricks[/bold] {', '.join(plan.bag) or 'none'}", soft_wrap=True)
    marks = sorted({0, timeline.warmup, timeline.steps // 4, timeline.steps // 2, 3 * timeline.steps // 4})
    marks = [step for step in [*marks, timeline.steps - 1] if step < timeline.steps]
    curve = ", ".join(f"step {step}: {plan.learning_rate(step):.4g}" for step in dict.fromkeys(marks))
    out.print(f"[bold]lr[/bold]     {curve}", soft_wrap=True)
    for note in plan.notes:
        out.print(f"[dim]note: {note}[/dim]", soft_wrap=True)


def _plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "recipe": plan.recipe.data(),
        "digest": plan.recipe.digest,
        "steps": plan.timeline.steps,
        "learning_rate": [plan.learning_rate(step) for step in range(plan.timeline.steps)],
        "notes": list(plan.notes),
    }


@contextmanager
def _progress(out: Console) -> Iterator[Callable[[Status], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress("step", *columns, console=out) as bar:
        task = bar.add_task("train", total=None, text="")

        def report(status: Status) -> None:
            text = f"epoch {status.epoch:.1f}  {status.images_per_second:.0f} images/s"
            if status.loss == status.loss:
                text += f"  loss {status.loss:.3f}"
            if status.metric is not None:
                text += f"  selection {status.metric:.2%}"
            bar.update(task, total=status.steps, completed=status.step, text=text)

        yield report


def _show_metrics(out: Console, rows: dict[str, dict[str, float]]) -> None:
    from rich import box
    from rich.table import Column, Table

    names = list(next(iter(rows.values()), {}))
    columns = (Column(name.replace("_", " "), min_width=6, overflow="fold") for name in names)
    table = Table(Column(no_wrap=True), *columns, pad_edge=out.width >= 80)
    if out.width < 80:
        table.box = box.SIMPLE_HEAD
    for label, metrics in rows.items():
        table.add_row(label, *(f"{metrics[name]:.4f}" for name in names))
    out.print(table)


def _show_sizes(out: Console, sizes: dict[str, dict[str, int]]) -> None:
    for name, size in sizes.items():
        resize, crop = size["eval_resize"], size["eval_size"]
        chosen = f"short side to {resize} px, crop of {crop} px, chosen on the selection split"
        out.print(f"{name}: {chosen}", soft_wrap=True)


def _change(
    set_: list[str] | None, with_: list[str] | None, without: list[str] | None, run: Path
) -> Callable[[Recipe], Recipe] | None:
    if not (set_ or with_ or without):
        return None
    return lambda _: read_recipe(str(run / "recipe.yaml"), set_, with_, without)


def _is_run(path: str) -> bool:
    return (Path(path) / "run.json").is_file()


def _leading_runs(first: Path, others: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Runs that are named one after the other, and what comes after them."""
    count = next((k for k, path in enumerate(others) if not _is_run(path)), len(others))
    return [first, *map(Path, others[:count])], list(others[count:])


@keeping_options
def evaluate(
    run: RunArgument,
    others: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN...] [DATA]",
            help="More runs, to measure their ensemble; other images than their own.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, selection or test.")] = "test",
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a finished run, or the ensemble of several. Try --with tta_flip, --set eval_size=..."""
    from trickbag import api
    from trickbag.data.base import SPLITS
    from trickbag.errors import UsageError

    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}", where="--split", expected=", ".join(SPLITS))
    runs, rest = _leading_runs(run, others or [])
    if len(rest) > 1:
        what = f"{rest[0]} is not a run directory"
        raise UsageError(what, expected="runs, then at most one DATA", fix="check the path")
    if not rest:
        _refuse_data_settings(set_, fix="name the data: trickbag evaluate RUN DATA --set data....")
    spec = read_data(rest[0], set_) if rest else None
    change = _change(set_, with_, without, run)
    found = api.evaluate(runs, spec, split=split, change=change, device=device)
    sizes = api.chosen_sizes(runs, change=change, device=device)
    if as_json:
        print_json({name: metrics | sizes.get(name, {}) for name, metrics in found.items()})
        return
    out = console()
    _show_metrics(out, {f"{split}, {name}": metrics for name, metrics in found.items()})
    _show_sizes(out, sizes)


def predict(
    run: RunArgument,
    others: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN...] IMAGE...",
            help="More runs, to predict with their ensemble; image files, or folders of them.",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 1,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; standard output if not given.")] = None,
    set_: SetOption = None,
    with_: WithOption = None,
    without: WithoutOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Classify images with a finished run, or the ensemble of several."""
    from trickbag import api
    from trickbag.errors import DataError, UsageError

    runs, names = _leading_runs(run, others)
    images = [Path(name) for name in names]
    if not images:
        raise UsageError("no image is named", expected="image files, or folders of them")
    for image in images:
        if not image.exists():
            raise UsageError(f"there is no file {image}")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        what = "is a folder" if out.is_dir() else "is in a folder that does not exist"
        raise UsageError(f"{out} {what}", where="--out", expected="a CSV file to write")
    _refuse_data_settings(set_)
    change = _change(set_, with_, without, run)
    predictions, bad = api.predict(runs, images, top=top, change=change, device=device)
    if as_json:
        print_json({"predictions": [vars(p) for p in predictions], "unreadable": bad})
    if predictions and out is not None:
        with open(out, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            _write_csv(file, predictions)
    elif predictions and not as_json:
        _write_csv(sys.stdout, predictions)
    for name in bad:
        print(f"warning: cannot read {name}", file=sys.stderr)
    if not predictions:
        raise DataError("no image could be read", expected="image files, or folders that hold some")


def _refuse_data_settings(set_: list[str] | None, fix: str | None = None) -> None:
    from trickbag.errors import UsageError

    if given := split_settings(set_)[1]:
        raise UsageError("nothing here reads data settings", where=f"--set data.{given[0]}", fix=fix)


def _write_csv(file: TextIO, predictions: Sequence[Prediction]) -> None:
    writer = csv.writer(file)
    ranks = range(1, len(predictions[0].classes) + 1)
    writer.writerow(["image", *(f"{what}_{k}" for k in ranks for what in ("class", "probability"))])
    for p in predictions:
        pairs = zip(p.classes, p.probabilities, strict=True)
        writer.writerow([p.name, *(cell for name, value in pairs for cell in (name, f"{value:.6f}"))])
