"""``quickstart``: a small study on the embedded data, from nothing to a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trickbag.cli.common import JsonOption

SEEDS = (0, 1, 2, 3, 4, 5)
LABELS = 100


def quickstart(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the study and its runs go.")] = Path(
        "trickbag-quickstart"
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Runs at once; one a core unless told.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Study six tricks on scikit-learn's digits with 100 labels and six seeds, in about two minutes."""
    from trickbag.cli.study import conduct_and_show
    from trickbag.data.base import DataSpec
    from trickbag.recipe import load
    from trickbag.study.spec import StudySpec

    spec = StudySpec(
        title="Quickstart: six tricks on digits with 100 labels",
        baseline=load("digits_baseline"),
        candidate=load("digits_bag"),
        data=DataSpec(source="digits", train_size=LABELS, selection=0.4, test=0.4),
        design="leave-one-out",
        seeds=SEEDS,
        delta=0.5,
    )
    conduct_and_show(spec, out / "study", out / "runs", workers, 1, as_json)
