"""The light trunk's convolutions against the library's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glmd_train.model.backbone import Lite0Res5, Lite0Trunk
from glmd_train.model.depthwise import (
    PART,
    DepthwiseConv2d,
    PointwiseConv2d,
    by_taps,
    kernel_gradient,
    maps_gradient,
)

SIDES = st.integers(1, 6)


@settings(max_examples=60)
@given(st.integers(0, 3), SIDES, SIDES, st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2, 3)), st.integers(0, 99))
def test_the_gradient_of_the_kernel_is_the_library_s(n: int, h: int, w: int, edge: int, stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.randn(n, 4, h, w, dtype=torch.float64)
    kernel = torch.randn(4, 1, edge, edge, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(maps, kernel, stride=stride, padding=edge // 2, groups=4)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, kernel, grad)[0] if n else torch.zeros_like(kernel)
    torch.testing.assert_close(kernel_gradient(maps, grad, edge, stride), expected)


def test_more_maps_than_are_taken_at_a_time() -> None:
    side, channels = 4, 64
    maps = torch.randn(2 * PART // (side * side * channels) + 3, channels, side, side, dtype=torch.float64)
    kernel = torch.randn(channels, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(maps, kernel, padding=2, groups=channels)
    grad = torch.randn_like(out)
    torch.testing.assert_close(kernel_gradient(maps, grad, 5, 1), torch.autograd.grad(out, kernel, grad)[0])


@settings(max_examples=60)
@given(st.integers(0, 3), SIDES, SIDES, st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2, 3)), st.integers(0, 99))
def test_the_gradient_of_the_maps_is_the_library_s(n: int, h: int, w: int, edge: int, stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.randn(n, 4, h, w, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(4, 1, edge, edge, dtype=torch.float64)
    out = nn.functional.conv2d(maps, kernel, stride=stride, padding=edge // 2, groups=4)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, maps, grad)[0] if n else torch.zeros_like(maps)
    torch.testing.assert_close(maps_gradient(maps.shape, kernel, grad, stride), expected)


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def assert_same(layer: nn.Conv2d, maps: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Output and gradients are those of `nn.Conv2d`."""
    wanted = (maps, layer.weight, layer.bias)
    ours, theirs = layer(maps), nn.Conv2d.forward(layer, maps)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    grads = (torch.autograd.grad(out.float().square().sum(), wanted) for out in (ours, theirs))
    for mine, other in zip(*grads, strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol * float(other.abs().max()))


@pytest.mark.parametrize(("edge", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [1, 2, 4, 5, 12])
def test_a_depthwise_layer_gives_what_the_library_s_gives(edge: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(6, 6, edge, stride, edge // 2, groups=6)
    assert_same(layer, channels_last(3, 6, side, side))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(layer, channels_last(3, 6, side, side), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("number", [1, 4, 15, 16, 30])
def test_a_pointwise_layer_gives_what_the_library_s_gives(number: int) -> None:
    torch.manual_seed(0)
    layer, maps = PointwiseConv2d(6, 8, 1), channels_last(number, 6, 5, 7)
    assert_same(layer, maps)
    assert layer(maps).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(layer, maps, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("frozen", ["maps", "kernel"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    layer = DepthwiseConv2d(4, 4, 5, 2, 2, groups=4)
    maps = torch.randn(2, 4, 4, 4, requires_grad=frozen != "maps")
    layer.weight.requires_grad_(frozen != "kernel")
    with torch.autocast("cpu", torch.bfloat16):
        layer(maps).sum().backward()
    assert (maps.grad is None) == (frozen == "maps")
    assert (layer.weight.grad is None) == (frozen == "kernel")


def ours(out: torch.Tensor) -> bool:
    return "_Depthwise" in type(out.grad_fn).__name__


def test_the_roi_head_has_layers_that_take_the_short_way_in_training_only() -> None:
    res5 = Lite0Res5(8)
    short: list[str] = []
    for name, layer in res5.named_modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.register_forward_hook(lambda one, maps, out, name=name: short.append(name) if ours(out) else None)
    res5.train()(torch.randn(2, 40, 8, 8))
    assert len(short) == 8  # of 11: the first three are 3x3 on maps of 4x4 and 8x8
    short.clear()
    res5.eval()(torch.randn(2, 40, 8, 8))
    assert not short


def test_the_library_is_asked_where_it_is_fast() -> None:
    maps, kernel = torch.zeros(1, 4, 4, 4), torch.zeros(4, 1, 5, 5, requires_grad=True)
    assert by_taps(maps, kernel, 1) and by_taps(maps[..., :2, :2], kernel[..., 1:-1, 1:-1], 1)
    assert not by_taps(maps, kernel[..., 1:-1, 1:-1], 2)
    assert not by_taps(maps, kernel.detach(), 2)  # only the gradient of the maps
    with torch.autocast("cpu", torch.bfloat16):
        assert by_taps(maps, kernel.detach(), 2) and not by_taps(maps, kernel.detach(), 1)


def test_the_trunk_s_maps_stay_channels_last() -> None:
    """Pictures of one channel say by their strides alone that they are; a change on the way is a copy of every map."""
    trunk = Lite0Trunk(8, 1).train()
    layouts: list[bool] = []
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda one, maps, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    trunk(torch.empty(2, 1, 64, 96, memory_format=torch.channels_last).normal_())
    assert layouts and all(layouts)
