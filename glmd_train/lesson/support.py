"""Are these pictures good enough to teach from? What is wrong or doubtful in them, before any training."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import iou, xyxy_to_xywh
from glmd_runtime.preprocess import Geometry, PreprocessSpec, letterbox_size, published_size
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record
from glmd_train.data.lint import (
    CLEAR,
    MINORITY,
    NEAR_BITS,
    WARM_BLOODED,
    Finding,
    Gallery,
    LabelledSet,
    check_pictures,
    errors_first,
    measure_all,
    votes_of,
    wilson,
)
from glmd_train.data.measures import Measures, measure

FEW = 5  # pictures of a class; with fewer the result depends on which they are
LARGE = 2.5  # times the largest anchor
SMALL_PART = 0.1  # of a class' boxes; more that are too small are a warning
ALIKE_PART = 0.2  # of the pictures; more that repeat a scene are a warning
SAME_OBJECT = 0.8  # IoU of two boxes of a picture; different objects hardly reach it
SPREAD = 0.05  # standard deviation of the middles of boxes, in picture sides, under which they are at one place
SIZES = 1.25  # times the size, 90th percentile against 10th, under which objects are of one size
NO_BOXES = np.zeros((0, 4), np.float32)


def judge(
    records: Sequence[Record], class_names: tuple[str, ...], model: ModelConfig, spec: PreprocessSpec, *,
    background: Sequence[Path] = (),
) -> list[Finding]:
    """What to know of support pictures, errors first; pictures that leave nothing to say give an empty list.

    Args:
        records: the labelled pictures; labels index `class_names`.
        model, spec: of the base that will be taught; sizes are judged in its network pixels.
        background: pictures that are said to show no object.
    Raises: SourceError for a background picture that cannot be read; support pictures that cannot are a finding.
    """
    one = _measured(records, class_names)
    _check_counts(one, records)
    _check_sizes(one, records, model, spec)
    _check_doubles(one, records)
    check_pictures(one)
    _check_polarity(one)
    _check_scenes(one, records)
    _check_variety(one, records, spec)
    if background:
        _check_background(one, records, background)
    return errors_first([replace(finding, file="") for finding in one.findings])  # they are of no file


def summary(records: Sequence[Record], class_names: tuple[str, ...], spec: PreprocessSpec) -> dict[str, Any]:
    """Plain values: pictures, how many different ones with objects, and by class boxes and shorter sides.

    Shorter sides are in network pixels, rounded to a tenth; a class without a box has none. Raises: SourceError for an
    unreadable picture.
    """
    sides = {name: _sizes_of(records, i, spec).min(axis=1) for i, name in enumerate(class_names)}
    labelled = [record for record in records if len(record.boxes)]
    return {
        "pictures": len(records),
        "different": len(scenes([measure(record.path, record.boxes) for record in labelled])),
        "boxes": {name: len(of_class) for name, of_class in sides.items()},
        "shorter_side": {
            name: {kind: round(float(f(s)), 1) for kind, f in (("min", np.min), ("median", np.median), ("max", np.max))}
            for name, s in sides.items() if len(s)
        },
    }


def scenes(measures: Sequence[Measures]) -> list[list[int]]:
    """Pictures by number, those of one scene together: nearly equal by `lint`'s rule, or by way of others between."""
    if not measures:
        return []
    gallery = Gallery(measures)
    group = np.arange(len(measures))  # (S,) the smallest number of the scene that each is of
    for i, m in enumerate(measures):
        near = gallery.unlikeness(m)[0] <= NEAR_BITS  # (S,)
        near[i] = True  # a plain picture does not correlate even with itself
        group[np.isin(group, group[near])] = group[near].min()
    return [np.flatnonzero(group == first).tolist() for first in np.unique(group)]


