"""Tiles: they cover the frame, boxes come back to their place, an object on a seam is found once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime import Detector
from glmd_runtime.backends.base import Tensors
from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.tiles import OVERLAP, SMALLEST, check_tiles, crop, merge, windows
from tests import tiny

SPEC = PostprocessSpec((0.1,))
SIZES = st.tuples(st.integers(200, 700), st.integers(200, 700))
TILES = st.tuples(st.integers(1, 4), st.integers(1, 4)).filter(lambda tiles: tiles != (1, 1))


@given(SIZES, TILES)
def test_tiles_cover_every_pixel_and_stay_inside(hw: tuple[int, int], tiles: tuple[int, int]) -> None:
    whole, *rest = windows(hw, tiles)
    assert whole == (0, 0, hw[1], hw[0])
    assert len(rest) == tiles[0] * tiles[1]
    seen = np.zeros(hw, int)
    for place in rest:
        part = crop(seen, place)
        assert part.shape == (place[3] - place[1], place[2] - place[0])
        part += 1
    assert seen.min() >= 1


@given(SIZES, TILES, st.data())
def test_a_small_object_anywhere_is_found_once_in_its_place(
    hw: tuple[int, int], tiles: tuple[int, int], data: st.DataObject
) -> None:
    """A perfect detector of what a window shows of one object, cut where the window cuts it."""
    places = windows(hw, tiles)
    smallest = min(min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in places)
    side = data.draw(st.integers(5, int(OVERLAP * smallest) - 5))
    x, y = data.draw(st.integers(0, hw[1] - side)), data.draw(st.integers(0, hw[0] - side))
    box = np.asarray([x, y, x + side, y + side], np.float32)
    found = merge([shown(box, place) for place in places], places, hw, SPEC)
    assert found.xyxy.tolist() == [box.tolist()]


def shown(box: np.ndarray, place: tuple[int, int, int, int]) -> Detections:
    x1, y1, x2, y2 = np.clip(box, np.tile(place[:2], 2), np.tile(place[2:], 2))
    inside = np.asarray([[x1, y1, x2, y2]], np.float32) - np.asarray(place[:2] * 2, np.float32)
    seen = inside[:1] if x1 < x2 and y1 < y2 else np.zeros((0, 4), np.float32)
    return Detections(seen, np.full(len(seen), 0.9, np.float32), np.zeros(len(seen), int), ("bird",))


def test_an_object_larger_than_the_overlap_comes_from_the_whole_frame() -> None:
    hw, box = (400, 600), np.asarray([100, 100, 500, 300], np.float32)
    places = windows(hw, (2, 1))
    assert merge([shown(box, place) for place in places], places, hw, SPEC).xyxy.tolist() == [box.tolist()]


def test_nothing_found_is_nothing() -> None:
    places = windows((400, 600), (2, 2))
    nothing = [shown(np.asarray([0, 0, 0, 0], np.float32), place) for place in places]
    assert len(merge(nothing, places, (400, 600), SPEC)) == 0


@pytest.mark.parametrize("tiles", [(0, 1), (2,), (2, 1, 1), (1.5, 2), 2, None, "21"])
def test_other_tiles_are_refused(tiles: object) -> None:
    with pytest.raises(UsageError, match="columns, rows"):
        check_tiles(tiles)


def test_a_frame_without_room_is_refused() -> None:
    with pytest.raises(FrameError, match=f"at least {SMALLEST}"):
        windows((64, 80), (4, 1))


class _Seen:
    """A backend that keeps what it is shown, and finds nothing."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def run(self, inputs: Tensors) -> Tensors:
        self.images += list(np.array(inputs["images"]))
        n = len(inputs["images"])
        return {"boxes": np.zeros((n, 4, 2, 4), np.float32), "scores": np.zeros((n, 4, 2), np.float32),
                "valid": np.ones((n, 4), bool)}

    def close(self) -> None:
        pass


def test_16_bit_counts_get_the_contrast_of_the_whole_frame(tmp_path: Path) -> None:
    tiny.bundle(tmp_path / "tiny.glmd")
    frame = np.tile(np.linspace(7000, 9000, 160, dtype=np.uint16), (128, 1))  # dark at the left, bright at the right
    backend = _Seen()
    with Detector(tmp_path / "tiny.glmd", backend=backend, tiles=(2, 1)) as detector:
        assert len(detector.run(frame)) == 0
        assert detector.info()["tiles"] == [2, 1]
    whole, left, right = backend.images
    assert left.mean() < whole.mean() < right.mean()
    assert right.min() > whole.min()


def test_one_tile_is_the_frame_itself(tmp_path: Path) -> None:
    tiny.bundle(tmp_path / "tiny.glmd")
    frame = tiny.frames()[1]
    with Detector(tmp_path / "tiny.glmd") as plain, Detector(tmp_path / "tiny.glmd", tiles=(1, 1)) as tiled:
        assert tiled.run(frame).to_dict() == plain.run(frame).to_dict()
