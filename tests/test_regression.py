"""The linear model behind screens and factorials: oracles, and what it promises, by simulation."""

from __future__ import annotations

import gc
import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from trickbag.errors import StudyError
from trickbag.study.equivalence import corrected, within_margin
from trickbag.study.factorials import Factorial
from trickbag.study.outline import _auto_rounds, planned
from trickbag.study.protocol import Point, Question, Reading
from trickbag.study.regression import fit_factors
from trickbag.study.screens import Screen
from trickbag.study.verdicts import correct

STUDIES = 1000


def keys(count):
    return tuple(f"f{i}" for i in range(count))


class World:
    """Readings of a design under known effects; in points.

    Trained factors, their interactions and a free factor act; runs with one seed share ``block_sd``.
    """

    def __init__(self, points, question, effects=(), pairs=(), sd=1.0, block_sd=1.5, within_sd=0.0, rng=0):
        self.points, self.question = points, question
        self.rng = np.random.default_rng(rng)
        self.sd, self.block_sd, self.within_sd = sd, block_sd, within_sd
        self.x = np.array([[k in p.cell for k in question.factors] for p in points], float)
        self.effects = np.zeros(len(question.factors))
        self.effects[: len(effects)] = effects
        self.expected = 80 + (self.x - 0.5) @ self.effects
        for (i, j), size in dict(pairs).items():
            self.expected += size * (self.x[:, i] - 0.5) * (self.x[:, j] - 0.5)
        self.seeds = {seed: n for n, seed in enumerate(sorted({p.seed for p in points}))}
        runs = {}
        self.run = np.array([runs.setdefault(question.training(p), len(runs)) for p in points])
        self.block = np.array([self.seeds[p.seed] for p in points])
        self.loud = np.ones(len(points))

    def values(self):
        noise = self.block_sd * self.rng.standard_normal(len(self.seeds))[self.block]
        noise += self.loud * self.sd * self.rng.standard_normal(self.run.max() + 1)[self.run]
        return self.expected + noise + self.within_sd * self.rng.standard_normal(len(self.points))

    def readings(self):
        return [Reading(p, v) for p, v in zip(self.points, self.values().tolist(), strict=True)]

    def fit(self, **more):
        return fit_factors(self.readings(), self.question.factors, self.question.free, **more)


def screen(count, free=(), **more):
    question = Question(keys(count), free=frozenset(free), **more)
    return Screen().next(question, ()).points, question


