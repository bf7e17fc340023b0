"""Decisions of a study in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from trickbag.study.protocol import Round

MOST_NAMED = 6


def tell(one: Round) -> str:
    """What a round was for, and what was known when it was decided."""
    why = one.why
    if one.stage == "pilot":
        return (
            f"{_count(why.get('baseline_seeds', 0), 'seed')} of the baseline and "
            f"{why.get('candidate_seeds', 0)} of the candidate, to learn the noise."
        )
    if one.stage == "screen" and "recipes" in why:
        fold = "each with its mirror image" if why.get("folded", True) else "too few runs for mirror images"
        return (
            f"{why['recipes']} recipes in {why['runs']} runs on {_count(len(why['seeds']), 'seed')}, {fold}."
        )
    if one.stage == "refine" and "contestants" in why:
        raced = "; ".join(", ".join(keys) for keys in why["contestants"])
        return (
            f"{_known(why)} Still open: {_some(why['open'])}. Raced against it, with these switched: {raced}."
            + (f" Resolved so far: {_some(why['resolved'])}." if why.get("resolved") else "")
        )
    if one.stage == "confirm" and "recipe" in why:
        return f"{_known(why)} Confirmed on {_count(why['seeds'], 'seed')} that nothing else has used."
    seeds = {point.seed for point in one.points}
    return f"{_count(len({p.cell for p in one.points}), 'recipe')} with {_count(len(seeds), 'seed')}."


def summarize(rounds: Sequence[Round]) -> str:
    """What happened in the rounds of one stage."""
    if len(rounds) <= 1:
        return " ".join(map(tell, rounds))
    first, last = rounds[0].why, rounds[-1].why
    moves = sum(a.why.get("recipe") != b.why.get("recipe") for a, b in pairwise(rounds))
    text = f"{len(rounds)} rounds; the best recipe so far changed {_times(moves)}."
    if "open" in first and "open" in last:
        text += f" Open at first: {_some(first['open'])}; in the last round: {_some(last['open'])}."
    if last.get("resolved"):
        text += f" Resolved: {_some(last['resolved'])}."
    return text


def _known(why: Mapping[str, Any]) -> str:
    recipe = _some(why.get("recipe", ())) if why.get("recipe") else "the baseline"
    gain = why.get("gain")
    expected = "" if gain is None else f", expected gain {gain:+.2f} ± {why.get('gain_sd', 0.0):.2f} points"
    return f"Best so far: {recipe}{expected}."


def _some(names: Iterable[str]) -> str:
    known = list(names)
    if not known:
        return "nothing"
    rest = len(known) - MOST_NAMED
    return ", ".join(known[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")
