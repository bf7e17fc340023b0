"""Everything a report shows, as plain values that go to JSON and back, and the verdict in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from trickbag.errors import StudyError
from trickbag.study.statistics import Analysis, Effect

Status = Literal["finished", "diverged", "failed", "pending"]

DESIGNS = {
    "ladder": "ladder: factors are added one after another, each rung judged against the one below",
    "leave-one-out": "leave-one-out: the candidate against itself without each factor",
    "one-at-a-time": "one at a time: the baseline against itself with each factor",
    "screen": "screen: a Plackett-Burman design with full foldover, each effect read off all runs",
    "factorial": "factorial: every combination of the crossed factors",
    "auto": "auto: a pilot, a Plackett-Burman screen with full foldover, a race of single changes around the "
    "best recipe so far, and a confirmation on fresh seeds",
}


@dataclass(frozen=True)
class RunResult:
    """One run of an arm.

    Attributes:
        seed: its seed.
        run_id: content address of the run.
        status: finished, diverged, failed, or pending: decided, and not ended yet.
        value: primary metric on the selection split in points; None without one.
        metrics: everything else that was measured, by name.
        seconds: wall time of training and evaluation.
        curve: ``(epoch, value)`` of the primary metric on the selection split.
        message: why it diverged or failed.
        transductive: test images, without their labels, took part in its training.
        costs: ``training_seconds``, ``inference_ms`` (an image, on the study's device), ``memory_mb`` (peak
            of the process), ``epochs`` (trained for this run alone), as far as measured.
        stage: round of the study that asked for it first.
        sealed: primary metric on the sealed split in points; None unless the study has opened it.
    """

    seed: int
    run_id: str
    status: Status
    value: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    curve: list[tuple[float, float]] = field(default_factory=list)
    message: str = ""
    transductive: bool = False
    costs: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    sealed: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """One recipe of the study and its runs."""

    name: str
    label: str
    factors_on: list[str]
    runs: list[RunResult]

    @property
    def values(self) -> dict[int, float]:
        """Primary metric by seed, of the runs that have one."""
        return {r.seed: r.value for r in self.runs if r.value is not None and math.isfinite(r.value)}

    @property
    def transductive(self) -> bool:
        """True if test images, without their labels, took part in the training of a run."""
        return any(run.transductive for run in self.runs)

    @property
    def mean(self) -> float | None:
        """Mean of the primary metric; None if no run has one."""
        return fmean(self.values.values()) if self.values else None

    @property
    def seconds(self) -> float | None:
        """Mean wall time of the finished runs; None without one."""
        times = [r.seconds for r in self.runs if r.status == "finished" and r.seconds > 0]
        return fmean(times) if times else None


@dataclass(frozen=True)
class Factor:
    """One entry of ``diff(baseline, candidate)``; ``passive`` ones cost no training run of their own."""

    key: str
    label: str
    before: str
    after: str
    passive: bool = False


@dataclass(frozen=True)
class Metric:
    """One number that is measured of every run.

    Attributes:
        name: key in ``RunResult.metrics`` or ``RunResult.costs``; the primary one is ``RunResult.value``.
        label: for people, with the unit.
        scale: what a stored number is multiplied by to be shown (100 for fractions shown in points); of the
            primary metric too, which run directories hold as a fraction and ``RunResult.value`` in points.
        higher_is_better: None if neither is.
    """

    name: str
    label: str
    scale: float = 1.0
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class PairEffect:
    """Interaction of two factors, in points: what one buys more (or less) when the other is on.

    Attributes:
        first, second: keys of the factors.
        estimate: of the interaction.
        low, high: its interval, which holds for all pairs at once; None without one.
        aliased: other interactions that the design cannot tell from it, as ``"a x b"``.
    """

    first: str
    second: str
    estimate: float
    low: float | None = None
    high: float | None = None
    aliased: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """One stage of the study, as a row of its history.

    Attributes:
        name: pilot, screen, refine, confirm, or the design's name.
        rounds: decisions that it took.
        runs: training runs that it added.
        seconds: time that they took, one after the other.
        text: what was decided in it, and why, in words.
    """

    name: str
    rounds: int
    runs: int
    seconds: float
    text: str


@dataclass(frozen=True)
class Recommendation:
    """The recipe that the study recommends: best expected value less the price of its training time.

    Attributes:
        factors_on: keys of its factors.
        arm: name of the arm, if it was run.
        recipe: YAML.
        gain: expected gain over the baseline in points, on the selection split.
        low, high: interval of that expectation; None without one.
        cost_multiple: training time as a multiple of the baseline's.
        reasons: a sentence for each factor, by key: why it is in or out.
    """

    factors_on: list[str]
    arm: str | None
    recipe: str
    gain: float
    low: float | None
    high: float | None
    cost_multiple: float | None
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """One look at the sealed split."""

    time: str
    split: str
    arms: list[str]
    seeds: list[int]


@dataclass(frozen=True)
class Comparison:
    """Two arms on fresh seeds, in points.

    Attributes:
        plus, minus: names of the arms.
        split: ``selection`` or the sealed one.
        difference: mean of plus minus minus.
        low, high: t interval at the corrected level.
        low_bca, high_bca: bias-corrected and accelerated bootstrap interval; None with too few seeds.
        p: two-sided p-value of the paired t test.
        p_holm: after Holm's correction over the comparisons of its split.
        chance: probability that a new run of plus beats a new run of minus with the same seed.
        pairs: ``(seed, difference)``.
        note: why an interval is missing, how many runs diverged, or what else to know.
    """

    plus: str
    minus: str
    split: str
    difference: float
    low: float | None
    high: float | None
    low_bca: float | None
    high_bca: float | None
    p: float | None
    p_holm: float | None
    chance: float | None
    pairs: list[tuple[int, float]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True)
class Residual:
    """What the model of a study left unexplained of one run, in points."""

    arm: str
    seed: int
    fitted: float
    residual: float


@dataclass(frozen=True)
class Confirmation:
    """Baseline against candidate on the sealed split, in points.

    Attributes:
        baseline: mean of the baseline.
        candidate: mean of the candidate.
        difference: candidate minus baseline.
        low: lower end of the interval; None with a single seed.
        high: its upper end.
        p: two-sided p-value of the paired test.
        n: seeds.
        opened: when the split was opened, ISO 8601, every time.
        split: its name.
    """

    baseline: float
    candidate: float
    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    opened: list[str] = field(default_factory=list)
    split: str = "test"


@dataclass(frozen=True)
class ReportData:
    """What a study has found so far, ready to be shown.

    Attributes:
        title: heading.
        data_name: name of the data set.
        design: a key of :data:`DESIGNS`.
        baseline: name of the baseline's arm.
        candidate: name of the candidate's arm.
        delta: margin of equivalence in points.
        alpha: family-wise level.
        arms: in the order of the design.
        analysis: effects; its factors are the keys of ``factors``.
        factors: what was switched, by key.
        metric: name of the primary metric.
        confirm: result on the sealed split; None while it is sealed.
        plan: figures of the plan: ``results`` (an arm and a seed each), ``training_runs`` (that these are
            read off, those of other studies included), ``epochs_naive`` (if each result were trained by
            itself), ``epochs_trained``, ``budget``, ``seconds_estimated``, ``seconds_actual``, or others.
            Keys that begin with ``seconds`` are shown as durations.
        provenance: code version, data fingerprint, data facts, seeds, hardware, versions, command.
        recipes: YAML by name.
        metrics: what can be shown in place of the primary metric, costs included; the primary one first.
        analyses: the same effects in terms of each of the other metrics, by name, in the metric's own unit
            times its scale. They inform; verdicts are about the primary metric.
        stages: what was done, in order.
        recommendation: recipe to use; None where the design gives none.
        interactions: pairs of factors, largest first.
        attribution: share of each factor, by key, in the gain of the recommended recipe (or else of the
            candidate) over the baseline, in points: its own effect and half of each interaction.
        chances: probability, by factor key, that a run with it beats the run of the same seed without.
        comparisons: arms on fresh seeds.
        openings: every look at the sealed split.
        residuals: of the model behind ``analysis``.
        aliases: what the design cannot tell apart, a sentence each.
        unfinished: how far the study is and how to go on, in a sentence; empty once it is complete.
    """

    title: str
    data_name: str
    design: str
    baseline: str
    candidate: str
    delta: float
    alpha: float
    arms: list[ArmResult]
    analysis: Analysis
    factors: list[Factor]
    metric: str = "accuracy"
    confirm: Confirmation | None = None
    plan: dict[str, float | int | str | None] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, str] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    analyses: dict[str, Analysis] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    recommendation: Recommendation | None = None
    interactions: list[PairEffect] = field(default_factory=list)
    attribution: dict[str, float] = field(default_factory=dict)
    chances: dict[str, float] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    openings: list[Opening] = field(default_factory=list)
    residuals: list[Residual] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    unfinished: str = ""

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, if it was run."""
        return next((a for a in self.arms if a.name == name), None)

    def label(self, key: str) -> str:
        """What to call the factor with that key."""
        return next((f.label for f in self.factors if f.key == key), key)

    @property
    def seeds(self) -> list[int]:
        """Every seed that was run."""
        return sorted({r.seed for arm in self.arms for r in arm.runs})

    @property
    def ranked(self) -> list[Effect]:
        """Effects, largest first; those without an estimate last."""
        return sorted(
            self.analysis.effects,
            key=lambda e: (e.estimate is None, -(e.estimate or 0.0), self.label(e.factor)),
        )

    def to_json(self) -> str:
        """The content as JSON."""
        from pydantic import TypeAdapter

        return TypeAdapter(ReportData).dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ReportData:
        """Inverse of :meth:`to_json`.

        Raises:
            StudyError: the text is not a report's content.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(ReportData).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its start"
            raise StudyError(
                f"not the content of a report: {first['msg']} at {place}",
                expected="JSON as written by ReportData.to_json",
            ) from error


def points(value: float, digits: int = 2) -> str:
    """A signed difference, with a true minus sign: ``+0.52``, ``−1.30``, ``0.00``."""
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """``[−0.10, +0.52]``, or a dash without an interval."""
    return "–" if low is None or high is None else f"[{points(low)}, {points(high)}]"


def p_value(p: float | None) -> str:
    """``< 0.001``, ``0.021``, ``0.34``, or a dash."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """``42 s``, ``3.5 min``, ``2.1 h``, ``4.0 d``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= 90):
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
