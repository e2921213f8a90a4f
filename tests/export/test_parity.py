"""The comparison with PyTorch: it passes what is right, and finds what is wrong where it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from glmd_export.onnx_export import export_onnx
from glmd_export.parity import STAGES, compare, reference_frames
from glmd_runtime import backends
from glmd_runtime.verify import ENGINE_STAGES
from glmd_train.checkpoint import Checkpoint
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
    for name in backends.available():
        assert [r.stage for r in report.rows if r.backend == name] == [*NAMES, *ENGINE_STAGES]
        assert report.passed("model.onnx", name)


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
    assert {row.status for row in rows} == {"not_run"} and all("not installed" in row.reason for row in rows)
    assert not any(report.passed("model.onnx", name) for name in backends.BACKENDS)


def test_reference_frames_are_raw_counts_of_several_sizes() -> None:
    frames = reference_frames()
    assert len(frames) == 4 and {frame.dtype for frame in frames} == {np.dtype(np.uint16)}
    assert len({frame.shape for frame in frames}) > 2
