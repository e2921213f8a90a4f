"""The commands, as a shell sees them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import sleep

import cv2
import numpy as np
import pytest

from glmd_runtime import backends, cli
from glmd_runtime.bundle import write_bundle
from glmd_runtime.errors import OutputError
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.recording import Recorder
from tests import tiny
from tests.conftest import skip_unless
from tests.fakes import models
from tests.fakes.gpu import FakeGpu
from tests.runtime.test_sources import claiming

ROOT = Path(__file__).parents[2]
CLIP = "sim://air?seed=3&frames=3&size=80x64"


@pytest.fixture(autouse=True)
def _installed(pyav: None) -> None:
    skip_unless(bool(backends.available()), "onnxruntime", "no inference library is installed")


def command(name: str, *args: object) -> list[str]:
    call = f"import sys; from glmd_runtime.cli import glmd_{name}_main as main; sys.argv[0] = 'glmd-{name}'; main()"
    return [sys.executable, "-c", call, *map(str, args)]


def call(name: str, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(name, *args), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done


def call_here(
    name: str, *args: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """The command in this process, which is faster: exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", [f"glmd-{name}", *map(str, args)])
    try:
        getattr(cli, f"glmd_{name}_main")()
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    return code, *capsys.readouterr()


def test_run_writes_everything_that_was_asked_for(tiny_bundle: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "out" / name for name in ("clip.mp4", "found.jsonl", "best.png")]
    options = zip(("--save", "--json", "--picture"), outputs, strict=True)
    done = call("run", "--engine", tiny_bundle, "--source", CLIP, *(part for pair in options for part in pair))
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"{CLIP}: 3 frames, 6 detections, ") and "ms a frame" in last
    assert all(str(path) in last for path in outputs)
    lines = [json.loads(line) for line in outputs[1].read_text().splitlines()]
    assert [(line["frame"], len(line["detections"])) for line in lines] == [(0, 2), (1, 2), (2, 2)]
    picture = cv2.imread(str(outputs[2]))
    assert picture is not None and picture.shape[1] >= 900
    assert sorted(outputs[0].parent.iterdir()) == sorted(outputs)


