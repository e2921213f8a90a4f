"""What tiles find, and what they cost: AP with and without, all objects and small ones, and the time a frame takes.

Two sets are as their cameras gave them; a frame of `hit_uav_mosaic` is four pictures of hit_uav, 1280x1024, as from a
camera with twice the canvas' pixels each way.

    python -m benchmarks.tiles --bundle models/thermal_lite0.glmd    # then: python -m benchmarks.readme
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import true_and_false
from benchmarks.common import conditions, write
from benchmarks.tables import Lines, table
from glmd_runtime import Detections, Detector
from glmd_runtime.boxes import area
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import EVAL_SCORE, RECALL_SCORE, in_order
from glmd_train.scores.intervals import Interval, ap_difference, ap_intervals

TILES = {"none": None, "2x1": (2, 1), "2x2": (2, 2)}
SMALL = 16.0**2  # frame pixels
Samples = Sequence[tuple[Record, Callable[[], NDArray[Any]]]]  # labels, and what reads the frame
Found = dict[str, list[Detections]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", type=Path, required=True)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    setting = {"score_threshold": EVAL_SCORE, "threads": given.threads}
    with ExitStack() as stack:
        detectors = {
            name: stack.enter_context(Detector(given.bundle, **setting, tiles=tiles)) for name, tiles in TILES.items()
        }
        info, names = detectors["none"].info(), detectors["none"].class_names
        real = {name: in_order(load_coco(given.data / name / "val.json", names)) for name in ("hit_uav", "air")}
        sets = {name: [(r, r.read) for r in records] for name, records in real.items()}
        sets["hit_uav_mosaic"] = mosaics(real["hit_uav"])
        rows = {name: measure(detectors, samples) for name, samples in sets.items()}
    for name, row in rows.items():
        print_set(name, row)
    command = f"python -m benchmarks.tiles --bundle {given.bundle} --threads {given.threads}"
    setup = {"batch": 1, "precision": info["precision"], "score_threshold": EVAL_SCORE, "small_below_area": SMALL}
    print(write(f"tiles_{given.bundle.stem}", {**conditions(command), **setup, "engine": info, "sets": rows}))


def mosaics(records: Sequence[Record]) -> Samples:
    """Four pictures of one size a frame, drawn without replacement."""
    order = np.random.default_rng(0).permutation(len(records))[: len(records) // 4 * 4].reshape(-1, 4)
    return [mosaic([records[i] for i in four]) for four in order]


def mosaic(four: Sequence[Record]) -> tuple[Record, Callable[[], NDArray[Any]]]:
    h, w = four[0].hw
    shifts = [np.array([x, y, x, y], np.float32) for y in (0, h) for x in (0, w)]
    boxes, ignore = (
        np.concatenate([getattr(record, name) + shift for record, shift in zip(four, shifts, strict=True)])
        for name in ("boxes", "ignore")
    )
    labels = np.concatenate([record.labels for record in four])

    def read() -> NDArray[Any]:
        a, b, c, d = (record.read() for record in four)
        return np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)])

    return replace(four[0], hw=(2 * h, 2 * w), boxes=boxes, labels=labels, ignore=ignore), read


def measure(detectors: dict[str, Detector], samples: Samples) -> dict[str, Any]:
    """Every detector in turn on each frame, so that what else the machine does meets all alike."""
    found: Found = {name: [] for name in detectors}
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for number, (_, read) in enumerate(samples):
        frame = read()
        turns = deque(detectors.items())
        turns.rotate(number)  # the first finds a frame that no cache holds yet
        for name, detector in turns:
            start = time.perf_counter()
            found[name].append(detector.run(frame))
            times[name].append(1000 * (time.perf_counter() - start))
    records = [record for record, _ in samples]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "frames": len(records),
        "all": scores(records, found),
        "small": scores(*only_small(records, found)),
        "ms": {
            name: {"median": round(ms, 1), "times_none": round(ms / medians["none"], 2)} for name, ms in medians.items()
        },
    }


def scores(records: Sequence[Record], found: Found) -> dict[str, Any]:
    present = {"all": {int(label) for record in records for label in record.labels}}
    rows: dict[str, Any] = {"objects": sum(len(record.labels) for record in records)}
    for name, detections in found.items():
        limits = (RECALL_SCORE,) * len(detections[0].class_names)
        fields = ap_intervals(records, detections, present)["all"]
        rows[name] = {field: percent(fields[field])[0] for field in ("ap", "ap50")}
        rows[name]["true_and_false_at_0.3"] = true_and_false(records, detections, limits)
        if name != "none":
            rows[name]["ap_difference"] = percent(ap_difference(records, found["none"], detections))
    return rows


def percent(interval: Interval) -> list[float]:
    """Value and bounds of the 95% interval over the pictures."""
    return [round(100 * value, 1) for value in interval]


def only_small(records: Sequence[Record], found: Found) -> tuple[list[Record], Found]:
    """Larger objects become ignore regions, and boxes too large to be a small object's at IoU 0.5 are left out."""
    kept = []
    for record in records:
        small = area(record.boxes) < SMALL
        ignore = np.concatenate([record.ignore, record.boxes[~small]])
        kept.append(replace(record, boxes=record.boxes[small], labels=record.labels[small], ignore=ignore))
    return kept, {name: [one[area(one.xyxy) <= 2 * SMALL] for one in rows] for name, rows in found.items()}


def print_set(name: str, row: dict[str, Any]) -> None:
    for tiles in TILES:
        times = f"{row['ms'][tiles]['times_none']:.2f} times the time"
        parts = [f"{size} {row[size][tiles]}" for size in ("all", "small")]
        print(f"{name:15s} {tiles:5s} {times}  {'  '.join(parts)}")


def lines(sets: dict[str, Any]) -> Lines:
    """A row for each set and each number of tiles."""
    header = ["set", "tiles", "ms a frame", "AP, all objects", "AP, small ones", "right and wrong at score 0.3"]
    return table(header, [
        [name, tiles, f"{row['ms'][tiles]['median']} ({row['ms'][tiles]['times_none']} times)",
         *(ap_and_gain(row[size][tiles]) for size in ("all", "small")),
         "{} and {}".format(*row["all"][tiles]["true_and_false_at_0.3"])]
        for name, row in sets.items() for tiles in TILES
    ])


def ap_and_gain(row: dict[str, Any]) -> str:
    """AP; what it is more than without tiles, with the 95% interval over pictures."""
    gain = row.get("ap_difference")
    return f"{row['ap']}, {gain[0]:+} ({gain[1]:+} to {gain[2]:+})" if gain else f"{row['ap']}"


if __name__ == "__main__":
    main()
