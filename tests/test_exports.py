"""Exports of a study, read back with the tools that they are for."""

from __future__ import annotations

import builtins
import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trickbag.engine.run import Run
from trickbag.errors import StudyError, UsageError
from trickbag.recipe.read import dump, load
from trickbag.report.content import (
    ArmResult,
    Comparison,
    Confirmation,
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
from trickbag.report.exports import KINDS, export
from trickbag.report.identity import study_digest
from trickbag.report.mlflow_runs import child_of
from trickbag.report.spreadsheet import csv_text
from trickbag.report.tables import tables
from trickbag.report.tex import escape_latex, latex
from trickbag.report.typeset import sheets
from trickbag.study.statistics import Contrast, Effect, analyze

ON = {"baseline": [], "+mixup": ["mixup"], "+epochs": ["epochs"], "candidate": ["mixup", "epochs"]}
LABELS = {"+mixup": "+ mixup(α=0.2) & 100 % <b>", "+epochs": "epochs: 2 → 4"}
EPOCHS = 4


def study(seeds=3, **changes):
    """Two factors; one run diverged, one failed; the baseline's and ``+mixup``'s runs are shared."""
    arms = []
    for number, (arm, on) in enumerate(ON.items()):
        runs = []
        for seed in range(seeds):
            value = (
                80.0 + 2 * ("mixup" in on) + 5 * ("epochs" in on) + 0.3 * seed + 0.07 * (number * seed % 3)
            )
            curve = [(float(e), value - 10 + 2.5 * e) for e in range(1, EPOCHS + 1)]
            status, message = "finished", ""
            if arm == "+epochs" and seed == 1:
                status, value, curve, message = "diverged", None, curve[:2], "loss nan at step 7"
            if arm == "+mixup" and seed == 2:
                status, value, curve, message = "failed", None, [], '=out of memory,\n"really"'
            metrics = {} if value is None else {"nll": 0.4 + seed / 10, "ece": 0.02}
            costs = {} if value is None else {"training_seconds": 9.5 * (1 + len(on)), "epochs": 4}
            identity = f"{'shared' if number < 2 else arm[-6:]}{seed:04d}"
            runs.append(
                RunResult(
                    seed, identity, status, value, metrics, 10.0 * (1 + len(on)), curve, message, False,
                    costs, "screen",
                )
            )  # fmt: skip
        arms.append(ArmResult(arm, LABELS.get(arm, arm), on, runs))
    values = {a.name: {r.seed: r.value for r in a.runs} for a in arms}
    contrasts = [Contrast("mixup", "+mixup", "baseline"), Contrast("epochs", "+epochs", "baseline")]
    overall = Contrast("candidate", "candidate", "baseline")
    analysis = analyze(values, contrasts, delta=0.2, overall=overall)
    nll = {a.name: {r.seed: r.metrics.get("nll") for r in a.runs} for a in arms}
    pairs = [(10, 6.8), (11, 7.1), (12, 7.3)]
    data = ReportData(
        title="=Tricks on digits, 100 % {real}",
        data_name="digits_8x8",
        design="one-at-a-time",
        baseline="baseline",
        candidate="candidate",
        delta=0.2,
        alpha=0.05,
        arms=arms,
        analysis=analysis,
        factors=[
            Factor("mixup", "mixup(α=0.2) & 100 % <b>", "absent", "mixup(alpha=0.2)"),
            Factor("epochs", "epochs: 2 → 4", "2", "4"),
        ],
        provenance={"code": "abc123", "data fingerprint": "f00", "seeds": "0, 1, 2"},
        recipes={name: dump(load(f"digits_{name}")) for name in ("baseline",)},
        metrics=[
            Metric("accuracy", "accuracy", 100.0),
            Metric("ece", "calibration error", 100.0, False),
            Metric("nll", "NLL, nats", 1.0, False),
        ],
        analyses={"nll": analyze(nll, contrasts)},
        interactions=[PairEffect("mixup", "epochs", -0.4, -0.9, 0.1, ["a x b"])],
        attribution={"mixup": 1.8, "epochs": 4.8},
        chances={"mixup": 0.93},
        comparisons=[
            Comparison("candidate", "baseline", "test", 7.07, 6.4, 7.7, 6.8, 7.3, 4e-4, 4e-4, 1.0, pairs)
        ],
        plan={"results": 12, "epochs_trained": 40.5, "seconds_actual": 90.0, "budget": "60 runs"},
        stages=[Stage("screen", 1, 12, 90.0, "all at once")],
        recommendation=Recommendation(
            ["epochs"],
            "+epochs",
            "epochs: 4\n",
            4.8,
            4.1,
            5.5,
            2.0,
            {"epochs": "in: it helps", "mixup": "out"},
        ),
        openings=[Opening("2026-01-02T03:04:05Z", "test", ["candidate", "baseline"], [10, 11, 12])],
        residuals=[Residual("baseline", 0, 80.1, -0.1)],
        confirm=Confirmation(80.0, 87.07, 7.07, 6.4, 7.7, 4e-4, 3, ["2026-01-02T03:04:05Z"]),
    )
    return dataclasses.replace(data, **changes)


def edit_run(data, arm, seed, **changes):
    """The study with one run changed."""
    arms = [
        dataclasses.replace(
            a,
            runs=[
                dataclasses.replace(r, **changes) if (a.name, r.seed) == (arm, seed) else r for r in a.runs
            ],
        )
        for a in data.arms
    ]
    return dataclasses.replace(data, arms=arms)


@pytest.fixture(scope="module")
def data():
    return study()


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Run directories of the finished runs, as the engine writes them."""
    folder = tmp_path_factory.mktemp("runs")
    for arm in data.arms:
        for run in arm.runs:
            if run.status == "finished" and not (folder / run.run_id).exists():
                made = Run(folder / run.run_id)
                made.create(load("digits_baseline"), {"seed": run.seed})
                for epoch, value in run.curve:
                    measured = {"accuracy": value / 100, "nll": 1 / epoch, "per class": [1, 2]}
                    row = {"step": int(7 * epoch), "epoch": epoch, "lr": 0.1, "train_loss": 2 / epoch}
                    made.append(row | {"raw": measured, "ema": measured, "seconds": 2.5 * epoch})
                with open(made.metrics_file, "a") as file:
                    file.write('{"step": 35, "ep')
    return folder


# ---- tables ---------------------------------------------------------------------------------


def test_parquet_has_a_row_a_run_with_types(data, runs, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = (
        "runs", "effects", "curves", "comparisons", "confirmation", "interactions",
        "recommendation", "stages", "plan", "openings", "residuals",
    )  # fmt: skip
    for _ in range(2):
        written = export(data, "parquet", tmp_path / "new" / "folder", runs=runs, name="mine")
    assert written == [tmp_path / "new" / "folder" / f"{name}.parquet" for name in names]
    assert sorted(p.name for p in written[0].parent.iterdir()) == sorted(p.name for p in written)
    table = pq.read_table(written[0])
    assert table.num_rows == 4 * 3
    assert table.schema.field("factor.epochs").type == pa.int8()
    assert table.schema.field("seed").type == pa.int64()
    assert table.schema.field("value").type == pa.float64()
    assert table.schema.field("metric.ece").metadata[b"label"] == b"calibration error"
    rows = {(row["arm"], row["seed"]): row for row in table.to_pylist()}
    for arm in data.arms:
        for run in arm.runs:
            row = rows[arm.name, run.seed]
            assert row["study"] == "mine"
            assert row["arm_label"] == arm.label
            assert {k: row[f"factor.{k}"] for k in ("mixup", "epochs")} == {
                k: int(k in arm.factors_on) for k in ("mixup", "epochs")
            }
            for name in ("run_id", "status", "stage", "value", "seconds", "message", "transductive"):
                assert row[name] == getattr(run, name)
            assert row["metric.nll"] == run.metrics.get("nll")
            assert row["metric.accuracy"] == run.value
            assert row["cost.training_seconds"] == run.costs.get("training_seconds")
    about = json.loads(table.schema.metadata[b"trickbag"])
    assert about["provenance"] == data.provenance
    assert about["title"] == data.title
    assert about["digest"] == study_digest(data)
    assert "randomized block" in about["methods"]


def test_effects_hold_every_field_and_every_metric(data):
    rows = tables(data)["effects"].to_pylist()
    assert [(r["metric"], r["kind"], r["factor"]) for r in rows] == [
        ("accuracy", "factor", "mixup"),
        ("accuracy", "factor", "epochs"),
        ("accuracy", "overall", "candidate"),
        ("nll", "factor", "mixup"),
        ("nll", "factor", "epochs"),
    ]
    for effect, row in zip(data.analysis.effects, rows, strict=False):
        for field in dataclasses.fields(Effect):
            value = getattr(effect, field.name)
            if field.name == "pairs":
                assert [(p["seed"], p["difference"]) for p in row["pairs"]] == list(value)
            else:
                assert row[field.name] == value
        assert row["label"] == data.label(effect.factor)
        assert row["attribution"] == data.attribution[effect.factor]
        assert row["chance"] == data.chances.get(effect.factor)
        assert row["primary"]
    assert not rows[3]["primary"]


def test_curves_are_long_and_hold_what_the_runs_recorded(data, runs):
    def long(folder):
        return {
            (r["arm"], r["seed"], r["metric"], r["epoch"]): r
            for r in tables(data, folder)["curves"].to_pylist()
        }

    bare, full = long(None), long(runs)
    assert {key[2] for key in bare} == {"selection/accuracy"}
    for arm in data.arms:
        for run in arm.runs:
            for epoch, value in run.curve:
                assert bare[arm.name, run.seed, "selection/accuracy", epoch]["value"] == value
    series = {"train_loss", "lr", "raw/accuracy", "raw/nll", "ema/accuracy", "ema/nll"}
    assert {key[2] for key in full} == {"selection/accuracy"} | series
    row = full["candidate", 0, "raw/nll", 2.0]
    assert (row["value"], row["step"], row["seconds"], row["unit"]) == (0.5, 14, 5.0, "nats")
    assert bare.keys() < full.keys()


def awkward(data):
    """The same study about balanced accuracy, with accuracy beside it, a sealed value and a pending run."""
    names = {"accuracy": "balanced_accuracy"}
    metrics = [dataclasses.replace(m, name=names.get(m.name, m.name)) for m in data.metrics]
    metrics.append(Metric("accuracy", "accuracy", 100.0))
    data = dataclasses.replace(data, metric="balanced accuracy", metrics=metrics)
    data = edit_run(data, "candidate", 0, sealed=81.5, metrics={"nll": 0.4, "ece": 0.02, "accuracy": 0.9})
    return edit_run(data, "candidate", 2, status="pending", value=None, curve=[], metrics={}, costs={})


def test_every_number_is_in_the_unit_of_the_report(data, runs):
    found = tables(awkward(data), runs)
    (row,) = (r for r in found["runs"].to_pylist() if (r["arm"], r["seed"]) == ("candidate", 0))
    assert row["value"] == row["metric.balanced_accuracy"] == data.arm("candidate").runs[0].value
    assert (row["metric.accuracy"], row["metric.ece"], row["metric.nll"]) == (90.0, 2.0, 0.4)
    assert row["sealed"] == 81.5
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in found["runs"].schema}
    assert {units[n] for n in ("value", "sealed", "metric.accuracy", "metric.ece")} == {"points"}
    assert units["metric.nll"] == "nats"
    assert units["cost.training_seconds"] == units["seconds"] == "s"
    curves = found["curves"].to_pylist()
    by = {(r["arm"], r["seed"], r["metric"], r["epoch"]): r for r in curves}
    assert {r["unit"] for r in curves if r["metric"].endswith("accuracy")} == {"points"}
    assert {r["unit"] for r in curves if r["metric"] in ("lr", "train_loss")} == {"as recorded"}
    same = by["baseline", 0, "selection/balanced_accuracy", 2.0], by["baseline", 0, "raw/accuracy", 2.0]
    assert same[0]["value"] == pytest.approx(same[1]["value"])
    assert {(r["metric"], r["unit"]) for r in found["effects"].to_pylist()} == {
        ("balanced_accuracy", "points"),
        ("nll", "nats"),
    }
    for table in found.values():
        for field in table.schema:
            assert " " not in field.name
            if str(field.type) == "double" and field.name != "df":
                assert field.metadata[b"unit"], field.name


def test_runs_that_have_not_ended_keep_their_rows(data):
    rows = tables(awkward(data))["runs"].to_pylist()
    assert len(rows) == 12
    (row,) = (r for r in rows if r["status"] == "pending")
    assert (row["arm"], row["seed"], row["value"], row["sealed"]) == ("candidate", 2, None, None)


def test_tables_of_what_was_decided(data):
    found = {key: table.to_pylist() for key, table in tables(data).items()}
    (advice,) = found["recommendation"]
    assert (advice["gain"], advice["low"], advice["high"], advice["cost_multiple"]) == (4.8, 4.1, 5.5, 2.0)
    assert (advice["factors_on"], advice["arm"], advice["recipe"]) == (["epochs"], "+epochs", "epochs: 4\n")
    why = {(r["factor"], r["metric"]): (r["recommended"], r["reason"]) for r in found["effects"]}
    assert why["epochs", "accuracy"] == (True, "in: it helps")
    assert why["mixup", "accuracy"] == (False, "out")
    assert why["epochs", "nll"] == (None, None)
    assert [(r["figure"], r["value"], r["text"], r["unit"]) for r in found["plan"]] == [
        ("results", 12.0, None, "count"),
        ("epochs_trained", 40.5, None, "epochs"),
        ("seconds_actual", 90.0, None, "s"),
        ("budget", None, "60 runs", None),
    ]
    for name, one in (("stages", data.stages[0]), ("openings", data.openings[0])):
        (row,) = found[name]
        assert {key: row[key] for key in dataclasses.asdict(one)} == dataclasses.asdict(one)
    assert found["residuals"][0]["residual"] == -0.1
    assert found["confirmation"][0]["candidate"] == 87.07


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_same_content_gives_the_same_bytes(data, runs, tmp_path, kind):
    again = ReportData.from_json(data.to_json())
    for n, one in enumerate((data, again)):
        export(one, kind, tmp_path / str(n), runs=runs)
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "1" / path.name).read_bytes(), path.name


def test_csv_for_pandas_and_for_spreadsheets(data, runs, tmp_path):
    import pandas

    written = export(data, "csv", tmp_path, runs=runs)
    raw = written[0].read_bytes()
    assert raw.decode("utf-8").startswith("study,design,data,arm,")
    frame = pandas.read_csv(written[0])
    assert len(frame) == 12
    assert frame["factor.mixup"].dtype.kind == "i"
    assert frame["value"].isna().sum() == 2
    assert sorted(frame["message"].dropna(), reverse=True) == [
        "loss nan at step 7",
        '\'=out of memory,\n"really"',
    ]
    assert set(frame["arm"]) == {"baseline", "'+mixup", "'+epochs", "candidate"}
    values = {(a.name, r.seed): r.value for a in data.arms for r in a.runs if r.value is not None}
    kept = frame.dropna(subset="value")
    read = {
        (arm.lstrip("'"), seed): v
        for arm, seed, v in zip(kept["arm"], kept["seed"], kept["value"], strict=True)
    }
    assert read == values
    effects = pandas.read_csv(written[1])
    assert set(effects["plus"]) <= set(frame["arm"])
    assert json.loads(effects["pairs"][0]) == [list(p) for p in data.analysis.effects[0].pairs]
    for path in written:
        rows = list(csv.reader(io.StringIO(path.read_text(), newline="")))
        assert len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(("=", "@", "+", "\t")) or math.isfinite(float(cell))
            assert not cell.startswith("-") or math.isfinite(float(cell))


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.floats())
@example("=cmd|' /C calc'!A0", -1.5)
@example(' +1,"2"', math.inf)
@example("a\r\nb\rc", math.nan)
def test_csv_escapes_any_text_and_keeps_any_number(text, number):
    import pyarrow as pa

    table = pa.table({"text": [text], "number": [number], "list": [[text]]})
    read = list(csv.reader(io.StringIO(csv_text(table), newline="")))
    assert len(read) == 2
    cell, value, listed = read[1]
    assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t"))
    wanted = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    assert cell.removeprefix("'") == wanted.removeprefix("'")
    assert float(value) == number or math.isnan(number)
    assert json.loads(listed) == [text]


def test_no_runs_no_metrics_no_comparisons(data, tmp_path):
    analysis = analyze({"baseline": {}, "candidate": {}}, [Contrast("mixup", "candidate", "baseline")])
    empty = dataclasses.replace(
        data,
        analysis=analysis,
        arms=[dataclasses.replace(arm, runs=[]) for arm in data.arms],
        comparisons=[], interactions=[], analyses={}, metrics=[], chances={}, attribution={}, recipes={},
        recommendation=None, confirm=None, stages=[], plan={}, openings=[], residuals=[],
    )  # fmt: skip
    for kind in ("csv", "parquet", "latex", "markdown", "tensorboard"):
        assert all(path.exists() for path in export(empty, kind, tmp_path / kind))
    assert tables(empty)["runs"].num_rows == 0


def test_a_study_that_goes_on_is_the_same_study(data):
    assert study_digest(study(seeds=5, title="other", delta=1.0)) == study_digest(data)
    assert study_digest(dataclasses.replace(data, data_name="x")) != study_digest(data)
    assert study_digest(dataclasses.replace(data, provenance={"code": "new"})) != study_digest(data)
    assert study_digest(ReportData.from_json(data.to_json())) == study_digest(data)


# ---- LaTeX and Markdown ---------------------------------------------------------------------


def balanced(text):
    """Whether braces and dollars of LaTeX pair up, escaped ones aside."""
    plain = re.sub(r"\\[{}$&%#_\\]", "", text)
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0 and plain.count("$") % 2 == 0


def test_latex_tables(data, tmp_path):
    written = export(data, "latex", tmp_path)
    assert [path.name for path in written] == ["effects.tex", "arms.tex", "comparisons.tex"]
    effects, arms, comparisons = (path.read_text() for path in written)
    for text in (effects, arms, comparisons):
        assert balanced(text)
        assert text.count(r"\begin{") == text.count(r"\end{")
        assert all(
            rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\caption", r"\label")
        )
    assert r"mixup($\alpha$=0.2) \& 100 \% $<$b$>$ & +2.0" in effects
    assert "3 seeds (0--2)" in effects
    assert "randomized block" in effects
    assert r"digits\_8x8" in effects
    assert "Holm" in effects
    assert "recommended: epochs & 85" in arms
    assert "2 of 3" in arms
    assert r"$\pm$" in arms
    assert "candidate & " in arms
    assert "3.00" in arms.split("candidate & ")[1].splitlines()[0], "cost as a multiple of the baseline's"
    lines = comparisons.splitlines()
    heading = next(n for n, line in enumerate(lines) if "{candidate against baseline}" in line)
    assert lines[heading + 1].strip().startswith("test & +7.07 & [+6.40, +7.70] & [+6.80, +7.30]")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
@example("a_b^c~d\\e{f}g$h%i&j#k")
@example('--- `a\' "b" <c> |d| [e] *')
@example("漢字 и é ø ą ﬁ − – — 🎉")
def test_latex_escapes_any_text(text):
    escaped = escape_latex(text)
    assert balanced(escaped)
    commands = set(re.findall(r"\\[A-Za-z]+", escaped)) - {r"\textbackslash"}
    bare = re.sub(r"\\ifdefined\\Umathcode .+?\\else \?\\fi\{\}", "", escaped)
    bare = re.sub(r"\\[{}$&%#_]|\$[^$]+\$|\\[A-Za-z]+(\{\}|\d+)?", "", bare)
    assert not set(bare) & set("\\&%$#_~^<>|\n\r\t")
    assert r"\input" not in commands
    if re.fullmatch(r"[A-Za-z0-9 .,:;()=+/]*", text):
        assert escaped == " ".join(text.split())


def test_latex_compiles(data, tmp_path):
    """Everything awkward in one document, by pdfLaTeX."""
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex is installed: the tables are not compiled")
    hard = (
        "".join(map(chr, [*range(32, 127), *range(0xA1, 0x180), *range(0x391, 0x3CA)])) + "−–—→≤≥≈∞漢字🎉…“”"
    )
    names = [*(hard[i : i + 36] for i in range(0, len(hard), 36)), "[x] first", "* star", "l" * 49]
    wild = dataclasses.replace(
        data, arms=[dataclasses.replace(data.arms[0], name=n, label=n) for n in names], data_name=hard
    )
    many = dataclasses.replace(data, arms=data.arms * 14)
    set_by_pdflatex([data, wild, many], tmp_path)


def set_by_pdflatex(studies, folder):
    """Set the tables of studies in ``article``; returns the log."""
    parts = [latex(sheet) for one in studies for sheet in sheets(one)]
    text = "\n\\clearpage\n".join(
        [r"\documentclass{article}\usepackage{booktabs,longtable}\begin{document}", *parts]
    )
    text = re.sub(r"\\label\{.*?\}", "", text) + "\\listoftables\n\\end{document}\n"
    (folder / "t.tex").write_text(text, encoding="utf-8")
    for _ in range(2):  # captions go through the list of tables
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"],
            cwd=folder, capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / "t.log").read_text(errors="replace")


def screened(data):
    """A study of long names, as ``auto`` makes them: mixes with one seed or two, and all intervals wide."""
    keys = ["pad_and_crop(padding=3, mode=reflect)", "no_bias_norm_decay.weight_decay", "ema", "nesterov.lr"]
    factors = [Factor(key, f"+ {key}: 0.001 -> 0.0005", "absent", "present") for key in keys]
    base = data.analysis.effects[0]
    wide = {"low": -10.25, "high": 12.75, "p_holm": 1.0, "verdict": "undetected", "pairs": ()}
    effects = tuple(dataclasses.replace(base, factor=key, estimate=-10.5, **wide) for key in keys)
    runs = [dataclasses.replace(data.arms[0].runs[0], seed=seed, value=80.0 + seed) for seed in range(8)]
    arms = [
        ArmResult("baseline", "baseline", [], runs),
        ArmResult("candidate", "candidate", keys, runs[:3]),
        ArmResult("mix 0a", "mix 0a", keys[:2], runs[:1]),
        ArmResult("mix 0b", "mix 0b", keys[:3], runs[:2]),
        ArmResult("mix 0c", "mix 0c", keys[1:], runs[4:]),
    ]
    numbers = (-10.75, -20.25, 10.25, -19.75, 10.75, 0.5, 0.5, 0.95, data.comparisons[0].pairs)
    return dataclasses.replace(
        data,
        design="auto",
        metric="balanced accuracy",
        arms=arms,
        factors=factors,
        analysis=dataclasses.replace(data.analysis, effects=effects, overall=None),
        residuals=[Residual(arm, seed, 80.0, 0.0) for arm in ("baseline", "candidate") for seed in (0, 1, 2)],
        recommendation=dataclasses.replace(data.recommendation, arm="mix 0c", factors_on=keys[1:]),
        comparisons=[
            Comparison(plus, "baseline", split, *numbers)
            for plus in ("mix 0c", "mix 0b")
            for split in ("selection", "test")
        ],
    )


def test_latex_fits_the_column_of_a_paper(data, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex is installed: the tables are not measured")
    one = screened(data)
    plain = [dataclasses.replace(c, low_bca=None, high_bca=None) for c in one.comparisons]
    arms = [dataclasses.replace(arm, runs=one.arms[0].runs[:2]) for arm in one.arms * 12]
    studies = [data, one, dataclasses.replace(one, comparisons=plain), dataclasses.replace(one, arms=arms)]
    log = set_by_pdflatex(studies, tmp_path)
    assert "Overfull" not in log
    assert "Float too large" not in log


def test_latex_tables_say_what_they_rest_on(data):
    effects, arms, comparisons = sheets(screened(data))
    assert "3 seeds (0–2)" in effects.caption
    assert "8 seeds" not in effects.caption
    assert "1 recipe of one run" in arms.caption
    names = [row[0] for row in arms.rows]
    assert names[:2] == ["baseline", "candidate"]
    assert names[2].startswith("mix of pad_and_crop")
    assert names[3].startswith("recommended: no_bias_norm_decay")
    assert comparisons.rows[0] == ("recommended against baseline",)
    assert comparisons.rows[3][0].startswith("mix of pad_and_crop")
    assert [row[0] for row in comparisons.rows[1:3]] == ["selection", "test"]
    plain = [dataclasses.replace(c, low_bca=None) for c in data.comparisons]
    *_, sheet = sheets(dataclasses.replace(data, comparisons=plain))
    assert "BCa" not in latex(sheet), "columns without a value are left out"


def test_latex_has_every_arm_of_a_design_of_roles(data):
    one = [dataclasses.replace(arm, runs=arm.runs[:1]) for arm in data.arms]
    few = dataclasses.replace(data, arms=one)
    assert len(sheets(few)[1].rows) == 4
    assert [row[0] for row in sheets(dataclasses.replace(few, design="screen"))[1].rows] == [
        "baseline",
        "recommended: epochs",
        "candidate",
    ]


def test_markdown_tables(data, tmp_path):
    (path,) = export(data, "markdown", tmp_path)
    lines = path.read_text().splitlines()
    assert "### Recipes" in lines
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    for cell in ("+7.07", "candidate"):
        assert sum(f"| {cell} |" in line for line in lines) == 1
    assert "<b>" not in path.read_text()


# ---- TensorBoard ----------------------------------------------------------------------------


def test_tensorboard_shows_curves_and_hparams(data, runs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "candidate" / "seed0").mkdir(parents=True)
    (tmp_path / "candidate" / "seed0" / "events.out.tfevents.1.mine").write_bytes(b"")
    for _ in range(2):
        assert export(data, "tensorboard", tmp_path, runs=runs) == [tmp_path]
    ours = [p for p in tmp_path.rglob("events.*") if p.name.endswith(".trickbag")]
    assert len(ours) == 1 + 4 * 3
    assert len(list(tmp_path.rglob("events.*"))) == len(ours) + 1, "files of others stay"
    for arm in data.arms:
        for run in arm.runs:
            log = EventAccumulator(str(tmp_path / arm.name / f"seed{run.seed}")).Reload()
            tags = log.Tags()["scalars"]
            if run.curve:
                found = [(e.step, e.value) for e in log.Scalars("selection/accuracy")]
                assert found == [(int(epoch), pytest.approx(value)) for epoch, value in run.curve]
            if run.value is not None:
                (last,) = log.Scalars("final/accuracy")
                assert last.value == pytest.approx(run.value)
                assert [e.step for e in log.Scalars("raw/nll")] == [1, 2, 3, 4]
                assert log.Scalars("cost/training_seconds")[0].value == run.costs["training_seconds"]
                times = [e.wall_time for e in log.Scalars("raw/nll")]
                assert times[1] - times[0] == pytest.approx(2.5)
            else:
                assert "final/accuracy" not in tags


def test_tensorboard_groups_seeds_of_an_arm(data, tmp_path):
    """Through the code behind the HParams tab."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    export(data, "tensorboard", tmp_path)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    backend = backend_context.Context(TBContext(data_provider=provider))
    request = RequestContext()
    experiment = backend.experiment_from_metadata(
        request, "", True, backend.hparams_metadata(request, ""), []
    )
    assert {h.name: h.display_name for h in experiment.hparam_infos} == {f.key: f.label for f in data.factors}
    assert experiment.metric_infos[0].name.tag == "final/accuracy"
    ask = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
    )
    answer = list_session_groups.Handler(request, backend, "", ask).run()
    groups = {group.name: group for group in answer.session_groups}
    assert groups.keys() == {arm.name for arm in data.arms}
    for arm in data.arms:
        group = groups[arm.name]
        assert {k: v.bool_value for k, v in group.hparams.items()} == {
            f.key: f.key in arm.factors_on for f in data.factors
        }
        status = {s.name.split("seed")[-1]: s.status for s in group.sessions}
        assert status == {
            str(r.seed): api_pb2.STATUS_SUCCESS if r.status == "finished" else api_pb2.STATUS_FAILURE
            for r in arm.runs
        }
        mean = next(m.value for m in group.metric_values if m.name.tag == "final/accuracy")
        assert mean == pytest.approx(arm.mean)


