"""The same object in frame after frame: ByteTrack or OC-SORT of the package `trackers`, and one class a track.

Both follow boxes alone, whatever their classes: a Kalman filter says where each track's box should be, and detections
are assigned to tracks by IoU. They count time by the frames' own, so that dropped frames cost nothing but the gap.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import nms
from glmd_runtime.detections import Detections
from glmd_runtime.errors import UnsupportedError, UsageError
from glmd_runtime.install import install_command

if TYPE_CHECKING:
    from glmd_runtime.video.frame import Frame

KINDS = {"bytetrack": "ByteTrackTracker", "ocsort": "OCSORTTracker"}
FPS = 30.0
# What is above it may begin a track: few models have a threshold below. With the libraries' own limits, 0.6 and 0.7, an
# object that is found in every frame with a score of 0.5 would never have a number.
SURE = 0.3
ONE_OBJECT_IOU = 0.5  # of boxes of two classes that are one object
HALF_LIFE = 2.0  # seconds after which a vote counts half
_FORGOTTEN = 60.0  # seconds without a vote after which a track's votes are dropped: it is over by then
_LEAST_STEP = 1e-6  # seconds; what two frames of one time are taken apart, as time must not stand still


class Tracker:
    """Gives detections track ids, frame by frame. It has memory, so each stream needs its own.

    Args:
        kind: "bytetrack" or "ocsort".
        fps: frames a second of the source, greater than 0.
        vote: whether a detection gets the class that its track's detections voted for; see `ClassVote`.
    Raises: UsageError for another value; UnsupportedError when the package `trackers` is not installed.
    """

    def __init__(self, kind: str = "bytetrack", fps: float = FPS, vote: bool = True) -> None:
        if kind not in KINDS:
            raise UsageError(f"The tracker must be one of {', '.join(KINDS)}; got {kind!r}.")
        if not 0 < fps < float("inf"):
            raise UsageError(f"fps must be a number of frames a second, greater than 0; got {fps}.")
        self.kind, self.fps = kind, float(fps)
        self._votes = ClassVote() if vote else None
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next track is number 0."""
        self._next_id = 0
        self._begin()

    def _begin(self) -> None:
        """Forget the tracks, but not which numbers are taken."""
        self._tracks, self._time, self._first_id = _load(self.kind, self.fps), -1.0, self._next_id
        self._last: Detections | None = None
        if self._votes:
            self._votes.reset()

    def update(self, detections: Detections, frame: Frame) -> Detections:
        """The same detections, row by row, with `track_ids`.

        An object gets its number when it was seen in 2 (ByteTrack) or 3 (OC-SORT) frames one after the other, and
        keeps it while it is lost for less than a second. A frame that is earlier than the last one begins a new stream
        (a clip that is played again): its tracks get new numbers.
        Nothing was seen in a frame that is held (see `Frame.held`): its detections, those of the frame before, are no
        evidence for tracks or classes and get what they had there.
        Args: detections of this frame, in its pixels; frame, of whose `time` the trackers' clock is made.
        Returns: track_ids of -1 for those that are not followed (yet); with `vote`, class_ids by vote. Scores stay
            those of the detections.
        """
        if frame.time < self._time - _LEAST_STEP:
            self._begin()
        if frame.held:
            return _as_before(detections, self._last)
        self._time = max(frame.time, self._time + _LEAST_STEP)
        ids = self._assign(detections)
        ids[ids >= 0] += self._first_id
        self._next_id = max(self._next_id, int(ids.max(initial=-1)) + 1)
        followed = replace(detections, track_ids=ids)
        self._last = self._votes.update(followed, self._time) if self._votes else followed
        return self._last

    def _assign(self, detections: Detections) -> NDArray[np.int64]:
        """(N,) the library's own numbers. It leaves out detections and changes their order, so each carries its row."""
        import supervision

        # An object that was found under two names is one object: the less sure name would begin a track of its own, or
        # vote in the other's.
        rows = nms(detections.xyxy, detections.scores, ONE_OBJECT_IOU)
        data: dict[str, Any] = {"row": rows}
        boxes = supervision.Detections(detections.xyxy[rows], confidence=detections.scores[rows], data=data)
        came = self._tracks.update(boxes, timestamp=self._time)
        ids = np.full(len(detections), -1, np.int64)
        if len(came):
            ids[came.data["row"]] = came.tracker_id
        return ids


def _as_before(detections: Detections, last: Detections | None) -> Detections:
    """Detections with track ids and classes of the last ones, where they are the same; else with no ids."""
    if last is not None and np.array_equal(detections.xyxy, last.xyxy):
        return replace(last, temperatures=detections.temperatures)
    return replace(detections, track_ids=np.full(len(detections), -1, np.int64))


class ClassVote:
    """One class a track: that with the most votes, of which every detection gives its score to its own class.

    Votes lose half of their weight in `half_life` seconds, so that a track that was wrong for long, or went over to
    another object, can change its mind. Of equal classes the one with the lower index wins. Votes are for names, so
    that they count on when a class is enrolled while a stream runs; those for a name that is no longer known are void.
    """

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._half_life = half_life
        self.reset()

    def reset(self) -> None:
        self._votes: dict[int, tuple[float, dict[str, float]]] = {}  # track -> time of the last vote, votes by class

    def update(self, detections: Detections, time: float) -> Detections:
        """Count the votes of a frame at `time` (seconds); class_ids of tracked rows become the track's."""
        class_ids, names = detections.class_ids.copy(), detections.class_names
        for row, track in enumerate(detections.track_ids if detections.track_ids is not None else ()):
            if track >= 0:
                votes = self._count(int(track), names[class_ids[row]], float(detections.scores[row]), time)
                class_ids[row] = np.argmax([votes.get(name, 0.0) for name in names])
        self._votes = {track: entry for track, entry in self._votes.items() if time - entry[0] < _FORGOTTEN}
        return replace(detections, class_ids=class_ids)

    def _count(self, track: int, name: str, score: float, time: float) -> dict[str, float]:
        """A track's votes after one more."""
        last, votes = self._votes.get(track, (time, {}))
        kept = 0.5 ** ((time - last) / self._half_life)
        votes = {voted: kept * weight for voted, weight in votes.items()}
        votes[name] = votes.get(name, 0.0) + score
        self._votes[track] = time, votes
        return votes


def _load(kind: str, fps: float) -> Any:
    """A tracker of the package `trackers`, empty."""
    try:
        import trackers
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"Tracking needs the package trackers. Run: {install_command('track')}") from error
    limits = {"track_activation_threshold": 0.0} if kind == "bytetrack" else {}
    return getattr(trackers, KINDS[kind])(frame_rate=fps, high_conf_det_threshold=SURE, **limits)