@pytest.fixture(autouse=True)
def _quick():
    """statsmodels collects garbage at every correction: hide the test session from the collector."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def beyond(rate, count=STUDIES):
    """Three standard errors of a simulated rate."""
    return 3 * math.sqrt(rate * (1 - rate) / count)


def test_effects_agree_with_statsmodels():
    import statsmodels.api as sm

    points, question = screen(9)
    world = World(points, question, [2, -1, 0.5])
    readings = world.readings()
    fit = fit_factors(readings, question.factors, delta=0.4)
    blocks = np.eye(3)[world.block]
    ols = sm.OLS([r.value for r in readings], np.hstack([blocks, world.x])).fit()
    assert fit.df == ols.df_resid
    assert fit.mse == pytest.approx(ols.mse_resid)
    family = len(question.factors)
    for i, effect in enumerate(fit.effects):
        c = np.zeros(3 + family)
        c[3 + i] = 1
        oracle = ols.t_test(c)
        assert effect.estimate == pytest.approx(oracle.effect.item())
        assert effect.se == pytest.approx(oracle.sd.item())
        assert effect.p == pytest.approx(oracle.pvalue.item())
        assert (effect.low, effect.high) == pytest.approx(tuple(oracle.conf_int()[0]))
        wide = oracle.conf_int(alpha=0.05 / family)[0]
        assert (effect.low_simultaneous, effect.high_simultaneous) == pytest.approx(tuple(wide))
    for point, fitted, residual in fit.residuals:
        i = points.index(point)
        assert fitted == pytest.approx(ols.fittedvalues[i])
        assert residual == pytest.approx(ols.resid[i])


def test_corrections_agree_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(1).random(20) ** 3
    holm, q = correct(p, 20)
    assert holm == pytest.approx(multipletests(p, method="holm")[1])
    assert q == pytest.approx(multipletests(p, method="fdr_bh")[1])
    holm, q = correct(np.array([0.01, np.nan, 0.02]), 2)
    assert holm[[0, 2]] == pytest.approx([0.02, 0.02])
    assert q[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(holm[1])
    assert math.isnan(q[1])


def test_clean_error_is_that_of_a_model_with_every_recipe_pair():
    import statsmodels.api as sm

    points, question = screen(6, budget=50)
    world = World(points, question, pairs={(0, 1): 9, (2, 3): 5})
    readings = world.readings()
    fit = fit_factors(readings, question.factors)
    kinds = {}
    kind = [kinds.setdefault(min(p.cell, question.all_on - p.cell, key=sorted), len(kinds)) for p in points]
    x = np.hstack([np.eye(len(world.seeds))[world.block], np.eye(len(kinds))[kind], world.x])
    x = x[
        :, [np.linalg.matrix_rank(x[:, : j + 1]) > np.linalg.matrix_rank(x[:, :j]) for j in range(x.shape[1])]
    ]
    ols = sm.OLS([r.value for r in readings], x).fit()
    assert fit.df == ols.df_resid
    assert fit.mse == pytest.approx(ols.mse_resid)
    assert "no two-factor interaction enters" in fit.method


def test_full_factorial_estimates_all_interactions_with_statsmodels():
    import statsmodels.api as sm

    question = Question(keys(3), seeds=(0, 1, 2, 3))
    points = Factorial().next(question, ()).points
    world = World(points, question, [2, 1], pairs={(0, 1): 3.0})
    readings = world.readings()
    fit = fit_factors(readings, question.factors, pairs=True)
    centered = world.x - 0.5
    z = [centered[:, i] * centered[:, j] for i, j in combinations(range(3), 2)]
    ols = sm.OLS([r.value for r in readings], np.column_stack([np.eye(4)[world.block], centered, *z])).fit()
    found = {(p.first, p.second): p for p in fit.pairs}
    assert len(found) == 3
    for n, (i, j) in enumerate(combinations(range(3), 2)):
        pair = found[f"f{i}", f"f{j}"]
        assert pair.estimate == pytest.approx(ols.params[7 + n])
        assert pair.low is not None
        assert not pair.aliased
    assert [abs(p.estimate) for p in fit.pairs] == sorted((abs(p.estimate) for p in fit.pairs), reverse=True)
    for effect in fit.effects:
        assert [seed for seed, _ in effect.pairs] == [0, 1, 2, 3]
        assert np.mean([value for _, value in effect.pairs]) == pytest.approx(effect.estimate)


def test_random_seeds_agree_with_a_mixed_model():
    import warnings

    import statsmodels.api as sm

    question = Question(keys(4), seeds=tuple(range(12)))
    points = Factorial().next(question, ()).points
    world = World(points, question, [2, -1])
    readings = world.readings()
    fit = fit_factors(readings, question.factors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = np.hstack([np.ones((len(points), 1)), world.x])
        mixed = sm.MixedLM([r.value for r in readings], x, groups=world.block).fit(reml=True)
    assert [e.estimate for e in fit.effects] == pytest.approx(mixed.fe_params[1:].tolist(), abs=1e-6)
    assert [e.se for e in fit.effects] == pytest.approx(mixed.bse_fe[1:].tolist(), rel=0.1)
    assert fit.block_sd == pytest.approx(math.sqrt(mixed.cov_re.item()), rel=0.05)
    variance = fit.block_sd**2
    assert fit.correlation == pytest.approx(variance / (variance + fit.mse))


def test_free_factor_is_judged_by_one_difference_a_run():
    points, question = screen(5, ["f4"])
    world = World(points, question, [1, 0, 0, 0, 0.3], within_sd=0.1)
    readings = world.readings()
    effect = fit_factors(readings, question.factors, question.free).effects[-1]
    value = {r.point: r.value for r in readings}
    off = [p for p in points if "f4" not in p.cell]
    d = np.array([value[Point(p.cell | {"f4"}, p.seed)] - value[p] for p in off])
    x = np.column_stack([np.ones(len(d)), [[1 if k in p.cell else -1 for k in keys(4)] for p in off]])
    beta, rss, *_ = np.linalg.lstsq(x, d, rcond=None)
    assert effect.estimate == pytest.approx(beta[0])
    assert effect.df == len(d) - 5
    assert effect.se == pytest.approx(math.sqrt(rss.item() / effect.df * np.linalg.inv(x.T @ x)[0, 0]))


def simulate(world, **more):
    """Fits of many studies: estimates, half-widths, verdicts, q, all (studies, factors)."""
    fits = [world.fit(**more) for _ in range(STUDIES)]
    estimate = np.array([[e.estimate for e in f.effects] for f in fits])
    half = np.array([[e.high - e.estimate for e in f.effects] for f in fits])
    claim = np.array([[e.verdict in ("helps", "hurts") for e in f.effects] for f in fits])
    active = np.array([[k in f.active for k in world.question.factors] for f in fits])
    return fits, estimate, half, claim, active


@pytest.mark.parametrize("count", [7, 20])
def test_nothing_is_claimed_of_factors_that_do_nothing(count):
    points, question = screen(count)
    _, estimate, half, claim, active = simulate(World(points, question, rng=count))
    assert claim.any(1).mean() <= 0.05 + beyond(0.05)
    assert active.any(1).mean() <= 0.1 + beyond(0.1)  # with no true effect the FDR is the family-wise error
    assert (abs(estimate) <= half).mean() == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("count", "budget"), [(11, None), (20, None), (11, 60)])
def test_strong_interactions_do_not_leak_into_main_effects(count, budget):
    points, question = screen(count, budget=budget)
    rng = np.random.default_rng(5)
    chosen = rng.permutation(list(combinations(range(count), 2)))[:8]
    pairs = {(int(i), int(j)): float(s) for (i, j), s in zip(chosen, rng.choice([-4, 4], 8), strict=True)}
    true = [3.0, -3.0, 2.0]
    silent = World(points, question, true, pairs, sd=0, block_sd=1).fit()
    assert [e.estimate for e in silent.effects] == pytest.approx(true + [0] * (count - 3), abs=1e-9)
    world = World(points, question, true, pairs, rng=count)
    fits, estimate, half, claim, active = simulate(world)
    truth = world.effects
    assert estimate.mean(0) == pytest.approx(truth, abs=0.08)
    assert claim[:, 3:].any(1).mean() <= 0.05 + beyond(0.05)
    false = active[:, 3:].sum(1) / np.maximum(1, active.sum(1))
    assert false.mean() <= 0.1 + beyond(0.1)
    assert (abs(estimate - truth) <= half).mean() >= 0.95 - 0.012
    # The error is that of the runs: interactions, which would triple it, are kept out where it counts.
    if fits[0].df > 5:
        assert np.median([f.sd for f in fits]) == pytest.approx(1, rel=0.15)


def test_false_discoveries_are_few():
    points, question = screen(20)
    world = World(points, question, [2, -2, 2, 1.5, 1.5], rng=3)
    *_, claim, active = simulate(world)
    false = active[:, 5:].sum(1) / np.maximum(1, active.sum(1))
    assert false.mean() <= 0.1 + beyond(0.1)
    assert claim[:, 5:].any(1).mean() <= 0.05 + beyond(0.05)
    assert active[:, :3].mean() > claim[:, :3].mean() > 0.5


@pytest.mark.parametrize("count", [7, 20])
def test_detectable_effects_are_found_with_the_power_that_is_printed(count):
    points, question = screen(count)
    # At the true noise the detectable effect is se * noncentrality; its mean over studies estimates it.
    blank = World(points, question, rng=1).fit()
    scale = (
        blank.effects[0].detectable / blank.effects[0].se * math.sqrt(blank.effects[0].se ** 2 / blank.mse)
    )
    world = World(points, question, [scale], rng=2)
    fits, *_ = simulate(world)
    # Bonferroni's level, that the effect is promised for; Holm's finds a little more.
    found = np.array([f.effects[0].p <= 0.05 / count for f in fits])
    df = np.array([f.df for f in fits])
    usual = df == np.bincount(df).argmax()
    assert found[usual].mean() == pytest.approx(0.8, abs=0.05)


def test_free_factors_with_little_noise_of_their_own():
    """Where a run's readings share nine tenths of its noise, treating them as runs would be badly wrong."""
    points, question = screen(8, ["f6", "f7"])
    world = World(points, question, [0] * 6 + [0.2, 0], sd=1.0, within_sd=0.1, rng=4)
    _, estimate, half, claim, _ = simulate(world)
    assert claim[:, [0, 1, 2, 3, 4, 5, 7]].any(1).mean() <= 0.05 + beyond(0.05)
    inside = abs(estimate - world.effects) <= half
    assert inside[:, :6].mean() == pytest.approx(0.95, abs=0.012)
    assert inside[:, 6:].mean() == pytest.approx(0.95, abs=0.02)
    assert claim[:, 6].mean() > 0.9
    assert half[:, 6].mean() < half[:, 0].mean() / 5
    # The naive model claims far too often of trained factors.
    x = np.hstack([np.eye(3)[world.block], world.x])
    solve = np.linalg.pinv(x)
    df = len(x) - x.shape[1]
    y = np.array([world.values() for _ in range(300)]).T
    b = solve @ y
    se = np.sqrt(((y - x @ b) ** 2).sum(0) / df * (solve**2).sum(1)[:, None])
    naive = 2 * stats.t.sf(abs(b / se), df)[3:9]
    assert (naive < 0.05 / 8).any(0).mean() > 0.2


