"""The report as one self-contained HTML file: no scripts, no requests."""

from __future__ import annotations

import re
from statistics import fmean, stdev
from typing import Any

from trickbag.report import charts, svg
from trickbag.report.content import (
    ArmResult,
    ReportData,
    duration,
    interval,
    p_value,
    points,
)
from trickbag.report.wording import cost_multiple, methods, verdict

LADDER_TITLES = {
    "ladder": "The ladder: one factor after another",
    "leave-one-out": "The reverse ladder: the candidate without each factor",
    "one-at-a-time": "The baseline with each factor",
}
_PLAN_LABELS = {
    "runs": "runs in the study",
    "trained": "trained for it",
    "shared": "shared with others",
    "seconds_estimated": "time, estimated",
    "seconds_actual": "time, actual",
    "detectable": "smallest detectable effect, planned",
}


def render(data: ReportData) -> str:
    """The report of a study as HTML, readable offline, on a phone and on paper."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trickbag.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "tight": _tight, "p_value": p_value, "duration": duration}
    environment.globals |= {"interval": interval, "glyph": svg.glyph}
    highlighted = charts.highlighted(data)
    return environment.get_template("report.html").render(
        data=data,
        verdict=verdict(data),
        methods=methods(data),
        level=_tight(f"{100 * (1 - data.alpha):g} %"),
        forests=[charts.forest(data, w) for w in (charts.WIDE, charts.NARROW)]
        if data.analysis.effects
        else [],
        ladders=[c for w in (charts.WIDE, charts.NARROW) if (c := charts.ladder(data, w))],
        ladder_title=LADDER_TITLES.get(data.design, "All arms"),
        slopes=charts.slopes(data),
        curves=[c for w in (charts.WIDE, charts.NARROW) if (c := charts.curves(data, w))],
        highlighted=highlighted,
        others=len(data.arms) - len(highlighted),
        rows=[_row(data, arm) for arm in charts.ordered_arms(data)],
        metrics=_metric_names(data),
        trouble=[(arm, run) for arm in data.arms for run in arm.runs if run.status != "finished"],
        plan=[
            (_PLAN_LABELS.get(k, _words(k)), _plan_value(k, v)) for k, v in data.plan.items() if v is not None
        ],
        provenance=[(_words(k), _facts(v)) for k, v in data.provenance.items()],
    )


def _tight(text: str) -> str:
    """Keep intervals, and numbers and their percent signs, on one line."""
    text = re.sub(r"\[[^\]\s]+, [^\]\s]+\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plan_value(key: str, value: float | int | str) -> str:
    if isinstance(value, str):
        return value
    if key.startswith("seconds"):
        return duration(value)
    return f"{value:.2f} points" if key == "detectable" else f"{value:g}"


def _facts(value: Any) -> list[tuple[str, str]]:
    """A value of the provenance as named facts; a plain value has no name."""
    if isinstance(value, dict):
        return [(_words(str(k)), _plain(v)) for k, v in value.items()]
    return [("", _plain(value))]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(k))} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value)
    return str(value)


def _metric_names(data: ReportData) -> list[str]:
    return list(dict.fromkeys(name for arm in data.arms for run in arm.runs for name in run.metrics))


def _row(data: ReportData, arm: ArmResult) -> dict[str, Any]:
    values = list(arm.values.values())
    multiple = cost_multiple(data, arm)
    cells = []
    for name in _metric_names(data):
        found = [r.metrics[name] for r in arm.runs if name in r.metrics]
        cells.append(f"{fmean(found):.4g}" if found else "–")
    return {
        "label": arm.label,
        "finished": f"{sum(r.status == 'finished' for r in arm.runs)} of {len(arm.runs)}",
        "mean": "–" if arm.mean is None else f"{arm.mean:.2f}",
        "sd": f"{stdev(values):.2f}" if len(values) > 1 else "–",
        "time": "–" if arm.seconds is None else duration(arm.seconds),
        "multiple": "–" if multiple is None else f"×{multiple:.2f}",
        "metrics": cells,
    }
