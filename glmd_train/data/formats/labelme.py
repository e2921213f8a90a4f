"""LabelMe: a JSON file for each picture, with outlines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from glmd_runtime.errors import DatasetError
from glmd_train.data.formats.builder import Builder, Loaded, PictureIndex, not_divided

_POINTS = {"rectangle": 2, "circle": 2, "polygon": 3}  # an outline has so many at least


def read_labelme(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """LabelMe: rectangles, polygons and circles, of which the box is taken, in a JSON file a picture or one alone.

    A circle is its middle and a point on it. Points and lines have no box and are refused. Classes come in
    alphabetical order, as LabelMe has no list of them. The picture is `imagePath`, relative to the JSON file; pictures
    within the JSON (`imageData`) are not read.
    """
    not_divided(path, split)
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else labelme_files(path)
    contents = {file: _parsed(file) for file in files}
    names = {_label(shape, file) for file, content in contents.items() for shape in content["shapes"]}
    if not names:
        raise DatasetError(f"{path} labels nothing; expected `shapes` with a label in at least one file.")
    index = images or PictureIndex(folder)
    builder = Builder(index.folder, tuple(sorted(names)))
    for file, content in contents.items():
        builder.add_picture(_picture(file, content, images, index))
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"{file}, shape {number},"
            builder.add_box(where, builder.names.index(_label(shape, file)), _box(shape, where))
    return builder.content(), builder.folder


def labelme_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.json")) if is_labelme(file)]


def is_labelme(file: Path) -> bool:
    """Whether a JSON file has LabelMe's `shapes`; not whether they are right."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "shapes" in content


def _parsed(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{file} is not JSON: {error}") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DatasetError(f"{file} must have `shapes`, a list of objects, as LabelMe writes it.")
    return content


def _label(shape: dict[str, Any], file: Path) -> str:
    label = shape.get("label")
    if not isinstance(label, str) or not label.strip():
        raise DatasetError(f"{file} has a shape without `label`. Name it or remove it.")
    return label.strip()


def _picture(file: Path, content: dict[str, Any], images: PictureIndex | None, index: PictureIndex) -> Path:
    named = str(content.get("imagePath") or file.stem).replace("\\", "/")
    if images is None and (file.parent / named).is_file():
        return file.parent / named
    return index.find(named, file)


def _box(shape: dict[str, Any], where: str) -> tuple[float, ...]:
    """The box around a shape; whether it is in its picture is for `add_box` to judge."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{where} must have `points`, a list of x, y in pixels.") from error
    if kind not in _POINTS or len(points) < _POINTS[kind]:
        raise DatasetError(
            f"{where} is a {kind} of {len(points)} points; expected a rectangle, a polygon or a circle. Draw it again."
        )
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist(points[0], edge)
        return x - radius, y - radius, x + radius, y + radius
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
