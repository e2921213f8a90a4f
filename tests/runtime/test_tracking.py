"""Track ids and the vote of a track: rows stay what they are, numbers stay with their objects."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime import backends
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.tracking import KINDS, ClassVote, Tracker
from glmd_runtime.video.frame import Frame
from tests import reference
from tests.conftest import skip_unless

NAMES = ("bird", "uav")
FPS = 30.0
KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def library() -> None:
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")


def frame(index: int, time: float | None = None) -> Frame:
    return Frame(np.zeros((4, 4), np.uint8), index, index / FPS if time is None else time)


def found(rows: Sequence[tuple[float, float, int, float]]) -> Detections:
    """(x, y, class_id, score) of boxes 20 pixels wide and high."""
    columns = np.array(rows, float).reshape(-1, 4)
    xy = columns[:, :2]
    return Detections(np.concatenate([xy, xy + 20], axis=1), columns[:, 3], columns[:, 2].astype(int), NAMES)


def numbers(tracker: Tracker, frames: Sequence[int], speed: float = 3.0) -> list[int]:
    """Track ids of one object that moves evenly, seen in these frames."""
    seen = [tracker.update(found([(speed * i, 50, 0, 0.8)]), frame(i)) for i in frames]
    return [int(one.track_ids[0]) for one in seen if one.track_ids is not None]


@KIND
def test_an_object_keeps_its_number(kind: str) -> None:
    ids = numbers(Tracker(kind, FPS), range(20))
    assert ids[0] in (-1, 0) and set(ids[3:]) == {0}


@KIND
@pytest.mark.parametrize("first", [0, 1])
def test_two_objects_in_whatever_order_their_rows_come(kind: str, first: int) -> None:
    tracker, ids = Tracker(kind, FPS), []
    for i in range(12):
        rows = [(3.0 * i, 50, 0, 0.8), (200 - 3.0 * i, 150, 1, 0.6)]
        order = [first, 1 - first] if i % 2 else [1 - first, first]
        one = tracker.update(found([rows[k] for k in order]), frame(i))
        assert one.track_ids is not None
        ids.append([int(one.track_ids[order.index(k)]) for k in (0, 1)])
    assert len({tuple(pair) for pair in ids[4:]}) == 1 and set(ids[-1]) == {0, 1}


ROWS = st.lists(
    st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(0, 1), st.floats(0, 1, width=32)), max_size=6
)


@KIND
@settings(max_examples=25)
@given(clip=st.lists(ROWS, max_size=8), vote=st.booleans())
def test_no_detection_is_lost_moved_or_changed(
    kind: str, clip: list[list[tuple[float, float, int, float]]], vote: bool
) -> None:
    tracker = Tracker(kind, FPS, vote)
    for i, rows in enumerate(clip):
        given_ones = found(rows)
        came = tracker.update(given_ones, frame(i))
        np.testing.assert_array_equal(came.xyxy, given_ones.xyxy)
        np.testing.assert_array_equal(came.scores, given_ones.scores)
        assert came.track_ids is not None and came.track_ids.shape == (len(rows),)
        followed = came.track_ids[came.track_ids >= 0].tolist()
        assert len(set(followed)) == len(followed)
        untouched = came.track_ids < 0 if vote else slice(None)
        np.testing.assert_array_equal(came.class_ids[untouched], given_ones.class_ids[untouched])


@KIND
@pytest.mark.parametrize(("missing", "same"), [(10, True), (60, False)])
def test_dropped_frames_are_a_gap_in_time(kind: str, missing: int, same: bool) -> None:
    """Nothing is given for the dropped frames; the object is where its speed has taken it."""
    tracker = Tracker(kind, FPS)
    before = numbers(tracker, range(20))
    after = numbers(tracker, range(20 + missing, 30 + missing))
    assert (after[-1] == before[-1]) is same


@KIND
def test_a_clip_that_is_played_again_gets_new_numbers(kind: str) -> None:
    tracker = Tracker(kind, FPS)
    first, again = numbers(tracker, range(10)), numbers(tracker, range(10))
    assert (first[-1], again[-1]) == (0, 1)
    tracker.reset()
    assert numbers(tracker, range(10))[-1] == 0


@KIND
def test_frames_of_one_time_and_empty_frames(kind: str) -> None:
    tracker = Tracker(kind, FPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for time in (0.0, 0.0, 1 / FPS, 1 / FPS, 2 / FPS):
            came = tracker.update(found([(10, 10, 0, 0.9)]), frame(0, time))
        empty = tracker.update(found([]), frame(1, 3 / FPS))
    assert came.track_ids is not None and came.track_ids.tolist() == [0]
    assert len(empty) == 0 and empty.track_ids is not None


@pytest.mark.parametrize(("score", "ids"), [(0.35, [0]), (0.25, [-1])])
@KIND
def test_what_is_above_the_usual_threshold_begins_a_track(kind: str, score: float, ids: list[int]) -> None:
    tracker = Tracker(kind, FPS)
    for i in range(10):
        came = tracker.update(found([(3.0 * i, 50, 0, score)]), frame(i))
    assert came.track_ids is not None and came.track_ids.tolist() == ids


@KIND
def test_the_second_name_of_an_object_begins_no_track(kind: str) -> None:
    tracker = Tracker(kind, FPS)
    for i in range(10):
        came = tracker.update(found([(3.0 * i + 1, 50, 1, 0.4), (3.0 * i, 50, 0, 0.8)]), frame(i))
    assert came.track_ids is not None and came.track_ids.tolist() == [-1, 0]
    assert came.class_ids.tolist() == [1, 0]


def test_a_class_that_flickers_settles() -> None:
    tracker, quiet = Tracker(fps=FPS), Tracker(fps=FPS, vote=False)
    classes: dict[bool, list[int]] = {True: [], False: []}
    for i in range(40):
        rows = found([(2.0 * i, 10, int(i % 4 == 3), 0.5)])
        classes[True].append(int(tracker.update(rows, frame(i)).class_ids[0]))
        classes[False].append(int(quiet.update(rows, frame(i)).class_ids[0]))
    assert set(classes[True][2:]) == {0} and set(classes[False]) == {0, 1}


def test_a_track_changes_its_mind_when_it_was_wrong_for_long() -> None:
    vote = ClassVote()
    one = Detections(np.array([[0, 0, 9, 9]]), np.array([0.9]), np.array([0]), NAMES, track_ids=np.array([4]))
    other = Detections(one.xyxy, one.scores, np.array([1]), NAMES, track_ids=np.array([4]))
    for i in range(300):  # 10 s
        vote.update(one, i / FPS)
    later = [int(vote.update(other, (300 + i) / FPS).class_ids[0]) for i in range(150)]
    assert later[0] == 0 and later[-1] == 1


@KIND
def test_a_held_frame_is_no_evidence(kind: str) -> None:
    """A tracker that is given held frames says in all others what one says that is not."""
    told, other, seen = Tracker(kind, FPS), Tracker(kind, FPS), found([])
    for i in range(40):
        rows = found([(2.0 * i, 10, int(i >= 20), 0.9), (2.0 * i, 100, 0, 0.9)][: 2 if i < 30 else 1])
        if 20 <= i < 28:  # the shutter; what is held are the detections of frame 19
            held = told.update(found([(38.0, 10, 1, 0.9), (38.0, 100, 0, 0.9)]), replace(frame(i), held="uniform"))
            assert held.track_ids is not None and seen.track_ids is not None
            assert held.track_ids.tolist() == seen.track_ids.tolist() == [0, 1] and held.names == seen.names
        else:
            seen, expected = told.update(rows, frame(i)), other.update(rows, frame(i))
            assert seen.to_dict() == expected.to_dict()


@KIND
def test_what_is_held_before_anything_was_seen_is_not_followed(kind: str) -> None:
    tracker = Tracker(kind, FPS)
    for i in range(10):
        came = tracker.update(found([(10, 10, 0, 0.9)]), replace(frame(i), held="frozen"))
        assert came.track_ids is not None and came.track_ids.tolist() == [-1]


def test_classes_may_come_and_go_while_a_track_goes_on() -> None:
    tracker, classes = Tracker(fps=FPS), []
    for i in range(120):
        known, name = (NAMES, 1) if i < 10 or i >= 90 else ((*NAMES, "owl"), 2)
        one = replace(found([(2.0 * i, 10, 0, 0.8)]), class_names=known, class_ids=np.array([name]))
        came = tracker.update(one, frame(i))
        assert came.class_names == known
        classes.append(came.names[0])
    assert classes[10] == "uav" and classes[89] == "owl" and set(classes[90:]) == {"uav"}


@settings(max_examples=50)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 100), st.integers(0, 90)), max_size=25)
)
def test_votes_are_the_oracles(rows: list[tuple[int, int, int, int]]) -> None:
    """Rows of (track, class, score in percent, frames since the last one)."""
    vote, history, time = ClassVote(), [], 0.0
    for track, class_id, percent, step in rows:
        time += step / FPS
        history.append((time, track, class_id, percent / 100))
        one = Detections(
            np.zeros((1, 4)), np.array([percent / 100]), np.array([class_id]), NAMES, track_ids=np.array([track])
        )
        votes = reference.votes(history, track, time, 2.0, len(NAMES))
        if abs(votes[0] - votes[1]) > 1e-6:
            assert int(vote.update(one, time).class_ids[0]) == int(np.argmax(votes))
        else:
            vote.update(one, time)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"kind": "sort"}, "bytetrack, ocsort"), ({"fps": 0}, "greater than 0"), ({"fps": float("nan")}, "greater")],
)
def test_wrong_values(values: dict[str, float | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tracker(**values)  # type: ignore[arg-type]


def test_the_documents_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    document = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text()
    snippet = re.findall(r"```python\n(.*?)```", document, re.S)[0]
    exec(snippet.replace('"models/', f'"{Path(__file__).parents[2]}/models/'), {})
    assert "'person'" in capsys.readouterr().out  # it follows what the simulator shows


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UnsupportedError, match=r"\[track\]"):
        Tracker()
