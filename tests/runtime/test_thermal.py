"""Counts to intensities."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.camera import agc
from glmd_runtime.errors import FrameError
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.thermal import MODES, Intensity, Mode, Radiometry
from tests import reference


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
        (("plateau", 1, 99, 0), "plateau > 0"),
        (("clahe", 1, 99, 1, 0), r"^intensity needs plateau > 0, clip > 0 and .* seconds; got 1, 0, 0\.0\.$"),
        (("percentile", 1, 99, 1, 2, "hot"), "'white-hot' or 'black-hot'; got 'hot'"),
        (("percentile", 1, 99, 1, 2, "white-hot", float("inf")), "damping of 0 or more seconds"),
    ],
)
def test_wrong_values_are_named(values: tuple[str, float, float], message: str) -> None:
    with pytest.raises(FrameError, match=message):
        Intensity(*values)  # type: ignore[arg-type]


def test_any_positive_plateau_and_clip_will_do() -> None:
    frame = np.random.default_rng(0).integers(7000, 7400, (64, 64), dtype=np.uint16)
    low, high = (Intensity("clahe", plateau=0.5, clip=clip)(frame).astype(int) for clip in (0.5, 40))
    assert np.abs(low - high).max() > 10


def test_counts_of_a_radiometric_camera_are_temperatures() -> None:
    celsius = Radiometry().celsius(np.array([[27315, 30515]], np.uint16))
    np.testing.assert_allclose(celsius, [[0.0, 32.0]], atol=1e-4)
    assert celsius.dtype == np.float32
    np.testing.assert_allclose(Radiometry(0.1, -273.15).celsius(np.uint16([2732])), [0.05], atol=1e-4)


@st.composite
def count_frames(draw: st.DrawFn) -> np.ndarray:
    """Few counts or many, next to each other or far apart, up to both ends of 16 bits."""
    low = draw(st.integers(0, 65535))
    high = draw(st.sampled_from([low, min(65535, low + 3), min(65535, low + 300), 65535]))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    return np.random.default_rng(draw(st.integers(0, 999))).integers(low, high, shape, dtype=np.uint16, endpoint=True)


ranks = st.lists(st.floats(0, 100, width=32), min_size=2, max_size=2, unique=True).map(sorted)


@given(count_frames(), ranks)
def test_percentile_is_numpys_to_the_bit(frame: np.ndarray, limits: list[float]) -> None:
    expected = reference.percentile_window(frame, *limits)
    np.testing.assert_array_equal(Intensity("percentile", *limits)(frame), expected)


@given(count_frames(), st.integers(0, 65534), st.integers(1, 65535))
def test_linear_is_the_formula(frame: np.ndarray, low: int, width: int) -> None:
    high = min(65535, low + width)
    np.testing.assert_array_equal(Intensity("linear", low, high)(frame), reference.linear_window(frame, low, high))


@given(count_frames(), st.floats(0.01, 100))
def test_plateau_is_the_formula(frame: np.ndarray, plateau: float) -> None:
    expected = reference.plateau_equalisation(frame, plateau)
    np.testing.assert_allclose(Intensity("plateau", plateau=plateau)(frame), expected, atol=0.501)


@given(count_frames(), st.sampled_from(["percentile", "linear", "plateau"]))
def test_what_is_hotter_is_never_darker(frame: np.ndarray, mode: Mode) -> None:
    intensities = Intensity(mode)(frame).ravel()
    assert (np.diff(intensities[np.argsort(frame, axis=None)].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("plateau", "expected"),
    [(1e-6, [0, 85, 170, 255]), (1e6, [0, 240, 252, 255])],  # every step alike; contrast by area
)
def test_plateau_lies_between_projection_and_equalisation(plateau: float, expected: list[int]) -> None:
    frame = np.repeat(np.uint16([400, 500, 501, 600]), [1, 93, 5, 1]).reshape(10, 10)
    assert np.unique(Intensity("plateau", plateau=plateau)(frame)).tolist() == expected


def test_plateau_keeps_the_contrast_within_a_small_hot_object() -> None:
    """An engine on a car: percentiles make both white."""
    rng = np.random.default_rng(0)
    frame = (7000 + rng.normal(0, 20, (100, 100))).astype(np.uint16)
    frame[:5, :10], frame[5:10, :10] = 8000, 9000
    assert Intensity("percentile", 1, 99)(frame)[[0, 9], 0].tolist() == [255, 255]
    car, engine = Intensity("plateau")(frame)[[0, 9], 0]
    assert engine - car > 1


def test_clahe_raises_local_contrast() -> None:
    """Faint stripes on a slope that takes the whole window."""
    stripes = (np.arange(128) % 8 < 4)[:, None] * 20
    frame = (1000 + 16 * np.arange(128) + stripes).astype(np.uint16)
    window, local = (Intensity(mode)(frame)[:, 60].astype(int) for mode in ("percentile", "clahe"))
    assert np.ptp(local) > 1.5 * np.ptp(window) > 0


@pytest.mark.parametrize("mode", ["percentile", "plateau"])
def test_black_hot_is_white_hot_inverted(mode: Mode) -> None:
    frame = np.random.default_rng(0).integers(7000, 7400, (32, 40), dtype=np.uint16)
    white, black = (Intensity(mode, polarity=polarity)(frame).astype(int) for polarity in ("white-hot", "black-hot"))
    assert np.abs(white + black - 255).max() <= 1  # halves are rounded to even on both sides


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", [[[0]], [[65535, 0]], [[7, 7], [7, 7]]])
def test_the_smallest_frames(mode: Mode, values: list[list[int]]) -> None:
    frame = np.array(values, np.uint16)
    assert Intensity(mode)(frame).shape == frame.shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opencv_5", [agc.LUT_TAKES_16_BITS, False])
def test_frames_of_others_memory(mode: Mode, opencv_5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second column of an array that may not be written to, with either way to apply a curve."""
    frame = np.random.default_rng(0).integers(0, 65536, (32, 80), dtype=np.uint16)
    frame.flags.writeable = False
    expected = Intensity(mode)(frame[:, ::2].copy())
    monkeypatch.setattr(agc, "LUT_TAKES_16_BITS", opencv_5)
    np.testing.assert_array_equal(Intensity(mode)(frame[:, ::2]), expected)


