"""The recipe: model, task, budget and an unordered bag of tricks, as a frozen value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from trickbag.errors import Problem, RecipeError, nearest
from trickbag.tricks.base import Bag, Trick

MAX_SIDE = 2**16
"""Longest side of an image, in pixels."""
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Scalar = bool | int | float | str
SCALAR_NAMES = tuple((kind.__name__,) for kind in (bool, int, float, str))
"""What pydantic appends to the path of a value that is none of these."""


class Frozen(BaseModel):
    """A value: immutable, and without fields that nobody declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Frozen):
    """Which network.

    Attributes:
        name: a built-in small net (``trickbag.tasks.nets``) or any timm model.
        pretrained: load timm's pretrained weights (from the hub, or ``weights``).
        weights: local file with pretrained weights (``.safetensors``, ``.pth``); implies ``pretrained``.
        options: extra keyword arguments for the model's constructor.
    """

    name: str
    pretrained: bool = False
    weights: str | None = None
    options: dict[str, Scalar] = Field(default_factory=dict)

    @property
    def starts_pretrained(self) -> bool:
        """True if training starts from given rather than random weights."""
        return self.pretrained or self.weights is not None


class About(Frozen):
    """Where a recipe comes from. Never part of its digest."""

    title: str = ""
    source: str = ""
    published: dict[str, Scalar] = Field(default_factory=dict)
    notes: str = ""


def _model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _bag(value: Any) -> Bag:
    if isinstance(value, Bag):
        return value
    if isinstance(value, Mapping):
        bag, problems = read_bag(value)
        if problems:
            raise ValueError("; ".join(str(p[1]) for p in problems))
        return bag
    if isinstance(value, Iterable) and not isinstance(value, str):
        return Bag(value)
    raise ValueError("expected a mapping from trick name to settings, or a list of tricks")


def read_bag(value: Mapping[str, Any]) -> tuple[Bag, list[tuple[tuple[str | int, ...], Problem]]]:
    """Make a bag of ``{kind: settings}``; also returns every problem with its path inside ``value``."""
    from pydantic import ValidationError

    from trickbag.tricks import catalogue, find

    tricks: list[Trick] = []
    problems: list[tuple[tuple[str | int, ...], Problem]] = []
    for kind, settings in value.items():
        trick = catalogue().get(kind)
        if trick is None:
            alias = find(kind)
            near = alias.kind if alias else nearest(kind, catalogue())
            fix = f"did you mean {near}?" if near else "`trickbag tricks` lists them all"
            problems.append(((kind,), Problem(f"no trick is called {kind!r}", fix=fix)))
            continue
        if settings is not None and not isinstance(settings, Mapping):
            problem = Problem(f"{kind}: {settings!r} is not a mapping of settings", expected=fields_of(trick))
            problems.append(((kind,), problem))
            continue
        try:
            tricks.append(trick(**{str(name): value for name, value in (settings or {}).items()}))
        except ValidationError as error:
            problems += [((kind, *path), problem) for path, problem in explain(error, trick, kind)]
    return Bag(tricks), problems


def fields_of(model: type[BaseModel]) -> str:
    """The field names of a model, for messages."""
    return "settings " + ", ".join(model.model_fields) if model.model_fields else "no settings"


def explain(
    error: Any, model: type[BaseModel], prefix: str = ""
) -> list[tuple[tuple[str | int, ...], Problem]]:
    """Turn a pydantic ``ValidationError`` into problems with their paths and nearest-name suggestions."""
    found = []
    scalars: set[tuple[str | int, ...]] = set()
    for item in error.errors():
        path = tuple(item["loc"])
        if path[-1:] in SCALAR_NAMES:
            if path[:-1] in scalars:
                continue
            path = path[:-1]
            scalars.add(path)
            item = item | {"type": "scalar", "msg": "a number, a text, true or false"}
        name = ".".join(map(str, (*((prefix,) if prefix else ()), *path)))
        if item["type"] == "extra_forbidden":
            owner = _owner(model, path)
            near = nearest(str(path[-1]), owner.model_fields)
            fix = f"did you mean {near}?" if near else None
            problem = Problem(f"{name}: there is no such setting", expected=fields_of(owner), fix=fix)
        elif item["type"] == "missing":
            problem = Problem(f"{name}: is missing", fix=f"add {path[-1]}: ...")
        else:
            message = item["msg"].removeprefix("Value error, ")
            problem = Problem(
                f"{name}: {item['input']!r} is not valid", expected=message[0].lower() + message[1:]
            )
        found.append((path, problem))
    return found


