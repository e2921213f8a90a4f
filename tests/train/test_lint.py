"""What lint says of data sets that were spoilt on purpose, and of sound ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_train.data.lint import Finding, lint, wilson
from glmd_train.data.measures import contrast, difference_hash, measure

HW = (64, 80)


def scene(number: int, sign: int = 1) -> np.ndarray:
    """A picture of its own with a person, brighter than what surrounds it, or darker, at x 30..42, y 20..44."""
    rng = np.random.default_rng(number)
    grey = cv2.resize(rng.uniform(90, 160, (6, 7)), HW[::-1], interpolation=cv2.INTER_CUBIC)
    grey[20:44, 30:42] += sign * 60
    return np.clip(grey, 0, 255).astype(np.uint8)


def make(
    folder: Path, pictures: list[np.ndarray], spoil: Callable[[dict[str, Any]], object] = lambda _: None,
    name: str = "person",
) -> Path:
    """A set in which every picture has one object; `spoil` changes the annotation file's content."""
    folder.mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HW[0], "width": HW[1]} for i in range(len(pictures))],
        "categories": [{"id": 1, "name": name}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [30, 20, 12, 24]} for i in range(len(pictures))
        ],
    }
    for i, one in enumerate(pictures):
        cv2.imwrite(str(folder / f"{i}.png"), one)
    spoil(content)
    (folder / "all.json").write_text(json.dumps(content))
    return folder / "all.json"


def seen(findings: list[Finding]) -> dict[str, tuple[str, ...]]:
    """Errors and warnings: check -> places."""
    return {f.check: f.where for f in findings if f.severity != "note"}


SOUND = [scene(i) for i in range(12)]


def test_a_sound_set_has_notes_only(tmp_path: Path) -> None:
    findings = lint([make(tmp_path / "a", SOUND)], [make(tmp_path / "b", [scene(i) for i in range(50, 62)])])
    assert seen(findings) == {}
    assert [f.text[:9] for f in findings if f.check == "polarity"] == ["white-hot", "white-hot"]


@pytest.mark.parametrize(
    ("check", "spoil", "place"),
    [
        ("records", lambda c: c["annotations"][3].update(bbox=[70, 20, 30, 10]), "annotation 3 has bbox [70, 20, 30"),
        ("records", lambda c: c["annotations"][3].update(bbox=[7, 2, 0, 1]), "expected a positive size"),
        ("records", lambda c: c["annotations"][3].update(bbox=["a", 2, 5, 5]), "annotation 3 has bbox ['a'"),
        ("records", lambda c: c["annotations"][3].update(category_id=8), "annotation 3 has category_id 8"),
        ("records", lambda c: c["annotations"][3].update(image_id=99), "names image id 99, which `images` lacks"),
        ("records", lambda c: c["images"].append({"id": 99}), "number 12 of `images` lacks file_name"),
        ("records", lambda c: c.update(categories=["person"]), "number 0 of `categories` lacks id, name"),
        ("ids", lambda c: c["annotations"][3].update(id=4), "annotations: 4"),
        ("tiny box", lambda c: c["annotations"][3].update(bbox=[30, 20, 2, 9]), "3.png: annotation 3"),
        ("same box", lambda c: c["annotations"].append(c["annotations"][3] | {"id": 99}), "3.png: person"),
        ("empty class", lambda c: c["categories"].append({"id": 5, "name": "dog"}), "dog"),
        ("picture", lambda c: c["images"][3].update(file_name="none.png"), "none.png"),
        ("size", lambda c: c["images"][3].update(width=81), "3.png is (64, 80) (height, width), the file says"),
    ],
)
def test_a_spoilt_annotation_file_is_found_out(tmp_path: Path, check: str, spoil: Any, place: str) -> None:
    (where,) = (w for c, w in seen(lint([make(tmp_path / "a", SOUND, spoil)])).items() if c == check)
    assert any(place in one for one in where), where


