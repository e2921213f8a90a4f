"""`glmd-train eval` as a user runs it: on a bundle in miniature, whose answers are known, and on small checkpoints.

Of a picture of one grey level the bundle in miniature says that there is a person and a car, as tests/tiny.py has it:
with scores 0.5 and 0.25 of middle grey, 0.07 and 0.04 of black.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from glmd_runtime.calibration import Calibration, CalibrationSpec
from glmd_runtime.postprocess import PostprocessSpec
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.classifier import Pcb, load_classifier
from glmd_train.cli import main
from glmd_train.config import ModelConfig, PreprocessConfig
from glmd_train.evaluate import torch_predict
from glmd_train.model.detector import build_model
from glmd_train.scores import intervals
from tests import tiny
from tests.runtime.test_calibration import pcb_bundle
from tests.train.squares import glmd_train

PERSON, CAR = [10, 10, 10, 30], [40, 20, 40, 44]  # x, y, width, height: where the bundle in miniature has them
GREY, BLACK = 128, 0


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "RESAMPLES", 100)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bundle(tmp_path_factory.mktemp("bundle") / "tiny.glmd").path


def write_set(
    folder: Path, pictures: list[tuple[int, list[tuple[int, list[int], int]]]], dtype: Any = np.uint8
) -> Path:
    """Pictures of one grey level with (category, box, iscrowd) each; categories 1 person, 2 car, 3 boat."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i, (level, boxes) in enumerate(pictures):
        cv2.imwrite(str(folder / f"{i}.png"), np.full(tiny.SIZE_HW, level, dtype))
        images.append({"id": i, "file_name": f"{i}.png", "width": tiny.SIZE_HW[1], "height": tiny.SIZE_HW[0]})
        annotations += [
            {"id": 100 * i + j, "image_id": i, "category_id": c, "bbox": box, "iscrowd": crowd}
            for j, (c, box, crowd) in enumerate(boxes)
        ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("person", "car", "boat"))]
    labels = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "labels.json"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A person found, another class, nothing at all twice, and an ignore region."""
    rows: list[tuple[int, list[tuple[int, list[int], int]]]] = [
        (GREY, [(1, PERSON, 0)]), (GREY, [(3, CAR, 0)]), (GREY, []), (BLACK, []), (GREY, [(1, PERSON, 1)])
    ]
    return write_set(tmp_path / "set", rows)


def scores(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["eval", *map(str, arguments), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["eval", *map(str, arguments)]) in (1, 2, 5)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    return captured.err


def test_a_bundle_whose_answers_are_known(bundle: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (key, result), = scores(capsys, "--engine", bundle, "--data", labels).items()
    assert key == str(labels) and result["model"] == "tiny" and result["pictures"] == 5
    # In each grey picture there is a person of score 0.5; of equal scores the first picture's counts first.
    assert result["classes"] == {"person": {"ap": 1.0, "ap50": 1.0, "ap75": 1.0, "recall": 1.0, "objects": 1}}
    assert result["left_out"] == ["boat"] and result["unscored"] == ["car"]
    assert set(result["groups"]) == {"all"}
    # Empty are the two pictures without anything: grey has both above their thresholds 0.2 and 0.1, black none.
    alarms = result["false_alarms"]
    assert (alarms["frames"], alarms["own"], alarms["fixed"]) == (2, 2, 1)
    assert (alarms["own_per_1000"], alarms["fixed_per_1000"]) == (1000, 500)
    assert alarms["own_thresholds"] == [0.2, 0.1]


def test_background_pictures_count_in_no_ap(
    bundle: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = scores(capsys, "--engine", bundle, "--data", labels).values()
    for i in range(3):
        (tmp_path / "more").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "more" / f"{i}.png"), np.full((100, 60), GREY, np.uint8))
    (after,) = scores(capsys, "--engine", bundle, "--data", labels, "--background", tmp_path / "more").values()
    assert {k: v for k, v in before.items() if k != "false_alarms"} == {
        k: v for k, v in after.items() if k != "false_alarms"
    }
    assert (after["false_alarms"]["frames"], after["false_alarms"]["fixed"]) == (5, 4)


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ((), {"all": ["person", "car"]}),
        (("--base-classes", "person"), {"all": ["person", "car"], "base": ["person"], "novel": ["car"]}),
        (("--novel-classes", "person"), {"all": ["person", "car"], "base": ["car"], "novel": ["person"]}),
        (("--novel-classes", "person", "car"), {"all": ["person", "car"], "novel": ["person", "car"]}),
    ],
)
def test_base_and_novel_classes_apart(
    bundle: Path, tmp_path: Path, options: tuple[str, ...], groups: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_set(tmp_path, [(GREY, [(1, PERSON, 0), (2, [0, 0, 9, 9], 0)])])
    (result,) = scores(capsys, "--engine", bundle, "--data", data, *options).values()
    assert {name: row["classes"] for name, row in result["groups"].items()} == groups
    by_class = {name: row["ap50"] for name, row in result["classes"].items()}
    assert by_class == {"person": 1.0, "car": 0.0}
    for row in result["groups"].values():
        assert row["ap50"] == np.mean([by_class[name] for name in row["classes"]])
        assert row["ap50_interval"] == [row["ap50"]] * 2  # one picture: every draw is the same
    assert main(["eval", "--engine", str(bundle), "--data", str(data), *options]) == 0
    said = capsys.readouterr().out
    assert ("novel (nAP)" in said) == ("novel" in groups) and ("base (bAP)" in said) == ("base" in groups)
    assert "no empty frame" in said


def test_the_order_in_the_file_and_the_pictures_folder_change_nothing(
    bundle: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (before,) = scores(capsys, "--engine", bundle, "--data", labels).values()
    content = json.loads(labels.read_text())
    moved = tmp_path / "elsewhere" / "labels.json"
    moved.parent.mkdir()
    turned = {key: rows[::-1] if key != "categories" else rows for key, rows in content.items()}
    moved.write_text(json.dumps(turned))
    (after,) = scores(capsys, "--engine", bundle, "--data", moved, "--images", labels.parent).values()
    assert {**before, "data": None} == {**after, "data": None}


def test_16_bit_pictures(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of one value have no contrast: the device makes them black, which is below every threshold."""
    data = write_set(tmp_path, [(7600, [(1, PERSON, 0)]), (7700, [])], np.uint16)
    (result,) = scores(capsys, "--engine", bundle, "--data", data, "--out", tmp_path / "out").values()
    assert result["classes"]["person"]["ap50"] == 1.0 and result["classes"]["person"]["recall"] == 0.0
    assert result["false_alarms"]["own"] == 0 and result["false_alarms"]["frames"] == 1
    assert cv2.imread(str(tmp_path / "out" / "misses.png")) is not None


