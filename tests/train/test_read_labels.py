"""Labels as tools export them, with pictures that lie elsewhere: the same boxes, or one error that names its cause."""

from __future__ import annotations

import json
import os
import signal
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.cli import main
from glmd_train.data.coco import load_coco, parse_coco
from glmd_train.data.formats import convert, detect, read_labels
from glmd_train.data.formats.labelme import _box
from glmd_train.data.formats.pictures import PictureIndex, pictures_in, stored_hw

H, W = 40, 80
BOX = (10, 4, 30, 24)  # xyxy pixels, of a fox
BOM = "\ufeff"


def picture(path: Path, hw: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros(hw, np.uint8))
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def labelme(name: str = "a.png", **values: Any) -> str:
    rectangle = {"label": "fox", "points": [[30, 24], [10, 4]], "shape_type": "rectangle", "flags": {}}
    content = {"version": "5.4.1", "flags": {}, "shapes": [rectangle], "imagePath": name, "imageData": "aGVsbG8=",
               "imageHeight": H, "imageWidth": W}
    return json.dumps(content | values)


def coco(*names: str) -> str:
    images = [{"id": i, "file_name": name, "width": W, "height": H} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 7, "bbox": [10, 4, 20, 20]} for i in range(len(names))]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "fox"}]})


def xml(filename: str | None = "a.png", said_hw: tuple[int, int] | None = None) -> str:
    edges = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), (11, 5, 30, 24), strict=True))
    name = "" if filename is None else f"<filename>{filename}</filename>"
    size = f"<size><width>{said_hw[1]}</width><height>{said_hw[0]}</height></size>" if said_hw else ""
    return f"<annotation>{name}{size}<object><name>fox</name><bndbox>{edges}</bndbox></object></annotation>"


LINE = "0 0.25 0.35 0.25 0.5\n"
ROBOFLOW = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['fox']\n"

# What tools leave, and what is named as the labels. The picture a.png is elsewhere, in a folder of pictures.
EXPORTS: dict[str, tuple[str, dict[str, str]]] = {
    "COCO file": ("labels.json", {"labels.json": coco("a.png")}),
    "COCO, byte order mark": ("labels.json", {"labels.json": BOM + coco("a.png")}),
    "COCO, capitals": ("LABELS.JSON", {"LABELS.JSON": coco("A.PNG")}),
    "COCO of Label Studio": ("", {"result.json": coco("images\\1b9ad05e-a.png")}),
    "COCO of CVAT": ("", {"annotations/instances_default.json": coco("deep/folder/a.png")}),
    "COCO of Roboflow": ("", {"train/_annotations.coco.json": coco("a.png")}),
    "LabelMe file": ("a.json", {"a.json": labelme()}),
    "LabelMe of Windows": ("", {"a.json": labelme("..\\..\\thermal\\a.png")}),
    "LabelMe, byte order mark": ("", {"a.json": BOM + labelme()}),
    "LabelMe, capitals": ("", {"a.JSON": labelme("A.PNG")}),
    "LabelMe, stale imagePath": ("", {"a.json": labelme("before_renaming.png")}),
    "LabelMe, other picture format": ("", {"a.json": labelme("a.jpg")}),
    "VOC file": ("a.xml", {"a.xml": xml()}),
    "VOC without <filename>": ("", {"a.xml": xml(None)}),
    "VOC, stale <filename>": ("", {"a.xml": xml("before_renaming.jpg")}),
    "VOC of labelImg": ("", {"a.xml": xml("a"), "classes.txt": "dog\n"}),
    "VOC of CVAT": ("", {"Annotations/a.xml": xml(said_hw=(H, W)), "labelmap.txt": "fox:0,0,0::\n"}),
    "VOC, size of 0": ("", {"a.xml": xml(said_hw=(0, 0))}),
    "VOC, byte order mark and capitals": ("", {"a.XML": BOM + xml()}),
    "YOLO, classes in the folder": ("", {"a.txt": LINE, "classes.txt": "fox\n"}),
    "YOLO, classes beside": ("labels", {"labels/a.txt": LINE, "classes.txt": "fox"}),
    "YOLO, list of classes": ("classes.txt", {"labels/a.txt": LINE, "classes.txt": "fox"}),
    "YOLO, byte order marks": ("", {"labels/a.txt": BOM + LINE, "classes.txt": BOM + "fox\r\n"}),
    "YOLO of Roboflow": ("data.yaml", {"train/labels/a.txt": LINE, "data.yaml": ROBOFLOW,
                                       "README.txt": "128 pictures of a fox, exported"}),
    "YOLO, labels in folders": ("labels", {"labels/deep/a.txt": LINE, "classes.txt": "fox \n"}),
    "LabelMe in folders": ("", {"clip/a.json": labelme()}),
    "VOC in folders": ("", {"Annotations/clip/a.xml": xml("clip/a.png")}),
    "YOLO of CVAT": ("", {"obj_train_data/a.txt": LINE, "obj.names": "fox\n", "obj.data": "classes = 1\n",
                          "train.txt": "data/obj_train_data/a.png\n"}),
    "YOLO of Label Studio": ("", {"labels/1b9ad05e-a.txt": LINE, "classes.txt": "fox\n",
                                  "notes.json": '{"categories": [{"id": 0, "name": "fox"}], "info": {}}'}),
}  # fmt: skip


