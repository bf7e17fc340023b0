"""The recommended protocol: pilot, screen, refine, confirm, each within its share of a budget.

A pilot of the baseline and the candidate tells the noise and how alike runs of one seed are. A folded
screen, about half of the budget, measures every factor with every run. From then on a model of all readings
(:mod:`trickbag.study.surrogate`) predicts every recipe; the predicted best is raced against recipes a few
flips away on fresh seeds, where a wrong decision would cost most (:mod:`trickbag.study.race`). What is left
pays for the confirmation on seeds never used before: baseline, final recipe and candidate, on the sealed
split too. Nothing else opens that split, and nothing is decided after it but which of its recipes to
recommend, by the selection split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

from trickbag.errors import StudyError
from trickbag.study.protocol import Cell, Point, Question, Reading, Round, Seen
from trickbag.study.race import LOOKS, Standing, boundary, contestants, standings
from trickbag.study.screens import free_settings, lay_out_screen, trained_rows
from trickbag.study.surrogate import Surrogate, best_cell, fit, usable

BASELINE: Cell = frozenset()
TIE = 0.02
"""Points that a factor must be worth to be in the recommended recipe."""
WORTH = 0.01
"""Points that are expected to be lost by deciding now, below which a flip is not raced."""
ENOUGH_SEEDS = 4
"""Seeds of the confirmation from which the candidate takes part in it too."""
MOST_SEEDS = 200


@dataclass(frozen=True)
class Recommended:
    """The recipe to use: best expected value less the price of its training time.

    Attributes:
        cell: its factors.
        gain: expected gain over the baseline in points, on the selection split.
        low, high: central ``1 - alpha`` interval of that expectation, given the fitted model.
        cost_multiple: training time as a multiple of the baseline's.
        reasons: a sentence for each factor: in or out, what it does there, how sure, and what the race said.
    """

    cell: Cell
    gain: float
    low: float
    high: float
    cost_multiple: float
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Auto:
    """The adaptive protocol. All shares are of the question's budget, which is never exceeded.

    Attributes:
        pilot: largest share of the pilot.
        screen: share of the screen; one folded screen is laid out where it takes more.
        confirm: share that is kept for the confirmation, more where that is less than three seeds.
        width: contestants beside the incumbent in each round of the race.
    """

    pilot: float = 0.1
    screen: float = 0.5
    confirm: float = 0.2
    width: int = 3

    def next(self, question: Question, seen: Sequence[Seen]) -> Round | None:
        """The next round, or None when the study is complete; a function of its arguments alone.

        Raises:
            StudyError: there is no budget, or it is too small.
        """
        if question.budget is None:
            raise StudyError("the protocol auto needs a budget", fix="give a budget of time, runs or epochs")
        stages = [one.round.stage for one in seen]
        if "confirm" in stages or not question.factors:
            return None
        if not seen:
            return self._pilot(question)
        if "screen" not in stages:
            return self._screen(question, [one.round for one in seen])
        model = fit(question.factors, _readings(seen))
        return self._refine(question, seen, model) or self._confirm(question, seen, model)

    def _pilot(self, question: Question) -> Round:
        budget = _budget(question)
        base, least, screen = question.cost(BASELINE), _ends(question), _least_screen(question)
        need = base + least + 2 * least + screen
        if budget < need:
            raise StudyError(
                f"a budget of {budget:g} does not hold the smallest study of {len(question.factors)} factors",
                expected=f"{need:g} or more: {base + least:g} for a pilot, {screen:g} for a screen, "
                f"{2 * least:g} for two seeds of the confirmation",
                fix="raise the budget, tie factors, or leave some out",
            )
        share = self.pilot * budget
        full = _can(question, question.all_on)
        on = 0 if not full else 2 if 2 * least <= share or budget >= 4 * need else 1
        spare = share - on * question.cost(question.all_on - question.free)
        count = max(2, min(5, int(spare / base))) if base > 0 else 5
        seeds = _seeds(question, 5)
        trained = [(BASELINE, seed) for seed in seeds[:count]]
        trained += [(question.all_on - question.free, seed) for seed in seeds[:on]]
        points = _read(question, trained, free_settings(question))
        why = {"baseline_seeds": count, "candidate_seeds": on, "budget": budget}
        return Round("pilot", points, why=why)

    def _screen(self, question: Question, rounds: Sequence[Round]) -> Round:
        budget, rows = _budget(question), trained_rows(question)
        keys = [key for key in question.factors if key not in question.free]
        cells = [frozenset(key for key, on in zip(keys, row, strict=True) if on) for row in rows]
        folded = sum(map(question.cost, cells))
        room = budget - question.spent(rounds) - 2 * _ends(question)
        if folded <= room + 1e-9:
            share = min(room, max(self.screen * budget, folded))
            points = lay_out_screen(
                question, runs_budget=share, seeds=sorted(set(question.seeds)), anchors=False
            )
        else:
            half = [(cell, min(question.seeds)) for cell in cells[: (len(cells) + 1) // 2]]
            # Runs may have turned out slower than they looked when the study was planned.
            while len(half) > 1 and sum(question.cost(cell) for cell, _ in half) > max(0.0, room):
                half.pop()
            points = _read(question, half, free_settings(question))
        runs = {question.training(point) for point in points}
        why = {
            "recipes": len({cell for cell, _ in runs}),
            "runs": len(runs),
            "seeds": sorted({point.seed for point in points}),
            "folded": folded <= room + 1e-9,
        }
        return Round("screen", points, why=why)

    def _refine(self, question: Question, seen: Sequence[Seen], model: Surrogate) -> Round | None:
        past = [one for one in seen if one.round.stage == "refine"]
        if len(past) >= LOOKS:
            return None
        incumbent = _best(question, model)
        known = _raced(question, seen)
        limit = self._limit(question)
        flips = open_flips(question, model, incumbent)
        resolved = {key for key, s in known.items() if abs(s.z) >= limit}
        # A factor that helps on average may still be wrong beside the others of the incumbent.
        closed = {key for key in resolved if (known[key].z > 0) == (key in incumbent)}
        flips = {key: worth for key, worth in flips.items() if key not in closed}
        spent = question.spent([one.round for one in seen])
        ends = question.cost(BASELINE) + question.cost(incumbent - question.free) + _ends(question)
        kept = max(self.confirm * _budget(question), min(3 * ends, 0.3 * _budget(question)))
        left = _budget(question) - kept - spent - question.cost(incumbent - question.free)

        def can(cell: Cell) -> bool:
            return question.cost(cell - question.free) <= left and _can(question, cell)

        def cost(cell: Cell) -> float:
            return question.cost(cell - question.free)

        if not flips or left <= 0:
            return None
        cells = []
        for cell in contestants(model, incumbent, flips, self.width, allowed=can, cost=cost):
            if cost(cell) <= left:
                cells.append(cell)
                left -= cost(cell)
        if not cells:
            return None
        seed = _fresh(question, seen)
        free = [
            incumbent & question.free,
            *((incumbent & question.free) ^ {k} for k in sorted(question.free)),
        ]
        trained = [(cell - question.free, seed) for cell in (incumbent, *cells)]
        why = {
            **_told(model, incumbent),
            "flips": {
                key: {"gain": round(mean, 3), "sd": round(sd, 3), "worth": round(flips.get(key, 0.0), 4)}
                for key, (mean, sd) in model.flips(incumbent).items()
            },
            "open": sorted(flips, key=lambda key: -flips[key]),
            "contestants": [sorted(cell ^ incumbent) for cell in cells],
            "race": {key: {"effect": round(s.effect, 3), "z": round(s.z, 2)} for key, s in known.items()},
            "resolved": sorted(resolved),
            "boundary": round(limit, 3),
        }
        return Round("refine", _read(question, trained, free), why=why)

    def _confirm(self, question: Question, seen: Sequence[Seen], model: Surrogate) -> Round | None:
        final = _best(question, model)
        left = _budget(question) - question.spent([one.round for one in seen])
        start = _fresh(question, seen)
        arms = [arm for arm in dict.fromkeys((BASELINE, final, question.all_on)) if _can(question, arm)]
        pair = [arm for arm in arms if arm in (BASELINE, final)]
        # With few seeds the one comparison that matters most gets them all.
        for tried, least in ((arms, ENOUGH_SEEDS), (pair, 1), (arms, 1)):
            price = sum(map(question.cost, {arm - question.free for arm in tried}))
            seeds = MOST_SEEDS if price <= 0 else min(MOST_SEEDS, int(left / price + 1e-9))
            if len(tried) > 1 and seeds >= least:
                points = tuple(Point(arm, start + i) for i in range(seeds) for arm in tried)
                return Round("confirm", points, points, {**_told(model, final), "seeds": seeds})
        return None

    def _limit(self, question: Question) -> float:
        raced = max(1, len(question.factors) - len(question.free))
        return boundary(raced, LOOKS, question.alpha, self.width)

    def recommend(self, question: Question, seen: Sequence[Seen]) -> Recommended:
        """The recipe to use, by everything that was read on the selection split.

        After a confirmation it is one of its recipes.
        """
        model = fit(question.factors, _readings(seen))
        last = [one for one in seen if one.round.stage == "confirm"]
        if last:
            arms = list(dict.fromkeys(point.cell for point in last[-1].round.points))
            cell = max(
                arms, key=lambda c: (round(model.value(c) - _price(question, c) - TIE * len(c), 9), -len(c))
            )
        else:
            cell = _best(question, model)
        gain, sd = model.difference(cell, BASELINE)
        reach = NormalDist().inv_cdf(1 - question.alpha / 2) * sd
        known = _raced(question, seen)
        raced = any(one.round.stage == "refine" for one in seen)
        limit = self._limit(question) if known else math.inf
        reasons = {
            key: _reason(key in cell, mean, sd, known.get(key), limit if raced else None)
            for key, (mean, sd) in model.flips(cell).items()
        }
        return Recommended(cell, gain, gain - reach, gain + reach, question.multiple(cell), reasons)


def attribute(question: Question, seen: Sequence[Seen], cell: Cell) -> dict[str, float]:
    """Share of each factor of ``cell`` in its expected gain over the baseline, in points.

    Main effect and half of the interactions: the Shapley value of the fitted model. They add up to the gain.
    """
    return fit(question.factors, _readings(seen)).attribution(cell)


def open_flips(question: Question, model: Surrogate, incumbent: Cell) -> dict[str, float]:
    """Flips of trained factors that are worth a race, with the points expected to be lost by deciding now.

    That is the expected size of the better of both choices beyond the one that looks better, in which the
    price of training time counts.
    """
    found = {}
    for key, (mean, sd) in model.flips(incumbent).items():
        other = incumbent ^ {key}
        if key in question.free or not _can(question, other):
            continue
        gain = mean - _price(question, other) + _price(question, incumbent)
        worth = expected_regret(gain, sd)
        if worth >= WORTH:
            found[key] = worth
    return found


def expected_regret(mean: float, sd: float) -> float:
    """Points lost on average by taking the sign of a normal quantity's mean for its sign."""
    if sd <= 0:
        return 0.0
    z = abs(mean) / sd
    return sd * (math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * math.erfc(z / math.sqrt(2)) / 2)


