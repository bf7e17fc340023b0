"""The statistics of studies: oracles, and the promises checked by simulation."""

from __future__ import annotations

import math
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from scipy import stats

from trickbag.errors import StudyError
from trickbag.study.power import noncentrality, t_level
from trickbag.study.statistics import (
    Contrast,
    analyze,
    binomial_sd,
    discovery_rates,
    equivalence_p,
    guess_paired_sd,
    holm,
    paired,
    smallest_detectable,
)
from trickbag.study.table import divergence_p


def simulate(rng, factors, seeds, effects=None, sd=1.0, block_sd=1.5):
    """A leave-one-out study: values of the candidate and of each leave-one-out arm, and its contrasts."""
    y = 80 + block_sd * rng.standard_normal(seeds) + sd * rng.standard_normal((factors + 1, seeds))
    if effects is not None:
        y[1:] -= np.asarray(effects)[:, None]
    arms = ["all", *(f"without {i}" for i in range(factors))]
    values = {arm: dict(enumerate(row.tolist())) for arm, row in zip(arms, y, strict=True)}
    return values, [Contrast(f"f{i}", "all", f"without {i}") for i in range(factors)]


def normal(rng, shape):
    return rng.standard_normal(shape)


def heavy_tailed(rng, shape):
    return rng.standard_t(5, shape)


def skewed(rng, shape):
    return rng.exponential(1, shape) - 1


ENDS = {
    "ladder": lambda i: (i + 1, i),
    "leave-one-out": lambda i: (0, i + 1),
    "one-at-a-time": lambda i: (i + 1, 0),
}


def idle(rng, design, factors, seeds, noise=normal):
    """A study, by one of the fixed designs, of factors that do nothing."""
    y = 80 + 1.5 * rng.standard_normal(seeds) + noise(rng, (factors + 1, seeds))
    values = {f"arm {i}": dict(enumerate(row.tolist())) for i, row in enumerate(y)}
    ends = (ENDS[design](i) for i in range(factors))
    return values, [Contrast(f"f{i}", f"arm {a}", f"arm {b}") for i, (a, b) in enumerate(ends)]


def flat(value):
    """Every number inside nested tuples."""
    if isinstance(value, tuple):
        for v in value:
            yield from flat(v)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("holes", [0, 4])
def test_block_model_agrees_with_statsmodels(holes):
    import statsmodels.api as sm

    rng = np.random.default_rng(3)
    values, _ = simulate(rng, 5, 6, effects=[1, 0, 0, 2, -1])
    arms = list(values)
    contrasts = [Contrast(f"f{i}", arms[i], arms[i + 1]) for i in range(5)]
    for arm, seed in zip(rng.permutation(arms)[:holes], rng.permutation(6)[:holes], strict=True):
        values[arm][int(seed)] = math.nan
    analysis = analyze(values, contrasts, delta=0.3)
    assert len(analysis.missing) == holes
    assert not analysis.heteroscedastic

    cells = [(a, s, v) for a, runs in values.items() for s, v in runs.items() if not math.isnan(v)]
    x = np.array(
        [[1.0, *(a == arm for arm in arms[1:]), *(s == seed for seed in range(1, 6))] for a, s, _ in cells]
    )
    ols = sm.OLS(np.array([v for *_, v in cells]), x).fit()
    assert analysis.sd_paired == pytest.approx(math.sqrt(2 * ols.mse_resid))
    for i, effect in enumerate(analysis.effects):
        c = np.zeros(x.shape[1])
        c[1 + i] = -1
        c[i] += i > 0
        oracle = ols.t_test(c)
        assert effect.estimate == pytest.approx(oracle.effect.item())
        assert effect.se == pytest.approx(oracle.sd.item())
        assert effect.p == pytest.approx(oracle.pvalue.item())
        assert (effect.low, effect.high) == pytest.approx(tuple(oracle.conf_int()[0]))
        assert (effect.low_simultaneous, effect.high_simultaneous) == pytest.approx(
            tuple(oracle.conf_int(alpha=0.05 / 5)[0])
        )
        assert effect.df == ols.df_resid