@pytest.mark.parametrize("place", ["a.png", "day_1/A.PNG"])
@pytest.mark.parametrize(("named", "files"), EXPORTS.values(), ids=EXPORTS)
def test_the_same_box_comes_from_every_tool(tmp_path: Path, named: str, files: dict[str, str], place: str) -> None:
    there = picture(tmp_path / "pictures" / place)
    for name, text in files.items():
        write(tmp_path / "tool" / name, text)
    content, folder = read_labels(tmp_path / "tool" / named, tmp_path / "pictures")
    (record,) = parse_coco(content, ("fox",), folder, tmp_path)
    np.testing.assert_allclose(record.boxes, [BOX], atol=1e-3)
    assert record.labels.tolist() == [0]
    assert record.path.samefile(there)


def test_pictures_that_no_label_names_are_background_in_yolo_and_no_part_of_the_set_elsewhere(tmp_path: Path) -> None:
    pictures = picture(tmp_path / "pictures/a.png").parent
    picture(pictures / "sub/b.png")
    write(tmp_path / "yolo/classes.txt", "fox\n")
    write(tmp_path / "yolo/a.txt", LINE)
    forms = {
        "yolo": tmp_path / "yolo", "voc": write(tmp_path / "a.xml", xml()),
        "coco": write(tmp_path / "c.json", coco("a.png")), "labelme": write(tmp_path / "a.json", labelme()),
    }
    named = {form: [i["file_name"] for i in read_labels(path, pictures)[0]["images"]] for form, path in forms.items()}
    assert named.pop("yolo") == ["a.png", "sub/b.png"]
    assert all(names == ["a.png"] for names in named.values())


def test_coco_pictures_that_nobody_labelled_need_not_be_there(tmp_path: Path) -> None:
    pictures = picture(tmp_path / "pictures/a.png").parent
    content = json.loads(coco("a.png", "not_copied.png"))
    content["annotations"].pop()
    write(tmp_path / "all.json", json.dumps(content))
    read, _ = read_labels(tmp_path / "all.json", pictures)
    assert [image["file_name"] for image in read["images"]] == ["a.png"]


MISSING: dict[str, tuple[str, dict[str, str]]] = {
    "coco": ("all.json", {"all.json": coco("a.png", "fox_17.png")}),
    "labelme": ("fox_17.json", {"fox_17.json": labelme("C:\\Users\\me\\fox_17.png")}),
    "voc": ("fox_17.xml", {"fox_17.xml": xml("fox_17.png")}),
    "yolo": ("", {"fox_17.txt": LINE, "classes.txt": "fox"}),
    "yolo beside its pictures": ("", {"pictures/a.txt": LINE, "pictures/fox_17.txt": LINE, "classes.txt": "fox"}),
}


