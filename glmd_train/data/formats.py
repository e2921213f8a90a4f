"""Data sets in other forms as one COCO file: YOLO's text files, Pascal VOC's XML files, COCO's and IFSOD's folders.

A reader returns the COCO content and the folder that its file names start at. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import yaml
from PIL import Image, UnidentifiedImageError

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.sinks import whole_file
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.data.coco import EDGE_TOLERANCE, parse_coco, picture_folder, read_coco, with_image_folder

Content = dict[str, Any]
Loaded = tuple[Content, Path]
YOLO_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
SPLITS = ("train", "val", "valid", "test")


def convert(path: Path, out: Path, form: str | None = None, split: str | None = None) -> Content:
    """Read a data set and write it as one COCO file, whole or not at all.

    Args:
        path: its folder, or the file that describes it (YOLO's YAML, COCO's JSON).
        out: the file; its `info.image_folder` leads to the pictures.
        form: a name of `READERS`; None finds it out.
        split: train, val or test, for a set that is divided.
    Returns: what was written.
    Raises: UsageError for an unknown form, and for a divided set without `split`; DatasetError, naming file and line
        or record, for whatever is wrong in the set.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Name a data set's folder, or the file that describes it.")
    content, folder = READERS[form or detect(path)](path, split)
    names = tuple(category["name"] for category in content["categories"])
    parse_coco(content, names, folder, path)
    with whole_file(out) as partial:
        partial.write_text(json.dumps(with_image_folder(content, folder, out)))
    return content


def detect(path: Path) -> str:
    """The form of a data set, by its files: a name of `READERS`. Raises: UsageError if it looks like none."""
    if path.is_file():
        found = {".json": "coco", ".yaml": "yolo", ".yml": "yolo"}.get(path.suffix.lower())
    elif (path / "annotations" / "all.json").is_file():
        found = "ifsod"
    elif _json_files(path):
        found = "coco"
    elif _yolo_list(path) or (path / "labels").is_dir():
        found = "yolo"
    else:
        found = "voc" if (path / "Annotations").is_dir() or any(path.glob("*.xml")) else None
    if found is None:
        raise UsageError(
            f"{path} must be YOLO (data.yaml or classes.txt, images, labels), Pascal VOC (Annotations/*.xml), COCO "
            "(annotations/*.json) or IFSOD (annotations/all.json, images). It looks like none; say --format."
        )
    return found


# COCO and IFSOD


def read_coco_set(path: Path, split: str | None) -> Loaded:
    """A COCO file, or a folder with one a split (`annotations/instances_train2017.json`, `train.json`, ...)."""
    if path.is_file():
        files = [path]
    else:
        files = [file for file in _json_files(path) if split is None or split in _split_of(file)]
    if len(files) != 1:
        raise UsageError(
            f"{path} must hold one COCO file{f' for {split}' if split else ''}; it has "
            f"{', '.join(f.name for f in files) or 'none'}. Say --split, or give the file itself."
        )
    content = read_coco(files[0])
    return content, picture_folder(content, files[0])


def _split_of(file: Path) -> str:
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem


def _json_files(folder: Path) -> list[Path]:
    patterns = ("annotations/*.json", "instances*.json", "train.json", "val.json", "test.json", "*.coco.json",
                "*/_annotations.coco.json")
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def read_ifsod(path: Path, split: str | None) -> Loaded:
    """IFSOD's folder: `annotations/all.json`, a COCO file, with its pictures in `images`."""
    _not_divided(path, split)
    file = path / "annotations" / "all.json"
    return read_coco(file), path / "images"


def _not_divided(path: Path, split: str | None) -> None:
    if split:
        raise UsageError(f"{path} is not divided into train, val and test. Leave out --split.")


# What YOLO and VOC share: pictures and boxes, one after the other


