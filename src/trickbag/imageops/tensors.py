"""The torch back end: any device, no loop over images, and a host that never waits for the device.

The host knows every operation and argument, so it sorts the images of a step by operation; each group is
then one call of the functions in ``functional/``. Flips and shifts are not executed one by one: they are
chained, as maps of rows and columns, until something else needs the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trickbag.functional import filters, geometric, photometric
from trickbag.functional.augment import box_mask, per_image
from trickbag.functional.erasing import noise_bits, normal_table, uniform_noise
from trickbag.imageops.program import Op, Program, Step, check, linear, stacked

PIECE = 1 << 20
"""Values worked on at once on a CPU: with more, cache misses and fresh memory cost more than calls save."""
COLOR, UNIFORM, NORMAL = 0, 1, 2
"""Fills of ``Op.ERASE``."""

Tables = Callable[[Tensor, Tensor], Tensor]
TABLES: dict[int, Tables] = {
    Op.BRIGHTNESS: lambda images, args: photometric.brightness_tables(args[:, 0]),
    Op.CONTRAST: lambda images, args: photometric.contrast_tables(images, args[:, 0]),
    Op.POSTERIZE: lambda images, args: photometric.posterize_tables(args[:, 0]),
    Op.SOLARIZE: lambda images, args: photometric.solarize_tables(args[:, 0]),
    Op.SOLARIZE_ADD: lambda images, args: photometric.solarize_add_tables(args[:, 0], args[:, 1]),
    Op.INVERT: lambda images, args: photometric.invert_tables(images),
    Op.AUTOCONTRAST: lambda images, args: photometric.autocontrast_tables(images),
    Op.EQUALIZE: lambda images, args: photometric.equalize_tables(images),
    Op.ADD: lambda images, args: photometric.add_color_tables(args[:, : images.shape[1]]),
}
BOUNDS = tuple(
    op for op in range(len(Op) + 1) if not Op.IDENTITY < op <= Op.SHIFT and not Op.BRIGHTNESS < op <= Op.ADD
)
"""First operations of the groups that have code of their own; moves and tables are one group each."""


def execute(images: Tensor, program: Program, levels: bool = False) -> Tensor:
    """Execute a program.

    Args:
        images: uint8 ``(batch, channels, height, width)``, 1 or 3 channels, on any device.
        program: for as many images.
        levels: stop before the table, with uint8 values.

    Returns:
        float32 (or uint8, with ``levels``) of the same shape and device, in ``channels_last`` memory.
    """
    batch, channels, height, width = images.shape
    check(program, batch)
    dtype = torch.uint8 if levels else torch.float32
    result = torch.empty((batch, height, width, channels), dtype=dtype, device=images.device)
    table = None if levels else program.floats(channels)
    _finish(_Pixels(_planar(images)).run(program.steps), table, result)
    result = result.permute(0, 3, 1, 2)
    return result if levels or not program.late else late(result, program.late, inplace=True)


def late(images: Tensor, steps: Sequence[Step], inplace: bool = False) -> Tensor:
    """Erase boxes of images that are no longer levels.

    Args:
        images: float32 ``(batch, channels, height, width)`` on any device.
        steps: of ``Op.ERASE`` and ``Op.IDENTITY``, for as many images.
        inplace: write to ``images``.

    Raises:
        ValueError: another operation.
    """
    if not inplace:
        images = images.clone()
    for step in steps:
        if not np.isin(step.ops, (Op.IDENTITY, Op.ERASE)).all():
            raise ValueError("after the table, only ERASE has a meaning")
        for kind, chosen in _boxes(step.ops, step.args):
            args = geometric.send(torch.from_numpy(step.args[chosen]), images.device)
            there = geometric.send(torch.from_numpy(chosen), images.device)
            part = images.index_select(0, there)
            inside = box_mask(args[:, :4].long(), *images.shape[2:])
            images.index_copy_(0, there, torch.where(inside, _fill(kind, args, part.shape), part))
    return images


class _Pixels:
    """A batch of planar uint8 images on its way through the steps of a program."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.device = images.device
        self.kept = images
        self.total: Tensor | None = None
        self.rows: np.ndarray | None = None
        self.columns: np.ndarray | None = None

    def run(self, steps: Sequence[Step]) -> Tensor:
        """The images after all steps."""
        if not steps or not len(self.images):
            return self.images
        ops, args = stacked(steps, len(self.images))
        ops[(ops == Op.ERASE) & (args[:, :, 2:4] <= 0).any(2)] = Op.IDENTITY
        moves, others = (ops == Op.FLIP) | (ops == Op.SHIFT), ops > Op.SHIFT
        for number in np.nonzero(moves.any(1) | others.any(1))[0]:
            if moves[number].any():
                self.move(ops[number], args[number])
            if others[number].any():
                self.settle()
                self.step(ops[number], args[number])
        self.settle()
        return self.images

    def move(self, ops: np.ndarray, args: np.ndarray) -> None:
        """Remember flips and shifts."""
        height, width = self.images.shape[2:]
        # A flip has its two arguments the other way round: columns first.
        rows, columns = _lines(ops, args, (1, 0), height), _lines(ops, args, (0, 1), width)
        if self.rows is not None and self.columns is not None:
            rows, columns = _chained(self.rows, rows), _chained(self.columns, columns)
        self.rows, self.columns = rows, columns

    def settle(self) -> None:
        """Execute what ``move`` has remembered."""
        if self.rows is not None and self.columns is not None:
            rows, columns = torch.from_numpy(self.rows), torch.from_numpy(self.columns)
            parts = [
                geometric.pick(self.images[share], rows[share], columns[share])
                for share in _shares(self.images)
            ]
            self.images = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.rows = self.columns = None

    def step(self, ops: np.ndarray, args: np.ndarray) -> None:
        """One operation, and no move, for each image."""
        mixed = bool((ops != ops[0]).any())
        order = ops.argsort(kind="stable") if mixed else np.arange(len(ops))
        ops, args = ops[order], args[order]
        places = geometric.send(torch.from_numpy(np.stack((order, order.argsort()))), self.device)
        sent, here = geometric.send(torch.from_numpy(args), self.device), torch.from_numpy(args)
        images = self.images.index_select(0, places[0]) if mixed else self.images
        parts = []
        for share in _shares(images):
            bounds = np.searchsorted(ops[share], BOUNDS) + share.start
            for op, start, stop in zip(BOUNDS, bounds, bounds[1:], strict=False):
                if start < stop:
                    part = slice(start, stop)
                    where = places[0, part] if mixed else part
                    parts.append(self.act(op, ops[part], images[part], here[part], sent[part], where))
        images = torch.cat(parts) if len(parts) > 1 else parts[0]
        self.images = images.index_select(0, places[1]) if mixed else images

    def act(
        self, op: int, ops: np.ndarray, images: Tensor, args: Tensor, sent: Tensor, where: Tensor | slice
    ) -> Tensor:
        """What becomes of images that have one operation, or tables, in common.

        Args:
            op: the first operation of the group.
            ops: ``(batch,)`` uint8, sorted.
            images: ``(batch, channels, height, width)``.
            args: ``(batch, ARGS)`` float64 on the CPU.
            sent: ``args`` on the device.
            where: which images of the whole batch these are.
        """
        if op in TABLES:
            return photometric.lookup(images, _tables(ops, images, sent))
        if op == Op.AFFINE:
            fill = sent[:, 7 : 7 + images.shape[1]]
            return geometric.affine(images, args[:, :6], args[:, 6].long(), fill)
        if op == Op.SATURATION:
            return photometric.saturation(images, sent[:, 0])
        if op == Op.HUE:
            return photometric.hue(images, sent[:, 0])
        if op == Op.SHARPNESS:
            return photometric.sharpness(images, sent[:, 0])
        if op == Op.GAMMA:
            return photometric.gamma(images, sent[:, 0])
        if op == Op.BLUR:
            return filters.blur(images, filters.blur_kernels(args[:, 0].long(), args[:, 1]))
        if op == Op.NOISE:
            return filters.gaussian_noise(images, sent[:, 0], sent[:, 1:3].long())
        if op == Op.CLAHE:
            return _adapted(images, args)
        if op == Op.ERASE:
            return _erased(images, args[:, 4] != COLOR, sent)
        if op in (Op.SAVE, Op.ACCUMULATE, Op.TAKE):
            return self.mix(op, images, per_image(sent[:, 0].float()), where)
        return images

    def mix(self, op: int, images: Tensor, weights: Tensor, where: Tensor | slice) -> Tensor:
        if op == Op.SAVE:
            if self.total is None:
                self.total = torch.zeros(self.images.shape, device=self.device)
                self.kept = torch.zeros_like(self.images)
            self.total[where] = images * weights
            self.kept[where] = images
            return images
        assert self.total is not None
        if op == Op.TAKE:
            return self.total[where].clamp(0, 255).to(torch.int16).to(torch.uint8)
        self.total[where] = self.total[where] + images * weights
        return self.kept[where]


