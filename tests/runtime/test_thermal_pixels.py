"""Bad pixels: found in frames, filled from their neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime import find_bad_pixels
from glmd_runtime.camera.bad_pixels import MIN_FRAMES, BadPixels, read_bad_pixels
from glmd_runtime.errors import FrameError, UsageError
from tests import reference


def scene(index: int) -> np.ndarray:
    """A slope with an edge, and noise of 5."""
    counts = 7000 + np.linspace(0, 300, 64) + 400 * (np.arange(64) > 40)
    return (counts + np.random.default_rng(index).normal(0, 5, (48, 64))).astype(np.uint16)


@given(st.integers(0, 2**20), st.sampled_from([0.02, 0.3]))
def test_fill_is_the_median_of_good_neighbours(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    frame, mask = rng.integers(0, 65536, (7, 9), dtype=np.uint16), rng.random((7, 9)) < share
    before = frame.copy()
    np.testing.assert_array_equal(BadPixels(mask).fill(frame), reference.fill_bad_pixels(frame, mask))
    np.testing.assert_array_equal(frame, before)


def test_dead_hot_and_corner_pixels_are_found_and_nothing_else() -> None:
    bad = {(10, 10): 0, (20, 41): 65535, (0, 0): 9000, (47, 63): 6000}
    frames = []
    for i in range(20):
        frames.append(scene(i))
        for place, value in bad.items():
            frames[-1][place] = value
    assert set(map(tuple, np.argwhere(find_bad_pixels(frames)).tolist())) == set(bad)


def test_no_scene_is_a_bad_pixel() -> None:
    """Something hot that the lens spreads over its neighbours; one hot pixel that moves; one that comes and goes."""
    frames = [scene(i) for i in range(20)]
    for i, frame in enumerate(frames):
        spot = np.zeros((48, 64), np.float32)
        spot[30, 20] = 20000
        frame += cv2.GaussianBlur(spot, (0, 0), 0.8).astype(np.uint16)
        frame[5, 5 + i] += 3000
        frame[40, 8] += 3000 * (i % 2)
    assert not find_bad_pixels(frames).any()


@pytest.mark.parametrize("sequence", ["v1", "v2-latlon"])
def test_real_cameras_have_none(data: Path, sequence: str) -> None:
    """Both are Leptons, which correct their own; and one that is put in is found."""
    files = sorted((data / "raw16" / sequence).glob("*.png"))[::5]
    frames = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in files]
    assert find_bad_pixels(frames).sum() == 0
    for frame in frames:
        frame[60, 80] += 300
    assert np.argwhere(find_bad_pixels(frames)).tolist() == [[60, 80]]


@pytest.mark.parametrize(
    "frames",
    [[], [scene(0)], [scene(0)] * (MIN_FRAMES - 1) + [scene(0)[:, 1:]], [np.zeros((4, 4), np.uint8)] * MIN_FRAMES],
)
def test_too_few_or_other_frames(frames: list[np.ndarray]) -> None:
    with pytest.raises(FrameError, match="Take more frames of the raw stream"):
        find_bad_pixels(frames)


@pytest.mark.parametrize(
    "written",
    [
        lambda mask: mask * np.uint8(255),
        lambda mask: mask * np.uint16(1),
        lambda mask: mask[..., None] * np.array([0, 1, 0], np.uint8),
        lambda mask: np.dstack([mask, mask, mask, np.ones_like(mask)]) * np.uint8(255),
    ],
    ids=["8 bits", "16 bits", "colour", "opaque"],
)
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_a_mask_from_a_picture(written: Callable[[Any], Any], suffix: str, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((9, 12)) < 0.2
    cv2.imwrite(str(tmp_path / f"mask{suffix}"), written(mask))
    np.testing.assert_array_equal(read_bad_pixels(tmp_path / f"mask{suffix}"), mask)


@pytest.mark.parametrize(
    ("name", "what"), [("absent.png", "not there"), ("mask.jpg", "no such"), ("bad.png", "no such")]
)
def test_no_mask(name: str, what: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.jpg"), np.zeros((9, 9), np.uint8))
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(UsageError, match=rf"a PNG of the camera's size, .*{name}, which is {what}.*find_bad_pixels"):
        read_bad_pixels(tmp_path / name)


def test_a_mask_whose_name_opencv_would_die_of(tmp_path: Path) -> None:
    (tmp_path / "\udcff.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    with pytest.raises(UsageError, match="no such picture"):
        read_bad_pixels(tmp_path / "\udcff.png")


def test_masks_that_cannot_be() -> None:
    with pytest.raises(FrameError, match="must be"):
        BadPixels(np.zeros((4, 4), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="Is the mask inverted"):
        BadPixels(np.ones((9, 9), bool))