def test_tensorboard_has_units_and_skips_what_has_not_ended(data, runs, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    export(data, "tensorboard", tmp_path, runs=runs)
    export(awkward(data), "tensorboard", tmp_path, runs=runs)
    assert not list((tmp_path / "candidate" / "seed2").iterdir())
    log = EventAccumulator(str(tmp_path / "candidate" / "seed0")).Reload()
    run = data.arm("candidate").runs[0]
    assert log.Scalars("final/balanced_accuracy")[0].value == pytest.approx(run.value)
    assert log.Scalars("final/accuracy")[0].value == pytest.approx(90.0)
    assert log.Scalars("sealed/balanced_accuracy")[0].value == 81.5
    assert [e.value for e in log.Scalars("raw/accuracy")] == pytest.approx([v for _, v in run.curve])
    assert not [tag for tag in log.Tags()["scalars"] if " " in tag]


def test_tensorboard_folders_are_safe_and_apart(data, tmp_path):
    names = ["../../up", "a/b", "a:b", "x" * 300, "x" * 299 + "y", ".", ""]
    wild = dataclasses.replace(
        data, arms=[dataclasses.replace(data.arms[0], name=n, runs=data.arms[0].runs[:1]) for n in names]
    )
    export(wild, "tensorboard", tmp_path / "logs")
    assert os.listdir(tmp_path) == ["logs"]
    folders = [path for path in (tmp_path / "logs").iterdir() if path.is_dir()]
    assert len(folders) == len(names)
    assert all((path / "seed0").is_dir() for path in folders)


# ---- MLflow ---------------------------------------------------------------------------------


def children(client, folder_or_name, parent=None):
    """The parent and its children by (arm, seed)."""
    experiment = client.get_experiment_by_name(folder_or_name)
    found = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in found if run.data.tags["trickbag.role"] == "study")
    below = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(below) == len(found) - 1
    by = {(run.data.tags["trickbag.arm"], int(run.data.tags["trickbag.seed"])): run for run in below}
    assert len(by) == len(below), "no run twice"
    return parent, by


