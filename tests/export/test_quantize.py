"""INT8: which nodes are quantised and how, what the quantised graphs answer, and what counts as found again."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from glmd_export.graph import Stages
from glmd_export.lint import BOTH, lint
from glmd_export.onnx_export import OUTPUTS, export_onnx
from glmd_export.quantize import (
    CalibrationImages,
    agreement,
    agreement_row,
    calibration_images,
    measure_ranges,
    quantize_onnxruntime,
    quantize_openvino,
    quantize_s8,
)
from glmd_runtime import backends
from glmd_runtime.detections import Detections
from glmd_runtime.errors import SourceError, UnsupportedError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import preprocess
from glmd_runtime.reference import Reference
from glmd_runtime.video.sources import read_picture
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from tests.conftest import skip_unless
from tests.export.test_builders import SHIPPED

Quantize = Callable[..., Path]


def require(library: str) -> None:
    skip_unless(library in backends.available(), library, f"{library} is not installed")


@pytest.fixture(scope="module")
def pictures(frames: tuple[np.ndarray, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pictures, 8 and 16 bit, one of them in a folder inside; and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "night").mkdir()
    cv2.imwrite(str(folder / "night" / "counts.png"), frames[0])
    cv2.imwrite(str(folder / "a.png"), frames[1])
    (folder / "notes.txt").write_text("taken on the roof")
    (folder / ".thumbnail.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def images(pictures: Path, checkpoint: Checkpoint) -> CalibrationImages:
    return calibration_images(pictures, checkpoint.preprocess)


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(checkpoint, tmp_path_factory.mktemp("plain") / "model.onnx", ops="plain")


@pytest.fixture(scope="module")
def u8(model_of_one: Path, images: CalibrationImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("onnxruntime")
    return quantize_onnxruntime(model_of_one, tmp_path_factory.mktemp("u8") / "model.int8.onnx", images)


@pytest.fixture(scope="module")
def s8(plain: Path, images: CalibrationImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("onnxruntime")
    return quantize_s8(plain, tmp_path_factory.mktemp("s8") / "model.s8.onnx", images)


@pytest.fixture(scope="module")
def openvino_int8(model_of_one: Path, images: CalibrationImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("openvino")
    pytest.importorskip("nncf")
    return quantize_openvino(model_of_one, tmp_path_factory.mktemp("ov") / "openvino.int8.xml", images)


def test_calibration_pictures_are_those_of_all_folders_in_order(images: CalibrationImages) -> None:
    assert [path.name for path in images.files] == ["a.png", "counts.png"]


def test_a_picture_becomes_what_the_network_reads(
    images: CalibrationImages, frames: tuple[np.ndarray, ...], checkpoint: Checkpoint
) -> None:
    for index, frame in enumerate((frames[1], frames[0])):
        image, geometry = preprocess(frame, checkpoint.preprocess)
        feed = images.feed(index, batch=2)
        assert {name: value.dtype for name, value in feed.items()} == {"images": np.float32, "valid_hw": np.float32}
        np.testing.assert_array_equal(feed["images"], [image, image])
        np.testing.assert_array_equal(feed["valid_hw"], [geometry.valid_hw] * 2)


@pytest.mark.parametrize("limit, chosen", [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, range(10)), (99, range(10))])
def test_of_many_pictures_some_are_taken_evenly(
    limit: int, chosen: Iterable[int], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    for i in range(10):
        (tmp_path / f"{i}.png").touch()
    came = calibration_images(tmp_path, checkpoint.preprocess, limit)
    assert [path.stem for path in came.files] == [str(i) for i in chosen] and len(came) == len(came.files)


def test_a_folder_without_pictures(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SourceError, match="has none"):
        calibration_images(tmp_path, checkpoint.preprocess)


def test_a_picture_that_is_none(model_of_one: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    require("onnxruntime")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"broken\.png"):
        quantize_onnxruntime(model_of_one, tmp_path / "a.onnx", calibration_images(tmp_path, checkpoint.preprocess))
    assert not (tmp_path / "a.onnx").exists()


def test_ranges_are_the_widest_and_hold_zero() -> None:
    require("onnxruntime")
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (2,)) for name in "xyz"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", infos[:1], infos[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    feeds = ({"x": np.float32(values)} for values in ([2, 3], [-1, 1], [0.5, 5]))
    assert measure_ranges(model, ["x", "y", "z"], feeds) == {"x": (-1, 5), "y": (-5, 1), "z": (0, 5)}


def kinds_behind(model: onnx.ModelProto) -> dict[str, set[str]]:
    """Name of each node that computes -> the operators that make what it reads."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name: {makers[name] for name in node.input if name in makers}
        for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    }


