"""Recipes: reading, errors with lines, extends, overrides, digest, diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from trickbag.errors import RecipeError
from trickbag.recipe import Recipe, apply_changes, diff, dump, load, published
from trickbag.tricks.augmentation import RandomFlip
from trickbag.tricks.mixing import Mixup
from trickbag.tricks.optimization import SGD, AdamW, Nesterov
from trickbag.tricks.schedules import CosineDecay, StepDecay, Warmup

PARENT = """\
model: resnet20
epochs: 10
batch_size: 128
image_size: 32
tricks:
  sgd: {lr: 0.1, momentum: 0.9}
  step_decay: {milestones: [5]}
  random_flip:
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, **options: list[str]) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", list(published()))
def test_published_recipes_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    again = load(write(tmp_path, "again.yaml", dump(recipe)))
    assert again == recipe
    assert again.digest == recipe.digest
    assert recipe.about.title
    assert recipe.about.source


def test_a_child_merges_settings_replaces_slots_and_removes(tmp_path: Path) -> None:
    write(tmp_path, "parent.yaml", PARENT)
    child = """\
extends: parent.yaml
without: [random_flip]
epochs: 20
tricks:
  sgd: {lr: 0.4}
  cosine_decay:
"""
    recipe = load(write(tmp_path, "child.yaml", child))
    assert recipe.epochs == 20
    assert recipe.batch_size == 128
    assert set(recipe.tricks.values()) == {SGD(lr=0.4, momentum=0.9), CosineDecay()}


def test_order_comments_and_about_do_not_change_the_digest(tmp_path: Path) -> None:
    one = load(write(tmp_path, "one.yaml", PARENT))
    lines = PARENT.splitlines()
    shuffled = "\n".join(["about: {title: x}", "# a comment", *lines[:4][::-1], lines[4], *lines[5:][::-1]])
    other = load(write(tmp_path, "other.yaml", shuffled + "\n"))
    assert one.digest == other.digest
    assert one.replace(epochs=11).digest != one.digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("epochs: 10", "epocs: 10", ["bad.yaml:2", "epocs", "did you mean epochs?"]),
        ("random_flip:", "random_flop:", ["bad.yaml:8", "random_flop", "did you mean random_flip?"]),
        ("{lr: 0.1,", "{lr: fast,", ["bad.yaml:6", "sgd.lr", "fast"]),
        ("{lr: 0.1, momentum", "{lr: 0.1, momentun", ["bad.yaml:6", "momentun", "did you mean momentum?"]),
        ("batch_size: 128", "batch_size: 0", ["bad.yaml:3", "batch_size", "0"]),
        ("random_flip:", "random_flip: 0.5", ["bad.yaml:8", "random_flip", "not a mapping"]),
        ("image_size: 32\n", "", ["image_size", "is missing"]),
        ("tricks:", "tricks: [", ["not valid YAML", "bad.yaml:"]),
        ("epochs: 10", "epochs: .nan", ["bad.yaml:2", "epochs"]),
    ],
)
def test_mistakes_name_file_line_and_nearest(old: str, new: str, expected: list[str], tmp_path: Path) -> None:
    said = refused(write(tmp_path, "bad.yaml", PARENT.replace(old, new)))
    for text in expected:
        assert text in said, said


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = (
        PARENT.replace("epochs: 10", "epochs: -1").replace("lr: 0.1", "lr: -1").replace("random_flip", "flop")
    )
    said = refused(write(tmp_path, "bad.yaml", text))
    assert all(f"bad.yaml:{line}" in said for line in (2, 6, 8))


def test_a_mistake_in_the_parent_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path, "parent.yaml", PARENT.replace("lr: 0.1", "lr: -1"))
    assert "parent.yaml:6" in refused(write(tmp_path, "child.yaml", "extends: parent.yaml\nepochs: 3\n"))


