"""Raw 14/16-bit counts of a thermal camera -> the 8-bit intensities that the network was trained on, or degrees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.camera.agc import Curve, Histogram, apply_curve, clahe, percentile_curve, plateau_curve, window_curve
from glmd_runtime.errors import FrameError
from glmd_runtime.files.values import number, text

Mode = Literal["percentile", "linear", "plateau", "clahe"]
Polarity = Literal["white-hot", "black-hot"]
MODES: tuple[Mode, ...] = ("percentile", "linear", "plateau", "clahe")
POLARITIES: tuple[Polarity, ...] = ("white-hot", "black-hot")
_ALWAYS_STORED = ("mode", "low", "high")


@dataclass(frozen=True)
class Intensity:
    """How uint16 counts become 0..255; uint8 frames are intensities already and pass unchanged.

    mode       "percentile": `low` and `high` are percentiles of each frame (1 and 99 keep a few hot pixels from
               darkening the rest); "linear": they are counts, the same for every frame; "plateau": see
               `agc.plateau_curve`, `low` and `high` are not used; "clahe": as "percentile", then the local contrast of
               each part of the picture is raised, see `agc.clahe`
    low, high  the values that become 0 and 255; everything beyond is cut
    plateau    of "plateau": what a count can weigh at most, in means over the counts that occur
    clip       of "clahe": how much the local contrast may be raised
    polarity   which end of the counts becomes 255; counts themselves grow with the temperature
    damping    time constant in seconds with which a stream's picture follows its frames, so that something hot that
               comes in does not make it flicker; 0 maps each frame for itself, and so does whatever is no stream
    """

    mode: Mode = "percentile"
    low: float = 1.0
    high: float = 99.0
    plateau: float = 1.0
    clip: float = 2.0
    polarity: Polarity = "white-hot"
    damping: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise FrameError(f"intensity mode must be {_either(MODES)}; got {self.mode!r}.")
        if self.polarity not in POLARITIES:
            raise FrameError(f"intensity polarity must be {_either(POLARITIES)}; got {self.polarity!r}.")
        top = 65535.0 if self.mode == "linear" else 100.0
        if not 0 <= self.low < self.high <= top:
            raise FrameError(f"intensity {self.mode} needs 0 <= low < high <= {top:g}; got {self.low}, {self.high}.")
        if not (self.plateau > 0 and self.clip > 0 and 0 <= self.damping < math.inf):
            raise FrameError(
                "intensity needs plateau > 0, clip > 0 and a damping of 0 or more seconds; "
                f"got {self.plateau}, {self.clip}, {self.damping}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what has its default: what older versions wrote, they can read."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        defaults = {f.name: f.default for f in fields(self) if f.name not in _ALWAYS_STORED}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Intensity:
        """Raises: FrameError, TypeError or ValueError for values that `to_dict` does not give."""
        texts = ("mode", "polarity")
        return cls(**{key: text(value) if key in texts else number(value) for key, value in values.items()})  # type: ignore[arg-type]

    def __call__(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """(H, W) uint16 counts -> (H, W) uint8; uint8 of any shape is returned as it is."""
        return frame if frame.dtype == np.uint8 else self.render(frame, self.curve(frame))

    def curve(self, frame: NDArray[np.uint16]) -> Curve:
        """(H, W) uint16 -> (65536,) float32, the intensity that each count has in this frame."""
        if self.mode == "linear":
            curve = window_curve(self.low, self.high)
        elif self.mode == "plateau":
            curve = plateau_curve(Histogram.of(frame), self.plateau)
        else:
            curve = percentile_curve(Histogram.of(frame), self.low, self.high)
        return curve if self.polarity == "white-hot" else 255 - curve

    def render(self, frame: NDArray[np.uint16], curve: Curve) -> NDArray[np.uint8]:
        """(H, W) uint16 counts by a curve, this frame's own or a stream's -> (H, W) uint8."""
        intensities = apply_curve(frame, curve)
        return clahe(intensities, self.clip) if self.mode == "clahe" else intensities


def _either(values: tuple[str, ...]) -> str:
    *first, last = (repr(value) for value in values)
    return f"{', '.join(first)} or {last}"


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

    def of_boxes(self, frame: NDArray[np.uint16], xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """The coldest, mean and hottest of each box in degrees Celsius.

        Args: frame, (H, W) uint16 counts; xyxy, (N, 4) in its pixels. A pixel that a box touches is in it, and a box
            without area has the pixel that it lies on.
        Returns: (N, 3) float32.
        """
        h, w = frame.shape
        out = np.zeros((len(xyxy), 3), np.float32)
        for row, (x1, y1, x2, y2) in enumerate(np.asarray(xyxy, np.float64)):
            left, top = min(max(int(x1), 0), w - 1), min(max(int(y1), 0), h - 1)
            right, bottom = max(math.ceil(x2), left + 1), max(math.ceil(y2), top + 1)
            part = frame[top:bottom, left:right]
            low, mean, high = (self.gain * float(v) + self.offset for v in (part.min(), part.mean(), part.max()))
            out[row] = min(low, high), mean, max(low, high)  # some cameras' counts fall with the temperature
        return out
