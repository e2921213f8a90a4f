"""thermal-fs: how good a detector of six new classes is after 1, 5 or 10 labelled boxes of each.

    python -m benchmarks.fewshot --workers 2    # the runs that lack, then tables and plots in docs/few-shot.md
    python -m benchmarks.fewshot --table main --shots 10 --seeds 0 1 2
    python -m benchmarks.fewshot --report       # tables and plots of the runs that there are

Base classes: person, car, bicycle (HIT-UAV). Novel: uav, airplane, helicopter, bird (air), dog (dogs_people), cheetah
(cheetah), drawn by the strict protocol, taught together, tested on the val lists, and on these with the train pictures
that were not drawn.
A run is a line of results/fewshot_runs.jsonl; one that is there is not made again. Each is made by one thread: two at a
time get more done on two cores than one of two threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import compress, groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import conditions
from benchmarks.fewshot_bases import base_path
from benchmarks.fewshot_report import write_report
from benchmarks.fewshot_runs import CLASSES, METHODS, NOVEL, SHOTS, Key, add_run, keys, method_of, read_runs
from glmd_export.onnx_export import export_onnx
from glmd_runtime import backends
from glmd_runtime.calibration import Calibration, CalibrationSpec
from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import PreprocessSpec, preprocess
from glmd_train.checkpoint import Checkpoint, load_checkpoint
from glmd_train.classifier import Classifier, Pcb, load_classifier, rgb_of_images
from glmd_train.config import DatasetConfig, TrainConfig
from glmd_train.data.coco import Record, load_coco, load_coco_files
from glmd_train.data.fewshot import write_splits
from glmd_train.evaluate import EVAL_SCORE, in_order, score
from glmd_train.loop import fit
from glmd_train.prototypes import build_prototypes
from glmd_train.recipes import fine_tuning

Found = dict[str, Detections]  # by PCB state, "off" and "on"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--table", nargs="+", choices=list(METHODS), default=list(METHODS))
    options.add_argument("--shots", nargs="+", type=int, default=[], choices=SHOTS)
    options.add_argument("--seeds", nargs="+", type=int, default=[])
    names = sorted({method.name for methods in METHODS.values() for method in methods})
    options.add_argument("--methods", nargs="+", default=[], choices=names)
    options.add_argument("--workers", type=int, default=1, help="runs at a time (default: %(default)s)")
    options.add_argument("--report", action="store_true", help="run nothing")
    given = options.parse_args()
    wanted = [] if given.report else list(keys(given.table, given.shots, given.seeds, given.methods))
    there = read_runs()
    make_runs([key for key in wanted if key not in there], given.data, given.workers)
    write_report(read_runs())


def make_runs(missing: Sequence[Key], data: Path, workers: int) -> None:
    """Make runs and add them to those that are there."""
    for base in {method_of(key).base for key in missing}:
        base_path(base)  # trained here where it lacks, not by several at once
    # New processes for each draw: one grows by about a gigabyte a run, as training keeps the memory that it frees.
    for (table, seed), keys_of_draw in groupby(missing, lambda key: (key.table, key.seed)):
        print(f"table {table}, draw {seed}", flush=True)
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            running = {pool.submit(run, key, data): key for key in keys_of_draw}
            for done in as_completed(running):
                finish(running[done], done)


def finish(key: Key, done: Future[dict[str, Any]]) -> None:
    name = f"{key.method}, {key.shots} shots, {key.seed}"
    if error := done.exception():  # the others are kept all the same
        print(f"{name} failed: {error!r}", flush=True)
        return
    row = done.result()
    add_run(row)
    off, on = (row[state]["val"]["ap"] for state in ("pcb_off", "pcb_on"))
    print(f"{name}: nAP {off:.1f}, with PCB {on:.1f}, {row['seconds']} s", flush=True)


def run(key: Key, data: Path) -> dict[str, Any]:
    """Draw, fine-tune, score."""
    method = method_of(key)
    with tempfile.TemporaryDirectory(prefix="thermal-fs.") as scratch:
        folder = Path(scratch)
        splits = draw(data, folder / "splits", key.seed)
        files = [split / f"full_box_{key.shots}shot_*_trainval.json" for split in splits.values()]
        base = base_path(method.base)
        config = configuration(key, base, files, folder / "run")
        began = time.monotonic()
        checkpoint = load_checkpoint(fit(config))
        seconds = time.monotonic() - began
        support = load_coco_files(files, CLASSES)
        classifier = load_classifier()
        prototypes = build_prototypes(classifier, support, len(CLASSES), checkpoint.preprocess)
        # Without thresholds for calibrated scores: every detection counts here.
        checkpoint = replace(checkpoint, pcb=Pcb(classifier, Calibration(CalibrationSpec(), prototypes)))
        scores = {pcb: {} for pcb in ("off", "on")}
        records, is_val = test_list(data, splits)
        found = detect(checkpoint, records, folder)
    for pcb, rows in scores.items():
        chosen = [one[pcb] for one in found]
        rows["all"] = values(records, chosen)
        rows["val"] = values(*(list(compress(column, is_val)) for column in (records, chosen)))
    return {
        **vars(key), "recipe": method.recipe, "base": method.base, "pictures": len(records), "seconds": round(seconds),
        "pcb_off": scores["off"], "pcb_on": scores["on"],
        "precision": config.precision, **conditions("python -m benchmarks.fewshot"),
    }


def draw(data: Path, out: Path, seed: int, shots: Sequence[int] = SHOTS) -> dict[str, Path]:
    """Set -> the folder of its split."""
    for name, classes in NOVEL.items():
        write_splits(data / name / "train.json", out / name, "strict", shots, [seed], classes)
    return {name: out / name / f"seed{seed}" for name in NOVEL}


def configuration(key: Key, base: Path, files: Sequence[Path], output: Path) -> TrainConfig:
    """The method's recipe on the drawn files."""
    method = method_of(key)
    train = [DatasetConfig(annotations=file) for file in files]
    changes = {"seed": key.seed, "model": dict(method.changes)}
    return fine_tuning(method.recipe, load_checkpoint(base), base, CLASSES, train, output, shots=key.shots, **changes)


