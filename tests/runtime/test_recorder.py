"""A recording gives the frames again: the same bytes, index, time and radiometry, whatever happened to the writer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from glmd_runtime.errors import FrameError, SourceError, UsageError
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video import recording
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Recorder, read_notes
from glmd_runtime.video.sources import open_source
from tests.runtime.test_sources import save

pytestmark = pytest.mark.usefixtures("pyav")
ROOT = Path(__file__).parents[2]
COUNTS = np.arange(24, dtype=np.uint16).reshape(4, 6) + 7000


def record(path: Path, frames: list[Frame]) -> list[Path]:
    with Recorder(path, 10) as recorder:
        for frame in frames:
            recorder.write(frame)
    return recorder.paths


def assert_same(frames: list[Frame], expected: list[Frame]) -> None:
    assert len(frames) == len(expected)
    for frame, wanted in zip(frames, expected, strict=True):
        assert (frame.index, frame.time, frame.radiometry) == (wanted.index, wanted.time, wanted.radiometry)
        assert frame.image.dtype == wanted.image.dtype
        np.testing.assert_array_equal(frame.image, wanted.image)


KINDS = st.sampled_from([(np.uint8, ()), (np.uint16, ()), (np.uint8, (3,))])
SIDES = st.tuples(st.integers(1, 40), st.integers(2, 40))


@st.composite
def clips(draw: Any) -> list[Frame]:
    dtype, channels = draw(KINDS)
    hw = draw(SIDES)
    count = draw(st.integers(1, 4))
    images = draw(hnp.arrays(dtype, (count, *hw, *channels)))
    indices = np.cumsum(draw(st.lists(st.integers(1, 1000), min_size=count, max_size=count)))
    gaps = draw(st.lists(st.floats(0, 100), min_size=count, max_size=count))
    numbers = st.floats(-1e3, 1e3)
    radiometry = draw(st.none() | st.builds(Radiometry, numbers, numbers)) if dtype == np.uint16 else None
    return [
        Frame(image, int(i), float(t), radiometry=radiometry)
        for image, i, t in zip(images, indices, np.cumsum(gaps), strict=True)
    ]


@given(clips())
@settings(max_examples=60)
def test_byte_for_byte(frames: list[Frame]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mkv"
        record(path, frames)
        with open_source(path) as source:
            assert_same(list(source), frames)


def test_real_counts(data: Path, tmp_path: Path) -> None:
    with open_source(f"{data / 'raw16' / 'v1'}?celsius=0.04,-273.15&fps=9") as source:
        frames = [frame for frame in source if frame.index < 30]
    record(tmp_path / "clip.mkv", frames)
    with open_source(tmp_path / "clip.mkv") as source:
        assert_same(list(source), frames)


def test_the_line_of_a_frame(tmp_path: Path) -> None:
    now = time.time()
    frame = Frame(COUNTS, 7, 1.25, captured=time.monotonic() - 3, radiometry=Radiometry(0.04, -273.15))
    record(tmp_path / "clip.mkv", [frame])
    [line] = (tmp_path / "clip.mkv.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert abs(values.pop("wall") - (now - 3)) < 1
    assert values == {"index": 7, "time": 1.25, "radiometry": [0.04, -273.15]}


def test_a_camera_that_changes_goes_on_in_another_file(tmp_path: Path) -> None:
    frames = [Frame(COUNTS, 0, 0.0), Frame(COUNTS[:2], 1, 0.1), Frame(COUNTS.astype(np.uint8), 2, 0.2)]
    paths = record(tmp_path / "new" / "clip.mkv", frames)
    assert [path.name for path in paths] == ["clip.mkv", "clip-2.mkv", "clip-3.mkv"]
    for path, frame in zip(paths, frames, strict=True):
        assert_same(list(open_source(path)), [frame])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    paths = [record(tmp_path / "clip.mkv", [Frame(COUNTS + i, i, 0.0)])[0] for i in range(2)]
    assert [path.name for path in paths] == ["clip.mkv", "clip-2.mkv"]
    assert_same(list(open_source(paths[0])), [Frame(COUNTS, 0, 0.0)])


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    assert record(tmp_path / "clip.mkv", []) == [] and not list(tmp_path.iterdir())


def test_times_that_a_container_cannot_tell_apart(tmp_path: Path) -> None:
    frames = [Frame(COUNTS + i, i, i * 1e-5) for i in range(20)]
    record(tmp_path / "clip.mkv", frames)
    assert_same(list(open_source(tmp_path / "clip.mkv")), frames)


def test_lines_without_end_are_not_read(tmp_path: Path) -> None:
    record(tmp_path / "clip.mkv", [Frame(COUNTS, 0, 0.0)])
    with (tmp_path / "clip.mkv.jsonl").open("ab") as lines:
        lines.truncate(1 << 40)  # takes no room on the disk, and would take all of memory
    with pytest.raises(SourceError, match=r"hold a recording's lines; got .*a line of 1000 bytes or more.*Restore it"):
        open_source(tmp_path / "clip.mkv")


def test_more_lines_than_a_recording_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "clip.mkv", [Frame(COUNTS, i, i / 10) for i in range(3)])
    size = (tmp_path / "clip.mkv.jsonl").stat().st_size
    monkeypatch.setattr(recording, "MOST_LINES", size)
    assert len(read_notes(tmp_path / "clip.mkv")) == 3
    monkeypatch.setattr(recording, "MOST_LINES", size - 1)
    with pytest.raises(SourceError, match=rf"more than {size - 1} bytes"):
        read_notes(tmp_path / "clip.mkv")


def test_a_recording_of_many_lines_goes_on_in_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever is recorded can be read."""
    frames = [Frame(COUNTS + i, i, i / 10) for i in range(5)]
    line = len(recording.Note(0, 0.1, time.time()).to_line())
    monkeypatch.setattr(recording, "MOST_LINES", recording.MOST_LINE + line + line // 2)
    paths = record(tmp_path / "clip.mkv", frames)
    assert [path.name for path in paths] == ["clip.mkv", "clip-2.mkv", "clip-3.mkv"]
    assert_same([frame for path in paths for frame in open_source(path)], frames)


def test_given_radiometry_goes_before_the_recorded(tmp_path: Path) -> None:
    record(tmp_path / "clip.mkv", [Frame(COUNTS, 0, 0.0, radiometry=Radiometry())])
    [frame] = open_source(f"{tmp_path / 'clip.mkv'}?celsius=0.04,-270")
    assert frame.radiometry == Radiometry(0.04, -270)


WRITER = """
import sys
import numpy as np
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Recorder
rng = np.random.default_rng(0)
with Recorder(sys.argv[1], 10) as recorder:
    for i in range(10**6):
        recorder.write(Frame(rng.integers(0, 65536, (48, 64), dtype=np.uint16), i, i / 10))
        if i == 100:
            print("enough", flush=True)
"""


def test_what_was_written_before_a_kill_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"enough\n"
        os.kill(writer.pid, signal.SIGKILL)
    frames = list(open_source(path))
    assert len(frames) >= 101 - 6  # half a second may be lost
    rng = np.random.default_rng(0)
    expected = [Frame(rng.integers(0, 65536, (48, 64), dtype=np.uint16), i, i / 10) for i in range(len(frames))]
    assert_same(frames, expected)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    result = subprocess.run([sys.executable, "-c", FULL + WRITER, str(path)], capture_output=True, text=True)
    assert result.returncode and "OutputError: A recording must be writable" in result.stderr.splitlines()[-1]
    assert "File too large" in result.stderr and "make room" in result.stderr
    with open_source(path) as source:
        assert sum(1 for _ in source) > 20


def test_two_who_record_to_one_path_at_the_same_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)  # when either looks there is nothing yet
    path = tmp_path / "clip.mkv"
    with Recorder(path, 10) as one, Recorder(path, 10) as other:
        for recorder, shift in ((one, 0), (other, 5)):
            recorder.write(Frame(COUNTS + shift, 0, 0.0))
    monkeypatch.undo()
    for name, shift in (("clip.mkv", 0), ("clip-2.mkv", 5)):
        assert_same(list(open_source(tmp_path / name)), [Frame(COUNTS + shift, 0, 0.0)])


