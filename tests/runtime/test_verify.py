"""Verification passes what is right in any order, and fails what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime import backends, comparison
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.comparison import TOLERANCES
from glmd_runtime.errors import BundleError, GlmdError, ParityError, UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs
from glmd_runtime.verify import verify_bundle
from glmd_runtime.verify_report import VerifyReport, VerifyRow
from tests import tiny
from tests.conftest import skip_unless

SPEC, SPEC1 = PostprocessSpec((0.05, 0.05)), PostprocessSpec((0.05,))
HW = np.array([[100.0, 100.0]], np.float32)
FP32, FP16, INT8 = (TOLERANCES[name] for name in ("fp32", "fp16", "int8"))


def raw(seed: int = 0, n: int = 30) -> RawOutputs:
    """Objects apart from each other, a few proposals on each, and padding."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 5, (n, 1, 2)) * 18.0 + rng.uniform(0, 6, (n, 2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(9, 12, (n, 2, 2))], axis=2).astype(np.float32)
    scores = rng.uniform(0, 0.5, (n, 2)).astype(np.float32)
    return RawOutputs(boxes, scores, np.arange(n) < n - 4)


def both(expected: RawOutputs, came: RawOutputs, tolerance: comparison.Tolerance = FP32) -> list[str]:
    stages = (
        comparison.compare_raw([expected], [came], tolerance, canvas=100),
        comparison.compare_detections([expected], [came], tolerance, HW, SPEC),
    )
    return [outcome.status for outcome in stages]


def separate(scores: list[float]) -> RawOutputs:
    """One proposal of 20 x 20 pixels for each score of one class, none of which overlap."""
    left = np.arange(len(scores)) * 30.0
    boxes = np.stack([left, 0 * left, left + 20, 0 * left + 20], axis=1).astype(np.float32)
    return RawOutputs(boxes[:, None], np.asarray(scores, np.float32)[:, None], np.ones(len(scores), bool))


def jittered(outputs: RawOutputs, seed: int, pixels: float, score: float) -> RawOutputs:
    """Every edge moved by exactly `pixels`, every score by `score`, each up or down."""
    rng = np.random.default_rng(seed)
    boxes, scores = (
        array + np.float32(size) * rng.choice(np.float32([-1, 1]), array.shape)
        for array, size in ((outputs.boxes, pixels), (outputs.scores, score))
    )
    return RawOutputs(boxes, np.clip(scores, 0, None), outputs.valid)


def int8(expected: RawOutputs, came: RawOutputs) -> comparison.Outcome:
    wide = np.array([[20.0, 30.0 * max(1, len(expected.valid), len(came.valid))]], np.float32)
    return comparison.compare_detections([expected], [came], INT8, wide, PostprocessSpec((0.5,)))


def shuffled(outputs: RawOutputs, seed: int = 1) -> RawOutputs:
    rows = np.random.default_rng(seed).permutation(len(outputs.valid))
    return RawOutputs(outputs.boxes[rows], outputs.scores[rows], outputs.valid[rows])


def moved(pixels: float) -> Callable[[RawOutputs], RawOutputs]:
    return lambda r: replace(r, boxes=r.boxes + np.float32(pixels))


def scored(amount: float) -> Callable[[RawOutputs], RawOutputs]:
    return lambda r: replace(r, scores=r.scores + np.float32(amount))


def test_nothing_against_nothing() -> None:
    nothing = replace(raw(), valid=np.zeros(30, bool))
    assert both(nothing, nothing) == ["passed", "passed"]
    assert both(nothing, raw()) == both(raw(), nothing) == ["failed", "failed"]


seeds = st.integers(0, 2**32 - 1)
verdicts = settings(max_examples=30)


@verdicts
@given(seeds)
def test_order_does_not_matter(seed: int) -> None:
    for tolerance in (FP32, FP16):
        assert both(raw(seed), shuffled(raw(seed), seed), tolerance) == ["passed", "passed"]
    scores = separate([0.9, 0.5, 0.31])
    assert int8(scores, shuffled(scores, seed)).status == "passed"


@verdicts
@given(seeds, st.floats(0, 1))
def test_jitter_within_the_tolerance_passes(seed: int, part: float) -> None:
    for tolerance, pixels in ((FP32, 0.009), (FP16, 0.05)):  # 0.05 on each edge of 9 pixels: an IoU of 0.96 or more
        score = 0.5 * min(tolerance.score_atol, tolerance.score)  # what the cosine allows, too
        came = shuffled(jittered(raw(seed), seed, part * pixels, part * score), seed)
        assert both(raw(seed), came, tolerance) == ["passed", "passed"]