@pytest.mark.parametrize(("named", "files"), MISSING.values(), ids=MISSING)
def test_a_label_whose_picture_is_not_there_is_named(tmp_path: Path, named: str, files: dict[str, str]) -> None:
    pictures = picture(tmp_path / "pictures/a.png").parent
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(DatasetError, match=r"fox_17.*, but in .*pictures there is no such picture\. Put each"):
        read_labels(tmp_path / named, pictures)


def test_yolo_splits_are_kept_apart_by_their_folders(tmp_path: Path) -> None:
    """Equal names in train and valid, and a valid label without its picture, do not disturb `images` of train."""
    for split, line in (("train", LINE), ("valid", "0 0.5 0.5 0.1 0.1")):
        picture(tmp_path / split / "images/a.png")
        write(tmp_path / split / "labels/a.txt", line)
    write(tmp_path / "valid/labels/b.txt", LINE)
    described = write(tmp_path / "data.yaml", "train: train/images\nval: valid/images\nnames: {0: fox}\n")
    content, folder = read_labels(described, tmp_path / "train" / "images")
    assert [(i["file_name"], len(content["annotations"])) for i in content["images"]] == [("a.png", 1)]
    np.testing.assert_allclose(content["annotations"][0]["bbox"], [10, 4, 20, 20], atol=1e-3)
    assert folder == tmp_path / "train" / "images"


def test_two_pictures_of_one_name_are_told_apart_by_folders_or_refused(tmp_path: Path) -> None:
    for name in ("pictures/day/a.png", "pictures/night/a.png"):
        picture(tmp_path / name)
    def all_json(*names: str) -> Path:
        return write(tmp_path / "all.json", coco(*names))

    both = all_json("x/night/a.png", "x/day/a.png")
    content, _ = read_labels(both, tmp_path / "pictures")
    assert [image["file_name"] for image in content["images"]] == ["night/a.png", "day/a.png"]
    with pytest.raises(DatasetError, match=r"labels a\.png, but in .* there is several: .*day/a\.png, .*night/a\.png"):
        read_labels(all_json("a.png"), tmp_path / "pictures")
    # Two labelled pictures, one of which was not copied, must not become one.
    with pytest.raises(DatasetError, match=r"would have the labels of both day/a\.png of .* and dusk/a\.png of"):
        read_labels(all_json("day/a.png", "dusk/a.png"), tmp_path / "pictures" / "day")


def test_a_path_that_leads_out_of_the_folder_does_not_find_another_picture(tmp_path: Path) -> None:
    picture(tmp_path / "pictures/a.png")
    picture(tmp_path / "a.png")
    content, folder = read_labels(write(tmp_path / "labels/a.json", labelme("../a.png")), tmp_path / "pictures")
    assert (folder / content["images"][0]["file_name"]).samefile(tmp_path / "pictures" / "a.png")


