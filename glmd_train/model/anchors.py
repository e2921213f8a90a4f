"""Anchors, and the box deltas that are predicted against them. All boxes are xyxy in network pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A box may grow at most from 16 to 1000 pixels in one step (detectron2's SCALE_CLAMP); keeps exp() finite.
MAX_LOG_SCALE = math.log(1000.0 / 16)


class AnchorGenerator(nn.Module):
    """Anchors of all sizes and ratios (height / width) around the top left corner of each cell, offset 0."""

    cell: Tensor

    def __init__(self, sizes: tuple[float, ...], ratios: tuple[float, ...], stride: int) -> None:
        super().__init__()
        self.stride = stride
        boxes = [(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in ratios]  # width, height
        cell = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in boxes])
        self.register_buffer("cell", cell, persistent=False)  # (A, 4)

    def __len__(self) -> int:
        return len(self.cell)

    def forward(self, height: int, width: int) -> Tensor:
        """Feature map size -> (H W A, 4), row by row, cell by cell."""
        y = torch.arange(height, device=self.cell.device) * self.stride
        x = torch.arange(width, device=self.cell.device) * self.stride
        yy, xx = torch.meshgrid(y, x, indexing="ij")  # (H, W)
        shifts = torch.stack([xx, yy, xx, yy], dim=2).reshape(-1, 1, 4)  # (H W, 1, 4)
        return (shifts + self.cell).reshape(-1, 4)  # (H W, A, 4) -> (H W A, 4)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """(N, 4) boxes against (N, 4) anchors -> (N, 4) deltas: centre shift over size, log of the size ratio, weighted."""
    centre, size = _centre_size(boxes)
    anchor_centre, anchor_size = _centre_size(anchors)
    deltas = torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)
    return deltas * deltas.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Inverse of `encode`: (..., 4) deltas, (..., 4) anchors -> (..., 4) boxes."""
    dx, dy, dw, dh = (deltas / deltas.new_tensor(weights)).unbind(-1)
    centre, size = _centre_size(anchors)
    centre = torch.stack([dx, dy], dim=-1) * size + centre
    size = torch.stack([dw, dh], dim=-1).clamp(max=MAX_LOG_SCALE).exp() * size
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def clip_boxes(boxes: Tensor, hw: Tensor) -> Tensor:
    """(N, 4) or (N, K, 4) boxes cut to `hw` (2,) = height, width."""
    limit = hw.flip(0).repeat(2)  # (4,): w, h, w, h
    return torch.minimum(boxes.clamp(min=0), limit)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    size = bottom_right - top_left
    return top_left + size / 2, size
