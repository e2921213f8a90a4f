"""Each rule of lint on a graph of a few nodes that breaks it and nothing else; and what the real builder says of them.

The name of a case begins with the rule that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from glmd_export.lint import BOTH, NMS_BOXES_LIMIT, OPSETS, RULES, TOPK_LIMIT, UNKNOWN, Target, lint
from glmd_export.onnx_export import export_onnx
from glmd_runtime.errors import BundleError
from glmd_train.checkpoint import Checkpoint
from tests.export.rtx import builds, operators, require_rtx

FLOAT, HALF, DOUBLE, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL
INT8, UINT8, UINT16, INT32, INT64 = (getattr(TensorProto, n) for n in ("INT8", "UINT8", "UINT16", "INT32", "INT64"))
Value = tuple[str, int, tuple[int | str, ...]]

node = helper.make_node


def graph(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value], opset: int = 18,
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    infos = [[helper.make_tensor_value_info(*value) for value in side] for side in (inputs, outputs)]
    domains = {one.domain for one in nodes} - {""}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(helper.make_graph(nodes, "g", *infos, tensors), opset_imports=opsets, ir_version=9)


def unary(op: str, kind: int = FLOAT, came: int | None = None, **attributes: Any) -> onnx.ModelProto:
    return graph([node(op, ["x"], ["y"], **attributes)], [("x", kind, (2, 8))], [("y", came or kind, (2, 8))])


def topk(k: int) -> onnx.ModelProto:
    inputs, outputs = [("x", FLOAT, (1, 5000))], [("v", FLOAT, (1, k)), ("i", INT64, (1, k))]
    return graph([node("TopK", ["x", "k"], ["v", "i"])], inputs, outputs, constants={"k": np.array([k])})


def open_topk() -> onnx.ModelProto:
    inputs, outputs = [("x", FLOAT, (1, 50)), ("k", INT64, (1,))], [("v", FLOAT, (1, "n")), ("i", INT64, (1, "n"))]
    return graph([node("TopK", ["x", "k"], ["v", "i"])], inputs, outputs)


def nms(boxes: int) -> onnx.ModelProto:
    nodes = [node("NonMaxSuppression", ["b", "s", "n", "i"], ["k"])]
    inputs = [("b", FLOAT, (1, boxes, 4)), ("s", FLOAT, (1, 1, boxes))]
    constants = {"n": np.array([5]), "i": np.array([0.5], np.float32)}
    return graph(nodes, inputs, [("k", INT64, ("n", 3))], constants=constants)


def roi_align(kind: int) -> onnx.ModelProto:
    align = node("RoiAlign", ["x", "r", "i"], ["h"], output_height=2, output_width=2)
    nodes = [align, node("Cast", ["h"], ["y"], to=FLOAT)]
    inputs = [("x", kind, (1, 3, 8, 8)), ("r", kind, (5, 4))]
    return graph(nodes, inputs, [("y", FLOAT, (5, 3, 2, 2))], constants={"i": np.zeros(5, np.int64)})


def plugin(kind: int = FLOAT) -> onnx.ModelProto:
    nodes = [node("GlmdRoiAlign", ["x", "r"], ["y"], domain="glmd", bins=2, stride=8, sampling_ratio=0)]
    return graph(nodes, [("x", FLOAT, (1, 3, 8, 8)), ("r", kind, (1, 5, 4))], [("y", FLOAT, (5, 3, 2, 2))])


def branch() -> onnx.ModelProto:
    sides = {
        key: helper.make_graph([node(op, ["x"], [key])], key, [], [helper.make_tensor_value_info(key, FLOAT, (4,))])
        for key, op in (("then_branch", "Identity"), ("else_branch", "Neg"))
    }
    return graph([node("If", ["c"], ["y"], **sides)], [("x", FLOAT, (4,)), ("c", BOOL, ())], [("y", FLOAT, (4,))])


def binary(op: str, first: int, second: int, came: int, **attributes: Any) -> onnx.ModelProto:
    inputs = [("x", first, (4, 4)), ("z", second, (4, 4))]
    return graph([node(op, ["x", "z"], ["y"], **attributes)], inputs, [("y", came, (4, 4))])


def half_weight() -> onnx.ModelProto:
    inputs, outputs = [("x", FLOAT, (1, 3, 8, 8))], [("y", FLOAT, (1, 4, 8, 8))]
    return graph([node("Conv", ["x", "w"], ["y"])], inputs, outputs, constants={"w": np.ones((4, 3, 1, 1), np.float16)})


def conv(kind: type = np.int8, zero: int = 0, bias: type = np.float32) -> onnx.ModelProto:
    """A quantised convolution."""
    constants = {
        "s": np.array(0.02, np.float32), "z": np.array(zero, kind),
        "w8": np.ones((4, 3, 1, 1), np.int8), "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8),
    }
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=0),
    ]
    if bias is np.int32:
        constants |= {"b32": np.ones(4, np.int32)}
        nodes.append(node("DequantizeLinear", ["b32", "ws"], ["b"], axis=0))
    else:
        constants["b"] = np.ones(4, bias)
    nodes.append(node("Conv", ["d", "w", "b"], ["y"]))
    return graph(nodes, [("x", FLOAT, (1, 3, 8, 8))], [("y", FLOAT, (1, 4, 8, 8))], constants=constants)


def cast_through(kind: int, *middle: str) -> onnx.ModelProto:
    """float -> kind -> operators -> float."""
    names = ["a", *(f"m{i}" for i in range(len(middle)))]
    nodes = [node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(middle)]
    nodes = [node("Cast", ["x"], ["a"], to=kind), *nodes, node("Cast", [names[-1]], ["y"], to=FLOAT)]
    return graph(nodes, [("x", FLOAT, (2, 8))], [("y", FLOAT, (2, 8))])


def stages(scores: int) -> onnx.ModelProto:
    """The tensors of `graph.Stages` between which box arithmetic lies; the scores are computed in a type of choice."""
    nodes = [
        node("Relu", ["x"], ["objectness"]), node("Neg", ["x"], ["deltas"]),
        node("Add", ["objectness", "deltas"], ["proposals"]), node("Less", ["objectness", "deltas"], ["valid"]),
        node("Abs", ["proposals"], ["logits"]), node("Exp", ["proposals"], ["box_deltas"]),
        node("Mul", ["box_deltas", "proposals"], ["boxes"]), node("Cast", ["logits"], ["c"], to=scores),
        node("Sigmoid", ["c"], ["s"]), node("Cast", ["s"], ["scores"], to=FLOAT),
    ]
    outputs = [("boxes", FLOAT, (2, 8)), ("scores", FLOAT, (2, 8)), ("valid", BOOL, (2, 8))]
    return graph(nodes, [("x", FLOAT, (2, 8))], outputs)


def einsum(kind: int) -> onnx.ModelProto:
    nodes = [node("Einsum", ["x", "z"], ["h"], equation="ij,jk->ik"), node("Cast", ["h"], ["y"], to=FLOAT)]
    return graph(nodes, [("x", kind, (4, 4)), ("z", kind, (4, 4))], [("y", FLOAT, (4, 4))])


CLEAN: dict[str, Callable[[], onnx.ModelProto]] = {
    "relu": lambda: unary("Relu"),
    "the largest TopK": lambda: topk(TOPK_LIMIT),
    "symmetric INT8 with a float bias": conv,
    "an image of bytes": lambda: unary("Cast", UINT8, FLOAT, to=FLOAT),
    "half between floats": lambda: cast_through(HALF, "Relu"),
    "stages in float": lambda: stages(FLOAT),
    "two types where ONNX allows it": lambda: graph(
        [node("Gather", ["x", "i"], ["y"])], [("x", FLOAT, (9, 4))], [("y", FLOAT, (2, 4))],
        constants={"i": np.array([3, 1])},
    ),
}
# Rule, then what is special about the case.
BROKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "operator: unknown": lambda: unary("Bernoulli"),
    "operator: integers": lambda: binary("MatMulInteger", INT8, INT8, INT32),
    "rtx_operator: NonMaxSuppression": lambda: nms(20),
    "rtx_operator: RoiAlign": lambda: roi_align(FLOAT),
    "rtx_operator: NonZero": lambda: graph(
        [node("NonZero", ["x"], ["y"])], [("x", FLOAT, (4, 4))], [("y", INT64, (2, "n"))]
    ),
    "custom_operator: unknown": lambda: unary("Thermal", domain="somebody"),
    "custom_operator: ours": plugin,
    "control_flow: If": branch,
    "topk: too many": lambda: topk(TOPK_LIMIT + 1),
    "topk: open": open_topk,
    "nms_boxes: too many": lambda: nms(NMS_BOXES_LIMIT + 1),
    "dynamic_shape: batch": lambda: graph(
        [node("Relu", ["x"], ["y"])], [("x", FLOAT, ("b", 8))], [("y", FLOAT, ("b", 8))]
    ),
    "opset: too new": lambda: graph(
        [node("Relu", ["x"], ["y"])], [("x", FLOAT, (2, 8))], [("y", FLOAT, (2, 8))], opset=OPSETS[1] + 1
    ),
    "opset: too old": lambda: graph(
        [node("Relu", ["x"], ["y"])], [("x", FLOAT, (2, 8))], [("y", FLOAT, (2, 8))], opset=OPSETS[0] - 1
    ),
    "mixed_types: Add": lambda: binary("Add", FLOAT, HALF, FLOAT),
    "mixed_types: MatMul": lambda: binary("MatMul", HALF, FLOAT, FLOAT),
    "mixed_types: Concat": lambda: graph(
        [node("Concat", ["x", "z"], ["y"], axis=0)], [("x", FLOAT, (1, 3)), ("z", HALF, (1, 3))], [("y", FLOAT, (2, 3))]
    ),
    "mixed_types: integers": lambda: binary("Add", INT64, INT32, INT64),
    "mixed_types: half weight": half_weight,
    "data_type: UINT16": lambda: cast_through(UINT16),
    "float64: between": lambda: cast_through(DOUBLE, "Sqrt"),
    "uint8: Transpose": lambda: graph(
        [node("Transpose", ["x"], ["t"]), node("Cast", ["t"], ["y"], to=FLOAT)],
        [("x", UINT8, (2, 8))], [("y", FLOAT, (8, 2))],
    ),
    "rank: 9": lambda: graph([node("Neg", ["x"], ["y"])], [("x", FLOAT, (1,) * 9)], [("y", FLOAT, (1,) * 9)]),
    "int32_bias: of a convolution": lambda: conv(bias=np.int32),
    "zero_point: shifted": lambda: conv(zero=3),
    "zero_point: shifted bytes": lambda: conv(np.uint8, 128),
    "zero_point: bytes around zero": lambda: conv(np.uint8),
    "half_boxes: scores": lambda: stages(HALF),
    "half_boxes: RoiAlign": lambda: roi_align(HALF),
    "half_boxes: plugin": lambda: plugin(HALF),
    "half_output: of Relu": lambda: unary("Relu", HALF),
    "half_sums: Softmax": lambda: cast_through(HALF, "Softmax"),
    "half_einsum: MatMul": lambda: einsum(HALF),
}
# Broken rules that cannot be without another one: those of operators that TensorRT-RTX lacks, and an output of half.
BESIDE = {"nms_boxes: too many": {"rtx_operator"}, "half_boxes: RoiAlign": {"rtx_operator"},
          "half_boxes: plugin": {"custom_operator"}}
# Built by TensorRT-RTX although lint calls it an error; the rule says why.
STRICTER = {"zero_point: bytes around zero", "half_boxes: scores", "half_output: of Relu"}


def targets_of(case: str) -> tuple[Target, ...]:
    if case == "custom_operator: ours":
        return ("tensorrt_rtx",)
    return next(rule.targets for rule in RULES if rule.name == case.split(":")[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("crafted")
    made = {case: folder / f"{index}.onnx" for index, case in enumerate({**CLEAN, **BROKEN})}
    for case, make in {**CLEAN, **BROKEN}.items():
        onnx.save(make(), made[case])
    return made


@pytest.fixture(scope="module")
def built(files: dict[str, Path]) -> dict[str, bool]:
    require_rtx()
    came = builds(list(files.values()))
    return {case: came[path.name] for case, path in files.items()}


@pytest.mark.parametrize("target", BOTH)
@pytest.mark.parametrize("case", CLEAN)
def test_nothing_is_said_of(case: str, target: Target, files: dict[str, Path]) -> None:
    assert lint(files[case], target) == []


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_says_what_is_wrong_and_what_to_do(case: str, files: dict[str, Path]) -> None:
    rule = case.split(":")[0]
    for target in BOTH:
        found = lint(files[case], target)
        here = {rule} if target in targets_of(case) else set()
        beside = BESIDE.get(case, set()) if target == "tensorrt_rtx" else set()
        assert {one.rule for one in found} == here | beside
        for one in found:
            assert len(one.message) > 30 and one.message.endswith(".") and "\n" not in one.message
            assert one.node or one.rule == "opset"


def test_every_rule_has_a_case() -> None:
    assert {case.split(":")[0] for case in BROKEN} == {rule.name for rule in RULES}


@pytest.mark.parametrize("case", BROKEN)
def test_the_builder_refuses_what_lint_calls_an_error(
    case: str, files: dict[str, Path], built: dict[str, bool]
) -> None:
    errors = {one.rule for one in lint(files[case], "tensorrt_rtx") if one.severity == "error"}
    if case in STRICTER:
        assert built[case]
        assert all(rule.stricter for rule in RULES if rule.name in errors)
    else:
        assert built[case] == (not errors)


def test_the_builder_builds_what_is_clean(built: dict[str, bool]) -> None:
    assert [case for case in CLEAN if not built[case]] == []


def test_operators_without_an_importer_are_those_that_the_parser_names() -> None:
    require_rtx()
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    known = set(operators(sorted(names)))
    assert {"Conv", "TopK"} <= known
    assert names - known == names & UNKNOWN


def test_of_the_standard_graph(model_of_one: Path) -> None:
    assert lint(model_of_one, "tensorrt") == []
    assert {one.node.split("_")[1] for one in lint(model_of_one, "tensorrt_rtx")} == {"NonMaxSuppression", "roi"}


@pytest.mark.parametrize("ops, buildable", [("plain", list(BOTH)), ("plugin", ["tensorrt"])])
def test_of_the_graphs_for_tensorrt(
    ops: str, buildable: list[Target], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = export_onnx(checkpoint, tmp_path / "model.onnx", ops=ops, precision="fp16")
    assert [target for target in BOTH if not lint(model, target)] == buildable


@pytest.mark.parametrize(
    "content",
    [
        b"holiday pictures",
        graph([node("TopK", ["x"], ["y", "i"])], [("x", FLOAT, (4,))], [("y", FLOAT, (2,))]).SerializeToString(),
        graph([node("Relu", ["x"], ["y"])], [("x", FLOAT, (4,))], [("z", FLOAT, (4,))]).SerializeToString(),
        unary("Relu").SerializeToString().replace(b"Relu", b"Re\xff\xff"),
    ],
    ids=["another file", "too few inputs", "an output that nothing makes", "a name that is no text"],
)
def test_no_onnx_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read as an ONNX file"):
        lint(tmp_path / "a.onnx", "tensorrt")
