"""The report: its content, its words, its page in a real browser, and its text forms."""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import io
import json
import math
import re
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from report_examples import auto_example, broken
from trickbag.errors import StudyError
from trickbag.report.content import (
    ArmResult,
    Confirmation,
    Factor,
    ReportData,
    RunResult,
    duration,
    p_value,
    points,
)
from trickbag.report.html import render
from trickbag.report.text import markdown, terminal
from trickbag.report.wording import methods, verdict
from trickbag.study.statistics import Contrast, analyze

NAMES = {
    "mixup": ("mixup α=0.2", 0.9),
    "label-smoothing": ("label smoothing 0.1", 0.45),
    "ema": ("EMA of the weights, decay 0.998, read out at the end of training", 0.3),
    "dropout": ("dropout 0.2 & stochastic depth 0.1", -0.8),
    "cosine": ("schedule: step → cosine", 0.05),
    "xss": ("<script>alert('x')</script>", 0.0),
    "res": ("resolution: 160 → 224", 1.6),
    "tta": ("flip at test time", 0.0),
}
HEADINGS = ["Verdict", "Factors", "Recipes and runs", "Methods"]
MORE_HEADINGS = ["Costs", "Seeds", "Learning curves"]


def example(
    design="leave-one-out", factors=6, seeds=5, *, noise=0.18, trouble=True, confirm=True, curve=30, seed=0
):
    """A study with synthetic numbers and a real analysis; the factor ``tta`` does nothing, bit for bit."""
    rng = np.random.default_rng(seed)
    known = list(NAMES)
    keys = [known[i] if i < len(known) else f"factor {i}" for i in range(factors)]
    truth = {k: NAMES[k][1] if k in NAMES else rng.normal(0, 0.5) for k in keys}
    labels = {k: NAMES[k][0] if k in NAMES else f"factor number {i}" for i, k in enumerate(keys)}
    if design == "leave-one-out":
        on = {"candidate": keys, **{f"-{k}": [o for o in keys if o != k] for k in keys}, "baseline": []}
        contrasts = [Contrast(k, "candidate", f"-{k}") for k in keys]
        shown = {f"-{k}": f"− {labels[k]}" for k in keys}
    elif design == "ladder":
        rungs = ["baseline", *(f"+{k}" for k in keys[:-1]), "candidate"]
        on = {rung: keys[:i] for i, rung in enumerate(rungs)}
        contrasts = [Contrast(k, rungs[i + 1], rungs[i]) for i, k in enumerate(keys)]
        shown = {f"+{k}": f"+ {labels[k]}" for k in keys}
    else:
        on = {"baseline": [], **{f"+{k}": [k] for k in keys}, "candidate": keys}
        contrasts = [Contrast(k, f"+{k}", "baseline") for k in keys]
        shown = {f"+{k}": f"+ {labels[k]}" for k in keys}
    shown |= {"baseline": "baseline", "candidate": "candidate (all)"}
    block = rng.normal(0, 0.3, seeds)
    error = {arm: rng.normal(0, noise, seeds) for arm in on}
    if "tta" in keys:
        for c in contrasts:
            if c.factor == "tta":
                error[c.plus] = error[c.minus]
    arms = []
    for arm, active in on.items():
        runs = []
        for s in range(seeds):
            final = round(91.4 + sum(truth[k] for k in active) + block[s] + error[arm][s], 4)
            points_ = [
                (float(e), final - 42 * math.exp(-5 * e / curve) + rng.normal(0, 0.25) * (e < curve))
                for e in range(1, curve + 1)
            ]
            metrics = {"NLL": 0.31 + 0.001 * s, "ECE": 2.4}
            seconds = 212.0 * (1 + 0.13 * len(active)) + s
            runs.append(
                RunResult(
                    s, f"{zlib.crc32(arm.encode()):08x}{s:04x}", "finished", final, metrics, seconds, points_
                )
            )
        arms.append(ArmResult(arm, shown[arm], active, runs))
    if trouble and seeds > 1:
        bad = [
            RunResult(
                1,
                "dead00beef",
                "diverged",
                None,
                {},
                31.0,
                arms[1].runs[1].curve[:4],
                "loss is NaN at step 412",
            )
        ]
        arms[1] = dataclasses.replace(arms[1], runs=[r for r in arms[1].runs if r.seed != 1] + bad)
    values = {a.name: {r.seed: r.value for r in a.runs} for a in arms}
    analysis = analyze(values, contrasts, delta=0.2, overall=Contrast("candidate", "candidate", "baseline"))
    return ReportData(
        title="ResNet-18 on digits: a bag of tricks",
        data_name="digits",
        design=design,
        baseline="baseline",
        candidate="candidate",
        delta=0.2,
        alpha=0.05,
        arms=arms,
        analysis=analysis,
        factors=[Factor(k, labels[k], "off", "on", passive=k in ("tta", "ema")) for k in keys],
        confirm=Confirmation(91.2, 93.6, 2.4, 2.05, 2.75, 2e-5, 5, ["2025-03-04T10:12:00Z"])
        if confirm
        else None,
        plan={
            "runs": len(arms) * seeds,
            "trained": len(arms) * seeds - 5,
            "shared": 5,
            "seconds_estimated": 9000.0,
        },
        provenance={
            "code version": "0.1.0 (4f2a91c)",
            "data": {"fingerprint": "sha256:" + "9b1c" * 16, "classes": 10, "train": 1200, "selection": 300},
            "seeds": list(range(seeds)),
            "versions": {"torch": "2.11.0", "python": "3.11.9"},
            "command": "trickbag study run --baseline base.yaml --candidate all.yaml --data digits "
            + "--set a=1 " * 12,
        },
        recipes={
            "baseline": "model: resnet18\nepochs: 30\n",
            "candidate": "model: resnet18\nepochs: 30\ntricks:\n  mixup: {}\n",
        },
    )