@pytest.fixture(scope="module")
def tracked(data, runs, tmp_path_factory):
    """A study in a real SQLite store, and a client that reads it."""
    folder = tmp_path_factory.mktemp("study")
    assert export(data, "mlflow", folder, runs=runs) == [folder / "mlflow.db"]
    from mlflow import MlflowClient

    return folder, MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def test_mlflow_holds_the_study(data, runs, tracked):
    folder, client = tracked
    assert sorted(p.name for p in folder.iterdir()) == ["mlflow-artifacts", "mlflow.db"]
    parent, below = children(client, data.title)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == data.title
    assert parent.data.params["factor/epochs"] == "2 -> 4"
    assert parent.data.metrics["effect/mixup"] == pytest.approx(data.analysis.effects[0].estimate)
    assert parent.data.metrics["gain"] == pytest.approx(data.analysis.overall.estimate)
    assert parent.data.tags["trickbag.provenance.code"] == "abc123"
    assert parent.data.tags["trickbag.provenance.data_fingerprint"] == "f00"
    assert parent.data.tags["trickbag.recommendation"] == "epochs"
    for effect in data.analysis.effects:
        assert parent.data.tags[f"trickbag.verdict.{effect.factor}"] == effect.verdict
        assert parent.data.metrics[f"effect_low/{effect.factor}"] == pytest.approx(effect.low)
        assert parent.data.metrics[f"effect_high/{effect.factor}"] == pytest.approx(effect.high)
    for name, value in {
        "recommendation/gain": 4.8,
        "recommendation/gain_low": 4.1,
        "recommendation/gain_high": 5.5,
        "recommendation/cost_multiple": 2.0,
        "comparison/candidate_vs_baseline/test/difference": 7.07,
        "comparison/candidate_vs_baseline/test/low": 6.4,
        "comparison/candidate_vs_baseline/test/high": 7.7,
        "comparison/candidate_vs_baseline/test/p_holm": 4e-4,
        "gain_test": 7.07,
        "runs/finished": 10,
        "runs/diverged": 1,
        "runs/failed": 1,
        "plan/epochs_trained": 40.5,
    }.items():
        assert parent.data.metrics[name] == pytest.approx(value)
    assert below.keys() == {(a.name, r.seed) for a in data.arms for r in a.runs}
    for arm in data.arms:
        for run in arm.runs:
            logged = below[arm.name, run.seed]
            assert logged.info.status == {"finished": "FINISHED"}.get(run.status, "FAILED")
            assert logged.info.end_time - logged.info.start_time == 1000 * run.seconds
            tags = logged.data.tags
            assert (tags["trickbag.run"], tags["trickbag.status"]) == (run.run_id, run.status)
            assert (tags["trickbag.stage"], tags["trickbag.message"]) == (run.stage, run.message)
            params = logged.data.params
            assert (params["arm"], params["seed"]) == (arm.name, str(run.seed))
            for factor in data.factors:
                on = factor.key in arm.factors_on
                assert params[f"factor/{factor.key}"] == ("on" if on else "off")
            assert logged.data.metrics.get("final/accuracy") == run.value
            if run.value is not None:
                assert params["recipe/epochs"] == str(load("digits_baseline").epochs)
                assert logged.data.metrics["final/nll"] == run.metrics["nll"]
                history = client.get_metric_history(logged.info.run_id, "ema/nll")
                assert [(m.step, m.value) for m in history] == [(e, 1 / e) for e in range(1, EPOCHS + 1)]
                assert history[1].timestamp - history[0].timestamp == 2500
                made = (runs / run.run_id / "run.json").stat().st_mtime
                assert logged.info.start_time == round(1000 * made)
            history = client.get_metric_history(logged.info.run_id, "selection/accuracy")
            assert [(m.step, m.value) for m in history] == run.curve


