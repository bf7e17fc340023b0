"""Least squares behind a screen's effects: seed blocks, factors, and two estimates of the error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

CLEAN_DF = 6
"""Degrees of freedom from which the error free of interactions is used without a look at the other."""
LACK_OF_FIT = 0.005
"""Level at which interactions are taken to be in the error."""
FEW_DF = 6
"""With fewer degrees of freedom left, a free factor's effect is not let depend on the trained factors."""
DEARER = 1.5
"""Greatest loss in variance at which effects are kept clear of interactions although a run is lost."""


@dataclass(frozen=True)
class Pooled:
    """An estimate of the error: ``y' project y / df``."""

    project: Floats
    df: int

    def mse(self, y: Floats) -> Floats:
        """Mean squares of columns ``y``, ``(runs, ...)``."""
        found: Floats = ((self.project @ y) ** 2).sum(0) / max(1, self.df)
        return found


@dataclass(frozen=True)
class Model:
    """``y = block + factors / 2 + pairs / 4 + error`` for runs with factors at −1 and 1.

    Attributes:
        solve: ``(factors, runs)``; effects are ``solve @ y``, the change when a factor is switched on.
        scale: ``(factors,)``; their variances in units of the error variance; NaN if not estimable.
        own: for each block the same ``solve`` of its runs alone, NaN where they do not suffice.
        error: of the whole model.
        clean: of the model with a mean of its own for each recipe and its mirror image: no interaction of an
            even number of factors is in it.
        pairs: of factors that ``solve_pairs`` estimates, one for each group that cannot be told apart.
        solve_pairs: ``(pairs, runs)``; interactions, what one factor buys more when the other is on.
        scale_pairs: ``(pairs,)``.
        aliased: for each of them, the others of its group.
        joint: the pairs are part of the model, so that they do not touch its error or each other.
    """

    solve: Floats
    scale: Floats
    own: tuple[Floats, ...]
    error: Pooled
    clean: Pooled
    pairs: tuple[tuple[int, int], ...]
    solve_pairs: Floats
    scale_pairs: Floats
    aliased: tuple[tuple[tuple[int, int], ...], ...]
    joint: bool

    def judge_by(self, y: Floats) -> Pooled:
        """The error to judge by: small where interactions are large, but not picked for being small.

        Interactions that the model leaves out swell its error (never its main effects, in a folded design).
        The clean error has few degrees of freedom. It is used if it has enough, or if a lack-of-fit test at
        a strict level says that the model's error is swollen. A lenient level would pick the clean error
        when that is small by chance: at 5 % the family-wise error rises from .045 to .06.
        """
        from scipy.special import fdtrc

        if self.error.df == self.clean.df or self.clean.df < 1:
            return self.error
        if self.clean.df >= CLEAN_DF:
            return self.clean
        whole, clean = float(self.error.mse(y)), float(self.clean.mse(y))
        more = self.error.df - self.clean.df
        lack = (whole * self.error.df - clean * self.clean.df) / more
        swollen = clean > 0 and fdtrc(more, self.clean.df, lack / clean) < LACK_OF_FIT
        return self.clean if swollen else self.error


