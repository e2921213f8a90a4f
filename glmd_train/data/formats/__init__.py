"""Data sets in other forms as one COCO file: YOLO's, Pascal VOC's and LabelMe's files, COCO's and IFSOD's folders.

A reader takes a path, the split of a divided set, and a folder of pictures if they are not where the labels say. It
returns the COCO content and the folder that its file names start at. Boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.files.scratch import whole_file
from glmd_train.data.coco import parse_coco, with_image_folder
from glmd_train.data.formats.builder import Content, Loaded
from glmd_train.data.formats.coco import coco_files, read_coco_set, read_ifsod
from glmd_train.data.formats.files import files_below, json_kind, json_of
from glmd_train.data.formats.labelme import labelme_files, read_labelme
from glmd_train.data.formats.pictures import PictureIndex
from glmd_train.data.formats.voc import read_voc
from glmd_train.data.formats.yolo import YAML, YOLO_LISTS, has_labels, read_yolo, yolo_list

READERS: dict[str, Callable[[Path, str | None, PictureIndex | None], Loaded]] = {
    "yolo": read_yolo, "voc": read_voc, "labelme": read_labelme, "coco": read_coco_set, "ifsod": read_ifsod,
}
_FORMS = (
    "COCO (a .json file; annotations/*.json), YOLO (data.yaml or classes.txt, labels/*.txt), Pascal VOC (*.xml) or "
    "LabelMe (*.json, one a picture)"
)
_MAKE_COCO = "or make a COCO file by `glmd-train prepare coco --format FORM`"


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
    content, folder = _read(path, None, form, split, "or say with --format what it is")
    with whole_file(out) as partial:
        partial.write_text(json.dumps(with_image_folder(content, folder, out)))
    return content


def read_labels(annotations: Path, images: Path | None, form: str | None = None) -> Loaded:
    """Labels of any form, with pictures that may lie anywhere.

    Args:
        annotations: a COCO file; a LabelMe or VOC file, or a folder of them; a YOLO folder, its data.yaml or
            classes.txt; or a whole set as `convert` takes it.
        images: the folder with the pictures, whatever the labels say; they are found by name (`PictureIndex`). Pictures
            that no label names are background in YOLO's form, and no part of the set in the others. None: they are
            where the labels say.
        form: a name of `READERS`; None finds it out.
    Returns: COCO's content, checked, and the folder that its file names start at.
    Raises: as `convert`; DatasetError for a label whose picture is not in `images`.
    """
    return _read(annotations, images, form, None, _MAKE_COCO)


def _read(path: Path, images: Path | None, form: str | None, split: str | None, remedy: str) -> Loaded:
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Name a data set's folder, or the file that describes it.")
    form = form or detect(path, remedy)
    if form not in READERS:
        raise UsageError(f"The form of labels must be one of {', '.join(READERS)}; got {form!r}.")
    content, folder = READERS[form](path, split, PictureIndex(images) if images else None)
    parse_coco(content, _class_names(content, path), folder, path)
    return content, folder


def _class_names(content: Content, source: Path) -> tuple[str, ...]:
    try:
        return tuple(category["name"] for category in content["categories"])
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{source} has a category that is not of COCO's form: {error!r}.") from error


def detect(path: Path, remedy: str = _MAKE_COCO) -> str:
    """The form of a data set, by its files: a name of `READERS`.

    Raises: UsageError for none or several, which ends with a `remedy`.
    """
    found = _forms_of_file(path) if path.is_file() else _forms_of_folder(path)
    if len(found) != 1:
        state = f"It looks like {' and '.join(found)} at once" if found else "It looks like none of them"
        raise UsageError(
            f"{path} must be {_FORMS}, or IFSOD's folder. {state}. Name the file or folder with the labels alone, "
            f"{remedy}."
        )
    return found[0]


def _forms_of_file(file: Path) -> list[str]:
    if file.name in YOLO_LISTS or file.suffix.lower() in YAML:
        return ["yolo"]
    if file.suffix.lower() == ".xml":
        return ["voc"]
    if file.suffix.lower() != ".json":
        return []
    json_of(file)  # damaged, it is no form at all but an error of its own
    return [json_kind(file) or "coco"]  # whose reader says what it lacks


def _forms_of_folder(folder: Path) -> list[str]:
    if (folder / "annotations" / "all.json").is_file():
        return ["ifsod"]
    signs = {
        "coco": bool(coco_files(folder)),
        "voc": bool(files_below(folder, ".xml")),
        "labelme": bool(labelme_files(folder)),
        # classes.txt alone is no sign: labelImg leaves it in folders of VOC's form too.
        "yolo": any((folder / name).is_file() for name in YOLO_LISTS if name.endswith(YAML)) or has_labels(folder),
    }
    found = [form for form, there in signs.items() if there]
    return found or (["yolo"] if yolo_list(folder) or (folder / "labels").is_dir() else [])
