"""FP16 as explicit casts in the graph: engines that are strongly typed then compute what was exported and compared.

    half   convolutions and matrix products, and what stands between them and only moves or scales their numbers
    float  LayerNormalization, Softmax, means and sums, box arithmetic, ROI coordinates, scores, inputs, outputs
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from onnxscript import ir, optimizer

from glmd_runtime.errors import PrecisionError

Precision = Literal["fp32", "fp16"]
Between = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # names of tensors: beginnings and ends, pair by pair

# Inputs of each kind that are half: all, or those with these indices (ROIs stay float).
_COMPUTES: dict[str, tuple[int, ...] | None] = {"Conv": None, "Gemm": None, "MatMul": None, "GlmdRoiAlign": (0,)}
# Half where an input is half already, so that no casts stand between two convolutions. Sums and means over a map are
# not among these: 65504, the largest half, is soon reached by a sum of thousands.
_FOLLOWS = frozenset({
    "Add", "Clip", "Concat", "Div", "Erf", "Expand", "Gelu", "Identity", "MaxPool", "Mul", "Pad", "ReduceMax", "Relu",
    "Reshape", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})
# Arithmetic on boxes and scores, from and to tensors of `graph.Stages`: all of it is float, its matrix products too.
BOX_ARITHMETIC: Between = (
    (("objectness", "deltas"), ("proposals", "valid")),
    (("logits", "box_deltas", "proposals"), ("boxes", "scores")),
    (("boxes", "scores", "valid"), ("num_dets", "det_boxes", "det_scores", "det_classes")),  # only in `graph.EndToEnd`
)
_FLOAT_FROM_HERE = ("objectness", "deltas", "logits", "box_deltas")
_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: ir.Model) -> None:
    """Place the casts in a float32 graph of `ExportGraph`, in place. Weights of half operators are stored as half.

    Raises: PrecisionError for a weight that half cannot hold.
    """
    boxes = box_arithmetic(model)
    casts = _Casts(model)
    for node in list(model.graph):
        follows = node.op_type in _FOLLOWS and any(value in casts.half for value in node.inputs)
        if node not in boxes and (follows or node.op_type in _COMPUTES):
            casts.make_half(node, _COMPUTES.get(node.op_type))
        else:
            casts.make_float(node)
    optimizer.remove_unused_nodes(model)


def box_arithmetic(model: ir.Model) -> set[ir.Node]:
    """The nodes between the tensors of BOX_ARITHMETIC."""
    return nodes_between(model, BOX_ARITHMETIC)


def nodes_between(model: ir.Model, tensors: Between) -> set[ir.Node]:
    """The nodes from which the ends depend, back to the beginnings; ends that a graph does not have are left out."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    found: set[ir.Node] = set()
    for begins, ends in tensors:
        waiting = [values[name] for name in ends if name in values]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if node is not None and value.name not in begins and node not in found:
                found.add(node)
                waiting += [one for one in node.inputs if one is not None]
    return found


class _Casts:
    """The values of a graph that are half now, and the casts between both kinds, one a value."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self.half: set[ir.Value] = set()
        self._halves: dict[ir.Value, ir.Value] = {}
        self._floats: dict[ir.Value, ir.Value] = {}

    def make_half(self, node: ir.Node, which: tuple[int, ...] | None) -> None:
        """Let a node compute in half; `which` of its inputs, None is all."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _FLOAT and (which is None or index in which):
                node.replace_input_with(index, self._as_half(value))
        for value in node.outputs:
            self._becomes_half(value)

    def make_float(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value in self.half:
                if value not in self._floats:
                    self._floats[value] = self._cast(value, _FLOAT, f"{value.name}_float")
                node.replace_input_with(index, self._floats[value])

    def _becomes_half(self, value: ir.Value) -> None:
        value.dtype = _HALF
        if value.name not in _FLOAT_FROM_HERE:
            self.half.add(value)
            return
        name, value.name = value.name, f"{value.name}_half"
        uses = tuple(value.uses())
        cast = self._cast(value, _FLOAT, name)
        for node, index in uses:
            node.replace_input_with(index, cast)

    def _as_half(self, value: ir.Value) -> ir.Value:
        if value not in self._halves:
            name, weight = f"{value.name}_half", value.const_value
            self._halves[value] = self._cast(value, _HALF, name) if weight is None else self._store(weight, name)
        return self._halves[value]

    def _store(self, weight: ir.TensorProtocol, name: str) -> ir.Value:
        numbers = weight.numpy()
        if np.abs(numbers).max(initial=0) > _LARGEST:
            raise PrecisionError(f"Half precision holds numbers up to {_LARGEST:g}; {name} has larger. Export in FP32.")
        half = ir.tensor(numbers.astype(np.float16), name=name)
        value = ir.Value(name=name, shape=half.shape, type=ir.TensorType(_HALF), const_value=half)
        self._graph.register_initializer(value)
        return value

    def _cast(self, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        """A new value behind `value`, where it is made or, for an input of the graph, before everything else."""
        node = ir.node("Cast", [value], attributes={"to": to}, name=name)
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = name, to, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return node.outputs[0]
