"""What a recipe becomes on a data set and budget of another size, by rules that are stated.

A published recipe is meant for so many images of such a size. :func:`fit` keeps what does not depend on
that (the tricks, their strengths, the proportions of schedules and sizes) and changes what does, by the
rules of :data:`RULES`, each change with its reason. A rule does nothing where its aim is met already, so
that fitting a fitted recipe changes nothing.

The number of images that a recipe is meant for stands under ``training images`` in the ``published`` part
of its ``about``; without it, the recipe is taken to be meant for the data at hand. What has been fitted
says so itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trickbag.recipe import fitting_rules as rules
from trickbag.recipe.adjusting import IMAGES, Adjustment, Work
from trickbag.recipe.model import About, Recipe
from trickbag.recipe.read import dump

if TYPE_CHECKING:
    from trickbag.data.base import DataFacts

__all__ = ["RULES", "Adjustment", "Fitted", "fit"]

RULES: Mapping[str, str] = {
    "sizes": "Where images are smaller than the recipe resizes them to, its sizes shrink together, in "
    "proportion (multiples of 4 from 16 px on, never below 8 px). They never grow. Weights that are given, "
    "and models that take one size only, keep theirs as long as the model stays.",
    "model": "Where sizes shrink, a network that starts from random weights and would train below 64 px is "
    "replaced by a built-in one (fast_resnet; mini_resnet below 16 px): a stem made for 224 px leaves next "
    "to nothing of so small images. Tricks that are about the old network go with it.",
    "batch": "The largest power of two that leaves 100 updates an epoch, but 16 at least, and never more "
    "than the recipe's batch or the training images.",
    "rate": "The learning rate follows the batch: in proportion for SGD and its kin (Goyal et al. 2017), by "
    "the square root for Adam and its kin (Malladi et al. 2022). A trick that scales it in the recipe does "
    "so by itself.",
    "epochs": "As told. Else the recipe's; where it is meant for another number of images, so many that they "
    "make 2,000 updates at least and 20,000 at most.",
    "schedule": "What is measured in epochs keeps its share of the run: warmup, milestones, points, "
    "switches. Rates that change once an epoch change at every update where warmup is shorter than 2 epochs.",
    "average": "Averaged weights remember the same share of the run: first the spacing of updates shrinks "
    "with the number of steps, never below 1, then 1 - decay follows in proportion, up to 0.5.",
    "crops": "Below 64 px, the smallest random crop has a quarter of the image's area: a twelfth holds too "
    "few pixels.",
    "pixels": "What is measured in pixels keeps its share of the image: padding, steps of progressive "
    "resizing.",
    "colors": "Colors and their spread are those of the data (or of given weights), not of ImageNet; what "
    "acts on color only goes where images are gray.",
    "teacher": "A teacher that knows other classes than those of the data teaches nothing here and goes.",
    "device": "fp16 goes on a CPU, which cannot scale losses.",
    "kept": "Everything else is kept, also weight decay, whose best value depends on data and length: tune "
    "it last.",
}
"""What is done, by the name that each change carries."""


@dataclass(frozen=True)
class Fitted:
    """A recipe made for other data.

    Attributes:
        recipe: what :func:`trickbag.train` takes.
        adjustments: every change, in the order of the rules.
        notes: what was left alone and is worth knowing.
    """

    recipe: Recipe
    adjustments: tuple[Adjustment, ...]
    notes: tuple[str, ...]

    def yaml(self) -> str:
        """The recipe as YAML, under a comment that lists changes and notes."""
        lines = [f"# {text}" for text in (*map(str, self.adjustments), *(f"note: {n}" for n in self.notes))]
        return "\n".join([*lines, dump(self.recipe)])


def fit(recipe: Recipe, facts: DataFacts, epochs: float | None = None, *, device_type: str = "cpu") -> Fitted:
    """What ``recipe`` becomes on other data, by :data:`RULES`.

    Args:
        recipe: any recipe.
        facts: facts of the data that it is to be trained on.
        epochs: length of the run; None leaves it to the rule.
        device_type: ``"cpu"`` or ``"cuda"``.
    """
    work = Work(recipe, recipe, facts)
    rules.sizes_and_model(work)
    rules.batch(work)
    rules.epochs(work, epochs)
    rules.schedule(work)
    rules.average(work)
    rules.pixels(work)
    rules.colors(work)
    rules.rest(work, device_type)
    if work.adjustments:
        suffix = f", fitted to {facts.name}"
        work.recipe = work.recipe.replace(
            about=About(
                title=recipe.about.title.removesuffix(suffix) + suffix,
                source=recipe.about.source,
                published={IMAGES: facts.sizes["train"]},
                notes="Made by rules from a recipe for other data or another budget; what was published of "
                "that one does not hold for this one.",
            )
        )
    return Fitted(work.recipe, tuple(work.adjustments), tuple(work.notes))
