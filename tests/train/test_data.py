"""Data sets and training pictures: what is read, what is refused, and that boxes follow their pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.errors import DatasetError, GlmdError
from glmd_runtime.preprocess import PreprocessSpec, preprocess
from glmd_train.config import AugmentConfig, data_path
from glmd_train.data.coco import Record, expand, load_coco, load_coco_files
from glmd_train.data.loaders import collate
from glmd_train.data.transforms import augment

SPEC = PreprocessSpec((64, 80), (127.0,), (128.0,))
PLAIN = AugmentConfig(scale=(1, 1), flip=0, polarity=0, contrast=0, noise=0, blur=0)


def content(**changes: Any) -> dict[str, Any]:
    annotation = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [10, 5, 20, 30], "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 80, "height": 64}],
        "categories": [{"id": 3, "name": "person"}, {"id": 5, "name": "car"}],
        "annotations": [{**annotation, **changes}],
    }


def write(folder: Path, values: Any) -> Path:
    """The annotation file, and the picture that it names."""
    cv2.imwrite(str(folder / "a.png"), np.zeros((64, 80), np.uint8))
    path = folder / "labels.json"
    path.write_text(json.dumps(values))
    return path


def test_classes_are_taken_by_name_and_crowds_are_ignore_regions(tmp_path: Path) -> None:
    values = content()
    values["annotations"] += [
        {"id": 8, "image_id": 1, "category_id": 5, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {"id": 9, "image_id": 1, "category_id": 5, "bbox": [1, 1, 5, 5]},
    ]
    (record,) = load_coco(write(tmp_path, values), ("dog", "person"))
    np.testing.assert_array_equal(record.boxes, [[10, 5, 30, 35]])
    assert record.labels.tolist() == [1]  # car is not a class of this model
    np.testing.assert_array_equal(record.ignore, [[1, 1, 6, 6]])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (content(category_id=9), "category_id 9"),
        (content(image_id=4), "image ids [4]"),
        (content(bbox=[70, 5, 20, 30]), "inside its image"),
        (content(bbox=[10, 5, 0, 30]), "positive size"),
        (content(bbox=[-9, 5, 20, 30]), "inside its image"),
        (content(bbox=[10, 5, 20]), "x, y, width, height"),
        (content(bbox=None), "COCO's form"),
        ({"images": []}, "lacks annotations, categories"),
        ([1, 2], "lacks"),
        ({**content(), "categories": ["person"]}, "COCO's form"),
        ({**content(), "images": [{"id": 1, "file_name": "a.png"}]}, "'height'"),
        ({**content(), "images": [], "annotations": []}, "no picture"),
        ({**content(), "images": [{**content()["images"][0], "file_name": "b.png"}]}, "b.png, which does not exist"),
    ],
)
def test_a_wrong_annotation_file_is_one_clear_error(tmp_path: Path, values: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=r"labels\.json") as error:
        load_coco(write(tmp_path, values), ("person",))
    assert says in str(error.value)


def test_the_data_folder_is_named_for_what_should_lie_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMD_DATA", str(tmp_path / "sets"))
    for name in ("train.json", "*.json"):
        with pytest.raises(DatasetError, match=r"Set GLMD_DATA to the folder of the data sets\.$"):
            load_coco_files([data_path("${GLMD_DATA}/air/" + name, tmp_path)], ("person",))
        with pytest.raises(DatasetError) as error:
            load_coco_files([data_path(name, tmp_path)], ("person",))
        assert "GLMD_DATA" not in str(error.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.json does not exist\. Name a COCO file\.$"):
        load_coco(tmp_path / "none.json", ("person",))
    with pytest.raises(DatasetError, match=r"is a folder\. Name a COCO file\.$"):
        load_coco(tmp_path, ("person",))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DatasetError, match="not JSON"):
        load_coco(tmp_path / "bad.json", ("person",))
    with pytest.raises(DatasetError, match=r"none of the classes \['dog'\].*car.*person"):
        load_coco(write(tmp_path, content()), ("dog",))


def test_records_come_by_ascending_image_id(tmp_path: Path) -> None:
    values = content()
    values["images"] = [{**values["images"][0], "id": i} for i in (9, 1, 4)]
    assert [record.image_id for record in load_coco(write(tmp_path, values), ("person",))] == [1, 4, 9]


@pytest.mark.parametrize(
    ("labels", "pictures", "info"),
    [
        ("labels.json", "a.png", None),
        ("instances.json", "images/a.png", None),
        ("annotations/all.json", "images/a.png", None),
        ("annotations/instances_train2017.json", "train2017/a.png", None),
        ("seed0/labels.json", "far/away/a.png", {"image_folder": "../far/away"}),
    ],
)
def test_pictures_are_found_where_known_layouts_have_them(
    tmp_path: Path, labels: str, pictures: str, info: Any
) -> None:
    for place in (labels, pictures):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path, {}).unlink()
    (tmp_path / "a.png").rename(tmp_path / pictures)
    (tmp_path / labels).write_text(json.dumps(content() | {"info": info}))
    (record,) = load_coco(tmp_path / labels, ("person",))
    assert record.path.samefile(tmp_path / pictures)
    with pytest.raises(DatasetError, match="nowhere"):
        load_coco(tmp_path / labels, ("person",), tmp_path / "nowhere")  # what is said outright is not guessed at


def test_a_picture_in_several_files_is_one_record(tmp_path: Path) -> None:
    first, second = content(), content(bbox=[40, 5, 8, 8], category_id=5)
    first["annotations"].append({"id": 8, "image_id": 1, "category_id": 5, "bbox": [40, 5, 8, 8], "iscrowd": 1})
    second["annotations"] += [{**content()["annotations"][0], "iscrowd": 1}, *content(bbox=[1, 1, 3, 3])["annotations"],
                              {"id": 9, "image_id": 1, "category_id": 3, "bbox": [60, 5, 8, 8], "iscrowd": 1}]
    for name, values in (("b", first), ("a", second), ("c", second)):
        write(tmp_path, values).rename(tmp_path / f"{name}.json")
    paths = [tmp_path / f"{name}.json" for name in "bac"]
    (record,) = load_coco_files(paths, ("person", "car"))
    # In the order of the files; a region that one ignores and another has as an object is an object, and only once.
    np.testing.assert_array_equal(record.boxes, [[10, 5, 30, 35], [40, 5, 48, 13], [1, 1, 4, 4]])
    assert record.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(record.ignore, [[60, 5, 68, 13]])


def test_files_that_disagree_on_a_picture_s_size_are_refused(tmp_path: Path) -> None:
    second = content()
    second["images"][0]["width"] = 90
    write(tmp_path, second).rename(tmp_path / "second.json")
    with pytest.raises(DatasetError, match=r"a\.png the sizes \[\(64, 80\), \(64, 90\)\]"):
        load_coco_files([write(tmp_path, content()), tmp_path / "second.json"], ("person",))


def test_equal_ids_of_different_pictures_stay_apart(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write(tmp_path / name, content())
    assert len(load_coco_files([tmp_path / "*" / "labels.json"], ("person",))) == 2


def test_wildcards_follow_the_order_of_the_classes(tmp_path: Path) -> None:
    names = ("dog", "car", "police car")
    files = [f"full_box_1shot_{name}_trainval.json" for name in (*names, "cat", "bus")]
    for file in files:
        (tmp_path / file).touch()
    found = [path.name for path in expand(tmp_path / "full_box_1shot_*.json", names)]
    assert found == [*files[:3], files[4], files[3]]
    assert expand(tmp_path / "none.json") == [tmp_path / "none.json"]
    (tmp_path / "odd[1].json").touch()
    assert expand(tmp_path / "odd[1].json") == [tmp_path / "odd[1].json"]
    with pytest.raises(DatasetError, match=r"No file matches .*2shot"):
        expand(tmp_path / "full_box_2shot_*.json", names)


def test_pictures_are_checked_when_they_are_read(tmp_path: Path) -> None:
    (record,) = load_coco(write(tmp_path, content()), ("person",))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"a\.png cannot be read as a picture"):
        record.read()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 80, 3), np.uint16))
    with pytest.raises(DatasetError, match=r"a\.png.*uint16"):
        record.read()
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((10, 80), np.uint8))
    with pytest.raises(DatasetError, match=r"\(10, 80\).*\(64, 80\)"):
        record.read()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_8_and_16_bit_pictures_train(tmp_path: Path, dtype: type) -> None:
    picture = np.random.default_rng(0).integers(100, 200, (64, 80)).astype(dtype)
    labels = write(tmp_path, content())
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    (record,) = load_coco(labels, ("person",))
    frame = record.read()
    assert frame.dtype == dtype
    sample = augment(frame, record, SPEC, PLAIN, np.random.default_rng(0))
    image, _ = preprocess(frame, SPEC)
    np.testing.assert_array_equal(sample.image, image)  # without augmentation: the device's pixels
    np.testing.assert_allclose(sample.boxes, record.boxes)


def square_record(x: int, y: int, side: int, hw: tuple[int, int]) -> tuple[Record, np.ndarray]:
    frame = np.full(hw, 40, np.uint8)
    frame[y : y + side, x : x + side] = 220
    box = np.asarray([[x, y, x + side, y + side]], np.float32)
    return Record(1, Path("x.png"), hw, box, np.zeros(1, np.int64), np.zeros((0, 4), np.float32)), frame


@settings(max_examples=60)
@given(
    x=st.integers(0, 60), y=st.integers(0, 44), side=st.integers(10, 20), seed=st.integers(0, 10_000),
    crop=st.sampled_from([None, (48, 48), (64, 56)]),
)
def test_boxes_follow_their_pixels(x: int, y: int, side: int, seed: int, crop: tuple[int, int] | None) -> None:
    record, frame = square_record(x, y, side, (64, 80))
    config = AugmentConfig(crop_hw=crop, scale=(0.7, 1.6), flip=0.5, polarity=0, contrast=0, noise=0, blur=0)
    sample = augment(frame, record, SPEC, config, np.random.default_rng(seed))
    assert sample.image.shape[1:] == (crop or (64, 80))
    ys, xs = np.nonzero(sample.image[0] > 0.02)  # brighter than the middle of 40 and 220
    if len(sample.boxes):
        seen = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(sample.boxes[0], seen, atol=1.5)
        assert (sample.boxes[0] >= 0).all()
    else:
        assert len(xs) == 0 or len(sample.ignore) == 1  # gone, or mostly cut away


def test_augmentation_repeats_with_its_seed_and_collates() -> None:
    record, frame = square_record(20, 20, 12, (64, 80))
    samples = [augment(frame, record, SPEC, AugmentConfig(), np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(samples[0].image, samples[1].image)
    images, valid_hw, targets = collate(samples)
    assert images.shape == (2, 1, 64, 80) and valid_hw.shape == (2, 2) and len(targets) == 2


def test_a_float_picture_is_refused() -> None:
    record, frame = square_record(20, 20, 12, (64, 80))
    with pytest.raises(GlmdError, match="float32"):
        augment(frame.astype(np.float32), record, SPEC, PLAIN, np.random.default_rng(0))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_coco_file_without_its_lists_is_refused(tmp_path: Path, key: str) -> None:
    for value in (None, {}, "a.png"):
        with pytest.raises(DatasetError, match=f"`{key}` must be a list"):
            load_coco(write(tmp_path, {**content(), key: value}), ("person",))


def test_a_coco_file_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="lists no picture"):
        load_coco(write(tmp_path, {"images": [], "annotations": [], "categories": []}), ("person",))
