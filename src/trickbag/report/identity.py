"""What identifies a study, and what stands beside its numbers wherever they go."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from trickbag.report.content import ReportData
from trickbag.report.units import plain_name, primary_name, unit_of


def study_digest(data: ReportData) -> str:
    """Identity of a study, 16 hexadecimal digits: recipes, factors, data and code.

    Seeds, level, margin and title do not count: a study that goes on remains the same study.
    """
    code = data.provenance.get("code", data.provenance.get("code version"))
    pinned = data.provenance.get("data fingerprint", data.provenance.get("data"))
    sides = [data.recipes.get(name) for name in ("baseline", "candidate")]
    factors = [[factor.key, factor.before, factor.after] for factor in data.factors]
    parts = [data.design, data.data_name, data.metric, pinned, code, sides, factors]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def about(data: ReportData) -> dict[str, Any]:
    """The study in words and facts, without its numbers: metadata of every table."""
    from trickbag.report.wording import methods

    kept = (
        "title",
        "data_name",
        "design",
        "baseline",
        "candidate",
        "delta",
        "alpha",
        "provenance",
        "unfinished",
    )
    return {
        "digest": study_digest(data),
        **{name: getattr(data, name) for name in kept},
        "metric": primary_name(data),
        "methods": methods(data),
        "units": "those of the report: shares of images and their differences are in percentage points",
        "factors": [asdict(factor) for factor in data.factors],
        "metrics": [
            {"name": plain_name(m.name), "label": m.label, "unit": unit_of(data, plain_name(m.name))}
            | {"higher_is_better": m.higher_is_better}
            for m in data.metrics
        ],
        "aliases": data.aliases,
    }
