"""From run directories and the store to a report."""

from __future__ import annotations

import platform
import shlex
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trickbag.engine.device import available_cores
from trickbag.engine.evaluate import RAW, main_readout
from trickbag.engine.files import write_text
from trickbag.engine.run import Run
from trickbag.errors import StudyError, TrickbagError
from trickbag.recipe.diff import describe
from trickbag.recipe.read import dump
from trickbag.report.content import (
    ArmResult,
    Confirmation,
    Factor,
    Metric,
    Opening,
    ReportData,
    RunResult,
    Stage,
    Status,
)
from trickbag.study.conduct import Conduct
from trickbag.study.costs import whole_seconds
from trickbag.study.design import BASELINE, CANDIDATE, Arm
from trickbag.study.findings import Findings
from trickbag.study.jobs import Training
from trickbag.study.known import POINTS
from trickbag.study.protocol import Reading, Round
from trickbag.study.statistics import Contrast, analyze
from trickbag.study.store import covered_by
from trickbag.study.telling import summarize

MEGABYTE = 1e6
METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", POINTS),
        Metric("balanced_accuracy", "balanced accuracy", POINTS),
        Metric("top5_accuracy", "top-5 accuracy", POINTS),
        Metric("nll", "NLL, nats", 1.0, False),
        Metric("nll_calibrated", "calibrated NLL, nats", 1.0, False),
        Metric("ece", "ECE, points", POINTS, False),
        Metric("training_seconds", "training time, s", 1.0, False),
        Metric("inference_ms", "inference time, ms an image", 1.0, False),
        Metric("memory_mb", "peak memory, MB", 1.0, False),
        Metric("epochs", "epochs trained anew", 1.0, None),
    )
}


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
    """Everything that a study's report shows, read from its runs.

    Raises:
        StudyError: other code has trained them, and this code cannot read them.
    """
    if conduct.folder.changed:
        _check_readable(conduct)
    return _Collector(conduct, workers).report()


def _check_readable(conduct: Conduct) -> None:
    with conduct.folder.store(readonly=True) as store:
        rows = [row for row in store.readings() if row.status == "finished"]
    arms = {arm.on: name for name, arm in conduct.arms.items()}
    lost = [
        row
        for row in rows
        if row.factors not in arms or conduct.read(arms[row.factors], row.seed, row.split) is None
    ]
    if lost:
        raise StudyError(
            f"{len(lost)} of {len(rows)} results cannot be found with this code "
            f"({'; '.join(conduct.folder.changed)})",
            where=str(conduct.folder.path),
            fix="install the versions that trained them; what was reported before is left as it is",
        )


