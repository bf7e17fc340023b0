"""Plans: what compiling a recipe finds out about model, sizes and batch before anything is trained."""

from __future__ import annotations

import pytest
from torch import nn

from trickbag import plan as planning
from trickbag.data.base import DataFacts
from trickbag.errors import PlanError
from trickbag.recipe import Recipe


def facts(channels: int = 3) -> DataFacts:
    """A data set that is nowhere: a plan needs no more than this."""
    sizes = {"train": 1000, "selection": 100, "test": 100}
    mean, std = (0.5,) * channels, (0.25,) * channels
    return DataFacts("none", tuple("abcdefg"), channels, sizes, (64, 64), "0" * 32, mean, std)


def recipe(model: str, size: int, **values: int) -> Recipe:
    return Recipe(**{"model": model, "epochs": 1, "batch_size": 8, "image_size": size} | values)


FLEXIBLE = (
    "resnet50",
    "convnext_tiny",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_100",
    "regnetx_002",
    "densenet121",
    "vgg11_bn",
)
FIXED = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "maxvit_tiny_rw_224")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FLEXIBLE)
def test_convolutional_models_of_timm_take_any_size(name: str, channels: int) -> None:
    plan = planning.compile(recipe(name, 32, eval_size=64), facts(channels))
    assert plan.recipe.model.name == name


@pytest.mark.parametrize("name", FIXED)
def test_models_for_one_size_take_that_alone_and_say_so(name: str) -> None:
    assert planning.compile(recipe(name, 224), facts()).recipe.image_size == 224
    with pytest.raises(PlanError, match="cannot take images of 32 px") as caught:
        planning.compile(recipe(name, 224, eval_size=32), facts())
    assert caught.value.problems[0].where == "recipe, eval_size"


def test_batch_norm_over_a_single_value_is_found_before_training() -> None:
    with pytest.raises(PlanError, match="more than 1 value per channel"):
        planning.compile(recipe("resnet50", 32, batch_size=1), facts())
    planning.compile(recipe("resnet50", 64, batch_size=1), facts())


def test_a_model_that_refuses_without_a_word_is_a_problem_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trickbag.tasks.nets import ResidualNet

    def refuse(self: nn.Module, x: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ResidualNet, "forward", refuse)
    with pytest.raises(PlanError, match="AssertionError"):
        planning.compile(recipe("mini_resnet", 8), facts())
