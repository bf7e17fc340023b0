"""Runs as directories whose name is the hash of everything that determines their numbers."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from trickbag import plan as planning
from trickbag.data.base import DataFacts
from trickbag.engine import checkpoint
from trickbag.engine.files import read_json, write_json, write_text
from trickbag.errors import CheckpointError
from trickbag.imageops.backend import numba_works
from trickbag.recipe.model import Recipe
from trickbag.recipe.read import dump, load
from trickbag.tricks.sources import Source
from trickbag.tricks.stages import PredictTrick, StopTrick, WeightsTrick

NUMERIC_ROOMS = ("data", "engine", "functional", "imageops", "tasks", "tricks", "plan.py", "rng.py")
PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "trickbag")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of everything that a number may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "source"
    # Compiled code and Pillow resize some tall images by one level differently.
    found["resizing"] = "compiled" if numba_works() else "pillow"
    return found


@lru_cache(maxsize=1)
def code_version() -> str:
    """Hash of the code that computes numbers, and of the versions of the libraries below it."""
    root = Path(__file__).parent.parent
    files = [path for room in NUMERIC_ROOMS for path in sorted((root / room).rglob("*.py")) or [root / room]]
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for path in files:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def training_part(recipe: Recipe) -> dict[str, Any]:
    """What determines a training run: the recipe less everything that acts only when predicting."""
    plain = recipe.without(*(t.kind for t in recipe.tricks.of(PredictTrick)))
    # Averages that complete themselves from training images look at them in the size of an evaluation.
    sized = recipe.tricks.of(StopTrick) or any(t.sample_size for t in recipe.tricks.of(WeightsTrick))
    if not sized:
        plain = plain.replace(**dict.fromkeys(Recipe.PREDICT_ONLY))
    data = plain.data()
    if recipe.model.weights is not None:
        data["model"]["weights"] = _file_digest(recipe.model.weights)
    return data


def _file_digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read weights: {error.strerror}", where=path) from None


def run_id(
    recipe: Recipe, facts: DataFacts, seed: int, device_type: str = "cpu", code: str | None = None
) -> str:
    """Name of a run: same training recipe, data, seed, device type and code give the same name.

    A trained model that the recipe builds upon counts by the name of its run, or the bytes of its file.
    ``code`` is the version that trained the run, of :func:`code_version`; None means the code at hand.
    """
    code = code or code_version()
    part = training_part(recipe)
    for kind, trick in recipe.tricks.items():
        for name, source in trick.sources().items() if kind in part["tricks"] else ():
            part["tricks"][kind][name] = _identity(source, facts, seed, device_type, code)
    parts = [part, facts.fingerprint, seed, device_type, code]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _identity(source: Source, facts: DataFacts, seed: int, device_type: str, code: str) -> dict[str, Any]:
    if source.recipe is not None:
        other = planning.compile(planning.recipe_of(source), facts, device_type.split()[0]).recipe
        name = run_id(other, facts, seed if source.seed is None else source.seed, device_type, code)
        return {"run": name, "averaged": source.averaged}
    if source.run is not None:
        return {"run": name_of(Path(source.run)), "averaged": source.averaged}
    weights = None if source.weights is None else _file_digest(source.weights)
    return {"model": source.model, "weights": weights}


def name_of(path: Path) -> str:
    """The name that a run was given, even if its directory has been copied to another one since."""
    return str((Run(path).result() or {}).get("run", path.resolve().name))


def readable(recipe: Recipe) -> Recipe:
    """A recipe less what is needed for training alone: other runs, which may be gone by now."""
    return recipe.without(*(t.kind for t in recipe.tricks.values() if t.sources() and not t.passive))


@dataclass(frozen=True)
class Run:
    """A run's directory: ``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``checkpoint/``, ``result.json``.

    ``evaluations/`` beside them caches evaluations of the finished run; ``forks/`` holds what other runs go
    on from; ``heartbeat.json`` says who trains it.
    """

    path: Path

    @property
    def id(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def metrics_file(self) -> Path:
        """One JSON object a line; append-only but for what a resumed run repeats."""
        return self.path / "metrics.jsonl"

    def create(self, recipe: Recipe, about: dict[str, Any]) -> None:
        """Make the directory and write what identifies the run."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "run.json").exists():
            write_text(self.path / "recipe.yaml", dump(recipe))
            write_json(self.path / "run.json", about)

    def note(self, name: str, value: Any) -> None:
        """Keep one more thing about the run in ``run.json``; None leaves it out."""
        about = self.about()
        if about.get(name) != value:
            rest = {key: known for key, known in about.items() if key != name}
            write_json(self.path / "run.json", rest if value is None else rest | {name: value})

    def about(self) -> dict[str, Any]:
        """What identifies the run: seed, data, classes, code, threads.

        Raises:
            CheckpointError: this is no run directory.
        """
        try:
            about: dict[str, Any] = read_json(self.path / "run.json")
        except ValueError:
            raise CheckpointError(
                f"{self.path / 'run.json'} is damaged",
                fix="train it again: the same command takes what is left",
            ) from None
        except OSError:
            raise CheckpointError(
                f"{self.path} is not a run directory", expected="a folder with run.json and recipe.yaml"
            ) from None
        return about

    def recipe(self) -> Recipe:
        """The recipe it was trained with."""
        return load(self.path / "recipe.yaml")

    def reading_recipe(self) -> Recipe:
        """Its recipe less what was needed for training alone."""
        return readable(self.recipe())

    def result(self) -> dict[str, Any] | None:
        """Outcome of a run that ended (finished or diverged); None if it has not, or is damaged."""
        try:
            result = read_json(self.path / "result.json")
        except (OSError, ValueError):
            return None
        known = isinstance(result, dict) and result.get("status") in ("finished", "diverged")
        return result if known and {"cost", "steps"} <= result.keys() else None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``; a torn last line is left out."""
        rows = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return rows

    def log_digest(self) -> str | None:
        """Hash of ``metrics.jsonl``, which ``result.json`` repeats; None if it cannot be read."""
        try:
            return hashlib.sha256(self.metrics_file.read_bytes()).hexdigest()[:16]
        except OSError:
            return None

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to ``metrics.jsonl``."""
        with open(self.metrics_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def start_metrics(self, rows: Iterable[dict[str, Any]]) -> None:
        """Begin ``metrics.jsonl`` anew, with the rows of another run that this one goes on from."""
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def truncate_metrics(self, size: int) -> None:
        """Cut ``metrics.jsonl`` back to what it held when a checkpoint was written, and to whole lines."""
        if self.metrics_file.exists():
            with open(self.metrics_file, "rb+") as file:
                file.truncate(file.read(size).rfind(b"\n") + 1)

    def metrics_size(self) -> int:
        """Bytes in ``metrics.jsonl``."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def newest_checkpoint(self) -> Path:
        """The newest complete checkpoint.

        Raises:
            CheckpointError: there is none.
        """
        found = checkpoint.newest(self.path / "checkpoint")
        if found is None:
            raise CheckpointError(
                f"{self.path} holds no checkpoint", fix="train it first, with the recipe.yaml inside it"
            )
        return found

    @contextmanager
    def lock(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the run: a second process that wants to train it is refused.

        Args:
            wait: seconds to wait for another process to let go of it.

        Raises:
            CheckpointError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait
        with open(self.path / ".lock", "w") as file:
            while not _taken(file) and time.monotonic() < deadline:
                time.sleep(0.2)
            if not _taken(file):
                raise CheckpointError(
                    f"another process is training {self.path}",
                    fix="wait for it, or choose another --runs folder",
                )
            yield


def _taken(file: IO[str]) -> bool:
    """Try to lock a file; True if this process holds it now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
