"""The value that a detector returns."""

from __future__ import annotations

import json

import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_runtime.errors import GlmdError

NAMES = ("person", "car")
EMPTY = Detections.empty(NAMES)
TWO = Detections(np.array([[0, 0, 4, 4], [1, 2, 3, 5]]), np.array([0.9, 0.4]), np.array([1, 0]), NAMES)


def test_empty_is_an_ordinary_value() -> None:
    assert len(EMPTY) == 0 and EMPTY.names == [] and EMPTY.to_dict() == []
    assert EMPTY.xyxy.shape == (0, 4) and EMPTY[EMPTY.scores > 0.5].class_names == NAMES
    assert len(EMPTY.to_supervision()) == 0


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


def test_to_supervision() -> None:
    found = TWO.to_supervision()
    np.testing.assert_array_equal(found.xyxy, TWO.xyxy)
    assert list(found.data["class_name"]) == TWO.names


@pytest.mark.parametrize(
    ("xyxy", "scores", "class_ids", "message"),
    [
        (np.zeros((1, 4)), np.zeros(2), np.zeros(2, int), r"expects xyxy \(N, 4\)"),
        (np.zeros((2, 5)), np.zeros(2), np.zeros(2, int), r"expects xyxy \(N, 4\)"),
        (np.zeros((1, 4)), np.zeros(1), np.array([2]), "must index the 2 class_names"),
        (np.zeros((1, 4)), np.zeros(1), np.array([-1]), "must index the 2 class_names"),
    ],
)
def test_contradictions_are_refused(xyxy: object, scores: object, class_ids: object, message: str) -> None:
    with pytest.raises(GlmdError, match=message):
        Detections(xyxy, scores, class_ids, NAMES)  # type: ignore[arg-type]
