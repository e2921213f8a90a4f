"""Pascal VOC: an XML file for each picture."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.data.formats.builder import Builder, Loaded
from glmd_train.data.formats.files import bytes_of, files_below, files_in, lines_of
from glmd_train.data.formats.pictures import PictureIndex
from glmd_train.documents import XML_BYTES, parse_xml


def read_voc(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """Pascal VOC: an XML file for each picture. `difficult` objects become ignore regions, as VOC scores them.

    The XML files are in `Annotations` and the pictures in `JPEGImages`, or all in one folder, or there is one file; a
    split is a list in `ImageSets/Main`. Classes come in alphabetical order, as VOC has no list of them. VOC counts
    pixels from 1 and both edges of a box are in it, so 1, 1, 2, 2 is a box of 2 by 2 pixels at 0, 0; tools that count
    from 0 lose one pixel.
    """
    folder = path.parent if path.is_file() else path
    roots = {file: _parse_xml(file) for file in ([path] if path.is_file() else _xml_files(path, split))}
    names = {_name(one, file) for file, root in roots.items() for one in root.iter("object")}
    builder = Builder(images.folder if images else folder, tuple(sorted(names)))
    for file, root in roots.items():
        # Tools that rename pictures leave the old name in the file; a file without one is called as its picture.
        called = ((root.findtext("filename") or "").strip() or file.stem, file.stem)
        picture = images.take(file, *called) if images else _picture(folder, file, called[0])
        builder.add_picture(picture, _size(root))
        for number, one in enumerate(root.iter("object"), start=1):
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            where, class_id = f"{file}, object {number},", builder.names.index(_name(one, file))
            builder.add_box(where, class_id, _box(one, where), difficult)
    return builder.content(), builder.folder


def _xml_files(path: Path, split: str | None) -> list[Path]:
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    files = files_in(folder, ".xml") or files_below(folder, ".xml")
    if split:
        listed = path / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise UsageError(f"{listed} does not exist, so there is no split {split}. Correct or leave out --split.")
        files = [folder / f"{line.split()[0]}.xml" for line in lines_of(listed) if line.strip()]
    if not files:
        raise DatasetError(f"{folder} holds no .xml file; expected Pascal VOC's, one a picture.")
    return files


def _parse_xml(file: Path) -> Element:
    try:
        return parse_xml(bytes_of(file, XML_BYTES))
    except ValueError as error:
        raise DatasetError(f"{file} cannot be read as XML: {error}.") from error


def _name(one: Element, file: Path) -> str:
    name = (one.findtext("name") or "").strip()
    if not name:
        raise DatasetError(f"{file} has <object> without <name>; expected Pascal VOC's form.")
    return name


def _picture(path: Path, file: Path, name: str) -> Path:
    """A picture by what its XML file calls it, else by the XML file's own name."""
    folders: Iterable[Path] = (path / "JPEGImages", path / "images", file.parent, path, path.parent / "JPEGImages")
    wanted = Path(name.replace("\\", "/")).name
    for folder in folders:
        for candidate in (folder / wanted, *(folder / f"{file.stem}{suffix}" for suffix in PICTURE_SUFFIXES)):
            if os.path.isfile(candidate):
                return candidate
    raise DatasetError(f"{file} names the picture {wanted}, which is in none of JPEGImages, images and its own folder.")


def _size(root: Element) -> tuple[int, int] | None:
    """(height, width) that the boxes are for; None where the file does not say it, or says 0."""
    texts = [root.findtext(f"size/{tag}") or "0" for tag in ("height", "width")]
    try:
        h, w = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):  # the second of an infinite one
        return None
    return (h, w) if h > 0 and w > 0 else None


def _box(one: Element, where: str) -> tuple[float, ...]:
    box: Any = one.find("bndbox")
    try:
        x1, y1, x2, y2 = (float(box.findtext(tag) or "") for tag in ("xmin", "ymin", "xmax", "ymax"))
    except (AttributeError, ValueError) as error:
        raise DatasetError(f"{where} must have <bndbox> with the numbers xmin, ymin, xmax, ymax.") from error
    return x1 - 1, y1 - 1, x2, y2
