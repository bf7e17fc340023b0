"""Each operation of the policies alone on one core: microseconds an image, uint8 to uint8.

    python benchmarks/ops.py --data CIFAR10

torchvision's operation on a Pillow image against trickbag's two back ends, at 32 and 224 px. All give the
same bits. Magnitudes are those of TrivialAugmentWide.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from common import (
    Contestant,
    arguments,
    command,
    heading,
    line,
    machine,
    middle,
    number,
    one_core,
    parsed,
    race,
    ratio,
    save,
    versions,
)
from pictures import made_up, small
from trickbag.imageops.compiled import execute as compiled
from trickbag.imageops.program import Op, Program
from trickbag.imageops.tensors import execute as in_torch
from trickbag.tricks.policy_ops import Table, operation, space

LEVELS = range(1, 31)


def rows_of(name: str, side: int) -> list[float]:
    """Magnitudes of an operation, both signs where it has them."""
    values, signed = (space("wide", 31, side, side) | {"Invert": ([0.0], False)})[name]
    some = [values[level % len(values)] for level in LEVELS]
    return [-value if signed and k % 2 else value for k, value in enumerate(some)]


def contestants(name: str, stack: np.ndarray) -> list[Contestant]:
    n, side = stack.shape[:2]
    pictures = [Image.fromarray(image) for image in stack]
    tensors = torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()
    magnitudes = rows_of(name, side)
    chosen = np.arange(n) % len(magnitudes)
    table = Table.of([operation(name, value, side, side) for value in magnitudes], 0, (0, 0, 0))
    program = Program(table.steps(1 + chosen[None]))
    assert program.steps[0].ops.max() > Op.IDENTITY or name == "Identity"
    out = np.empty_like(stack)

    def pillow() -> int:
        for k, image in enumerate(pictures):
            value = magnitudes[chosen[k]]
            if name == "Invert":
                F.invert(image)
            else:
                _apply_op(image, name, value, InterpolationMode.NEAREST, [0, 0, 0])
        return n

    def numba() -> int:
        compiled(stack, None, program, levels=True, out=out)
        return n

    def tensor() -> int:
        in_torch(tensors, program, levels=True)
        return n

    ways: dict[str, Callable[[], int]] = {"torchvision": pillow, "numba": numba, "torch": tensor}
    return [Contestant(key, {key: way}, ours=key != "torchvision") for key, way in ways.items()]


def main() -> None:
    options = parsed(arguments(__doc__, seconds=0.3))
    one_core()
    data, split = small(options.data, 512)
    few = split.images.stack(split.rows)[0]
    large = np.stack(list(made_up(8 if options.quick else 32, 224, 224)))
    names = [*space("wide", 31, 32, 32), "Invert"]
    table, lines = [], []
    for stack in (few, large):
        side = stack.shape[1]
        head = ["", *(f"{key}, µs" for key in ("torchvision", "numba", "torch"))]
        head += ["numba is × as fast", "torch is × as fast"]
        lines += ["", f"### {side} px, batches of {len(stack)}", "", line(head), line(["---"] * len(head))]
        for name in names:
            print(f"{name}, {side} px")
            rows = race(contestants(name, stack), options, time.process_time)
            rates = {row.name: row.rates for row in rows}
            micro = {key: middle([1e6 / rate for rate in values]) for key, values in rates.items() if values}
            times = {key: ratio(rates[key], rates["torchvision"]) for key in ("numba", "torch") if rates[key]}
            table.append({"op": name, "px": side, "microseconds_an_image": micro, "times": times})
            cells = [number(micro[key]["median"]) if key in micro else "failed" for key in rates]
            cells += [number(times[key]["ratio"]) if key in times else "" for key in ("numba", "torch")]
            lines.append(line([name, *cells]))
        part = [entry for entry in table if entry["px"] == side]
        means = [
            number(statistics.mean(entry["microseconds_an_image"][key]["median"] for entry in part))
            for key in rates
            if all(key in entry["microseconds_an_image"] for entry in part)
        ]
        lines.append(line(["*mean*", *means, "", ""]))
    result = {
        "what": "Microseconds of a CPU core for each operation on one image, uint8 to uint8 (medians); "
        "torchvision on Pillow images, nearest.",
        "command": command(),
        "machine": machine(1),
        "versions": versions(),
        "data": f"{data} at 32 px; made-up images at 224 px",
        "repeats": options.repeats,
        "table": table,
    }
    save("ops", result, options)
    (options.out / "ops.md").write_text("\n".join([*heading(result), *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
