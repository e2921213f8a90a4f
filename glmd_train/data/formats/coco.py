"""COCO's JSON, alone or in the folders of COCO and IFSOD."""

from __future__ import annotations

from pathlib import Path

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.data.coco import picture_folder, read_coco
from glmd_train.data.formats.builder import Loaded, PictureIndex, not_divided


def read_coco_set(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """A COCO file, or a folder with one a split (`annotations/instances_train2017.json`, `train.json`, ...)."""
    if path.is_file():
        files = [path]
    else:
        files = [file for file in json_files(path) if split is None or split in _split_of(file)]
    if len(files) != 1:
        raise UsageError(
            f"{path} must hold one COCO file{f' for {split}' if split else ''}; it has "
            f"{', '.join(f.name for f in files) or 'none'}. Say --split, or give the file itself."
        )
    return _with_pictures(files[0], images) if images else _as_it_says(files[0])


def _as_it_says(file: Path) -> Loaded:
    content = read_coco(file)
    return content, picture_folder(content, file)


def _with_pictures(file: Path, index: PictureIndex) -> Loaded:
    """The pictures that lie in a folder, under the names that they have there."""
    content = read_coco(file)
    try:
        images = [
            image | {"file_name": index.find(image["file_name"], file).relative_to(index.folder).as_posix()}
            for image in content["images"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{file} has an image that is not of COCO's form: {error!r}.") from error
    info = {k: v for k, v in (content.get("info") or {}).items() if k != "image_folder"}
    return {**content, "images": images, "info": info}, index.folder


def _split_of(file: Path) -> str:
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem


def json_files(folder: Path) -> list[Path]:
    patterns = ("annotations/*.json", "instances*.json", "train.json", "val.json", "test.json", "*.coco.json",
                "*/_annotations.coco.json")
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def read_ifsod(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """IFSOD's folder: `annotations/all.json`, a COCO file, with its pictures in `images`."""
    not_divided(path, split)
    file = path / "annotations" / "all.json"
    return _with_pictures(file, images) if images else (read_coco(file), path / "images")