def test_old_models_are_stored_and_read_as_before() -> None:
    old = {"size_hw": [512, 640], "mean": [127.0], "std": [128.0], "resize": "letterbox",
           "intensity": {"mode": "percentile", "low": 1.0, "high": 99.0}}
    assert PreprocessSpec.from_dict(old).to_dict() == old


@pytest.mark.parametrize(
    "intensity", [Intensity("plateau", plateau=0.5), Intensity("clahe", clip=3.0, polarity="black-hot", damping=1.5)]
)
def test_parameters_travel_with_the_model(intensity: Intensity) -> None:
    spec = PreprocessSpec((64, 80), (127.0,), (128.0,), intensity)
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("file", ["radiometric_512x640.tiff", "v1/0050.png", "v2-latlon/0050.png"])
def test_real_cameras(data: Path, file: str) -> None:
    """What equalisation is for: intensities are used, half of the pixels do not share a few of them."""
    frame = cv2.imread(str(data / "raw16" / file), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(Intensity()(frame), reference.percentile_window(frame, 1, 99))
    for mode in ("percentile", "plateau", "clahe"):
        low, high = np.percentile(Intensity(mode)(frame), (25, 75))
        assert high - low > 20, mode


boxes = st.tuples(*[st.floats(0, 19, width=32)] * 2, *[st.floats(0.0625, 8, width=32)] * 2)


@given(boxes, st.sampled_from([0.01, 0.04, -0.02]))
def test_temperatures_of_boxes(box: tuple[float, ...], gain: float) -> None:
    x, y, w, h = box
    xyxy = np.array([[x, y, min(20.0, x + w), min(20.0, y + h)]], np.float32)
    frame = np.random.default_rng(0).integers(28000, 31000, (20, 20), dtype=np.uint16)
    found = Radiometry(gain, -273.15).of_boxes(frame, xyxy)
    np.testing.assert_allclose(found[0], reference.temperatures(frame, xyxy[0], gain, -273.15), rtol=1e-5, atol=1e-3)


def test_temperatures_of_no_box_and_of_one_without_area() -> None:
    frame = np.arange(120, dtype=np.uint16).reshape(10, 12)
    none = Radiometry(1, 0).of_boxes(frame, np.zeros((0, 4), np.float32))
    assert none.shape == (0, 3) and none.dtype == np.float32
    points = np.array([[12, 10, 12, 10], [3, 4, 3, 4], [-1, -1, -1, -1], [12, 0, 12, 0]], np.float32)
    expected = [[count] * 3 for count in (119, 51, 0, 11)]
    np.testing.assert_array_equal(Radiometry(1, 0).of_boxes(frame, points), expected)
