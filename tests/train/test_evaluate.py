"""Scores against hand-made cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record
from glmd_train.evaluate import score

NAMES = ("person", "car")


def record(boxes: list[list[float]], labels: list[int], ignore: list[list[float]] | None = None) -> Record:
    return Record(
        1, Path("x.png"), (100, 100), np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int64),
        np.asarray(ignore or [], np.float32).reshape(-1, 4),
    )


def found(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    xyxy = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Detections(xyxy, np.asarray(scores, np.float32), np.asarray(labels, np.int64), NAMES)


A, B, C = [10, 10, 30, 30], [50, 50, 70, 70], [80, 5, 95, 20]


@pytest.mark.parametrize(
    ("truth", "detections", "ap50", "recall"),
    [
        (record([A], [0]), found([], [], []), 0.0, 0.0),  # nothing found
        (record([A], [0]), found([A], [0.9], [0]), 1.0, 1.0),
        (record([A], [0]), found([A], [0.9], [1]), 0.0, 0.0),  # the other class
        (record([A, B], [0, 0]), found([A], [0.9], [0]), 51 / 101, 0.5),  # half found: 51 of 101 recall points
        (record([A], [0]), found([B, A], [0.9, 0.8], [0, 0]), 0.5, 1.0),  # a false alarm ranks first
        (record([A], [0]), found([A, A], [0.9, 0.8], [0, 0]), 1.0, 1.0),  # found twice
        (record([A], [0]), found([A], [0.2], [0]), 1.0, 0.0),  # below the score at which recall counts
        (record([A], [0], [B]), found([B, A], [0.9, 0.8], [0, 0]), 1.0, 1.0),  # alarms in ignore regions do not count
    ],
)
def test_score(truth: Record, detections: Detections, ap50: float, recall: float) -> None:
    result = score([truth], [detections], NAMES)
    assert list(result.classes) == ["person"]  # car does not occur in the data
    assert result.classes["person"].ap50 == pytest.approx(ap50, abs=1e-6)
    assert result.classes["person"].recall == recall
    assert result.mean("ap50") == pytest.approx(ap50, abs=1e-6)


def test_data_without_objects_has_no_score() -> None:
    result = score([record([], [])], [found([A], [0.9], [0])], NAMES)
    assert result.classes == {} and result.mean("ap") == 0.0


def test_classes_are_scored_apart_and_averaged() -> None:
    result = score([record([A, B], [0, 1])], [found([A, C], [0.9, 0.9], [0, 1])], NAMES)
    assert (result.classes["person"].ap50, result.classes["car"].ap50) == pytest.approx((1.0, 0.0))
    assert result.to_dict()["mean"]["ap50"] == 0.5
