"""The exported network: the model's own answers, static shapes, images that do not influence each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from glmd_export.graph import EndToEnd, ExportGraph, Final, Stages
from glmd_export.onnx_export import INPUTS, OUTPUTS, export_onnx, graph_spec
from glmd_export.ops import NMS_ROUNDS, OPS
from glmd_runtime import backends
from glmd_runtime.backends import run_padded
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry
from glmd_runtime.reference import Reference
from glmd_train.checkpoint import Checkpoint
from glmd_train.model.glmd import GLMDNeck
from tests.conftest import skip_unless
from tests.reference import postprocess as slow_postprocess

pytestmark = pytest.mark.no_cover  # test_cli exports and verifies, too
BACKENDS = pytest.mark.parametrize("name", backends.readers("model.onnx"))


def load(name: str, model: Path) -> backends.Backend:
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    return backends.load(name, model)


@pytest.mark.parametrize("ops", OPS)
def test_in_pytorch_it_is_the_model(ops: str, checkpoint: Checkpoint, reference: Reference) -> None:
    graph = ExportGraph(checkpoint.model, OPS[ops](), checkpoint.preprocess.size_hw).eval()
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


@pytest.mark.parametrize("batch", [3, 8])
def test_every_image_of_a_plain_batch_is_on_its_own(
    batch: int, checkpoint: Checkpoint, reference: Reference, tmp_path: Path
) -> None:
    model = export_onnx(checkpoint, tmp_path / "model.onnx", batch=batch, ops="plain")
    images, valid_hw = (np.resize(a, (batch, *a.shape[1:])) for a in (reference.images, reference.valid_hw))
    came = load("onnxruntime", model).run({"images": images, "valid_hw": valid_hw})
    for key in OUTPUTS:
        expected = np.resize(getattr(reference, key), came[key].shape)
        np.testing.assert_allclose(came[key].astype(np.float32), expected.astype(np.float32), rtol=1e-4, atol=1e-3)


def test_the_plugin_graph_has_both_operators(half_models: dict[str, Path]) -> None:
    """With the attributes that cpp_plugins/README.md promises to read."""
    nodes = {n.op_type: n for n in onnx.load(half_models["plugin"]).graph.node if n.domain == "glmd"}
    said = {kind: {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute} for kind, n in nodes.items()}
    assert said["GlmdRoiAlign"] == {"bins": 8, "stride": 8, "sampling_ratio": 0}
    assert said["GlmdSelectProposals"] == {"pre_nms_topk": 200, "proposals": 24, "iou": pytest.approx(0.7)}


K, PROPOSALS = 3, 14  # fewer than NMS_ROUNDS, so that no chain is too long
GRID = st.integers(0, 12)
RAW = arrays(np.int64, (PROPOSALS, K, 4), elements=GRID)
SCORES = arrays(np.int64, (PROPOSALS, K), elements=st.integers(0, 10 * PROPOSALS))


@settings(max_examples=150)
@given(corners=RAW, scores=SCORES, valid=arrays(np.bool_, PROPOSALS), most=st.integers(1, 50))
def test_end_to_end_is_the_devices_post_processing(
    corners: np.ndarray, scores: np.ndarray, valid: np.ndarray, most: int
) -> None:
    assert PROPOSALS < NMS_ROUNDS
    low, high = np.minimum(corners[..., :2], corners[..., 2:]), np.maximum(corners[..., :2], corners[..., 2:]) + 1
    boxes = np.concatenate([low, high], axis=2).astype(np.float32)
    # No ties: which of two equal scores comes first is nobody's promise.
    different = scores + np.linspace(0, 0.9, scores.size).reshape(scores.shape)
    scores = (different / (10 * PROPOSALS + 1)).astype(np.float32)
    spec = PostprocessSpec((0.1, 0.5, 0.9), nms_iou=0.5, max_detections=most)
    final = EndToEnd(nn.Identity(), spec).finish(*(torch.from_numpy(a)[None] for a in (boxes, scores, valid)))
    expected = slow_postprocess(boxes, scores, valid, spec.score_thresholds, spec.nms_iou, most)
    count = int(final.num_dets[0, 0])
    rows = zip(final.det_scores[0].tolist(), final.det_classes[0].tolist(), final.det_boxes[0].tolist(), strict=True)
    assert [(s, c, tuple(b)) for s, c, b in rows][:count] == expected
    assert not any(getattr(final, name)[0, count:].any() for name in Final._fields[1:])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_end_to_end_exported(precision: str, checkpoint: Checkpoint, reference: Reference, tmp_path: Path) -> None:
    models = [
        export_onnx(checkpoint, tmp_path / f"{end2end}.onnx", ops="plain", precision=precision, end2end=end2end)
        for end2end in (False, True)
    ]
    inputs = {"images": reference.images, "valid_hw": reference.valid_hw}
    raw, final = (run_padded(load("onnxruntime", model), 1, inputs) for model in models)
    found = 0
    for i, (h, w) in enumerate(reference.valid_hw.astype(int).tolist()):
        one = RawOutputs(raw["boxes"][i], raw["scores"][i], raw["valid"][i])
        expected = postprocess(one, Geometry((h, w), (h, w)), checkpoint.postprocess, checkpoint.class_names)
        count = int(final["num_dets"][i, 0])
        np.testing.assert_allclose(final["det_scores"][i, :count], expected.scores, atol=1e-5)
        np.testing.assert_allclose(final["det_boxes"][i, :count], expected.xyxy, atol=1e-3)
        assert final["det_classes"][i, :count].tolist() == expected.class_ids.tolist()
        found += count
    assert found > 0


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


@BACKENDS
def test_a_feature_map_as_wide_as_there_are_attention_heads(name: str, tmp_path: Path) -> None:
    """16 heads on maps of 16 cells a side, where one library took tokens for heads."""
    skip_unless(name in backends.available(), name, f"{name} is not installed")
    torch.manual_seed(0)
    neck, x = GLMDNeck(64).eval(), torch.randn(1, 64, 12, 16)
    for side, features in {"wide": x, "high": x.transpose(2, 3).contiguous()}.items():
        file = tmp_path / f"{side}.onnx"
        torch.onnx.export(
            neck, (features,), file, input_names=["x"], output_names=["y"], dynamo=True, external_data=False,
            verbose=False,
        )
        backend = backends.load(name, file)
        came = backend.run({"x": features.numpy()})["y"]
        backend.close()
        np.testing.assert_allclose(came, neck(features).detach(), atol=1e-4)
