"""The judgement of support pictures: each finding provoked once, and good pictures left alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record, load_coco
from glmd_train.data.lint import Finding
from glmd_train.lesson import support
from glmd_train.lesson.support import judge, print_judgement, scenes, summary
from tests import reference

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
    """Twelve pictures of objects at different places, of different sizes: six foxes, six owls."""
    boxes = [[20 + 40 * (i % 6), 20 + 30 * (i % 5), 45 + 46 * (i % 6), 50 + 34 * (i % 5)] for i in range(12)]
    return [scene(folder / f"{i}.png", i, [box], label=i // 6) for i, box in enumerate(boxes)]


def checks(
    records: list[Record], background: list[Path] | None = None, names: tuple[str, ...] = NAMES, spec: Any = SPEC
) -> dict[str, Finding]:
    findings = judge(records, names, MODEL, spec, background=background or [])
    return {f"{one.severity}: {one.check}": one for one in findings}


def test_good_pictures_are_left_alone(tmp_path: Path) -> None:
    assert checks(good(tmp_path), [scene(tmp_path / "empty.png", 70, []).path]) == {}


def test_a_class_without_a_box_is_an_error_and_few_pictures_a_warning(tmp_path: Path) -> None:
    assert checks(good(tmp_path)[:6])["error: boxes"].text.startswith("owl has no box. Label it")
    assert checks(good(tmp_path)[:8])["warning: few pictures"].text.startswith("owl is in 2 pictures: the result")
    assert "threshold cannot be tested" in checks(good(tmp_path)[:7])["warning: few pictures"].text
    assert set(checks([])) == {"error: boxes"}


@pytest.mark.parametrize(("side", "small"), [(3, True), (4.5, False)])
def test_small_is_measured_in_the_network_picture(tmp_path: Path, side: float, small: bool) -> None:
    """The 320x256 pictures are shown twice as large."""
    records = [*good(tmp_path), scene(tmp_path / "s.png", 50, [[5, 5, 5 + side, 40]])]
    found = checks(records)
    assert ("warning: small boxes" in found) == small
    if small:
        assert "1 of 7 boxes of fox have a side under 8 pixels in the network's picture (6.0 the" in (
            found["warning: small boxes"].text
        )
    assert summary(records, NAMES, SPEC)["shorter_side"]["fox"]["min"] == pytest.approx(2 * side)


def test_few_small_boxes_among_many_are_a_note(tmp_path: Path) -> None:
    many = [[10 + 30 * i, 10 + 24 * k, 30 + 30 * i, 25 + 24 * k + i] for i in range(9) for k in range(9)]
    assert "note: small boxes" in checks([*good(tmp_path), scene(tmp_path / "m.png", 51, [*many, [2, 2, 5, 9]])])


@pytest.mark.parametrize(
    ("size_hw", "resize", "pixels"), [((512, 640), "letterbox", 60), ((800, 1333), "published", 93.75)]
)
def test_sizes_are_those_of_the_models_own_resize(
    tmp_path: Path, size_hw: tuple[int, int], resize: Any, pixels: float
) -> None:
    spec = PreprocessSpec(size_hw, (127.0,), (128.0,), resize=resize)
    values = summary([scene(tmp_path / "a.png", 1, [[10, 10, 50, 40]])], ("fox",), spec)["shorter_side"]["fox"]
    assert set(values.values()) == {round(pixels, 1)}


def test_boxes_far_larger_than_the_anchors_are_a_note(tmp_path: Path) -> None:
    large = scene(tmp_path / "l.png", 52, [[5, 3, 315, 253]])
    assert "(500 the largest)" in checks([*good(tmp_path), large])["note: large boxes"].text


@pytest.mark.parametrize("label", [0, 1])
def test_two_boxes_on_one_object_are_found(tmp_path: Path, label: int) -> None:
    twice = scene(tmp_path / "d.png", 53, [[40, 40, 80, 80], [41, 40, 81, 79], [100, 100, 140, 160]])
    twice = replace(twice, labels=np.asarray([0, label, 0]))
    (place,) = checks([*good(tmp_path), twice])["warning: double boxes"].where
    assert place == f"d.png: fox [40.0, 40.0, 80.0, 80.0] and {NAMES[label]} [41.0, 40.0, 81.0, 79.0]"


def brighter(record: Record, by: int) -> None:
    grey = cv2.imread(str(record.path), cv2.IMREAD_UNCHANGED).astype(int) + by
    cv2.imwrite(str(record.path), np.clip(grey, 0, 255).astype(np.uint8))


def test_nearly_equal_pictures_are_one_scene(tmp_path: Path) -> None:
    records = good(tmp_path)
    twins = [scene(tmp_path / f"twin_{i}.png", i, records[i].boxes.tolist()) for i in range(5)]
    for twin in twins:
        brighter(twin, 3)
    assert "13 pictures show 12 different scenes" in checks([*records, twins[0]])["note: alike"].text
    found = checks([*records, *twins])["warning: alike"]
    assert "17 pictures show 12 different scenes" in found.text
    assert found.where[0] == "0.png ~ twin_0.png"
    assert summary([*records, *twins], NAMES, SPEC)["different"] == 12


def test_the_same_picture_twice_is_named_once(tmp_path: Path) -> None:
    records = good(tmp_path)
    copy = replace(records[3], path=tmp_path / "copy.png")
    copy.path.write_bytes(records[3].path.read_bytes())
    found = checks([*records, copy])
    assert set(found) == {"warning: same picture"}
    assert found["warning: same picture"].where == ("3.png = copy.png",)


@given(near=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=8))
def test_scenes_are_the_connected_groups_of_nearly_equal_pictures(near: list[tuple[int, int]]) -> None:
    """Whatever the order: a ~ b and b ~ c are one scene of three, even if a and c are unlike."""
    links = np.eye(8, dtype=bool)
    for a, b in near:
        links[a, b] = links[b, a] = True
    rows = [np.where(row, 0, np.inf) for row in links]

    class Linked:
        def __init__(self, measures: list[Any]) -> None:
            pass

        def unlikeness(self, number: Any) -> tuple[Any, None]:
            return rows[number], None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(support, "Gallery", Linked)
        assert scenes(list(range(8))) == reference.connected(8, near)  # type: ignore[arg-type]


def test_variety_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    records = [scene(tmp_path / f"{i}.png", i, [[100 + i, 100, 140 + i, 150]]) for i in range(6)]
    texts = [one.text for one in judge(records, ("fox",), MODEL, SPEC) if one.check == "variety"]
    assert ["same place" in text for text in texts] == [True, False]
    assert "nearly one size, 89 to 89 pixels" in texts[1]


@pytest.mark.parametrize(
    ("name", "dark", "expected"),
    [("fox", 3, "warning: polarity"), ("engine", 3, "note: polarity"), ("fox", 0, None), ("fox", 1, None)],
)
def test_mixed_polarity(tmp_path: Path, name: str, dark: int, expected: str | None) -> None:
    records = [replace(record, labels=np.asarray([0])) for record in good(tmp_path)[:10]]
    for record in records[:dark]:
        cv2.imwrite(str(record.path), 255 - cv2.imread(str(record.path), cv2.IMREAD_UNCHANGED))
    found = {check: one for check, one in checks(records, names=(name,)).items() if "polarity" in check}
    assert list(found) == ([expected] if expected else [])
    if expected:
        assert "brighter than what surrounds them in 7 pictures and darker in 3" in found[expected].text


def test_bit_depth_unreadable_pictures_and_other_sizes(tmp_path: Path) -> None:
    records = good(tmp_path)
    raw = cv2.imread(str(records[2].path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 40 + 7000
    cv2.imwrite(str(records[2].path), raw)
    records[4].path.write_text("no picture")
    cv2.imwrite(str(records[5].path), np.zeros((320, 256), np.uint8))
    found = checks(records)
    assert found["warning: bit depth"].where == ("2.png",)
    assert "4.png cannot be read" in found["error: picture"].where[0]
    assert found["error: size"].where == ("5.png is (320, 256) (height, width), the file says (256, 320)",)
    assert next(iter(found)).startswith("error")  # errors first


def test_background_of_another_bit_depth_is_found(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "raw.png"), np.full((256, 320), 7000, np.uint16))
    found = checks(good(tmp_path), [tmp_path / "raw.png"])
    assert "have other bits than the 8 of the labelled" in found["warning: background"].text


def test_palettes_and_background_with_objects_are_found(tmp_path: Path) -> None:
    records = good(tmp_path)
    coloured = scene(tmp_path / "c.png", 60, [[9, 9, 60, 60]], colour=True)
    assert checks([*records, coloured])["warning: colour"].where == ("c.png",)
    empty = scene(tmp_path / "empty.png", 70, [])
    found = checks([*records, empty], [empty.path, records[3].path])
    assert set(found) == {"error: background"}
    assert found["error: background"].where == (f"{records[3].path} = 3.png",)


def test_what_is_printed_has_the_table_and_the_first_places(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"pictures": 1, "different": 1, "boxes": {"fox": 2, "[red]owl": 0},
              "shorter_side": {"fox": {"min": 6.0, "median": 7.5, "max": 9.0}}}
    print_judgement(values, [Finding("warning", "alike", "", "7 [pictures]", tuple("abcdefg"))])
    printed = capsys.readouterr().out
    assert "1 picture, 1 different" in printed and "[red]owl" in printed
    assert "6, 7.5, 9" in printed
    assert "warning: alike: 7 [pictures]\n    a\n" in printed
    assert "and 2 more" in printed
    print_judgement(values, [])
    assert "Nothing to object to." in capsys.readouterr().out


@pytest.mark.parametrize(("folder", "name"), [("cheetah", "cheetah"), ("dogs_people", "dog")])
def test_ten_good_real_pictures_do_not_drown_in_warnings(data: Path, folder: str, name: str) -> None:
    labelled = [record for record in load_coco(data / folder / "train.json", (name,)) if len(record.boxes)]
    for seed in range(3):
        drawn = random.Random(seed).sample(labelled, 10)
        assert judge(drawn, (name,), MODEL, SPEC) == []


def test_neighbouring_frames_and_tiny_people_are_noticed_in_real_pictures(data: Path) -> None:
    clip = load_coco(data / "air" / "train.json", ("helicopter",))
    first = next(record for record in clip if len(record.boxes)).path.name.rpartition("_")[0]
    frames = [record for record in clip if record.path.name.startswith(first) and len(record.boxes)]
    found = {one.check for one in judge(frames, ("helicopter",), MODEL, SPEC)}
    assert "alike" in found
    assert "small boxes" not in found
    drone = [record for record in load_coco(data / "hit_uav" / "train.json", ("person",)) if len(record.boxes)]
    assert "small boxes" in {one.check for one in judge(drone[:20], ("person",), MODEL, SPEC)}
