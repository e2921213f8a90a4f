"""The facade over a tiny bundle whose answers are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmd_runtime import Detections, Detector, backends
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.bundle import open_bundle
from glmd_runtime.errors import BundleError, EngineError, FrameError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.postprocess import RawOutputs, postprocess
from glmd_runtime.preprocess import preprocess
from glmd_runtime.verify_report import VerifyReport
from glmd_runtime.video.frame import Frame
from tests import tiny
from tests.conftest import skip_unless


@pytest.fixture
def installed() -> str:
    name = next(iter(backends.available()), "")
    skip_unless(bool(name), "onnxruntime", "no inference library is installed")
    return name


def expected(frame: np.ndarray, score_threshold: float | None = None) -> Detections:
    image, geometry = preprocess(frame, tiny.SPEC)
    raw = RawOutputs(*(o[0] for o in tiny.answers(image[None], np.array([geometry.valid_hw], np.float32))))
    spec = tiny.manifest().postprocess
    spec = spec if score_threshold is None else replace(spec, score_thresholds=(score_threshold,) * 2)
    return postprocess(raw, geometry, spec, tiny.CLASS_NAMES)


def check(found: Detections, wanted: Detections) -> None:
    np.testing.assert_allclose(found.xyxy, wanted.xyxy, atol=1e-3)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
    assert found.names == wanted.names and found.class_names == tiny.CLASS_NAMES


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("i", range(4))
def test_run(i: int, batch: int, tmp_path: Path, installed: str) -> None:
    frame = tiny.frames()[i]
    with Detector(tiny.bundle(tmp_path / "t.glmd", batch).path, threads=1) as detector:
        check(detector.run(frame), expected(frame))
        assert len(detector.run(frame)) == 2


def test_a_score_threshold_replaces_all(tiny_bundle: Path, installed: str) -> None:
    frame = tiny.frames()[1]
    for threshold, count in [(0.99, 0), (0.3, 1), (0.01, 2)]:
        with Detector(tiny_bundle, score_threshold=threshold) as detector:
            found = detector.run(frame)
            assert len(found) == count
            check(found, expected(frame, threshold))
            assert detector.info()["score_thresholds"] == {"person": threshold, "car": threshold}


def test_several_threads(tiny_bundle: Path, installed: str) -> None:
    frames = [*tiny.frames()] * 6
    with Detector(tiny_bundle) as detector, ThreadPoolExecutor(4) as pool:
        for frame, found in zip(frames, pool.map(detector.run, frames), strict=True):
            check(found, expected(frame))


def test_dlpack(tiny_bundle: Path, installed: str) -> None:
    class Elsewhere:
        def __init__(self, array: np.ndarray) -> None:
            self._array = array

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self._array.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return self._array.__dlpack_device__()

    with Detector(tiny_bundle) as detector:
        check(detector.run(Elsewhere(tiny.frames()[0])), expected(tiny.frames()[0]))


@pytest.mark.parametrize("cause", [BufferError, RuntimeError, TypeError])
def test_dlpack_that_numpy_cannot_read(cause: type[Exception], tiny_bundle: Path) -> None:
    class Unwilling:
        def __dlpack__(self, **_: Any) -> Any:
            raise cause("the tensor requires grad")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    detector = Detector(tiny_bundle, backend=FakeBackend(tiny.graph_spec(), [[]]))
    with pytest.raises(FrameError, match=r"got Unwilling: .*\.detach\(\)\.cpu\(\)"):
        detector.run(Unwilling())


def test_auto_takes_the_fastest_that_passed(tmp_path: Path, installed: str) -> None:
    name = backends.available()[-1]
    rows = [replace(row, status="passed" if row.backend == name else "failed") for row in tiny.report().rows]
    path = tiny.bundle(tmp_path / "t.glmd", verified=VerifyReport(tuple(rows))).path
    with Detector(path) as detector:
        assert detector.info()["backend"] == name
    for backend in backends.available():  # asked for by name, it runs nevertheless
        with Detector(path, backend=backend) as detector:
            assert detector.info()["backend"] == backend


@pytest.mark.parametrize("status", ["failed", "not_run"])
def test_auto_runs_nothing_that_did_not_pass(status: str, tmp_path: Path, installed: str) -> None:
    path = tiny.bundle(tmp_path / "t.glmd", verified=tiny.report(status)).path  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no engine that passed verification"):
        Detector(path)


def test_no_inference_library(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda: [])
    with pytest.raises(UnsupportedError, match=r"pip install '/.*\[cpu\]'"):
        Detector(tiny_bundle)


def test_one_engine_file(tiny_bundle: Path, installed: str) -> None:
    with Detector(tiny_bundle / "model.onnx") as detector:
        check(detector.run(tiny.frames()[1]), expected(tiny.frames()[1]))
    with pytest.raises(BundleError, match=r"no engine of its bundle; it has model\.onnx"):
        Detector(tiny_bundle / "reference.npz")


def test_info(tiny_bundle: Path, installed: str) -> None:
    with Detector(str(tiny_bundle)) as detector:
        assert detector.class_names == tiny.CLASS_NAMES
        assert detector.info() == {
            "name": "tiny",
            "engine": "model.onnx",
            "backend": installed,
            "device": "cpu",
            "precision": "fp32",
            "score_thresholds": {"person": 0.2, "car": 0.1},
            "size_hw": [64, 80],
            "provenance": {"checkpoint": "none"},
        }


def test_closed(tiny_bundle: Path, installed: str) -> None:
    detector = Detector(tiny_bundle)
    detector.close()
    detector.close()
    with pytest.raises(GlmdError, match="closed"):
        detector.run(tiny.frames()[0])


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_threshold_out_of_range(value: float, tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"in 0\.\.1; got"):
        Detector(tiny_bundle, score_threshold=value)


def test_wrong_frames(tiny_bundle: Path) -> None:
    with Detector(tiny_bundle, backend=FakeBackend(tiny.graph_spec(), [[]])) as detector:
        for frame in (None, np.zeros((4, 4), np.float32), np.zeros((0, 0), np.uint8)):
            with pytest.raises(FrameError):
                detector.run(frame)


def test_a_fake_backend_needs_no_library(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", lambda: [])
    graph = open_bundle(tiny_bundle).manifest.graph
    with Detector(tiny_bundle, backend=FakeBackend(graph, [[((10, 10, 50, 60), 1, 0.9)], []])) as detector:
        frame = np.zeros((128, 160), np.uint8)  # twice the canvas
        assert detector.run(frame).to_dict() == [
            {"name": "car", "class_id": 1, "score": 0.9, "xyxy": [20.0, 20.0, 100.0, 120.0]}
        ]
        assert len(detector.run(frame)) == 0
        assert detector.info()["backend"] == "FakeBackend"


def test_stream(tiny_bundle: Path) -> None:
    frames = [Frame(image, i, i / 10) for i, image in enumerate(tiny.frames())]
    with Detector(tiny_bundle, backend=FakeBackend(tiny.graph_spec(), [[]])) as detector:
        assert [(f.index, len(found)) for f, found in detector.stream(frames)] == [(i, 0) for i in range(4)]
        assert list(detector.stream([])) == []
        assert [f.index for f, _ in detector.stream("sim://air?frames=2&size=64x64")] == [0, 1]


class Wrong(FakeBackend):
    """Answers with something else."""

    def __init__(self, answer: Any) -> None:
        super().__init__(tiny.graph_spec(), [[((10, 10, 20, 40), 0, 0.9)]])
        self._answer = answer

    def run(self, inputs: Any) -> Any:
        return self._answer(super().run(inputs))

    def close(self) -> None:
        raise RuntimeError("it does not let go")


def _raise(_: Any) -> Any:
    raise RuntimeError("CUDA error 700")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_raise, "failed: RuntimeError: CUDA error 700"),
        (lambda outputs: None, "must answer with .* got {}"),
        (lambda outputs: {**outputs, "boxes": outputs["boxes"][:, :1]}, r"must answer with .*'boxes': \(1, 1, 2, 4\)"),
        (lambda outputs: {"boxes": outputs["boxes"], "valid": outputs["valid"]}, "must answer with"),
        (lambda outputs: {**outputs, "scores": outputs["scores"] * np.nan}, "answered with no number"),
    ],
)
def test_an_engine_that_fails_is_one_error_with_its_name(
    answer: Any, said: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr("glmd_runtime.detector._log.warning", lambda text, *values: warned.append(text % values))
    with (
        Detector(tiny_bundle, backend=Wrong(answer)) as detector,
        pytest.raises(EngineError, match=rf"^model\.onnx on Wrong {said}"),
    ):
        detector.run(tiny.frames()[0])
    assert len(warned) == 1 and "could not be closed: it does not let go" in warned[0]
