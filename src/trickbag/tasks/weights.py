"""Reading weights from a local file into a model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trickbag.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or of a state dict saved by torch, on the CPU.

    Files of torch are read with ``weights_only=True``: no code in them is run.

    Raises:
        CheckpointError: missing, damaged, of another kind, or holds more than tensors.
    """
    import torch

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            "not a file of weights", where=str(path), expected="a name in " + ", ".join(SUFFIXES)
        )
    if not path.is_file():
        raise CheckpointError(
            "there is no such file", where=str(path), fix="check model.weights in the recipe"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"holds more than plain tensors, which could run code: {reason}",
            where=str(path),
            fix="save its state dict alone, best as .safetensors",
        ) from None
    except Exception as error:  # safetensors, zipfile and torch each raise their own kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"cannot be read: {reason}", where=str(path)) from None
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    import torch

    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        found = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if found:
            return found
    raise CheckpointError("holds no tensors", where=str(path), expected="a state dict: names and tensors")


def load_into(model: nn.Module, path: str | Path) -> bool:
    """Copy the weights of a file into ``model``, in place.

    Names are matched after common prefixes (``module.``, ``model.``) are taken off. If the names differ,
    tensors are matched in order, provided that the two lists of shapes agree exactly. In both cases a
    classifier for another number of classes is left as it is in ``model``, and the first convolution
    is adapted to the number of channels as timm does it.

    Returns:
        True if the classifier was loaded too.

    Raises:
        CheckpointError: as for :func:`read_weights`; or what does not match, by name.
    """
    import torch

    source = read_weights(path)
    target = model.state_dict()
    heads = _head_names(model, target)
    stem = _first_conv_name(model)
    source = _matched(source, target, heads, stem, Path(path))
    with torch.no_grad():
        for name, value in source.items():
            if value.shape == target[name].shape:
                target[name].copy_(value)
            elif name == stem:
                target[name].copy_(_adapt_channels(value, target[name].shape[1]))
    return all(name in source and source[name].shape == target[name].shape for name in heads)


def _matched(
    source: dict[str, Tensor], target: dict[str, Tensor], heads: set[str], stem: str | None, path: Path
) -> dict[str, Tensor]:
    def fits(name: str, value: Tensor) -> bool:
        wanted = target[name].shape
        if name in heads:  # the number of classes may differ, the number of features may not
            return value.ndim == len(wanted) and value.shape[1:] == wanted[1:]
        if name == stem and value.ndim == 4 and len(wanted) == 4:
            return (value.shape[0], *value.shape[2:]) == (wanted[0], *wanted[2:])
        return value.shape == wanted

    source = _without_prefix(source, target)
    counters = {name for name in target if name.endswith("num_batches_tracked")}
    needed = [name for name in target if name not in counters]
    given = [name for name in source if not name.endswith("num_batches_tracked")]
    missing = sorted(set(needed) - set(given) - heads)
    extra = sorted(set(given) - set(needed))
    wrong = [name for name in needed if name in source and not fits(name, source[name])]
    if not (missing or extra or wrong):
        return {name: value for name, value in source.items() if name in target}
    by_name = len(missing) + len(extra) + len(wrong)
    if len(needed) == len(given) and by_name > len(needed) / 2:
        pairs = list(zip(needed, given, strict=True))
        unlike = [(name, other) for name, other in pairs if not fits(name, source[other])]
        if not unlike:
            return {name: source[other] for name, other in pairs}
        name, other = unlike[0]
        detail = (
            f"matched in order, {len(unlike)} of {len(pairs)} differ, "
            f"first {other} {tuple(source[other].shape)} "
            f"for {name} {tuple(target[name].shape)}"
        )
    else:
        detail = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for what, names in (("missing", missing), ("unknown", extra), ("of another shape", wrong))
            if names
        )
    raise CheckpointError(
        f"the weights do not fit the model: {detail}",
        where=str(path),
        expected=f"{len(needed)} tensors with the names, or in the order and shapes, of the model",
        fix="check that model.name and model.options are those of the weights",
    )


def _without_prefix(source: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def strip(names: dict[str, Tensor]) -> dict[str, Tensor] | None:
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in names):
                return {name.removeprefix(prefix): value for name, value in names.items()}
        return None

    while not set(source) & set(target):
        stripped = strip(source)
        if stripped is None:
            break
        source = stripped
    return source


def _head_names(model: nn.Module, target: Mapping[str, Tensor]) -> set[str]:
    heads = _config(model, "classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return {f"{head}.{part}" for head in heads for part in ("weight", "bias")} & set(target)


def _first_conv_name(model: nn.Module) -> str | None:
    name = _config(model, "first_conv")
    return f"{name}.weight" if isinstance(name, str) else None


def _config(model: nn.Module, key: str) -> Any:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return config.get(key)


def _adapt_channels(weight: Tensor, channels: int) -> Tensor:
    from timm.models import adapt_input_conv

    adapted: Tensor = adapt_input_conv(channels, weight)
    return adapted
