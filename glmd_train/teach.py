"""Pictures and labels -> a fine-tuned, calibrated checkpoint: what `glmd-train teach` does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.scratch import whole_file, work_folder
from glmd_runtime.video.sources import read_picture
from glmd_train.checkpoint import DEFAULT_SCORE, Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.classifier import load_classifier
from glmd_train.config import DatasetConfig
from glmd_train.data.coco import Record, load_coco, with_image_folder
from glmd_train.data.formats import read_labels
from glmd_train.data.lint import Finding
from glmd_train.evaluate import detect, torch_predict
from glmd_train.loop import fit
from glmd_train.prototypes import add_pcb
from glmd_train.recipes import DEFAULT, fine_tuning
from glmd_train.runs import background_pictures
from glmd_train.support import judge
from glmd_train.thresholds import LOWEST, HeldOut, best_f1, held_out, quiet_threshold

FOLDS = 2
# Of the pictures that a batch draws, about this part is background, where there is any.
BACKGROUND_PART = 0.2
SHOWN = 12  # class names in an error; a COCO file has 80
FALSE_ALARMS = 10.0  # in 1000 frames without objects
Step = Callable[[str], None]


@dataclass(frozen=True)
class Lesson:
    """What is taught: pictures and their labels, checked.

    content      COCO's, of these classes' pictures; file names start at `pictures`
    background   pictures without an object, every second one to train on, the others to count false alarms in
    findings     what was noticed of the pictures, no errors
    """

    base: Path
    class_names: tuple[str, ...]
    content: dict[str, Any]
    pictures: Path
    records: list[Record]
    background: tuple[Path, ...]
    findings: tuple[Finding, ...]


def read_lesson(
    images: Path, annotations: Path, base: Path, classes: Sequence[str] = (), background: Path | None = None,
) -> Lesson:
    """Read and judge what is to be taught.

    Args: images, the folder of the pictures; annotations, as `formats.read_labels` takes them; classes, those to teach
        of those that are labelled, none for all; background, a folder of pictures without any object.
    Raises: UsageError for a class that the base knows or nobody labelled; DatasetError for what is wrong in the labels.
    """
    checkpoint = load_checkpoint(base)
    content, pictures = read_labels(annotations, images)
    names = _classes(content, annotations, classes, checkpoint)
    with work_folder("glmd-teach") as scratch:
        records = load_coco(_write(scratch / "labels.json", content, pictures), names)
    frames = tuple(background_pictures(background)) if background else ()
    findings = judge(records, names, checkpoint.config, checkpoint.preprocess, background=frames)
    return Lesson(base, names, content, pictures, records, frames, tuple(findings))


def _classes(
    content: dict[str, Any], source: Path, wanted: Sequence[str], base: Checkpoint
) -> tuple[str, ...]:
    """The classes to teach, in the order of their ids (or as they were asked for)."""
    labelled = {a["category_id"] for a in content["annotations"]}
    there = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"]) if c["id"] in labelled]
    if unknown := [name for name in wanted if name not in there]:
        shown = [*there[:SHOWN], f"and {len(there) - SHOWN} others"] if len(there) > SHOWN else there
        raise UsageError(f"{source} has no box of {unknown}; it has boxes of {', '.join(shown)}. Correct --classes.")
    names = tuple(dict.fromkeys(wanted)) or tuple(there)
    if known := [name for name in names if name in base.class_names]:
        others = [name for name in names if name not in known]
        remedy = f"--classes {' '.join(others)}" if others else "labels of a new class"
        raise UsageError(
            f"The base knows {known} already, from far more pictures; teach is for new classes. Use {remedy}, or "
            "train a known class further with glmd-train fit."
        )
    if not names:
        raise DatasetError(f"{source} has no box. Label an object in at least one picture.")
    return names


@dataclass(frozen=True)
class Taught:
    """What came of a lesson.

    held_out   by class: detections in pictures that their model had not seen, from which `chosen` follows
    chosen     by class: where its threshold comes from
    quiet      pictures without objects in which false alarms were counted, none without --background
    alarms     by class: the number of detections above its threshold in these
    found      detections of each of the lesson's records by the model that had not seen it; None where all had
    """

    checkpoint: Checkpoint
    held_out: dict[str, HeldOut]
    chosen: dict[str, str]
    quiet: int
    alarms: dict[str, int]
    found: list[Detections | None]


def teach(
    lesson: Lesson, log: Path, *, recipe: str = DEFAULT, false_alarms: float = FALSE_ALARMS, seed: int = 0,
    step: Step = lambda _: None,
) -> Taught:
    """Fine-tune, choose thresholds, add prototypes.

    Thresholds come from pictures that were held out: the support pictures are divided in two, a model trained on each
    half is scored on the other, and the last model is trained on all. With background frames a threshold is at least
    such that the last model gives no more than `false_alarms` in 1000 of those that it was not trained on.
    Args: log, a folder that gets the log of every training; step, told what begins.
    """
    with work_folder("glmd-teach") as scratch:
        school = _School(lesson, scratch, log, recipe, seed)
        found: list[Detections | None] = [None] * len(lesson.records)
        for number, tested in enumerate(folds([r.labels for r in lesson.records], len(lesson.class_names)), start=1):
            step(f"train without {len(tested)} of {len(lesson.records)} pictures, to choose thresholds on them")
            rest = [i for i in range(len(lesson.records)) if i not in tested]
            predict = torch_predict(school.train(f"without_{number}", rest), LOWEST)
            for i, one in zip(tested, detect(predict, [lesson.records[i] for i in tested]), strict=True):
                found[i] = one
        step(f"train on all {len(lesson.records)} pictures")
        checkpoint = school.train("all", list(range(len(lesson.records))))
    step("choose thresholds and add prototypes")
    quiet = [torch_predict(checkpoint, LOWEST)(read_picture(path)) for path in quiet_frames(lesson.background)]
    rows = _held_out(lesson, found)
    picks = {
        name: _threshold(rows[name], _scores(quiet, i), len(quiet), false_alarms)
        for i, name in enumerate(lesson.class_names)
    }
    # Upwards: a score that a threshold is to stop must not pass it by rounding.
    thresholds = tuple(math.ceil(1e4 * threshold) / 1e4 for threshold, _ in picks.values())
    checkpoint = replace(checkpoint, postprocess=replace(checkpoint.postprocess, score_thresholds=thresholds))
    checkpoint = add_pcb(checkpoint, load_classifier(), lesson.records)
    alarms = {
        name: int((_scores(quiet, i) > thresholds[i]).sum()) for i, name in enumerate(lesson.class_names)
    }
    return Taught(checkpoint, rows, {name: why for name, (_, why) in picks.items()}, len(quiet), alarms, found)


def _held_out(lesson: Lesson, found: Sequence[Detections | None]) -> dict[str, HeldOut]:
    pairs = [(record, one) for record, one in zip(lesson.records, found, strict=True) if one is not None]
    records, detections = [record for record, _ in pairs], [one for _, one in pairs]
    return {name: held_out(records, detections, i) for i, name in enumerate(lesson.class_names)}


def _scores(found: Sequence[Detections], class_id: int) -> np.ndarray[Any, Any]:
    return np.concatenate([np.zeros(0), *(one.scores[one.class_ids == class_id] for one in found)])


def _threshold(
    rows: HeldOut, quiet: np.ndarray[Any, Any], frames: int, false_alarms: float
) -> tuple[float, str]:
    """A class's score threshold, and where it comes from."""
    f1 = best_f1(rows)
    threshold, why = (DEFAULT_SCORE, "not found in held-out pictures: the usual one") if f1 is None else (
        f1, "best F1 in held-out pictures")
    if frames and (calm := quiet_threshold(quiet.tolist(), frames, false_alarms)) > threshold:
        return calm, f"at most {false_alarms:g} false alarms in 1000 frames"
    return threshold, why


