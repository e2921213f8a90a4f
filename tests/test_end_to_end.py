"""What ships, as a user meets it: the bundle, the commands on simulated and on real thermal video."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime import Detector, backends, boxes
from glmd_runtime.bundle import open_bundle
from glmd_runtime.verify import verify_bundle
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.simulator import parse_sim_uri, simulate
from tests.conftest import skip_unless

MODELS = Path(__file__).parents[1] / "models"
BUNDLE = MODELS / "thermal_lite0.glmd"
SCENE = "sim://ground?seed=20261123&frames=20&fps=5"  # no training saw a simulated frame
# One scene's 20 frames are about one sample: a cyclist who is called a person is wrong in all of them, and precision is
# 0.3 in one scene and 1.0 in another. So it is asked of many, two frames five seconds apart of each.
SCENES = [f"sim://ground?seed={seed}&frames=2&fps=0.2" for seed in range(20261123, 20261203)]
# Score threshold, None for the model's own -> class -> recall and precision at least. Measured with OpenVINO in INT8:
# persons 0.52 and 0.72, cars 0.72 and 0.83; at 0.3 persons 0.77 and 0.58, cars 0.83 and 0.64.
LEAST: dict[float | None, dict[str, tuple[float, float]]] = {
    None: {"person": (0.45, 0.7), "car": (0.65, 0.8)}, 0.3: {"person": (0.7, 0.5), "car": (0.75, 0.6)},
}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_the_shipped_bundle_gives_its_reference_answers(backend: str) -> None:
    skip_unless(backend in backends.available(), backend, f"{backend} is not installed")
    report = verify_bundle(open_bundle(BUNDLE), backend)
    assert report.status == "passed", report.to_dict()
    assert sum(row.metrics.get("detections", 0) for row in report.rows) > 10  # there was something to compare


def test_the_bundle_was_made_from_the_shipped_checkpoint() -> None:
    digest = hashlib.sha256((MODELS / "thermal_lite0.safetensors").read_bytes()).hexdigest()
    assert open_bundle(BUNDLE).manifest.provenance["checkpoint"]["sha256"] == digest


@pytest.mark.parametrize("name", ["thermal_lite0", "thermal_lite0_base"])
def test_checkpoints_are_small_and_have_a_card(name: str) -> None:
    assert (MODELS / f"{name}.safetensors").stat().st_size < 12e6
    card = (MODELS / f"{name}.md").read_text()
    assert "CC BY 4.0" in card and "## Limits" in card


def run(source: str, out: Path, *more: str) -> list[dict]:
    """glmd-run into `out`; the rows of its JSON lines."""
    command = [
        sys.executable, "-c", "import sys; from glmd_runtime.cli import glmd_run_main as m; sys.exit(m())",
        "--engine", BUNDLE, "--source", source, "--save", out / "clip.mp4", "--json", out / "found.jsonl",
        "--picture", out / "picture.png", *more,
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in (out / "found.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated")
    run(SCENE, out, "--score", "0.3")
    return out


def recall(found: list[np.ndarray], truth: list[np.ndarray], iou: float) -> float:
    """Part of the true boxes that some found box of their frame overlaps."""
    hits = [boxes.iou(t, f).max(axis=1, initial=0) >= iou for f, t in zip(found, truth, strict=True)]
    return float(np.concatenate(hits).mean())


def of_class(detections: list[dict], *names: str) -> np.ndarray:
    return np.asarray([d["xyxy"] for d in detections if d["name"] in names], np.float32).reshape(-1, 4)


def truth_of_class(frame: Frame, *names: str) -> np.ndarray:
    return frame.truth[[name in names for name in frame.truth.names]].xyxy


def test_people_and_cars_of_a_simulated_scene_are_found(simulated: Path) -> None:
    rows = [json.loads(line) for line in (simulated / "found.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(20))
    wanted = [truth_of_class(frame, "person", "car") for frame in simulate(parse_sim_uri(SCENE))]
    assert recall([of_class(row["detections"], "person", "car") for row in rows], wanted, 0.3) > 0.4
    manifest = open_bundle(BUNDLE).manifest
    own = dict(zip(manifest.class_names, manifest.postprocess.score_thresholds, strict=True))
    kept = [[d for d in row["detections"] if d["score"] > own[d["name"]]] for row in rows]
    assert recall([of_class(detections, "person", "car") for detections in kept], wanted, 0.3) > 0.3


@pytest.fixture(scope="module")
def scenes() -> list[Frame]:
    return [frame for uri in SCENES for frame in simulate(parse_sim_uri(uri))]


@pytest.mark.parametrize("score", LEAST)
def test_people_and_cars_of_many_scenes_are_found(scenes: list[Frame], score: float | None) -> None:
    """At the model's own thresholds, which give up some of recall for fewer wrong boxes, and at a lower one."""
    with Detector(BUNDLE, score_threshold=score) as detector:
        answers = [detector.run(frame.image).to_dict() for frame in scenes]
    for name, (least_recall, least_precision) in LEAST[score].items():
        found = [of_class(detections, name) for detections in answers]
        wanted = [truth_of_class(frame, name) for frame in scenes]
        assert recall(found, wanted, 0.3) > least_recall, name
        assert recall(wanted, found, 0.3) > least_precision, name  # the part of the found on a true box


def test_the_video_is_what_another_program_reads(simulated: Path) -> None:
    skip_unless(shutil.which("ffprobe") is not None, "ffprobe", "ffprobe (Debian package ffmpeg) is not installed")
    command = ["ffprobe", "-v", "error", "-count_frames", "-of", "json", "-show_streams", simulated / "clip.mp4"]
    (stream,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["streams"]
    assert (stream["codec_name"], stream["nb_read_frames"], stream["avg_frame_rate"]) == ("h264", "20", "5/1")
    assert cv2.imread(str(simulated / "picture.png")).shape[:2] == (stream["height"], stream["width"])


def test_drones_on_a_real_clip_are_found(data: Path, tmp_path: Path) -> None:
    clips = json.loads((data / "air" / "clips.json").read_text())
    clip = clips["IR_DRONE_111"]
    rows = run(str(data / "air" / clip["file_name"]), tmp_path)
    assert len(rows) == len(clip["boxes_xywh"])
    flyers = "uav", "helicopter", "airplane", "bird"
    found, truth = zip(*[
        (of_class(row["detections"], *flyers), boxes.xywh_to_xyxy(np.asarray([xywh], np.float32)))
        for row, xywh in zip(rows, clip["boxes_xywh"], strict=True) if xywh
    ], strict=True)
    assert recall(list(found), list(truth), 0.3) > 0.5


def test_objects_on_real_pictures_from_a_drone_are_found(data: Path) -> None:
    from glmd_train.data.coco import load_coco

    with Detector(BUNDLE) as detector:
        records = load_coco(data / "hit_uav" / "val.json", detector.class_names)[::10]
        found = [detector.run(record.read()).xyxy for record in records]
    assert recall(found, [record.boxes for record in records], 0.5) > 0.5
