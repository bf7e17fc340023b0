"""What changes between two recipes; each entry is a possible factor of a study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trickbag.recipe.model import Recipe
from trickbag.tricks.base import Trick
from trickbag.tricks.sources import Source


@dataclass(frozen=True)
class Change:
    """One difference between a baseline and a candidate recipe.

    Attributes:
        key: what changes: a trick's kind or slot (``mixup``, ``optimizer``), one of its settings
            (``sgd.weight_decay``), or a plain value (``epochs``, ``model``).
        before, after: plain value, setting, or trick (None where a trick is absent).
        passive: True if the change acts only on averaged weights or when predicting.
    """

    key: str
    before: Any
    after: Any
    passive: bool = False

    @property
    def label(self) -> str:
        """The change in a few words, as reports show it."""
        if isinstance(self.before, Trick) or isinstance(self.after, Trick):
            if self.before is None:
                return f"+ {describe(self.after)}"
            if self.after is None:
                return f"- {describe(self.before)}"
        return f"{self.key}: {describe(self.before)} -> {describe(self.after)}"


def describe(value: Any) -> str:
    """A value in a few words: a trick with the settings that differ from their defaults."""
    if isinstance(value, Trick):
        settings = {
            name: getattr(value, name)
            for name, field in type(value).model_fields.items()
            if field.is_required() or getattr(value, name) != field.get_default(call_default_factory=True)
        }
        inner = ", ".join(f"{name}={describe(v)}" for name, v in settings.items())
        return f"{value.kind}({inner})" if inner else value.kind
    if isinstance(value, Source):
        given = value.model_dump(exclude_defaults=True)
        if isinstance(source := given.get("recipe"), dict):
            given["recipe"] = f"one of {len(source.get('tricks') or {})} tricks"
        return ", ".join(f"{name}={describe(v)}" for name, v in given.items())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(describe(v) for v in value) + ")"
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)


PLAIN = tuple(name for name in Recipe.model_fields if name not in ("tricks", "about"))


def diff(baseline: Recipe, candidate: Recipe) -> tuple[Change, ...]:
    """The differences, one entry each, in a fixed order: plain values first, then tricks by stage.

    A trick that both hold with other settings gives one entry a setting. Two different tricks in one
    slot (``step_decay`` and ``cosine_decay``) give one entry for the slot. Applying all entries to
    ``baseline`` gives ``candidate``.
    """
    changes = [
        Change(name, getattr(baseline, name), getattr(candidate, name), name in Recipe.PREDICT_ONLY)
        for name in PLAIN
        if getattr(baseline, name) != getattr(candidate, name)
    ]
    before, after = baseline.tricks, candidate.tricks
    entries: list[tuple[tuple[int, int, str], Change]] = []
    slots = {t.slot for t in (*before.values(), *after.values()) if t.slot}
    for slot in slots:
        old = next((t for t in before.values() if t.slot == slot), None)
        new = next((t for t in after.values() if t.slot == slot), None)
        if old is not None and new is not None and old.kind != new.kind:
            entries.append((new.order, Change(slot, old, new, old.passive and new.passive)))
    swapped = {change.before.kind for _, change in entries} | {change.after.kind for _, change in entries}
    for kind in {*before, *after} - swapped:
        old, new = before.get(kind), after.get(kind)
        trick = new or old
        assert trick is not None
        if old is None or new is None:
            entries.append((trick.order, Change(kind, old, new, trick.passive)))
        else:
            entries += [
                (trick.order, Change(f"{kind}.{name}", getattr(old, name), getattr(new, name), trick.passive))
                for name in type(trick).model_fields
                if getattr(old, name) != getattr(new, name)
            ]
    entries.sort(key=lambda entry: (entry[0], entry[1].key))
    return (*changes, *(change for _, change in entries))


def apply_changes(recipe: Recipe, changes: Iterable[Change]) -> Recipe:
    """``recipe`` with ``changes`` made."""
    tricks = recipe.tricks
    plain: dict[str, Any] = {}
    for change in changes:
        kind, _, setting = change.key.partition(".")
        if change.key in PLAIN:
            plain[change.key] = change.after
        elif setting:
            values = {name: getattr(tricks[kind], name) for name in type(tricks[kind]).model_fields}
            tricks = tricks.with_(type(tricks[kind])(**(values | {setting: change.after})))
        elif change.after is None:
            tricks = tricks.without(change.before.kind)
        else:
            if change.before is not None:
                tricks = tricks.without(change.before.kind)
            tricks = tricks.with_(change.after)
    return recipe.replace(tricks=tricks, **plain)
