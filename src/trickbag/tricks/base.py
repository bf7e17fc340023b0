"""What a trick is: a frozen value with a stage, a rank and a card; and a bag of them.

Nothing here imports torch at run time: reading, listing and comparing tricks must stay instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from trickbag.errors import Problem

if TYPE_CHECKING:
    from trickbag.plan import Context
    from trickbag.tricks.sources import Source

T = TypeVar("T", bound="Trick")


class Stage(IntEnum):
    """Where in a training step a trick acts, in the order of execution."""

    TARGETS = 1
    SAMPLER = 2
    RESOLUTION = 3
    CROP = 4
    AUGMENT = 5
    MIX = 6
    MICRO_BATCH = 7
    MODEL = 8
    FREEZE = 9
    LOSS = 10
    OBJECTIVE = 11
    PRECISION = 12
    GRADIENTS = 13
    STEP = 14
    PARAM_GROUPS = 15
    OPTIMIZER = 16
    SCHEDULE = 17
    WEIGHTS = 18
    STOP = 19
    PREDICT = 20


@dataclass(frozen=True)
class Card:
    """What a person needs to know before putting a trick in the bag.

    Attributes:
        title: the field's name for the trick.
        summary: one or two sentences on what it does.
        source: paper and section, or specification, that defines it.
        null: the setting at which the trick does nothing, in words.
        cost: what it costs in time and memory.
        suggested: values to start from, and when it helps or hurts.
        snippet: a self-contained plain-PyTorch program that uses the trick's functional form.
        aliases: other names people search for.
        library: which library does the work, or why trickbag does it itself.
        formula: what it computes, in plain text, where one or two lines say it.
    """

    title: str
    summary: str
    source: str
    null: str
    cost: str
    suggested: str
    snippet: str
    aliases: tuple[str, ...] = ()
    library: str = "trickbag"
    formula: str = ""


class Trick(BaseModel):
    """A frozen, typed value. Subclass an interface of ``trickbag.tricks.stages``, never this class directly.

    Class attributes:
        kind: the trick's name in recipes; unique in the catalogue.
        stage: where it acts.
        rank: order among the tricks of its stage (ties break by ``kind``).
        slot: at most one trick of a recipe may fill a slot; None if it takes none.
        card: documentation.
        null_setting: field values at which training is bit-identical to training without the trick.
        example: field values for tests and documentation at which the trick visibly acts.
        requires: kinds that must be in the bag too.
        passive: True if the trick leaves the trajectory of the raw weights untouched, so that runs
            with and without it can share one training run.
        same_classes: False if models of :meth:`sources` may be of other classes.
        alone: False if the trick acts only where several processes train together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: ClassVar[str]
    stage: ClassVar[Stage]
    rank: ClassVar[int] = 50
    slot: ClassVar[str | None] = None
    card: ClassVar[Card]
    null_setting: ClassVar[Mapping[str, Any]]
    example: ClassVar[Mapping[str, Any]] = {}
    requires: ClassVar[tuple[str, ...]] = ()
    passive: ClassVar[bool] = False
    alone: ClassVar[bool] = True
    same_classes: ClassVar[bool] = True

    @classmethod
    def null(cls) -> Trick:
        """The setting at which training is bit-identical to training without the trick.

        A trick whose slot is never empty (optimizers) returns the one that an empty slot means.
        """
        return cls(**cls.null_setting)

    @classmethod
    def sample(cls) -> Self:
        """The setting that tests and documentation use."""
        return cls(**cls.example)

    @property
    def order(self) -> tuple[int, int, str]:
        """Sort key that makes a bag into a sequence: stage, rank, kind."""
        return int(self.stage), self.rank, self.kind

    def settings(self) -> dict[str, Any]:
        """The field values as plain data (what a recipe file holds)."""
        return self.model_dump(mode="json")

    def resolve(self, context: Context) -> Self:
        """This trick with every field that depends on data, weights or model filled in."""
        return self

    def check(self, context: Context) -> Iterable[Problem]:
        """Everything that keeps this trick from acting on this recipe, model and data."""
        return ()

    def notes(self, context: Context) -> Iterable[str]:
        """Things worth telling the user that are not errors."""
        return ()

    def sources(self) -> Mapping[str, Source]:
        """Other trained models that this trick needs, by the name of the setting that asks for them."""
        return {}

    def with_sources(self, sources: Mapping[str, Source]) -> Self:
        """This trick with some of its sources replaced, by name of the setting."""
        return self.model_copy(update=dict(sources))

    def problem(self, what: str, *, expected: str | None = None, fix: str | None = None) -> Problem:
        """A Problem that names this trick and, unless told otherwise, how to do without it."""
        return Problem(what, f"trick {self.kind}", expected, fix or f"remove it: --without {self.kind}")


class Bag(Mapping[str, Trick]):
    """An unordered, hashable collection of tricks, at most one of a kind."""

    __slots__ = ("_tricks",)

    def __init__(self, tricks: Iterable[Trick] = ()) -> None:
        items = sorted(tricks, key=lambda trick: trick.kind)
        self._tricks = {trick.kind: trick for trick in items}
        if len(self._tricks) != len(items):
            kinds = [trick.kind for trick in items]
            twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
            raise ValueError(f"more than one {', '.join(twice)} in a bag")

    def __getitem__(self, kind: str) -> Trick:
        return self._tricks[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tricks)

    def __len__(self) -> int:
        return len(self._tricks)

    def __hash__(self) -> int:
        return hash(tuple(self._tricks.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bag) and self._tricks == other._tricks

    def __repr__(self) -> str:
        return f"Bag({', '.join(map(repr, self._tricks.values()))})"

    def with_(self, *tricks: Trick) -> Bag:
        """This bag with ``tricks`` added; one of the same kind or slot is replaced."""
        kinds = {trick.kind for trick in tricks}
        slots = {trick.slot for trick in tricks if trick.slot}
        kept = (t for t in self.values() if t.kind not in kinds and t.slot not in slots)
        return Bag((*kept, *tricks))

    def without(self, *kinds: str) -> Bag:
        """This bag less the named kinds."""
        return Bag(trick for kind, trick in self.items() if kind not in kinds)

    def of(self, interface: type[T]) -> tuple[T, ...]:
        """The tricks of one stage interface, in order of execution."""
        return tuple(sorted((t for t in self.values() if isinstance(t, interface)), key=lambda t: t.order))
