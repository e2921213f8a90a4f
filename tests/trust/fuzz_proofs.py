"""What is fuzzed of a bundle's proofs, in a bundle sealed by somebody who knows how, and of the record of an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.trust.fuzz_mutations import Target, arrays, json_values

if TYPE_CHECKING:
    from glmd_runtime.bundle import Bundle


def resealed(path: Path, name: str, content: bytes) -> Bundle:
    """The bundle with another content of one of its files, and the hashes of it."""
    from glmd_runtime.bundle import SEAL, open_bundle
    from glmd_runtime.manifest import MANIFEST

    (path / name).write_bytes(content)
    values = json.loads((path / MANIFEST).read_text())
    values["sha256"][name], values["sizes"][name] = hashlib.sha256(content).hexdigest(), len(content)
    manifest = json.dumps(values).encode()
    (path / MANIFEST).write_bytes(manifest)
    (path / SEAL).write_text(hashlib.sha256(manifest).hexdigest() + "\n")
    return open_bundle(path)


def verify(folder: Path) -> Target:
    """verify.json, as far as it decides which engine runs."""
    from glmd_runtime import backends, selection
    from glmd_runtime.bundle import VERIFY
    from glmd_runtime.verify_report import VerifyReport
    from tests import tiny

    path = tiny.bundle(folder / "tiny.glmd").path

    def run(data: bytes) -> None:
        bundle = resealed(path, VERIFY, data)
        selection._fastest(bundle, list(bundle.manifest.engines), list(backends.BACKENDS))
        report = VerifyReport.from_dict(bundle.verify)
        json.dumps([report.summary, report.to_dict()], allow_nan=False)

    rows = [{**row, "reason": "two\nlines", "metrics": {"error": 0.5}} for row in tiny.report().to_dict()["rows"]]
    return Target(run, [json.dumps({"status": "passed", "rows": rows}).encode()], json_values)


def reference(folder: Path) -> Target:
    """reference.npz, and an engine that is compared with it."""
    from glmd_runtime.backends.fake import FakeBackend
    from glmd_runtime.bundle import REFERENCE
    from glmd_runtime.verify import check_engine, check_preprocess
    from tests import tiny

    path = tiny.bundle(folder / "tiny.glmd").path
    script = [[((10, 10, 20, 40), 0, 0.9), ((40, 20, 80, 64), 1, 0.4)], []]

    def run(data: bytes) -> None:
        bundle = resealed(path, REFERENCE, data)
        manifest, answers = bundle.manifest, bundle.reference
        with np.errstate(all="ignore"):
            check_preprocess(answers, manifest.preprocess)
            check_engine(FakeBackend(manifest.graph, script), "fake", "model.onnx", manifest, answers)

    return Target(run, [tiny.reference().to_bytes()], arrays)


class _Calibrator:
    """In the place of one that runs pcb.onnx: the answers of `pcb_reference`'s seed."""

    def __init__(self, *_: Any) -> None:
        from glmd_runtime.calibration import Calibration, CalibrationSpec

        self.calibration = Calibration(CalibrationSpec(), np.ones((2, 3), np.float32))

    def logits(self, images: np.ndarray, boxes: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.ones((len(one), 3), np.float32) for one in boxes]

    def close(self) -> None:
        pass


def pcb_reference(folder: Path) -> Target:
    """pcb_reference.npz, and a classifier that is compared with it."""
    from dataclasses import replace

    from glmd_runtime import verify_calibration
    from glmd_runtime.bundle import PCB_MODEL, PCB_REFERENCE, PROTOTYPES, REFERENCE, write_bundle
    from glmd_runtime.calibration import CalibrationSpec, prototypes_to_bytes
    from glmd_runtime.errors import BundleError
    from glmd_runtime.verify_calibration import PcbReference, candidates, everything
    from tests import tiny

    verify_calibration.Calibrator = _Calibrator  # type: ignore[assignment,misc]
    manifest, answers = replace(tiny.manifest(), calibration=CalibrationSpec()), tiny.reference()
    spec = everything(manifest.postprocess)
    found = candidates(_Calibrator().calibration, answers.raw_outputs, answers.valid_hw, spec)
    counts = np.array([len(one) for one in found])
    boxes = np.concatenate([one.xyxy for one in found])
    seed = PcbReference(counts, boxes, np.ones((len(boxes), 3), np.float32)).to_bytes()
    files: dict[str, bytes | Path] = {"model.onnx": tiny.model(), REFERENCE: answers.to_bytes(), PCB_REFERENCE: seed}
    files |= {PCB_MODEL: b"run by nobody", PROTOTYPES: prototypes_to_bytes(np.ones((2, 3), np.float32))}
    path = write_bundle(folder / "tiny.glmd", manifest, files).path

    def run(data: bytes) -> None:
        bundle = resealed(path, PCB_REFERENCE, data)
        with np.errstate(all="ignore"):
            rows = verify_calibration.verify_calibration(bundle, "onnxruntime")
        assert rows and (data != seed or all(row.status == "passed" for row in rows)), rows
        if any(row.status != "passed" for row in rows):
            raise BundleError(rows[0].reason)

    return Target(run, [seed], arrays)


def record(folder: Path) -> Target:
    """The record beside a TensorRT engine, as the cache and whoever loads the engine read it."""
    from glmd_runtime.plans import cache
    from glmd_runtime.plans.plan import PlanRecord, record_path, sha256

    plan, again = folder / "model.engine", folder / "again.engine"
    plan.write_bytes(b"a plan")

    def run(data: bytes) -> None:
        record_path(plan).write_bytes(data)
        read = PlanRecord.read(plan)
        read.write(again)
        assert PlanRecord.read(again) == read
        cache._why_stale(plan, read)

    PlanRecord("tensorrt", "10.3.0", "8.7", "fp16", sha256(plan), "0" * 64, "", 12.5).write(plan)
    return Target(run, [record_path(plan).read_bytes()], json_values)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "verify": verify, "reference": reference, "pcb_reference": pcb_reference, "record": record,
}
