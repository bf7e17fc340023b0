"""The report as one self-contained HTML file, interactive, without a single request."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from trickbag.report import (
    claims,
    comparisons,
    forest,
    interactions,
    ladder,
    noise,
    rows,
    seeds,
    shown,
    svg,
    text,
    times,
    tradeoffs,
    waterfall,
)
from trickbag.report.content import Metric, ReportData, duration, interval, p_value, points
from trickbag.report.forest import NARROW, WIDE
from trickbag.report.wording import methods, verdict

LADDER_TITLES = {
    "ladder": "The ladder: one factor after another",
    "leave-one-out": "The reverse ladder: the candidate without each factor",
    "one-at-a-time": "Recipes: the baseline with each factor",
}
_PLAN_LABELS = {
    "results": "results (a recipe and a seed each)",
    "training_runs": "training runs behind them",
    "epochs_naive": "epochs if each result were trained by itself",
    "epochs_trained": "epochs trained",
    "runs": "runs in the study",
    "trained": "trained for it",
    "shared": "shared with others",
    "seconds_estimated": "time, estimated",
    "seconds_actual": "time, actual",
    "detectable": "smallest detectable effect, planned",
}


def render(data: ReportData) -> str:
    """The report of a study as HTML, readable offline, on a phone and on paper.

    Figures of the primary metric are in the page; those of other metrics are packed beside them and shown by
    the page's own script. Without scripts, everything is there for the primary metric.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("trickbag.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "tight": _tight, "p_value": p_value, "duration": duration}
    environment.globals |= {"interval": interval, "glyph": svg.glyph, "finding": shown.finding}
    environment.globals |= {"word": lambda effect: shown.word(data, effect)}
    data = shown.dressed(data)
    metrics = shown.metrics(data)
    script = resources.files("trickbag.report").joinpath("templates", "report.js").read_text(encoding="utf-8")
    highlighted, first = seeds.highlighted(data), claims.foremost(data)
    others = {m.name: figures(data, m) for m in metrics[1:]}
    drawn, residuals, arms = figures(data, metrics[0]), noise.residual_plots(data), ladder.drawn_arms(data)
    return environment.get_template("report.html").render(
        data=data,
        verdict=verdict(data),
        untested=claims.untested(data),
        how_far=text.how_far(data),
        advised_cost=times.advised_multiple(data),
        foremost=first,
        foremost_at=None if first is None else data.comparisons.index(first),
        effect_name=forest.effect_name(data),
        turning=_turning(data),
        openings=claims.openings(data),
        arm_label=lambda name: shown.arm_label(data, name),
        methods=methods(data),
        level=_tight(f"{100 * (1 - data.alpha):g} %"),
        metrics=metrics,
        shown=drawn,
        has={name: "<svg" in drawn[name] for name in drawn},
        noisy=bool(data.analysis.sd_paired is not None or residuals),
        repeated=any(len(a.values) > 1 for a in data.arms),
        kinds=list(dict.fromkeys(shown.kind_of(data, a) for a in arms)),
        fresh=_both(lambda width: comparisons.fresh(data, width)),
        waterfall=_both(lambda width: waterfall.waterfall(data, width)),
        heatmap=_both(lambda width: interactions.heatmap(data, width)),
        curves=_both(lambda width: seeds.curves(data, width)),
        below=seeds.below_frame(data),
        quiet=len(seeds.quiet_arms(data)),
        pairing=noise.pairing(data),
        residuals=residuals,
        entire=data.design in shown.ENTIRE,
        drawn=len(arms),
        ladder_title=LADDER_TITLES.get(data.design, "Measured recipes"),
        highlighted=highlighted,
        others=len(data.arms) - len(highlighted),
        effects=rows.effect_rows(data),
        arms=rows.arm_rows(data),
        runs=rows.run_rows(data),
        readings=shown.readings(data, [(a.name, r.seed) for a in data.arms for r in a.runs]),
        sealed=shown.sealed_name(data) if shown.any_sealed(data) else "",
        trouble=rows.trouble(data),
        clear=interactions.clear,
        gaps=interactions.gaps(data),
        longest=max((s.seconds for s in data.stages), default=0.0) or 1.0,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        facts=_safe_json(rows.facts(data)),
        packed=_pack(others) if others else "",
        plan=[
            (_PLAN_LABELS.get(k, _words(k)), _plan_value(k, v)) for k, v in data.plan.items() if v is not None
        ],
        provenance=[(_words(k), _facts(v)) for k, v in data.provenance.items()],
    )


def figures(data: ReportData, metric: Metric) -> dict[str, str]:
    """Every figure that follows the choice of metric, as HTML by name; what cannot be drawn is said."""
    panels = Markup("").join(
        Markup(
            '<figure><figcaption><a href="{}"><b>{}</b></a><span>{}</span></figcaption>{}</figure>\n'
        ).format(href, label, said, chart)
        for href, label, said, chart in seeds.slopes(data, metric)
    )
    drawn = {
        "forest": _both(lambda width: forest.forest(data, metric, width)),
        "ladder": _both(lambda width: ladder.ladder(data, metric, width)),
        "pareto": _both(lambda width: tradeoffs.pareto(data, metric, width)),
        "slopes": Markup('<div class="panels">{}</div>').format(panels) if panels else Markup(""),
    }
    said = {
        "forest": f"Effects were not estimated in terms of {metric.label}."
        if data.analysis.effects
        else "No factor was judged.",
        "ladder": "No run finished with a value."
        if metric.name == shown.primary(data).name
        else f"{metric.label} was not measured.",
        "pareto": f"Nothing to set against training time: {metric.label}.",
        "slopes": "No factor has a seed with both of its runs.",
    }
    return {name: drawn[name] or Markup("<p>{}</p>").format(said[name]) for name in drawn}


def _turning(data: ReportData) -> dict[str, list[str]]:
    """What to add to a factor's chip: how its effect turns with a partner."""
    found: dict[str, list[str]] = {}
    for turn in interactions.turns(data):
        found.setdefault(turn.factor, []).append(interactions.turned(data, turn))
    return found


def _both(draw: Any) -> Markup:
    """A figure for wide pages and paper, and one for phones."""
    return Markup("\n").join(chart for width in (WIDE, NARROW) if (chart := draw(width)) is not None)


def _safe_json(value: Any) -> Markup:
    """JSON that ends no script element early."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _pack(value: Any) -> str:
    """Figures as gzipped JSON in base64: a study of 30 factors has some megabytes of them."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _tight(text: str) -> str:
    """Keep intervals, and numbers and their percent signs, on one line."""
    text = re.sub(r"\[[^\]\s]+, [^\]\s]+\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    text = re.sub(r"(?<!\S)([+−]) (?=\w)", "\\1\N{NO-BREAK SPACE}", text)
    text = text.replace("→ ", "→\N{NO-BREAK SPACE}")
    text = re.sub(r"(?<=\d) (?=points\b)", "\N{NO-BREAK SPACE}", text)
    text = re.sub(r"\bp ([<=]) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
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
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and all(isinstance(v, int) for v in value) and len(value) > 3:
            return claims.ranges(list(value))
        return ", ".join(_plain(v) for v in value)
    return str(value)
