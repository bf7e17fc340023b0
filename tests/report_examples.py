"""Studies with synthetic numbers for the tests of the report: an ``auto`` study with every part filled."""

from __future__ import annotations

import dataclasses
import math
import zlib
from statistics import NormalDist

import numpy as np

from trickbag.report.content import (
    ArmResult,
    Comparison,
    Factor,
    Metric,
    Opening,
    PairEffect,
    Recommendation,
    ReportData,
    Residual,
    RunResult,
    Stage,
)
from trickbag.study.statistics import Analysis, Effect

METRICS = [
    Metric("accuracy", "accuracy, points", 100.0),
    Metric("balanced_accuracy", "balanced accuracy, points", 100.0),
    Metric("nll", "negative log likelihood, nats", 1.0, False),
    Metric("nll_calibrated", "negative log likelihood at the best temperature, nats", 1.0, False),
    Metric("ece", "expected calibration error, points", 100.0, False),
    Metric("training_seconds", "training time, s", 1.0, False),
    Metric("inference_ms", "inference time, ms an image", 1.0, False),
    Metric("memory_mb", "peak memory, MB", 1.0, False),
]
LABELS = {
    "label_smoothing": ("label_smoothing: absent → 0.1", 0.52, 1.0),
    "mixup": ("mixup(alpha=0.2)", 0.71, 1.03),
    "ema": ("ema(decay=0.998)", 0.34, 1.05),
    "lr": ("nesterov.lr: 0.1 → 2.0", -2.1, 1.0),
    "cutout": ("cutout(size=0.25)", -0.41, 1.02),
    "resolution": ("image_size: 32 → 40", 1.35, 1.55),
    "script": ("</script><script>alert('x')</script>", 0.02, 1.0),
    "tta": ("flip at test time & <b>bold</b>", 0.18, 1.0),
    "no_bias_norm_decay": ("no_bias_norm_decay", 0.03, 1.0),
}