@verdicts
@given(seeds, st.floats(1, 10))
def test_jitter_beyond_the_tolerance_fails(seed: int, times: float) -> None:
    for tolerance in (FP32, FP16):
        boxes = jittered(raw(seed), seed, times * (tolerance.box_atol * 100 + 0.2), 0)
        scores = jittered(raw(seed), seed, 0, times * (max(tolerance.score_atol, tolerance.score) + 1e-3))
        assert both(raw(seed), boxes, tolerance)[0] == both(raw(seed), scores, tolerance)[0] == "failed"


@verdicts
@given(seeds, st.integers(1, 26))
def test_dropped_boxes_fail(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    kept = np.ones(30, bool)
    kept[rng.choice(26, number, replace=False)] = False
    assert both(raw(seed), replace(raw(seed), valid=raw(seed).valid & kept))[0] == "failed"
    scores = rng.uniform(0.1, 1, 30).tolist()  # none so near the floor that it would be forgiven
    wide = np.array([[20.0, 900.0]], np.float32)
    dropped = replace(separate(scores), valid=kept)
    for tolerance in (FP32, FP16):
        assert comparison.compare_detections([separate(scores)], [dropped], tolerance, wide, SPEC1).status == "failed"


@verdicts
@given(seeds, st.integers(1, 60), st.floats(0, 1))
def test_int8_finds_again_19_of_20(seed: int, number: int, part: float) -> None:
    """The verdict is the share alone: neither scores nor order nor boxes within the IoU change it."""
    rng = np.random.default_rng(seed)
    dropped = int(part * number)
    expected = separate(rng.uniform(0.31, 1, number).tolist())
    moved = jittered(replace(expected, scores=rng.uniform(0.06, 1, (number, 1)).astype(np.float32)), seed, 0.45, 0)
    came = shuffled(replace(moved, valid=np.arange(number) >= dropped), seed)
    outcome = int8(expected, came)
    assert outcome.metrics["unmatched"] == pytest.approx(dropped / number)
    assert outcome.status == ("passed" if dropped <= 0.05 * number else "failed")


@pytest.mark.parametrize(
    ("expected", "came", "status"),
    [
        (separate([0.9]), separate([0.06]), "passed"),  # a score may fall
        (separate([0.9]), separate([0.04]), "failed"),  # but not out of sight
        (separate([0.9, 0.29]), separate([0.9]), "passed"),  # not confident
        (separate([0.9]), replace(separate([0.9]), boxes=separate([0.9]).boxes + 3), "failed"),  # IoU 0.57
        (separate([0.9]), separate([0.9] * 5), "passed"),
        (separate([]), separate([0.9]), "not_run"),
        (separate([0.3]), separate([0.3]), "not_run"),
        (separate([0.9]), separate([np.nan]), "failed"),
    ],
)
def test_int8_verdicts(expected: RawOutputs, came: RawOutputs, status: str) -> None:
    assert int8(expected, came).status == status


def test_int8_needs_the_class_and_reports_false_alarms() -> None:
    one = raw()
    first = np.zeros((1, 2), np.float32) + np.float32([0.9, 0.0])
    expected = RawOutputs(one.boxes[:1], first, one.valid[:1])
    assert comparison.compare_detections([expected], [expected], INT8, HW, SPEC).status == "passed"
    other = replace(expected, scores=first[:, ::-1])
    assert comparison.compare_detections([expected], [other], INT8, HW, SPEC).status == "failed"
    outcome = int8(separate([0.9]), separate([0.9] * 4))
    assert (outcome.metrics["extra"], outcome.metrics["unmatched"]) == (0.75, 0)


def test_raw_outputs_of_int8_are_reported_unless_they_are_no_numbers() -> None:
    outcome = comparison.compare_raw([raw()], [scored(0.2)(raw())], INT8, canvas=100)
    assert outcome.status == "passed" and outcome.metrics["score_max"] == pytest.approx(0.2)
    assert comparison.compare_raw([raw()], [scored(np.nan)(raw())], INT8, canvas=100).status == "failed"


def test_numbers_are_reported_in_pixels_and_scores() -> None:
    one = raw()
    came = replace(one, boxes=one.boxes.copy(), scores=one.scores + np.float32(0.01))
    came.boxes[3] += 0.5
    metrics = comparison.compare_raw([one], [came], FP16, canvas=100).metrics
    assert metrics["box_px_max"] == pytest.approx(0.5, abs=1e-4) and metrics["box_px_p99"] <= 0.5
    assert metrics["score_max"] == pytest.approx(0.01, abs=1e-4)
    assert metrics["box_cosine"] > 0.999 and metrics["score_cosine"] > 0.99


def test_score_pairs_are_those_of_the_same_proposals() -> None:
    one = raw()
    pairs = comparison.score_pairs([one, one], [shuffled(scored(0.01)(one)), one], FP16)
    assert pairs.shape == (2 * 26 * 2, 2)
    np.testing.assert_allclose(pairs[:, 1] - pairs[:, 0], np.repeat([0.01, 0.0], 52), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "fp32", "fp16"),
    [
        (moved(0.001), ["passed", "passed"], ["passed", "passed"]),
        (moved(0.1), ["failed", "failed"], ["passed", "passed"]),
        (moved(1.0), ["failed", "failed"], ["failed", "failed"]),
        (scored(2e-5), ["passed", "passed"], ["passed", "passed"]),
        (scored(5e-3), ["failed", "failed"], ["passed", "passed"]),
        (scored(0.1), ["failed", "failed"], ["failed", "failed"]),
        (scored(np.nan), ["failed", "failed"], ["failed", "failed"]),
        (moved(np.nan), ["failed", "failed"], ["failed", "failed"]),
        (lambda r: replace(r, scores=r.scores[:, ::-1]), ["failed", "failed"], ["failed", "failed"]),
        (lambda r: replace(r, valid=r.valid & (np.arange(30) > 5)), ["failed", "failed"], ["failed", "failed"]),
    ],
)
def test_what_each_precision_allows(
    change: Callable[[RawOutputs], RawOutputs], fp32: list[str], fp16: list[str]
) -> None:
    assert both(raw(), change(raw())) == fp32
    assert both(raw(), change(raw()), FP16) == fp16


