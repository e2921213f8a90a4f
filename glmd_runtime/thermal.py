"""Raw 14/16-bit counts of a thermal camera -> the 8-bit intensities that the network was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.errors import FrameError


@dataclass(frozen=True)
class Intensity:
    """How uint16 counts become 0..255; uint8 frames are intensities already and pass unchanged.

    mode       "percentile": `low` and `high` are percentiles of each frame (1 and 99 keep a few hot pixels from
               darkening the rest); "linear": they are counts, the same for every frame
    low, high  the values that become 0 and 255; everything beyond is cut
    """

    mode: Literal["percentile", "linear"] = "percentile"
    low: float = 1.0
    high: float = 99.0

    def __post_init__(self) -> None:
        if self.mode not in ("percentile", "linear"):
            raise FrameError(f"intensity mode must be 'percentile' or 'linear'; got {self.mode!r}")
        top = 100.0 if self.mode == "percentile" else 65535.0
        if not 0 <= self.low < self.high <= top:
            raise FrameError(f"intensity {self.mode} needs 0 <= low < high <= {top:g}; got {self.low}, {self.high}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """(H, W) uint16 counts -> (H, W) uint8; uint8 of any shape is returned as it is."""
        if frame.dtype == np.uint8:
            return frame
        low, high = np.percentile(frame, (self.low, self.high)) if self.mode == "percentile" else (self.low, self.high)
        # A frame of one value has no contrast to show; a window of one count avoids the division by zero.
        return linear_window(frame, low, max(high, low + 1))


def linear_window(counts: NDArray[np.uint16], low: float, high: float) -> NDArray[np.uint8]:
    """(H, W) uint16 -> (H, W) uint8: `low` -> 0, `high` -> 255, linear between, cut beyond, rounded to nearest."""
    scaled = (counts.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.asarray(np.rint(np.clip(scaled, 0, 255)), np.uint8)


@dataclass(frozen=True)
class Radiometry:
    """How the counts of a camera are temperatures: Celsius = gain * count + offset.

    The defaults are FLIR's TLinear at high resolution, hundredths of a kelvin (Lepton, Boson, Tau 2 datasheets).
    """

    gain: float = 0.01
    offset: float = -273.15

    def celsius(self, counts: NDArray[np.uint16]) -> NDArray[np.float32]:
        """uint16 counts of any shape -> degrees Celsius, the same shape."""
        return np.asarray(counts * np.float64(self.gain) + self.offset, np.float32)
