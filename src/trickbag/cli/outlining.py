"""A study's outline on a console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show_outline(out: Console, figures: dict[str, Any]) -> None:
    """Print what :func:`trickbag.study.outline.outline` found."""
    from rich.table import Table

    if out.stderr:
        return
    table = Table("factor", "change", "", title=f"{len(figures['factors'])} factors", title_justify="left")
    for factor in figures["factors"]:
        table.add_row(factor["key"], factor["label"], "no training" if factor["free"] else "")
    out.print(table)
    if figures.get("needs_timing"):
        out.print(
            f"{figures['design']} within {figures['budget']}: how many runs that is depends on their speed; "
            "add --measure to time a few steps of each factor"
        )
        return
    if "stages" in figures:
        stages = Table("stage", "runs", "what for", title="at most", title_justify="left")
        for stage in figures["stages"]:
            stages.add_row(stage["stage"], str(stage["runs"]), stage["text"])
        out.print(stages)
        out.print(f"auto: {figures['runs']} training runs within {figures['budget']}")
        _show_saving(out, figures, "pilot and screen: ")
    else:
        shared = figures["naive_runs"] - figures["runs"]
        out.print(
            f"{figures['design']}: {len(figures['arms'])} recipes, {figures['seeds']} seeds: "
            f"{figures['naive_runs']} results from {figures['runs']} training runs of "
            f"{figures['steps']} steps" + (f" ({shared} shared)" if shared else "")
        )
        _show_saving(out, figures)
    _show_detectable(out, figures)


def _show_detectable(out: Console, figures: dict[str, Any]) -> None:
    sd, free = figures["detectable_in_sd"], figures.get("detectable_free_in_sd")
    all_free = all(factor["free"] for factor in figures["factors"])
    if sd is None and not (all_free and free is not None):
        out.print("[yellow]too few runs to estimate the noise: no interval, no verdict[/yellow]")
    if sd is not None and not all_free:
        out.print(
            f"smallest effect it finds with 80 % power: {sd:.1f} sd of a paired difference; roughly "
            f"{figures['detectable_points']:.1f} points, if accuracy lies near 80 % on "
            f"{figures['selection_images']} selection images"
        )
    if free is not None:
        out.print(
            f"smallest effect of a factor without training that it finds with 80 % power: {free:.1f} sd of "
            "what it changes within a run"
        )


def _show_saving(out: Console, figures: dict[str, Any], what: str = "") -> None:
    saved = {name: figures[f"{name}_epochs"] for name in ("shared", "forked")}
    if any(saved.values()):
        told = {"shared": "runs that serve several recipes", "forked": "beginnings that runs have in common"}
        parts = [f"{value:g} by {told[name]}" for name, value in saved.items() if value]
        share = figures["epochs"] / figures["naive_epochs"]
        out.print(
            f"{what}{figures['epochs']:g} epochs instead of {figures['naive_epochs']:g} ({share:.0%}): saves "
            + " and ".join(parts)
        )