def test_free_effects_that_depend_on_trained_factors():
    points, question = screen(6, ["f5"])
    world = World(points, question, [0, 0, 0, 0, 0, 0.5], pairs={(1, 5): 0.8}, within_sd=0.1, rng=8)
    fit = world.fit(pairs=True)
    pair = next(p for p in fit.pairs if {p.first, p.second} == {"f1", "f5"})
    assert pair.low < 0.8 < pair.high
    assert pair.high - pair.low < 0.6
    _, estimate, half, *_ = simulate(world)
    assert (abs(estimate - world.effects) <= half)[:, 5].mean() == pytest.approx(0.95, abs=0.021)


@pytest.mark.parametrize("kind", ["normal", "loud", "heavy"])
def test_bootstrap_keeps_its_coverage(kind, monkeypatch):
    points, question = screen(7, ["f6"])
    world = World(points, question, rng=6, within_sd=0.3)
    if kind == "loud":  # twice the noise with a factor than without
        world.loud = np.where(world.x[:, 0] > 0, 1.4, 0.7)
    if kind == "heavy":
        heavy = np.random.default_rng(6)
        monkeypatch.setattr(
            world, "values", lambda: world.expected + heavy.standard_t(3, world.run.max() + 1)[world.run]
            + 0.3 * heavy.standard_normal(len(points)),
        )  # fmt: skip
    inside, ratio = [], []
    for _ in range(400):
        fit = world.fit(draws=299)
        for e in fit.effects:
            low, high = fit.bootstrap[e.factor]
            inside.append(low <= world.effects[int(e.factor[1:])] <= high)
            ratio.append((high - low) / (e.high - e.low))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)
    assert np.median(ratio) == pytest.approx(1, abs=0.15)