@dataclass(frozen=True)
class _Collector:
    conduct: Conduct
    workers: int | None

    def report(self) -> ReportData:
        conduct, spec, layout = self.conduct, self.conduct.spec, self.conduct.layout
        arms = [self.arm(arm) for arm in conduct.arms.values()]
        metrics = self.metrics(arms)
        findings = Findings(conduct, {arm.name: arm for arm in arms}, metrics, self.covered)
        return ReportData(
            title=spec.title or f"{len(layout.factors)} factors on {conduct.data.facts.name}, {spec.design}",
            data_name=conduct.data.facts.name,
            design=spec.design,
            baseline=BASELINE,
            candidate=CANDIDATE,
            delta=spec.delta,
            alpha=spec.alpha,
            arms=arms,
            analysis=findings.analysis,
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
            metric=spec.metric.replace("_", " "),
            confirm=self.confirmation(findings),
            plan=self.figures(arms),
            provenance=self.provenance(),
            recipes={"baseline": dump(spec.baseline), "candidate": dump(spec.candidate)},
            metrics=metrics,
            analyses=findings.analyses,
            stages=self.stages(),
            recommendation=findings.recommendation,
            interactions=findings.interactions,
            attribution=findings.attribution,
            chances=findings.chances,
            comparisons=findings.comparisons,
            openings=[Opening(row["time"], row["split"], row["arms"], row["seeds"]) for row in self.openings],
            residuals=findings.residuals,
            aliases=findings.aliases,
            unfinished=self.unfinished(arms),
        )

    def unfinished(self, arms: Sequence[ArmResult]) -> str:
        """How far the study is, and how to go on, in a sentence; nothing if it is complete."""
        conduct = self.conduct
        pending = any(run.status == "pending" for arm in arms for run in arm.runs)
        if conduct.rounds and not pending and not conduct.confirmation_pending and not self.undecided:
            return ""
        done, total = conduct.progress()
        decided = f"{done} of the {total} training runs that have been decided have ended"
        return f"{decided}; go on with: trickbag study resume {shlex.quote(str(conduct.folder.path))}"

    @property
    def undecided(self) -> bool:
        """Whether the design would ask for more."""
        try:
            return self.conduct.propose() is not None
        except TrickbagError:
            return True

    @cached_property
    def openings(self) -> list[dict[str, Any]]:
        with self.conduct.folder.store(readonly=True) as store:
            return store.openings()

    @cached_property
    def covered(self) -> set[tuple[str, int]]:
        """Arms and seeds whose numbers on the sealed split have been opened."""
        return covered_by(self.openings)

    @cached_property
    def failures(self) -> dict[str, str]:
        with self.conduct.folder.store(readonly=True) as store:
            events = store.events()
        return {
            e["job"]: e["detail"].strip().splitlines()[-1]
            for e in events
            if e["event"] == "failed" and e["detail"].strip()
        }

    @cached_property
    def seeds(self) -> dict[str, dict[int, str]]:
        """By arm: its seeds, and the stage that asked for each first."""
        found: dict[str, dict[int, str]] = {name: {} for name in self.conduct.arms}
        decided = self.conduct.rounds if self.conduct.adaptive else self.conduct.planned
        for one in decided:
            for point in one.points:
                found[self.conduct._arm(point.cell).name].setdefault(point.seed, one.stage)
        return found

    def arm(self, arm: Arm) -> ArmResult:
        conduct = self.conduct
        training = conduct.training_of(arm.name)
        runs = [self.run(arm, training, seed, stage) for seed, stage in self.seeds[arm.name].items()]
        return ArmResult(arm.name, arm.name, list(arm.on), runs)

    def run(self, arm: Arm, training: Training, seed: int, stage: str) -> RunResult:
        conduct, metric = self.conduct, self.conduct.spec.metric
        readout = main_readout(conduct.compile(arm.recipe))
        run = conduct.run_of(training, seed)
        result, metrics = run.result(), conduct.read(arm.name, seed)
        rows = run.metrics()
        weights = readout.weights if all(readout.weights in row for row in rows) else RAW
        curve = [(row["epoch"], POINTS * row[weights][metric]) for row in rows if weights in row]
        seconds = whole_seconds(run)
        costs = self.costs(arm, run, result)
        told = bool((result or {}).get("transductive")) or self.transductive(arm, run)
        if result is not None and result["status"] == "diverged":
            message = f"loss {result['diagnosis']['loss']} at step {result['diagnosis']['step']}"
            return RunResult(seed, run.id, "diverged", None, {}, seconds, curve, message, told, costs, stage)
        if metrics is None:
            failure = self.failures.get(f"{conduct.title(training)}, seed {seed}")
            status: Status = "failed" if failure else "pending"
            message = failure or "has not ended"
            return RunResult(seed, run.id, status, None, {}, seconds, curve, message, stage=stage)
        rest = {name: value for name, value in metrics.items() if name != metric}
        value = POINTS * metrics[metric]
        opened = conduct.read(arm.name, seed, "test") if (arm.name, seed) in self.covered else None
        sealed = POINTS * opened[metric] if opened else None
        return RunResult(
            seed, run.id, "finished", value, rest, seconds, curve, "", told, costs, stage, sealed
        )

    def costs(self, arm: Arm, run: Run, result: dict[str, Any] | None) -> dict[str, float]:
        if result is None:
            return {}
        cost = result["cost"]
        found = {
            "training_seconds": whole_seconds(run, "training_seconds"),
            "epochs": cost.get("epochs_trained", result["epochs"]),
        }
        if cost.get("peak_memory_bytes"):
            found["memory_mb"] = cost["peak_memory_bytes"] / MEGABYTE
        if result["status"] == "finished":
            readout, facts = main_readout(self.conduct.compile(arm.recipe)), self.conduct.data.facts
            seconds = self.conduct.reader(run, arm).seconds(readout, "selection", facts)
            if seconds is not None:
                found["inference_ms"] = 1000 * seconds
        return found

    def transductive(self, arm: Arm, run: Run) -> bool:
        """Whether another model that an arm predicts with has learned from test images."""
        readout = main_readout(self.conduct.compile(arm.recipe))
        if (run.result() or {}).get("status") != "finished" or not any(t.sources() for t in readout.tricks):
            return False
        settled = self.conduct.reader(run, arm).settled(readout)
        members = (source.run for trick in settled.tricks for source in trick.sources().values())
        results = (Run(Path(path)).result() or {} for path in members if path is not None)
        return any(bool(result.get("transductive")) for result in results)

    def metrics(self, arms: list[ArmResult]) -> list[Metric]:
        """What was measured of at least one run, the primary metric first."""
        runs = [run for arm in arms for run in arm.runs if run.status == "finished"]
        there = {name for run in runs for name in (*run.metrics, *run.costs)}
        primary = METRICS[self.conduct.spec.metric]
        return [primary, *(m for m in METRICS.values() if m.name in there and m is not primary)]

    def confirmation(self, findings: Findings) -> Confirmation | None:
        conduct = self.conduct
        final = findings.final

        def values(arm: str) -> dict[int, float | None]:
            seeds = (seed for name, seed in self.covered if name == arm)
            found = {seed: conduct.read(arm, seed, "test") for seed in sorted(seeds)}
            return {seed: POINTS * m[conduct.spec.metric] for seed, m in found.items() if m}

        baseline, candidate = values(BASELINE), values(final)
        paired_seeds = baseline.keys() & candidate.keys()
        if not paired_seeds or final == BASELINE:
            return None
        # A run that diverged beside one that was opened is the worst outcome of all, not a gap.
        ended = [(arm, seed) for arm, seed in findings.diverged if arm in (BASELINE, final)]
        gone = [(a, s) for a, s in ended if s in (candidate if a == BASELINE else baseline)]
        contrast = Contrast(final, final, BASELINE)
        both = {BASELINE: baseline, final: candidate}
        effect = analyze(both, [contrast], alpha=conduct.spec.alpha, diverged=gone).effects[0]
        if effect.estimate is None:
            return None
        return Confirmation(
            baseline=_mean({seed: baseline[seed] for seed in paired_seeds}),
            candidate=_mean({seed: candidate[seed] for seed in paired_seeds}),
            difference=effect.estimate,
            low=effect.low,
            high=effect.high,
            p=effect.p,
            n=effect.n_pairs,
            opened=[row["time"] for row in self.openings],
        )

    def stages(self) -> list[Stage]:
        known: set[str] = set()
        rounds: dict[str, list[Round]] = {}
        runs: dict[str, list[Reading]] = {}
        for seen in self.conduct.seen:
            stage = seen.round.stage
            rounds.setdefault(stage, []).append(seen.round)
            new = {
                r.run: r for r in seen.readings if r.run not in known and (r.value is not None or r.diverged)
            }
            runs.setdefault(stage, []).extend(new.values())
            known |= new.keys()
        return [
            Stage(name, len(of), len(runs[name]), sum(map(self.own_seconds, runs[name])), summarize(of))
            for name, of in rounds.items()
        ]

    def own_seconds(self, reading: Reading) -> float:
        """Seconds of a run itself, without what it took over from another."""
        result = Run(self.conduct.folder.runs / reading.run).result()
        return float(result["cost"]["seconds"]) if result else 0.0

    def figures(self, arms: list[ArmResult]) -> dict[str, float | int | str | None]:
        conduct = self.conduct
        known = {a.name: [r for r in a.runs if r.status in ("finished", "diverged")] for a in arms}
        runs = {run.run_id: run for found in known.values() for run in found}
        figures: dict[str, float | int | str | None] = {
            "results": sum(map(len, known.values())),
            "training_runs": len(runs),
        }
        naive = sum(conduct.arms[name].recipe.epochs * len(found) for name, found in known.items())
        figures["epochs_naive"] = naive
        figures["epochs_trained"] = round(sum(run.costs.get("epochs", 0.0) for run in runs.values()), 2)
        if conduct.spec.budget:
            figures["budget"] = str(conduct.spec.budget)
        if conduct.costs and not conduct.adaptive:
            costs = conduct.costs
            if all(t.recipe.digest in costs for t in conduct.trainings):
                each = (costs[t.recipe.digest].run(conduct.compile(t.recipe)) for t in conduct.trainings)
                figures["seconds_estimated"] = len(conduct.seeds) * sum(each)
        results = (Run(conduct.folder.runs / name).result() for name in runs)
        figures["seconds_actual"] = sum(result["cost"]["seconds"] for result in results if result)
        return figures

    def provenance(self) -> dict[str, Any]:
        conduct = self.conduct
        facts = conduct.data.facts
        known: dict[str, Any] = {
            "code": conduct.folder.code,
            "report made by other code": "; ".join(conduct.folder.changed) or None,
            "data": facts.name,
            "data fingerprint": facts.fingerprint,
            "images": ", ".join(f"{count} {split}" for split, count in facts.sizes.items()),
            "unreadable images": len(facts.bad),
            "seeds": _ranges(conduct.seeds),
            "device": conduct.spec.device,
            "processor": f"{platform.machine()}, {available_cores()} cores",
            "runs at once": self.workers,
            "versions": ", ".join(f"{name} {number}" for name, number in conduct.folder.versions.items()),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "command": conduct.folder.command,
        }
        return {name: value for name, value in known.items() if value is not None}


def _side(value: Any) -> str:
    return "absent" if value is None else describe(value)


def _ranges(numbers: Sequence[int]) -> str:
    """``0–4, 7`` for 0, 1, 2, 3, 4 and 7."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in found)


def _mean(values: Mapping[int, float | None]) -> float:
    return plain.fmean(value for value in values.values() if value is not None)
