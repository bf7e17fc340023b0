"""The catalogue: every trick in this package, found by looking at its modules."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from trickbag.tricks.base import Bag, Card, Stage, Trick

__all__ = ["Bag", "Card", "Stage", "Trick", "catalogue", "find"]


@lru_cache(maxsize=1)
def catalogue() -> Mapping[str, type[Trick]]:
    """Every trick by kind, in order of stage, rank and kind. Adding a module here adds its tricks."""
    found: dict[str, type[Trick]] = {}
    for module in pkgutil.iter_modules(__path__):
        members = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for trick in members.values():
            if inspect.isclass(trick) and issubclass(trick, Trick) and "kind" in vars(trick):
                other = found.setdefault(trick.kind, trick)
                if other is not trick:
                    raise TypeError(f"two tricks are called {trick.kind}: {other} and {trick}")
    ordered = sorted(found.values(), key=lambda t: (int(t.stage), t.rank, t.kind))
    return MappingProxyType({trick.kind: trick for trick in ordered})


def find(name: str) -> type[Trick] | None:
    """The trick called ``name``, by kind or by one of its aliases, in any case and spelling of spaces."""

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    wanted = plain(name)
    for trick in catalogue().values():
        if wanted in (plain(alias) for alias in (trick.kind, trick.card.title, *trick.card.aliases)):
            return trick
    return None
