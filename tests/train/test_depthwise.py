"""Depthwise convolutions on small maps against the library's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from glmd_train.model.backbone import Lite0Res5
from glmd_train.model.depthwise import DepthwiseConv2d, is_small, kernel_gradient

SIDES = st.integers(1, 6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), SIDES, SIDES, st.sampled_from((1, 3, 5, 7)), st.sampled_from((1, 2, 3)), st.integers(0, 99))
def test_the_gradient_of_the_kernel_is_the_library_s(n: int, h: int, w: int, edge: int, stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.randn(n, 4, h, w, dtype=torch.float64)
    kernel = torch.randn(4, 1, edge, edge, dtype=torch.float64, requires_grad=True)
    out = nn.functional.conv2d(maps, kernel, stride=stride, padding=edge // 2, groups=4)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, kernel, grad)[0] if n else torch.zeros_like(kernel)
    torch.testing.assert_close(kernel_gradient(maps, grad, edge, stride), expected)


@pytest.mark.parametrize(("edge", "stride"), [(3, 1), (5, 1), (5, 2)])
@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_the_layer_gives_what_the_library_s_gives(edge: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv2d(6, 6, edge, stride, edge // 2, groups=6)
    maps = torch.randn(3, 6, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
    wanted = (maps, layer.weight, layer.bias)
    ours, theirs = layer(maps), nn.Conv2d.forward(layer, maps)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)


def by_taps(out: torch.Tensor) -> bool:
    return "SmallMaps" in type(out.grad_fn).__name__


def test_the_roi_head_has_such_layers_and_they_take_the_short_way_in_training_only() -> None:
    res5 = Lite0Res5(8)
    small: list[str] = []
    for name, layer in res5.named_modules():
        if isinstance(layer, DepthwiseConv2d):
            layer.register_forward_hook(lambda one, maps, out, name=name: small.append(name) if by_taps(out) else None)
    res5.train()(torch.randn(2, 40, 8, 8))
    assert len(small) == 8  # of 11: the first three are 3x3 on maps of 4x4 and 8x8
    small.clear()
    res5.eval()(torch.randn(2, 40, 8, 8))
    assert not small


def test_the_library_is_asked_where_it_chooses_types_or_is_fast() -> None:
    kernel = torch.zeros(4, 1, 5, 5)
    assert is_small(torch.zeros(1, 4, 4, 4), kernel) and not is_small(torch.zeros(1, 4, 5, 4), kernel)
    assert not is_small(torch.zeros(1, 4, 4, 4), kernel[..., 1:-1, 1:-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_small(torch.zeros(1, 4, 4, 4), kernel)
