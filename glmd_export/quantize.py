"""INT8 after training: ranges are measured on calibration pictures, and each library gets the form that it runs.

    OpenVINO       IR quantised by NNCF                            quantize_openvino
    ONNX Runtime   U8S8 QDQ of the standard graph                  quantize_onnxruntime
    TensorRT       symmetric S8 QDQ of the plain graph, no bias    quantize_s8

OpenVINO computes the whole network in INT8 but for its narrowest convolutions. The others get the part that runs once
a proposal, from RoiAlign to the pooled vectors, which does most of the arithmetic: ONNX Runtime would gain a tenth of
its time by more, and TensorRT's whole network waits for a GPU to measure it on. Box arithmetic, RoiAlign, softmax and
LayerNorm stay float. Weights are quantised by channel.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnxscript import ir

from glmd_export.builders import number_nodes, save_openvino
from glmd_export.precision import BOX_ARITHMETIC, Between, nodes_between
from glmd_runtime import backends, boxes
from glmd_runtime.backends import Tensors
from glmd_runtime.comparison import CONFIDENT, greedy_pairs
from glmd_runtime.detections import Detections
from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.install import install_command
from glmd_runtime.preprocess import PreprocessSpec, preprocess
from glmd_runtime.verify_report import VerifyRow
from glmd_runtime.video.sources import PICTURE_SUFFIXES, read_picture

if TYPE_CHECKING:
    import openvino

Step = Callable[[str], None]
Ranges = dict[str, tuple[float, float]]  # tensor -> lowest and highest value

CALIBRATION_IMAGES = 128
# A convolution from and to so few channels stays float. In the light model these are the first three, whose rounding
# everything behind them inherits: with them in float the trunk's signal to noise is 23.6 dB, not 18.4 (24 training
# pictures, thermal_lite0), and the network takes 1 ms more. Float neck, RPN or predictor change nothing (up to 0.2 dB).
_NARROW = 32
# Where rounding to 256 steps costs accuracy and saves next to nothing.
_STAYS_FLOAT = ("Erf", "Exp", "LayerNormalization", "NonMaxSuppression", "RoiAlign", "Softmax")
# All that is not the ROI head; and the predictor, whose layers cost next to nothing in float.
_OUTSIDE_THE_HEAD: Between = (
    *BOX_ARITHMETIC, ((), ("neck", "objectness", "deltas")), (("features",), ("logits", "box_deltas"))
)
_STAYS_FLOAT_IN_OPENVINO = ("Erf", "Exp", "Gelu", "MVN", "NonMaxSuppression", "ROIAlign", "SoftMax", "Softmax")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# Which of near twins wins the final NMS is a matter of rounding: at IoU 0.8 bfloat16, whose accuracy is that of float,
# finds 90% again; at 0.5, where detections count as right, 98.5%.
MATCH_IOU, LEAST_AGREEMENT = 0.5, 0.95


@dataclass(frozen=True)
class CalibrationImages:
    """Pictures as the network's inputs, each read when its turn comes."""

    files: tuple[Path, ...]
    spec: PreprocessSpec

    def __len__(self) -> int:
        return len(self.files)

    def feed(self, index: int, batch: int) -> Tensors:
        """images (B, C, H, W) float32 and valid_hw (B, 2) float32 pixels: one picture, B times."""
        image, geometry = preprocess(read_picture(self.files[index]), self.spec)
        valid_hw = np.asarray(geometry.valid_hw, np.float32)
        return {"images": np.stack([image] * batch), "valid_hw": np.stack([valid_hw] * batch)}


def calibration_images(directory: Path, spec: PreprocessSpec, limit: int = CALIBRATION_IMAGES) -> CalibrationImages:
    """The pictures of a folder and its folders, 8 or 16 bit: at most `limit`, evenly spaced in order of their names.

    Raises: SourceError when there is none; and later, in `feed`, for one that cannot be read.
    """
    files = sorted(
        path for path in directory.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise SourceError(
            f"Calibration needs a folder of pictures ({', '.join(PICTURE_SUFFIXES)}); {directory} has none. "
            "Give one with a hundred or so from the camera that the model is for."
        )
    chosen = np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)
    return CalibrationImages(tuple(files[i] for i in chosen), spec)