def _measured(records: Sequence[Record], class_names: tuple[str, ...]) -> LabelledSet:
    """Records as `lint` sees a set, with the pictures' measures, and findings for those that cannot be read."""
    folder = os.path.commonpath([record.path.resolve().parent for record in records]) if records else ""
    one = LabelledSet(Path(), Path(folder), names=dict(enumerate(class_names)))
    for i, record in enumerate(records):
        one.sizes[i], one.pictures[i] = record.hw, os.path.relpath(record.path.resolve(), folder)
        xywh = xyxy_to_xywh(record.boxes).tolist()
        one.boxes[i] = [{"category_id": c, "bbox": b} for c, b in zip(record.labels.tolist(), xywh, strict=True)]
    measure_all(one)
    return one


def _check_counts(one: LabelledSet, records: Sequence[Record]) -> None:
    for i, name in one.names.items():
        pictures = sum(bool((record.labels == i).any()) for record in records)
        if pictures == 0:
            one.add("error", "boxes", f"{name} has no box. Label it in some pictures, or leave it out")
        elif pictures < FEW:
            more = "its threshold cannot be tested, and " if pictures == 1 else ""
            text = f"{more}the result depends on which these are. {FEW} to 10 are better"
            one.add("warning", "few pictures", f"{name} is in {_count(pictures, 'picture')}: {text}")


# Boxes


def _sizes_of(records: Sequence[Record], label: int, spec: PreprocessSpec) -> NDArray[np.float32]:
    """(N, 2) width and height in network pixels of all boxes of a class."""
    boxes = [_geometry(r.hw, spec).to_image(r.boxes[r.labels == label]) for r in records]
    return xyxy_to_xywh(np.concatenate([NO_BOXES, *boxes]))[:, 2:]


def _geometry(hw: tuple[int, int], spec: PreprocessSpec) -> Geometry:
    size = letterbox_size(hw, spec.size_hw) if spec.resize == "letterbox" else published_size(hw, *spec.size_hw)
    return Geometry(hw, size)


def _check_sizes(one: LabelledSet, records: Sequence[Record], model: ModelConfig, spec: PreprocessSpec) -> None:
    """Boxes that the network's features cannot resolve, or that are larger than it proposes."""
    largest = LARGE * max(model.anchor_sizes)
    for i, name in one.names.items():
        sides = _sizes_of(records, i, spec).min(axis=1)
        if small := int((sides < model.stride).sum()):
            one.add(
                "warning" if small > SMALL_PART * len(sides) else "note", "small boxes",
                f"{small} of {len(sides)} boxes of {name} have a side under {model.stride} pixels in the network's "
                f"picture ({sides.min():.1f} the smallest), less than one cell of its features. Go nearer, or use a "
                "longer lens",
            )
        if large := int((sides > largest).sum()):
            one.add(
                "note", "large boxes",
                f"{large} of {len(sides)} boxes of {name} have sides over {largest:.0f} pixels in the network's "
                f"picture ({sides.max():.0f} the largest), and it proposes smaller ones. Go farther away",
            )


def _check_doubles(one: LabelledSet, records: Sequence[Record]) -> None:
    """Two boxes on one object, of one class or of two."""
    doubles = []
    for i, record in enumerate(records):
        overlaps = np.triu(iou(record.boxes, record.boxes), k=1)
        for a, b in np.argwhere(overlaps >= SAME_OBJECT):
            first, second = (f"{one.names[int(record.labels[n])]} {record.boxes[n].round(1).tolist()}" for n in (a, b))
            doubles.append(f"{one.pictures[i]}: {first} and {second}")
    text = f"pairs of boxes have an IoU of {SAME_OBJECT} or more, as if one object were labelled twice. Remove one each"
    one.add_places("warning", "double boxes", doubles, text)


