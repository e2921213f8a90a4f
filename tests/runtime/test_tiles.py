"""Tiles: what they cover, where boxes return to, and that nothing is found twice or lost."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime import Detections, Detector, backends, cli
from glmd_runtime.backends.base import Tensors
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import preprocess
from glmd_runtime.tiles import (
    ACROSS_IOU,
    CUT_MARGIN,
    LEAST_EDGE,
    LEAST_OVERLAP,
    OVERLAP,
    Tiles,
    merge,
    most_tiles,
    parse_tiles,
    spans,
)
from glmd_runtime.video.frame import Frame
from tests import reference, tiny
from tests.conftest import skip_unless
from tests.runtime.test_calibration import pcb_bundle


class BrightBackend:
    """Finds what is bright: a person of score 0.9 for each connected patch of more than half the full intensity."""

    device = "cpu"

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def run(self, inputs: Tensors) -> Tensors:
        self.images += list(inputs["images"])
        n = len(inputs["images"])
        boxes, scores = np.zeros((n, 4, 2, 4), np.float32), np.zeros((n, 4, 2), np.float32)  # the tiny bundle's
        for i, (image, valid_hw) in enumerate(zip(inputs["images"], inputs["valid_hw"], strict=True)):
            h, w = map(int, valid_hw)
            bright = (image[0, :h, :w] > (127.5 - 128) / 50).astype(np.uint8)
            rows = cv2.connectedComponentsWithStats(bright)[2][1:]  # left, top, width, height, area
            for r, (x, y, width, height, _) in enumerate(rows):
                boxes[i, r, 0], scores[i, r, 0] = (x, y, x + width, y + height), 0.9
        return {"boxes": boxes, "scores": scores, "valid": scores.any(axis=2)}

    def close(self) -> None:
        """Nothing to give back."""


def bright_detector(bundle: Path, tiles: Any = (2, 2)) -> tuple[Detector, BrightBackend]:
    backend = BrightBackend()
    return Detector(bundle, backend=backend, tiles=tiles), backend


def dark_frame(hw: tuple[int, int], *rectangles: tuple[int, int, int, int]) -> np.ndarray:
    frame = np.zeros(hw, np.uint8)
    for x1, y1, x2, y2 in rectangles:
        frame[y1:y2, x1:x2] = 255
    return frame


# What the user asks for


@pytest.mark.parametrize(
    "tiles", [(0, 1), (1, -1), (2,), (1, 2, 3), (), (2.0, 1), (True, 2), ("2", "1"), "21", 2, np.ones(2)], ids=repr
)
def test_wrong_tiles_are_an_error_before_anything_is_opened(tiles: Any) -> None:
    with pytest.raises(UsageError, match=r"must be \(columns, rows\), two whole numbers, 1 or more; got .* \(2, 1\)"):
        Detector("absent.glmd", tiles=tiles)


def test_one_tile_is_no_tiles() -> None:
    assert parse_tiles(None) is None and parse_tiles((1, 1)) is None
    assert parse_tiles([2, 1]) == parse_tiles((2, 1)) == Tiles(2, 1)


@pytest.mark.parametrize("tiles", [None, (1, 1)])
def test_without_tiles_the_frame_is_the_one_image(tiles: Any, tiny_bundle: Path) -> None:
    frame = np.linspace(7000, 9000, 128 * 160).reshape(128, 160).astype(np.uint16)
    detector, backend = bright_detector(tiny_bundle, tiles)
    assert len(detector.run(frame)) == 1
    (image,) = backend.images
    np.testing.assert_array_equal(image, preprocess(frame, tiny.SPEC)[0])
    assert "tiles" not in detector.info()


def test_info_tells_tiles(tiny_bundle: Path) -> None:
    assert json.loads(json.dumps(bright_detector(tiny_bundle, (3, 2))[0].info()))["tiles"] == [3, 2]


@pytest.mark.parametrize(("hw", "room"), [((95, 300), "8 x 1"), ((96, 95), "1 x 2"), ((1, 1), "1 x 1")])
def test_a_frame_without_room_for_the_tiles(hw: tuple[int, int], room: str, tiny_bundle: Path) -> None:
    detector, backend = bright_detector(tiny_bundle)
    with pytest.raises(FrameError, match=rf"room for {room} tiles .*; got tiles=\(2, 2\)\. Ask for fewer\."):
        detector.run(np.zeros(hw, np.uint8))
    assert not backend.images


def test_the_smallest_frame_that_has_room(tiny_bundle: Path) -> None:
    assert len(bright_detector(tiny_bundle)[0].run(dark_frame((96, 96), (40, 40, 60, 60)))) == 1


def test_wrong_frames(tiny_bundle: Path) -> None:
    detector, _ = bright_detector(tiny_bundle)
    for frame in (None, np.zeros((200, 200), np.float32), np.zeros((0, 0), np.uint8)):
        with pytest.raises(FrameError, match="A frame must"):
            detector.run(frame)


# Where tiles lie


@st.composite
def lengths_and_counts(draw: st.DrawFn) -> tuple[int, int]:
    length = draw(st.integers(1, 3000))
    return length, draw(st.integers(1, min(12, most_tiles(length))))


@given(lengths_and_counts())
def test_spans_cover_and_overlap(drawn: tuple[int, int]) -> None:
    length, count = drawn
    stretches = spans(length, count)
    assert len(stretches) == count
    assert stretches[0][0] == 0 and stretches[-1][1] == length
    sizes = {end - begin for begin, end in stretches}
    assert len(sizes) == 1
    size = sizes.pop()
    for (_, end), (begin, _) in pairwise(stretches):
        assert end - begin >= max(LEAST_OVERLAP, OVERLAP * size - 1)
    assert count == 1 or size >= LEAST_EDGE


@given(st.integers(1, 3000))
def test_most_tiles_is_what_fits(length: int) -> None:
    most, step = most_tiles(length), LEAST_EDGE - LEAST_OVERLAP
    assert most == 1 or LEAST_EDGE + (most - 1) * step <= length
    assert LEAST_EDGE + most * step > length


@given(lengths_and_counts(), lengths_and_counts())
def test_every_pixel_is_in_a_tile_and_the_frame_is_last(rows: tuple[int, int], columns: tuple[int, int]) -> None:
    windows = Tiles(columns[1], rows[1]).windows((rows[0], columns[0]))
    seen = np.zeros((rows[0], columns[0]), bool)
    for left, top, right, bottom in windows[:-1]:
        seen[top:bottom, left:right] = True
    assert seen.all() and windows[-1].tolist() == [0, 0, columns[0], rows[0]]
    assert len(windows) == rows[1] * columns[1] + 1 and windows.min() >= 0


# Where objects return to


@st.composite
def frames_with_an_object(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    h, w = draw(st.integers(96, 160)), draw(st.integers(96, 200))
    width, height = draw(st.integers(12, w)), draw(st.integers(12, h))
    x, y = draw(st.integers(0, w - width)), draw(st.integers(0, h - height))
    rectangle = (x, y, x + width, y + height)
    return dark_frame((h, w), rectangle), rectangle


@given(frames_with_an_object(), st.sampled_from([(2, 1), (1, 2), (2, 2)]))
def test_an_object_anywhere_is_found_once_in_its_place(
    tiny_bundle: Path, drawn: tuple[np.ndarray, tuple[int, ...]], tiles: tuple[int, int]
) -> None:
    frame, rectangle = drawn
    found = bright_detector(tiny_bundle, tiles)[0].run(frame)
    assert len(found) == 1
    # A pixel of the canvas is up to 2.5 pixels of these frames.
    np.testing.assert_allclose(found.xyxy[0], rectangle, atol=3)


@pytest.mark.parametrize(
    "rectangle",
    [
        (90, 40, 110, 60),  # on the seam, smaller than the overlap: whole in both tiles
        (100, 20, 125, 60),  # ends where the left tile ends, or nearly
        (40, 30, 190, 90),  # larger than a tile: only the frame has it whole
        (0, 0, 200, 120),
    ],
)
def test_an_object_on_the_seam(rectangle: tuple[int, int, int, int], tiny_bundle: Path) -> None:
    found = bright_detector(tiny_bundle, (2, 1))[0].run(dark_frame((120, 200), rectangle))
    assert len(found) == 1
    np.testing.assert_allclose(found.xyxy[0], rectangle, atol=3)


def test_a_speck_that_only_a_tile_shows(tiny_bundle: Path) -> None:
    """4 x 4 pixels of a frame 12 times the canvas vanish when it is shrunk, and not in a tile of the canvas' size."""
    frame = dark_frame((768, 960), (500, 300, 504, 304))
    assert len(Detector(tiny_bundle, backend=BrightBackend()).run(frame)) == 0
    found = bright_detector(tiny_bundle, (14, 14))[0].run(frame)
    np.testing.assert_allclose(found.xyxy, [[500, 300, 504, 304]], atol=1.5)