@given(
    stem=st.from_regex(r"[a-z][a-z0-9_.]{0,8}[a-z0-9]", fullmatch=True),
    folders=st.lists(st.sampled_from("xyz"), max_size=3),
    suffix=st.sampled_from(["", ".png", ".PNG", ".jpg", ".tiff"]), slash=st.sampled_from("/\\"), capital=st.booleans(),
)
def test_a_picture_is_found_by_any_way_of_naming_it(
    tmp_path_factory: pytest.TempPathFactory, stem: str, folders: list[str], suffix: str, slash: str, capital: bool
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    there = folder / f"{stem}.png"
    there.touch()
    (folder / f"{stem}2.png").touch()
    name = slash.join([*folders, stem + suffix])
    assert PictureIndex(folder).find(name.upper() if capital else name) == [there]


def test_forms_that_are_unclear_list_the_four(tmp_path: Path) -> None:
    pictures = picture(tmp_path / "a.png").parent
    four = r"must be COCO .*, YOLO .*, Pascal VOC .* or LabelMe .*"
    write(tmp_path / "notes.json", '{"contributor": "me"}')
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(UsageError, match=four + "It looks like none of them.* by `glmd-train prepare coco"):
            read_labels(path, pictures)
    with pytest.raises(DatasetError, match=r"notes\.json lacks images, annotations, categories, which"):
        read_labels(tmp_path / "notes.json", pictures)
    write(tmp_path / "a.json", labelme())
    assert detect(tmp_path) == "labelme"
    write(tmp_path / "a.xml", xml())
    with pytest.raises(UsageError, match=four + "It looks like voc and labelme at once"):
        read_labels(tmp_path, pictures)
    assert len(read_labels(tmp_path, pictures, "voc")[0]["images"]) == 1
    with pytest.raises(UsageError, match=r"must be one of yolo, voc, labelme, coco, ifsod; got 'csv'"):
        read_labels(tmp_path, pictures, "csv")


@pytest.mark.parametrize("state", ["is no folder", "holds none"])
def test_images_must_be_a_folder_of_pictures(tmp_path: Path, state: str) -> None:
    if state == "holds none":
        (tmp_path / "pictures").mkdir()
    with pytest.raises(DatasetError, match=f"must be in a folder .*pictures {state}"):
        read_labels(write(tmp_path / "a.json", labelme()), tmp_path / "pictures")


def test_coco_pictures_have_the_size_that_was_labelled(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (80, 160))
    with pytest.raises(DatasetError, match=r"a\.png is \(80, 160\) .* but its labels are for \(40, 80\)"):
        read_labels(write(tmp_path / "c.json", coco("a.png")), tmp_path)
    unsaid = json.loads(coco("a.png"))
    del unsaid["images"][0]["width"], unsaid["images"][0]["height"]
    (image,) = read_labels(write(tmp_path / "c.json", json.dumps(unsaid)), tmp_path)[0]["images"]
    assert (image["height"], image["width"]) == (80, 160)


def test_a_category_without_a_name_is_an_error_of_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = json.loads(coco("a.png")) | {"categories": [{"id": 7}]}
    with pytest.raises(DatasetError, match=r"c\.json has a category that is not of COCO's form"):
        read_labels(write(tmp_path / "c.json", json.dumps(content)), tmp_path)


def test_yolo_labels_of_one_name_belong_to_the_pictures_in_folders_of_the_same_name(tmp_path: Path) -> None:
    for clip in ("clip_1", "clip_2"):
        picture(tmp_path / "pictures" / clip / "0001.png")
    write(tmp_path / "labels" / "clip_2" / "0001.txt", LINE)
    write(tmp_path / "classes.txt", "fox\n")
    content, _ = read_labels(tmp_path / "labels", tmp_path / "pictures")
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert [names[a["image_id"]] for a in content["annotations"]] == ["clip_2/0001.png"]


def test_a_list_of_classes_is_whole_and_there(tmp_path: Path) -> None:
    """An empty line would be a class without a name, or shift the others."""
    picture(tmp_path / "pictures" / "a.png")
    write(tmp_path / "labels" / "a.txt", LINE)
    with pytest.raises(DatasetError, match="must hold class names in one of"):
        read_labels(tmp_path / "labels", tmp_path / "pictures")
    write(tmp_path / "classes.txt", "fox\n\nowl\n")
    with pytest.raises(DatasetError, match=r"classes\.txt must name a class in each line.* line 2 is empty"):
        read_labels(tmp_path / "labels", tmp_path / "pictures")


@pytest.mark.parametrize("name", ["before_renaming.png", None])
def test_a_labelme_file_is_called_as_its_picture_where_it_does_not_name_it(tmp_path: Path, name: Any) -> None:
    picture(tmp_path / "a.png")
    (image,) = read_labels(write(tmp_path / "a.json", labelme(name)), None)[0]["images"]
    assert image["file_name"] == "a.png"
    with pytest.raises(DatasetError, match=r"b\.json names the picture .*, which is neither there nor beside"):
        read_labels(write(tmp_path / "b.json", labelme(name)), None)


# LabelMe


def shape(kind: str | None, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": "fox", "shape_type": kind, "points": points}


@pytest.mark.parametrize(
    ("one", "box"),
    [
        (shape("rectangle", (30, 4), (10, 24)), BOX),
        (shape("polygon", (10, 9), (20, 24), (30, 4)), BOX),
        (shape(None, (10, 9), (20, 24), (30, 4)), BOX),  # version 3 and older: no shape_type, a polygon
        (shape("circle", (20, 14), (23, 18)), (15, 9, 25, 19)),
        (shape("circle", (4, 14), (4, 22)), (0, 6, 12, 22)),  # reaches over the edge
        (shape("mask", (10, 4), (29, 23)), BOX),  # the second point is the last pixel in it
        (shape("oriented_rectangle", (20, 4), (30, 14), (20, 24), (10, 14)), BOX),
        (shape("rectangle", (-0.8, -1), (W + 0.9, 24)), (0, 0, W, 24)),  # outside by a pixel
    ],
)
def test_a_labelme_shape_becomes_its_box(tmp_path: Path, one: dict[str, Any], box: tuple[float, ...]) -> None:
    picture(tmp_path / "a.png")
    content, folder = read_labels(write(tmp_path / "a.json", labelme(shapes=[one])), None)
    np.testing.assert_allclose(parse_coco(content, ("fox",), folder, tmp_path)[0].boxes, [box], atol=1e-3)


@given(points=st.lists(st.tuples(st.floats(0, W), st.floats(0, H)), min_size=3, max_size=9))
def test_the_box_of_a_labelme_outline_holds_all_its_corners_tightly(points: list[tuple[float, float]]) -> None:
    xs, ys = zip(*points, strict=True)
    assert _box(shape("polygon", *points), "here", (H, W)) == (min(xs), min(ys), max(xs), max(ys))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"shapes": [shape("point", (3, 4))]}, r"a\.json, shape 1, is a point of 1 points, which has no box"),
        ({"shapes": [shape("line", (3, 4), (9, 9))]}, "is a line of 2 points"),
        ({"shapes": [shape("polygon", (3, 4), (9, 9))]}, "is a polygon of 2 points"),
        ({"shapes": [shape("rectangle", (3, 4), (3, 9))]}, "shape 1, has the box .* expected a positive size"),
        ({"shapes": [shape("rectangle", (3, 4), (90, 9))]}, "inside its picture, 80 wide"),
        ({"shapes": [{"label": "fox", "points": [[1]]}]}, "must have `points`"),
        ({"shapes": [{"points": [[1, 2], [3, 4]]}]}, "a shape without `label`"),
        ({"shapes": [shape([1], (3, 4), (9, 9))]}, r"is a \[1\] of 2 points"),
        ({"shapes": []}, "labels nothing"),
        ({"shapes": {}}, "must have `shapes`, a list"),
        ({"imageHeight": 20, "imageWidth": 40}, r"is \(40, 80\) \(height, width\), but its labels are for \(20, 40\)"),
    ],
)
def test_what_is_wrong_in_a_labelme_file_is_named(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=says):
        read_labels(write(tmp_path / "a.json", labelme(**values)), None)


