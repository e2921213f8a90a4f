"""The TensorRT backend on the fake machine: answers, threads, arrays on the device, and each error with its remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glmd_runtime import Detector, Geometry, backends, selection
from glmd_runtime.backends import cuda
from glmd_runtime.backends.tensorrt import TensorRtBackend
from glmd_runtime.bundle import Bundle
from glmd_runtime.engines import build_plan, open_engine
from glmd_runtime.errors import BundleError, FrameError, GlmdError, UnsupportedError
from glmd_runtime.plans.cache import cached_engines
from glmd_runtime.verify_report import VerifyReport, VerifyRow
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes import models
from tests.fakes.arrays import CudaArray, DlpackArray, OldCudaArray
from tests.fakes.gpu import FakeGpu

every_array = pytest.mark.parametrize("kind", [CudaArray, OldCudaArray, DlpackArray])


@pytest.fixture
def plan(gpu: FakeGpu, tmp_path: Path) -> Path:
    onnx, out = tmp_path / "model.fp16.onnx", tmp_path / "model.engine"
    onnx.write_bytes(models.half_model())
    build_plan(onnx, out, library="tensorrt", precision="fp16")
    return out


@pytest.fixture
def backend(plan: Path) -> Iterator[backends.Backend]:
    loaded = backends.load("tensorrt", plan)
    yield loaded
    loaded.close()


@pytest.fixture
def installed() -> None:
    for name in ("openvino", "onnxruntime"):
        skip_unless(name in backends.available(), name, f"{name} is not installed")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return models.half_bundle(tmp_path / "t.glmd")


def inputs(seed: int = 0, n: int = 1) -> backends.Tensors:
    images = np.random.default_rng(seed).normal(size=(n, 1, *tiny.SIZE_HW)).astype(np.float32)
    return {"images": images, "valid_hw": np.tile(np.float32([[50, 60]]), (n, 1))}


def check(came: backends.Tensors, sent: backends.Tensors) -> None:
    assert set(came) == {"boxes", "scores", "valid"}
    for name, expected in zip(("boxes", "scores", "valid"), tiny.answers(**sent), strict=True):
        np.testing.assert_allclose(came[name], expected, atol=2e-3)


def test_answers(backend: backends.Backend) -> None:
    kept = [backend.run(inputs(seed)) for seed in range(4)]
    for seed, came in enumerate(kept):  # outputs belong to the caller
        check(came, inputs(seed))


def test_a_short_batch_is_padded(gpu: FakeGpu, tmp_path: Path) -> None:
    bundle = models.half_bundle(tmp_path / "three.glmd", batch=3)
    loaded = open_engine(bundle, models.HALF, "tensorrt")
    for n in (1, 3, 4):
        check(backends.run_padded(loaded, 3, inputs(n=n)), inputs(n=n))


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_several_threads(threads: int | None, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    contexts, real = [], tensorrt.ICudaEngine.create_execution_context
    monkeypatch.setattr(
        tensorrt.ICudaEngine, "create_execution_context", lambda self: contexts.append(real(self)) or contexts[-1]
    )
    loaded = backends.load("tensorrt", plan, threads)
    sent = [inputs(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for came, asked in zip(pool.map(loaded.run, sent), sent, strict=True):
            check(came, asked)
    assert 1 <= len(contexts) <= (threads or 2)  # each holds memory of the device
    loaded.close()


def enqueued(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each call of `execute_async_v3`."""
    import tensorrt

    calls: list[int] = []
    real = tensorrt.IExecutionContext.execute_async_v3

    def counted(self: Any, stream_handle: int) -> bool:
        calls.append(stream_handle)
        return bool(real(self, stream_handle))

    monkeypatch.setattr(tensorrt.IExecutionContext, "execute_async_v3", counted)
    return calls