@dataclass
class _Builder:
    """A COCO content that grows; ids count from 1."""

    folder: Path
    names: tuple[str, ...]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add_picture(self, path: Path) -> tuple[int, int]:
        """Returns its (height, width) as stored."""
        try:
            with Image.open(path) as picture:
                w, h = picture.size
        except (OSError, UnidentifiedImageError) as error:
            raise DatasetError(f"{path} cannot be read as a picture. Is it missing or damaged?") from error
        name = os.path.relpath(path, self.folder)
        self.images.append({"id": len(self.images) + 1, "file_name": name, "width": w, "height": h})
        return h, w

    def add_box(self, where: str, class_id: int, xyxy: tuple[float, ...], ignore: bool = False) -> None:
        """A box in the last picture's pixels; `where` begins an error."""
        w, h = self.images[-1]["width"], self.images[-1]["height"]
        x1, y1, x2, y2 = xyxy
        inside = min(x1, y1) >= -EDGE_TOLERANCE and x2 <= w + EDGE_TOLERANCE and y2 <= h + EDGE_TOLERANCE
        if not (x1 < x2 and y1 < y2 and inside):  # also false for NaN
            raise DatasetError(
                f"{where} has the box {tuple(round(v, 2) for v in xyxy)} (left, top, right, bottom in pixels), "
                f"expected a positive size inside its picture, {w} wide and {h} high. Correct or remove it."
            )
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(w)), min(y2, float(h))
        box = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
        self.annotations.append({
            "id": len(self.annotations) + 1, "image_id": len(self.images), "category_id": class_id + 1,
            "bbox": box, "area": round(box[2] * box[3], 3), "iscrowd": int(ignore),
        })

    def content(self) -> Content:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.names, start=1)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def _pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))


# YOLO


def read_yolo(path: Path, split: str | None) -> Loaded:
    """YOLO: a text file for each picture, a line for each object: class, then centre x, y, width, height relative to
    the picture, or the corners of an outline, of which the box is taken.

    Class names are in data.yaml (`names`) or classes.txt. The label of `.../images/a.jpg` is `.../labels/a.txt`, or
    a.txt beside it; a picture without one is background.
    """
    described = path if path.is_file() else _yolo_list(path)
    if described is None:
        raise DatasetError(f"{path} must hold class names in one of {', '.join(YOLO_LISTS)}; it has none of them.")
    if described.suffix in (".yaml", ".yml"):
        names, pictures = _read_data_yaml(described, split)
    else:
        _not_divided(path, split)
        names, pictures = tuple(_lines(described)), _pictures_in(path)
    if not pictures:
        raise DatasetError(f"{described} leads to no picture. Are the pictures where it says?")
    builder = _Builder(described.parent, names)
    for picture in pictures:
        hw = builder.add_picture(picture)
        label = _label_file(picture)
        for number, line in enumerate(_lines(label) if label.is_file() else [], start=1):
            if line.strip():
                class_id, xyxy = _yolo_line(line, f"{label}, line {number},", len(names), hw)
                builder.add_box(f"{label}, line {number},", class_id, xyxy)
    return builder.content(), builder.folder


