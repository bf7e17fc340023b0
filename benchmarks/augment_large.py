"""Augmentation to 224 px on one core: images a CPU second, from photographs to a normalized batch.

    python benchmarks/augment_large.py --data PHOTOS

Everybody does RandomResizedCrop, flip, TrivialAugmentWide, normalization and RandomErasing(0.1). Cases: from
decoded images in memory; from JPEG files; from a set that was prepared once (short side 256).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import io as vision_io
from torchvision import transforms as v1
from torchvision.transforms import v2

from common import Contestant, arguments, case_of, one_core, parsed, race, report
from peers import (
    Finish,
    order,
    policy_albumentations,
    policy_kornia,
    policy_timm,
    policy_v1,
    policy_v2,
    seed_all,
    through,
)
from pictures import MEAN, STD, photos
from trickbag import data as trickbag_data
from trickbag.data.base import Request
from trickbag.data.holding import Decoding
from trickbag.data.serving import ImageSplit
from trickbag.engine.batches import program_of
from trickbag.imageops.tensors import execute as in_torch
from trickbag.rng import Stream
from trickbag.tricks.augmentation import RandomFlip, RandomResizedCrop
from trickbag.tricks.color import Normalize
from trickbag.tricks.erasing import RandomErasing
from trickbag.tricks.policies import TrivialAugment
from trickbag.tricks.stages import Batch, ImageTrick

SIDE, ERASE = 224, 0.1


class Peers:
    """The other libraries on one collection of photographs."""

    def __init__(self, batch: int, count: int) -> None:
        self.order, self.finish = order(count, batch), Finish()
        self.erase = v1.RandomErasing(ERASE, inplace=True)

    def by_image(self, source: list, act: Callable, finish: Callable, erases: bool = False) -> Callable:
        """Work of a library that takes one image at a time; without ``erases``, erasing follows."""

        def work() -> int:
            rows = next(self.order)
            images = finish([act(source[row]) for row in rows])
            if not erases:
                for image in images:
                    self.erase(image)
            return len(rows)

        return work

    def torchvision(self, sources: dict[str, tuple[list, Callable, str]]) -> list[Contestant]:
        """Ways to read: description -> (source, how it becomes a Pillow image or tensor, which of both)."""
        front1 = [v1.RandomResizedCrop(SIDE), v1.RandomHorizontalFlip(), *policy_v1("trivial")]
        front2 = [v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), *policy_v2("trivial")]
        usual = [*front1, v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomErasing(ERASE)]
        plain: dict[str, Callable] = {}
        ways: dict[str, dict[str, Callable]] = {"Pillow": {}, "tensor": {}}
        for how, (source, read, kind) in sources.items():
            arrays, tensors = self.finish.arrays, self.finish.tensors
            if kind == "Pillow":
                act = through([read, *usual])
                plain[f"{how}, v1, ToTensor and Normalize an image"] = self.by_image(
                    source, act, torch.stack, erases=True
                )
                ways[kind][f"{how}, v1"] = self.by_image(source, through([read, *front1, np.asarray]), arrays)
                ways[kind][f"{how}, v2"] = self.by_image(source, through([read, *front2, np.asarray]), arrays)
            else:
                ways[kind][f"{how}, v2 on uint8 tensors"] = self.by_image(
                    source, through([read, *front2]), tensors
                )
        rows = {"torchvision, as in its examples": plain}
        rows |= {"torchvision, Pillow": ways["Pillow"], "torchvision, tensors": ways["tensor"]}
        return [Contestant(name, row) for name, row in rows.items() if row]

    def timm(self, how: str, source: list, read: Callable) -> Contestant:
        """The crop of timm, and TrivialAugment by one operation of its RandAugment."""
        from timm.data.random_erasing import RandomErasing
        from timm.data.transforms import RandomResizedCropAndInterpolation

        crop = RandomResizedCropAndInterpolation(SIDE, interpolation="bilinear")
        act = through([read, crop, v1.RandomHorizontalFlip(), *policy_timm("trivial"), np.asarray])
        erase = RandomErasing(ERASE, mode="const", device="cpu")
        work = self.by_image(source, act, lambda images: erase(self.finish.arrays(images)), erases=True)
        return Contestant("timm", {f"{how}; one operation of RandAugment at a uniform magnitude": work})

    def albumentations(self, sources: dict[str, tuple[list, Callable]]) -> Contestant:
        """Its own crop: bilinear without antialiasing (its default), or by area."""
        import albumentations as A
        import cv2

        filters = {"not antialiased": cv2.INTER_LINEAR, "by area": cv2.INTER_AREA}
        ways = {}
        for how, (source, read) in sources.items():
            for title, number in filters.items():
                whole = A.Compose(
                    [
                        A.RandomResizedCrop((SIDE, SIDE), interpolation=number),
                        A.HorizontalFlip(p=0.5),
                        *policy_albumentations("trivial", SIDE),
                    ]
                )
                ways[f"{how}, resized {title}"] = self.by_image(
                    source,
                    lambda image, whole=whole, read=read: whole(image=read(image))["image"],
                    self.finish.arrays,
                )
        return Contestant("albumentations", ways)

    def kornia(self, tensors: list[Tensor]) -> Contestant:
        """Crops one image at a time (sizes differ), and the rest by the batch."""
        import kornia.augmentation as K

        rest = [K.RandomHorizontalFlip(), *policy_kornia("trivial")]
        last = [K.Normalize(torch.tensor(MEAN), torch.tensor(STD)), K.RandomErasing(p=ERASE)]
        ways = {}
        for mode in ("slice", "resample"):
            crop = K.RandomResizedCrop((SIDE, SIDE), cropping_mode=mode)

            def work(crop: Any = crop) -> int:
                rows = next(self.order)[:16]
                images = torch.cat([crop(tensors[row].float().div_(255)[None]) for row in rows])
                through([*rest, *last])(images)
                return len(rows)

            ways[f"decoded tensors, crop by {mode}, not antialiased"] = work
        return Contestant("kornia", ways, unequal="one operation for the whole batch")


class Ours:
    """The engine's own path over a split."""

    def __init__(self, split: ImageSplit, batch: int) -> None:
        self.split, self.batch = split, batch
        self.order, self.stream, self.step = order(len(split), batch, 1), Stream(0), 0
        self.crop = RandomResizedCrop()
        tricks: list[ImageTrick] = [RandomFlip(), TrivialAugment(), Normalize(mean=MEAN, std=STD)]
        self.tricks = tuple(sorted([*tricks, RandomErasing(p=ERASE)], key=lambda trick: trick.order))

    def requests(self, compiled: bool) -> Iterator[Request]:
        """Batches to read, with programs for numba; torch gets its own from ``self.program``."""
        for rows in self.order:
            generator = self.stream.child(self.crop.kind).torch(self.step)
            boxes = self.crop.boxes(torch.from_numpy(self.split.sizes[rows]), generator).numpy()
            shape = (len(rows), 3, SIDE, SIDE)
            self.program = program_of(self.tricks, Batch(shape, self.step, 0, rows), self.stream)
            self.step += 1
            yield Request(rows, boxes, SIDE, "bilinear", self.program if compiled else None)

    def compiled(self) -> int:
        """Four batches by numba."""
        requests = islice(self.requests(True), 4)
        return sum(len(images) for images in self.split.batches(requests, workers=1))

    def tensors(self) -> int:
        """One batch: resized as ever, the rest by torch."""
        (images,) = self.split.batches(islice(self.requests(False), 1), workers=1)
        return len(in_torch(images, self.program))

    def contestants(self, name: str, how: str) -> list[Contestant]:
        """Both back ends."""
        return [
            Contestant(f"trickbag{name} (numba)", {how: self.compiled}, ours=True),
            Contestant(f"trickbag{name} (torch)", {f"{how}; pixels by torch": self.tensors}, ours=True),
        ]


