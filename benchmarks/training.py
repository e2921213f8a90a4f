"""What a step of fine-tuning costs, by recipe and precision, with this many threads.

    python -m benchmarks.training --threads 2

Twelve pictures of the simulator are trained on. A step's time is what eight iterations more make a training longer,
which leaves out what is done once; the median of the rounds, in which the settings take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import cv2
import torch

from benchmarks.common import conditions, write
from benchmarks.fewshot_bases import COMMITTED
from glmd_runtime.boxes import xyxy_to_xywh
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import load_checkpoint
from glmd_train.config import DatasetConfig
from glmd_train.loop import fit
from glmd_train.recipes import fine_tuning

FEW, MANY, ROUNDS = 4, 12, 3  # iterations of two trainings, and how often each pair is run
PICTURES = 12
RECIPES, PRECISIONS = ("default", "defrcn"), ("32-true", "bf16-mixed")  # all layers train; res5 and the first do not


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    settings = list(product(RECIPES, PRECISIONS))
    times: dict[tuple[str, str], list[float]] = {setting: [] for setting in settings}
    with tempfile.TemporaryDirectory() as scratch:
        labels = draw_pictures(Path(scratch))
        for _ in range(ROUNDS):
            for recipe, precision in settings:
                short, long = (seconds(recipe, precision, labels, iterations) for iterations in (FEW, MANY))
                times[recipe, precision].append((long - short) / (MANY - FEW))
    rows = [
        {"recipe": recipe, "precision": precision, "median_s": round(statistics.median(t), 3), "rounds": len(t)}
        for (recipe, precision), t in times.items()
    ]
    for row in rows:
        print(row)
    command = f"python -m benchmarks.training --threads {given.threads}"
    setup = {"pictures_a_step": 4, "crop_hw": [384, 480], "threads": given.threads}
    print(write(f"training_{given.threads}", {**conditions(command), **setup, "rows": rows}))


def draw_pictures(folder: Path) -> Path:
    """Simulated pictures of the ground; every object is a "thing"."""
    images, annotations = [], []
    for number in range(PICTURES):
        frame = snapshot("ground", number)
        cv2.imwrite(str(folder / f"{number}.png"), frame.image)
        h, w = frame.image.shape[:2]
        images.append({"id": number, "file_name": f"{number}.png", "height": h, "width": w})
        boxes = xyxy_to_xywh(frame.truth.xyxy).tolist()
        annotations += [{"image_id": number, "category_id": 1, "bbox": box} for box in boxes]
    numbered = [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": [{"id": 1, "name": "thing"}]}))
    return path


def seconds(recipe: str, precision: str, labels: Path, iterations: int) -> float:
    base = COMMITTED["glmd"]
    with tempfile.TemporaryDirectory() as scratch:
        config = fine_tuning(
            recipe, load_checkpoint(base), base, ("thing",), [DatasetConfig(annotations=labels)], Path(scratch) / "run",
            shots=10, iterations=iterations, precision=precision,
        )
        began = time.perf_counter()
        fit(config)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
