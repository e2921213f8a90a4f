"""K-shot splits: the published draw number by number, and what the strict one promises."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.cli import main
from glmd_train.data.coco import load_coco, load_coco_files
from glmd_train.data.fewshot import draw_paper, draw_strict, write_splits
from tests.conftest import GOLDEN

SHOTS = (1, 2, 3, 5, 10)
PUBLISHED = json.loads((GOLDEN / "l_fewshot" / "split_seed1.json").read_text())
LOADED = json.loads((GOLDEN / "l_fewshot" / "loaded_dataset_dicts.json").read_text())
CLASSES = tuple(PUBLISHED["classes"])


@pytest.fixture(scope="module")
def ifsod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden's annotation file in IFSOD's layout; its pictures are only there by name."""
    folder = tmp_path_factory.mktemp("ifsod")
    content = json.loads((GOLDEN / "l_fewshot" / "synthetic_all.json").read_text())
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    for image in content["images"]:
        (folder / "images" / image["file_name"]).touch()
    file = folder / "annotations" / "all.json"
    file.write_text(json.dumps(content))
    return file


def data(counts: dict[str, list[int]]) -> dict[str, Any]:
    """A COCO content: for each class, how many boxes each picture has. Pictures are shared by the classes."""
    boxes = [(i, k) for k, row in enumerate(counts.values()) for i, n in enumerate(row) for _ in range(n)]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 999, "height": 99}
                   for i in range(max(map(len, counts.values())))],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(counts)],
        "annotations": [{"id": n, "image_id": i, "category_id": k + 1, "bbox": [n, 5, 8, 8], "iscrowd": 0}
                        for n, (i, k) in enumerate(boxes)],
    }


def stored(folder: Path, content: dict[str, Any]) -> Path:
    for image in content["images"]:
        (folder / image["file_name"]).touch()
    (folder / "all.json").write_text(json.dumps(content))
    return folder / "all.json"


def test_paper_draws_what_the_published_script_drew(ifsod: Path, tmp_path: Path) -> None:
    # Seed 0 is drawn first: in the published script a seed starts afresh, whatever was drawn before.
    request = f"--out {tmp_path} --protocol paper --seeds 0 1 --shots 1 2 3 5 10"
    assert main(["prepare", "fewshot", "--annotations", str(ifsod), *request.split()]) == 0
    for name, shots in PUBLISHED["split"].items():
        for number, ids in shots.items():
            file = json.loads((tmp_path / "seed1" / f"full_box_{number}shot_{name}_trainval.json").read_text())
            assert [a["id"] for a in file["annotations"]] == ids["annotation_ids"], (name, number)
            assert [i["id"] for i in file["images"]] == ids["image_ids"], (name, number)
    assert not (tmp_path / "seed1" / "test.json").exists()


def test_the_paper_s_draw_does_not_depend_on_the_shots_asked_for() -> None:
    content = json.loads((GOLDEN / "l_fewshot" / "synthetic_all.json").read_text())
    split = draw_paper(content, dict(enumerate(CLASSES, start=1)), [3], 1)
    assert {name: list(s[3].shots) for name, s in split.items()} == {
        name: shots["3"]["annotation_ids"] for name, shots in PUBLISHED["split"].items()
    }


@pytest.mark.parametrize("number", SHOTS)
def test_the_files_of_a_split_load_as_the_published_loader_loads_them(
    ifsod: Path, tmp_path: Path, number: int
) -> None:
    write_splits(ifsod, tmp_path, "paper", SHOTS, [1])
    records = load_coco_files([tmp_path / "seed1" / f"full_box_{number}shot_*_trainval.json"], CLASSES)
    expected = LOADED["shots"][str(number)]
    assert [(r.image_id, f"images/{r.path.name}", *r.hw) for r in records] == [
        (e["image_id"], e["file_name"], e["height"], e["width"]) for e in expected
    ]
    for record, one in zip(records, expected, strict=True):
        rows = np.asarray(one["annotations"], np.float32)
        np.testing.assert_array_equal(record.labels, rows[:, 0])
        np.testing.assert_array_equal(record.boxes, np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:]], axis=1))


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([2] * 12, "'b' cannot get 1 shots"),  # the published script would never end
        ([1, 2, 2, 2, 2, 2, 2, 2, 2, 2], "'b' cannot get 2 shots"),
        ([1] * 9, "'b' is in 9 pictures, too few for 10 shots"),
        ([], "'b' is in 0 pictures, too few for 1 shots"),
    ],
)
def test_the_paper_s_draw_ends_in_one_clear_error(tmp_path: Path, counts: list[int], says: str) -> None:
    file = stored(tmp_path, data({"a": [1] * 12, "b": counts}))
    with pytest.raises(DatasetError, match=says):
        write_splits(file, tmp_path / "out", "paper", [1, 2], [0])
    assert not (tmp_path / "out").exists()


@settings(max_examples=60)
@given(counts=st.lists(st.integers(0, 4), max_size=14), seed=st.integers(0, 99))
def test_the_paper_s_draw_gives_exact_nested_shots_or_an_error(counts: list[int], seed: int) -> None:
    try:
        (supports,) = draw_paper(data({"a": counts or [0]}), {1: "a"}, SHOTS, seed).values()
    except DatasetError:
        return
    ids = [supports[number].shots for number in SHOTS]
    assert [len(i) for i in ids] == list(SHOTS)
    assert all(large[: len(small)] == small for small, large in pairwise(ids))


