"""PyTorch against an exported engine: stage by stage, then the whole chain.

The whole chain is what the device runs, but it cannot say where an error is, and selecting proposals turns a rounding
error into another proposal. So the ONNX file is cut between its stages, each piece is loaded by the same backend, and
fed with what PyTorch fed to it. The pieces are the shipped graph's own nodes and weights: nothing is exported twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.utils
import torch
from numpy.typing import NDArray
from onnx.helper import tensor_dtype_to_np_dtype
from torch import Tensor

from glmd_export.graph import Final, Stages
from glmd_export.onnx_export import FEATURES
from glmd_runtime import backends
from glmd_runtime.backends import Backend, Tensors, run_padded
from glmd_runtime.bundle import Bundle
from glmd_runtime.calibrator import Calibrator
from glmd_runtime.comparison import (
    TOLERANCES,
    Check,
    Outcome,
    Tolerance,
    array_checks,
    array_spread,
    compare_detections,
    compare_raw,
)
from glmd_runtime.engines import open_engine
from glmd_runtime.files.scratch import work_folder
from glmd_runtime.postprocess import RawOutputs
from glmd_runtime.preprocess import preprocess
from glmd_runtime.reference import Reference
from glmd_runtime.verify import check_engine, check_preprocess, engine_rows, not_run_rows, run_engine
from glmd_runtime.verify_calibration import (
    CALIBRATED,
    PcbReference,
    candidates,
    compare_calibrated,
    everything,
    in_place,
)
from glmd_runtime.verify_report import ENGINE_STAGES, VerifyReport, VerifyRow
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import Checkpoint
from glmd_train.classifier import rgb_of_images
from glmd_train.model.detector import GLMDNet

Frames = Sequence[NDArray[Any]]
END2END = "end2end"
BATCH = "batch"  # the stage that compares a batch with its images one by one
_ARRAYS = tuple(field.name for field in fields(Reference) if field.name != "frames")
# Scene, seed (far from those that training draws) and size of the four frames in reference.npz.
_REFERENCE_SCENES = (
    ("ground", 910_001, (512, 640)),
    ("air", 910_002, (256, 320)),
    ("ground", 910_003, (480, 720)),
    ("air", 910_004, (512, 512)),
)


class Stage(NamedTuple):
    """A piece of the graph between named tensors; see `graph.Stages` for what they are."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


STAGES = (
    Stage("trunk", ("images",), ("trunk",)),
    Stage("neck", ("trunk",), ("neck",)),
    Stage("rpn", ("neck",), ("objectness", "deltas")),
    Stage("proposals", ("objectness", "deltas", "valid_hw"), ("proposals", "valid")),
    Stage("pooled", ("neck", "proposals"), ("features",)),
    Stage("head", ("features",), ("logits", "box_deltas")),
    Stage("boxes", ("logits", "box_deltas", "proposals", "valid_hw"), ("boxes", "scores")),
)
_OF_PROPOSALS = ("features", "logits", "box_deltas", "boxes", "scores")  # tensors of one row a proposal


def compare(bundle: Bundle, checkpoint: Checkpoint, frames: Frames) -> VerifyReport:
    """Every engine of a bundle, on every backend that reads it, against the checkpoint.

    Args: frames, camera arrays as `preprocess` takes them, at least one.
    Returns: rows for each stage, the raw outputs and the detections; not_run where a backend is not installed.
    """
    return VerifyReport(tuple(compare_rows(bundle, checkpoint, frames)))


def compare_rows(bundle: Bundle, checkpoint: Checkpoint, frames: Frames) -> Iterator[VerifyRow]:
    """The rows of `compare`, each as soon as it is known."""
    reference = make_reference(checkpoint, frames, features=FEATURES in bundle.manifest.graph.outputs)
    yield check_preprocess(reference, bundle.manifest.preprocess)
    tensors = _torch_tensors(checkpoint.model, reference)
    pcb = make_pcb_reference(checkpoint, reference) if bundle.manifest.calibration else None
    for engine in bundle.manifest.engines:
        for name in backends.readers(engine):
            stages = _stages_of(engine, name)
            if why := backends.why_not(name):
                yield from not_run_rows(bundle, engine, name, why, [*stages, *ENGINE_STAGES])
                continue
            if stages:
                yield from stage_rows(bundle, engine, name, tensors)
            yield from chain_rows(bundle, engine, name, reference, pcb)


def make_reference(checkpoint: Checkpoint, frames: Frames, *, features: bool = False) -> Reference:
    """PyTorch's raw outputs of some frames, perhaps with features: the content of reference.npz."""
    pairs = [preprocess(frame, checkpoint.preprocess) for frame in frames]
    images = np.stack([image for image, _ in pairs])
    valid_hw = np.asarray([geometry.valid_hw for _, geometry in pairs], np.float32)
    with torch.inference_mode():
        # One image at a time, as the published batching of the neck would let them influence each other.
        raw = [checkpoint.model(i[None], hw[None]) for i, hw in zip(*_tensors(images, valid_hw), strict=True)]
    outputs = (torch.cat([getattr(one, name) for one in raw]).numpy() for name in ("boxes", "scores", "valid"))
    reference = Reference(tuple(frames), images, valid_hw, *outputs)
    if not features:
        return reference
    return replace(reference, features=_torch_tensors(checkpoint.model, reference)[FEATURES])


