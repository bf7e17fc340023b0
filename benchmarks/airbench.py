"""The settings of airbench94 (Jordan 2024, arXiv:2404.00498), written anew in plain PyTorch.

Net, initial values, whitening, alternating flip, translation, triangular learning rate, scaled biases, label
smoothing, lookahead, test-time augmentation: as in the paper's listing. Half precision on CUDA, else float32.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pictures import MEAN, STD


@dataclass(frozen=True)
class Settings:
    """As published. Learning rate and weight decay are per 1,024 images, undone of momentum's sum."""

    epochs: float = 9.9
    batch: int = 1024
    lr: float = 11.5
    momentum: float = 0.85
    weight_decay: float = 0.0153
    bias_scaler: float = 64.0
    label_smoothing: float = 0.2
    whiten_bias_epochs: int = 3
    translate: int = 2
    widths: tuple[int, int, int] = (64, 256, 256)
    norm_momentum: float = 0.6
    scale: float = 1 / 9


class Conv(nn.Conv2d):
    """3x3 convolution without bias; the first filters start as the identity."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding="same", bias=False)
        nn.init.dirac_(self.weight.data[:channels])


def norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, eps=1e-12, momentum=1 - momentum)
    layer.weight.requires_grad = False
    return layer


class Group(nn.Module):
    """Convolution, pooling, norm, GELU, convolution, norm, GELU."""

    def __init__(self, channels: int, out_channels: int, momentum: float) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(channels, out_channels), Conv(out_channels, out_channels)
        self.norm1, self.norm2 = norm(out_channels, momentum), norm(out_channels, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to ``(batch, out_channels, h // 2, w // 2)``."""
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    """Whitening, three groups, linear classifier."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        first, second, third = settings.widths
        self.whiten = nn.Conv2d(3, 24, 2, bias=True)
        self.whiten.weight.requires_grad = False
        sizes = ((24, first), (first, second), (second, third))
        self.groups = nn.Sequential(*(Group(a, b, settings.norm_momentum) for a, b in sizes))
        self.head = nn.Linear(third, 10, bias=False)
        self.scale = settings.scale

    def start_whitening(self, images: Tensor, eps: float = 5e-4) -> None:
        """Filters of the first layer from the patches of normalized images."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12).float()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + eps).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.data.copy_(torch.cat([filters, -filters]))
        self.whiten.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, 32, 32)`` to logits ``(batch, 10)``."""
        x = F.max_pool2d(self.groups(F.gelu(self.whiten(x))), 3)
        return self.head(x.flatten(1)) * self.scale


def crops(padded: Tensor, reach: int) -> Tensor:
    """Windows at random places, an image each: ``(n, 3, 32 + 2 * reach, ...)`` to ``(n, 3, 32, 32)``."""
    count, device = len(padded), padded.device
    span = torch.arange(padded.shape[-1] - 2 * reach, device=device)
    rows, columns = torch.randint(0, 2 * reach + 1, (2, count, 1), device=device) + span
    which = torch.arange(count, device=device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def normalized(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    mean, std = (torch.tensor(v, device=pixels.device, dtype=dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    images = ((pixels.to(dtype) / 255) - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


def train(
    pixels: Tensor, labels: Tensor, settings: Settings, seed: int, compiled: bool = False
) -> tuple[nn.Module, float]:
    """Train from uint8 images ``(n, 3, 32, 32)`` on a device.

    Returns:
        The net, and the seconds from whitening to the last update.
    """
    torch.manual_seed(seed)
    device, cuda = pixels.device, pixels.device.type == "cuda"
    dtype = torch.half if cuda else torch.float32
    net = Net(settings).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.float()
    forward = torch.compile(net, mode="max-autotune") if compiled else net
    batch, momentum = settings.batch, settings.momentum
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()

    images = normalized(pixels, dtype)
    net.start_whitening(images[:5000])
    kilostep = 1024 * (1 + 1 / (1 - momentum))
    lr, decay = settings.lr / kilostep, settings.weight_decay * batch / kilostep
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    biases = [p for name, p in named if "norm" in name]
    others = [p for name, p in named if "norm" not in name]
    lr_biases = lr * settings.bias_scaler
    groups = [
        {"params": biases, "lr": lr_biases, "weight_decay": decay / lr_biases},
        {"params": others, "lr": lr, "weight_decay": decay / lr},
    ]
    optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    an_epoch = len(images) // batch
    steps = math.ceil(an_epoch * settings.epochs)
    triangle = np.interp(np.arange(steps + 1), [0, int(0.23 * steps), steps], [0.2, 1, 0.07])
    alphas = 0.95**5 * (np.arange(steps + 1) / steps) ** 3
    slow = {name: value.clone() for name, value in net.state_dict().items()}

    def lookahead(keep: float) -> None:
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                slow[name].lerp_(value, 1 - keep)
                value.copy_(slow[name])

    mirrored = torch.rand(len(images), device=device) < 0.5
    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(images, (settings.translate,) * 4, "reflect")
    net.train()
    step = 0
    for epoch in range(math.ceil(settings.epochs)):
        net.whiten.bias.requires_grad = epoch < settings.whiten_bias_epochs
        current = crops(padded, settings.translate)
        current = current.flip(-1) if epoch % 2 else current
        current = current.contiguous(memory_format=torch.channels_last)
        for rows in torch.randperm(len(images), device=device)[: an_epoch * batch].split(batch):
            logits = forward(current[rows])
            loss = F.cross_entropy(
                logits, labels[rows], label_smoothing=settings.label_smoothing, reduction="none"
            )
            optimizer.zero_grad(set_to_none=True)
            loss.sum().backward()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * triangle[step]
            optimizer.step()
            step += 1
            if step % 5 == 0:
                lookahead(float(alphas[step]))
            if step == steps:
                lookahead(1.0)
                break
    if cuda:
        torch.cuda.synchronize()
    return net, time.perf_counter() - began


@torch.no_grad()
def accuracy(net: nn.Module, pixels: Tensor, labels: Tensor, level: int) -> float:
    """Share of right answers; level 1 adds the mirrored image, level 2 two shifted ones besides."""
    net.eval()
    dtype = next(net.parameters()).dtype
    right = 0
    for some, own in zip(pixels.split(2000), labels.split(2000), strict=True):
        images = normalized(some, dtype)

        def mirror(x: Tensor) -> Tensor:
            return net(x) if level == 0 else 0.5 * net(x) + 0.5 * net(x.flip(-1))

        logits = mirror(images)
        if level == 2:
            padded = F.pad(images, (1,) * 4, "reflect")
            corners = (padded[:, :, :32, :32], padded[:, :, 2:34, 2:34])
            logits = 0.5 * logits + 0.25 * sum(mirror(corner) for corner in corners)
        right += int((logits.argmax(1) == own).sum())
    return right / len(labels)