def test_two_arms_are_a_paired_t_test():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    a, b = rng.normal(80, 1, 6), rng.normal(81, 1, 6)
    effect = paired(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
    oracle = ttest_rel(b, a)
    assert effect.p == pytest.approx(oracle.pvalue)
    assert (effect.low, effect.high) == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    assert effect.df == 5


def test_ladder_pairs_and_holm():
    values = {
        "r0": {0: 80.0, 1: 82.0, 2: 81.0},
        "r1": {0: 80.5, 1: 82.7, 2: 81.3},
        "r2": {0: 83.5, 1: 85.9, 2: 84.2},
    }
    contrasts = [Contrast("a", "r1", "r0"), Contrast("b", "r2", "r1")]
    analysis = analyze(values, contrasts, overall=Contrast("candidate", "r2", "r0"))
    a, b = analysis.effects
    assert a.pairs == ((0, pytest.approx(0.5)), (1, pytest.approx(0.7)), (2, pytest.approx(0.3)))
    assert b.p_holm == pytest.approx(2 * b.p)
    assert a.p_holm == pytest.approx(max(a.p, 2 * b.p))
    assert analysis.overall.estimate == pytest.approx(a.estimate + b.estimate)
    assert analysis.overall.p == analysis.overall.p_holm


def test_correlation_is_that_of_the_seeds():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        values, contrasts = simulate(rng, 8, 8, sd=1.0, block_sd=1.0)
        analysis = analyze(values, contrasts)
        assert (analysis.sd_paired / analysis.sd_unpaired) ** 2 == pytest.approx(1 - analysis.correlation)
        found.append((analysis.correlation, analysis.sd_paired))
    correlation, sd = np.mean(found, axis=0)
    assert correlation == pytest.approx(0.5, abs=0.06)
    assert sd == pytest.approx(math.sqrt(2), rel=0.03)


def test_one_seed_claims_nothing():
    values, contrasts = simulate(np.random.default_rng(0), 3, 1, effects=[9, 0, 0])
    analysis = analyze(values, contrasts, delta=5, overall=Contrast("candidate", "all", "without 0"))
    for effect in (*analysis.effects, analysis.overall):
        assert effect.verdict == "undetected"
        assert effect.low is effect.p is effect.detectable is None
        assert "single seed" in effect.note
    assert analysis.effects[0].estimate == pytest.approx(analysis.effects[0].pairs[0][1])
    assert "single seed" in analysis.method
    assert smallest_detectable(1.0, 1, 3, 4) == math.inf


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_identical_arms_are_equivalent_and_change_nothing_else(seeds):
    values, contrasts = simulate(np.random.default_rng(2), 4, seeds, effects=[3, 0, 0, 0])
    before = analyze(values, contrasts, delta=0.5)
    values["copy"] = dict(values["all"])
    values["copy 2"] = dict(values["all"])
    extra = [Contrast("nothing", "all", "copy"), Contrast("nothing 2", "copy 2", "all")]
    after = analyze(values, [*contrasts, *extra], delta=0.5)
    for effect in after.effects[-2:]:
        assert effect.verdict == "equivalent"
        assert (effect.low, effect.high, effect.p) == (0, 0, 1)
        assert "bit-identical" in effect.note
    assert (after.sd_paired, after.heteroscedastic_p) == (before.sd_paired, before.heteroscedastic_p)
    assert [e.se for e in after.effects[:4]] == [e.se for e in before.effects]
    assert analyze(values, [extra[0]], delta=0).effects[0].verdict == "undetected"


def test_all_arms_identical():
    values = {arm: {0: 80.0, 1: 81.0, 2: 79.0} for arm in ("all", "a", "b")}
    analysis = analyze(values, [Contrast("a", "all", "a"), Contrast("b", "all", "b")], delta=0.2)
    assert {e.verdict for e in analysis.effects} == {"equivalent"}


def test_constant_difference_is_no_proof():
    values = {"all": {0: 80.0, 1: 82.0}, "without": {0: 79.0, 1: 81.0}}
    (effect,) = analyze(values, [Contrast("a", "all", "without")], delta=2).effects
    assert (effect.verdict, effect.p, effect.estimate) == ("undetected", None, pytest.approx(1))
    assert "coarse" in effect.note


def test_missing_runs():
    values, contrasts = simulate(np.random.default_rng(5), 4, 4, effects=[4, 0, 0, 0])
    values["without 1"] = {0: math.nan, 1: math.nan, 2: None, 3: math.inf}
    del values["without 0"][2]
    analysis = analyze(values, contrasts, delta=0.5)
    gone = analysis.effects[1]
    assert (gone.estimate, gone.verdict, gone.n_pairs) == (None, "undetected", 0)
    assert set(analysis.missing) == {("without 0", 2), *(("without 1", s) for s in range(4))}
    assert analysis.effects[0].n_pairs == 3
    assert "1 of 4 pairs incomplete" in analysis.effects[0].note
    assert analysis.effects[0].verdict == "helps"
    assert not any(math.isnan(v) for v in flat(astuple(analysis)))


def test_arms_without_values_are_not_alike():
    values = {"all": {0: 80.0, 1: 81.0}, "a": {0: None, 1: None}, "b": {0: None, 1: None}}
    (effect,) = analyze(values, [Contrast("f", "a", "b")], delta=1).effects
    assert (effect.estimate, effect.verdict, effect.n_pairs) == (None, "undetected", 0)


def test_unequal_noise_falls_back_to_own_differences():
    from scipy.stats import ttest_1samp

    rng = np.random.default_rng(7)
    values, contrasts = simulate(rng, 6, 8)
    for seed in values["without 0"]:
        values["without 0"][seed] += 30 * rng.standard_normal()
    analysis = analyze(values, contrasts)
    assert analysis.heteroscedastic
    assert analysis.heteroscedastic_p <= 0.01
    assert "without pooling" in analysis.method
    for effect in analysis.effects:
        assert effect.df == 7
        assert effect.p == pytest.approx(ttest_1samp([d for _, d in effect.pairs], 0).pvalue)


def test_verdicts_separate_zero_from_unknown():
    rng = np.random.default_rng(4)
    values, contrasts = simulate(rng, 4, 8, effects=[3, -3, 0, 0], sd=0.2)
    assert [e.verdict for e in analyze(values, contrasts, delta=1).effects] == [
        "helps",
        "hurts",
        "equivalent",
        "equivalent",
    ]
    unresolved = analyze(values, contrasts, delta=0.05).effects[2:]
    assert {e.verdict for e in unresolved} == {"undetected"}
    assert all(0.2 < e.detectable < 1 for e in unresolved)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"contrasts": [Contrast("a", "all", "withot")]}, "did you mean 'without'"),
        ({"contrasts": [Contrast("a", "all", "without")] * 2}, "twice"),
        ({"alpha": 5.0}, "alpha"),
        ({"delta": -1.0}, "delta"),
    ],
)
def test_says_no(kwargs, match):
    values = {"all": {0: 1.0}, "without": {0: 1.0}}
    with pytest.raises(StudyError, match=match):
        analyze(values, **{"contrasts": [], **kwargs})


