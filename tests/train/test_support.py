"""The judgement of support pictures: each finding provoked once, and good pictures left alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record
from glmd_train.support import judge, scenes, summary

SPEC = PreprocessSpec((512, 640), (127.0,), (128.0,))
NAMES = ("fox", "owl")
MODEL = ModelConfig(class_names=NAMES)


def scene(path: Path, seed: int, boxes: list[list[float]], label: int = 0, colour: bool = False) -> Record:
    """A picture of smooth noise, different for each seed, with bright boxes."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(20, 120, (16, 20), dtype=np.uint8), (320, 256), interpolation=cv2.INTER_CUBIC)
    for x1, y1, x2, y2 in np.asarray(boxes, int).reshape(-1, 4):
        picture[y1:y2, x1:x2] = 230
    cv2.imwrite(str(path), cv2.applyColorMap(picture, cv2.COLORMAP_JET) if colour else picture)
    xyxy = np.asarray(boxes, np.float32).reshape(-1, 4)
    return Record(seed, path, (256, 320), xyxy, np.full(len(xyxy), label), np.zeros((0, 4), np.float32))


def good(folder: Path) -> list[Record]:
    return [scene(folder / f"{i}.png", i, [[20 + 9 * i, 30, 60 + 9 * i, 80]], label=i // 6) for i in range(12)]


def checks(records: list[Record], background: list[Path] | None = None) -> set[tuple[str, str]]:
    return {(one.severity, one.check) for one in judge(records, NAMES, MODEL, SPEC, background=background or [])}


def test_good_pictures_are_left_alone(tmp_path: Path) -> None:
    assert checks(good(tmp_path)) == set()


def test_a_class_without_a_box_is_an_error_and_few_pictures_a_warning(tmp_path: Path) -> None:
    assert ("error", "boxes") in checks(good(tmp_path)[:6])
    assert ("warning", "few pictures") in checks(good(tmp_path)[:8])


@pytest.mark.parametrize(("side", "small"), [(3, True), (4.5, False)])
def test_small_is_measured_in_the_network_picture(tmp_path: Path, side: float, small: bool) -> None:
    """The 320x256 pictures are shown twice as large."""
    records = [*good(tmp_path), scene(tmp_path / "s.png", 50, [[5, 5, 5 + side, 40]])]
    assert (("warning", "small boxes") in checks(records)) == small
    assert summary(records, NAMES, SPEC)["shorter_side"]["fox"]["min"] == pytest.approx(2 * side)


def test_nearly_equal_pictures_are_one_scene(tmp_path: Path) -> None:
    records = good(tmp_path)
    twin = scene(tmp_path / "twin.png", 0, [[20, 30, 60, 80]])
    cv2.imwrite(str(twin.path), np.clip(cv2.imread(str(twin.path), 0).astype(int) + 3, 0, 255).astype(np.uint8))
    assert ("warning", "alike") in checks([*records, twin])
    assert [0, 12] in scenes([*records, twin])
    assert summary([*records, twin], NAMES, SPEC)["different"] == 12


def test_palettes_and_background_with_objects_are_found(tmp_path: Path) -> None:
    records = good(tmp_path)
    assert ("warning", "colour") in checks([*records, scene(tmp_path / "c.png", 60, [[9, 9, 60, 60]], colour=True)])
    assert ("error", "background") in checks(records, [records[3].path])
    empty = scene(tmp_path / "empty.png", 70, [])
    assert ("error", "background") not in checks(records, [empty.path])
