"""glmd-run with cameras, several sources, tracks, a page and numbers, as a shell sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from urllib.request import urlopen

import cv2
import numpy as np
import pytest

from glmd_runtime import backends
from glmd_runtime.video.sources import open_source
from tests.conftest import skip_unless
from tests.runtime.test_cli import CLIP, ROOT, call_here, command

OTHER = "sim://ground?seed=5&frames=2&size=80x64"
CAMERA = "sim://air?seed=3&size=80x64&frames=0&live=1"
SOON = 60.0


@pytest.fixture(autouse=True)
def _installed(pyav: None) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")


@pytest.fixture
def run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> object:
    """glmd-run in this process: options -> exit code, stdout, stderr."""
    return lambda *args: call_here("run", "--engine", tiny_bundle, *args, monkeypatch=monkeypatch, capsys=capsys)


@contextmanager
def started(bundle: Path, *args: object) -> Iterator[subprocess.Popen[str]]:
    words = command("run", "--engine", bundle, "--threads", 1, *args)
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The first line on stderr that has it."""
    assert process.stderr
    for line in process.stderr:
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"it ended without saying {pattern!r}")


def filled(process: subprocess.Popen[str], recording: Path) -> None:
    """Wait until some frames of a camera were recorded."""
    until = monotonic() + SOON
    while not (recording.exists() and recording.stat().st_size > 20_000):
        assert process.poll() is None and monotonic() < until
        sleep(0.05)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_sources_have_outputs_with_numbers(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    args = ("--save", tmp_path / "o.mp4", "--json", tmp_path / "o.jsonl", "--picture", tmp_path / "o.png")
    code, out, error = run("--source", CLIP, "--source", OTHER, *args)
    assert code == 0, error
    names = {f"o.{number}.{suffix}" for number in (1, 2) for suffix in ("mp4", "jsonl", "png")}
    assert {path.name for path in tmp_path.iterdir()} == names
    first, second = out.strip().splitlines()
    assert first.startswith(f"{CLIP}: 3 frames, ") and second.startswith(f"{OTHER}: 2 frames, ")
    assert "o.1.mp4" in first and "o.2.mp4" in second
    assert [len(lines(tmp_path / f"o.{number}.jsonl")) for number in (1, 2)] == [3, 2]


def test_a_broken_source_does_not_cost_the_outputs_of_another(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, size in [("a.png", 8), ("b.png", 9)]:
        cv2.imwrite(str(broken / name), np.zeros((size, size), np.uint8))
    out = tmp_path / "out"
    code, said, error = run("--source", CLIP, "--source", broken, "--json", out / "o.jsonl", "--save", out / "o.mp4")
    assert "3 frames" in said and "o.1.jsonl" in said and "o.2" not in said
    assert code == 1 and "glmd-run: error: broken: " in error and "b.png" in error
    assert sorted(path.name for path in out.iterdir()) == ["o.1.jsonl", "o.1.mp4"]
    assert len(lines(out / "o.1.jsonl")) == 3


def test_a_recording_is_replayed_to_the_same_detections(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    record, live, replayed = tmp_path / "r.mkv", tmp_path / "live.jsonl", tmp_path / "replayed.jsonl"
    code, out, error = run("--source", CLIP, "--record", record, "--json", live)
    assert code == 0 and str(record) in out, error
    assert run("--source", record, "--json", replayed)[0] == 0
    assert lines(replayed) == lines(live) and len(lines(live)) == 3
    code, out, _ = run("--source", CLIP, "--record", record)  # nothing is replaced
    assert code == 0 and "r-2.mkv" in out


def test_tracks_are_in_the_lines(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    skip_unless(find_spec("trackers") is not None, "trackers", "the package trackers is not installed")
    for words in (("--track",), ("--track", "ocsort")):
        path = tmp_path / "o.jsonl"
        code, _, error = run("--source", "sim://air?seed=3&frames=6&size=80x64", "--json", path, *words)
        assert code == 0, error
        last = lines(path)[-1]["detections"]
        assert isinstance(last, list) and 0 in [row["track_id"] for row in last]


def test_lines_for_the_program_behind_a_pipe(run) -> None:  # type: ignore[no-untyped-def]
    code, out, error = run("--source", CLIP, "--source", OTHER, "--json", "-")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and {row["source"] for row in rows} == {CLIP, OTHER}
    assert [row["frame"] for row in rows if row["source"] == CLIP] == [0, 1, 2]
    assert f"{CLIP}: 3 frames, " in error and f"{OTHER}: 2 frames, " in error and "->" not in error


def test_lines_come_at_once_and_end_with_their_reader(tiny_bundle: Path) -> None:
    with started(tiny_bundle, "--source", CAMERA, "--json", "-") as process:
        assert process.stdout
        assert [json.loads(process.stdout.readline())["source"] for _ in range(2)] == [CAMERA] * 2
        process.stdout.close()
        assert said(process, "glmd-run: error: The program that reads standard output has ended")
        assert process.wait(SOON) == 1 and process.stderr and process.stderr.read() == ""


def test_a_scene_without_end_may_go_into_a_pipe(tiny_bundle: Path) -> None:
    with started(tiny_bundle, "--source", "sim://air?frames=0&size=80x64", "--json", "-") as process:
        assert process.stdout and json.loads(process.stdout.readline())["frame"] == 0


def test_a_camera_that_never_came_costs_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("o.jsonl", "o.mp4", "o.mkv", "o.png")]
    options = zip(("--json", "--save", "--record", "--picture"), paths, strict=True)
    gone = "rtsp://127.0.0.1:1/gate"
    words = ("--source", gone, "--source", CAMERA, *(word for pair in options for word in pair))
    with started(tiny_bundle, *words) as process:
        filled(process, tmp_path / "o.2.mkv")
        os.kill(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=SOON)
    assert process.returncode == 0, error
    first, second = out.splitlines()
    assert first.startswith(f"{gone}: 0 frames, ") and "->" not in first and "o.2.mp4" in second
    names = ["o.2.jsonl", "o.2.mkv", "o.2.mkv.jsonl", "o.2.mp4", "o.2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_camera_keeps_its_files_where_another_source_fails(tiny_bundle: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    for name, size in [("a.png", 8), ("b.png", 9)]:
        cv2.imwrite(str(odd / name), np.zeros((size, size), np.uint8))
    out = tmp_path / "out"
    words = ("--json", out / "o.jsonl", "--record", out / "o.mkv")
    with started(tiny_bundle, "--source", CAMERA, "--source", odd, *words) as process:
        said(process, "odd: ended")
        filled(process, out / "o.1.mkv")
        os.kill(process.pid, signal.SIGTERM)
        _, error = process.communicate(timeout=SOON)
    assert process.returncode == 1 and "glmd-run: error: odd: " in error
    assert "o.1.jsonl" in [path.name for path in out.iterdir()] and not (out / "o.2.jsonl").exists()


def test_what_is_particular_to_a_camera(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    mask, out = tmp_path / "bad.png", tmp_path / "o.jsonl"
    bad = np.zeros((64, 80), np.uint8)
    bad[3, 4] = 255
    cv2.imwrite(str(mask), bad)
    words = ("--bad-pixels", mask, "--damping", 2, "--polarity", "black-hot")
    code, _, error = run("--source", CLIP, "--json", out, *words)
    assert code == 0 and len(lines(out)) == 3, error
    cv2.imwrite(str(mask), bad[:9, :9])
    code, _, error = run("--source", CLIP, "--bad-pixels", mask)
    assert code == 1 and f"{CLIP}: A mask of bad pixels has its camera's size, 80x64; got one of 9x9." in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_camera_is_stopped_and_its_outputs_are_whole(number: int, tiny_bundle: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("o.jsonl", "o.mp4", "o.mkv", "o.png")]
    options = zip(("--json", "--save", "--record", "--picture"), paths, strict=True)
    with started(tiny_bundle, "--source", CAMERA, *(word for pair in options for word in pair)) as process:
        said(process, "running: 80x64 uint16")
        filled(process, paths[2])
        os.kill(process.pid, number)
        out, error = process.communicate(timeout=SOON)
    assert process.returncode == 0 and "Traceback" not in error
    frames = int(out.split(": ")[-1].split()[0])
    assert len(lines(paths[0])) == frames > 0 and paths[3].is_file()
    with open_source(paths[2]) as source:
        assert len(list(source)) == frames
    with open_source(paths[1]) as source:
        assert len(list(source)) == frames


def test_the_page_and_the_numbers(tiny_bundle: Path) -> None:
    with started(tiny_bundle, "--source", CLIP, "--view", "127.0.0.1:0") as process:
        url = said(process, r"page: (\S+)")[1]
        said(process, "the page stays until Ctrl-C")
        with urlopen(f"{url}api/state", timeout=SOON) as answer:
            [stream] = json.load(answer)["streams"]
        assert (stream["name"], stream["state"], stream["frames"]) == (CLIP, "ended", 3)
        os.kill(process.pid, signal.SIGINT)
        process.wait(SOON)
        assert process.returncode == 0 and process.stdout and process.stdout.read().startswith(f"{CLIP}: 3 frames")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--track", "boxmot"], "invalid choice: 'boxmot'"),
        (["--view", "here"], "PORT or HOST:PORT, like 8080 or 0.0.0.0:8080; got 'here'"),
        (["--metrics", "99999"], "PORT or HOST:PORT"),
        (["--record", "{tmp}/o.mp4"], "--record must end in .mkv"),
        (["--damping", "-1"], "damping is 0 or more seconds; got -1.0"),
        (["--polarity", "hot"], "invalid choice: 'hot'"),
        (["--bad-pixels", "{tmp}/absent.png"], "absent.png, which is not there. find_bad_pixels makes one"),
        (["--bad-pixels", "{tmp}/o.png", "--picture", "{tmp}/o.png"], "a name of its own"),
        (["--policy", "latest"], "invalid choice: 'latest'"),
        (["--source", "rstp://host/stream"], "A source is a video"),
        (["--source", ""], "A source is a video"),
        (["--view", "192.0.2.1:8080"], "free address; 192.0.2.1:8080"),
    ],
)
def test_errors(args: list[str], message: str, run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = run("--source", CLIP, *(arg.format(tmp=tmp_path) for arg in args))
    last = error.strip().splitlines()[-1]
    assert code == 2 and last.startswith("glmd-run: error: ") and message in last
    assert list(tmp_path.iterdir()) == []
