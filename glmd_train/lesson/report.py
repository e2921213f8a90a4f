"""What a lesson came to, for people (report.md and a sheet of pictures) and programs (report.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from glmd_runtime.detections import Detections
from glmd_runtime.draw import DARK, Picture, draw
from glmd_runtime.files.scratch import whole_file
from glmd_runtime.sinks import save_picture
from glmd_train.data.coco import Record
from glmd_train.lesson.support import summary
from glmd_train.scores.intervals import proportion
from glmd_train.teach import Lesson, Taught

TILE, COLUMNS, MOST = 400, 4, 24  # pixels a side; tiles a row; tiles on the sheet
TRUTH = (120, 230, 120)  # BGR
NOT_MEASURED = "not measured"


def report_values(lesson: Lesson, taught: Taught, seconds: float) -> dict[str, Any]:
    """Everything that is reported, as plain values; rates in 0..1, None where there was nothing to measure."""
    checkpoint = taught.checkpoint
    thresholds = dict(zip(lesson.class_names, checkpoint.postprocess.score_thresholds, strict=True))
    assert checkpoint.pcb
    return {
        "pictures": summary(lesson.records, lesson.class_names, checkpoint.preprocess),
        "classes": {name: _class_row(taught, name, threshold) for name, threshold in thresholds.items()},
        "thresholds_with_pcb": dict(zip(lesson.class_names, checkpoint.pcb.calibration.spec.score_thresholds,
                                        strict=True)),
        "background": {"counted_in": taught.quiet, "trained_on": len(lesson.background) - taught.quiet},
        "findings": [finding.to_dict() for finding in lesson.findings],
        "training": checkpoint.provenance,
        "seconds": round(seconds),
    }


def _class_row(taught: Taught, name: str, threshold: float) -> dict[str, Any]:
    rows, tested = taught.held_out[name], taught.held_out[name].objects
    right = rows.precision(threshold) if tested else None
    return {
        "threshold": threshold,
        "chosen": taught.chosen[name],
        "held_out_objects": tested,
        "held_out_recall": round(rows.recall(threshold), 4) if tested else None,
        "held_out_precision": None if right is None else round(right, 4),
        "false_alarms": _alarms(taught.alarms[name], taught.quiet),
        "false_alarms_with_pcb": _alarms(taught.alarms_with_pcb[name], taught.quiet),
    }


def _alarms(count: int, frames: int) -> dict[str, Any] | None:
    """How many frames without objects have a false alarm, and how many of 1000 would, with a 95% interval."""
    if not frames:
        return None
    of_1000 = {name: round(1000 * value, 1) for name, value in proportion(count, frames)._asdict().items()}
    return {"frames": count, "per_1000": of_1000}


def write_report(folder: Path, values: dict[str, Any], lesson: Lesson, taught: Taught) -> None:
    """report.json, report.md and held_out.jpg."""
    with whole_file(folder / "report.json") as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n")
    with whole_file(folder / "report.md") as partial:
        partial.write_text(as_text(values))
    tested = [(r, one) for r, one in zip(lesson.records, taught.found, strict=True) if one is not None]
    if tested:
        thresholds = taught.checkpoint.postprocess.score_thresholds
        save_picture(folder / "held_out.jpg", sheet(tested, thresholds))


def as_text(values: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# What was taught", "",
        "| class | boxes | score threshold | held-out recall | held-out precision | frames of 1000 with an alarm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    boxes = values["pictures"]["boxes"]
    for name, row in values["classes"].items():
        unknown = "nothing found" if row["held_out_objects"] else NOT_MEASURED
        rates = (_percent(row["held_out_recall"], NOT_MEASURED), _percent(row["held_out_precision"], unknown))
        alarms = NOT_MEASURED
        if row["false_alarms"]:
            off, on = (_per_1000(row[key]) for key in ("false_alarms", "false_alarms_with_pcb"))
            alarms = off if on == off else f"{off}; with PCB {on}"
        lines.append(
            f"| {name} | {boxes[name]} | {row['threshold']:.2f} ({row['chosen']}) | {' | '.join(rates)} | {alarms} |"
        )
    lines += ["", _WHAT_HELD_OUT_MEANS, "", *_background(values["background"]), ""]
    lines += [f"* {f['severity']}: {f['text']}" for f in values["findings"]]
    return "\n".join(lines).rstrip() + "\n"


_WHAT_HELD_OUT_MEANS = (
    "Held out: half of the pictures at a time, scored by a model that was trained on the other half (held_out.jpg "
    "shows them: green what was labelled, other colours what was found). The model in the file was trained on all. "
    "As far as the thresholds follow these very pictures that flatters recall and precision; but models of half of the "
    "pictures score lower, so that yours may find more. "
    "Ten pictures say little of the next thousand, and pictures of one place nothing of another."
)


def _background(row: dict[str, int]) -> list[str]:
    if not row["counted_in"]:
        return ["No pictures without objects were given (--background), so false alarms were not measured."]
    return [
        f"Alarms: in {row['counted_in']} pictures without objects that were not trained on, each counted once however "
        "many boxes it has, with 95% intervals. Where a threshold was raised it was on these pictures: of as many new "
        "ones expect one more."
    ]


def _per_1000(alarms: dict[str, Any]) -> str:
    return "{value:.0f} ({low:.0f} to {high:.0f})".format(**alarms["per_1000"])


def _percent(rate: float | None, unknown: str) -> str:
    return unknown if rate is None else f"{100 * rate:.0f}%"


def sheet(tested: list[tuple[Record, Detections]], thresholds: tuple[float, ...]) -> Picture:
    """The first MOST pictures side by side, their labels in green and what was found above its class's threshold."""
    tiles = [_tile(record, found, thresholds) for record, found in tested[:MOST]]
    tiles += [np.full_like(tiles[0], DARK)] * (-len(tiles) % min(COLUMNS, len(tiles)))
    columns = min(COLUMNS, len(tiles))
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def _tile(record: Record, found: Detections, thresholds: tuple[float, ...]) -> Picture:
    frame = record.read()
    picture = draw(frame, found[found.scores > np.asarray(thresholds)[found.class_ids]])
    zoom = picture.shape[1] / frame.shape[1]
    for x1, y1, x2, y2 in np.rint(record.boxes * zoom).astype(int).tolist():
        cv2.rectangle(picture, (x1, y1), (x2, y2), TRUTH, 2)
    scale = TILE / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:TILE, :TILE]
    tile = np.full((TILE, TILE, 3), DARK, np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    return tile
