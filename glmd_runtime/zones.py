"""Lines that tracked objects cross and zones that objects are in, counted by class: supervision's, in frame pixels.

An object is where the middle of its box is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.install import install_command

Point = tuple[float, float]


class Line:
    """Counts tracked objects that cross the line from `start` to `end`, two different points (x, y) in frame pixels.

    Seen from `start`, looking to `end`, an object that goes from left to right goes "out", and one from right to left
    "in". One is counted when it is seen on the other side, if it was seen on the first at most 2 frames before.
    Raises: UsageError; UnsupportedError when supervision is not installed.
    """

    def __init__(self, start: Point, end: Point) -> None:
        a, b = (_points([point], 1)[0] for point in (start, end))
        if (a == b).all():
            raise UsageError(f"A line goes from one point to another; got {start} twice.")
        sv = _supervision()
        self._line = sv.LineZone(sv.Point(*a), sv.Point(*b), triggering_anchors=[sv.Position.CENTER])
        self._class_names: tuple[str, ...] = ()

    def update(self, detections: Detections) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Count one frame, to be called with every frame, empty ones too.

        Args: detections with `track_ids`, as `Tracker.update` gives them.
        Returns: (N,) which rows crossed in, and which out, in this frame.
        Raises: UsageError for detections without track ids.
        """
        if detections.track_ids is None:
            raise UsageError("A line counts tracked objects; these detections have no track_ids. Use a Tracker first.")
        self._class_names = detections.class_names
        crossed_in, crossed_out = self._line.trigger(detections.to_supervision())
        return np.asarray(crossed_in), np.asarray(crossed_out)

    @property
    def counts_in(self) -> dict[str, int]:
        """How many of each class went in so far, those that did."""
        return self._named(self._line.in_count_per_class)

    @property
    def counts_out(self) -> dict[str, int]:
        return self._named(self._line.out_count_per_class)

    def _named(self, counts: dict[Any, int]) -> dict[str, int]:
        return {self._class_names[class_id]: count for class_id, count in sorted(counts.items())}


class Zone:
    """A polygon: three or more points (x, y) in frame pixels, rounded to whole ones, its edge included.

    Raises: UsageError; UnsupportedError when supervision is not installed.
    """

    def __init__(self, polygon: Sequence[Point]) -> None:
        sv, points = _supervision(), np.rint(_points(polygon, 3)).astype(int)
        self._zone = sv.PolygonZone(points, triggering_anchors=[sv.Position.CENTER])

    def inside(self, detections: Detections) -> NDArray[np.bool_]:
        """(N,) which detections are in the zone; `detections[zone.inside(detections)]` are those."""
        return np.asarray(self._zone.trigger(detections.to_supervision()), bool)

    def counts(self, detections: Detections) -> dict[str, int]:
        """How many of each class are in the zone in this frame, those that are."""
        names = detections[self.inside(detections)].names
        return {name: names.count(name) for name in detections.class_names if name in names}


def _points(points: Sequence[Point], least: int) -> NDArray[np.float64]:
    """(N, 2) finite numbers, N at least `least`."""
    try:
        array = np.asarray(points, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < least or not np.isfinite(array).all():
        raise UsageError(f"Expected {least} or more points (x, y) in frame pixels; got {points!r}. Correct them.")
    return array


def _supervision() -> Any:
    try:
        import supervision
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"Lines and zones need supervision. Run: {install_command('track')}") from error
    return supervision
