"""Raw outputs to detections."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.detections import Detections
from glmd_runtime.errors import UsageError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess, split_outputs
from glmd_runtime.preprocess import Geometry
from tests import reference

SPEC = PostprocessSpec((0.3, 0.5), nms_iou=0.5, max_detections=3)
SAME = Geometry((100, 100), (100, 100))
BOX = (10.0, 10.0, 30.0, 30.0)


def detect(rows: list[tuple[tuple[float, ...], int, float]], geometry: Geometry = SAME, padded: int = 2) -> Detections:
    """Detections of one proposal a row, (xyxy, class_id, score), and some padded ones that score high."""
    n = len(rows) + padded
    boxes, scores, valid = np.zeros((n, 2, 4), np.float32), np.zeros((n, 2), np.float32), np.zeros(n, bool)
    boxes[len(rows) :], scores[len(rows) :] = BOX, 1
    for r, (xyxy, class_id, score) in enumerate(rows):
        boxes[r, class_id], scores[r, class_id], valid[r] = xyxy, score, True
    return postprocess(RawOutputs(boxes, scores, valid), geometry, SPEC, ("person", "car"))


def test_no_proposals() -> None:
    for padded in (0, 2):
        found = detect([], padded=padded)
        assert len(found) == 0 and found.xyxy.shape == (0, 4)


def test_no_score_above_its_threshold() -> None:
    assert len(detect([(BOX, 0, 0.3), (BOX, 1, 0.45)])) == 0  # equal is not larger


def test_each_class_has_its_threshold() -> None:
    assert detect([(BOX, 0, 0.4), (BOX, 1, 0.4)]).names == ["person"]


@pytest.mark.parametrize("none", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_detection(none: float) -> None:
    beyond = (none, *BOX[1:])
    found = detect([(BOX, 0, none), (beyond, 0, 0.9), ((*BOX[:3], none), 1, 0.9), (BOX, 1, 0.8)])
    assert found.class_ids.tolist() == [1] and found.scores.tolist() == [np.float32(0.8)]
    with pytest.raises(ValueError, match="finite"):
        PostprocessSpec((0.3, none))


def test_suppression_is_within_a_class() -> None:
    nearly = (11.0, 10.0, 31.0, 30.0)
    found = detect([(BOX, 0, 0.6), (nearly, 0, 0.9), (BOX, 1, 0.7)])
    assert found.names == ["person", "car"]
    np.testing.assert_array_equal(found.xyxy, [nearly, BOX])


def test_only_the_best_are_kept() -> None:
    rows = [((20.0 * i, 0.0, 20.0 * i + 10, 10.0), 0, 0.5 + i / 10) for i in range(5)]
    np.testing.assert_allclose(detect(rows).scores, [0.9, 0.8, 0.7])


def test_boxes_are_in_frame_pixels_and_inside() -> None:
    found = detect([((10.0, 10.0, 60.0, 30.0), 0, 0.9)], Geometry((200, 100), (100, 50)))
    np.testing.assert_array_equal(found.xyxy, [[20, 20, 100, 60]])


def test_a_box_beyond_the_frame_is_no_detection() -> None:
    assert len(detect([((60.0, 0.0, 80.0, 20.0), 0, 0.9)], Geometry((100, 50), (100, 50)))) == 0


def test_a_box_of_less_than_a_pixel_is_a_detection() -> None:
    assert len(detect([((10.0, 10.0, 10.5, 10.5), 0, 0.9)])) == 1


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_is_the_oracles(seed: int, proposals: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (proposals, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + rng.integers(1, 40, (proposals, 2, 2))], axis=2).astype(np.float32)
    scores = rng.permutation(proposals * 2).reshape(proposals, 2).astype(np.float32) / max(1, proposals * 2)
    valid = rng.random(proposals) < 0.8
    found = postprocess(RawOutputs(boxes, scores, valid), SAME, SPEC, ("person", "car"))
    expected = reference.postprocess(boxes, scores, valid, SPEC.score_thresholds, SPEC.nms_iou, SPEC.max_detections)
    columns = (found.scores.tolist(), found.class_ids.tolist(), map(tuple, found.xyxy.tolist()))
    came = list(zip(*columns, strict=True))
    assert came == expected


def test_spec_survives_json() -> None:
    assert PostprocessSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_outputs_of_a_batch_are_those_of_each_image() -> None:
    rng = np.random.default_rng(0)
    boxes, scores, features = (rng.random((3, 5, *tail)).astype(np.float32) for tail in ((2, 4), (2,), (7,)))
    valid = np.float32([[1, 0, 1, 1, 0]] * 3)  # as graphs give it
    images = split_outputs({"features": features, "valid": valid, "scores": scores, "boxes": boxes, "logits": scores})
    assert len(images) == 3
    for i, one in enumerate(images):
        np.testing.assert_array_equal(one.boxes, boxes[i])
        np.testing.assert_array_equal(one.scores, scores[i])
        np.testing.assert_array_equal(one.features, features[i])
        assert one.valid.dtype == bool and one.valid.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("without", [{}, {"features": None}])
def test_outputs_without_features(without: dict[str, None]) -> None:
    outputs = {"boxes": np.zeros((2, 5, 2, 4)), "scores": np.zeros((2, 5, 2)), "valid": np.ones((2, 5))}
    assert [one.features for one in split_outputs({**outputs, **without})] == [None, None]


def test_outputs_of_different_batches_are_refused() -> None:
    outputs = {"boxes": np.zeros((2, 5, 2, 4)), "scores": np.zeros((1, 5, 2)), "valid": np.ones((2, 5))}
    with pytest.raises(ValueError, match="shorter"):
        split_outputs(outputs)


@pytest.mark.parametrize("score", [0, 0.25, 1])
def test_one_threshold_for_all_classes(score: float) -> None:
    assert SPEC.with_threshold(score) == PostprocessSpec((score, score), nms_iou=0.5, max_detections=3)


def test_no_threshold_keeps_those_of_the_model() -> None:
    assert SPEC.with_threshold(None) is SPEC


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan")])
def test_a_threshold_that_no_score_can_have(score: float) -> None:
    with pytest.raises(UsageError, match=rf"^score_threshold must be in 0\.\.1; got {score}\.$"):
        SPEC.with_threshold(score)


@pytest.mark.parametrize(
    ("name", "limits", "beyond"),
    [
        ("score_thresholds", [0, 1], [[-0.01], [1.01], [float("nan")]]),
        ("nms_iou", 0, [-0.01, 1.01]),
        ("nms_iou", 1, ["0.5"]),
        ("max_detections", 1, [0, 1.5, 2**31]),
    ],
)
def test_what_a_manifest_may_say(name: str, limits: object, beyond: list[object]) -> None:
    read = PostprocessSpec.from_dict({**SPEC.to_dict(), name: limits})
    assert read.to_dict() == {**SPEC.to_dict(), name: limits}
    for value in beyond:
        with pytest.raises(ValueError, match=r"^expected a (finite|whole) number in .*; got "):
            PostprocessSpec.from_dict({**SPEC.to_dict(), name: value})
