"""The exported network: the model's own answers, static shapes, images that do not influence each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from glmd_export.graph import ExportGraph, Stages
from glmd_export.onnx_export import INPUTS, OUTPUTS, export_onnx, graph_spec
from glmd_export.ops import StandardOps
from glmd_runtime import backends
from glmd_runtime.backends import run_padded
from glmd_runtime.bundle import Reference
from glmd_runtime.errors import UnsupportedError
from glmd_train.checkpoint import Checkpoint
from tests.conftest import skip_unless

BACKENDS = pytest.mark.parametrize("name", backends.BACKENDS)


def load(name: str, model: Path) -> backends.Backend:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    return backends.load(name, model)


def test_in_pytorch_it_is_the_model(checkpoint: Checkpoint, reference: Reference) -> None:
    graph = ExportGraph(checkpoint.model, StandardOps(), checkpoint.preprocess.size_hw).eval()
    images, valid_hw = torch.from_numpy(reference.images), torch.from_numpy(reference.valid_hw)
    with torch.inference_mode():
        stages = graph(images, valid_hw)
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(stages, name).numpy(), getattr(reference, name), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("model, batch", [("model_of_one", 1), ("model_of_two", 2)])
def test_shapes_are_static_and_declared(
    model: str, batch: int, checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    graph = onnx.load(request.getfixturevalue(model)).graph
    shapes = {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*graph.input, *graph.output, *graph.value_info)
    }
    spec = graph_spec(checkpoint, batch)
    assert {name: shapes[name] for name in INPUTS} == spec.inputs
    assert {value.name: shapes[value.name] for value in graph.output} == spec.outputs
    assert set(Stages._fields) <= set(shapes)
    open_ones = [name for name, shape in shapes.items() if 0 in shape]
    assert len(open_ones) <= 4 * batch  # what NonMaxSuppression finds, until it is filled up


def test_the_graph_is_lean(model_of_one: Path) -> None:
    """No shape arithmetic, no control flow, no constant that could have been folded, nothing of this machine."""
    model = onnx.load(model_of_one)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Shape", "ConstantOfShape", "Range", "If", "Loop", "NonZero", "Constant", "Identity", "Dropout"}
    assert {"LayerNormalization", "RoiAlign", "NonMaxSuppression", "TopK"} <= kinds
    computed = {name for node in model.graph.node for name in node.output} | set(INPUTS)
    assert [node.name for node in model.graph.node if not computed & set(node.input)] == []
    content = model_of_one.read_bytes()
    assert b".py" not in content and str(Path.cwd()).encode() not in content


def test_the_file_says_what_it_is(model_of_one: Path, checkpoint: Checkpoint) -> None:
    said = {prop.key: json.loads(prop.value) for prop in onnx.load(model_of_one).metadata_props}
    assert said["class_names"] == list(checkpoint.class_names)
    assert said["preprocess"]["size_hw"] == list(checkpoint.preprocess.size_hw)


@BACKENDS
def test_two_at_a_time_is_twice_one(name: str, model_of_one: Path, model_of_two: Path, reference: Reference) -> None:
    inputs = {"images": reference.images, "valid_hw": reference.valid_hw}
    one, two = (run_padded(load(name, m), b, inputs) for m, b in ((model_of_one, 1), (model_of_two, 2)))
    for key in OUTPUTS:
        np.testing.assert_allclose(two[key].astype(np.float32), one[key].astype(np.float32), rtol=1e-4, atol=1e-3)


@BACKENDS
def test_an_image_without_room_for_a_box(name: str, model_of_one: Path, reference: Reference) -> None:
    came = load(name, model_of_one).run({"images": reference.images[:1], "valid_hw": np.zeros((1, 2), np.float32)})
    assert not came["valid"].any()
    assert np.isfinite(came["scores"]).all() and not came["boxes"].any()


def test_a_model_without_a_canvas_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    free = replace(checkpoint, preprocess=replace(checkpoint.preprocess, resize="published"))
    with pytest.raises(UnsupportedError, match="letterbox"):
        export_onnx(free, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
