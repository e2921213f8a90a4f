"""Engines built ahead of time: OpenVINO's is run against PyTorch, TensorRT-RTX's is built and never loaded (no GPU)."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from glmd_export.builders import build_openvino, build_rtx
from glmd_export.onnx_export import export_onnx
from glmd_export.quantize import calibration_images, quantize_s8
from glmd_runtime import backends
from glmd_runtime.errors import BundleError, PrecisionError, UnsupportedError
from glmd_runtime.plans.plan import log_path
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.reference import Reference
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from glmd_train.config import ModelConfig
from glmd_train.model.detector import build_model
from tests.conftest import skip_unless
from tests.export.rtx import require_rtx

SHIPPED = Path(__file__).parents[2] / "models" / "thermal_lite0.safetensors"


def require_openvino() -> None:
    skip_unless("openvino" in backends.available(), "openvino", "openvino is not installed")


def test_the_ir_answers_like_pytorch(model_of_one: Path, reference: Reference, tmp_path: Path) -> None:
    require_openvino()
    written = build_openvino(model_of_one, tmp_path / "openvino.fp32.xml")
    assert written == (tmp_path / "openvino.fp32.xml", tmp_path / "openvino.fp32.bin")
    backend = backends.load("openvino", written[0])
    came = backends.run_padded(backend, 1, {"images": reference.images, "valid_hw": reference.valid_hw})
    backend.close()
    for name in ("boxes", "scores", "valid"):  # half weights would be off by a hundred times as much
        np.testing.assert_allclose(came[name], getattr(reference, name), rtol=1e-4, atol=1e-3)


def test_the_ir_has_the_same_bytes_every_time_and_nothing_of_this_machine(model_of_one: Path, tmp_path: Path) -> None:
    require_openvino()
    first, second = (build_openvino(model_of_one, tmp_path / f"{name}.xml") for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert not any(str(path).encode() in first[0].read_bytes() for path in (tmp_path, model_of_one.parent))


def test_no_ir_without_openvino(model_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "available", list)
    with pytest.raises(UnsupportedError, match="pip install"):
        build_openvino(model_of_one, tmp_path / "a.xml")
    assert not list(tmp_path.iterdir())


def test_no_ir_of_something_else(tmp_path: Path) -> None:
    require_openvino()
    (tmp_path / "a.onnx").write_bytes(b"holiday pictures")
    with pytest.raises(BundleError, match="Export the checkpoint again"):
        build_openvino(tmp_path / "a.onnx", tmp_path / "a.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_rtx()
    folder = tmp_path_factory.mktemp("shipped")
    return export_onnx(load_checkpoint(SHIPPED), folder / "model.fp16.onnx", ops="plain", precision="fp16")


def test_fp16_of_the_shipped_model_is_built_with_the_same_bytes_every_time(shipped: Path, tmp_path: Path) -> None:
    told: list[str] = []
    plan, record = build_rtx(shipped, tmp_path / "a.engine", "fp16", step=told.append)
    again, _ = build_rtx(shipped, tmp_path / "b.engine", "fp16")
    assert plan.read_bytes() == again.read_bytes() and len(told) > 2
    said = json.loads(record.read_text())
    assert (said["library"], said["precision"], said["capability"]) == ("tensorrt_rtx", "fp16", "")
    assert compute_types(plan) >= {"Half"}


def compute_types(plan: Path) -> set[str]:
    """Types of the first inputs of the engine's convolutions, as the builder listed them."""
    lines = [line for line in log_path(plan).read_text().splitlines() if "LayerType: correlation" in line]
    return {line.split("Datatype: ")[1].split(",")[0] for line in lines}


def test_a_graph_of_another_precision_is_no_half_engine(model_plain: Path, tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="fp16 was asked for"):
        build_rtx(model_plain, tmp_path / "a.engine", "fp16")
    assert not (tmp_path / "a.engine").exists()


def test_a_graph_for_other_libraries_is_refused_by_its_operators(model_of_one: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"NonMaxSuppression.*ops='plain'"):
        build_rtx(model_of_one, tmp_path / "a.engine", "fp32")
    assert not list(tmp_path.iterdir())


def test_no_engine_without_the_library(model_plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmd_runtime.engines.find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match=r"pip install '/.*\[rtx\]'"):
        build_rtx(model_plain, tmp_path / "a.engine", "fp32")


@pytest.fixture(scope="module")
def model_plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_rtx()
    return export_onnx(checkpoint, tmp_path_factory.mktemp("plain") / "model.onnx", ops="plain")


def wide_checkpoint() -> Checkpoint:
    """The published network on ResNet-50 (1024 and 2048 channels, 15 anchors), with a small canvas."""
    torch.manual_seed(0)
    config = ModelConfig(
        class_names=("person", "car"), backbone="resnet50", proposals=20, pre_nms_topk=100, bins=7,
        anchor_sizes=(32, 64, 128, 256, 512),
    )
    spec = PreprocessSpec((64, 96), mean=(127.0,), std=(60.0,))
    return Checkpoint(build_model(config).eval(), config, spec, PostprocessSpec((0.3, 0.3)), {"data": "none"})


@pytest.fixture(scope="module")
def wide() -> Checkpoint:
    require_rtx()
    return wide_checkpoint()


@pytest.mark.no_cover
def test_fp16_of_the_published_sizes(wide: Checkpoint, tmp_path: Path) -> None:
    model = export_onnx(wide, tmp_path / "model.fp16.onnx", ops="plain", precision="fp16")
    plan, _ = build_rtx(model, tmp_path / "a.engine", "fp16")
    assert compute_types(plan) == {"Half"}


@pytest.mark.no_cover
def test_int8_of_the_published_sizes(wide: Checkpoint, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (64, 96), dtype=np.uint8))
    model = export_onnx(wide, tmp_path / "model.onnx", ops="plain")
    quantized = quantize_s8(model, tmp_path / "model.s8.onnx", calibration_images(tmp_path, wide.preprocess))
    plan, record = build_rtx(quantized, tmp_path / "a.engine", "int8")
    assert json.loads(record.read_text())["precision"] == "int8"
    assert "Int8" in compute_types(plan)
