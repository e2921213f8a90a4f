"""A checkpoint becomes a sealed bundle: graphs, engines, comparison with PyTorch, and only then the bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_export.accuracy import accuracy_rows, agreement_rows, ran
from glmd_export.builders import build_openvino, build_rtx
from glmd_export.lint import lint
from glmd_export.onnx_export import export_onnx, export_pcb, graph_spec
from glmd_export.parity import compare_rows, end2end_row, make_pcb_reference, make_reference, reference_frames
from glmd_export.precision import Precision
from glmd_export.quantize import (
    CalibrationImages,
    calibration_images,
    quantize_onnxruntime,
    quantize_openvino,
    quantize_s8,
)
from glmd_export.report import plot_scores
from glmd_runtime import backends
from glmd_runtime.bundle import PCB_MODEL, PCB_REFERENCE, PROTOTYPES, REFERENCE, VERIFY, Bundle, write_bundle
from glmd_runtime.calibration import prototypes_to_bytes
from glmd_runtime.comparison import TOLERANCES, score_pairs
from glmd_runtime.engines import open_engine
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.files.scratch import work_folder
from glmd_runtime.files.values import shown
from glmd_runtime.manifest import Manifest
from glmd_runtime.tuned import TunedSpec
from glmd_runtime.verify import run_engine
from glmd_runtime.verify_calibration import verify_calibration
from glmd_runtime.verify_report import VerifyReport, VerifyRow
from glmd_train.checkpoint import Checkpoint

MODEL, HALF, HALF_PLUGIN = "model.onnx", "model.fp16.onnx", "model.plugin.fp16.onnx"
INT8, S8 = "model.int8.onnx", "model.s8.onnx"
Step = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """What a bundle is to hold beside model.onnx.

    batch        images a call, 1 to 8
    fp16         the FP16 graphs, plain and with plugins, and the engines built from them
    calibration  a folder of pictures: INT8 graphs and engines, calibrated on them
    data         COCO annotation files: AP of every engine against PyTorch's
    max_drop     points of AP that INT8 may cost
    end2end      graphs with the final NMS, for servers
    pcb          the checkpoint's prototypical calibration, as a second graph; left out otherwise
    enroll       the pooled vectors as an output, from which a Detector learns classes
    engines      names of the backends to build for, which then must be possible; None is all that is possible here
    """

    batch: int = 1
    fp16: bool = False
    calibration: Path | None = None
    data: tuple[Path, ...] = ()
    max_drop: float = 1.0
    end2end: bool = False
    pcb: bool = False
    enroll: bool = False
    engines: tuple[str, ...] | None = None

    def wants(self, engine: str) -> bool:
        return self.engines is None or engine in self.engines


@dataclass(frozen=True)
class Draft:
    """A bundle before its proof, in a scratch folder, with what the proof needs.

    bundle   all files but verify.json; its engines can be run by name
    rows     what is said of building
    end2end  graphs for servers, file -> precision, which a Detector, with an NMS of its own, does not run
    """

    bundle: Bundle
    checkpoint: Checkpoint
    recipe: Recipe
    rows: tuple[VerifyRow, ...]
    end2end: Mapping[str, Precision]


def export_bundle(
    checkpoint: Checkpoint, ckpt: Path, output: Path, recipe: Recipe, *, overwrite: bool = False,
    plot: Path | None = None, step: Step = lambda _: None,
) -> VerifyReport:
    """Export, build, compare, and write the bundle only if nothing failed.

    Args: ckpt, the checkpoint's file, for the record; plot, a picture to write of each engine's scores against
        PyTorch's; step, told what begins.
    Raises: UnsupportedError for an engine asked for by name that cannot be built or run here; PrecisionError for one
        that was not built in its precision; BundleError; UsageError for PCB of a checkpoint without prototypes.
    """
    with work_folder("glmd-export") as scratch:
        draft = draft_bundle(checkpoint, ckpt, scratch / output.name, recipe, step)
        return prove_and_write(draft, output, overwrite=overwrite, plot=plot, step=step)


def draft_bundle(
    checkpoint: Checkpoint, ckpt: Path, path: Path, recipe: Recipe, step: Step = lambda _: None
) -> Draft:
    """The first half of `export_bundle`: export and build the bundle `path`, in a folder that is empty so far."""
    _require(recipe)
    checkpoint = _with_or_without_pcb(checkpoint, recipe)
    made = _Making(checkpoint, recipe, path.parent, step)
    made.make()
    manifest = Manifest(
        name=shown(ckpt.stem),
        class_names=checkpoint.class_names,
        preprocess=checkpoint.preprocess,
        postprocess=checkpoint.postprocess,
        graph=graph_spec(checkpoint, recipe.batch, recipe.enroll),
        engines=made.engines,
        provenance=_provenance(ckpt, checkpoint.provenance),
        calibration=checkpoint.pcb.calibration.spec if checkpoint.pcb else None,
    )
    step("run PyTorch on the reference frames")
    reference = make_reference(checkpoint, reference_frames(), features=recipe.enroll)
    files: dict[str, bytes | Path] = {**made.files, REFERENCE: reference.to_bytes()}
    if checkpoint.pcb:
        files[PROTOTYPES] = prototypes_to_bytes(checkpoint.pcb.calibration.prototypes)
        files[PCB_REFERENCE] = make_pcb_reference(checkpoint, reference).to_bytes()
    bundle = write_bundle(path, manifest, files)
    return Draft(bundle, checkpoint, recipe, tuple(made.rows), made.end2end)


def prove_and_write(
    draft: Draft, output: Path, *, tuned: TunedSpec | None = None, overwrite: bool = False, plot: Path | None = None,
    step: Step = lambda _: None,
) -> VerifyReport:
    """The second half of `export_bundle`: compare with PyTorch, and write the bundle only if nothing failed.

    Args: tuned, what the manifest says of the machine that the bundle is for.
    """
    bundle, recipe, rows = draft.bundle, draft.recipe, list(draft.rows)
    for row in compare_rows(bundle, draft.checkpoint, bundle.reference.frames):
        step(f"compared {row.stage} of {row.engine} on {row.backend}")
        rows.append(row)
    rows += verify_calibration(bundle)
    for name, precision in draft.end2end.items():
        step(f"run {name}")
        rows.append(end2end_row(bundle, name, precision))
    _require_ran(recipe, rows)
    rows += accuracy_rows(bundle, draft.checkpoint, rows, recipe.data, recipe.max_drop, step)
    if recipe.calibration and not recipe.data:
        images = calibration_images(recipe.calibration, draft.checkpoint.preprocess)
        rows += agreement_rows(bundle, draft.checkpoint, rows, images, step)
    if plot:
        plot_scores(plot, dict(_score_pairs(bundle, rows)))
    report = VerifyReport(tuple(rows))
    if report.status == "passed":
        files = {**bundle.files, VERIFY: json.dumps(report.to_dict(), indent=2).encode()}
        write_bundle(output, replace(bundle.manifest, name=shown(output.stem), tuned=tuned), files, overwrite=overwrite)
    return report


def _with_or_without_pcb(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """What is exported is what is compared with: PyTorch calibrates if the bundle does."""
    if recipe.pcb and checkpoint.pcb is None:
        raise UsageError(
            "--pcb needs a checkpoint with prototypes; this one has none. Add them: glmd-train prototypes --checkpoint "
            "FILE --support JSON -o NEW.safetensors"
        )
    return checkpoint if recipe.pcb else replace(checkpoint, pcb=None)


def _require(recipe: Recipe) -> None:
    """Refuse before the work what could not be done after it."""
    why = [backends.why_not(name) for name in backends.readers(MODEL)]
    if all(why):
        raise UnsupportedError(f"Comparing the export with PyTorch needs an inference library: {' '.join(why)}")
    for name in recipe.engines or ():
        # TensorRT-RTX builds without the GPU that it needs to run.
        if name != "tensorrt_rtx":
            backends.require(name)


def _require_ran(recipe: Recipe, rows: list[VerifyRow]) -> None:
    """Of an engine asked for by name no row may be not_run; TensorRT-RTX is built where it cannot run."""
    for row in rows:
        if row.status == "not_run" and row.backend in (recipe.engines or ()) and row.backend != "tensorrt_rtx":
            raise UnsupportedError(row.reason)


def _score_pairs(bundle: Bundle, rows: list[VerifyRow]) -> Iterator[tuple[str, NDArray[np.floating[Any]]]]:
    """"engine on backend" -> (P, 2) scores of PyTorch and of the engine in the bundle's reference frames."""
    for engine, name in ran(rows):
        backend = open_engine(bundle, engine, name)
        try:
            came = run_engine(backend, bundle.manifest, bundle.reference)
        finally:
            backend.close()
        tolerance = TOLERANCES[bundle.manifest.engines[engine]]
        yield f"{engine} on {name}", score_pairs(bundle.reference.raw_outputs, came, tolerance)