@lru_cache(maxsize=64)
def model(settings: bytes, factors: int, block: tuple[int, ...], pairs: bool) -> Model:
    """The model for runs with these settings; kept, since a design is fitted to many metrics.

    Args:
        settings: bool array ``(runs, factors)`` as bytes.
        factors: number of columns.
        block: block of each run, 0 and up.
        pairs: estimate interactions too.
    """
    import numpy as np

    runs = len(block)
    x = np.where(np.frombuffer(settings, bool).reshape(runs, factors), 1.0, -1.0)
    s = np.eye(max(block) + 1)[list(block)]
    base = np.hstack([s, x])
    estimable = _estimable(base)[s.shape[1] :]
    chosen = [(i, j) for i, j in combinations(range(factors), 2) if pairs and estimable[i] and estimable[j]]
    z = np.stack([x[:, i] * x[:, j] for i, j in chosen], 1) if chosen else np.empty((runs, 0))
    full = np.hstack([base, z])
    joint = bool(chosen) and len(chosen) < runs and bool(_estimable(full)[-len(chosen) :].all())
    joint = joint and runs > np.linalg.matrix_rank(full)
    whole = full if joint else base
    solve = np.linalg.pinv(whole)
    effects = 2 * solve[s.shape[1] : s.shape[1] + factors]
    scale = np.where(estimable, (effects**2).sum(1), np.nan)

    twin: dict[bytes, int] = {}
    kinds = [twin.setdefault(min(row.tobytes(), (-row).tobytes()), len(twin)) for row in x]
    kept_apart = np.hstack([whole, np.eye(len(twin))[kinds]])
    if not joint and estimable.any():
        # With a run lost, only pairs that are whole still keep interactions out of the main effects.
        apart = 2 * np.linalg.pinv(kept_apart)[s.shape[1] : s.shape[1] + factors]
        fine = _estimable(kept_apart)[s.shape[1] : s.shape[1] + factors]
        if fine[estimable].all() and ((apart**2).sum(1)[estimable] <= DEARER * scale[estimable]).all():
            effects, scale = apart, np.where(estimable, (apart**2).sum(1), np.nan)

    own = []
    for b in range(s.shape[1]):
        rows = s[:, b] > 0
        alone = np.hstack([np.ones((rows.sum(), 1)), x[rows]])
        found = np.full((factors, runs), np.nan)
        good = _estimable(alone)[1:]
        found[good] = 0
        found[np.ix_(good, rows)] = 2 * np.linalg.pinv(alone)[1:][good]
        own.append(found)

    if joint:
        solve_pairs, kept = 4 * solve[-len(chosen) :], chosen
        aliased: list[tuple[tuple[int, int], ...]] = [()] * len(chosen)
    else:
        solve_pairs, kept, aliased = _marginal(base, z, chosen)
    return Model(
        effects,
        scale,
        tuple(own),
        _residual(whole),
        _residual(kept_apart),
        tuple(kept),
        solve_pairs,
        (solve_pairs**2).sum(1),
        tuple(aliased),
        joint,
    )


@lru_cache(maxsize=64)
def centered(settings: bytes, factors: int, runs: int) -> tuple[Floats, Floats, Pooled]:
    """A mean of runs halfway between the levels of some factors, and how it depends on each of them.

    Args:
        settings: bool array ``(runs, factors)`` as bytes; not looked at with no factors.
        factors: number of columns; 0 for the plain mean.
        runs: number of rows.

    Returns:
        ``solve`` ``(1 + factors, runs)``: the mean, and half the change when a factor is switched on; their
        variances in units of the error's ``(1 + factors,)``, NaN if not estimable; the error.
    """
    import numpy as np

    x = np.ones((runs, 1))
    if factors:
        x = np.hstack([x, np.where(np.frombuffer(settings, bool).reshape(runs, factors), 1.0, -1.0)])
    solve = np.linalg.pinv(x)
    return solve, np.where(_estimable(x), (solve**2).sum(1), np.nan), _residual(x)


def within_runs(settings: Floats) -> tuple[Floats, Floats, Pooled, bool]:
    """How the effects of free factors are found from one difference a run; settings ``(runs, factors)``.

    Returns:
        As from :func:`centered`; and whether they may depend on the factors, or are plain means over runs.
    """
    solve, scale, error = centered(settings.tobytes(), settings.shape[1], len(settings))
    if error.df >= FEW_DF and math.isfinite(scale[0]):
        return solve, scale, error, True
    return *centered(b"", 0, len(settings)), False


