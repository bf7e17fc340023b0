"""From a question to finished runs: decide, train, read, decide again. Every step can be repeated."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.engine.files import read_json, write_json
from trickbag.engine.forks import Fork, forget_forks
from trickbag.engine.run import Run, code_version, run_id
from trickbag.errors import PlanError, Problem, StudyError, TrickbagError
from trickbag.plan import Plan
from trickbag.recipe.model import Recipe
from trickbag.study import costs as costing
from trickbag.study.costs import Cost
from trickbag.study.design import Arm, Space
from trickbag.study.executor import Event, Executor
from trickbag.study.forks import assign
from trickbag.study.jobs import Training, family, free_factors, share
from trickbag.study.layout import BY_ARMS, Layout
from trickbag.study.mending import damage, set_aside
from trickbag.study.protocol import Cell, Point, Question, Reading, Round, Seen
from trickbag.study.spec import StudyFolder, StudySpec
from trickbag.study.store import Row, Store
from trickbag.study.worker import Job

Listener = Callable[[Event], None]
POINTS = 100.0
MOST_PROPOSALS = 50
"""How often a design is asked again because what it proposed cannot be trained."""


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
        """Arms and comparisons that are known beforehand."""
        return self.spec.layout

    @property
    def space(self) -> Space:
        """Every recipe that may be trained."""
        return self.layout.space

    @property
    def adaptive(self) -> bool:
        """True if recipes are chosen as points of a design, rather than named beforehand."""
        return self.spec.design not in BY_ARMS

    @cached_property
    def free(self) -> frozenset[str]:
        """Factors that cost no training."""
        return free_factors(self.space)

    @cached_property
    def rounds(self) -> list[Round]:
        """Every decision so far."""
        with self.folder.store(readonly=True) as store:
            return store.rounds()

    @property
    def arms(self) -> dict[str, Arm]:
        """Arms by name: those of the layout, then those of the decisions so far."""
        cells = dict.fromkeys(arm.cell for arm in self.layout.arms)
        cells |= dict.fromkeys(point.cell for one in self.rounds for point in one.points)
        return {(arm := self._arm(cell)).name: arm for cell in cells}

    def _arm(self, cell: Cell) -> Arm:
        if cell not in self._cells:
            self._cells[cell] = self.space.arm(cell)
        return self._cells[cell]

    @cached_property
    def _cells(self) -> dict[Cell, Arm]:
        return {}

    @property
    def plans(self) -> dict[str, Plan]:
        """The compiled plan of every arm.

        Raises:
            PlanError: every problem of every arm.
        """
        return self._compile_all(self.arms.values())

    def _compile_all(self, arms: Iterable[Arm]) -> dict[str, Plan]:
        plans: dict[str, Plan] = {}
        problems: dict[tuple[str, str | None], Problem] = {}
        for arm in arms:
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

    @property
    def trainings(self) -> list[Training]:
        """What is trained, once a seed. Recipes that resolve alike on this data are one."""
        if not self.adaptive:
            return self._shared
        cores = dict.fromkeys(arm.cell - self.free for arm in self.arms.values())
        return [self._family(core) for core in cores]

    @cached_property
    def _shared(self) -> list[Training]:
        plans = self.plans
        return share([replace(arm, recipe=plans[arm.name].recipe) for arm in self.layout.arms])

    def _family(self, core: Cell) -> Training:
        if core not in self._families:
            self._families[core] = family(self.space, core, self.free)
        training = self._families[core]
        names = [arm.name for arm in self.arms.values() if arm.cell - self.free == core]
        return Training(training.recipe, names or training.arms[:1])

    @cached_property
    def _families(self) -> dict[Cell, Training]:
        return {}

    def training_of(self, arm: str) -> Training:
        """The training recipe that an arm is read off."""
        return self._training(self.arms[arm].cell)

    def _training(self, cell: Cell) -> Training:
        if self.adaptive:
            return self._family(cell - self.free)
        name = self._arm(cell).name
        return next(training for training in self.trainings if name in training.arms)

    def run_of(self, training: Training, seed: int) -> Run:
        """The run directory of one training recipe and seed."""
        key = training.recipe.digest, seed
        if key not in self._names:
            recipe = self.compile(training.recipe).recipe
            self._names[key] = run_id(recipe, self.data.facts, seed, self.spec.device)
        return Run(self.folder.runs / self._names[key])

    @cached_property
    def _names(self) -> dict[tuple[str, int], str]:
        return {}

    def read(self, arm: str, seed: int, split: str = "selection") -> dict[str, float] | None:
        """Metrics of one arm and seed, if they have been measured."""
        return self._read(self.arms[arm], seed, split)

    def _read(self, arm: Arm, seed: int, split: str) -> dict[str, float] | None:
        from trickbag.engine.evaluate import Reader, main_readout

        run, plan = self.run_of(self._training(arm.cell), seed), self.compile(arm.recipe)
        if (run.result() or {}).get("status") != "finished":
            return None
        return Reader(run, plan).known(main_readout(plan), split, self.data.facts)

    def reading(self, point: Point) -> Reading:
        """What is known of a point."""
        if point not in self._readings:
            run = self.run_of(self._training(point.cell), point.seed)
            result = run.result() or {}
            metrics = self._read(self._arm(point.cell), point.seed, "selection")
            value = None if metrics is None else POINTS * metrics[self.spec.metric]
            seconds = costing.whole_seconds(run)
            found = Reading(point, value, run.id, seconds, result.get("status") == "diverged")
            if value is None and not found.diverged:
                return found
            self._readings[point] = found
        return self._readings[point]

    @cached_property
    def _readings(self) -> dict[Point, Reading]:
        return {}

    @property
    def seen(self) -> list[Seen]:
        """Every decision and what came of it."""
        return [Seen(one, tuple(map(self.reading, one.points))) for one in self.rounds]

    @property
    def seeds(self) -> list[int]:
        """Every seed that is or will be run, as far as is known."""
        return sorted({point.seed for one in self.planned for point in one.points})

    def state_of(self, training: Training, seed: int) -> str:
        """``finished``, ``diverged``, ``begun`` or ``to do``."""
        run = self.run_of(training, seed)
        result = run.result()
        if result is not None:
            return str(result["status"])
        return "begun" if run.path.exists() else "to do"

    def states(self) -> list[dict[str, str | int]]:
        """Every training run that has been decided: the arms that are read off it, its seed and state."""
        found: dict[tuple[int, str], dict[str, str | int]] = {}
        for point in dict.fromkeys(point for one in self.planned for point in one.points):
            arm = self._arm(point.cell).name
            training = self._training(point.cell)
            key = point.seed, self.run_of(training, point.seed).id
            if key in found:
                found[key]["runs of"] = f"{found[key]['runs of']} = {arm}"
            else:
                state = self.state_of(training, point.seed)
                found[key] = {"runs of": arm, "seed": point.seed, "run": key[1], "state": state}
        return list(found.values())

    def progress(self) -> tuple[int, int]:
        """Training runs that have ended, and all that have been decided so far."""
        points = dict.fromkeys(point for one in self.rounds for point in one.points)
        ended: dict[tuple[int, str], bool] = {}
        for point in points:
            run = self.run_of(self._training(point.cell), point.seed)
            ended.setdefault((point.seed, run.id), (run.path / "result.json").exists())
        return sum(ended.values()), len(ended)

    # Costs

    @property
    def costs(self) -> dict[str, Cost]:
        """Measured costs by digest of the training recipe."""
        path = self.folder.path / "costs.json"
        return {d: Cost(**c) for d, c in read_json(path).items()} if path.exists() else {}

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

    def measure_costs(self, executor: Executor, threads: int, listen: Listener) -> dict[str, Cost]:
        """Cost of training recipes by digest, from a few timed steps; kept in the study's directory.

        Raises:
            StudyError: a recipe cannot be trained at all.
            KeyboardInterrupt: it was interrupted.
        """
        known = self.costs
        missing = {t.recipe.digest: t for t in self._timed().values() if t.recipe.digest not in known}
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
            elif event.kind == "failed":
                failures.append(Problem(str(event.detail).strip().splitlines()[-1], event.job.name))
            listen(event)

        if jobs:
            finished = executor.run(jobs, hear)
            if failures:
                raise StudyError(failures)
            if not finished:
                raise KeyboardInterrupt
            write_json(
                self.folder.path / "costs.json", {digest: vars(cost) for digest, cost in known.items()}
            )
        return known

    def seconds(self, cell: Cell) -> float:
        """Seconds of one run of a cell, as its timing or the model of costs predicts them.

        Raises:
            StudyError: nothing has been timed.
        """
        training = self._family(cell - self.free)
        return self._cost_model(cell - self.free).run(self.compile(training.recipe))

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
        if len(known) < 2:
            raise StudyError(f"{self.folder.path}: costs have not been measured", fix="measure_costs first")
        return costing.model(known, [key for key in self.space.keys if key not in self.free])

    def estimate(self, costs: Mapping[str, Cost], workers: int) -> float:
        """Seconds that the pending runs will take."""
        pending = self.pending(threads=1)
        cores = {training.recipe.digest: core for core, training in self._families.items()}
        total = 0.0
        for job in pending:
            plan = self.compile(job.recipe)
            cost = costs.get(job.recipe.digest)
            total += (cost or self._cost_model(cores[job.recipe.digest])).run(plan)
        return total / min(workers, max(1, len(pending)))

    # Decisions

    def question(self, banned: frozenset[Cell] = frozenset()) -> Question:
        """What the design knows, at what is known of costs by now."""
        budget = self.spec.budget
        unit = budget.unit if budget else "runs"
        scale = 1.0
        if unit == "seconds":
            readings = [reading for one in self.seen for reading in one.readings]
            scale = costing.pace(readings, self._training_seconds)

        def cost(cell: Cell) -> float:
            if unit == "runs":
                return 1.0
            if unit == "epochs":
                return float(self._arm(cell).recipe.epochs)
            return scale * self.seconds(cell)

        return Question(
            factors=self.space.keys,
            free=self.free,
            allowed=lambda cell: cell not in banned and not self._conflicting(cell),
            cost=cost,
            budget=budget.amount if budget else None,
            seeds=self.spec.seeds,
            delta=self.spec.delta,
            alpha=self.spec.alpha,
            price=self.spec.price,
            time=self._training_seconds if len(self._timed_costs) >= 2 else None,
        )

    def _conflicting(self, cell: Cell) -> bool:
        if cell not in self._conflicts:
            self._conflicts[cell] = bool(self.space.problems(cell))
        return self._conflicts[cell]

    @cached_property
    def _conflicts(self) -> dict[Cell, bool]:
        return {}

    def _trainable(self, cell: Cell) -> bool:
        try:
            self.compile(self.space.recipe(cell))
            self.compile(self._family(cell - self.free).recipe)
        except PlanError:
            return False
        return True

    def propose(self) -> Round | None:
        """The next decision, from all that is known; None if the study is complete.

        Raises:
            PlanError: a fixed design asks for a recipe that cannot be trained.
            StudyError: so does an adaptive one, again and again, or the budget is too small.
        """
        banned: frozenset[Cell] = frozenset()
        for _ in range(MOST_PROPOSALS):
            one = self.spec.protocol().next(self.question(banned), self.seen)
            if one is None:
                return None
            cells = dict.fromkeys(point.cell for point in one.points)
            bad = frozenset(cell for cell in cells if not self._trainable(cell))
            if not bad:
                return one
            if not self.adaptive or bad & {frozenset(), frozenset(self.space.keys)}:
                self._compile_all([self._arm(cell) for cell in bad])
            banned |= bad
        raise StudyError(
            f"{len(banned)} recipes of this design cannot be trained",
            where=self.space.name(next(iter(banned))),
            fix="tie factors that need each other: --tie A,B",
        )

    @property
    def planned(self) -> list[Round]:
        """The decisions so far, or the first one that would be taken."""
        if self.rounds:
            return self.rounds
        first = self.propose()
        return [] if first is None else [first]

    # Jobs

    def pending(self, threads: int) -> list[Job]:
        """Jobs whose numbers are still missing, one seed after the other."""
        points = dict.fromkeys(point for one in self.planned for point in one.points)
        missing = []
        for point in points:
            reading = self.reading(point)
            if reading.value is None and not reading.diverged:
                missing.append(point)
        return self._forked(self._jobs(missing, threads=threads))

    def _jobs(self, points: Sequence[Point], *, threads: int, split: str = "selection") -> list[Job]:
        wanted: dict[tuple[int, str], tuple[Training, list[Arm]]] = {}
        for point in points:
            arm = self._arm(point.cell)
            training = self._training(point.cell)
            key = point.seed, self.run_of(training, point.seed).id
            wanted.setdefault(key, (training, []))[1].append(arm)
        jobs = [
            self._job(t, seed, arms, threads=threads, split=split) for (seed, _), (t, arms) in wanted.items()
        ]
        return sorted(jobs, key=lambda job: self._seed_order(job.seed))

    def _seed_order(self, seed: int) -> int:
        return self.spec.seeds.index(seed) if seed in self.spec.seeds else len(self.spec.seeds) + seed

    def _job(
        self, training: Training, seed: int, arms: Sequence[Arm], *, threads: int, split: str = "selection"
    ) -> Job:
        return Job(
            name=f"{' = '.join(arm.name for arm in arms) or training.arms[0]}, seed {seed}",
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

    def _forked(self, jobs: list[Job]) -> list[Job]:
        """The same jobs; of those that begin alike, one keeps what the others go on from."""
        found: dict[str, Job] = {job.name: job for job in jobs}
        for seed in dict.fromkeys(job.seed for job in jobs):
            own = [job for job in jobs if job.seed == seed]
            runs = {job.name: Run(self.folder.runs / self._names[job.recipe.digest, seed]) for job in own}
            fresh = [job for job in own if runs[job.name].result() is None]
            plans = {job.name: self.compile(job.recipe) for job in fresh}
            # Waiting for another run is not worth less than an epoch.
            least = min((plan.timeline.steps_per_epoch for plan in plans.values()), default=1)
            trunks = assign(plans, least=least)
            for name, (trunk, step) in trunks.items():
                fork = Fork(str(runs[trunk].path), step)
                found[name] = replace(found[name], fork=fork, after=trunk, ready=str(fork.path))
                found[trunk] = replace(found[trunk], keep=tuple(sorted({*found[trunk].keep, step})))
        return list(found.values())

    def run(self, executor: Executor, threads: int, listen: Listener) -> bool:
        """Decide, train what is missing, open the test split where a decision says so; until all is done.

        Returns:
            False if it was interrupted; call it again to go on.

        Raises:
            StudyError: another process conducts this study, the disk is full, or the budget is too small.
        """
        with self._alone(), self.folder.store() as store:
            self.rounds[:] = store.rounds()
            self._mend(store)
            if self.spec.budget and self.spec.budget.unit == "seconds":
                self.measure_costs(executor, threads, listen)
            hear = self._hearing(store, listen)
            tried: set[tuple[str, str]] = set()

            def execute(jobs: list[Job]) -> bool:
                left = [job for job in jobs if (job.name, job.split) not in tried]
                tried.update((job.name, job.split) for job in left)
                return not left or executor.run(left, hear)

            while True:
                if self.rounds:
                    if not execute(self.pending(threads)):
                        return False
                    if not execute(self._confirmation(threads, store)):
                        return False
                    self._record(store)
                following = self.propose()
                if following is None:
                    self._forget_forks()
                    return True
                store.decide(following)
                self.rounds.append(following)

    def _forget_forks(self) -> None:
        """Free the room of fork points that nobody will go on from."""
        for path in {
            self.run_of(self._training(p.cell), p.seed).path for one in self.rounds for p in one.points
        }:
            forget_forks(Run(path))

    def _mend(self, store: Store) -> None:
        """Set aside run directories that somebody or something has damaged: what they held is made again."""
        tests = {point for one in self.rounds for point in one.sealed}
        needed: dict[Path, bool] = {}
        for point in dict.fromkeys(point for one in self.planned for point in one.points):
            run = self.run_of(self._training(point.cell), point.seed)
            if (run.result() or {}).get("status") == "finished":
                splits = ("selection", "test") if point in tests else ("selection",)
                arm = self._arm(point.cell)
                try:
                    unread = any(self._read(arm, point.seed, split) is None for split in splits)
                except TrickbagError:
                    unread = True
                needed[run.path] = needed.get(run.path, False) or unread
            elif run.path.is_dir():
                needed.setdefault(run.path, True)
        for path, weights in needed.items():
            if what := damage(Run(path), weights=weights):
                place = set_aside(Run(path))
                store.log("mended", path.name, 0, f"{what}; set aside as {place.name}")

    def _hearing(self, store: Store, listen: Listener) -> Listener:
        def hear(event: Event) -> None:
            if event.kind != "status":
                told = event.kind in ("failed", "retried", "halted")
                store.log(event.kind, event.job.name, event.job.attempt, str(event.detail) if told else "")
            listen(event)

        return hear

    def _confirmation(self, threads: int, store: Store | None = None) -> list[Job]:
        """Jobs that read the sealed split, for seeds that all arms have; the opening is recorded first."""
        points = [point for one in self.rounds or self.planned for point in one.sealed]
        cells = dict.fromkeys(point.cell for point in points)
        whole = [
            seed
            for seed in dict.fromkeys(point.seed for point in points)
            if all(self.reading(point).value is not None for point in points if point.seed == seed)
        ]
        ready = [point for point in points if point.seed in whole]
        unread = [p for p in ready if self._read(self._arm(p.cell), p.seed, "test") is None]
        if store is not None and ready:
            self._open(store, ready, cells, unread)
        return self._jobs(unread, threads=threads, split="test")

    def _open(self, store: Store, ready: Sequence[Point], cells: Mapping[Cell, None], unread: object) -> None:
        covered = {(arm, seed) for row in store.openings() for arm in row["arms"] for seed in row["seeds"]}
        new = [p for p in ready if (self._arm(p.cell).name, p.seed) not in covered]
        if new:
            arms = [self._arm(cell).name for cell in cells]
            seeds = list(dict.fromkeys(point.seed for point in new))
            runs = list(dict.fromkeys(self.reading(point).run for point in new))
            note = "" if unread else "these numbers were there already: read off the run directories"
            store.open_split("test", arms, seeds, runs, note)

    def _record(self, store: Store) -> None:
        rows = []
        for point in dict.fromkeys(point for one in self.rounds for point in one.points):
            arm, reading = self._arm(point.cell), self.reading(point)
            status = "diverged" if reading.diverged else "failed" if reading.value is None else "finished"
            for split in ("selection", "test"):
                metrics = self._read(arm, point.seed, split)
                if metrics is not None or split == "selection":
                    value = None if metrics is None else POINTS * metrics[self.spec.metric]
                    rows.append(
                        Row(
                            arm.name,
                            point.seed,
                            split,
                            arm.on,
                            reading.run,
                            status,
                            value,
                            metrics or {},
                            reading.seconds,
                        )
                    )
        store.put(rows)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StudyError(
                    f"another process conducts {self.folder.path}",
                    fix="wait for it; `trickbag study status` shows how far it is",
                ) from None
            yield
