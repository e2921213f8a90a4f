"""The published network (ResNet-101, 800x1000, 1000 proposals): our PyTorch against the graph that export_onnx makes.

    python -m benchmarks.published

Weights are random, with a fixed seed: what is measured is speed, how far the stages are from PyTorch's, and whether the
same boxes are found. Accuracy is not measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import openvino
import torch
from torch import Tensor, nn

from benchmarks.common import write_rows
from benchmarks.timing import WHOLE, Sample, milliseconds, part, percentiles, pin, ratio
from glmd_export.graph import ExportGraph
from glmd_export.onnx_export import OUTPUTS, export_onnx
from glmd_export.ops import StandardOps
from glmd_export.quantize import calibration_images, quantize_openvino
from glmd_runtime.backends import Tensors
from glmd_runtime.boxes import iou
from glmd_runtime.comparison import greedy_pairs
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, preprocess
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import Checkpoint
from glmd_train.config import load_network_config
from glmd_train.model.detector import build_model
from glmd_train.model.resnet import measure_statistics

CONFIG = Path(__file__).parents[1] / "glmd_train" / "configs" / "r101_novel_10shot.yaml"
SIZE_HW = (800, 1000)
BEFORE_PROPOSALS = ("trunk", "neck", "objectness", "deltas")
CALIBRATION_FRAMES = 4
EAGER = "PyTorch eager"
SCORE = 0.05  # the published threshold
# Standard deviations of what these layers are to answer, so that boxes and scores differ from each other.
SPREADS = {
    "rpn.objectness": 3.0, "rpn.deltas": 0.2, "roi_heads.predictor.cls_score": 2.0, "roi_heads.predictor.bbox_pred": 0.5
}


class Subject(NamedTuple):
    precision: str
    run: Callable[[], Tensors]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    pin(given.threads)
    checkpoint = published_checkpoint()
    inputs, geometry = example(checkpoint.preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        files = engine_files(checkpoint, Path(scratch))
        stages = stage_errors(files, given.threads, inputs, checkpoint)
        subjects = {EAGER: Subject("fp32", partial(run_torch, checkpoint, inputs))}
        for precision, file in files.items():
            engine = partial(run_openvino, compiled(file, precision, given.threads), inputs)
            subjects[f"openvino {precision}"] = Subject(precision.split()[0], engine)
        samples, answers = in_rounds(subjects, given.rounds)
    spec, names = checkpoint.postprocess, checkpoint.class_names
    found = {name: detections(raw, geometry, spec, names) for name, raw in answers.items()}
    setup = {"batch": 1, "threads": given.threads, "size_hw": list(SIZE_HW), "proposals": checkpoint.config.proposals}
    rows = [
        {"subject": name, "precision": one.precision, **setup, "run": percentiles(part(samples[name])),
         "faster": ratio(part(samples[EAGER]), part(samples[name])), **difference(found[EAGER], found[name]),
         "stages": stages.get(name.removeprefix("openvino "), {}), "accuracy": "not measured"}
        for name, one in subjects.items()
    ]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.published --threads {given.threads} --rounds {given.rounds}"
    print(write_rows("published_r101", command, rows))


def published_checkpoint() -> Checkpoint:
    """Random weights whose numbers are as large as trained ones': untamed they amplify every rounding."""
    torch.manual_seed(0)
    network = load_network_config(CONFIG)
    spec = PreprocessSpec(SIZE_HW, network.preprocess.mean, network.preprocess.std)
    model = build_model(network.model).eval()
    checkpoint = Checkpoint(model, network.model, spec, PostprocessSpec((SCORE,) * len(network.model.class_names)))
    tame(checkpoint)
    return checkpoint


@torch.no_grad()
def tame(checkpoint: Checkpoint) -> None:
    """Norms get the statistics of the example, its answers the spread of SPREADS."""
    model, inputs = checkpoint.model, example(checkpoint.preprocess)[0]
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.2)
    measure_statistics(model.backbone, model.roi_heads.res5, torch.from_numpy(inputs["images"]))

    def scale(layer: nn.Conv2d | nn.Linear, spread: float, _: Any, out: Tensor) -> Tensor:
        factor = spread / out.std()
        layer.weight *= factor
        return out * factor

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda layer, given, out, s=spread: scale(layer, s, given, out))
        for name, spread in SPREADS.items()
    ]
    run_torch(checkpoint, inputs)
    for hook in hooks:
        hook.remove()