def test_prior_noise():
    assert binomial_sd(90, 100) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 100))
    assert guess_paired_sd(90, 100, correlation=0.0) == pytest.approx(math.sqrt(2) * binomial_sd(90, 100))
    with pytest.raises(StudyError, match="accuracy"):
        binomial_sd(101, 5)


def test_detectable_agrees_with_statsmodels_power():
    from statsmodels.stats.power import TTestPower

    found = smallest_detectable(1.0, seeds=5, factors=1, arms=2)
    assert found == pytest.approx(TTestPower().solve_power(nobs=5, alpha=0.05, power=0.8), rel=1e-3)
    pooled = smallest_detectable(1.0, seeds=3, factors=1, arms=20)
    assert pooled < 0.6 * smallest_detectable(1.0, seeds=3, factors=1, arms=2), (
        "what pooling the variance buys"
    )


def test_corrections_agree_with_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = [0.04, 0.001, 0.9, 0.01, 0.01, 0.3, 0.0004]
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
    assert discovery_rates(p) == pytest.approx(list(multipletests(p, method="fdr_bh")[1]))
    for correct in (holm, discovery_rates):
        full, holes = correct([*p, 1.0, 1.0]), correct([None, *p, None])
        assert holes[0] is holes[-1] is None
        assert holes[1:-1] == pytest.approx(full[:-2]), "an untested factor counts in the family"
        assert correct([None]) == [None]
        assert correct([]) == []


@pytest.mark.parametrize("delta", [0.2, 1.0, 3.0])
def test_equivalence_agrees_with_statsmodels(delta):
    from statsmodels.stats.weightstats import ttost_paired

    rng = np.random.default_rng(6)
    for shift in (0.0, 0.5, -0.8):
        a, b = rng.normal(80 + shift, 1, 6), rng.normal(80, 1, 6)
        analysis = analyze(
            {"a": dict(enumerate(a.tolist())), "b": dict(enumerate(b.tolist()))},
            [Contrast("f", "a", "b")],
            delta=delta,
        )
        (effect,) = analysis.effects
        assert effect.p_equivalence == pytest.approx(ttost_paired(a, b, -delta, delta)[0])
        assert effect.p_equivalence == equivalence_p(effect.estimate, effect.se, effect.df, delta)
        within = -delta <= effect.low <= effect.high <= delta
        assert (effect.verdict == "equivalent") == (effect.p_equivalence < 0.05 <= effect.p_holm and within)
    assert (equivalence_p(0, 0, 4, delta), equivalence_p(delta, 0, 4, delta)) == (0, 1)