@lru_cache(maxsize=256)
def reader(settings: tuple[tuple[bool, ...], ...], crossed: bool) -> Floats | None:
    """From a run's readings to its effects (and interactions), ``(terms, readings)``; None if too few.

    Args:
        settings: levels of the free factors at each reading.
        crossed: interactions too.
    """
    import numpy as np

    z = np.where(np.array(settings, bool), 1.0, -1.0)
    columns = [np.ones(len(z)), *z.T]
    if crossed:
        columns += [z[:, i] * z[:, j] for i in range(z.shape[1]) for j in range(i)]
    x = np.stack(columns, 1)
    if np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    size = np.array([2.0] * z.shape[1] + [4.0] * (x.shape[1] - 1 - z.shape[1]))
    found: Floats = size[:, None] * np.linalg.pinv(x)[1:]
    return found


def _estimable(x: Floats) -> NDArray[Any]:
    """Which columns of a model have a coefficient of their own."""
    import numpy as np

    projector = np.linalg.pinv(x) @ x
    found: Floats = abs(projector - np.eye(x.shape[1])).max(1, initial=0) < 1e-8
    return found


def _residual(x: Floats) -> Pooled:
    import numpy as np

    left, values, _ = np.linalg.svd(x, full_matrices=False)
    span = left[:, values > 1e-9 * values[0]]
    return Pooled(np.eye(len(x)) - span @ span.T, len(x) - span.shape[1])


def _marginal(
    base: Floats, z: Floats, chosen: list[tuple[int, int]]
) -> tuple[Floats, list[tuple[int, int]], list[tuple[tuple[int, int], ...]]]:
    """Each interaction fitted alone beside blocks and factors, one of each group that is the same column."""
    import numpy as np

    rest = _residual(base).project @ z
    norm = np.sqrt((rest**2).sum(0))
    left = [i for i in range(len(chosen)) if norm[i] > 1e-6]
    unit = rest / np.where(norm > 1e-6, norm, 1)
    same = abs(unit.T @ unit) > 1 - 1e-9
    rows, kept, aliased = [], [], []
    while left:
        first, *others = [i for i in left if same[left[0], i]]
        left = [i for i in left if i != first and i not in others]
        rows.append(4 * unit[:, first] / norm[first])
        kept.append(chosen[first])
        aliased.append(tuple(chosen[i] for i in others))
    return np.array(rows).reshape(-1, len(base)), kept, aliased


def wild_bootstrap(
    solve: Floats, scale: Floats, error: Pooled, y: Floats, draws: int, level: float, seed: int
) -> Floats:
    """Half-widths of bootstrap-t intervals: studentized, symmetric, from residuals with random signs.

    Residuals are divided by the square root of one less their leverage (HC2) and get a Rademacher sign each,
    run by run, given the blocks. By simulation on folded screens this keeps 95 % intervals at .935 to .96,
    with normal, heavy-tailed and heteroscedastic errors. Signs for mirrored pairs keep .59 to .92, and for
    whole seeds .68 to .74 with three seeds: too few clusters for the many factors of a screen.

    Args:
        solve: ``(effects, runs)``.
        scale: ``(effects,)``, variances in units of the error's.
        error: that the effects are judged by.
        y: ``(runs,)``.
        draws: resamples.
        level: of the intervals, such as .95.
        seed: of the signs.

    Source:
        Wu 1986, Annals of Statistics 14(4); Liu 1988, Annals of Statistics 16(4); Cameron, Gelbach and
        Miller 2008, Review of Economics and Statistics 90(3).
    """
    import numpy as np

    free = np.diag(error.project)
    residual = error.project @ y / np.sqrt(np.where(free > 1e-9, free, np.inf))
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (len(y), draws))
    drawn = residual[:, None] * signs
    spread = np.sqrt(np.outer(scale, error.mse(drawn)))
    t = abs(solve @ drawn) / np.where(spread > 0, spread, np.inf)
    half: Floats = np.quantile(t, level, axis=1) * np.sqrt(scale * error.mse(y))
    return half
