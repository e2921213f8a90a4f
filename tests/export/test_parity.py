"""The comparison with PyTorch: it passes what is right, and finds what is wrong where it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from glmd_export.onnx_export import export_onnx
from glmd_export.parity import BATCH, STAGES, compare, reference_frames
from glmd_runtime import backends
from glmd_runtime.verify_report import ENGINE_STAGES
from glmd_train.checkpoint import Checkpoint
from tests.conftest import skip_unless
from tests.export.conftest import draw_checkpoint, seal

Frames = tuple[np.ndarray, ...]
NAMES = [stage.name for stage in STAGES]


@pytest.mark.parametrize("model, batch", [("model_of_one", 1), ("model_of_two", 2)])
def test_an_honest_export_passes(
    model: str, batch: int, checkpoint: Checkpoint, frames: Frames, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    report = compare(seal(tmp_path, checkpoint, request.getfixturevalue(model), batch), checkpoint, frames)
    assert [row for row in report.rows if row.status == "failed"] == []
    assert report.status == "passed"
    for name in set(backends.available()) & set(backends.readers("model.onnx")):
        batch_too = [BATCH] if batch > 1 else []
        assert [r.stage for r in report.rows if r.backend == name] == [*NAMES, *ENGINE_STAGES, *batch_too]
        assert report.passed("model.onnx", name)


def test_half_precision_passes_stage_by_stage(
    checkpoint: Checkpoint, half_models: dict[str, Path], frames: Frames, tmp_path: Path
) -> None:
    """Random weights give near ties which half breaks otherwise, so that the whole chain says nothing of them."""
    bundle = seal(tmp_path, checkpoint, half_models["plain"], name="model.fp16.onnx")
    rows = [r for r in compare(bundle, checkpoint, frames).rows if r.backend == "onnxruntime" and r.stage in NAMES]
    assert [(r.stage, r.status, r.precision) for r in rows] == [(name, "passed", "fp16") for name in NAMES]
    errors = [value for r in rows for key, value in r.metrics.items() if key.endswith("_max")]
    assert max(errors) > 1e-4  # or it was not half


def test_images_that_influence_each_other_fail_as_a_batch(frames: Frames, tmp_path: Path) -> None:
    """The published batching of the neck is the real thing that this row is for."""
    mixing = draw_checkpoint(published_batching=True)
    bundle = seal(tmp_path, mixing, export_onnx(mixing, tmp_path / "model.onnx", batch=2), 2)
    rows = {r.stage: r.status for r in compare(bundle, mixing, frames).rows if r.backend == "onnxruntime"}
    assert rows[BATCH] == "failed"


def test_an_engine_that_cannot_be_loaded_is_a_failed_row(
    checkpoint: Checkpoint, model_of_one: Path, frames: Frames, tmp_path: Path
) -> None:
    garbage = tmp_path / "openvino.fp32.xml"
    garbage.write_text("no model")
    bundle = seal(tmp_path, checkpoint, garbage, name="openvino.fp32.xml")
    skip_unless("openvino" in backends.available(), "openvino", "openvino is not installed")
    rows = [r for r in compare(bundle, checkpoint, frames).rows if r.backend == "openvino"]
    assert {r.status for r in rows} == {"failed"} and all("must be an OpenVINO model in XML" in r.reason for r in rows)


def test_a_model_with_half_of_its_parts_passes(frames: Frames, tmp_path: Path) -> None:
    bare = draw_checkpoint(stride=16, in_channels=3, cm=False, lr=False, crd=False)
    model = export_onnx(bare, tmp_path / "model.onnx")
    report = compare(seal(tmp_path, bare, model), bare, frames)
    assert [row for row in report.rows if row.status == "failed"] == []


def spoil(model: Path, folder: Path, stage: str) -> Path:
    """A copy of an ONNX file with the largest number of one weight, or one constant, of a stage changed."""
    proto = onnx.load(model)
    weights = {
        "trunk": "backbone.blocks.2.0.conv_pwl.weight",
        "neck": "neck.local.merge.weight",
        "rpn": "rpn.deltas.weight",
        "proposals": next(n.input[3] for n in proto.graph.node if n.op_type == "NonMaxSuppression"),  # its IoU
        "pooled": "roi_heads.res5.blocks.6.0.conv_pwl.weight",
        "head": "roi_heads.predictor.bbox_pred.weight",
        "boxes": next(n.input[1] for n in proto.graph.node if n.input[0] == "box_deltas"),  # the weights of the deltas
    }
    tensor = next(t for t in proto.graph.initializer if t.name == weights[stage])
    array = numpy_helper.to_array(tensor).copy()
    array.flat[np.abs(array).argmax()] *= 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("stage", NAMES)
def test_one_wrong_number_is_found_in_its_stage(
    stage: str, checkpoint: Checkpoint, model_of_one: Path, frames: Frames, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "available", lambda: ["onnxruntime"])
    report = compare(seal(tmp_path, checkpoint, spoil(model_of_one, tmp_path, stage)), checkpoint, frames)
    assert report.status == "failed"
    assert [r.stage for r in report.rows if r.status == "failed" and r.stage in NAMES] == [stage]
    assert "expected" in next(r.reason for r in report.rows if r.stage == stage and r.status == "failed")


def test_what_is_not_installed_is_not_run(
    checkpoint: Checkpoint, model_of_one: Path, frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "available", list)
    report = compare(seal(tmp_path, checkpoint, model_of_one), checkpoint, frames)
    rows = report.rows[1:]  # without the one of the pre-processing
    assert {row.status for row in rows} == {"not_run"} and all("glmd-verify tiny_model.glmd" in r.reason for r in rows)
    assert not any(report.passed("model.onnx", name) for name in backends.BACKENDS)


def test_reference_frames_are_raw_counts_of_several_sizes() -> None:
    frames = reference_frames()
    assert len(frames) == 4 and {frame.dtype for frame in frames} == {np.dtype(np.uint16)}
    assert len({frame.shape for frame in frames}) > 2
