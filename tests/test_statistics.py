"""The statistics of studies: oracles, and the promises checked by simulation."""

from __future__ import annotations

import gc
import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from trickbag.errors import StudyError
from trickbag.study.power import noncentrality, t_level
from trickbag.study.statistics import (
    Contrast,
    analyze,
    binomial_sd,
    guess_paired_sd,
    paired,
    smallest_detectable,
)


def simulate(rng, factors, seeds, effects=None, sd=1.0, block_sd=1.5):
    """A leave-one-out study: values of the candidate and of each leave-one-out arm, and its contrasts."""
    y = 80 + block_sd * rng.standard_normal(seeds) + sd * rng.standard_normal((factors + 1, seeds))
    if effects is not None:
        y[1:] -= np.asarray(effects)[:, None]
    arms = ["all", *(f"without {i}" for i in range(factors))]
    values = {arm: dict(enumerate(row.tolist())) for arm, row in zip(arms, y, strict=True)}
    return values, [Contrast(f"f{i}", "all", f"without {i}") for i in range(factors)]


@pytest.fixture
def quick():
    """statsmodels collects garbage at every correction: hide the test session from the collector."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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
    values, contrasts = simulate(rng, 5, 6, effects=[1, 0, 0, 2, -1])
    arms = list(values)
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


@pytest.mark.usefixtures("quick")
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


# ---- promises, by simulation ----------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_a_a_studies_claim_nothing(seeds):
    """Family-wise false positives, coverage, and the unpaired t tests that would have cried wolf."""
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(100 + seeds)
    studies, false, naive, covered, total, unequal = 1000, 0, 0, 0, 0, 0
    for _ in range(studies):
        values, contrasts = simulate(rng, int(rng.integers(6, 21)), seeds)
        analysis = analyze(values, contrasts, delta=0.5)
        false += any(e.verdict in ("helps", "hurts") for e in analysis.effects)
        covered += sum(e.low <= 0 <= e.high for e in analysis.effects)
        total += len(contrasts)
        unequal += analysis.heteroscedastic
        y = np.array([list(runs.values()) for runs in values.values()])
        y -= y.mean(0)  # even granting them perfect knowledge of the seeds' effects
        naive += bool((ttest_ind(y[:1], y[1:], axis=1).pvalue < 0.05).any())
    error = math.sqrt(0.05 * 0.95 / studies)
    assert 0.005 < false / studies <= 0.05 + 3 * error
    # Contrasts of one study share an arm: the Monte-Carlo error is nearer that of studies than of contrasts.
    assert covered / total == pytest.approx(0.95, abs=3 * error)
    assert naive / studies > 0.15
    assert unequal / studies <= 0.01 + 3 * math.sqrt(0.01 / studies)


@pytest.mark.usefixtures("quick")
def test_coverage_with_effects_and_missing_runs():
    rng = np.random.default_rng(11)
    truth = np.array([2.0, 0, -1, 0.5, 0, 0, 3, 0])
    covered = []
    for _ in range(500):
        values, contrasts = simulate(rng, 8, 5, effects=truth)
        values[f"without {rng.integers(8)}"][int(rng.integers(5))] = math.nan
        effects = analyze(values, contrasts).effects
        covered.append(np.mean([e.low <= t <= e.high for e, t in zip(effects, truth, strict=True)]))
    assert np.mean(covered) == pytest.approx(0.95, abs=3 * np.std(covered) / math.sqrt(500))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("factors", "seeds"), [(6, 3), (12, 5)])
def test_power_at_the_detectable_effect(factors, seeds):
    rng = np.random.default_rng(factors)
    effect = smallest_detectable(math.sqrt(2), seeds, factors, factors + 1)
    helps, printed = 0, []
    for _ in range(1200):
        values, contrasts = simulate(rng, factors, seeds, effects=[effect] + [0] * (factors - 1))
        found = analyze(values, contrasts).effects[0]
        helps += found.verdict == "helps"
        printed.append(found.detectable)
    assert helps / 1200 == pytest.approx(0.8, abs=0.04)
    assert np.median(printed) == pytest.approx(effect, rel=0.05), "the study prints what the plan promised"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("sign", [1, -1])
def test_equivalence_is_not_claimed_at_the_margin(sign):
    rng = np.random.default_rng(21)
    false = total = 0
    for _ in range(400):
        values, contrasts = simulate(rng, 6, 5, effects=[sign * 2.5] * 6)
        false += sum(e.verdict == "equivalent" for e in analyze(values, contrasts, delta=2.5).effects)
        total += 6
    assert false / total <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    values, contrasts = simulate(rng, 6, 8, sd=0.5)
    assert any(e.verdict == "equivalent" for e in analyze(values, contrasts, delta=2.5).effects)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 12, 35, 200])
def test_power_in_plain_python_agrees_with_scipy(df):
    for level in (0.05, 0.01, 0.05 / 20):
        critical = stats.t.isf(level / 2, df)
        assert t_level(critical, df) == pytest.approx(level, rel=1e-9)
        for power in (0.5, 0.8, 0.95):
            shift = noncentrality(df, level, power)
            assert stats.nct.sf(critical, df, shift) == pytest.approx(power, abs=2e-4)
