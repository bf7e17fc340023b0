"""The Python interface: what the command line calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from trickbag.data.base import DataSpec
from trickbag.errors import Diverged, Problem, StudyError
from trickbag.recipe import Recipe
from trickbag.recipe import load as load_recipe

if TYPE_CHECKING:
    from trickbag.data.base import DataFacts, DataSet
    from trickbag.data.preparing import Prepared
    from trickbag.engine.run import Run
    from trickbag.engine.train import Status
    from trickbag.plan import Plan
    from trickbag.recipe.fitting import Fitted
    from trickbag.study.conduct import Conduct
    from trickbag.study.executor import Event, Executor
    from trickbag.study.spec import StudySpec

    Runs: TypeAlias = str | Path | Run | Sequence[str | Path | Run]
    """A run or its directory; several mean their ensemble."""


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _spec(data: DataSpec | str | Path) -> DataSpec:
    from trickbag.data import spec

    return data if isinstance(data, DataSpec) else spec(str(data))


def compile_plan(
    recipe: Recipe | str | Path,
    data: DataSpec | str | Path,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Plan, DataSet]:
    """Load the data and compile a recipe for it.

    Args:
        recipe: a recipe, the name of a published one, or a YAML file.
        data: a data specification, or what the command line's DATA accepts.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        progress: told what is read, how many images are done, and how many there are.

    Raises:
        RecipeError, DataError, PlanError: everything that is wrong.
    """
    from trickbag import plan as planning
    from trickbag.data import load
    from trickbag.engine.device import Device

    loaded = load(_spec(data), progress)
    return planning.compile(_recipe(recipe), loaded.facts, Device(device).type), loaded


def fit_recipe(
    recipe: Recipe | str | Path,
    data: DataSpec | str | Path,
    epochs: float | None = None,
    *,
    device: str = "auto",
) -> Fitted:
    """What a recipe becomes on other data and in another budget, by stated rules.

    Args:
        recipe: a recipe, the name of a published one, or a YAML file.
        data: a data specification, or what the command line's DATA accepts.
        epochs: the budget; None lets the rules choose.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Returns:
        The recipe, and every change with its rule and reason.

    Raises:
        RecipeError, DataError: what is wrong.
    """
    from trickbag.data import facts
    from trickbag.engine.device import Device
    from trickbag.recipe.fitting import fit

    return fit(_recipe(recipe), facts(_spec(data)), epochs, device_type=Device(device).type)


def prepare(
    data: DataSpec | str | Path, *, progress: Callable[[str, int, int], None] | None = None
) -> Prepared:
    """Make a copy of the images that is quick to read; training on the same data then finds it.

    Args:
        data: a data specification, whose ``short_side``, ``keep`` and ``quality`` say what the copy is,
            or what the command line's DATA accepts.
        progress: told what is read, how many images are done, and how many there are.

    Raises:
        DataError: there is nothing to prepare, the data cannot be read, or the copy cannot be written.
    """
    from trickbag.data.preparing import prepare as make

    return make(_spec(data), progress)


def train(
    recipe: Recipe | str | Path,
    data: DataSpec | str | Path,
    *,
    seed: int = 42,
    runs: str | Path = "runs",
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    deterministic: bool = False,
    progress: Callable[[Status], None] | None = None,
) -> Run:
    """Train a recipe; a run that exists already is gone on with, or returned if it is finished.

    Args:
        recipe: a recipe, the name of a published one, or a YAML file.
        data: a data specification, or what the command line's DATA accepts.
        seed: seed of every random stream.
        runs: folder of run directories.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: CPU threads; None means one a core.
        workers: threads that read images; None means as many as compute (CPU), or one a core (CUDA).
        compile: use ``torch.compile``.
        deterministic: forbid CUDA kernels that do not repeat to the bit.
        progress: called a few times a second.

    Returns:
        The finished run; ``run.result()["metrics"]`` holds raw and averaged numbers by split.

    Raises:
        Diverged: the loss became NaN or infinite; the run has recorded where.
        RecipeError, DataError, PlanError, CheckpointError: see there.
    """
    from trickbag.engine.device import Device
    from trickbag.engine.train import train as engine

    compiled, loaded = compile_plan(recipe, data, device)
    place = Device(device, threads, workers, compile, deterministic)
    run = engine(compiled, loaded, seed=seed, runs=runs, device=place, progress=progress)
    if place.rank == 0:
        raise_if_diverged(run)
    return run


def raise_if_diverged(run: Run) -> None:
    """Turn a recorded divergence into an error.

    Raises:
        Diverged: the run's loss became NaN or infinite.
    """
    result = run.result() or {}
    if result.get("status") == "diverged":
        d = result["diagnosis"]
        raise Diverged(
            f"the loss became {d['loss']} at step {d['step']} (epoch {d['epoch']:.2f}); "
            f"learning rate {d['learning_rate']:g}, gradient norm {d['gradient_norm']}, "
            f"last finite mean loss {d['last_finite_loss']}",
            where=str(run.path),
            fix="lower the learning rate, or add or lengthen warmup",
        )


def evaluate(
    run: Runs,
    data: DataSpec | str | Path | None = None,
    *,
    split: str = "test",
    change: Callable[[Recipe], Recipe] | None = None,
    device: str = "auto",
) -> dict[str, dict[str, float]]:
    """Measure a finished run: raw and averaged weights, without and with the recipe's predict tricks.

    Args:
        run: a run or its directory; several mean their ensemble, at the evaluation size and with the predict
            tricks of the first.
        data: other images than the run was trained on; must have the same classes.
        split: ``"train"``, ``"selection"`` or ``"test"``.
        change: makes predict-only changes to the recipe (TTA, evaluation size).
        device: where to compute.

    Returns:
        Metrics by read-out, for example ``{"raw": {...}, "ema+tta_flip": {...}}``.

    Raises:
        CheckpointError: no run, no weights, or a change that would have needed training.
        DataError: other classes than the run's.
        PlanError: runs of other classes.
    """
    from trickbag.engine.device import Device
    from trickbag.engine.evaluate import all_readouts
    from trickbag.engine.evaluate import evaluate as engine

    first, change = _together(run, change)
    first, compiled, loaded = _open(first, data, change, device)
    readouts = all_readouts(compiled)
    found = engine(first, compiled, loaded, readouts, split, Device(device).torch_device)
    return {readout.label: found[readout.digest] for readout in readouts}


def chosen_sizes(
    run: Runs, *, change: Callable[[Recipe], Recipe] | None = None, device: str = "auto"
) -> dict[str, dict[str, int]]:
    """The evaluation sizes that read-outs of a run have chosen on the selection split.

    Args:
        run, change, device: as :func:`evaluate` was given, which makes the choice.

    Returns:
        ``eval_resize`` and ``eval_size`` by read-out; empty if no trick chooses any.
    """
    from trickbag import plan as planning
    from trickbag.engine.device import Device
    from trickbag.engine.evaluate import Reader, all_readouts
    from trickbag.tricks.stages import PredictTrick

    first, change = _together(run, change)
    first, _, facts = _identity(first)
    recipe = _changed(first.recipe(), change)
    if not any(trick.candidates(*recipe.evaluation) for trick in recipe.tricks.of(PredictTrick)):
        return {}
    compiled = planning.compile(recipe, facts, Device(device).type)
    return Reader(first, compiled).choices(all_readouts(compiled))


def _together(
    runs: Runs, change: Callable[[Recipe], Recipe] | None
) -> tuple[str | Path | Run, Callable[[Recipe], Recipe] | None]:
    """The first run, and a change that makes the others members of its ensemble."""
    from trickbag.engine.run import Run
    from trickbag.errors import UsageError
    from trickbag.tricks.ensembling import Ensemble
    from trickbag.tricks.sources import Source

    if isinstance(runs, str | Path | Run):
        return runs, change
    if not runs:
        raise UsageError("no run is named", expected="at least one")
    first, *rest = runs
    members = tuple(Source(run=str(_identity(other)[0].path.resolve())) for other in rest)

    def joined(recipe: Recipe) -> Recipe:
        recipe = recipe if change is None else change(recipe)
        own = next(iter(recipe.tricks.of(Ensemble)), Ensemble())
        return recipe.with_tricks(own.model_copy(update={"members": (*own.members, *members)}))

    return first, joined if members else change


def _open(
    run: str | Path | Run,
    data: DataSpec | str | Path | None,
    change: Callable[[Recipe], Recipe] | None,
    device: str,
) -> tuple[Run, Plan, DataSet]:
    from trickbag import plan as planning
    from trickbag.data import load
    from trickbag.engine.device import Device
    from trickbag.errors import DataError

    run, trained_on, facts = _identity(run)
    recipe = _changed(run.recipe(), change)
    loaded = load(trained_on if data is None else _spec(data))
    if facts.classes != loaded.facts.classes:
        raise DataError(
            f"the images have classes {', '.join(loaded.facts.classes[:8])}",
            where=loaded.spec.source,
            expected="the classes of the run: " + ", ".join(facts.classes[:8]),
        )
    return run, planning.compile(recipe, loaded.facts, Device(device).type), loaded


def _identity(run: str | Path | Run) -> tuple[Run, DataSpec, DataFacts]:
    """A run, and the data that it was trained on."""
    from trickbag.data.base import DataFacts
    from trickbag.engine.run import Run
    from trickbag.errors import CheckpointError

    run = run if isinstance(run, Run) else Run(Path(run))
    fix = "copy it from a backup, or delete the run and train it again"
    try:
        about = run.about()
        spec, facts = DataSpec(**about["data"]), DataFacts.of(about["facts"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{run.path / 'run.json'} is damaged", fix=fix) from None
    if not (run.path / "recipe.yaml").is_file():
        raise CheckpointError(f"{run.path / 'recipe.yaml'} is missing", fix=fix)
    if run.result() is None:
        # An evaluation is kept beside the run: one of half-trained weights would pass for the final one.
        raise CheckpointError(f"{run.path} is not finished", fix="the command that trained it goes on")
    return run, spec, facts


def _changed(recipe: Recipe, change: Callable[[Recipe], Recipe] | None) -> Recipe:
    from trickbag.engine.run import readable, training_part
    from trickbag.errors import CheckpointError

    if change is None:
        return readable(recipe)
    changed = change(recipe)
    bare = recipe.model.model_copy(update={"weights": None})
    trained = [training_part(r.replace(model=bare)) for r in (recipe, changed)]
    if changed.model != recipe.model or trained[0] != trained[1]:
        raise CheckpointError(
            "this change would have needed training",
            expected=f"a change of {', '.join(Recipe.PREDICT_ONLY)} or of predict tricks",
        )
    return readable(changed)


@dataclass(frozen=True)
class Prediction:
    """What a run says of one image.

    Attributes:
        name: the file.
        classes: class names, most probable first.
        probabilities: their probabilities.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    run: Runs,
    images: Iterable[str | Path],
    *,
    top: int = 1,
    change: Callable[[Recipe], Recipe] | None = None,
    device: str = "auto",
) -> tuple[list[Prediction], list[str]]:
    """Classify image files with a finished run, as its recipe prescribes (averaged weights, TTA).

    Args:
        run: a run or its directory; several mean their ensemble, as in :func:`evaluate`.
        images: image files, and folders that are searched for images.
        top: how many classes to name.
        change: predict-only changes to the recipe.
        device: where to compute.

    Returns:
        Predictions in order, and the names of files that could not be read.

    Raises:
        CheckpointError: as :func:`evaluate`; or an evaluation size is to be chosen that :func:`evaluate` has
            not chosen yet.
    """
    from trickbag import plan as planning
    from trickbag.data.loose import read_files
    from trickbag.data.recoding import Recoding
    from trickbag.engine.device import Device
    from trickbag.engine.evaluate import Reader, main_readout

    first, change = _together(run, change)
    first, spec, facts = _identity(first)
    compiled = planning.compile(_changed(first.recipe(), change), facts, Device(device).type)
    mode: Literal["gray", "rgb"] = "gray" if facts.channels == 1 else "rgb"
    split, bad = read_files([Path(image) for image in images], mode, Recoding(spec.short_side))
    if not len(split):
        return [], bad
    reader = Reader(first, compiled, device=Device(device).torch_device)
    found = reader.probabilities(main_readout(compiled), split)
    values, indices = found.topk(min(top, facts.num_classes), dim=1)
    return [
        Prediction(name, tuple(facts.classes[i] for i in row), tuple(p))
        for name, row, p in zip(split.names, indices.tolist(), values.tolist(), strict=True)
    ], bad


