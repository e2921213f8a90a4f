"""FP16 graphs: the type of every tensor, class by class, and what half cannot hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from onnxscript import ir

from glmd_export.onnx_export import INPUTS, OUTPUTS, export_onnx
from glmd_export.ops import OPS
from glmd_export.precision import box_arithmetic
from glmd_runtime.errors import PrecisionError
from tests.export.conftest import draw_checkpoint

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
IN_HALF = {"Conv", "Gemm", "MatMul"}
IN_FLOAT = {
    "LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Exp", "TopK", "RoiAlign", "NonMaxSuppression", "Ceil",
    "Less", "Greater", "Min", "Max", "Sub", "GlmdSelectProposals",
}
STAGES = {"trunk": HALF, "neck": HALF, **dict.fromkeys(
    ("objectness", "deltas", "proposals", "features", "logits", "box_deltas", "boxes", "scores"), FLOAT
)}
VARIANTS = pytest.mark.parametrize("ops", OPS)


class Graph:
    """An ONNX file with the type of each of its tensors, as ONNX itself infers them."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
        values = (*graph.input, *graph.output, *graph.value_info)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.types |= {t.name: t.data_type for t in graph.initializer}
        self.nodes = {node.name: node for node in graph.node}
        self.boxes = {node.name for node in box_arithmetic(ir.from_proto(model))}

    def floats(self, names: list[str]) -> set[int]:
        """Which of the two types some tensors have."""
        return {self.types[name] for name in names if name} & {HALF, FLOAT}


@pytest.fixture(scope="module")
def graphs(half_models: dict[str, Path]) -> dict[str, Graph]:
    return {ops: Graph(path) for ops, path in half_models.items()}


@VARIANTS
def test_each_class_of_tensors_has_its_type(graphs: dict[str, Graph], ops: str) -> None:
    graph = graphs[ops]
    seen = set()
    for name, node in graph.nodes.items():
        types = graph.floats([*node.input, *node.output])
        if name in graph.boxes or node.op_type in IN_FLOAT:
            assert types <= {FLOAT}, name
        elif node.op_type in IN_HALF:
            assert types == {HALF}, name
        elif node.op_type == "GlmdRoiAlign":
            assert [graph.types[n] for n in (*node.input, *node.output)] == [HALF, FLOAT, HALF]
        elif node.op_type != "Cast":
            assert len(types) <= 1, name
        seen.add(node.op_type)
    assert seen >= {"Conv", "Gemm", "MatMul", "LayerNormalization", "Softmax", "ReduceMean"}


@VARIANTS
def test_inputs_outputs_and_stages(graphs: dict[str, Graph], ops: str) -> None:
    types = graphs[ops].types
    assert {types[name] for name in (*INPUTS, "boxes", "scores")} == {FLOAT}
    assert types["valid"] == TensorProto.BOOL and set(OUTPUTS) <= set(types)
    assert {name: types[name] for name in STAGES} == STAGES


@VARIANTS
def test_no_cast_undoes_another(graphs: dict[str, Graph], ops: str) -> None:
    casts = {node.output[0]: node.input[0] for node in graphs[ops].nodes.values() if node.op_type == "Cast"}
    types = graphs[ops].types
    undone = [b for b, a in casts.items() if a in casts and {types[a], types[b]} == {HALF, FLOAT}]
    # Logits and deltas are cast to float on purpose, and proposals begin in float.
    assert undone == []


def test_the_weights_take_half_the_room(model_of_one: Path, half_models: dict[str, Path]) -> None:
    sizes = {"one": model_of_one.stat().st_size, "half": half_models["standard"].stat().st_size}
    assert 0.45 < sizes["half"] / sizes["one"] < 0.6


def test_a_weight_that_half_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = draw_checkpoint()
    with torch.no_grad():
        model.model.rpn.conv.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(PrecisionError, match=r"65504.*rpn.conv.weight.*FP32"):
        export_onnx(model, tmp_path / "model.onnx", precision="fp16")
    assert not list(tmp_path.iterdir())