def test_two_objects_side_by_side_are_two(tiny_bundle: Path) -> None:
    found = bright_detector(tiny_bundle, (2, 1))[0].run(dark_frame((100, 160), (50, 40, 75, 60), (85, 40, 110, 60)))
    assert len(found) == 2


def test_colour_and_empty_frames(tiny_bundle: Path) -> None:
    detector, _ = bright_detector(tiny_bundle)
    grey = dark_frame((128, 160), (100, 20, 130, 50))
    np.testing.assert_array_equal(detector.run(np.dstack([grey] * 3)).xyxy, detector.run(grey).xyxy)
    empty = detector.run(dark_frame((128, 160)))
    assert len(empty) == 0 and empty.class_names == tiny.CLASS_NAMES


def test_counts_become_intensities_before_the_cut(tiny_bundle: Path) -> None:
    """The left half is cold: by its own percentiles its faint patch would be bright."""
    frame = np.full((100, 200), 7000, np.uint16)
    frame[40:60, 20:40] = 7010
    frame[:, 120:] = 9000
    detector, backend = bright_detector(tiny_bundle, (2, 1))
    found = detector.run(frame)
    assert len(found) == 1 and found.xyxy[0, 0] > 115
    left, right, whole = backend.images
    assert left[0, :, :40].max() == pytest.approx((1 - 128) / 50)  # 10 counts of 2000: 1 of 255
    assert right.max() == whole.max() == pytest.approx((255 - 128) / 50)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_batch_of_the_graph_holds_several_tiles(batch: int, tmp_path: Path) -> None:
    frame = dark_frame((128, 160), (100, 20, 130, 50), (4, 90, 24, 120))
    sizes = []

    class Counting(BrightBackend):
        def run(self, inputs: Tensors) -> Tensors:
            sizes.append(len(inputs["images"]))
            return super().run(inputs)

    with Detector(tiny.bundle(tmp_path / "t.glmd", batch).path, backend=Counting(), tiles=(2, 2)) as detector:
        found = detector.run(frame)
    assert sizes == [batch] * -(-5 // batch)
    np.testing.assert_allclose(found[np.argsort(found.xyxy[:, 0])].xyxy, [[4, 90, 24, 120], [100, 20, 130, 50]], atol=2)


def test_several_threads(tiny_bundle: Path) -> None:
    places = [(10 * i, 5 * i, 10 * i + 20, 5 * i + 25) for i in range(13)]
    detector, _ = bright_detector(tiny_bundle)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda place: detector.run(dark_frame((128, 160), place)), places))
    for place, found in zip(places, results, strict=True):
        np.testing.assert_allclose(found.xyxy, [place], atol=3)


