"""glmd-export from outside: what it leaves behind, what it says, and its exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glmd_export import cli, onnx_export
from glmd_runtime import Detector, backends, open_bundle, verify_bundle
from glmd_train.checkpoint import Checkpoint
from tests.export.test_parity import spoil

Main = tuple[int, str, str]


def command(folder: Path, *arguments: object) -> Main:
    """In a process of its own: exit code, stdout, stderr."""
    program = [sys.executable, "-m", "glmd_export.cli", *map(str, arguments)]
    root = str(Path(cli.__file__).parents[1])
    environment = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr




def ship(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Let the exporter, in this process, come up with this ONNX file."""
    monkeypatch.setattr(onnx_export, "export_onnx", lambda _, out, batch: Path(shutil.copy(model, out)))


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
    assert "head on onnxruntime" in one_line(said.err)
    assert not output.parent.exists()


def test_without_an_inference_library_nothing_can_be_proven(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(backends, "available", list)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--ckpt", str(checkpoint_file)]) == 5
    assert "pip install" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, word",
    [(["--batch", "0"], "1 to 8"), (["--batch", "9"], "1 to 8"), (["-o", "model.onnx"], "model.glmd")],
)
def test_usage(arguments: list[str], word: str, checkpoint_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--ckpt", str(checkpoint_file), *arguments]) == 2
    assert word in one_line(capsys.readouterr().err)


def test_help_imports_no_framework() -> None:
    code = "import sys, glmd_export.cli as c; c.parser().format_help(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "openvino", "timm"} & set(done.stdout.split())
