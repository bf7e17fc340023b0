"""Classification sets of torchvision, by class name."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trickbag.data.cache import cache_folder
from trickbag.data.decode import decode
from trickbag.data.hashing import combine, file_hashes
from trickbag.data.listing import SELECTION, TEST, TRAIN, Listing, Mode, Progress
from trickbag.errors import DataError, nearest

if TYPE_CHECKING:
    from trickbag.data.listing import Encoded

SPLIT_VALUES = (
    ("train", TRAIN),
    ("trainval", TRAIN),
    ("val", SELECTION),
    ("valid", SELECTION),
    ("test", TEST),
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")


def list_vision(name: str, progress: Progress | None = None) -> Listing:
    """List a torchvision set; found below ``$TRICKBAG_DATA`` (or the cache), else downloaded.

    Raises:
        DataError: no such set, it is no classification set, or it is absent and cannot be downloaded.
    """
    from torchvision import datasets

    known = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    if name.lower() not in known:
        near = nearest(name, known)
        raise DataError(
            f"torchvision has no data set {name!r}",
            expected="the name of a classification set, for example torchvision:CIFAR10",
            fix=f"did you mean {known[near]}?" if near else None,
        )
    name = known[name.lower()]
    parts, root = _open_splits(getattr(datasets, name), name)
    labels = np.concatenate([_labels(part, name) for _, part in parts])
    given = np.concatenate([np.full(len(part), split, dtype=np.int8) for split, part in parts])
    arrays = [_pixels(part) for _, part in parts]
    together = [array for array in arrays if array is not None]
    same = len(together) == len(parts) and len({array.shape[1:] for array in together}) == 1
    pixels = np.concatenate(together) if same else None
    names = list(getattr(parts[0][1], "classes", None) or ())
    top = int(labels.max()) + 1
    classes = tuple(map(str, names if len(names) >= top else range(top)))
    if len(classes) < 2:
        raise DataError(f"torchvision:{name} has one class only", expected="a classification set")
    reader = Items(tuple(part for _, part in parts))
    if pixels is not None:
        content = [np.ascontiguousarray(pixels).data.cast("B").tobytes()]
    elif root is not None:
        files = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix.lower() not in ARCHIVES)
        content = [b"\0".join((p.relative_to(root).as_posix().encode(), h)) for p, h in
                   zip(files, file_hashes(files, root, progress), strict=True)]  # fmt: skip
    else:
        content = [decode(reader.get(i), "rgb").tobytes() for i in range(len(reader))]
    return Listing(
        name=name,
        names=tuple(f"{('train', 'selection', 'test')[s]}/{i}" for s, p in parts for i in range(len(p))),
        labels=labels,
        classes=classes,
        given=given,
        content=combine((f"torchvision {name}".encode(), labels.tobytes(), given.tobytes(), *content)),
        mode="gray" if pixels is not None and pixels.shape[3] == 1 else "rgb",
        pixels=pixels,
        reader=None if pixels is not None else reader,
    )


@dataclass(frozen=True)
class Items:
    """Images that torchvision data sets give one by one."""

    parts: tuple[Any, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def get(self, index: int) -> Encoded:
        """The image at ``index``, as torchvision reads it."""
        for part in self.parts:
            if index < len(part):
                image: Encoded = part[index][0]
                return image
            index -= len(part)
        raise IndexError(index)

    def blocks(self, size: int = 256) -> Iterator[Sequence[Encoded]]:
        """All images in order."""
        for start in range(0, len(self), size):
            yield [self.get(i) for i in range(start, min(start + size, len(self)))]

    def sample(self, size: int = 64) -> Sequence[Encoded]:
        """Evenly spaced images."""
        chosen = np.linspace(0, len(self) - 1, min(size, len(self))).astype(int)
        return [self.get(int(i)) for i in chosen]


def _open_splits(kind: type, name: str) -> tuple[list[tuple[int, Any]], Path | None]:
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if name == "EMNIST":
        options["split"] = "balanced"
    if "train" in parameters or name == "EMNIST":
        choices: list[tuple[int, dict[str, Any]]] = [(TRAIN, {"train": True}), (TEST, {"train": False})]
    elif "split" in parameters:
        choices = [(split, {"split": value}) for value, split in SPLIT_VALUES]
    else:
        choices = [(TRAIN, {})]
    if "root" not in parameters:
        return [(TRAIN, kind(**options))], None
    root, downloads = _root(kind, name, choices[0][1] | options)
    parts: list[tuple[int, Any]] = []
    for split, choice in choices:
        if any(split == taken for taken, _ in parts):
            continue
        arguments = options | choice | ({"download": True} if downloads else {})
        try:
            parts.append((split, kind(root=str(root), **arguments)))
        except ValueError:
            continue  # This set has no such split.
        except Exception as error:
            raise _unavailable(name, error, root) from None
    if not parts or parts[0][0] != TRAIN:
        raise DataError(f"torchvision:{name} has no train split", expected="a classification set")
    return parts, root


def _root(kind: type, name: str, arguments: dict[str, Any]) -> tuple[Path, bool]:
    """Where the set is, or is to be put; and whether it has to be downloaded."""
    base = Path(os.environ.get("TRICKBAG_DATA") or cache_folder() / "torchvision").expanduser()
    own = base / name
    for root in (own, base / name.lower(), base):
        if root.is_dir():
            try:
                kind(root=str(root), **arguments)
            except ValueError:
                return root, False
            except Exception:
                continue
            return root, False
    try:
        own.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unavailable(name, error, own) from None
    return own, "download" in inspect.signature(kind).parameters or name in ("EMNIST", "QMNIST")


def _unavailable(name: str, error: Exception, root: Path) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(
        f"torchvision:{name} is not in {root} and cannot be downloaded: {reason}",
        fix="connect to a network, or put its files there (TRICKBAG_DATA names another folder)",
    )


def _labels(part: Any, name: str) -> np.ndarray:
    def number(value: Any) -> int:
        if hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, int):
            raise DataError(
                f"torchvision:{name} gives {type(value).__name__} and not a class for an image",
                expected="a classification set with one label an image",
            )
        return value

    if len(part) == 0:
        raise DataError(f"torchvision:{name} is empty")
    try:
        ends = {0: number(part[0][1]), len(part) - 1: number(part[len(part) - 1][1])}
    except (TypeError, IndexError, KeyError):
        raise DataError(f"torchvision:{name} is no classification set") from None
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(part, attribute, None)
        try:
            found = np.asarray(values)
        except (TypeError, ValueError):
            continue
        if (
            found.shape == (len(part),)
            and found.dtype.kind in "iu"
            and all(found[i] == v for i, v in ends.items())
        ):
            return found.astype(np.int64)
    return np.array([number(part[i][1]) for i in range(len(part))], dtype=np.int64)


def _pixels(part: Any) -> np.ndarray | None:
    """The set's own array as (n, height, width, channels), if it is what its images are made of."""
    data = getattr(part, "data", None)
    if data is None or not hasattr(data, "shape"):
        return None
    array = np.asarray(data)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) != len(part):
        return None
    options = [array[..., None]] if array.ndim == 3 else [array, array.transpose(0, 2, 3, 1)]
    for option in options:
        mode: Mode = "gray" if option.shape[3] == 1 else "rgb"
        if all(np.array_equal(decode(part[i][0], mode), option[i]) for i in (0, len(part) - 1)):
            return np.ascontiguousarray(option)
    return None
