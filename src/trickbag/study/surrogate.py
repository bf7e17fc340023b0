"""What all readings of a study say about recipes, measured or not: a Gaussian process over cells.

With ``u`` a recipe coded as −1 (off) and +1 (on), a reading is

    y = constant + sum_i a_i u_i + sum_(i<j) b_ij u_i u_j + seed + run + noise,

every term normal with a variance of its own: one for all main effects, one for all pairwise interactions, one
for seeds (shared by runs of one seed), one for runs (shared by readings of one run), one for the rest. The
variances maximize their marginal likelihood times a weak prior (Rasmussen and Williams 2006, section 2.7
and equation 5.9); given them, everything is the posterior of a linear model. Interactions are thought
smaller than main effects, and larger between factors whose main effects are large (the hierarchy and
heredity principles of Chipman, Hamada and Wu 1997): a first fit with all pairs alike gives the weights.

Readings of every stage enter, adaptively chosen or not: a posterior does not depend on why a run was made. It
serves decisions. Claims come from the fixed screen and from fresh seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trickbag.study.protocol import Cell, Point, Reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

SMALLEST_SD = 0.01
"""Points; no noise is taken for smaller."""
HEREDITY = 0.3
"""Of the prior variance of main effects: how likely a factor without any is to interact."""
RESTARTS = 6
VAGUE = 10.0
"""Standard deviation of the constant, in standard deviations of the readings."""


@dataclass(frozen=True)
class Surrogate:
    """Posterior of main effects and interactions.

    Attributes:
        factors: their keys, ``K`` of them.
        mean: posterior means ``(1 + K + K(K−1)/2,)`` of constant, main effects and interactions, in points.
        covariance: of the same, square.
        prior: prior variances of the same.
        sd_main: prior standard deviation of a main effect in points; half of what switching it does.
        sd_pair: the same of an interaction.
        sd_seed: standard deviation that runs of one seed share.
        sd_run: standard deviation of a run beyond that; what readings of one run share.
        sd_noise: standard deviation of a reading beyond that; 0 if each run was read once.
        readings: how many were used.
    """

    factors: tuple[str, ...]
    mean: Floats
    covariance: Floats
    prior: Floats
    sd_main: float
    sd_pair: float
    sd_seed: float
    sd_run: float
    sd_noise: float
    readings: int

    @property
    def sd_paired(self) -> float:
        """Standard deviation of the difference of two runs with one seed, in points."""
        return math.sqrt(2) * math.hypot(self.sd_run, self.sd_noise)

    @property
    def correlation(self) -> float:
        """Correlation of runs with one seed."""
        return self.sd_seed**2 / (self.sd_seed**2 + self.sd_run**2 + self.sd_noise**2)

    def value(self, cell: Cell) -> float:
        """Expected value of a recipe in points."""
        return float(features(self.coded([cell]))[0] @ self.mean)

    def coded(self, cells: Sequence[Cell]) -> Floats:
        """Recipes as −1 and +1, ``(cells, K)``."""
        import numpy as np

        return np.array([[1.0 if key in cell else -1.0 for key in self.factors] for cell in cells])

    def difference(self, cell: Cell, other: Cell) -> tuple[float, float]:
        """Posterior mean and standard deviation of ``cell`` minus ``other``, in points."""
        rows = features(self.coded([cell, other]))
        contrast = rows[0] - rows[1]
        variance = float(contrast @ self.covariance @ contrast)
        return float(contrast @ self.mean), math.sqrt(max(0.0, variance))

    def flips(self, cell: Cell) -> dict[str, tuple[float, float]]:
        """Posterior mean and standard deviation of switching each factor of ``cell``, in points."""
        import numpy as np

        start = self.coded([cell])
        ends = start * (1 - 2 * np.eye(len(self.factors)))
        contrasts = features(ends) - features(start)
        means = contrasts @ self.mean
        variances = np.einsum("ij,jk,ik->i", contrasts, self.covariance, contrasts)
        sds = np.sqrt(np.maximum(0.0, variances))
        return {key: (float(m), float(s)) for key, m, s in zip(self.factors, means, sds, strict=True)}

    def attribution(self, cell: Cell) -> dict[str, float]:
        """Share of each factor of ``cell`` in its gain over the baseline, in points.

        Its own effect at the baseline and half of each interaction: the Shapley value of a model with
        pairwise interactions, which adds up to the gain and knows no order.
        """
        import numpy as np

        size = len(self.factors)
        on = np.array([key in cell for key in self.factors])
        pair = np.zeros((size, size))
        pair[np.triu_indices(size, 1)] = self.mean[1 + size :]
        pair += pair.T
        # A switch from −1 to +1 adds 2 a_i + 2 sum_j b_ij u_j; averaged over all orders, u_j of a factor that
        # is switched too is 0, that of the others −1.
        share = 2 * self.mean[1 : 1 + size] - 2 * pair @ (~on).astype(float)
        return {key: float(share[i]) for i, key in enumerate(self.factors) if on[i]}


def features(coded: Floats) -> Floats:
    """Constant, coded factors and products of pairs: ``(n, K)`` to ``(n, 1 + K + K(K−1)/2)``."""
    import numpy as np

    first, second = np.triu_indices(coded.shape[1], 1)
    return np.hstack([np.ones((len(coded), 1)), coded, coded[:, first] * coded[:, second]])


def usable(readings: Iterable[Reading]) -> list[tuple[Reading, float]]:
    """Readings with their values, one a point. Divergence counts as the lowest value that finished."""
    everything = list(readings)
    finished = [r.value for r in everything if _finite(r)]
    floor = min((v for v in finished if v is not None), default=0.0)
    kept: dict[Point, tuple[Reading, float]] = {}
    for reading in everything:
        if reading.diverged:
            kept.setdefault(reading.point, (reading, floor))
        elif _finite(reading) and reading.value is not None:
            kept.setdefault(reading.point, (reading, reading.value))
    return list(kept.values())


def _finite(reading: Reading) -> bool:
    return not reading.diverged and reading.value is not None and math.isfinite(reading.value)


def fit(factors: Sequence[str], readings: Iterable[Reading]) -> Surrogate:
    """Fit the model to readings; those that failed for other reasons than their recipe are left out.

    Args:
        factors: keys of the factors; ``K`` of them.
        readings: any number, also none, in which case the posterior is the prior.
    """
    import numpy as np
    from scipy.linalg import cho_factor, cho_solve

    pairs = usable(readings)
    keys = tuple(factors)
    size = len(keys)
    coded = np.array([[1.0 if k in r.point.cell else -1.0 for k in keys] for r, _ in pairs]).reshape(-1, size)
    values = np.array([value for _, value in pairs])
    center = float(values.mean()) if len(values) else 0.0
    y = values - center
    spread = max(float(y.std()) if len(y) else 0.0, 5 * SMALLEST_SD)
    seeds = _same([r.point.seed for r, _ in pairs])
    # A reading whose run is not named is a run of its own.
    runs = _same([r.run or f"\0{i}" for i, (r, _) in enumerate(pairs)])
    several = bool(len(y)) and not np.array_equal(runs, np.eye(len(y)))
    kinds = [seeds, *([runs] if several else []), np.eye(len(y))]
    constant = np.full((len(y), len(y)), (VAGUE * spread) ** 2)
    first, second = np.triu_indices(size, 1)
    # As likely to interact as its main effect is large: first all alike, then by what the first fit found.
    weights = np.ones(size)
    start = _guess(spread, size, several)
    logs = start
    for turn in range(2):
        pairs_alike = ((coded * weights) @ coded.T) ** 2 - float(weights @ weights)
        parts = [coded @ coded.T, pairs_alike / 2, *kinds]
        if len(y):
            logs = _likeliest(y, constant, parts, start, logs)
        sds = np.exp(logs)
        prior = np.concatenate(
            [
                [(VAGUE * spread) ** 2],
                np.full(size, sds[0] ** 2),
                sds[1] ** 2 * weights[first] * weights[second],
            ]
        )
        mean, covariance = np.zeros(len(prior)), np.diag(prior)
        if len(y):
            total = constant + sum(s**2 * part for s, part in zip(sds, parts, strict=True))
            factor = cho_factor(total, lower=True)
            scaled = features(coded) * prior
            mean = scaled.T @ cho_solve(factor, y)
            covariance = covariance - scaled.T @ cho_solve(factor, scaled)
        if turn == 0 and size:
            mains = slice(1, 1 + size)
            size_of = (mean[mains] ** 2 + np.diagonal(covariance)[mains]) / sds[0] ** 2
            weights = (HEREDITY + size_of) / (HEREDITY + size_of).mean()
    mean[0] += center
    run, noise = (float(sds[3]), float(sds[4])) if several else (float(sds[3]), 0.0)
    return Surrogate(
        keys, mean, covariance, prior, float(sds[0]), float(sds[1]), float(sds[2]), run, noise, len(pairs)
    )


def _same(labels: Sequence[object]) -> Floats:
    """1 where two labels agree, else 0; ``(n, n)``."""
    import numpy as np

    numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    index = np.array([numbers[label] for label in labels], dtype=int)
    same: Floats = (index[:, None] == index[None, :]).astype(float)
    return same


def _guess(spread: float, size: int, several: bool) -> Floats:
    """Logarithms of the standard deviations that the prior is centered on."""
    import numpy as np

    main = spread / math.sqrt(2 * max(1, size))
    sds = [main, main / 3, spread / 2, spread / 2, *([spread / 6] if several else [])]
    logs: Floats = np.log(np.maximum(sds, SMALLEST_SD))
    return logs


def _likeliest(y: Floats, constant: Floats, parts: Sequence[Floats], prior: Floats, start: Floats) -> Floats:
    """Logarithms of the standard deviations, one a part, by maximum a posteriori."""
    import numpy as np
    from scipy.linalg.lapack import dpotrf, dpotri
    from scipy.optimize import minimize

    width = np.array([1.5, 1.0, *([1.5] * (len(parts) - 2))])
    largest = float(prior[2]) + 3.7
    stack = np.stack(parts)
    lower = np.triu_indices(len(y), 1)

    def objective(logs: Floats) -> tuple[float, Floats]:
        variances = np.exp(2 * logs)
        total = constant + np.tensordot(variances, stack, 1)
        root, bad = dpotrf(total, lower=1, overwrite_a=1)
        if bad:
            return 1e12, np.zeros_like(logs)
        inverse, _ = dpotri(root, lower=1)
        inverse[lower] = inverse.T[lower]
        solved = inverse @ y
        determinant = 2 * float(np.log(np.diagonal(root)).sum())
        off = (logs - prior) / width
        # The interactions' prior is on their size relative to main effects.
        off[1] = (logs[1] - logs[0] - (prior[1] - prior[0])) / width[1]
        slope = variances * np.tensordot(stack, inverse - np.outer(solved, solved), ([1, 2], [0, 1]))
        pull = off / width
        pull[0] -= off[1] / width[1]
        return 0.5 * (determinant + float(y @ solved) + float(off @ off)), slope + pull

    smallest = math.log(SMALLEST_SD)
    bounds = [(smallest - 3, largest)] * 2 + [(smallest, largest)] * (len(parts) - 2)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
    return np.asarray(found.x)


def best_cell(
    model: Surrogate,
    allowed: Callable[[Cell], bool],
    price: Callable[[Cell], float] | None = None,
    starts: Iterable[Cell] = (),
    tie: float = 0.0,
) -> Cell:
    """The allowed recipe with the highest expected value less its price.

    Ascent over single switches and, where none gains, exchanges of two, from several starts.

    Args:
        model: what is known of recipes.
        allowed: whether a recipe can be trained.
        price: of a recipe in points.
        starts: recipes to start from beside the baseline, the candidate and some random ones.
        tie: points that a factor must be worth to be on; else the simpler recipe is taken.
    """
    import numpy as np

    size = len(model.factors)
    rows, columns = np.triu_indices(size, 1)
    main, pair = model.mean[1 : 1 + size], np.zeros((size, size))
    pair[rows, columns] = model.mean[1 + size :]
    pair += pair.T
    can = lru_cache(maxsize=None)(allowed)
    cost = lru_cache(maxsize=None)(price or (lambda cell: 0.0))

    def cell_of(u: Floats) -> Cell:
        return frozenset(key for key, level in zip(model.factors, u, strict=True) if level > 0)

    def switched(u: Floats, which: Sequence[int]) -> Floats:
        v = u.copy()
        v[list(which)] *= -1
        return v

    def climb(u: Floats) -> tuple[float, Cell]:
        while True:
            here = cost(cell_of(u))
            paid = np.zeros(size)
            if price:
                paid += [cost(cell_of(switched(u, [i]))) - here for i in range(size)]
            one = -2 * u * (main + pair @ u) + tie * u
            two = one[rows] + one[columns] + 4 * pair[rows, columns] * u[rows] * u[columns]
            one = one - paid
            # Prices of exchanges are guessed to add up, and looked up for those that seem to gain.
            singles = [(one[i], (i,)) for i in np.flatnonzero(one > 1e-9)]
            moved = next((v for v in _tries(singles, u, switched) if can(cell_of(v))), None)
            if moved is None:
                worth = two - paid[rows] - paid[columns]
                exchanges = [(worth[k], (rows[k], columns[k]), two[k]) for k in np.flatnonzero(worth > 1e-9)]
                for _, which, gain in sorted(exchanges, key=lambda e: -e[0]):
                    v = switched(u, which)
                    if can(cell_of(v)) and gain - (cost(cell_of(v)) - here) > 1e-9:
                        moved = v
                        break
            if moved is None:
                level = float(main @ u + u @ pair @ u / 2 - tie * (u > 0).sum()) - here
                return level, cell_of(u)
            u = moved

    random = np.random.default_rng(0).choice([-1.0, 1.0], size=(RESTARTS, size))
    begins = [*model.coded([frozenset(), frozenset(model.factors), *starts]), np.where(main > 0, 1.0, -1.0)]
    found = [climb(u) for u in (*begins, *random) if not cell_of(u) or can(cell_of(u))]
    return max(found, key=lambda f: (round(f[0], 9), -len(f[1]), sorted(f[1])))[1]


def _tries(
    gains: Sequence[tuple[float, Any]], u: Floats, switched: Callable[..., Floats]
) -> Iterator[Floats]:
    for _, which in sorted(gains, key=lambda g: -g[0]):
        yield switched(u, which)