def auto_example(factors=9, seeds=8, *, screened=None, curve=24, seed=0):
    """A pilot, a screen, a race and a confirmation, with an analysis by least squares over all runs."""
    rng = np.random.default_rng(seed)
    keys = [*LABELS][:factors] + [f"f{i}" for i in range(len(LABELS), factors)]
    labels = {k: LABELS[k][0] if k in LABELS else f"factor number {i}" for i, k in enumerate(keys)}
    truth = np.array([LABELS[k][1] if k in LABELS else rng.normal(0, 0.4) for k in keys])
    price = np.array([LABELS[k][2] if k in LABELS else rng.uniform(1, 1.2) for k in keys])
    pairs = {(0, 1): -0.35, (1, 5): 0.3} if factors > 5 else {}
    best = [k for k, t in zip(keys, truth, strict=True) if t > 0.1]
    half = rng.choice([False, True], (screened or 2 * factors, factors))
    cells = [*half, *~half]
    plan = [("baseline", [], "pilot", 5), ("all", keys, "pilot", 2), ("recommended", best, "confirm", seeds)]
    plan += [
        (f"screen {i + 1}", [k for k, on in zip(keys, c, strict=True) if on], "screen", 1)
        for i, c in enumerate(cells)
    ]
    plan += [
        (f"recommended without {k}", [b for b in best if b != k], "refine", 2)
        for k in best[: min(3, len(best))]
    ]
    blocks = rng.normal(0, 0.25, 400)
    arms = []
    for name, on, stage, count in plan:
        x = np.array([k in on for k in keys], float)
        first = 100 if stage == "confirm" else 0
        wanted = [*range(first, first + count)]
        if name in ("baseline", "all") and seeds:
            wanted += [*range(100, 100 + seeds)]
        runs = []
        for s in wanted:
            value = 88.0 + x @ truth + sum(v * x[i] * x[j] for (i, j), v in pairs.items())
            value = round(float(value + blocks[s] + rng.normal(0, 0.18)), 4)
            seconds = float(40.0 * np.prod(price**x) * rng.uniform(0.98, 1.02))
            lost = "lr" in on and s % 3 == 1
            run = f"{zlib.crc32(f'{name}{s}'.encode()):08x}{s:08x}"
            late = "confirm" if s >= 100 else stage
            if lost:
                message = "loss nan at step 212"
                runs.append(
                    RunResult(s, run, "diverged", None, seconds=seconds / 4, message=message, stage=late)
                )
                continue
            metrics = {
                "balanced_accuracy": value / 100 - 0.004,
                "nll": 0.9 - 0.008 * value + 0.05 * ("mixup" in on) + rng.normal(0, 0.004),
                "nll_calibrated": 0.88 - 0.008 * value + rng.normal(0, 0.002),
                "ece": 0.031 + 0.02 * ("label_smoothing" in on) + rng.normal(0, 0.001),
            }
            costs = {
                "training_seconds": seconds,
                "inference_ms": 1.2 * (1 + ("tta" in on)) + rng.normal(0, 0.01),
                "memory_mb": 810.0 + 300 * ("resolution" in on),
                "epochs": 10.0,
            }
            course = [
                (float(e), value - 40 * math.exp(-5 * e / curve) + rng.normal(0, 0.2))
                for e in range(1, curve + 1)
            ]
            runs.append(
                RunResult(s, run, "finished", value, metrics, seconds + 3, course, "", False, costs, late)
            )
        arms.append(ArmResult(name, name, list(on), runs))
    analysis, residuals = _least_squares(arms, keys, lambda run: run.value)
    analyses = {
        m.name: _least_squares(
            arms,
            keys,
            lambda run, m=m: None if run.value is None else m.scale * {**run.metrics, **run.costs}[m.name],
        )[0]
        for m in METRICS[1:]
    }
    effects = {e.factor: e.estimate for e in analysis.effects}
    found = [
        PairEffect(keys[i], keys[j], v := pairs.get((i, j), float(rng.normal(0, 0.08))), v - 0.2, v + 0.2,
                   [f"{keys[0]} × {keys[-1]}"] if (i + j) % 4 == 0 else [])
        for i in range(factors) for j in range(i)
    ]  # fmt: skip
    found += [PairEffect(keys[i], keys[j], v, v - 0.2, v + 0.2) for (i, j), v in pairs.items()]
    by_pair = {frozenset((p.first, p.second)): p for p in found}
    compared = [
        _compare(arms, plus, minus, split, rng)
        for split in ("selection", "test")
        for plus, minus in (("recommended", "baseline"), ("recommended", "all"))
    ]
    runs = [r for a in arms for r in a.runs]
    fresh = range(100, 100 + seeds)

    def stage(name, rounds, text):
        mine = [r for r in runs if r.stage == name]
        return Stage(name, rounds, len(mine), sum(r.seconds for r in mine), text)

    return ReportData(
        title="Nine tricks for a small ResNet on sign-digits",
        data_name="sign-digits",
        design="auto",
        baseline="baseline",
        candidate="all",
        delta=0.2,
        alpha=0.05,
        arms=arms,
        analysis=analysis,
        factors=[Factor(k, labels[k], "absent", "present", passive=k == "tta") for k in keys],
        plan={"runs": len(runs), "trained": len(runs) - 9, "shared": 9, "seconds_actual": 5412.0},
        provenance={
            "code": "4f2a91c07d11",
            "data fingerprint": "9b1c" * 16,
            "images": "1200 train, 300 selection, 300 test",
            "seeds": sorted({r.seed for r in runs}),
            "versions": {"torch": "2.11.0", "python": "3.11.9"},
            "processor": "x86_64, 2 cores",
        },
        recipes={"baseline": "model: resnet18\nepochs: 10\n", "candidate": "model: resnet18\ntricks: []\n"},
        metrics=METRICS,
        analyses=analyses,
        stages=[
            stage("pilot", 1, "Noise of 0.25 points, correlation 0.6; a run takes 40 s."),
            stage("screen", 1, f"{len(cells)} runs; {len(best)} factors are worth their price."),
            stage("refine", 4, "Raced 9 flips from the best recipe; none was better."),
            stage("confirm", 1, "Three recipes on fresh seeds; test split opened."),
        ],
        recommendation=Recommendation(
            best,
            "recommended",
            "model: resnet18\ntricks:\n- kind: mixup\n  alpha: 0.2\n",
            2.71,
            2.4,
            3.02,
            1.68,
            {k: f"{effects[k]:+.2f} points for ×{p:.2f} the time" for k, p in zip(keys, price, strict=True)},
        ),
        interactions=sorted(by_pair.values(), key=lambda p: -abs(p.estimate)),
        attribution={k: float(effects[k]) for k in best},
        chances={k: NormalDist().cdf(effects[k] / 0.3) for k in keys},
        comparisons=compared,
        openings=[Opening("2025-03-04T10:12:00Z", "test", ["baseline", "recommended", "all"], [*fresh])],
        residuals=residuals,
        aliases=["Each interaction is confounded with 3 others; refining tells the largest apart."],
    )  # fmt: skip


