"""Recipe files: YAML with ``extends`` and ``without``, errors with file and line, overrides."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from trickbag.errors import Problem, RecipeError, nearest
from trickbag.recipe.model import Recipe, explain, read_bag

Path_ = tuple[str | int, ...]


MODELS = ("recipe", "run", "model")
"""What another trained model may be; naming one replaces what was named before."""


def _make_room(values: dict[str, Any], path: Path_, value: Any) -> None:
    """Take the other ways to name a model out of the settings that are about to name one."""
    whole = isinstance(value, Mapping)
    named = set(MODELS) & (set(value) if whole else {path[-1]})
    target: Any = values
    for part in path if whole else path[:-1]:
        target = target.get(part) if isinstance(target, dict) else None
    if named and isinstance(target, dict) and (set(MODELS) - named) & set(target):
        for key in (*MODELS, "set", "seed", "weights"):
            target.pop(key, None)


@dataclass
class Draft:
    """A recipe in the making: plain data, and where each value was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> str | None:
        """The most precise known origin of ``path``."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.origin:
                return self.origin[path[:end]]
        return None

    def put(self, path: Path_, value: Any, where: str) -> None:
        """Set one value, making the mappings on the way."""
        if len(path) > 2:
            _make_room(self.values, path, value)
        target: dict[Any, Any] = self.values
        for depth, part in enumerate(path[:-1], 1):
            if not isinstance(target.get(part), dict):
                target[part] = {}
                self.origin[path[:depth]] = where
            target = target[part]
        if isinstance(value, Mapping) and isinstance(target.get(path[-1]), dict):
            for key, inner in value.items():
                self.put((*path, key), inner, where)
        else:
            target[path[-1]] = dict(value) if isinstance(value, Mapping) else value
        self.origin[path] = where

    def drop(self, kind: str, where: str) -> None:
        """Remove a trick."""
        tricks = self.values.get("tricks") or {}
        if kind not in tricks:
            near = nearest(kind, tricks)
            raise RecipeError(
                f"cannot remove {kind!r}: it is not in the recipe",
                where=where,
                expected="one of " + ", ".join(sorted(tricks)) if tricks else "a recipe with tricks",
                fix=f"did you mean {near}?" if near else None,
            )
        del tricks[kind]

    def finish(self, where: str) -> Recipe:
        """Validate everything; every problem is reported at once."""
        from pydantic import ValidationError

        values = dict(self.values)
        tricks = values.pop("tricks", None) or {}
        problems: list[tuple[Path_, Problem]] = []
        if not isinstance(tricks, Mapping):
            problems.append(
                (("tricks",), Problem("tricks is not a mapping", expected="trick: {setting: value}"))
            )
            tricks = {}
        bag, found = read_bag(tricks)
        problems += [(("tricks", *path), problem) for path, problem in found]
        recipe = None
        try:
            recipe = Recipe(**values, tricks=bag)
        except ValidationError as error:
            problems += explain(error, Recipe)
        if problems:
            raise RecipeError(
                Problem(p.what, self.where(path) or where, p.expected, p.fix) for path, p in problems
            )
        assert recipe is not None
        return recipe


def load(
    name: str | Path,
    *,
    set_: Sequence[str] = (),
    with_: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Recipe:
    """Read a recipe by published name or file, then apply overrides (without, then with, then set).

    Args:
        name: name of a published recipe, or a YAML file.
        set_: ``key=value`` texts: ``epochs=5``, ``model.name=resnet20``, ``mixup.alpha=0.4``.
        with_: tricks to add: ``mixup`` or ``mixup:alpha=0.4,p=0.5``; one in the same slot gives way.
        without: kinds of tricks to remove.

    Raises:
        RecipeError: anything wrong, with file, line and nearest name.
    """
    draft = _draft(name, ())
    for kind in without:
        draft.drop(kind, f"--without {kind}")
    added = [(*_trick_text(text), f"--with {text}") for text in with_]
    _put_tricks(draft, added)
    _set(draft, set_)
    return draft.finish(str(name))


def _set(draft: Draft, texts: Sequence[str]) -> None:
    for text in texts:
        path, value = _assignment(text)
        if path == ("model",) and isinstance(value, str):
            draft.values.pop("model", None)
            value = {"name": value}
        draft.put(path, value, f"--set {text}")


def read_plain(values: Mapping[str, Any], *, set_: Sequence[str] = ()) -> Recipe:
    """A recipe from plain data, which may ``extend`` another, with ``--set`` texts applied.

    Raises:
        RecipeError: anything wrong.
    """
    own = dict(values)
    parent = own.pop("extends", None)
    draft = Draft() if parent is None else _draft(str(parent), ())
    _put_tricks(
        draft, [(kind, settings, "recipe") for kind, settings in (own.pop("tricks", None) or {}).items()]
    )
    for key, value in own.items():
        draft.put((key,), {"name": value} if key == "model" and isinstance(value, str) else value, "recipe")
    _set(draft, set_)
    return draft.finish("recipe")


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that :func:`load` reads back to an equal recipe."""
    from ruamel.yaml import YAML

    data = recipe.data()
    about = recipe.about.model_dump(mode="json", exclude_defaults=True)
    if about:
        data = {"about": about} | data
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.dump(data, stream)
    return stream.getvalue()


