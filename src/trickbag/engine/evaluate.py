"""Evaluation: one trained run gives the numbers of every read-out of its weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trickbag import tasks
from trickbag.data.base import DataFacts, DataSet, Split
from trickbag.engine import upstream
from trickbag.engine.files import read_json, write_json
from trickbag.engine.readout import (
    RAW,
    ReadOut,
    Weights,
    all_readouts,
    load_weights,
    main_readout,
    measure,
    probabilities,
)
from trickbag.engine.run import Run, name_of
from trickbag.errors import CheckpointError
from trickbag.plan import Plan
from trickbag.tricks.base import Bag

if TYPE_CHECKING:
    from torch import Tensor

    from trickbag.tricks.sources import Source
    from trickbag.tricks.stages import PredictTrick, Upstreams

__all__ = [
    "RAW",
    "ReadOut",
    "Reader",
    "Weights",
    "all_readouts",
    "evaluate",
    "load_weights",
    "main_readout",
    "measure",
    "probabilities",
]


def evaluate(
    run: Run,
    plan: Plan,
    data: DataSet,
    readouts: Sequence[ReadOut],
    split: str,
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, float]]:
    """Metrics of a finished run by read-out digest; cached in the run's directory.

    Raises:
        CheckpointError: the run has not finished, or lacks the weights or the other models that a read-out
            wants.
    """
    reader = Reader(run, plan, data, device)
    return {readout.digest: reader.metrics(readout, split) for readout in readouts}


class Reader:
    """Reads predictions off a finished run. Weights, and other models, are loaded when they are needed.

    Args:
        run: what was trained.
        plan: how images reach the model.
        data: images to measure; None to classify others only.
        device: where to compute.
        code: version of the code that trained the runs which the plan builds upon; None means that at hand.

    Raises:
        CheckpointError: the run has not finished.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        data: DataSet | None = None,
        device: str | torch.device = "cpu",
        code: str | None = None,
    ) -> None:
        if (run.result() or {}).get("status") != "finished":
            raise CheckpointError(f"run {run.id} has not finished", fix="train it to its end first")
        self.run, self.plan, self.data, self.device = run, plan, data, torch.device(device)
        self._about, self._code = run.about(), code
        self._members: dict[Source, upstream.Knowledge] = {}

    def metrics(self, readout: ReadOut, split: str) -> dict[str, float]:
        """The task's metrics of a read-out on a split; where it chooses a size, those of the chosen one.

        Raises:
            CheckpointError: weights or other models are missing, or no size can be chosen.
        """
        assert self.data is not None
        readout = self.settled(readout)
        path = self._file(readout, split, self.data.facts)
        known: dict[str, float] | None = _read(path, "metrics")
        if known is None:
            row: dict[str, Any] = {"readout": readout.label, "split": split}
            if readout.candidates:
                chosen = self._chosen(readout)
                known = self.metrics(chosen, split)
                row |= {"chosen": _size(chosen), "metrics": known}
            else:
                weights, images = self._weights(readout), self.data.splits[split]
                began = time.perf_counter()
                known = measure(weights, readout, self.plan, images)
                row |= {"metrics": known, "images": len(images)}
                row |= {"seconds": round(time.perf_counter() - began, 4)}
            _write(path, row)
        return known

    def known(self, readout: ReadOut, split: str, facts: DataFacts) -> dict[str, float] | None:
        """The metrics of a read-out on a split of some data, if they have been measured."""
        found: dict[str, float] | None = _read(self._file(self.settled(readout), split, facts), "metrics")
        return found

    def seconds(self, readout: ReadOut, split: str, facts: DataFacts) -> float | None:
        """Seconds an image took when a read-out was measured, reading it included; None if it was not."""
        readout = self.settled(readout)
        if readout.candidates:
            size = _read(self._choice(readout), "chosen") or {}
            found = [r for r in readout.candidates if _size(r) == size]
            return self.seconds(found[0], split, facts) if found else None
        path = self._file(readout, split, facts)
        seconds, images = _read(path, "seconds"), _read(path, "images")
        return seconds / images if seconds and images else None

    def probabilities(self, readout: ReadOut, split: Split) -> Tensor:
        """Predicted probabilities ``(n, classes)``, float32, on the CPU, of any images.

        Raises:
            CheckpointError: as :meth:`metrics`.
        """
        readout = self.settled(readout)
        chosen = self._chosen(readout) if readout.candidates else readout
        return probabilities(self._weights(chosen), chosen, self.plan, split)

    def choices(self, readouts: Sequence[ReadOut]) -> dict[str, dict[str, int]]:
        """The evaluation size that has been chosen for each read-out that chooses one, by label."""
        choosers = (readout for readout in readouts if readout.candidates)
        found = {r.label: _read(self._choice(self.settled(r)), "chosen") for r in choosers}
        return {label: size for label, size in found.items() if size is not None}

    def _chosen(self, readout: ReadOut) -> ReadOut:
        """The best candidate on the selection split of the run's own data; of equals the nearest."""
        by_size = {(one.resize, one.crop): one for one in readout.candidates}
        size = _read(self._choice(readout), "chosen") or {}
        known = by_size.get((size.get("eval_resize", 0), size.get("eval_size", 0)))
        if known is not None:
            return known
        own = self._facts.fingerprint
        if self.data is None or self.data.facts.fingerprint != own:
            raise CheckpointError(
                f"{readout.label}: no evaluation size has been chosen yet",
                where=str(self.run.path),
                expected="a choice made on the selection split of the run's own data",
                fix=f"trickbag evaluate {self.run.path}, with the same --set, --with and --without",
            )
        primary = tasks.of(self.plan.recipe.task).primary
        rows = [(one, self.metrics(one, "selection")) for one in readout.candidates]

        def merit(row: tuple[ReadOut, dict[str, float]]) -> tuple[float, int, int, int]:
            one, metrics = row
            away = abs(one.resize - readout.resize) + abs(one.crop - readout.crop)
            return metrics[primary], -away, -one.crop, -one.resize

        best = max(rows, key=merit)[0]
        about = {"readout": readout.label, "split": "selection", "data": own, "metric": primary}
        tried = [_size(one) | {"metrics": metrics} for one, metrics in rows]
        _write(self._choice(readout), about | {"chosen": _size(best), "candidates": tried})
        return best

    def settled(self, readout: ReadOut) -> ReadOut:
        """The read-out with the recipes that it builds upon replaced by the directories of their runs."""
        if not any(trick.sources() for trick in readout.tricks):
            return readout
        recipe = self.plan.recipe.replace(tricks=Bag(readout.tricks))
        plan = replace(self.plan, facts=self._facts, recipe=recipe)
        device, world = self._about["device"], self._about.get("processes", 1)
        place = device if world == 1 else f"{device} x {world}"
        settled, _ = upstream.settle(plan, self._about["seed"], self.run.path.parent, place, self._code)
        return replace(readout, tricks=tuple(self._placed(trick) for trick in settled.predict))

    def _placed(self, trick: PredictTrick) -> PredictTrick:
        runs = {name: source for name, source in trick.sources().items() if source.run is not None}
        found = {n: source.model_copy(update={"run": self._place(source)}) for n, source in runs.items()}
        return trick.with_sources(found)

    def _place(self, source: Source) -> str:
        """Directory of a run: as it is named, or beside those that this run was trained with."""
        path = Path(source.run or "")
        folders = () if path.exists() else self._beside
        return str(next((folder / path.name for folder in folders if (folder / path.name).exists()), path))

    @cached_property
    def _beside(self) -> tuple[Path, ...]:
        tricks = self.run.recipe().tricks.values()
        sources = (source for trick in tricks for source in trick.sources().values())
        return tuple({Path(source.run).parent: None for source in sources if source.run is not None})

    @cached_property
    def _facts(self) -> DataFacts:
        """Of the images that the run was trained on."""
        return DataFacts.of(self._about["facts"])

    def _file(self, readout: ReadOut, split: str, facts: DataFacts) -> Path:
        name = f"{split}-{facts.fingerprint[:12]}-{readout.digest}.json"
        return self.run.path / "evaluations" / name

    def _choice(self, readout: ReadOut) -> Path:
        return self.run.path / "evaluations" / f"tuned-{readout.digest}.json"

    def _weights(self, readout: ReadOut) -> Weights:
        loaded = self._loaded
        if readout.weights not in (RAW, *loaded.averages):
            raise CheckpointError(
                f"run {self.run.id} holds no {readout.weights} weights",
                expected="one of " + ", ".join((RAW, *loaded.averages)),
            )
        upstreams: dict[str, Upstreams] = {}
        for trick in readout.tricks:
            named = trick.sources().items()
            runs = [name_of(Path(source.run)) for _, source in named if source.run is not None]
            if twice := sorted({name for name in runs if runs.count(name) > 1}):
                raise CheckpointError(f"run {twice[0]} is named twice: it would count twice")
            upstreams[trick.kind] = {
                name: self._member(f"trick {trick.kind}, {name}", source, readout.crop)
                for name, source in named
            }
        return Weights(loaded.model, loaded.averages, upstreams)

    @cached_property
    def _loaded(self) -> Weights:
        return load_weights(self.run, self.plan, self.device)

    @property
    def _how(self) -> str:
        source, place, seed = self._about["data"]["source"], self.run.path, self._about["seed"]
        command = f"trickbag train {place / 'recipe.yaml'} {source} --seed {seed} --runs {place.parent}"
        return f"{command}, with the same changes, trains it first"

    def _member(self, where: str, source: Source, size: int) -> upstream.Knowledge:
        """A trained model that says something of the run's own classes from images of ``size`` pixels."""
        if source in self._members:
            self._members[source].check(size, where)
            return self._members[source]
        if source.run is not None:
            path = Path(source.run)
            if name_of(path) == name_of(self.run.path):
                fix = "give it a seed of its own"
                raise CheckpointError(f"{path} is the run itself: it would count twice", where=where, fix=fix)
            if (Run(path).result() or {}).get("status") != "finished":
                raise CheckpointError(f"{path} has not been trained", where=where, fix=self._how)
        member = upstream.know(source, self.plan, self.data, self.device)
        member.check(size, where)
        self._members[source] = member
        return member


def _size(readout: ReadOut) -> dict[str, int]:
    return {"eval_resize": readout.resize, "eval_size": readout.crop}


def _read(path: Path, name: str) -> Any:
    """One entry of a JSON file; None if it is missing or damaged."""
    try:
        return read_json(path)[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_json(path, row)
