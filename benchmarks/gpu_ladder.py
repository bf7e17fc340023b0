"""What each of torchvision's tricks buys on CIFAR-10: leave-one-out with ten seeds, by trickbag's own study.

    python benchmarks/gpu_ladder.py --data CIFAR10 --workers 4
    python benchmarks/gpu_ladder.py --data CIFAR10 --device cpu --quick

The tricks are those of torchvision's recipe for ResNet-50 (Vryniotis 2021, "How to train state-of-the-art
models using TorchVision's latest primitives"), with its numbers: label smoothing .1, mixup .2, cutmix 1,
TrivialAugmentWide, random erasing .1, no decay of norms, cosine decay with warmup, EMA. An interrupted study
goes on.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import trickbag
from common import arguments, command, machine, parsed, save, versions
from trickbag import data as trickbag_data
from trickbag.recipe import Recipe

BASE: dict[str, dict[str, Any]] = {
    "normalize": {},
    "random_flip": {},
    "pad_and_crop": {"padding": 4},
    "nesterov": {"lr": 0.4, "momentum": 0.9, "weight_decay": 5e-4},
    "warmup": {"epochs": 1.0},
}
TRICKS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"epsilon": 0.1},
    "mixup": {"alpha": 0.2, "p": 0.5},
    "cutmix": {"alpha": 1.0, "p": 0.5},
    "trivial_augment": {},
    "random_erasing": {"p": 0.1},
    "no_bias_norm_decay": {},
    "cosine_decay": {},
    "ema": {"decay": 0.99},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--net", default="resnet9")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, help="runs at once; default one a device")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parsed(parser)
    if options.data is None:
        parser.error("--data is needed: CIFAR-10, such as torchvision:CIFAR10")
    spec, tricks = trickbag_data.spec(options.data, selection=0.1), TRICKS
    if options.quick:
        options.net, options.epochs, options.batch, options.seeds = "mini_resnet", 2, 64, 2
        options.runs = Path(tempfile.mkdtemp())
        spec = trickbag_data.spec(options.data, selection=0.01, train_size=256)
        tricks = {kind: TRICKS[kind] for kind in ("label_smoothing", "ema")}
    plain = {"model": options.net, "epochs": options.epochs, "batch_size": options.batch, "image_size": 32}
    plain["evaluate_every"] = options.epochs
    study = trickbag.make_study(
        Recipe(**plain, tricks=BASE),
        Recipe(**plain, tricks=BASE | tricks),
        spec,
        design="leave-one-out",
        seeds=tuple(range(options.seeds)),
        out=options.runs / "gpu_ladder",
        runs=options.runs,
        title="torchvision's tricks on CIFAR-10",
        device=options.device,
    )
    done = trickbag.run_study(study, workers=options.workers, listen=tell)
    if not done:
        raise SystemExit("interrupted; the same command goes on")
    words = [sys.executable, "-m", "trickbag", "study", "report", str(study.folder.path), "--markdown"]
    text = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    result = {
        "what": "Leave-one-out of torchvision's tricks by a trickbag study",
        "command": command(),
        "machine": machine(1, options.device),
        "versions": versions(),
        "data": Path(options.data).name,
        "seeds": options.seeds,
        "candidate": study.spec.candidate.data(),
        "report": text.splitlines(),
    }
    save("gpu_ladder", result, options)
    (options.out / "gpu_ladder.md").write_text(text, encoding="utf-8")


def tell(event: Any) -> None:
    if event.kind != "status":
        print(event.kind, event.job.name, "" if event.kind == "done" else event.detail or "", flush=True)


if __name__ == "__main__":
    main()
