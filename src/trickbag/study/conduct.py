"""From a question to finished runs: plan, time, train, confirm. Every step can be repeated."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.engine.files import read_json, write_json
from trickbag.engine.run import Run, run_id
from trickbag.errors import PlanError, Problem, StudyError
from trickbag.plan import Plan
from trickbag.recipe.model import Recipe
from trickbag.study.design import BASELINE, CANDIDATE, Layout
from trickbag.study.executor import Event, LocalExecutor
from trickbag.study.jobs import Training, share
from trickbag.study.spec import StudyFolder, StudySpec
from trickbag.study.worker import Job

Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Cost:
    """Measured costs of one training recipe, in seconds.

    Attributes:
        step: one optimizer step.
        evaluation: one evaluation of the selection split.
        overhead: starting a run.
    """

    step: float
    evaluation: float
    overhead: float

    def run(self, plan: Plan) -> float:
        """Seconds of a whole run of ``plan``."""
        from trickbag.engine.train import evaluation_steps

        evaluations = len(evaluation_steps(plan)) + 1
        return plan.timeline.steps * self.step + evaluations * self.evaluation + self.overhead


@dataclass(frozen=True)
class Conduct:
    """A study with its data at hand.

    Attributes:
        folder: the study's directory.
        spec: the question.
        data: the images.
    """

    folder: StudyFolder
    spec: StudySpec
    data: DataSet

    @cached_property
    def layout(self) -> Layout:
        """Arms and comparisons."""
        return self.spec.layout

    @cached_property
    def trainings(self) -> list[Training]:
        """What is trained, once a seed. Recipes that resolve alike on this data are one."""
        return share([replace(arm, recipe=self.plans[arm.name].recipe) for arm in self.layout.arms])

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The compiled plan of every arm.

        Raises:
            PlanError: every problem of every arm.
        """
        plans: dict[str, Plan] = {}
        problems: dict[tuple[str, str | None], Problem] = {}
        for arm in self.layout.arms:
            try:
                plans[arm.name] = self.compile(arm.recipe)
            except PlanError as error:
                for p in error.problems:
                    where = f"{arm.name}, {p.where}" if p.where else arm.name
                    problems.setdefault((p.what, p.where), Problem(p.what, where, p.expected, p.fix))
        if problems:
            raise PlanError(problems.values())
        return plans

    def compile(self, recipe: Recipe) -> Plan:
        """The plan of one recipe on the study's data and device."""
        if recipe.digest not in self._compiled:
            plan = planning.compile(recipe, self.data.facts, self.spec.device)
            self._compiled[recipe.digest] = plan
        return self._compiled[recipe.digest]

    @cached_property
    def _compiled(self) -> dict[str, Plan]:
        return {}

    def run_of(self, training: Training, seed: int) -> Run:
        """The run directory of one training recipe and seed."""
        recipe = self.compile(training.recipe).recipe
        return Run(self.folder.runs / run_id(recipe, self.data.facts, seed, self.spec.device))

    def training_of(self, arm: str) -> Training:
        """The training recipe that an arm is read off."""
        return next(training for training in self.trainings if arm in training.arms)

    def job(self, training: Training, seed: int, *, threads: int, arms: Sequence[str] | None = None) -> Job:
        """The job that trains one recipe with one seed and reads all its arms."""
        names = training.arms if arms is None else arms
        recipes = {arm.name: arm.recipe for arm in self.layout.arms}
        return Job(
            name=f"{' = '.join(training.arms)}, seed {seed}",
            recipe=training.recipe,
            data=self.spec.data,
            seed=seed,
            runs=str(self.folder.runs),
            readers=tuple(recipes[name] for name in names),
            device=self.spec.device,
            threads=threads,
        )

    def read(self, arm: str, seed: int, split: str = "selection") -> dict[str, float] | None:
        """Metrics of one arm and seed, if they have been measured."""
        from trickbag.engine.evaluate import Reader, main_readout

        run, plan = self.run_of(self.training_of(arm), seed), self.plans[arm]
        if (run.result() or {}).get("status") != "finished":
            return None
        return Reader(run, plan).known(main_readout(plan), split, self.data.facts)

    def state_of(self, training: Training, seed: int) -> str:
        """``finished``, ``diverged``, ``begun`` or ``to do``."""
        run = self.run_of(training, seed)
        result = run.result()
        if result is not None:
            return str(result["status"])
        return "begun" if run.path.exists() else "to do"

    def pending(self, threads: int) -> list[Job]:
        """Jobs whose numbers are still missing, one seed after the other."""
        jobs = []
        for seed in self.spec.seeds:
            for training in self.trainings:
                result = self.run_of(training, seed).result()
                diverged = result is not None and result["status"] == "diverged"
                if not diverged and any(self.read(arm, seed) is None for arm in training.arms):
                    jobs.append(self.job(training, seed, threads=threads))
        return jobs

    def measure_costs(self, executor: LocalExecutor, threads: int, listen: Listener) -> dict[str, Cost]:
        """Cost of every training recipe by digest, from a few timed steps; kept in the study's directory.

        Raises:
            StudyError: a recipe cannot be trained at all.
            KeyboardInterrupt: it was interrupted.
        """
        path = self.folder.path / "costs.json"
        known = {d: Cost(**c) for d, c in read_json(path).items()} if path.exists() else {}
        missing = {t.recipe.digest: t for t in self.trainings if t.recipe.digest not in known}
        jobs = [
            Job(
                f"timing {t.arms[0]}",
                t.recipe,
                self.spec.data,
                0,
                str(self.folder.runs),
                device=self.spec.device,
                threads=threads,
                timing=True,
            )
            for t in missing.values()
        ]
        failures: list[Problem] = []

        def hear(event: Event) -> None:
            if event.kind == "done":
                known[event.job.recipe.digest] = Cost(**event.detail)
            elif event.kind == "failed":
                failures.append(Problem(str(event.detail).strip().splitlines()[-1], event.job.name))
            listen(event)

        if jobs:
            finished = executor.run(jobs, hear)
            if failures:
                raise StudyError(failures)
            if not finished:
                raise KeyboardInterrupt
            write_json(path, {digest: vars(cost) for digest, cost in known.items()})
        return known

    def estimate(self, costs: dict[str, Cost], workers: int) -> float:
        """Seconds that the pending runs will take."""
        pending = self.pending(threads=1)
        total = sum(costs[job.recipe.digest].run(self.compile(job.recipe)) for job in pending)
        return total / min(workers, max(1, len(pending)))

    def run(self, executor: LocalExecutor, threads: int, listen: Listener) -> bool:
        """Train what is missing, then open the test split for baseline and candidate.

        Returns:
            False if it was interrupted; call it again to go on.

        Raises:
            StudyError: another process conducts this study.
        """

        def hear(event: Event) -> None:
            if event.kind in ("started", "done", "failed", "retried", "stopped"):
                detail = event.detail if event.kind in ("failed", "retried") else None
                row = {"event": event.kind, "job": event.job.name, "attempt": event.job.attempt}
                self.folder.log("events", row | ({"detail": detail} if detail else {}))
            listen(event)

        with self._alone():
            if not executor.run(self.pending(threads), hear):
                return False
            return executor.run(self._confirmation(threads), hear)

    def _confirmation(self, threads: int) -> list[Job]:
        jobs = []
        pairs = [seed for seed in self.spec.seeds if self.read(BASELINE, seed) and self.read(CANDIDATE, seed)]
        for training in self.trainings:
            for seed in pairs:
                arms = [
                    arm
                    for arm in (BASELINE, CANDIDATE)
                    if arm in training.arms and not self.read(arm, seed, "test")
                ]
                if arms:
                    jobs.append(replace(self.job(training, seed, threads=threads, arms=arms), split="test"))
        if jobs:
            self.folder.log("openings", {"split": "test", "arms": [BASELINE, CANDIDATE], "runs": len(jobs)})
        return jobs

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StudyError(f"another process conducts {self.folder.path}", fix="wait for it") from None
            yield
