"""COCO's JSON, alone or in the folders of COCO and IFSOD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.data.coco import picture_folder, read_coco
from glmd_train.data.formats.builder import Content, Loaded
from glmd_train.data.formats.files import files_in, json_kind, not_divided
from glmd_train.data.formats.pictures import PictureIndex, refuse_turned, stored_hw


def read_coco_set(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """A COCO file, or a folder with one a split (`annotations/instances_train2017.json`, `train.json`, ...)."""
    if path.is_file():
        files = [path]
    else:
        files = [file for file in coco_files(path) if split is None or split in _split_of(file)]
    if len(files) != 1:
        raise UsageError(
            f"{path} must hold one COCO file{f' for {split}' if split else ''}; it has "
            f"{', '.join(f.name for f in files) or 'none'}. Say --split, or give the file itself."
        )
    content = read_coco(files[0])
    return _with_pictures(content, files[0], images) if images else (content, picture_folder(content, files[0]))


def _with_pictures(content: Content, file: Path, images: PictureIndex) -> Loaded:
    """The same with the names that pictures have in a folder; pictures without a label need not be there."""
    try:
        labelled = {annotation["image_id"] for annotation in content["annotations"]}
        there = [
            _placed(image, image["id"] in labelled, file, images) for image in content["images"]
            if image["id"] in labelled or images.find(image["file_name"])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} has a record that is not of COCO's form: {error!r}.") from error
    return {**content, "images": there}, images.folder


def _placed(image: dict[str, Any], is_labelled: bool, file: Path, images: PictureIndex) -> dict[str, Any]:
    """An image's record with the name and the size that the picture has."""
    path = images.take(file, image["file_name"])
    h, w = image.get("height"), image.get("width")
    (h, w), turned = stored_hw(path, (h, w) if h and w else None)  # some tools leave sizes out
    refuse_turned(path, turned and is_labelled)
    return image | {"file_name": path.relative_to(images.folder).as_posix(), "height": h, "width": w}


def _split_of(file: Path) -> str:
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem


def coco_files(folder: Path) -> list[Path]:
    """COCO's folders are known by their names, which spares reading large files; elsewhere the content decides."""
    below = {file for pattern in ("annotations/*.json", "*/_annotations.coco.json") for file in folder.glob(pattern)}
    return sorted(below or (file for file in files_in(folder, ".json") if json_kind(file) == "coco"))


def read_ifsod(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """IFSOD's folder: `annotations/all.json`, a COCO file, with its pictures in `images`."""
    not_divided(path, split)
    file = path / "annotations" / "all.json"
    content = read_coco(file)
    return _with_pictures(content, file, images) if images else (content, path / "images")
