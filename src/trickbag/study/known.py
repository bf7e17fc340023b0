"""What a study knows: its recipes, the runs that serve them, and what was read off these."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from trickbag import plan as planning
from trickbag.data.base import DataSet
from trickbag.engine.run import Run, run_id
from trickbag.errors import PlanError
from trickbag.plan import Plan
from trickbag.recipe.model import Recipe
from trickbag.study import costs as costing
from trickbag.study.design import Arm, Space
from trickbag.study.jobs import Training, compile_all, family, free_factors, share
from trickbag.study.layout import BY_ARMS, Layout
from trickbag.study.protocol import Cell, Point, Reading, Round, Seen
from trickbag.study.spec import StudyFolder, StudySpec

if TYPE_CHECKING:
    from trickbag.engine.evaluate import Reader

POINTS = 100.0


@dataclass(frozen=True)
class Known:
    """A study with its data at hand, to look at.

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
        return compile_all(arms, self.compile)

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
            code = self.folder.code
            self._names[key] = run_id(recipe, self.data.facts, seed, self.spec.device, code)
        return Run(self.folder.runs / self._names[key])

    @cached_property
    def _names(self) -> dict[tuple[str, int], str]:
        return {}

    def read(self, arm: str, seed: int, split: str = "selection") -> dict[str, float] | None:
        """Metrics of one arm and seed, if they have been measured."""
        return self._read(self.arms[arm], seed, split)

    def _read(self, arm: Arm, seed: int, split: str) -> dict[str, float] | None:
        from trickbag.engine.evaluate import main_readout

        run = self.run_of(self._training(arm.cell), seed)
        if (run.result() or {}).get("status") != "finished":
            return None
        plan = self.compile(arm.recipe)
        return self.reader(run, arm).known(main_readout(plan), split, self.data.facts)

    def reader(self, run: Run, arm: Arm) -> Reader:
        """What reads an arm off a finished run."""
        from trickbag.engine.evaluate import Reader

        return Reader(run, self.compile(arm.recipe), code=self.folder.code)

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

    def state_of(self, training: Training, seed: int) -> str:
        """``finished``, ``diverged``, ``begun`` or ``to do``."""
        run = self.run_of(training, seed)
        result = run.result()
        if result is not None:
            return str(result["status"])
        return "begun" if run.path.exists() else "to do"

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
