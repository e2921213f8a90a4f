"""Data sets in other forms as one COCO file: YOLO's, Pascal VOC's and LabelMe's files, COCO's and IFSOD's folders.

A reader takes a path, the split of a divided set, and a folder of pictures if they are not where the labels say. It
returns the COCO content and the folder that its file names start at. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.sinks import whole_file
from glmd_train.data.coco import parse_coco, with_image_folder
from glmd_train.data.formats.builder import Content, Loaded, PictureIndex
from glmd_train.data.formats.coco import json_files, read_coco_set, read_ifsod
from glmd_train.data.formats.labelme import is_labelme, labelme_files, read_labelme
from glmd_train.data.formats.voc import read_voc
from glmd_train.data.formats.yolo import read_yolo, yolo_list

READERS: dict[str, Callable[[Path, str | None, PictureIndex | None], Loaded]] = {
    "yolo": read_yolo, "voc": read_voc, "labelme": read_labelme, "coco": read_coco_set, "ifsod": read_ifsod,
}


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
    content, folder = read_labels(path, None, form, split)
    with whole_file(out) as partial:
        partial.write_text(json.dumps(with_image_folder(content, folder, out)))
    return content


def read_labels(path: Path, images: Path | None, form: str | None = None, split: str | None = None) -> Loaded:
    """A checked COCO content, and the folder that its file names start at.

    Args: images, the folder of the pictures, whatever the labels say of it; None where the labels say it. The others
        are `convert`'s, and so are the errors.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Name a data set's folder, or the file that describes it.")
    content, folder = READERS[form or detect(path)](path, split, PictureIndex(images) if images else None)
    names = tuple(category["name"] for category in content["categories"])
    parse_coco(content, names, folder, path)
    return content, folder


def detect(path: Path) -> str:
    """The form of a data set, by its files: a name of `READERS`. Raises: UsageError if it looks like none."""
    if path.is_file():
        by_suffix = {".json": "coco", ".yaml": "yolo", ".yml": "yolo", ".xml": "voc"}
        found = "labelme" if path.suffix.lower() == ".json" and is_labelme(path) else by_suffix.get(path.suffix.lower())
    elif (path / "annotations" / "all.json").is_file():
        found = "ifsod"
    elif json_files(path):
        found = "coco"
    elif (path / "Annotations").is_dir() or any(path.glob("*.xml")):
        found = "voc"
    elif labelme_files(path):
        found = "labelme"
    else:
        found = "yolo" if yolo_list(path) or (path / "labels").is_dir() else None
    if found is None:
        raise UsageError(
            f"{path} must be YOLO (data.yaml or classes.txt, images, labels), Pascal VOC (Annotations/*.xml), LabelMe "
            "(*.json), COCO (annotations/*.json) or IFSOD (annotations/all.json, images). It looks like none; say "
            "--format."
        )
    return found