def _owner(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return model


def _dump(bag: Bag) -> dict[str, Any]:
    return {kind: trick.settings() for kind, trick in bag.items()}


class Recipe(Frozen):
    """A bag of tricks with a model and a budget.

    Attributes:
        task: what is learned.
        model: which network; a plain name is enough.
        epochs: passes over the training split; a fraction is allowed.
        batch_size: images in one optimizer step, over all processes.
        image_size: height and width of training images, in pixels.
        eval_size: height and width of evaluation images; None means ``image_size``.
        eval_resize: length in pixels to which the short side is resized before the center crop of
            ``eval_size``; None means ``eval_size`` (the whole short side is seen).
        interpolation: filter (antialiased) of every resize.
        evaluate_every: epochs between evaluations on the selection split.
        tricks: the bag; its order means nothing.
        about: title, source, published numbers; not part of the digest.
    """

    task: Literal["classification"] = "classification"
    model: Annotated[ModelSpec, BeforeValidator(_model)]
    epochs: float = Field(gt=0, le=1e6)
    batch_size: int = Field(ge=1)
    image_size: int = Field(ge=1, le=MAX_SIDE)
    eval_size: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    eval_resize: int | None = Field(default=None, ge=1, le=MAX_SIDE)
    interpolation: Interpolation = "bilinear"
    evaluate_every: float = Field(default=1, gt=0)
    tricks: Annotated[Bag, PlainValidator(_bag), PlainSerializer(_dump)] = Bag()
    about: About = About()

    PREDICT_ONLY: ClassVar[tuple[str, ...]] = ("eval_size", "eval_resize")
    """Plain values that act only when predicting: changing them needs no new training."""

    def data(self) -> dict[str, Any]:
        """The recipe as plain data, without ``about`` and without fields left at None."""
        plain = self.model_dump(mode="json", exclude={"about"}, exclude_none=True)
        plain["model"] = {k: v for k, v in plain["model"].items() if v not in ({}, False)}
        return plain

    @property
    def digest(self) -> str:
        """Hash of everything that matters, 16 hexadecimal digits; order, comments and ``about`` do not."""
        text = json.dumps(self.data(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_tricks(self, *tricks: Trick) -> Self:
        """This recipe with ``tricks`` added; one of the same kind or slot is replaced."""
        return self.model_copy(update={"tricks": self.tricks.with_(*tricks)})

    def without(self, *kinds: str) -> Self:
        """This recipe less the named tricks.

        Raises:
            RecipeError: a named trick is not in the bag.
        """
        missing = [kind for kind in kinds if kind not in self.tricks]
        if missing:
            raise RecipeError(
                f"cannot remove {', '.join(missing)}: not in the recipe",
                expected="one of " + ", ".join(self.tricks) if self.tricks else "the recipe holds no tricks",
            )
        return self.model_copy(update={"tricks": self.tricks.without(*kinds)})

    def replace(self, **values: Any) -> Self:
        """This recipe with plain values replaced, validated anew."""
        return type(self)(**({name: getattr(self, name) for name in type(self).model_fields} | values))

    @property
    def evaluation(self) -> tuple[int, int]:
        """(resize of the short side, center crop), in pixels."""
        size = self.eval_size or self.image_size
        return self.eval_resize or size, size
