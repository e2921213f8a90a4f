"""Prototypical calibration on the device: a bundle's second graph, run after the final NMS."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime import backends
from glmd_runtime.bundle import PCB_MODEL, PROTOTYPES, Bundle
from glmd_runtime.calibration import Calibration, read_prototypes
from glmd_runtime.detections import Detections
from glmd_runtime.errors import BundleError, UnsupportedError
from glmd_runtime.install import install_command
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import Geometry

Floats = NDArray[np.float32]


class Calibrator:
    """An opened pcb.onnx with its prototypes. May be called from several threads.

    Args: bundle, whose manifest has a calibration; backend, the detector's: it runs this graph as well if it reads
        ONNX, and otherwise one that does and is installed here, on the CPU; the others, as in `backends.load`.
    Raises: UnsupportedError when no backend here can run it; BundleError when a file of it is unreadable.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        *,
        threads: int | None = None,
        device: str | None = None,
        throughput: bool = False,
    ) -> None:
        manifest = bundle.manifest
        if manifest.calibration is None:
            raise BundleError(f"{bundle.path} has no prototypes. Export its checkpoint with --pcb.")
        content = bundle.read(PROTOTYPES)
        prototypes = read_prototypes(content, bundle.path / PROTOTYPES, len(manifest.class_names))
        self.calibration = Calibration(manifest.calibration, prototypes)
        self.backend_name = backend if backend in readers() else _first_installed(bundle)
        on = device if backend in readers() else "cpu"
        model = bundle.path / PCB_MODEL
        self._backend: backends.Backend = backends.load(
            self.backend_name, model, threads, on, throughput, bundle.read
        )
        self._batch, self._rows = manifest.graph.batch, manifest.postprocess.max_detections
        self._class_names = manifest.class_names

    def detections(
        self, images: NDArray[Any], raws: Sequence[RawOutputs], geometries: Sequence[Geometry], spec: PostprocessSpec
    ) -> list[Detections]:
        """`postprocess` with calibration.

        Args: images (N, C, H, W) float32 in host memory, with the raw outputs and the geometry of each; spec, its
            thresholds are for calibrated scores.
        Returns: detections of each image in frame pixels, best calibrated score first.
        """
        first = self.calibration.candidates(spec)
        found = [postprocess(raw, to, first, self._class_names) for raw, to in zip(raws, geometries, strict=True)]
        logits = self.logits(images, [to.to_image(one.xyxy) for one, to in zip(found, geometries, strict=True)])
        return [self.calibration.apply(one, rows, spec) for one, rows in zip(found, logits, strict=True)]

    def logits(self, images: NDArray[Any], boxes: Sequence[Floats]) -> list[Floats]:
        """The classifier's logits (n, D) of boxes (n, 4), in network pixels, of each of N images (N, C, H, W)."""
        if not any(len(one) for one in boxes):
            return [np.zeros((0, self.calibration.prototypes.shape[1]), np.float32) for _ in boxes]
        padded = np.zeros((len(boxes), self._rows, 4), np.float32)
        for row, one in zip(padded, boxes, strict=True):
            row[: len(one)] = one
        outputs = backends.run_padded(self._backend, self._batch, {"images": images, "boxes": padded})
        return [rows[: len(one)] for rows, one in zip(outputs["logits"], boxes, strict=True)]

    def and_classes(self, names: Sequence[str]) -> Calibrator:
        """The same graph for some more classes, which have no prototypes: their scores stay as they are."""
        other, prototypes = copy(self), self.calibration.prototypes
        none = np.zeros((len(names), prototypes.shape[1]), np.float32)
        other.calibration = replace(self.calibration, prototypes=np.concatenate([prototypes, none]))
        other._class_names = (*self._class_names, *names)
        return other

    def close(self) -> None:
        self._backend.close()


def readers() -> list[str]:
    """Names of the backends that can run pcb.onnx: those that read a plain ONNX file as it is."""
    return backends.readers("model.onnx")


def _first_installed(bundle: Bundle) -> str:
    name = next((name for name in readers() if not backends.why_not(name)), None)
    if name is None:
        raise UnsupportedError(
            f"{bundle.path} calibrates scores (PCB), which runs on {' or '.join(readers())}; neither is installed. "
            f"Do without, by Detector(..., pcb=False), or run: {install_command('cpu')}"
        )
    return name
