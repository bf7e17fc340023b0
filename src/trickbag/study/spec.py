"""A study as a value and as a directory."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trickbag.data.base import DataSpec
from trickbag.engine.files import read_json, write_json, write_text
from trickbag.errors import StudyError, UsageError
from trickbag.plan import whole
from trickbag.recipe.model import Recipe
from trickbag.recipe.read import dump, load
from trickbag.study.layout import BY_ARMS, DesignName, Fixed, Layout, lay_out
from trickbag.study.protocol import Design
from trickbag.study.store import Store

METRICS = ("accuracy", "balanced_accuracy", "top5_accuracy")
"""What a study may judge by: shares of images, in points; a loss would punish tricks that soften targets."""
MOST = 1e9
"""Runs, epochs, hours: more than that is a slip of the hand."""
_UNITS = {
    "runs": ("runs", 1.0),
    "epochs": ("epochs", 1.0),
    "s": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "d": ("seconds", 86400.0),
}
_WORDS = {"run": "runs", "epoch": "epochs", "m": "min", "sec": "s", "second": "s", "seconds": "s"} | {
    "minute": "min",
    "minutes": "min",
    "mins": "min",
    "hour": "h",
    "hours": "h",
    "day": "d",
    "days": "d",
}


class Budget(BaseModel):
    """What a study may spend.

    Attributes:
        amount: how much.
        unit: ``runs``, ``epochs`` (summed over runs), or ``seconds`` (of runs, one after the other: two
            workers spend two in a second).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    amount: float = Field(gt=0)
    unit: Literal["runs", "epochs", "seconds"]

    @classmethod
    def parse(cls, text: str, workers: int = 1) -> Budget:
        """Read ``96 runs``, ``400 epochs``, ``2h``, ``90 min``; times are wall times of so many workers.

        Raises:
            UsageError: the text is none of these.
        """
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]+)\s*", text.lower())
        word = found and _WORDS.get(found[2], found[2])
        if not found or word not in _UNITS or not 0 < float(found[1]) < MOST:
            raise UsageError(
                f"cannot read {text!r}", where="--budget", expected="96 runs, 400 epochs, 90min or 2h"
            )
        unit, size = _UNITS[word]
        amount = float(found[1]) * size * (workers if unit == "seconds" else 1)
        return cls(amount=amount, unit=unit)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.unit != "seconds":
            return f"{self.amount:g} {self.unit}"
        return f"{self.amount / 3600:.3g} hours of runs"


