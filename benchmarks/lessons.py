"""What the score thresholds of a lesson are worth on pictures that nobody taught: F1 of several ways to choose them.

    python -m benchmarks.lessons --seeds 300 301
    python -m benchmarks.lessons                  # the table of the lessons that there are

Ten boxes of each novel class of thermal-fs are drawn (strict) and taught together, as `glmd-train teach` does it; the
ways choose from the pictures that the lesson held out. Tested on the val lists, and on those train pictures whose clip
or scene was not drawn from, every class in every picture. A seed that is in results/lessons.json is not
taught again: what the ways choose from is there, and F1 at every threshold.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, conditions, write
from benchmarks.fewshot import draw
from benchmarks.fewshot_bases import COMMITTED
from benchmarks.fewshot_runs import CLASSES, NOVEL
from benchmarks.tables import Lines, table
from benchmarks.thresholds import f1, scene_of
from glmd_runtime import Detections
from glmd_runtime.boxes import xyxy_to_xywh
from glmd_train.checkpoint import Checkpoint
from glmd_train.data.coco import Record, load_coco, load_coco_files
from glmd_train.evaluate import RECALL_SCORE, detect, torch_predict
from glmd_train.lesson.thresholds import LOWEST, USUAL, HeldOut, best_f1, choose, held_out
from glmd_train.teach import Lesson, read_lesson, teach

SHOTS = 10
GRID = [round(0.01 * n, 2) for n in range(5, 96)]  # thresholds; F1 is that of the nearest
Classes = Mapping[str, HeldOut]
Curves = dict[str, list[float]]  # by class


def by_rule(classes: Classes) -> dict[str, float]:
    picks = choose(classes, dict.fromkeys(classes, ()), 0, (RECALL_SCORE,) * len(classes))
    return {name: pick.threshold for name, pick in picks.items()}


def alone(way: Callable[[Classes], dict[str, float]]) -> Callable[[Classes], dict[str, float]]:
    """As if each class had been the only one of its lesson."""
    return lambda classes: {name: way({name: rows})[name] for name, rows in classes.items()}


WAYS: dict[str, Callable[[Classes], dict[str, float]]] = {
    f"{RECALL_SCORE:g} for all": lambda classes: dict.fromkeys(classes, RECALL_SCORE),
    f"{USUAL:g} for all": lambda classes: dict.fromkeys(classes, USUAL),
    "best F1 of ten objects": lambda classes: {n: best_f1(rows) or RECALL_SCORE for n, rows in classes.items()},
    "as `teach` does with one class": alone(by_rule),
    "as `teach` does with six": by_rule,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[])
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    given = options.parse_args()
    command = "python -m benchmarks.lessons --seeds"
    for seed in given.seeds:
        if not any(run["seed"] == seed for run in runs()):
            row = {"seed": seed, **lesson(given.data, seed), **conditions(f"{command} {seed}")}
            write("lessons", {"runs": [*runs(), row]})
    print("\n".join(lines(runs())))


def runs() -> list[dict[str, Any]]:
    path = RESULTS / "lessons.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def lesson(data: Path, seed: int) -> dict[str, Any]:
    """Teach; by class what was held out, and by part and class F1 at each threshold of GRID."""
    with tempfile.TemporaryDirectory(prefix="lessons.") as scratch:
        splits = draw(data, Path(scratch) / "splits", seed, [SHOTS])
        support = load_coco_files([s / f"full_box_{SHOTS}shot_*_trainval.json" for s in splits.values()], CLASSES)
        taught = teach(lesson_of(support, Path(scratch) / "labels.json"), Path(scratch) / "log", seed=seed)
        drawn = {scene_of(record.path) for record in support}
        rest = [one for folder in splits.values() for one in load_coco(folder / "test.json", CLASSES)]
        parts = {
            "train": [one for one in rest if scene_of(one.path) not in drawn],
            "val": [one for name in NOVEL for one in load_coco(data / name / "val.json", CLASSES)],
        }
        curves = {state: f1_of_parts(taught.checkpoint, parts, state == "on") for state in ("off", "on")}
    return {"held_out": {name: to_dict(rows) for name, rows in taught.held_out.items()}, "f1": curves}


def f1_of_parts(checkpoint: Checkpoint, parts: Mapping[str, list[Record]], pcb: bool) -> dict[str, Curves]:
    """By part and class F1 in percent at each threshold of GRID, of scores with prototypical calibration or without."""
    predict = torch_predict(checkpoint, LOWEST, pcb=pcb)
    tested = {part: of_classes(records, detect(predict, records)) for part, records in parts.items()}
    return {part: {name: [round(100 * f1(rows, t), 1) for t in GRID] for name, rows in classes.items()}
            for part, classes in tested.items()}


def to_dict(rows: HeldOut) -> dict[str, Any]:
    return {"scores": rows.scores.round(4).tolist(), "hit": rows.hit.astype(int).tolist(), "objects": rows.objects}


def from_dict(values: dict[str, Any]) -> HeldOut:
    return HeldOut(np.asarray(values["scores"], float), np.asarray(values["hit"], bool), values["objects"])


def lesson_of(support: Sequence[Record], file: Path) -> Lesson:
    """The pictures of several sets as one lesson."""
    images = [{"id": i, "file_name": str(one.path.resolve().relative_to("/")), "height": one.hw[0], "width": one.hw[1]}
              for i, one in enumerate(support)]
    boxes = [(i, int(label) + 1, 0, box) for i, one in enumerate(support)
             for label, box in zip(one.labels, one.boxes, strict=True)]
    boxes += [(i, 1, 1, box) for i, one in enumerate(support) for box in one.ignore]
    annotations = [
        {"id": n, "image_id": i, "category_id": k, "iscrowd": crowd, "bbox": xyxy_to_xywh(box[None])[0].tolist()}
        for n, (i, k, crowd, box) in enumerate(boxes)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_lesson(Path("/"), file, COMMITTED["glmd"])


def of_classes(records: Sequence[Record], found: Sequence[Detections]) -> dict[str, HeldOut]:
    return {name: held_out(records, found, i) for i, name in enumerate(CLASSES)}


def lines(rows: Sequence[dict[str, Any]]) -> Lines:
    """F1 by way, mean over lessons; of calibrated scores, at one threshold for all."""
    chosen = [{name: from_dict(values) for name, values in row["held_out"].items()} for row in rows]
    body = []
    for part in ("train", "val"):
        for pcb, way in (*(("off", way) for way in WAYS), ("on", f"{USUAL:g} for all")):
            pairs = zip(rows, chosen, strict=True)
            cells = np.mean([f1_at(row["f1"][pcb][part], WAYS[way](classes)) for row, classes in pairs], axis=0)
            body.append([part, pcb, way, *(f"{value:.1f}" for value in cells), f"{cells.mean():.1f}"])
    return table(["pictures", "PCB", "threshold", *CLASSES, "mean"], body)


def f1_at(curves: Mapping[str, Sequence[float]], limits: Mapping[str, float]) -> list[float]:
    return [curves[name][int(np.abs(np.subtract(GRID, limits[name])).argmin())] for name in CLASSES]


if __name__ == "__main__":
    main()
