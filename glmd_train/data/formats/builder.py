"""What the readers share: where pictures are, and a COCO content that grows."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.data.coco import EDGE_TOLERANCE

Content = dict[str, Any]
Loaded = tuple[Content, Path]


@dataclass
class Builder:
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


class PictureIndex:
    """The pictures of a folder by name: for labels that lie elsewhere, and name their pictures in their own way."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DatasetError(f"--images expects a folder with the pictures; {folder} is none.")
        self.folder = folder
        self.pictures = pictures_in(folder)
        if not self.pictures:
            raise DatasetError(f"--images expects a folder with pictures; {folder} holds none.")
        self._by_name, self._by_stem = defaultdict(list), defaultdict(list)
        for path in self.pictures:
            self._by_name[path.name.lower()].append(path)
            self._by_stem[path.stem.lower()].append(path)

    def find(self, name: str, source: Path | str) -> Path:
        """The picture that a label calls `name`: by its path in the folder, else its file name, else without suffix.

        Raises: DatasetError, naming `source`, where there is none or more than one.
        """
        wanted = Path(name.replace("\\", "/"))
        if (self.folder / wanted).is_file() and not wanted.is_absolute():
            return self.folder / wanted
        found = self._by_name[wanted.name.lower()] or self._by_stem[wanted.stem.lower()]
        if len(found) != 1:
            came = f"{len(found)} of this name" if found else "no such picture"
            raise DatasetError(
                f"{source} labels {name}; {self.folder} holds {came}. Put each labelled picture there once, or name "
                "the folder that has them."
            )
        return found[0]


def pictures_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))


def lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not a text file: {error}.") from error


def not_divided(path: Path, split: str | None) -> None:
    if split:
        raise UsageError(f"{path} is not divided into train, val and test. Leave out --split.")
