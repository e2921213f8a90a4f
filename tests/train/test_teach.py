"""`glmd-train teach` on pictures that the test draws: one file, thresholds, report, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmd_runtime.detections import Detections
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train import recipes
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.cli import main
from glmd_train.commands.teach import next_command
from glmd_train.config import ModelConfig
from glmd_train.data.coco import Record
from glmd_train.lesson.report import as_text
from glmd_train.lesson.thresholds import LOWEST, MANY, USUAL
from glmd_train.model.detector import build_model
from glmd_train.teach import folds
from tests.train.squares import draw_squares

QUICK = """
predictor: reset
iterations: [60, 60]
batch_size: 2
warmup: 5
learning_rate: 0.002
model: {roi_batch: 16, rpn_batch: 32}
augment: {crop_hw: [64, 80], scale: [0.9, 1.1]}
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model that knows `blob`, and a recipe that takes seconds."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "default.yaml").write_text(QUICK)
    monkeypatch.setattr(recipes, "FOLDER", folder)
    config = ModelConfig(class_names=("blob",), proposals=10)
    spec = PreprocessSpec((64, 80), (127.0,), (128.0,))
    checkpoint = Checkpoint(build_model(config), config, spec, PostprocessSpec((0.3,)))
    return save_checkpoint(tmp_path / "base.safetensors", checkpoint)


@pytest.fixture
def teach(base: Path, tmp_path: Path) -> Callable[..., int]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    draw_squares(pictures)

    def run(*arguments: object, output: str = "model") -> int:
        given = ["teach", "--images", pictures, "--annotations", pictures / "labels.json", "--base", base]
        return main([str(a) for a in (*given, "-o", tmp_path / output, *arguments)])

    return run


