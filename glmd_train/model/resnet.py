"""The published trunk: ResNet-50 or -101 to res4 (C4), with res5 as the ROI head.

As in detectron2 and its MSRA weights: bottleneck blocks with the stride in the first 1x1, frozen batch norm, a shortcut
convolution only where the channels change, BGR intensities in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from glmd_train.config import ResNetConfig

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_EPS = 1e-5
_BRANCH_SCALE = 0.25  # 33 blocks then make a signal 2.8 times as large, not 100,000 times


class ConvNorm(nn.Module):
    """Convolution without bias, frozen batch norm."""

    def __init__(self, inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = FrozenBatchNorm2d(outside, _EPS)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1 (with the stride), 3x3, 1x1, added to the input or its shortcut convolution."""

    def __init__(self, inside: int, width: int, outside: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inside, width, 1, stride=stride)
        self.conv2 = ConvNorm(width, width, 3, groups=groups)
        self.conv3 = ConvNorm(width, outside, 1)
        self.shortcut = ConvNorm(inside, outside, 1, stride=stride) if inside != outside else nn.Identity()
        with torch.no_grad():  # else random weights, whose norms are identities, double the signal in every block
            self.conv3.conv.weight *= _BRANCH_SCALE

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(inner) + self.shortcut(x))


def stage(number: int, blocks: int, config: ResNetConfig) -> nn.Sequential:
    """res2 (`number` 0) to res5 (3); all but res2 halve the resolution."""
    outside = config.res2_channels * 2**number
    inside = config.stem_channels if number == 0 else outside // 2
    width = config.groups * config.width_per_group * 2**number
    stride = 1 if number == 0 else 2
    first = Bottleneck(inside, width, outside, stride, config.groups)
    return nn.Sequential(first, *(Bottleneck(outside, width, outside, 1, config.groups) for _ in range(blocks - 1)))


class ResNetTrunk(nn.Module):
    """images (B, C, H, W) -> res4 (B, channels, H / 16, W / 16), sizes rounded up."""

    stride = 16

    def __init__(self, backbone: str, in_channels: int, config: ResNetConfig) -> None:
        super().__init__()
        self.channels = config.res2_channels * 4
        self.stem = ConvNorm(in_channels, config.stem_channels, 7, stride=2)
        self.blocks = nn.Sequential(*(stage(i, BLOCKS[backbone][i], config) for i in range(3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(F.max_pool2d(F.relu(self.stem(images)), 3, stride=2, padding=1))


class Res5(nn.Module):
    """ROI features (N, C, bins, bins) -> (N, 2 C, bins / 2, bins / 2), sizes rounded up."""

    def __init__(self, backbone: str, config: ResNetConfig) -> None:
        super().__init__()
        self.channels = config.res2_channels * 8
        self.blocks = stage(3, BLOCKS[backbone][3], config)

    def forward(self, rois: Tensor) -> Tensor:
        return self.blocks(rois)


@torch.no_grad()
def measure_statistics(trunk: ResNetTrunk, res5: Res5, images: Tensor) -> None:
    """Give the frozen norms of random weights the statistics of `images` (B, C, H, W), one layer after the other.

    Without them the signal doubles in every block. res5 is given whole feature maps in place of ROIs.
    """

    def measure(layer: ConvNorm, inputs: tuple[Tensor]) -> None:
        out = layer.conv(inputs[0])
        layer.norm.running_mean.copy_(out.mean(dim=(0, 2, 3)))
        layer.norm.running_var.copy_(out.var(dim=(0, 2, 3)))

    layers = [layer for part in (trunk, res5) for layer in part.modules() if isinstance(layer, ConvNorm)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    res5(trunk(images))
    for hook in hooks:
        hook.remove()