def make_pcb_reference(checkpoint: Checkpoint, reference: Reference) -> PcbReference:
    """PyTorch's detections of the reference before calibration, and the logits of its classifier for them."""
    assert checkpoint.pcb
    classifier, spec = checkpoint.pcb.classifier, everything(checkpoint.postprocess)
    found = candidates(checkpoint.pcb.calibration, reference.raw_outputs, reference.valid_hw, spec)
    with torch.inference_mode():
        logits = [
            classifier(rgb_of_images(image[None], checkpoint.preprocess), [torch.from_numpy(one.xyxy)]).numpy()
            for image, one in zip(_tensors(reference.images)[0], found, strict=True)
        ]
    counts = np.array([len(one) for one in found])
    return PcbReference(counts, np.concatenate([one.xyxy for one in found]), np.concatenate(logits))


def reference_frames() -> Frames:
    """Four rendered (H, W) uint16 frames: both worlds, four sizes."""
    return tuple(snapshot(*scene).image for scene in _REFERENCE_SCENES)


def _torch_tensors(model: GLMDNet, reference: Reference) -> Tensors:
    """What PyTorch computes for the reference's images, by the names of the graph's tensors, each (N, ...)."""
    pairs = zip(*_tensors(reference.images, reference.valid_hw), strict=True)
    with torch.inference_mode():
        rows = [_torch_stages(model, image[None], hw[None]) for image, hw in pairs]
    tensors = {name: torch.cat([getattr(row, name) for row in rows]).numpy() for name in Stages._fields}
    return {**tensors, "images": reference.images, "valid_hw": reference.valid_hw}


def _torch_stages(model: GLMDNet, image: Tensor, valid_hw: Tensor) -> Stages:
    """One image, (1, C, H, W) and (1, 2), through the model's own modules."""
    trunk = model.backbone(image)
    neck = model.neck(trunk)
    for_rpn, for_rcnn = model.affine_rpn(neck), model.affine_rcnn(neck)
    objectness, deltas = model.rpn.head(for_rpn)
    proposals, valid = model.rpn(for_rpn, valid_hw)
    features = model.roi_heads.pooled(for_rcnn, list(proposals))[None]  # (R, D) -> (1, R, D)
    logits, box_deltas = (t[None] for t in model.roi_heads.predictor(features[0]))  # (R, ...) -> (1, R, ...)
    boxes, scores = model.roi_heads(for_rcnn, proposals, valid_hw)
    return Stages(trunk, neck, objectness, deltas, proposals, valid, features, logits, box_deltas, boxes, scores)