def test_it_goes_on_after_the_first_error(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [0, 0, 500, 5]
        content["annotations"][1]["bbox"] = None
        content["images"][2]["file_name"] = "none.png"
        content["categories"].append({"id": 2, "name": "dog"})

    (tmp_path / "other.json").write_text("{}")
    found = seen(lint([tmp_path / "other.json", make(tmp_path / "a", [*SOUND, SOUND[5]], spoil)]))
    assert set(found) == {"file", "records", "picture", "empty class", "same picture"}
    assert len(found["records"]) == 2
    assert found["same picture"] == ("5.png = 12.png",)


def test_bit_depth(tmp_path: Path) -> None:
    raw = [one.astype(np.uint16) * 40 + 7000 for one in SOUND]
    assert seen(lint([make(tmp_path / "raw", raw)])) == {}
    findings = lint([make(tmp_path / "mixed", [*SOUND[:10], raw[10], SOUND[11].astype(np.uint16)])])
    deep, shallow = [f for f in findings if f.check == "bit depth"]
    assert deep.text == "2 of 12 pictures have 16 bits, the others 8" and deep.where == ("10.png", "11.png")
    assert "hold 8-bit values" in shallow.text and shallow.where == ("11.png",)
    two = lint([tmp_path / "raw" / "all.json", make(tmp_path / "eight", [scene(i) for i in range(50, 62)])])
    assert any("16-bit pictures" in f.text and "8-bit" in f.text for f in two)


@pytest.mark.parametrize("palette", [cv2.COLORMAP_INFERNO, cv2.COLORMAP_JET, cv2.COLORMAP_HOT])
def test_colour_palettes_are_found_and_grey_stored_as_colour_is_not(tmp_path: Path, palette: int) -> None:
    pictures: list[Any] = [cv2.cvtColor(one, cv2.COLOR_GRAY2BGR) for one in SOUND]
    pictures[4] = cv2.applyColorMap(SOUND[4], palette)
    assert seen(lint([make(tmp_path / "a", pictures)])) == {"colour": ("4.png",)}


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ([1] * 12, ("note", "white-hot")),
        ([-1] * 12, ("note", "black-hot")),
        ([1, -1] * 8, ("warning", "white-hot and black-hot pictures may be mixed")),
        ([1] * 30 + [-1], ("note", "white-hot")),  # one odd picture is no mixture
        ([1] * 5, ("note", "only 5 pictures")),
    ],
)
def test_polarity_is_told_with_how_sure_it_is(
    tmp_path: Path, signs: list[int], expected: tuple[str, str]
) -> None:
    findings = lint([make(tmp_path / "a", [scene(i, sign) for i, sign in enumerate(signs)])])
    (finding,) = (f for f in findings if f.check == "polarity")
    assert (finding.severity, finding.text[: len(expected[1])]) == expected
    assert "Weak evidence" not in finding.text


def test_other_objects_than_people_and_animals_are_weak_evidence(tmp_path: Path) -> None:
    (finding,) = (f for f in lint([make(tmp_path / "a", SOUND, name="car")]) if f.check == "polarity")
    assert "Weak evidence" in finding.text and finding.text.startswith("white-hot")


def test_files_of_opposite_polarity_are_told_apart(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", SOUND), make(tmp_path / "b", [255 - scene(i) for i in range(50, 62)])
    (finding,) = (f for f in lint([a], [b]) if f.severity == "warning")
    assert finding.text.startswith("is white-hot") and "black-hot" in finding.text


def test_pictures_in_both_sets_are_a_leak_and_nearly_equal_ones_a_warning(tmp_path: Path) -> None:
    support = make(tmp_path / "support", SOUND)
    _, jpeg = cv2.imencode(".jpg", SOUND[7], [cv2.IMWRITE_JPEG_QUALITY, 60])
    brighter = np.clip(SOUND[9].astype(int) + 9, 0, 255).astype(np.uint8)
    test = make(tmp_path / "test", [scene(70), SOUND[3], cv2.imdecode(jpeg, 0), brighter, scene(71)])
    findings = [f for f in lint([test], [support]) if f.severity != "note"]
    assert [(f.severity, f.check) for f in findings] == [("error", "leak"), ("warning", "near duplicate")]
    assert findings[0].where == ("1.png = 3.png",)
    assert [one.split(" (")[0] for one in findings[1].where] == ["2.png ~ 7.png", "3.png ~ 9.png"]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from glmd_train.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, "prepare", "lint", *map(str, arguments)], capture_output=True,
                          text=True)