def test_damaged_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"a\.json is not JSON"):
        read_labels(write(tmp_path / "a.json", '{"shapes": ['), picture(tmp_path / "a.png").parent)


def test_prepare_coco_reads_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "set/img/a.png")
    write(tmp_path / "set/a.json", labelme("img\\a.png"))
    out = tmp_path / "out.json"
    assert main(["prepare", "coco", "--from", str(tmp_path / "set"), "--out", str(out)]) == 0
    assert "1 pictures, 1 boxes of fox" in capsys.readouterr().out
    np.testing.assert_allclose(load_coco(out, ("fox",))[0].boxes, [BOX])


# Pictures that are not what the labels are for


def test_a_voc_size_that_is_none_is_not_compared(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><height>1e999</height><width>nan</width></size>"
    xml = f"<annotation>{size}<object><name>fox</name>{box}</object></annotation>"
    content, _ = read_labels(write(tmp_path / "a.xml", xml), None)
    assert content["images"][0]["height"] == 40


def test_voc_of_resized_pictures_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"labels are for \(80, 160\)\. Give the pictures that were labelled"):
        read_labels(write(tmp_path / "a.xml", xml(said_hw=(80, 160))), tmp_path)


@pytest.mark.parametrize("form", ["voc", "labelme", "yolo", "coco"])
def test_labels_of_a_picture_that_exif_turns_are_refused_and_background_is_not(tmp_path: Path, form: str) -> None:
    """Tools label the turned picture; the device decodes the stored one."""
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    for name in ("a.jpg", "b.jpg"):
        Image.new("L", (W, H)).save(tmp_path / name, exif=exif)
    write(tmp_path / "yolo/classes.txt", "fox")
    write(tmp_path / "yolo/a.txt", LINE)
    turned = {"imageHeight": W, "imageWidth": H}
    stood = {"images": [{"id": i, "file_name": f"{'ab'[i]}.jpg", "width": H, "height": W} for i in range(2)]}
    path = {"voc": write(tmp_path / "a.xml", xml("a.jpg")), "yolo": tmp_path / "yolo",
            "coco": write(tmp_path / "c.json", json.dumps(json.loads(coco("a.jpg")) | stood)),
            "labelme": write(tmp_path / "a.json", labelme("a.jpg", **turned))}[form]
    with pytest.raises(DatasetError, match=r"a\.jpg is stored turned .*mogrify -auto-orient"):
        read_labels(path, tmp_path)
    write(tmp_path / "yolo/a.txt", "")
    assert len(read_labels(tmp_path / "yolo", tmp_path)[0]["images"]) == 2


