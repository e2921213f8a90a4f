"""Counts to intensities."""

from __future__ import annotations

import numpy as np
import pytest

from glmd_runtime.errors import FrameError
from glmd_runtime.thermal import Intensity, Radiometry


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[0, 999]], [[0, 0]]),  # below the window
        ([[1000, 2000]], [[0, 255]]),
        ([[1500]], [[128]]),  # 127.5 rounds to even
        ([[2001, 65535]], [[255, 255]]),
    ],
)
def test_linear(counts: list[list[int]], expected: list[list[int]]) -> None:
    frame = np.array(counts, np.uint16)
    assert Intensity("linear", 1000, 2000)(frame).tolist() == expected


def test_percentile_ignores_a_hot_pixel() -> None:
    frame = np.full((20, 20), 8000, np.uint16)
    frame[:10] = 8100
    frame[0, 0] = 65535
    intensities = Intensity("percentile", 1, 99)(frame)
    assert intensities[5, 5] == 255 and intensities[15, 5] == 0


def test_percentile_does_not_change_with_a_drifting_offset() -> None:
    frame = np.random.default_rng(0).integers(7000, 9000, (32, 32), dtype=np.uint16)
    np.testing.assert_array_equal(Intensity()(frame), Intensity()(frame + np.uint16(500)))


def test_a_frame_of_one_value_is_black() -> None:
    assert Intensity()(np.full((4, 4), 7777, np.uint16)).max() == 0


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_eight_bits_pass_unchanged(shape: tuple[int, ...]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert Intensity("linear", 10, 20)(frame) is frame


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("gamma", 1, 99), "'percentile', 'linear', 'plateau' or 'clahe'; got 'gamma'"),
        (("percentile", 99, 1), "0 <= low < high <= 100"),
        (("percentile", 1, 101), "0 <= low < high <= 100"),
        (("linear", 5, 5), "0 <= low < high <= 65535"),
    ],
)
def test_wrong_values_are_named(values: tuple[str, float, float], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        Intensity(*values)  # type: ignore[arg-type]


def test_counts_of_a_radiometric_camera_are_temperatures() -> None:
    celsius = Radiometry().celsius(np.array([[27315, 30515]], np.uint16))
    np.testing.assert_allclose(celsius, [[0.0, 32.0]], atol=1e-4)
    np.testing.assert_allclose(Radiometry(0.1, -273.15).celsius(np.uint16([2732])), [0.05], atol=1e-4)
