"""Scores against hand-made cases whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_train import intervals
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import evaluate, score
from glmd_train.intervals import ap_difference, ap_interval

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


def pictures(seed: int, number: int = 12) -> tuple[list[Record], list[Detections]]:
    """Random pictures whose detections are jittered copies of the objects, false alarms, and some of both in crowds."""
    rng = np.random.default_rng(seed)
    records, detections = [], []
    for _ in range(number):
        truth, alarms, crowd = (random_boxes(rng, int(rng.integers(0, n))) for n in (8, 6, 3))
        labels = rng.integers(0, 2, len(truth))
        copies = rng.integers(0, 3, len(truth))  # an object is missed, found, or found twice
        jittered = np.repeat(truth, copies, axis=0) + rng.normal(0, 2, (copies.sum(), 4)).astype(np.float32)
        xyxy = np.concatenate([jittered, alarms])
        class_ids = np.concatenate([np.repeat(labels, copies), rng.integers(0, 2, len(alarms))])
        # Two decimals: many scores are the same.
        scores = rng.uniform(0.05, 1, len(xyxy)).round(2)
        records.append(record(truth.tolist(), labels.tolist(), crowd.tolist()))
        order = np.argsort(-scores, kind="stable")
        detections.append(found(xyxy[order].tolist(), scores[order].tolist(), class_ids[order].tolist()))
    return records, detections


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    corner = rng.uniform(0, 70, (number, 2))
    return np.concatenate([corner, corner + rng.uniform(8, 30, (number, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_the_interval_s_ap_is_that_of_coco_of_each_draw_too(seed: int) -> None:
    """The slow oracle is faster-coco-eval on the pictures that were drawn, repeated as often as they were."""
    records, detections = pictures(seed)
    matches = intervals._match_classes(records, detections)
    draws = [np.ones(len(records), np.int64), *intervals._draws(len(records), seed)[:3]]
    for weights in draws:
        drawn = np.repeat(np.arange(len(records)), weights)
        slow = score([records[i] for i in drawn], [detections[i] for i in drawn], NAMES).mean("ap")
        assert intervals._mean(matches, weights) == pytest.approx(slow, abs=2e-3)
    slow = score(records, detections, NAMES).mean("ap")
    assert ap_interval(records, detections).value == pytest.approx(slow, abs=1e-9)


def test_an_interval_holds_its_value_repeats_and_narrows_with_more_pictures() -> None:
    few, many = (ap_interval(*pictures(0, number)) for number in (10, 160))
    assert few.low < few.value < few.high and many.low < many.value < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert few == ap_interval(*pictures(0, 10))
    assert few != ap_interval(*pictures(0, 10), seed=1)


def test_equal_pictures_and_perfect_detections_leave_no_doubt() -> None:
    records = [record([A, B], [0, 1])] * 5
    assert ap_interval(records, [found([A, B], [0.9, 0.8], [0, 1])] * 5) == (1.0, 1.0, 1.0)
    assert ap_interval(records, [found([], [], [])] * 5) == (0.0, 0.0, 0.0)
    assert ap_interval([record([], [])], [found([A], [0.9], [0])]) == (0.0, 0.0, 0.0)


def test_a_difference_is_paired() -> None:
    """A small loss on every picture is certain, although the AP itself varies far more between the pictures."""
    records, detections = pictures(3, 60)
    alarm = [[1.0, 1.0, 9.0, 9.0]]  # the first in rank on every picture, for both classes
    worse = [
        Detections(
            np.concatenate([alarm, alarm, one.xyxy]).astype(np.float32), np.r_[1.0, 1.0, one.scores].astype(np.float32),
            np.r_[0, 1, one.class_ids], NAMES,
        )
        for one in detections
    ]
    loss = ap_difference(records, detections, worse)
    assert loss.high < 0 and loss.low < loss.value < loss.high
    assert ap_difference(records, detections, detections) == (0.0, 0.0, 0.0)
    gain = ap_difference(records, worse, detections)
    assert gain.value == -loss.value and gain.low == pytest.approx(-loss.high)
    alone = score(records, worse, NAMES).mean("ap") - score(records, detections, NAMES).mean("ap")
    assert loss.value == pytest.approx(alone, abs=1e-9)


def test_classes_that_the_model_lacks_are_named_and_count_nowhere() -> None:
    known = record([A], [0])
    records = [replace(known, left_out=("tractor", "boat")), replace(known, left_out=("boat",))]
    with_others = score(records, [found([A], [0.9], [0])] * 2, NAMES)
    assert with_others.left_out == ("boat", "tractor") and with_others.mean("ap") == pytest.approx(1.0)
    assert with_others.to_dict()["left_out"] == ["boat", "tractor"]
    assert with_others.classes == score([known] * 2, [found([A], [0.9], [0])] * 2, NAMES).classes


def test_evaluate_reads_each_picture_and_gives_an_interval_when_asked(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((100, 100), np.uint8))
    records = [replace(record([A], [0]), path=tmp_path / "x.png")] * 3
    seen = []

    def predict(frame: np.ndarray) -> Detections:
        seen.append(frame.shape)
        return found([A], [0.9], [0])

    assert evaluate(predict, records, NAMES).interval is None
    with_interval = evaluate(predict, records, NAMES, interval=True)
    assert with_interval.interval == (1.0, 1.0, 1.0) and with_interval.to_dict()["ap_interval"] == [1.0, 1.0]
    assert seen == [(100, 100)] * 6


def test_objects_of_unknown_classes_are_named_by_their_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((100, 100), np.uint8))
    boxes = [(1, A, 0), (2, B, 0), (3, C, 1)]  # a person, a boat, and a region of tractors, which is ignored anyway
    content = {
        "images": [{"id": 1, "file_name": "x.png", "width": 100, "height": 100}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(("person", "boat", "tractor", "uav"))],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [x, y, x2 - x, y2 - y], "iscrowd": crowd}
            for i, (x, y, x2, y2), crowd in boxes
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(content))
    (one,) = load_coco(tmp_path / "labels.json", NAMES)
    assert one.left_out == ("boat",) and one.labels.tolist() == [0] and len(one.ignore) == 1
    assert score([one], [found([A], [0.9], [0])], NAMES).left_out == ("boat",)