def test_the_engine_is_captured_once(backend: backends.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = enqueued(monkeypatch)
    for seed in range(5):
        check(backend.run(inputs(seed)), inputs(seed))
    assert len(calls) == 2  # the first call, and its capture; then the graph is launched


def test_what_cannot_be_captured_is_enqueued(
    plan: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.fault("capture")
    loaded, calls = backends.load("tensorrt", plan), enqueued(monkeypatch)
    for seed in range(5):
        check(loaded.run(inputs(seed)), inputs(seed))
    assert len(calls) == 6


def test_closing_gives_everything_back(plan: Path) -> None:
    loaded = backends.load("tensorrt", plan)
    loaded.run(inputs())
    loaded.close()
    runtime = cuda.runtime()
    assert not runtime._device_memory and not runtime._pinned_memory and not runtime._streams


def test_an_engine_that_does_not_run(plan: Path, gpu: FakeGpu) -> None:
    gpu.fault("enqueue")
    with pytest.raises(GlmdError, match="could not run the engine on cuda:0"):
        backends.load("tensorrt", plan).run(inputs())


# Arrays on the device


def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """A list that grows with each copy: (to, from, bytes), places being "host" and "device"."""
    runtime, made = cuda.runtime(), []
    real = runtime.cudaMemcpyAsync

    def place(address: int) -> str:
        starts = [(start, len(block)) for start, block in runtime._device_memory.items()]
        return "device" if any(start <= address < start + size for start, size in starts) else "host"

    def copy(dst: int, src: int, count: int, kind: Any, stream: Any) -> Any:
        made.append((place(dst), place(src), count))
        return real(dst, src, count, kind, stream)

    monkeypatch.setattr(runtime, "cudaMemcpyAsync", copy)
    return made


@every_array
def test_arrays_on_the_device_stay_there(
    kind: type[CudaArray], backend: backends.Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = copies(monkeypatch)
    for seed in range(3):
        sent = inputs(seed)
        made.clear()
        check(backend.run({name: kind(value) for name, value in sent.items()}), sent)
        assert ("device", "device", sent["images"].nbytes) in made
        assert ("device", "host") not in {(to, place) for to, place, _ in made}
        check(backend.run({"images": kind(sent["images"]), "valid_hw": sent["valid_hw"]}), sent)


@every_array
def test_images_on_the_device_through_the_detector(kind: type[CudaArray], bundle: Bundle, gpu: FakeGpu) -> None:
    reference = bundle.reference
    with Detector(bundle.path) as detector:
        for i, frame in enumerate(reference.frames):
            image = reference.images[i : i + 1]
            geometry = Geometry(frame.shape[:2], tuple(int(v) for v in reference.valid_hw[i]))  # type: ignore[arg-type]
            [found], expected = detector.run_images(kind(image), [geometry]), detector.run(frame)
            np.testing.assert_array_equal(found.xyxy, expected.xyxy)
            np.testing.assert_array_equal(found.scores, expected.scores)
        with pytest.raises(FrameError, match=r"in host memory, .* on a CUDA device.*run_images"):
            detector.run(kind(reference.frames[0]))
    with (
        Detector(bundle.path, backend="onnxruntime") as detector,
        pytest.raises(FrameError, match=r"onnxruntime needs images in host memory; .*images\.cpu\(\)"),
    ):
        detector.run_images(kind(reference.images[:1]), [geometry])


@pytest.mark.parametrize("kind", [CudaArray, DlpackArray])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: (image[..., 1:], None), r"images must be \(1, 1, 64, 80\) float32.*got \(1, 1, 64, 79\)"),
        (lambda image: (image.astype(np.float64), None), "float32, .* got .* float64"),
        (lambda image: (image, (5120, 5120, 1, 64)), r"must be contiguous; got .*\.contiguous\(\)"),
    ],
)
def test_wrong_arrays_on_the_device(
    kind: type[CudaArray], change: Any, message: str, backend: backends.Backend
) -> None:
    array, strides = change(inputs()["images"])
    with pytest.raises(FrameError, match=message):
        backend.run({**inputs(), "images": kind(array, strides)})
    check(backend.run(inputs()), inputs())  # the error left nothing behind


def test_an_array_on_another_device(backend: backends.Backend) -> None:
    with pytest.raises(FrameError, match=r"must lie on cuda:0, as the engine does; got cuda:1\. Move it there"):
        backend.run({**inputs(), "images": DlpackArray(inputs()["images"], device=1)})