def weight_of(node: onnx.NodeProto) -> str:
    return next((name for name in node.input if "weight" in name), "")


def groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


@pytest.mark.parametrize("name, depthwise", [("u8", True), ("s8", False)])
def test_in_an_onnx_file_int8_is_the_roi_heads_convolutions(
    name: str, depthwise: bool, request: pytest.FixtureRequest
) -> None:
    model = onnx.load(request.getfixturevalue(name))
    behind = kinds_behind(model)
    quantized = {node.name for node in model.graph.node if "DequantizeLinear" in behind.get(node.name, ())}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    head = [node for node in convolutions if "res5" in weight_of(node) and (depthwise or groups(node) == 1)]
    assert len(head) > 10
    assert {node.name for node in convolutions if node.name in quantized} == {node.name for node in head}
    others = {node.op_type for node in model.graph.node if node.name in quantized} - {"Conv"}
    # Residual sums and the mean over the bins; no product of activations, no scores, no boxes.
    assert others <= {"Add", "Clip", "ReduceMean", "Reshape"}


@pytest.mark.parametrize("name, activation", [("u8", np.uint8), ("s8", np.int8)])
def test_weights_are_quantised_by_channel_and_activations_in_the_librarys_type(
    name: str, activation: type, request: pytest.FixtureRequest
) -> None:
    graph = onnx.load(request.getfixturevalue(name)).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    weights = [node for node in dequantized if constants[node.input[0]].ndim == 4]
    assert len(weights) > 10
    assert all(constants[n.input[1]].shape == constants[n.input[0]].shape[:1] for n in weights)
    assert {constants[n.input[0]].dtype for n in weights} == {np.dtype(np.int8)}
    points = [constants[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {point.dtype for point in points} == {np.dtype(activation)}
    assert name == "u8" or not any(point.any() for point in points)


@pytest.mark.parametrize("name, source", [("u8", "model_of_one"), ("s8", "plain")])
def test_the_file_says_what_it_is_and_has_every_stage(name: str, source: str, request: pytest.FixtureRequest) -> None:
    came, before = (onnx.load(request.getfixturevalue(one)) for one in (name, source))
    onnx.checker.check_model(came, full_check=True)
    said, before_said = ({prop.key: prop.value for prop in model.metadata_props} for model in (came, before))
    assert before_said.items() <= said.items() and "class_names" in said
    assert [value.name for value in came.graph.output] == list(OUTPUTS)
    assert set(Stages._fields) <= {name for node in came.graph.node for name in node.output}


@pytest.mark.parametrize("name, quantize, source", [
    ("u8", quantize_onnxruntime, "model_of_one"), ("s8", quantize_s8, "plain"),
    ("openvino_int8", quantize_openvino, "model_of_one"),
])
def test_it_says_what_it_is_at_and_gives_the_same_bytes_again(
    name: str, quantize: Quantize, source: str, images: CalibrationImages, tmp_path: Path,
    request: pytest.FixtureRequest, capfd: pytest.CaptureFixture,
) -> None:
    first = request.getfixturevalue(name)
    capfd.readouterr()
    told: list[str] = []
    again = quantize(request.getfixturevalue(source), tmp_path / first.name, images, step=told.append)
    assert again.read_bytes() == first.read_bytes()
    assert f"calibrate {first.name}: picture 2 of 2" in told
    assert capfd.readouterr().out == ""
    if name == "openvino_int8":
        assert again.with_suffix(".bin").read_bytes() == first.with_suffix(".bin").read_bytes()


@pytest.mark.parametrize("source, name", [("model_of_one", "u8"), ("plain", "s8")])
def test_proposals_are_those_of_float_and_scores_are_close(
    source: str, name: str, reference: Reference, request: pytest.FixtureRequest
) -> None:
    require("onnxruntime")
    before, came = (answers("onnxruntime", request.getfixturevalue(one), reference) for one in (source, name))
    np.testing.assert_array_equal(came["valid"], before["valid"])
    difference = np.abs(came["scores"] - before["scores"])[before["valid"]]
    assert 0 < difference.mean() < 0.1  # random weights; and it is not float
    np.testing.assert_allclose(came["boxes"][before["valid"]], before["boxes"][before["valid"]], atol=12)


@pytest.mark.parametrize("tensor", ["trunk", "neck", "objectness", "deltas"])
def test_openvinos_rounding_is_small_beside_the_signal(
    tensor: str, openvino_int8: Path, model_of_one: Path, reference: Reference, tmp_path: Path
) -> None:
    before, came = (
        answers("openvino", giving(one, tensor, tmp_path), reference)[tensor] for one in (model_of_one, openvino_int8)
    )
    noise = np.square(came - before).mean()
    assert noise > 0
    assert 10 * np.log10(np.square(before).mean() / noise) > 12  # decibels


def giving(model: Path, tensor: str, folder: Path) -> Path:
    """A copy of a graph with one more output."""
    import openvino

    network, out = openvino.Core().read_model(model), folder / f"{model.stem}.xml"
    network.add_outputs(tensor)
    openvino.save_model(network, out, compress_to_fp16=False)
    return out


def answers(backend: str, model: Path, reference: Reference) -> backends.Tensors:
    loaded = backends.load(backend, model)
    came = backends.run_padded(loaded, 1, {"images": reference.images, "valid_hw": reference.valid_hw})
    loaded.close()
    return came


def test_openvino_computes_depthwise_convolutions_in_int8_too(openvino_int8: Path) -> None:
    """NNCF leaves what it does not take for a constant kernel; see `quantize._fold_constants`."""
    import openvino

    network = openvino.Core().read_model(openvino_int8)
    convolutions = [node for node in network.get_ops() if "Convolution" in node.get_type_name()]
    for node in convolutions:
        wide = max(node.input(0).get_shape()[1], node.output(0).get_shape()[1]) > 32
        reads = [one.get_source_output().get_node() for one in node.inputs()]
        # A kernel of INT8 is converted and scaled; a float one is a constant.
        assert (reads[1].get_type_name() == "Multiply") == wide, node.get_friendly_name()
    assert sum(node.get_type_name() == "GroupConvolution" for node in convolutions) > 5


@pytest.mark.parametrize("target", BOTH)
def test_lint_finds_nothing_in_the_graph_for_tensorrt(target: str, s8: Path) -> None:
    assert lint(s8, target) == []


def test_lint_refuses_the_graph_for_onnx_runtime(u8: Path) -> None:
    assert {"int32_bias", "zero_point"} <= {one.rule for one in lint(u8, "tensorrt")}


def test_without_nncf(
    model_of_one: Path, images: CalibrationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("openvino")
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UnsupportedError, match=r"nncf.*pip install"):
        quantize_openvino(model_of_one, tmp_path / "a.xml", images)


@pytest.mark.parametrize("quantize", [quantize_onnxruntime, quantize_s8, quantize_openvino])
def test_without_the_library(
    quantize: Quantize, model_of_one: Path, images: CalibrationImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "available", list)
    with pytest.raises(UnsupportedError, match="pip install"):
        quantize(model_of_one, tmp_path / "a.xml", images)


NAMES = ("person", "car")
Row = tuple[float, float, int]  # left edge of a box of 20 by 20 pixels, score, class


def found(*rows: Row) -> Detections:
    xyxy = [[x, 0, x + 20, 20] for x, _, _ in rows]
    return Detections(
        np.asarray(xyxy, np.float32).reshape(-1, 4), np.asarray([s for _, s, _ in rows], np.float32),
        np.asarray([c for _, _, c in rows], np.int64), NAMES,
    )


ONE, TWO = (0.0, 0.9, 0), (100.0, 0.8, 1)
AGREEMENTS = {
    "nothing in both": ([found()], [found()], math.nan),
    "nothing expected": ([found()], [found(ONE)], math.nan),
    "the same": ([found(ONE, TWO)], [found(ONE, TWO)], 1.0),
    "in another order": ([found(ONE, TWO)], [found(TWO, ONE)], 1.0),
    "more than expected": ([found(ONE)], [found(ONE, TWO)], 1.0),
    "nothing came": ([found(ONE)], [found()], 0.0),
    "one of two": ([found(ONE, TWO)], [found(TWO)], 0.5),
    "another class": ([found(ONE)], [found((0.0, 0.9, 1))], 0.0),
    "a lower score": ([found(ONE)], [found((0.0, 0.06, 0))], 1.0),
    "moved a little": ([found(ONE)], [found((2.0, 0.9, 0))], 1.0),  # IoU 18 / 22
    "moved far": ([found(ONE)], [found((6.5, 0.9, 0))], 1.0),  # IoU 13.5 / 26.5
    "moved too far": ([found(ONE)], [found((7.0, 0.9, 0))], 0.0),  # IoU 13 / 27
    "one for two": ([found(ONE, (1.0, 0.5, 0))], [found(ONE)], 0.5),
    "the doubtful are not asked for": ([found(ONE, (50.0, 0.3, 0))], [found(ONE)], 1.0),
    "in another picture": ([found(ONE), found()], [found(), found(ONE)], 0.0),
}


@pytest.mark.parametrize("case", AGREEMENTS)
def test_agreement(case: str) -> None:
    expected, came, share = AGREEMENTS[case]
    assert agreement(expected, came) == pytest.approx(share, nan_ok=True)


@pytest.mark.parametrize("kept, status, word", [
    (20, "passed", "accuracy was not measured"), (19, "passed", "accuracy was not measured"), (18, "failed", "0.9,"),
])
def test_of_twenty_detections_nineteen_must_be_found_again(kept: int, status: str, word: str) -> None:
    rows = [found((30.0 * i, 0.9, 0)) for i in range(20)]
    row = agreement_row("model.int8.onnx", "onnxruntime", rows, [*rows[:kept], *(found() for _ in range(20 - kept))])
    assert (row.stage, row.precision, row.status) == ("agreement", "int8", status)
    assert word in row.reason and row.metrics == {"found_again": pytest.approx(kept / 20), "detections": 20}


def test_with_nothing_to_find_nothing_is_shown() -> None:
    row = agreement_row("model.int8.onnx", "onnxruntime", [found((0.0, 0.2, 0))], [found()])
    assert row.status == "not_run" and "--data" in row.reason and row.metrics == {"detections": 0}


@pytest.mark.no_cover
@pytest.mark.parametrize("quantize, backend, ops", [
    (quantize_onnxruntime, "onnxruntime", "standard"), (quantize_s8, "onnxruntime", "plain"),
    (quantize_openvino, "openvino", "standard"),
])
def test_the_shipped_model_finds_its_detections_again(
    quantize: Quantize, backend: str, ops: str, data: Path, tmp_path: Path
) -> None:
    """On real pictures that were not calibrated on; docs/export.md has the accuracy."""
    require(backend)
    require("onnxruntime")
    checkpoint = load_checkpoint(SHIPPED)
    images = calibration_images(data / "hit_uav" / "images", checkpoint.preprocess, limit=48)
    calibrated = CalibrationImages(tuple(file for i, file in enumerate(images.files) if i % 3), images.spec)
    model = export_onnx(checkpoint, tmp_path / "model.onnx", ops=ops)
    quantized = quantize(model, tmp_path / ("a.xml" if backend == "openvino" else "a.onnx"), calibrated)
    spec = PostprocessSpec((0.05,) * len(checkpoint.class_names))
    expected, came = (
        detect(backend, path, images.files[::3], checkpoint, spec) for path in (model, quantized)
    )
    assert sum(int((one.scores > 0.3).sum()) for one in expected) > 50
    assert agreement(expected, came) >= 0.95


def detect(
    backend: str, model: Path, files: Iterable[Path], checkpoint: Checkpoint, spec: PostprocessSpec
) -> list[Detections]:
    loaded, rows = backends.load(backend, model), []
    for file in files:
        image, geometry = preprocess(read_picture(file), checkpoint.preprocess)
        feed = {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}
        outputs = loaded.run(feed)
        raw = RawOutputs(*(outputs[name][0] for name in OUTPUTS))
        rows.append(postprocess(raw, geometry, spec, checkpoint.class_names))
    loaded.close()
    return rows
