"""The tiny graph of tests.tiny as TensorRT gets it: with half convolutions, with custom operators, with Q/DQ nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.preprocess import preprocess
from glmd_runtime.reference import Reference
from glmd_runtime.verify_report import VerifyReport
from tests import tiny

HALF, PLUGIN, INT8 = "model.fp16.onnx", "model.plugin.fp16.onnx", "model.s8.onnx"


def half_model(batch: int = 1, *, plugin: bool = False) -> bytes:
    """The tiny graph, its images sent through a half convolution that changes nothing (and a custom operator)."""
    nodes = [
        helper.make_node("Cast", ["images"], ["half_images"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half_images", "weight"], ["half_features"], name="conv1"),
        helper.make_node("Cast", ["half_features"], ["features"], to=TensorProto.FLOAT),
    ]
    if plugin:
        nodes[-1].output[0] = "before"
        nodes.append(helper.make_node("GlmdRoiAlign", ["before"], ["features"], name="roi", domain="glmd", bins=7))
    return _with(nodes, {"weight": np.ones((1, 1, 1, 1), np.float16)}, batch)


def int8_model(batch: int = 1) -> bytes:
    """The same with a convolution between symmetric Q/DQ nodes, fine enough for the answers to stay."""
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"], name="dq1"),
        helper.make_node("DequantizeLinear", ["weight", "one", "zero"], ["dq_weight"], name="dq2"),
        helper.make_node("Conv", ["dq", "dq_weight"], ["features"], name="conv1"),
    ]
    constants = {
        "scale": np.float32(0.025),
        "one": np.float32(1),
        "zero": np.int8(0),
        "weight": np.ones((1, 1, 1, 1), np.int8),
    }
    return _with(nodes, constants, batch)


def _with(nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], batch: int) -> bytes:
    """The tiny graph with nodes in front that make `features` of `images`."""
    model = onnx.load_from_string(tiny.model(batch))
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            node.input[0] = "features"
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    model.opset_import.append(helper.make_opsetid("glmd", 1))
    return model.SerializeToString()


def bundle(
    path: Path, engines: Mapping[str, tuple[str, bytes]], verified: VerifyReport | None = None, batch: int = 1
) -> Bundle:
    """A bundle of these engines, file name -> (precision, content), and of model.onnx."""
    engines = {"model.onnx": ("fp32", tiny.model(batch)), **engines}
    manifest = replace(tiny.manifest(batch), engines={name: precision for name, (precision, _) in engines.items()})
    files: dict[str, bytes | Path] = {name: content for name, (_, content) in engines.items()}
    files["reference.npz"] = tiny.reference().to_bytes()
    files["verify.json"] = json.dumps((verified or tiny.report()).to_dict()).encode()
    return write_bundle(path, manifest, files)


def half_bundle(path: Path, batch: int = 1) -> Bundle:
    return bundle(path, {HALF: ("fp16", half_model(batch))}, batch=batch)


def doctor_bundle(path: Path) -> Bundle:
    """What glmd-doctor tries; in the package: `doctor_bundle(Path("glmd_runtime/doctor/tiny.glmd"))`."""
    ramp = np.tile(np.arange(tiny.SIZE_HW[1], dtype=np.uint8), (tiny.SIZE_HW[0], 1))
    images = preprocess(ramp, tiny.SPEC)[0][None]
    valid_hw = np.array([tiny.SIZE_HW], np.float32)
    reference = Reference((ramp,), images, valid_hw, *tiny.answers(images, valid_hw))
    engines = {"model.onnx": "fp32", HALF: "fp16"}
    manifest = replace(tiny.manifest(), engines=engines, provenance={"made by": "tests.fakes.models.doctor_bundle"})
    files: dict[str, bytes | Path] = {"model.onnx": tiny.model(), HALF: half_model()}
    files["reference.npz"] = reference.to_bytes()
    files["verify.json"] = json.dumps(tiny.report().to_dict()).encode()
    return write_bundle(path, manifest, files)