def _check_variety(one: LabelledSet, records: Sequence[Record], spec: PreprocessSpec) -> None:
    """Objects that are all at one place, or of one size."""
    for i, name in one.names.items():
        sides = [np.asarray([*r.hw[::-1], *r.hw[::-1]], np.float32) for r in records]
        boxes = np.concatenate([NO_BOXES, *(r.boxes[r.labels == i] / s for r, s in zip(records, sides, strict=True))])
        if len(boxes) < FEW:
            continue
        if (boxes[:, :2] + boxes[:, 2:]).std(axis=0).max() / 2 < SPREAD:
            one.add("note", "variety", f"{name} is at the same place of all pictures. Take some with it elsewhere")
        small, large = np.percentile(np.sqrt(_sizes_of(records, i, spec).prod(axis=1)), (10, 90))
        if large < SIZES * small:
            text = f"{name} has nearly one size, {small:.0f} to {large:.0f} pixels in the network's picture"
            one.add("note", "variety", f"{text}. Take some from nearer and from farther")


# Pictures


def _check_polarity(one: LabelledSet) -> None:
    """`lint`'s rule, without its least number of pictures: two of three say nothing, three of ten do."""
    warm = {i for i, name in one.names.items() if name.lower() in WARM_BLOODED}
    sure, votes = True, votes_of(one, warm)
    if not votes:
        sure, votes = False, votes_of(one, set(one.names))
    bright = sum(vote > 0 for vote in votes)
    low, high = wilson(bright, len(votes))
    if votes and min(low, 1 - high) > MINORITY:
        weak = "" if sure else ", or these objects are now warmer, now colder than what is around"
        one.add(
            "warning" if sure else "note", "polarity",
            f"objects are brighter than what surrounds them in {bright} pictures and darker in {len(votes) - bright} "
            f"(by over {CLEAR:g} intensities): white-hot and black-hot may be mixed{weak}. Make all white-hot",
        )


def _check_scenes(one: LabelledSet, records: Sequence[Record]) -> None:
    numbers = [i for i in one.measures if len(records[i].boxes)]
    measures = [one.measures[i] for i in numbers]
    groups = scenes(measures)
    if len(groups) == len({m.pixels for m in measures}):
        return  # equal pictures are a finding of their own
    alike = [" ~ ".join(one.pictures[numbers[n]] for n in group) for group in groups if len(group) > 1]
    repeated = len(numbers) - len(groups)
    one.add(
        "warning" if repeated > ALIKE_PART * len(numbers) else "note", "alike",
        f"{len(numbers)} pictures show {len(groups)} different scenes; nearly equal ones teach little. Take others of "
        "other moments and places", alike,
    )


def _check_background(one: LabelledSet, records: Sequence[Record], background: Sequence[Path]) -> None:
    """Background pictures that are labelled pictures, or of another kind than these."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        measures = list(pool.map(lambda path: measure(path, NO_BOXES), background))
    labelled = {m.pixels: one.pictures[i] for i, m in one.measures.items() if len(records[i].boxes)}
    both = [f"{path} = {labelled[m.pixels]}" for path, m in zip(background, measures, strict=True)
            if m.pixels in labelled]
    one.add_places("error", "background", both, "background pictures have labelled objects. Take them out")
    depths = {m.bits for m in one.measures.values()}
    other = [str(path) for path, m in zip(background, measures, strict=True) if m.bits not in depths]
    if depths:
        text = f"background pictures have other bits than the {min(depths)} of the labelled ones. Take them as these"
        one.add_places("warning", "background", other, text)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def print_judgement(values: dict[str, Any], findings: Sequence[Finding]) -> None:
    """`summary` as a table and the findings, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)
    pictures, different = _count(values["pictures"], "picture"), values["different"]
    table = Table("class", "boxes", "shorter side in the network's picture, pixels: min, median, max",
                  title=f"{pictures}, {different} different with objects")
    for name, boxes in values["boxes"].items():
        sides = values["shorter_side"].get(name, {})
        table.add_row(name, str(boxes), ", ".join(f"{side:g}" for side in sides.values()))
    console.print(table)
    for line in (line for finding in findings for line in finding.lines()):
        console.print(line, soft_wrap=True)
    if not findings:
        console.print("Nothing to object to.")
