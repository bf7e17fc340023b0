"""What a report says, and does not say, of studies that could mislead."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from report_examples import auto_example
from trickbag.report import noise, seeds, shown
from trickbag.report.claims import foremost, untested
from trickbag.report.content import Confirmation, PairEffect, Recommendation, RunResult
from trickbag.report.html import render
from trickbag.report.interactions import turns
from trickbag.report.ladder import arm_tip, drawn_arms, gain, ordered_arms
from trickbag.report.names import ingredients, opaque, short
from trickbag.report.rows import arm_rows, facts
from trickbag.report.text import markdown, terminal
from trickbag.report.times import advised_multiple, cost_multiple, roughness
from trickbag.report.tradeoffs import pareto
from trickbag.report.wording import methods, verdict

replace = dataclasses.replace


def plain(page):
    """The text of a page, with spaces of one kind."""
    body = re.sub(r"<(script|style|title).*?</\1>", "", page, flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", re.sub(r"</?a\b[^>]*>", "", body)).replace("\N{NO-BREAK SPACE}", " ")
    return re.sub(r"\s+", " ", text).replace(" ,", ",")


def edit(data, name, change):
    """The study with the runs of one arm changed."""
    arms = [replace(a, runs=[change(r) for r in a.runs]) if a.name == name else a for a in data.arms]
    return replace(data, arms=arms)


@pytest.fixture(scope="module")
def auto():
    return auto_example(factors=7, seeds=4, curve=6)


@pytest.fixture(scope="module")
def classic(auto):
    """A study with a recommendation and a confirmation that compares other recipes, without fresh seeds."""
    overall = replace(auto.analysis.effects[0], factor="all", plus="all", minus="baseline", n_pairs=3)
    overall = replace(overall, estimate=4.32, low=-5.43, high=14.07, verdict="undetected")
    confirm = Confirmation(91.36, 96.38, 5.01, -2.28, 12.30, 0.1, 3, ["2026-01-01T00:00:00Z"])
    analysis = replace(auto.analysis, overall=overall)
    return replace(auto, comparisons=[], openings=[], confirm=confirm, analysis=analysis, design="screen")


# ---- whose number it is ---------------------------------------------------------------------


def test_a_number_of_the_sealed_split_names_its_recipes(classic):
    page = plain(render(classic))
    assert "+5.01 points, candidate − baseline, sealed test split" in page
    assert "recommended recipe: not tested on the sealed split" in page
    said = verdict(classic)
    assert all(c.startswith("Not shown: ") for c in said.claims), "their intervals include 0"
    assert "the candidate and the baseline on the sealed test split, 96.38 against 91.36" in said.claims[1]
    assert "it scores" not in " ".join(said.sentences)
    shown_ = replace(classic, confirm=replace(classic.confirm, low=1.0))
    assert verdict(shown_).claims[1].startswith("Shown: the candidate beats the baseline on the sealed")
    own = replace(classic.recommendation, arm="all")
    assert not untested(replace(classic, recommendation=own))
    assert "not tested" not in plain(render(replace(classic, recommendation=own)))


def test_the_recommended_recipe_is_read_first(auto):
    best = foremost(auto)
    assert (best.plus, best.minus, best.split) == ("recommended", "baseline", "test")
    assert not untested(auto)
    elsewhere = [replace(c, plus="all", minus="baseline") for c in auto.comparisons if c.split == "test"]
    other = [c for c in auto.comparisons if c.split != "test"] + elsewhere
    data = replace(auto, comparisons=other, openings=[])
    assert foremost(data).plus == "recommended"
    assert foremost(data).split == "selection"
    assert (
        "Not shown: anything of the recommended recipe on the sealed test split" in verdict(data).claims[-1]
    )
    assert verdict(data).headline.startswith("Recommended")


def test_an_interval_with_0_shows_nothing(auto):
    wide = [replace(c, low=-1.0, high=6.0, p_holm=0.01) for c in auto.comparisons]
    assert all(c.startswith("Not shown") for c in verdict(replace(auto, comparisons=wide)).claims)


def test_the_pilot_is_no_claim(auto):
    e = replace(auto.analysis.effects[0], plus="all", minus="baseline", estimate=5.4, low=2.0, high=8.0)
    data = replace(auto, analysis=replace(auto.analysis, overall=replace(e, verdict="helps", n_pairs=6)))
    text = " ".join(verdict(data).sentences)
    assert "On the selection split, pilot seeds included (not a claim): the candidate differs" in text
    assert "The candidate beats the baseline" not in text


# ---- studies that are not complete ----------------------------------------------------------


def unfinished(auto):
    wait = RunResult(900, "", "pending", None, stage="confirm")
    arms = [replace(a, runs=[*a.runs, wait]) if a.name == "recommended" else a for a in auto.arms]
    return replace(auto, arms=arms, unfinished="Unfinished: 3 runs to go; trickbag study resume here.")


def test_unfinished_studies_say_so_and_do_not_sound_final(auto):
    data = unfinished(auto)
    page = plain(render(data))
    assert "Unfinished: 3 runs to go; trickbag study resume here." in page
    assert markdown(data).splitlines()[2] == "> **Unfinished:** 3 runs to go; trickbag study resume here."
    out = io.StringIO()
    terminal(data, Console(file=out, width=200))
    assert "Unfinished: 3 runs to go" in out.getvalue()
    assert verdict(data).headline.startswith("So far the best recipe is ")
    alone = replace(data, recommendation=None, comparisons=[])
    assert verdict(alone).headline.startswith("So far: ")
    assert "Unfinished" not in markdown(auto)


def test_pending_runs_are_not_failed(auto):
    data = unfinished(auto)
    assert verdict(data).trouble == verdict(auto).trouble
    page = render(data)
    trouble = page[page.index('id="trouble"') : page.index('id="runs"')]
    assert "pending" not in trouble
    assert "<td>pending</td>" in page
    tip = arm_tip(data, data.arm("recommended"), shown.primary(data))
    assert "seed 900: pending" in tip
    assert "lost" not in "".join(re.findall(r">([^<]*recommended[^<]*)<", page))
    assert methods(data) == methods(auto)


# ---- costs ----------------------------------------------------------------------------------


def timed(runs):
    return [
        RunResult(seed, f"r{seed}{status}{seconds}", status, 90.0, costs={"training_seconds": seconds})
        for seed, status, seconds in runs
    ]


def test_costs_are_those_of_finished_runs_on_common_seeds(auto):
    def study(own, base):
        arms = [
            replace(a, runs=timed(own)) if a.name == "all" else
            replace(a, runs=timed(base)) if a.name == "baseline" else a
            for a in auto.arms
        ]  # fmt: skip
        return replace(auto, arms=arms)

    base = [(0, "finished", 40.0), (1, "finished", 80.0)]
    data = study([(0, "finished", 60.0), (5, "finished", 900.0)], base)
    assert cost_multiple(data, data.arm("all")) == 1.5
    apart = study([(5, "finished", 900.0)], base)
    assert cost_multiple(apart, apart.arm("all")) is None
    assert next(r for r in arm_rows(apart) if r["label"] == "all")["multiple"] == "–"
    lost = study([(0, "diverged", 1.2), (1, "failed", 0.3)], base)
    assert cost_multiple(lost, lost.arm("all")) is None
    assert "times as long" not in " ".join(verdict(lost).sentences)
    text = " ".join(verdict(data).sentences)
    assert text.count("Multiples of a time are rough") == 1
    assert "from 40 s to 80 s, which differ by a factor of 2.0" in text
    assert roughness(study([(0, "finished", 60.0)], [(0, "finished", 40.0), (1, "finished", 44.0)])) is None


def test_the_recommended_cost_is_the_measured_one(auto):
    data = replace(auto, recommendation=replace(auto.recommendation, cost_multiple=9.0))
    measured = cost_multiple(data, data.arm("recommended"))
    assert advised_multiple(data) == measured
    assert f"×{measured:.2f} the training time" in verdict(data).headline
    unrun = replace(data, recommendation=replace(data.recommendation, arm=None))
    assert advised_multiple(unrun) == 9.0


def test_the_front_is_of_repeated_recipes(auto):
    lucky = auto.arms[3]
    run = replace(lucky.runs[0], value=99.0, seed=0, costs={**lucky.runs[0].costs, "training_seconds": 5.0})
    data = replace(auto, arms=[*auto.arms[:3], replace(lucky, runs=[run]), *auto.arms[4:]])
    front = re.findall(r"<title>([^<]*)</title>", str(pareto(data, shown.primary(data), 940)))
    assert any("99.00" in tip for tip in front)
    assert not any("99.00" in tip for tip in front if "on the front" in tip)


# ---- effects that turn with a partner -------------------------------------------------------


def test_a_factor_that_depends_on_another_says_so(auto):
    effect = next(e for e in auto.analysis.effects if e.factor == "ema")
    pair = PairEffect("ema", "mixup", -9.2, -11.0, -7.0)
    data = replace(auto, interactions=[pair])
    turn = next(t for t in turns(data) if t.factor == "ema")
    assert turn.off == pytest.approx(effect.estimate + 4.6)
    assert turn.on == pytest.approx(effect.estimate - 4.6)
    said = f"ema(decay=0.998) depends on mixup: {turn.off:+.1f} points without it, −{-turn.on:.1f} with it."
    assert said in verdict(data).findings
    assert said in plain(render(data))
    assert f"{turn.off:+.1f} without mixup, −{-turn.on:.1f} with it" in plain(render(data))
    assert turns(replace(auto, interactions=[replace(pair, low=-20.0, high=1.0)])) == [], "not clear"
    small = replace(pair, estimate=0.1, low=0.05, high=0.15)
    assert [t for t in turns(replace(auto, interactions=[small])) if t.factor == "ema"] == []


# ---- noise, names, numbers of runs ----------------------------------------------------------


def test_pairing_that_did_not_help_is_not_praised(auto):
    assert "times as many seeds" in noise.pairing(auto)
    none = replace(auto, analysis=replace(auto.analysis, correlation=0.0))
    assert noise.pairing(none) == "Pairing them did not help here."
    worse = replace(auto, analysis=replace(auto.analysis, sd_paired=2.0, sd_unpaired=1.0))
    assert noise.pairing(worse) == "Pairing them did not help here."


def test_plan_is_in_words(auto):
    plan = {"results": 184, "training_runs": 60, "epochs_naive": 1840.0, "epochs_trained": 600.0}
    page = plain(render(replace(auto, plan=plan)))
    for said in (
        "results (a recipe and a seed each) 184",
        "training runs behind them 60",
        "epochs if each result were trained by itself 1840",
        "epochs trained 600",
    ):
        assert said in page


def test_readings_of_one_run_are_counted_as_such(auto):
    shared = replace(auto.arm("recommended"), name="twin", label="twin")
    data = replace(auto, arms=[*auto.arms, shared])
    runs = len(shared.runs)
    pairs = [(name, r.seed) for name in ("recommended", "twin") for r in shared.runs]
    assert shown.readings(data, pairs) == f"{2 * runs} readings of {runs} runs"
    assert shown.readings(data, pairs[:1]) == "1 run"


def test_short_names_are_unique_and_recipes_are_explained(auto):
    assert short(auto, "mixup") == "mixup"
    twice = [*auto.factors, replace(auto.factors[0], key="b", label="+ mixup(alpha=0.4)")]
    assert short(replace(auto, factors=twice), "mixup") == "mixup(alpha=0.2)"
    assert ingredients(auto, auto.arm("baseline")) == "on: nothing"
    assert ingredients(auto, auto.arm("all")) == "on: all 7 factors"
    off = auto.arm("recommended without mixup")
    assert ingredients(auto, off) == "recommended − mixup"
    assert not opaque(auto, auto.arm("all"))
    assert opaque(auto, next(a for a in auto.arms if a.name == "screen 1"))
    arms = [
        replace(a, name="mix 1a2b", label="mix 1a2b") if a.name == "recommended" else a for a in auto.arms
    ]
    arms = [a for a in arms if not a.name.startswith("screen")]
    data = replace(auto, arms=arms, comparisons=[], openings=[], residuals=[])
    data = replace(data, recommendation=replace(auto.recommendation, arm="mix 1a2b"))
    page = render(data)
    assert "recommended (mix 1a2b)" in page, "in tips"
    assert "<b>mix" not in page
    assert ">mix 1a2b<" not in page


def test_arrows_and_pluses(auto):
    factors = [replace(f, label="sgd.lr: 0.1 -> 0.2") if f.key == "lr" else f for f in auto.factors]
    factors = [replace(f, label="- mixup(alpha=0.2)") if f.key == "mixup" else f for f in factors]
    data = replace(auto, factors=factors)
    page = render(data)
    assert "sgd.lr: 0.1 → 0.2" in page
    assert "-&gt; 0.2" not in page
    assert "−\N{NO-BREAK SPACE}mixup" in page


# ---- sealed numbers -------------------------------------------------------------------------


def test_sealed_numbers_stand_with_their_runs(auto, classic):
    def opened(data):
        for name in ("all", "baseline"):
            data = edit(data, name, lambda r: replace(r, sealed=87.654) if r.seed == 100 else r)
        return data

    page = render(opened(auto))
    head = page[page.index('id="all-runs"') :]
    assert "sealed test split</th>" in head
    assert head.count(">87.65</td>") == 2
    assert "sealed test split</th>" not in render(auto)
    links = re.findall(r'<li class="\w+">.*?<a href="#(comparison-\d+)">Runs</a>', page, flags=re.DOTALL)
    assert [auto.comparisons[int(link.split("-")[1])].split for link in links] == ["test", "test"]
    data = opened(classic)
    assert 'href="#overall-1"' in render(data)
    sides = facts(data)["overalls"][1]["sides"]
    rows = [(a.name, r.seed) for a in data.arms for r in a.runs]
    assert [[rows[i] for i in side] for side in sides] == [[("baseline", 100)]] or [
        [rows[i] for i in side] for side in sides
    ] == [[("all", 100)], [("baseline", 100)]]


# ---- figures --------------------------------------------------------------------------------


def test_recipes_are_ordered_by_what_is_known_of_them(auto):
    order = ordered_arms(auto)
    assert [a.name for a in order[:3]] == ["recommended", "all", "baseline"]
    known = [len(a.values) for a in order[3:]]
    assert known == sorted(known, reverse=True)
    assert len(drawn_arms(auto)) == 16
    more, common = gain(auto, auto.arm("recommended"), shown.primary(auto))
    both = set(auto.arm("recommended").values) & set(auto.arm("baseline").values)
    assert common == len(both)
    own, base = auto.arm("recommended").values, auto.arm("baseline").values
    assert more == pytest.approx(sum(own[s] - base[s] for s in both) / len(both))
    page = plain(render(auto))
    assert "4 seeds" in page
    late = edit(auto, "recommended", lambda r: replace(r, seed=r.seed + 500))
    assert gain(late, late.arm("recommended"), shown.primary(late)) is None
    assert "other seeds" in plain(render(late))


def test_learning_curves_begin_where_they_were_measured(auto):
    def from_five(run):
        return replace(run, curve=[(5.0, 80.0), (10.0, 85.0)])

    arms = [replace(a, runs=[from_five(r) for r in a.runs]) for a in auto.arms]
    data = replace(auto, arms=arms)
    drawn = str(seeds.curves(data, 940))
    ticks = [float(t) for t in re.findall(r'class="tick" text-anchor="middle">([\d.]+)<', drawn)]
    assert min(ticks) >= 5
    assert "accuracy, points" in drawn
    assert not seeds.below_frame(data)
    assert "below the frame" not in plain(render(data))
    assert seeds.below_frame(auto)
    many = auto_example(factors=12, seeds=2, screened=40, curve=4)
    assert len(seeds.quiet_arms(many)) == seeds.THREADS
    assert "In gray: 40 of the" in plain(render(many))


def test_factors_that_were_not_crossed_were_not_studied(auto):
    arms = [
        replace(a, factors_on=sorted({*a.factors_on, "ema", "lr"}) if "mixup" in a.factors_on else
                [k for k in a.factors_on if k not in ("ema", "lr")])
        for a in auto.arms
    ]  # fmt: skip
    effects = tuple(
        replace(e, estimate=None, low=None, high=None, verdict="undetected", detectable=None)
        if e.factor in ("ema", "lr") else e
        for e in auto.analysis.effects
    )  # fmt: skip
    analysis = replace(auto.analysis, effects=effects)
    data = replace(auto, arms=arms, analysis=analysis, design="factorial", recommendation=None)
    said = verdict(data)
    assert set(said.unstudied) == {data.label("ema"), data.label("lr")}
    assert not set(said.unstudied) & set(said.undetected)
    assert any(r.startswith("Not studied, because not crossed: ") for r in said.remarks)
    assert "| not studied |" in markdown(data)
    assert "not crossed by this design" in plain(render(data))


def test_empty_sections_are_dropped(auto):
    arms = [
        replace(a, runs=[replace(r, curve=[]) for r in a.runs if r.status == "finished"]) for a in auto.arms
    ]
    page = render(replace(auto, arms=arms, comparisons=[], residuals=[]))
    assert "Failed and diverged" not in page
    assert 'id="curves"' not in page
    assert 'href="#curves"' not in page
    assert "Failed and diverged" in render(auto)


def test_captions_say_which_number(auto):
    page = plain(render(auto))
    for said in ("share of the gain", "Average effect and interval", "effect in this recipe"):
        assert said in page
    entire = replace(auto, design="leave-one-out", recommendation=None, comparisons=[])
    assert "the gain of the candidate over the baseline, shared out" in plain(render(entire))


def test_headline_counts_as_recommendation_without_factors(auto):
    none = Recommendation([], "baseline", "", 0.0, None, None, 1.0)
    data = replace(unfinished(auto), recommendation=none)
    assert verdict(data).headline.startswith("So far the best recipe is the baseline")