def test_residuals_are_those_of_the_model():
    values, contrasts = simulate(np.random.default_rng(8), 3, 4)
    values["without 1"][2] = None
    values["copy"] = dict(values["all"])
    residuals = analyze(values, contrasts).residuals
    assert len(residuals) == 5 * 4 - 1
    assert all(fitted + rest == pytest.approx(values[arm][seed]) for arm, seed, fitted, rest in residuals)
    for arm in values:
        assert sum(rest for a, *_, rest in residuals if a == arm) == pytest.approx(0, abs=1e-9)
    for seed in range(4):
        alike = [rest for arm, s, _, rest in residuals if s == seed and arm != "copy"]
        assert sum(alike) == pytest.approx(0, abs=1e-9)
    assert analyze(*simulate(np.random.default_rng(8), 3, 1)).residuals == ()


def test_lower_can_be_better():
    values, contrasts = simulate(np.random.default_rng(4), 3, 8, effects=[3, -3, 0], sd=0.2)
    up = analyze(values, contrasts, delta=1, overall=contrasts[0])
    down = analyze(values, contrasts, delta=1, overall=contrasts[0], higher_is_better=False)
    assert [e.verdict for e in up.effects] == ["helps", "hurts", "equivalent"]
    assert [e.verdict for e in down.effects] == ["hurts", "helps", "equivalent"]
    assert (up.overall.verdict, down.overall.verdict) == ("helps", "hurts")
    assert [e.estimate for e in up.effects] == [e.estimate for e in down.effects]


# ---- divergence is an outcome ---------------------------------------------------------------


def test_a_diverged_run_counts_as_the_worst_value():
    values, contrasts = simulate(np.random.default_rng(9), 4, 5)
    diverged = [("without 0", 1), ("without 0", 3)]
    worst = min(v for arm, runs in values.items() for s, v in runs.items() if (arm, s) not in diverged)
    values["without 0"][1] = None
    values["without 2"][4] = None
    analysis = analyze(values, contrasts, delta=50, diverged=diverged)
    assert analysis.diverged == tuple(diverged)
    assert analysis.missing == (("without 2", 4),)
    assert "2 runs diverged" in analysis.method
    effect = analysis.effects[0]
    assert effect.note == "diverged in 0 of 5 runs with it, 2 of 5 without"
    filled = [values["all"][s] - (worst if s in (1, 3) else values["without 0"][s]) for s in range(5)]
    assert effect.pairs == tuple(enumerate(pytest.approx(d) for d in filled))
    assert effect.estimate == pytest.approx(np.mean(filled))
    assert effect.low is effect.se is effect.df is effect.detectable is effect.p_equivalence is None
    assert effect.verdict == "undetected", "within the margin, but divergence is never equivalent to nothing"
    assert {e.verdict for e in analysis.effects[1:]} == {"equivalent"}
    assert not any(math.isnan(v) for v in flat(astuple(analysis)))

    values["without 0"][3] = None
    as_missing = analyze(values, contrasts, delta=50)
    assert as_missing.diverged == ()
    for a, b in zip(as_missing.effects[1:], analysis.effects[1:], strict=True):
        assert (a.estimate, a.se, a.df, a.p) == (b.estimate, b.se, b.df, b.p), "not drowned in divergence"
    assert as_missing.sd_paired == analysis.sd_paired

    costs = analyze(values, contrasts, diverged=diverged, higher_is_better=False)
    assert costs.effects[0].pairs[1][1] == pytest.approx(
        values["all"][1] - max(v for runs in values.values() for v in runs.values() if v is not None)
    )


@pytest.mark.parametrize(
    ("seeds", "factors", "verdict"),
    [(3, 1, "hurts"), (3, 20, "undetected"), (5, 20, "hurts"), (2, 1, "undetected")],
)
def test_an_arm_that_always_diverges(seeds, factors, verdict):
    values, contrasts = idle(np.random.default_rng(10), "one-at-a-time", factors, seeds)
    values["arm 1"] = dict.fromkeys(range(seeds))
    for sign, word in ((True, verdict), (False, verdict)):
        diverged = [("arm 1", s) for s in range(seeds)]
        analysis = analyze(values, contrasts, diverged=diverged, higher_is_better=sign, overall=contrasts[0])
        assert analysis.effects[0].verdict == word
        assert analysis.effects[0].p == analysis.overall.p == pytest.approx(min(1, 2 / 4**seeds / 0.8))
        assert {e.verdict for e in analysis.effects[1:]} <= {"undetected"}
        assert (
            analysis.effects[0].note == f"diverged in {seeds} of {seeds} runs with it, 0 of {seeds} without"
        )


