"""From a question to finished runs: decide, train, read, decide again. Every step can be repeated."""

from __future__ import annotations

import fcntl
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trickbag.engine.forks import Fork, forget_forks
from trickbag.engine.run import Run
from trickbag.errors import StudyError, TrickbagError
from trickbag.study import costs as costing
from trickbag.study.costs import Cost
from trickbag.study.design import Arm
from trickbag.study.executor import Event, Executor
from trickbag.study.forks import assign, kept_steps
from trickbag.study.jobs import Training, epochs_of, runs_of
from trickbag.study.known import POINTS
from trickbag.study.mending import damage, set_aside
from trickbag.study.protocol import Cell, Point, Question, Round
from trickbag.study.store import Row, Store, covered_by
from trickbag.study.timing import Listener, Timed
from trickbag.study.worker import Job

MOST_FAILED = 0.2
"""Share of a round's results that an adaptive design can do without."""
MOST_PROPOSALS = 50
"""How often a design is asked again because what it proposed cannot be trained."""


class Conduct(Timed):
    """A study that decides, trains and reads. All it knows lies in its folder and in run directories."""

    @property
    def seeds(self) -> list[int]:
        """Every seed that is or will be run, as far as is known."""
        return sorted({point.seed for one in self.planned for point in one.points})

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
                return runs_of(self._arm(cell).recipe)
            if unit == "epochs":
                return epochs_of(self._arm(cell).recipe)
            return scale * self._seconds_or_never(self.seconds, cell)

        return Question(
            factors=self.space.keys,
            free=self.free,
            # Compiling a recipe takes a while: only where one is known to fail, all are looked at.
            allowed=lambda cell: (
                cell not in banned and not self._conflicting(cell) and (not banned or self._trainable(cell))
            ),
            cost=cost,
            budget=budget.amount if budget else None,
            seeds=self.spec.seeds,
            delta=self.spec.delta,
            alpha=self.spec.alpha,
            price=self.spec.price,
            time=(lambda cell: self._seconds_or_never(self._training_seconds, cell))
            if self._timed_costs
            else None,
        )

    def _seconds_or_never(self, seconds: Callable[[Cell], float], cell: Cell) -> float:
        return seconds(cell) if self._trainable(cell) else math.inf

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
        budget = self.spec.budget
        untimed = budget is not None and budget.unit == "seconds" and not self._timed_costs
        if self.rounds or untimed:
            return self.rounds
        first = self.propose()
        return [] if first is None else [first]

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
            for trunk, steps in kept_steps(trunks).items():
                found[trunk] = replace(found[trunk], keep=steps)
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
            if self.folder.changed:
                if self._trained(store):
                    self.check_code()
                    return True
                self.folder.renew()
                self._names.clear()
            timed = self.spec.budget is not None and self.spec.budget.unit == "seconds"
            if timed or self.spec.price > 0:
                self.measure_costs(executor, threads, listen)
            self._mend(store)
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
                    self._settled()
                following = self.propose()
                if following is None:
                    self._forget_forks()
                    return True
                store.decide(following)
                self.rounds.append(following)
                self._mend(store)

    @property
    def complete(self) -> bool:
        """True if nothing is left to decide, to train or to measure."""
        return bool(self.rounds) and not (
            self.pending(threads=1) or self._confirmation(threads=1) or self.propose()
        )

    @property
    def confirmation_pending(self) -> bool:
        """True if numbers of the sealed split are still to be measured."""
        return bool(self._confirmation(threads=1))

    def check_code(self) -> None:
        """Train nothing beside runs that other code has trained.

        Raises:
            StudyError: this study has such runs, and more of it is to be done.
        """
        with self.folder.store(readonly=True) as store:
            if not (self.folder.changed and self._trained(store)) or self.complete:
                return
        raise StudyError(
            "its runs were trained with other code: numbers would not compare "
            f"({'; '.join(self.folder.changed)})",
            where=str(self.folder.path),
            fix="install those versions to go on, or begin anew with another --out; its report can be made",
        )

    def _trained(self, store: Store) -> bool:
        if store.readings() or any(event["event"] == "done" for event in store.events()):
            return True
        points = (point for one in self.planned for point in one.points)
        return any(self.run_of(self._training(p.cell), p.seed).result() for p in points)

    def _settled(self) -> None:
        """Decide nothing where too many runs of the last round have failed for reasons of their own.

        Raises:
            StudyError: so it is.
        """
        points = self.rounds[-1].points
        readings = [self.reading(point) for point in points]
        failed = [one for one in readings if one.value is None and not one.diverged]
        if self.spec.design == "auto" and len(failed) > max(1, MOST_FAILED * len(points)):
            raise StudyError(
                f"{len(failed)} of {len(points)} results of this stage are missing: nothing is decided now",
                where=str(self.folder.path),
                fix="trickbag study status says why they failed; trickbag study resume tries them again",
            )

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
        for point in dict.fromkeys(point for one in self.rounds for point in one.points):
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
        """Jobs that read the sealed split; the opening is recorded first.

        A seed is opened once its runs of baseline and final recipe have ended: if one of them diverged, the
        other is still read, or only seeds that went well would be compared. Nothing is opened unless both
        have a value with some seed.
        """
        ready: list[Point] = []
        for one in self.rounds or self.planned:
            told = one.why.get("recipe")
            final = frozenset(told) if isinstance(told, list) else frozenset(self.space.keys)
            known = {p: self.reading(p) for p in one.sealed}
            ended = {p for p, reading in known.items() if reading.value is not None or reading.diverged}
            seeds = dict.fromkeys(p.seed for p in one.sealed)
            both = [s for s in seeds if {Point(frozenset(), s), Point(final, s)} <= ended]
            finished = [p for p in one.sealed if p.seed in both and known[p].value is not None]
            ends = (frozenset[str](), final)
            if any({Point(cell, seed) for cell in ends} <= set(finished) for seed in both):
                ready += finished
        unread = [p for p in ready if self._read(self._arm(p.cell), p.seed, "test") is None]
        if store is not None and ready:
            self._open(store, ready, bool(unread))
        return self._jobs(unread, threads=threads, split="test")

    def _open(self, store: Store, ready: Sequence[Point], unread: bool) -> None:
        covered = covered_by(store.openings())
        together: dict[tuple[str, ...], list[int]] = {}
        for seed in dict.fromkeys(point.seed for point in ready):
            arms = tuple(self._arm(point.cell).name for point in ready if point.seed == seed)
            if any((arm, seed) not in covered for arm in arms):
                together.setdefault(arms, []).append(seed)
        note = "" if unread else "these numbers were there already: read off the run directories"
        for arms, seeds in together.items():
            own = [p for p in ready if p.seed in seeds]
            runs = list(dict.fromkeys(self.reading(point).run for point in own))
            store.open_split("test", arms, seeds, runs, note)

    def _record(self, store: Store) -> None:
        rows = []
        covered = covered_by(store.openings())
        for point in dict.fromkeys(point for one in self.rounds for point in one.points):
            arm, reading = self._arm(point.cell), self.reading(point)
            status = "diverged" if reading.diverged else "failed" if reading.value is None else "finished"
            opened = (arm.name, point.seed) in covered
            for split in ("selection", "test") if opened else ("selection",):
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
