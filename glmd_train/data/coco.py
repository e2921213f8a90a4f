"""COCO-format data sets: read once, checked once, with errors that name the file and the record."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import xywh_to_xyxy
from glmd_runtime.errors import DatasetError, SourceError
from glmd_runtime.files.documents import read_json
from glmd_runtime.video import sources
from glmd_train.config import data_folder

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


def load_coco_files(
    paths: Iterable[Path], class_names: tuple[str, ...], images: Path | None = None
) -> list[Record]:
    """Read several COCO files as one set; a path may hold wildcards, see `expand`.

    The records of the first file come first, then what the second adds, and so on. A picture that is in several files
    is one record, at its first place, with the boxes of all of them in the order of the files; what two files say
    alike counts once, and a region that one file ignores and another has as an object is an object.

    Raises: DatasetError as `load_coco` does, for a pattern that nothing matches, and for files that give one picture
        different sizes.
    """
    pictures: dict[Path, list[Record]] = {}
    for path in (file for pattern in paths for file in expand(pattern, class_names)):
        for record in load_coco(path, class_names, images):
            pictures.setdefault(record.path.resolve(), []).append(record)
    return [_merged(records) for records in pictures.values()]


def expand(pattern: Path, class_names: tuple[str, ...] = ()) -> list[Path]:
    """The files that a path with wildcards (* ? [...] **) means; a path without wildcards is itself.

    Files with the name of a class between underscores come in the order of `class_names`, then the others; each
    alphabetically. Raises: DatasetError if nothing matches.
    """
    if pattern.is_file() or not glob.has_magic(str(pattern)):
        return [pattern]
    found = [Path(name) for name in glob.glob(str(pattern), recursive=True)]
    if not found:
        raise DatasetError(f"No file matches {pattern}. {_remedy(pattern)}")
    return sorted(found, key=lambda path: (_class_in(path.stem, class_names), path))


def _remedy(path: Path) -> str:
    """What to do where a file is missing; whoever named one elsewhere need not hear of GLMD_DATA."""
    if path.is_relative_to(data_folder()):
        return "Set GLMD_DATA to the folder of the data sets."
    return "Is the folder right, and were the files prepared?" if glob.has_magic(str(path)) else "Name a COCO file."


def _class_in(stem: str, class_names: tuple[str, ...]) -> int:
    """Index of the longest class name that stands between underscores; the number of classes where none does."""
    named = [name for name in class_names if f"_{name}_" in f"_{stem}_"]
    return class_names.index(max(named, key=len)) if named else len(class_names)


def _merged(records: list[Record]) -> Record:
    """Records of one picture, in order, as one."""
    first = records[0]
    if len(records) == 1:
        return first
    if len({record.hw for record in records}) > 1:
        sizes = sorted({record.hw for record in records})
        raise DatasetError(f"Annotation files give {first.path} the sizes {sizes} (height, width). Correct one.")
    # Dictionaries, as they keep each row once and in order.
    objects = dict.fromkeys((tuple(b), i) for r in records for b, i in zip(r.boxes.tolist(), r.labels, strict=True))
    ignore = dict.fromkeys(tuple(b) for r in records for b in r.ignore.tolist())
    boxes = [box for box, _ in objects]
    return replace(
        first,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        labels=np.asarray([label for _, label in objects], np.int64),
        ignore=np.asarray([box for box in ignore if box not in set(boxes)], np.float32).reshape(-1, 4),
        left_out=tuple(sorted({name for record in records for name in record.left_out})),
    )


def load_coco(annotations: Path, class_names: tuple[str, ...], images: Path | None = None) -> list[Record]:
    """Read a COCO file; categories are matched to `class_names` by name, others are left out.

    Args:
        annotations: the file.
        class_names: of the model; a label is an index into it.
        images: the folder that file names start at; None is the one that `picture_folder` finds.
    Returns: the pictures by ascending image id, objects as the file has them.

    Raises:
        DatasetError: no such file, not COCO, no picture in it, an undeclared category or image id, a box outside its
            image or without area, a picture that does not exist, or none of `class_names` among the categories.
    """
    return parse_coco(read_coco(annotations), class_names, images, annotations)


def parse_coco(
    content: dict[str, Any], class_names: tuple[str, ...], images: Path | None, annotations: Path
) -> list[Record]:
    """`load_coco` of a file's content that is already read; `annotations` names it in errors and says where it is."""
    if not content["images"]:
        raise DatasetError(f"{annotations} lists no picture; expected at least one in `images`.")
    try:
        folder = images or picture_folder(content, annotations)
        records = _records(content, class_names, folder, annotations)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{annotations} has a record that is not of COCO's form: {error!r}.") from error
    return records


