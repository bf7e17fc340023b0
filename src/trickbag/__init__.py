"""trickbag: the bag of tricks for training image models, and the proof of what each trick buys you.

>>> import trickbag
>>> run = trickbag.train("digits_bag", "digits")  # doctest: +SKIP
"""

from trickbag.api import compile_plan, evaluate, fit_recipe, make_study, predict, prepare, run_study, train
from trickbag.errors import TrickbagError
from trickbag.recipe import Recipe, diff
from trickbag.recipe import load as load_recipe
from trickbag.tricks import catalogue

__all__ = [
    "Recipe",
    "TrickbagError",
    "catalogue",
    "compile_plan",
    "diff",
    "evaluate",
    "fit_recipe",
    "load_recipe",
    "make_study",
    "predict",
    "prepare",
    "run_study",
    "train",
]
