"""GCOCO: which boxes go, what the pictures become, and that a stopped build can be continued."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from glmd_runtime.errors import DatasetError, UsageError
from glmd_train.data.coco import load_coco
from glmd_train.data.gcoco import GCOCO_CLASSES, REMOVED_IDS, Picture, build, gcoco_content, make_grey, to_grey

NAMES = {1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck",
         9: "boat", 10: "traffic light", 18: "dog", 90: "toothbrush"}
HW = (40, 60)


def colour(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8), HW[::-1], interpolation=cv2.INTER_CUBIC)


def content(pictures: int = 3) -> dict[str, Any]:
    """Every category once in picture 0, a dog alone in picture 1, nothing in the others."""
    box = {"bbox": [5, 5, 20, 20], "iscrowd": 0, "area": 400, "segmentation": [[5, 5, 25, 5, 25, 25]]}
    return {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]} for i in range(pictures)],
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
        "annotations": [{"id": i, "image_id": 0, "category_id": i, **box} for i in NAMES]
        + [{"id": 99, "image_id": 1, "category_id": 18, **box}],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's usual layout, train and val."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (folder / part).mkdir()
        for i in range(3):
            cv2.imwrite(str(folder / part / f"{i}.jpg"), colour(i))
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content()))
    (folder / "annotations" / "captions_train2017.json").write_text("{}")  # COCO's archive has it too
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from glmd_train.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, "prepare", "gcoco", *map(str, arguments)], capture_output=True,
                          text=True)


def test_72_classes_remain_and_none_is_one_of_the_removed() -> None:
    assert len(set(GCOCO_CLASSES)) == len(GCOCO_CLASSES) == 72
    assert not set(GCOCO_CLASSES) & {NAMES[i] for i in REMOVED_IDS}
    assert {NAMES[i] for i in NAMES if i not in REMOVED_IDS} <= set(GCOCO_CLASSES)


def test_the_command_builds_both_parts(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "gcoco"
    result = run("--coco", coco, "--out", out, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "3 pictures, 2 background, 4 boxes, 9 removed" in result.stdout
    for part in ("train2017", "val2017"):
        file = out / "annotations" / f"instances_{part}.json"
        records = load_coco(file, GCOCO_CLASSES)  # without being told where the pictures are
        assert [len(r.boxes) for r in records] == [4, 0, 0]  # pictures without a box stay, as background
        written = json.loads(file.read_text())
        assert [c["id"] for c in written["categories"]] == [5, 7, 10, 90]
        assert written["info"]["year"] == 2017 and "segmentation" not in written["annotations"][0]
        for i, record in enumerate(records):
            grey = record.read()
            assert grey.shape == HW and grey.dtype == np.uint8
            decoded = cv2.imread(str(coco / part / f"{i}.jpg"))
            assert np.abs(grey.astype(int) - to_grey(decoded)).max() <= 12  # JPEG of quality 95
    assert not list(out.rglob(".*"))


def test_grey_is_luminance_and_grey_frames_are_left_alone() -> None:
    frame = colour(1)
    b, g, r = (frame[:, :, i].astype(float) for i in range(3))
    np.testing.assert_allclose(to_grey(frame), 0.299 * r + 0.587 * g + 0.114 * b, atol=0.51)
    grey = frame[:, :, 0]
    assert to_grey(grey) is grey


def test_a_whole_picture_is_not_made_again_and_a_broken_one_is(coco: Path, tmp_path: Path) -> None:
    picture = Picture(coco / "train2017/0.jpg", tmp_path / "0.jpg", HW)
    make_grey(picture)
    made, marked = picture.target.read_bytes(), picture.target.read_bytes().replace(b"JFIF", b"mine")
    assert made != marked
    for there, expected in ((marked, marked), (made[:-9], made), (b"", made), (b"no picture", made)):
        picture.target.write_bytes(there)
        make_grey(picture)
        assert picture.target.read_bytes() == expected


def test_a_build_is_continued_after_an_error(coco: Path, tmp_path: Path) -> None:
    whole = (coco / "val2017/2.jpg").read_bytes()
    out = tmp_path / "out"
    for broken in (whole[:400], b"", None):
        (coco / "val2017/2.jpg").unlink() if broken is None else (coco / "val2017/2.jpg").write_bytes(broken)
        with pytest.raises(DatasetError, match=r"val2017/2\.jpg is missing or damaged"):
            build(coco, out, 1, lambda *_: None)
        assert (out / "annotations/instances_train2017.json").is_file()
        assert not (out / "annotations/instances_val2017.json").exists()  # written after its pictures
    (coco / "val2017/2.jpg").write_bytes(whole)
    calls: list[tuple[str, int, int]] = []
    build(coco, out, 1, lambda *call: calls.append(call))
    assert calls[-1] == ("instances_val2017.json", 3, 3)
    assert len(load_coco(out / "annotations/instances_val2017.json", GCOCO_CLASSES)) == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c["categories"].append({"id": 91, "name": "drone"}), r"instances_train2017\.json: .*'drone'"),
        (lambda c: c["images"][1].update(width=61), r"1\.jpg is \(40, 60\).*says \(40, 61\)"),
        (lambda c: c["images"][1].pop("file_name"), "COCO's form: KeyError"),
    ],
)
def test_what_is_not_coco_is_refused(coco: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    values = content()
    spoil(values)
    (coco / "annotations/instances_train2017.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match=says):
        build(coco, tmp_path / "out", 1, lambda *_: None)


def test_wrong_folders_are_refused(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another folder than COCO's own"):
        build(coco, coco / "annotations" / "..", 1, lambda *_: None)
    result = run("--coco", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1 and "has neither" in result.stderr
    assert run("--coco", coco, "--out", tmp_path / "out", "--workers", 0).returncode == 2


def test_the_published_removal_keeps_every_other_box() -> None:
    values = content()
    kept = [a["id"] for a in gcoco_content(values)["annotations"]]
    assert kept == [a["id"] for a in values["annotations"] if a["category_id"] not in {1, 2, 3, 4, 6, 8, 9, 18}]


def test_coco_mini(data: Path, tmp_path: Path) -> None:
    (counts,) = build(data / "coco_mini", tmp_path, 2, lambda *_: None).values()
    assert counts == {"pictures": 155, "background": 12, "boxes": 840, "removed": 537}
    assert len(load_coco(tmp_path / "instances.json", GCOCO_CLASSES)) == 155
