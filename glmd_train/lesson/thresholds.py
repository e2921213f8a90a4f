"""Score thresholds of a model by class: from pictures that it was not trained on, and from frames without objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError
from glmd_runtime.video.sources import read_picture
from glmd_train.checkpoint import Checkpoint
from glmd_train.data.coco import Record
from glmd_train.evaluate import Predict, detect, match_greedily, torch_predict
from glmd_train.lesson import FALSE_ALARMS
from glmd_train.scores.intervals import covered

LOWEST, HIGHEST = 0.05, 0.95
MANY = 100  # objects, of which a class's own best threshold counts as much as that of all, and that of all as USUAL
USUAL = 0.65  # about what does best in two lessons, with PCB or without, and for a training of many pictures


@dataclass(frozen=True)
class HeldOut:
    """One class: the scores of its detections in pictures that their model was not trained on, best first.

    scores (D,); hit (D,) whether it is the first on an object at IoU 0.5; objects, how many there are
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    objects: int

    def recall(self, threshold: float) -> float:
        return float((self.hit & (self.scores > threshold)).sum()) / max(1, self.objects)

    def precision(self, threshold: float) -> float | None:
        """None where nothing passes."""
        passed = self.scores > threshold
        return float(self.hit[passed].mean()) if passed.any() else None


def held_out(records: Sequence[Record], found: Sequence[Detections], class_id: int) -> HeldOut:
    """The detections of one class, matched with its objects; what lies in an ignore region is left out."""
    scores: list[float] = []
    hits: list[bool] = []
    for record, one in zip(records, found, strict=True):
        rows = one[one.class_ids == class_id]
        hit = match_greedily(rows.xyxy, record.boxes[record.labels == class_id]) >= 0
        ignored = covered(rows.xyxy, record.ignore) >= 0.5
        scores += rows.scores[hit | ~ignored].tolist()
        hits += hit[hit | ~ignored].tolist()
    order = np.argsort(-np.asarray(scores), kind="stable")
    objects = sum(int((record.labels == class_id).sum()) for record in records)
    return HeldOut(np.asarray(scores, np.float64)[order], np.asarray(hits, bool)[order], objects)


def best_f1(*classes: HeldOut) -> float | None:
    """The threshold with the largest F1 = 2 hits / (objects + detections), of several classes the largest mean of it.

    It lies midway between the last score that passes and the first that does not, so that scores which are a little
    lower on the next picture still pass, but not over HIGHEST. Of equal F1 the lowest threshold, which overlooks less.
    Returns: None where nothing was hit. Classes without an object do not count.
    """
    tested = [rows for rows in classes if rows.objects]
    if not any(rows.hit.any() for rows in tested):
        return None
    scores = np.unique(np.concatenate([rows.scores for rows in tested]))[::-1]  # (U,) best first
    f1 = np.mean([_f1(rows, scores) for rows in tested], axis=0)  # (U,)
    last = len(f1) - 1 - int(np.argmax(f1[::-1]))
    below = scores[last + 1] if last + 1 < len(scores) else LOWEST
    return float(np.clip((scores[last] + below) / 2, LOWEST, HIGHEST))