def test_a_picture_that_claims_to_be_huge_is_one_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--engine", tiny_bundle, "--source", claiming(tmp_path / "a.png", 60_000), "--json", tmp_path / "a.jsonl")
    code, _, said = call_here("run", *asked, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and "Traceback" not in said and "at most 2**20 pixels a side" in said


def test_the_levels_of_opencvs_log_in_4_and_5(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    levels: list[int] = []
    monkeypatch.delattr(cv2.utils, "logging", raising=False)
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    options = ("--engine", tiny_bundle, "--source", CLIP, "--json", tmp_path / "found.jsonl")
    assert call_here("run", *options, monkeypatch=monkeypatch, capsys=capsys)[0] == 0 and levels == [2]


def test_frames_without_detections_are_lines_too(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    call("run", "--engine", tiny_bundle, "--source", CLIP, "--json", path, "--score", 1, "--threads", 1)
    assert [json.loads(line)["detections"] for line in path.read_text().splitlines()] == [[], [], []]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--source", "absent.mp4"], 1, "absent.mp4 does not exist"),
        (["--source", "sim://moon"], 2, "sim://moon"),
        (["--source", "sim://air?sed=3"], 2, "got 'sed'"),
        (["--source", "sim://air?frames=0", "--json", "{tmp}/o.jsonl"], 2, "frames=N"),
        (["--source", "sim://air?frames=0", "--picture", "{tmp}/o.png"], 2, "frames=N"),
        (["--source", CLIP, "--engine", "absent.glmd"], 1, "absent.glmd is nothing"),
        (["--source", CLIP, "--engine", "{tmp}/in.png"], 1, "in.png is a file in no bundle. Make one with"),
        (["--source", CLIP, "--engine", "{tmp}/in.png", "--json", "{tmp}/a.json"], 1, "in.png is a file in no bundle"),
        (["--source", CLIP, "--score", "7"], 2, "score_threshold must be in 0..1; got 7.0"),
        (["--source", CLIP, "--threads", "0"], 2, "at least 1; got 0"),
        (["--source", CLIP, "--backend", "abacus"], 2, "invalid choice: 'abacus'"),
        (["--source", CLIP, "--picture", "{tmp}/out.xyz"], 2, "--picture must end in .png"),
        (["--source", CLIP, "--save", "{tmp}/out.avi"], 2, "--save must end in .mp4"),
        (["--source", CLIP, "--json", "{tmp}/other.mp4"], 2, "--json must end in .jsonl or .json"),
        (["--source", CLIP, "--save", "{tmp}/a.mp4", "--json", "{tmp}/a.mp4"], 2, "a name of its own"),
        (["--source", "{tmp}/in.png", "--picture", "{tmp}/in.png"], 2, "outside the source and the bundle; "),
        (["--source", "{tmp}/in.png?fps=5", "--picture", "{tmp}/in.png"], 2, "outside the source and the bundle; "),
        (["--source", "{tmp}/*.png", "--picture", "{tmp}/in.png"], 2, "outside the source and the bundle; "),
        (["--source", CLIP, "--record", "{tmp}/a.mkv", "--json", "{tmp}/a.mkv.jsonl"], 2, "a name of its own"),
        (["--source", "{tmp}", "--picture", "{tmp}/in.png"], 2, "outside the source and the bundle; "),
        (["--source", "{tmp}", "--json", "{tmp}/new/out.json"], 2, "outside the source and the bundle; "),
        (["--source", CLIP, "--engine", "{bundle}", "--json", "{bundle}/verify.json"], 2, "and the bundle"),
        (["--source", CLIP, "--engine", "{bundle}/model.onnx", "--json", "{bundle}/verify.json"], 2, "and the bundle"),
        (["--source", CLIP, "--json", "{tmp}/in.png/out.jsonl"], 2, "Choose another path"),
        (["--source", CLIP, "--json", "/proc/nothing/out.jsonl"], 2, "Choose another path"),
        ([], 2, "--source"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    args: list[str],
    code: int,
    message: str,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), np.zeros((8, 8), np.uint8))
    before = (tmp_path / "in.png").read_bytes()
    given = [arg.format(tmp=tmp_path, bundle=tiny_bundle) for arg in args]
    came, _, said = call_here("run", "--engine", tiny_bundle, *given, monkeypatch=monkeypatch, capsys=capsys)
    last = said.strip().splitlines()[-1]
    assert came == code and last.startswith("glmd-run: error: ") and message in last
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"] and (tmp_path / "in.png").read_bytes() == before


def test_a_checkpoint_for_an_engine_is_told_how_to_become_one(tiny_bundle: Path, tmp_path: Path) -> None:
    """Beside bundles, as `glmd-train teach` leaves it."""
    checkpoint = tmp_path / "taught.safetensors"
    checkpoint.write_bytes(b"")
    (tmp_path / "other.glmd").mkdir()
    said = call("run", "--engine", checkpoint, "--source", CLIP, code=1).stderr.strip().splitlines()[-1]
    assert said == (
        f"glmd-run: error: A bundle is a directory 'name.glmd/', an engine a file inside one; {checkpoint} is a "
        f"checkpoint. Make a bundle of it: glmd-export --ckpt {checkpoint}"
    )


def test_a_failure_halfway_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    for name, size in [("a.png", 8), ("b.png", 8), ("c.png", 9)]:
        cv2.imwrite(str(clip / name), np.zeros((size, size), np.uint8))
    out = tmp_path / "out"
    args = ("--save", out / "o.mp4", "--json", out / "o.jsonl", "--picture", out / "o.png")
    done = call("run", "--engine", tiny_bundle, "--source", clip, *args, code=1)
    assert "c.png" in done.stderr
    assert list(out.iterdir()) == []


def test_a_file_that_fails_at_the_last_frame_costs_the_others_too(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They lack that frame, though the source was read to its end."""
    def full(self: Recorder, frame: Frame) -> None:
        if frame.index == 2:
            raise OutputError("no room")

    monkeypatch.setattr(Recorder, "write", full)
    out = tmp_path / "out"
    args = ("--source", CLIP, "--json", out / "o.jsonl", "--record", out / "o.mkv")
    code, _, said = call_here("run", "--engine", tiny_bundle, *args, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and "no room" in said and list(out.iterdir()) == []


def test_interrupt_leaves_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    long = command(
        "run", "--engine", tiny_bundle, "--source", "sim://air?frames=1000000&size=80x64", "--json", out / "o.jsonl"
    )
    with subprocess.Popen(long, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as process:
        while process.poll() is None and not (out.exists() and list(out.iterdir())):
            sleep(0.05)
        sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in error
    assert error.endswith(b"glmd-run: stopped; unfinished outputs were discarded, recordings kept\n")
    assert list(out.iterdir()) == []


def test_verify_says_what_passed(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = call_here("verify", tiny_bundle, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and said.split()[:2] == ["passed", "preprocess"]
    code, written, _ = call_here("verify", tiny_bundle, "--json", monkeypatch=monkeypatch, capsys=capsys)
    report = json.loads(written)
    assert code == 0 and report["status"] == "passed"
    *lines, summary = said.splitlines()
    assert len(lines) == len(report["rows"])
    assert summary == f"passed: {said.count('passed ')} passed, 0 failed, {said.count('not run ')} not run"


def test_verify_exits_with_3_on_another_answer(tmp_path: Path) -> None:
    wrong = replace(tiny.reference(), scores=tiny.reference().scores + np.float32(0.05))
    files = {"model.onnx": tiny.model(), "reference.npz": wrong.to_bytes()}
    path = write_bundle(tmp_path / "wrong.glmd", tiny.manifest(), files).path
    done = call("verify", path, "--json", code=3)
    assert json.loads(done.stdout)["status"] == "failed"
    assert done.stderr.startswith("glmd-verify: error: ") and "score_error" in done.stdout


def test_verify_exits_with_5_when_no_engine_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"model.onnx": tiny.model(), "reference.npz": tiny.reference().to_bytes()}
    manifest = replace(tiny.manifest(), engines={"model.onnx": "int3"})
    path = write_bundle(tmp_path / "t.glmd", manifest, files).path
    code, said, error = call_here("verify", path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 5 and "not run" in said
    assert "no tolerance is defined for int3" in error and "pip install" in error


def test_verify_refuses_an_altered_bundle(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_bundle / "model.onnx").write_bytes(b"")
    code, _, said = call_here("verify", own_bundle, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and "was altered" in said


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("run", ["--backend", "--json", "--device", "--build"]),
        ("verify", ["--backend", "--json"]),
        ("doctor", ["bundle", "--prune", "--json"]),
    ],
)
def test_help_names_every_option(name: str, options: list[str]) -> None:
    text = call(name, "--help").stdout
    assert f"usage: glmd-{name}" in text and all(option in text for option in options)


def test_run_builds_a_tensorrt_engine_once(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = models.half_bundle(tmp_path / "t.glmd").path
    for times in (1, 2):
        code, said, told = call_here(
            "run", "--engine", path, "--source", CLIP, monkeypatch=monkeypatch, capsys=capsys
        )
        assert code == 0 and said.strip().endswith("(tensorrt, fp16, cuda:0)")
        assert told.count("Building a TensorRT engine") == (times == 1)
    code, said, _ = call_here("verify", path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and gpu.builds == 1
    assert [line.split()[0] for line in said.splitlines() if " tensorrt " in line] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--backend", "tensorrt", "--build", "never"], 5, "build='auto'"),
        (["--backend", "tensorrt", "--device", "cpu"], 5, "CUDA devices only"),
        (["--device", "gpu"], 2, "cpu, cuda or cuda:N; got 'gpu'"),
        (["--backend", "tensorrt_rtx"], 5, "tensorrt_rtx"),
    ],
)
def test_errors_of_engines_are_one_line_too(
    args: list[str],
    code: int,
    message: str,
    gpu: FakeGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = models.half_bundle(tmp_path / "t.glmd").path
    given = ["--engine", path, "--source", CLIP, *args]
    came, _, said = call_here("run", *given, monkeypatch=monkeypatch, capsys=capsys)
    last = said.strip().splitlines()[-1]
    assert came == code and last.startswith("glmd-run: error: ") and message in last


def test_verify_exits_with_3_when_the_built_engine_is_wrong(
    gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu.fault("wrong")
    path = models.half_bundle(tmp_path / "t.glmd").path
    code, _, said = call_here("verify", path, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 3 and "model.fp16.onnx on tensorrt" in said