def test_pairs_of_a_screen_come_with_what_they_are_aliased_with():
    points, question = screen(7)
    fit = World(points, question, pairs={(0, 1): 4.0}, sd=0.1, block_sd=0).fit(pairs=True)
    largest = fit.pairs[0]
    assert abs(largest.estimate) == pytest.approx(4, abs=0.5)
    assert len(fit.pairs) == 7
    groups = [{f"{p.first} × {p.second}", *p.aliased} for p in fit.pairs]
    assert "f0 × f1" in groups[0]
    assert sorted(len(g) for g in groups) == [3] * 7
    assert len(set().union(*groups)) == 21


def test_a_lost_run_lets_no_interaction_in():
    points, question = screen(9)
    world = World(points, question, [2], pairs={(1, 2): 6.0, (3, 4): -6.0}, sd=0, block_sd=1)
    readings = world.readings()
    readings[5] = Reading(readings[5].point, None)
    fit = fit_factors(readings, question.factors)
    assert [e.estimate for e in fit.effects] == pytest.approx([2] + [0] * 8, abs=1e-9)
    assert "1 reading without a value was left out" in fit.method
    assert len(fit.residuals) == len(points) - 1


def test_interactions_cover_together():
    """Of studies without any interaction, at most one in twenty shows one."""
    for points, question in (screen(7), screen(6, ["f5"]), crossed(3)):
        world = World(points, question, [1.0], within_sd=0.3, rng=11)
        fits = [world.fit(pairs=True) for _ in range(400)]
        assert len(fits[0].pairs) > 2
        shown = [any(p.low > 0 or p.high < 0 for p in fit.pairs) for fit in fits]
        assert np.mean(shown) <= 0.05 + beyond(0.05, 400)
        assert f"simultaneous over all {len(fits[0].pairs)}" in fits[0].method


