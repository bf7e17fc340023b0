"""The report: its content, its words, its page in a real browser, and its text forms."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

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
HEADINGS = [
    "Verdict",
    "What each factor buys",
    "Seed by seed",
    "Learning curves",
    "Costs and runs",
    "Methods",
]


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
    assert "93.60 against 91.20" in text
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


@pytest.mark.parametrize("factors", [1, 6, 14])
@pytest.mark.parametrize("design", ["ladder", "leave-one-out", "one-at-a-time"])
def test_page_is_whole_and_self_contained(design, factors):
    page = render(example(design, factors=factors, seeds=3))
    parsed = Page(page)
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert set(parsed.references) == {"data:,"}
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    assert "@import" not in page
    assert "nan" not in re.findall(r'[\s"](nan|inf|None|undefined)[\s"]', page)
    assert len(page.encode()) < 500_000


def test_large_study_stays_under_two_megabytes():
    page = render(example(factors=20, seeds=8, curve=300))
    assert len(page.encode()) < 2_000_000


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


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
)
def test_in_browser(browser, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    for design, factors in (("leave-one-out", 8), ("ladder", 1), ("one-at-a-time", 14)):
        data = example(design, factors=factors, seeds=4)
        file = tmp_path / f"{design}.html"
        file.write_text(render(data), encoding="utf-8")
        page.goto(file.as_uri())
        headings = page.locator("h2").all_inner_texts()
        assert all(any(h.startswith(name) for h in headings) for name in HEADINGS)
        assert page.title() == data.title
        text = page.locator("#verdict").inner_text()
        assert all(f.label in text for f in data.factors)
        chart = page.locator("#effects svg.chart:visible")
        assert chart.count() == 1
        tips = chart.locator("title").all_text_contents()
        assert all(f.label in tips for f in data.factors)
        words = chart.locator("text.verdict").all_text_contents()
        assert sorted(words) == sorted(e.verdict for e in data.analysis.effects)
        for section in ("#effects", "#ladder", "#curves"):
            box = page.locator(f"{section} svg.chart:visible").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width + 0.5
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(overflow) == 0
        size = (
            "svg => Math.min(...[...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect().height))"
        )
        assert chart.evaluate(size) > 12, "text in figures stays readable"
        outside = """svg => [...svg.querySelectorAll('text')].filter(t => {
            const a = t.getBoundingClientRect(), b = svg.getBoundingClientRect();
            return a.left < b.left - 2 || a.right > b.right + 2 || a.bottom > b.bottom + 2;
        }).map(t => t.textContent)"""
        for section in ("#effects", "#ladder", "#curves"):
            assert page.locator(f"{section} svg.chart:visible").evaluate(outside) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
    assert dark == (scheme == "dark")
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    context.close()
