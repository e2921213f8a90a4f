"""LabelMe: a JSON file for each picture, with outlines."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from glmd_runtime.errors import DatasetError
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.data.formats.builder import Builder, Loaded
from glmd_train.data.formats.files import files_below, files_in, is_small, json_kind, json_of, not_divided
from glmd_train.data.formats.pictures import PictureIndex

# Points that a shape has at least; the later ones are of newer versions and of X-AnyLabeling.
_POINTS = {"rectangle": 2, "circle": 2, "polygon": 3, "mask": 2, "rotation": 3, "oriented_rectangle": 4}


def read_labelme(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """LabelMe: a JSON file a picture, or one alone, with rectangles, polygons, circles and masks, of which the box is
    taken.

    Points and lines have no box and are refused. Classes come in alphabetical order, as LabelMe has no list of them.
    The picture is `imagePath`, relative to the JSON file; the copy of it in the file (`imageData`) is not read.
    """
    not_divided(path, split)
    contents = {file: _content(file) for file in ([path] if path.is_file() else labelme_files(path))}
    names = {_label(shape, file) for file, content in contents.items() for shape in content["shapes"]}
    if not names:
        raise DatasetError(f"{path} labels nothing; expected `shapes` with a label in at least one LabelMe file.")
    folder = path.parent if path.is_file() else path
    builder = Builder(images.folder if images else folder, tuple(sorted(names)))
    for file, content in contents.items():
        hw = builder.add_picture(_picture(file, content, images), _size(content))
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"{file}, shape {number},"
            builder.add_box(where, builder.names.index(_label(shape, file)), _box(shape, where, hw))
    return builder.content(), builder.folder


def labelme_files(folder: Path) -> list[Path]:
    """Those in a folder; where there are none, those in its sub-folders, as pictures of several clips have them."""
    here = [file for file in files_in(folder, ".json") if json_kind(file) == "labelme"]
    return here or [file for file in files_below(folder, ".json") if is_small(file) and json_kind(file) == "labelme"]


def _content(file: Path) -> dict[str, Any]:
    content = json_of(file)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DatasetError(f"{file} must have `shapes`, a list of objects, as LabelMe writes it.")
    return content


def _label(shape: dict[str, Any], file: Path) -> str:
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise DatasetError(f"{file} has a shape without `label`. Name it or remove it.")
    return label.strip()


def _picture(file: Path, content: dict[str, Any], images: PictureIndex | None) -> Path:
    named = str(content.get("imagePath") or file.stem).replace("\\", "/")
    if images:
        return images.take(file, named, file.stem)
    beside = file.parent / PurePosixPath(named).name  # for a path of the machine on which it was labelled
    renamed = (file.with_suffix(suffix) for suffix in PICTURE_SUFFIXES)
    found = next((path for path in (file.parent / named, beside, *renamed) if os.path.isfile(path)), None)
    if found is None:
        raise DatasetError(f"{file} names the picture {named}, which is neither there nor beside it.")
    return found


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    h, w = content.get("imageHeight"), content.get("imageWidth")
    return (h, w) if isinstance(h, int) and isinstance(w, int) else None


def _box(shape: dict[str, Any], where: str, hw: tuple[int, int]) -> tuple[float, ...]:
    """The box around a shape in a picture of `hw` pixels; whether it fits is for `add_box` to judge."""
    kind = str(shape.get("shape_type") or "polygon")
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where} must have `points`, a list of x, y in pixels.") from error
    if len(points) < _POINTS.get(kind, math.inf):
        raise DatasetError(
            f"{where} is a {kind} of {len(points)} points, which has no box; expected a rectangle, polygon, circle or "
            "mask. Draw it again."
        )
    if kind == "circle":  # its middle and a point on it; it may reach over the edge of the picture
        (x, y), radius = points[0], math.dist(*points[:2])
        return max(x - radius, 0), max(y - radius, 0), min(x + radius, hw[1]), min(y + radius, hw[0])
    xs, ys = zip(*points, strict=True)
    last = 1 if kind == "mask" else 0  # a mask's second point is its last pixel, not the edge after it
    return min(xs), min(ys), max(xs) + last, max(ys) + last