@pytest.fixture(scope="module")
def strict(ifsod: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("strict")
    write_splits(ifsod, out, "strict", [1, 5, 2], [0, 3])
    return out


def test_strict_counts_exactly_k_boxes_of_each_class(strict: Path) -> None:
    for number in (1, 2, 5):
        records = load_coco_files([strict / "seed0" / f"full_box_{number}shot_*_trainval.json"], CLASSES)
        counts = Counter(int(label) for record in records for label in record.labels)
        assert counts == dict.fromkeys(range(len(CLASSES)), number)


def test_strict_leaves_no_object_of_a_support_picture_as_background(ifsod: Path, strict: Path) -> None:
    everything = {record.image_id: record for record in load_coco(ifsod, CLASSES)}
    records = load_coco_files([strict / "seed0" / "full_box_5shot_*_trainval.json"], CLASSES)
    assert any(len(record.ignore) for record in records)
    for record in records:
        whole = everything[record.image_id]
        seen, labelled = (sorted(map(tuple, np.concatenate([r.boxes, r.ignore]))) for r in (record, whole))
        assert seen == labelled


def test_strict_tests_on_no_support_picture_and_on_all_others(ifsod: Path, strict: Path) -> None:
    test_ids = {r.image_id for r in load_coco(strict / "seed0" / "test.json", CLASSES)}
    support = {r.image_id for r in load_coco_files([strict / "seed0" / "full_box_*shot_*.json"], CLASSES)}
    assert not test_ids & support
    assert test_ids | support == {r.image_id for r in load_coco(ifsod, CLASSES)}


def test_strict_shots_are_nested_and_seeds_differ(ifsod: Path, strict: Path, tmp_path: Path) -> None:
    splits = [json.loads((strict / f"seed{seed}" / "split.json").read_text()) for seed in (0, 3)]
    for shots in splits[0]["classes"].values():
        ids = [shots[number]["annotation_ids"] for number in ("1", "2", "5")]
        assert [len(i) for i in ids] == [1, 2, 5]
        assert ids[2][:2] == ids[1] and ids[1][:1] == ids[0]
    assert splits[0]["classes"] != splits[1]["classes"]
    assert splits[0]["source"]["sha256"] == hashlib.sha256(ifsod.read_bytes()).hexdigest()
    write_splits(ifsod, tmp_path, "strict", [2], [3], ["dog"])  # other seeds, classes and shots change nothing
    alone = json.loads((tmp_path / "seed3" / "split.json").read_text())
    assert alone["classes"]["dog"]["2"] == splits[1]["classes"]["dog"]["2"]


@settings(max_examples=40)
@given(
    a=st.lists(st.integers(0, 3), min_size=1, max_size=8), b=st.lists(st.integers(0, 3), max_size=8),
    k=st.integers(1, 4),
)
def test_strict_gives_k_shots_exactly_when_there_are_k_pictures(a: list[int], b: list[int], k: int) -> None:
    content = data({"a": a, "b": b})
    enough = all(sum(n > 0 for n in row) >= k for row in (a, b))
    try:
        split = draw_strict(content, {1: "a", 2: "b"}, [k], 5)
    except DatasetError:
        assert not enough
        return
    assert enough
    for support in (supports[k] for supports in split.values()):
        assert len(support.shots) == len(set(support.image_ids)) == k
        counted = {a["id"] for a in support.annotations if not a["iscrowd"]}
        assert counted == set(support.shots)


def test_strict_keeps_classes_that_are_not_drawn(tmp_path: Path) -> None:
    file = stored(tmp_path, data({"car": [2], "dog": [3]}))
    write_splits(file, tmp_path, "strict", [1], [0], ["dog"])
    (record,) = load_coco_files([tmp_path / "seed0" / "full_box_1shot_*"], ("car", "dog"))
    assert record.labels.tolist() == [0, 0, 1] and len(record.ignore) == 2


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"shots": [4]}, UsageError, r"shots are \[1, 2, 3, 5, 10\]; got \[4\]"),
        ({"protocol": "strict", "shots": [0, 2]}, UsageError, "1 or more"),
        ({"class_names": ["cat"]}, UsageError, r"no class \['cat'\]; it declares \['a', 'b'\]"),
        ({"protocol": "strict", "shots": [9, 13]}, DatasetError, "13 pictures of each.*few have {'a': 12, 'b': 11}"),
        ({"annotations": Path("none.json")}, DatasetError, "does not exist"),
    ],
)
def test_wrong_requests_are_refused_and_write_nothing(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    file = stored(tmp_path, data({"a": [1] * 12, "b": [1] * 11}))
    request = {"annotations": file, "out": tmp_path / "out", "protocol": "paper", "shots": [1], "seeds": [0]}
    with pytest.raises(error, match=says):
        write_splits(**(request | changes))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_no_id_is_twice(tmp_path: Path) -> None:
    content = data({"a": [1] * 12})
    file = stored(tmp_path, content)
    write_splits(file, tmp_path / "out", "strict", [1], [0])
    with pytest.raises(UsageError, match="seed0 exists already"):
        write_splits(file, tmp_path / "out", "strict", [1], [1, 0])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed0"]
    content["annotations"][3]["id"] = 0
    with pytest.raises(DatasetError, match="twice"):
        write_splits(stored(tmp_path, content), tmp_path / "out", "strict", [1], [1])
