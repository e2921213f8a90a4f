"""What each precision costs: AP of every engine that can run here against PyTorch's, on HIT-UAV's validation list.

    python -m benchmarks.precision --checkpoint models/thermal_lite0.safetensors -o out/bench/thermal_lite0.glmd

INT8 is calibrated on pictures of the train list, for every library, and the bundle kept: the shipped one has OpenVINO's
INT8 alone, and `--bundle` of the other benchmarks takes either.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.common import write_rows
from glmd_export.exporter import Recipe, export_bundle
from glmd_train.checkpoint import load_checkpoint
from glmd_train.data.coco import load_coco

PICTURES = 128


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")) / "hit_uav")
    options.add_argument("-o", "--output", type=Path, default=Path("out/bench/thermal_lite0.glmd"))
    given = options.parse_args()
    checkpoint = load_checkpoint(given.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        calibration = Path(scratch) / "calibration"
        calibration.mkdir()
        for record in load_coco(given.data / "train.json", checkpoint.class_names)[:PICTURES]:
            (calibration / record.path.name).symlink_to(record.path.absolute())
        # Half precision is for GPUs: on a CPU it takes longest and says nothing about speed.
        recipe = Recipe(
            fp16=torch.cuda.is_available(), calibration=calibration, data=(given.data / "val.json",), max_drop=100
        )
        report = export_bundle(checkpoint, given.checkpoint, given.output, recipe, overwrite=True, step=print)
    rows = [row for row in report.to_dict()["rows"] if row["stage"].startswith("accuracy")]
    for row in rows:
        print(row["engine"], row["backend"], json.dumps(row["metrics"]))
    command = f"python -m benchmarks.precision --checkpoint {given.checkpoint}"
    setup = {"batch": 1, "threads": os.cpu_count(), "calibration": f"{PICTURES} pictures of HIT-UAV train"}
    print(write_rows(f"precision_{given.checkpoint.stem}", command, [{**row, **setup} for row in rows]))


if __name__ == "__main__":
    main()
