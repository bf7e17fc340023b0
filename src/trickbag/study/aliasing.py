"""What a design cannot tell apart, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from trickbag.study.protocol import Point

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Aliases:
    """What a design cannot tell apart.

    Attributes:
        mixed: for each factor, two-factor interactions that bias its main effect, as ``(first, second,
            coefficient)``, largest first; in −1/+1 coding the estimate expects the main effect plus
            coefficient times interaction.
        groups: interactions that cannot be told apart, two or more a group.
        rank: number of contrasts that the design has for interactions, clear of main effects.
        sentences: the same for people.
    """

    mixed: Mapping[str, tuple[tuple[str, str, float], ...]]
    groups: tuple[tuple[tuple[str, str], ...], ...]
    rank: int
    sentences: tuple[str, ...]


def aliases(design: Bools, keys: Sequence[str], level: float = 0.2) -> Aliases:
    """The alias matrix ``(X1'X1)^-1 X1'X2`` of main effects by two-factor interactions, in words.

    Args:
        design: ``(runs, factors)``, bool; an intercept is added.
        keys: names of the factors.
        level: coefficients smaller than this are left out.

    Source:
        Box and Draper 1987, Empirical Model-Building and Response Surfaces, section 3.9.
    """
    import numpy as np

    x = np.where(design, 1.0, -1.0)
    pairs = list(combinations(range(x.shape[1]), 2))
    x1 = np.hstack([np.ones((len(x), 1)), x])
    x2 = np.stack([x[:, i] * x[:, j] for i, j in pairs], 1) if pairs else np.zeros((len(x), 0))
    a = np.linalg.pinv(x1) @ x2
    mixed = {}
    for k, key in enumerate(keys):
        strong = [p for p in np.argsort(-abs(a[1 + k]), kind="stable") if abs(a[1 + k, p]) >= level]
        mixed[key] = tuple((keys[pairs[p][0]], keys[pairs[p][1]], float(a[1 + k, p])) for p in strong)
    rest = x2 - x1 @ a
    norm = np.sqrt((rest**2).sum(0))
    kept = np.flatnonzero(norm > 1e-6)
    unit = rest[:, kept] / norm[kept]
    left, groups = list(range(len(kept))), []
    same = abs(unit.T @ unit) > 1 - 1e-9
    while left:
        group = [i for i in left if same[left[0], i]]
        left = [i for i in left if i not in group]
        if len(group) > 1:
            groups.append(tuple((keys[pairs[kept[i]][0]], keys[pairs[kept[i]][1]]) for i in group))
    rank = int(np.linalg.matrix_rank(unit)) if len(kept) else 0
    return Aliases(mixed, tuple(groups), rank, _say(mixed, groups, rank, len(pairs)))


def aliases_of(points: Iterable[Point], keys: Sequence[str], level: float = 0.2) -> tuple[str, ...]:
    """Sentences of :func:`aliases` for the different recipes among some points, in terms of ``keys``."""
    import numpy as np

    if not keys:
        return ()
    rows = dict.fromkeys(tuple(key in point.cell for key in keys) for point in points)
    return aliases(np.array([*rows], bool).reshape(-1, len(keys)), keys, level).sentences


_SHOWN = 6


def _say(
    mixed: Mapping[str, Sequence[tuple[str, str, float]]],
    groups: Sequence[Sequence[tuple[str, str]]],
    rank: int,
    pairs: int,
) -> tuple[str, ...]:
    if not pairs:
        return ()
    said = []
    unclear = {key: found for key, found in mixed.items() if found}
    for key, found in list(unclear.items())[:_SHOWN]:
        terms = [f"{a} × {b} ({c:+.2f})".replace("-", "−") for a, b, c in found]
        said.append(f"{key} is mixed with {_some(terms, 3)}.")
    if len(unclear) > _SHOWN:
        said.append(f"{len(unclear) - _SHOWN} more factors are mixed with interactions in this way.")
    if len(unclear) < len(mixed):
        clear = "Main effects are" if not unclear else f"{len(mixed) - len(unclear)} main effects are"
        said.append(f"{clear} clear of two-factor interactions.")
    for group in groups[:_SHOWN]:
        said.append(f"{_some([f'{a} × {b}' for a, b in group], 8)} cannot be told apart.")
    if len(groups) > _SHOWN:
        said.append(f"{len(groups) - _SHOWN} more groups of interactions cannot be told apart.")
    if rank == pairs:
        said.append("All two-factor interactions can be estimated together.")
    elif sum(len(g) - 1 for g in groups) < pairs - rank:
        said.append(
            f"The {pairs} two-factor interactions share {rank} independent contrasts: each is partly mixed "
            "with others, and only a few large ones can be found."
        )
    return tuple(said)


def _some(terms: Sequence[str], limit: int) -> str:
    if len(terms) > limit:
        terms = [*terms[:limit], f"{len(terms) - limit} more"]
    return " and ".join([", ".join(terms[:-1]), terms[-1]] if len(terms) > 1 else terms)
