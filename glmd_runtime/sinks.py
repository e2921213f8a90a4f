"""Where results go. A file appears under its name when it is complete; lines of a camera may appear as they come."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, GlmdError, UsageError
from glmd_runtime.files.scratch import whole_file, writing
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.frame import Frame

TICKS = 60_000  # a second, of a video's clock; MPEG-4 allows 65535
# The first that FFmpeg was built with is taken, with these options. x264 is under the GPL; the others are not.
ENCODERS = {
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"b": "8M"},  # FFmpeg's own, so that it is always there
}


def save_picture(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write one (H, W, 3) BGR or (H, W) picture; the suffix names the format."""
    suffix = Path(path).suffix
    try:
        encoded, content = cv2.imencode(suffix, picture)
    except cv2.error:
        encoded = False
    if not encoded:
        raise UsageError(f"A picture's name must end in .png, .jpg or the like; got {path}.")
    with whole_file(path) as partial:
        partial.write_bytes(content.tobytes())


def json_line(frame: Frame, detections: Detections, **more: Any) -> str:
    """`{**more, "frame", "time", "detections": [...]}`, and "held" of a frame that nothing was detected in."""
    line = {**more, "frame": frame.index, "time": round(frame.time, 4)}
    line |= {"held": frame.held} if frame.held else {}
    return json.dumps({**line, "detections": detections.to_dict()})


class StdoutSink:
    """One JSON line a frame on standard output, at once, for the program behind a pipe; it begins with "source"."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> StdoutSink:
        return self

    def write(self, frame: Frame, detections: Detections) -> None:
        """Raises: GlmdError when nobody reads it any more, OutputError when it is a file on a full disk."""
        try:
            with writing("Standard output"):
                print(json_line(frame, detections, source=self.source), flush=True)
        except BrokenPipeError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own end would fail on it
            raise GlmdError("The program that reads standard output has ended; so does this one.") from error

    def __exit__(self, *_: object) -> None:
        pass


class JsonlSink:
    """One JSON line a frame, as `json_line` says, frames without detections too.

    Args: at_once, whether the file is there from its first line on and each line is in it at once, as somebody may read
        along a camera's, and what came before a power cut is kept. Else it appears when it is complete.
    """

    def __init__(self, path: str | Path, *, at_once: bool = False) -> None:
        self.path, self._at_once = Path(path), at_once

    def __enter__(self) -> JsonlSink:
        with ExitStack() as stack:
            self._file = stack.enter_context(stack.enter_context(whole_file(self.path)).open("w", encoding="utf-8"))
            self._stack = stack.pop_all()
        return self

    def write(self, frame: Frame, detections: Detections) -> None:
        """Raises: OutputError when the disk is full."""
        with writing(self.path):
            self._file.write(json_line(frame, detections) + "\n")
            if self._at_once and not self._file.line_buffering:
                self._stack.close()  # which gives the file its name
                self._file = self._stack.enter_context(self.path.open("a", encoding="utf-8", buffering=1))

    def __exit__(self, *error: Any) -> None:
        with writing(self.path):
            self._stack.__exit__(*error)


class Mp4Sink:
    """H.264 video that every player shows. Inside `with`; an error discards the file that is not complete.

    Where FFmpeg was built without an encoder of H.264, as one free of the GPL may be, it is MPEG-4 video.

    A file holds pictures of one size. Where a camera changes, the file is completed, and it goes on in NAME-2.mp4,
    NAME-3.mp4 ..., of which none is overwritten.

    Args: path ending in .mp4; fps, pictures a second; at_once, whether the file is there from its first picture on, and
        whatever ends the run it can be played, but for the last dozens of pictures.
    """

    def __init__(self, path: str | Path, fps: float, *, at_once: bool = False) -> None:
        self.path, self.fps, self._at_once = Path(path), fps, at_once
        self.paths: list[Path] = []
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"A video's name must end in .mp4; got {path}.")

    def __enter__(self) -> Mp4Sink:
        import_av()
        self._begin(self.path)
        return self

    def write(self, picture: NDArray[np.uint8], time: float | None = None) -> None:
        """Append one (H, W, 3) uint8 BGR picture.

        Args: time, seconds since the first one, so that a stream that lost frames plays at its own pace; None for the
            next in a row.
        Raises: OutputError when the disk is full.
        """
        with writing(self.path):
            if self._part.hw not in (None, picture.shape[:2]):
                self._stack.close()
                self._begin(self._free_path())
            self._part.write(picture, time)

    def __exit__(self, *error: Any) -> None:
        with writing(self.path):
            self._stack.__exit__(*error)

    def _begin(self, path: Path) -> None:
        with ExitStack() as stack:
            self._part = stack.enter_context(_Mp4Part(path, self.fps, self._at_once))
            self._stack = stack.pop_all()
        self.paths.append(path)

    def _free_path(self) -> Path:
        names = (self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}") for number in count(2))
        return next(path for path in names if not path.exists())


class _Mp4Part:
    """One file, of pictures of one size; `hw` is that of the first."""

    def __init__(self, path: Path, fps: float, at_once: bool) -> None:
        self.path, self.fps, self._at_once = path, fps, at_once
        self.hw: tuple[int, int] | None = None
        self._stream: Any = None
        self._tick = -1  # the last picture's time, in 1 / TICKS seconds
        self._start: float | None = None  # the first one's time

    def __enter__(self) -> _Mp4Part:
        av = import_av()
        # In fragments, each complete, until the end makes one table of all; FFmpeg 7.1 can do both in one file.
        options = {"movflags": "hybrid_fragmented", "flush_packets": "1"} if self._at_once else {}
        with ExitStack() as stack:
            self._naming = stack.enter_context(ExitStack())
            partial = self._naming.enter_context(whole_file(self.path))
            self._container = stack.enter_context(av.open(str(partial), "w", format="mp4", options=options))
            stack.push(self._flush)
            self._stack = stack.pop_all()
        return self

    def write(self, picture: NDArray[np.uint8], time: float | None) -> None:
        import av

        h, w = picture.shape[:2]
        if self._stream is None:
            self._stream, self.hw = self._add_stream((h, w)), (h, w)
            if self._at_once:
                self._container.start_encoding()  # which opens the file
                self._naming.close()
        # H.264 halves the colour's resolution, so that both sides must be even.
        padded = np.pad(picture, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(padded, format="bgr24")
        if time is None:
            self._tick += round(TICKS / self.fps) if self._tick >= 0 else 1
        else:
            self._start = time if self._start is None else self._start
            self._tick = max(self._tick + 1, round((time - self._start) * TICKS))
        frame.pts, frame.time_base = self._tick, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _add_stream(self, hw: tuple[int, int]) -> Any:
        rate = Fraction(self.fps).limit_denominator(1001)
        name = next(name for name in ENCODERS if name in import_av().codecs_available)
        stream = self._container.add_stream(name, rate=rate, options=dict(ENCODERS[name]))
        stream.pix_fmt = "yuv420p"
        if self._at_once:
            stream.codec_context.gop_size = max(1, round(self.fps))  # a fragment ends before a key frame
        stream.height, stream.width = (side + side % 2 for side in hw)
        stream.codec_context.time_base = Fraction(1, TICKS)  # a camera's own rate is known only when it has come
        return stream

    def _flush(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Encode what the encoder still holds, unless the file is thrown away anyway."""
        if error_type is None and self._stream is None:
            raise FrameError(f"A video needs at least one picture; none was written to {self.path}.")
        if self._stream and (self._at_once or error_type is None):
            self._container.mux(self._stream.encode(None))