def test_arms_that_all_diverge_are_not_alike():
    values = {arm: dict.fromkeys(range(3)) for arm in ("all", "a", "b")}
    values["b"] = {0: 80.0, 1: 81.0, 2: 79.5}
    gone = [(arm, s) for arm in ("all", "a") for s in range(3)]
    contrasts = [Contrast("a", "all", "a"), Contrast("b", "all", "b")]
    analysis = analyze(values, contrasts, delta=5, diverged=gone)
    a, b = analysis.effects
    assert (a.estimate, a.p, a.se, a.verdict, a.n_pairs) == (0, 1, None, "undetected", 3)
    assert (b.se, b.df, b.verdict) == (None, None, "undetected")
    assert b.estimate < 0
    assert not any(math.isnan(v) for v in flat(astuple(analysis)))
    everything = analyze(values, contrasts, delta=5, diverged=[*gone, *(("b", s) for s in range(3))])
    assert {(e.estimate, e.p, e.verdict) for e in everything.effects} == {(None, None, "undetected")}


def test_a_factor_is_judged_by_the_pairs_that_finished():
    values, contrasts = simulate(np.random.default_rng(12), 4, 5, effects=[8, 0, 0, 0])
    (effect, *_) = analyze(values, contrasts, diverged=[("without 0", 2)]).effects
    assert effect.verdict == "helps"
    (effect, *_) = analyze(values, contrasts, diverged=[("all", 2), ("all", 3), ("all", 4)]).effects
    assert effect.verdict == "undetected", "better where it finishes, but it seldom does"


@pytest.mark.parametrize("pairs", [2, 3, 4, 5, 8])
def test_the_test_of_divergence_keeps_its_level(pairs):
    """Whatever the probabilities of each seed, alike or not: enumerated, not simulated."""
    p = np.array([divergence_p(d, pairs) for d in range(-pairs, pairs + 1)])
    levels = np.unique(p)
    rng = np.random.default_rng(pairs)
    rates = [np.full(pairs, q) for q in np.linspace(0.02, 0.98, 25)] + list(rng.beta(0.5, 0.5, (200, pairs)))
    for q in rates:
        law = np.ones(1)
        for chance in q * (1 - q):
            law = np.convolve(law, [chance, 1 - 2 * chance, chance])
        size = np.array([law[p <= level].sum() for level in levels])
        assert (size <= levels + 1e-12).all()
    assert divergence_p(pairs, pairs) == 2 / 4**pairs


@pytest.mark.parametrize(("design", "seeds"), [("leave-one-out", 5), ("one-at-a-time", 3)])
def test_idle_factors_that_diverge_claim_nothing(design, seeds):
    """Runs diverge where they would have scored badly anyway, so that what is missing is not so at random."""
    rng = np.random.default_rng(31)
    studies, false, outlying = 1000, 0, 0
    for _ in range(studies):
        values, contrasts = idle(rng, design, 6, seeds)
        diverged = [
            (arm, s) for arm, s in product(values, range(seeds)) if values[arm][s] + rng.normal(0, 0.5) < 77.5
        ]
        effects = analyze(values, contrasts, diverged=diverged).effects
        false += any(e.verdict in ("helps", "hurts") for e in effects)
        outlying += sum("diverged" in e.note for e in effects) / 6
    assert outlying / studies > 0.3
    assert false / studies <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


# ---- arms that are noisier than others ------------------------------------------------------


def family_errors(rng, design, factors, seeds, ratio, arm, studies=800):
    """Share of studies of idle factors with a claim, where one arm is noisier than the others."""

    def noise(rng, shape):
        e = rng.standard_normal(shape)
        e[arm] *= ratio
        return e

    studies_of = (idle(rng, design, factors, seeds, noise) for _ in range(studies))
    return (
        sum(any(e.verdict in ("helps", "hurts") for e in analyze(*s).effects) for s in studies_of) / studies
    )


def test_a_shared_arm_is_judged_by_its_own_noise_too():
    """Against the formula; where the shared arm is quiet, by the common variance."""
    values, contrasts = idle(np.random.default_rng(50), "leave-one-out", 6, 4)
    y = np.array([list(runs.values()) for runs in values.values()])

    def variances(y):
        others = y[1:] - y[1:].mean(0) - y[1:].mean(1, keepdims=True) + y[1:].mean()
        a, b = (y[0] - y[1:].mean(0)).var(ddof=1), 5 / 6 * (others**2).sum() / 15
        every = y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()
        return a, b, 2 * (every**2).sum() / 18

    for scale in (0.1, 4):
        y[0] = y[1:].mean(0) + scale * np.array([1.0, -1.0, 0.5, -0.5])
        values["arm 0"] = dict(enumerate(y[0].tolist()))
        a, b, common = variances(y)
        assert (a + b > common) == (scale > 1)
        analysis = analyze(values, contrasts, overall=contrasts[0])
        for effect in (*analysis.effects, analysis.overall):
            assert effect.se == pytest.approx(math.sqrt(max(a + b, common) / 4))
            assert effect.df == pytest.approx(min(18, (a + b) ** 2 / (a**2 / 5 + b**2 / 15)))
            assert effect.p == pytest.approx(2 * stats.t.sf(abs(effect.estimate) / effect.se, effect.df))
        assert "All effects share an arm" in analysis.method
        assert "overall" not in analysis.method
    values["arm 3"][1] = None
    effect, *_ = analyze(values, contrasts).effects
    assert effect.se == pytest.approx(math.sqrt((a + b) / 4), rel=0.1), "with a hole, about the same"
    two = {arm: values[arm] for arm in ("arm 0", "arm 1")}
    assert "share an arm" not in analyze(two, contrasts[:1]).method


