"""YOLO: a text file for each picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.data.formats.builder import Builder, Loaded, PictureIndex, lines_of, not_divided, pictures_in

YOLO_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
SPLITS = ("train", "val", "valid", "test")


def read_yolo(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """YOLO: a text file for each picture, a line for each object: class, then centre x, y, width, height relative to
    the picture, or the corners of an outline, of which the box is taken.

    Class names are in data.yaml (`names`) or classes.txt. The label of `.../images/a.jpg` is `.../labels/a.txt`, or
    a.txt beside it; a picture without one is background.
    """
    described = path if path.is_file() else yolo_list(path)
    if described is None:
        raise DatasetError(f"{path} must hold class names in one of {', '.join(YOLO_LISTS)}; it has none of them.")
    labels, names = _labels_apart(described, split, images) if images else _labels_beside(described, path, split)
    if not labels:
        raise DatasetError(f"{described} leads to no picture. Are the pictures where it says?")
    builder = Builder(images.folder if images else described.parent, names)
    for picture, label in labels.items():
        hw = builder.add_picture(picture)
        for number, line in enumerate(lines_of(label) if label and label.is_file() else [], start=1):
            if line.strip():
                class_id, xyxy = yolo_line(line, f"{label}, line {number},", len(names), hw)
                builder.add_box(f"{label}, line {number},", class_id, xyxy)
    return builder.content(), builder.folder


def yolo_list(folder: Path) -> Path | None:
    """The file with class names: in the folder, or beside it, where tools put labels into a folder of their own."""
    places = (place / name for place in (folder, folder.parent) for name in YOLO_LISTS)
    return next((path for path in places if path.is_file()), None)


def _labels_beside(described: Path, path: Path, split: str | None) -> tuple[dict[Path, Path | None], tuple[str, ...]]:
    """Pictures with their label files as the set itself has them, and the class names."""
    if described.suffix in (".yaml", ".yml"):
        names, pictures = _read_data_yaml(described, split)
    else:
        not_divided(path, split)
        names, pictures = _listed(described), pictures_in(path)
    return {picture: _label_file(picture) for picture in pictures}, names


def _labels_apart(
    described: Path, split: str | None, images: PictureIndex
) -> tuple[dict[Path, Path | None], tuple[str, ...]]:
    """All pictures of a folder with the label files, wherever below the list of classes, that are called like them."""
    not_divided(described, split)
    is_yaml = described.suffix in (".yaml", ".yml")
    names = _names_of(_parsed(described), described) if is_yaml else _listed(described)
    labels: dict[Path, Path | None] = dict.fromkeys(images.pictures)
    for file in sorted(described.parent.rglob("*.txt")):
        if file.name not in YOLO_LISTS and _is_label(file):
            labels[images.find(file.stem, file)] = file
    return labels, names


def _is_label(file: Path) -> bool:
    """Whether a text file begins as a label does; others lie about in many sets (README.roboflow.txt, train.txt)."""
    first = next((line for line in lines_of(file) if line.strip()), "0 0 0 0 0").split()
    return first[0].isdigit() and len(first) >= 5


def _listed(file: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in lines_of(file) if line.strip())


def _label_file(picture: Path) -> Path:
    """The last folder `images` of its path becomes `labels`; without such a folder the label lies beside it."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        label = Path(*parts).with_suffix(".txt")
        if label.is_file():
            return label
    return picture.with_suffix(".txt")


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


def _read_data_yaml(file: Path, split: str | None) -> tuple[tuple[str, ...], list[Path]]:
    """Class names and pictures of one split."""
    values = _parsed(file)
    names = _names_of(values, file)
    divided = [key for key in SPLITS if values.get(key)]
    split = "valid" if split == "val" and "val" not in divided else split
    if split is None and len(divided) == 1:
        split = divided[0]
    if split not in divided:
        raise UsageError(f"{file} has the splits {', '.join(divided) or '(none)'}; got {split}. Say which by --split.")
    entries = values[split] if isinstance(values[split], list) else [values[split]]
    root = file.parent / str(values.get("path") or "")
    return names, [p for entry in entries for p in _entry(file, root, str(entry))]


def _parsed(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} is not YAML: {' '.join(str(error).split())}") from error


def _names_of(values: Any, file: Path) -> tuple[str, ...]:
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or values.get("nc", len(names)) != len(names):
        raise DatasetError(f"{file} must have `names`, a list or 0: name, 1: name ..., as many as `nc`; got {names!r}.")
    return tuple(map(str, names))


def _entry(file: Path, root: Path, entry: str) -> list[Path]:
    """The pictures of one path in data.yaml, a folder or a text file that lists pictures."""
    # Published sets often hold the path of another machine, or one `../` too many; their folders lie beside the file.
    places = (root / entry, file.parent / entry, file.parent / entry.removeprefix("../"))
    place = next((p for p in places if p.exists()), None)
    if place is None:
        raise DatasetError(f"{file} names {entry}, which is neither below {root} nor beside the file. Correct it.")
    if place.is_dir():
        return pictures_in(place)
    return [place.parent / line.strip() for line in lines_of(place) if line.strip()]
