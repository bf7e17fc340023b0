"""What fools people in combination is an error or a note, with a reason; nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from trickbag import interactions
from trickbag import plan as planning
from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.recipe import load
from trickbag.tricks import catalogue

FACTS = DataFacts(
    "x", tuple("abcd"), 3, {"train": 4000, "selection": 100, "test": 100}, (32, 32), "f" * 32,
    (0.5,) * 3, (0.25,) * 3, (2500, 1000, 400, 100),
)  # fmt: skip


def said(*with_: str, without: tuple[str, ...] = (), set_: tuple[str, ...] = ()) -> tuple[str, str]:
    """Errors and notes of small_fast with a few tricks."""
    recipe = load("small_fast", with_=with_, without=without, set_=set_)
    try:
        return "", "\n".join(planning.compile(recipe, FACTS).notes)
    except PlanError as error:
        return str(error), ""


def test_every_row_names_tricks_that_exist() -> None:
    for row in interactions.INTERACTIONS:
        assert row.kinds
        assert set(row.kinds) <= set(catalogue()), row.kinds
        assert len(row.reason) > 20
        assert not row.reason.endswith(".")


def test_no_row_comes_twice() -> None:
    rows = [(frozenset(row.kinds), row.reason) for row in interactions.INTERACTIONS]
    assert len(rows) == len(set(rows))


CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("class weights and BCE", {"with_": ("class_weights", "bce")}, "targets above 1", True),
    ("balanced and sigmoid focal", {"with_": ("class_balanced", "focal:form=sigmoid")}, "sigmoid form", True),
    (
        "balanced and softmax focal",
        {"with_": ("class_balanced", "focal"), "without": ("label_smoothing",)},
        "",
        False,
    ),
    ("SWA without an update", {"with_": ("swa:images=0",)}, "batch-norm statistics", True),
    ("SWA with an update", {"with_": ("swa",), "without": ("cosine_decay",)}, "", False),
    ("stopping with a tail", {"with_": ("early_stopping",)}, "falls; stopping before its end", False),
    ("slow EMA", {"set_": ("ema.decay=0.9999",)}, "too slow for so few steps", False),
    ("EMA that is quick enough", {"set_": ("ema.decay=0.9",)}, "", False),
    ("both mixes", {"with_": ("mixup", "cutmix")}, "one after the other", False),
    ("both mixes, switched", {"with_": ("mixup", "cutmix", "mix_switch")}, "", False),
    ("hard images of mixed ones", {"with_": ("ohem", "mixup")}, "mixed most", False),
    ("twice balanced", {"with_": ("balanced_sampling", "class_weights")}, "favored twice", False),
    ("frozen noise", {"with_": ("freeze",)}, "random weights", False),
    ("repeats, rolled", {"with_": ("repeated_augmentation", "mixup:partner=roll")}, "themselves", False),
    ("repeats, reversed", {"with_": ("repeated_augmentation", "mixup")}, "", False),
    ("linear scaling and Adam", {"with_": ("linear_lr_scaling", "adamw")}, "square root", False),
    ("nothing", {}, "", False),
]


@pytest.mark.parametrize(("what", "arguments", "reason", "error"), CASES, ids=[case[0] for case in CASES])
def test_it_is_said_when_it_holds(what: str, arguments: dict[str, Any], reason: str, error: bool) -> None:
    others = {name: value for name, value in arguments.items() if name != "with_"}
    errors, notes = said(*arguments.get("with_", ()), **others)
    if not reason:
        assert not errors
        listed = [row.reason for row in interactions.INTERACTIONS]
        assert not [text for text in listed if text in notes]
    elif error:
        assert reason in errors
        assert "to do" in errors
    else:
        assert not errors
        assert reason in notes


def test_distillation_with_smoothing_is_noted() -> None:
    teacher = {"recipe": "small_baseline", "set": ("epochs=1",)}
    recipe = load("small_fast").with_tricks(
        catalogue()["distillation"](teacher=teacher)  # type: ignore[call-arg]
    )
    assert any("blurs the hard targets" in note for note in planning.compile(recipe, FACTS).notes)


def test_initial_values_over_pretrained_weights_are_refused(tmp_path: Any) -> None:
    recipe = load("small_fast", with_=("zero_gamma",), set_=("model.name=resnet18", "model.pretrained=true"))
    with pytest.raises(PlanError, match="would overwrite pretrained weights"):
        planning.compile(recipe, FACTS)


def test_a_study_says_what_its_candidate_would(tmp_path: Any) -> None:
    from typer.testing import CliRunner

    from trickbag.cli.main import app

    command = ["study", "run", "digits", "--baseline", "digits_baseline", "--candidate", "digits_baseline"]
    small = ["--set", "epochs=1", "--set", "data.train_size=100", "--set", "image_size=8", "--seeds", "1"]
    changed = tmp_path / "candidate.yaml"
    changed.write_text("extends: digits_baseline\ntricks: {ema: {decay: 0.99999}}\n")
    command[6] = str(changed)
    place = ["--out", str(tmp_path / "study"), "--runs", str(tmp_path / "runs"), "--workers", "1"]
    done = CliRunner().invoke(app, [*command, *small, *place])
    assert done.exit_code == 0, done.output
    assert "too slow for so few steps" in " ".join(done.output.split())