def rows(*detections: tuple[float, float]) -> RawOutputs:
    """Boxes of 20 x 20 pixels at (left, 0) with a score, one class."""
    boxes = np.array([[[left, 0, left + 20, 20]] for left, _ in detections], np.float32).reshape(-1, 1, 4)
    scores = np.array([[score] for _, score in detections], np.float32).reshape(-1, 1)
    return RawOutputs(boxes, scores, np.ones(len(detections), bool))


@pytest.mark.parametrize(
    ("expected", "came", "status"),
    [
        ([], [], "passed"),
        ([(0, 0.9)], [(0, 0.9)], "passed"),
        ([(0, 0.9)], [], "failed"),
        ([], [(0, 0.9)], "failed"),
        ([(0, 0.9)], [(0, 0.9), (50, 0.4)], "failed"),
        ([(0, 0.9), (50, 0.051)], [(0, 0.9)], "passed"),  # beside the threshold
        ([(0, 0.9), (50, 0.06)], [(0, 0.9)], "failed"),
        ([(0, 0.9000), (4, 0.8999)], [(0, 0.8999), (4, 0.9000)], "passed"),  # the twin wins
        ([(0, 0.90), (4, 0.80)], [(0, 0.80), (4, 0.90)], "failed"),
    ],
)
def test_detections(expected: list[tuple[float, float]], came: list[tuple[float, float]], status: str) -> None:
    spec = PostprocessSpec((0.3,))
    assert comparison.compare_detections([rows(*expected)], [rows(*came)], FP32, HW, spec).status == status


def test_what_is_forgiven_is_counted() -> None:
    def metrics(expected: list[tuple[float, float]], came: list[tuple[float, float]]) -> tuple[float, ...]:
        outcome = comparison.compare_detections([rows(*expected)], [rows(*came)], FP32, HW, SPEC1)
        return tuple(outcome.metrics[name] for name in ("detections", "unmatched", "borderline", "near_ties"))

    assert metrics([(0, 0.9), (50, 0.051)], [(0, 0.9)]) == (2, 0, 1, 0)
    assert metrics([(0, 0.9)], [(0, 0.9), (50, 0.051)]) == (1, 0, 1, 0)
    assert metrics([(0, 0.9), (4, 0.8999)], [(0, 0.8999), (4, 0.9)]) == (1, 0, 0, 2)
    assert metrics([(0, 0.9), (50, 0.5)], [(0, 0.9)]) == (2, 0.5, 0, 0)


