"""glmd-export from outside: what it leaves behind, what it says, and its exit code."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from glmd_export import cli, exporter
from glmd_runtime import Detector, backends, open_bundle, verify_bundle
from glmd_runtime.errors import UnsupportedError
from glmd_runtime.video.simulator import snapshot
from glmd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.export.conftest import draw_checkpoint
from tests.export.test_parity import spoil

Main = tuple[int, str, str]
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models" / "thermal_lite0.safetensors"


def command(folder: Path, *arguments: object, before: Callable[[], None] | None = None) -> Main:
    """In a process of its own: exit code, stdout, stderr."""
    program = [sys.executable, "-m", "glmd_export.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, env=environment, preexec_fn=before)
    return done.returncode, done.stdout, done.stderr


def ship(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Let the exporter, in this process, come up with this ONNX file."""
    monkeypatch.setattr(exporter, "export_onnx", lambda _, out, **__: Path(shutil.copy(model, out)))


def test_a_checkpoint_becomes_a_verified_bundle(
    checkpoint_file: Path, checkpoint: Checkpoint, model_of_one: Path, tmp_path: Path
) -> None:
    code, out, err = command(tmp_path, "--ckpt", checkpoint_file, "--json")
    assert code == 0, err
    assert json.loads(out)["status"] == "passed"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny_model.glmd"]
    bundle = open_bundle(tmp_path / "tiny_model.glmd")
    assert bundle.verify == json.loads(out)
    assert len(bundle.reference) == 4
    assert bundle.manifest.provenance["checkpoint"]["file"] == checkpoint_file.name
    assert verify_bundle(bundle).status == "passed"
    with Detector(bundle.path, score_threshold=0.01) as detector:
        assert detector.class_names == checkpoint.class_names
        assert len(detector.run(bundle.reference.frames[0]))
    # Another process wrote the same bytes.
    assert (bundle.path / "model.onnx").read_bytes() == model_of_one.read_bytes()