class StudySpec(BaseModel):
    """What a study asks.

    Attributes:
        title: for people.
        baseline: recipe without the factors.
        candidate: recipe with all of them.
        data: data set.
        design: which combinations are trained.
        seeds: seeds; runs with one seed are paired.
        budget: what may be spent; fixed designs then take as many of the seeds as fit.
        metric: what counts, one of :data:`METRICS`.
        ties: groups of change keys that form one factor.
        apart: do not tie factors that require or exclude each other; the design avoids what cannot be.
        order: factor keys in the order of a ladder's rungs.
        crossed: factor keys that a factorial crosses; none means all.
        price: points that a doubling of training time must gain for a recipe to be recommended.
        delta: margin in percentage points within which an effect counts as none.
        alpha: family-wise error rate.
        device: device type of every run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    baseline: Recipe
    candidate: Recipe
    data: DataSpec
    design: DesignName = "leave-one-out"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    budget: Budget | None = None
    metric: Literal["accuracy", "balanced_accuracy", "top5_accuracy"] = "accuracy"
    ties: tuple[tuple[str, ...], ...] = ()
    apart: bool = False
    order: tuple[str, ...] = ()
    crossed: tuple[str, ...] = ()
    price: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    delta: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    device: str = "cpu"

    @field_validator("baseline", "candidate")
    @classmethod
    def _whole(cls, recipe: Recipe) -> Recipe:
        """What the recipe builds upon is kept with the study: files may move or change later."""
        return whole(recipe)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise StudyError(f"seeds {', '.join(map(str, seeds))}: one comes twice", expected="each once")
        for seed in seeds:
            if not 0 <= seed < 2**63:
                raise StudyError(f"seed {seed}", expected="seeds from 0 to 2**63 - 1")
        return seeds

    @property
    def layout(self) -> Layout:
        """Arms and comparisons that are known beforehand."""
        return lay_out(
            self.baseline, self.candidate, self.design, ties=self.ties, order=self.order, apart=self.apart
        )

    def protocol(self) -> Design:
        """What decides which runs are made."""
        if self.design in BY_ARMS:
            return Fixed(self.design, tuple(arm.cell for arm in self.layout.arms))
        if self.design == "screen":
            from trickbag.study.screens import Screen

            return Screen()
        if self.design == "factorial":
            from trickbag.study.factorials import Factorial

            return Factorial(crossed=self.crossed)
        from trickbag.study.auto import Auto

        return Auto()

    def plain(self) -> dict[str, Any]:
        """The spec as JSON values, without the recipes."""
        return self.model_dump(mode="json", exclude={"baseline", "candidate"})

    @property
    def digest(self) -> str:
        """Hash of what is asked, 8 hexadecimal digits; the title is no part of it."""
        plain = self.plain() | {"title": ""}
        # Studies keep their names when a setting is added that they leave alone.
        for name in ("budget", "metric", "apart", "crossed", "price"):
            if getattr(self, name) == type(self).model_fields[name].default:
                del plain[name]
        parts = [plain, self.baseline.digest, self.candidate.digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class StudyFolder:
    """A study's directory: the question, what happened to its runs, and the report.

    Numbers live in the run directories; this folder can be rebuilt from the question and them.
    """

    path: Path

    @property
    def runs(self) -> Path:
        """Folder of run directories, shared with other studies."""
        return Path(read_json(self.path / "study.json")["runs"])

    def create(self, spec: StudySpec, runs: Path) -> None:
        """Write the question; the same one may be written again, another is refused.

        Raises:
            StudyError: the directory holds another study.
        """
        if (self.path / "study.json").exists():
            if self.spec().digest != spec.digest:
                raise StudyError(f"{self.path} holds another study", fix="choose another --out")
            if self.runs != runs.resolve():
                self._rewrite(runs=str(runs.resolve()))
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "baseline.yaml", dump(spec.baseline))
        write_text(self.path / "candidate.yaml", dump(spec.candidate))
        about = {"spec": spec.plain(), "runs": str(runs.resolve()), "command": _command()}
        write_json(self.path / "study.json", about | _made_by())

    @property
    def code(self) -> str:
        """Version of the code that trains this study's runs: part of their names."""
        return str(self._plain.get("code") or _made_by()["code"])

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that they are trained with, by name."""
        return dict(self._plain.get("versions") or _made_by()["versions"])

    @property
    def command(self) -> str | None:
        """The command line that began the study; None if a program did."""
        return self._plain.get("command")

    @property
    def changed(self) -> list[str]:
        """What is not as it was when this study's runs were trained; nothing if numbers would be the same."""
        made, here = self.versions, _made_by()
        if self.code == here["code"]:
            return []
        names = sorted(made.keys() | here["versions"].keys())
        pairs = [(name, made.get(name, "none"), here["versions"].get(name, "none")) for name in names]
        found = [f"{name} was {then}, is {now}" for name, then, now in pairs if then != now]
        return found or ["trickbag's own code was edited"]

    def renew(self) -> None:
        """Let the code at hand train this study's runs: none has been trained yet."""
        self._rewrite(**_made_by())

    @property
    def _plain(self) -> dict[str, Any]:
        path = self.path / "study.json"
        return dict(read_json(path)) if path.exists() else {}

    def _rewrite(self, **values: Any) -> None:
        write_json(self.path / "study.json", self._plain | values)

    def spec(self) -> StudySpec:
        """Read the question.

        Raises:
            StudyError: this is no study directory.
        """
        recipes = [self.path / f"{name}.yaml" for name in ("baseline", "candidate")]
        try:
            plain = read_json(self.path / "study.json")["spec"]
            if not all(path.is_file() for path in recipes):
                raise FileNotFoundError
            return StudySpec(**plain, baseline=load(recipes[0]), candidate=load(recipes[1]))
        except (OSError, ValueError, KeyError, TypeError):
            raise StudyError(
                f"{self.path} is not a study, or a damaged one",
                expected="a folder that `study run` made: study.json, baseline.yaml, candidate.yaml",
            ) from None

    def store(self, *, readonly: bool = False) -> Store:
        """The study's database."""
        return Store(self.path, readonly=readonly)


def _command() -> str | None:
    name = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["trickbag", *sys.argv[1:]]) if name in ("trickbag", "__main__.py") else None


def _made_by() -> dict[str, Any]:
    from trickbag.engine.run import code_version, versions

    return {"code": code_version(), "versions": versions()}