def test_the_command_s_exit_code_and_json(tmp_path: Path) -> None:
    sound = make(tmp_path / "a", SOUND)
    result = command("--data", sound)
    assert result.returncode == 0 and "white-hot" in result.stdout
    result = command("--data", sound, "--support", tmp_path / "a" / "*.json", "--json")
    assert result.returncode == 1 and "1 error in the data; correct it" in result.stderr
    (leak,) = (f for f in json.loads(result.stdout)["findings"] if f["severity"] == "error")
    assert leak["check"] == "leak" and len(leak["where"]) == 12
    assert command("--data", tmp_path / "nothing*.json").returncode == 1


def test_a_file_that_is_not_there_is_one_error_and_not_a_finding(tmp_path: Path) -> None:
    result = command("--data", make(tmp_path / "a", SOUND), tmp_path / "none.json")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert f"{tmp_path / 'none.json'} does not exist. Name a COCO file." in line


@given(
    x=st.integers(0, 70), y=st.integers(0, 54), w=st.integers(6, 40), h=st.integers(6, 40), value=st.integers(0, 255)
)
def test_contrast_is_the_step_between_a_box_and_its_surroundings(x: int, y: int, w: int, h: int, value: int) -> None:
    grey = np.full(HW, 100, np.uint8)
    x2, y2 = min(x + w, HW[1]), min(y + h, HW[0])
    grey[y:y2, x:x2] = value
    assert contrast(grey, np.asarray([x, y, x2, y2], np.float32)) == value - 100


def test_a_box_without_surroundings_has_no_contrast(tmp_path: Path) -> None:
    assert np.isnan(contrast(SOUND[0], np.asarray([0, 0, HW[1], HW[0]], np.float32)))


def test_difference_hashes_of_unlike_pictures_differ_and_of_a_resized_one_hardly() -> None:
    hashes = [difference_hash(one) for one in SOUND]
    unlike = [(256 - a @ b) / 2 for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(unlike) > 40
    larger = cv2.resize(SOUND[0], (200, 160), interpolation=cv2.INTER_CUBIC)
    assert (256 - difference_hash(larger) @ hashes[0]) / 2 <= 10


def test_the_hash_of_pixels_knows_the_picture_not_the_file(tmp_path: Path) -> None:
    none = np.zeros((0, 4), np.float32)
    for name in ("a.png", "a.bmp"):
        cv2.imwrite(str(tmp_path / name), SOUND[0])
    cv2.imwrite(str(tmp_path / "b.png"), SOUND[0].astype(np.uint16))
    a, b, c = (measure(tmp_path / name, none).pixels for name in ("a.png", "a.bmp", "b.png"))
    assert a == b != c


@pytest.mark.parametrize(("hits", "number", "low", "high"), [(0, 0, 0, 1), (8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775)])
def test_wilson_s_interval(hits: int, number: int, low: float, high: float) -> None:
    np.testing.assert_allclose(wilson(hits, number), (low, high), atol=1e-4)


def test_what_is_known_of_the_real_sets(data: Path, tmp_path: Path) -> None:
    findings = lint([data / "dogs_people" / "val.json"], [data / "dogs_people" / "train.json"])
    checks = {f.check: f for f in findings if f.file.endswith("val.json")}
    assert len(checks["near duplicate"].where) > 10  # frames of the same videos
    assert "leak" not in checks and checks["polarity"].text.startswith("white-hot")
    content = json.loads((data / "cheetah" / "val.json").read_text())
    for number, image in enumerate(content["images"]):
        grey = cv2.imread(str(data / "cheetah" / image["file_name"]), cv2.IMREAD_GRAYSCALE)
        image["file_name"] = f"{number}.png"
        cv2.imwrite(str(tmp_path / image["file_name"]), 255 - grey if number % 3 == 0 else grey)
    (tmp_path / "spoilt.json").write_text(json.dumps(content))
    assert "polarity" in seen(lint([tmp_path / "spoilt.json"]))


def test_support_files_of_one_class_each_are_one_set(tmp_path: Path) -> None:
    def both(class_id: int) -> Callable[[dict[str, Any]], None]:
        def spoil(content: dict[str, Any]) -> None:
            content["categories"].append({"id": 2, "name": "dog"})
            for annotation in content["annotations"]:
                annotation["category_id"] = class_id
        return spoil

    data = make(tmp_path / "data", SOUND)
    support = [make(tmp_path / str(i), [scene(100 * i + k) for k in range(12)], both(i)) for i in (1, 2)]
    assert seen(lint([data], support)) == {}
    assert seen(lint([data], support[:1])) == {"empty class": ("dog",)}
