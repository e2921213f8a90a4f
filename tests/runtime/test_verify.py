"""Verification passes what is right in any order, and fails what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime import backends, verify
from glmd_runtime.bundle import open_bundle, write_bundle
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs
from glmd_runtime.verify import TOLERANCES, VerifyReport, VerifyRow, verify_bundle
from tests import tiny
from tests.conftest import skip_unless

SPEC = PostprocessSpec((0.05, 0.05))
HW = np.array([[100.0, 100.0]], np.float32)
FP32, FP16 = TOLERANCES["fp32"], TOLERANCES["fp16"]


def raw(seed: int = 0, n: int = 30) -> RawOutputs:
    """Objects apart from each other, a few proposals on each, and padding."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 5, (n, 1, 2)) * 18.0 + rng.uniform(0, 6, (n, 2, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(9, 12, (n, 2, 2))], axis=2).astype(np.float32)
    scores = rng.uniform(0, 0.5, (n, 2)).astype(np.float32)
    return RawOutputs(boxes, scores, np.arange(n) < n - 4)


def both(expected: RawOutputs, came: RawOutputs, tolerance: verify.Tolerance = FP32) -> list[str]:
    stages = (
        verify.compare_raw([expected], [came], tolerance, canvas=100),
        verify.compare_detections([expected], [came], tolerance, HW, SPEC),
    )
    return [outcome.status for outcome in stages]


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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_does_not_matter(seed: int) -> None:
    assert both(raw(seed), shuffled(raw(seed), seed)) == ["passed", "passed"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_noise_far_below_the_tolerance_passes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noisy = RawOutputs(
        raw(seed).boxes + rng.normal(0, 1e-4, (30, 2, 4)).astype(np.float32),
        raw(seed).scores + rng.normal(0, 1e-6, (30, 2)).astype(np.float32),
        raw(seed).valid,
    )
    assert both(raw(seed), shuffled(noisy, seed)) == ["passed", "passed"]


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
    assert verify.compare_detections([rows(*expected)], [rows(*came)], FP32, HW, spec).status == status


def test_greedy_pairs_take_the_cheapest_first() -> None:
    cost = np.array([[1.0, 0.5], [0.6, np.inf], [np.inf, np.inf]])
    assert [p.tolist() for p in verify.greedy_pairs(cost)] == [[0, 1], [1, 0]]
    assert [len(p) for p in verify.greedy_pairs(np.zeros((0, 3)))] == [0, 0]


@pytest.mark.parametrize(("batch", "name"), [(b, n) for b in (1, 3) for n in backends.BACKENDS])
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
    assert {row.status for row in absent} == {"not_run"} and {row.reason for row in absent} == {
        "openvino is not installed"
    }
    assert report.status == "passed"
    assert report.passed("model.onnx", "onnxruntime") and not report.passed("model.onnx", "openvino")
    with pytest.raises(UnsupportedError, match="openvino is not installed"):
        verify_bundle(open_bundle(tiny_bundle), "openvino")


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
