"""`glmd-train thresholds`: thresholds of a trained model, against counting at each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from glmd_runtime.detections import Detections
from glmd_runtime.errors import DatasetError, UnsupportedError
from glmd_train import cli
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from glmd_train.classifier import load_classifier
from glmd_train.data.coco import Record, load_coco
from glmd_train.evaluate import match_greedily, torch_predict
from glmd_train.lesson.thresholds import LOWEST, MANY, USUAL, best_f1, choose_thresholds
from glmd_train.prototypes import add_pcb
from tests.export.conftest import CLASS_NAMES, SIZE_HW, draw_checkpoint

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return draw_checkpoint()


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> Path:
    """Pictures of noise; the objects are every other box that the model finds there of its first class."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "empty").mkdir()
    rng, predict = np.random.default_rng(0), torch_predict(checkpoint)
    images, rows = [], []
    for i in range(1, 5):
        frame = rng.integers(0, 256, SIZE_HW, dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), frame)
        images.append({"id": i, "file_name": f"{i}.png", "height": SIZE_HW[0], "width": SIZE_HW[1]})
        found = predict(frame)
        for (x1, y1, x2, y2), k in list(zip(found.xyxy.tolist(), found.class_ids.tolist(), strict=True))[::2]:
            if k == 0:
                box = [x1, y1, x2 - x1, y2 - y1]
                rows.append({"id": len(rows) + 1, "image_id": i, "category_id": k + 1, "bbox": box})
    cv2.imwrite(str(folder / "empty" / "5.png"), rng.integers(0, 256, SIZE_HW, dtype=np.uint8))
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASS_NAMES)]
    path = folder / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path


def f1(records: list[Record], found: list[Detections], k: int, threshold: float) -> float:
    hits = boxes = objects = 0
    for record, one in zip(records, found, strict=True):
        rows = one[(one.class_ids == k) & (one.scores > threshold)]
        truth = record.boxes[record.labels == k]
        hits += int((match_greedily(rows.xyxy, truth) >= 0).sum())
        boxes, objects = boxes + len(rows), objects + len(truth)
    return 2 * hits / (boxes + objects)


@pytest.mark.parametrize("pcb", [False, True])
def test_thresholds_lean_from_the_best_f1_to_the_usual(checkpoint: Checkpoint, labels: Path, pcb: bool) -> None:
    records = load_coco(labels, CLASS_NAMES)
    before = add_pcb(checkpoint, load_classifier(), records) if pcb else checkpoint
    after, chosen = choose_thresholds(before, [records])
    assert list(chosen) == (["off", "on"] if pcb else ["off"])
    states = {"off": after.postprocess.score_thresholds}
    if after.pcb:
        states["on"] = after.pcb.calibration.spec.score_thresholds
    for state, thresholds in states.items():
        predict = torch_predict(after, LOWEST, pcb=state == "on")
        found = [predict(record.read()) for record in records]
        tried = [f1(records, found, 0, t) for t in np.linspace(LOWEST, 0.95, 181)]
        choices = chosen[state].choices
        rows = next(iter(choices.values())).rows
        best = best_f1(rows)
        assert best is not None and 0 < max(tried) < 1 and f1(records, found, 0, best) >= max(tried)
        leaning = (rows.objects * best + MANY * USUAL) / (rows.objects + MANY)
        expected = (rows.objects * best + MANY * leaning) / (rows.objects + MANY)
        assert thresholds[0] == pytest.approx(expected, abs=1e-4)
        assert thresholds == tuple(choice.threshold for choice in choices.values())
        assert [choice.why.partition(" in ")[0] for choice in choices.values()] == ["best F1", "no object", "no object"]
    had = before.pcb.calibration.spec.score_thresholds if before.pcb else before.postprocess.score_thresholds
    assert thresholds[1:] == had[1:]


def test_a_set_without_the_class_does_not_count(checkpoint: Checkpoint, labels: Path) -> None:
    """Of what lies in pictures where nobody looked for a class nothing is known."""
    records = load_coco(labels, CLASS_NAMES)
    others = [replace(one, boxes=one.boxes[:0], labels=one.labels[:0]) for one in records]
    with_others, alone = (choose_thresholds(checkpoint, sets)[0].postprocess for sets in ([records, others], [records]))
    assert with_others == alone != checkpoint.postprocess


def test_background_makes_it_quiet(checkpoint: Checkpoint, labels: Path) -> None:
    records, frame = load_coco(labels, CLASS_NAMES), labels.parent / "empty" / "5.png"
    after, chosen = choose_thresholds(checkpoint, [records], [frame])
    found = torch_predict(checkpoint, LOWEST)(cv2.imread(str(frame), cv2.IMREAD_GRAYSCALE))
    assert len(found) and not (found.scores > np.asarray(after.postprocess.score_thresholds)[found.class_ids]).any()
    assert any("too few to show 10" in choice.why for choice in chosen["off"].choices.values())


