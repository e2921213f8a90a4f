"""What tiles gain in AP, above all of small objects, and what they cost in time.

    python -m benchmarks.tiles --bundle models/thermal_lite0.glmd
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import conditions, write
from glmd_runtime import Detector
from glmd_runtime.boxes import area
from glmd_runtime.detections import Detections
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE, in_order, score
from glmd_train.intervals import ap_difference

TILES = ((1, 1), (2, 1), (2, 2))
SETS = ("hit_uav", "air")
SMALL = 16.0**2  # square pixels of the frame
TIMED = 20  # frames


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--backend", default="openvino")
    given = options.parse_args()
    detectors = {t: Detector(given.bundle, backend=given.backend, score_threshold=EVAL_SCORE, tiles=t) for t in TILES}
    names = detectors[TILES[0]].class_names
    rows: dict[str, Any] = {}
    for name in SETS:
        records = in_order(load_coco(given.data / name / "val.json", names))
        found = {tiles: [detector.run(record.read()) for record in records] for tiles, detector in detectors.items()}
        rows[name] = {_said(tiles): _row(records, found, tiles, names) for tiles in TILES}
        print(name, rows[name], flush=True)
    milliseconds = timed(detectors, [record.read() for record in records[:TIMED]])
    ratios = {_said(tiles): round(milliseconds[tiles] / milliseconds[TILES[0]], 2) for tiles in TILES}
    command = f"python -m benchmarks.tiles --bundle {given.bundle} --backend {given.backend}"
    setup = {"batch": 1, "precision": "fp32", "backend": given.backend, "small": "area under 16x16 frame pixels"}
    print(ratios, write(f"tiles_{given.bundle.stem}", {**conditions(command), **setup, "time_ratio": ratios,
                                                       "sets": rows}))


def _said(tiles: tuple[int, int]) -> str:
    return f"{tiles[0]}x{tiles[1]}"


def _row(
    records: list[Record], found: dict[tuple[int, int], list[Detections]], tiles: tuple[int, int],
    names: tuple[str, ...],
) -> dict[str, Any]:
    """AP in percent, and the paired difference to no tiles with its 95% interval."""
    whole, small = score(records, found[tiles], names), score([_only_small(r) for r in records], found[tiles], names)
    gain = ap_difference(records, found[TILES[0]], found[tiles])
    return {
        **{key: round(100 * whole.mean(key), 1) for key in ("ap", "ap50")},
        **{f"{key}_small": round(100 * small.mean(key), 1) for key in ("ap", "ap50")},
        "ap_gain": [round(100 * bound, 1) for bound in gain],
    }


def _only_small(record: Record) -> Record:
    """Larger objects become regions that count for nothing."""
    small = area(record.boxes) < SMALL
    ignore = np.concatenate([record.ignore, record.boxes[~small]])
    return replace(record, boxes=record.boxes[small], labels=record.labels[small], ignore=ignore)


def timed(detectors: dict[tuple[int, int], Detector], frames: Sequence[Any]) -> dict[tuple[int, int], float]:
    """Median milliseconds a frame, the detectors in turn on each frame."""
    spent: dict[tuple[int, int], list[float]] = {tiles: [] for tiles in detectors}
    for frame in frames:
        for tiles, detector in detectors.items():
            began = time.perf_counter()
            detector.run(frame)
            spent[tiles].append(1000 * (time.perf_counter() - began))
    return {tiles: median(values) for tiles, values in spent.items()}


if __name__ == "__main__":
    main()
