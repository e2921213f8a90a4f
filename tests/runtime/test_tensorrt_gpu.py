"""The same with the real libraries, wherever there is a GPU: engines that are built, checked, kept and run on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from glmd_runtime import Detector, Geometry, backends
from glmd_runtime.backends import cuda
from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.engines import build_plan
from glmd_runtime.errors import BundleError
from glmd_runtime.plans.cache import cached_engines
from glmd_runtime.plans.plan import record_path
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes import models

pytestmark = pytest.mark.gpu
RTX_ENGINE = "tensorrt_rtx.fp16.engine"


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    reason = cuda.why_no_device()
    skip_unless(not reason, "gpu", reason)
    skip_unless(find_spec(request.param) is not None, request.param, f"{request.param} is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(request.param)


@pytest.fixture
def bundle(library: str, tmp_path: Path) -> Bundle:
    """With an engine file that the library reads; that of TensorRT-RTX built here."""
    plain = models.half_bundle(tmp_path / "plain.glmd")
    if library == "tensorrt":
        return plain
    engine = tmp_path / RTX_ENGINE
    build_plan(plain.path / models.HALF, engine, library=library, precision="fp16")
    files = {name: plain.path / name for name in plain.manifest.sha256}
    files |= {engine.name: engine, record_path(engine).name: record_path(engine)}
    manifest = replace(plain.manifest, engines={**plain.manifest.engines, RTX_ENGINE: "fp16"})
    return write_bundle(tmp_path / "rtx.glmd", manifest, files)


def test_a_detector_on_the_gpu(library: str, bundle: Bundle) -> None:
    with Detector(bundle.path, backend=library) as detector:
        assert (detector.info()["backend"], detector.info()["device"]) == (library, "cuda:0")
        with Detector(bundle.path, backend="onnxruntime", device="cpu") as reference, ThreadPoolExecutor(4) as pool:
            frames = [*tiny.frames()] * 5
            for found, expected in zip(pool.map(detector.run, frames), map(reference.run, frames), strict=True):
                np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.1)
                np.testing.assert_allclose(found.scores, expected.scores, atol=5e-3)
    with Detector(bundle.path, backend=library, build="never"):
        assert len(cached_engines()) == (library == "tensorrt")


def test_the_graph_is_captured(library: str, bundle: Bundle) -> None:
    with Detector(bundle.path, backend=library, threads=1) as detector:
        detector.run(tiny.frames()[0])
        slot = detector._backend._slots[0]  # type: ignore[union-attr]
        assert slot._graph is not None


def test_torch_tensors_stay_on_the_gpu(library: str, bundle: Bundle) -> None:
    torch = pytest.importorskip("torch")
    skip_unless(torch.cuda.is_available(), "gpu", "this torch has no CUDA")
    images, valid_hw = bundle.reference.images, bundle.reference.valid_hw
    with Detector(bundle.path, backend=library) as detector:
        for i, frame in enumerate(bundle.reference.frames):
            geometry = Geometry(frame.shape[:2], (int(valid_hw[i, 0]), int(valid_hw[i, 1])))
            half = torch.from_numpy(images[i : i + 1] / 2).cuda()
            [found] = detector.run_images(half * 2, [geometry])  # torch's own stream may not have finished yet
            np.testing.assert_allclose(found.scores, detector.run(frame).scores, atol=1e-5)


def test_an_altered_plan_never_reaches_the_library(library: str, bundle: Bundle) -> None:
    Detector(bundle.path, backend=library).close()
    plan = cached_engines()[0].folder / "model.engine" if library == "tensorrt" else bundle.path / RTX_ENGINE
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(BundleError, match="was altered"):
        backends.load(library, plan)
