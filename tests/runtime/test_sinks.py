"""Outputs are complete, or not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, GlmdError, UsageError
from glmd_runtime.sinks import JsonlSink, Mp4Sink, json_line, save_picture
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.sources import open_source

needs_av = pytest.mark.usefixtures("pyav")
NAMES = ("person",)
EMPTY = Detections.empty(NAMES)
ONE = Detections(np.array([[1, 2, 3, 4]]), np.array([0.5]), np.array([0]), NAMES)


def frame(index: int) -> Frame:
    return Frame(np.zeros((4, 4), np.uint8), index, index / 30)


def test_one_line_a_frame_empty_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with JsonlSink(path) as sink:
        sink.write(frame(0), EMPTY)
        sink.write(frame(1), ONE)
        assert not path.exists()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"frame": 0, "time": 0.0, "detections": []}
    assert lines[1]["detections"] == [{"name": "person", "class_id": 0, "score": 0.5, "xyxy": [1.0, 2.0, 3.0, 4.0]}]


@needs_av
@pytest.mark.parametrize("hw", [(64, 80), (65, 81)])
def test_a_video_is_read_back(hw: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    with Mp4Sink(path, fps=29.97) as sink:
        for value in (0, 100, 200):
            sink.write(np.full((*hw, 3), value, np.uint8))
        assert not path.exists()
    with open_source(path) as source:
        frames = [f.image for f in source]
        assert source.fps == pytest.approx(29.97, abs=0.01)
    assert [f.shape for f in frames] == [(64 + hw[0] % 2 * 2, 80 + hw[1] % 2 * 2, 3)] * 3
    assert [round(f.mean(), -1) for f in frames] == [0, 100, 200]


@needs_av
@pytest.mark.parametrize("at_once", [False, True])
def test_an_ffmpeg_without_x264_writes_a_video_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "ffv1"})
    with Mp4Sink(tmp_path / "o.mp4", 10, at_once=at_once) as sink:
        for value in (0, 100, 200):
            sink.write(np.full((64, 80, 3), value, np.uint8))
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    with open_source(tmp_path / "o.mp4") as source:
        assert [round(f.image.mean(), -1) for f in source] == [0, 100, 200]


@needs_av
def test_a_video_keeps_its_pace_where_frames_were_dropped(tmp_path: Path) -> None:
    with Mp4Sink(tmp_path / "o.mp4", 10) as sink:
        # More than ten a second, though a camera's rate was taken for ten before it came.
        for time in (5.0, 5.02, 5.04, 5.04, 8.0):  # one that came twice has a place of its own all the same
            sink.write(np.zeros((64, 64, 3), np.uint8), time)
    with open_source(tmp_path / "o.mp4") as source:
        times = [frame.time for frame in source]
    np.testing.assert_allclose(times, [0.0, 0.02, 0.04, 0.04, 3.0], atol=1e-4)
    assert len(set(times)) == 5


def test_lines_at_once_can_be_read_along_and_survive_an_error(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("before\n")
    with pytest.raises(KeyboardInterrupt), JsonlSink(path, at_once=True) as sink:
        assert path.read_text() == "before\n"
        for index in range(2):
            sink.write(frame(index), ONE)
            assert len(path.read_text().splitlines()) == index + 1
        raise KeyboardInterrupt
    assert len(path.read_text().splitlines()) == 2 and list(tmp_path.iterdir()) == [path]


@needs_av
def test_a_video_goes_on_in_another_file_where_a_camera_changes(tmp_path: Path) -> None:
    (tmp_path / "o-2.mp4").write_text("from yesterday")
    sizes = [(64, 64), (64, 64), (64, 32), (64, 64), (65, 64)]
    with Mp4Sink(tmp_path / "o.mp4", 10) as sink:
        for index, hw in enumerate(sizes):
            sink.write(np.full((*hw, 3), 50 * index, np.uint8), 5 + index / 10)
        assert [path.name for path in tmp_path.glob("o*.mp4") if path.stat().st_size > 100] != []  # complete already
    names = ["o.mp4", "o-3.mp4", "o-4.mp4", "o-5.mp4"]
    assert [path.name for path in sink.paths] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "o-2.mp4"])
    assert (tmp_path / "o-2.mp4").read_text() == "from yesterday"
    shown = []
    for path in sink.paths:
        with open_source(path) as source:
            shown.append([(f.image.shape[:2], round(f.image.mean() / 50), round(f.time, 2)) for f in source])
    first = [((64, 64), 0, 0.0), ((64, 64), 1, 0.1)]
    assert shown == [first, [((64, 32), 2, 0.0)], [((64, 64), 3, 0.0)], [((66, 64), 4, 0.0)]]


@needs_av
def test_a_video_at_once_can_be_played_wherever_it_is_cut_off(tmp_path: Path) -> None:
    path, cut = tmp_path / "o.mp4", tmp_path / "cut.mp4"
    path.write_text("from yesterday")
    noise = np.random.default_rng(0).integers(0, 255, (90, 64, 64, 3), np.uint8)
    with pytest.raises(KeyboardInterrupt), Mp4Sink(path, 30, at_once=True) as sink:
        assert path.read_text() == "from yesterday"
        for picture in noise:
            sink.write(picture)
        cut.write_bytes(path.read_bytes())
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mp4", "o.mp4"]
    with open_source(cut) as before, open_source(path) as whole:
        assert 30 < sum(1 for _ in before) < 90 == sum(1 for _ in whole)


@needs_av
def test_an_error_costs_the_file_that_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Mp4Sink(tmp_path / "o.mp4", 10) as sink:
        sink.write(np.zeros((64, 64, 3), np.uint8))
        sink.write(np.zeros((64, 32, 3), np.uint8))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


@needs_av
def test_a_video_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="at least one picture"), Mp4Sink(tmp_path / "o.mp4", 30):
        pass
    assert list(tmp_path.iterdir()) == []


@needs_av
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    for name in ("o.mp4", "o.jsonl"):
        (tmp_path / name).write_text("from yesterday")
    with pytest.raises(error), Mp4Sink(tmp_path / "o.mp4", 30) as video, JsonlSink(tmp_path / "o.jsonl") as lines:
        video.write(np.zeros((64, 64, 3), np.uint8))
        lines.write(frame(0), ONE)
        raise error
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(("o.mp4", "o.jsonl"), "from yesterday")


def test_a_frame_that_is_held_says_so() -> None:
    assert json.loads(json_line(replace(frame(3), held="frozen"), EMPTY)) == {
        "frame": 3, "time": 0.1, "held": "frozen", "detections": [],
    }


def test_a_picture_is_read_back(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    save_picture(tmp_path / "new" / "out.png", picture)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "out.png")), picture)


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.mp4"):
        Mp4Sink(tmp_path / "out.avi", 30)
    for name in ("out", "out.xyz"):
        with pytest.raises(UsageError, match=r"must end in \.png"):
            save_picture(tmp_path / name, np.zeros((4, 4), np.uint8))
    with pytest.raises(GlmdError, match="is a directory"), JsonlSink(tmp_path):
        pass


@pytest.mark.parametrize("name", ["notes/o.jsonl", "notes/new/o.jsonl", "/proc/nothing/o.jsonl", f"{'o' * 300}.jsonl"])
def test_a_folder_that_takes_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    expected = r"folder must exist, or be possible to make, and be writable; .*jsonl: .*\. Choose another path"
    with pytest.raises(UsageError, match=expected), JsonlSink(tmp_path / name):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
