"""Where another trained model comes from, and what a trick may ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


class Source(BaseModel):
    """A trained model: another recipe, a run, a file, or one of timm's. Exactly one of the four.

    Attributes:
        recipe: name or file of a recipe, or the recipe itself; it is trained on the same data, or found if
            such a run exists.
        set: changes to that recipe, as ``--set`` takes them.
        seed: seed of that training; None takes the seed of the run that asks for it.
        run: directory of a finished run.
        model: name of a built-in net or of timm's; timm's pretrained weights unless ``weights`` are given.
        weights: file with the weights of ``model`` (``.safetensors``, ``.pth``).
        averaged: whether to take the averaged weights of a run that has some.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str | dict[str, Any] | None = None
    set: tuple[str, ...] = ()
    seed: int | None = Field(default=None, ge=0)
    run: str | None = None
    model: str | None = None
    weights: str | None = None
    averaged: bool = True

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """A plain text names a recipe; a single change needs no list."""
        if isinstance(value, str):
            return {"recipe": value}
        if isinstance(value, dict) and isinstance(value.get("set"), str):
            return value | {"set": (value["set"],)}
        return value

    @model_validator(mode="after")
    def _one(self) -> Source:
        given = [name for name in ("recipe", "run", "model") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of recipe, run and model")
        if self.weights is not None and self.model is None:
            raise ValueError("weights only together with model")
        if (self.set or self.seed is not None) and self.recipe is None:
            raise ValueError("set and seed only together with recipe")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class Upstream(Protocol):
    """A trained model at work; nothing in it changes any more."""

    model: nn.Module
    """In evaluation mode; its parameters want no gradients."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """The weights that the source asks for, by name."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """``(batch, classes)`` float32, without gradients, of images as the run's own model sees them."""
        ...

    def probabilities(self) -> np.ndarray:
        """``(n + pool, classes)`` float32 of the training images and those that would join them."""
        ...

    def features(self) -> np.ndarray:
        """``(n + pool, width)`` float32 of the same images: what the last layer sees."""
        ...