@pytest.mark.parametrize("design", ["ladder", "leave-one-out", "one-at-a-time"])
def test_json_round_trip(design):
    data = example(design)
    assert ReportData.from_json(data.to_json()) == data


def test_json_says_no():
    with pytest.raises(StudyError, match="not the content of a report"):
        ReportData.from_json('{"title": 3}')
    with pytest.raises(StudyError, match="not the content"):
        ReportData.from_json("nonsense")


def test_verdict_names_everything():
    data = example(factors=8, seeds=8)
    said = verdict(data)
    everything = [*said.helps, *said.hurts, *said.equivalent, *said.undetected]
    assert sorted(everything) == sorted(f.label for f in data.factors)
    text = " ".join(said.sentences)
    assert all(label in text for label in everything)
    assert said.headline.startswith("The candidate beats the baseline: +2.")
    assert said.helps[0] == "resolution: 160 → 224"
    assert said.hurts == ("dropout 0.2 & stochastic depth 0.1",)
    assert "flip at test time" in said.equivalent
    assert "the candidate scores 93.60 against the baseline's 91.20" in text
    assert said.trouble == 1
    assert said.cost == pytest.approx(1 + 0.13 * 8, abs=0.02)


def test_verdict_of_unresolved_study_says_what_it_could_have_seen():
    data = example(factors=3, seeds=3, noise=3.0, confirm=False, trouble=False)
    said = verdict(data)
    assert len(said.undetected) == 3
    assert said.detectable == max(e.detectable for e in data.analysis.effects)
    assert f"{said.detectable:.2f} points or more" in " ".join(said.sentences)
    assert said.headline.startswith("No difference")


def test_verdict_with_one_seed_or_no_overall():
    data = example(seeds=1, confirm=False)
    assert "single seed" in verdict(data).headline
    assert "no estimate of their noise" in " ".join(verdict(data).sentences)
    alone = dataclasses.replace(data, analysis=dataclasses.replace(data.analysis, overall=None))
    assert "one by one" in verdict(alone).headline


def test_methods_paragraph():
    text = methods(example())
    for part in (
        "randomized block",
        "Holm",
        "±0.2",
        "leave-one-out",
        "correlation",
        "5 seeds",
        "opened once",
    ):
        assert part in text