def quantize_openvino(model: Path, out: Path, images: CalibrationImages, *, step: Step = lambda _: None) -> Path:
    """A standard float32 graph as OpenVINO IR in INT8, by NNCF.

    Args: out, a path ending in .xml; step, told what is done.
    Raises: UnsupportedError when NNCF or OpenVINO is not installed; SourceError for a picture that cannot be read.
    """
    backends.require("openvino")
    os.environ.setdefault("NNCF_CI", "1")  # it would report its use to its maker
    try:
        import nncf
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"INT8 for OpenVINO needs nncf. Run: {install_command('export')}") from error
    import openvino

    nncf.set_log_level(logging.ERROR)
    network = openvino.Core().read_model(model)
    number_nodes(network)
    _fold_constants(network)
    feed = _feeding(images, network.input("images").shape[0], out.name, step)
    with redirect_stdout(io.StringIO()):  # its own progress bars would stand in the way of --json
        quantized = nncf.quantize(
            network, nncf.Dataset(range(len(images)), feed), subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=_float_in_openvino(network), validate=False),
        )
    return save_openvino(quantized, out)[0]


def _fold_constants(network: openvino.Model) -> None:
    """A depth-wise kernel is read as a reshaped constant, which NNCF does not take for one: it would stay float."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(network)


def _feeding(images: CalibrationImages, batch: int, name: str, step: Step) -> Callable[[int], Tensors]:
    def feed(index: int) -> Tensors:
        step(f"calibrate {name}: picture {index + 1} of {len(images)}")
        return images.feed(index, batch)

    return feed


def _float_in_openvino(network: openvino.Model) -> list[str]:
    """Names of the nodes that stay float: box arithmetic, narrow convolutions and some kinds."""
    named = {name: output for node in network.get_ops() for output in node.outputs() for name in output.get_names()}
    found: set[str] = set()
    for begins, ends in BOX_ARITHMETIC:
        waiting = [named[name] for name in ends if name in named]
        while waiting:
            output = waiting.pop()
            node = output.get_node()
            if not output.get_names() & set(begins) and node.get_friendly_name() not in found:
                found.add(node.get_friendly_name())
                waiting += [one.get_source_output() for one in node.inputs()]
    return sorted(found | {n.get_friendly_name() for n in network.get_ops() if _stays_float_in_openvino(n)})


def _stays_float_in_openvino(node: openvino.Node) -> bool:
    kind = node.get_type_name()
    if kind in ("Convolution", "GroupConvolution"):
        return max(node.input(0).get_shape()[1], node.output(0).get_shape()[1]) <= _NARROW
    return kind in _STAYS_FLOAT_IN_OPENVINO


def quantize_onnxruntime(model: Path, out: Path, images: CalibrationImages, *, step: Step = lambda _: None) -> Path:
    """A standard float32 graph with Q/DQ around all that ONNX Runtime computes in INT8, activations unsigned.

    Args: step, told what is done.
    Raises: UnsupportedError when ONNX Runtime is not installed; SourceError for a picture that cannot be read.
    """
    backends.require("onnxruntime")
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.registry import QDQRegistry

    scheme = _Scheme(QuantType.QUInt8, sorted(QDQRegistry), grouped=True, options={})
    return _quantize(model, out, images, scheme, step)


def quantize_s8(model: Path, out: Path, images: CalibrationImages, *, step: Step = lambda _: None) -> Path:
    """A plain float32 graph with symmetric Q/DQ on the inputs of its convolutions and linear layers, for TensorRT.

    Depth-wise convolutions stay float: in INT8 TensorRT-RTX pads each of their channels to four, which makes the engine
    of the light model twice as large (34 MB instead of 16).
    Args: step, told what is done.
    Raises: UnsupportedError when ONNX Runtime is not installed; SourceError for a picture that cannot be read.
    """
    backends.require("onnxruntime")
    from onnxruntime.quantization import QuantType

    options = {
        "ActivationSymmetric": True,
        "QuantizeBias": False,  # TensorRT dequantises no INT32
        # The output of a convolution is rounded where the next one reads it, behind the activation: once, not twice.
        "OpTypesToExcludeOutputQuantization": list(_WEIGHTED),
    }
    scheme = _Scheme(QuantType.QInt8, list(_WEIGHTED), grouped=False, options=options)
    return _quantize(model, out, images, scheme, step)


class _Scheme(NamedTuple):
    """activation: its type; kinds: of operators; grouped: whether with grouped convolutions; options: of the tool."""

    activation: Any
    kinds: list[str]
    grouped: bool
    options: dict[str, Any]


def _quantize(model: Path, out: Path, images: CalibrationImages, scheme: _Scheme, step: Step) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    stays = _float_nodes(proto, scheme)
    names = _activations(proto, [n for n in proto.graph.node if n.op_type in scheme.kinds and n.name not in stays])
    feed = _feeding(images, proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value, out.name, step)
    measured = measure_ranges(proto, names, map(feed, range(len(images))))
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in measured.items()
    }
    quantizer = QDQQuantizer(
        proto, per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8, activation_qType=scheme.activation,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges), nodes_to_quantize=[], nodes_to_exclude=stays,
        op_types_to_quantize=scheme.kinds, extra_options=scheme.options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    out.write_bytes(quantizer.model.model.SerializeToString(deterministic=True))
    return out


def _float_nodes(proto: onnx.ModelProto, scheme: _Scheme) -> list[str]:
    found = {node.name for node in nodes_between(ir.from_proto(proto), _OUTSIDE_THE_HEAD)}
    found |= {node.name for node in proto.graph.node if node.op_type in _STAYS_FLOAT}
    # Products of two activations: attention, and the interpolation that RoiAlign is in the plain graph.
    constants = {tensor.name for tensor in proto.graph.initializer}
    found |= {n.name for n in proto.graph.node if n.op_type == "MatMul" and not constants & set(n.input)}
    if not scheme.grouped:
        found |= {n.name for n in proto.graph.node if any(a.name == "group" and a.i > 1 for a in n.attribute)}
    return sorted(found)


def _activations(proto: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> list[str]:
    """The float tensors that these nodes read and give, without constants."""
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return sorted({name for node in nodes for name in (*node.input, *node.output)} & floats)


def measure_ranges(proto: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Tensors]) -> Ranges:
    """The lowest and the highest value of each tensor in all pictures; 0 is always among them."""
    import onnxruntime

    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    del tapped.graph.output[:]
    for i, name in enumerate(names):
        # Reduced inside the graph: the tensors themselves would fill the memory.
        for kind in ("Min", "Max"):
            tapped.graph.node.append(onnx.helper.make_node(f"Reduce{kind}", [name], [f"tap{kind}{i}"], keepdims=0))
            tapped.graph.output.append(onnx.helper.make_tensor_value_info(f"tap{kind}{i}", onnx.TensorProto.FLOAT, ()))
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = np.asarray([session.run(None, feed) for feed in feeds])  # (pictures, 2 T): low, high, low, ...
    lows, highs = seen[:, 0::2].min(axis=0, initial=0), seen[:, 1::2].max(axis=0, initial=0)  # (T,)
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def agreement(
    expected: Sequence[Detections], came: Sequence[Detections], score: float = CONFIDENT, iou: float = MATCH_IOU
) -> float:
    """Share of the expected detections above `score` that were found again: one to one, of their class, at `iou`.

    Args: detections of the same pictures, `came` down to EVAL_SCORE, as quantising also moves scores.
    Returns: 0..1, nan when nothing was expected.
    """
    confident = [one[one.scores > score] for one in expected]
    found = sum(_found_again(one, other, iou) for one, other in zip(confident, came, strict=True))
    total = sum(len(one) for one in confident)
    return found / total if total else float("nan")


def _found_again(expected: Detections, came: Detections, least: float) -> int:
    overlap = boxes.iou(expected.xyxy, came.xyxy)  # (N, M)
    allowed = (overlap >= least) & (expected.class_ids[:, None] == came.class_ids)
    return len(greedy_pairs(np.where(allowed, 1 - overlap, np.inf))[0])


def agreement_row(
    engine: str, backend: str, expected: Sequence[Detections], came: Sequence[Detections]
) -> VerifyRow:
    """What can be said of INT8 without annotations: the float32 detections must be found again.

    It passes with a reason, that accuracy was not measured; it is not_run when there was no detection to find.
    """
    share = agreement(expected, came)
    number = sum(int((one.scores > CONFIDENT).sum()) for one in expected)
    metrics = {"found_again": share, "detections": float(number)} if number else {"detections": 0.0}
    if not number:
        reason = f"float32 detects nothing above {CONFIDENT} in the calibration pictures. Give --data with annotations"
        return VerifyRow(engine, backend, "int8", "agreement", "not_run", reason, metrics)
    if share < LEAST_AGREEMENT:
        reason = f"found_again {share:.4g}, expected >= {LEAST_AGREEMENT:g}"
        return VerifyRow(engine, backend, "int8", "agreement", "failed", reason, metrics)
    reason = "accuracy was not measured: no --data"
    return VerifyRow(engine, backend, "int8", "agreement", "passed", reason, metrics)