def _reason(on: bool, mean: float, sd: float, standing: Standing | None, limit: float | None) -> str:
    """Why a factor is in or out, in a sentence; ``mean`` and ``sd`` are of switching it.

    ``limit`` is None where nothing was raced, ``standing`` for a factor that cost no training.
    """
    effect = -mean if on else mean
    sure = 0.5 * math.erfc(-abs(effect) / (sd * math.sqrt(2))) if sd > 0 else 1.0
    does = "adds" if effect >= 0 else "costs"
    text = f"{'in' if on else 'out'}: here it {does} {abs(effect):.2f} ± {sd:.2f} points"
    text += f" ({'more than 99' if sure > 0.99 else f'{100 * sure:.0f}'} % sure of the sign)"
    if limit is None or standing is None:
        return text
    if abs(standing.z) < limit:
        return text + "; the race did not resolve it"
    average = "helpful" if standing.z > 0 else "harmful"
    return text + f"; over all recipes that it was tried in, the race resolved it as {average}"


def _budget(question: Question) -> float:
    return float(question.budget or 0.0)


def _readings(seen: Iterable[Seen]) -> list[Reading]:
    return [reading for one in seen for reading in one.readings]


def _can(question: Question, cell: Cell) -> bool:
    return cell == BASELINE or question.allowed(cell)