@pytest.mark.parametrize(
    ("design", "seeds", "ratio", "bound"),
    [
        ("leave-one-out", 3, 2, 0.06),
        ("leave-one-out", 3, 3, 0.063),
        ("one-at-a-time", 5, 3, 0.05),
        ("leave-one-out", 8, 2, 0.05),
    ],
)
def test_a_noisy_shared_arm_claims_nothing(design, seeds, ratio, bound):
    """By the common variance it is .19 to .20 at three times the others' noise, at any number of seeds."""
    rng = np.random.default_rng(51 + seeds)
    assert family_errors(rng, design, 8, seeds, ratio, 0) <= bound + 3 * math.sqrt(0.05 * 0.95 / 800)


@pytest.mark.parametrize(("design", "seeds"), [("leave-one-out", 3), ("ladder", 5)])
def test_an_arm_that_stands_out_claims_little(design, seeds):
    """It is .10 by the common variance in the one design, and .13 in the other."""
    bound = 0.085 if design == "ladder" else 0.06
    rng = np.random.default_rng(61 + seeds)
    assert family_errors(rng, design, 8, seeds, 3, 3) <= bound + 3 * math.sqrt(0.05 * 0.95 / 800)


def test_an_arm_that_stands_out_is_judged_by_its_own_noise():
    values, contrasts = idle(np.random.default_rng(70), "ladder", 6, 5)
    for seed, shift in enumerate((2.5, -2, 1, -2.5, 1)):
        values["arm 6"][seed] += shift
    analysis = analyze(values, contrasts)
    assert not analysis.heteroscedastic
    *quiet, loud = analysis.effects
    differences = np.array([d for _, d in loud.pairs])
    assert (loud.se, loud.df) == (pytest.approx(math.sqrt(differences.var(ddof=1) / 5)), 8)
    assert "noisier" in loud.note
    assert [(e.df, e.note) for e in quiet] == [(24, "")] * 5
    assert [e.se for e in quiet] == pytest.approx([quiet[0].se] * 5)
    assert "stood out as noisier (F tests, 20 % over all arms: arm 6)" in analysis.method


# ---- arms of one training --------------------------------------------------------------------


def read_off(rng, design, trained, free, seeds, within=0.3, gains=()):
    """A study whose last ``free`` factors act only when predicting; the last value maps arm to training."""
    keys = range(trained + free)
    everything, nothing = frozenset(keys), frozenset()
    cells = {
        "leave-one-out": [everything, *(everything - {k} for k in keys)],
        "one-at-a-time": [nothing, *(frozenset({k}) for k in keys)],
        "ladder": [frozenset(range(k)) for k in range(trained + free + 1)],
    }[design]
    cores = [cell - set(range(trained, trained + free)) for cell in cells]
    order = list(dict.fromkeys(cores))
    rows = [order.index(core) for core in cores]
    y = 80 + rng.standard_normal(seeds) + rng.standard_normal((len(order), seeds))[rows]
    y += within * rng.standard_normal(y.shape)
    for k, gain in enumerate(gains):
        y += gain * np.array([[k in cell] for cell in cells])
    values = {f"arm {i}": dict(enumerate(row.tolist())) for i, row in enumerate(y)}
    ends = (ENDS[design](i) for i in keys)
    contrasts = [Contrast(f"f{i}", f"arm {a}", f"arm {b}") for i, (a, b) in enumerate(ends)]
    return values, contrasts, {f"arm {i}": f"training {row}" for i, row in enumerate(rows)}