def test_labels_that_say_the_stored_size_fit_a_turned_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("L", (W, H)).save(tmp_path / "a.jpg", exif=exif)
    content, folder = read_labels(write(tmp_path / "a.xml", xml("a.jpg", (H, W))), tmp_path)
    (record,) = parse_coco(content, ("fox",), folder, tmp_path)
    assert record.read().shape[:2] == (H, W)


def png(h: int, w: int) -> bytes:
    """A header alone: of a few bytes, as large as it says."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    made = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("side", [10_000, 60_000])  # of the first Pillow warns, which may be an error
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["yolo", "voc", "coco"])
def test_a_header_of_a_picture_larger_than_memory(form: str, side: int, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(png(side, side))
    name, content = {"yolo": ("a.txt", LINE), "voc": ("a.xml", xml()), "coco": ("a.json", coco("a.png"))}[form]
    write(tmp_path / "l" / "classes.txt", "fox\n")
    write(tmp_path / "l" / name, content)
    with pytest.raises(DatasetError, match=r"a\.png cannot be read as a picture \(DecompressionBomb.*far too large\?"):
        read_labels(tmp_path / "l", tmp_path / "p", form)


def exif(kind: int, count: int, value: bytes) -> bytes:
    """An orientation as EXIF has it: of a type and of so many, whatever that is."""
    entry = struct.pack("<HHI", 274, kind, count)
    inline, behind = (value.ljust(4, b"\0"), b"") if len(value) <= 4 else (struct.pack("<I", 26), value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + inline + bytes(4) + behind


ORIENTATIONS = {
    "6": ((3, 1, b"\6"), True), "0": ((3, 1, b"\0"), False), "9": ((3, 1, b"\11"), False),
    "70000": ((4, 1, struct.pack("<I", 70_000)), False), "a text": ((2, 2, b"6"), False),
    "a fraction": ((5, 1, struct.pack("<II", 6, 0)), False),
    "bytes": ((7, 4, b"\6"), False),
}


@pytest.mark.parametrize(("orientation", "turned"), ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["webp", "jpg", "png"])
def test_an_orientation_that_is_none_turns_nothing(
    suffix: str, orientation: tuple[int, int, bytes], turned: bool, tmp_path: Path
) -> None:
    Image.new("L", (W, H)).save(tmp_path / f"a.{suffix}", exif=exif(*orientation))
    assert stored_hw(tmp_path / f"a.{suffix}") == ((H, W), turned)


@pytest.fixture
def impatient() -> Iterator[None]:
    """Who waits for a pipe is woken, and fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for a pipe"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


