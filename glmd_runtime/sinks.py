"""Where results go. Every file appears under its name only when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.frame import Frame


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """An empty temporary file beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises: UsageError when there can be no file.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise UsageError(f"An output must be a file; {path} is a directory. Choose another path.")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UsageError(
            f"An output's folder must exist, or be possible to make, and be writable; {path}: {error.strerror}. "
            "Choose another path."
        ) from error
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


class JsonlSink:
    """One JSON line a frame, frames without detections too: `{"frame", "time", "detections": [...]}`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> JsonlSink:
        with ExitStack() as stack:
            self._file = stack.enter_context(stack.enter_context(whole_file(self.path)).open("w", encoding="utf-8"))
            self._stack = stack.pop_all()
        return self

    def write(self, frame: Frame, detections: Detections) -> None:
        line = {"frame": frame.index, "time": round(frame.time, 4), "detections": detections.to_dict()}
        self._file.write(json.dumps(line) + "\n")

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class Mp4Sink:
    """H.264 video that every player shows; the size is that of the first picture.

    Args: path ending in .mp4; fps, pictures a second.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.fps = Path(path), fps
        self._stream: Any = None
        self._hw: tuple[int, int] | None = None
        self._tick = -1  # the last picture's place, in frames
        self._start: float | None = None  # the first one's time
        if self.path.suffix.lower() != ".mp4":
            raise UsageError(f"A video's name must end in .mp4; got {path}.")

    def __enter__(self) -> Mp4Sink:
        av = import_av()
        with ExitStack() as stack:
            partial = stack.enter_context(whole_file(self.path))
            self._container = stack.enter_context(av.open(str(partial), "w", format="mp4"))
            stack.push(self._flush)
            self._stack = stack.pop_all()
        return self

    def write(self, picture: NDArray[np.uint8], time: float | None = None) -> None:
        """Append one (H, W, 3) uint8 BGR picture.

        Args: time, seconds since the first one, so that a stream that lost frames plays at its own pace; None for the
            next in a row.
        Raises: FrameError when its size differs from the first one's.
        """
        import av

        if self._stream is None:
            self._stream, self._hw = self._add_stream(picture.shape[:2]), picture.shape[:2]
        if picture.shape[:2] != self._hw:
            raise FrameError(f"The pictures of a video must be of one size, {self._hw}; got {picture.shape[:2]}.")
        # H.264 halves the colour's resolution, so that both sides must be even.
        padded = np.pad(picture, ((0, self._hw[0] % 2), (0, self._hw[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(padded, format="bgr24")
        if time is not None:
            self._start = time if self._start is None else self._start
            self._tick = max(self._tick, round((time - self._start) * self.fps) - 1)
        self._tick += 1
        frame.pts, frame.time_base = self._tick, 1 / self._stream.codec_context.framerate
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _add_stream(self, hw: tuple[int, int]) -> Any:
        rate = Fraction(self.fps).limit_denominator(1001)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = (side + side % 2 for side in hw)
        return stream

    def _flush(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Encode what the encoder still holds, unless the file is thrown away anyway."""
        if error_type is None and self._stream is None:
            raise FrameError(f"A video needs at least one picture; none was written to {self.path}.")
        if error_type is None:
            self._container.mux(self._stream.encode(None))
