"""One model on one set, with everything that is reported of it: groups of classes, intervals, false alarms."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError, SourceError, UsageError
from glmd_runtime.video.sources import read_picture
from glmd_train.data.coco import Record, load_coco_files
from glmd_train.evaluate import (
    EVAL_SCORE,
    FIELDS,
    FalseAlarms,
    Predict,
    Score,
    detect,
    false_alarms,
    in_order,
    is_empty,
    score,
)
from glmd_train.scores.intervals import Interval, ap_intervals


@dataclass(frozen=True)
class Model:
    """A checkpoint or bundle, opened.

    thresholds  its own score thresholds, one a class, by PCB state: "on" and "off", or "" without prototypes
    predict     frame -> Detections with score > EVAL_SCORE, by PCB state
    """

    name: str
    class_names: tuple[str, ...]
    thresholds: Mapping[str, tuple[float, ...]]
    provenance: Mapping[str, Any]
    predict: Mapping[str, Predict]


@dataclass(frozen=True)
class Run:
    """Scores of one model on one set in one PCB state.

    groups      "all", and "base" and "novel" where they are known -> their classes, with objects here or not
    intervals   group -> "ap", "ap50", "ap75" -> 95% interval over the pictures; only groups with an object
    thresholds  at which `alarms.own` were counted, one a class
    found       (not in the report) the detections of `records`
    """

    model: str
    data: str
    pcb: str
    score: Score
    groups: Mapping[str, tuple[str, ...]]
    intervals: Mapping[str, Mapping[str, Interval]]
    alarms: FalseAlarms
    thresholds: tuple[float, ...]
    provenance: Mapping[str, Any]
    records: Sequence[Record] = field(repr=False)
    found: Sequence[Detections] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; AP and recall in 0..1. The keys of `Score.to_dict` are those of all classes."""
        made = {key: self.provenance.get(key) for key in ("seed", "train")}
        setup = {"model": self.model, "data": self.data, "pcb": self.pcb or None, **made, "pictures": len(self.records)}
        groups = {name: self._group(name) for name in self.intervals}
        alarms = {**self.alarms.to_dict(), "own_thresholds": list(self.thresholds)}
        return {**setup, **self.score.to_dict(), "groups": groups, "false_alarms": alarms}

    def _group(self, name: str) -> dict[str, Any]:
        means = {key: round(self.score.mean(key, self.groups[name]), 4) for key in FIELDS}
        bounds = {
            f"{key}_interval": [round(one.low, 4), round(one.high, 4)] for key, one in self.intervals[name].items()
        }
        return {"classes": [c for c in self.groups[name] if c in self.score.classes], **means, **bounds}


def load_set(annotations: Path, class_names: tuple[str, ...], images: Path | None = None) -> list[Record]:
    """A COCO file (or several, by wildcards) to score on, in the order of `in_order`.

    Raises: DatasetError as `load_coco_files` does, and if there is no object of these classes.
    """
    records = in_order(load_coco_files([annotations], class_names, images))
    if not any(len(record.labels) for record in records):
        raise DatasetError(
            f"{annotations} holds no object of the model's classes {list(class_names)}, so there is no AP. Expected at "
            "least one; pictures without objects are for --background."
        )
    return records


def detect_background(model: Model, pictures: Sequence[Path]) -> dict[str, list[Detections]]:
    """What the model finds in pictures without objects, by PCB state. Raises: DatasetError if one cannot be read."""
    try:
        return {pcb: [predict(read_picture(path)) for path in pictures] for pcb, predict in model.predict.items()}
    except SourceError as error:
        raise DatasetError(str(error)) from error


def run_model(
    model: Model, data: str, records: Sequence[Record], background: Mapping[str, Sequence[Detections]],
    base: Collection[str] | None,
) -> list[Run]:
    """Score a model in each of its PCB states.

    Args: data, name of the set; records, of `load_set`; background, what the model found in pictures without
        objects beside those that the set has (`detect_background`); base, its base classes, the others being novel, or
        None where nobody knows.
    """
    groups = class_groups(model.class_names, base)
    ids = {name: [model.class_names.index(c) for c in classes] for name, classes in groups.items()}
    runs = []
    for pcb, predict in model.predict.items():
        found = detect(predict, records)
        empty = [one for record, one in zip(records, found, strict=True) if is_empty(record)]
        thresholds = tuple(max(own, EVAL_SCORE) for own in model.thresholds[pcb])
        alarms = false_alarms([*empty, *background[pcb]], thresholds)
        scores = score(list(records), found, model.class_names)
        intervals = ap_intervals(records, found, ids)
        runs.append(Run(model.name, data, pcb, scores, groups, intervals, alarms, thresholds, model.provenance, records,
                        found))
    return runs


def class_groups(class_names: tuple[str, ...], base: Collection[str] | None) -> dict[str, tuple[str, ...]]:
    """All classes, and the base and the novel ones apart where that is known and both or one exist."""
    groups = {"all": class_names}
    if base is not None:
        groups["base"] = tuple(name for name in class_names if name in base)
        groups["novel"] = tuple(name for name in class_names if name not in base)
    return {name: classes for name, classes in groups.items() if classes}


def short_names(paths: Iterable[Path]) -> list[str]:
    """The shortest ends of the paths, without suffix, that tell them apart: `seed0/model`, `seed1/model`.

    Raises: UsageError if a path is given twice.
    """
    parts = [path.absolute().with_suffix("").parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UsageError(f"Each file may be given once; got {', '.join(map(str, paths))}.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