def make_study(
    baseline: Recipe | str | Path,
    candidate: Recipe | str | Path,
    data: DataSpec | str | Path,
    *,
    design: str = "leave-one-out",
    seeds: Sequence[int] = (0, 1, 2),
    budget: str | None = None,
    workers: int | None = None,
    metric: str = "accuracy",
    out: str | Path | None = None,
    runs: str | Path = "runs",
    title: str = "",
    ties: Sequence[Sequence[str]] = (),
    apart: bool = False,
    order: Sequence[str] = (),
    crossed: Sequence[str] = (),
    delta: float = 0.5,
    alpha: float = 0.05,
    price: float = 0.0,
    device: str = "auto",
) -> Conduct:
    """Describe a study; :func:`run_study` trains it. See ``StudySpec`` for the arguments.

    A ``budget`` is text: ``96 runs``, ``400 epochs``, ``2h``; a time counts for ``workers`` runs at once.

    Raises:
        StudyError, RecipeError, DataError, PlanError: everything that is wrong, before anything is trained.
    """
    from trickbag.engine.device import Device
    from trickbag.study.spec import Budget, StudySpec

    spec = checked(
        StudySpec,
        title=title,
        baseline=_recipe(baseline),
        candidate=_recipe(candidate),
        data=_spec(data),
        design=design,  # type: ignore[arg-type]
        seeds=tuple(seeds),
        budget=Budget.parse(budget, count_workers(device, workers)) if budget else None,
        metric=metric,  # type: ignore[arg-type]
        ties=tuple(tuple(tie) for tie in ties),
        apart=apart,
        order=tuple(order),
        crossed=tuple(crossed),
        delta=delta,
        alpha=alpha,
        price=price,
        device=Device(device).type,
    )
    folder = Path(out) if out else Path("studies") / f"{spec.design}-{spec.digest}"
    return prepare_study(spec, folder, Path(runs))


