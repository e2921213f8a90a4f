"""Frames as the network takes them: an image each, or several of one frame that is cut into tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.backends.device_array import is_on_device
from glmd_runtime.errors import FrameError
from glmd_runtime.preprocess import Geometry, PreprocessSpec, checked_frame, preprocess
from glmd_runtime.tiles import Tiles, Windows


@dataclass(frozen=True, eq=False)
class Images:
    """What one call of `Detector.infer` takes.

    pixels      (N, C, H, W) float32, as `preprocess` makes them
    geometries  one an image
    windows     (N, 4) xyxy in pixels of the frame whose tiles they are; None where each is a frame of its own
    """

    pixels: Any
    geometries: Sequence[Geometry]
    windows: Windows | None = None

    def one_by_one(self) -> list[Images]:
        """Each frame alone."""
        if self.windows is not None:
            return [self]
        return [Images(self.pixels[i : i + 1], [geometry]) for i, geometry in enumerate(self.geometries)]


def to_images(frames: Sequence[Any], spec: PreprocessSpec) -> Images:
    """N >= 1 frames, of whatever sizes, as `Detector.run` takes them; Raises: FrameError for another array."""
    pairs = [preprocess(as_numpy(frame), spec) for frame in frames]
    return Images(_stacked([image for image, _ in pairs]), [geometry for _, geometry in pairs])


def to_tiles(frame: Any, spec: PreprocessSpec, tiles: Tiles) -> Images:
    """One frame; Raises: FrameError for another array, or one that is too small for so many tiles."""
    frame = checked_frame(as_numpy(frame))
    windows = tiles.windows(frame.shape[:2])  # (T + 1, 4)
    # Counts become intensities before the cut: a tile's own percentiles would give it a contrast of its own.
    intensities = spec.intensity(frame)
    cut = to_images([intensities[y1:y2, x1:x2] for x1, y1, x2, y2 in windows], spec)
    return Images(cut.pixels, cut.geometries, windows)


def _stacked(images: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(C, H, W) each -> (N, C, H, W); of a single one without a copy."""
    return images[0][None] if len(images) == 1 else np.stack(images)


def as_numpy(frame: Any) -> Any:
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
