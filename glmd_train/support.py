"""Are these pictures good enough to teach from? What is wrong or doubtful in them, before any training."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import xyxy_to_xywh
from glmd_runtime.preprocess import PreprocessSpec, letterbox_size
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record
from glmd_train.data.lint import NEAR_BITS, NEAR_CORRELATION, Finding, lint
from glmd_train.data.measures import Measures, measure

FEW = 5  # pictures of a class; with fewer the result depends on which they are
LARGE = 2.5  # times the largest anchor


def judge(
    records: Sequence[Record], class_names: tuple[str, ...], model: ModelConfig, spec: PreprocessSpec, *,
    background: Sequence[Path] = (),
) -> list[Finding]:
    """What to know of support pictures, errors first.

    Args: records, labels index `class_names`; model, spec, of the base that will be taught; background, pictures that
        are said to show no object.
    Returns: also what `lint` finds in them: palettes, polarity, bit depth, doubled boxes and pictures.
    """
    findings = [*_counts(records, class_names), *_sizes(records, class_names, model, spec)]
    findings += [*_variety(records), *_in_both(records, background), *_linted(records, class_names)]
    return sorted(findings, key=lambda one: ("error", "warning", "note").index(one.severity))


def summary(records: Sequence[Record], class_names: tuple[str, ...], spec: PreprocessSpec) -> dict[str, Any]:
    """Plain values: pictures, how many different ones, and by class boxes and shorter sides in network pixels."""
    sides = _sides(records, class_names, spec)
    return {
        "pictures": len(records),
        "different": len(scenes(records)),
        "boxes": {name: len(of_class) for name, of_class in sides.items()},
        "shorter_side": {
            name: {"min": round(float(s.min()), 1), "median": round(float(np.median(s)), 1),
                   "max": round(float(s.max()), 1)}
            for name, s in sides.items() if len(s)
        },
    }  # fmt: skip


def _finding(severity: Any, check: str, text: str, where: Sequence[str] = ()) -> Finding:
    return Finding(severity, check, "support", text, tuple(where))


def _counts(records: Sequence[Record], class_names: tuple[str, ...]) -> Iterator[Finding]:
    for i, name in enumerate(class_names):
        pictures = sum(bool((record.labels == i).any()) for record in records)
        if pictures == 0:
            yield _finding("error", "boxes", f"{name} has no box. Label it in some pictures, or leave it out")
        elif pictures < FEW:
            more = "its threshold cannot be tested, and " if pictures == 1 else ""
            yield _finding(
                "warning", "few pictures",
                f"{name} is in {pictures} pictures: {more}the result depends on which these are. Better {FEW} to 10",
            )


def _sides(
    records: Sequence[Record], class_names: tuple[str, ...], spec: PreprocessSpec
) -> dict[str, NDArray[np.float64]]:
    """Shorter sides of the boxes of each class, in network pixels."""
    labels = np.concatenate([np.zeros(0, int), *(record.labels for record in records)])
    sides = np.concatenate([np.zeros(0), *(_shorter(record, spec) for record in records)])
    return {name: sides[labels == i] for i, name in enumerate(class_names)}


def _shorter(record: Record, spec: PreprocessSpec) -> NDArray[np.float64]:
    scale = letterbox_size(record.hw, spec.size_hw)[0] / record.hw[0]
    return np.asarray(xyxy_to_xywh(record.boxes)[:, 2:].min(axis=1) * scale, np.float64)


def _sizes(
    records: Sequence[Record], class_names: tuple[str, ...], model: ModelConfig, spec: PreprocessSpec
) -> Iterator[Finding]:
    """Boxes that the network's features cannot resolve, or that are larger than it proposes."""
    largest = LARGE * max(model.anchor_sizes)
    for name, sides in _sides(records, class_names, spec).items():
        if small := int((sides < model.stride).sum()):
            yield _finding(
                "warning", "small boxes",
                f"{small} of {len(sides)} boxes of {name} have a side under {model.stride} pixels in the network's "
                f"picture ({sides.min():.1f} the smallest), less than one cell of its features. Go nearer, or use a "
                "longer lens",
            )
        if large := int((sides > largest).sum()):
            text = f"{large} of {len(sides)} boxes of {name} have a side over {largest:.0f} pixels in the network"
            yield _finding("note", "large boxes", text)


def _variety(records: Sequence[Record]) -> Iterator[Finding]:
    groups = scenes(records)
    labelled = sum(1 for record in records if len(record.boxes))
    if len(groups) < labelled:
        alike = [" ~ ".join(records[i].path.name for i in group) for group in groups if len(group) > 1]
        yield _finding(
            "warning", "alike",
            f"{labelled} pictures show {len(groups)} different scenes; nearly equal ones teach little. Choose pictures "
            "of other moments and places", alike,
        )


def scenes(records: Sequence[Record]) -> list[list[int]]:
    """Labelled pictures (by number), nearly equal ones together, by `lint`'s rule for near duplicates."""
    numbers = [i for i, record in enumerate(records) if len(record.boxes)]
    measures: dict[int, Measures] = {i: measure(records[i].path, records[i].boxes) for i in numbers}
    groups: list[list[int]] = []
    for i in numbers:
        near = next((g for g in groups if any(_alike(measures[i], measures[j]) for j in g)), None)
        if near is None:
            groups.append([i])
        else:
            near.append(i)
    return groups


def _alike(a: Measures, b: Measures) -> bool:
    bits = (a.bits_of_hash.size - a.bits_of_hash @ b.bits_of_hash) / 2
    return bool(bits <= NEAR_BITS and a.thumbnail @ b.thumbnail >= NEAR_CORRELATION)


def _in_both(records: Sequence[Record], background: Sequence[Path]) -> Iterator[Finding]:
    """Background pictures that are support pictures with objects."""
    nobody = np.zeros((0, 4), np.float32)
    labelled = {measure(record.path, nobody).pixels for record in records if len(record.boxes)} if background else set()
    both = [path.name for path in background if measure(path, nobody).pixels in labelled]
    if both:
        text = f"{len(both)} background pictures are labelled pictures with objects. Take them out of --background"
        yield _finding("error", "background", text, both)


def _linted(records: Sequence[Record], class_names: tuple[str, ...]) -> list[Finding]:
    """What `lint` says of the pictures; that some are background, or too few to tell polarity, is no news here."""
    images = [{"id": i, "file_name": str(r.path.resolve()), "height": r.hw[0], "width": r.hw[1]}
              for i, r in enumerate(records)]
    annotations = [
        {"image_id": i, "category_id": int(label), "bbox": box}
        for i, r in enumerate(records)
        for label, box in zip(r.labels, xyxy_to_xywh(r.boxes).tolist(), strict=True)
    ]
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)]}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "support.json"
        file.write_text(json.dumps(content))
        found = lint([file])
    expected = ("background", "empty class")
    return [_finding(f.severity, f.check, f.text, f.where) for f in found
            if f.check not in expected and not (f.check == "polarity" and f.severity == "note")]


def print_judgement(values: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    different = values["different"]
    table = Table("class", "boxes", "shorter side in the network's picture, pixels: min, median, max",
                  title=f"{values['pictures']} pictures, {different} different ones with objects")
    for name, boxes in values["boxes"].items():
        sides = values["shorter_side"].get(name, {})
        table.add_row(name, str(boxes), ", ".join(f"{side:g}" for side in sides.values()))
    console.print(table)
    for finding in findings:
        console.print(f"{finding.severity}: {finding.text}", markup=False)
    if not findings:
        console.print("Nothing to object to.")
