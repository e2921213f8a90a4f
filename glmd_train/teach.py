"""Pictures and labels -> a fine-tuned, calibrated checkpoint: what `glmd-train teach` does."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.scratch import whole_file, work_folder
from glmd_runtime.video.sources import read_picture
from glmd_train.checkpoint import DEFAULT_SCORE, Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.classifier import load_classifier
from glmd_train.config import DatasetConfig
from glmd_train.data.coco import Record, load_coco, with_image_folder
from glmd_train.data.formats import read_labels
from glmd_train.data.lint import Finding
from glmd_train.data.measures import measure
from glmd_train.evaluate import detect, torch_predict
from glmd_train.given import background_pictures
from glmd_train.lesson import FALSE_ALARMS
from glmd_train.lesson.support import judge, scenes
from glmd_train.lesson.thresholds import (
    LOWEST,
    HeldOut,
    best_of_all,
    best_scores,
    choose,
    held_out,
    quiet_threshold,
    upwards,
)
from glmd_train.loop import fit
from glmd_train.prototypes import add_pcb, calibrated_frame
from glmd_train.recipes import DEFAULT, fine_tuning

FOLDS = 2
# Of the pictures that a batch draws, about this part is background, where there is any.
BACKGROUND_PART = 0.2
SHOWN = 12  # class names in an error; a COCO file has 80
Step = Callable[[str], None]


@dataclass(frozen=True)
class Lesson:
    """What is taught: pictures and their labels, checked.

    content      COCO's, of these classes' pictures; file names start at `pictures`
    background   pictures without an object, the first half to train on, the others to count false alarms in
    findings     what was noticed of the pictures, no errors
    sources      folder and name of the labels, and of the background where some of it is trained on
    """

    base: Path
    class_names: tuple[str, ...]
    content: dict[str, Any]
    pictures: Path
    records: list[Record]
    background: tuple[Path, ...]
    findings: tuple[Finding, ...]
    sources: tuple[str, ...]


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
    sources = tuple(map(_source, (annotations, *([background] if background and len(frames) > 1 else []))))
    return Lesson(base, names, content, pictures, records, frames, tuple(findings), sources)


def _source(path: Path) -> str:
    """The folder and the name of a path, however it was spelled: one lesson is one file."""
    whole = Path(os.path.abspath(path))
    return f"{whole.parent.name}/{whole.name}"


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
    alarms     by class: the number of these with a detection above its threshold
    alarms_with_pcb  the same with calibrated scores and their thresholds
    found      detections of each of the lesson's records by the model that had not seen it; None where all had
    """

    checkpoint: Checkpoint
    held_out: dict[str, HeldOut]
    chosen: dict[str, str]
    quiet: int
    alarms: dict[str, int]
    alarms_with_pcb: dict[str, int]
    found: list[Detections | None]


def teach(
    lesson: Lesson, log: Path, *, recipe: str = DEFAULT, iterations: int | None = None,
    false_alarms: float = FALSE_ALARMS, seed: int = 0, step: Step = lambda _: None,
) -> Taught:
    """Fine-tune, choose thresholds, add prototypes.

    Thresholds come from pictures that were held out: the support pictures are divided in two, a model trained on each
    half is scored on the other, and the last model is trained on all. With background frames that it was not trained on
    a threshold is at least such that no more than `false_alarms` of 1000 more may be expected to have one, PCB or not.
    Args: log, a folder that gets the log of every training; iterations, of each of them, instead of what the recipe
        says; step, told what begins.
    """
    with work_folder("glmd-teach") as scratch:
        school = _School(lesson, scratch, log, recipe, iterations, seed)
        found: list[Detections | None] = [None] * len(lesson.records)
        for number, tested in enumerate(_halves(lesson), start=1):
            step(f"train without {len(tested)} of {len(lesson.records)} pictures, to choose thresholds on them")
            rest = [i for i in range(len(lesson.records)) if i not in tested]
            predict = torch_predict(school.train(f"without_{number}", rest), LOWEST)
            for i, one in zip(tested, detect(predict, [lesson.records[i] for i in tested]), strict=True):
                found[i] = one
        step(f"train on all {len(lesson.records)} pictures")
        checkpoint = school.train("all", list(range(len(lesson.records))))
    # It names files of the lesson's own, of which none is left.
    checkpoint = replace(checkpoint, provenance={**checkpoint.provenance, "train": [*lesson.sources]})
    step("choose thresholds and add prototypes")
    frames = [read_picture(path) for path in quiet_frames(lesson.background)]
    quiet = [torch_predict(checkpoint, LOWEST)(frame) for frame in frames]
    rows = _held_out(lesson, found)
    scores = {name: best_scores(quiet, i) for i, name in enumerate(lesson.class_names)}
    usual = best_of_all(rows.values()) or DEFAULT_SCORE  # low, as scores are after one picture of each class
    picks = choose(rows, scores, false_alarms, (usual,) * len(rows))
    thresholds = tuple(pick.threshold for pick in picks.values())
    checkpoint = replace(checkpoint, postprocess=replace(checkpoint.postprocess, score_thresholds=thresholds))
    checkpoint = add_pcb(checkpoint, load_classifier(), lesson.records)
    calibrated = [calibrated_frame(checkpoint, frame, LOWEST) for frame in frames]
    checkpoint, with_pcb = _quiet_with_pcb(checkpoint, calibrated, false_alarms)
    chosen = {name: pick.why for name, pick in picks.items()}
    alarms, alarms_with_pcb = (
        {name: sum(score > limits[i] for score in best_scores(seen, i)) for i, name in enumerate(lesson.class_names)}
        for seen, limits in ((quiet, thresholds), (calibrated, with_pcb))
    )
    return Taught(checkpoint, rows, chosen, len(quiet), alarms, alarms_with_pcb, found)


