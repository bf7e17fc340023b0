"""What a study's model left unexplained: residuals against fitted values, and against a normal law."""

from __future__ import annotations

from statistics import NormalDist, stdev

from markupsafe import Markup

from trickbag.report import svg
from trickbag.report.content import ReportData, Residual, points
from trickbag.report.shown import anchor, arm_label

_WIDTH, _HEIGHT = 440, 300


def residual_plots(data: ReportData) -> list[tuple[str, Markup]]:
    """Two figures with their titles; none with fewer than three residuals."""
    if len(data.residuals) < 3:
        return []
    runs = {(a.name, r.seed): r.run_id for a in data.arms for r in a.runs}
    found = sorted(data.residuals, key=lambda r: r.residual)
    count, normal = len(found), NormalDist()
    scores = [normal.inv_cdf((i + 0.625) / (count + 0.25)) for i in range(count)]
    by_fit = [(r, r.fitted) for r in found]
    sd = stdev(r.residual for r in found)
    return [
        ("Residuals by fitted value", _scatter(data, by_fit, runs, f"fitted {data.metric}, %", None)),
        (
            "Normal quantile plot",
            _scatter(data, list(zip(found, scores, strict=True)), runs, "normal quantile", sd),
        ),
    ]


def pairing(data: ReportData) -> str:
    """What pairing runs with one seed was worth, in a sentence; empty if that is not known."""
    a = data.analysis
    if not a.sd_paired or not a.sd_unpaired or a.correlation is None:
        return ""
    worth = (a.sd_unpaired / a.sd_paired) ** 2
    if a.correlation <= 0 or worth <= 1:
        return "Pairing them did not help here."
    return f"Pairing them is worth {worth:.1f} times as many seeds."


def _scatter(
    data: ReportData,
    found: list[tuple[Residual, float]],
    runs: dict[tuple[str, int], str],
    across: str,
    slope: float | None,
) -> Markup:
    left, right, top, bottom = 58, _WIDTH - 10, 26, _HEIGHT - 46
    xs, ys = [v for _, v in found], [r.residual for r, _ in found]
    pad = 0.06 * (max(xs) - min(xs)) or 0.5
    x = svg.Scale(min(xs) - pad, max(xs) + pad, left, right)
    reach = max(abs(min(ys)), abs(max(ys))) * 1.12 or 1e-9
    y = svg.Scale(-reach, reach, bottom, top)
    up, along = svg.ticks(y.low, y.high, 5), svg.ticks(x.low, x.high, 6)
    marks = [svg.line(left, y(t), right, y(t), "grid") for t in up]
    marks += [svg.words(left - 8, y(t) + 4, svg.number(t, up, True), "tick", "end") for t in up]
    marks += [svg.words(x(t), bottom + 18, svg.number(t, along), "tick", "middle") for t in along]
    marks.append(svg.line(left, bottom, right, bottom, "axis"))
    marks.append(svg.line(left, y(0), right, y(0), "zero"))
    if slope:
        bound = min(max(abs(x.low), abs(x.high)), reach / slope)
        ends = max(x.low, -bound), min(x.high, bound)
        marks.append(svg.line(x(ends[0]), y(slope * ends[0]), x(ends[1]), y(slope * ends[1]), "reference"))
    for residual, at in found:
        run = runs.get((residual.arm, residual.seed))
        tip = (
            f"{arm_label(data, residual.arm)}, seed {residual.seed}\n"
            f"residual {points(residual.residual)} points\nfitted {residual.fitted:.2f}"
        )
        dot = svg.tag("circle", cx=x(at), cy=y(residual.residual), r=4, class_="spot other")
        marks.append(svg.link(f"#{anchor(run)}" if run else "#runs", tip, dot, tabindex=-1))
    marks.append(svg.words(0, 13, "residual, points", "head"))
    marks.append(svg.words((left + right) / 2, _HEIGHT - 8, across, "note", "middle"))
    return svg.svg(_WIDTH, _HEIGHT, f"Residuals by {across}", marks, "half")