def example(spec: PreprocessSpec) -> tuple[Tensors, Geometry]:
    image, geometry = preprocess(snapshot("ground", 5, SIZE_HW).image, spec)
    return {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}, geometry


def engine_files(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """What a bundle holds for a CPU: fp32 without needless arithmetic, and INT8, calibrated on a few rendered frames;
    beside them the graph as it was trained, in two precisions."""
    model = export_onnx(checkpoint, folder / "standard.onnx")
    for seed in range(CALIBRATION_FRAMES):
        picture = checkpoint.preprocess.intensity(snapshot("ground", 100 + seed, SIZE_HW).image)
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
    images = calibration_images(folder, checkpoint.preprocess)
    return {
        "fp32": export_onnx(checkpoint, folder / "model.onnx", spared=True), "fp32 as trained": model, "bf16": model,
        "int8": quantize_openvino(model, folder / "int8.xml", images),
    }


def run_torch(checkpoint: Checkpoint, inputs: Tensors) -> Tensors:
    with torch.inference_mode():
        raw = checkpoint.model(*(torch.from_numpy(array) for array in inputs.values()))
    return {name: getattr(raw, name).numpy() for name in OUTPUTS}


def compiled(model: Path, precision: str, threads: int, outputs: Sequence[str] = ()) -> openvino.CompiledModel:
    """outputs: names of tensors inside the graph that are to be given, too."""
    core = openvino.Core()
    network = core.read_model(model)
    network.add_outputs(list(outputs))
    hint = "bf16" if precision == "bf16" else "f32"
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(network, "CPU", config)


def run_openvino(engine: openvino.CompiledModel, inputs: Tensors) -> Tensors:
    results = engine(inputs)
    return {name: results[name] for name in OUTPUTS}


def stage_errors(
    files: Mapping[str, Path], threads: int, inputs: Tensors, checkpoint: Checkpoint
) -> dict[str, dict[str, float]]:
    """Of each file and stage up to the choice of proposals: the size of the error over that of the tensor.

    Errors add up from the image on.
    """
    graph = ExportGraph(checkpoint.model, StandardOps(), SIZE_HW)
    with torch.inference_mode():
        stages = graph(*(torch.from_numpy(array) for array in inputs.values()))
    expected = {name: getattr(stages, name).numpy() for name in BEFORE_PROPOSALS}
    errors = {}
    for precision, file in files.items():
        came = compiled(file, precision, threads, BEFORE_PROPOSALS)(inputs)
        errors[precision] = {
            name: float(np.linalg.norm(came[name] - wanted) / np.linalg.norm(wanted))
            for name, wanted in expected.items()
        }
    return errors


def in_rounds(
    subjects: dict[str, Subject], rounds: int
) -> tuple[dict[str, list[Sample]], dict[str, Tensors]]:
    """One call a turn, as a call takes seconds; the first round warms up and gives the answers."""
    answers = {name: one.run() for name, one in subjects.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, one in subjects.items():
            samples[name].append({WHOLE: milliseconds(one.run)})
    return samples, answers


def detections(
    raw: Tensors, geometry: Geometry, spec: PostprocessSpec, names: tuple[str, ...]
) -> Detections:
    one = RawOutputs(*(raw[name][0] for name in OUTPUTS))
    return postprocess(RawOutputs(one.boxes, one.scores, one.valid.astype(bool)), geometry, spec, names)


def difference(expected: Detections, came: Detections) -> dict[str, Any]:
    """The largest difference of paired detections, and how many have no partner of their class at IoU 0.5."""
    overlap = iou(expected.xyxy, came.xyxy)
    allowed = (overlap > 0.5) & (expected.class_ids[:, None] == came.class_ids)
    rows, columns = greedy_pairs(np.where(allowed, 1 - overlap, np.inf))
    scores = np.abs(expected.scores[rows] - came.scores[columns])
    pixels = np.abs(expected.xyxy[rows] - came.xyxy[columns])
    return {
        "detections": len(expected), "unmatched": len(expected) + len(came) - 2 * len(rows),
        "score_difference": float(scores.max(initial=0)), "box_difference_px": float(pixels.max(initial=0)),
    }


if __name__ == "__main__":
    main()