def test_mlflow_artifacts_of_the_study(data, tracked):
    folder, client = tracked
    parent, _ = children(client, data.title)
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"effects.json", "report.html", "report.json", "report.md", "recipes"}
    place = folder / "mlflow-artifacts" / parent.info.run_id / "artifacts"
    assert ReportData.from_json((place / "report.json").read_text()) == data
    assert (place / "recipes" / "baseline.yaml").read_text() == data.recipes["baseline"]
    assert (place / "recipes" / "recommended.yaml").read_text() == data.recommendation.recipe
    assert "<html" in (place / "report.html").read_text()
    table = json.loads((place / "effects.json").read_text())
    by = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [r["verdict"] for r in by[:2]] == [e.verdict for e in data.analysis.effects]
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [
        {"path": "effects.json", "type": "table"}
    ]


def test_mlflow_again_updates_and_adds_nothing(data, runs, tracked):
    folder, client = tracked

    def state():
        parent, below = children(client, data.title)
        points = {
            (key, name): [
                (m.step, m.value, m.timestamp) for m in client.get_metric_history(r.info.run_id, name)
            ]
            for key, r in [("parent", parent), *below.items()]
            for name in r.data.metrics
        }
        return parent.info.run_id, {key: r.info.run_id for key, r in below.items()}, points

    before = state()
    export(data, "mlflow", folder, runs=runs)
    assert state() == before

    longer = edit_run(data, "+mixup", 2, status="finished", value=82.5, message="", curve=[(1.0, 80.0)])
    longer = edit_run(longer, "candidate", 0, value=80.5)  # lower than what was logged
    longer = edit_run(longer, "candidate", 1, run_id="retrained")
    export(longer, "mlflow", folder, runs=runs)
    parent, below = children(client, data.title)
    assert parent.info.run_id == before[0]
    changed = {key for key, run in below.items() if run.info.run_id != before[1][key]}
    assert changed == {("candidate", 1)}
    assert below["+mixup", 2].info.status == "FINISHED"
    assert below["+mixup", 2].data.metrics["final/accuracy"] == 82.5
    assert below["+mixup", 2].data.tags["trickbag.message"] == ""
    assert below["candidate", 0].data.metrics["final/accuracy"] == 80.5
    assert len(client.get_metric_history(below["candidate", 0].info.run_id, "raw/nll")) == EPOCHS

    export(data, "mlflow", folder, runs=runs)
    parent, below = children(client, data.title)
    assert parent.info.run_id == before[0]
    assert "final/accuracy" not in below["+mixup", 2].data.metrics, "what it had is taken back"
    assert below["candidate", 0].data.metrics["final/accuracy"] == data.arm("candidate").runs[0].value


