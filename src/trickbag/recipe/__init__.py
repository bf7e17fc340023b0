"""Recipes: values, files, differences."""

from trickbag.recipe.diff import Change, apply_changes, diff
from trickbag.recipe.model import About, ModelSpec, Recipe
from trickbag.recipe.read import dump, load, published

__all__ = ["About", "Change", "ModelSpec", "Recipe", "apply_changes", "diff", "dump", "load", "published"]