def contents(split: ImageSplit) -> list[bytes]:
    """The files of a split that is decoded anew each time."""
    images = split.images
    assert isinstance(images, Decoding)
    found = [images.reader.get(int(row)) for row in split.rows]
    return [one.read_bytes() if isinstance(one, Path) else bytes(one) for one in found]


def from_bytes(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def by_cv2(data: bytes) -> np.ndarray:
    import cv2

    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def by_vision(data: bytes) -> Tensor:
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return vision_io.decode_jpeg(packed, vision_io.ImageReadMode.RGB)


def same(value: Any) -> Any:
    return value


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--images", type=int, default=512)
    options = parsed(parser)
    if options.quick:
        options.images, options.batch = 32, 16
    one_core()
    seed_all()
    with tempfile.TemporaryDirectory() as temporary:
        # What is prepared here is measured, and must not be found in the cache.
        os.environ["TRICKBAG_CACHE"] = temporary
        data, path = photos(options.data, 2 * options.images, Path(temporary))
        cases, notes = run(path, options)
    report(
        "augment_large",
        f"Images a CPU second on one core, from photographs to a normalized float32 batch of {SIDE} px "
        "(RandomResizedCrop, flip, TrivialAugmentWide, normalization, RandomErasing 0.1).",
        cases,
        options,
        data=data,
        unit="images/CPU-s",
        notes=notes,
    )


def run(path: str, options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    def split_of(**how: Any) -> tuple[ImageSplit, float, int]:
        began = time.process_time()
        spec = trickbag_data.spec(path, train_size=options.images, **how)
        loaded = trickbag_data.load(spec)
        total = sum(loaded.facts.sizes.values())
        return loaded.splits["train"], time.process_time() - began, total  # type: ignore[return-value]

    batch = options.batch
    decoded, _, _ = split_of(keep="raw")
    encoded, _, _ = split_of(keep="encoded")
    prepared, seconds, total = split_of(short_side=256, keep="raw")
    recoded, _, _ = split_of(short_side=256, keep="jpeg")

    arrays = [np.array(decoded.images.image(int(row))) for row in decoded.rows]
    pictures = [Image.fromarray(image) for image in arrays]
    tensors = [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in arrays]
    files = contents(encoded)
    smaller = [np.array(prepared.images.image(int(row))) for row in prepared.rows]
    peers = Peers(min(batch, len(arrays)), len(arrays))
    clock = time.process_time
    height, width = np.median(decoded.sizes, axis=0).astype(int)
    cases = []

    def add(title: str, contestants: list[Contestant]) -> None:
        print(title)
        cases.append(case_of(title, race(contestants, options, clock)))

    add(
        f"from decoded images, about {width} × {height}",
        [
            *peers.torchvision(
                {
                    "Pillow images": (pictures, same, "Pillow"),
                    "decoded tensors": (tensors, same, "tensor"),
                }
            ),
            peers.timm("Pillow images", pictures, same),
            peers.albumentations({"NumPy images": (arrays, same)}),
            peers.kornia(tensors),
            *Ours(decoded, batch).contestants("", "decoded images, mapped into memory"),
        ],
    )
    jpeg = peers.torchvision(
        {
            "decoded by Pillow": (files, from_bytes, "Pillow"),
            "decoded by torchvision.io": (files, by_vision, "tensor"),
        }
    )
    add(
        f"from JPEG files, about {width} × {height}",
        [
            *jpeg,
            peers.timm("decoded by Pillow", files, from_bytes),
            peers.albumentations({"decoded by cv2": (files, by_cv2)}),
            *Ours(encoded, batch).contestants("", "files decoded each time"),
        ],
    )
    whole = [Image.fromarray(image) for image in smaller]
    from_pixels = peers.torchvision({"Pillow images": (whole, same, "Pillow")})[1]
    from_jpeg = peers.torchvision({"decoded by Pillow": (contents(recoded), from_bytes, "Pillow")})[1]
    by_arrays = peers.albumentations({"NumPy images": (smaller, same)})
    add(
        "from a prepared set (short side 256), beside original files",
        [
            *jpeg,
            Contestant("torchvision, prepared pixels", from_pixels.ways),
            Contestant("torchvision, prepared JPEG", from_jpeg.ways),
            Contestant("albumentations, prepared pixels", by_arrays.ways),
            *Ours(prepared, batch).contestants("", "prepared pixels, keep: raw"),
            *Ours(recoded, batch).contestants(", JPEG", "prepared JPEG, keep: jpeg")[:1],
        ],
    )
    return cases, [
        f"Preparing took {seconds:.1f} CPU seconds, once, for {total:,} photographs "
        f"({total / seconds:,.0f} a second).",
        "Bilinear and antialiased, unless a row says otherwise: albumentations and kornia do not antialias.",
        "Peers read files from memory, trickbag from the file system's cache.",
        "timm has no TrivialAugment: one operation of its RandAugment at a uniform magnitude stands in; "
        "kornia's is drawn once for a batch; albumentations' is OneOf over the nearest operations it has.",
    ]


if __name__ == "__main__":
    main()