def test_mlflow_names_no_trick_that_an_arm_predicts_without(data):
    """The arm without it is read off the run that was trained with it."""
    factors = [Factor("sgd", "+ sgd", "absent", "sgd", True), *data.factors[1:]]
    one = dataclasses.replace(data, factors=factors)
    arm, run = one.arms[0], one.arms[0].runs[0]
    on = dataclasses.replace(arm, factors_on=["sgd"])
    names = [{key for key in child_of(one, a, run, None, 1).params if "/sgd" in key} for a in (arm, on)]
    assert names[0] == {"factor/sgd"}
    assert "recipe/tricks/sgd/lr" in names[1]


def test_mlflow_of_a_study_that_goes_on(data, runs, tmp_path):
    from mlflow import MlflowClient

    going = dataclasses.replace(awkward(data), unfinished="11 of 12 runs; go on with: resume")
    export(awkward(data), "mlflow", tmp_path, runs=runs, name="it")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    over = dataclasses.replace(
        edit_run(going, "candidate", 2, status="finished", value=87.0), unfinished="", recommendation=None
    )
    seen = []
    for one in (going, over, going):
        export(one, "mlflow", tmp_path, runs=runs, name="it")
        parent, below = children(client, "it")
        seen.append(parent.info.run_id)
        ended = {(a.name, r.seed) for a in one.arms for r in a.runs if r.status != "pending"}
        assert below.keys() == ended
        assert parent.info.status == ("RUNNING" if one.unfinished else "FINISHED")
        assert parent.data.tags["trickbag.unfinished"] == one.unfinished
        assert parent.data.metrics["runs/pending"] == bool(one.unfinished)
        logged = below["candidate", 0].data.metrics
        assert (logged["sealed/balanced_accuracy"], logged["final/accuracy"]) == (81.5, 90.0)
        assert logged["raw/accuracy"] == pytest.approx(data.arm("candidate").runs[0].curve[-1][1])
        assert not [key for key in logged if " " in key]
        assert ("recommendation/gain" in parent.data.metrics) == (one is going), "nothing stale is kept"
    assert len(set(seen)) == 2


