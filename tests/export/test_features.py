"""The pooled vectors as an output: PyTorch's own, compared in every row, and enough to learn a class from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from glmd_export.onnx_export import FEATURES, OUTPUTS, export_onnx, graph_spec
from glmd_export.parity import compare, make_reference
from glmd_runtime import Detector, backends
from glmd_runtime.bundle import Bundle, open_bundle, write_bundle
from glmd_runtime.manifest import Manifest
from glmd_runtime.postprocess import split_outputs
from glmd_runtime.verify import verify_bundle
from glmd_train.checkpoint import Checkpoint
from tests.conftest import skip_unless

Frames = tuple[np.ndarray, ...]


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("features") / "model.onnx", features=True)


def seal(folder: Path, checkpoint: Checkpoint, model: Path, frames: Frames) -> Bundle:
    spec = graph_spec(checkpoint, 1, features=True)
    manifest = Manifest(
        "small", checkpoint.class_names, checkpoint.preprocess, checkpoint.postprocess, spec, {"model.onnx": "fp32"}
    )
    reference = make_reference(checkpoint, frames, features=True)
    verify = json.dumps({"status": "failed", "rows": []}).encode()
    files: dict[str, bytes | Path] = {"reference.npz": reference.to_bytes(), "verify.json": verify}
    return write_bundle(folder / "small.glmd", manifest, {"model.onnx": model, **files})


def test_outputs_are_declared(model: Path, checkpoint: Checkpoint) -> None:
    graph = onnx.load(model).graph
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.output}
    assert shapes == graph_spec(checkpoint, 1, features=True).outputs and list(shapes) == [*OUTPUTS, FEATURES]
    assert not {node.op_type for node in graph.node} & {"Identity"}


def test_half_precision_gives_them_as_float(checkpoint: Checkpoint, tmp_path: Path) -> None:
    half = export_onnx(checkpoint, tmp_path / "m.onnx", ops="plain", precision="fp16", features=True)
    output = next(value for value in onnx.load(half).graph.output if value.name == FEATURES)
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_an_honest_export_passes_and_says_how_far_they_are(
    model: Path, checkpoint: Checkpoint, frames: Frames, tmp_path: Path
) -> None:
    bundle = seal(tmp_path, checkpoint, model, frames)
    rows = [row for row in compare(bundle, checkpoint, frames).rows if row.stage == "raw" and row.status != "not_run"]
    assert rows and {row.status for row in rows} == {"passed"}
    assert all(row.metrics["feature_error"] <= 1e-4 and row.metrics["feature_cosine"] > 0.999 for row in rows)


def test_wrong_features_fail_here_and_on_the_device(
    model: Path, checkpoint: Checkpoint, frames: Frames, tmp_path: Path
) -> None:
    """Everything else is right: only what enrolling learns from is not."""
    proto = onnx.load(model)
    proto.graph.node.append(helper.make_node("Neg", [FEATURES], ["wrong"]))
    output = next(value for value in proto.graph.output if value.name == FEATURES)
    for node in list(proto.graph.node)[:-1]:
        node.output[:] = ["right" if name == FEATURES else name for name in node.output]
        node.input[:] = ["right" if name == FEATURES else name for name in node.input]
    proto.graph.node[-1].input[0], proto.graph.node[-1].output[0] = "right", output.name
    onnx.save(proto, tmp_path / "wrong.onnx")
    bundle = seal(tmp_path, checkpoint, tmp_path / "wrong.onnx", frames)
    name = next(iter(set(backends.available()) & set(backends.readers("model.onnx"))), "")
    skip_unless(bool(name), "onnxruntime", "no inference library is installed")
    statuses = {row.stage: (row.status, row.reason) for row in verify_bundle(bundle, name).rows}
    assert statuses["raw"][0] == "failed" and "feature_cosine" in statuses["raw"][1]
    assert statuses["detections"][0] == "passed"


def test_a_bundle_of_an_enrolled_class_verifies(
    model: Path, checkpoint: Checkpoint, frames: Frames, tmp_path: Path
) -> None:
    bundle = seal(tmp_path, checkpoint, model, frames)
    name = next(iter(set(backends.available()) & set(backends.readers("model.onnx"))), "")
    skip_unless(bool(name), "onnxruntime", "no inference library is installed")
    with Detector(bundle.path, backend=name) as detector:
        raw = split_outputs(detector._backend.run(_inputs(bundle)))[0]
        region = raw.boxes[raw.valid][0, raw.scores[raw.valid][0].argmax()]
        with detector.enroll("fox", [bundle.reference.frames[0]], [region[None]]) as new:
            saved = new.save(tmp_path / "fox.glmd")
            assert "fox" in {*new.run(bundle.reference.frames[0]).class_names}
    assert verify_bundle(open_bundle(saved.path), name).status == "passed"


def _inputs(bundle: Bundle) -> dict[str, np.ndarray]:
    return {"images": bundle.reference.images[:1], "valid_hw": bundle.reference.valid_hw[:1]}
