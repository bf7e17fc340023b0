"""Racing an incumbent recipe against recipes a few flips from it, on fresh seeds.

Contestants are chosen for what they tell about the flips that are still open, several flips at a time
where that tells more a run. Factors are judged by least squares with a block a seed, on the runs of the
screen and of the race, and are resolved when they reach a boundary that is found by simulating screen and
race in a world in which nothing has an effect. (By the race's runs alone hardly anything would be resolved:
they are few.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from trickbag.study.protocol import Cell
from trickbag.study.screens import foldover, plackett_burman
from trickbag.study.surrogate import Surrogate, features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[Any]

OPEN = 8
"""Flips that are raced at a time."""
LOOKS = 16
"""Rounds after which a race resolves nothing more."""
CANDIDATES = 60
SMALLEST_DF = 3
SMALLEST_SD = 0.01
"""Points; noise of fewer is of too coarse a metric."""
_DESIGNS, _DRAWS = 10, 500


@dataclass(frozen=True)
class Standing:
    """Where one factor stands in a race.

    Attributes:
        effect: of having it on, in points, by least squares; 0 while it cannot be told from others.
        z: effect over its standard error, as a normal deviate; 0 while there is too little to judge by.
    """

    effect: float
    z: float


def contestants(
    model: Surrogate,
    incumbent: Cell,
    worth: Mapping[str, float],
    count: int,
    *,
    allowed: Callable[[Cell], bool] = lambda cell: True,
    cost: Callable[[Cell], float] = lambda cell: 1.0,
) -> list[Cell]:
    """Recipes to run beside the incumbent: those that tell most about the open flips for their cost.

    Candidates are the single flips and random groups of them. One after the other, the one is taken that
    reduces the variances of the flips most, as shares and weighted by ``worth``, given those already taken.

    Args:
        model: what is known.
        incumbent: recipe that runs as well.
        worth: points expected to be lost by deciding now, for each open flip.
        count: how many at most.
        allowed: whether a recipe can be trained.
        cost: of training a recipe.
    """
    import numpy as np

    flips = sorted(worth, key=lambda key: -worth[key])[:OPEN]
    rng = np.random.default_rng(len(flips))
    groups = [frozenset({key}) for key in flips]
    for _ in range(4 * CANDIDATES if len(flips) > 1 else 0):
        share = rng.choice([0.2, 0.35, 0.5])
        groups.append(frozenset(key for key in flips if rng.random() < share))
    cells = [incumbent ^ group for group in dict.fromkeys(groups) if group][:CANDIDATES]
    cells = [cell for cell in cells if allowed(cell)]
    start = model.coded([incumbent])
    ends = model.coded([incumbent ^ {key} for key in flips])
    # One more column: the level of the fresh seed.
    size = len(model.mean)
    covariance = np.zeros((size + 1, size + 1))
    covariance[:size, :size], covariance[size, size] = model.covariance, model.sd_seed**2
    targets = np.hstack([features(ends) - features(start), np.zeros((len(flips), 1))])
    sds = np.array([model.difference(incumbent ^ {key}, incumbent)[1] for key in flips])
    weights = np.array([worth[key] for key in flips]) / np.maximum(sds, 1e-9) ** 2
    runs = np.hstack([features(model.coded([incumbent, *cells])), np.ones((len(cells) + 1, 1))])
    costs = np.array([cost(cell) for cell in cells])
    noise = model.sd_run**2 + model.sd_noise**2
    taken = [0]
    while True:
        latest = covariance @ runs[taken[-1]]
        covariance = covariance - np.outer(latest, latest) / (runs[taken[-1]] @ latest + noise)
        if len(taken) > min(count, len(cells)):
            return [cells[i - 1] for i in taken[1:]]
        spread = runs[1:] @ covariance
        total = np.einsum("ij,ij->i", spread, runs[1:]) + noise
        score = ((targets @ spread.T) ** 2 * weights[:, None]).sum(0) / total / np.maximum(costs, 1e-9)
        score[[i - 1 for i in taken[1:]]] = -1.0
        taken.append(int(score.argmax()) + 1)


def standings(runs: Sequence[tuple[int, Cell, float]]) -> dict[str, Standing]:
    """Judge every factor that was on in one recipe and off in another of one seed.

    Args:
        runs: seed, recipe and value in points of every run.
    """
    import numpy as np

    seeds = list(dict.fromkeys(seed for seed, _, _ in runs))
    groups = [[cell for seed, cell, _ in runs if seed == one] for one in seeds]
    on = sorted(frozenset[str]().union(*(cell for _, cell, _ in runs)))
    keys = [k for k in on if any(0 < sum(k in cell for cell in cells) < len(cells) for cells in groups)]
    if not keys:
        return {}
    blocks = np.array([[float(seed == one) for one in seeds] for seed, _, _ in runs])
    levels = np.array([[float(key in cell) for key in keys] for _, cell, _ in runs])
    effects, z = deviates(np.hstack([levels, blocks]), np.array([value for _, _, value in runs]), len(keys))
    return {key: Standing(float(e), float(one)) for key, e, one in zip(keys, effects, z, strict=True)}


def deviates(x: Floats, y: Floats, count: int) -> tuple[Floats, Floats]:
    """Coefficients of the first columns and their t statistics as normal deviates.

    Args:
        x: ``(runs, columns)``.
        y: ``(..., runs)``.
        count: number of columns that are asked for.

    Returns:
        Two arrays ``(..., count)``; 0 for what cannot be estimated, deviates also for what cannot be judged.
    """
    import numpy as np
    from scipy.special import ndtri, stdtr

    solve = np.linalg.pinv(x)
    project = solve @ x
    df = len(x) - round(float(np.trace(project)))
    estimable = np.abs(project - np.eye(x.shape[1])).max(1)[:count] < 1e-8
    coefficients = y @ solve.T
    effects = np.where(estimable, coefficients[..., :count], 0.0)
    if df < SMALLEST_DF:
        return effects, np.zeros_like(effects)
    residual = y - coefficients @ x.T
    sd = np.sqrt((residual**2).sum(-1, keepdims=True) / df).clip(SMALLEST_SD)
    t = effects / (sd * np.sqrt(np.maximum((solve**2).sum(1)[:count], 1e-12)))
    z = -np.sign(t) * ndtri(np.maximum(stdtr(df, -np.abs(t)), 1e-300))
    return effects, z


@lru_cache(maxsize=64)
def boundary(flips: int, rounds: int = LOOKS, level: float = 0.05, width: int = 3) -> float:
    """Deviate that a share ``level`` of studies reach, at some factor and look, where nothing has an effect.

    A folded screen on two seeds, then rounds of the incumbent and ``width`` random contestants, a seed each;
    a look after the screen and after every round. A race that ends earlier takes fewer looks and errs less
    often, as does one that runs the least certain flips first. The level does not hold for a race that goes
    on with the flips that look largest: in simulations that erred in 11 of 100 studies where 10 were asked.

    Args:
        flips: factors in the race.
        rounds: most rounds.
        level: of the family of all factors and looks, 0 to 1.
        width: contestants beside the incumbent.
    """
    import numpy as np

    rng = np.random.default_rng([3, flips, rounds, width])
    screen = foldover(plackett_burman(flips))
    first = len(screen)
    highest = np.zeros((_DESIGNS, _DRAWS))
    for design in range(_DESIGNS):
        levels = np.repeat(rng.random((1, flips)) < 0.5, rounds * (width + 1), 0)
        flip = rng.random(levels.shape) < 0.4 * min(1.0, OPEN / flips)
        flip[:: width + 1] = False
        seeds = np.r_[np.arange(first) % (first // 2) % 2, 2 + np.arange(len(levels)) // (width + 1)]
        x = np.hstack([np.vstack([screen, levels ^ flip]), seeds[:, None] == np.arange(rounds + 2)]).astype(
            float
        )
        y = rng.standard_normal((_DRAWS, len(x)))
        for look in range(rounds + 1):
            runs = first + look * (width + 1)
            _, z = deviates(x[:runs, : flips + 2 + look], y[:, :runs], flips)
            highest[design] = np.maximum(highest[design], np.abs(z).max(-1))
    return float(np.quantile(highest, 1 - level))
