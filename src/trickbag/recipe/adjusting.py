"""A recipe in the making, and the record of what was changed in it and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trickbag.recipe.diff import describe
from trickbag.recipe.model import Recipe

if TYPE_CHECKING:
    from trickbag.data.base import DataFacts

IMAGES = "training images"
"""Where ``about.published`` says how many images a recipe is meant for."""


@dataclass(frozen=True)
class Adjustment:
    """One value that fitting changed.

    Attributes:
        key: a field of the recipe, a trick, or ``trick.setting``.
        before, after: its values; None for a trick that is not there.
        rule: name of the rule, of :data:`trickbag.recipe.fitting.RULES`.
        reason: why, with the numbers of this case.
    """

    key: str
    before: Any
    after: Any
    rule: str
    reason: str

    def __str__(self) -> str:
        if self.after is None and "." not in self.key:
            return f"{self.key}: taken out [{self.rule}] {self.reason}"
        return f"{self.key}: {describe(self.before)} -> {describe(self.after)} [{self.rule}] {self.reason}"


@dataclass
class Work:
    """A recipe, what it was made from, the data it is for, and what has been changed."""

    original: Recipe
    recipe: Recipe
    facts: DataFacts
    adjustments: list[Adjustment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Training images of the data."""
        return self.facts.sizes["train"]

    @property
    def meant_for(self) -> int:
        """Number of images that the recipe was made for."""
        known = self.original.about.published.get(IMAGES)
        return known if isinstance(known, int) and known > 0 else self.images

    @property
    def steps(self) -> tuple[float, float]:
        """Updates of the original on its data, and now."""
        old = self.original.epochs * max(1, self.meant_for // self.original.batch_size)
        return old, self.recipe.epochs * max(1, self.images // self.recipe.batch_size)

    def plain(self, rule: str, reason: str, **values: Any) -> None:
        """Change fields of the recipe."""
        for name, value in values.items():
            before = getattr(self.recipe, name)
            if before != value:
                self.adjustments.append(Adjustment(name, before, value, rule, reason))
        self.recipe = self.recipe.replace(**values)

    def setting(self, kind: str, name: str, value: Any, rule: str, reason: str) -> None:
        """Change a setting of a trick that is in the bag."""
        trick = self.recipe.tricks[kind]
        before = getattr(trick, name)
        values = {each: getattr(trick, each) for each in type(trick).model_fields}
        changed = type(trick)(**(values | {name: value}))
        after = getattr(changed, name)
        if before != after:
            self.adjustments.append(Adjustment(f"{kind}.{name}", before, after, rule, reason))
            self.recipe = self.recipe.with_tricks(changed)

    def drop(self, kind: str, rule: str, reason: str) -> None:
        """Take a trick out."""
        self.adjustments.append(Adjustment(kind, self.recipe.tricks[kind], None, rule, reason))
        self.recipe = self.recipe.without(kind)

    def get(self, kind: str) -> Any:
        """The trick of a kind, or None."""
        return self.recipe.tricks.get(kind)