def test_one_file_and_a_report(teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    rng = np.random.default_rng(1)
    for i in range(6):
        cv2.imwrite(str(quiet / f"{i}.png"), rng.normal(7600, 15, (64, 80)).astype(np.uint16))
    assert teach("--background", quiet, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("model")) == [
        "model.report", "model.safetensors"
    ]
    assert not list((tmp_path / "model.report").rglob("*.safetensors"))
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.class_names == ("square",)
    assert checkpoint.pcb is not None
    assert checkpoint.pcb.calibration.prototypes.any()
    row = values["classes"]["square"]
    assert checkpoint.postprocess.score_thresholds == (row["threshold"],)
    assert row["held_out_objects"] == 8
    assert values["background"] == {"counted_in": 3, "trained_on": 3}
    assert row["false_alarms"] == row["false_alarms_with_pcb"]
    assert row["false_alarms"]["frames"] == 0  # three frames cannot show a rate: not one passes
    of_1000 = row["false_alarms"]["per_1000"]
    assert (of_1000["value"], of_1000["low"]) == (0, 0) and 500 < of_1000["high"] < 650
    assert checkpoint.provenance["taught"]["classes"] == values["classes"]
    assert checkpoint.provenance["train"] == ["pictures/labels.json", f"{tmp_path.name}/quiet"]
    logs = {p.name for p in (tmp_path / "model.report").iterdir()}
    assert logs >= {"report.json", "report.md", "held_out.jpg", "all.jsonl", "without_1.jsonl", "without_2.jsonl"}
    report = (tmp_path / "model.report" / "report.md").read_text()
    assert "| square | 8 |" in report and "| 0 (0 to 562) |" in report  # the same with PCB


def test_a_lesson_repeats_byte_for_byte(teach: Callable[..., int], tmp_path: Path) -> None:
    """However the path of its labels is spelled."""
    labels = tmp_path / "pictures" / "labels.json"
    assert teach("--iterations", 2, output="a") == 0
    assert teach("--iterations", 2, "--annotations", labels.parent / ".." / "pictures" / labels.name, output="b") == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_dry_run_judges_and_writes_nothing(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert teach("--dry-run", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["pictures"]["boxes"] == {"square": 8}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def all_found(monkeypatch: pytest.MonkeyPatch) -> float:
    """Where every object is found in held-out pictures, at 0.9, and nothing else: the threshold with the best F1."""

    def labelled(_: object, records: list[Record]) -> list[Detections]:
        return [Detections(r.boxes, np.full(len(r.boxes), 0.9, np.float32), r.labels, ("a", "b")) for r in records]

    monkeypatch.setattr("glmd_train.teach.detect", labelled)
    return (0.9 + LOWEST) / 2


def leaning(own: float, objects: int, otherwise: float) -> float:
    return float(np.average([own, otherwise], weights=[objects, MANY]))


def test_two_classes_of_few_objects_have_nearly_the_usual_threshold(
    teach: Callable[..., int], all_found: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call_half_of_them_diamonds(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "diamond"})
        for annotation in content["annotations"][::2]:
            annotation["category_id"] = 2

    relabelled(tmp_path / "pictures" / "labels.json", call_half_of_them_diamonds)
    assert teach("--json", "--iterations", 2) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)["classes"]
    assert {name: row["held_out_objects"] for name, row in rows.items()} == {"square": 4, "diamond": 4}
    assert "--fp16 --pcb" in " ".join(said.err.split())
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.class_names == ("square", "diamond") and checkpoint.pcb is not None
    assert checkpoint.pcb.calibration.prototypes.any(axis=1).all()
    square, diamond = checkpoint.postprocess.score_thresholds
    assert (square, diamond) == tuple(row["threshold"] for row in rows.values())
    assert square == diamond == pytest.approx(leaning(all_found, 4, leaning(all_found, 8, USUAL)), abs=2e-4)


def test_a_class_of_one_picture_gets_the_threshold_of_the_others(
    teach: Callable[..., int], all_found: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call_one_a_diamond(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "diamond"})
        content["annotations"][0]["category_id"] = 2

    relabelled(tmp_path / "pictures" / "labels.json", call_one_a_diamond)
    assert teach("--json", "--iterations", 2) == 0
    rows = json.loads(capsys.readouterr().out)["classes"]
    square, diamond = rows["square"], rows["diamond"]
    assert (square["held_out_objects"], diamond["held_out_objects"]) == (7, 0)
    assert diamond["held_out_recall"] is diamond["held_out_precision"] is None
    assert diamond["chosen"].startswith("no object in held-out pictures")
    assert diamond["threshold"] == pytest.approx(leaning(all_found, 7, USUAL), abs=1e-4)
    assert square["threshold"] == pytest.approx(leaning(all_found, 7, diamond["threshold"]), abs=1e-4)


def test_a_frame_with_several_boxes_is_one_alarm(
    teach: Callable[..., int], all_found: float, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    three = Detections(np.float32([[8, 8, 24, 24]] * 3), np.full(3, 0.99, np.float32), np.zeros(3, np.int64), ("a",))
    monkeypatch.setattr("glmd_train.teach.torch_predict", lambda *_: lambda _: three)
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    for i in range(6):
        cv2.imwrite(str(quiet / f"{i}.png"), np.full((64, 80), 7600 + i, np.uint16))
    assert teach("--background", quiet, "--json", "--iterations", 2, "--false-alarms", 1000) == 0
    alarms = json.loads(capsys.readouterr().out)["classes"]["square"]["false_alarms"]
    assert alarms["frames"] == 3 and alarms["per_1000"]["value"] == alarms["per_1000"]["high"] == 1000


def test_a_report_has_rates_with_intervals_and_says_where_nothing_was_found() -> None:
    off, on = ({"frames": n, "per_1000": {"value": 10.0 * n, "low": 4.0 * n, "high": 25.0 * n}} for n in (1, 3))
    fox = {"threshold": 0.64, "chosen": "why", "held_out_objects": 10, "held_out_recall": 0.0,
           "held_out_precision": None, "false_alarms": off, "false_alarms_with_pcb": on}
    owl = {**fox, "held_out_objects": 0, "held_out_recall": None, "false_alarms_with_pcb": off}
    said = as_text({"classes": {"fox": fox, "owl": owl}, "pictures": {"boxes": {"fox": 10, "owl": 1}},
                    "background": {"counted_in": 100}, "findings": []})
    assert "| fox | 10 | 0.64 (why) | 0% | nothing found | 10 (4 to 25); with PCB 30 (12 to 75) |" in said
    assert "| owl | 1 | 0.64 (why) | not measured | not measured | 10 (4 to 25) |" in said


def test_a_quick_look_takes_as_many_iterations_as_it_is_given(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach("--iterations", 2) == 0
    assert "Trained: " not in "".join(capsys.readouterr())  # which would name files that are gone
    assert load_checkpoint(tmp_path / "model.safetensors").provenance["iterations"] == 2
    logs = [(tmp_path / f"model.report/{name}.jsonl").read_text() for name in ("without_1", "without_2", "all")]
    assert [json.loads(log.splitlines()[-1])["iteration"] for log in logs] == [2, 2, 2]


def test_prototypes_are_advised_where_there_is_something_to_tell_apart() -> None:
    assert next_command(Path("a.safetensors"), ("fox",)) == "glmd-export --ckpt a.safetensors --fp16"
    assert next_command(Path("a.safetensors"), ("fox", "hare")) == "glmd-export --ckpt a.safetensors --fp16 --pcb"


def relabelled(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_class_that_the_base_knows_is_refused(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_blob(content: dict[str, Any]) -> None:
        content["categories"].append({"id": 2, "name": "blob"})
        content["annotations"].append({"id": 99, "image_id": 0, "category_id": 2, "bbox": [1, 1, 9, 9]})

    relabelled(tmp_path / "pictures" / "labels.json", add_blob)
    assert teach() == 2
    error = capsys.readouterr().err
    assert "knows ['blob'] already" in error
    assert "--classes square" in error
    assert teach("--classes", "square", "--dry-run") == 0
    assert teach("--classes", "blob") == 2


def test_the_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["teach", "--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in recipes.recipe_names())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "fox"], "has no box of ['fox']"),
        (["--recipe", "magic"], "--recipe must be one of default"),
        (["--false-alarms", "-1"], "0 or more"),
        (["--false-alarms", "nan"], "0 or more, and finite"),
        (["--false-alarms", "inf"], "0 or more, and finite"),
        (["--false-alarms", "5"], "give --background DIR"),
        (["--seed", str(2**32)], "--seed must be 0 to 4294967295"),
        (["--iterations", "0"], "--iterations must be 1 or more"),
        (["--background", "nowhere"], "--background expects a folder"),
    ],
)
def test_wrong_requests_are_one_line_and_write_nothing(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert teach(*arguments) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("model")]


def test_what_is_there_is_not_overwritten(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    assert teach() == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(
    teach: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "other.report").write_text("mine")
    for name, wrong in {"notes/model": "notes is no folder", "other": "other.report is no folder"}.items():
        assert teach("-o", tmp_path / name, "--annotations", tmp_path / "nowhere", *more) == 2
        assert f"{wrong}. Choose another path" in capsys.readouterr().err
    for nameless in ("/", tmp_path / ".."):
        assert teach("-o", nameless, *more) == 2
        assert "must end in a name" in capsys.readouterr().err


def test_the_report_of_a_stopped_lesson_is_in_nobodys_way(teach: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "model.report").mkdir()
    (tmp_path / "model.report" / "without_1.jsonl").write_text("{}\n")
    assert teach("--iterations", 2) == 0
    assert teach() == 2


@pytest.mark.parametrize(
    ("labels", "groups", "expected"),
    [
        ([], [], []),
        ([[0]], [[0]], []),  # its only picture stays in training
        ([[0], [0]], [[0], [1]], [[0], [1]]),
        ([[0], [0], [1]], [[0], [1], [2]], [[1], [0]]),  # the class with one picture is never held out
        ([[0], [1], [0], [1]], [[0], [1], [2], [3]], [[0, 3], [1, 2]]),
        ([[], [0], [0, 0]], [[1], [2]], [[1], [2]]),
        ([[0], [0], [0], [0]], [[0, 1], [2, 3]], [[0, 1], [2, 3]]),  # scenes are not divided,
        ([[0], [0], [0], [0]], [[0, 1, 2, 3]], [[0, 2], [1, 3]]),  # but for a class that has no other
        ([[0, 1], [0], [0, 1]], [[0], [1], [2]], [[0, 1], [2]]),  # the rarer class is in both
    ],
)
def test_folds_leave_a_picture_of_every_class(
    labels: list[list[int]], groups: list[list[int]], expected: list[list[int]]
) -> None:
    arrays = [np.asarray(one, np.int64) for one in labels]
    assert folds(arrays, 2, groups) == expected


@given(st.lists(st.sets(st.integers(0, 3)), max_size=12))
def test_every_class_is_held_out_where_its_pictures_allow(labels: list[set[int]]) -> None:
    arrays = [np.asarray(sorted(one), np.int64) for one in labels]
    tested = folds(arrays, 4, [[i] for i, one in enumerate(labels) if one])
    numbers = [i for fold in tested for i in fold]
    assert len(numbers) == len(set(numbers))
    for k in range(4):
        mine = {i for i, one in enumerate(labels) if k in one}
        assert not mine or all(mine - set(fold) for fold in tested)  # one is left to train on