def _f1(rows: HeldOut, least: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 where each of `least` (U,) is the lowest score that passes."""
    passed = np.searchsorted(-rows.scores, -least, side="right")  # (U,) detections
    hits = np.concatenate([[0], np.cumsum(rows.hit)])[passed]
    return 2 * hits / (rows.objects + passed)


def quiet_threshold(best: Sequence[float], per_1000: float) -> float:
    """The lowest threshold with which, of 1000 new frames like these, at most `per_1000` may be expected to have a
    false alarm.

    If the (k + 1)-th best score of n frames is the threshold, k frames pass it here, and a new one, by symmetry, with a
    chance of (k + 1) / (n + 1). Fewer frames than `frames_to_show` allow no k; then none here passes.
    Args: best, as `best_scores` gives it.
    """
    allowed = max(0, math.floor(per_1000 * (len(best) + 1) / 1000) - 1)
    ranked = sorted(best, reverse=True)
    return max(LOWEST, float(ranked[allowed])) if allowed < len(ranked) else LOWEST


def frames_to_show(per_1000: float) -> float:
    """How many frames without an alarm let 1000 new ones expect at most `per_1000`."""
    return math.ceil(1000 / per_1000) - 1 if per_1000 else math.inf


def best_scores(found: Sequence[Detections], class_id: int) -> list[float]:
    """The best score of one class in each frame, 0 where it is not found: a frame alarms once, however many boxes."""
    return [float(one.scores[one.class_ids == class_id].max(initial=0)) for one in found]


@dataclass(frozen=True)
class Choice:
    """The score threshold of one class, where it comes from, and the detections that it was chosen by."""

    threshold: float
    why: str
    rows: HeldOut


def choose(
    classes: Mapping[str, HeldOut], quiet: Mapping[str, Sequence[float]], false_alarms: float, usual: Sequence[float]
) -> dict[str, Choice]:
    """The threshold of each class: where F1 is best, or a higher one that is quiet enough.

    The best F1 of few objects is a matter of chance, so a class's own counts as far as it has many, and else that of
    all classes together, which again counts as far as they have many, and else USUAL: docs/evaluation.md has what this
    gains on other pictures.
    Args: classes, in pictures that their model was not trained on; quiet, the best score in each frame without objects;
        false_alarms, how many of 1000 more such frames may be expected to have one; usual, for each class without an
        object, and where nothing was hit.
    """
    common = best_of_all(classes.values())
    return {
        name: _quiet_enough(_choice(rows, common, otherwise), quiet[name], false_alarms)
        for (name, rows), otherwise in zip(classes.items(), usual, strict=True)
    }


def best_of_all(classes: Collection[HeldOut]) -> float | None:
    """One threshold for all classes: with the best mean F1, leaning on USUAL. None where nothing was hit."""
    best = best_f1(*classes)
    return None if best is None else _leaning(best, sum(rows.objects for rows in classes), USUAL)


def _leaning(own: float, objects: int, otherwise: float) -> float:
    return round((objects * own + MANY * otherwise) / (objects + MANY), 4)


def _choice(rows: HeldOut, common: float | None, usual: float) -> Choice:
    best = best_f1(rows)
    if not rows.objects or common is None:
        missing = f"none of {rows.objects} objects found" if rows.objects else "no object"
        return Choice(usual, f"{missing} in held-out pictures: {usual:.4g}", rows)
    if best is None:
        return Choice(common, "not found in held-out pictures: as all classes together", rows)
    why = f"best F1 in held-out pictures at {best:.2f}: {rows.objects} parts of it, {MANY} of all classes' {common:.2f}"
    return Choice(_leaning(best, rows.objects, common), why, rows)


def _quiet_enough(choice: Choice, quiet: Sequence[float], false_alarms: float) -> Choice:
    calm, frames = quiet_threshold(quiet, false_alarms), len(quiet)
    if not quiet or calm <= choice.threshold:
        return choice
    shown = frames >= frames_to_show(false_alarms)
    why = f"at most {false_alarms:g} of 1000 frames with a false alarm" if shown else (
        f"no false alarm in {frames} frame{'s' * (frames > 1)}, too few to show {false_alarms:g} in 1000")
    return Choice(upwards(calm), why, choice.rows)


def upwards(threshold: float) -> float:
    """Rounded so that a score which a threshold is to stop does not pass it."""
    return min(1.0, math.ceil(1e4 * threshold) / 1e4)


@dataclass(frozen=True)
class Chosen:
    """The thresholds of one PCB state by class, and the best score of each class in every picture without objects."""

    choices: dict[str, Choice]
    quiet: dict[str, list[float]]


def choose_thresholds(
    checkpoint: Checkpoint, sets: Sequence[Sequence[Record]], background: Sequence[Path] = (),
    false_alarms: float = FALSE_ALARMS, counted: Callable[[Predict], Predict] = lambda predict: predict,
) -> tuple[Checkpoint, dict[str, Chosen]]:
    """The checkpoint with thresholds for the scores that it gives, and with prototypes for calibrated ones too.

    Args: sets, pictures that it was not trained on, one list an annotation file: a class is looked for in those that
        have an object of it, and keeps its threshold where none has; background, pictures without any object;
        counted, wraps what detects in a picture, for instance to show how far it is.
    Returns: what was chosen by PCB state: "off", and "on" with prototypes.
    Raises: DatasetError if no picture has an object of its classes.
    """
    if not any(len(record.labels) for records in sets for record in records):
        raise DatasetError(
            f"No picture has an object of {', '.join(checkpoint.class_names)}. Name annotation files that have some."
        )
    frames = [read_picture(path) for path in background]  # first: detecting takes long
    post, names = checkpoint.postprocess, checkpoint.class_names
    predict = counted(torch_predict(checkpoint, LOWEST, pcb=False))
    off = _chosen(predict, names, sets, frames, false_alarms, post.score_thresholds)
    checkpoint = replace(checkpoint, postprocess=replace(post, score_thresholds=_limits(off)))
    if not checkpoint.pcb:
        return checkpoint, {"off": off}
    calibration = checkpoint.pcb.calibration
    before = calibration.spec.postprocess(post).score_thresholds
    on = _chosen(counted(torch_predict(checkpoint, LOWEST)), names, sets, frames, false_alarms, before)
    calibration = replace(calibration, spec=replace(calibration.spec, score_thresholds=_limits(on)))
    return replace(checkpoint, pcb=replace(checkpoint.pcb, calibration=calibration)), {"off": off, "on": on}


def _limits(chosen: Chosen) -> tuple[float, ...]:
    return tuple(choice.threshold for choice in chosen.choices.values())


def _chosen(
    predict: Predict, class_names: Sequence[str], sets: Sequence[Sequence[Record]], frames: Sequence[NDArray[Any]],
    false_alarms: float, before: Sequence[float],
) -> Chosen:
    """A choice for each class of the scores that `predict` gives; `before`, the thresholds that it has for them."""
    in_frames = [predict(frame) for frame in frames]
    found = [detect(predict, records) for records in sets]
    classes = {}
    for i, name in enumerate(class_names):
        with_it = [n for n, records in enumerate(sets) if any((record.labels == i).any() for record in records)]
        records, detections = ([row for n in with_it for row in rows[n]] for rows in (sets, found))
        classes[name] = held_out(records, detections, i)
    quiet = {name: best_scores(in_frames, i) for i, name in enumerate(class_names)}
    return Chosen(choose(classes, quiet, false_alarms, before), quiet)