@dataclass
class _Making:
    """The files of a bundle as they come into being; `engines` are file -> precision of what a backend loads."""

    checkpoint: Checkpoint
    recipe: Recipe
    folder: Path
    step: Step
    files: dict[str, Path] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    end2end: dict[str, Precision] = field(default_factory=dict)
    rows: list[VerifyRow] = field(default_factory=list)

    def make(self) -> None:
        folder = self.recipe.calibration
        # First, as a wrong folder should not cost the work before it.
        images = calibration_images(folder, self.checkpoint.preprocess) if folder else None
        self._graph(MODEL, "standard", "fp32", spared=True)
        self._build("openvino", "openvino.fp32.xml", "fp32", lambda out: build_openvino(self.files[MODEL], out))
        if self.recipe.fp16:
            self._half()
        if images:
            self._int8(images)
        if self.recipe.end2end:
            self._end_to_end()
        if self.recipe.pcb:
            self.step(f"export {PCB_MODEL}")
            path, batch = self.folder / PCB_MODEL, self.recipe.batch
            self.files[PCB_MODEL] = export_pcb(self.checkpoint, path, batch=batch)

    def _half(self) -> None:
        self._graph(HALF, "plain", "fp16")
        self._graph(HALF_PLUGIN, "plugin", "fp16")
        for name in (HALF, HALF_PLUGIN):
            self._lint(name)
        self._build_rtx(HALF, "fp16")

    def _int8(self, images: CalibrationImages) -> None:
        """The graphs that are quantised are float32, as they were trained, and serve for nothing else."""
        self.step("export the standard graph")
        standard = self._export(self.folder / "standard.onnx", "standard", "fp32")
        self._build(
            "openvino", "openvino.int8.xml", "int8",
            lambda out: quantize_openvino(standard, out, images, step=self.step),
        )
        if self.recipe.wants("onnxruntime"):
            self._quantized(INT8, quantize_onnxruntime, standard, images)
        if self.recipe.wants("tensorrt") or self.recipe.wants("tensorrt_rtx"):
            self.step("export the plain graph")
            plain = self._export(self.folder / "plain.onnx", "plain", "fp32")
            self._quantized(S8, quantize_s8, plain, images)
            self._lint(S8)
            self._build_rtx(S8, "int8")

    def _quantized(self, name: str, quantize: Callable[..., Path], model: Path, images: CalibrationImages) -> None:
        self.files[name] = quantize(model, self.folder / name, images, step=self.step)
        self.engines[name] = "int8"

    def _build_rtx(self, name: str, precision: str) -> None:
        self._build(
            "tensorrt_rtx", f"tensorrt_rtx.{precision}.engine", precision,
            lambda out: build_rtx(self.files[name], out, precision, step=self.step),
        )

    def _end_to_end(self) -> None:
        self.end2end["end2end.onnx"] = "fp32"
        if self.recipe.fp16:
            self.end2end["end2end.fp16.onnx"] = "fp16"
        for name, precision in self.end2end.items():
            self.step(f"export {name}")
            self.files[name] = export_onnx(
                self.checkpoint, self.folder / name, batch=self.recipe.batch, ops="plain", precision=precision,
                end2end=True,
            )

    def _graph(self, name: str, ops: str, precision: Precision, *, spared: bool = False) -> None:
        self.step(f"export {name}")
        self.files[name] = self._export(self.folder / name, ops, precision, spared=spared)
        self.engines[name] = precision

    def _export(self, path: Path, ops: str, precision: Precision, *, spared: bool = False) -> Path:
        batch, features = self.recipe.batch, self.recipe.enroll
        return export_onnx(
            self.checkpoint, path, batch=batch, ops=ops, precision=precision, features=features, spared=spared
        )

    def _lint(self, name: str) -> None:
        """TensorRT's rules on a file that is for TensorRT."""
        found = lint(self.files[name], "tensorrt")
        said = "; ".join(f"{one.node}: {one.message}" for one in found)
        status = "failed" if any(one.severity == "error" for one in found) else "passed"
        self.rows.append(VerifyRow(name, "lint", self.engines[name], "lint", status, said))

    def _build(self, backend: str, name: str, precision: str, build: Callable[[Path], Any]) -> None:
        """One engine; what is impossible here is a row, unless it was asked for by name."""
        if not self.recipe.wants(backend):
            return
        self.step(f"build {name}")
        try:
            build(self.folder / name)
        except UnsupportedError as error:
            if self.recipe.engines is not None:
                raise
            self.rows.append(VerifyRow(name, backend, precision, "build", "not_run", str(error)))
            return
        self.engines[name] = precision
        # An IR is two files, a plan has its record; its log is of this machine.
        self.files |= {p.name: p for p in self.folder.glob(f"{Path(name).stem}.*") if p.suffix != ".log"}


def _provenance(ckpt: Path, training: dict[str, Any]) -> dict[str, Any]:
    source = {"file": ckpt.name, "sha256": hashlib.sha256(ckpt.read_bytes()).hexdigest()}
    versions = {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript")}
    return {"checkpoint": source, "training": training, "versions": versions}
