"""The facade: a bundle in, detections out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmd_runtime import backends
from glmd_runtime.bundle import Bundle, open_bundle
from glmd_runtime.detections import Detections
from glmd_runtime.errors import BundleError, FrameError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess
from glmd_runtime.preprocess import preprocess
from glmd_runtime.verify import VerifyReport

if TYPE_CHECKING:
    from glmd_runtime.video.frame import Frame


class Detector:
    """A loaded bundle. `run` keeps no state and may be called from several threads.

    Args:
        engine: a bundle `name.glmd`, or one engine file inside it.
        backend: "openvino" or "onnxruntime"; "auto" takes the fastest that is installed and whose answers passed
            verification in the bundle; or an object with `run` and `close`.
        score_threshold: one number in 0..1 for all classes instead of the manifest's thresholds.
        threads: CPU threads of the backend; None leaves it to the library.
    Raises:
        BundleError: no bundle, or one that is damaged; UnsupportedError: no backend here can run it;
        UsageError: a value out of range.
    """

    def __init__(
        self,
        engine: str | Path,
        *,
        backend: str | backends.Backend = "auto",
        score_threshold: float | None = None,
        threads: int | None = None,
    ) -> None:
        bundle, files = _open(Path(engine))
        self._manifest = bundle.manifest
        self._postprocess = _with_threshold(bundle.manifest.postprocess, score_threshold)
        self._backend: backends.Backend | None
        if isinstance(backend, str):
            self._backend_name, self._engine = _choose(bundle, files, backend)
            self._backend = backends.load(self._backend_name, bundle.path / self._engine, threads)
        else:
            self._backend_name, self._engine, self._backend = type(backend).__name__, files[0], backend

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._manifest.class_names

    def info(self) -> dict[str, Any]:
        """What runs here, as plain values: model, engine, backend, precision, thresholds, input size, provenance."""
        return {
            "name": self._manifest.name,
            "engine": self._engine,
            "backend": self._backend_name,
            "precision": self._manifest.engines[self._engine],
            "score_thresholds": dict(zip(self.class_names, self._postprocess.score_thresholds, strict=True)),
            "size_hw": list(self._manifest.preprocess.size_hw),
            "provenance": dict(self._manifest.provenance),
        }

    def run(self, frame: Any) -> Detections:
        """Detect the objects of one frame.

        Args: frame, (H, W) uint8 intensities or uint16 raw counts, or (H, W, 3) uint8 BGR; numpy or DLPack.
        Returns: boxes in frame pixels, best score first.
        Raises: FrameError for another array, GlmdError after `close`.
        """
        backend = self._backend
        if backend is None:
            raise GlmdError("The Detector is closed and cannot run another frame. Make a new one.")
        image, geometry = preprocess(_as_numpy(frame), self._manifest.preprocess)
        inputs = {"images": image[None], "valid_hw": np.asarray([geometry.valid_hw], np.float32)}
        outputs = backends.run_padded(backend, self._manifest.graph.batch, inputs)
        raw = RawOutputs(outputs["boxes"][0], outputs["scores"][0], outputs["valid"][0].astype(bool))
        return postprocess(raw, geometry, self._postprocess, self.class_names)

    def stream(self, source: str | Path | Iterable[Frame]) -> Iterator[tuple[Frame, Detections]]:
        """Every frame of a source with its detections.

        Args: source, a video, picture, directory or "sim://..."; or any iterable of Frames.
        Raises: SourceError when it cannot be opened or read, UsageError for a wrong sim:// address.
        """
        if not isinstance(source, str | Path):
            for frame in source:
                yield frame, self.run(frame.image)
            return
        from glmd_runtime.video.sources import open_source

        with open_source(source) as opened:
            yield from self.stream(opened)

    def close(self) -> None:
        """Give back the backend; calling it again does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(engine: Path) -> tuple[Bundle, list[str]]:
    """A bundle and the engine files to choose from: the one that was named, or all."""
    if not engine.is_file():
        bundle = open_bundle(engine)
        return bundle, list(bundle.manifest.engines)
    bundle = open_bundle(engine.parent)
    if engine.name not in bundle.manifest.engines:
        raise BundleError(f"{engine} is no engine of its bundle; it has {', '.join(bundle.manifest.engines)}.")
    return bundle, [engine.name]


def _choose(bundle: Bundle, engines: list[str], backend: str) -> tuple[str, str]:
    """(backend, engine file): the named backend, or the fastest that is installed and passed verification."""
    if backend != "auto":
        backends.require(backend)
    elif not backends.available():
        raise UnsupportedError(f"No inference library is installed. Run: {backends.INSTALL}")
    report = VerifyReport.from_dict(bundle.verify)
    for name in backends.available():
        for engine in engines:
            if backend == name and name in backends.readers(engine):
                return name, engine
            if backend == "auto" and report.passed(engine, name):
                return name, engine
    raise UnsupportedError(
        f"{bundle.path} has no engine that {backend if backend != 'auto' else 'passed verification and'} can run here: "
        f"engines {engines}, installed {backends.available()}. Run glmd-verify on it, or name another backend."
    )


def _with_threshold(spec: PostprocessSpec, score_threshold: float | None) -> PostprocessSpec:
    if score_threshold is None:
        return spec
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"score_threshold must be in 0..1; got {score_threshold}.")
    return replace(spec, score_thresholds=(float(score_threshold),) * len(spec.score_thresholds))


def _as_numpy(frame: Any) -> Any:
    """A numpy view of an array that speaks DLPack; anything else is left for `preprocess` to judge."""
    if isinstance(frame, np.ndarray) or not hasattr(frame, "__dlpack__"):
        return frame
    try:
        return np.from_dlpack(frame)
    except Exception as error:  # each library has its own kinds of error, and they share no base
        raise FrameError(
            f"A frame must be an array in host memory, without gradient; got {type(frame).__name__}: {error}. "
            "Pass a copy that is; of a torch tensor, frame.detach().cpu()."
        ) from error
