"""Augmentation of 32 px images on one core: images a CPU second, from decoded pictures to a normalized batch.

    python benchmarks/augment_small.py --data CIFAR10

Cases: crop and flip; with TrivialAugmentWide; with RandAugment(2, 9); with timm's rand-m9-mstd0.5-inc1.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

from common import Contestant, arguments, case_of, one_core, parsed, race, report
from peers import (
    POLICIES,
    Finish,
    order,
    policy_albumentations,
    policy_kornia,
    policy_timm,
    policy_v1,
    policy_v2,
    seed_all,
)
from pictures import MEAN, STD, small
from trickbag.data.base import Request
from trickbag.data.serving import ImageSplit
from trickbag.engine.batches import program_of
from trickbag.imageops.program import Program
from trickbag.imageops.tensors import execute as in_torch
from trickbag.rng import Stream
from trickbag.tricks.augmentation import PadAndCrop, RandomFlip
from trickbag.tricks.color import Normalize
from trickbag.tricks.policies import RandAugment, TrivialAugment
from trickbag.tricks.stages import Batch, ImageTrick

SIDE = 32
TITLES = {
    "none": "crop and flip",
    "trivial": "crop, flip, TrivialAugmentWide",
    "rand": "crop, flip, RandAugment(2, 9)",
    "timm": "crop, flip, timm's rand-m9-mstd0.5-inc1",
}
AT_ONCE = "one operation and one crop for the whole batch"


class Field:
    """The pictures in the forms that the libraries start from."""

    def __init__(self, split: ImageSplit, batch: int) -> None:
        self.split, self.batch = split, batch
        self.stack, _ = split.images.stack(split.rows)
        self.arrays = list(self.stack)
        self.pictures = [Image.fromarray(image) for image in self.arrays]
        self.tensors = torch.from_numpy(self.stack).permute(0, 3, 1, 2).contiguous()
        self.singles = list(self.tensors)
        self.order = order(len(self.arrays), batch)
        self.finish = Finish()

    def by_image(self, source: list, act: Callable, finish: Callable, count: int | None = None) -> Callable:
        """Work of a library that takes one image at a time."""

        def work() -> int:
            rows = next(self.order)[:count]
            finish([act(source[row]) for row in rows])
            return len(rows)

        return work

    def by_batch(self, act: Callable) -> Callable:
        """Work of a library that takes batches of tensors."""

        def work() -> int:
            rows = next(self.order)
            act(self.tensors[torch.from_numpy(rows)])
            return len(rows)

        return work


def torchvision(field: Field, policy: str) -> list[Contestant]:
    finish = field.finish
    crop1, crop2 = v1.RandomCrop(SIDE, 4), v2.RandomCrop(SIDE, 4)
    own1 = [crop1, v1.RandomHorizontalFlip(), *policy_v1(policy)]
    own2 = [crop2, v2.RandomHorizontalFlip(), *policy_v2(policy)]
    plain = v1.Compose([*own1, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    quick1, quick2 = v1.Compose([*own1, np.asarray]), v2.Compose([*own2])
    pillow = {
        "v1 on Pillow images": field.by_image(field.pictures, quick1, finish.arrays),
        "v2 on Pillow images": field.by_image(
            field.pictures, lambda image: np.asarray(quick2(image)), finish.arrays
        ),
    }
    tensors = {
        "v1 on uint8 tensors": field.by_image(field.singles, v1.Compose(own1), finish.tensors),
        "v2 on uint8 tensors": field.by_image(field.singles, quick2, finish.tensors),
    }
    usual = {"v1, ToTensor and Normalize an image": field.by_image(field.pictures, plain, torch.stack)}
    at_once = {"v2 on uint8 batches": field.by_batch(lambda images: finish.floats(quick2(images)))}
    return [
        Contestant("torchvision, as in its examples", usual),
        Contestant("torchvision, Pillow", pillow),
        Contestant("torchvision, tensors", tensors),
        Contestant("torchvision, a batch at once", at_once, unequal=AT_ONCE),
    ]


def timm(field: Field, policy: str) -> list[Contestant]:
    act = v1.Compose([v1.RandomCrop(SIDE, 4), v1.RandomHorizontalFlip(), *policy_timm(policy), np.asarray])
    way = {
        "trivial": "Pillow images; one operation of RandAugment at a uniform magnitude, nearest",
        "rand": "Pillow images; RandAugment m9-n2-p1-inc1, nearest",
        "timm": "Pillow images",
    }[policy]
    return [Contestant("timm", {way: field.by_image(field.pictures, act, field.finish.arrays)})]


def albumentations(field: Field, policy: str) -> list[Contestant]:
    import albumentations as A

    own = [A.Pad(4), A.RandomCrop(SIDE, SIDE), A.HorizontalFlip(p=0.5), *policy_albumentations(policy, SIDE)]
    padded = [A.RandomCrop(SIDE, SIDE), *own[2:]]
    whole, rest = A.Compose(own), A.Compose(padded)
    single = A.Compose([*own, A.Normalize(MEAN, STD)])
    wide = list(np.pad(field.stack, ((0, 0), (4, 4), (4, 4), (0, 0))))
    ways = {
        "NumPy images": field.by_image(
            field.arrays, lambda image: whole(image=image)["image"], field.finish.arrays
        ),
        "NumPy images, padded beforehand": field.by_image(
            wide, lambda image: rest(image=image)["image"], field.finish.arrays
        ),
        "NumPy images, Normalize an image": field.by_image(
            field.arrays,
            lambda image: single(image=image)["image"],
            lambda images: torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
        ),
    }
    return [Contestant("albumentations", ways)]


def kornia(field: Field, policy: str) -> list[Contestant]:
    import kornia.augmentation as K

    finish = field.finish
    own = policy_kornia(policy)
    mean, scale = finish.mean / 255, finish.scale * 255
    front = {
        mode: [K.RandomCrop((SIDE, SIDE), padding=4, cropping_mode=mode), K.RandomHorizontalFlip()]
        for mode in ("slice", "resample")
    }

    def chain(steps: list, images: torch.Tensor) -> torch.Tensor:
        images = images.to(torch.float32).div_(255)
        for step in steps:
            images = step(images)
        return images.sub(mean).mul_(scale)

    ways = {
        f"modules on a batch, crop by {mode}": field.by_batch(
            lambda images, steps=[*steps, *own]: chain(steps, images)
        )
        for mode, steps in front.items()
    }
    last = K.Normalize(torch.tensor(MEAN), torch.tensor(STD))
    sequence = K.AugmentationSequential(*front["slice"], *own, last)
    ways["AugmentationSequential on a batch"] = field.by_batch(
        lambda images: sequence(images.to(torch.float32).div_(255))
    )
    if not own:
        return [Contestant("kornia", ways)]

    def each(image: torch.Tensor) -> torch.Tensor:
        return chain([*front["slice"], *own], image[None])[0]

    single = {"batches of one image": field.by_image(field.singles, each, torch.stack, 16)}
    note = "one operation for the whole batch"
    return [Contestant("kornia", ways, unequal=note), Contestant("kornia, an operation an image", single)]


def tricks_of(policy: str) -> tuple[ImageTrick, ...]:
    as_timm = {"semantics": "timm", "mstd": 0.5, "increasing": True, "interpolation": "random"}
    own: dict[str, list[ImageTrick]] = {
        "trivial": [TrivialAugment()],
        "rand": [RandAugment(num_ops=2, magnitude=9)],
        "timm": [RandAugment(**as_timm, fill=(125, 123, 114))],
    }
    tricks = [RandomFlip(), PadAndCrop(padding=4), Normalize(mean=MEAN, std=STD), *own.get(policy, [])]
    return tuple(sorted(tricks, key=lambda trick: trick.order))


def programs(field: Field, policy: str) -> Iterator[tuple[np.ndarray, Program]]:
    """What the engine does for each batch before pixels are touched: drawing is part of the time."""
    tricks, stream, shape = tricks_of(policy), Stream(0), (field.batch, 3, SIDE, SIDE)
    for step, rows in enumerate(field.order):
        yield rows, program_of(tricks, Batch(shape, step, 0, rows), stream)


def trickbag(field: Field, policy: str) -> list[Contestant]:
    drawn = programs(field, policy)
    requests = (Request(rows, None, SIDE, "bilinear", program) for rows, program in programs(field, policy))
    batches = field.split.batches(requests, workers=1)

    def served() -> int:
        return len(next(batches))

    def tensors() -> int:
        rows, program = next(drawn)
        return len(in_torch(field.tensors[torch.from_numpy(rows)], program))

    return [
        Contestant("trickbag (numba)", {"the engine's own path": served}, ours=True),
        Contestant("trickbag (torch)", {"the engine's own path without numba": tensors}, ours=True),
    ]


def main() -> None:
    parser = arguments(__doc__, seconds=0.6)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--cases", nargs="+", default=POLICIES, choices=POLICIES)
    options = parsed(parser)
    if options.quick:
        options.images, options.batch = 256, [64]
    one_core()
    seed_all()
    data, split = small(options.data, options.images, SIDE)
    cases = []
    for policy in options.cases:
        for batch in options.batch:
            title = f"{TITLES[policy]}; batches of {batch}"
            print(title)
            field = Field(split, batch)
            libraries = [timm] if policy == "timm" else [torchvision, albumentations, kornia]
            libraries += [timm] if policy in ("trivial", "rand") else []
            entries = [one for library in libraries for one in library(field, policy)]
            rows = race([*entries, *trickbag(field, policy)], options, time.process_time)
            cases.append(case_of(title, rows))
    report(
        "augment_small",
        "Images a CPU second on one core, from decoded 32 px pictures to a normalized float32 batch.",
        cases,
        options,
        data=data,
        unit="images/CPU-s",
        notes=[
            "trickbag draws its random numbers inside the measured time, as everybody does.",
            "kornia draws one operation for a whole batch, with magnitudes an image; its policies differ a "
            "little from torchvision's (ranges; solarize_add and invert besides).",
            "timm has no TrivialAugment: one operation of its RandAugment at a uniform magnitude stands in.",
            "albumentations has no policies: OneOf and SomeOf over the nearest operations it has stand in.",
        ],
    )


if __name__ == "__main__":
    main()