def test_no_object_at_all(checkpoint: Checkpoint, labels: Path) -> None:
    records = load_coco(labels, CLASS_NAMES)
    nothing = [replace(one, boxes=one.boxes[:0], labels=one.labels[:0]) for one in records]
    with pytest.raises(DatasetError, match="No picture has an object of person, car, bison"):
        choose_thresholds(checkpoint, [nothing])


@pytest.mark.parametrize("names", ["*", "ab"])
def test_each_file_is_a_list_of_its_own(checkpoint: Checkpoint, labels: Path, names: str, tmp_path: Path) -> None:
    """A class counts in files that have an object of it, however the files are named."""
    content = json.loads(labels.read_text())
    for image in content["images"]:
        image["file_name"] = str(labels.parent / image["file_name"])
    for name, rows in (("a", content["annotations"]), ("b", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "val.json").write_text(json.dumps({**content, "annotations": rows}))
    files = [tmp_path / one / "val.json" for one in names]
    start = save_checkpoint(tmp_path / "start.safetensors", checkpoint)
    arguments = ["--checkpoint", start, "--data", *files, "-o", tmp_path / "new.safetensors"]
    assert cli.main(["thresholds", *map(str, arguments)]) == 0
    after = load_checkpoint(tmp_path / "new.safetensors")
    alone = choose_thresholds(load_checkpoint(start), [load_coco(labels, CLASS_NAMES)])[0]
    assert after.postprocess == alone.postprocess
    assert after.provenance["thresholds"] == {"data": ["a/val.json", "b/val.json"], "background": 0}


def test_few_objects_are_warned_of_and_both_states_are_shown(
    checkpoint: Checkpoint, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = json.loads(labels.read_text())
    (labels.parent / "few.json").write_text(json.dumps({**content, "annotations": content["annotations"][:2]}))
    calibrated = add_pcb(checkpoint, load_classifier(), load_coco(labels, CLASS_NAMES))
    start = save_checkpoint(tmp_path / "start.safetensors", calibrated)
    monkeypatch.chdir(labels.parent)
    arguments = ["--ckpt", start, "--data", "few.json", "--background", "empty", "-o", tmp_path / "new.safetensors"]
    assert cli.main(["thresholds", *map(str, arguments)]) == 0
    said = capsys.readouterr().out
    assert "with PCB" in said and said.count("warning: 2 objects in all say less than the usual") == 2
    assert said.count("alarms") == 2 * 2 and "car: no false alarm in 1 frame, too few" in said
    after = load_checkpoint(tmp_path / "new.safetensors")
    assert after.provenance["thresholds"]["data"] == [f"{labels.parent.name}/few.json"]


def test_command(checkpoint: Checkpoint, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, output = save_checkpoint(tmp_path / "a.safetensors", checkpoint), tmp_path / "b.safetensors"
    arguments = ["thresholds", "--checkpoint", start, "--data", labels, "--background", labels.parent / "empty"]
    program = [sys.executable, "-m", "glmd_train.cli", *map(str, [*arguments, "-o", output])]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in CLASS_NAMES) and f"Written: {output}" in done.stdout
    before, after = load_checkpoint(start), load_checkpoint(output)
    assert after.postprocess.score_thresholds != before.postprocess.score_thresholds
    assert after.provenance["thresholds"] == {
        "data": [f"{labels.parent.name}/val.json"], "background": 1, "false_alarms": 10.0,
    }
    for key, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[key])
    assert cli.main([*map(str, [*arguments, "-o", output])]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*map(str, [*arguments, "-o", labels / "c.safetensors"])]) == 2
    assert "val.json is no folder" in capsys.readouterr().err
    other = ["-o", tmp_path / "c.safetensors", "--false-alarms", "-1"]
    assert cli.main([*map(str, [*arguments, *other])]) == 2
    assert "--false-alarms must be 0 or more" in capsys.readouterr().err
    without_background = [*arguments[:5], "-o", tmp_path / "c.safetensors", "--false-alarms", "5"]
    assert cli.main([*map(str, without_background)]) == 2
    assert "give --background DIR" in capsys.readouterr().err
    if not torch.cuda.is_available():
        on_gpu = [*arguments, "-o", tmp_path / "c.safetensors", "--device", "cuda"]
        assert cli.main([*map(str, on_gpu)]) == UnsupportedError.exit_code
        assert "finds no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "c.safetensors").exists()
