"""Pascal VOC: an XML file for each picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from glmd_runtime.errors import DatasetError, UsageError
from glmd_runtime.video.sources import PICTURE_SUFFIXES
from glmd_train.data.formats.builder import Builder, Loaded, PictureIndex, lines_of


def read_voc(path: Path, split: str | None, images: PictureIndex | None = None) -> Loaded:
    """Pascal VOC: an XML file for each picture. `difficult` objects become ignore regions, as VOC scores them.

    The XML files are in `Annotations` and the pictures in `JPEGImages`, or all in one folder; a split is a list in
    `ImageSets/Main`. Classes come in alphabetical order, as VOC has no list of them. VOC counts pixels from 1 and both
    edges of a box are in it, so 1, 1, 2, 2 is a box of 2 by 2 pixels at 0, 0; tools that count from 0 lose one pixel.
    """
    if path.is_file():
        folder, files = path.parent, [path]
    else:
        folder = path / "Annotations" if (path / "Annotations").is_dir() else path
        files = sorted(folder.glob("*.xml"))
    if split:
        listed = path / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            raise UsageError(f"{listed} does not exist, so there is no split {split}. Correct or leave out --split.")
        files = [folder / f"{line.split()[0]}.xml" for line in lines_of(listed) if line.strip()]
    if not files:
        raise DatasetError(f"{folder} holds no .xml file; expected Pascal VOC's, one a picture.")
    roots = {file: _parse_xml(file) for file in files}
    names = {_text(o, "name", f) for f, root in roots.items() for o in root.iter("object")}
    root_folder = images.folder if images else folder.parent if path.is_file() else path
    builder = Builder(root_folder, tuple(sorted(names)))
    for file, root in roots.items():
        name = _text(root, "filename", file)
        builder.add_picture(images.find(name, file) if images else _voc_picture(root_folder, file, name))
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