@verdicts
@given(seeds)
def test_greedy_pairs_agree_with_the_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.integers(0, 4, rng.integers(0, 7, 2)).astype(float)  # few values: many ties
    cost[rng.random(cost.shape) < 0.3] = np.inf
    left, pairs = cost.copy(), []
    while left.size and np.isfinite(left).any():
        i, j = np.unravel_index(np.argmin(left), left.shape)
        pairs.append((i, j))
        left[i, :] = left[:, j] = np.inf
    assert list(zip(*comparison.greedy_pairs(cost), strict=True)) == pairs


def test_greedy_pairs_take_the_cheapest_first() -> None:
    cost = np.array([[1.0, 0.5], [0.6, np.inf], [np.inf, np.inf]])
    assert [p.tolist() for p in comparison.greedy_pairs(cost)] == [[0, 1], [1, 0]]
    assert [len(p) for p in comparison.greedy_pairs(np.zeros((0, 3)))] == [0, 0]


@pytest.mark.parametrize(("batch", "name"), [(b, n) for b in (1, 3) for n in ("onnxruntime", "openvino")])
def test_a_right_bundle_passes(batch: int, name: str, tmp_path: Path) -> None:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    report = verify_bundle(tiny.bundle(tmp_path / "t.glmd", batch), name)
    assert report.status == "passed"
    assert [(row.backend, row.stage) for row in report.rows] == [
        ("numpy", "preprocess"),
        (name, "raw"),
        (name, "detections"),
    ]
    assert VerifyReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("field", "change", "failing"),
    [
        ("scores", lambda v: v + np.float32(0.01), {"raw", "detections"}),
        ("boxes", lambda v: v + np.float32(1), {"raw", "detections"}),
        ("valid", lambda v: ~v, {"raw", "detections"}),
        ("frames", lambda v: tuple(f[::-1] for f in v), {"preprocess"}),
    ],
)
def test_a_wrong_bundle_fails(
    field: str, change: Callable[[np.ndarray], np.ndarray], failing: set[str], tmp_path: Path
) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    reference = replace(tiny.reference(), **{field: change(getattr(tiny.reference(), field))})
    files = {"model.onnx": tiny.model(), "reference.npz": reference.to_bytes()}
    report = verify_bundle(write_bundle(tmp_path / "t.glmd", tiny.manifest(), files))
    assert report.status == "failed"
    assert {row.stage for row in report.rows if row.status == "failed"} == failing
    assert all("expected" in row.reason for row in report.rows if row.status == "failed")


def test_an_absent_backend_is_not_run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless("onnxruntime" in backends.available(), "onnxruntime", "onnxruntime is not installed")
    monkeypatch.setattr(backends, "available", lambda: ["onnxruntime"])
    report = verify_bundle(open_bundle(tiny_bundle))
    absent = [row for row in report.rows if row.backend == "openvino"]
    assert [(row.stage, row.status) for row in absent] == [("raw", "not_run"), ("detections", "not_run")]
    assert "openvino is not installed. Run: pip install" in absent[0].reason
    assert absent[0].reason.endswith(f"glmd-verify {tiny_bundle.name} --backend openvino")
    assert report.status == "passed"
    assert report.passed("model.onnx", "onnxruntime") and not report.passed("model.onnx", "openvino")
    with pytest.raises(UnsupportedError, match="openvino is not installed"):
        verify_bundle(open_bundle(tiny_bundle), "openvino")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsupportedError("No plugin for this engine. Build it."), "not_run"),
        (BundleError("onnxruntime cannot load it. Export again."), "failed"),
        (ParityError("Its answers differ. Report it."), "failed"),
    ],
)
def test_an_engine_that_does_not_open_is_a_row_with_its_reason(
    error: GlmdError, status: str, tiny_bundle: Path
) -> None:
    skip_unless("onnxruntime" in backends.available(), "onnxruntime", "onnxruntime is not installed")
    asked = []

    def open_engine(bundle: Bundle, engine: str, backend: str) -> backends.Backend:
        asked.append((bundle.path, engine, backend))
        raise error

    report = verify_bundle(open_bundle(tiny_bundle), "onnxruntime", open_engine=open_engine)
    assert asked == [(tiny_bundle, "model.onnx", "onnxruntime")]
    assert [row.status for row in report.rows] == ["passed", status, status]
    assert str(error).rstrip(".") in report.rows[1].reason and report.status == "failed"