def _shares(images: Tensor) -> list[slice]:
    """The batch in pieces for a CPU's cache; elsewhere, whole."""
    size = PIECE // math.prod(images.shape[1:]) if images.device.type == "cpu" else len(images)
    size = max(size, 1)
    return [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]


def _lines(ops: np.ndarray, args: np.ndarray, columns: tuple[int, int], length: int) -> np.ndarray:
    """A map of ``geometric.pick`` for flips and shifts, whose arguments are in one of two columns each."""
    flips, shifts = ops == Op.FLIP, ops == Op.SHIFT
    flipped = flips & (args[:, columns[0]] != 0)
    offsets = np.where(shifts, args[:, columns[1]], flipped * (length - 1)).astype(np.int64)
    places: np.ndarray = np.arange(length) * (1 - 2 * flipped)[:, None] + offsets[:, None]
    mirror = shifts & (args[:, 2] != 0)
    if mirror.any():
        period = max(2 * (length - 1), 1)
        around = places[mirror] % period
        places[mirror] = np.minimum(np.minimum(around, period - around), length - 1)
    places[(places < 0) | (places >= length)] = -1
    return places


def _chained(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The map of two moves one after the other."""
    first = np.pad(first, ((0, 0), (0, 1)), constant_values=-1)  # Which is what -1 finds.
    chained: np.ndarray = first[np.arange(len(first))[:, None], second]
    return chained


def _tables(ops: np.ndarray, images: Tensor, args: Tensor) -> Tensor:
    """The tables of images sorted by operation: ``(batch, channels, 256)``."""
    bounds = np.searchsorted(ops, np.arange(Op.BRIGHTNESS, Op.SATURATION + 1))
    tables = [
        make(images[start:stop], args[start:stop]).expand(-1, images.shape[1], -1)
        for make, start, stop in zip(TABLES.values(), bounds, bounds[1:], strict=False)
        if start < stop
    ]
    return torch.cat(tables)


def _erased(images: Tensor, noisy: Tensor, args: Tensor) -> Tensor:
    """Levels with boxes filled; ``noisy`` ``(batch,)`` bool is on the CPU."""
    inside = box_mask(args[:, :4].long(), *images.shape[2:]).to(torch.uint8)
    fill = args[:, 5 : 5 + images.shape[1], None, None].to(torch.uint8)
    if noisy.any():
        noise = (noise_bits(args[:, 5:7].long(), images.shape) >> 24).to(torch.uint8)
        fill = noise if noisy.all() else torch.where(per_image(args[:, 4]) != COLOR, noise, fill)
    return (images * (1 - inside)).add_(fill * inside)


def _adapted(images: Tensor, args: Tensor) -> Tensor:
    """CLAHE, a call for all images that have tiles and channels in common; ``args`` is on the CPU."""
    kinds, which = args[:, 1:3].unique(dim=0, return_inverse=True)
    if len(kinds) == 1:
        return filters.clahe(images, args[:, 0], int(kinds[0, 0]), each=bool(kinds[0, 1]))
    order = which.argsort(stable=True)
    there, back = geometric.send(torch.stack((order, order.argsort())), images.device).unbind(0)
    counts = which.bincount().tolist()
    shares = zip(
        kinds.tolist(), images.index_select(0, there).split(counts), args[order].split(counts), strict=True
    )
    parts = [filters.clahe(part, some[:, 0], int(kind[0]), each=bool(kind[1])) for kind, part, some in shares]
    return torch.cat(parts).index_select(0, back)


def _boxes(ops: np.ndarray, args: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Which images have something to erase, by kind of fill."""
    due = (ops == Op.ERASE) & (args[:, 2:4] > 0).all(1)
    kinds = ((kind, np.nonzero(due & (args[:, 4] == kind))[0]) for kind in (COLOR, UNIFORM, NORMAL))
    return [(kind, chosen) for kind, chosen in kinds if len(chosen)]


def _fill(kind: int, args: Tensor, shape: torch.Size) -> Tensor:
    """What replaces the pixels of boxes after the table."""
    if kind == COLOR:
        return args[:, 5 : 5 + shape[1], None, None].float()
    seeds = args[:, 5:7].long()
    if kind == UNIFORM:
        return uniform_noise(seeds, shape)
    places = noise_bits(seeds, shape).bitwise_right_shift_(16).bitwise_and_(0xFFFF)
    return normal_table(args.device).index_select(0, places.flatten()).view(shape)


def _planar(images: Tensor) -> Tensor:
    """The images in contiguous memory, one channel after the other."""
    if images.is_contiguous():
        return images
    result = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    for channel in range(images.shape[1]):  # Quicker on a CPU than all at once.
        result[:, channel] = images[:, channel]
    return result


def _finish(images: Tensor, table: np.ndarray | None, result: Tensor) -> None:
    """Write images, or what the table makes of them, to ``result`` ``(batch, height, width, channels)``."""
    width, channels = result.shape[2:]
    line = None if table is None else linear(table)
    if line is not None:
        slopes, intercepts = (geometric.send(torch.tensor(v), result.device).repeat(width) for v in line)
    elif table is not None:
        values = geometric.send(torch.tensor(table), result.device).view(-1)
        first = torch.arange(channels, dtype=torch.int32, device=result.device).mul_(256).repeat(width)
    for share in _shares(images):
        levels = result[share] if table is None else torch.empty_like(result[share], dtype=torch.uint8)
        for channel in range(channels):
            levels[..., channel] = images[share, channel]
        rows = levels.view(-1, width * channels)
        if line is not None:
            # Two operations: fused into one they would round once, and differ from the compiled code.
            result[share].view(-1, width * channels).copy_(rows).mul_(slopes).add_(intercepts)
        elif table is not None:
            places = rows.to(torch.int32).add_(first)
            torch.index_select(values, 0, places.view(-1), out=result[share].view(-1))