def crossed(count):
    question = Question(keys(count))
    return Factorial().next(question, ()).points, question


def test_divergence_is_an_outcome():
    points, question = screen(7, budget=40)
    world = World(points, question, [1.0], sd=0.2, block_sd=0.2)
    finished = world.readings()
    crash = [i for i, p in enumerate(points) if "f6" in p.cell][:9]
    readings = [Reading(r.point, None, diverged=True) if i in crash else r for i, r in enumerate(finished)]
    fit = fit_factors(readings, question.factors, delta=5, draws=99)
    worst = min(r.value for i, r in enumerate(finished) if i not in crash)
    imputed = [Reading(r.point, worst) if i in crash else r for i, r in enumerate(finished)]
    missing = [Reading(r.point, None) if i in crash else r for i, r in enumerate(finished)]
    whole, others = (fit_factors(rows, question.factors).effects for rows in (imputed, missing))
    for effect, other in zip(fit.effects[:6], others[:6], strict=True):
        assert (effect.estimate, effect.low, effect.high) == (other.estimate, other.low, other.high)
    effect = fit.effects[6]
    assert effect.estimate == pytest.approx(whole[6].estimate)
    assert effect.pairs == pytest.approx(whole[6].pairs)
    assert effect.low is effect.se is effect.p_equivalence is effect.detectable is None
    assert effect.verdict == "hurts"
    assert "f6" not in fit.bootstrap
    found = fit.divergence["f6"]
    assert (found.diverged_with, found.diverged_without) == (9, 0)
    assert effect.note.startswith(f"9 of {found.runs_with} runs with it diverged, 0 of {found.runs_without}")
    uneven = [key for key, one in fit.divergence.items() if one.excess]
    assert not [e for e in fit.effects if e.factor in uneven and e.verdict == "equivalent"]
    assert "9 runs diverged and entered as missing cells" in fit.method
    assert len(fit.residuals) == len(points) - 9
    low = fit_factors(readings, question.factors, higher_is_better=False)
    assert low.effects[6].estimate > fit.effects[6].estimate
    assert low.effects[6].verdict == "hurts"


def test_counts_of_diverged_runs_are_judged_as_scipy_does():
    for a, n, b, m in [(7, 18, 0, 17), (3, 9, 5, 15), (0, 4, 4, 4), (8, 8, 0, 8)]:
        points = [Point(frozenset({"f0"} if i < n else ()), i) for i in range(n + m)]
        gone = [i < a or n <= i < n + b for i in range(n + m)]
        readings = [Reading(p, None if d else 1.0, diverged=d) for p, d in zip(points, gone, strict=True)]
        found = fit_factors(readings, ("f0",)).divergence["f0"]
        assert found.p == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue)
        possible = [stats.fisher_exact([[k, n - k], [a + b - k, m - a - b + k]]).pvalue
                    for k in range(max(0, a + b - m), min(n, a + b) + 1)]  # fmt: skip
        assert found.largest_p(0.05) == pytest.approx(max([p for p in possible if p <= 0.05], default=0))


