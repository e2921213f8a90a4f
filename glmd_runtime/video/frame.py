"""Frame: what every source yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera array with its place in the stream.

    image  (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR
    index  counts from 0
    time   seconds since the stream's first frame
    truth  what is in the picture, where the source knows it (the simulator); else None
    """

    image: NDArray[np.unsignedinteger[Any]]
    index: int
    time: float
    truth: Detections | None = None