def test_mlflow_at_any_uri_under_any_name(data, tracked):
    folder, client = tracked
    uri, here = f"sqlite:///{folder / 'mlflow.db'}", os.path.exists("mlruns")
    small = dataclasses.replace(data, arms=data.arms[:1])
    nowhere = folder / "nowhere"
    assert export(small, "mlflow", nowhere, tracking_uri=uri, name="shared\nserver") == [uri]
    assert not nowhere.exists()
    assert os.path.exists("mlruns") == here, "nothing is left in the working directory"
    _, below = children(client, "shared server")
    assert len(below) == 3
    client.delete_experiment(client.get_experiment_by_name("shared server").experiment_id)
    with pytest.raises(StudyError, match="was deleted"):
        export(small, "mlflow", nowhere, tracking_uri=uri, name="shared server")
    with pytest.raises(StudyError, match="says no"):
        export(small, "mlflow", nowhere, tracking_uri="nonsense://x")


def test_mlflow_tells_nobody(tracked, monkeypatch):
    """Even where neither tests nor CI switch its telemetry off."""
    from mlflow.telemetry import utils

    monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False, raising=False)
    assert utils.is_telemetry_disabled()


# ---- what goes wrong ------------------------------------------------------------------------


def test_says_no_clearly(data, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="did you mean 'parquet'"):
        export(data, "parquette", tmp_path)
    with pytest.raises(UsageError, match="csv, parquet"):
        export(data, "xml", tmp_path)
    with pytest.raises(UsageError, match="no tracking URI"):
        export(data, "csv", tmp_path, tracking_uri="sqlite://")
    with pytest.raises(UsageError, match="not a folder"):
        export(data, "csv", tmp_path, runs=tmp_path / "none")
    (tmp_path / "file").write_text("")
    for kind in KINDS:
        with pytest.raises(UsageError, match=r"cannot write .*file"):
            export(data, kind, tmp_path / "file")
        with pytest.raises(UsageError, match=r"cannot write .*file"):
            export(data, kind, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == ""
    monkeypatch.setattr("trickbag.report.exports.find_spec", lambda name: None)
    for kind in ("mlflow", "tensorboard"):
        with pytest.raises(UsageError, match=rf"pip install 'trickbag\[{kind}\]'"):
            export(data, kind, tmp_path / kind)
    assert not (tmp_path / "mlflow").exists()


def test_a_full_disk_leaves_no_half_file(data, tmp_path, monkeypatch):
    export(data, "csv", tmp_path)
    old = {path: path.read_bytes() for path in tmp_path.iterdir()}
    real = builtins.open

    def full(path, mode="r", *more, **named):
        if "w" in mode:
            raise OSError(28, "No space left on device", str(path))
        return real(path, mode, *more, **named)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(UsageError, match="no space left"):
        export(dataclasses.replace(data, title="new"), "csv", tmp_path)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old
