"""From run directories to a report."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trickbag import tasks
from trickbag.engine.device import available_cores
from trickbag.engine.evaluate import RAW, Reader, main_readout
from trickbag.engine.files import read_json, write_text
from trickbag.engine.run import Run, code_version, versions
from trickbag.recipe.diff import describe
from trickbag.recipe.read import dump
from trickbag.report.content import ArmResult, Confirmation, Factor, ReportData, RunResult
from trickbag.study.conduct import Conduct, Cost
from trickbag.study.design import BASELINE, CANDIDATE, Arm
from trickbag.study.statistics import Contrast, analyze, paired

POINTS = 100.0


def write_report(conduct: Conduct, workers: int | None = None) -> Path:
    """Write ``report.html``, ``report.md`` and ``report.json`` of what a study has so far.

    Args:
        conduct: the study.
        workers: runs at once, for the record; None keeps what was recorded.

    Returns:
        The HTML file.
    """
    from trickbag.report.html import render
    from trickbag.report.text import markdown

    data = collect(conduct, workers)
    path = conduct.folder.path
    write_text(path / "report.json", data.to_json())
    write_text(path / "report.md", markdown(data))
    write_text(path / "report.html", render(data))
    return path / "report.html"


def collect(conduct: Conduct, workers: int | None = None) -> ReportData:
    """Everything that a study's report shows, read from its runs."""
    spec, layout = conduct.spec, conduct.layout
    metric = tasks.of(spec.baseline.task).primary
    arms = [_arm(conduct, arm, metric) for arm in layout.arms]
    values = {arm.name: {run.seed: run.value for run in arm.runs} for arm in arms}
    overall = Contrast(CANDIDATE, CANDIDATE, BASELINE)
    analysis = analyze(values, layout.contrasts, alpha=spec.alpha, delta=spec.delta, overall=overall)
    return ReportData(
        title=spec.title or f"{len(layout.factors)} factors on {conduct.data.facts.name}, {spec.design}",
        data_name=conduct.data.facts.name,
        design=spec.design,
        baseline=BASELINE,
        candidate=CANDIDATE,
        delta=spec.delta,
        alpha=spec.alpha,
        arms=arms,
        analysis=analysis,
        factors=[
            Factor(
                factor.key,
                factor.label,
                " & ".join(_side(change.before) for change in factor.changes),
                " & ".join(_side(change.after) for change in factor.changes),
                factor.passive,
            )
            for factor in layout.factors
        ],
        metric=metric,
        confirm=_confirmation(conduct, metric),
        plan=_figures(conduct, arms),
        provenance=_provenance(conduct, workers),
        recipes={"baseline": dump(spec.baseline), "candidate": dump(spec.candidate)},
    )


def _side(value: Any) -> str:
    return "absent" if value is None else describe(value)


def _arm(conduct: Conduct, arm: Arm, metric: str) -> ArmResult:
    training = conduct.training_of(arm.name)
    readout = main_readout(conduct.plans[arm.name])
    failures = _failures(conduct)
    runs = []
    for seed in conduct.spec.seeds:
        run = conduct.run_of(training, seed)
        result, metrics = run.result(), conduct.read(arm.name, seed)
        rows = run.metrics()
        weights = readout.weights if all(readout.weights in row for row in rows) else RAW
        curve = [(row["epoch"], POINTS * row[weights][metric]) for row in rows if weights in row]
        seconds = result["cost"]["seconds"] if result else 0.0
        told = bool((result or {}).get("transductive")) or _transductive(conduct, arm, run)
        if result is not None and result["status"] == "diverged":
            message = f"loss {result['diagnosis']['loss']} at step {result['diagnosis']['step']}"
            runs.append(RunResult(seed, run.id, "diverged", None, {}, seconds, curve, message, told))
        elif metrics is None:
            message = failures.get(conduct.job(training, seed, threads=1).name, "has not been run")
            runs.append(RunResult(seed, run.id, "failed", None, {}, seconds, curve, message))
        else:
            rest = {name: value for name, value in metrics.items() if name != metric}
            value = POINTS * metrics[metric]
            runs.append(RunResult(seed, run.id, "finished", value, rest, seconds, curve, transductive=told))
    return ArmResult(arm.name, arm.name, list(arm.on), runs)