def test_the_engine_that_was_opened_is_the_one_that_is_judged(tiny_bundle: Path) -> None:
    skip_unless("onnxruntime" in backends.available(), "onnxruntime", "onnxruntime is not installed")
    reference = tiny.reference()
    answers = {name: getattr(reference, name) for name in ("boxes", "scores", "valid")}
    shifted = {**answers, "scores": answers["scores"] + np.float32(0.1)}
    for says, status in ((answers, "passed"), (shifted, "failed")):
        fake = Scripted(says)
        report = verify_bundle(open_bundle(tiny_bundle), "onnxruntime", open_engine=lambda *_: fake)  # noqa: B023
        assert report.status == status and fake.closed


class Scripted:
    """Answers, image by image."""

    def __init__(self, answers: dict[str, np.ndarray]) -> None:
        self.answers, self.calls, self.closed = answers, 0, False

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        return {name: value[self.calls - 1 : self.calls] for name, value in self.answers.items()}

    def close(self) -> None:
        self.closed = True


def test_a_library_that_is_installed_but_broken_is_not_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_unless("onnxruntime" in backends.available(), "onnxruntime", "onnxruntime is not installed")
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text("raise OSError('libopenvino.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    report = verify_bundle(open_bundle(tiny_bundle))
    broken = [row for row in report.rows if row.backend == "openvino"]
    assert {row.status for row in broken} == {"not_run"}
    assert "openvino is installed but cannot be imported: libopenvino.so" in broken[0].reason
    assert report.status == "passed"


def test_a_precision_without_tolerance_is_not_run(tmp_path: Path) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")
    files = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes()}
    manifest = replace(tiny.manifest(), engines={"model.onnx": "int3"})
    report = verify_bundle(write_bundle(tmp_path / "t.glmd", manifest, files))
    assert {row.status for row in report.rows if row.stage != "preprocess"} == {"not_run"}
    assert report.status == "failed"


def test_no_backend_is_no_verification(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="got 'abacus'"):
        verify_bundle(open_bundle(tiny_bundle), "abacus")
    monkeypatch.setattr(backends, "available", lambda: [])
    with pytest.raises(UnsupportedError, match="pip install"):
        verify_bundle(open_bundle(tiny_bundle))


def test_not_run_is_never_green() -> None:
    row = VerifyRow("model.onnx", "openvino", "fp32", "raw", "not_run")
    assert VerifyReport(()).status == VerifyReport((row,)).status == "failed"
    assert VerifyReport((row, replace(row, status="passed"))).status == "passed"
    preprocess = replace(row, engine="preprocess", stage="preprocess", status="passed")
    assert VerifyReport((preprocess,)).status == VerifyReport((preprocess, row)).status == "failed"
    assert VerifyReport((replace(row, status="failed"), replace(row, status="passed"))).status == "failed"


def test_an_engine_that_fails_while_it_runs_is_a_failed_row(tmp_path: Path) -> None:
    skip_unless("onnxruntime" in backends.available(), "onnxruntime", "onnxruntime is not installed")

    class Broken:
        def run(self, inputs: backends.Tensors) -> backends.Tensors:
            raise RuntimeError("out of memory")

        def close(self) -> None:
            """Nothing to give back."""

    report = verify_bundle(tiny.bundle(tmp_path / "t.glmd"), "onnxruntime", open_engine=lambda *_: Broken())
    assert report.status == "failed"
    assert {r.status for r in report.rows if r.backend == "onnxruntime"} == {"failed"}
    assert all("out of memory" in r.reason for r in report.rows if r.backend == "onnxruntime")


def test_rows_beside_the_engines_prove_nothing() -> None:
    rows = (VerifyRow("preprocess", "numpy", "fp32", "preprocess", "passed"),
            VerifyRow("model.fp16.onnx", "lint", "fp16", "lint", "passed"),
            VerifyRow("model.fp16.onnx", "tensorrt", "fp16", "raw", "not_run", "no GPU"))
    assert VerifyReport(rows).status == "failed"
