"""Score thresholds: the best F1 against trying every one, the quiet one against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_train.lesson.thresholds import (
    HIGHEST,
    LOWEST,
    MANY,
    USUAL,
    HeldOut,
    best_f1,
    best_scores,
    choose,
    frames_to_show,
    held_out,
    quiet_threshold,
)
from tests.train.test_evaluate import A, B, C, found, record


def rows(scores: list[float], hits: list[bool], objects: int) -> HeldOut:
    order = np.argsort(-np.asarray(scores), kind="stable")
    return HeldOut(np.asarray(scores, float)[order], np.asarray(hits, bool)[order], objects)


def f1(one: HeldOut, threshold: float) -> float:
    passed = one.scores > threshold
    return 2 * one.hit[passed].sum() / (one.objects + passed.sum())


@pytest.mark.parametrize(
    ("scores", "hits", "objects", "expected"),
    [
        ([], [], 0, None),
        ([], [], 3, None),
        ([0.9], [False], 1, None),
        ([0.9], [True], 1, (0.9 + LOWEST) / 2),
        ([0.9, 0.3], [True, False], 1, 0.6),
        ([0.9, 0.8, 0.3], [False, True, False], 1, 0.55),
        ([0.9, 0.2], [True, True], 2, (0.2 + LOWEST) / 2),
        ([1.0, 1.0], [True, True], 2, (1.0 + LOWEST) / 2),
        ([0.9, 0.9], [True, False], 1, (0.9 + LOWEST) / 2),  # no threshold between them
    ],
)
def test_the_best_f1_by_hand(scores: list[float], hits: list[bool], objects: int, expected: float | None) -> None:
    threshold = best_f1(rows(scores, hits, objects))
    assert threshold == (None if expected is None else pytest.approx(expected))


@given(st.data())
def test_no_threshold_has_a_better_f1(data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.integers(6, 94).map(lambda n: n / 100), min_size=1, max_size=20))
    hits = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    one = rows(scores, hits, sum(hits) + data.draw(st.integers(0, 3)))
    threshold = best_f1(one)
    if threshold is None:
        assert not any(hits)
    else:
        assert LOWEST <= threshold <= HIGHEST
        assert f1(one, threshold) == pytest.approx(max(f1(one, t) for t in np.linspace(0, 1, 401)))


@st.composite
def classes(draw: st.DrawFn) -> list[HeldOut]:
    """Detections of one to four classes, each with an object."""
    several = []
    for _ in range(draw(st.integers(1, 4))):
        scores = draw(st.lists(st.integers(6, 94).map(lambda n: n / 100), max_size=12))
        hits = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
        several.append(rows(scores, hits, max(1, sum(hits)) + draw(st.integers(0, 3))))
    return several


@given(classes())
def test_no_threshold_has_a_better_mean_f1_over_classes(several: list[HeldOut]) -> None:
    threshold = best_f1(*several)
    means = [np.mean([f1(one, t) for one in several]) for t in np.linspace(0, 0.95, 381)]
    if threshold is None:
        assert max(means) == 0
    else:
        assert np.mean([f1(one, threshold) for one in several]) == pytest.approx(max(means))


@given(classes())
def test_a_class_s_threshold_is_between_its_own_that_of_all_and_the_usual(several: list[HeldOut]) -> None:
    named = {str(i): one for i, one in enumerate(several)}
    chosen = choose(named, dict.fromkeys(named, ()), 10, (0.3,) * len(named))
    common, objects = best_f1(*several), sum(one.objects for one in several)
    for name, one in named.items():
        best, threshold = best_f1(one), chosen[name].threshold
        if common is None:
            assert threshold == 0.3 and chosen[name].why.startswith("none of")
            continue
        of_all = weighted((common, objects), (USUAL, MANY))
        if best is None:
            assert threshold == pytest.approx(of_all, abs=1e-4) and "as all classes" in chosen[name].why
        else:
            assert threshold == pytest.approx(weighted((best, one.objects), (of_all, MANY)), abs=1e-4)


def weighted(*pairs: tuple[float, float]) -> float:
    values, weights = zip(*pairs, strict=True)
    return float(np.average(values, weights=weights))


def test_ten_objects_cannot_make_a_threshold_extreme() -> None:
    """Their best F1 is a matter of chance: a lesson's was 0.07, another's 0.94."""
    for scores in ([0.99] * 10, [0.06] * 10):
        one = rows(scores, [True] * 10, 10)
        [choice] = choose({"a": one}, {"a": ()}, 10, (0.3,)).values()
        best = best_f1(one)
        assert best is not None and abs(choice.threshold - USUAL) < abs(best - USUAL) / 2
        assert f"at {best:.2f}: 10 parts of it, {MANY} of all classes'" in choice.why


def test_a_class_without_an_object_keeps_its_threshold_unless_it_is_not_quiet() -> None:
    found, nothing = rows([0.9, 0.3], [True, False], 1), rows([0.8], [False], 0)
    classes = {"found": found, "nothing": nothing}
    chosen = choose(classes, {"found": (), "nothing": ()}, 10, (0.3, 0.7))
    of_all = weighted((0.6, 1), (USUAL, MANY))
    assert chosen["found"].threshold == pytest.approx(weighted((0.6, 1), (of_all, MANY)), abs=1e-4)
    assert chosen["nothing"].threshold == 0.7
    assert chosen["nothing"].why == "no object in held-out pictures: 0.7"
    quiet = {"found": [0.0] * 5, "nothing": [0.0, 0.75, 0.0, 0.0, 0.0]}
    assert choose(classes, quiet, 10, (0.3, 0.7))["nothing"].threshold == 0.75


def test_of_many_objects_the_own_threshold_counts_most() -> None:
    few, many = rows([0.9, 0.2], [True, False], 1), rows([0.5] * 400 + [0.1], [True] * 400 + [False], 400)
    chosen = choose({"few": few, "many": many}, {"few": (), "many": ()}, 10, (0.3, 0.3))
    common, own = best_f1(few, many), {"few": best_f1(few), "many": best_f1(many)}
    assert (common, own) == (pytest.approx(0.35), {"few": pytest.approx(0.55), "many": pytest.approx(0.3)})
    of_all = weighted((0.35, 401), (USUAL, MANY))
    assert chosen["few"].threshold == pytest.approx(weighted((0.55, 1), (of_all, MANY)), abs=1e-3)
    assert chosen["many"].threshold == pytest.approx(weighted((0.3, 400), (of_all, MANY)), abs=1e-3)
    assert chosen["many"].threshold < 0.35


@given(st.lists(st.integers(6, 100).map(lambda n: n / 100), max_size=20), st.integers(0, 300), st.floats(0, 100))
def test_the_quiet_threshold_keeps_its_promise_and_is_the_lowest(
    scores: list[float], silent: int, per_1000: float
) -> None:
    best = [*scores, *[0.0] * silent]
    threshold = quiet_threshold(best, per_1000)
    alarms = sum(score > threshold for score in best)
    assert alarms == 0 or (alarms + 1) * 1000 / (len(best) + 1) <= per_1000 + 1e-9
    with_just_below = sum(score >= threshold for score in best)
    assert threshold == LOWEST or (with_just_below + 1) * 1000 / (len(best) + 1) > per_1000 - 1e-9


@pytest.mark.parametrize("frames", [3, 99, 100, 300])
def test_no_more_new_frames_have_a_false_alarm_than_asked_for(frames: int) -> None:
    rng = np.random.default_rng(frames)
    rates = [1 - quiet_threshold(rng.uniform(0.06, 1, frames).tolist(), 10) for _ in range(2000)]
    new = 1000 * np.mean(rates) / 0.94  # of 1000 frames, as many have a best score that passes
    expected = 10 if frames >= frames_to_show(10) else 1000 / (frames + 1)
    assert new <= 1.1 * expected


def test_a_frame_alarms_once_however_many_boxes_it_has() -> None:
    frames = [found([A, B, C], [0.5, 0.7, 0.9], [0, 0, 1]), found([A], [0.8], [1]), found([], [], [])]
    assert best_scores(frames, 0) == pytest.approx([0.7, 0, 0])
    many = [found([A] * 8, [0.9] * 8, [0] * 8)] * 2 + [found([], [], [])] * 197
    assert quiet_threshold(best_scores(many, 0), 15) == LOWEST  # 2 of 199 frames are let through, though of 16 boxes


def test_without_frames_a_threshold_stays_however_low() -> None:
    hit, without = rows([0.9], [True], 1), rows([], [], 0)
    assert choose({"a": hit, "b": without}, {"a": (), "b": ()}, 10, (0.3, 0.02))["b"].threshold == 0.02


def test_how_many_frames_show_a_rate() -> None:
    assert [frames_to_show(rate) for rate in (10, 1000, 0)] == [99, 0, np.inf]


def test_held_out_rows_are_matched_by_class_and_ignore_regions_do_not_count() -> None:
    records = [record([A, B], [0, 1], [C]), record([A], [0])]
    detections = [
        found([A, A, B, C], [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]),
        found([B], [0.5], [0]),
    ]
    one = held_out(records, detections, 0)
    assert one.scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert one.hit.tolist() == [True, False, False]
    assert one.objects == 2
    assert one.recall(0.3) == 0.5
    assert one.precision(0.85) == 1.0
    assert one.precision(0.95) is None  # nothing passes
    assert held_out(records, detections, 1).hit.tolist() == [True]
