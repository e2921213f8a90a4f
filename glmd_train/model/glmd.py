"""The neck of GLMDNet: global context (CM) and local refinement (LR), distilled into each other (MDF).

Formulas: `ENeck(x) = conv(g * sigmoid(l)) + conv(l * sigmoid(g)) + x` with g = CM(x), l = LR(x); section III of
"GLMDNet: Infrared Few-Shot Object Detection Based on Global-Local Mutual Distillation Network".
All feature maps are (B, C, H, W) float; the output is as large as the input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention_heads(channels: int) -> int:
    """The largest of 16, 8, 4 that divides the channels; 1 where none does."""
    return next((n for n in (16, 8, 4) if channels % n == 0), 1)


def sine_code(channels: int, height: int, width: int) -> Tensor:
    """Fixed positional code, (1, C, H, W) float32: the first C/2 channels code the row, the others the column.

    p[2k] = sin(h f_k), p[2k+1] = cos(h f_k) with f_k = 10000^(-2k / (C/2)); the same of w in the second half.
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(0, half, 2) * (-math.log(10000.0) / half))  # (ceil(half / 2),)
    rows = _sine_table(height, frequencies)[:, :half]  # (H, half)
    columns = _sine_table(width, frequencies)[:, :half]  # (W, half)
    row_part = rows.T[:, :, None].expand(half, height, width)
    column_part = columns.T[:, None, :].expand(half, height, width)
    return torch.cat([row_part, column_part])[None]  # (1, C, H, W)


def _sine_table(length: int, frequencies: Tensor) -> Tensor:
    angles = torch.arange(length)[:, None] * frequencies  # (L, F)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (L, 2F): sin, cos, sin, cos, ...


class EncoderLayer(nn.Module):
    """Post-norm transformer encoder layer with exact GELU, hidden width 2C; tokens (N, L, C) -> (N, L, C)."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.qkv, self.hidden, self.narrow, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.dropout(self.attention(tokens)))
        widened = self.dropout(F.gelu(self.hidden(tokens)))
        return self.norm2(tokens + self.dropout(self.narrow(widened)))

    def attention(self, tokens: Tensor) -> Tensor:
        n, length, channels = tokens.shape
        # Split into three, then into heads: in the shorter form, which permutes all at once, OpenVINO (2026.4) takes
        # tokens for heads when there are as many of both.
        parts = self.qkv(tokens).chunk(3, dim=2)  # each (N, L, C)
        heads = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        q, k, v = heads  # each (N, heads, L, C / heads)
        dropout = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (N, heads, L, C / heads)
        return self.out(mixed.transpose(1, 2).reshape(n, length, channels))


class ContextModelling(nn.Module):
    """CM: axial self-attention, along each row and then along each column, one encoder layer for both.

    published_batching: let a sequence run over all images of the batch, as the published code does (its images
    influence each other). Off, every image is on its own; for one image both are the same.
    """

    def __init__(self, channels: int, heads: int, dropout: float, published_batching: bool) -> None:
        super().__init__()
        self.encoder = EncoderLayer(channels, heads, dropout)
        self.published_batching = published_batching

    def forward(self, x: Tensor) -> Tensor:
        coded = x + sine_code(*x.shape[1:]).to(x)
        return self.along_columns(self.along_rows(coded))

    def along_rows(self, x: Tensor) -> Tensor:
        """Each row is a sequence over w."""
        b, c, h, w = x.shape
        if self.published_batching:
            rows = x.permute(2, 0, 3, 1).reshape(h, b * w, c)  # (H, B W, C)
            return self.encoder(rows).reshape(h, b, w, c).permute(1, 3, 0, 2)  # (B, C, H, W)
        rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)  # (B H, W, C)
        return self.encoder(rows).reshape(b, h, w, c).permute(0, 3, 1, 2)  # (B, C, H, W)

    def along_columns(self, x: Tensor) -> Tensor:
        """Each column is a sequence over h."""
        return self.along_rows(x.transpose(2, 3)).transpose(2, 3)


class LocalRefinement(nn.Module):
    """LR: a depth-wise branch gated by channel, a point-wise branch gated by place, merged by a 1x1 convolution."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        # The narrow layer keeps at least one channel, so that light trunks (40 channels) have a gate as well.
        narrow = max(1, channels // ratio)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.channel_gate = nn.Sequential(
            nn.Conv2d(channels, narrow, 1, bias=False), nn.ReLU(), nn.Conv2d(narrow, channels, 1, bias=False)
        )
        self.spatial_gate = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        by_channel, by_place = self.depthwise(x), self.pointwise(x)
        gated = [self.channel_weights(by_channel) * by_channel, self.spatial_weights(by_place) * by_place]
        return self.merge(torch.cat(gated, dim=1))

    def channel_weights(self, x: Tensor) -> Tensor:  # (B, C, 1, 1)
        mean, largest = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return torch.sigmoid(self.channel_gate(mean) + self.channel_gate(largest))

    def spatial_weights(self, x: Tensor) -> Tensor:  # (B, 1, H, W)
        maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # (B, 2, H, W)
        return torch.sigmoid(self.spatial_gate(maps))


class GLMDNeck(nn.Module):
    """x (B, C, H, W) -> (B, C, H, W). CM, LR and MDF can each be left out; without MDF the parts are summed."""

    def __init__(
        self, channels: int, *, cm: bool = True, lr: bool = True, mdf: bool = True, dropout: float = 0.1,
        published_batching: bool = False,
    ) -> None:
        super().__init__()
        heads = attention_heads(channels)
        self.context = ContextModelling(channels, heads, dropout, published_batching) if cm else None
        self.local = LocalRefinement(channels) if lr else None
        distils = cm and lr and mdf
        self.context_conv = nn.Conv2d(channels, channels, 3, padding=1) if distils else None
        self.local_conv = nn.Conv2d(channels, channels, 3, padding=1) if distils else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [part(x) for part in (self.context, self.local) if part is not None]
        if self.context_conv is not None and self.local_conv is not None:
            context, local = parts
            parts = [
                self.context_conv(context * torch.sigmoid(local)),
                self.local_conv(local * torch.sigmoid(context)),
            ]
        return sum(parts, start=x)
