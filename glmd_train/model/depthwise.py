"""Convolutions of the light trunk that train fast on a CPU. They give what `nn.Conv2d` gives, gradients too.

Depthwise: oneDNN takes nearly all of a training step's time for the gradient of a kernel, unless it is 3x3 on maps
above 2x2. That gradient is one product and sum a tap, over the cells where the tap does not see padding. In half
precision it also lacks a fast gradient of the maps where the stride is not 1, which goes by taps as well.

Pointwise: with one thread PyTorch has only a slow 1x1 convolution for a few large maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART = 2**19  # numbers of the maps that are taken at a time: what is made of them stays in the cache
FEW = 16  # maps; for as many PyTorch has a fast 1x1 convolution, whatever the threads


class DepthwiseConv2d(nn.Conv2d):
    """One filter a channel, odd kernel, padded to half of it."""

    def forward(self, maps: Tensor) -> Tensor:
        if not (_trains_on_cpu(self, maps) and by_taps(maps, self.weight, self.stride[0])):
            return super().forward(maps)
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype
        with torch.autocast("cpu", enabled=False):
            assert self.bias is not None
            return _Depthwise.apply(maps.to(kind), self.weight.to(kind), self.bias.to(kind), self.stride[0])


class PointwiseConv2d(nn.Conv2d):
    """A kernel of 1x1."""

    def forward(self, maps: Tensor) -> Tensor:
        if not (_trains_on_cpu(self, maps) and len(maps) < FEW):
            return super().forward(maps)
        cells = maps.permute(0, 2, 3, 1)  # (N, H, W, C), as channels-last maps lie in memory
        return F.linear(cells, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def _trains_on_cpu(layer: nn.Module, maps: Tensor) -> bool:
    return layer.training and torch.is_grad_enabled() and maps.device.type == "cpu"


def by_taps(maps: Tensor, kernel: Tensor, stride: int) -> bool:
    """Whether one of the gradients is faster by taps than the library's."""
    return (kernel.requires_grad and _kernel_by_taps(maps, kernel)) or (stride > 1 and _is_half(maps))


def _kernel_by_taps(maps: Tensor, kernel: Tensor) -> bool:
    return kernel.shape[-1] > 3 or max(maps.shape[-2:]) <= 2


def _is_half(maps: Tensor) -> bool:
    return maps.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(maps, kernel)
        ctx.stride = stride
        return F.conv2d(maps, kernel, bias, stride, kernel.shape[-1] // 2, groups=len(kernel))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        maps, kernel = ctx.saved_tensors
        edge, stride = kernel.shape[-1], ctx.stride
        for_maps, for_kernel, for_bias, _ = ctx.needs_input_grad
        of_maps = of_kernel = of_bias = None
        if for_maps and stride > 1 and _is_half(maps):
            of_maps = maps_gradient(maps.shape, kernel, grad, stride)
        elif for_maps:
            of_maps = torch.nn.grad.conv2d_input(maps.shape, kernel, grad, stride, edge // 2, groups=len(kernel))
        if for_kernel and _kernel_by_taps(maps, kernel):
            of_kernel = kernel_gradient(maps, grad, edge, stride)
        elif for_kernel:
            of_kernel = torch.nn.grad.conv2d_weight(maps, kernel.shape, grad, stride, edge // 2, groups=len(kernel))
        if for_bias:
            of_bias = grad.sum(dim=(0, 2, 3))
        return of_maps, of_kernel, of_bias, None


def kernel_gradient(maps: Tensor, grad: Tensor, edge: int, stride: int) -> Tensor:
    """maps (N, C, H, W), grad of the output (N, C, H', W') -> gradient (C, 1, edge, edge) of the depthwise kernel."""
    x, g = maps.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)  # channels last, as the network's maps lie in memory
    kind = torch.promote_types(x.dtype, torch.float32)  # of the sums
    out = x.new_zeros(edge * edge, x.shape[3], dtype=kind)
    taps = list(_taps(x, g, edge, stride))
    rows = max(1, PART // max(1, x[:1].numel()))
    for some_x, some_g in zip(x.split(rows), g.split(rows), strict=True):
        some_x, some_g = some_x.to(kind), some_g.to(kind)
        for tap, inside, outside in taps:
            out[tap] += (some_x[inside] * some_g[outside]).sum(dim=(0, 1, 2))
    return out.t().reshape(-1, 1, edge, edge).to(maps.dtype)


def maps_gradient(shape: torch.Size, kernel: Tensor, grad: Tensor, stride: int) -> Tensor:
    """kernel (C, 1, edge, edge), grad of the output (N, C, H', W') -> gradient of the maps, of their shape."""
    g = grad.permute(0, 2, 3, 1)
    n, c, h, w = shape
    out = g.new_zeros(n, h, w, c)
    by_tap = kernel.flatten(1).t().contiguous()  # (edge * edge, C)
    for tap, inside, outside in _taps(out, g, kernel.shape[-1], stride):
        out[inside].addcmul_(g[outside], by_tap[tap])
    return out.permute(0, 3, 1, 2)


def _taps(x: Tensor, g: Tensor, edge: int, stride: int) -> Iterator[tuple[int, Any, Any]]:
    """The number of each tap, and its cells in maps x and output g, both (N, H, W, C); there may be none."""
    rows, columns = (_seen(x.shape[axis], g.shape[axis], edge, stride) for axis in (1, 2))
    for tap, ((in_y, out_y), (in_x, out_x)) in enumerate(product(rows, columns)):
        yield tap, (slice(None), in_y, in_x), (slice(None), out_y, out_x)


def _seen(n_in: int, n_out: int, edge: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Along one side, for each tap: the inputs that it sees, and the outputs for which it does; both may be empty."""
    for tap in range(edge):
        shift = tap - edge // 2
        first = max(0, -(shift // stride))  # the first output whose input is not left of the map
        last = min(n_out - 1, (n_in - 1 - shift) // stride)
        start = first * stride + shift
        count = max(0, last - first + 1)
        yield slice(start, start + count * stride, stride) if count else slice(0, 0), slice(first, first + count)