def _yolo_list(folder: Path) -> Path | None:
    return next((folder / name for name in YOLO_LISTS if (folder / name).is_file()), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not a text file: {error}.") from error


def _label_file(picture: Path) -> Path:
    """The last folder `images` of its path becomes `labels`; without such a folder the label lies beside it."""
    parts = list(picture.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        label = Path(*parts).with_suffix(".txt")
        if label.is_file():
            return label
    return picture.with_suffix(".txt")


def _yolo_line(line: str, where: str, classes: int, hw: tuple[int, int]) -> tuple[int, tuple[float, ...]]:
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
    try:
        values = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    names = values.get("names") if isinstance(values, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or values.get("nc", len(names)) != len(names):
        raise DatasetError(f"{file} must have `names`, a list or 0: name, 1: name ..., as many as `nc`; got {names!r}.")
    divided = [key for key in SPLITS if values.get(key)]
    split = "valid" if split == "val" and "val" not in divided else split
    if split is None and len(divided) == 1:
        split = divided[0]
    if split not in divided:
        raise UsageError(f"{file} has the splits {', '.join(divided) or '(none)'}; got {split}. Say which by --split.")
    entries = values[split] if isinstance(values[split], list) else [values[split]]
    root = file.parent / str(values.get("path") or "")
    return tuple(map(str, names)), [p for entry in entries for p in _entry(file, root, str(entry))]


def _entry(file: Path, root: Path, entry: str) -> list[Path]:
    """The pictures of one path in data.yaml, a folder or a text file that lists pictures."""
    # Published sets often hold the path of another machine, or one `../` too many; their folders lie beside the file.
    places = (root / entry, file.parent / entry, file.parent / entry.removeprefix("../"))
    place = next((p for p in places if p.exists()), None)
    if place is None:
        raise DatasetError(f"{file} names {entry}, which is neither below {root} nor beside the file. Correct it.")
    if place.is_dir():
        return _pictures_in(place)
    return [place.parent / line.strip() for line in _lines(place) if line.strip()]


# Pascal VOC


def read_voc(path: Path, split: str | None) -> Loaded:
    """Pascal VOC: an XML file for each picture. `difficult` objects become ignore regions, as VOC scores them.

    The XML files are in `Annotations` and the pictures in `JPEGImages`, or all in one folder; a split is a list in
    `ImageSets/Main`. Classes come in alphabetical order, as VOC has no list of them. VOC counts pixels from 1 and both
    edges of a box are in it, so 1, 1, 2, 2 is a box of 2 by 2 pixels at 0, 0; tools that count from 0 lose one pixel.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = sorted(folder.glob("*.xml"))
    if split:
        listed = path / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise UsageError(f"{listed} does not exist, so there is no split {split}. Correct or leave out --split.")
        files = [folder / f"{line.split()[0]}.xml" for line in _lines(listed) if line.strip()]
    if not files:
        raise DatasetError(f"{folder} holds no .xml file; expected Pascal VOC's, one a picture.")
    roots = {file: _parse_xml(file) for file in files}
    names = {_text(o, "name", f) for f, root in roots.items() for o in root.iter("object")}
    builder = _Builder(path, tuple(sorted(names)))
    for file, root in roots.items():
        builder.add_picture(_voc_picture(path, file, _text(root, "filename", file)))
        for number, one in enumerate(root.iter("object"), start=1):
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            where, class_id = f"{file}, object {number},", builder.names.index(_text(one, "name", file))
            builder.add_box(where, class_id, _voc_box(one, where), difficult)
    return builder.content(), builder.folder


def _parse_xml(file: Path) -> Element:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import parse

    try:
        return parse(file, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise DatasetError(f"{file} declares a document type or entities, which are not read. Remove them.") from error
    except (ParseError, OSError) as error:
        raise DatasetError(f"{file} cannot be read as XML: {error}.") from error


def _text(element: Element, tag: str, file: Path) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise DatasetError(f"{file} has <{element.tag}> without <{tag}>; expected Pascal VOC's form.")
    return text


def _voc_picture(path: Path, file: Path, name: str) -> Path:
    """A picture by what its XML file calls it, else by the XML file's own name."""
    folders: Iterable[Path] = (path / "JPEGImages", path / "images", file.parent, path)
    wanted = Path(name.replace("\\", "/")).name
    for folder in folders:
        for candidate in (folder / wanted, *(folder / f"{file.stem}{suffix}" for suffix in PICTURE_SUFFIXES)):
            if candidate.is_file():
                return candidate
    raise DatasetError(f"{file} names the picture {wanted}, which is in none of JPEGImages, images and its own folder.")


def _voc_box(one: Element, where: str) -> tuple[float, ...]:
    box: Any = one.find("bndbox")
    try:
        x1, y1, x2, y2 = (float(box.findtext(tag) or "") for tag in ("xmin", "ymin", "xmax", "ymax"))
    except (AttributeError, ValueError) as error:
        raise DatasetError(f"{where} must have <bndbox> with the numbers xmin, ymin, xmax, ymax.") from error
    return x1 - 1, y1 - 1, x2, y2


READERS: dict[str, Callable[[Path, str | None], Loaded]] = {
    "yolo": read_yolo, "voc": read_voc, "coco": read_coco_set, "ifsod": read_ifsod,
}