@pytest.mark.parametrize("design", ENDS)
def test_arms_of_one_training_are_no_independent_runs(design):
    values, contrasts, runs = read_off(np.random.default_rng(80), design, 4, 3, 5, gains=[1, 0, 0, 0, 2])
    analysis, naive = (analyze(values, contrasts, runs=r) for r in (runs, None))
    trained, free = analysis.effects[:4], analysis.effects[4:]
    assert [e.estimate for e in analysis.effects] == pytest.approx([e.estimate for e in naive.effects])
    first = {run: arm for arm, run in reversed(runs.items())}
    distinct = {arm: values[arm] for arm in first.values()}
    names = {arm: first[run] for arm, run in runs.items()}
    alone = [Contrast(c.factor, names[c.plus], names[c.minus]) for c in contrasts[:4]]
    oracle = analyze(distinct, alone)
    assert analysis.sd_paired == pytest.approx(oracle.sd_paired)
    assert analysis.correlation == pytest.approx(oracle.correlation)
    for effect, other in zip(trained, oracle.effects, strict=True):
        assert (effect.se, effect.df) == pytest.approx((other.se, other.df))
    for effect in free:
        assert effect.p == pytest.approx(stats.ttest_1samp([d for _, d in effect.pairs], 0).pvalue)
        assert (effect.df, effect.verdict) == (4, "helps" if effect.factor == "f4" else "undetected")
    assert len(analysis.residuals) == 5 * 5
    assert all(values[a][s] == pytest.approx(f + r) for a, s, f, r in analysis.residuals)
    assert "differences within runs" in analysis.method
    assert "within runs" not in naive.method
    with pytest.raises(StudyError, match="did you mean 'arm 1'"):
        analyze(values, contrasts, runs={"arm1": "x"})


def test_a_rung_is_compared_by_its_own_readings():
    """Two arms of one training, each an end of another contrast: estimates are of the arms that are named."""
    values, _, _ = read_off(np.random.default_rng(81), "ladder", 4, 0, 4)
    runs = {"arm 1": "one", "arm 2": "one"}
    contrasts = [Contrast(f"f{i}", f"arm {i + 1}", f"arm {i}") for i in range(4)]
    for hole in (None, ("arm 4", 2), ("arm 0", 1)):
        if hole:
            values[hole[0]][hole[1]] = None
        effects = analyze(values, contrasts, runs=runs).effects
        assert [e.df for e in effects] == pytest.approx(
            [9 - (hole is not None) - (hole == ("arm 0", 1))] + [3] + [effects[0].df] * 2
        )
        if hole is None:
            assert [e.estimate for e in effects] == pytest.approx(
                [np.mean([d for _, d in e.pairs]) for e in effects]
            )
    values["copy"] = dict(values["arm 3"])
    again = analyze(values, contrasts, runs={**runs, "copy": "one"})
    assert again.effects[1].p == effects[1].p


@pytest.mark.parametrize(
    ("design", "free", "seeds"), [("leave-one-out", 6, 3), ("ladder", 4, 3), ("one-at-a-time", 3, 5)]
)
def test_idle_factors_read_off_one_training_claim_nothing(design, free, seeds):
    """Counted as runs, readings of one training gave .07 to .09 in the first of these."""
    rng = np.random.default_rng(90 + seeds)
    false, covered = 0, []
    for _ in range(700):
        values, contrasts, runs = read_off(rng, design, 8 - free, free, seeds)
        effects = analyze(values, contrasts, runs=runs).effects
        false += any(e.verdict in ("helps", "hurts") for e in effects)
        covered.append(np.mean([e.low <= 0 <= e.high for e in effects]))
    assert false / 700 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 700)
    assert np.mean(covered) >= 0.95 - 3 * np.std(covered) / math.sqrt(700)


# ---- promises, by simulation ----------------------------------------------------------------


@pytest.mark.parametrize("design", ENDS)
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_a_a_studies_claim_nothing(design, seeds):
    """Family-wise and discovery errors, and coverage of both kinds of intervals, with 20 idle factors.

    Where all share an arm, the guard against its noise makes individual intervals of .95 cover .96 to .97.
    """
    rng = np.random.default_rng(100 + seeds)
    studies, false, found, unequal = 1000, 0, 0, 0
    covered, together = [], 0
    for _ in range(studies):
        values, contrasts = idle(rng, design, 20, seeds)
        analysis = analyze(values, contrasts, delta=0.5)
        effects = analysis.effects
        false += any(e.verdict in ("helps", "hurts") for e in effects)
        found += any(e.q <= 0.1 for e in effects)
        covered.append(np.mean([e.low <= 0 <= e.high for e in effects]))
        together += all(e.low_simultaneous <= 0 <= e.high_simultaneous for e in effects)
        unequal += analysis.heteroscedastic
    error = math.sqrt(0.05 * 0.95 / studies)
    assert 0.005 < false / studies <= 0.05 + 3 * error
    assert together / studies >= 0.95 - 3 * error
    assert found / studies <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / studies)
    # Contrasts of one study share arms: the Monte-Carlo error is that of studies, not of contrasts.
    error = 3 * np.std(covered) / math.sqrt(studies)
    assert 0.95 - error <= np.mean(covered) <= (0.95 if design == "ladder" else 0.968) + error
    assert unequal / studies <= 0.01 + 3 * math.sqrt(0.01 / studies)