@lru_cache(maxsize=1)
def published() -> Mapping[str, Path]:
    """The recipes that come with trickbag, by name."""
    folder = Path(str(resources.files("trickbag"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def yaml_value(text: str) -> Any:
    """One YAML 1.2 value, as ``--set`` and ``--with`` take them."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, RecursionError):
        return text


def read_yaml(path: Path) -> tuple[Any, dict[Path_, str]]:
    """Plain data of a YAML file, and ``file:line`` of every value by its path.

    Raises:
        RecipeError: the file is missing, not text, or not YAML.
    """
    try:
        about = path.stat()
    except OSError:
        return _read_yaml(path)
    raw, origin = _parsed(path, (about.st_mtime_ns, about.st_size))
    return copy.deepcopy(raw), dict(origin)


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: tuple[int, int]) -> tuple[Any, dict[Path_, str]]:
    # A ladder of recipes reads its lower steps again and again.
    return _read_yaml(path)


def _read_yaml(path: Path) -> tuple[Any, dict[Path_, str]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise RecipeError(f"cannot read {path}: {reason}", fix="check the path") from None
    try:
        tree = YAML(typ="rt").load(text)
        origin = {position: f"{path}:{line}" for position, line in _lines(tree, (), 1)}
        return _plain(tree), origin
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not valid YAML: character {chr(error.character)!r} is not allowed"
        raise RecipeError(what, where=f"{path}:{line}", expected="YAML 1.2") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(
            f"not valid YAML: {error.problem or error.context}", where=f"{path}:{line}", expected="YAML 1.2"
        ) from None
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"not valid YAML: {error}", where=str(path), expected="YAML 1.2") from None
    except RecursionError:
        raise RecipeError("the values are nested too deeply", where=str(path)) from None


def _lines(node: Any, path: Path_, line: int) -> Iterator[tuple[Path_, int]]:
    """Path and line of every value; one that an anchor brought has the line of what holds it."""
    keyed: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        keyed = node.items()
    elif isinstance(node, list):
        keyed = enumerate(node)
    for key, value in keyed:
        known = (getattr(getattr(node, "lc", None), "data", None) or {}).get(key)
        at = known[0] + 1 if known else line
        inner = (*path, key if isinstance(node, list) else str(key))
        yield inner, at
        yield from _lines(value, inner, at)


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _draft(
    name: str | Path, seen: tuple[Path, ...], where: str | None = None, base: Path | None = None
) -> Draft:
    path = _locate(str(name), where, base)
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise RecipeError(f"extends goes in a circle: {chain}", where=where)
    raw, origin = read_yaml(path)
    if not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping", where=f"{path}:1", expected="model, epochs, tricks, ...")
    parent = raw.pop("extends", None)
    removed = raw.pop("without", None) or []
    if parent is None:
        draft = Draft()
    elif isinstance(parent, str):
        draft = _draft(parent, (*seen, path), origin[("extends",)], path.parent)
        draft.values.pop("about", None)
    else:
        raise RecipeError(
            "extends is not a name", where=origin[("extends",)], expected="a recipe name or file"
        )
    if not isinstance(removed, list):
        removed = [removed]
    for index, kind in enumerate(removed):
        draft.drop(str(kind), origin.get(("without", index), origin.get(("without",), str(path))))
    tricks = _placed(raw.pop("tricks", None), path.parent)
    if isinstance(tricks, dict):
        _put_tricks(draft, [(kind, settings, origin[("tricks", kind)]) for kind, settings in tricks.items()])
    elif tricks is not None:
        draft.put(("tricks",), tricks, origin[("tricks",)])
    for key, value in raw.items():
        if key == "model" and isinstance(value, str):
            draft.values.pop("model", None)
            value = {"name": value}
        if key == "model" and isinstance(value, dict) and isinstance(value.get("weights"), str):
            beside = path.parent / value["weights"]
            value = value | ({"weights": str(beside)} if beside.exists() else {})
        draft.put((key,), value, origin[(key,)])
    draft.origin.update(origin)
    return draft


def _placed(value: Any, folder: Path) -> Any:
    """Settings in which recipes, runs and weights of other models that lie beside the file are absolute."""
    if isinstance(value, list):
        return [_placed(inner, folder) for inner in value]
    if not isinstance(value, dict):
        return value
    found = {key: _placed(inner, folder) for key, inner in value.items()}
    for key in ("recipe", "run", "weights"):
        name = found.get(key)
        if isinstance(name, str) and name not in published() and (folder / name).exists():
            found[key] = str((folder / name).absolute())
    return found


def _locate(name: str, where: str | None, base: Path | None) -> Path:
    if name in published():
        return published()[name]
    path = Path(os.path.expanduser(name))
    for candidate in ([base / path] if base is not None else []) + [path]:
        if candidate.is_file():
            return candidate.resolve()
    near = nearest(name, published())
    fix = f"did you mean {near}?" if near else "`trickbag recipes` lists them all"
    raise RecipeError(f"no recipe is called {name!r}, and no such file", where=where, fix=fix)


def _put_tricks(draft: Draft, added: Sequence[tuple[str, Any, str]]) -> None:
    """Add ``(kind, settings, where)``: each is merged into one of its kind, or replaces one in its slot.

    Two that are added together and share a slot both stay, for the plan to refuse.
    """
    from trickbag.tricks import catalogue

    known = catalogue()
    kinds = {kind for kind, _, _ in added}
    slots = {known[kind].slot for kind in kinds if kind in known} - {None}
    tricks = draft.values.setdefault("tricks", {})
    if isinstance(tricks, dict):
        for other in [o for o in tricks if o not in kinds and o in known and known[o].slot in slots]:
            del tricks[other]
    for kind, settings, where in added:
        if isinstance(tricks, dict) and tricks.get(kind, 0) is None:
            tricks[kind] = {}
        draft.put(("tricks", kind), {} if settings is None else settings, where)


def _trick_text(text: str) -> tuple[str, dict[str, Any]]:
    kind, _, rest = text.partition(":")
    if not rest:
        return kind.strip(), {}
    value = yaml_value("{" + rest.replace("=", ": ") + "}")
    if not isinstance(value, dict):
        raise RecipeError(f"cannot read {text!r}", where="--with", expected="KIND or KIND:setting=value,...")
    return kind.strip(), value


def _assignment(text: str) -> tuple[Path_, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"cannot read {text!r}", where="--set", expected="key=value, for example epochs=5")
    path = tuple(key.strip().split("."))
    from trickbag.tricks import catalogue

    kind = path[0]
    if kind in catalogue():
        path = ("tricks", *path)
    elif path[0] not in Recipe.model_fields:
        near = nearest(path[0], [*Recipe.model_fields, *catalogue()])
        raise RecipeError(
            f"there is no setting {key.strip()!r}",
            where=f"--set {text}",
            expected="a recipe's field or TRICK.setting",
            fix=f"did you mean {near}?" if near else None,
        )
    found = yaml_value(value)
    if found is None and path == ("tricks", kind):
        raise RecipeError(
            f"{kind}: there are no settings",
            where=f"--set {text}",
            expected=f"--set {kind}.SETTING=VALUE",
            fix=f"--without {kind} takes it out, --with {kind} puts it in",
        )
    return path, found
