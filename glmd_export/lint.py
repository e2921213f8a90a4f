"""TensorRT's rules, checked on the ONNX file alone: no TensorRT, no GPU, a fraction of a second.

    error    the builder refuses the file, or builds an engine whose answers are not the graph's
    warning  it builds, and something may be less exact or slower than it looks

Where a rule calls an error what TensorRT-RTX would build, `Rule.stricter` says why. The rules were found by building
(tests/export/test_lint.py does it again); what only full TensorRT says is from its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnxscript import ir

from glmd_export.precision import BOX_ARITHMETIC, box_arithmetic
from glmd_runtime.errors import BundleError

Target = Literal["tensorrt", "tensorrt_rtx"]
Severity = Literal["error", "warning"]
BOTH: tuple[Target, ...] = ("tensorrt", "tensorrt_rtx")

TOPK_LIMIT = 3840
NMS_BOXES_LIMIT = 5000
RANK_LIMIT = 8
OPSETS = (9, 20)  # what TensorRT 10.3 reads, the oldest that is supported here
PLUGINS = ("GlmdRoiAlign", "GlmdSelectProposals")
_PLAIN = "Export the plain graph (ops='plain')."

# Operators of ONNX that the parsers of TensorRT 10.3 to 11 and TensorRT-RTX have no importer for.
UNKNOWN = frozenset({
    "AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "CumProd", "DFT", "DeformConv",
    "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
    "Multinomial", "NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement",
    "QLinearConv", "QLinearMatMul", "RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
    "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit", "SwiGLU", "TfIdfVectorizer", "Unique",
})
# Parsed by TensorRT-RTX perhaps, built by it never: they are plugins or have data-dependent shapes.
_NOT_IN_RTX = ("NonMaxSuppression", "NonZero", "RoiAlign")
_TYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT4, ir.DataType.INT8, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8, ir.DataType.BOOL,
    ir.DataType.UNDEFINED,
})
_LOSES_IN_HALF = (
    "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax",
)
_ROI_INPUTS = {"RoiAlign": (1,), "GlmdRoiAlign": (1,), "GlmdSelectProposals": (0, 1, 2, 3)}
_HALF = ir.DataType.FLOAT16

Said = Iterator[tuple[str, str]]  # node or tensor, message


class Finding(NamedTuple):
    """One broken rule at one place; `node` names a node, or a tensor of the graph's interface."""

    rule: str
    severity: Severity
    node: str
    message: str


class Rule(NamedTuple):
    name: str
    check: Callable[[Graph], Said]
    severity: Severity = "error"
    targets: tuple[Target, ...] = BOTH
    stricter: str = ""


def lint(model_path: Path, target: Target) -> list[Finding]:
    """What TensorRT or TensorRT-RTX will not build of an ONNX file, or not as it is written; [] when all is well.

    Raises: BundleError when the file is no ONNX file.
    """
    graph = Graph(_read(model_path), target)
    return [
        Finding(rule.name, rule.severity, node, message)
        for rule in RULES if target in rule.targets
        for node, message in rule.check(graph)
    ]


def _read(path: Path) -> ir.Model:
    try:
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        with suppress(onnx.shape_inference.InferenceError):  # a type that contradicts another is what the rules are for
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        return ir.from_proto(proto)
    except Exception as error:  # of as many kinds as there are libraries
        raise BundleError(f"{path} cannot be read as an ONNX file: {error}. Export the checkpoint again.") from error


class Graph:
    """What the rules ask of a model: nodes, inputs and outputs; types and shapes as far as ONNX can infer them."""

    def __init__(self, model: ir.Model, target: Target) -> None:
        self.model, self.target = model, target
        self.nodes = list(model.graph.all_nodes())
        self.inputs, self.outputs = model.graph.inputs, model.graph.outputs

    def of(self, *kinds: str) -> Iterator[ir.Node]:
        return (node for node in self.nodes if node.op_type in kinds)

    @cached_property
    def values(self) -> list[ir.Value]:
        return [*self.inputs, *self.model.graph.initializers.values(), *(v for n in self.nodes for v in n.outputs)]

    @cached_property
    def box_values(self) -> list[ir.Value]:
        """Boxes and scores on their way, where the file has the tensors of `graph.Stages` where they begin."""
        named = {value.name: value for value in self.values}
        begins = [named[name] for names, _ in BOX_ARITHMETIC for name in names if name in named]
        if not {"objectness", "deltas", "logits", "box_deltas"} <= set(named):
            return []
        return [*begins, *(value for node in box_arithmetic(self.model) for value in node.outputs)]