def test_what_is_done_without_a_protocol():
    """Twenty idle tricks: .64 of studies find one that acts, .96 do by peeking after each of six seeds."""
    y = np.random.default_rng(17).standard_normal((2000, 20, 6))  # differences of each trick's own pairs
    p = np.stack([stats.ttest_1samp(y[..., :n], 0, axis=-1).pvalue for n in range(2, 7)])
    assert (p[-1] < 0.05).any(-1).mean() == pytest.approx(1 - 0.95**20, abs=0.03)
    assert (p < 0.05).any((0, -1)).mean() == pytest.approx(0.96, abs=0.015)


@pytest.mark.parametrize(("noise", "bound"), [(heavy_tailed, 0.06), (skewed, 0.06)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_noise_need_not_be_normal(noise, bound, seeds):
    rng = np.random.default_rng(41)
    false, covered = 0, []
    for _ in range(1000):
        effects = analyze(*idle(rng, "leave-one-out", 12, seeds, noise)).effects
        false += any(e.verdict in ("helps", "hurts") for e in effects)
        covered.append(np.mean([e.low <= 0 <= e.high for e in effects]))
    assert false / 1000 <= bound + 3 * math.sqrt(0.05 * 0.95 / 1000)
    assert 0.93 <= np.mean(covered) <= 0.98


def test_coverage_with_effects_and_missing_runs():
    rng = np.random.default_rng(11)
    truth = np.array([2.0, 0, -1, 0.5, 0, 0, 3, 0])
    covered = []
    for _ in range(1000):
        values, contrasts = simulate(rng, 8, 5, effects=truth)
        values[f"without {rng.integers(8)}"][int(rng.integers(5))] = math.nan
        effects = analyze(values, contrasts).effects
        covered.append(np.mean([e.low <= t <= e.high for e, t in zip(effects, truth, strict=True)]))
    error = 3 * np.std(covered) / math.sqrt(1000)
    assert 0.95 - error <= np.mean(covered) <= 0.968 + error


@pytest.mark.parametrize(("factors", "seeds"), [(6, 3), (12, 5)])
def test_power_at_the_detectable_effect(factors, seeds):
    rng = np.random.default_rng(factors)
    effect = smallest_detectable(math.sqrt(2), seeds, factors, factors + 1, shared=True)
    assert effect < 1.2 * smallest_detectable(math.sqrt(2), seeds, factors, factors + 1)
    helps, printed = 0, []
    for _ in range(1200):
        values, contrasts = simulate(rng, factors, seeds, effects=[effect] + [0] * (factors - 1))
        found = analyze(values, contrasts).effects[0]
        helps += found.verdict == "helps"
        printed.append(found.detectable)
    assert helps / 1200 == pytest.approx(0.8, abs=0.04)
    assert np.median(printed) == pytest.approx(effect, rel=0.07), "the study prints what the plan promised"


@pytest.mark.parametrize("sign", [1, -1])
def test_equivalence_is_not_claimed_at_the_margin(sign):
    rng = np.random.default_rng(21)
    false, called = [], 0
    for _ in range(1000):
        values, contrasts = simulate(rng, 6, 5, effects=[sign * 2.5] * 6)
        effects = analyze(values, contrasts, delta=2.5).effects
        false.append(np.mean([e.p_equivalence < 0.05 for e in effects]))
        alike = [e for e in effects if e.verdict == "equivalent"]
        assert all(-2.5 <= e.low <= e.high <= 2.5 for e in alike)
        called += len(alike) > 0
    assert 0.02 < np.mean(false) <= 0.05 + 3 * np.std(false) / math.sqrt(1000)
    assert called / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000), "by any of the factors"
    values, contrasts = simulate(rng, 6, 8, sd=0.5)
    analysis = analyze(values, contrasts, delta=2.5)
    assert any(e.verdict == "equivalent" for e in analysis.effects)
    assert "(corrected over factors by Holm's method)" in analysis.method


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 12, 35, 200])
def test_power_in_plain_python_agrees_with_scipy(df):
    for level in (0.05, 0.01, 0.05 / 20):
        critical = stats.t.isf(level / 2, df)
        assert t_level(critical, df) == pytest.approx(level, rel=1e-9)
        for power in (0.5, 0.8, 0.95):
            shift = noncentrality(df, level, power)
            assert stats.nct.sf(critical, df, shift) == pytest.approx(power, abs=2e-4)
