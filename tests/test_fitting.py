"""What recipes become on other data: every rule, and that the result compiles and stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trickbag.data.base import DataFacts
from trickbag.plan import compile
from trickbag.recipe import Recipe, load, published
from trickbag.recipe.fitting import RULES, Fitted, fit
from trickbag.recipe.fitting_rules import SMALL_NETS
from trickbag.tasks.nets import NETS

DOCS = Path(__file__).parent.parent / "docs" / "recipes.md"


def facts(
    images: int = 42_500, side: int = 32, channels: int = 3, classes: int = 10, **more: Any
) -> DataFacts:
    values: dict[str, Any] = {
        "name": "photos",
        "classes": tuple(f"class {k}" for k in range(classes)),
        "channels": channels,
        "sizes": {"train": images, "selection": images // 5, "test": images // 5},
        "image_size": (side, side + 3),
        "fingerprint": "0" * 16,
    }
    return DataFacts(**(values | more))


CIFAR = facts()


def changes(fitted: Fitted) -> dict[str, tuple[Any, Any]]:
    return {a.key: (a.before, a.after) for a in fitted.adjustments}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(list(published())),
    images=st.integers(16, 2_000_000),
    side=st.one_of(st.integers(4, 80), st.integers(80, 600)),
    channels=st.sampled_from((1, 3)),
    classes=st.integers(2, 1200),
    epochs=st.one_of(st.none(), st.integers(1, 400), st.floats(0.5, 50)),
    device=st.sampled_from(("cpu", "cuda")),
)
def test_a_fitted_recipe_compiles_survives_its_file_and_fits(
    name: str,
    images: int,
    side: int,
    channels: int,
    classes: int,
    epochs: float | None,
    device: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = facts(images, side, channels, classes)
    fitted = fit(load(name), data, epochs, device_type=device)
    compile(fitted.recipe, data, device)
    path = tmp_path_factory.mktemp("fitted") / "fitted.yaml"
    path.write_text(fitted.yaml())
    read = load(path)
    assert read == fitted.recipe
    again = fit(read, data, epochs, device_type=device)
    assert not again.adjustments
    assert again.recipe == read
    if epochs is None:
        told = fit(read, data, read.epochs, device_type=device)
        assert told.recipe == read
    assert {a.rule for a in fitted.adjustments} <= set(RULES)
    assert all(a.reason and a.before != a.after for a in fitted.adjustments)
    assert fitted.recipe.batch_size <= min(load(name).batch_size, images)
    assert fitted.recipe.image_size <= max(8, load(name).image_size)


@pytest.mark.parametrize("name", list(published()))
def test_every_recipe_fits_small_photographs_and_gray_digits(name: str) -> None:
    for data in (CIFAR, facts(1168, 8, 1)):
        fitted = fit(load(name), data)
        compile(fitted.recipe, data)
        assert not fit(fitted.recipe, data).adjustments


def test_on_its_own_data_a_published_recipe_changes_in_nothing_but_colors() -> None:
    data = facts(1_281_167, 375, classes=1000)
    for name in published():
        if name.startswith(("he2019", "tv_", "swin", "rsb", "ffcv")):
            fitted = fit(load(name), data, device_type="cuda")
            assert {a.rule for a in fitted.adjustments} <= {"colors"}, name


def test_recipes_that_name_no_number_of_images_keep_their_length() -> None:
    assert fit(load("small_strong"), CIFAR).adjustments == ()
    assert fit(load("digits_bag"), facts(1168, 8, 1)).adjustments == ()
    assert fit(load("small_strong"), facts(2_000)).recipe.epochs == 20


def test_sizes_shrink_together_and_the_network_gives_way() -> None:
    fitted = fit(load("tv_repeated"), CIFAR)
    recipe = fitted.recipe
    assert (recipe.image_size, *recipe.evaluation) == (24, 32, 32)
    assert recipe.model.name == "fast_resnet"
    assert changes(fitted)["random_resized_crop.area"] == ((0.08, 1.0), (0.25, 1.0))
    larger = fit(load("tv_repeated"), facts(side=116)).recipe
    assert (larger.image_size, *larger.evaluation) == (88, 116, 112)
    assert larger.model.name == "resnet50"
    assert fit(load("tv_repeated"), facts(side=500)).recipe.image_size == 176
    assert fit(load("tv_repeated"), facts(side=8)).recipe.model.name == "mini_resnet"
    assert "resnet_variant" not in fit(load("he2019_d"), CIFAR).recipe.tricks


def test_models_of_one_size_and_given_weights_enlarge_images_and_say_so() -> None:
    swin = fit(load("swin_tiny"), facts(side=96))
    assert swin.recipe.image_size == 224
    assert any("enlarged 2.67 times, to 256 px, more than twice" in note for note in swin.notes)
    tuned = fit(load("finetune"), facts(side=200))
    assert tuned.recipe.image_size == 224
    assert any("enlarged 1.28 times" in note and "twice" not in note for note in tuned.notes)


@pytest.mark.parametrize(
    ("images", "batch"),
    [(42_500, 256), (102_400, 1024), (1_281_167, 1024), (3_000, 16), (1_000, 16), (12, 8)],
)
def test_batch(images: int, batch: int) -> None:
    assert fit(load("tv_lr"), facts(images)).recipe.batch_size == batch


def test_rates_follow_the_batch_in_proportion_or_by_its_root() -> None:
    assert changes(fit(load("tv_lr"), CIFAR))["sgd.lr"] == (0.5, 0.125)
    assert changes(fit(load("swin_tiny"), CIFAR))["adamw.lr"] == (1e-3, 5e-4)
    lamb = changes(fit(load("rsb_a3"), CIFAR))["lamb.lr"]
    assert lamb == (8e-3, pytest.approx(8e-3 / 8**0.5, rel=1e-5))
    muon = changes(fit(load("small_speed"), facts(6_400)))
    assert muon["muon.lr"] == (0.05, 0.025)
    scaled = fit(load("he2019_warmup"), CIFAR)
    assert "nesterov.lr" not in changes(scaled)
    assert compile(scaled.recipe, CIFAR, probe=False).learning_rate(10**3) == pytest.approx(0.1)


def test_epochs_are_told_or_make_a_sensible_number_of_updates() -> None:
    assert fit(load("tv_lr"), CIFAR, 30).recipe.epochs == 30
    assert fit(load("tv_lr"), CIFAR).recipe.epochs == 90
    assert fit(load("tv_long"), CIFAR).recipe.epochs == 20_000 // 166
    assert fit(load("ffcv_rn50"), facts(1_000)).recipe.epochs == -(-2_000 // 62)


def test_what_counts_epochs_keeps_its_share() -> None:
    assert fit(load("he2019_efficient"), CIFAR, 60).recipe.tricks["step_decay"].settings()["milestones"] == [
        15,
        30,
        45,
    ]
    assert fit(load("swin_tiny"), CIFAR, 60).recipe.tricks["warmup"].settings()["epochs"] == 4
    points = fit(load("ffcv_rn50"), CIFAR, 8).recipe.tricks["piecewise_linear"].settings()["points"]
    assert points == [[0, 1e-4], [1, 1.0], ["end", 0.0]]
    short = fit(load("tv_lr"), CIFAR, 9).recipe
    assert short.tricks["warmup"].settings()["epochs"] == 0.5
    assert {short.tricks[kind].settings()["stepping"] for kind in ("warmup", "cosine_decay")} == {"update"}
    longer = fit(load("tv_lr"), CIFAR, 90).recipe
    assert {longer.tricks[kind].settings()["stepping"] for kind in ("warmup", "cosine_decay")} == {"epoch"}


@pytest.mark.parametrize("epochs", [None, 5, 40])
def test_averages_remember_the_same_share_of_the_run(epochs: float | None) -> None:
    from trickbag.functional.averaging import rescaled_decay

    def share(recipe: Recipe, images: int) -> float:
        ema = recipe.tricks["ema"].settings()
        decay = rescaled_decay(ema["decay"], recipe.batch_size, ema["every"], recipe.epochs)
        steps = recipe.epochs * (images // recipe.batch_size)
        return ema["every"] / (1 - decay) / steps

    published_share = share(load("tv_ema"), 1_281_167)
    fitted = fit(load("tv_ema"), CIFAR, epochs).recipe
    assert share(fitted, CIFAR.sizes["train"]) == pytest.approx(published_share, rel=0.01)
    plain = fit(load("small_strong"), CIFAR, 5).recipe.tricks["ema"].settings()
    assert (plain["decay"], plain["every"]) == (pytest.approx(1 - 0.005 * 4), 1)


def test_pixels_keep_their_share() -> None:
    half = fit(load("small_strong"), facts(side=16)).recipe
    assert half.image_size == 16
    assert half.tricks["pad_and_crop"].settings()["padding"] == 2
    ramp = compile(fit(load("ffcv_rn50"), CIFAR).recipe, CIFAR)
    assert (ramp.image_sizes[0], ramp.image_sizes[-1]) == (16, 20)
    assert "resolution_ramp" not in fit(load("small_speed"), facts(side=8)).recipe.tricks


def test_colors_are_those_of_the_data() -> None:
    found = fit(load("swin_tiny"), CIFAR).recipe.tricks
    assert found["normalize"].settings() == {"mean": None, "std": None}
    assert found["rand_augment"].settings()["fill"] == "mean"
    gray = fit(load("he2019_baseline"), facts(channels=1)).recipe.tricks
    assert "pca_noise" not in gray
    assert (gray["color_jitter"].settings()["saturation"], gray["color_jitter"].settings()["brightness"]) == (
        0,
        0.4,
    )
    tuned = fit(load("finetune"), facts(side=300, channels=1)).recipe.tricks["normalize"].settings()
    assert len(tuned["mean"]) == len(tuned["std"]) == 1


def test_teachers_of_other_classes_and_fp16_on_a_cpu_go() -> None:
    found = changes(fit(load("he2019_both"), CIFAR))
    assert found["distillation"][1] is None
    assert found["mixed_precision"][1] is None
    kept = fit(load("he2019_both"), facts(side=300, classes=1000), device_type="cuda").recipe.tricks
    assert {"distillation", "mixed_precision"} <= set(kept)


def test_everything_else_is_kept() -> None:
    before, after = load("tv_repeated"), fit(load("tv_repeated"), CIFAR)
    kinds = {"mixup", "cutmix", "mix_switch", "repeated_augmentation", "label_smoothing", "random_erasing"}
    assert all(before.tricks[kind] == after.recipe.tricks[kind] for kind in kinds)
    assert after.recipe.tricks["sgd"].settings()["weight_decay"] == 2e-5
    assert any("weight decay 2e-05 is kept" in note for note in after.notes)


def test_what_is_fitted_says_what_it_is_and_claims_no_accuracy() -> None:
    about = fit(load("rsb_a1"), CIFAR).recipe.about
    assert about.title.endswith(", fitted to photos")
    assert about.published == {"training images": 42_500}
    assert "does not hold" in about.notes
    assert about.source == load("rsb_a1").about.source


def test_small_nets_are_the_built_in_ones() -> None:
    assert set(SMALL_NETS) == set(NETS)


def test_the_documentation_states_every_rule_as_it_is() -> None:
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    for name, rule in RULES.items():
        assert f"**{name}**" in text
        assert rule in text


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    import sys

    from trickbag.cli.main import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trickbag", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_line_writes_what_train_takes(cli: Any, tmp_path: Path) -> None:
    code, out, _ = cli("recipes", "tv_repeated", "--for", "digits", "--epochs", "2", "--out", "mine.yaml")
    assert code == 0
    assert "epochs: 600 -> 2 [epochs] as told" in out
    recipe = load(tmp_path / "mine.yaml")
    assert (recipe.epochs, recipe.image_size, recipe.model.name) == (2, 8, "mini_resnet")
    code, out, _ = cli("train", "mine.yaml", "digits", "--threads", "1", "--json")
    assert code == 0
    assert json.loads(out)["status"] == "finished"
    code, out, _ = cli("recipes", "mine.yaml", "--for", "digits", "--epochs", "2", "--json")
    assert json.loads(out)["adjustments"] == []


def test_the_command_line_shows_source_numbers_and_bag(cli: Any) -> None:
    code, out, _ = cli("recipes", "tv_ema")
    assert code == 0
    assert all(
        text in out for text in ("80.45", "Vryniotis", "ema(decay=0.99998", "training images: 1281167")
    )
    code, _, err = cli("recipes", "tv_ema", "--epochs", "3")
    assert code == 2
    assert "--for" in err
    assert cli("recipes", "--for", "digits")[0] == 2
    assert cli("recipes", "tv_ema", "--for", "digits", "--epochs", "0")[0] == 2
