"""What a network must at least do: multiply-adds and bytes of every product and convolution, by stage of the graph.

Everything else (activations, normalisation, softmax, NMS, layout) counts for nothing, as if it cost no time: a stage's
roofline is what its products cost at best, and what it takes beyond is the engine's.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import openvino

from glmd_export.parity import STAGES

ROI_ALIGN = "RoiAlign"
RES5 = "res5"
STAGE_NAMES = tuple(RES5 if stage.name == "pooled" else stage.name for stage in STAGES)
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


class Operation(NamedTuple):
    """macs: multiply-adds; elements: numbers read (weights too) and written; dense: no depth-wise convolution."""

    name: str
    stage: str
    macs: int
    elements: int
    dense: bool


def operations(network: openvino.Model) -> dict[str, Operation]:
    """Every node of a graph by its name; `macs` is 0 of all but products and convolutions."""
    stages = stage_of(network)
    return {
        node.get_friendly_name(): Operation(
            node.get_friendly_name(), stages.get(node.get_friendly_name(), ""), multiply_adds(node), elements(node),
            node.get_type_name() != "GroupConvolution",
        )
        for node in network.get_ops()
    }


def stage_of(network: openvino.Model) -> dict[str, str]:
    """Name of a node -> the stage it belongs to: back from the named tensors that a stage gives to those it is given.

    The pooled vectors' stage is in two: RoiAlign, and what is done for each proposal before or after it.
    """
    named = {name: output for node in network.get_ops() for output in node.outputs() for name in output.get_names()}
    found: dict[str, str] = {}
    for stage, called in zip(STAGES, STAGE_NAMES, strict=True):
        waiting = [named[name] for name in stage.outputs if name in named]
        while waiting:
            output = waiting.pop()
            node = output.get_node()
            if output.get_names() & set(stage.inputs) or node.get_friendly_name() in found:
                continue
            found[node.get_friendly_name()] = ROI_ALIGN if node.get_type_name() == "ROIAlign" else called
            waiting += [one.get_source_output() for one in node.inputs()]
    return found


def multiply_adds(node: openvino.Node) -> int:
    kind = node.get_type_name()
    if kind == "Convolution":  # weights (O, I, kh, kw)
        return outputs(node) * prod(node.input(1).get_shape()[1:])
    if kind == "GroupConvolution":  # weights (G, O / G, I / G, kh, kw)
        return outputs(node) * prod(node.input(1).get_shape()[2:])
    if kind == "MatMul":
        rows, columns = list(node.input(0).get_shape())[-2:]
        return outputs(node) * (rows if node.get_attributes()["transpose_a"] else columns)
    return 0


def elements(node: openvino.Node) -> int:
    return sum(prod(one.get_shape()) for one in node.inputs()) + outputs(node) if multiply_adds(node) else 0


def outputs(node: openvino.Node) -> int:
    return prod(node.output(0).get_shape())
