"""Source: frames in order, and what becomes of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Lock

from glmd_runtime.errors import GlmdError
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.status import Status

_log = logging.getLogger(__name__)

OnStatus = Callable[[Status], object]


class Source:
    """Frames in order, read as they are asked for; iterate it once, inside `with`. `close` may come from any thread.

    name    for people, without credentials
    fps     frames a second
    frames  how many, None when it is not known or never ends
    live    whether frames come when the camera gives them, asked for or not
    status  what it is doing
    drops   frames that were not yielded, counted by cause; of a file there are none
    """

    live = False

    def __init__(
        self,
        name: str,
        fps: float,
        frames: int | None,
        stream: Iterator[Frame],
        release: Callable[[], object] = lambda: None,
    ) -> None:
        self.name, self.fps, self.frames = name, fps, frames
        self.status = Status("running")
        self.drops: dict[str, int] = {}
        self._stream, self._release = stream, release
        self._on_status: OnStatus | None = None
        self._reading = Lock()  # a decoder must not be closed under a thread that decodes

    def __iter__(self) -> Iterator[Frame]:
        try:
            while (frame := self._next()) is not None:
                state = self.status.state
                yield frame if frame.state == state else replace(frame, state=state)
        except GlmdError as error:
            self._end(str(error))
            raise
        self._end("no more frames")

    def _next(self) -> Frame | None:
        with self._reading:
            return None if self.status.state == "ended" else next(self._stream, None)

    def listen(self, on_status: OnStatus) -> None:
        """Call `on_status` with the present status, and with every one to come."""
        self._on_status = on_status
        self._tell(self.status)

    def close(self) -> None:
        """No more frames; calling it again does nothing."""
        self._end("closed")

    def _end(self, detail: str) -> None:
        with self._reading:
            if self.status.state == "ended":
                return
            self.status = Status("ended", detail)
            self._release()
        self._tell(self.status)

    def _tell(self, status: Status) -> None:
        """A listener's own mistake must not end the stream. No lock is held, for a listener may want to close."""
        if self._on_status is None:
            return
        try:
            self._on_status(status)
        except Exception:
            _log.exception("on_status failed for %s", status)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