def test_stream(tiny_bundle: Path) -> None:
    frames = [Frame(dark_frame((128, 160), (20 * i, 20, 20 * i + 30, 50)), i, i / 10) for i in range(4)]
    detector, backend = bright_detector(tiny_bundle)
    assert [(frame.index, len(found)) for frame, found in detector.stream(frames)] == [(i, 1) for i in range(4)]
    assert len(backend.images) == 4 * 5


def test_pcb_calibrates_each_tile(tmp_path: Path) -> None:
    """A tall box lies in the right tile only; its score is mixed as it is in a frame of its own."""
    skip_unless(bool({"openvino", "onnxruntime"} & set(backends.available())), "onnxruntime", "no library for pcb.onnx")
    row = ((10, 10, 20, 40), 0, 0.9)
    backend = FakeBackend(tiny.graph_spec(), [[], [row], []])
    with Detector(pcb_bundle(tmp_path / "t.glmd").path, backend=backend, tiles=(2, 1)) as detector:
        found = detector.run(np.zeros((64, 128), np.uint8))  # tiles 80 wide: the canvas
    np.testing.assert_allclose(found.xyxy, [[58, 10, 68, 40]])
    assert found.scores[0] == pytest.approx(0.45 + 0.5 * 30 / np.hypot(10, 30), abs=1e-5)


# Merging


