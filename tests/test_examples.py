"""The programs in examples/ run as a user runs them, and what comes out is looked at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.video.sources import open_source

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/teach.ipynb"


def run_example(folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In an empty folder, so that nothing but its own files is there afterwards."""
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def is_a_picture_with_boxes(picture: np.ndarray | None) -> bool:
    """Of a grey scene: not black, not even, and with the colours that `draw` has."""
    assert picture is not None
    colour = picture.max(axis=2).astype(int) - picture.min(axis=2)
    return bool(picture.mean() > 30 and picture.std() > 20 and (colour > 100).sum() > 200)


def test_a_picture(tmp_path: Path) -> None:
    lines = run_example(tmp_path, "picture.py").stdout.splitlines()
    objects = [line for line in lines if re.match(r"person +0\.\d\d +\[", line)]
    assert len(objects) >= 5  # seven people and a bicycle are in the scene
    assert lines[-1] == f"{len(lines) - 1} objects in 640x512 uint16 -> picture.png"
    assert is_a_picture_with_boxes(cv2.imread(str(tmp_path / "picture.png")))


def test_a_picture_of_ones_own(tmp_path: Path) -> None:
    with open_source("sim://ground?seed=7&frames=1") as source:
        cv2.imwrite(str(tmp_path / "own.tiff"), next(iter(source)).image)
    own = run_example(tmp_path, "picture.py", "own.tiff", "--out", "own.png").stdout
    assert own.replace("own.png", "picture.png") == run_example(tmp_path, "picture.py").stdout


def test_a_video_with_tracks(tmp_path: Path) -> None:
    lines = run_example(tmp_path, "video_tracks.py").stdout.splitlines()
    long = [line for line in lines[:-1] if int(re.findall(r"(\d+) frames", line)[0]) >= 20]
    assert len(long) >= 5
    assert lines[-1] == f"{len(lines) - 1} tracks -> tracks.mp4"
    video = cv2.VideoCapture(str(tmp_path / "tracks.mp4"))
    pictures = [video.read()[1] for _ in range(40)]
    assert is_a_picture_with_boxes(pictures[39])
    assert not video.read()[0]


def test_a_16_bit_camera_and_its_recording(tmp_path: Path) -> None:
    lines = run_example(tmp_path, "camera_16bit.py", "--frames", "5").stdout.splitlines()
    counts = [list(map(int, re.findall(r"counts (\d+) to (\d+)", line)[0])) for line in lines[:-1]]
    assert all(5000 < low < high - 100 for low, high in counts)  # raw ones, which no 8 bits hold
    assert len([line for line in lines if ": uint16 counts " in line and "'person'" in line]) == 5
    with open_source(tmp_path / "counts.mkv") as recording:
        first = [frame.image for frame in recording]
    assert len(first) == 5 and first[0].dtype == np.uint16 and first[0].max() < 2**14
    again = run_example(tmp_path, "camera_16bit.py", "counts.mkv?celsius=0.04,-273.15", "--out", "again.mkv").stdout
    assert re.findall(r"hottest (\d+\.\d) C", again)
    with open_source(tmp_path / "again.mkv") as recording:
        assert all(np.array_equal(a, frame.image) for a, frame in zip(first, recording, strict=True))


def test_several_cameras(tmp_path: Path) -> None:
    sources = ["sim://ground?seed=7&frames=3", "sim://air?seed=0&frames=4", "sim://air?seed=2&frames=5"]
    rows = [json.loads(line) for line in run_example(tmp_path, "several_cameras.py", *sources).stdout.splitlines()]
    assert Counter(row["camera"] for row in rows) == dict(zip(sources, (3, 4, 5), strict=True))
    assert {one["name"] for row in rows for one in row["detections"]} >= {"person", "uav"}


def test_several_cameras_by_the_clock(tmp_path: Path) -> None:
    """How many frames a camera gives is up to the machine; that all are counted is not."""
    result = run_example(tmp_path, "several_cameras.py")
    counted = dict(re.findall(r"^(sim://.*): (\d+) frames, skipped \{", result.stderr, re.M))
    seen = Counter(json.loads(line)["camera"] for line in result.stdout.splitlines())
    assert len(counted) == 3
    assert {camera: int(frames) for camera, frames in counted.items() if int(frames)} == seen


def test_zones(tmp_path: Path) -> None:
    lines = run_example(tmp_path, "zones.py").stdout.splitlines()
    inside = [line for line in lines if re.search(r"in the zone: \{.*'person': [3-9]", line)]
    assert len(inside) >= 30
    assert lines[-2].startswith("crossed the line: in {'person': 2")  # two walk from right to left over it
    picture = cv2.imread(str(tmp_path / "zones.png"))
    assert is_a_picture_with_boxes(picture)
    assert (picture[:, 1040] == (0, 255, 255)).all(axis=1).mean() > 0.9  # the line, in a picture of twice the size


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.no_cover
def test_the_notebook_teaches_a_class(tmp_path: Path) -> None:
    """Its code cells one after the other, in a process of their own."""
    code = "\n".join("".join(cell["source"]) for cell in cells("code"))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=1500,
        env={**os.environ, "GLMD_SDK": str(ROOT), "MPLBACKEND": "agg"},
    )
    assert result.returncode == 0, result.stderr
    found, there = map(int, re.findall(r"found (\d+) of (\d+)", result.stdout)[0])
    assert there == 14 and found >= 5  # 11 where it was saved; of other processors other numbers
    assert (tmp_path / "lesson/drone.glmd/manifest.json").is_file()
    assert is_a_picture_with_boxes(cv2.imread(str(tmp_path / "lesson/found.png")))


@pytest.mark.parametrize("number", range(len(cells("code"))) if NOTEBOOK.exists() else [])
def test_the_notebook_was_saved_as_it_ran(number: int) -> None:
    cell = cells("code")[number]
    assert cell["execution_count"] == number + 1
    assert not [output for output in cell["outputs"] if output["output_type"] == "error"]
