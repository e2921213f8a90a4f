"""What each precision costs: AP of every engine that can run here against PyTorch's, on HIT-UAV's validation list.

    python -m benchmarks.precision --checkpoint models/thermal_lite0.safetensors

INT8 is calibrated on pictures of the train list.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.common import conditions, write
from glmd_export.exporter import Recipe, export_bundle
from glmd_train.checkpoint import load_checkpoint
from glmd_train.data.coco import load_coco

PICTURES = 128


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--checkpoint", type=Path, default=Path("models/thermal_lite0.safetensors"))
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")) / "hit_uav")
    given = options.parse_args()
    checkpoint = load_checkpoint(given.checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        calibration = Path(scratch) / "calibration"
        calibration.mkdir()
        for record in load_coco(given.data / "train.json", checkpoint.class_names)[:PICTURES]:
            (calibration / record.path.name).symlink_to(record.path.absolute())
        recipe = Recipe(fp16=True, calibration=calibration, data=(given.data / "val.json",), max_drop=100)
        report = export_bundle(checkpoint, given.checkpoint, Path(scratch) / "model.glmd", recipe, step=print)
    rows = [row for row in report.to_dict()["rows"] if row["stage"].startswith("accuracy")]
    for row in rows:
        print(row["engine"], row["backend"], json.dumps(row["metrics"]))
    command = f"python -m benchmarks.precision --checkpoint {given.checkpoint}"
    setup = {"batch": 1, "data": "HIT-UAV val", "calibration": f"{PICTURES} pictures of HIT-UAV train"}
    print(write(f"precision_{given.checkpoint.stem}", {**conditions(command), **setup, "rows": rows}))


if __name__ == "__main__":
    main()