def _transductive(conduct: Conduct, arm: Arm, run: Run) -> bool:
    """Whether another model that an arm predicts with has learned from test images."""
    readout = main_readout(conduct.plans[arm.name])
    if run.result() is None or not any(trick.sources() for trick in readout.tricks):
        return False
    settled = Reader(run, conduct.plans[arm.name]).settled(readout)
    members = (source.run for trick in settled.tricks for source in trick.sources().values())
    results = (Run(Path(path)).result() or {} for path in members if path is not None)
    return any(bool(result.get("transductive")) for result in results)


def _failures(conduct: Conduct) -> dict[str, str]:
    return {
        event["job"]: event["detail"].strip().splitlines()[-1]
        for event in conduct.folder.events("events")
        if event["event"] == "failed"
    }


def _confirmation(conduct: Conduct, metric: str) -> Confirmation | None:
    def values(arm: str) -> dict[int, float | None]:
        found = {seed: conduct.read(arm, seed, "test") for seed in conduct.spec.seeds}
        return {seed: POINTS * metrics[metric] for seed, metrics in found.items() if metrics}

    baseline, candidate = values(BASELINE), values(CANDIDATE)
    paired_seeds = baseline.keys() & candidate.keys()
    effect = paired(baseline, candidate, conduct.spec.alpha) if baseline and candidate else None
    if effect is None or effect.estimate is None:
        return None
    return Confirmation(
        baseline=_mean({seed: baseline[seed] for seed in paired_seeds}),
        candidate=_mean({seed: candidate[seed] for seed in paired_seeds}),
        difference=effect.estimate,
        low=effect.low,
        high=effect.high,
        p=effect.p,
        n=effect.n_pairs,
        opened=[event["time"] for event in conduct.folder.events("openings")],
    )


def _mean(values: Mapping[int, float | None]) -> float:
    known = [value for value in values.values() if value is not None]
    return sum(known) / len(known)


def _figures(conduct: Conduct, arms: list[ArmResult]) -> dict[str, float | int | str | None]:
    seeds = len(conduct.spec.seeds)
    needed, trained = len(arms) * seeds, len(conduct.trainings) * seeds
    figures: dict[str, float | int | str | None] = {
        "runs": needed,
        "trained": trained,
        "shared": needed - trained,
    }
    costs = conduct.folder.path / "costs.json"
    if costs.exists():
        known = {digest: Cost(**cost) for digest, cost in read_json(costs).items()}
        if all(t.recipe.digest in known for t in conduct.trainings):
            each = (known[t.recipe.digest].run(conduct.compile(t.recipe)) for t in conduct.trainings)
            figures["seconds_estimated"] = seeds * sum(each)
    results = [conduct.run_of(t, seed).result() for t in conduct.trainings for seed in conduct.spec.seeds]
    figures["seconds_actual"] = sum(result["cost"]["seconds"] for result in results if result)
    return figures


def _provenance(conduct: Conduct, workers: int | None) -> dict[str, Any]:
    facts = conduct.data.facts
    known = {
        "code": code_version(),
        "data": facts.name,
        "data fingerprint": facts.fingerprint,
        "images": ", ".join(f"{count} {split}" for split, count in facts.sizes.items()),
        "unreadable images": len(facts.bad),
        "seeds": ", ".join(map(str, conduct.spec.seeds)),
        "device": conduct.spec.device,
        "processor": f"{platform.machine()}, {available_cores()} cores",
        "runs at once": workers,
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "command": " ".join(["trickbag", *sys.argv[1:]]),
    }
    return {name: value for name, value in known.items() if value is not None}