def picture_folder(content: dict[str, Any], annotations: Path) -> Path:
    """The folder that file names of a COCO file start at.

    It is what the file itself says (`info.image_folder`, relative to the file; what `glmd-train prepare` writes).
    Else the first of these that has the first picture: the file's folder, `images` in it, and beside it `images` and
    COCO's own `train2017` of `annotations/instances_train2017.json`. Else the file's folder.
    """
    here = annotations.parent
    info = content.get("info")
    if isinstance(info, dict) and isinstance(info.get("image_folder"), str):
        return (here / info["image_folder"]).resolve()
    beside = here.parent
    candidates = (here, here / "images", beside / "images", beside / annotations.stem.removeprefix("instances_"))
    first = [image.get("file_name") for image in content["images"][:1] if isinstance(image, dict)]
    return next((folder for folder in candidates if first and os.path.isfile(folder / str(first[0]))), here)


def with_image_folder(content: dict[str, Any], images: Path, file: Path) -> dict[str, Any]:
    """A COCO content for `file` that says where its pictures are, as `picture_folder` reads it."""
    info = content.get("info")
    folder = os.path.relpath(images.resolve(), file.parent.resolve())
    return content | {"info": {**(info if isinstance(info, dict) else {}), "image_folder": folder}}


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
    return [_record(sizes[i], by_image[i], names, labels, folder, annotations) for i in sorted(sizes)]


MOST_BYTES = 4 << 30  # of an annotation file; LVIS, the largest of the known ones, has 1.2 GB
_LISTS = ("images", "annotations", "categories")


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO detection file. Raises: DatasetError if there is no such file, or it is something else."""
    require_file(path)
    try:
        content = read_json(path, MOST_BYTES)
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON: {error}. Name a COCO file.") from error
    missing = [key for key in _LISTS if key not in (content if isinstance(content, dict) else ())]
    if missing:
        raise DatasetError(f"{path} lacks {', '.join(missing)}, which a COCO file has. Name a COCO file.")
    for key in _LISTS:
        if not isinstance(content[key], list):
            kind = type(content[key]).__name__
            raise DatasetError(f"{path} is no COCO file: `{key}` must be a list; got {kind}.")
    return content


def require_file(path: Path) -> None:
    """Raises: DatasetError for an annotation file that is not there."""
    if not path.is_file():
        raise DatasetError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. {_remedy(path)}")


def _record(
    image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[int, str], labels: dict[int, int],
    folder: Path, source: Path,
) -> Record:
    h, w, path = image["height"], image["width"], folder / image["file_name"]
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that can be none
        raise DatasetError(f"{source} names {path}, which does not exist. Are the pictures in another folder?")
    for annotation in annotations:
        check_annotation(annotation, names, (h, w), source)
    crowd = [a["bbox"] for a in annotations if a.get("iscrowd")]
    objects = [a for a in annotations if not a.get("iscrowd") and a["category_id"] in labels]
    limit = np.asarray([w, h, w, h], np.float32)
    boxes, ignore = (
        np.clip(xywh_to_xyxy(np.asarray(xywh, np.float32)), 0, limit) for xywh in ([a["bbox"] for a in objects], crowd)
    )
    ids = np.asarray([labels[a["category_id"]] for a in objects], np.int64)
    left_out = {names[a["category_id"]] for a in annotations if not a.get("iscrowd")} - {names[i] for i in labels}
    return Record(image["id"], path, (h, w), boxes, ids, ignore, tuple(sorted(left_out)))


def check_annotation(annotation: dict[str, Any], names: dict[int, str], hw: tuple[int, int], source: Path) -> None:
    """Raises: DatasetError for a category that `names` lacks, or a box that is not in its picture."""
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
