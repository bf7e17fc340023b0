"""Augmentation on the device that trains: trickbag's torch back end, kornia and torchvision v2.

    python benchmarks/gpu_augment.py --data CIFAR10              (on a CUDA device)
    python benchmarks/gpu_augment.py --device cpu --quick        (to see whether it runs)

uint8 batches lie on the device; what comes out is a normalized float32 batch there. Drawing random numbers,
on the host or the device, is part of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from common import Contestant, arguments, case_of, parsed, race, report
from peers import Finish, policy_kornia, policy_v2, seed_all, through
from pictures import MEAN, STD, made_up, small
from trickbag.engine.batches import program_of
from trickbag.imageops.tensors import execute
from trickbag.rng import Stream
from trickbag.tricks.augmentation import PadAndCrop, RandomFlip
from trickbag.tricks.color import Normalize
from trickbag.tricks.erasing import RandomErasing
from trickbag.tricks.policies import RandAugment, TrivialAugment
from trickbag.tricks.stages import Batch, ImageTrick

AT_ONCE = "one operation for the whole batch"


def contestants(images: Tensor, policy: str, device: torch.device, several: int) -> list[Contestant]:
    """All on batches ``(batch, 3, side, side)`` uint8 on the device: crop, flip, policy, normalize, erase."""
    import kornia.augmentation as K

    side, padding, count = images.shape[-1], images.shape[-1] // 8, len(images)
    finish = Finish()
    finish.mean, finish.scale = finish.mean.to(device), finish.scale.to(device)

    def timed(act: Callable[[], object], images: int = count, times: int = several) -> Callable[[], int]:
        def work() -> int:
            for _ in range(times):
                act()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return images * times

        return work

    own: list[ImageTrick] = [TrivialAugment() if policy == "trivial" else RandAugment(num_ops=2, magnitude=9)]
    own += [RandomFlip(), PadAndCrop(padding=padding), Normalize(mean=MEAN, std=STD), RandomErasing(p=0.1)]
    tricks, step = sorted(own, key=lambda trick: trick.order), iter(range(10**9))

    def ours() -> Tensor:
        program = program_of(tricks, Batch(tuple(images.shape), next(step)), Stream(0))  # type: ignore[arg-type]
        return execute(images, program)

    many = v2.Compose([v2.RandomCrop(side, padding), v2.RandomHorizontalFlip(), *policy_v2(policy)])
    erase = v2.RandomErasing(0.1)

    def each() -> Tensor:
        done = finish.tensors([many(image) for image in images[:32]])
        return torch.stack([erase(image) for image in done])

    cropped = [K.RandomCrop((side, side), padding=padding), K.RandomHorizontalFlip()]
    ends = [
        K.Normalize(torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)),
        K.RandomErasing(p=0.1),
    ]
    chain = through([*cropped, *policy_kornia(policy), *ends])

    def single() -> Tensor:
        return torch.cat([chain(image[None].float().div_(255)) for image in images[:16]])

    return [
        Contestant(
            "torchvision v2, an operation an image", {"a loop over images": timed(each, min(32, count), 1)}
        ),
        Contestant(
            "torchvision v2, a batch at once",
            {"uint8 batches": timed(lambda: erase(finish.floats(many(images))))},
            unequal="one crop, flip, operation and box for the whole batch",
        ),
        Contestant(
            "kornia, an operation an image", {"batches of one image": timed(single, min(16, count), 1)}
        ),
        Contestant(
            "kornia",
            {"modules on a batch": timed(lambda: chain(images.float().div_(255)))},
            unequal=AT_ONCE,
        ),
        Contestant("trickbag (torch)", {"an operation an image": timed(ours)}, ours=True),
    ]


def main() -> None:
    parser = arguments(__doc__, repeats=7, seconds=0.6)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--large-batch", type=int, default=256)
    options = parsed(parser)
    several = 10
    if options.quick:
        options.batch, options.large_batch, several = [32], 4, 1
    device = torch.device(options.device)
    seed_all()
    data, split = small(options.data, max(options.batch))
    pixels = torch.from_numpy(np.array(split.images.stack(split.rows)[0]))
    pixels = pixels.permute(0, 3, 1, 2)
    photos = np.stack(list(made_up(min(32, options.large_batch), 224, 224)))
    large = torch.from_numpy(np.tile(photos, (-(-options.large_batch // len(photos)), 1, 1, 1)))
    large = large[: options.large_batch].permute(0, 3, 1, 2)
    cases = []
    for images in (*(pixels[:batch] for batch in options.batch), large):
        placed = images.contiguous().to(device)
        for policy, name in (("trivial", "TrivialAugmentWide"), ("rand", "RandAugment(2, 9)")):
            title = f"{name}, {images.shape[-1]} px, batches of {len(images)}"
            print(title)
            entries = contestants(placed, policy, device, several)
            cases.append(case_of(title, race(entries, options, time.perf_counter)))
    report(
        f"{options.device}_augment" if options.device == "cpu" else "gpu_augment",
        "Images a second of wall time on the device: crop, flip, policy, normalization and erasing (0.1).",
        cases,
        options,
        data=f"{data}; made-up images at 224 px",
        threads=torch.get_num_threads(),
        device=options.device,
    )


if __name__ == "__main__":
    main()
