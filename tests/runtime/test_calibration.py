"""PCB's arithmetic, what becomes of detections, and a Detector over a bundle whose classifier is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from glmd_runtime import Detections, Detector, backends
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.calibration import Calibration, CalibrationSpec, calibrate, prototypes_to_bytes, read_prototypes
from glmd_runtime.calibrator import Calibrator
from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.manifest import Manifest
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.verify_calibration import PcbReference, candidates, everything, verify_calibration
from tests import tiny
from tests.conftest import golden, skip_unless
from tests.reference import calibrate_one

NAMES = ("person", "car", "bison")
PROTOTYPES = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 0]], np.float32)  # bison has no support


def found(scores: list[float], class_ids: list[int]) -> Detections:
    boxes = np.array([[10.0 * i, 0, 10 * i + 8, 8] for i in range(len(scores))], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(scores, np.float32), np.array(class_ids, np.int64), NAMES)


def test_golden() -> None:
    z = golden("j_pcb")
    chosen = z["query/was_calibrated"]
    logits = np.zeros((len(chosen), z["prototypes"].shape[1]), np.float32)
    logits[chosen] = z["query/fc_logits"]
    alpha, upper, lower = z["alpha_upper_lower"]
    spec = CalibrationSpec(alpha, lower, upper)
    shuffled = np.random.default_rng(0).permutation(len(chosen))  # by masks, so that the order does not matter
    came = calibrate(
        z["query/scores"][shuffled], z["query/classes"][shuffled], logits[shuffled], z["prototypes"], spec
    )
    np.testing.assert_allclose(came, z["query/calibrated_scores"][shuffled], atol=1e-5)


@given(
    st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 2)), max_size=12),
    st.integers(0, 2**32 - 1),
    st.tuples(st.floats(0, 1), st.floats(0, 0.5), st.floats(0.5, 1)),
)
def test_against_one_detection_at_a_time(rows: list[tuple[float, int]], seed: int, numbers: tuple) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(rows), 5)).astype(np.float32)
    prototypes = rng.normal(size=(3, 5)).astype(np.float32)
    prototypes[2] = 0
    spec = CalibrationSpec(*numbers)
    scores = np.array([score for score, _ in rows], np.float32)
    ids = np.array([k for _, k in rows], np.int64)
    wanted = [calibrate_one(s, logits[i], prototypes[ids[i]], spec) for i, s in enumerate(scores)]
    np.testing.assert_allclose(calibrate(scores, ids, logits, prototypes, spec), np.float32(wanted), atol=1e-6)


def test_nothing_found() -> None:
    calibration = Calibration(CalibrationSpec(), PROTOTYPES)
    assert len(calibration.apply(found([], []), np.zeros((0, 3), np.float32), PostprocessSpec((0.3,) * 3))) == 0


def test_detections_are_cut_and_sorted_and_pass_thresholds_of_calibrated_scores() -> None:
    before = found([0.9, 0.8, 0.4, 0.35, 0.06], [0, 1, 2, 2, 0])
    logits = np.array([[-1, 0, 0], [0, 3, 0], [1, 1, 1], [1, 1, 1], [5, 0, 0]], np.float32)
    calibration = Calibration(CalibrationSpec(), PROTOTYPES)
    after = calibration.apply(before, logits, PostprocessSpec((0.2, 0.2, 0.38)))
    # (0.9 - 1) / 2 is out; (0.8 + 1) / 2; 0.4 and 0.35 as they were, 0.35 is out; (0.06 + 1) / 2
    np.testing.assert_allclose(after.scores, [0.9, 0.53, 0.4], atol=1e-6)
    assert after.names == ["car", "person", "bison"]
    assert after.xyxy[:, 0].tolist() == [10, 40, 20]


def test_a_threshold_not_above_lower_drops_nothing_more() -> None:
    """As in the published evaluation, which has its only threshold before calibration."""
    calibration = Calibration(CalibrationSpec(), PROTOTYPES)
    after = calibration.apply(found([0.06], [0]), np.array([[-1, 0, 0]], np.float32), PostprocessSpec((0.05,) * 3))
    assert after.scores.tolist() == [0]


def test_candidates_are_what_may_pass_later() -> None:
    spec = PostprocessSpec((0.3, 0.01, 0.05))
    assert Calibration(CalibrationSpec(), PROTOTYPES).candidates(spec).score_thresholds == (0.05, 0.01, 0.05)


@pytest.mark.parametrize("numbers", [(1.5, 0, 1), (0.5, 0.6, 0.5), (0.5, -0.1, 1), (0.5, 0.1, 2)])
def test_a_spec_that_means_nothing_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        CalibrationSpec(*numbers)


def test_prototypes_file(tmp_path: Path) -> None:
    path, content = tmp_path / "prototypes.safetensors", prototypes_to_bytes(PROTOTYPES)
    np.testing.assert_array_equal(read_prototypes(content, path, 3), PROTOTYPES)
    with pytest.raises(BundleError, match=r"shape \(9, D\); got \(3, 3\)"):
        read_prototypes(content, path, 9)
    with pytest.raises(BundleError, match="Export the bundle again"):
        read_prototypes(b"no prototypes", path, 3)


# A classifier of three logits: the width of a box, its height, and 0.
CALIBRATION = CalibrationSpec(score_thresholds=(0.4, 0.1))
TINY_PROTOTYPES = np.array([[0, 1, 0], [0, 0, 0]], np.float32)  # tall boxes are persons; cars have no prototype


def classifier(batch: int = 1) -> bytes:
    """ONNX: logits = boxes times a matrix, plus zero times the images."""
    shapes = {"images": (batch, 1, *tiny.SIZE_HW), "boxes": (batch, 100, 4)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (batch, 100, 3))
    sides = np.array([[-1, 0, 0], [0, -1, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    constants = {"sides": sides, "zero": np.float32(0)}
    nodes = [
        helper.make_node("MatMul", ["boxes", "sides"], ["sized"]),
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["sized", "nothing"], ["logits"]),
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "pcb", inputs, [output], tensors)
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def manifest(batch: int = 1) -> Manifest:
    return replace(tiny.manifest(batch), calibration=CALIBRATION)


def pcb_bundle(path: Path, batch: int = 1, **changed: bytes) -> Bundle:
    files = {
        "model.onnx": tiny.model(batch),
        "reference.npz": tiny.reference().to_bytes(),
        "verify.json": json.dumps(tiny.report().to_dict()).encode(),
        "pcb.onnx": classifier(batch),
        "prototypes.safetensors": prototypes_to_bytes(TINY_PROTOTYPES),
    }
    return write_bundle(path, manifest(batch), {**files, **changed})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pcb_bundle(tmp_path_factory.mktemp("pcb") / "t.glmd").path


def cpu_backends() -> list[str]:
    names = [name for name in ("openvino", "onnxruntime") if name in backends.available()]
    skip_unless(bool(names), "onnxruntime", "no inference library is installed")
    return names


def test_the_manifest_keeps_the_calibration_and_may_lack_it(bundle: Path) -> None:
    assert open_bundle(bundle).manifest.calibration == CALIBRATION
    assert "calibration" not in tiny.manifest().to_dict()
    assert Manifest.from_dict(tiny.manifest().to_dict()).calibration is None
    with pytest.raises(BundleError, match="another form"):
        Manifest.from_dict({**manifest().to_dict(), "calibration": {"alpha": 2, "score_thresholds": []}})


def test_a_bundle_cannot_promise_pcb_without_its_files(tmp_path: Path) -> None:
    files = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes()}
    with pytest.raises(BundleError, match=r"pcb\.onnx"):
        write_bundle(tmp_path / "t.glmd", manifest(), files)


@pytest.mark.parametrize("batch", [1, 3])
def test_detector_calibrates(batch: int, tmp_path: Path) -> None:
    frame = tiny.frames()[1]
    path = pcb_bundle(tmp_path / "t.glmd", batch).path
    for name in cpu_backends():
        with Detector(path, backend=name) as on, Detector(path, backend=name, pcb=False) as off:
            plain, calibrated = off.run(frame), on.run(frame)
            assert on.info()["pcb_backend"] == name and "pcb_backend" not in off.info()
            assert list(on.info()["score_thresholds"].values()) == [0.4, 0.1]
            assert list(off.info()["score_thresholds"].values()) == [0.2, 0.1]
        box = {one.names[i]: one.xyxy[i] for one in (plain,) for i in range(len(plain))}["person"]
        before = dict(zip(plain.names, plain.scores, strict=True))
        height_part = (box[3] - box[1]) / np.hypot(box[2] - box[0], box[3] - box[1])
        after = dict(zip(calibrated.names, calibrated.scores, strict=True))
        assert after["person"] == pytest.approx(0.5 * before["person"] + 0.5 * height_part, abs=1e-5)
        assert after["car"] == before["car"]
        assert sorted(calibrated.scores)[::-1] == calibrated.scores.tolist()


def test_a_score_threshold_is_for_calibrated_scores(bundle: Path) -> None:
    cpu_backends()
    frame = tiny.frames()[1]
    with Detector(bundle) as detector:
        score = detector.run(frame).scores.max()
    for threshold, count in [(score + 0.01, 0), (score - 0.01, 1)]:
        with Detector(bundle, score_threshold=float(threshold)) as detector:
            assert len(detector.run(frame)) == count


def test_frames_without_detections(bundle: Path) -> None:
    cpu_backends()
    with Detector(bundle, backend=FakeBackend(tiny.graph_spec(), [[]])) as detector:
        assert len(detector.run(tiny.frames()[1])) == 0


def test_a_backend_that_reads_no_onnx_leaves_pcb_to_one_on_the_cpu(bundle: Path) -> None:
    name = cpu_backends()[0]
    row = ((10, 10, 20, 40), 0, 0.9)
    with Detector(bundle, backend=FakeBackend(tiny.graph_spec(), [[row]])) as detector:
        assert detector.info()["pcb_backend"] == name
        (score,) = detector.run(np.zeros(tiny.SIZE_HW, np.uint8)).scores
    assert score == pytest.approx(0.45 + 0.5 * 30 / np.hypot(10, 30), abs=1e-5)


def test_without_a_library_for_it_the_error_says_how_to_do_without(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "why_not", lambda name: f"no {name} here")
    with pytest.raises(UnsupportedError, match="pcb=False"):
        Calibrator(open_bundle(bundle), "tensorrt")


def reference_of(path: Path) -> bytes:
    """What the classifier says of the reference's detections, as if PyTorch had said it."""
    opened = open_bundle(path)
    calibration = Calibration(CALIBRATION, TINY_PROTOTYPES)
    raws, spec = opened.reference.raw_outputs, everything(opened.manifest.postprocess)
    boxes = [one.xyxy for one in candidates(calibration, raws, opened.reference.valid_hw, spec)]
    rows = np.concatenate(boxes)
    logits = np.stack([rows[:, 2] - rows[:, 0], rows[:, 3] - rows[:, 1], 0 * rows[:, 0]], axis=1)
    return PcbReference(np.array([len(one) for one in boxes]), rows, logits).to_bytes()


