"""A study as a value and as a directory."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trickbag.data.base import DataSpec
from trickbag.engine.files import read_json, write_json, write_text
from trickbag.errors import StudyError
from trickbag.plan import whole
from trickbag.recipe.model import Recipe
from trickbag.recipe.read import dump, load
from trickbag.study.design import Design, Layout, lay_out


class StudySpec(BaseModel):
    """What a study asks.

    Attributes:
        title: for people.
        baseline: recipe without the factors.
        candidate: recipe with all of them.
        data: data set.
        design: which combinations are trained.
        seeds: seeds; runs with one seed are paired.
        ties: groups of change keys that form one factor.
        order: factor keys in the order of a ladder's rungs.
        delta: margin in percentage points within which an effect counts as none.
        alpha: family-wise error rate.
        device: device type of every run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = ""
    baseline: Recipe
    candidate: Recipe
    data: DataSpec
    design: Design = "leave-one-out"
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    ties: tuple[tuple[str, ...], ...] = ()
    order: tuple[str, ...] = ()
    delta: float = Field(default=0.5, ge=0)
    alpha: float = Field(default=0.05, gt=0, lt=1)
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
        return seeds

    @property
    def layout(self) -> Layout:
        """Arms and comparisons."""
        return lay_out(self.baseline, self.candidate, self.design, ties=self.ties, order=self.order)

    def plain(self) -> dict[str, Any]:
        """The spec as JSON values, without the recipes."""
        return self.model_dump(mode="json", exclude={"baseline", "candidate"})

    @property
    def digest(self) -> str:
        """Hash of what is asked, 8 hexadecimal digits; the title is no part of it."""
        parts = [self.plain() | {"title": ""}, self.baseline.digest, self.candidate.digest]
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
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "baseline.yaml", dump(spec.baseline))
        write_text(self.path / "candidate.yaml", dump(spec.candidate))
        write_json(self.path / "study.json", {"spec": spec.plain(), "runs": str(runs.resolve())})

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

    def log(self, file: str, row: Mapping[str, Any]) -> None:
        """Append one event, with the time."""
        with open(self.path / f"{file}.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}) + "\n")

    def events(self, file: str) -> list[dict[str, Any]]:
        """The events of one kind, oldest first; a torn line is left out."""
        path, rows = self.path / f"{file}.jsonl", []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows
