"""The value that a detector returns."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_runtime.errors import GlmdError, UnsupportedError

NAMES = ("person", "car")
EMPTY = Detections.empty(NAMES)
TWO = Detections(np.array([[0, 0, 4, 4], [1, 2, 3, 5]]), np.array([0.9, 0.4]), np.array([1, 0]), NAMES)


def test_empty_is_an_ordinary_value() -> None:
    assert len(EMPTY) == 0 and EMPTY.names == [] and EMPTY.to_dict() == []
    assert EMPTY.xyxy.shape == (0, 4) and EMPTY[EMPTY.scores > 0.5].class_names == NAMES


@pytest.mark.parametrize(
    ("index", "scores"),
    [
        (0, [0.9]),
        (-1, [0.4]),
        (slice(None), [0.9, 0.4]),
        (slice(5, 9), []),
        ([1, 0], [0.4, 0.9]),
        (np.array([False, True]), [0.4]),
        (np.array([False, False]), []),
    ],
)
def test_indexes_like_an_array(index: object, scores: list[float]) -> None:
    found = TWO[index]
    np.testing.assert_array_equal(found.scores, np.float32(scores))
    assert len(found) == len(found.xyxy) == len(found.class_ids) == len(scores)


def test_dtypes_and_names() -> None:
    assert (TWO.xyxy.dtype, TWO.scores.dtype, TWO.class_ids.dtype) == (np.float32, np.float32, np.int64)
    assert TWO.names == ["car", "person"]


def test_dictionaries_are_ready_for_json() -> None:
    first = {"name": "car", "class_id": 1, "score": 0.9, "xyxy": [0.0, 0.0, 4.0, 4.0]}
    assert json.loads(json.dumps(TWO.to_dict()))[0] == first


MEASURED = replace(TWO, temperatures=np.array([[1, 2, 3], [4, 5, 6.126]]), track_ids=np.array([7, -1]))


def test_temperatures_and_tracks_follow_their_rows() -> None:
    second = MEASURED[1]
    np.testing.assert_allclose(second.temperatures, [[4, 5, 6.126]], rtol=1e-6)
    assert second.track_ids is not None and second.track_ids.tolist() == [-1]
    rows = json.loads(json.dumps(MEASURED.to_dict()))
    assert [row["track_id"] for row in rows] == [7, None]
    assert rows[1]["celsius"] == {"min": 4.0, "mean": 5.0, "max": 6.13}
    assert "celsius" not in TWO.to_dict()[0]


def test_to_supervision() -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    assert len(EMPTY.to_supervision()) == 0
    measured, found = MEASURED.to_supervision(), TWO.to_supervision()
    assert measured.tracker_id.tolist() == [7, -1] and measured.data["celsius"].shape == (2, 3)
    assert found.tracker_id is None
    np.testing.assert_array_equal(found.xyxy, TWO.xyxy)
    assert list(found.data["class_name"]) == TWO.names


def test_to_supervision_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UnsupportedError, match=r"pip install '/.*\[track\]'"):
        TWO.to_supervision()


@pytest.mark.parametrize(
    ("xyxy", "scores", "class_ids", "message"),
    [
        (np.zeros((1, 4)), np.zeros(2), np.zeros(2, int), r"expects xyxy \(N, 4\)"),
        (np.zeros((2, 4)), np.zeros(2), np.zeros(3, int), r"got class_ids \(3,\) with 2 scores"),
        (np.zeros((2, 5)), np.zeros(2), np.zeros(2, int), r"expects xyxy \(N, 4\)"),
        (np.zeros((1, 4)), np.zeros(1), np.array([2]), "must index the 2 class_names"),
        (np.zeros((1, 4)), np.zeros(1), np.array([-1]), "must index the 2 class_names"),
    ],
)
def test_contradictions_are_refused(xyxy: object, scores: object, class_ids: object, message: str) -> None:
    with pytest.raises(GlmdError, match=message):
        Detections(xyxy, scores, class_ids, NAMES)  # type: ignore[arg-type]


@pytest.mark.parametrize(("column", "values"), [("temperatures", np.zeros((1, 3))), ("track_ids", np.zeros((2, 1)))])
def test_optional_columns_have_a_row_each(column: str, values: object) -> None:
    with pytest.raises(GlmdError, match=f"got {column}"):
        replace(TWO, **{column: values})
