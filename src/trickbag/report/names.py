"""Short names of factors, and what is in a recipe whose own name does not say it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from trickbag.report.content import ArmResult, ReportData
from trickbag.report.shown import arm_label

_PARAMETERS = re.compile(r"(?:\+ )?((?:− )?[\w.]+)(?:\(.*\))?")


def bare(label: str) -> str:
    """A factor's label without its parameters and its plus sign: ``ema`` for ``+ ema(decay=0.98)``."""
    found = _PARAMETERS.fullmatch(label)
    return found[1] if found else label.removeprefix("+ ")


def short(data: ReportData, key: str) -> str:
    """The factor's name without parameters, if no other factor is called so; else its label."""
    return short_names(data).get(key, key)


def short_names(data: ReportData) -> dict[str, str]:
    """Short names of all factors, by key."""
    found = Counter(bare(f.label) for f in data.factors)
    return {f.key: name if found[name := bare(f.label)] == 1 else f.label for f in data.factors}


def ingredients(data: ReportData, arm: ArmResult) -> str:
    """What is in a recipe: ``on: a, b``, or how it differs from the recommended one if that is shorter."""
    names = short_names(data)

    def listed(keys: Sequence[str]) -> str:
        return ", ".join(names.get(key, key) for key in keys)

    on = arm.factors_on
    if not on:
        return "on: nothing"
    if len(on) == len(data.factors) > 1:
        return f"on: all {len(on)} factors"
    plain = f"on: {listed(on)}"
    best = data.recommendation
    if best is None or arm.name == best.arm or arm_label(data, best.arm or "") != "recommended":
        return plain
    added = [f" + {names.get(k, k)}" for k in on if k not in best.factors_on]
    removed = [f" − {names.get(k, k)}" for k in best.factors_on if k not in on]
    apart = "recommended" + "".join([*added, *removed])
    return apart if (added or removed) and len(apart) < len(plain) else plain


def opaque(data: ReportData, arm: ArmResult) -> bool:
    """True if the recipe's name tells nothing of what is in it."""
    if arm.name in (data.baseline, data.candidate):
        return False
    label = arm_label(data, arm.name)
    told = set(re.findall(r"\w+", label))
    return not any(name.split(":")[0].split(".")[-1] in told for name in short_names(data).values())
