"""What benchmarks count, compare and judge; nothing is timed here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import lessons
from benchmarks.accuracy import by_threshold, true_and_false
from benchmarks.aims import AIMS, NAMES, rate
from benchmarks.clips import BADLY, NOT_BOXED, by_clip, lines, outcome
from benchmarks.common import between_marks
from benchmarks.fewshot_runs import MAIN, METHODS, SHOTS, Key, keys
from benchmarks.operations import operations
from benchmarks.peaks import CACHED, Peaks
from benchmarks.published import difference
from benchmarks.regression import ratios, rows_of, worse
from benchmarks.roofline import Executed, fused, stage_row
from benchmarks.tables import TABLES
from benchmarks.thresholds import f1_of_ways, first_half, scene_of
from benchmarks.tiles import scores as tile_scores
from benchmarks.timing import in_turns, percentiles, ratio
from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record
from glmd_train.lesson.thresholds import MANY, USUAL

NOTHING: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> openvino.Model:
    """A 3x3 convolution (trunk), a depth-wise one (neck), a product with a bias (objectness) of 4x4 pixels."""
    shapes = {"dense": (2, 1, 3, 3), "depthwise": (2, 1, 3, 3), "product": (4, 5), "bias": (5,)}
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["images", "dense"], ["trunk"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["trunk", "depthwise"], ["neck"], name="second", pads=[1, 1, 1, 1], group=2),
        helper.make_node("MatMul", ["neck", "product"], ["sum"], name="third"),
        helper.make_node("Add", ["sum", "bias"], ["objectness"], name="fourth"),
    ]
    images, objectness = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", (1, 1, 4, 4)), ("objectness", (1, 2, 4, 5)))
    )
    graph = helper.make_graph(nodes, "tiny", [images], [objectness], tensors)
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return openvino.Core().read_model(path)


@pytest.mark.parametrize(("stage", "macs", "elements", "dense"), [
    ("trunk", 2 * 16 * 9, 16 + 18 + 32, True),
    ("neck", 2 * 16 * 9, 32 + 18 + 32, False),
    ("rpn", 2 * 4 * 5 * 4, 32 + 20 + 40, True),
])
def test_operations_are_counted_as_by_hand(
    network: openvino.Model, stage: str, macs: int, elements: int, dense: bool
) -> None:
    found = [one for one in operations(network).values() if one.stage == stage and one.macs]
    assert [(one.macs, one.elements, one.dense) for one in found] == [(macs, elements, dense)]


def test_every_product_is_some_kernels(network: openvino.Model) -> None:
    kernels = fused(network, openvino.Core().compile_model(network, "CPU", {"INFERENCE_NUM_THREADS": "1"}))
    assert {name for name, one in operations(network).items() if one.macs} <= set(kernels)


def test_the_roofline_is_the_slower_of_computing_and_moving() -> None:
    peaks = Peaks({"fp32": 100.0}, cached=10.0, large=1.0)
    assert peaks.milliseconds(50_000_000, 1000, "fp32") == pytest.approx(1.0)
    assert peaks.milliseconds(0, 1_000_000, "fp32") == pytest.approx(0.1)
    assert peaks.milliseconds(0, CACHED + 10, "fp32") == pytest.approx((CACHED + 10) / 1e6)


def test_a_stage_is_the_sum_of_its_kernels(network: openvino.Model) -> None:
    parts = tuple(operations(network).values())
    row = stage_row([Executed(parts, "int8", 2.0)], Peaks({"int8": 1.0}, cached=1e3, large=1e3))
    macs = 288 + 288 + 160
    assert (row["ms"], row["int8_share"], row["gmac"]) == (2.0, 1.0, round(macs / 1e9, 3))
    assert row["roofline_share"] == pytest.approx(2 * macs / 1e6 / 2.0, abs=1e-3)


def test_an_empty_stage_has_no_rate() -> None:
    row = stage_row([], Peaks({}, 1.0, 1.0))
    assert (row["ms"], row["gflops"], row["roofline_share"], row["int8_share"]) == (0, None, None, None)


def test_ratios_are_taken_call_by_call() -> None:
    # Both sides are twice as slow in the second half: side by side that is no spread.
    assert ratio([30.0] * 5 + [60.0] * 5, [10.0] * 5 + [20.0] * 5) == {"median": 3.0, "p10": 3.0, "p90": 3.0}
    assert ratio(list(range(10, 111, 10)), [10.0] * 11) == {"median": 6.0, "p10": 2.0, "p90": 10.0}


def test_percentiles() -> None:
    assert percentiles(list(range(101))) == {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "fastest_ms": 0.0}


def test_subjects_take_turns_and_the_first_calls_do_not_count() -> None:
    calls: list[str] = []
    subjects = {name: (lambda name=name: calls.append(name) or {"ms": float(len(calls))}) for name in "ab"}
    samples = in_turns(subjects, rounds=2)
    assert "".join(calls) == "aaabbb" * 3
    assert [one["ms"] for one in samples["b"]] == [11, 12, 17, 18]


@pytest.mark.parametrize(("old", "new", "slower"), [
    ((6.0, 5.5, 6.5), (6.0, 5.5, 6.5), False),
    ((6.0, 5.5, 6.5), (5.6, 5.0, 6.1), False),  # within the spread
    ((6.0, 5.5, 6.5), (5.0, 4.8, 6.1), False),  # the new run is too uncertain to say
    ((6.0, 5.5, 6.5), (5.0, 4.8, 5.2), True),
    ((6.0, 5.5, 6.5), (8.0, 7.5, 8.5), False),
])
def test_worse_is_what_neither_run_explains(
    old: tuple[float, float, float], new: tuple[float, float, float], slower: bool
) -> None:
    before, after = ({"engine run": dict(zip(("median", "p10", "p90"), gain, strict=True))} for gain in (old, new))
    assert bool(list(worse(before, after))) is slower


def test_what_was_not_measured_before_is_not_worse() -> None:
    assert not list(worse({}, {"engine run": {"median": 1.0, "p10": 1.0, "p90": 1.0}}))


def test_ratios_of_rows_with_and_without_parts() -> None:
    gain = {"median": 2.0, "p10": 1.9, "p90": 2.1}
    parts = {"run": gain, "network": gain}
    rows = [{"subject": "a", "faster": parts}, {"subject": "b", "faster": gain}, {"subject": "c"}]
    assert ratios(rows) == {"a run": gain, "a network": gain, "b": gain}
    assert rows_of('{"rows": {"older": 1}}') == []


def test_without_results_no_aim_is_met_or_missed() -> None:
    assert {aim.reached(NOTHING).met for aim in AIMS} == {None}
    assert all(table(NOTHING) for table in TABLES.values())


@pytest.mark.parametrize(("ms", "ap50", "met"), [(20.0, 62.5, True), (40.0, 62.5, False), (20.0, 61.5, False)])
def test_a_rate_counts_with_its_accuracy(ms: float, ap50: float, met: bool) -> None:
    common = {"engine": "e", "status": "run", "subject": "s"}
    rows = [
        {**common, "precision": "fp32", "run": {"p50_ms": 60.0}, "accuracy": {"ap50": 63.0}},
        {**common, "precision": "int8", "run": {"p50_ms": ms}, "accuracy": {"ap50": ap50}},
    ]
    assert rate({**NOTHING, "latency": rows}, 30).met is met


def test_detections_are_compared_in_pairs() -> None:
    def found(*rows: tuple[float, float]) -> Detections:
        """Boxes of 10 pixels by their left edge, with a score."""
        xyxy = np.array([[x, 0, x + 10, 10] for x, _ in rows], np.float32).reshape(-1, 4)
        scores = np.array([score for _, score in rows], np.float32)
        return Detections(xyxy, scores, np.zeros(len(rows), np.int64), ("person",))

    nothing = difference(found(), found())
    assert (nothing["unmatched"], nothing["score_difference"], nothing["box_difference_px"]) == (0, 0.0, 0.0)
    some = difference(found((0, 0.9), (50, 0.5)), found((1, 0.8), (80, 0.5)))
    assert (some["unmatched"], some["box_difference_px"]) == (2, 1.0)
    assert some["score_difference"] == pytest.approx(0.1)


def flyers(*rows: tuple[float, float, int]) -> Detections:
    """Boxes of 10 pixels by their left edge, with score and class."""
    xyxy = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(xyxy, scores, np.array([number for _, _, number in rows], np.int64), ("uav", "bird"))


def labels(name: str, *lefts: float, ignore: tuple[float, ...] = ()) -> Record:
    """A picture of uavs, boxes of 10 pixels by their left edge."""
    boxes, regions = (flyers(*((x, 1, 0) for x in some)).xyxy for some in (lefts, ignore))
    return Record(1, Path(name), (10, 100), boxes, np.zeros(len(lefts), np.int64), regions, ())


@pytest.mark.parametrize(("boxes", "became"), [
    ([], NOT_BOXED),
    ([(0, 0.9, 0)], "uav"),
    ([(0, 0.4, 0), (1, 0.6, 1)], "bird"),
    ([(1, 0.4, 0), (7, 0.6, 1)], "uav"),
    ([(7, 0.9, 0)], BADLY),
    ([(10, 0.9, 0)], NOT_BOXED),
])
def test_the_best_scored_box_on_an_object_says_what_it_was_found_as(
    boxes: list[tuple[float, float, int]], became: str
) -> None:
    assert outcome(np.array([0, 0, 10, 10], np.float32), flyers(*boxes)) == became


def test_outcomes_are_counted_by_clip() -> None:
    good, bad = flyers((0, 0.9, 0)), flyers((0, 0.9, 1))
    clips = by_clip([(labels("a_1.png", 0), good), (labels("a_2.png", 0), bad), (labels("b_1.png", 0), good)])
    assert clips["a"] == {"class": "uav", "side": 10.0, "became": {"uav": 1, "bird": 1}}
    rows = lines(clips)
    assert rows[2:] == [
        "| a | 10.0 | 1 of 2 | 1 as bird |  |  |", "| b | 10.0 | 1 of 1 |  |  |  |", "| all |  | 2 of 3 |  |  |  |",
    ]


@pytest.mark.parametrize(("boxes", "counts"), [
    ([(0, 0.9, 0), (1, 0.8, 0)], (1, 1)),  # the second on the same object is wrong
    ([(0, 0.9, 1)], (0, 1)),  # of another class
    ([(0, 0.6, 0)], (0, 0)),  # under the threshold
    ([(0, 0.7, 0)], (1, 0)),
    ([(50, 0.9, 0)], (0, 0)),  # in an ignore region
    ([(80, 0.9, 0)], (0, 1)),
])
def test_boxes_over_a_threshold_are_right_or_wrong(
    boxes: list[tuple[float, float, int]], counts: tuple[int, int]
) -> None:
    assert true_and_false([labels("a", 0, ignore=(50,))], [flyers(*boxes)], (0.65, 0.65)) == counts


def test_what_a_threshold_lets_through_is_a_share_of_objects_and_of_boxes() -> None:
    rows = by_threshold([labels("a", 0, 20), labels("b")], [flyers((0, 0.8, 0), (40, 0.6, 0)), flyers()], (0.85, 0.5))
    assert rows["own"] == {"recall": 0.0, "precision": 0.0, "wrong_a_frame": 0.0}
    assert rows["0.5"] == {"recall": 0.5, "precision": 0.5, "wrong_a_frame": 0.5}
    assert rows["0.7"] == {"recall": 0.5, "precision": 1.0, "wrong_a_frame": 0.0}
    assert rows["0.9"] == {"recall": 0.0, "precision": 0.0, "wrong_a_frame": 0.0}


def test_the_grid_is_made_draw_by_draw() -> None:
    """At every K, by all methods, so that a stop leaves each column with as many draws."""
    first = list(keys([MAIN], [], [], []))[: len(SHOTS) * len(METHODS[MAIN])]
    assert set(first) == {Key(MAIN, method.name, k, 0) for method in METHODS[MAIN] for k in SHOTS}


def test_a_document_without_its_marks_is_refused() -> None:
    assert between_marks("<!-- a -->\nold\n<!-- /a -->", "a", "new") == "<!-- a -->\nnew\n<!-- /a -->"
    with pytest.raises(ValueError, match="lacks the marks"):
        between_marks("", "a", "new")


def test_frames_of_a_clip_are_in_one_half() -> None:
    names = [f"air/images/IR_BIRD_{clip:03}_{frame:04}.png" for clip in range(6) for frame in range(5)]
    names += [f"dogs_people/images/IMG_{n}.jpg" for n in range(4)]
    records = [replace(labels("a"), path=Path("data", name)) for name in names]
    half = first_half(records, np.random.default_rng(0))
    assert half.sum() in range(1, len(names)) and all(len({*half[i : i + 5]}) == 1 for i in range(0, 30, 5))
    assert scene_of(Path("data/cheetah/images/PIR-206_19_mov-3_jpg.rf.aa.jpg")) == "PIR-206_19"
    assert scene_of(Path("data/hit_uav/images/0_60_30_0_01234.jpg")) == "0_60_30_0"


def test_thresholds_are_tried_on_the_other_half() -> None:
    records = [replace(labels("a", 0), path=Path("data/air/images", f"IR_BIRD_{clip}_0.png")) for clip in range(4)]
    found = [flyers((0, 0.8, 0), (40, 0.4, 0)) for _ in records]
    rows = f1_of_ways({"air": records}, {"air": found}, ("uav", "bird"), np.random.default_rng(0))
    assert {way: row for way, row in rows.items() if row != {"uav": 1.0}} == {"0.3 for all": {"uav": 2 / 3}}


def test_lessons_are_scored_at_the_thresholds_that_each_way_chooses() -> None:
    """Ten objects found at 0.94 and nothing else: where each way has its threshold, F1 is the threshold in percent."""
    held = {name: {"scores": [0.94] * 10, "hit": [1] * 10, "objects": 10} for name in lessons.CLASSES}
    curves = {name: [100 * threshold for threshold in lessons.GRID] for name in lessons.CLASSES}
    half = {name: [value / 2 for value in curve] for name, curve in curves.items()}
    f1 = {"off": {"train": curves, "val": curves}, "on": {"train": half, "val": half}}
    body = lessons.lines([{"held_out": held, "f1": f1}])[2:]
    means = [float(line.rsplit("|", 2)[1]) for line in body]
    own = (0.94 + lessons.LOWEST) / 2  # midway to the first that does not pass
    of_all = np.average([own, USUAL], weights=[60, MANY])
    one = np.average([own, np.average([own, USUAL], weights=[10, MANY])], weights=[10, MANY])
    expected = [0.3, USUAL, own, one, np.average([own, of_all], weights=[10, MANY]), USUAL / 2]
    assert means == pytest.approx([100 * value for value in [*expected, *expected]], abs=0.6)


def test_lessons_score_what_their_thresholds_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detection that has 0.905 without calibration, and 0.405 with it."""
    scored = {False: 0.905, True: 0.405}
    monkeypatch.setattr(lessons, "CLASSES", ("uav",))
    monkeypatch.setattr(lessons, "torch_predict", lambda _, lowest, pcb: scored[pcb])
    monkeypatch.setattr(lessons, "detect", lambda score, records: [flyers((0, score, 0)) for _ in records])
    for pcb, score in scored.items():
        curve = lessons.f1_of_parts(mock.Mock(), {"val": [labels("a", 0, 20)]}, pcb)["val"]["uav"]
        assert [f1 > 0 for f1 in curve] == [threshold < score for threshold in lessons.GRID]


def test_tiles_count_what_is_right_and_wrong() -> None:
    row = tile_scores([labels("a", 0, 20)], {"none": [flyers((0, 0.8, 0), (40, 0.4, 0), (60, 0.2, 0))]})
    assert row["objects"] == 2 and row["none"]["true_and_false_at_0.3"] == (1, 1)