def test_extends_in_a_circle_and_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    assert "circle" in refused(write(tmp_path, "b.yaml", "extends: a.yaml\n"))
    assert "c.yaml:1" in refused(write(tmp_path, "c.yaml", "extends: nowhere.yaml\n"))
    assert "did you mean small_fast?" in refused(Path("smal_fast"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refused(tmp_path / "binary.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "recipe.yaml", PARENT)
    recipe = load(
        path,
        set_=["epochs=3", "sgd.lr=1e-3", "model.name=resnet56"],
        with_=["mixup:alpha=0.4", "cosine_decay"],
        without=["random_flip"],
    )
    assert recipe.epochs == 3
    assert recipe.model.name == "resnet56"
    assert set(recipe.tricks.values()) == {SGD(lr=1e-3, momentum=0.9), Mixup(alpha=0.4), CosineDecay()}
    assert "did you mean mixup?" in refused(path, with_=["mixu"])
    assert "not in the recipe" in refused(path, without=["mixup"])
    assert "did you mean epochs?" in refused(path, set_=["epoch=3"])
    assert "--set sgd.lr=x" in refused(path, set_=["sgd.lr=x"])


def base(**values: object) -> Recipe:
    plain = {"model": "resnet20", "epochs": 3, "batch_size": 8, "image_size": 8}
    return Recipe(**(plain | values))


def test_diff_entries_are_factors() -> None:
    before = base(tricks=[SGD(lr=0.1), StepDecay(milestones=(1.0,)), RandomFlip()])
    after = base(
        epochs=4, tricks=[SGD(lr=0.2, weight_decay=0.1), CosineDecay(), Mixup(alpha=0.2), Warmup(epochs=1)]
    )
    changes = {change.key: change for change in diff(before, after)}
    assert set(changes) == {"epochs", "sgd.lr", "sgd.weight_decay", "decay", "random_flip", "mixup", "warmup"}
    assert changes["decay"].before == StepDecay(milestones=(1.0,))
    assert changes["decay"].after == CosineDecay()
    assert changes["random_flip"].after is None
    assert apply_changes(before, diff(before, after)) == after
    assert apply_changes(after, diff(after, before)) == before
    assert diff(before, before) == ()


def test_any_subset_of_changes_makes_a_recipe() -> None:
    before, after = base(tricks=[Nesterov(lr=0.1)]), base(tricks=[AdamW(lr=1e-3), Mixup(alpha=0.2)])
    for change in diff(before, after):
        step = apply_changes(before, [change])
        assert len(diff(step, after)) == len(diff(before, after)) - 1


def test_settings_of_one_optimizer_and_a_swap_of_it_are_one_factor_or_several() -> None:
    swap = diff(base(tricks=[SGD()]), base(tricks=[AdamW(lr=1e-3, weight_decay=0.05)]))
    assert [change.key for change in swap] == ["optimizer"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tricks:\n  5: {}\n", [":3: no trick is called '5'"]),
        ("5: 3\n", [":2: 5: there is no such setting"]),
        ("? [a, b]\n: 3\n", [":2:"]),
        ("batch_size: " + "9" * 5000 + "\n", ["not valid YAML", "digits"]),
        ("epochs: !!python/object/apply:os.system ['true']\n", [":2: epochs"]),
        ('about: {title: "a\x07b"}\n', [":2:", "not allowed"]),
        ("about: {published: {a: {b: 1}}}\n", [":2: about.published.a: {'b': 1} is not valid"]),
        ("epochs: 1e300\n", [":2: epochs", "less than or equal"]),
        ("image_size: 99999999999999999999\n", [":2: image_size", "less than or equal"]),
    ],
)
def test_odd_yaml_gets_one_error_with_file_and_line(tmp_path: Path, text: str, said: list[str]) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("extends: digits_bag\n" + text)
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert len(caught.value.problems) == 1
    assert all(part in str(caught.value) for part in ["odd.yaml", *said]), caught.value


def test_values_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("about: " + "[" * 1500 + "]" * 1500)
    with pytest.raises(RecipeError, match="nested too deeply"):
        load(path)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "extends: digits_bag\nbatch_size: &size 32\nimage_size: *size\n"
        "tricks:\n  mixup: &both {alpha: 0.3}\n  cutmix:\n    <<: *both\n    p: 0.5\n"
    )
    recipe = load(path)
    assert (recipe.batch_size, recipe.image_size) == (32, 32)
    assert recipe.tricks["cutmix"].settings()["alpha"] == 0.3
    path.write_text("extends: digits_bag\ntricks:\n  mixup: &a {alpha: -1}\n  cutmix:\n    <<: *a\n")
    with pytest.raises(RecipeError, match=r"anchors.yaml:4: cutmix.alpha: -1"):
        load(path)


def test_two_tricks_of_one_slot_named_together_both_stay_for_the_plan_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    path.write_text("extends: digits_bag\ntricks:\n  step_decay: {milestones: [1]}\n  cosine_decay: {}\n")
    assert {"step_decay", "cosine_decay"} <= set(load(path).tricks)
    added = load("digits_bag", with_=["step_decay:milestones=[1]"])
    assert "cosine_decay" not in added.tricks
    both = load("digits_bag", with_=["cosine_decay", "step_decay:milestones=[1]"])
    assert {"step_decay", "cosine_decay"} <= set(both.tricks)


def test_setting_a_model_by_name_then_its_options_keeps_the_name() -> None:
    recipe = load("digits_bag", set_=["model=resnet20", "model.options.width=8"])
    assert (recipe.model.name, recipe.model.options) == ("resnet20", {"width": 8})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"with_": ["mixup:=0.4"]}, "--with mixup:=0.4"),
        ({"with_": ["step_decay:milestones=1,2"]}, "step_decay.2: there is no such setting"),
        ({"set_": ["sgd.lr.x=1"]}, "--set sgd.lr.x=1: sgd.lr"),
        ({"set_": ["mixup="]}, "--without mixup takes it out"),
        ({"set_": ["epochs=" + "9" * 5000]}, "--set epochs="),
    ],
)
def test_odd_overrides_name_their_flag(overrides: dict[str, list[str]], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("digits_bag", **overrides)  # type: ignore[arg-type]
    assert said in str(caught.value)
