"""Scores against hand-made cases whose answer is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import evaluate, false_alarms, in_order, is_empty, match_greedily, score
from glmd_train.scores import intervals
from glmd_train.scores.intervals import ap_difference, ap_interval, ap_intervals, proportion, run_interval

NAMES = ("person", "car")


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


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


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_s_ap_is_that_of_coco_of_each_draw_too(seed: int) -> None:
    """The slow oracle is faster-coco-eval on the pictures that were drawn, repeated as often as they were."""
    records, detections = pictures(seed)
    matches = intervals.match_classes(records, detections)
    for weights in intervals._draws(len(records), seed)[:4]:
        drawn = np.repeat(np.arange(len(records)), weights)
        slow = score([records[i] for i in drawn], [detections[i] for i in drawn], NAMES).mean("ap")
        fast = np.nanmean([one.average_precisions(weights).mean() for one in matches.values()])
        assert fast == pytest.approx(slow, abs=2e-3)
    slow = score(records, detections, NAMES)
    groups = ap_intervals(records, detections, {"all": (0, 1), "person": (0,), "car": (1,), "none": (7,)})
    assert set(groups) == {"all", "person", "car"}
    for field in ("ap", "ap50", "ap75"):
        assert groups["all"][field].value == pytest.approx(slow.mean(field), abs=1e-9)
        for name in NAMES:
            assert groups[name][field].value == pytest.approx(slow.mean(field, [name]), abs=1e-9)
    assert groups["all"]["ap"] == ap_interval(records, detections)


def test_the_interval_is_the_quantiles_of_draws_made_one_by_one() -> None:
    records, detections = pictures(1, 6)
    values = []
    for draw in np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), intervals.RESAMPLES)[:60]:
        drawn = np.repeat(np.arange(6), draw)
        values.append(score([records[i] for i in drawn], [detections[i] for i in drawn], NAMES).mean("ap50"))
    with_few = intervals._mean(intervals._precisions(
        list(intervals.match_classes(records, detections).values()), intervals._draws(6, 0)[:61]
    )[..., 1])
    fast = intervals._interval(with_few)
    assert fast[1:] == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=2e-3)


def test_draws_without_an_object_say_nothing() -> None:
    """Found in the only picture that has one: AP is 1 in every draw that holds it, and not 0 in the others."""
    records = [record([A], [0]), *[record([], [])] * 9]
    assert ap_interval(records, [found([A], [0.9], [0]), *[found([], [], [])] * 9]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("number", [2, 3, 5, 10, 31])
def test_the_interval_over_runs_is_student_s(number: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(number).normal(0.4, 0.05, number)
    low, high = stats.t.interval(0.95, number - 1, loc=values.mean(), scale=stats.sem(values))
    assert run_interval(values.tolist()) == pytest.approx((values.mean(), low, high), abs=1e-4)


def test_the_interval_over_runs_by_hand_and_beyond_the_table() -> None:
    # Mean 0.5, standard deviation 0.1, n = 3: 4.303 * 0.1 / sqrt(3)
    assert run_interval([0.4, 0.5, 0.6]) == pytest.approx((0.5, 0.5 - 0.24843, 0.5 + 0.24843), abs=1e-5)
    assert run_interval([0.3, 0.3]) == (0.3, 0.3, 0.3)
    many = [0.4, 0.6] * 100
    assert run_interval(many).high - 0.5 == pytest.approx(2.042 * np.std(many, ddof=1) / 200**0.5)


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


def test_classes_without_an_object_are_named() -> None:
    result = score([record([A], [0])], [found([A, B], [0.9, 0.9], [0, 1])], NAMES)
    assert result.unscored == ("car",) and result.to_dict()["unscored"] == ["car"]
    assert result.mean("ap") == result.mean("ap", ["person", "car"]) == pytest.approx(1.0)
    assert result.mean("ap", ["car"]) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_false_alarms_equal_a_plain_count(seed: int) -> None:
    _, detections = pictures(seed)
    thresholds, own, fixed = (0.25, 0.6), 0, 0
    for one in detections:
        for row in one.to_dict():
            own += row["score"] > thresholds[row["class_id"]]
            fixed += row["score"] > 0.3
    alarms = false_alarms(detections, thresholds)
    assert (alarms.frames, alarms.own, alarms.fixed) == (len(detections), own, fixed)
    assert alarms.to_dict()["own_per_1000"] == pytest.approx(1000 * own / len(detections), abs=0.005)


def test_without_an_empty_frame_the_rate_is_unknown() -> None:
    assert false_alarms([], (0.3,)).to_dict() == {
        "frames": 0, "own": 0, "fixed": 0, "own_per_1000": None, "fixed_per_1000": None
    }
    silent = false_alarms([found([], [], [])] * 3, (0.3, 0.3)).to_dict()
    assert silent["own_per_1000"] == silent["fixed_per_1000"] == 0.0 and silent["frames"] == 3


def test_a_threshold_is_exceeded_as_on_the_device() -> None:
    at = np.float32(0.3)
    assert false_alarms([found([A], [at], [0])], (0.3, 0.3)).own == 0
    assert false_alarms([found([A], [np.nextafter(at, np.float32(1))], [0])], (0.3, 0.3)).own == 1


def test_pictures_with_anything_in_them_are_not_empty() -> None:
    assert is_empty(record([], []))
    others = record([A], [0]), record([], [], [B]), replace(record([], []), left_out=("boat",))
    assert not any(map(is_empty, others))


def test_each_detection_takes_the_free_object_that_it_overlaps_most() -> None:
    boxes = np.asarray([[0, 0, 10, 10], [0, 0, 10, 14]], np.float32)
    assert match_greedily(boxes[[1, 1, 1]], boxes).tolist() == [1, 0, -1]
    assert match_greedily(boxes[:0], boxes).tolist() == [] and match_greedily(boxes, boxes[:0]).tolist() == [-1, -1]


def test_the_order_of_the_records_changes_nothing() -> None:
    """Scores are equal here and there, and draws are weights by place: both would show the order."""
    records, detections = pictures(5, 20)
    records = [replace(one, path=Path(f"{i:02}.png")) for i, one in enumerate(records)]
    by_path = {one.path: answer for one, answer in zip(records, detections, strict=True)}
    shuffled = in_order(records[i] for i in np.random.default_rng(0).permutation(20))
    again = [by_path[one.path] for one in shuffled]
    assert score(shuffled, again, NAMES) == score(records, detections, NAMES)
    assert ap_interval(shuffled, again) == ap_interval(records, detections)


def test_ignore_regions_change_no_score_of_what_lies_elsewhere() -> None:
    """Detections and regions in a corner of their own: with the region, the alarms in it are as if they were not."""
    for seed in range(3):
        records, detections = pictures(seed)
        corner = [[101.0, 101.0, 120.0, 120.0]]
        ignoring = [replace(one, ignore=np.concatenate([one.ignore, np.float32(corner)])) for one in records]
        alarms = [
            Detections(np.concatenate([one.xyxy, np.float32(corner * 2)]), np.r_[one.scores, 0.99, 0.98],
                       np.r_[one.class_ids, 0, 1], NAMES)
            for one in detections
        ]
        assert score(ignoring, alarms, NAMES).classes == score(records, detections, NAMES).classes
        assert ap_interval(ignoring, alarms) == ap_interval(records, detections)


@given(st.integers(0, 60), st.integers(1, 60))
def test_a_proportion_s_interval_holds_what_a_normal_test_does_not_refute(count: int, of: int) -> None:
    """Wilson's bounds are where the observed share is 1.96 standard errors away from the true one."""
    count = min(count, of)
    share, low, high = proportion(count, of)
    assert share == count / of and 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
    for bound in (low, high):
        assert abs(share - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / of), abs=1e-6)
