"""A data set that a test draws itself, and a training small enough for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import yaml


def glmd_train(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "glmd_train.cli", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not check or result.returncode == 0, result.stderr
    return result


def draw_squares(folder: Path) -> Path:
    """Eight 16-bit pictures with one warm square each, and their annotation file in `folder`."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(8):
        picture = rng.normal(7600, 15, (64, 80)).astype(np.uint16)
        x, y, side = (int(v) for v in (rng.integers(5, 50), rng.integers(5, 40), rng.integers(12, 20)))
        picture[y : y + side, x : x + side] += 400
        cv2.imwrite(str(folder / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 64})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, side, side], "iscrowd": 0})
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def write_config(folder: Path) -> Path:
    values = {
        "output": str(folder / "run"),
        "model": {"class_names": ["square"], "proposals": 10, "roi_batch": 16, "rpn_batch": 32},
        "preprocess": {"size_hw": [64, 80]},
        "train": [{"annotations": str(folder / "labels.json")}],
        "val": [{"annotations": str(folder / "labels.json")}],
        "iterations": 40, "batch_size": 2, "warmup": 3, "learning_rate": 0.001,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
