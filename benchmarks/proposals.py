"""What the number of proposals buys: AP and milliseconds of one checkpoint, exported anew for each number.

    python -m benchmarks.proposals --checkpoint models/thermal_lite0.safetensors --proposals 50 100 150 200 300
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import conditions, write
from benchmarks.timing import measure
from glmd_export.onnx_export import export_onnx
from glmd_runtime import backends, preprocess
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import Checkpoint, load_checkpoint, reshape
from glmd_train.data.coco import load_coco
from glmd_train.evaluate import EVAL_SCORE, Predict, evaluate

SETS = ("hit_uav", "air")
BACKEND = "openvino"
Frame = np.ndarray[Any, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--proposals", type=int, nargs="+", default=[50, 100, 150, 200, 300])
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    checkpoint = load_checkpoint(given.checkpoint)
    sets = {name: load_coco(given.data / name / "val.json", checkpoint.class_names) for name in SETS}
    with tempfile.TemporaryDirectory() as scratch:
        variants = {n: reshape(checkpoint, proposals=n) for n in given.proposals}
        models = {n: export_onnx(one, Path(scratch) / f"{n}.onnx") for n, one in variants.items()}
        engines = {n: backends.load(BACKEND, path, given.threads) for n, path in models.items()}
        inputs = network_inputs(snapshot("ground", 5).image, checkpoint)
        times = measure({str(n): lambda run=engine.run: run(inputs) for n, engine in engines.items()}, rounds=15)
        scores = {
            n: {name: evaluate(predictor(engine, checkpoint), records, checkpoint.class_names).to_dict()["mean"]
                for name, records in sets.items()}
            for n, engine in engines.items()
        }
    rows = {n: {**times[str(n)], **scores[n]} for n in given.proposals}
    for n, row in rows.items():
        print(n, row)
    command = f"python -m benchmarks.proposals --proposals {' '.join(map(str, given.proposals))}"
    setup = {"backend": BACKEND, "batch": 1, "precision": "fp32", "threads": given.threads}
    bins = checkpoint.config.bins
    print(write(f"proposals_{given.checkpoint.stem}", {**conditions(command), **setup, "bins": bins, "rows": rows}))


def network_inputs(frame: Frame, checkpoint: Checkpoint) -> dict[str, Frame]:
    image, geometry = preprocess(frame, checkpoint.preprocess)
    return {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}


def predictor(engine: backends.Backend, checkpoint: Checkpoint) -> Predict:
    spec = PostprocessSpec((EVAL_SCORE,) * len(checkpoint.class_names))

    def predict(frame: Frame) -> Detections:
        out = engine.run(network_inputs(frame, checkpoint))
        raw = RawOutputs(*(out[name][0] for name in ("boxes", "scores", "valid")))
        return postprocess(raw, preprocess(frame, checkpoint.preprocess)[1], spec, checkpoint.class_names)

    return predict


if __name__ == "__main__":
    main()
