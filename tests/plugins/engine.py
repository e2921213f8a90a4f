"""A TensorRT engine of the two plugins, built and run: GlmdSelectProposals' boxes pooled by GlmdRoiAlign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

SELECT = {"pre_nms_topk": 1000, "proposals": 100, "iou": 0.7}
POOL = {"bins": 7, "stride": 16, "sampling_ratio": 0}
B, C, H, W = 2, 16, 40, 50
N = 15 * H * W
INPUTS = {
    "objectness": (TensorProto.FLOAT, (B, N)), "deltas": (TensorProto.FLOAT, (B, N, 4)),
    "anchors": (TensorProto.FLOAT, (N, 4)), "edges": (TensorProto.FLOAT, (B, 4)),
    "features": (TensorProto.FLOAT16, (B, C, H, W)),
}


def graph() -> bytes:
    """The ONNX model: both operators as the exported graph calls them, in the domain `glmd`."""
    select = helper.make_node(
        "GlmdSelectProposals", ["objectness", "deltas", "anchors", "edges"], ["boxes", "valid"], domain="glmd", **SELECT
    )
    pool = helper.make_node("GlmdRoiAlign", ["features", "boxes"], ["pooled"], domain="glmd", **POOL)
    proposals, bins = SELECT["proposals"], POOL["bins"]
    outputs = {
        "boxes": (TensorProto.FLOAT, (B, proposals, 4)), "valid": (TensorProto.BOOL, (B, proposals)),
        "pooled": (TensorProto.FLOAT16, (B * proposals, C, bins, bins)),
    }
    values = [
        [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in side.items()]
        for side in (INPUTS, outputs)
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("glmd", 1)]
    model = helper.make_model(helper.make_graph([select, pool], "plugins", *values), opset_imports=opsets)
    return model.SerializeToString()


def build(trt: Any, library: Path) -> bytes:
    """The serialised engine."""
    trt.get_plugin_registry().load_library(str(library))
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Strongly typed on both majors: a flag on 10.x, the only way since 11.
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph()):
        raise RuntimeError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise RuntimeError("TensorRT built no engine; its log says why")
    return bytes(plan)


def run(trt: Any, plan: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One inference on the current device, in torch's memory."""
    import torch

    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    kinds = {"boxes": torch.float32, "valid": torch.bool, "pooled": torch.float16}
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    for name in kinds:
        tensors[name] = torch.zeros(tuple(engine.get_tensor_shape(name)), dtype=kinds[name], device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if not context.execute_async_v3(stream.cuda_stream):
        raise RuntimeError("TensorRT refused to run the engine; its log says why")
    stream.synchronize()
    return {name: tensors[name].cpu().numpy() for name in kinds}
