"""What counts as which miss, by hand and against the recall; the sheet shows the worst of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.errors import DatasetError
from glmd_train.data.coco import Record
from glmd_train.evaluate import score
from glmd_train.scores.misses import CAME, COLUMNS, EXPECTED, TILES, draw_sheet, find_misses
from tests.train.test_evaluate import NAMES, A, B, C, found, pictures, record


def kinds(one: Record, *rows: tuple[list[float], float, int]) -> dict[str, list[tuple[str, str]]]:
    """(expected, came) by kind, of one picture with detections (box, score, label)."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    misses = find_misses([one], [found(list(boxes), list(scores), list(labels))], NAMES)
    return {kind: [(miss.expected, miss.came) for miss in some] for kind, some in misses.items() if some}


def test_nothing_is_missed_where_nothing_is_wrong() -> None:
    assert kinds(record([], [])) == {}
    assert kinds(record([A, B], [0, 1]), (A, 0.9, 0), (B, 0.8, 1)) == {}
    assert kinds(record([A], [0], [B]), (A, 0.9, 0), (B, 0.8, 1)) == {}  # an alarm in an ignore region
    assert kinds(record([A], [0]), (A, 0.9, 0), (B, 0.2, 1)) == {}  # and one that nobody is shown


@pytest.mark.parametrize(
    ("truth", "rows", "expected"),
    [
        (record([A], [0]), [], {"missed": [("person", "nothing")]}),
        (record([A], [0]), [(A, 0.2, 0)], {"missed": [("person", "person 0.20, IoU 1.00")]}),
        (record([A], [0]), [(A, 0.2, 1)], {"missed": [("person", "car 0.20, IoU 1.00")]}),
        (record([A], [0]), [(A, 0.9, 1)], {"wrong_class": [("person", "car 0.90")]}),
        (record([], []), [(A, 0.9, 1)], {"false_alarm": [("nothing", "car 0.90")]}),
        (
            replace(record([], []), left_out=("boat", "bus")), [(A, 0.9, 1)],
            {"false_alarm": [("nothing or boat or bus", "car 0.90")]},
        ),
        (
            record([A], [0]), [(A, 0.9, 0), (A, 0.8, 1)],
            {"false_alarm": [("person, IoU 1.00, found already", "car 0.80")]},
        ),
        (  # badly placed: an alarm, and the object is still missing
            record([A], [0]), [([10, 10, 30, 19], 0.9, 0)],
            {"false_alarm": [("person, IoU 0.45", "person 0.90")], "missed": [("person", "person 0.90, IoU 0.45")]},
        ),
        (  # the worst first: by score, by area
            record([C, B, A], [0, 0, 0]), [([1, 60, 20, 90], 0.5, 0), ([1, 60, 20, 90], 0.7, 1)],
            {
                "false_alarm": [("nothing", "car 0.70"), ("nothing", "person 0.50")],
                "missed": [("person", "nothing")] * 3,
            },
        ),
    ],
)
def test_kinds(truth: Record, rows: list[tuple[list[float], float, int]], expected: dict[str, object]) -> None:
    assert kinds(truth, *rows) == expected


def test_largest_missed_objects_come_first() -> None:
    misses = find_misses([record([C, A], [0, 1]), record([[0, 0, 90, 90]], [0])], [found([], [], [])] * 2, NAMES)
    assert [miss.weight for miss in misses["missed"]] == [8100, 400, 225]


@pytest.mark.parametrize("seed", range(6))
def test_missed_and_mistaken_objects_are_those_that_lack_in_the_recall(seed: int) -> None:
    records, detections = pictures(seed)
    misses = find_misses(records, detections, NAMES)
    lacking = sum(row.objects * (1 - row.recall) for row in score(records, detections, NAMES).classes.values())
    assert len(misses["missed"]) + len(misses["wrong_class"]) == pytest.approx(lacking)


@pytest.fixture
def drawn(tmp_path: Path) -> Record:
    """A 16-bit picture whose warm squares are A and B."""
    frame = np.full((100, 100), 7600, np.uint16)
    for x1, y1, x2, y2 in (A, B):
        frame[y1:y2, x1:x2] = 8000
    cv2.imwrite(str(tmp_path / "x.png"), frame)
    return replace(record([A, B], [0, 1]), path=tmp_path / "x.png")


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


def test_the_sheet_shows_both_boxes_and_grows_with_the_tiles(drawn: Record) -> None:
    nothing = draw_sheet(find_misses([], [], NAMES), "none")
    alarms = [found([C], [0.9], [0])] * (TILES + 3)
    misses = find_misses([drawn] * len(alarms), alarms, NAMES)
    sheet = draw_sheet(misses, "all")
    rows = 2 * -(-TILES // COLUMNS)  # of alarms and of missed objects, though there are more of each
    per_row = (sheet.shape[0] - nothing.shape[0]) / rows
    assert sheet.dtype == np.uint8 and sheet.shape[1:] == nothing.shape[1:] and per_row == int(per_row) > 320
    tiles = sheet[130:430]
    assert has(tiles, CAME) and not has(tiles, EXPECTED)  # alarms where nothing was expected
    missed = sheet[-46 - int(per_row) : -46 - 90]  # without its caption
    assert has(missed, EXPECTED) and not has(missed, CAME)
    assert sheet[..., 0].max() > 250  # the warm square is white: counts became intensities


def test_a_box_at_the_edge_of_a_small_or_narrow_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.full((20, 200, 3), 90, np.uint8))
    one = replace(record([[180, 0, 200, 20]], [0]), path=tmp_path / "x.png", hw=(20, 200))
    sheet = draw_sheet(find_misses([one], [found([[0, 0, 200, 20]], [0.9], [1])], NAMES), "x" * 500)
    assert has(sheet[130:430], EXPECTED) and has(sheet[130:430], CAME)


def test_names_that_opencv_would_die_of(drawn: Record) -> None:
    odd = ("a\ud800", "b\n", *NAMES[2:])
    misses = find_misses([drawn], [found([C], [0.9], [0])], odd)
    assert draw_sheet(misses, "\udcff").shape == draw_sheet(misses, "title").shape


def test_a_picture_that_is_gone_is_one_error(drawn: Record) -> None:
    misses = find_misses([drawn], [found([], [], [])], NAMES)
    drawn.path.write_bytes(b"gone")
    with pytest.raises(DatasetError, match="cannot be read as a picture"):
        draw_sheet(misses, "x")
