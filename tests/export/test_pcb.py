"""--pcb: the classifier as a second graph gives PyTorch's logits and calibrated detections, or no bundle is left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from glmd_export import cli, exporter
from glmd_export.onnx_export import export_pcb
from glmd_export.parity import compare, make_pcb_reference, reference_frames
from glmd_runtime import Detector, backends, open_bundle
from glmd_runtime.bundle import Bundle, write_bundle
from glmd_runtime.calibration import Calibration, CalibrationSpec, prototypes_to_bytes
from glmd_runtime.manifest import Manifest
from glmd_runtime.reference import Reference
from glmd_runtime.verify_calibration import verify_calibration
from glmd_train.checkpoint import Checkpoint, save_checkpoint
from glmd_train.classifier import Pcb, load_classifier, rgb_of_images
from glmd_train.evaluate import torch_predict
from tests.conftest import skip_unless
from tests.export.conftest import CLASS_NAMES, SIZE_HW, draw_checkpoint, graph_spec
from tests.export.test_cli import one_line, ship

SPEC = CalibrationSpec(score_thresholds=(0.3, 0.3, 0.05))


def with_prototypes(checkpoint: Checkpoint) -> Checkpoint:
    """Prototypes as random logits are: bison has none."""
    prototypes = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    prototypes[CLASS_NAMES.index("bison")] = 0
    return replace(checkpoint, pcb=Pcb(load_classifier(), Calibration(SPEC, prototypes)))


@pytest.fixture(scope="module")
def calibrated(checkpoint: Checkpoint) -> Checkpoint:
    return with_prototypes(checkpoint)


@pytest.fixture(scope="module")
def calibrated_file(calibrated: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("pcb") / "tiny_model.safetensors", calibrated)


@pytest.fixture(scope="module")
def pcb_model(calibrated: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pcb(calibrated, tmp_path_factory.mktemp("pcb") / "pcb.onnx")


def names() -> list[str]:
    found = [name for name in ("openvino", "onnxruntime") if name in backends.available()]
    skip_unless(bool(found), "onnxruntime", "no inference library is installed")
    return found


@pytest.mark.parametrize("channels, batch", [(1, 2), (3, 1)])
def test_logits_are_pytorchs(channels: int, batch: int, tmp_path: Path) -> None:
    one = with_prototypes(draw_checkpoint(in_channels=channels))
    path = export_pcb(one, tmp_path / "pcb.onnx", batch=batch)
    torch.manual_seed(0)
    images, boxes = torch.randn(batch, channels, *SIZE_HW), 100 * torch.rand(batch, 100, 4).sort(dim=2).values
    boxes = boxes[..., [0, 2, 1, 3]]  # some are empty or inverted, as padding is
    boxes[:, 0] = torch.tensor([0.0, 0.0, SIZE_HW[1], SIZE_HW[0]])
    boxes[:, 1] = 0
    right = (boxes[..., 2:] > boxes[..., :2]).all(dim=2).numpy()
    with torch.inference_mode():
        wanted = one.pcb.classifier(rgb_of_images(images, one.preprocess), list(boxes)).numpy()
    for name in names():
        backend = backends.load(name, path)
        came = backend.run({"images": images.numpy(), "boxes": boxes.numpy()})["logits"]
        backend.close()
        assert came.shape == (batch, 100, 1000)
        np.testing.assert_allclose(came[right], wanted.reshape(came.shape)[right], atol=1e-3)


def seal(folder: Path, checkpoint: Checkpoint, model: Path, pcb: Path, reference: Reference) -> Bundle:
    manifest = Manifest(
        "tiny_model", CLASS_NAMES, checkpoint.preprocess, checkpoint.postprocess, graph_spec(checkpoint, 1),
        {"model.onnx": "fp32"}, calibration=SPEC,
    )
    files: dict[str, bytes | Path] = {
        "model.onnx": model, "pcb.onnx": pcb, "reference.npz": reference.to_bytes(),
        "prototypes.safetensors": prototypes_to_bytes(checkpoint.pcb.calibration.prototypes),
        "pcb_reference.npz": make_pcb_reference(checkpoint, reference).to_bytes(),
    }
    return write_bundle(folder / "tiny_model.glmd", manifest, files)


def test_a_classifier_that_is_not_pytorchs_fails(
    calibrated: Checkpoint, model_of_one: Path, pcb_model: Path, reference: Reference, tmp_path: Path
) -> None:
    proto = onnx.load(pcb_model)
    (last,) = [one for one in proto.graph.initializer if one.name.endswith("classifier.bias")]
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + np.float32(1), last.name))
    onnx.save(proto, tmp_path / "pcb.onnx")
    bundle = seal(tmp_path, calibrated, model_of_one, tmp_path / "pcb.onnx", reference)
    assert {row.status for row in verify_calibration(bundle)} >= {"failed"}
    rows = [row for row in compare(bundle, calibrated, reference.frames).rows if row.backend in names()]
    assert {row.stage for row in rows if row.status == "failed"} == {"calibrated"}


def test_a_checkpoint_becomes_a_bundle_that_calibrates(
    calibrated_file: Path, calibrated: Checkpoint, model_of_one: Path, pcb_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:
    ship(monkeypatch, model_of_one)
    monkeypatch.setattr(exporter, "export_pcb", lambda _, out, **__: Path(shutil.copy(pcb_model, out)))
    output = tmp_path / "a.glmd"
    assert cli.main(["--ckpt", str(calibrated_file), "--pcb", "-o", str(output), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for name in names():
        passed = {(row["engine"], row["stage"]) for row in rows if row["backend"] == name and row["status"] == "passed"}
        assert {("model.onnx", "calibrated"), ("pcb.onnx", "logits"), ("pcb.onnx", "calibrated")} <= passed
    bundle = open_bundle(output)
    assert bundle.manifest.calibration == SPEC
    found = 0
    predict = torch_predict(calibrated, 0.05)
    for frame in reference_frames():
        for name in names():
            with Detector(output, backend=name, score_threshold=0.05) as detector:
                came, wanted = detector.run(frame), predict(frame)
            np.testing.assert_allclose(np.sort(came.scores), np.sort(wanted.scores), atol=1e-3)
            found += len(came)
    assert found


def test_prototypes_are_left_out_unless_asked_for(
    calibrated_file: Path, model_of_one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    ship(monkeypatch, model_of_one)
    assert cli.main(["--ckpt", str(calibrated_file), "-o", str(tmp_path / "a.glmd")]) == 0
    assert "--pcb takes them along" in capsys.readouterr().err
    bundle = open_bundle(tmp_path / "a.glmd")
    assert bundle.manifest.calibration is None
    assert not {"pcb.onnx", "prototypes.safetensors", "pcb_reference.npz"} & set(bundle.manifest.sha256)


def test_pcb_of_a_checkpoint_without_prototypes(
    checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["--ckpt", str(checkpoint_file), "--pcb", "-o", str(tmp_path / "a.glmd")]) == 2
    assert "glmd-train prototypes" in one_line(capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
