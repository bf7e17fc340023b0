"""What the runs of a study cost, from a few timed steps of a few recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property

from trickbag.engine.files import read_json, write_json
from trickbag.engine.run import code_version
from trickbag.errors import Problem, StudyError
from trickbag.study import costs as costing
from trickbag.study.costs import Cost
from trickbag.study.design import Arm
from trickbag.study.executor import Event, Executor
from trickbag.study.jobs import Training, upstream
from trickbag.study.known import Known
from trickbag.study.protocol import Cell
from trickbag.study.worker import Job

Listener = Callable[[Event], None]


class Timed(Known):
    """A study whose costs can be measured."""

    @property
    def costs(self) -> dict[str, Cost]:
        """Measured costs by digest of the training recipe."""
        try:
            return {d: Cost(**c) for d, c in read_json(self.folder.path / "costs.json").items()}
        except (OSError, ValueError, TypeError, AttributeError):
            # Missing, or damaged: it is measured anew.
            return {}

    def _timed(self) -> dict[Cell, Training]:
        """The training recipes whose costs are measured; a model gives those of the others."""
        if not self.adaptive:
            own = {arm.name: arm.cell for arm in self.layout.arms}
            found: dict[Cell, Training] = {}
            for training in self.trainings:
                cell = own[training.arms[0]]
                found[cell if cell - self.free in found else cell - self.free] = training
            return found
        everything = frozenset(self.space.keys)
        cells = [frozenset[str](), everything - self.free]
        for key in self.space.keys:
            options = (everything - self.free - {key}, frozenset({key}))
            if key not in self.free:
                cells += [c for c in options if not self.space.problems(c) and self._trainable(c)][:1]
        return {cell: self._family(cell) for cell in dict.fromkeys(cells)}

    def _job(
        self, training: Training, seed: int, arms: Sequence[Arm], *, threads: int, split: str = "selection"
    ) -> Job:
        return Job(
            name=f"{self.title(training)}, seed {seed}",
            recipe=training.recipe,
            data=self.spec.data,
            seed=seed,
            runs=str(self.folder.runs),
            readers=tuple(arm.recipe for arm in arms),
            split=split,
            device=self.spec.device,
            threads=threads,
            code=code_version(),
        )

    def title(self, training: Training) -> str:
        """What the runs of a training recipe are called."""
        if not self.adaptive:
            return " = ".join(training.arms)
        digest = training.recipe.digest
        return self.space.name(next(c for c, t in self._families.items() if t.recipe.digest == digest))

    def measure_costs(self, executor: Executor, threads: int, listen: Listener) -> dict[str, Cost]:
        """Cost of training recipes by digest, from a few timed steps; kept in the study's directory.

        Raises:
            StudyError: a recipe cannot be trained at all.
            KeyboardInterrupt: it was interrupted.
        """
        known = self.costs
        wanted = {training.recipe.digest: training for training in self._timed().values()}
        for training in list(wanted.values()):
            for one in upstream(training.recipe):
                wanted.setdefault(one.digest, Training(one, [f"what {training.arms[0]} builds upon"]))
        missing = {digest: training for digest, training in wanted.items() if digest not in known}
        jobs = [
            replace(
                self._job(training, 0, (), threads=threads), name=f"timing {training.arms[0]}", timing=True
            )
            for training in missing.values()
        ]
        failures: list[Problem] = []

        def hear(event: Event) -> None:
            if event.kind == "done":
                known[event.job.recipe.digest] = Cost(**event.detail)
                write_json(self.folder.path / "costs.json", {d: vars(cost) for d, cost in known.items()})
            elif event.kind == "failed":
                failures.append(Problem(str(event.detail).strip().splitlines()[-1], event.job.name))
            listen(event)

        if jobs:
            finished = executor.run(jobs, hear)
            if failures:
                raise StudyError(failures)
            if not finished:
                raise KeyboardInterrupt
        return known

    def seconds(self, cell: Cell) -> float:
        """Seconds of one run of a cell and of all that it builds upon, as the timing predicts them.

        Raises:
            StudyError: nothing has been timed.
        """
        training, costs = self._family(cell - self.free), self.costs
        own = self._cost_model(cell - self.free).run(self.compile(training.recipe))
        others = (one for one in upstream(training.recipe) if one.digest in costs)
        return own + sum(costs[one.digest].run(self.compile(one)) for one in others)

    @property
    def _timed_costs(self) -> dict[Cell, Cost]:
        costs = self.costs
        if not costs:
            return {}
        return {c: costs[t.recipe.digest] for c, t in self._timed().items() if t.recipe.digest in costs}

    def _training_seconds(self, cell: Cell) -> float:
        """The same less what a run's own record of time leaves out: starting, and its last evaluation."""
        training = self._family(cell - self.free)
        return self._cost_model(cell - self.free).training(self.compile(training.recipe))

    @cached_property
    def _cost_model(self) -> Callable[[Cell], Cost]:
        known = self._timed_costs
        if not known:
            raise StudyError(f"{self.folder.path}: costs have not been measured", fix="measure_costs first")
        return costing.model(known, [key for key in self.space.keys if key not in self.free])
