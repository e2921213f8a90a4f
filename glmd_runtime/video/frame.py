"""Frame: what every source yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.status import State

Held = Literal["frozen", "uniform"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera array with its place in the stream.

    image       (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR
    index       counts from 0; of a live source every frame that the camera gave, dropped ones too
    time        seconds since the stream's first frame
    truth       what is in the picture, where the source knows it (the simulator); else None
    captured    when the frame came, in seconds of `time.monotonic()`: now minus this is its age
    radiometry  how its counts are temperatures; None where the camera does not measure any
    held        why nothing was detected in it: "frozen" or "uniform", as cameras' pictures are while their shutter is
                closed; its detections are then those of the frame before. None for a frame that was looked at
    state       of its source when it handed this on: "running", but for what waited when the source was lost or ended
    """

    image: NDArray[np.unsignedinteger[Any]]
    index: int
    time: float
    truth: Detections | None = None
    captured: float = field(default_factory=monotonic)
    radiometry: Radiometry | None = None
    held: Held | None = None
    state: State = "running"
