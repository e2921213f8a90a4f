"""COCO-format data sets: read once, checked once, with errors that name the file and the record."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import xywh_to_xyxy
from glmd_runtime.errors import DatasetError, SourceError
from glmd_runtime.video import sources

# Annotation tools round; a box may stick out of its picture by this much (pixels) and is then cut.
EDGE_TOLERANCE = 1.0


@dataclass(frozen=True)
class Record:
    """One labelled picture. boxes (N, 4) float32 xyxy pixels; labels (N,) int64; ignore (M, 4): `iscrowd` regions.

    left_out   names of the classes of its other objects, which the model does not know
    """

    image_id: int
    path: Path
    hw: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.float32]
    left_out: tuple[str, ...] = ()

    def read(self) -> NDArray[Any]:
        """The picture as a frame: (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR.

        It is decoded as the device decodes it. Raises: DatasetError if it is unreadable or of another size.
        """
        try:
            picture = sources.read_picture(self.path)
        except SourceError as error:
            raise DatasetError(str(error)) from error
        if picture.shape[:2] != self.hw:
            raise DatasetError(
                f"{self.path} is {picture.shape[:2]} (height, width) but its annotation file says {self.hw}."
            )
        return picture


def load_coco(annotations: Path, class_names: tuple[str, ...], images: Path | None = None) -> list[Record]:
    """Read a COCO file; categories are matched to `class_names` by name, others are left out.

    Raises:
        DatasetError: no such file, not COCO, no picture in it, an undeclared category or image id, a box outside its
            image or without area, a picture that does not exist, or none of `class_names` among the categories.
    """
    content = _read_json(annotations)
    try:
        records = _records(content, class_names, images or annotations.parent, annotations)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{annotations} has a record that is not of COCO's form: {error!r}.") from error
    if not records:
        raise DatasetError(f"{annotations} lists no picture; expected at least one in `images`.")
    return records


def _records(
    content: dict[str, Any], class_names: tuple[str, ...], folder: Path, annotations: Path
) -> list[Record]:
    names = {c["id"]: c["name"] for c in content["categories"]}
    labels = {i: class_names.index(n) for i, n in names.items() if n in class_names}
    if not labels:
        raise DatasetError(
            f"{annotations} has none of the classes {list(class_names)}; it declares {sorted(names.values())}."
        )
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    sizes = {image["id"]: image for image in content["images"]}
    if unknown := set(by_image) - set(sizes):
        raise DatasetError(f"{annotations}: annotations name image ids {sorted(unknown)[:5]} that `images` lacks.")
    return [_record(image, by_image[i], names, labels, folder, annotations) for i, image in sizes.items()]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DatasetError(f"Annotation file {path} does not exist. Set GLMD_DATA to the folder of the data sets.")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from error
    missing = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise DatasetError(f"{path} is not a COCO detection file: it lacks {sorted(missing)}.")
    return content


def _record(
    image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[int, str], labels: dict[int, int],
    folder: Path, source: Path,
) -> Record:
    h, w, path = image["height"], image["width"], folder / image["file_name"]
    if not path.is_file():
        raise DatasetError(f"{source} names {path}, which does not exist. Are the pictures in another folder?")
    for annotation in annotations:
        _check(annotation, names, (h, w), source)
    crowd = [a["bbox"] for a in annotations if a.get("iscrowd")]
    objects = [a for a in annotations if not a.get("iscrowd") and a["category_id"] in labels]
    limit = np.asarray([w, h, w, h], np.float32)
    boxes, ignore = (
        np.clip(xywh_to_xyxy(np.asarray(xywh, np.float32)), 0, limit) for xywh in ([a["bbox"] for a in objects], crowd)
    )
    ids = np.asarray([labels[a["category_id"]] for a in objects], np.int64)
    left_out = {names[a["category_id"]] for a in annotations if not a.get("iscrowd")} - {names[i] for i in labels}
    return Record(image["id"], path, (h, w), boxes, ids, ignore, tuple(sorted(left_out)))


def _check(annotation: dict[str, Any], names: dict[int, str], hw: tuple[int, int], source: Path) -> None:
    who = f"{source}: annotation {annotation.get('id')}"
    if annotation["category_id"] not in names:
        raise DatasetError(
            f"{who} has category_id {annotation['category_id']}, but `categories` declares {sorted(names)}."
        )
    if len(annotation["bbox"]) != 4:
        raise DatasetError(f"{who} has bbox {annotation['bbox']}, expected x, y, width, height.")
    x, y, w, h = annotation["bbox"]
    inside = min(x, y) >= -EDGE_TOLERANCE and x + w <= hw[1] + EDGE_TOLERANCE and y + h <= hw[0] + EDGE_TOLERANCE
    if not (w > 0 and h > 0 and inside):
        raise DatasetError(
            f"{who} has bbox {annotation['bbox']} (x, y, width, height), expected a positive size inside its image "
            f"{annotation['image_id']}, {hw[1]} wide and {hw[0]} high. Correct or remove it."
        )