def _name(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), node.op_type)


def _floats(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _operator(graph: Graph) -> Said:
    for node in graph.of(*UNKNOWN):
        yield _name(node), f"TensorRT has no {node.op_type}. Write it with other operators."


def _rtx_operator(graph: Graph) -> Said:
    for node in graph.of(*_NOT_IN_RTX):
        yield _name(node), f"TensorRT-RTX does not build {node.op_type}. {_PLAIN}"


def _custom_operator(graph: Graph) -> Said:
    for node in graph.nodes:
        ours = node.domain == "glmd" and node.op_type in PLUGINS
        if node.domain not in ("", "ai.onnx") and not (ours and graph.target == "tensorrt"):
            message = f"TensorRT knows {' and '.join(PLUGINS)} beside ONNX's own operators, TensorRT-RTX neither"
            yield _name(node), f"{message}; got {node.domain}.{node.op_type}. {_PLAIN}"


def _control_flow(graph: Graph) -> Said:
    for node in graph.of("If", "Loop", "Scan"):
        yield _name(node), f"{node.op_type} keeps an engine from being captured as a CUDA graph. Unroll it."


def _topk(graph: Graph) -> Said:
    for node in graph.of("TopK"):
        k = node.inputs[1].const_value if node.inputs[1] else None
        if k is None or k.size != 1:
            yield _name(node), "TopK needs a constant K, or the shapes behind it are open. Fix K at export."
        elif (came := int(k.numpy().item())) > TOPK_LIMIT:
            yield _name(node), f"TopK takes K up to {TOPK_LIMIT}; got {came}. {_PLAIN}"


def _nms_boxes(graph: Graph) -> Said:
    for node in graph.of("NonMaxSuppression"):
        shape = node.inputs[0].shape if node.inputs[0] else None
        if shape is not None and isinstance(shape[1], int) and shape[1] > NMS_BOXES_LIMIT:
            message = f"TensorRT's NonMaxSuppression looks at {NMS_BOXES_LIMIT} boxes; got {shape[1]}"
            yield _name(node), f"{message}. Keep fewer before it, or export the plugin graph (ops='plugin')."


def _dynamic_shape(graph: Graph) -> Said:
    for value in graph.inputs:
        if value.shape is None or not value.shape.is_static():
            yield str(value.name), f"Shapes must be fixed, no profile gives a range; got {value.shape}. Export again."


def _opset(graph: Graph) -> Said:
    came, (low, high) = graph.model.opset_imports.get("", 0), OPSETS
    if not low <= came <= high:
        yield "", f"TensorRT 10.3 reads opset {low} to {high}; got {came}. Export with opset 18."


def _mixed_types(graph: Graph) -> Said:
    for node in graph.nodes:
        for values in _alike(node, graph.model.opset_imports.get(node.domain, 0)):
            kinds = [value.dtype for value in values if value.dtype is not None]
            if len(set(kinds)) > 1:
                names = " and ".join(kind.name for kind in dict.fromkeys(kinds))
                yield _name(node), f"{node.op_type} needs inputs of one type; got {names}. Place a Cast before it."


def _alike(node: ir.Node, opset: int) -> list[list[ir.Value]]:
    """The inputs of a node in groups that must have the same type, by ONNX's own definition."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return []
    groups: dict[str, list[ir.Value]] = {}
    for index, value in enumerate(node.inputs):
        if value is not None and schema.inputs:
            groups.setdefault(schema.inputs[min(index, len(schema.inputs) - 1)].type_str, []).append(value)
    return list(groups.values())


def _data_type(graph: Graph) -> Said:
    for value in graph.values:
        if value.dtype is not None and value.dtype not in _TYPES:
            yield str(value.name), f"TensorRT has no type {value.dtype.name}. Use INT32 or FLOAT."


def _float64(graph: Graph) -> Said:
    for value in graph.values:
        if value.dtype == ir.DataType.DOUBLE:
            yield str(value.name), "TensorRT computes DOUBLE as FLOAT without saying so. Use FLOAT in the model."


def _uint8(graph: Graph) -> Said:
    for node in graph.nodes:
        if node.op_type not in ("Cast", "DequantizeLinear", "QuantizeLinear") and any(
            value.dtype == ir.DataType.UINT8 for value in _floats(node)
        ):
            yield _name(node), f"TensorRT only casts UINT8; got {node.op_type} on it. Cast the input to FLOAT first."


def _rank(graph: Graph) -> Said:
    for value in graph.values:
        if value.shape is not None and len(value.shape) > RANK_LIMIT:
            yield str(value.name), f"A tensor has at most {RANK_LIMIT} dimensions; got {len(value.shape)}. Reshape it."


def _int32_bias(graph: Graph) -> Said:
    for node in graph.of("DequantizeLinear"):
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.INT32:
            yield _name(node), "TensorRT dequantises no INT32. Leave the bias in FLOAT (QuantizeBias=False)."


def _zero_point(graph: Graph) -> Said:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is None or zero.dtype == ir.DataType.INT32:
            continue
        shifted = zero.const_value is None or bool(np.any(zero.const_value.numpy().astype(np.int32)))
        if shifted or zero.dtype == ir.DataType.UINT8:
            came = f"{zero.dtype.name if zero.dtype else 'another type'}{' around another point' if shifted else ''}"
            yield _name(node), f"TensorRT quantises to INT8 around zero; got {came}. Quantise with quantize_s8."


def _half_boxes(graph: Graph) -> Said:
    reason = "Half has steps of 0.5 px above 512. Cast to FLOAT before it"
    for value in graph.box_values:
        if value.dtype == _HALF:
            yield str(value.name), f"Boxes and scores must be FLOAT; got FLOAT16. {reason}."
    for node in graph.of(*_ROI_INPUTS):
        for index in _ROI_INPUTS[node.op_type]:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and value.dtype == _HALF:
                remedy = f"{reason}, or export another graph (ops='plain' or 'plugin')."
                yield _name(node), f"Coordinates of {node.op_type} must be FLOAT; {value.name} is FLOAT16. {remedy}"


def _half_output(graph: Graph) -> Said:
    for value in graph.outputs:
        if value.dtype == _HALF:
            yield str(value.name), "An output must be FLOAT, as backends hand it on; got FLOAT16. Cast it at the end."


def _half_sums(graph: Graph) -> Said:
    for node in graph.of(*_LOSES_IN_HALF):
        if node.inputs[0] is not None and node.inputs[0].dtype == _HALF:
            yield _name(node), f"{node.op_type} sums up in FLOAT16 and may overflow. Cast to FLOAT before it."


def _half_einsum(graph: Graph) -> Said:
    for node in graph.of("Einsum"):
        if any(value.dtype == _HALF for value in _floats(node)):
            yield _name(node), "Einsum is computed in FLOAT whatever its type. Write it as MatMul."


RULES = (
    Rule("operator", _operator),
    Rule("rtx_operator", _rtx_operator, targets=("tensorrt_rtx",)),
    Rule("custom_operator", _custom_operator),
    Rule("control_flow", _control_flow, "warning"),
    Rule("topk", _topk),
    Rule("nms_boxes", _nms_boxes, targets=("tensorrt",)),
    Rule("dynamic_shape", _dynamic_shape),
    Rule("opset", _opset, targets=("tensorrt",)),
    Rule("mixed_types", _mixed_types),
    Rule("data_type", _data_type),
    Rule("float64", _float64, "warning"),
    Rule("uint8", _uint8),
    Rule("rank", _rank),
    Rule("int32_bias", _int32_bias),
    Rule("zero_point", _zero_point, stricter="UINT8 around zero builds as INT8, which ends at 127 instead of 255"),
    Rule("half_boxes", _half_boxes, stricter="it builds, and boxes move by up to a pixel"),
    Rule("half_output", _half_output, stricter="it builds, and every backend would have to convert"),
    Rule("half_sums", _half_sums, "warning"),
    Rule("half_einsum", _half_einsum, "warning"),
)