def test_verification_passes_what_is_right_and_fails_what_is_not(bundle: Path, tmp_path: Path) -> None:
    names = cpu_backends()
    right = pcb_bundle(tmp_path / "right.glmd", **{"pcb_reference.npz": reference_of(bundle)})
    rows = verify_calibration(right)
    assert {(r.backend, r.stage) for r in rows if r.status == "passed"} == {
        (name, stage) for name in names for stage in ("logits", "calibrated")
    }
    assert verify_calibration(right, "tensorrt") == []
    other = onnx.load_from_string(classifier())
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(4, 3, dtype=np.float32), "sides"))
    wrong = pcb_bundle(
        tmp_path / "wrong.glmd",
        **{"pcb_reference.npz": reference_of(bundle), "pcb.onnx": other.SerializeToString()},
    )
    assert {row.status for row in verify_calibration(wrong, names[0])} == {"failed"}
    broken = pcb_bundle(
        tmp_path / "broken.glmd", **{"pcb_reference.npz": reference_of(bundle), "pcb.onnx": b"no graph"}
    )
    assert all("is no ONNX model" in row.reason for row in verify_calibration(broken, names[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": np.array([1])}, {"counts": np.array([2, -1, 0, 0])}, {"counts": np.array([1, 1, 1, 1])},
        {"counts": np.array([2**63 - 1, 2**63 - 1, 2, 1])}, {"counts": np.ones(4)}, {"counts": np.int64(1)},
        {"boxes": np.zeros((1, 5), "f4")}, {"boxes": np.float32(1)}, {"boxes": np.zeros((1, 4), "f8")},
        {"logits": np.zeros((2, 3), "f4")}, {"logits": np.zeros(1, "f4")}, {"logits": np.array(["x"])},
    ],
)
def test_pcb_answers_of_another_form(changes: dict[str, Any], bundle: Path, tmp_path: Path) -> None:
    """Sealed by somebody who knows how; one box and its logits, of the first of four images, is the right form."""
    right = {"counts": np.array([1, 0, 0, 0]), "boxes": np.zeros((1, 4), "f4"), "logits": np.zeros((1, 3), "f4")}
    PcbReference.from_bytes(PcbReference(**right).to_bytes(), 4)
    odd = pcb_bundle(tmp_path / "odd.glmd", **{"pcb_reference.npz": PcbReference(**{**right, **changes}).to_bytes()})
    for row in verify_calibration(odd, cpu_backends()[0]):
        assert row.status == "failed" and re.search(r"must hold .*, and count each box once; got .*again$", row.reason)


def test_a_bundle_without_pcb_has_nothing_to_verify(tmp_path: Path) -> None:
    plain = tiny.bundle(tmp_path / "t.glmd")
    assert verify_calibration(plain) == []
    cpu_backends()
    with Detector(plain.path, pcb=True) as detector:
        assert "pcb_backend" not in detector.info()
