"""Lines and zones: who crossed, who is in, by class."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.detections import Detections
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.zones import Line, Zone
from tests.conftest import skip_unless

NAMES = ("bird", "uav")


@pytest.fixture(autouse=True)
def library() -> None:
    skip_unless(find_spec("supervision") is not None, "supervision", "supervision is not installed")


def at(middles: list[tuple[float, float]], class_ids: list[int], track_ids: list[int] | None = None) -> Detections:
    """Boxes 4 pixels wide and high around these points."""
    xy = np.array(middles, float).reshape(-1, 2)
    ids = None if track_ids is None else np.array(track_ids)
    boxes = np.concatenate([xy - 2, xy + 2], axis=1)
    return Detections(boxes, np.full(len(xy), 0.9), np.array(class_ids, int), NAMES, track_ids=ids)


def test_objects_that_cross_are_counted_once_by_class() -> None:
    line = Line((50, 0), (50, 100))  # from the top of the picture to its bottom
    for i in range(12):
        rows = at([(10 + 8 * i, 30), (90 - 8 * i, 60), (20, 90)], [0, 1, 0], [7, 8, 9])
        crossed_in, crossed_out = line.update(rows)
        assert crossed_in.shape == crossed_out.shape == (3,)
    assert line.counts_in == {"bird": 1} and line.counts_out == {"uav": 1}


def test_the_other_way_round_is_the_other_count() -> None:
    line = Line((50, 100), (50, 0))
    for i in range(12):
        line.update(at([(10 + 8 * i, 30)], [0], [7]))
    assert line.counts_in == {} and line.counts_out == {"bird": 1}


def test_untracked_and_missing_objects_cross_nothing() -> None:
    line = Line((50, 0), (50, 100))
    for i in range(12):
        line.update(at([(10 + 8 * i, 30)], [0], [-1]))
        line.update(at([], [], []))
    assert line.counts_in == {} and line.counts_out == {}


def test_beside_the_ends_of_a_line_nothing_is_counted() -> None:
    line = Line((50, 0), (50, 100))
    for i in range(12):
        line.update(at([(10 + 8 * i, 150)], [0], [7]))
    assert line.counts_in == {} and line.counts_out == {}


def test_a_line_needs_track_ids() -> None:
    with pytest.raises(UsageError, match="Tracker"):
        Line((0, 0), (9, 9)).update(at([(1, 1)], [0]))


@settings(max_examples=60)
@given(
    corner=st.tuples(st.integers(0, 60), st.integers(0, 60)), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    points=st.lists(st.tuples(st.integers(2, 110), st.integers(2, 110)), max_size=8),
)
def test_a_rectangle_holds_what_is_between_its_edges(
    corner: tuple[int, int], size: tuple[int, int], points: list[tuple[int, int]]
) -> None:
    (x, y), (w, h) = corner, size
    zone = Zone([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])
    rows = at([(float(a), float(b)) for a, b in points], [i % 2 for i in range(len(points))])
    inside = [x <= a <= x + w and y <= b <= y + h for a, b in points]
    assert zone.inside(rows).tolist() == inside
    names = [NAMES[i % 2] for i in range(len(points)) if inside[i]]
    assert zone.counts(rows) == {name: names.count(name) for name in NAMES if name in names}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Line((5, 5), (5, 5)),
        lambda: Line((5, 5), (float("nan"), 5)),
        lambda: Line((5,), (9, 9)),  # type: ignore[arg-type]
        lambda: Zone([(0, 0), (9, 9)]),
        lambda: Zone([(0, 0), (9,), (4, 4)]),  # type: ignore[list-item]
    ],
)
def test_wrong_points(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="point"):
        make()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UnsupportedError, match=r"\[track\]"):
        Zone([(0, 0), (9, 0), (9, 9)])
