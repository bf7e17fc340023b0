"""Arms on fresh seeds, the chance that one beats the other, and the bootstrap: oracles and simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from trickbag.errors import StudyError
from trickbag.study.comparing import chance_of, compare, holm_levels
from trickbag.study.resampling import FEWEST, bca_interval, bca_limits, block_bootstrap, expanded_level
from trickbag.study.statistics import Contrast, analyze

PAIRS = [("final", "baseline"), ("final", "all-on")]


def confirmation(rng, seeds, gains=(0.0, 0.0)):
    """Baseline, final and all-on over seeds that they share."""
    y = 80 + 1.5 * rng.standard_normal(seeds) + rng.standard_normal((3, seeds))
    y[1:] += np.asarray(gains)[:, None]
    return {
        arm: dict(enumerate(row.tolist()))
        for arm, row in zip(("baseline", "final", "all-on"), y, strict=True)
    }


def column(values, arm):
    return np.array(list(values[arm].values()))


def test_comparisons_are_paired_t_tests():
    values = confirmation(np.random.default_rng(0), 6, gains=(2, 1))
    compared = compare(values, PAIRS, alpha=0.05)
    oracles = [stats.ttest_rel(column(values, a), column(values, b)) for a, b in PAIRS]
    assert [(c.plus, c.minus) for c in compared] == PAIRS
    for c, oracle in zip(compared, oracles, strict=True):
        assert c.difference == pytest.approx(np.mean([d for _, d in c.pairs]))
        assert c.p == pytest.approx(oracle.pvalue)
        assert (c.low, c.high) == pytest.approx(tuple(oracle.confidence_interval(0.975)))
        assert c.low_bca < c.difference < c.high_bca
        assert len(c.pairs) == 6
    smaller, larger = sorted(c.p for c in compared)
    assert sorted(c.p_holm for c in compared) == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    assert compare(values, PAIRS, alpha=0.05) == compared, "the bootstrap is deterministic"
    found = compare(confirmation(np.random.default_rng(0), 6, gains=(9, 4)), PAIRS, alpha=0.05)
    assert max(c.p_holm for c in found) < 0.05
    for c, level in zip(sorted(found, key=lambda c: c.p), (0.975, 0.95), strict=True):
        differences = [d for _, d in c.pairs]
        oracle = stats.ttest_1samp(differences, 0)
        assert (c.low, c.high) == pytest.approx(tuple(oracle.confidence_interval(level)))
        assert (c.low_bca, c.high_bca) == bca_interval(differences, level)


def test_comparisons_that_say_little():
    values = {"final": {0: 81.0, 1: 82.0}, "same": {0: 81.0, 1: 82.0}, "other": {2: 80.0}, "one": {0: 80.0}}
    same, other, one = compare(values, [("final", "same"), ("final", "other"), ("final", "one")], alpha=0.05)
    assert (same.difference, same.p, same.chance, same.low, same.high) == (0, 1, 0.5, 0, 0)
    assert (other.difference, other.p, other.chance, other.pairs) == (None, None, None, ())
    assert (one.difference, one.low, one.p_holm, one.chance) == (1.0, None, None, None)
    assert same.low_bca is one.low_bca is None
    with pytest.raises(StudyError, match="did you mean 'final'"):
        compare(values, [("finla", "same")], alpha=0.05)
    with pytest.raises(StudyError, match="alpha"):
        compare(values, [], alpha=5)
    assert compare(values, [], alpha=0.05) == ()


def test_comparisons_with_diverged_runs():
    values = confirmation(np.random.default_rng(1), 6, gains=(2, 1))
    diverged = [("all-on", s) for s in range(6)]
    versus_baseline, versus_all = compare(values, PAIRS, alpha=0.05, diverged=diverged)
    assert versus_baseline.low is not None
    assert versus_all.low is versus_all.low_bca is None
    assert versus_all.p_holm < 0.05
    assert versus_all.difference > 0
    assert versus_all.chance == pytest.approx(6.5 / 7)
    assert versus_all.note == "diverged in 0 of 6 runs with it, 6 of 6 without"


def test_lower_can_be_better():
    values = confirmation(np.random.default_rng(2), 4, gains=(1, 0))
    up, down = (compare(values, PAIRS, alpha=0.05, higher_is_better=b) for b in (True, False))
    assert [c.chance for c in up] == pytest.approx([1 - c.chance for c in down])
    assert [(c.difference, c.p) for c in up] == [(c.difference, c.p) for c in down]


def test_chance_of_a_factor():
    values = confirmation(np.random.default_rng(3), 5, gains=(1, 0))
    contrasts = [Contrast("a", "final", "baseline"), Contrast("b", "all-on", "baseline")]
    analysis = analyze(values, contrasts)
    effect = analysis.effects[0]
    chance = chance_of(effect, analysis.sd_paired)
    spread = math.sqrt(effect.se**2 + analysis.sd_paired**2)
    assert chance == pytest.approx(stats.t.cdf(effect.estimate / spread, effect.df))
    assert chance_of(effect, analysis.sd_paired, higher_is_better=False) == pytest.approx(1 - chance)
    (compared,) = compare(values, [("final", "baseline")], alpha=0.05)
    two = {arm: values[arm] for arm in ("final", "baseline")}
    alone = analyze(two, contrasts[:1])
    assert chance_of(alone.effects[0], alone.sd_paired) == pytest.approx(compared.chance)
    assert chance_of(alone.effects[0], None) == pytest.approx(compared.chance)
    screened = replace(effect, pairs=(), n_pairs=0)
    assert chance_of(screened, analysis.sd_paired) == chance, "an effect of a regression has no pairs"
    assert chance_of(screened, None) is None


# ---- the bootstrap -------------------------------------------------------------------------


def test_bca_is_that_of_scipy_at_the_expanded_level():
    x = np.random.default_rng(4).exponential(1, 9)
    oracle = stats.bootstrap(
        (x,),
        np.mean,
        method="BCa",
        n_resamples=9999,
        confidence_level=expanded_level(0.95, 9),
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert bca_interval(x.tolist(), 0.95) == pytest.approx(tuple(oracle))
    assert 0.95 < expanded_level(0.95, 100) < expanded_level(0.95, 9) < expanded_level(0.95, 5) < 1
    assert expanded_level(0.95, 10**6) == pytest.approx(0.95, abs=1e-5)


def test_no_bca_where_it_could_not_be_believed():
    assert bca_interval([1.0, 2.0, 3.0, 4.0]) is None
    assert bca_interval([0.3] * 8) is None
    assert bca_interval([0.1 + 0.2, *[0.3] * 7]) is None
    assert bca_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is not None


@pytest.mark.parametrize(
    ("seeds", "normal", "skewed"), [(3, 0.755, 0.69), (4, 0.87, 0.81), (5, 0.915, 0.88), (8, 0.94, 0.91)]
)
def test_coverage_of_bca_intervals(seeds, normal, skewed):
    """Nominally .95. Below five seeds it is out of reach, and none is given."""
    rng = np.random.default_rng(seeds)
    for draws, expected in (
        (rng.standard_normal((1500, seeds)), normal),
        (rng.exponential(1, (1500, seeds)) - 1, skewed),
    ):
        low, high = bca_limits(draws, 0.95, resamples=2999)
        covered = ((low <= 0) & (high >= 0)).mean()
        assert covered == pytest.approx(expected, abs=0.03)
    assert (normal >= 0.9) == (seeds >= FEWEST)


def test_bca_as_usually_computed_is_too_short():
    x = np.random.default_rng(5).standard_normal((1500, 5))
    found = stats.bootstrap((x,), np.mean, axis=-1, n_resamples=999, batch=99, rng=np.random.default_rng(0))
    covered = (found.confidence_interval.low <= 0) & (found.confidence_interval.high >= 0)
    assert covered.mean() == pytest.approx(0.84, abs=0.03)


def test_blocks_are_resampled_whole():
    rng = np.random.default_rng(6)
    table = 80 + 5 * rng.standard_normal(8) + 0.1 * rng.standard_normal((4, 8))

    def gains(y):
        return y[..., 1:, :].mean(-1) - y[..., :1, :].mean(-1)

    found = block_bootstrap(table, gains, resamples=400)
    assert found.estimate == pytest.approx(gains(table))
    assert found.draws.shape == (400, 3)
    assert found.draws.std(0).max() < 0.2, "the seeds' own differences cancel"
    assert (found.low < found.estimate).all()
    assert (found.estimate < found.high).all()
    quick = block_bootstrap(table, gains, resamples=400, vectorized=True)
    assert quick.draws == pytest.approx(found.draws)
    assert quick.estimate == pytest.approx(found.estimate)
    few = block_bootstrap(table[:, :4], lambda y: int(y.mean(1).argmax()), resamples=50)
    assert few.low is few.high is None
    assert few.draws.shape == (50,)


@pytest.mark.parametrize(("seeds", "expected"), [(5, 0.92), (8, 0.94)])
def test_coverage_of_block_bootstrap(seeds, expected):
    rng = np.random.default_rng(7)
    covered = []
    for _ in range(1000):
        table = 2 * rng.standard_normal(seeds) + rng.standard_normal((3, seeds))
        found = block_bootstrap(
            table, lambda y: (y[:, 1:] - y[:, :1]).mean(-1), resamples=2999, vectorized=True
        )
        covered.append(np.mean((found.low <= 0) & (found.high >= 0)))
    assert np.mean(covered) == pytest.approx(expected, abs=3 * np.std(covered) / math.sqrt(1000))


# ---- promises, by simulation ---------------------------------------------------------------


def test_levels_of_intervals_are_those_of_holm():
    alpha = 0.06
    assert holm_levels([0.5, 0.4, 0.9], alpha) == pytest.approx([0.02] * 3)
    assert holm_levels([0.5, 0.001, 0.9], alpha) == pytest.approx([0.03, 0.02, 0.03])
    assert holm_levels([0.05, 0.001, 0.002], alpha) == pytest.approx([0.06, 0.02, 0.03])
    assert holm_levels([0.5, 0.001, None], alpha) == pytest.approx([0.03, 0.02, 0.03])
    assert holm_levels([0.025, 0.025, 0.025], alpha) == pytest.approx([0.02] * 3), "the first is not rejected"
    assert holm_levels([], alpha) == []


@pytest.mark.parametrize("gains", [(0, 0), (2, 2), (4, 0)])
def test_an_interval_excludes_zero_exactly_if_its_comparison_is_claimed(gains):
    rng = np.random.default_rng(9)
    pairs = [*PAIRS, ("all-on", "baseline")]
    for _ in range(300):
        for c in compare(confirmation(rng, 4, gains), pairs, alpha=0.05):
            assert (c.p_holm < 0.05) == (not c.low <= 0 <= c.high)


@pytest.mark.parametrize(("count", "expected"), [(2, 0.93), (3, 0.91)])
def test_what_intervals_cover_together_where_all_is_found(count, expected):
    rng = np.random.default_rng(count)
    gains = 50.0 * 100 ** np.arange(count)
    together = 0
    for _ in range(1500):
        y = rng.standard_normal((2 * count, 4))
        y[::2] += gains[:, None]
        values = {f"arm {i}": dict(enumerate(row.tolist())) for i, row in enumerate(y)}
        pairs = [(f"arm {i}", f"arm {i + 1}") for i in range(0, 2 * count, 2)]
        found = compare(values, pairs, alpha=0.05)
        together += all(c.low <= gain <= c.high for c, gain in zip(found, gains, strict=True))
    assert together / 1500 == pytest.approx(expected, abs=0.022)


@pytest.mark.parametrize("seeds", [3, 4])
def test_confirmations_of_nothing_claim_nothing(seeds):
    rng = np.random.default_rng(seeds)
    false = together = 0
    for _ in range(1500):
        compared = compare(confirmation(rng, seeds), PAIRS, alpha=0.05)
        false += any(c.p_holm < 0.05 for c in compared)
        together += all(c.low <= 0 <= c.high for c in compared)
    error = math.sqrt(0.05 * 0.95 / 1500)
    assert 0.02 < false / 1500 <= 0.05 + 3 * error
    assert together / 1500 >= 0.95 - 3 * error


def test_one_true_difference_does_not_excuse_the_other():
    rng = np.random.default_rng(8)
    false = found = 0
    for _ in range(1500):
        real, idle = compare(confirmation(rng, 4, gains=(9, 9)), PAIRS, alpha=0.05)
        found += real.p_holm < 0.05
        false += idle.p_holm < 0.05
    assert found / 1500 > 0.9
    assert false / 1500 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("seeds", [3, 4])
def test_chance_is_that_of_new_runs(seeds):
    """Exact: the predictive distribution at the new difference is uniform. Calibrated, if effects vary."""
    rng = np.random.default_rng(20 + seeds)
    uniform, chances, won = [], [], []
    for _ in range(2000):
        gain = rng.normal(0, 4)
        values = confirmation(rng, seeds, gains=(gain, 0))
        new = gain + math.sqrt(2) * rng.standard_normal()
        (known,) = compare(values, PAIRS[:1], alpha=0.05)
        shifted = {**values, "final": {s: v - new for s, v in values["final"].items()}}
        uniform.append(compare(shifted, PAIRS[:1], alpha=0.05)[0].chance)
        chances.append(known.chance)
        won.append(new > 0)
    chances, won = np.array(chances), np.array(won)
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
    brier = ((chances - won) ** 2).mean()
    assert brier < (((chances > 0.5) - won.astype(float)) ** 2).mean() < 0.25
    for low in (0, 0.1, 0.3, 0.5, 0.7, 0.9):
        here = (chances >= low) & (chances < min(1.01, low + 0.2)) if low else chances < 0.1
        error = math.sqrt(chances[here].mean() * (1 - chances[here].mean()) / here.sum())
        assert won[here].mean() == pytest.approx(chances[here].mean(), abs=3 * error + 0.02)


def test_chance_of_a_factor_is_that_of_new_runs():
    rng = np.random.default_rng(30)
    contrasts = [Contrast("a", "final", "baseline"), Contrast("b", "all-on", "baseline")]
    uniform, bold = [], 0
    for _ in range(1500):
        analysis = analyze(confirmation(rng, 3), contrasts)
        effect, sd = analysis.effects[0], None if analysis.heteroscedastic else analysis.sd_paired
        new = math.sqrt(2) * rng.standard_normal()
        uniform.append(chance_of(replace(effect, estimate=effect.estimate - new), sd))
        chance = chance_of(effect, sd)
        bold += not 0.1 <= chance <= 0.9
    assert stats.kstest(uniform, "uniform").pvalue > 0.001
    assert bold / 1500 < 0.1, "factors that do nothing are seldom given long odds"
