"""The facade: a bundle in, detections out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from glmd_runtime import backends
from glmd_runtime.backends.device_array import is_on_device
from glmd_runtime.bundle import ENROLLED, Bundle, open_bundle, write_bundle
from glmd_runtime.calibrator import Calibrator
from glmd_runtime.detections import Detections
from glmd_runtime.enroll import Enrolment, Regions, checked_boxes, learn, read_enrolment, regions
from glmd_runtime.errors import BundleError, FrameError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.front_end import Camera, FrontEnd
from glmd_runtime.postprocess import PostprocessSpec, RawOutputs, postprocess, split_outputs
from glmd_runtime.preprocess import Geometry, PreprocessSpec, check_frame, preprocess
from glmd_runtime.selection import open_best
from glmd_runtime.tiles import Tiles, merge, parse_tiles
from glmd_runtime.video.frame import Frame


class Detector:
    """A loaded bundle. `run` keeps no state and may be called from several threads.

    Args:
        engine: a bundle `name.glmd`, or one engine file inside it.
        backend: "tensorrt", "tensorrt_rtx", "openvino" or "onnxruntime"; "auto" takes the fastest that can run here and
            whose answers are right: they passed verification in the bundle, or (TensorRT) do when the engine is opened;
            in a bundle that `glmd-tune` wrote on this machine, what it chose; or an object with `run` and `close`.
        score_threshold: one number in 0..1 for all classes instead of the manifest's thresholds.
        pcb: whether a bundle exported with --pcb calibrates its scores; another bundle never does.
        threads: CPU threads of the backend, with TensorRT calls in flight at once; None leaves it to the library, or to
            what `glmd-tune` chose for this backend here.
        device: "cpu", "cuda" or "cuda:N"; None for whatever is the fastest.
        build: "auto" builds a TensorRT engine on this device when there is none in the cache, which takes minutes;
            "never" uses only what is cached.
        tiles: (columns, rows) cuts each frame into overlapping tiles and runs them and the whole frame, so that small
            objects are shrunk less; this is columns * rows + 1 images a frame. None or (1, 1): the frame alone.
    Raises:
        BundleError: no bundle, or one that is damaged; UnsupportedError: no backend here can run it;
        UsageError: a value out of range; of a backend that was asked for by name, what `engines.open_engine` raises.
    """

    def __init__(
        self,
        engine: str | Path,
        *,
        backend: str | backends.Backend = "auto",
        score_threshold: float | None = None,
        threads: int | None = None,
        device: str | None = None,
        build: str = "auto",
        pcb: bool = True,
        tiles: Sequence[int] | None = None,
    ) -> None:
        self._tiles = parse_tiles(tiles)
        bundle, files = _open(Path(engine))
        self._bundle, self._manifest = bundle, bundle.manifest
        calibration = bundle.manifest.calibration if pcb else None
        own = calibration.postprocess(self._manifest.postprocess) if calibration else self._manifest.postprocess
        self._enrolment = _enrolment(bundle)
        if self._enrolment:
            own = _with_classes(own, self._enrolment)
        self._own_postprocess = own
        self.score_threshold = score_threshold
        self._backend: backends.Backend | None
        if isinstance(backend, str):
            self._backend_name, self._engine, threads, self._backend = open_best(
                bundle, files, backend, threads=threads, device=device, build=build
            )
        else:
            self._backend_name, self._engine, self._backend = type(backend).__name__, files[0], backend
        self._threads = threads
        self._device = getattr(self._backend, "device", "unknown")
        self._calibrator = (
            Calibrator(bundle, self._backend_name, threads=threads, device=device) if calibration else None
        )
        if self._calibrator and self._enrolment:
            self._calibrator = self._calibrator.and_classes(self._enrolment.spec.class_names)
        self._owners = _Owners()

    @property
    def class_names(self) -> tuple[str, ...]:
        return (*self._manifest.class_names, *(self._enrolment.spec.class_names if self._enrolment else ()))

    @property
    def preprocess(self) -> PreprocessSpec:
        """How frames become what the network sees."""
        return self._manifest.preprocess

    @property
    def score_threshold(self) -> float | None:
        """One number for all classes, or None for the manifest's own; may be set while streams run."""
        return self._score_threshold

    @score_threshold.setter
    def score_threshold(self, value: float | None) -> None:
        self._postprocess = _with_threshold(self._own_postprocess, value)
        self._score_threshold = value

    def info(self) -> dict[str, Any]:
        """What runs here, as plain values: model, engine, backend, device, precision, thresholds, size, provenance.

        threads: of the backend, where the caller or `glmd-tune` chose them; pcb_backend: what calibrates scores, where
        scores are calibrated; tiles: [columns, rows], where there are any.
        """
        return {
            "name": self._manifest.name,
            "engine": self._engine,
            "backend": self._backend_name,
            "device": self._device,
            "precision": self._manifest.engines[self._engine],
            "score_thresholds": dict(zip(self.class_names, self._postprocess.score_thresholds, strict=True)),
            "size_hw": list(self._manifest.preprocess.size_hw),
            "provenance": dict(self._manifest.provenance),
            **({"threads": self._threads} if self._threads else {}),
            **({"pcb_backend": self._calibrator.backend_name} if self._calibrator else {}),
            **({"tiles": [self._tiles.columns, self._tiles.rows]} if self._tiles else {}),
        }

    def run(self, frame: Any) -> Detections:
        """Detect the objects of one frame.

        Args: frame, (H, W) uint8 intensities or uint16 raw counts, or (H, W, 3) uint8 BGR; numpy or DLPack, in host
            memory, for that is where frames are preprocessed.
        Returns: boxes in frame pixels, best score first.
        Raises: FrameError for another array or one too small for the tiles, GlmdError after `close`.
        """
        frame = _as_numpy(frame)
        if self._tiles:
            return self._run_tiles(frame, self._tiles)
        image, geometry = preprocess(frame, self._manifest.preprocess)
        return self.run_images(image[None], [geometry])[0]

    @property
    def batch(self) -> int:
        """Frames that one call of the graph takes; those of `run_all` go through it in groups of so many."""
        return 1 if self._tiles else self._manifest.graph.batch

    def run_all(self, frames: Sequence[Any]) -> list[Detections]:
        """Detect the objects of several frames, of whatever sizes; each as in `run`."""
        if self._tiles or not frames:
            return [self.run(frame) for frame in frames]
        pairs = [preprocess(_as_numpy(frame), self._manifest.preprocess) for frame in frames]
        return self.run_images(np.stack([image for image, _ in pairs]), [geometry for _, geometry in pairs])

    def _run_tiles(self, frame: Any, tiles: Tiles) -> Detections:
        check_frame(frame)
        windows = tiles.windows(frame.shape[:2])  # (T + 1, 4)
        spec = self._manifest.preprocess
        # Counts become intensities before the cut: a tile's own percentiles would give it a contrast of its own.
        intensities = spec.intensity(frame)
        cut = [preprocess(intensities[y1:y2, x1:x2], spec) for x1, y1, x2, y2 in windows]
        found = self.run_images(np.stack([image for image, _ in cut]), [geometry for _, geometry in cut])
        return merge(found, windows, self._postprocess)

    def run_images(self, images: Any, geometries: Sequence[Geometry]) -> list[Detections]:
        """Detect the objects of N images that are preprocessed already.

        With TensorRT they may lie on its CUDA device, as arrays of torch, cupy or pycuda (anything with DLPack or
        `__cuda_array_interface__`), and are then copied within the device only.

        Args: images, (N, C, H, W) float32, N >= 1, as `preprocess` makes them; geometries, one an image. If N is not
            the graph's batch, images must be an array that slices and integers can index, as torch's and cupy's.
        Returns: one result an image, boxes in pixels of the frame that the geometry names, best score first.
        Raises: FrameError for another shape, type or place, GlmdError after `close`.
        """
        raws = self._run_raw(images, geometries)
        if self._enrolment:
            raws = [self._enrolment.extend(raw, self._postprocess) for raw in raws]
        if self._calibrator:
            return self._calibrator.detections(np.asarray(images), raws, geometries, self._postprocess)
        return [
            postprocess(raw, to, self._postprocess, self.class_names) for raw, to in zip(raws, geometries, strict=True)
        ]

    def _run_raw(self, images: Any, geometries: Sequence[Geometry]) -> list[RawOutputs]:
        """The graph's own answers, of its K classes."""
        backend = self._backend
        if backend is None:
            raise GlmdError("The Detector is closed and cannot run another frame. Make a new one.")
        self._check_images(images, len(geometries))
        valid_hw = np.asarray([geometry.valid_hw for geometry in geometries], np.float32)  # (N, 2)
        inputs = {"images": images if is_on_device(images) else np.asarray(images), "valid_hw": valid_hw}
        return split_outputs(backends.run_padded(backend, self._manifest.graph.batch, inputs))

    def _check_images(self, images: Any, count: int) -> None:
        shape = (count, *self._manifest.graph.inputs["images"][1:])
        dtype = str(images.dtype).rpartition(".")[2]  # torch says torch.float32
        if tuple(images.shape) != shape or dtype != "float32" or not count:
            raise FrameError(
                f"images must be {shape} float32, at least one, for {count} geometries; got {tuple(images.shape)} "
                f"{dtype}. Make them as glmd_runtime.preprocess does."
            )
        if is_on_device(images) and self._calibrator:
            raise FrameError(
                f"This bundle calibrates scores (PCB) on {self._calibrator.backend_name}, which needs images in host "
                f"memory; got {type(images).__name__} on a CUDA device. Pass a copy that is, or use pcb=False."
            )
        if is_on_device(images) and self._backend_name in ("openvino", "onnxruntime"):
            raise FrameError(
                f"{self._backend_name} needs images in host memory; got {type(images).__name__} on a CUDA device. "
                "Pass a copy that is (of a torch tensor, images.cpu()), or use a TensorRT backend."
            )

    def stream(
        self, source: str | Path | Iterable[Frame], *, camera: Camera | None = None
    ) -> Iterator[tuple[Frame, Detections]]:
        """Every frame of a source with its detections.

        Unlike `run` it remembers what was before: pictures of raw counts follow the scene with the model's (or the
        camera's) damping, and while the shutter is closed nothing is detected; see `FrontEnd`. Detections have
        temperatures where the source measures them.

        Args: source, a video, picture, directory or "sim://..."; or any iterable of Frames; camera, what is particular
            to this one.
        Raises: SourceError when it cannot be opened or read, UsageError for a wrong sim:// address.
        """
        if not isinstance(source, str | Path):
            front_end = self.front_end(camera, getattr(source, "name", "The stream"))
            for frame in source:
                prepared = front_end.prepare(frame)
                found = None if prepared.picture is None else self.run(prepared.picture)
                yield front_end.finish(prepared, found)
            return
        from glmd_runtime.video.sources import open_source

        with open_source(source) as opened:
            yield from self.stream(opened, camera=camera)

    def front_end(self, camera: Camera | None = None, name: str = "The stream") -> FrontEnd:
        """What one stream remembers, for a loop of one's own around `run`; `stream` is such a loop.

        Args: camera, what is particular to it; name, how its warnings begin in the log.
        """
        return FrontEnd(self._manifest.preprocess, self.class_names, camera, name)

    def enroll(
        self, name: str, frames: Sequence[Any], boxes: Sequence[Any], *, camera: Camera | None = None
    ) -> Detector:
        """A detector that knows one more class, from a few boxes of it, without training; this one stays as it is.

        It takes as long as running the frames. Both share the backend, which is closed with the last of them.
        Args: name, of no class that is known; frames, as `run` takes them, Frames, or what a stream showed the network
            (`Result.picture`, `Prepared.picture`); boxes, of each frame (n, 4) xyxy in its pixels, every object of the
            class in the frame: what is beside the boxes is learned as what it is not, and a frame without any (n = 0)
            shows only that; camera, of frames as the camera gives them what `stream` is told: its polarity and bad
            pixels count, its damping does not, as each frame is by itself.
        Raises: UsageError for a known name, no frames, boxes that are none or outside of their frame, or that nothing
            can be learned from; UnsupportedError for a bundle without features; FrameError; GlmdError after `close`.
        """
        if "features" not in self._manifest.graph.outputs:
            raise UnsupportedError(
                f"{self._bundle.path} gives no features to learn a class from. Export its checkpoint with --enroll."
            )
        self._check_enrol(name, frames, boxes)
        pictures = (self._picture(frame, camera) for frame in frames)
        found = [self._regions(picture, wanted) for picture, wanted in zip(pictures, boxes, strict=True)]
        one = learn(name, found, self._postprocess.nms_iou)
        other = copy(self)
        other._enrolment = self._enrolment.and_one(one) if self._enrolment else one
        other._own_postprocess = _with_classes(self._own_postprocess, one)
        other.score_threshold = self.score_threshold
        if self._calibrator:
            other._calibrator = self._calibrator.and_classes([name])
        self._owners.join()
        return other

    def _check_enrol(self, name: str, frames: Sequence[Any], boxes: Sequence[Any]) -> None:
        if not isinstance(name, str) or not name.strip() or name in self.class_names:
            raise UsageError(f"A new class needs a name other than {', '.join(self.class_names)}; got {name!r}.")
        if not len(frames) or len(frames) != len(boxes):
            raise UsageError(
                f"Enrolling needs one frame or more, and of each its boxes; got {len(frames)} frames and boxes of "
                f"{len(boxes)}."
            )
        if not any(len(wanted) for wanted in boxes):
            raise UsageError(f"Enrolling needs a box of {name!r} in one frame or more; got none.")

    def _picture(self, frame: Any, camera: Camera | None) -> Any:
        """What the network is to see of one frame of a camera: that of a stream that begins with it."""
        image = frame.image if isinstance(frame, Frame) else _as_numpy(frame)
        return self.front_end(camera).prepare(Frame(image, 0, 0.0)).picture if camera else image

    def _regions(self, picture: Any, wanted: Any) -> Regions:
        image, geometry = preprocess(picture, self._manifest.preprocess)
        xyxy = checked_boxes(wanted, geometry.frame_hw)
        return regions(self._run_raw(image[None], [geometry])[0], geometry.to_image(xyxy))

    def save(self, path: str | Path, *, overwrite: bool = False) -> Bundle:
        """Write a bundle with this detector's enrolled classes: its bundle's files, sealed anew with what was learned.

        Score thresholds are the learned ones, not a `score_threshold` of this detector.
        Raises: UsageError when nothing was enrolled, and what `write_bundle` does; BundleError when the bundle on disk
            is no longer the one that was opened.
        """
        if self._enrolment is None:
            raise UsageError("There is nothing to save: no class was enrolled. Copy the bundle, or enroll one first.")
        bundle = open_bundle(self._bundle.path)
        if bundle.manifest != self._manifest:
            raise BundleError(f"{bundle.path} was replaced since it was opened. Open it, and enroll the class again.")
        files: dict[str, bytes | Path] = {name: bundle.path / name for name in bundle.manifest.sha256}
        files[ENROLLED] = self._enrolment.to_bytes()
        manifest = replace(self._manifest, name=Path(path).stem, enrolled=self._enrolment.spec)
        return write_bundle(path, manifest, files, overwrite=overwrite)

    def close(self) -> None:
        """Give back the backend, unless another detector shares it; calling it again does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None and self._owners.leave():
            backend.close()
            if self._calibrator:
                self._calibrator.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Owners:
    """How many detectors share a backend."""

    def __init__(self) -> None:
        self._count, self._lock = 1, Lock()

    def join(self) -> None:
        with self._lock:
            self._count += 1

    def leave(self) -> bool:
        """Whether this was the last one."""
        with self._lock:
            self._count -= 1
            return self._count == 0


def _enrolment(bundle: Bundle) -> Enrolment | None:
    spec = bundle.manifest.enrolled
    dimensions = bundle.manifest.graph.outputs.get("features", (0,))[-1]
    return read_enrolment(bundle.path / ENROLLED, spec, dimensions) if spec else None


def _with_classes(spec: PostprocessSpec, enrolment: Enrolment) -> PostprocessSpec:
    """A post-processing of K classes -> of K + E."""
    return replace(spec, score_thresholds=(*spec.score_thresholds, *enrolment.spec.score_thresholds))


def _open(engine: Path) -> tuple[Bundle, list[str]]:
    """A bundle and the engine files to choose from: the one that was named, or all."""
    if not engine.is_file():
        bundle = open_bundle(engine)
        return bundle, list(bundle.manifest.engines)
    bundle = open_bundle(engine.parent)
    if engine.name not in bundle.manifest.engines:
        raise BundleError(f"{engine} is no engine of its bundle; it has {', '.join(bundle.manifest.engines)}.")
    return bundle, [engine.name]


def _with_threshold(spec: PostprocessSpec, score_threshold: float | None) -> PostprocessSpec:
    if score_threshold is None:
        return spec
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"score_threshold must be in 0..1; got {score_threshold}.")
    return replace(spec, score_thresholds=(float(score_threshold),) * len(spec.score_thresholds))


def _as_numpy(frame: Any) -> Any:
    """A numpy view of an array that speaks DLPack; anything else is left for `preprocess` to judge."""
    if isinstance(frame, np.ndarray):
        return frame
    if is_on_device(frame):
        raise FrameError(
            f"A frame must be in host memory, where it is preprocessed; got {type(frame).__name__} on a CUDA device. "
            "Pass a copy that is (of a torch tensor, frame.detach().cpu()), or preprocess it there and use run_images."
        )
    if not hasattr(frame, "__dlpack__"):
        return frame
    try:
        return np.from_dlpack(frame)
    except Exception as error:  # each library has its own kinds of error, and they share no base
        raise FrameError(
            f"A frame must be an array in host memory, without gradient; got {type(frame).__name__}: {error}. "
            "Pass a copy that is; of a torch tensor, frame.detach().cpu()."
        ) from error
