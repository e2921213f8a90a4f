"""Arithmetic that need not be done: parts of the full-size network anew, with the same answers but for rounding.

    Winograd      3x3 convolutions of many channels by F(4x4, 3x3): 36 products for 16 results instead of 144
    HoistedHead   a ResNet's res5 whose first 1x1 convolutions run once on the feature map instead of once a proposal,
                  behind a RoiAlign of those bins only that its stride reads

They pay on a CPU in float32. Half precision and INT8 do not bear Winograd's sums, and TensorRT has kernels of its own
for it, so those graphs are exported as they were trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glmd_export.ops import Ops
from glmd_train.model.decouple import AffineLayer
from glmd_train.model.detector import GLMDNet
from glmd_train.model.resnet import Bottleneck, ConvNorm, Res5
from glmd_train.model.roi_heads import ROIHeads

# With 256 channels and fewer the transforms cost what the products save.
LEAST_CHANNELS = 512
# Bins are cut out of a proposal one by one. Rounding must not carry the length of one over a whole number of cells, as
# RoiAlign takes as many samples as there are cells begun: so it keeps this many pixels away from one, on its own side.
_AWAY = 2**-10

# Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016), F(4, 3): out = A (G g * B d)
_TILE, _TAPS = 4, 6  # results and inputs of a tile, along one axis
_B = torch.tensor([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], dtype=torch.float64)
_G = torch.tensor([
    [6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24],
], dtype=torch.float64) / 24
_A = torch.tensor([
    [1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1],
], dtype=torch.float64)


def spare(model: GLMDNet, map_hw: tuple[int, int]) -> GLMDNet:
    """A copy of a network for feature maps of one (height, width), with Winograd in place of its large convolutions."""
    model = deepcopy(model)
    for parent, name, conv in list(_large_convolutions(model)):
        setattr(parent, name, Winograd(conv, map_hw))
    return model


def _large_convolutions(model: GLMDNet) -> Iterator[tuple[nn.Module, str, nn.Conv2d]]:
    for parent in (*model.neck.modules(), model.rpn):
        for name, conv in parent.named_children():
            if isinstance(conv, nn.Conv2d) and _is_large(conv):
                yield parent, name, conv


def _is_large(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (3, 3) and conv.groups == 1 and conv.in_channels >= LEAST_CHANNELS


def tiles(length: int) -> Tensor:
    """One axis of the input transform: rows or columns of a map -> the 6 taps of its tiles, (6 T, length) float64.

    Tap by tap, each of all T tiles of 4; what is beyond the map is the zero of the convolution's padding.
    """
    number = -(-length // _TILE)
    matrix = torch.zeros(_TAPS, number, _TILE * number + 2, dtype=torch.float64)
    for tile in range(number):
        matrix[:, tile, _TILE * tile : _TILE * tile + _TAPS] = _B
    return matrix[:, :, 1 : length + 1].reshape(_TAPS * number, length)


def untiles(length: int) -> Tensor:
    """One axis of the output transform, (length, 6 T) float64."""
    number = -(-length // _TILE)
    matrix = torch.zeros(_TILE * number, _TAPS, number, dtype=torch.float64)
    for tile in range(number):
        matrix[_TILE * tile : _TILE * (tile + 1), :, tile] = _A
    return matrix[:length].reshape(length, _TAPS * number)


class WinogradKernels(nn.Module):
    """Kernels (O, C, 3, 3) as the products' right sides. A graph keeps them as they are, a quarter of the size, and its
    engine computes this once, when it loads."""

    transform: Tensor
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.channels = weight.shape[1], weight.shape[0]
        self.register_buffer("transform", torch.kron(_G, _G).float())  # (36, 9)
        self.register_buffer("weight", weight.detach().permute(2, 3, 1, 0).reshape(9, -1).contiguous())  # (9, C O)

    def forward(self) -> Tensor:
        return (self.transform @ self.weight).reshape(-1, *self.channels)  # (36, C, O)


class Winograd(nn.Module):
    """A 3x3 convolution with padding 1 on maps of one size: (B, C, H, W) -> (B, O, H, W)."""

    rows: Tensor
    columns: Tensor
    rows_back: Tensor
    columns_back: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, map_hw: tuple[int, int]) -> None:
        super().__init__()
        assert conv.bias is not None and conv.padding == (1, 1) and conv.stride == (1, 1)
        self.kernels = WinogradKernels(conv.weight)
        (h, w) = map_hw
        self.tiles_hw = -(-h // _TILE), -(-w // _TILE)
        for name, matrix in (
            ("rows", tiles(h)), ("columns", tiles(w)), ("rows_back", untiles(h)), ("columns_back", untiles(w)),
            ("bias", conv.bias.detach()),
        ):
            self.register_buffer(name, matrix.float())

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        th, tw = self.tiles_hw
        x = x.permute(0, 2, 3, 1).reshape(b, h, w * c)
        x = (self.rows @ x).reshape(b, _TAPS * th, w, c)  # tap by tap, of all tiles
        x = self.columns @ x  # (B, 6 th, 6 tw, C)
        x = x.reshape(b, _TAPS, th, _TAPS, tw * c).permute(1, 3, 0, 2, 4).reshape(_TAPS**2, b * th * tw, c)
        x = x @ self.kernels()  # (36, B th tw, O)
        o = x.shape[2]
        x = x.reshape(_TAPS, _TAPS, b, th, tw * o).permute(2, 0, 3, 1, 4).reshape(b, _TAPS * th, _TAPS * tw, o)
        x = (self.columns_back @ x).reshape(b, _TAPS * th, w * o)  # (B, 6 th, W, O) before
        x = (self.rows_back @ x).reshape(b, h, w, o)
        return (x + self.bias).permute(0, 3, 1, 2)


class _WinogradOfTile(nn.Module):
    """The same on maps of one tile, 4x4, whose positions come first: (16, N, C) -> (16, N, O)."""

    forth: Tensor
    back: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.kernels = WinogradKernels(weight)
        forth, back = tiles(_TILE), untiles(_TILE)
        self.register_buffer("forth", torch.kron(forth, forth).float())  # (36, 16)
        self.register_buffer("back", torch.kron(back, back).float())  # (16, 36)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        p, n, c = x.shape
        x = (self.forth @ x.reshape(p, n * c)).reshape(-1, n, c) @ self.kernels()  # (36, N, O)
        return (self.back @ x.flatten(1)).reshape(p, n, -1) + self.bias


class _Block(nn.Module):
    """A bottleneck behind its first 1x1 on (16, N, C) positions; each linear layer is one matrix product."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv2 = _WinogradOfTile(*folded(block.conv2))
        self.conv3 = _linear(*folded(block.conv3))

    def forward(self, inner: Tensor, shortcut: Tensor) -> Tensor:
        return F.relu(self.conv3(F.relu(self.conv2(F.relu(inner)))) + shortcut)