def test_numbers():
    assert [points(v) for v in (0.5, -0.5, -0.001)] == ["+0.50", "−0.50", "0.00"]
    assert [p_value(p) for p in (None, 1e-9, 0.0213, 0.4)] == ["–", "< 0.001", "0.021", "0.40"]
    assert [duration(s) for s in (3.21, 42, 210, 7300, 200000)] == [
        "3.2 s",
        "42 s",
        "3.5 min",
        "2.0 h",
        "2.3 d",
    ]


def test_markdown_table():
    data = example(factors=6)
    text = markdown(data)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 6
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    for effect in data.analysis.effects:
        row = next(r for r in rows if points(effect.estimate) in r and effect.verdict in r)
        assert p_value(effect.p_holm) in row
    piped = dataclasses.replace(data, factors=[dataclasses.replace(f, label="a|b\nc") for f in data.factors])
    assert sum(r"a\|b c" in line for line in markdown(piped).splitlines() if line.startswith("|")) == 6


def test_terminal():
    from rich.console import Console

    data = example(factors=6)
    data = dataclasses.replace(
        data, factors=[*data.factors[:-1], dataclasses.replace(data.factors[-1], label="[red]x")]
    )
    out = io.StringIO()
    terminal(data, Console(file=out, width=120))
    text = out.getvalue()
    assert "[red]x" in text
    assert all(e.verdict in text for e in data.analysis.effects)
    assert "The candidate beats the baseline" in text


class Page(HTMLParser):
    """Collects the tags that could fetch something, and whether every tag is closed."""

    void = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.references = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@functools.cache
def auto():
    return auto_example()


def parts(page):
    """The page's scripts by kind, and the HTML without them."""
    found = dict(re.findall(r"<script(?: type=\"([\w/]+)\")?[^>]*>(.*?)</script>", page, re.DOTALL))
    return found, re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def whole(data):
    """Check everything that holds of every page; its scripts and its HTML without them."""
    page = render(data)
    parsed = Page(page)
    assert parsed.open == []
    links = [r for r in parsed.references if r != "data:,"]
    assert all(r.startswith("#") for r in links)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {r[1:] for r in links} <= set(ids)
    scripts, html = parts(page)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "@import" not in page
    known = re.sub(r"loss (?:is )?nan at step", "", html, flags=re.IGNORECASE)
    assert not re.findall(r'[\s"\[×](?:nan|inf|NaN|Infinity|None|undefined)[\s"\],]', known)
    assert set(scripts) <= {"application/json", "text/plain", ""}
    assert "default-src 'none'" in page
    assert len(page.encode()) < 2_000_000
    return scripts, html


@pytest.mark.parametrize("factors", [1, 6, 14])
@pytest.mark.parametrize("design", ["ladder", "leave-one-out", "one-at-a-time"])
def test_page_is_whole_and_self_contained(design, factors):
    whole(example(design, factors=factors, seeds=3))


def test_auto_page_is_whole_and_says_everything():
    data = auto()
    scripts, html = whole(data)
    for said in ("alert('x')", "<b>bold</b>"):
        assert said not in html
    assert "Attribution, not measured rungs" in html
    assert "confounded with 3 others" in html
    assert "opened on 2025-03-04T10:12:00Z for baseline, recommended and all on seeds 100–107" in html
    plain = html.replace("\N{NO-BREAK SPACE}", " ")
    assert all(stage.text in plain for stage in data.stages)
    assert all(run.run_id in html for arm in data.arms for run in arm.runs)
    assert "Methods and provenance" in html
    facts = json.loads(scripts["application/json"])
    packed = json.loads(gzip.decompress(base64.b64decode(scripts["text/plain"])))
    assert set(packed) == {m["name"] for m in facts["metrics"]} - {"accuracy"}
    assert all(set(figures) == {"forest", "ladder", "pareto", "slopes"} for figures in packed.values())
    effect = next(e for e in data.analyses["nll"].effects if e.factor == "mixup")
    assert points(effect.estimate, 3)[:5] in packed["nll"]["forest"]
    assert "◂ better" in packed["nll"]["forest"]
    assert render(data) == render(data)