def checked(kind: type[StudySpec], **values: Any) -> StudySpec:
    """A spec, with its mistakes told as ours."""
    from pydantic import ValidationError

    try:
        return kind(**values)
    except ValidationError as error:
        raise StudyError(
            Problem(f"{'.'.join(map(str, e['loc']))}: {e['msg']}", expected=_expected(e))
            for e in error.errors(include_url=False)
        ) from None


def _expected(error: Any) -> str | None:
    return str((error.get("ctx") or {}).get("expected") or "") or None


def prepare_study(
    spec: StudySpec, folder: Path, runs: Path, progress: Callable[[str, int, int], None] | None = None
) -> Conduct:
    """Load a study's data, check every arm and make its directory.

    Raises:
        StudyError, DataError, PlanError: everything that is wrong, before anything is trained.
    """
    from trickbag.data import load
    from trickbag.study.conduct import Conduct
    from trickbag.study.spec import StudyFolder

    _ = spec.layout
    home = StudyFolder(folder)
    conduct = Conduct(home, spec, load(spec.data, progress))
    classes = conduct.data.facts.num_classes
    if spec.metric == "top5_accuracy" and classes <= 5:
        raise StudyError(f"top-5 accuracy of {classes} classes is always 100", fix="use accuracy")
    _ = conduct.plans
    # A study that was killed at its very beginning has decided something, and trained nothing yet.
    with home.store(readonly=True) as store:
        trained = any(event["event"] == "done" for event in store.events())
    if runs.exists() and not runs.is_dir():
        raise StudyError(f"{runs} is a file", where="--runs", expected="a folder, or the name of a new one")
    if trained and not runs.is_dir():
        raise StudyError(
            f"{runs} is not there, and with it every run of {folder}",
            fix=f"trickbag study resume {folder} --runs FOLDER, where they are now",
        )
    home.create(spec, runs)
    return conduct