@pytest.mark.parametrize(("count", "budget", "often"), [(8, 48, 1.0), (8, 48, 0.5), (6, 24, 0.7)])
def test_divergence_of_one_factor_leaves_the_others_alone(count, budget, often):
    points, question = screen(count, budget=budget)
    world = World(points, question, [0, 0.9], sd=0.4, block_sd=0.3, rng=3)
    rng = np.random.default_rng(count)
    inside, false, wrong, found, crashed = [], [], [], [], []
    for _ in range(400):
        gone = (world.x[:, 0] > 0) & (rng.random(len(points)) < often)
        readings = [
            Reading(r.point, None, diverged=True) if d else r
            for r, d in zip(world.readings(), gone, strict=True)
        ]
        fit = fit_factors(readings, question.factors, delta=0.5)
        first, second, *rest = fit.effects
        crashed.append(first.verdict == "hurts")
        found.append(second.verdict == "helps")
        wrong.append(second.verdict in ("hurts", "equivalent"))
        false.append(any(e.verdict in ("helps", "hurts") for e in rest))
        inside += [
            e.low <= true <= e.high
            for e, true in zip(fit.effects[1:], world.effects[1:], strict=True)
            if e.low is not None
        ]
    assert len(inside) > 0.9 * 400 * (count - 1)
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)
    assert np.mean(false) <= 0.05 + beyond(0.05, 400)
    assert np.mean(wrong) <= 0.01
    assert np.mean(crashed) > (0.9 if budget > 24 else 0.6)
    assert np.mean(found) > (0.3 if budget > 24 else 0.15)


def test_diverged_runs_that_can_prove_nothing_cost_no_power():
    points, question = screen(7, budget=40)
    finished = World(points, question, [0.3], sd=0.2, block_sd=0.2).readings()
    one, none = (
        fit_factors([Reading(finished[0].point, None, diverged=gone), *finished[1:]], question.factors)
        for gone in (True, False)
    )
    assert [e.p_holm for e in one.effects] == [e.p_holm for e in none.effects]


def test_equivalence_is_claimed_as_one_family():
    points, question = screen(8, budget=48)
    world = World(points, question, [0.5] * 8, sd=0.9, block_sd=0.5, rng=8)
    fits = [world.fit(delta=0.5) for _ in range(600)]
    called = [[e for e in fit.effects if e.verdict == "equivalent"] for fit in fits]
    assert np.mean([bool(found) for found in called]) <= 0.05 + beyond(0.05, 600)
    quiet = World(points, question, sd=0.45, block_sd=0.5, rng=8)
    called = [e for _ in range(50) for e in quiet.fit(delta=0.5).effects if e.verdict == "equivalent"]
    assert len(called) > 100
    assert all(-0.5 <= e.low <= e.high <= 0.5 for e in called)


def test_holm_and_the_shown_interval_decide_equivalence():
    p = [0.001, 0.02, 0.02, None, 0.001]
    assert corrected(p) == pytest.approx([0.005, 0.06, 0.06, None, 0.005])
    lows, highs = [-0.4, -0.4, -0.4, None, -0.6], [0.4, 0.4, 0.4, None, 0.2]
    assert within_margin(p, lows, highs, 0.5, 0.05) == [True, False, False, False, False]


PLANS = [
    ("screen", 3, (), None, "f0"),
    ("screen", 7, ("f6",), 22, "f0"),
    ("screen", 4, ("f1", "f2", "f3"), None, "f1"),
    ("screen", 3, ("f0", "f1", "f2"), None, "f0"),
    ("factorial", 4, (), None, "f0"),
    ("crossed", 8, (), None, "f0"),
    ("auto", 6, (), 48, "f0"),
]


@pytest.mark.parametrize(("design", "count", "free", "budget", "key"), PLANS)
def test_the_plan_promises_the_power_that_the_analysis_has(design, count, free, budget, key):
    question = Question(keys(count), free=frozenset(free), budget=budget)
    designs = {"factorial": Factorial(), "crossed": Factorial(("f0", "f1")), "screen": Screen()}
    rounds = _auto_rounds(question) if design == "auto" else [designs[design].next(question, ())]
    points = rounds[-1].points
    trained, loose = planned(points, question.factors, question.free, 0.05)
    # Runs of sd .5 and readings of no noise of their own; or readings alone, a free factor's differences.
    world = World(points, question, sd=0.5, within_sd=0.2 if free else 0.0, rng=7)
    within = world.fit().within_sd
    unit = math.sqrt(2) * math.hypot(0.5, 0.2 * math.sqrt(len(set(world.run)) / len(points)) if free else 0)
    if key in free:
        unit = math.sqrt(np.mean([world.fit().within_sd[key] ** 2 for _ in range(400)]))
        assert within
    world.effects[int(key[1:])] = unit * (loose if key in free else trained)
    world.expected = 80 + (world.x - 0.5) @ world.effects
    claimed = [
        next(e for e in world.fit(pairs=True).effects if e.factor == key).verdict == "helps"
        for _ in range(400)
    ]
    assert 0.74 <= np.mean(claimed) <= 0.86