@st.composite
def tiles_with_rows(draw: st.DrawFn) -> tuple[np.ndarray, list[list[reference.Row]]]:
    windows = Tiles(*draw(st.sampled_from([(2, 1), (2, 2), (3, 1)]))).windows((128, 160))
    tiles = []
    for left, top, right, bottom in windows.tolist():
        rows = []
        for _ in range(draw(st.integers(0, 5))):
            x1, y1 = draw(st.integers(0, right - left - 1)), draw(st.integers(0, bottom - top - 1))
            x2, y2 = draw(st.integers(x1 + 1, right - left)), draw(st.integers(y1 + 1, bottom - top))
            box = (float(x1), float(y1), float(x2), float(y2))
            rows.append((box, draw(st.integers(0, 1)), draw(st.integers(1, 4)) / 4))
        tiles.append(rows)
    return windows, tiles


def detections(rows: list[reference.Row]) -> Detections:
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    xyxy, class_ids, scores = (np.asarray(column) for column in columns)
    return Detections(xyxy.reshape(-1, 4), scores, class_ids, tiny.CLASS_NAMES)


@given(tiles_with_rows())
def test_merge_is_the_oracles(drawn: tuple[np.ndarray, list[list[reference.Row]]]) -> None:
    windows, tiles = drawn
    found = merge([detections(rows) for rows in tiles], windows, PostprocessSpec((0.1, 0.1)))
    wanted = reference.merge_tiles(tiles, [tuple(w) for w in windows.tolist()], CUT_MARGIN, ACROSS_IOU)
    assert found.class_ids.tolist() == [k for _, k, _ in wanted]
    np.testing.assert_array_equal(found.scores, np.array([score for score, _, _ in wanted], np.float32))
    np.testing.assert_array_equal(found.xyxy, np.array([box for *_, box in wanted], np.float32).reshape(-1, 4))


def test_boxes_of_two_images_are_one_object_sooner_than_boxes_of_one() -> None:
    windows = Tiles(2, 1).windows((128, 160))
    narrow, wide = ((20.0, 20.0, 30.0, 60.0), 0, 0.9), ((20.0, 20.0, 45.0, 60.0), 0, 0.8)  # IoU 0.4
    two_images = [detections(rows) for rows in ([narrow], [], [wide])]
    one_image = [detections(rows) for rows in ([narrow, wide], [], [])]
    assert merge(two_images, windows, PostprocessSpec((0.1, 0.1))).scores.tolist() == pytest.approx([0.9])
    assert len(merge(one_image, windows, PostprocessSpec((0.1, 0.1)))) == 2


def test_merge_keeps_the_bundles_limits() -> None:
    windows = Tiles(2, 1).windows((128, 160))
    in_left = [((20.0, 20.0, 40.0, 60.0), 0, 0.9)]
    in_frame = [((20.0, 20.0, 40.0, 28.0), 0, 0.8), ((5.0, 90.0, 9.0, 99.0), 1, 0.3)]
    found = [detections(rows) for rows in (in_left, [], in_frame)]
    assert len(merge(found, windows, PostprocessSpec((0.1, 0.1)))) == 3  # IoU 0.2 is not one object
    assert merge(found, windows, PostprocessSpec((0.1, 0.1), nms_iou=0.1)).scores.tolist() == pytest.approx([0.9, 0.3])
    assert merge(found, windows, PostprocessSpec((0.1, 0.1), max_detections=1)).scores.tolist() == pytest.approx([0.9])


# The command


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--tiles", "2", "1"], 0, "3 frames, "),
        (["--tiles", "0", "1"], 2, "tiles must be (columns, rows), two whole numbers, 1 or more; got [0, 1]"),
        (["--tiles", "2"], 2, "expected 2 arguments"),
        (["--tiles", "1.5", "2"], 2, "invalid int value: '1.5'"),
        (["--tiles", "4", "1"], 1, "has room for 3 x 2 tiles"),
    ],
)
def test_glmd_run(
    args: list[str],
    code: int,
    message: str,
    tiny_bundle: Path,
    pyav: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    clip = "sim://air?seed=3&frames=3&size=128x96"
    output = tmp_path / "found.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["glmd-run", "--engine", str(tiny_bundle), "--source", clip, "--json", str(output), *args]
    )
    with pytest.raises(SystemExit) as ended:
        cli.glmd_run_main()
    said = capsys.readouterr()
    assert int(ended.value.code or 0) == code
    assert message in (said.err if code else said.out).replace("\n", " ")
    assert output.exists() == (code == 0)