def test_out_holds_scores_curves_and_misses(
    bundle: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other" / "labels.json"
    shutil.copytree(labels.parent, other.parent)
    printed = scores(capsys, "--engine", bundle, "--data", labels, "--out", out)
    assert json.loads((out / "scores.json").read_text()) == printed
    assert sorted(p.name for p in out.iterdir()) == ["curves.png", "misses.png", "scores.json"]
    for name in ("curves.png", "misses.png"):
        picture = cv2.imread(str(out / name))
        assert picture.shape[0] > 300 and picture.std() > 5
    scores(capsys, "--engine", bundle, "--data", labels, other, "--out", out)
    assert (out / "set_labels" / "misses.png").is_file() and (out / "other_labels" / "curves.png").is_file()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three untrained models of seeds 0, 1, 2; "car" is the class that their start weights did not know."""
    paths = []
    for seed in range(3):
        torch.manual_seed(seed)
        config = ModelConfig(class_names=tiny.CLASS_NAMES, proposals=10)
        model = build_model(config).eval()
        provenance = {"seed": seed, "train": [f"seed{seed}/split.json"], "base_classes": ["person"]}
        checkpoint = Checkpoint(
            model, config, PreprocessConfig(size_hw=tiny.SIZE_HW).spec(), PostprocessSpec((0.3, 0.3)), provenance
        )
        path = tmp_path_factory.mktemp(f"run{seed}") / "model.safetensors"
        paths.append(save_checkpoint(path, checkpoint))
    return paths


def test_several_runs_give_mean_interval_and_protocol(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    data = write_set(tmp_path, [(GREY, [(1, PERSON, 0), (2, CAR, 0)])] * 3)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 255, tiny.SIZE_HW, dtype=np.uint8))
    (result,) = scores(capsys, "--checkpoint", *checkpoints, "--data", data).values()
    runs = result["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2] and len({run["model"] for run in runs}) == 3
    assert [run["train"] for run in runs] == [[f"seed{i}/split.json"] for i in range(3)]
    over = result["over_runs"]["no_pcb"]
    assert set(over) == {"all", "base", "novel", "person", "car"}
    values = [run["groups"]["novel"]["ap50"] for run in runs]
    spread = 4.303 * np.std(values, ddof=1) / 3**0.5
    row = over["novel"]["ap50"]
    assert row["runs"] == 3
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        (np.mean(values), np.mean(values) - spread, np.mean(values) + spread), abs=3e-4
    )
    assert main(["eval", "--checkpoint", *map(str, checkpoints), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "n = 3 runs" in said and "seed 2, trained on seed2/split.json" in said and "not different draws" not in said


def test_every_model_on_its_own_test_list(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = [write_set(tmp_path / str(i), [(GREY, [(1, PERSON, 0)])] * (i + 1)) for i in range(2)]
    (result,) = scores(capsys, "--checkpoint", *checkpoints[:2], "--data-per-model", *lists).values()
    assert [(run["data"], run["pictures"]) for run in result["runs"]] == [(str(lists[0]), 1), (str(lists[1]), 2)]
    said = error(capsys, "--checkpoint", *checkpoints, "--data-per-model", *lists)
    assert "a file for each of the 3 models; got 2" in said


def test_runs_that_cannot_be_told_apart_are_named(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copy(checkpoints[0], copy)
    data = write_set(tmp_path, [(GREY, [(1, PERSON, 0)])])
    assert main(["eval", "--checkpoint", str(checkpoints[0]), str(copy), "--data", str(data)]) == 0
    assert "not different draws" in capsys.readouterr().out
    assert "may be given once" in error(capsys, "--checkpoint", copy, copy, "--data", data)


def test_wrong_inputs_are_one_clear_error_each(
    bundle: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ("--engine", bundle, "--data", labels)
    empty = tmp_path / "empty.json"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*good, "--novel-classes", "dog"), "no class dog; it has person, car"),
        ((*good, "--background", tmp_path / "none"), "folder with pictures"),
        ((*good, "--out", labels), f"{labels.name} is no folder"),
        ((*good, "--out", labels / "report"), "is no folder"),
        (("--engine", bundle, "--data", tmp_path / "none.json"), "does not exist"),
        (("--engine", bundle, "--data", empty), "not JSON"),
        (("--checkpoint", bundle, "--data", labels), "use --engine"),
        (("--engine", tmp_path / "none.glmd", "--data", labels), "none.glmd"),
        (("--engine", empty, "--data", labels), "empty.json is a file in no bundle"),
    ]
    empty.write_text("")
    for arguments, says in cases:
        assert says in error(capsys, *arguments), says


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": [], "annotations": []}, "lists no picture"),
        ({"annotations": []}, "no object of the model's classes ['person', 'car']"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}, {"id": 3, "name": "z"}]}, "has none of"),
    ],
)
def test_data_without_anything_to_score(
    bundle: Path, labels: Path, change: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels.write_text(json.dumps({**json.loads(labels.read_text()), **change}))
    out = labels.parent / "out"
    assert says in error(capsys, "--engine", bundle, "--data", labels, "--out", out)
    assert not out.exists()


def test_an_unreadable_picture_is_named(bundle: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labels.parent / "2.png").write_bytes(b"no picture")
    said = error(capsys, "--engine", bundle, "--data", labels)
    assert "2.png cannot be read as a picture" in said and len(said.strip().splitlines()) == 1
    background = labels.parent / "background"
    background.mkdir()
    (labels.parent / "2.png").rename(background / "bad.png")
    cv2.imwrite(str(labels.parent / "2.png"), np.zeros(tiny.SIZE_HW, np.uint8))
    assert "bad.png cannot be read" in error(capsys, "--engine", bundle, "--data", labels, "--background", background)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_here(
    checkpoints: list[Path], labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no CUDA device" in error(capsys, "--checkpoint", checkpoints[0], "--data", labels, "--device", "cuda")


def test_runs_of_other_classes_are_no_runs_of_one_training(
    checkpoints: list[Path], labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(class_names=("person",), proposals=10)
    spec = PreprocessConfig(size_hw=tiny.SIZE_HW).spec()
    other = save_checkpoint(tmp_path / "x.safetensors", Checkpoint(
        build_model(config).eval(), config, spec, PostprocessSpec((0.3,))
    ))
    said = error(capsys, "--checkpoint", checkpoints[0], other, "--data", labels)
    assert "have the same classes" in said


def test_the_command_as_a_process(bundle: Path, labels: Path) -> None:
    result = glmd_train("eval", "--engine", bundle, "--data", labels)
    assert "person" in result.stdout and "1000 per 1000 empty frames" in result.stdout and result.stderr == ""


def test_a_model_with_prototypes_is_scored_with_pcb_on_and_off(
    checkpoints: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All detections become more alike to the one prototype, or less; only with PCB on do scores move."""
    plain = load_checkpoint(checkpoints[0])
    classifier = load_classifier()
    prototypes = np.zeros((2, 1000), np.float32)
    prototypes[0] = np.random.default_rng(0).normal(size=1000)
    spec = CalibrationSpec(score_thresholds=(0.4, 0.6))
    calibrated = replace(plain, pcb=Pcb(classifier, Calibration(spec, prototypes)))
    path = save_checkpoint(tmp_path / "pcb.safetensors", calibrated)
    data = write_set(tmp_path, [(GREY, [(1, PERSON, 0)]), (GREY, [])])

    frame = cv2.imread(str(tmp_path / "1.png"), cv2.IMREAD_UNCHANGED)
    on, off, without = (
        predict(frame) for predict in (
            torch_predict(calibrated, 0.0), torch_predict(calibrated, 0.0, pcb=False), torch_predict(plain, 0.0)
        )
    )
    assert (off.scores == without.scores).all() and sorted(on.scores) != sorted(off.scores)
    assert (np.diff(on.scores) <= 0).all()

    (result,) = scores(capsys, "--checkpoint", path, "--data", data, "--out", tmp_path / "out").values()
    assert (result["pcb"], result["pcb_off"]["pcb"]) == ("on", "off")
    (alone,) = scores(capsys, "--checkpoint", checkpoints[0], "--data", data).values()
    assert alone["pcb"] is None and alone["classes"] == result["pcb_off"]["classes"]
    assert alone["false_alarms"] == result["pcb_off"]["false_alarms"]
    assert result["false_alarms"]["own_thresholds"] == [0.4, 0.6]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"pcb_on", "pcb_off", "scores.json"}
    assert main(["eval", "--checkpoint", str(path), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    assert "mean, PCB on" in said and "mean, PCB off" in said and "false alarms, PCB off" in said


def test_a_bundle_with_prototypes_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A person of score 0.28 in dark grey, which is as tall as the prototype: with PCB its score is 0.61."""
    data = write_set(tmp_path / "set", [(81, [(1, PERSON, 0)]), (81, [])])
    (result,) = scores(capsys, "--engine", pcb_bundle(tmp_path / "t.glmd").path, "--data", data).values()
    off = result["pcb_off"]
    assert (result["pcb"], result["classes"]["person"]["recall"], result["false_alarms"]["fixed"]) == ("on", 1.0, 1)
    assert (off["pcb"], off["classes"]["person"]["recall"], off["false_alarms"]["fixed"]) == ("off", 0.0, 0)
    assert result["false_alarms"]["own_thresholds"] == [0.4, 0.1]
    assert off["false_alarms"]["own_thresholds"] == [0.2, 0.1]
    assert (result["false_alarms"]["own"], off["false_alarms"]["own"]) == (2, 2)