def run_study(
    conduct: Conduct,
    *,
    workers: int | None = None,
    threads: int = 1,
    listen: Callable[[Event], None] = lambda event: None,
    on: str = "local",
) -> bool:
    """Train what a study still lacks and write its report.

    Args:
        conduct: from :func:`make_study`.
        workers: processes at once; None means one a core (CPU) or one a device (CUDA).
        threads: CPU threads of each.
        listen: told of every event.
        on: ``local``, ``ray`` or ``slurm``.

    Returns:
        False if it was interrupted; the same call goes on.

    Raises:
        StudyError: another process conducts the study, the budget is too small, or the disk is full.
    """
    executor = make_executor(conduct.spec.device, workers, threads, on)
    done = conduct.run(executor, threads, listen)
    if done:
        from trickbag.study.collect import write_report

        write_report(conduct, executor.workers)
    return done


def count_workers(device: str, workers: int | None, threads: int = 1) -> int:
    """Runs at once: as told, or one a core, or one a CUDA device. Needs no torch unless a device is used."""
    if workers:
        return workers
    if device in ("auto", "cuda"):
        from trickbag.engine.device import Device

        if Device(device).type == "cuda":
            import torch

            return torch.cuda.device_count()
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, (len(affinity(0)) if affinity else os.cpu_count() or 1) // threads)


def make_executor(device: str, workers: int | None, threads: int = 1, on: str = "local") -> Executor:
    """What runs a study's jobs, with one worker a core or device unless told otherwise.

    Raises:
        UsageError: there is no such executor, or what it needs is not installed.
    """
    from trickbag.study.executor import make

    return make(on, workers=workers or 0, threads=threads, device=device)