def _price(question: Question, cell: Cell) -> float:
    """Of a recipe's training time against the baseline's, in points."""
    return question.price * math.log2(question.multiple(cell)) if question.price else 0.0


def _best(question: Question, model: Surrogate) -> Cell:
    price = (lambda cell: _price(question, cell)) if question.price else None
    return best_cell(model, lambda cell: _can(question, cell), price, tie=TIE)


def _ends(question: Question) -> float:
    """Cost of baseline and candidate with one seed."""
    arms = {cell - question.free for cell in (BASELINE, question.all_on) if _can(question, cell)}
    return sum(map(question.cost, arms))


def _least_screen(question: Question) -> float:
    """Cost of the smallest screen: half of a folded one."""
    keys = [key for key in question.factors if key not in question.free]
    rows = trained_rows(question)
    half = rows[: (len(rows) + 1) // 2]
    return sum(question.cost(frozenset(k for k, on in zip(keys, row, strict=True) if on)) for row in half)


def _read(
    question: Question, trained: Iterable[tuple[Cell, int]], settings: Sequence[Cell]
) -> tuple[Point, ...]:
    """Readings of some runs at some settings of the free factors, those that are allowed."""
    points = (Point(cell | setting, seed) for cell, seed in trained for setting in settings)
    return tuple(dict.fromkeys(point for point in points if _can(question, point.cell)))


def _seeds(question: Question, count: int) -> list[int]:
    seeds = sorted(set(question.seeds))
    return [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + count)][:count]


def _fresh(question: Question, seen: Sequence[Seen]) -> int:
    """The first of the seeds that no run has used."""
    return 1 + max([*question.seeds, *(point.seed for one in seen for point in one.round.points)])


def _told(model: Surrogate, cell: Cell) -> dict[str, Any]:
    """What the model knows, as JSON values."""
    gain, sd = model.difference(cell, BASELINE)
    return {
        "recipe": sorted(cell),
        "gain": round(gain, 3),
        "gain_sd": round(sd, 3),
        "sd_paired": round(model.sd_paired, 3),
        "correlation": round(model.correlation, 3),
        "readings": model.readings,
    }


def _raced(question: Question, seen: Sequence[Seen]) -> dict[str, Standing]:
    """Standings of the trained factors, by the first reading of each run before the confirmation."""
    stages = ("pilot", "screen", "refine")
    runs = {question.training(p) for one in seen if one.round.stage in stages for p in one.round.points}
    first: dict[tuple[Cell, int], float] = {}
    for reading, value in usable(_readings(seen)):
        training = question.training(reading.point)
        if training in runs:
            first.setdefault(training, value)
    return standings([(seed, cell, value) for (cell, seed), value in first.items()])
