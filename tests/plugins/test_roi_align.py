"""GlmdRoiAlign's kernel against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from tests.plugins.cases import POOLINGS, Pooling, pooling
from tests.plugins.kernels import HostKernels

SEEDS = range(60)


def expected(case: Pooling, features: np.ndarray) -> np.ndarray:
    rois = [torch.from_numpy(image) for image in case.rois]
    data = torch.from_numpy(features.astype(np.float32))
    return roi_align(data, rois, case.bins, 1 / case.stride, case.sampling_ratio, aligned=True).numpy()


def pooled(kernels: HostKernels, case: Pooling, features: np.ndarray, *, hwc8: bool = False) -> np.ndarray:
    return kernels.roi_align(features, case.rois, case.bins, case.stride, case.sampling_ratio, hwc8=hwc8)


@pytest.mark.parametrize("kind", POOLINGS)
def test_float_features_equal_torchvision(kernels: HostKernels, kind: str) -> None:
    for seed in SEEDS:
        case = pooling(kind, seed)
        wanted = expected(case, case.features)
        np.testing.assert_allclose(pooled(kernels, case, case.features), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hwc8", [False, True], ids=["linear", "hwc8"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_half_features_are_pooled_in_float(kernels: HostKernels, kind: str, hwc8: bool) -> None:
    """Half a step of half's 11 bits from the float result: only the output is rounded."""
    for seed in SEEDS:
        case = pooling(kind, seed)
        features = case.features.astype(np.float16)
        got = pooled(kernels, case, features, hwc8=hwc8)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(np.float32), expected(case, features), rtol=2**-11, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2, 100])
@pytest.mark.parametrize("corner", [np.nan, np.inf, -np.inf])
def test_a_roi_that_is_not_finite_pools_zeros(kernels: HostKernels, corner: float, sampling_ratio: int) -> None:
    rois = np.full((1, 4, 4), [4.0, 4.0, 20.0, 20.0])
    rois[0, range(4), range(4)] = corner
    assert not kernels.roi_align(np.ones((1, 2, 5, 5), np.float32), rois, 3, 8, sampling_ratio).any()


@pytest.mark.parametrize("size", [1e6, 1e9, 1e30, 3e38])
def test_a_roi_without_measure_ends_and_stays_within_the_features(kernels: HostKernels, size: float) -> None:
    """Its samples are too many to visit; torchvision would take minutes, or overflow."""
    rois = np.array([[[-size, -size, size, size], [0, 0, size, size]]])
    out = kernels.roi_align(np.ones((1, 1, 6, 6), np.float32), rois, 2, 8, 0)
    assert ((out >= 0) & (out <= 1)).all()


def test_an_enormous_roi_weighs_the_map_by_its_share(kernels: HostKernels) -> None:
    """A map of ones under one bin: the share of samples in [-1, 6] of the bin's length, on both axes."""
    side = 8e6
    out = kernels.roi_align(np.ones((1, 1, 6, 6), np.float32), np.array([[[-side, 8.0, side, 40.0]]]), 1, 8, 0)
    np.testing.assert_allclose(out, 7 / (2 * side / 8), rtol=0.2)


@pytest.mark.parametrize(
    "changed",
    [{"bins": 0}, {"bins": 33}, {"stride": 0}, {"sampling_ratio": -1}, {"features": np.ones((1, 1, 1, 12000))}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_the_kernel_cannot_do_is_an_error(kernels: HostKernels, changed: dict[str, object]) -> None:
    arguments = {"features": np.ones((1, 1, 5, 5)), "bins": 2, "stride": 8, "sampling_ratio": 0, **changed}
    features = arguments.pop("features").astype(np.float32)
    with pytest.raises(RuntimeError, match=r"cudaError_t 1$"):
        kernels.roi_align(features, np.ones((1, 1, 4)), **arguments)


def test_half_of_the_shim_is_half(host: HostKernels) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    floats = np.empty(2**16, np.float32)
    host.library.glmd_from_half(2**16, *map(host._address, (halves, floats)))
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))

    rng = np.random.default_rng(0)
    values = np.concatenate([
        rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32),  # every exponent
        rng.normal(0, 1, 20_000).astype(np.float32),
        (floats[1:0x7C00] + floats[: 0x7C00 - 1]) / 2,  # ties
    ])
    rounded = np.empty(len(values), np.uint16)
    host.library.glmd_to_half(len(values), *map(host._address, (values, rounded)))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded.view(np.float16), values.astype(np.float16))