def test_list(data: Path, splits: dict[str, Path]) -> tuple[list[Record], list[bool]]:
    """Train pictures that were not drawn, and val; which of them are val. Every class counts in every picture."""
    lists = {splits[name] / "test.json": False for name in NOVEL} | {data / name / "val.json": True for name in NOVEL}
    rows = [(record, is_val) for file, is_val in lists.items() for record in load_coco(file, CLASSES)]
    place = {id(record): is_val for record, is_val in rows}
    records = in_order(record for record, _ in rows)
    return records, [place[id(record)] for record in records]


def detect(checkpoint: Checkpoint, records: Sequence[Record], folder: Path) -> list[Found]:
    """What the exported graph finds with OpenVINO, twice as fast as PyTorch, without and with PCB."""
    assert checkpoint.pcb
    calibration, spec = checkpoint.pcb.calibration, _above(EVAL_SCORE, checkpoint)
    network = backends.load("openvino", export_onnx(checkpoint, folder / "model.onnx"), threads=1)
    results = []
    for record in records:
        image, geometry = preprocess(record.read(), checkpoint.preprocess)
        valid_hw = np.asarray([geometry.valid_hw], np.float32)
        out = network.run({"images": image[None], "valid_hw": valid_hw})
        raw = RawOutputs(out["boxes"][0], out["scores"][0], out["valid"][0].astype(bool))
        found = postprocess(raw, geometry, calibration.candidates(spec), checkpoint.class_names)
        with torch.inference_mode():
            features = _features(record.path, checkpoint.pcb.classifier, image, checkpoint.preprocess)
            boxes = torch.from_numpy(geometry.to_image(found.xyxy))
            logits = checkpoint.pcb.classifier.judge(features, [boxes]).numpy()
        results.append({"off": found, "on": calibration.apply(found, logits, spec)})
    return results


_SEEN: dict[tuple[Path, PreprocessSpec], Tensor] = {}


def _features(path: Path, classifier: Classifier, image: NDArray[Any], spec: PreprocessSpec) -> Tensor:
    """PCB's features of a picture, computed once a process: no run trains its classifier."""
    if (path, spec) not in _SEEN:
        classifier.network.to(memory_format=torch.channels_last)  # the same in half the time
        rgb = rgb_of_images(torch.from_numpy(image[None]), spec).contiguous(memory_format=torch.channels_last)
        _SEEN[path, spec] = classifier.features(classifier.normalise(rgb))
    return _SEEN[path, spec]


def _above(threshold: float, checkpoint: Checkpoint) -> PostprocessSpec:
    return replace(checkpoint.postprocess, score_thresholds=(threshold,) * len(checkpoint.class_names))


def values(
    records: Sequence[Record], found: Sequence[Detections], classes: tuple[str, ...] = CLASSES
) -> dict[str, Any]:
    """Means and AP by class, in percent."""
    result = score(list(records), list(found), classes)
    means = {key: round(100 * result.mean(key), 2) for key in ("ap", "ap50", "ap75")}
    return {**means, "classes": {name: round(100 * row.ap, 2) for name, row in result.classes.items()},
            "classes50": {name: round(100 * row.ap50, 2) for name, row in result.classes.items()}}


if __name__ == "__main__":
    main()