def test_verdicts():
    points, question = screen(5, budget=60)
    fit = World(points, question, [2.0, -2.0, 0.0, 0.9], sd=0.3, rng=2).fit(delta=0.5)
    verdicts = [e.verdict for e in fit.effects]
    assert verdicts == ["helps", "hurts", "equivalent", "helps", "equivalent"]
    assert fit.effects[2].p_equivalence < 0.05
    assert fit.active == ("f0", "f1", "f3")
    assert [fit.q[e.factor] for e in fit.effects] == [e.q for e in fit.effects]
    unsure = World(points, question, sd=3, rng=2).fit(delta=0.5)
    assert {e.verdict for e in unsure.effects} == {"undetected"}
    assert all(e.detectable > 0.5 for e in unsure.effects)
    less = World(points, question, [2.0], sd=0.3, rng=2).fit(higher_is_better=False)
    assert less.effects[0].verdict == "hurts"


def test_factors_that_are_not_switched_have_no_estimate():
    question = Question(keys(4))
    points = Factorial(("f0", "f1")).next(question, ()).points
    fit = World(points, question, [1, 1, 1, 1], sd=0.1).fit()
    assert [e.estimate is None for e in fit.effects] == [False, False, True, True]
    assert fit.effects[2].note == "the runs do not tell it from the other factors"
    assert fit.q["f2"] is None
    assert fit.effects[0].p_holm <= 2 * fit.effects[0].p + 1e-15  # a family of two


def test_too_few_runs_claim_nothing():
    question = Question(keys(2), seeds=(0,))
    points = Factorial().next(question, ()).points[:3]
    fit = World(points, question, [1, 1]).fit()
    assert fit.mse is None
    assert fit.sd is None
    assert fit.block_sd is None
    assert {e.verdict for e in fit.effects} == {"undetected"}
    assert {e.low for e in fit.effects} == {None}
    assert "nothing is claimed" in fit.method
    constant = [Reading(p, 50.0) for p in Factorial().next(Question(keys(2)), ()).points]
    assert {e.verdict for e in fit_factors(constant, keys(2)).effects} == {"undetected"}


def test_a_free_factor_that_changes_nothing():
    points, question = screen(4, ["f3"])
    fit = World(points, question, [1]).fit(delta=0.1)
    assert fit.effects[3].estimate == pytest.approx(0, abs=1e-12)
    assert fit.effects[3].verdict == "equivalent"


def test_order_and_copies_of_readings_do_not_matter():
    points, question = screen(6, ["f5"])
    readings = World(points, question, [1], within_sd=0.2).readings()
    fit = fit_factors(readings, question.factors, question.free, draws=99)
    shuffled = [readings[i] for i in np.random.default_rng(0).permutation(len(readings))]
    again = fit_factors(shuffled + readings[:5], question.factors, question.free)
    assert [e.estimate for e in again.effects] == pytest.approx([e.estimate for e in fit.effects])
    assert [e.se for e in again.effects] == pytest.approx([e.se for e in fit.effects])
    same = fit_factors(readings, question.factors, question.free, draws=99)
    assert same == fit


def test_mistakes_are_named():
    points, question = screen(3)
    readings = World(points, question).readings()
    with pytest.raises(StudyError, match="no run"):
        fit_factors([Reading(p, None) for p in points], question.factors)
    with pytest.raises(StudyError, match="f2 on, which is no"):
        fit_factors(readings, ("f0", "f1"))
    with pytest.raises(StudyError, match=r"alpha 0\.7"):
        fit_factors(readings, question.factors, alpha=0.7)