def quiet_frames(background: Sequence[Path]) -> Sequence[Path]:
    """The later half, as neighbours in a clip are alike: one half is trained on, in the other alarms are counted."""
    return background[len(background) // 2 :]


def folds(labels: Sequence[np.ndarray[Any, Any]], classes: int) -> list[list[int]]:
    """Pictures (by number) to hold out, one list a fold: every picture in at most one, no class without a picture left.

    A picture stays in training where its class has no other. Classes are dealt out in turn, so that each is in both.
    Args: labels of each picture's objects.
    """
    order = sorted(range(len(labels)), key=lambda i: (min(labels[i].tolist(), default=classes), i))
    tested = []
    for fold in range(FOLDS):
        mine = [i for i in order[fold::FOLDS] if len(labels[i])]
        for k in range(classes):
            if not any(k in labels[i] for i in order if i not in mine):
                mine = [i for i in mine if k not in labels[i]]
        tested.append(sorted(mine))
    return [fold for fold in tested if fold]


@dataclass(frozen=True)
class _School:
    """Trains on parts of a lesson, in a scratch folder."""

    lesson: Lesson
    scratch: Path
    log: Path
    recipe: str
    seed: int

    def train(self, name: str, numbers: list[int]) -> Checkpoint:
        """A model of the pictures with these numbers."""
        lesson, base = self.lesson, load_checkpoint(self.lesson.base)
        train = [DatasetConfig(annotations=self._labels(name, numbers))]
        frames = lesson.background[: len(lesson.background) // 2]
        if frames:
            weight = BACKGROUND_PART / (1 - BACKGROUND_PART) * len(numbers) / len(frames)
            train.append(DatasetConfig(annotations=self._background(name, frames), weight=weight))
        output = self.scratch / name
        shots = sum(len(lesson.records[i].boxes) for i in numbers) / len(lesson.class_names)
        names, seed = lesson.class_names, self.seed
        path = fit(fine_tuning(self.recipe, base, lesson.base, names, train, output, shots=shots, seed=seed))
        self.log.mkdir(parents=True, exist_ok=True)
        with whole_file(self.log / f"{name}.jsonl") as partial:
            partial.write_text((output / "log.jsonl").read_text())
        return load_checkpoint(path)

    def _labels(self, name: str, numbers: list[int]) -> Path:
        ids = {self.lesson.records[i].image_id for i in numbers}
        content = self.lesson.content
        part = {
            "images": [image for image in content["images"] if image["id"] in ids],
            "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
        }
        return _write(self.scratch / f"{name}.json", {**content, **part}, self.lesson.pictures)

    def _background(self, name: str, frames: Sequence[Path]) -> Path:
        images = [{"id": i, "file_name": str(path.resolve()), **_size(path)} for i, path in enumerate(frames, start=1)]
        categories = [{"id": i, "name": name} for i, name in enumerate(self.lesson.class_names, start=1)]
        content = {"images": images, "annotations": [], "categories": categories}
        return _write(self.scratch / f"{name}_background.json", content, self.scratch)


def _size(path: Path) -> dict[str, int]:
    h, w = read_picture(path).shape[:2]
    return {"height": h, "width": w}


def _write(path: Path, content: dict[str, Any], pictures: Path) -> Path:
    path.write_text(json.dumps(with_image_folder(content, pictures, path)))
    return path


def save(taught: Taught, output: Path, provenance: dict[str, Any]) -> Path:
    """The one file of a lesson. Prototypes and weights are stored as they are used."""
    checkpoint = replace(taught.checkpoint, provenance={**taught.checkpoint.provenance, **provenance})
    return save_checkpoint(output, checkpoint)