def test_every_effect_leads_to_its_runs():
    data = example("leave-one-out", factors=5, seeds=4)
    facts = json.loads(whole(data)[0]["application/json"])
    runs = [(arm.name, run.seed) for arm in data.arms for run in arm.runs]
    for effect, behind in zip(data.analysis.effects, facts["effects"], strict=True):
        assert behind["label"] == data.label(effect.factor)
        for arm, side in zip((effect.plus, effect.minus), behind["sides"], strict=True):
            assert [runs[i] for i in side] == [(arm, seed) for seed, _ in effect.pairs]
    data = auto_example(factors=4)
    facts = json.loads(whole(data)[0]["application/json"])
    runs = [(arm, run) for arm in data.arms for run in arm.runs]
    for effect, behind in zip(data.analysis.effects, facts["effects"], strict=True):
        fitted = [i for i, (_, run) in enumerate(runs) if run.value is not None]
        assert sorted(behind["sides"][0] + behind["sides"][1]) == fitted
        assert all(effect.factor in runs[i][0].factors_on for i in behind["sides"][0])


@pytest.mark.parametrize(
    "data",
    [example(factors=30, seeds=10, curve=300), auto_example(30, 10, screened=32, curve=100)],
    ids=["leave-one-out", "auto"],
)
def test_large_study_stays_under_two_megabytes(data):
    whole(data)


def test_recommendation_and_claim_are_kept_apart():
    data = auto()
    said = verdict(data)
    sealed = next(c for c in data.comparisons if c.split == "test" and c.minus == "baseline")
    assert said.headline.startswith(
        f"{points(sealed.difference)} points of accuracy over the baseline on the sealed test split ["
    )
    assert "use label_smoothing: absent → 0.1, mixup, ema" in said.headline, "without parameters"
    assert "(expected on the selection split: +2.71 [+2.40, +3.02]), at ×1.67 the training" in said.headline
    assert said.claims[0].startswith(
        "Shown: the recommended recipe beats the baseline on the sealed test split"
    )
    assert len(said.claims) == 2, "claims rest on the sealed split"
    assert "8 fresh seeds" in said.claims[0]
    assert any("4 runs of the candidate diverged, which counts as an outcome" in r for r in said.remarks)
    weak = [dataclasses.replace(c, low=-1.0, p=0.2, p_holm=0.4) for c in data.comparisons]
    said = verdict(dataclasses.replace(data, comparisons=weak))
    assert all(c.startswith("Not shown: a difference") for c in said.claims)
    assert said.headline.startswith("Recommended: label_smoothing: absent → 0.1, mixup, ema")
    assert "for an expected +2.71 points of accuracy [+2.40, +3.02] over the baseline" in said.headline
    level = [
        dataclasses.replace(c, difference=0.01, low=-0.1, high=0.12, p_holm=1.0) for c in data.comparisons
    ]
    said = verdict(dataclasses.replace(data, comparisons=level))
    assert "equals the baseline to within ±0.2 points" in said.claims[0]
    text = methods(data)
    for part in ("pilot (7 runs), screen", "not a claim", "Holm", "half of its interactions", "opened once"):
        assert part in text
    none = dataclasses.replace(data.recommendation, factors_on=[], arm="baseline")
    assert "the baseline as it is" in verdict(dataclasses.replace(data, recommendation=none)).headline


def test_recommendation_without_fresh_seeds():
    data = example("leave-one-out", factors=3, seeds=4)
    advised = auto_example(factors=3, seeds=2).recommendation
    data = dataclasses.replace(
        data, recommendation=dataclasses.replace(advised, factors_on=["mixup"], arm=None)
    )
    said = verdict(data)
    assert said.headline.startswith("Recommended: mixup α=0.2, for an expected")
    assert said.claims[0].startswith("Shown: the candidate beats the baseline on the selection split")
    assert said.claims[1].startswith("Shown: the candidate beats the baseline on the sealed test split")
    assert said.claims[2].startswith("Not shown: anything of the recommended recipe on the sealed test")
    _, html = whole(data)
    assert "The recipe itself was not run." in html
    assert html.replace("\N{NO-BREAK SPACE}", " ").count(said.claims[0]) == 1
    assert "Recommended: mixup" in markdown(data)


