"""Frame -> network image, and boxes back. Training, export and device all call this one function."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.looks import Statistics
from glmd_runtime.errors import FrameError, UnsupportedError
from glmd_runtime.files.values import each, number, whole
from glmd_runtime.thermal import Intensity

MOST_SIDE = 8192  # pixels of an image that a document may ask for
_MOST = 1e6  # intensities, of a mean or deviation in a document


@dataclass(frozen=True)
class PreprocessSpec:
    """Everything needed to repeat training's pixels.

    size_hw    "letterbox": (height, width) of the canvas; "published": (shorter, longest) edge in pixels
    mean, std  one value a channel of the network (1 or 3), in intensities 0..255: image = (intensity - mean) / std
    intensity  how 16-bit counts become intensities
    resize     "letterbox": keep the aspect ratio, fill right and below with the mean; "published": the resize of
               GLMDNet and detectron2 (Pillow, bilinear), no padding, so that every frame size has its own image size
    statistics what training's pictures looked like, so that a stream of others is noticed; None where nobody measured
    """

    size_hw: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    intensity: Intensity = field(default_factory=Intensity)
    resize: Literal["letterbox", "published"] = "letterbox"
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.mean) != len(self.std):
            raise FrameError(f"mean and std need 1 or 3 values each; got {self.mean} and {self.std}.")
        if self.resize not in ("letterbox", "published"):
            raise FrameError(f"resize must be 'letterbox' or 'published'; got {self.resize!r}.")
        if len(self.size_hw) != 2 or min(self.size_hw) < 1 or min(self.std) <= 0:
            raise FrameError(f"size_hw and std must be positive; got {self.size_hw} and {self.std}.")
        if not np.isfinite([*self.mean, *self.std]).all():
            raise FrameError(f"mean and std must be finite; got {self.mean} and {self.std}.")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        fields = {"size_hw": list(self.size_hw), "mean": list(self.mean), "std": list(self.std)}
        statistics = {"statistics": self.statistics.to_dict()} if self.statistics else {}
        return {**fields, "intensity": self.intensity.to_dict(), "resize": self.resize, **statistics}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreprocessSpec:
        """Raises: FrameError, KeyError, TypeError or ValueError for values that `to_dict` does not give."""
        return cls(
            size_hw=each(whole, values["size_hw"], low=1, high=MOST_SIDE),  # type: ignore[arg-type]  # checked below
            mean=each(number, values["mean"], low=-_MOST, high=_MOST),
            std=each(number, values["std"], low=1 / _MOST, high=_MOST),
            intensity=Intensity.from_dict(values["intensity"]),
            resize=values["resize"],
            statistics=Statistics.from_dict(values["statistics"]) if "statistics" in values else None,
        )


@dataclass(frozen=True)
class Geometry:
    """Where a frame lies in its network image: at the top left, `valid_hw` pixels large, scaled by `valid / frame`."""

    frame_hw: tuple[int, int]
    valid_hw: tuple[int, int]

    @property
    def _scale(self) -> NDArray[np.float32]:  # (4,) network pixels per frame pixel, in the order of xyxy
        sy, sx = (v / f for v, f in zip(self.valid_hw, self.frame_hw, strict=True))
        return np.asarray([sx, sy, sx, sy], np.float32)

    def to_frame(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 4) network pixels -> (N, 4) frame pixels, cut to the frame."""
        h, w = self.frame_hw
        return np.asarray(np.clip(xyxy / self._scale, 0, np.asarray([w, h, w, h], np.float32)))

    def to_image(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 4) frame pixels -> (N, 4) network pixels."""
        return np.asarray(xyxy, np.float32) * self._scale


def preprocess(frame: NDArray[Any], spec: PreprocessSpec) -> tuple[NDArray[np.float32], Geometry]:
    """Turn one camera frame into one network image.

    Args:
        frame: (H, W) uint8 intensities, (H, W) uint16 raw counts, or (H, W, 3) uint8 BGR.
        spec: what the model was trained on.
    Returns:
        image: (C, H', W') float32, C order; BGR if C is 3. Padding is 0, that is the mean.
        geometry: maps the network's boxes back to frame pixels.
    Raises:
        FrameError: another dtype or shape, or an empty frame.
    """
    frame = checked_frame(frame)
    intensities = spec.intensity(frame)
    if spec.resize == "published":
        valid_hw = published_size(frame.shape[:2], *spec.size_hw)
        resized, canvas_hw = pillow_resize(intensities, valid_hw), valid_hw
    else:
        valid_hw = letterbox_size(frame.shape[:2], spec.size_hw)
        resized, canvas_hw = letterbox_resize(intensities, valid_hw), spec.size_hw
    image = np.zeros((spec.channels, *canvas_hw), np.float32)
    normalise(resized, spec, image[:, : valid_hw[0], : valid_hw[1]])
    return image, Geometry(frame.shape[:2], valid_hw)


def is_frame(array: Any) -> bool:
    """Whether it is one of the three kinds of camera array, with a pixel at least."""
    try:
        checked_frame(array)
    except FrameError:
        return False
    return True


def checked_frame(frame: NDArray[Any]) -> NDArray[Any]:
    """One of the three kinds of camera array, in C order: OpenCV reads beyond an array whose rows are one and the same.

    Raises: FrameError for anything else.
    """
    kinds = "(H, W) uint8 or uint16, or (H, W, 3) uint8 BGR"
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"A frame must be a numpy array {kinds}; got {type(frame).__name__}. Use np.asarray first.")
    shape_ok = frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8)
    if not shape_ok or frame.dtype not in (np.uint8, np.uint16):
        raise FrameError(
            f"A frame must be {kinds}; got shape {frame.shape} {frame.dtype}. "
            "Signed or float thermal data: shift and scale it to uint16 counts first."
        )
    if frame.size == 0:
        raise FrameError(f"A frame must have at least one pixel; got shape {frame.shape}. Did the camera deliver?")
    return np.ascontiguousarray(frame)


def normalise(intensities: NDArray[np.uint8], spec: PreprocessSpec, out: NDArray[np.float32]) -> None:
    """(H, W) or (H, W, 3) BGR uint8 -> minus mean, over std, into `out`, a (C, H, W) float32 part of an image."""
    if spec.channels == 1 and intensities.ndim == 3:
        intensities = np.asarray(cv2.cvtColor(intensities, cv2.COLOR_BGR2GRAY), np.uint8)
    for channel, (mean, std, plane) in enumerate(zip(spec.mean, spec.std, out, strict=True)):
        # One pass, as there are only so many intensities.
        table = (np.arange(256, dtype=np.float32) - np.float32(mean)) / np.float32(std)
        grey = intensities if intensities.ndim == 2 else cv2.extractChannel(intensities, channel)
        cv2.LUT(grey, table, plane)


def letterbox_size(frame_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the largest picture of the frame's aspect ratio inside the canvas, at least 1 pixel."""
    scale = min(c / f for c, f in zip(canvas_hw, frame_hw, strict=True))
    h, w = (max(1, min(c, int(f * scale + 0.5))) for c, f in zip(canvas_hw, frame_hw, strict=True))
    return h, w


def letterbox_resize(picture: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear enlarging, area-averaged shrinking (plain bilinear would skip pixels, and small objects with them)."""
    if picture.shape[:2] == hw:
        return picture
    shrinks = hw[0] < picture.shape[0]
    resized = cv2.resize(picture, hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)


def published_size(frame_hw: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """detectron2's ResizeShortestEdge: shorter edge to `shorter` unless the longer would exceed `longest`."""
    scale = shorter / min(frame_hw)
    h, w = (edge * scale for edge in frame_hw)
    if max(h, w) > longest:
        rescale = longest / max(h, w)
        h, w = h * rescale, w * rescale
    return max(1, int(h + 0.5)), max(1, int(w + 0.5))


def pillow_resize(picture: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Pillow's antialiased bilinear resize, which the published weights were trained with."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise UnsupportedError("The published resize needs Pillow: pip install pillow") from error
    return np.asarray(Image.fromarray(picture).resize(hw[::-1], Image.Resampling.BILINEAR))