def test_a_line_that_was_cut_short(tmp_path: Path) -> None:
    frames = [Frame(COUNTS + i, i, i / 10) for i in range(3)]
    record(tmp_path / "clip.mkv", frames)
    lines = tmp_path / "clip.mkv.jsonl"
    lines.write_bytes(lines.read_bytes()[:-9])
    assert len(read_notes(tmp_path / "clip.mkv")) == 2
    assert_same(list(open_source(tmp_path / "clip.mkv")), frames[:2])


@pytest.mark.parametrize(
    "line",
    [
        b'{"index": 1}', b"[]", b"no line", bytes(30), b"\xff\xfe",
        b'{"index": 0, "time": 0, "wall": 0, "radiometry": [1]}',
        b'{"index": 0, "time": NaN, "wall": 0, "radiometry": null}',
        b'{"index": 1e999, "time": 0, "wall": 0, "radiometry": null}',
        b'{"index": 0, "time": 0, "wall": 0, "radiometry": "12"}',
    ],
)
def test_lines_that_are_none(line: bytes, tmp_path: Path) -> None:
    record(tmp_path / "clip.mkv", [Frame(COUNTS, 0, 0.0)])
    (tmp_path / "clip.mkv.jsonl").write_bytes(line + b"\n")
    with pytest.raises(SourceError, match=r"clip\.mkv\.jsonl must hold a recording's lines.*move it away"):
        open_source(tmp_path / "clip.mkv")


def test_a_recording_without_its_lines_is_a_video(tmp_path: Path) -> None:
    record(tmp_path / "clip.mkv", [Frame(COUNTS, 5, 9.0), Frame(COUNTS, 6, 9.5)])
    (tmp_path / "clip.mkv.jsonl").unlink()
    frames = list(open_source(tmp_path / "clip.mkv"))
    assert [(f.index, round(f.time, 3)) for f in frames] == [(0, 0), (1, 0.5)]


def test_another_ending() -> None:
    with pytest.raises(UsageError, match=r"must end in \.mkv; got clip\.mp4"):
        Recorder("clip.mp4", 10)


@pytest.mark.parametrize(
    "image", [COUNTS.astype(np.float32), np.zeros((4, 6, 3), np.uint16), np.zeros((4, 6, 4), np.uint8), COUNTS[:, :1]]
)
def test_another_array(image: Any, tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="must be"), Recorder(tmp_path / "clip.mkv", 10) as recorder:
        recorder.write(Frame(image, 0, 0.0))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    save(tmp_path / "a.png", COUNTS)
    with pytest.raises(UsageError, match="must be writable"), Recorder(tmp_path / "a.png" / "clip.mkv", 10) as recorder:
        recorder.write(Frame(COUNTS, 0, 0.0))


def test_the_example_in_the_documents(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "sources.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", text, re.S)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", snippet]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    assert result.returncode == 0 and "frames, byte for byte" in result.stdout, result.stderr
    assert (tmp_path / "night.mkv").is_file()
