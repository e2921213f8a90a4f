"""What a thermal stream remembers between its frames: damped intensities, a closed shutter, drift."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.agc import DampedCurve
from glmd_runtime.camera.bad_pixels import BadPixels
from glmd_runtime.camera.drift import DriftWatch
from glmd_runtime.camera.shutter import ShutterWatch
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UsageError
from glmd_runtime.preprocess import PreprocessSpec, checked_frame
from glmd_runtime.thermal import POLARITIES, Intensity, Polarity
from glmd_runtime.video.frame import Frame


@dataclass(frozen=True, eq=False)
class Camera:
    """What is particular to one camera, beside the model's `PreprocessSpec`.

    damping     time constant in seconds of its picture instead of the model's; 0 for none
    polarity    of what it delivers, where that is not what the model expects: 8-bit pictures of the other polarity are
                inverted; raw counts that fall with the temperature are "black-hot"
    bad_pixels  (H, W) bool, True for those to be filled from their neighbours (16-bit frames only); see
                `find_bad_pixels`
    """

    damping: float | None = None
    polarity: Polarity | None = None
    bad_pixels: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.polarity not in (None, *POLARITIES):
            raise UsageError(f"A camera's polarity is 'white-hot' or 'black-hot'; got {self.polarity!r}.")
        if self.damping is not None and not 0 <= self.damping < float("inf"):
            raise UsageError(f"A camera's damping is 0 or more seconds; got {self.damping}.")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A frame on its way to the network.

    frame    with `held` set
    picture  what the network is to see, (H, W) or (H, W, 3) uint8; None for a frame that is held
    counts   (H, W) uint16 with bad pixels filled, or the 8-bit image: what temperatures are read from
    """

    frame: Frame
    picture: NDArray[np.uint8] | None
    counts: NDArray[Any]


class FrontEnd:
    """One stream's frames -> pictures for the network, and what was found in them -> what the stream yields.

        prepared = front_end.prepare(frame)
        found = None if prepared.picture is None else detector.run(prepared.picture)
        frame, found = front_end.finish(prepared, found)

    One object a stream; both calls in the order of the frames. `Detector.front_end` makes it.

    name      how its warnings begin, in the log
    held      how many frames showed nothing of the scene, by cause: "frozen", "uniform"
    warnings  what is not as in training, see `DriftWatch.warnings`
    """

    def __init__(
        self, spec: PreprocessSpec, class_names: tuple[str, ...], camera: Camera | None = None, name: str = "The stream"
    ) -> None:
        camera = camera or Camera()
        self._intensity = _for_camera(spec.intensity, camera)
        self._inverts = camera.polarity not in (None, spec.intensity.polarity)  # 8-bit pictures
        self._bad = None if camera.bad_pixels is None else BadPixels(camera.bad_pixels)
        self._damped = DampedCurve(self._intensity.damping) if self._intensity.damping else None
        self._shutter, self._drift = ShutterWatch(name), DriftWatch(spec, name, camera.polarity)
        self._last = Detections.empty(class_names)
        self.held: Counter[str] = Counter()

    @property
    def warnings(self) -> dict[str, str]:
        return self._drift.warnings

    def prepare(self, frame: Frame) -> Prepared:
        """Counts become intensities as this stream's; Raises: FrameError as `preprocess`, or for bad pixels' mask."""
        image = checked_frame(frame.image)
        if self._bad:
            self._bad.check(image)
        if image.dtype == np.uint8:
            picture = np.asarray(255 - image if self._inverts else image, np.uint8)
            return Prepared(frame, picture, image)
        event = self._shutter(image, frame.time)
        if event.held:
            self.held[event.held] += 1
            return Prepared(replace(frame, held=event.held), None, image)
        counts = self._bad.fill(image) if self._bad else image
        return Prepared(frame, self._picture(counts, event.jump, frame.time), counts)

    def _picture(self, counts: NDArray[np.uint16], jump: int, time: float) -> NDArray[np.uint8]:
        curve = self._intensity.curve(counts)
        if self._damped:
            curve = self._damped(counts, curve, time, jump)
        return self._intensity.render(counts, curve)

    def finish(self, prepared: Prepared, found: Detections | None) -> tuple[Frame, Detections]:
        """The frame with its detections, temperatures among them; with those of the frame before, where it is held.

        Args: found, what the network made of `prepared.picture`; None where there is none.
        """
        frame = prepared.frame
        if prepared.picture is not None and found is not None:
            self._drift(prepared.picture, found, frame.time, raw=frame.image.dtype == np.uint16)
            if frame.radiometry and prepared.counts.ndim == 2:
                found = replace(found, temperatures=frame.radiometry.of_boxes(prepared.counts, found.xyxy))
            self._last = found
        return frame, self._last


def _for_camera(intensity: Intensity, camera: Camera) -> Intensity:
    """The model's mapping of counts with what this camera is different in."""
    if camera.damping is not None:
        intensity = replace(intensity, damping=float(camera.damping))
    if camera.polarity == "black-hot":  # its counts fall with the temperature
        intensity = replace(intensity, polarity=POLARITIES[1 - POLARITIES.index(intensity.polarity)])
    return intensity
