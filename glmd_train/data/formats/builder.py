"""A COCO content that grows, picture by picture and box by box."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmd_runtime.errors import DatasetError
from glmd_train.data.coco import EDGE_TOLERANCE
from glmd_train.data.formats.pictures import refuse_turned, stored_hw

Content = dict[str, Any]
Loaded = tuple[Content, Path]


@dataclass
class Builder:
    """A COCO content that grows; ids count from 1."""

    folder: Path
    names: tuple[str, ...]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    _turned: bool = False  # the last picture has an EXIF orientation

    def add_picture(self, path: Path, said_hw: tuple[int, int] | None = None) -> tuple[int, int]:
        """Returns its (height, width) as stored; errors as `stored_hw`'s."""
        (h, w), self._turned = stored_hw(path, said_hw)
        name = os.path.relpath(path, self.folder)
        self.images.append({"id": len(self.images) + 1, "file_name": name, "width": w, "height": h})
        return h, w

    def add_box(self, where: str, class_id: int, xyxy: tuple[float, ...], ignore: bool = False) -> None:
        """A box in the last picture's pixels; `where` begins an error."""
        w, h = self.images[-1]["width"], self.images[-1]["height"]
        refuse_turned(self.folder / self.images[-1]["file_name"], self._turned)
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