def test_markdown_of_an_auto_study():
    text = markdown(auto())
    rows = [line for line in text.splitlines() if line.startswith("| ") and "split" not in line.lower()]
    assert sum("recommended − baseline" in row for row in rows) == 2
    assert "Shown: the recommended recipe beats" in text
    assert "over the baseline on the sealed test split" in text
    assert "</script>" not in text


def test_numbers_that_are_missing_are_said_to_be_missing():
    for data in (auto_example(factors=3, seeds=2), example(factors=3, seeds=2)):
        spoiled = broken(data)
        whole(spoiled)
        assert "nan" not in markdown(spoiled).lower()


SMALL = auto_example(factors=3, seeds=3, curve=3)
EMPTY = {
    "arms": [],
    "analysis": dataclasses.replace(SMALL.analysis, effects=(), sd_paired=None, correlation=None),
    "factors": [],
    "plan": {},
    "provenance": {},
    "recipes": {},
    "metrics": [],
    "analyses": {},
    "stages": [],
    "recommendation": None,
    "interactions": [],
    "attribution": {},
    "chances": {},
    "comparisons": [],
    "openings": [],
    "residuals": [],
    "aliases": [],
    "design": "ladder",
    "delta": 0.0,
}  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sets(st.sampled_from(sorted(EMPTY))))
def test_any_part_may_be_empty(missing):
    data = dataclasses.replace(SMALL, **{name: EMPTY[name] for name in missing})
    whole(data)
    assert markdown(data)
    assert methods(data)


def test_everything_empty():
    whole(dataclasses.replace(SMALL, **EMPTY))


def test_nothing_finished_still_reports():
    data = example(factors=2, seeds=2, trouble=False, confirm=False)
    arms = [
        dataclasses.replace(
            a,
            runs=[
                dataclasses.replace(r, status="failed", value=None, curve=[], message="out of memory")
                for r in a.runs
            ],
        )
        for a in data.arms
    ]
    values = {a.name: {r.seed: r.value for r in a.runs} for a in arms}
    contrasts = [Contrast(e.factor, e.plus, e.minus) for e in data.analysis.effects]
    analysis = analyze(values, contrasts, overall=Contrast("candidate", "candidate", "baseline"))
    data = dataclasses.replace(data, arms=arms, analysis=analysis)
    assert ReportData.from_json(data.to_json()) == data
    page = render(data)
    assert page.count("out of memory") == 8
    assert "No run finished with a value." in page
    assert "overall gain is unknown" in verdict(data).headline
    assert "mixup" in markdown(data)


# ---- in a real browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed: the page is not looked at in a browser")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a study in a new page; afterwards, nothing was said on the console and nothing was requested."""
    said, asked, contexts = [], [], []

    def open_(data, width=1280, **options):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        show(page, data)
        return page

    def show(page, data, after=""):
        file = tmp_path / "report.html"
        file.write_text(render(data), encoding="utf-8")
        page.goto("about:blank")
        page.goto(file.as_uri() + after)

    open_.show = show
    yield open_
    for context in contexts:
        context.close()
    assert said == []
    assert all(url.startswith(("file:", "data:", "about:")) for url in asked)
    assert len([url for url in asked if url.startswith("file:")]) >= 1


OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OUTSIDE = """svg => [...svg.querySelectorAll('text')].filter(t => {
    const a = t.getBoundingClientRect(), b = svg.getBoundingClientRect();
    return a.left < b.left - 2 || a.right > b.right + 2 || a.bottom > b.bottom + 2;
}).map(t => t.textContent)"""
SIZE = "svg => Math.min(...[...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect().height))"
FAINT = """() => {
    const luminance = text => {
        const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const ground = e => {
        for (let n = e; n; n = n.parentElement) {
            const color = getComputedStyle(n).backgroundColor;
            if (color !== 'rgba(0, 0, 0, 0)') return luminance(color);
        }
    };
    const faint = [];
    for (const e of document.querySelectorAll('h1, h2, h3, p, small, dt, dd, th, td, li, .chip b, button, select, .chart text')) {
        if (!e.getClientRects().length || !e.textContent.trim() || e.matches('.value')) continue;
        const style = getComputedStyle(e);
        const [a, b] = [luminance(e.closest('.chart') ? style.fill : style.color), ground(e)].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.5) faint.push(e.textContent.trim().slice(0, 40));
    }
    return faint;
}"""  # noqa: E501


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
)
def test_in_browser(opened, width, scheme):
    page = None
    for data in (
        auto(),
        example("leave-one-out", factors=8, seeds=4),
        example("ladder", factors=1, seeds=4),
        broken(auto_example(factors=4)),
    ):
        if page is None:
            page = opened(data, width, color_scheme=scheme)
        else:
            opened.show(page, data)
        headings = page.locator("h2").all_inner_texts()
        wanted = HEADINGS + (MORE_HEADINGS if data.arms[0].mean is not None else [])
        assert all(any(h.startswith(name) for h in headings) for name in wanted)
        named = page.locator(".topbar a").all_text_contents()
        assert all(any(name.lower() in h.lower() for h in headings) for name in named)
        assert page.title() == data.title
        text = page.locator("#verdict").inner_text().replace("\N{NO-BREAK SPACE}", " ")
        assert all(f.label in text for f in data.factors)
        chart = page.locator("#effects svg.chart:visible")
        assert chart.count() == 1
        tips = chart.locator("a > title").all_text_contents()
        assert sorted(tip.split("\n")[0] for tip in tips) == sorted(f.label for f in data.factors)
        words = chart.locator("text.verdict").all_text_contents()
        assert sorted(words) == sorted(e.verdict for e in data.analysis.effects)
        for drawn in page.locator("svg.chart:visible:not(.small)").all():
            box = drawn.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width + 0.5
            assert drawn.evaluate(OUTSIDE) == []
        assert page.evaluate(OVERFLOW) == 0
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(OVERFLOW) == 0
        assert chart.evaluate(SIZE) > 12, "text in figures stays readable"
        assert page.evaluate(FAINT) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
    assert dark == (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background
    assert page.evaluate(FAINT) == []


def rows_of(page):
    """Labels of the rows of the forest plot, from top to bottom, and their numbers."""
    found = page.locator("#effects svg.wide g.row").evaluate_all(
        """rows => rows.map(r => [r.getBoundingClientRect().top, r.dataset.name,
            r.querySelector('.number').textContent])"""
    )
    found.sort()
    return [name for _, name, _ in found], {name: number for _, name, number in found}


def test_choosing_a_metric_changes_every_figure_and_back(opened):
    data = auto()
    page = opened(data)
    names, numbers = rows_of(page)
    before = {
        f: page.locator(f"[data-figure={f}]").inner_html() for f in ("forest", "ladder", "pareto", "slopes")
    }
    page.locator("#metric").select_option("ece")
    page.locator("html[data-metric=ece]").wait_for()
    after, changed = rows_of(page)
    effects = sorted(data.analyses["ece"].effects, key=lambda e: e.estimate)
    assert after == [data.label(e.factor).lower() for e in effects], "best first"
    for effect in effects:
        shown = changed[data.label(effect.factor).lower()].split()[0].replace("−", "-")
        assert float(shown) == pytest.approx(effect.estimate, abs=0.006)
    assert changed != numbers
    for figure, html in before.items():
        assert page.locator(f"[data-figure={figure}]").inner_html() != html
    drawn = page.locator("#ladder [data-figure] svg.wide").text_content()
    assert "expected calibration error" in drawn
    assert page.locator("#ladder .fixed-metric").first.is_visible()
    assert page.locator("#all-runs td.chosen").first.get_attribute("data-m") == "4"
    assert page.url.endswith("#metric=ece")
    page.locator("#metric").select_option("accuracy")
    page.locator("html[data-metric=accuracy]").wait_for()
    assert rows_of(page) == (names, numbers)
    opened.show(page, data, "#metric=nll&sort=name")
    page.locator("html[data-metric=nll]").wait_for()
    names, _ = rows_of(page)
    key = "(a, b) => a.localeCompare(b, 'en', {numeric: true})"
    assert names == page.evaluate(f"v => v.sort({key})", names)
    assert page.locator("#metric").input_value() == "nll"


def test_sorting_figures_and_tables(opened):
    data = auto()
    page = opened(data)
    label = {data.label(f.key).lower(): f.key for f in data.factors}
    names, _ = rows_of(page)
    assert [label[n] for n in names] == [e.factor for e in data.ranked]
    page.locator("#order").select_option("cost")
    costs = {e.factor: e.estimate for e in data.analyses["training_seconds"].effects}
    assert [label[n] for n in rows_of(page)[0]] == sorted(costs, key=costs.__getitem__)
    page.locator("#order").select_option("verdict")
    verdicts = {e.factor: e.verdict for e in data.analysis.effects}
    words = [verdicts[label[n]] for n in rows_of(page)[0]]
    assert words == sorted(words, key=["helps", "hurts", "equivalent", "undetected"].index)
    table = page.locator("#effects table")
    table.evaluate("t => t.closest('details').open = true")
    head = table.locator("thead th").first
    for direction, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        found = table.locator("tbody th").all_inner_texts()
        key = "(a, b) => a.localeCompare(b, 'en', {numeric: true})"
        assert found == page.evaluate(f"v => v.sort({key})", found)[:: -1 if reverse else 1]
    head = table.locator("thead th", has_text="Effect")
    head.locator("button").click()
    assert table.locator("thead th[aria-sort]").count() == 1
    found = [float(t.replace("−", "-")) for t in table.locator("tbody td:nth-child(2)").all_inner_texts()]
    assert found == sorted(found, reverse=True)


def test_tips_by_pointer_keyboard_and_touch_lead_to_runs(opened):
    data = example("leave-one-out", factors=4, seeds=4)
    page = opened(data)
    tip = page.locator("#tip")
    assert tip.is_hidden()
    effect = data.ranked[0]
    row = page.locator("#effects svg.wide g.row a").first
    row.hover()
    said = tip.inner_text().splitlines()
    assert said[0] == data.label(effect.factor)
    assert any(points(effect.estimate) in line for line in said)
    assert said[-1].startswith(f"rests on {effect.n_pairs} runs with it and {effect.n_pairs} runs without")
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    page.locator("#order").focus()
    page.keyboard.press("Tab")
    assert tip.inner_text().splitlines() == said
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Enter")
    visible = page.locator("#all-runs tbody tr:visible")
    shown = {(r.locator("th").inner_text(), int(r.locator("td").first.inner_text())) for r in visible.all()}
    arms = {data.arm(effect.plus).label: effect.plus, data.arm(effect.minus).label: effect.minus}
    assert {(arms[label], seed) for label, seed in shown} == {
        (arm, seed) for arm in (effect.plus, effect.minus) for seed, _ in effect.pairs
    }
    banner = page.locator("#behind")
    assert data.label(effect.factor) in banner.inner_text()
    banner.locator("[data-act=back]").click()
    assert page.evaluate("document.activeElement.getAttribute('href')").startswith("#effect-")
    assert page.locator("#all-runs tbody tr:visible").count() == sum(len(a.runs) for a in data.arms)
    phone = opened(data, 390, has_touch=True, is_mobile=True)
    mark = phone.locator("#effects svg.narrow g.row a").first
    mark.tap()
    assert phone.locator("#tip").inner_text().startswith(data.label(effect.factor))
    assert phone.locator("#behind").is_hidden()
    mark.tap()
    assert phone.locator("#behind").is_visible()


def test_paper_and_no_scripts(opened):
    data = auto()
    page = opened(data, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".topbar").is_hidden()
    assert page.locator("#effects svg.wide").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
    plain = opened(data, java_script_enabled=False)
    assert plain.locator("#effects svg.wide g.row").count() == len(data.factors)
    assert plain.locator("#metric, #order, #theme").locator("visible=true").count() == 0
    row = plain.locator("#effects svg.wide g.row a").first
    plain.goto(plain.url + row.get_attribute("href"))
    assert plain.locator(row.get_attribute("href")).is_visible()


def many():
    """A study of many recipes, most of them with a single seed, whose sealed split was opened."""
    data = auto_example(9, 4, screened=60, curve=4)
    arms = [
        dataclasses.replace(a, runs=[dataclasses.replace(r, sealed=80.0 + r.seed) for r in a.runs])
        if a.name in ("baseline", "recommended", "all")
        else a
        for a in data.arms
    ]
    return dataclasses.replace(data, arms=arms)


def test_recipes_of_one_seed_are_folded_and_few_things_take_the_focus(opened):
    data = many()
    page = opened(data)
    stops = """[...document.querySelectorAll('a[href], button, select, summary, [tabindex]')]
        .filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"""
    assert len(data.arms) > 120
    assert page.evaluate(stops) < 160
    recipes = page.locator("table:has([id^=arm-]) tbody tr")
    assert recipes.locator("visible=true").count() == 30
    named = recipes.first.locator("th").inner_text()
    assert named.startswith("recommended")
    assert "on: " in named
    page.locator("[data-more]").click()
    assert recipes.locator("visible=true").count() == len(data.arms)
    assert page.locator("[data-more]").is_hidden()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for table in page.locator("table").all():
        assert table.locator("tbody tr:visible").count() <= 30
    assert page.locator(".rest:visible").count() >= 2
    assert page.locator("td.m:not(.chosen):visible").count() == 0


def test_nothing_is_cut_on_paper(opened):
    page = opened(auto(), 680)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    wide = "d => [...d].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.getAttribute('aria-label'))"
    assert page.locator(".scroll").evaluate_all(wide) == []


def test_claims_lead_to_the_sealed_numbers(opened):
    data = many()
    for width in (1280, 390):
        page = opened(data, width)
        page.locator(".tile a").first.click()
        rows = page.locator("#all-runs tbody tr:visible")
        claimed = data.comparisons[2]
        assert rows.count() == 2 * len(claimed.pairs)
        heads = page.locator("#all-runs thead th:visible").all_inner_texts()
        place = next(i for i, h in enumerate(heads) if h.startswith("sealed test split"))
        assert place == 3, "right after the seed and the value"
        seeds_ = [int(row.locator("td:visible").nth(0).inner_text()) for row in rows.all()]
        sealed = [float(row.locator("td:visible").nth(2).inner_text()) for row in rows.all()]
        assert sealed == [80.0 + seed for seed in seeds_]
    page.locator("#behind [data-act=back]").click()
    page.locator(".claims a").nth(1).click()
    assert "recommended − all" in page.locator("#behind").inner_text()


def test_the_choice_of_colors_and_of_a_metric_is_kept(opened):
    data = auto()
    page = opened(data, color_scheme="light")
    page.locator("#theme").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert page.locator(".main-metric").is_visible()
    page.locator("#metric").select_option("ece")
    page.locator("html[data-metric=ece]").wait_for()
    assert page.locator(".main-metric").is_hidden()
    page.locator(".topbar a", has_text="Interactions").click()
    assert page.url.endswith("#metric=ece&at=interactions")
    top = "document.querySelector('#interactions').getBoundingClientRect().top"
    assert abs(page.evaluate(top)) < 100
    page.reload()
    page.locator("html[data-metric=ece]").wait_for()


def test_bars_stand_out_from_the_ground(opened):
    contrast = """() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll('#ladder svg.wide rect.bar:not(.up):not(.down), #ladder rect.cost')].map(e => {
            const [a, b] = [light(getComputedStyle(e).stroke), ground].sort((x, y) => y - x);
            return (a + .05) / (b + .05); });
    }"""  # noqa: E501
    for scheme in ("light", "dark"):
        found = [c for c in opened(auto(), color_scheme=scheme).evaluate(contrast) if c]
        assert len(found) > 20
        assert min(found) >= 3