PIPES = ["a.txt", "b.txt", "a.xml", "b.xml", "a.json", "b.json", "b.png", "deep/c.json", "deep/c.txt", "deep/c.png"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("named", "files"), EXPORTS.values(), ids=EXPORTS)
def test_pipes_among_labels_and_pictures_are_passed_by(named: str, files: dict[str, str], tmp_path: Path) -> None:
    picture(tmp_path / "p" / "a.png")
    for name, content in files.items():
        write(tmp_path / "l" / name, content)
    for name in PIPES:
        for folder in ("l", "p"):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                os.mkfifo(path)
    content, _ = read_labels(tmp_path / "l" / named, tmp_path / "p")
    assert [image["file_name"] for image in content["images"]] == ["a.png"] and len(content["annotations"]) == 1


@pytest.mark.usefixtures("impatient")
def test_a_pipe_that_labels_name_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write(folder / "data.yaml", "names: [fox]\ntrain: list.txt\n")
    os.mkfifo(folder / "list.txt")
    with pytest.raises(DatasetError, match=r"list\.txt must be a file; it is a folder, a pipe"):
        convert(folder, tmp_path / "out.json")
    (folder / "list.txt").unlink()
    write(folder / "list.txt", "b.png\n")
    os.mkfifo(folder / "b.png")
    with pytest.raises(DatasetError, match=r"b\.png cannot be read as a picture: it is a folder, a pipe"):
        convert(folder, tmp_path / "out.json")
    os.mkfifo(folder / "b.xml")
    write(folder / "ImageSets" / "Main" / "train.txt", "b\n")
    with pytest.raises(DatasetError, match=r"b\.xml must be a file"):
        convert(folder, tmp_path / "out.json", "voc", "train")


def test_a_label_that_is_a_link_to_nowhere_is_not_passed_by(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").symlink_to(tmp_path / "lost.xml")
    with pytest.raises(DatasetError, match=r"a\.xml cannot be read"):
        read_labels(tmp_path, tmp_path, "voc")


def test_hidden_copies_are_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "a.xml", xml())
    write(tmp_path / "._a.xml", "Mac OS X")
    assert len(read_labels(tmp_path, tmp_path)[0]["images"]) == 1


@pytest.mark.parametrize("entry", ["/", "//", "../" * 40])
def test_a_data_set_is_not_the_whole_file_system(tmp_path: Path, entry: str) -> None:
    described = write(tmp_path / "data.yaml", f"names: [fox]\ntrain: {entry}\n")
    with pytest.raises(DatasetError, match="the whole file system"):
        convert(described, tmp_path / "all.json")


def test_a_folder_that_changes_while_it_is_read_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(folder: Path, pattern: str) -> Iterator[Path]:
        raise FileNotFoundError(2, "No such file or directory", f"{folder}/20318")
        yield

    monkeypatch.setattr(Path, "rglob", changing)
    with pytest.raises(DatasetError, match="20318"):
        pictures_in(tmp_path)