def test_an_existing_path_is_not_touched(checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.glmd").write_text("precious")
    assert cli.main(["--ckpt", str(checkpoint_file), "-o", str(tmp_path / "mine.glmd")]) == 2
    assert (tmp_path / "mine.glmd").read_text() == "precious"
    assert "--overwrite" in one_line(capsys.readouterr().err)


def test_overwrite_replaces_a_bundle_and_prints_a_table(
    checkpoint_file: Path, model_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    ship(monkeypatch, model_of_one)
    arguments = ["--ckpt", str(checkpoint_file), "-o", str(tmp_path / "a.glmd")]
    assert cli.main(arguments) == 0
    (tmp_path / "a.glmd" / "verify.json").unlink()
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert open_bundle(tmp_path / "a.glmd").verify["status"] == "passed"
    table = capsys.readouterr().out
    assert all(word in table for word in ("onnxruntime", "objectness_error", "detections", "passed"))


def test_a_directory_that_is_no_bundle_is_never_replaced(
    checkpoint_file: Path, model_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(monkeypatch, model_of_one)
    (tmp_path / "photos.glmd").mkdir()
    (tmp_path / "photos.glmd" / "cat.png").write_bytes(b"cat")
    assert cli.main(["--ckpt", str(checkpoint_file), "-o", str(tmp_path / "photos.glmd"), "--overwrite"]) == 1
    assert (tmp_path / "photos.glmd" / "cat.png").read_bytes() == b"cat"


def one_line(text: str) -> str:
    (line,) = [line for line in text.splitlines() if "glmd-export: error:" in line]
    assert text.rstrip().endswith(line) and "Traceback" not in text
    return line


BROKEN = {
    "missing": (None, "does not exist"),
    "empty": (b"", "damaged"),
    "cut short": (slice(0, 5000), "damaged"),
    "something else": (b"PK\x03\x04 a zip of holiday pictures" * 100, "damaged"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint(
    case: str, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    content, word = BROKEN[case]
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    broken = tmp_path / "broken.safetensors"
    if content is not None:
        broken.write_bytes(checkpoint_file.read_bytes()[content] if isinstance(content, slice) else content)
    assert cli.main(["--ckpt", str(broken)]) == 1
    assert word in one_line(capsys.readouterr().err)
    assert not list(work.iterdir())


def test_answers_that_differ_leave_no_bundle(
    checkpoint_file: Path, model_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    ship(monkeypatch, spoil(model_of_one, tmp_path, "head"))
    output = tmp_path / "out" / "wrong.glmd"
    assert cli.main(["--ckpt", str(checkpoint_file), "-o", str(output), "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["status"] == "failed"
    assert "head of model.onnx on onnxruntime" in one_line(said.err)
    assert not output.parent.exists()


def test_without_an_inference_library_nothing_can_be_proven(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(backends, "why_not", lambda name: f"{name} is broken. Run: pip install '.[cpu]'")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--ckpt", str(checkpoint_file), "--fp16"]) == 5
    assert "pip install" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, word",
    [
        (["--batch", "0"], "1 to 8"),
        (["--batch", "9"], "1 to 8"),
        (["-o", "model.onnx"], "model.glmd"),
        (["--int8"], "--calib DIR"),
        (["--calib", "."], "--int8"),
        (["--int8", "--calib", "nowhere"], "nowhere is none"),
        (["--engines", "tensorrt_rtx"], "--fp16, or --int8"),
        (["--max-drop", "-1"], "0..100"),
        (["--data", "nowhere.json"], "nowhere.json does not exist"),
        (["--junit", "no/such/folder.xml"], "folder does not exist"),
    ],
)
def test_usage(arguments: list[str], word: str, checkpoint_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--ckpt", str(checkpoint_file), *arguments]) == 2
    assert word in one_line(capsys.readouterr().err)


def test_an_engine_asked_for_by_name_must_be_possible(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends, "why_not", lambda name: "no GPU is here" if name == "tensorrt" else "")
    assert cli.main(["--ckpt", str(checkpoint_file), "--fp16", "--engines", "tensorrt"]) == 5
    assert "no GPU is here" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engines, code", [([], 0), (["--engines", "openvino"], 5)])
def test_what_cannot_be_built_here_is_not_run_unless_it_was_asked_for(
    engines: list[str], code: int, checkpoint_file: Path, model_of_one: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedError("This library is on holiday. Run: pip install it")

    ship(monkeypatch, model_of_one)
    monkeypatch.setattr(exporter, "build_openvino", refuse)
    output = tmp_path / "a.glmd"
    assert cli.main(["--ckpt", str(checkpoint_file), "-o", str(output), "--json", *engines]) == code
    said = capsys.readouterr()
    if code:
        assert "on holiday" in one_line(said.err) and not output.exists()
        return
    row = next(r for r in json.loads(said.out)["rows"] if r["stage"] == "build")
    assert (row["engine"], row["status"]) == ("openvino.fp32.xml", "not_run") and "pip install" in row["reason"]
    assert set(open_bundle(output).manifest.engines) == {"model.onnx"}


def test_a_bundle_of_the_graph_alone(checkpoint_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.glmd"
    assert cli.main(["--ckpt", str(checkpoint_file), "-o", str(output), "--engines", "onnxruntime"]) == 0
    assert set(open_bundle(output).manifest.engines) == {"model.onnx"}


def test_a_disk_that_is_full_leaves_nothing(checkpoint_file: Path, tmp_path: Path) -> None:
    """As a limit on the size of files, which fails in the same calls."""
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    code, _, err = command(tmp_path, "--ckpt", checkpoint_file, before=limit)
    assert code == 1 and "File too large" in one_line(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.no_cover
@pytest.mark.parametrize("word", ["export model.onnx", "run PyTorch", "compared raw"])
def test_killed_in_the_middle_leaves_no_bundle(word: str, checkpoint_file: Path, tmp_path: Path) -> None:
    program = f"""
import glmd_export.exporter as e, glmd_train.checkpoint as c, os, signal, sys
from pathlib import Path
def step(text):
    if {word!r} in text:
        os.kill(os.getpid(), signal.SIGKILL)
path = Path(sys.argv[1])
e.export_bundle(c.load_checkpoint(path), path, Path("a.glmd"), e.Recipe(engines=("openvino",)), step=step)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(checkpoint_file)], cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "a.glmd").exists()


@pytest.mark.no_cover
def test_a_size_that_the_stride_does_not_divide_is_exported_exactly(tmp_path: Path) -> None:
    odd = draw_checkpoint()
    odd = replace(odd, preprocess=replace(odd.preprocess, size_hw=(101, 150)))
    file = save_checkpoint(tmp_path / "odd.safetensors", odd)
    report = exporter.export_bundle(load_checkpoint(file), file, tmp_path / "odd.glmd", exporter.Recipe())
    assert [row for row in report.rows if row.status == "failed"] == []


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as torch.save leaves one, with a file of its class names beside it."""
    shipped = load_checkpoint(SHIPPED)
    folder = tmp_path_factory.mktemp("pth")
    (folder / "names.txt").write_text("\n".join(shipped.class_names))
    torch.save({"model": shipped.model.state_dict(), "optimizer": {"lr": 0.1}, "iteration": 7}, folder / "lite.pth")
    return folder / "lite.pth"


@pytest.mark.no_cover
def test_the_shipped_model_in_half_precision_from_a_pth_file(pth: Path, tmp_path: Path) -> None:
    names = pth.with_name("names.txt")
    code, out, err = command(tmp_path, "--ckpt", pth, "--classes", names, "--fp16", "--end2end", "--json")
    assert code == 0, err
    bundle = open_bundle(tmp_path / "lite.glmd")
    assert bundle.manifest.engines == {
        "model.onnx": "fp32", "openvino.fp32.xml": "fp32", "model.fp16.onnx": "fp16",
        "model.plugin.fp16.onnx": "fp16", "tensorrt_rtx.fp16.engine": "fp16",
    }
    rows = json.loads(out)["rows"]
    cpu = [r for r in rows if r["backend"] in ("onnxruntime", "openvino", "lint", "numpy")]
    assert {r["status"] for r in cpu} == {"passed"}
    ran = {(r["engine"], r["backend"]) for r in cpu if r["stage"] in ("detections", "end2end")}
    assert ran == {
        ("model.onnx", "openvino"), ("model.onnx", "onnxruntime"), ("openvino.fp32.xml", "openvino"),
        ("model.fp16.onnx", "onnxruntime"), ("end2end.onnx", "onnxruntime"), ("end2end.fp16.onnx", "onnxruntime"),
    }
    for backend in ("tensorrt", "tensorrt_rtx"):
        theirs = [r for r in rows if r["backend"] == backend]
        if backends.why_not(backend):
            assert {r["status"] for r in theirs} == {"not_run"}
            assert all(f"glmd-verify lite.glmd --backend {backend}" in r["reason"] for r in theirs)


@pytest.mark.no_cover
def test_the_shipped_model_in_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Calibrated on simulated frames, so that it runs where there is no real data."""
    calib = tmp_path / "calib"
    calib.mkdir()
    for seed in range(6):
        for world in ("ground", "air"):
            cv2.imwrite(str(calib / f"{world}{seed}.png"), snapshot(world, 500 + seed, (512, 640)).image)
    output = tmp_path / "lite.glmd"
    arguments = ["--ckpt", SHIPPED, "--int8", "--calib", calib, "-o", output, "--json", "--junit", tmp_path / "j.xml"]
    assert cli.main(list(map(str, [*arguments, "--plot", tmp_path / "scores.png"]))) == 0, capsys.readouterr().err
    rows = json.loads(capsys.readouterr().out)["rows"]
    said = {(r["engine"], r["backend"]): r for r in rows if r["stage"] == "agreement"}
    assert set(said) == {("openvino.int8.xml", "openvino"), ("model.int8.onnx", "onnxruntime")}
    assert all(r["status"] == "passed" and "not measured" in r["reason"] for r in said.values())
    assert {"model.s8.onnx", "tensorrt_rtx.int8.engine"} <= set(open_bundle(output).manifest.engines)
    assert "<testsuite" in (tmp_path / "j.xml").read_text()
    assert cv2.imread(str(tmp_path / "scores.png")) is not None
    with Detector(output, device="cpu") as detector:
        assert detector.info()["precision"] == "int8"


def test_help_imports_no_framework() -> None:
    code = "import sys, glmd_export.cli as c; c.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "openvino", "timm"} & set(done.stdout.split())
