"""Checkpoint -> one self-contained ONNX file of static shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from onnxscript import ir, optimizer
from torch import Tensor, nn

from glmd_export.graph import EndToEnd, ExportGraph, Final, PcbGraph, Stages
from glmd_export.ops import OPS, Ops
from glmd_export.precision import Precision, to_half
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.manifest import GraphSpec
from glmd_train.checkpoint import Checkpoint

# The first opset with everything the graph needs; TensorRT 10.3 (JetPack 6), ONNX Runtime and OpenVINO all read it.
OPSET = 18
_ANY_SIZE = 2**31
INPUTS = ("images", "valid_hw")
OUTPUTS = ("boxes", "scores", "valid")
FEATURES = "features"


def export_onnx(
    checkpoint: Checkpoint, out: Path, *, batch: int = 1, ops: str = "standard", precision: Precision = "fp32",
    end2end: bool = False, features: bool = False, spared: bool = False,
) -> Path:
    """Write the network of a checkpoint as ONNX, for images of its canvas.

    Args: batch, images a call; ops, a key of `ops.OPS`; precision, "fp16" places casts as `precision.to_half` says;
        end2end, append the final NMS with the checkpoint's thresholds; features, give the pooled vectors too;
        spared, without the arithmetic that `savings` finds needless, for float32 on a CPU.

    inputs   images (B, C, H, W) float32, valid_hw (B, 2) float32
    outputs  boxes (B, R, K, 4) float32, scores (B, R, K) float32, valid (B, R) bool, if asked for features
             (B, R, D) float32; end to end, those of `graph.Final`

    The other `Stages` are in the file under their names, as tensors that are not outputs. The same checkpoint gives the
    same bytes.
    Raises: UnsupportedError for a model without a canvas.
    """
    spec = checkpoint.preprocess
    if spec.resize != "letterbox":
        raise UnsupportedError(
            f"An exported graph has one image size, which needs the resize 'letterbox'; this checkpoint has "
            f"{spec.resize!r}. Give it a canvas with a PreprocessSpec of resize='letterbox'."
        )
    model = _trace_network(checkpoint, batch, OPS[ops](), end2end, spared)
    _tidy(model, Final._fields if end2end else (*OUTPUTS, *([FEATURES] if features else [])))
    if precision == "fp16":
        to_half(model)
    contract = {
        "class_names": list(checkpoint.class_names),
        "preprocess": spec.to_dict(),
        "postprocess": checkpoint.postprocess.to_dict(),
    }
    model.metadata_props.update({key: json.dumps(value) for key, value in contract.items()})
    return _write(model, out)


def export_pcb(checkpoint: Checkpoint, out: Path, *, batch: int = 1) -> Path:
    """Write the classifier of a checkpoint's PCB as ONNX, float32 with the standard operations.

    inputs   images (B, C, H, W) float32, the detector's; boxes (B, N, 4) float32 xyxy in network pixels, N of the
             checkpoint's `max_detections`
    outputs  logits (B, N, D) float32
    """
    assert checkpoint.pcb
    ops, shape = OPS["standard"](), graph_spec(checkpoint, batch).inputs["images"]
    graph = PcbGraph(checkpoint.pcb.classifier, ops, checkpoint.preprocess)
    example = torch.ones(shape), torch.tensor([0.0, 0.0, 64.0, 64.0]).repeat(
        batch, checkpoint.postprocess.max_detections, 1
    )
    model = _trace(graph, example, ("images", "boxes"), ("logits",), ops)
    _tidy(model, ("logits",))
    return _write(model, out)


def _write(model: ir.Model, out: Path) -> Path:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    out.write_bytes(proto.SerializeToString(deterministic=True))
    return out


def graph_spec(checkpoint: Checkpoint, batch: int, features: bool = False) -> GraphSpec:
    """Names and shapes of the exported graph's inputs and outputs."""
    (h, w), c = checkpoint.preprocess.size_hw, checkpoint.preprocess.channels
    r, k = checkpoint.config.proposals, len(checkpoint.class_names)
    inputs = {"images": (batch, c, h, w), "valid_hw": (batch, 2)}
    outputs = {"boxes": (batch, r, k, 4), "scores": (batch, r, k), "valid": (batch, r)}
    if features:
        outputs[FEATURES] = (batch, r, checkpoint.model.roi_heads.predictor.cls_score.in_features)
    return GraphSpec(inputs, outputs)


def _trace_network(checkpoint: Checkpoint, batch: int, ops: Ops, end2end: bool, spared: bool) -> ir.Model:
    graph: nn.Module = ExportGraph(checkpoint.model, ops, checkpoint.preprocess.size_hw, spared=spared)
    names = Stages._fields
    if end2end:
        graph, names = EndToEnd(graph, checkpoint.postprocess), (*names, *Final._fields)
    shapes = graph_spec(checkpoint, batch).inputs
    return _trace(graph, tuple(torch.ones(shapes[name]) for name in INPUTS), INPUTS, names, ops)


def _trace(
    graph: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str], ops: Ops
) -> ir.Model:
    program = torch.onnx.export(
        graph.eval(), example, input_names=list(inputs), output_names=list(outputs), opset_version=OPSET,
        dynamo=True, custom_translation_table=dict(ops.translations), external_data=False, verbose=False,
    )
    return program.model


def _tidy(model: ir.Model, outputs: Sequence[str]) -> None:
    """Fold what is constant, keep the shipped outputs, drop the exporter's notes (source lines of this machine)."""
    # The exporter has folded small constants only; the neck's sine code is as large as a feature map.
    optimizer.fold_constants(
        model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=_folds
    )
    optimizer.remove_unused_nodes(model)
    for node in model.graph:
        if node.op_type == "Identity":
            _read_behind(node)
    by_name = {value.name: value for value in model.graph.outputs}
    model.graph.outputs[:] = [by_name[name] for name in outputs]
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
    model.graph.metadata_props.clear()


def _folds(node: ir.Node) -> bool | None:
    """Products of constants stay: those of `savings.WinogradKernels` are four times as large as what they are made of,
    and there are no others. None leaves it to the optimiser."""
    return False if node.op_type == "MatMul" else None


def _read_behind(identity: ir.Node) -> None:
    """Let the rest of the graph read an Identity's output, which the optimiser had it read around.

    The one Identity there can be is the neck of a model that has none: a cut at `neck` then still separates stages.
    """
    for node, index in tuple(identity.inputs[0].uses()):
        if node is not identity:
            node.replace_input_with(index, identity.outputs[0])
