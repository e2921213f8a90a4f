"""The published network (ResNet-101, 800x1000, 1000 proposals): our PyTorch against the graph that export_onnx makes.

    python -m benchmarks.published

Weights are random, with a fixed seed: what is measured is speed, and that both sides find the same boxes. Accuracy is
not measured.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
import torch
from torch import Tensor, nn

from benchmarks.common import write_rows
from benchmarks.timing import WHOLE, Sample, milliseconds, part, percentiles, pin, ratio
from glmd_export.onnx_export import export_onnx
from glmd_runtime.boxes import iou
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry, PreprocessSpec, preprocess
from glmd_runtime.verify import greedy_pairs
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import Checkpoint
from glmd_train.config import load_network_config
from glmd_train.model.detector import build_model
from glmd_train.model.resnet import measure_statistics

CONFIG = Path(__file__).parents[1] / "glmd_train" / "configs" / "r101_novel_10shot.yaml"
SIZE_HW = (800, 1000)
HINTS = {"fp32": "f32", "bf16": "bf16"}
EAGER = "PyTorch eager"
SCORE = 0.05  # the published threshold
# Standard deviations of what these layers are to answer, so that boxes and scores differ from each other.
SPREADS = {
    "rpn.objectness": 3.0, "rpn.deltas": 0.2, "roi_heads.predictor.cls_score": 2.0, "roi_heads.predictor.bbox_pred": 0.5
}


class Subject(NamedTuple):
    precision: str
    run: Callable[[], dict[str, np.ndarray]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    pin(given.threads)
    checkpoint = published_checkpoint()
    inputs, geometry = example(checkpoint.preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        model = export_onnx(checkpoint, Path(scratch) / "model.onnx")
        subjects = {EAGER: Subject("fp32", partial(run_torch, checkpoint, inputs))}
        for precision in HINTS:
            engine = partial(run_openvino, compiled(model, precision, given.threads), inputs)
            subjects[f"openvino {precision}"] = Subject(precision, engine)
        samples, answers = in_rounds(subjects, given.rounds)
    spec = checkpoint.postprocess
    found = {name: detections(raw, geometry, spec, checkpoint.class_names) for name, raw in answers.items()}
    rows = []
    for name, one in subjects.items():
        rows.append({
            "subject": name, "precision": one.precision, "batch": 1, "threads": given.threads,
            "size_hw": list(SIZE_HW), "proposals": checkpoint.config.proposals, "run": percentiles(part(samples[name])),
            "faster": ratio(part(samples[EAGER]), part(samples[name])), **difference(found[EAGER], found[name]),
        })
        print(rows[-1])
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


def example(spec: PreprocessSpec) -> tuple[dict[str, np.ndarray], Geometry]:
    image, geometry = preprocess(snapshot("ground", 5, SIZE_HW).image, spec)
    return {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}, geometry


def run_torch(checkpoint: Checkpoint, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        raw = checkpoint.model(*(torch.from_numpy(array) for array in inputs.values()))
    return {name: getattr(raw, name).numpy() for name in ("boxes", "scores", "valid")}


def compiled(model: Path, precision: str, threads: int) -> openvino.CompiledModel:
    config = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": threads
    }
    return openvino.Core().compile_model(model, "CPU", config)


def run_openvino(engine: openvino.CompiledModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    results = engine(inputs)
    return {name: results[name] for name in ("boxes", "scores", "valid")}


def in_rounds(
    subjects: dict[str, Subject], rounds: int
) -> tuple[dict[str, list[Sample]], dict[str, dict[str, np.ndarray]]]:
    """One call a turn, as a call takes seconds; the first round warms up and gives the answers."""
    answers = {name: one.run() for name, one in subjects.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, one in subjects.items():
            samples[name].append({WHOLE: milliseconds(one.run)})
    return samples, answers


def detections(
    raw: dict[str, np.ndarray], geometry: Geometry, spec: PostprocessSpec, names: tuple[str, ...]
) -> Detections:
    one = RawOutputs(*(raw[name][0] for name in ("boxes", "scores", "valid")))
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