class HoistedHead(nn.Module):
    """RoiAlign, res5 and mean pooling of a ResNet; the affine layer in front is folded in as well."""

    weight: Tensor
    shift: Tensor
    bias: Tensor

    def __init__(self, heads: ROIHeads, affine: AffineLayer) -> None:
        super().__init__()
        assert fits(heads) and isinstance(heads.res5, Res5)
        first, *others = heads.res5.blocks
        (inner, inner_bias), (short, short_bias) = folded(first.conv1), folded(first.shortcut)
        self.inner, self.bins, self.stride = len(inner), heads.bins, heads.stride
        weight = torch.cat([inner, short])  # (inner + outer, C, 1, 1)
        shift = torch.zeros_like(affine.weight) if affine.bias is None else affine.bias.detach()
        self.register_buffer("weight", weight * affine.weight.detach())  # (1, C, 1, 1): by the inputs
        self.register_buffer("shift", weight.flatten(1) @ shift.flatten())
        # Behind RoiAlign, which weighs samples outside of the map with nothing: there it would be missing.
        self.register_buffer("bias", torch.cat([inner_bias, short_bias]))
        self.first = _Block(first)
        self.entries = nn.ModuleList(_linear(*folded(block.conv1)) for block in others)
        self.others = nn.ModuleList(_Block(block) for block in others)

    def forward(self, features: Tensor, proposals: Tensor, ops: Ops) -> Tensor:
        """(B, C, H, W) before the affine layer, (B, R, 4) xyxy in network pixels -> (B, R, D)."""
        b, r, _ = proposals.shape
        hoisted = F.conv2d(features, self.weight, self.shift)
        boxes = live_bins(proposals, self.bins, self.stride).flatten(1, 2)  # (B, 16 R, 4)
        x = ops.roi_align(hoisted, boxes, 1, self.stride).reshape(b, -1, r, len(self.bias))
        x = x.transpose(0, 1).flatten(1, 2) + self.bias  # (16, B R, inner + outer)
        x = self.first(x[:, :, : self.inner], x[:, :, self.inner :])
        for entry, block in zip(self.entries, self.others, strict=True):
            x = block(entry(x), x)
        return x.mean(dim=0).reshape(b, r, -1)


def fits(heads: ROIHeads) -> bool:
    """Whether a head is a ResNet's, large enough, and reads 4x4 bins of its RoiAlign, one tile of Winograd."""
    if not isinstance(heads.res5, Res5):
        return False
    first = heads.res5.blocks[0]
    return _is_large(first.conv2.conv) and first.conv1.conv.stride == (2, 2) and -(-heads.bins // 2) == _TILE


def live_bins(boxes: Tensor, bins: int, stride: int) -> Tensor:
    """The bins of a RoiAlign that a stride of 2 reads, as boxes: (B, R, 4) xyxy -> (B, 16, R, 4), row by row."""
    first = torch.arange(0, bins, 2, dtype=boxes.dtype, device=boxes.device)  # (4,)
    x1, y1, x2, y2 = (edge[:, None, None] for edge in boxes.unbind(2))  # (B, 1, 1, R)
    width, height = (x2 - x1) / bins, (y2 - y1) / bins
    left, top = x1 + first[:, None] * width, y1 + first[:, None, None] * height  # (B, 1, 4, R), (B, 4, 1, R)
    left, top = torch.broadcast_tensors(left, top)  # (B, 4, 4, R)
    right, bottom = left + _off_whole_cells(width, stride), top + _off_whole_cells(height, stride)
    return torch.stack([left, top, right, bottom], dim=-1).flatten(1, 2)


def _off_whole_cells(length: Tensor, stride: int) -> Tensor:
    """Lengths in pixels, of as many cells begun as before, and not within _AWAY of a whole number of them but 0."""
    begun = (length / stride).ceil() * stride
    return torch.maximum(torch.minimum(length, begun - _AWAY).clamp(min=0), begun - stride + _AWAY)


def folded(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """A convolution and its frozen norm as one kernel (O, C, k, k) and a bias (O,)."""
    norm = layer.norm
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return layer.conv.weight.detach() * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A 1x1 kernel (O, C, 1, 1) as a linear layer."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.flatten(1)), nn.Parameter(bias)
    return layer