def _quiet_with_pcb(
    checkpoint: Checkpoint, found: Sequence[Detections], false_alarms: float
) -> tuple[Checkpoint, tuple[float, ...]]:
    """The checkpoint with thresholds of calibrated scores that are quiet too, and these."""
    assert checkpoint.pcb
    calibration = checkpoint.pcb.calibration
    own = calibration.spec.postprocess(checkpoint.postprocess).score_thresholds
    limits = own if not found else tuple(
        max(threshold, upwards(quiet_threshold(best_scores(found, i), false_alarms)))
        for i, threshold in enumerate(own)
    )
    calibration = replace(calibration, spec=replace(calibration.spec, score_thresholds=limits))
    return replace(checkpoint, pcb=replace(checkpoint.pcb, calibration=calibration)), limits


def _held_out(lesson: Lesson, found: Sequence[Detections | None]) -> dict[str, HeldOut]:
    pairs = [(record, one) for record, one in zip(lesson.records, found, strict=True) if one is not None]
    records, detections = [record for record, _ in pairs], [one for _, one in pairs]
    return {name: held_out(records, detections, i) for i, name in enumerate(lesson.class_names)}


def quiet_frames(background: Sequence[Path]) -> Sequence[Path]:
    """The later half, as neighbours in a clip are alike: one half is trained on, in the other alarms are counted."""
    return background[len(background) // 2 :]


def _halves(lesson: Lesson) -> list[list[int]]:
    """The pictures to hold out, see `folds`, scenes told apart as `--dry-run` does."""
    labelled = [i for i, record in enumerate(lesson.records) if len(record.labels)]
    measures = [measure(lesson.records[i].path, lesson.records[i].boxes) for i in labelled]
    groups = [[labelled[n] for n in scene] for scene in scenes(measures)]
    return folds([record.labels for record in lesson.records], len(lesson.class_names), groups)


def folds(
    labels: Sequence[np.ndarray[Any, Any]], classes: int, groups: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Pictures (by number) to hold out, one list a fold: every picture in at most one, no class without a picture left.

    A scene is in one fold as a whole, or a picture would be tested by a model that knows its neighbour; but a class of
    a single scene is divided all the same. The rarest classes are dealt out first, each to the fold that has less of
    it, so that it is in both where its pictures allow. A picture stays in training where its class has no other.
    Args: labels of each picture's objects; groups, the pictures of each scene, together all that have objects.
    """
    has = np.asarray([np.isin(np.arange(classes), one) for one in labels]).reshape(len(labels), classes)
    scenes_of = np.sum([has[list(group)].any(axis=0) for group in groups], axis=0) if groups else np.zeros(classes)
    whole = [group for group in groups if not (has[list(group)].any(axis=0) & (scenes_of == 1)).any()]
    dealt = [*whole, *([i] for group in groups if group not in whole for i in group)]  # pictures, scene by scene
    of_class = has.sum(axis=0)  # (K,) pictures
    rarest = [min(np.flatnonzero(has[list(group)].any(axis=0)), key=lambda k: of_class[k]) for group in dealt]
    tested: list[list[int]] = [[] for _ in range(FOLDS)]
    for group, k in sorted(zip(dealt, rarest, strict=True), key=lambda pair: (of_class[pair[1]], min(pair[0]))):
        min(tested, key=lambda fold: (has[fold, k].sum(), len(fold))).extend(group)
    return [fold for fold in (_without_last(sorted(fold), has) for fold in tested) if fold]


def _without_last(fold: list[int], has: np.ndarray[Any, Any]) -> list[int]:
    """A fold less the pictures of classes that have no picture outside it."""
    outside = np.delete(has, fold, axis=0).any(axis=0)
    return [i for i in fold if not (has[i] & ~outside).any()]


@dataclass(frozen=True)
class _School:
    """Trains on parts of a lesson, in a scratch folder."""

    lesson: Lesson
    scratch: Path
    log: Path
    recipe: str
    iterations: int | None
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
        fewer = {"iterations": self.iterations, "warmup": self.iterations // 4} if self.iterations else {}
        config = fine_tuning(
            self.recipe, base, lesson.base, lesson.class_names, train, output, shots=shots, seed=self.seed, **fewer
        )
        with redirect_stdout(io.StringIO()):  # it names the file, which is gone when the lesson is over
            path = fit(config)
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
