"""Box arithmetic against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glmd_runtime import boxes
from tests import reference

EMPTY = np.zeros((0, 4), np.float32)
# Whole numbers, so that float32 and float64 agree and ties are frequent.
coordinates = st.integers(0, 40).map(float)


@st.composite
def some_boxes(draw: st.DrawFn, most: int = 12) -> np.ndarray:
    n = draw(st.integers(0, most))
    corners = draw(arrays(np.float32, (n, 2), elements=coordinates))
    sizes = draw(arrays(np.float32, (n, 2), elements=coordinates))
    return np.concatenate([corners, corners + sizes], axis=1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (EMPTY, EMPTY, np.zeros((0, 0))),
        (EMPTY, np.ones((2, 4), np.float32), np.zeros((0, 2))),
        ([[0, 0, 2, 2]], [[0, 0, 2, 2]], [[1.0]]),
        ([[0, 0, 2, 2]], [[1, 0, 3, 2]], [[1 / 3]]),
        ([[0, 0, 2, 2]], [[2, 0, 4, 2]], [[0.0]]),  # they touch
        ([[1, 1, 1, 1]], [[1, 1, 1, 1]], [[0.0]]),  # both without area
        ([[3, 3, 1, 1]], [[0, 0, 4, 4]], [[0.0]]),  # inverted
    ],
)
def test_iou(a: object, b: object, expected: object) -> None:
    came = boxes.iou(np.asarray(a, np.float32), np.asarray(b, np.float32))
    np.testing.assert_allclose(came, expected, atol=1e-7)


@given(some_boxes(), some_boxes())
def test_iou_is_the_oracles(a: np.ndarray, b: np.ndarray) -> None:
    expected = np.array([[reference.iou(x, y) for y in b] for x in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(boxes.iou(a, b), expected, atol=1e-6)


@given(some_boxes())
def test_xywh_round_trip(xyxy: np.ndarray) -> None:
    np.testing.assert_array_equal(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(xyxy)), xyxy)


@given(some_boxes(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.randoms(use_true_random=False))
def test_nms_is_the_oracles(xyxy: np.ndarray, threshold: float, random: object) -> None:
    scores = np.array([random.randrange(5) / 4 for _ in xyxy], np.float32)  # type: ignore[attr-defined]
    assert boxes.nms(xyxy, scores, threshold).tolist() == reference.nms(xyxy, scores, threshold)


@given(some_boxes(), st.randoms(use_true_random=False))
def test_nms_per_class_is_nms_of_each_class(xyxy: np.ndarray, random: object) -> None:
    classes = np.array([random.randrange(3) for _ in xyxy], np.int64)  # type: ignore[attr-defined]
    scores = np.linspace(1, 0, len(xyxy), dtype=np.float32)
    kept = boxes.nms_per_class(xyxy, scores, classes, 0.5)
    expected = [
        int(rows[i])
        for c in range(3)
        for rows in [np.flatnonzero(classes == c)]
        for i in reference.nms(xyxy[rows], scores[rows], 0.5)
    ]
    assert kept.tolist() == sorted(expected)  # scores fall with the index


def test_nms_of_equal_scores_keeps_the_first() -> None:
    assert boxes.nms(np.array([[0, 0, 4, 4]] * 3, np.float32), np.ones(3, np.float32), 0.5).tolist() == [0]


@pytest.mark.parametrize(
    ("box", "expected"),
    [([-3, -3, 5, 5], [0, 0, 5, 5]), ([2, 2, 99, 99], [2, 2, 20, 10]), ([30, 0, 40, 5], [20, 0, 20, 5])],
)
def test_clip(box: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(boxes.clip(np.array([box], np.float32), (10, 20)), [expected])


@pytest.mark.parametrize("convert", [boxes.xywh_to_xyxy, boxes.xyxy_to_xywh])
@pytest.mark.parametrize(("values", "count"), [([], 0), ([1, 2, 3, 4], 1), ([[1, 2, 3, 4]] * 3, 3)])
def test_lists_become_rows_of_float32(convert: Callable[..., np.ndarray], values: list[object], count: int) -> None:
    came = convert(values)
    assert (came.shape, came.dtype) == ((count, 4), np.float32)


@pytest.mark.parametrize(
    ("box", "expected"),
    [([0, 0, 0.5, 0.5], 0.25), ([1, 2, 4, 7], 15), ([4, 2, 1, 7], 0), ([1, 7, 4, 2], 0), ([4, 7, 1, 2], 0)],
)
def test_area(box: list[float], expected: float) -> None:
    assert boxes.area(np.array(box, np.float32)) == expected
    assert boxes.area(np.array([[box]], np.float32)).tolist() == [[expected]]


def test_small_boxes_have_an_iou_and_empty_ones_divide_by_nothing() -> None:
    a = np.array([[0, 0, 0.5, 0.5], [3, 3, 3, 3]])
    with np.errstate(all="raise"):
        came = boxes.iou(a, a)
    assert came.tolist() == [[1, 0], [0, 0]] and came.dtype == np.float32


def test_clipped_boxes_stay_float32() -> None:
    assert boxes.clip(np.array([[-1, 0, 5, 5]], np.float32), (3, 4)).dtype == np.float32


def test_equal_scores_keep_their_order_however_many_there_are() -> None:
    """Sorts that are not stable still keep a few equal ones in order."""
    corner = np.arange(400, dtype=np.float32)[:, None]
    apart = np.concatenate([corner, corner, corner + 0.5, corner + 0.5], axis=1)
    scores, classes = np.tile(np.float32([0.25, 0.5]), 200), np.arange(400) % 3
    expected = [*range(1, 400, 2), *range(0, 400, 2)]
    assert boxes.nms(apart, scores, 0.5).tolist() == expected
    assert boxes.nms_per_class(apart, scores, classes, 0.5).tolist() == expected
    assert boxes.nms_across(apart, scores, classes, classes, 0.5).tolist() == expected


@given(some_boxes(), st.randoms(use_true_random=False))
def test_nms_across_images_of_one_box_each_is_nms_per_class(xyxy: np.ndarray, random: object) -> None:
    classes = np.array([random.randrange(3) for _ in xyxy], np.int64)  # type: ignore[attr-defined]
    scores = np.array([random.randrange(5) / 4 for _ in xyxy], np.float32)  # type: ignore[attr-defined]
    kept = boxes.nms_across(xyxy, scores, classes, np.arange(len(xyxy)), 0.5)
    assert kept.tolist() == boxes.nms_per_class(xyxy, scores, classes, 0.5).tolist()


def test_boxes_of_one_image_spare_each_other() -> None:
    xyxy = np.array([[0, 0, 4, 4]] * 4 + [[0, 0, 4, 3]], np.float32)
    scores, images = np.float32([0.5, 0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 0, 1, 1])
    one, other = np.zeros(5, int), np.array([0, 0, 0, 0, 1])
    assert boxes.nms_across(xyxy, scores, one, images, 0.5).tolist() == [1, 2]
    assert boxes.nms_across(xyxy, scores, other, images, 0.5).tolist() == [1, 2, 4]
    assert boxes.nms_across(xyxy, scores, one, images, 0.75).tolist() == [1, 2, 4]  # an IoU equal to it is not larger
