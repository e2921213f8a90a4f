"""GlmdRoiAlign's kernel against torchvision."""

from __future__ import annotations


import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from tests.plugins.cases import POOLINGS, Pooling, pooling
from tests.plugins.kernels import HostKernels, Kernels

SEEDS = range(60)


def expected(case: Pooling, features: Tensor) -> Tensor:
    rois = [torch.from_numpy(image) for image in case.rois]
    return roi_align(features, rois, case.bins, 1 / case.stride, case.sampling_ratio, aligned=True)


def pooled(kernels: Kernels, case: Pooling, features: Tensor, hwc8: bool = False) -> Tensor:
    rois = torch.from_numpy(case.rois)
    return kernels.roi_align(features, rois, case.bins, case.stride, case.sampling_ratio, hwc8)


@pytest.mark.parametrize("kind", POOLINGS)
def test_float_features_equal_torchvision(kernels: Kernels, kind: str) -> None:
    for seed in SEEDS:
        case = pooling(kind, seed)
        features = torch.from_numpy(case.features)
        torch.testing.assert_close(pooled(kernels, case, features), expected(case, features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hwc8", [False, True], ids=["linear", "hwc8"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_half_features_are_pooled_in_float(kernels: Kernels, kind: str, hwc8: bool) -> None:
    """Half a step of half's 11 bits from the float result: only the output is rounded."""
    for seed in SEEDS:
        case = pooling(kind, seed)
        features = torch.from_numpy(case.features).half()
        wanted = expected(case, features.float())
        got = pooled(kernels, case, features, hwc8)
        assert got.dtype == torch.float16
        torch.testing.assert_close(got.float(), wanted, rtol=2**-11, atol=1e-5)
