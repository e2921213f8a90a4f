"""The facade: a bundle in, detections out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from glmd_runtime import backends
from glmd_runtime.backends.device_array import is_on_device
from glmd_runtime.bundle import ENROLLED, Bundle, bundle_of, open_bundle, write_bundle
from glmd_runtime.calibrator import Calibrator
from glmd_runtime.camera.front_end import Camera, FrontEnd, Prepared
from glmd_runtime.detections import Detections
from glmd_runtime.enroll import Regions, check_examples, checked_boxes, learn, regions
from glmd_runtime.errors import BundleError, EngineError, FrameError, GlmdError, UnsupportedError, UsageError
from glmd_runtime.images import Images, as_numpy, to_images, to_tiles
from glmd_runtime.overlap import overlapped
from glmd_runtime.postprocess import RawOutputs, postprocess, split_outputs
from glmd_runtime.preprocess import Geometry, PreprocessSpec
from glmd_runtime.selection import open_best
from glmd_runtime.tiles import merge, parse_tiles
from glmd_runtime.users import Users
from glmd_runtime.video.frame import Frame

_log = logging.getLogger(__name__)

_Rest = Callable[[], list[Detections]]  # what is left to do when the network has said what it says
_Answer = tuple[Prepared, _Rest | None]


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
        throughput: for clips: several frames are computed at once, each on a share of the cores, where that is a gain.
            `stream` and a Pipeline then give more frames a second, and each frame takes longer.
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
        throughput: bool = False,
        pcb: bool = True,
        tiles: Sequence[int] | None = None,
    ) -> None:
        self._tiles = parse_tiles(tiles)
        bundle, files = _open(Path(engine))
        self._bundle, self._manifest = bundle, bundle.manifest
        calibration = bundle.manifest.calibration if pcb else None
        own = calibration.postprocess(self._manifest.postprocess) if calibration else self._manifest.postprocess
        self._enrolment = bundle.enrolment
        if self._enrolment:
            own = self._enrolment.spec.postprocess(own)
        self._own_postprocess = own
        self.score_threshold = score_threshold
        self._backend: backends.Backend | None
        if isinstance(backend, str):
            self._backend_name, self._engine, threads, self._backend = open_best(
                bundle, files, backend, threads=threads, device=device, build=build, throughput=throughput
            )
        else:
            self._backend_name, self._engine, self._backend = type(backend).__name__, files[0], backend
        self._threads = threads
        self._device = getattr(self._backend, "device", "unknown")
        self._calibrator = (
            Calibrator(bundle, self._backend_name, threads=threads, device=device, throughput=throughput)
            if calibration
            else None
        )
        if self._calibrator and self._enrolment:
            self._calibrator = self._calibrator.and_classes(self._enrolment.spec.class_names)
        self._users, self._closing = Users(), Lock()

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
        self._postprocess = self._own_postprocess.with_threshold(value)
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
        Raises: FrameError for another array or one too small for the tiles, EngineError when the backend fails or its
            answer is none, GlmdError after `close`.
        """
        return self.run_all([frame])[0]

    @property
    def batch(self) -> int:
        """Frames that one call of the graph takes; those of `run_all` go through it in groups of so many."""
        return 1 if self._tiles else self._manifest.graph.batch

    @property
    def calls(self) -> int:
        """How many calls of `infer` its backend gains by at once."""
        return getattr(self._backend, "calls", 1)

    def run_all(self, frames: Sequence[Any]) -> list[Detections]:
        """Detect the objects of several frames, of whatever sizes; each as in `run`."""
        groups = [[frame] for frame in frames] if self._tiles else [frames] if len(frames) else []
        return [found for group in groups for found in self.infer(self.prepare(group))()]

    def prepare(self, frames: Sequence[Any]) -> Images:
        """The first part of `run_all`, for a loop that has something to do while the network computes.

            images = detector.prepare(frames)       # on the CPU
            rest = detector.infer(images)           # in another thread, say, for which it waits without Python's lock
            found = rest()                          # on the CPU again

        Args: frames, one or more; with tiles, one. Raises: FrameError, as `run`.
        """
        if self._tiles:
            [frame] = frames
            return to_tiles(frame, self._manifest.preprocess, self._tiles)
        return to_images(frames, self._manifest.preprocess)

    def infer(self, images: Images) -> _Rest:
        """What the network says of images, as what is left to do: to be called once, for one result a frame.

        That needs no engine, so the detector may be closed by then; thresholds are those of the moment it is called.
        Raises: GlmdError after `close`, EngineError as `run`.
        """
        with self._open_backend() as backend:
            raws = self._run_raw(backend, images)
            if self._calibrator:  # a network too
                pixels, spec = np.asarray(images.pixels), self._postprocess
                found = self._calibrator.detections(pixels, self._extended(raws), images.geometries, spec)
                return lambda: self._merged(found, images)
        return lambda: self._merged(self._found(raws, images), images)

    def _extended(self, raws: list[RawOutputs]) -> list[RawOutputs]:
        """The graph's K classes -> K + E."""
        return [self._enrolment.extend(raw, self._postprocess) for raw in raws] if self._enrolment else raws

    def _found(self, raws: list[RawOutputs], images: Images) -> list[Detections]:
        spec, names = self._postprocess, self.class_names
        pairs = zip(self._extended(raws), images.geometries, strict=True)
        return [postprocess(raw, geometry, spec, names) for raw, geometry in pairs]

    def _merged(self, found: list[Detections], images: Images) -> list[Detections]:
        """Those of a frame's tiles as the frame's."""
        return found if images.windows is None else [merge(found, images.windows, self._postprocess)]

    def run_images(self, images: Any, geometries: Sequence[Geometry]) -> list[Detections]:
        """Detect the objects of N images that are preprocessed already.

        With TensorRT they may lie on its CUDA device, as arrays of torch, cupy or pycuda (anything with DLPack or
        `__cuda_array_interface__`), and are then copied within the device only.

        Args: images, (N, C, H, W) float32, N >= 1, as `preprocess` makes them; geometries, one an image. If N is not
            the graph's batch, images must be an array that slices and integers can index, as torch's and cupy's.
        Returns: one result an image, boxes in pixels of the frame that the geometry names, best score first.
        Raises: FrameError for another shape, type or place, GlmdError after `close`.
        """
        return self.infer(Images(images, geometries))()

    @contextmanager
    def _open_backend(self) -> Iterator[backends.Backend]:
        """The backend; what is at it when the detector is closed is done first."""
        backend = self._backend
        if backend is None or not self._users.join():
            raise GlmdError("The Detector is closed and cannot run another frame. Make a new one.")
        try:
            yield backend
        finally:
            self._leave(backend)

    def _leave(self, backend: backends.Backend) -> None:
        if self._users.leave():
            for one in (backend, self._calibrator):
                try:
                    if one:
                        one.close()
                except Exception as error:  # nothing more is wanted of it, and what it gave is whole
                    _log.warning("%s of %s could not be closed: %s", self._engine, self._bundle.path, error)

    def _run_raw(self, backend: backends.Backend, images: Images) -> list[RawOutputs]:
        """The graph's own answers, of its K classes."""
        pixels, geometries = images.pixels, images.geometries
        self._manifest.graph.check_images(pixels, len(geometries))
        self._check_place(pixels)
        valid_hw = np.asarray([geometry.valid_hw for geometry in geometries], np.float32)  # (N, 2)
        inputs = {"images": pixels if is_on_device(pixels) else np.asarray(pixels), "valid_hw": valid_hw}
        return split_outputs(self._answers(backend, inputs, len(geometries)))

    def _answers(self, backend: backends.Backend, inputs: backends.Tensors, count: int) -> backends.Tensors:
        engine = f"{self._engine} on {self._backend_name}"
        try:
            outputs = backends.run_padded(backend, self._manifest.graph.batch, inputs)
        except GlmdError:
            raise
        except Exception as error:  # each library has its own kinds of error, and they share no base
            raise EngineError(f"{engine} failed: {type(error).__name__}: {str(error).strip()}") from error
        self._manifest.graph.check_outputs(outputs, count, engine)
        return outputs

    def _check_place(self, images: Any) -> None:
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
        if isinstance(source, str | Path):
            from glmd_runtime.video.sources import open_source

            with open_source(source) as opened:
                yield from self.stream(opened, camera=camera)
            return
        front_end = self.front_end(camera, getattr(source, "name", "The stream"))
        # The next frame of a camera may be long in coming, and whatever does not say that it is none may be one.
        ahead = 0 if getattr(source, "live", True) else self.calls
        for prepared, rest in overlapped(self._jobs(source, front_end), ahead, self.calls):
            yield front_end.finish(prepared, rest()[0] if rest else None)

    def _jobs(self, source: Iterable[Frame], front_end: FrontEnd) -> Iterator[Callable[[], _Answer]]:
        for frame in source:
            prepared = front_end.prepare(frame)
            images = None if prepared.picture is None else self.prepare([prepared.picture])
            yield partial(self._answer, prepared, images)

    def _answer(self, prepared: Prepared, images: Images | None) -> _Answer:
        return prepared, self.infer(images) if images else None

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
        check_examples(self.class_names, name, frames, boxes)
        pictures = (self._picture(frame, camera) for frame in frames)
        found = [self._regions(picture, wanted) for picture, wanted in zip(pictures, boxes, strict=True)]
        one = learn(name, found, self._postprocess.nms_iou)
        other = copy(self)
        other._enrolment = self._enrolment.and_one(one) if self._enrolment else one
        other._own_postprocess = one.spec.postprocess(self._own_postprocess)
        other.score_threshold = self.score_threshold
        if self._calibrator:
            other._calibrator = self._calibrator.and_classes([name])
        self._users.join()
        return other

    def _picture(self, frame: Any, camera: Camera | None) -> Any:
        """What the network is to see of one frame of a camera: that of a stream that begins with it."""
        image = frame.image if isinstance(frame, Frame) else as_numpy(frame)
        return self.front_end(camera).prepare(Frame(image, 0, 0.0)).picture if camera else image

    def _regions(self, picture: Any, wanted: Any) -> Regions:
        images = to_images([picture], self._manifest.preprocess)
        xyxy = checked_boxes(wanted, images.geometries[0].frame_hw)
        with self._open_backend() as backend:
            [raw] = self._run_raw(backend, images)
        return regions(raw, images.geometries[0].to_image(xyxy))

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
        files = {**bundle.files, ENROLLED: self._enrolment.to_bytes()}
        # What was tuned holds no longer: its accuracy was measured without the enrolled classes.
        manifest = replace(self._manifest, name=Path(path).stem, enrolled=self._enrolment.spec, tuned=None)
        return write_bundle(path, manifest, files, overwrite=overwrite)

    def close(self) -> None:
        """Give back the backend, unless another detector shares it; calling it again does nothing."""
        with self._closing:  # of two who close at once, one
            backend, self._backend = self._backend, None
        if backend is not None:
            self._leave(backend)

    def __enter__(self) -> Detector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(engine: Path) -> tuple[Bundle, list[str]]:
    """A bundle and the engine files to choose from: the one that was named, or all."""
    bundle = open_bundle(bundle_of(engine))
    if not engine.is_file():
        return bundle, list(bundle.manifest.engines)
    if engine.name not in bundle.manifest.engines:
        raise BundleError(f"{engine} is no engine of its bundle; it has {', '.join(bundle.manifest.engines)}.")
    return bundle, [engine.name]
