"""D-optimal two-level designs by exchange, where some rows are forbidden."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trickbag.errors import StudyError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bools = NDArray[np.bool_]
    Floats = NDArray[Any]

Allowed = Callable[[tuple[bool, ...]], bool]

_RIDGE = 1e-3
_TRIES = 8
_PASSES = 30


def d_optimal(
    runs: int,
    factors: int,
    allowed: Allowed,
    *,
    seed: int = 0,
    mirrored: bool = True,
    keys: Sequence[str] = (),
    start: Bools | None = None,
    fixed: int = 0,
    restarts: int = 5,
) -> Bools:
    """Rows that determine an intercept and all main effects best: a large ``det(X'X)``, no forbidden row.

    Exchange of rows by switching one factor of them, until none is better, from several starts. A row is
    asked about only if it could be better, since ``allowed`` may be slow.

    Args:
        runs: number of rows; even if mirrored.
        factors: number of columns.
        allowed: whether a row, as a tuple of bools, can be run. It is asked once for each row.
        seed: the same seed gives the same rows.
        mirrored: row ``i + runs / 2`` is row ``i`` with every factor switched, or with as many as can be
            where that is forbidden.
        keys: names of the factors for messages.
        start: rows to begin with, ``(runs, factors)``; forbidden ones are repaired.
        fixed: so many of the first pairs (or rows) of ``start`` stay as they are.
        restarts: random starts beside it.

    Returns:
        Array ``(runs, factors)``, bool. Rows come twice only if there are no others.

    Raises:
        StudyError: no allowed row, too few runs, or factors that no allowed rows tell apart.

    Source:
        Fedorov 1972, Theory of Optimal Experiments; Meyer and Nachtsheim 1995, Technometrics 37(1).
    """
    import numpy as np

    size = 2 if mirrored else 1
    if factors < 1 or runs % size or runs // size < factors + (not mirrored):
        least = 2 * factors if mirrored else factors + 1
        raise StudyError(
            f"{runs} runs for {factors} factors", expected=f"{least} or more{', even' if mirrored else ''}"
        )
    for guess in (True, False):
        design = _search(
            runs, _Search(factors, allowed, np.random.default_rng(seed), size, guess), start, fixed, restarts
        )
        if _rank(design) > factors:
            break
    check_rank(design, keys)
    return design


def _search(runs: int, search: _Search, start: Bools | None, fixed: int, restarts: int) -> Bools:
    """The best of several searches."""
    import numpy as np

    factors, half = search.factors, runs // search.size
    given = None if start is None else np.where(start, 1.0, -1.0)
    search.explore(np.empty((0, factors)) if given is None else given)
    best = -math.inf
    for attempt in range(restarts + (given is not None)):
        rows = search.rng.choice([-1.0, 1.0], (runs, factors))
        if given is not None:
            kept = (np.arange(runs) % half < fixed) | (attempt == 0)
            rows[kept] = given[kept]
        units = rows.reshape(search.size, half, factors).swapaxes(0, 1).copy()
        value = search.improve(units, fixed)
        if value > best + 1e-9:
            best, found = value, units.swapaxes(0, 1).reshape(runs, factors) > 0
        if value >= (factors + 1) * math.log(runs + _RIDGE) - 1e-9:
            break
    return found


class _Search:
    """Exchanges among rows of −1 and 1, asking about few of them.

    What forbids a row is mostly a pair of settings. Pairs that no allowed row has shown are taken for
    forbidden, and only rows without such a pair are asked about.
    """

    def __init__(
        self, factors: int, allowed: Allowed, rng: np.random.Generator, size: int, guess: bool
    ) -> None:
        import numpy as np

        self.factors, self.ask, self.rng, self.size, self.guess = factors, allowed, rng, size, guess
        self.known: dict[bytes, bool] = {}
        self.good: list[Floats] = []
        self.unseen = np.ones((2 * factors, 2 * factors))
        self.switches = 1 - 2 * np.eye(factors)

    def allowed(self, row: Floats) -> bool:
        """Whether a row can be run."""
        key = _bits(row)
        if key not in self.known:
            self.known[key] = bool(self.ask(tuple((row > 0).tolist())))
            if self.known[key]:
                self.good.append(row.copy())
                on = self._settings(row[None])[0] > 0
                self.unseen[on[:, None] & on[None]] = 0
        return self.known[key]

    def likely(self, rows: Floats) -> Bools:
        """For each row whether it may well be allowed."""
        import numpy as np

        if not self.guess:
            return np.array([self.allowed(row) for row in rows], bool)
        settings = self._settings(rows)
        fine: Bools = ((settings @ self.unseen) * settings).sum(1) == 0
        for i in np.flatnonzero(fine):
            fine[i] = self.known.get(_bits(rows[i]), True)
        return fine

    def _settings(self, rows: Floats) -> Floats:
        import numpy as np

        return np.where(np.hstack([rows, -rows]) > 0, 1.0, 0.0)

    def explore(self, rows: Floats) -> None:
        """See what is allowed: some rows, and walks from allowed ones to random ones."""
        for row in rows:
            self.allowed(row)
        if not all(self.known.values()):
            for _ in range(max(10, self.factors // 2)):
                self._near(self.rng.choice([-1.0, 1.0], self.factors))

    def improve(self, units: Floats, fixed: int) -> float:
        """Exchange in place until nothing is better; the logarithm of the determinant."""
        import numpy as np

        for unit in units[fixed:]:
            self._repair(unit)
        x = self._model(units).reshape(-1, self.factors + 1)
        m = x.T @ x + _RIDGE * np.eye(self.factors + 1)
        present: dict[bytes, int] = {}
        for row in units.reshape(-1, self.factors):
            _count(present, row, 1)
        for _ in range(_PASSES):
            better = False
            for unit in units[fixed:]:
                for _ in range(self.size):
                    unit[:] = unit[::-1].copy()
                    old = self._model(unit)
                    rest = m - old.T @ old
                    for row in unit:
                        _count(present, row, -1)
                    found = self._exchange(unit, np.linalg.inv(rest), present)
                    if found is not None:
                        unit[:] = found
                        better = True
                    for row in unit:
                        _count(present, row, 1)
                    new = self._model(unit)
                    m = rest + new.T @ new
            if not better:
                break
        return float(np.linalg.slogdet(m)[1])

    def _exchange(self, unit: Floats, inverse: Floats, present: dict[bytes, int]) -> Floats | None:
        """The best of the exchanges of a unit that are allowed and better, as far as it looks."""
        import numpy as np

        least = (1 + 1e-9) * float(self._gain(unit[None], inverse)[0])
        if any(present.get(_bits(row)) for row in unit):
            least = 0.0  # a row that is there already is worth a run only if there is no other
        rows = unit[0] * self.switches
        rows = rows[self.likely(rows)]
        tries = np.stack([rows, -rows], 1) if self.size == 2 else rows[:, None]
        gains = self._gain(tries, inverse)
        best: Floats | None = None
        for i in np.argsort(-gains, kind="stable")[:_TRIES]:
            if gains[i] <= least:
                break
            row = rows[i]
            if present.get(_bits(row)):
                continue
            if self.size == 1:
                if self.allowed(row):
                    best = row[None]
                    break
                continue
            others = [other for other in self._mirrors(row) if not present.get(_bits(other))]
            pairs = np.stack([np.stack([row, other]) for other in others or [unit[1]]])
            worth = self._gain(pairs, inverse)
            top = int(worth.argmax())
            if worth[top] > least and self.allowed(row) and self.allowed(pairs[top, 1]):
                least, best = float(worth[top]), pairs[top]
        return best

    def _mirrors(self, row: Floats) -> list[Floats]:
        """Likely rows with as many factors as possible switched: the mirror image, if it can be."""
        import numpy as np

        if self.likely(-row[None])[0]:
            return [-row]
        if not self.guess:
            return []
        found = []
        for last in (False, True):
            other = -row
            while True:
                settings = self._settings(other[None])[0]
                clashes = (settings * (self.unseen @ settings)).reshape(2, -1).sum(0) * (other != row)
                if not clashes.any():
                    break
                j = len(clashes) - 1 - clashes[::-1].argmax() if last else clashes.argmax()
                other[j] = row[j]
            if not np.array_equal(other, row):
                found.append(other)
        return found

    def _repair(self, unit: Floats) -> None:
        """Allowed rows near those of a unit."""
        if not self.allowed(unit[0]):
            unit[0] = self._near(unit[0])
        if self.size == 2:
            unit[1] = next((row for row in self._mirrors(unit[0]) if self.allowed(row)), unit[0])

    def _near(self, row: Floats) -> Floats:
        """An allowed row, reached from another by switching towards ``row`` what can be switched."""
        import numpy as np

        for tries in range(200):
            if self.good:
                break
            end = np.full(self.factors, -1.0 if tries == 0 else 1.0)
            self.allowed(end if tries < 2 else self.rng.choice([-1.0, 1.0], self.factors))
        if not self.good:
            raise StudyError("no recipe of these factors can be trained", expected="at least one")
        found = self.good[self.rng.integers(len(self.good))].copy()
        for j in self.rng.permutation(self.factors):
            if found[j] != row[j] and self.allowed(found * self.switches[j]):
                found[j] = row[j]
        return found

    def _model(self, rows: Floats) -> Floats:
        import numpy as np

        model: Floats = np.concatenate([np.ones((*rows.shape[:-1], 1)), rows], -1)
        return model

    def _gain(self, units: Floats, inverse: Floats) -> Floats:
        """Factor by which units ``(n, size, factors)`` multiply the determinant of the rest."""
        f = self._model(units)
        inner = f @ inverse @ f.swapaxes(1, 2)
        gain: Floats = 1 + inner[:, 0, 0]
        return gain if self.size == 1 else gain * (1 + inner[:, 1, 1]) - inner[:, 0, 1] ** 2


def _bits(row: Floats) -> bytes:
    bits: bytes = (row > 0).tobytes()
    return bits


def _count(present: dict[bytes, int], row: Floats, step: int) -> None:
    key = _bits(row)
    present[key] = present.get(key, 0) + step


def check_rank(design: Bools, keys: Sequence[str] = ()) -> None:
    """Refuse rows ``(runs, factors)`` that do not determine an intercept and all main effects.

    Raises:
        StudyError: naming the factors that cannot be told apart.
    """
    import numpy as np

    if (rank := _rank(design)) > design.shape[1]:
        return
    names = list(keys) or [f"factor {j + 1}" for j in range(design.shape[1])]
    null = np.linalg.svd(_with_ones(design))[2][rank:]
    for j, name in enumerate(names):
        if design[:, j].all() or not design[:, j].any():
            raise StudyError(
                f"{name} is always {'on' if design[0, j] else 'off'} in the recipes that can be trained",
                expected="factors that can be switched",
                fix="leave it out of the difference between baseline and candidate",
            )
        for other in range(j):
            if np.array_equal(design[:, j], design[:, other]):
                raise StudyError(
                    f"{names[other]} and {name} can only be switched together, so their effects cannot be "
                    "told apart",
                    fix="tie them into one factor",
                )
    mixed = [name for j, name in enumerate(names) if abs(null[:, 1 + j]).max() > 1e-8]
    raise StudyError(
        f"{', '.join(mixed)} cannot be told apart by recipes that can be trained",
        fix="tie some of them into one factor",
    )


def _with_ones(design: Bools) -> Floats:
    import numpy as np

    return np.hstack([np.ones((len(design), 1)), np.where(design, 1.0, -1.0)])


def _rank(design: Bools) -> int:
    import numpy as np

    return int(np.linalg.matrix_rank(_with_ones(design)))