def _tensors(*arrays: NDArray[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def chain_rows(
    bundle: Bundle, engine: str, name: str, reference: Reference, pcb: PcbReference | None = None
) -> list[VerifyRow]:
    """The engine as it is, from image to raw outputs and detections, with PCB to calibrated ones; of a batch, whether
    its images are independent."""
    def check(backend: Backend) -> list[VerifyRow]:
        rows = check_engine(backend, name, engine, bundle.manifest, reference)
        batch = [_batch_row(backend, name, engine, bundle, reference)] if bundle.manifest.graph.batch > 1 else []
        calibrated = [_calibrated_row(backend, name, engine, bundle, reference, pcb)] if pcb else []
        return [*rows, *calibrated, *batch]

    return engine_rows(bundle, engine, name, open_engine, check)


def _calibrated_row(
    backend: Backend, name: str, engine: str, bundle: Bundle, reference: Reference, pcb: PcbReference
) -> VerifyRow:
    """Both graphs one after the other, as a Detector runs them, against PyTorch."""
    manifest, spec = bundle.manifest, everything(bundle.manifest.postprocess)
    precision, geometries = manifest.engines[engine], [in_place(hw) for hw in reference.valid_hw]
    calibrator = Calibrator(bundle, name)
    try:
        raws = run_engine(backend, manifest, reference)
        came = calibrator.detections(reference.images, raws, geometries, spec)
    finally:
        calibrator.close()
    calibration = calibrator.calibration
    found = candidates(calibration, reference.raw_outputs, reference.valid_hw, spec)
    logits = pcb.split(pcb.logits)
    expected = [calibration.apply(one, rows, spec) for one, rows in zip(found, logits, strict=True)]
    outcome = compare_calibrated(expected, came, TOLERANCES[precision])
    return VerifyRow(engine, name, precision, CALIBRATED, outcome.status, outcome.reason, outcome.metrics)


def _batch_row(backend: Backend, name: str, engine: str, bundle: Bundle, reference: Reference) -> VerifyRow:
    """N different images in one call against N calls with copies of one: images must not influence each other."""
    manifest = bundle.manifest
    precision, batch = manifest.engines[engine], manifest.graph.batch
    arrays = [array for name in _ARRAYS if (array := getattr(reference, name)) is not None]
    some = [np.resize(array, (batch, *array.shape[1:])) for array in arrays]
    together = run_engine(backend, manifest, Reference((), *some))
    alone = [run_engine(backend, manifest, Reference((), *(a[i : i + 1] for a in some)))[0] for i in range(batch)]
    outcome = compare_raw(alone, together, TOLERANCES[precision], max(reference.images.shape[2:]))
    return VerifyRow(engine, name, precision, BATCH, outcome.status, outcome.reason, outcome.metrics)


def end2end_row(bundle: Bundle, name: str, precision: str) -> VerifyRow:
    """A graph with the final NMS on ONNX Runtime: its detections against those that the reference gives."""
    manifest, reference = bundle.manifest, bundle.reference
    if why := backends.why_not("onnxruntime"):
        return VerifyRow(name, "onnxruntime", precision, END2END, "not_run", why)
    backend = backends.load("onnxruntime", bundle.path / name)
    try:
        inputs = {"images": reference.images, "valid_hw": reference.valid_hw}
        final = run_padded(backend, manifest.graph.batch, inputs)
    finally:
        backend.close()
    # Down to the thresholds that are inside the graph; those beside them are exempt as everywhere.
    tolerance = replace(TOLERANCES[precision], floor=max(manifest.postprocess.score_thresholds))
    images = zip(*(final[name] for name in Final._fields), strict=True)
    came = [_as_detected(Final(*image), len(manifest.class_names)) for image in images]
    outcome = compare_detections(reference.raw_outputs, came, tolerance, reference.valid_hw, manifest.postprocess)
    return VerifyRow(name, "onnxruntime", precision, END2END, outcome.status, outcome.reason, outcome.metrics)


def _as_detected(final: Final, classes: int) -> RawOutputs:
    """One image's arrays, (1,), (D, 4), (D,), (D,), as raw outputs of D proposals with one class each."""
    of_class = np.eye(classes, dtype=np.float32)[final.det_classes]  # (D, K)
    valid = np.arange(len(of_class)) < final.num_dets
    boxes = np.repeat(final.det_boxes[:, None], classes, axis=1)  # (D, K, 4)
    return RawOutputs(boxes, of_class * final.det_scores[:, None], valid)


def stage_rows(bundle: Bundle, engine: str, name: str, expected: Tensors) -> Iterator[VerifyRow]:
    """Each stage of an ONNX file, fed with PyTorch's own input to it."""
    precision = bundle.manifest.engines[engine]
    cutter = onnx.utils.Extractor(onnx.load(bundle.path / engine))
    for stage in STAGES:
        came = _run_stage(cutter, stage, name, bundle.manifest.graph.batch, expected)
        outcome = _judge(stage, expected, came, TOLERANCES[precision])
        yield VerifyRow(engine, name, precision, stage.name, outcome.status, outcome.reason, outcome.metrics)


def _stages_of(engine: str, name: str) -> list[str]:
    """Of backends that load ONNX as it is pieces of the file can be run; a quantised graph is judged as a whole."""
    in_pieces = engine in ("model.onnx", "model.fp16.onnx") and name in ("onnxruntime", "openvino")
    return [stage.name for stage in STAGES] if in_pieces else []


def _run_stage(cutter: onnx.utils.Extractor, stage: Stage, name: str, batch: int, expected: Tensors) -> Tensors:
    with work_folder("glmd-export") as scratch:
        piece = scratch / f"{stage.name}.onnx"
        model = cutter.extract_model(list(stage.inputs), list(stage.outputs))
        types = {i.name: tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
        onnx.save(model, piece)
        backend = backends.load(name, piece)
        try:
            return run_padded(backend, batch, {key: expected[key].astype(types[key]) for key in stage.inputs})
        finally:
            backend.close()


def _judge(stage: Stage, expected: Tensors, came: Tensors, tolerance: Tolerance) -> Outcome:
    """Proposals without regard to order, every other tensor number by number."""
    canvas = float(max(expected["images"].shape[2:]))
    if stage.name == "proposals":
        return compare_raw(_as_raw(expected), _as_raw(came), tolerance, canvas)
    checks: list[Check] = []
    reported: dict[str, float] = {}
    for key in stage.outputs:
        # What is said of padded proposals is never read.
        rows = expected["valid"] if key in _OF_PROPOSALS else slice(None)
        a, b = expected[key][rows], came[key][rows]
        # Boxes are compared in canvases. Rounding grows with the numbers that were summed: features of size 10 in tens.
        scale = canvas if key == "boxes" else max(1.0, float(np.sqrt(np.mean(np.square(a)))) if a.size else 1.0)
        atol = tolerance.box_atol if key == "boxes" else tolerance.score_atol
        checks += array_checks(key, a / scale, b / scale, atol, tolerance)
        reported |= array_spread(key, a / scale, b / scale)
    return Outcome.of(*checks, **reported)


def _as_raw(tensors: Tensors) -> list[RawOutputs]:
    """Proposals in the form of raw outputs, with one class and no score, so that they are paired by the same code."""
    rows = zip(tensors["proposals"], tensors["valid"], strict=True)
    return [RawOutputs(boxes[:, None], np.zeros((len(boxes), 1), np.float32), valid) for boxes, valid in rows]
