"""How good a class is that `Detector.enroll` learned from 1, 5 or 10 boxes: thermal-fs without training.

    python -m benchmarks.enroll --seeds 0 1 2 3 4

The draws, pictures and scores are those of `benchmarks.fewshot` on the val lists, so that its runs of `teach` are
comparable: six novel classes, enrolled one after the other on the base model; "everywhere" means that a dog in the sky
is wrong, "in place" that each class is tested on the pictures of its own set, as on a camera that stays where it is,
"alone" that the base claims nothing. Raw outputs of pictures are kept in runs/enroll.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import conditions, write
from benchmarks.fewshot import draw, test_list, values
from benchmarks.fewshot_bases import base_path
from benchmarks.fewshot_runs import CLASSES, NOVEL, SHOTS
from glmd_export.onnx_export import export_onnx
from glmd_runtime import backends
from glmd_runtime.boxes import iou
from glmd_runtime.detections import Detections
from glmd_runtime.enroll import HIT_IOU, Enrolment, learn, likely_boxes, regions
from glmd_runtime.errors import UsageError
from glmd_runtime.postprocess import RAW_OUTPUTS, PostprocessSpec, RawOutputs, postprocess, split_outputs
from glmd_runtime.preprocess import Geometry, preprocess
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from glmd_train.data.coco import Record, load_coco_files
from glmd_train.scores.intervals import run_interval

FLOOR = 1e-6  # AP is of the order of scores: what 0.5 means to a class is a guess from a few frames
CACHE = Path(__file__).parents[1] / "runs" / "enroll"
SETUP = {"backend": "openvino", "precision": "fp32", "batch": 1, "threads": 1}


class Seen(NamedTuple):
    """A picture and what the network says of it."""

    record: Record
    raw: RawOutputs
    geometry: Geometry


class Network:
    """The base model's exported graph; what it said of a picture is kept."""

    def __init__(self, checkpoint: Checkpoint, key: str) -> None:
        self.checkpoint, self._folder = checkpoint, CACHE / key
        self._folder.mkdir(parents=True, exist_ok=True)
        model = self._folder / "model.onnx"
        if not model.exists():
            export_onnx(checkpoint, model, features=True)
        self._backend = backends.load(SETUP["backend"], model, threads=SETUP["threads"])

    def see(self, record: Record) -> Seen:
        image, geometry = preprocess(record.read(), self.checkpoint.preprocess)
        file = self._folder / f"{record.path.parent.parent.name}_{record.path.stem}.npz"
        if not file.exists():
            valid_hw = np.asarray([geometry.valid_hw], np.float32)
            np.savez(file, **self._backend.run({"images": image[None], "valid_hw": valid_hw}))
        with np.load(file) as arrays:
            return Seen(record, split_outputs({name: arrays[name] for name in RAW_OUTPUTS})[0], geometry)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), choices=SHOTS)
    given = options.parse_args()
    base = base_path("glmd")
    network = Network(load_checkpoint(base), sha256(base.read_bytes()).hexdigest()[:12])
    runs, pictures, recall = [], [], {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory(prefix="thermal-fs.") as scratch:
            splits = draw(given.data, Path(scratch), seed)
            if not pictures:  # val is the same for every seed
                listed = zip(*test_list(given.data, splits), strict=True)
                pictures = [network.see(record) for record, is_val in listed if is_val]
                recall = proposal_recall(pictures)
                print("found by a region", recall, flush=True)
            for shots in given.shots:
                runs.append({"seed": seed, "shots": shots, **run(network, splits, shots, pictures)})
                print(runs[-1], flush=True)
    means = {shots: summary([row for row in runs if row["shots"] == shots]) for shots in given.shots}
    result = {"pictures": len(pictures), "recall_of_regions": recall, "means": means, "runs": runs}
    print(write("enroll", {**conditions("python -m benchmarks.enroll"), **SETUP, "base": base.stem, **result}))


def proposal_recall(pictures: Sequence[Seen]) -> dict[str, float]:
    """Percent of a class's objects that some region overlaps by HIT_IOU: what enrolling cannot surpass."""
    best: dict[str, list[float]] = {name: [] for name in CLASSES}
    for record, raw, geometry in pictures:
        overlaps = iou(likely_boxes(raw)[raw.valid], geometry.to_image(record.boxes)).max(axis=0, initial=0.0)
        for label, overlap in zip(record.labels, overlaps, strict=True):
            best[CLASSES[label]].append(overlap)
    return {name: round(100 * float(np.mean(np.array(row) >= HIT_IOU)), 1) for name, row in best.items()}


def run(network: Network, splits: dict[str, Path], shots: int, pictures: Sequence[Seen]) -> dict[str, Any]:
    folders = [(splits[key], name) for key, names in NOVEL.items() for name in names]
    files = [folder / f"full_box_{shots}shot_{name}_trainval.json" for folder, name in folders]
    support = [network.see(record) for record in load_coco_files(files, CLASSES)]
    began, nms_iou = time.process_time(), network.checkpoint.postprocess.nms_iou
    learned = [one for name in CLASSES if (one := enrolled(name, support, nms_iou)) is not None]
    seconds = time.process_time() - began
    enrolment = reduce(Enrolment.and_one, learned)
    missing = [name for name in CLASSES if name not in enrolment.spec.class_names]
    return {
        **scores(network.checkpoint, enrolment, pictures), "not_learned": missing,
        "learn_cpu_s": round(seconds, 2), "thresholds": [round(t, 3) for t in enrolment.spec.score_thresholds],
    }


def enrolled(name: str, support: Sequence[Seen], nms_iou: float) -> Enrolment | None:
    """None where no region overlaps a box. The other classes' pictures are frames without it."""
    class_id = CLASSES.index(name)
    found = [
        regions(raw, geometry.to_image(record.boxes[record.labels == class_id])) for record, raw, geometry in support
    ]
    try:
        return learn(name, found, nms_iou)
    except UsageError:
        return None


def scores(checkpoint: Checkpoint, enrolment: Enrolment, pictures: Sequence[Seen]) -> dict[str, Any]:
    """AP50 in percent by class: everywhere, in place, and in place without the base's claims."""
    everywhere, in_place = by_class(checkpoint, enrolment, pictures, checkpoint.postprocess.score_thresholds)
    nothing_claimed = (1.0,) * len(checkpoint.class_names)
    alone = by_class(checkpoint, enrolment, pictures, nothing_claimed)[1]
    return {
        "nap50": everywhere["ap50"], "nap": everywhere["ap"], "everywhere": everywhere["classes50"],
        "in_place": in_place, "in_place_alone": alone,
    }


def by_class(
    checkpoint: Checkpoint, enrolment: Enrolment, pictures: Sequence[Seen], thresholds: Sequence[float]
) -> tuple[dict[str, Any], dict[str, float]]:
    """`values` on all pictures; AP50 of each class on those of its own set. Args: thresholds of the base's classes."""
    names = enrolment.spec.class_names
    spec = replace(checkpoint.postprocess, score_thresholds=(*thresholds, *(FLOOR,) * len(names)))
    found = [novel(enrolment, one, spec, (*checkpoint.class_names, *names)) for one in pictures]
    in_place: dict[str, float] = {}
    for folder in NOVEL:
        pairs = zip(pictures, found, strict=True)
        mine = [(p.record, one) for p, one in pairs if p.record.path.parent.parent.name == folder]
        in_place |= values(*map(list, zip(*mine, strict=True)))["classes50"]
    return values([one.record for one in pictures], found), {name: in_place[name] for name in CLASSES}


def novel(enrolment: Enrolment, one: Seen, spec: PostprocessSpec, names: tuple[str, ...]) -> Detections:
    """The enrolled classes' detections, as those of CLASSES."""
    found = postprocess(enrolment.extend(one.raw, spec), one.geometry, spec, names)
    mine = found[np.isin(found.names, CLASSES)]
    ids = np.array([CLASSES.index(name) for name in mine.names], np.int64)
    return Detections(mine.xyxy, mine.scores, ids, CLASSES)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the draws, those over all classes with their 95% t intervals."""
    means = {key: [round(value, 1) for value in run_interval([row[key] for row in rows])] for key in ("nap50", "nap")}
    classes = {
        kind: {name: round(float(np.mean([row[kind][name] for row in rows])), 1) for name in CLASSES}
        for kind in ("everywhere", "in_place", "in_place_alone")
    }
    return {**means, **classes}


if __name__ == "__main__":
    main()
