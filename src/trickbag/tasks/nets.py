"""Built-in small residual nets for images of 8 to 64 pixels.

Every residual branch ends in a batch norm. All nets are fully convolutional up to a global average, so
they take images of any size from 8 px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """Shortcut without parameters: every second pixel, new channels filled with zeros.

    Args:
        channels: input channels.
        out_channels: output channels, at least as many.
        stride: keeps one pixel of so many in each direction.

    Source:
        He et al. 2016, arXiv:1512.03385, section 3.3, option A.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = out_channels - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to ``(batch, out_channels, h / stride, w / stride)``, rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input; ReLU after the sum.

    Args:
        channels: input channels.
        out_channels: output channels.
        stride: of the first convolution and the shortcut.
        shortcut: ``"A"`` pads with zeros, ``"B"`` projects by a 1x1 convolution, where shapes change.
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1, shortcut: str = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            if shortcut == "A":
                self.downsample = PadShortcut(channels, out_channels, stride)
            else:
                projection = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def zero_init_last(self) -> None:
        """Make the block start as the identity."""
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, h, w)`` to ``(batch, out_channels, h / stride, w / stride)``, rounded up."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)), inplace=True)


def conv_bn_relu(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    conv = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class ResidualNet(nn.Module):
    """Stem, stages, global average, linear classifier.

    Convolutions start from N(0, 2 / fan_out).

    Args:
        stem: first layers; ``stem[0]`` is the first convolution.
        stages: the rest, up to ``features`` channels.
        features: channels of the last stage.
        num_classes: outputs.
    """

    def __init__(
        self, stem: nn.Sequential, stages: Sequence[nn.Module], features: int, num_classes: int
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes = features, num_classes
        self.pretrained_cfg = {"classifier": "fc", "first_conv": "stem.0"}
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes, device=self.fc.weight.device)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to maps ``(batch, features, rows, columns)``."""
        maps: Tensor = self.stages(self.stem(x))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.fc(self.forward_features(x).mean((2, 3)))
        return logits


def _stages(blocks: int, widths: Sequence[int], channels: int, shortcut: str) -> list[nn.Module]:
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut is 'A' (zeros) or 'B' (1x1 convolution), not {shortcut!r}")
    stages: list[nn.Module] = []
    for index, width in enumerate(widths):
        strides = [1 if index == 0 else 2] + [1] * (blocks - 1)
        layers = []
        for stride in strides:
            layers.append(ResidualBlock(channels, width, stride, shortcut))
            channels = width
        stages.append(nn.Sequential(*layers))
    return stages


def mini_resnet(num_classes: int, in_chans: int = 3, width: int = 8) -> ResidualNet:
    """A stem and two residual blocks (``width`` and twice that): for 8 px images on one CPU core."""
    stages = _stages(1, (width, 2 * width), width, "A")
    return ResidualNet(conv_bn_relu(in_chans, width), stages, 2 * width, num_classes)


def resnet9(num_classes: int, in_chans: int = 3, width: int = 64) -> ResidualNet:
    """Fast net for 32 px images: two of three pooled convolutions are followed by a residual block.

    After David Page, "How to train your ResNet" (2018), with ReLU after the sum (so that zero gamma can
    act) and a global average. ``width`` 64 is his; 16 is a sixteenth of the work, for CPUs.
    """

    def halve(channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(*conv_bn_relu(channels, out_channels), nn.MaxPool2d(2))

    stages = [
        nn.Sequential(halve(width, 2 * width), ResidualBlock(2 * width, 2 * width)),
        halve(2 * width, 4 * width),
        nn.Sequential(halve(4 * width, 8 * width), ResidualBlock(8 * width, 8 * width)),
    ]
    return ResidualNet(conv_bn_relu(in_chans, width), stages, 8 * width, num_classes)


def fast_resnet(num_classes: int, in_chans: int = 3, width: int = 24) -> ResidualNet:
    """Net for 32 px images on CPUs: three pooled convolutions, the last two followed by a residual block.

    Like :func:`resnet9`, but most of the work is done at 8 px and below. Pooling comes before batch norm
    and ReLU, which then see a quarter of the values. ``width`` 24 means 24, 64 and 128 channels: 0.46
    million parameters, 9 million multiply-adds at 32 px.
    """

    def halve(channels: int, out_channels: int) -> nn.Sequential:
        conv, norm, relu = conv_bn_relu(channels, out_channels)
        return nn.Sequential(conv, nn.MaxPool2d(2), norm, relu)

    second, third = 8 * width // 3, 16 * width // 3
    stages = [
        nn.Sequential(halve(width, second), ResidualBlock(second, second)),
        nn.Sequential(halve(second, third), ResidualBlock(third, third)),
    ]
    return ResidualNet(halve(in_chans, width), stages, third, num_classes)


def cifar_resnet(
    num_classes: int, in_chans: int = 3, depth: int = 20, width: int = 16, shortcut: str = "A"
) -> ResidualNet:
    """ResNet of ``depth`` 6n + 2 layers in three stages of ``width``, twice and four times that.

    Source:
        He et al. 2016, arXiv:1512.03385, section 4.2 (option A); ``shortcut="B"`` projects instead.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2 (20, 32, 44, 56, 110), not {depth}")
    widths = (width, 2 * width, 4 * width)
    stages = _stages((depth - 2) // 6, widths, width, shortcut)
    return ResidualNet(conv_bn_relu(in_chans, width), stages, widths[-1], num_classes)


def resnet20(num_classes: int, in_chans: int = 3, width: int = 16, shortcut: str = "A") -> ResidualNet:
    """:func:`cifar_resnet` of depth 20: 0.27 million parameters, 41 million multiply-adds at 32 px."""
    return cifar_resnet(num_classes, in_chans, 20, width, shortcut)


def resnet56(num_classes: int, in_chans: int = 3, width: int = 16, shortcut: str = "A") -> ResidualNet:
    """:func:`cifar_resnet` of depth 56: 0.85 million parameters, 126 million multiply-adds at 32 px."""
    return cifar_resnet(num_classes, in_chans, 56, width, shortcut)


def wrn(num_classes: int, in_chans: int = 3, depth: int = 16, width: int = 4) -> ResidualNet:
    """Wide residual net of ``depth`` 6n + 4 layers with stages of 16, 32 and 64 times ``width`` channels.

    Source:
        Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1; but with batch norm after, not before,
        each convolution, so that every residual branch ends in one.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, 40), not {depth}")
    widths = (16 * width, 32 * width, 64 * width)
    stages = _stages((depth - 4) // 6, widths, 16, "B")
    return ResidualNet(conv_bn_relu(in_chans, 16), stages, widths[-1], num_classes)


def wrn16_4(num_classes: int, in_chans: int = 3, width: int = 4) -> ResidualNet:
    """:func:`wrn` of depth 16 and width 4: 2.7 million parameters."""
    return wrn(num_classes, in_chans, 16, width)


NETS: dict[str, Callable[..., ResidualNet]] = {
    net.__name__: net
    for net in (mini_resnet, fast_resnet, resnet9, cifar_resnet, resnet20, resnet56, wrn, wrn16_4)
}
"""Name in recipes -> builder."""
