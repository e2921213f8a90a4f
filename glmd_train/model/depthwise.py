"""Depthwise convolutions that train fast on the ROI head's small maps, on a CPU.

On maps of 2x2 and 4x4 oneDNN takes nearly all of a training step's time in a depthwise layer for the gradient of its
kernel. That gradient is one product and sum a tap, over the cells where the tap does not see padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 4  # cells a side; on larger maps the library is faster


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel, odd kernel, padded to half of it; gives what `nn.Conv2d` gives, gradients too."""

    def forward(self, maps: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and self.weight.requires_grad and is_small(maps, self.weight):
            return _SmallMaps.apply(maps, self.weight, self.bias, self.stride[0])
        return super().forward(maps)


def is_small(maps: Tensor, kernel: Tensor) -> bool:
    """Whether the gradient of the kernel is faster by taps; the library is made for 3x3 kernels on maps above 2x2.

    Under autocast the library chooses the types.
    """
    side, edge = max(maps.shape[-2:]), kernel.shape[-1]
    on_cpu = maps.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and side <= LARGEST and (edge > 3 or side <= 2)


class _SmallMaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(maps, kernel)
        ctx.stride = stride
        return F.conv2d(maps, kernel, bias, stride, kernel.shape[-1] // 2, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        maps, kernel = ctx.saved_tensors
        padding = kernel.shape[-1] // 2
        of_maps = torch.nn.grad.conv2d_input(maps.shape, kernel, grad, ctx.stride, padding, groups=len(kernel))
        return of_maps, kernel_gradient(maps, grad, kernel.shape[-1], ctx.stride), grad.sum(dim=(0, 2, 3)), None


def kernel_gradient(maps: Tensor, grad: Tensor, edge: int, stride: int) -> Tensor:
    """maps (N, C, H, W), grad of the output (N, C, H', W') -> gradient (C, 1, edge, edge) of the depthwise kernel."""
    x, g = maps.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # channels last, as the network's maps lie in memory
    out = x.new_zeros(edge * edge, x.shape[3])
    for dy, (in_y, out_y) in enumerate(_seen(x.shape[1], g.shape[1], edge, stride)):
        for dx, (in_x, out_x) in enumerate(_seen(x.shape[2], g.shape[2], edge, stride)):
            out[dy * edge + dx] = (x[:, in_y, in_x] * g[:, out_y, out_x]).sum(dim=(0, 1, 2))
    return out.t().reshape(-1, 1, edge, edge)


def _seen(n_in: int, n_out: int, edge: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Along one side, for each tap: the inputs that it sees, and the outputs for which it does; both may be empty."""
    for tap in range(edge):
        shift = tap - edge // 2
        first = max(0, -(shift // stride))  # the first output whose input is not left of the map
        last = min(n_out - 1, (n_in - 1 - shift) // stride)
        start = first * stride + shift
        count = max(0, last - first + 1)
        yield slice(start, start + count * stride, stride) if count else slice(0, 0), slice(first, first + count)
