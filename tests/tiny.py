"""A bundle in miniature: a graph of a few nodes with the inputs and outputs of a real one, its answers known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from glmd_runtime import backends
from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.manifest import GraphSpec, Manifest
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec, preprocess
from glmd_runtime.reference import Reference
from glmd_runtime.verify_report import ENGINE_STAGES, Status, VerifyReport, VerifyRow

CLASS_NAMES = ("person", "car")
SIZE_HW = (64, 80)
SPEC = PreprocessSpec(SIZE_HW, mean=(128.0,), std=(50.0,))

# Four proposals, two classes: a person, the same person again, a car that leaves the canvas, and padding.
BOXES = np.zeros((4, 2, 4), np.float32)
BOXES[:2, 0] = [[10, 10, 20, 40], [11, 10, 21, 40]]
BOXES[2, 1] = [40, 20, 100, 100]
SCORES = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5], [1.0, 1.0]], np.float32)
VALID = np.array([True, True, True, False])


def graph_spec(batch: int = 1) -> GraphSpec:
    inputs = {"images": (batch, 1, *SIZE_HW), "valid_hw": (batch, 2)}
    return GraphSpec(inputs, {"boxes": (batch, 4, 2, 4), "scores": (batch, 4, 2), "valid": (batch, 4)})


def model(batch: int = 1) -> bytes:
    """ONNX: boxes = min(BOXES, valid), scores = SCORES * sigmoid(mean of the image), valid = VALID."""
    spec = graph_spec(batch)
    kinds = {"valid": TensorProto.BOOL}
    constants = {
        "BOXES": BOXES[None],
        "SCORES": SCORES[None],
        "VALID": np.tile(VALID, (batch, 1)),
        "whwh": np.array([1, 0, 1, 0]),
        "edge_shape": np.array([batch, 1, 1, 4]),
        "brightness_shape": np.array([batch, 1, 1]),
    }
    nodes = [
        helper.make_node("Gather", ["valid_hw", "whwh"], ["edges"], axis=1),
        helper.make_node("Reshape", ["edges", "edge_shape"], ["edges4"]),
        helper.make_node("Min", ["BOXES", "edges4"], ["boxes"]),
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["sigmoid"]),
        helper.make_node("Reshape", ["sigmoid", "brightness_shape"], ["brightness"]),
        helper.make_node("Mul", ["SCORES", "brightness"], ["scores"]),
        helper.make_node("Identity", ["VALID"], ["valid"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), shape) for n, shape in side.items()]
        for side in (spec.inputs, spec.outputs)
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def answers(images: np.ndarray, valid_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the graph says, in numpy: boxes (N, 4, 2, 4), scores (N, 4, 2), valid (N, 4)."""
    edges = valid_hw[:, [1, 0, 1, 0]][:, None, None]
    brightness = 1 / (1 + np.exp(-images.mean(axis=(1, 2, 3), dtype=np.float64)))[:, None, None]
    boxes, scores = np.minimum(BOXES, edges), (SCORES * brightness).astype(np.float32)
    return boxes.astype(np.float32), scores, np.tile(VALID, (len(images), 1))


def frames() -> tuple[np.ndarray, ...]:
    """16-bit, 8-bit, colour, and another size, which leaves a margin on the canvas."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(7000, 9000, SIZE_HW, dtype=np.uint16),
        rng.integers(0, 256, SIZE_HW, dtype=np.uint8),
        rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8),
        rng.integers(0, 256, (120, 100), dtype=np.uint8),
    )


def reference() -> Reference:
    pairs = [preprocess(frame, SPEC) for frame in frames()]
    images = np.stack([image for image, _ in pairs])
    valid_hw = np.array([geometry.valid_hw for _, geometry in pairs], np.float32)
    return Reference(frames(), images, valid_hw, *answers(images, valid_hw))


def manifest(batch: int = 1) -> Manifest:
    post = PostprocessSpec((0.2, 0.1))
    return Manifest("tiny", CLASS_NAMES, SPEC, post, graph_spec(batch), {"model.onnx": "fp32"}, {"checkpoint": "none"})


def report(status: Status = "passed") -> VerifyReport:
    rows = [VerifyRow("model.onnx", b, "fp32", s, status) for b in backends.BACKENDS for s in ENGINE_STAGES]
    return VerifyReport(tuple(rows))


def bundle(path: Path, batch: int = 1, verified: VerifyReport | None = None, overwrite: bool = False) -> Bundle:
    import json

    verify = json.dumps((verified or report()).to_dict()).encode()
    files = {"model.onnx": model(batch), "reference.npz": reference().to_bytes(), "verify.json": verify}
    return write_bundle(path, manifest(batch), files, overwrite=overwrite)
