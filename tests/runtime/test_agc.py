"""The curve of a stream, against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.camera.agc import COUNTS, STEP, DampedCurve, Histogram, plateau_curve, window_curve

LOW, HIGH = window_curve(1000, 2000), window_curve(3000, 5000)
SIDE = 2 * STEP  # of a frame of which four pixels are looked at


def frame(*counts: int) -> np.ndarray:
    """(16, 16) uint16, black but for the four pixels that tell how much is cut."""
    pixels = np.zeros((SIDE, SIDE), np.uint16)
    pixels[::STEP, ::STEP] = np.reshape(counts, (2, 2))
    return pixels


SHOWN = frame(1500, 1500, 1500, 1500)  # grey under LOW
BETWEEN = frame(1500, 1500, 3500, 3500)  # half of it cut under either curve


def test_a_histogram_begins_and_ends_with_what_occurs() -> None:
    histogram = Histogram.of(np.array([[7, 9], [9, 12]], np.uint16))
    assert histogram.first == 7 and histogram.pixels.tolist() == [1, 0, 2, 0, 0, 1]
    assert histogram.pixels.dtype == np.int64


@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_are_numpys_to_the_bit(seed: int, pixels: int, low: float, high: float) -> None:
    counts = np.random.default_rng(seed).integers(0, COUNTS, (1, pixels), dtype=np.uint16)
    assert Histogram.of(counts).percentiles(low, high) == tuple(np.percentile(counts, (low, high)))


def test_percentiles_of_two_counts_are_rounded_as_numpys() -> None:
    """Beyond the middle, going back from the upper one gives another last bit."""
    counts = np.array([[39200, 64303]], np.uint16)
    assert Histogram.of(counts).percentiles(17.3, 82.7) == tuple(np.percentile(counts, (17.3, 82.7)))


def test_what_a_frame_has_not_is_black_or_white() -> None:
    """As the next frame of a stream may have it."""
    with np.errstate(all="raise"):
        curve = plateau_curve(Histogram.of(np.array([[7, 9]], np.uint16)), 1.0)
        flat = plateau_curve(Histogram.of(np.array([[7, 7]], np.uint16)), 1.0)
    assert curve.dtype == np.float32 and set(curve[:8]) == {0} and set(curve[9:]) == {255}
    assert not flat.any()


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_curve_goes_its_part_of_the_way(seconds: float) -> None:
    damped = DampedCurve(seconds)
    np.testing.assert_array_equal(damped(BETWEEN, LOW, 10.0), LOW)
    expected = LOW
    for before, time in ((10.0, 10.04), (10.04, 11.0)):
        expected = expected + (HIGH - expected) * (1 - math.exp(-(time - before) / seconds))
        came = damped(BETWEEN, HIGH, time)
        assert came.dtype == np.float32
        np.testing.assert_allclose(came, expected, atol=1e-3)


@pytest.mark.parametrize("time", [1.0, 0.5])
def test_a_curve_begins_anew_where_time_does_not_go_on(time: float) -> None:
    damped = DampedCurve(1.0)
    damped(BETWEEN, LOW, 1.0)
    np.testing.assert_array_equal(damped(BETWEEN, HIGH, time), HIGH)
    again = damped(BETWEEN, LOW, time + 1.0)  # and goes on from there
    np.testing.assert_allclose(again, HIGH + (LOW - HIGH) * (1 - math.exp(-1.0)), atol=1e-3)


def test_the_first_frame_needs_no_time() -> None:
    np.testing.assert_array_equal(DampedCurve(1.0)(SHOWN, LOW, 5.0), LOW)
    damped = DampedCurve(1.0)
    damped(SHOWN, LOW, 0.0)
    assert damped(SHOWN, HIGH, 0.1)[1500] > 100


@pytest.mark.parametrize(
    ("counts", "anew"),
    [
        ((999, 2001, 0, 65535), True),  # all are cut
        ((999, 2001, 0, 1500), False),  # three of four are not yet another scene
        ((1003, 2001, 0, 65535), True),  # an intensity of 0.765 is as good as cut, and so is the other end
        ((1997, 2001, 0, 65535), True),
        ((1004, 2001, 0, 65535), False),
        ((1996, 2001, 0, 65535), False),
    ],
)
def test_a_frame_that_would_be_cut_is_another_scene(counts: tuple[int, ...], anew: bool) -> None:
    damped = DampedCurve(1.0)
    damped(SHOWN, LOW, 0.0)
    assert np.array_equal(damped(frame(*counts), HIGH, 0.04), HIGH) == anew


def test_an_intensity_of_exactly_1_or_254_is_not_cut() -> None:
    curve = np.arange(COUNTS, dtype=np.float32).clip(0, 255)  # a count is its intensity
    for count in (1, 254):
        damped = DampedCurve(1.0)
        damped(SHOWN, curve, 0.0)
        assert not np.array_equal(damped(frame(count, 0, 0, 0), HIGH, 0.04), HIGH)


@pytest.mark.parametrize("jump", [700, -700])
def test_a_scene_that_went_up_keeps_its_intensities(jump: int) -> None:
    """As a shutter does: the curve moves with the counts, and its ends are drawn out."""
    damped = DampedCurve(1.0)
    curve = np.linspace(10, 240, COUNTS, dtype=np.float32)
    damped(SHOWN, curve, 0.0)
    came = damped(SHOWN, curve, 1e-9, jump)
    moved = np.interp(np.arange(COUNTS) - jump, np.arange(COUNTS), curve)
    np.testing.assert_allclose(came, moved, atol=1e-3)