def _least_squares(arms, keys, read):
    from scipy.stats import t as student

    rows = [(a, r, v) for a in arms for r in a.runs if (v := read(r)) is not None]
    x = np.array([[1.0, *(k in a.factors_on for k in keys)] for a, *_ in rows])
    y = np.array([v for *_, v in rows])
    beta, *_ = np.linalg.lstsq(x, y, rcond=None)
    fitted = x @ beta
    df = len(y) - len(beta)
    mse = float(((y - fitted) ** 2).sum() / df)
    se = np.sqrt(mse * np.diag(np.linalg.pinv(x.T @ x)))
    p = 2 * student.sf(abs(beta) / np.maximum(se, 1e-12), df)
    half, wide = (student.ppf(1 - 0.025 / m, df) for m in (1, len(keys)))
    effects = []
    for i, key in enumerate(keys, 1):
        b, s = float(beta[i]), float(se[i])
        holm = min(1.0, float(p[i]) * len(keys))
        verdict = "helps" if b > 0 else "hurts"
        if holm >= 0.05:
            verdict = "equivalent" if abs(b) + 1.67 * s < 0.2 else "undetected"
        effects.append(
            Effect(key, b, b - half * s, b + half * s, b - wide * s, b + wide * s, s, df, float(p[i]), holm,
                   verdict, 3.5 * s, 0, (), "", "")
        )  # fmt: skip
    residuals = [
        Residual(a.name, r.seed, float(f), float(v - f)) for (a, r, v), f in zip(rows, fitted, strict=True)
    ]
    method = (
        "Effects were estimated by least squares over all runs, with factors and seeds as terms and a block "
        "bootstrap over seeds."
    )
    sd = math.sqrt(2 * mse)
    missing = tuple((a.name, r.seed) for a in arms for r in a.runs if r.value is None)
    return Analysis(tuple(effects), sd * 0.7, sd, 0.51, False, 0.34, method, missing, 0.05, 0.2), residuals


def _compare(arms, plus, minus, split, rng):
    from scipy.stats import ttest_rel

    named = {a.name: a for a in arms}
    a, b = named[plus].values, named[minus].values
    shared = [s for s in a if s in b and s >= 100]
    pairs = [(s, a[s] - b[s] + float(rng.normal(0, 0.1)) * (split == "test")) for s in shared]
    if len(pairs) < 2:
        return Comparison(plus, minus, split, pairs[0][1] if pairs else 0.0, *[None] * 7, pairs)
    difference = float(np.mean([d for _, d in pairs]))
    p = float(ttest_rel([d for _, d in pairs], [0.0] * len(pairs)).pvalue)
    half = 2.5 * float(np.std([d for _, d in pairs], ddof=1)) / math.sqrt(len(pairs))
    low, high = difference - half, difference + half
    return Comparison(
        plus, minus, split, difference, low, high, low + 0.02, high, p, min(1, 2 * p), 0.97, pairs
    )


def broken(data):
    """The same study with NaN, None or nothing wherever a number or a list may be missing."""
    nan, inf = math.nan, math.inf

    def spoil(run):
        return dataclasses.replace(
            run, value=nan, metrics={"nll": nan, "ece": inf}, seconds=nan, curve=[(1.0, nan), (nan, 2.0)],
            costs={"training_seconds": nan},
        )  # fmt: skip

    arms = [dataclasses.replace(a, runs=[spoil(r) for r in a.runs]) for a in data.arms[:-1]]
    arms += [dataclasses.replace(data.arms[-1], runs=[])]
    effects = tuple(
        dataclasses.replace(e, estimate=nan, low=nan, high=inf, p=nan, p_holm=nan, detectable=inf)
        for e in data.analysis.effects
    )
    analysis = dataclasses.replace(
        data.analysis, effects=effects, sd_paired=nan, correlation=nan, residuals=()
    )
    return dataclasses.replace(
        data,
        arms=arms,
        analysis=analysis,
        analyses=dict.fromkeys(data.analyses, analysis),
        plan={"runs": nan, "trained": None},
        interactions=[dataclasses.replace(p, estimate=nan) for p in data.interactions],
        attribution=dict.fromkeys(data.attribution, nan),
        chances=dict.fromkeys(data.chances, nan),
        comparisons=[dataclasses.replace(c, low=nan, high=nan, p=nan, chance=nan) for c in data.comparisons],
        residuals=[dataclasses.replace(r, residual=nan) for r in data.residuals],
        recommendation=dataclasses.replace(data.recommendation, gain=nan, low=nan, cost_multiple=inf)
        if data.recommendation
        else None,
    )
