"""The picture for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_runtime.draw import COLOURS, MIN_SIDE, draw, label_text
from glmd_runtime.errors import FrameError

NAMES = tuple(f"class {i}" for i in range(12))


def detections(*boxes: tuple[float, ...]) -> Detections:
    n = len(boxes)
    return Detections(np.reshape(boxes, (n, 4)), np.linspace(0.9, 0.3, n), np.arange(n) % 12, NAMES)


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (np.zeros((256, 320), np.uint8), (768, 960, 3)),
        (np.zeros((512, 640), np.uint16), (1024, 1280, 3)),
        (np.zeros((1000, 900, 3), np.uint8), (1000, 900, 3)),
        (np.zeros((1, 1), np.uint8), (MIN_SIDE, MIN_SIDE, 3)),
    ],
)
def test_small_frames_are_enlarged(frame: np.ndarray, shape: tuple[int, ...]) -> None:
    before = frame.copy()
    for found in (detections(), detections((0, 0, 1, 1))):
        picture = draw(frame, found)
        assert picture.shape == shape and picture.dtype == np.uint8
        np.testing.assert_array_equal(frame, before)


def test_without_detections_it_is_the_frame() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1000, 900, 3), dtype=np.uint8)
    np.testing.assert_array_equal(draw(frame, detections()), frame)


def test_the_box_is_around_the_object_in_its_colour() -> None:
    frame = np.full((1000, 1000), 90, np.uint8)
    picture = draw(frame, detections((400, 400, 440, 440)))
    np.testing.assert_array_equal(picture[400:440, 400:440], 90)
    assert tuple(picture[420, 398]) == COLOURS[0]


@pytest.mark.parametrize("corner", [(0, 0), (0, 988), (988, 0), (988, 988)])
def test_labels_stay_inside_and_off_small_objects(corner: tuple[int, int]) -> None:
    x, y = corner
    picture = draw(np.full((1000, 1000), 90, np.uint8), detections((x, y, x + 12, y + 12)))
    np.testing.assert_array_equal(picture[y + 4 : y + 8, x + 4 : x + 8], 90)
    assert (picture != 90).any(axis=2).sum() > 500  # the label is there


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({}, ["class 0  0.90", "class 1  0.30"]),
        ({"track_ids": [7, -1]}, ["class 0 #7  0.90", "class 1  0.30"]),
        ({"temperatures": [[1, 2, 36.24], [-9, -8, -7]]}, ["class 0  0.90  36.2 C", "class 1  0.30  -7.0 C"]),
        (
            {"track_ids": [0, 12], "temperatures": np.zeros((2, 3))},
            ["class 0 #0  0.90  0.0 C", "class 1 #12  0.30  0.0 C"],
        ),
    ],
)
def test_labels_say_what_is_known(columns: dict[str, Any], texts: list[str]) -> None:
    found = replace(detections((0, 0, 9, 9), (20, 20, 30, 30)), **columns)
    assert [label_text(found, row) for row in range(2)] == texts
    frame = np.full((1000, 1000), 90, np.uint8)
    plain, told = draw(frame, replace(found, track_ids=None, temperatures=None)), draw(frame, found)
    assert bool(columns) == bool((plain != told).any())


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("a\ud800", "a?"),  # half a character, of which OpenCV dies
        ("\udcff.png", "?.png"),
        ("\x1b]0;mine\x07", "?]0;mine?"),
        ("two\nlines\r\0\x85\u2028", "two?lines????"),
        ("élan \U0001f600", "élan \U0001f600"),
        ("", ""),
    ],
)
def test_any_name_is_drawn(name: str, drawn: str) -> None:
    found = replace(detections((400, 400, 440, 440)), class_names=(name,))
    assert label_text(found, 0) == f"{drawn}  0.90"
    assert (draw(np.full((1000, 1000), 90, np.uint8), found) != 90).any()


def test_a_crowd_is_drawn() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (100, 2))
    draw(np.zeros((256, 320), np.uint16), detections(*np.concatenate([corners, corners + 8], axis=1)))


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(FrameError):
        draw(np.zeros((4, 4), np.float32), detections())
