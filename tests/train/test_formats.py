"""YOLO, Pascal VOC, COCO and IFSOD data sets become one COCO file; what is wrong in them is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.cli import main
from glmd_train.data.coco import load_coco
from glmd_train.data.formats import convert, detect
from glmd_train.data.formats import yolo as yolo_reader

NAMES = ("person", "car")
BOX = (10, 4, 30, 24)  # xyxy pixels of a picture 40 high and 80 wide


def picture(path: Path, hw: tuple[int, int] = (40, 80)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(hw, np.uint8))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def yolo_line(box: tuple[float, ...], class_id: int = 1) -> str:
    x1, y1, x2, y2 = box
    return f"{class_id} {(x1 + x2) / 160} {(y1 + y2) / 80} {(x2 - x1) / 80} {(y2 - y1) / 40}\n"


def yolo(folder: Path, line: str = yolo_line(BOX)) -> Path:
    """Two splits, the second with a picture without objects."""
    for name in ("train/images/a.png", "valid/images/b.png", "valid/images/c.png"):
        picture(folder / name)
    write(folder / "train/labels/a.txt", line)
    write(folder / "valid/labels/b.txt", yolo_line((0, 0, 8, 8), 0))
    # As Roboflow writes it: one ../ too many.
    write(folder / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [person, car]\n")
    return folder


def voc_xml(box: tuple[float, ...] = (11, 5, 30, 24), name: str = "car", difficult: int = 0) -> str:
    edges = "".join(f"<{tag}>{v}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><filename>a.png</filename><object><name>{name}</name><difficult>{difficult}</difficult>"
        f"<bndbox>{edges}</bndbox></object></annotation>"
    )


def voc(folder: Path, xml: str | None = None) -> Path:
    picture(folder / "JPEGImages/a.png")
    picture(folder / "JPEGImages/b.png")
    write(folder / "Annotations/a.xml", xml or voc_xml())
    write(folder / "Annotations/b.xml", voc_xml(name="person", difficult=1).replace("a.png", "b.png"))
    write(folder / "ImageSets/Main/train.txt", "a\n")
    return folder


def coco(folder: Path, place: str, pictures: str) -> Path:
    picture(folder / pictures / "a.png")
    x1, y1, x2, y2 = BOX
    values: dict[str, Any] = {
        "images": [{"id": 9, "file_name": "a.png", "width": 80, "height": 40}],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}],
    }
    write(folder / place, json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("form", "make", "split"),
    [
        ("yolo", yolo, "train"),
        ("voc", voc, "train"),
        ("coco", lambda f: coco(f, "annotations/instances_train2017.json", "train2017"), "train"),
        ("coco", lambda f: coco(f, "instances.json", "images"), None),
        ("coco", lambda f: coco(f, "train/_annotations.coco.json", "train"), "train"),
        ("ifsod", lambda f: coco(f, "annotations/all.json", "images"), None),
    ],
)
def test_each_form_is_recognised_and_becomes_coco(tmp_path: Path, form: str, make: Any, split: str | None) -> None:
    source = make(tmp_path / "set")
    assert detect(source) == form
    out = tmp_path / "elsewhere" / "train.json"
    arguments = ["--from", str(source), "--out", str(out), *(("--split", split) if split else ())]
    assert main(["prepare", "coco", *arguments]) == 0
    record = load_coco(out, NAMES)[0]
    assert record.labels.tolist() == [1]
    np.testing.assert_allclose(record.boxes, [BOX], atol=1e-3)
    assert record.read().shape == (40, 80)


def test_yolo_pictures_without_a_label_are_background(tmp_path: Path) -> None:
    content = convert(yolo(tmp_path), tmp_path / "val.json", split="val")
    assert [image["file_name"] for image in content["images"]] == ["valid/images/b.png", "valid/images/c.png"]
    assert [a["image_id"] for a in content["annotations"]] == [1]
    assert [c["name"] for c in content["categories"]] == list(NAMES)


def test_yolo_with_a_list_of_classes_and_labels_beside_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "classes.txt", "person\ncar\n")
    write(tmp_path / "a.txt", yolo_line(BOX))
    (annotation,) = convert(tmp_path, tmp_path / "out.json")["annotations"]
    assert annotation["bbox"] == [10, 4, 20, 20] and annotation["category_id"] == 2


@settings(max_examples=50)
@given(
    corners=st.lists(st.tuples(st.floats(0, 80), st.floats(0, 40)), min_size=3, max_size=9),
    class_id=st.integers(0, 1),
)
def test_the_box_of_a_yolo_outline_holds_all_its_corners_tightly(
    corners: list[tuple[float, float]], class_id: int
) -> None:
    line = f"{class_id} " + " ".join(f"{x / 80!r} {y / 40!r}" for x, y in corners)
    found, (x1, y1, x2, y2) = yolo_reader.yolo_line(line, "here", 2, (40, 80))
    assert found == class_id
    xs, ys = zip(*corners, strict=True)
    np.testing.assert_allclose([x1, y1, x2, y2], [min(xs), min(ys), max(xs), max(ys)], atol=1e-9)


def test_voc_counts_pixels_from_one_and_ignores_difficult_objects(tmp_path: Path) -> None:
    content = convert(voc(tmp_path, voc_xml((1, 1, 80, 40))), tmp_path / "all.json")
    assert [a["bbox"] for a in content["annotations"]] == [[0, 0, 80, 40], [10, 4, 20, 20]]
    assert [a["iscrowd"] for a in content["annotations"]] == [0, 1]
    assert [c["name"] for c in content["categories"]] == ["car", "person"]  # VOC has no list: alphabetical


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 .5 .5 .2\n", r"a\.txt, line 1, must be a class with x, y"),
        ("0 .5 .5 .2 .2 .9\n", "Are there scores in it"),
        ("0 .5 .5 .2 .2\n\n2 .5 .5 .2 .2\n", r"a\.txt, line 3, has class 2.*2 classes"),
        ("person .5 .5 .2 .2\n", "must be numbers"),
        ("0 .9 .5 .4 .2\n", r"line 1, has the box .*inside its picture, 80 wide"),
        ("0 .5 .5 0 .2\n", "positive size"),
        ("0 nan .5 .1 .2\n", "positive size"),
    ],
)
def test_a_wrong_yolo_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        convert(yolo(tmp_path, line), tmp_path / "out.json", split="train")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("names: [a\n", DatasetError, "is not YAML"),
        ("train: train/images\n", DatasetError, "must have `names`.*got None"),
        ("train: train/images\nnc: 3\nnames: [a, b]\n", DatasetError, "as many as `nc`"),
        ("train: nowhere\nnames: [a, b]\n", DatasetError, "names nowhere, which is neither"),
        ("train: labels\nnames: [a, b]\n", DatasetError, "leads to no picture"),
        ("train: train/images\nval: valid/images\nnames: [a, b]\n", UsageError, "has the splits train, val.*--split"),
        (f"train: {'a' * 300}\nnames: [a, b]\n", DatasetError, "is neither below"),
        ("train: list.txt\nnames: [a, b]\n", DatasetError, "cannot be read as a picture"),
        ("names: !!python/object/apply:os.system [touch hacked]\n", DatasetError, "is not YAML"),
    ],
)
def test_a_wrong_data_yaml_is_one_clear_error(tmp_path: Path, text: str, error: type[Exception], says: str) -> None:
    folder = yolo(tmp_path)
    (folder / "labels").mkdir()
    write(folder / "list.txt", "/\n")
    write(folder / "data.yaml", text)
    with pytest.raises(error, match=says):
        convert(folder, tmp_path / "out.json")


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("<annotation>", r"a\.xml cannot be read as XML"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "document type"),
        ('<?xml version="1.0" encoding="utf-77"?><annotation/>', "cannot be read as XML: unknown encoding"),
        ('<?xml version="1.0" encoding="utf-7"?><annotation/>', "cannot be read as XML"),
        (voc_xml((30, 5, 11, 24)), r"a\.xml, object 1, has the box .*positive size"),
        (voc_xml((11, 5, 90, 24)), "inside its picture, 80 wide"),
        (voc_xml().replace("<xmin>11</xmin>", ""), r"object 1, must have <bndbox>"),
        (voc_xml().replace("<name>car</name>", ""), "<object> without <name>"),
    ],
)
def test_a_wrong_voc_file_is_named(tmp_path: Path, xml: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        convert(voc(tmp_path, xml), tmp_path / "out.json")


def test_missing_parts_of_a_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none does not exist"):
        convert(tmp_path / "none", tmp_path / "out.json")
    unclear = r"must be COCO .*YOLO .*Pascal VOC .*LabelMe .* It looks like none.* or say with --format what it is\.$"
    with pytest.raises(UsageError, match=unclear):
        convert(tmp_path, tmp_path / "out.json")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"empty\.json lacks images, annotations, categories"):
        convert(tmp_path / "empty.json", tmp_path / "out.json")
    folder = voc(tmp_path / "voc")
    with pytest.raises(UsageError, match=r"no split val"):
        convert(folder, tmp_path / "out.json", split="val")
    (folder / "JPEGImages/a.png").unlink()
    with pytest.raises(DatasetError, match=r"a\.xml names the picture a\.png"):
        convert(folder, tmp_path / "out.json")
    folder = yolo(tmp_path / "yolo")
    (folder / "train/images/a.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"a\.png cannot be read as a picture"):
        convert(folder, tmp_path / "out.json", split="train")
    folder = coco(tmp_path / "ifsod", "annotations/all.json", "images")
    with pytest.raises(UsageError, match="Leave out --split"):
        convert(folder, tmp_path / "out.json", split="train")
    with pytest.raises(UsageError, match=r"one COCO file for val; it has none"):
        convert(coco(tmp_path / "coco", "annotations/instances_train2017.json", "train2017"), tmp_path / "o.json",
                split="val")