def test_an_array_that_is_not_given_away(backend: backends.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    class Parameter(DlpackArray):
        def __dlpack__(self, *, stream: int) -> Any:
            raise BufferError("the tensor requires grad")

    with pytest.raises(FrameError, match=r"got Parameter: the tensor requires grad.*detach"):
        backend.run({**inputs(), "images": Parameter(inputs()["images"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 1, 64, 80), np.float32)}, r"images must be \(1, 1, 64, 80\) float32"),
        ({"images": np.zeros((1, 1, 64, 80))}, r"got \(1, 1, 64, 80\) float64"),
        ({"pixels": np.zeros(1)}, r"takes \['images', 'valid_hw'\]; got \['images', 'pixels', 'valid_hw'\]"),
    ],
)
def test_wrong_inputs(change: backends.Tensors, message: str, backend: backends.Backend) -> None:
    with pytest.raises(FrameError, match=message):
        backend.run({**inputs(), **change})


# What is checked before a plan, which is code, is handed to the library


@pytest.fixture
def never_deserialised(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    import tensorrt

    def refuse(*_: object) -> None:
        raise AssertionError("a plan that was not checked was handed to TensorRT")

    monkeypatch.setattr(tensorrt, "Runtime", refuse)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sha256": "0" * 64}, BundleError, "was altered: expected SHA-256 000000000000"),
        ({"version": "10.2.0"}, UnsupportedError, r"by tensorrt 10\.2\.0, .* here is tensorrt 10\.3\.0\. Build it"),
        ({"library": "tensorrt_rtx"}, UnsupportedError, "built by tensorrt_rtx"),
        ({"capability": "7.5"}, UnsupportedError, r"compute capability 7\.5; here is 8\.7\. Build it again"),
        ({"plugin": "1" * 64}, UnsupportedError, r"plugin library of SHA-256 1{12}; none was found"),
    ],
)
def test_a_plan_for_another_place_is_refused(
    changes: dict[str, str], error: type[GlmdError], message: str, plan: Path, never_deserialised: None
) -> None:
    record = plan.with_name("model.engine.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    with pytest.raises(error, match=message):
        TensorRtBackend(plan)


def test_an_altered_plan_is_refused(plan: Path, never_deserialised: None) -> None:
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(BundleError, match="was altered"):
        backends.load("tensorrt", plan)
    plan.with_name("model.engine.json").unlink()
    with pytest.raises(BundleError, match=r"only with its record model\.engine\.json"):
        backends.load("tensorrt", plan)


def test_no_device_is_asked_before_the_library(plan: Path, gpu: FakeGpu, never_deserialised: None) -> None:
    gpu.become("11.4.0", "")
    with pytest.raises(UnsupportedError, match="no CUDA device"):
        backends.load("tensorrt", plan)
    with pytest.raises(UnsupportedError, match="cuda:0 cannot be used"):
        TensorRtBackend(plan)


def test_no_driver(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # as cuda-bindings 12.8 does

    assert cuda.why_no_device() == ""
    monkeypatch.setattr(cuda.runtime(), "cudaGetDeviceCount", raises)
    assert "no CUDA device was found (Failed to dlopen libcuda.so.1). Use" in backends.why_not("tensorrt")

    def broken() -> None:
        raise ImportError("built for another Python")

    monkeypatch.setattr(cuda, "runtime", broken)
    assert "cannot be imported: built for another Python. Run: pip install" in backends.why_not("tensorrt")
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert "it needs cuda-bindings, which is not installed. Run: pip install" in backends.why_not("tensorrt")


def test_what_the_library_refuses(plan: Path, gpu: FakeGpu) -> None:
    gpu.become("10.14.1", "8.7")
    record = plan.with_name("model.engine.json")
    record.write_text(record.read_text().replace("10.3.0", "10.14.1"))  # a record that lies
    with pytest.raises(UnsupportedError, match=r"cannot load .*not compatible with this version"):
        backends.load("tensorrt", plan)


def test_the_wrong_plugins(gpu: FakeGpu, tmp_path: Path) -> None:
    onnx, out = tmp_path / "model.plugin.fp16.onnx", tmp_path / "model.engine"
    onnx.write_bytes(models.half_model(plugin=True))
    library = tmp_path / "libglmd_plugins.so"
    gpu.plugins(library)
    build_plan(onnx, out, library="tensorrt", precision="fp16", plugin=library)
    for _ in range(2):  # a process loads a plugin library only once
        loaded = backends.load("tensorrt", out)
        check(loaded.run(inputs()), inputs())
        loaded.close()
    gpu.plugins(library, b"glmd plugins of another build")
    with pytest.raises(UnsupportedError, match=r"libglmd_plugins\.so is another\. Build it .*GLMD_PLUGIN_LIBRARY"):
        backends.load("tensorrt", out)


# The choice of the Detector


def rows(status: str, engine: str, backend: str, precision: str) -> list[VerifyRow]:
    return [VerifyRow(engine, backend, precision, stage, status) for stage in ("raw", "detections")]  # type: ignore[arg-type]


def test_the_detector_takes_tensorrt(bundle: Bundle, gpu: FakeGpu) -> None:
    for builds in (1, 1):
        with Detector(bundle.path) as detector:
            info = detector.info()
            assert (info["engine"], info["backend"], info["precision"]) == (models.HALF, "tensorrt", "fp16")
            assert info["device"] == "cuda:0" and len(detector.run(tiny.frames()[0])) == 2
        assert gpu.builds == builds
    with Detector(bundle.path, device="cpu") as detector:
        assert detector.info()["device"] == "cpu"


def test_plugins_are_preferred_where_they_are(gpu: FakeGpu, tmp_path: Path) -> None:
    both = {models.HALF: ("fp16", models.half_model()), models.PLUGIN: ("fp16", models.half_model(plugin=True))}
    path = models.bundle(tmp_path / "t.glmd", both).path
    with Detector(path) as detector:
        assert detector.info()["engine"] == models.HALF
    (tmp_path / "libglmd_plugins.so").write_bytes(b"glmd plugins")  # where `make plugins` puts it
    with Detector(path) as detector:
        assert detector.info()["engine"] == models.PLUGIN
    with Detector(path / models.HALF) as detector:
        assert detector.info()["engine"] == models.HALF


@pytest.mark.parametrize("fault", ["wrong", "refuse", "fp32"])
def test_what_fails_here_is_passed_over(
    fault: str, bundle: Bundle, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []  # not caplog: libraries that other tests load change how logging is set up
    monkeypatch.setattr(selection._log, "warning", lambda text, *values: said.append(text % values))
    gpu.fault(fault)
    with Detector(bundle.path) as detector:
        assert detector.info()["backend"] != "tensorrt" and len(detector.run(tiny.frames()[0])) == 2
    assert any("model.fp16.onnx on tensorrt is passed over" in one for one in said)
    with pytest.raises(GlmdError, match=r"reference's answers|cannot build|was asked for"):
        Detector(bundle.path, backend="tensorrt")


def test_never_building_takes_what_is_there(bundle: Bundle, gpu: FakeGpu) -> None:
    with Detector(bundle.path, build="never") as detector:
        assert detector.info()["backend"] != "tensorrt"
    Detector(bundle.path).close()
    with Detector(bundle.path, build="never") as detector:
        assert detector.info()["backend"] == "tensorrt"
    assert gpu.builds == 1


@pytest.mark.parametrize("status", ["passed", "not_run"])
def test_int8_only_when_it_passed(status: str, gpu: FakeGpu, tmp_path: Path) -> None:
    both = {models.HALF: ("fp16", models.half_model()), models.INT8: ("int8", models.int8_model())}
    report = VerifyReport((*tiny.report().rows, *rows(status, models.INT8, "tensorrt", "int8")))
    path = models.bundle(tmp_path / "t.glmd", both, verified=report).path
    with Detector(path) as detector:
        assert detector.info()["precision"] == ("int8" if status == "passed" else "fp16")
    [entry] = cached_engines()
    assert entry.record is not None and entry.record.precision == detector.info()["precision"]


def test_every_cpu_engine_that_passed_the_fastest_first(tmp_path: Path, installed: None) -> None:
    """What a machine without a GPU takes of a bundle that has everything."""
    engines = {
        "model.fp16.onnx": ("fp16", models.half_model()),
        "model.int8.onnx": ("int8", models.int8_model()),
        "tensorrt_rtx.fp16.engine": ("fp16", b"built elsewhere"),
    }
    order = [("model.int8.onnx", "onnxruntime"), ("model.onnx", "openvino"), ("model.onnx", "onnxruntime")]
    for n in range(3):
        passed = [row for pair in order[n:] for row in rows("passed", *pair, "any")]
        report = VerifyReport((*passed, *rows("passed", "model.fp16.onnx", "onnxruntime", "fp16")))
        path = models.bundle(tmp_path / f"{n}.glmd", engines, verified=report).path
        with Detector(path, device="cpu") as detector:
            assert (detector.info()["engine"], detector.info()["backend"]) == order[n]
