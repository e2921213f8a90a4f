"""YOLO: a text file for each picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.data.formats.builder import Builder, Loaded
from glmd_train.data.formats.files import files_below, files_in, lines_of, not_divided, text_of
from glmd_train.data.formats.pictures import PictureIndex, pictures_in
from glmd_train.documents import MOST_BYTES as YAML_BYTES
from glmd_train.documents import parse_yaml

YOLO_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
YAML = (".yaml", ".yml")
SPLITS = ("train", "val", "valid", "test")


def read_yolo(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """YOLO: a text file for each picture, a line for each object: class, then centre x, y, width, height relative to
    the picture, or the corners of an outline, of which the box is taken.

    Class names are in data.yaml (`names`) or classes.txt, in the folder or beside it. The label of `.../images/a.jpg`
    is `.../labels/a.txt`, or a.txt beside it; a picture without one is background.
    """
    described = path if path.is_file() else yolo_list(path)
    if described is None:
        raise DatasetError(f"{path} must hold class names in one of {', '.join(YOLO_LISTS)}; it has none of them.")
    if images:
        names = _names(described)
        labels = _labels_apart(path.parent if path.is_file() else path, images)
    else:
        names, pictures = _pictures_of(described, split)
        labels = {picture: _label_file(picture) for picture in pictures}
    if not labels:
        raise DatasetError(f"{described} leads to no picture. Are the pictures where it says?")
    builder = Builder(images.folder if images else described.parent, names)
    for picture, label in labels.items():
        _add(builder, picture, label)
    return builder.content(), builder.folder


def _add(builder: Builder, picture: Path, label: Path) -> None:
    hw = builder.add_picture(picture)
    for number, line in enumerate(lines_of(label) if os.path.isfile(label) else [], start=1):
        if line.strip():
            where = f"{label}, line {number},"
            builder.add_box(where, *yolo_line(line, where, len(builder.names), hw))


def yolo_list(folder: Path) -> Path | None:
    """The file with class names: in the folder, or beside it if it is a folder of labels."""
    places = [folder, folder.resolve().parent] if files_below(folder, ".txt") else [folder]
    return next((place / name for place in places for name in YOLO_LISTS if (place / name).is_file()), None)


def has_labels(folder: Path) -> bool:
    """Whether there is a YOLO label in it, at any depth."""
    return any(_is_label(file) for file in files_below(folder, ".txt") if file.name not in YOLO_LISTS)


def _is_label(file: Path) -> bool:
    """Whether a text file begins as a label does; others lie about in many sets (README.roboflow.txt, train.txt)."""
    try:
        first = next((line.split() for line in lines_of(file) if line.strip()), [])
        return len([float(word) for word in first]) >= 5
    except (DatasetError, ValueError):
        return False


def _labels_apart(folder: Path, images: PictureIndex) -> dict[Path, Path]:
    """The label file of each picture, of which there may be none: where it belongs, else anywhere in `folder`.

    Raises: DatasetError for a label whose picture is not there.
    """
    root = folder.resolve()
    labels = {picture: _label_file(picture) for picture in images.pictures}
    paired = {label for label in labels.values() if label.is_file() and root in label.resolve().parents}
    if paired:
        files = {file for place in {label.parent for label in paired} for file in files_in(place, ".txt")}
    else:
        files = set(files_below(folder, ".txt"))
        labels = {picture: picture.with_suffix(".txt") for picture in images.pictures}
    for file in sorted(files - paired):
        name = os.path.relpath(file.with_suffix(""), folder)  # its folders tell pictures of one name apart
        if file.name not in YOLO_LISTS and (images.find(name) or _is_label(file)):
            labels[images.take(file, name)] = file
    return labels


def _label_file(picture: Path) -> Path:
    """The last folder `images` of its path becomes `labels`; without such a folder the label lies beside it."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        label = Path(*parts[:-1], f"{picture.stem}.txt")
        if os.path.isfile(label):
            return label
    return picture.parent / f"{picture.stem}.txt"  # a path without a name has no suffix to change


def yolo_line(line: str, where: str, classes: int, hw: tuple[int, int]) -> tuple[int, tuple[float, ...]]:
    """Class and xyxy in pixels of one line."""
    try:
        class_id, *values = int(line.split()[0]), *map(float, line.split()[1:])
    except ValueError as error:
        raise DatasetError(f"{where} must be numbers, class first; got {line!r}. Correct or remove it.") from error
    if not 0 <= class_id < classes:
        raise DatasetError(f"{where} has class {class_id}, but the set names {classes} classes, from 0. Correct one.")
    if len(values) == 4:
        x, y, w, h = values
        values = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    elif len(values) < 6 or len(values) % 2:
        raise DatasetError(
            f"{where} must be a class with x, y, width, height, or with the x, y of 3 or more corners; got "
            f"{len(values) + 1} numbers. Are there scores in it?"
        )
    xs, ys = [v * hw[1] for v in values[::2]], [v * hw[0] for v in values[1::2]]
    return class_id, (min(xs), min(ys), max(xs), max(ys))


def _pictures_of(described: Path, split: str | None) -> tuple[tuple[str, ...], list[Path]]:
    """Class names, and the pictures of the split or of all."""
    if described.suffix.lower() not in YAML:
        not_divided(described, split)
        return _names(described), pictures_in(described.parent)
    names, values = _names(described), _parsed(described)
    divided = [key for key in SPLITS if values.get(key)]
    split = "valid" if split == "val" and "val" not in divided else split
    if split is None and len(divided) == 1:
        split = divided[0]
    if split not in divided:
        raise UsageError(
            f"{described} has the splits {', '.join(divided) or '(none)'}; got {split}. Say which by --split."
        )
    entries = values[split] if isinstance(values[split], list) else [values[split]]
    root = described.parent / str(values.get("path") or "")
    return names, [p for entry in entries for p in _entry(described, root, str(entry))]


def _names(file: Path) -> tuple[str, ...]:
    """Class names by number, of a list or of data.yaml."""
    if file.suffix.lower() not in YAML:
        listed = [line.strip() for line in text_of(file).rstrip().splitlines()]
        if not all(listed):
            place = listed.index("") + 1
            raise DatasetError(f"{file} must name a class in each line, as labels count them; line {place} is empty.")
        return tuple(listed)
    values = _parsed(file)
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or values.get("nc", len(names)) != len(names):
        raise DatasetError(f"{file} must have `names`, a list or 0: name, 1: name ..., as many as `nc`; got {names!r}.")
    return tuple(map(str, names))


def _parsed(file: Path) -> Any:
    try:
        return parse_yaml(text_of(file, YAML_BYTES))
    except ValueError as error:
        raise DatasetError(f"{file} is not YAML: {error}. Correct it.") from error


def _entry(file: Path, root: Path, entry: str) -> list[Path]:
    """The pictures of one path in data.yaml, a folder or a text file that lists pictures."""
    # Published sets often hold the path of another machine, or one `../` too many; their folders lie beside the file.
    places = (root / entry, file.parent / entry, file.parent / entry.removeprefix("../"))
    place = next((p for p in places if os.path.exists(p)), None)
    if place is None:
        raise DatasetError(f"{file} names {entry}, which is neither below {root} nor beside the file. Correct it.")
    if place.resolve() == Path(place.resolve().anchor):
        raise DatasetError(f"{file} names {entry}, which is the whole file system. Name the folder of the pictures.")
    if place.is_dir():
        return pictures_in(place)
    return [place.parent / line.strip() for line in lines_of(place) if line.strip()]
