"""Recordings: FFV1 in Matroska, byte for byte what the camera gave, and a line a frame in a file beside it.

    night.mkv        the pictures; every player shows it
    night.mkv.jsonl  {"index", "time", "wall", "radiometry"} of each, since a container rounds times
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from time import monotonic, time
from typing import Any, TextIO

import numpy as np

from glmd_runtime.errors import FrameError, GlmdError, OutputError, SourceError, UsageError
from glmd_runtime.files.documents import parse_json
from glmd_runtime.files.scratch import is_full
from glmd_runtime.files.values import each, number, whole
from glmd_runtime.thermal import Radiometry
from glmd_runtime.video.decoding import import_av
from glmd_runtime.video.frame import Frame

# What a camera array is called in PyAV, and in FFV1.
_PIX_FMTS = {(2, "uint8"): ("gray", "gray"), (2, "uint16"): ("gray16le", "gray16le"), (3, "uint8"): ("bgr24", "bgr0")}
_TICKS = 1000  # a second: Matroska's own unit
MOST_LINE, MOST_LINES = 1000, 256 << 20  # bytes of a line, and of all of a recording: a day at 30 Hz
_OPEN_MS = 500  # of video may be lost to a crash: what FFmpeg gathers before it writes


def side_file(path: Path) -> Path:
    """The lines of the recording `path`."""
    return path.with_name(f"{path.name}.jsonl")


@dataclass(frozen=True, slots=True)  # there are millions of them
class Note:
    """What is known of one frame: index and time as in `Frame`, wall in seconds since 1970, and its radiometry."""

    index: int
    time: float
    wall: float
    radiometry: Radiometry | None = None

    def to_line(self) -> str:
        pair = [self.radiometry.gain, self.radiometry.offset] if self.radiometry else None
        return json.dumps({"index": self.index, "time": self.time, "wall": self.wall, "radiometry": pair}) + "\n"

    @classmethod
    def of(cls, line: str) -> Note:
        values = parse_json(line)
        radiometry = None
        if values["radiometry"] is not None:
            gain, offset = each(number, values["radiometry"])
            radiometry = Radiometry(gain, offset)
        return cls(whole(values["index"]), number(values["time"]), number(values["wall"]), radiometry)


def read_notes(path: Path) -> list[Note]:
    """The lines of the recording `path`; a last one that a crash cut short is left out. Raises: SourceError."""
    file = side_file(path)
    try:
        return [Note.of(line.decode()) for line in _lines(file)]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{file} must hold a recording's lines; got {error!r}. Restore it, or move it away to read {path.name} as "
            "a plain video."
        ) from error


def _lines(file: Path) -> Iterator[bytes]:
    """Its whole lines, of which one is held at a time. Raises: ValueError beyond the limits."""
    read = 0
    with file.open("rb") as stream:
        while line := stream.readline(MOST_LINE):
            read += len(line)
            if read > MOST_LINES:
                raise ValueError(f"more than {MOST_LINES} bytes")
            if len(line) == MOST_LINE and not line.endswith(b"\n"):
                raise ValueError(f"a line of {MOST_LINE} bytes or more")
            if line.endswith(b"\n"):
                yield line


class Recorder:
    """Writes frames so that `open_source(path)` gives them again: pictures, index, time and radiometry.

    Nothing is overwritten, and a container holds pictures of one size and type, for a day at 30 Hz: where the name is
    taken, a camera changes, or its lines are many, it goes on in NAME-2.mkv, NAME-3.mkv ... What was written before a
    crash can be read.

    Args: path ending in .mkv; fps, that players are told.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.fps = Path(path), fps
        self.paths: list[Path] = []
        self._part: _Part | None = None
        if self.path.suffix.lower() != ".mkv":
            raise UsageError(f"A recording's name must end in .mkv; got {path}.")
        import_av()

    def write(self, frame: Frame) -> None:
        """Append one frame.

        Raises: FrameError for an array that is none; UsageError when it cannot be written, OutputError when the disk is
            full.
        """
        kind = _kind(frame)
        try:
            if self._part is None or self._part.kind != kind or self._part.full:
                self.close()
                self.paths.append(self._free_path())
                self._part = _Part(self.paths[-1], self.fps, kind)
            self._part.write(frame)
        except OSError as error:  # PyAV's errors are OSErrors too
            with suppress(GlmdError):  # for the same reason
                self.close()
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> OutputError | UsageError:
        return (OutputError if is_full(error) else UsageError)(
            f"A recording must be writable; {self.path}: {error.strerror}. Choose another path, or make room."
        )

    def _free_path(self) -> Path:
        """A name that is now this recorder's: its lines are there, and whoever else records to the path goes on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        names = (self.path.with_name(f"{self.path.stem}-{number}{self.path.suffix}") for number in count(2))
        return next(path for path in chain([self.path], names) if not path.exists() and _claimed(side_file(path)))

    def close(self) -> None:
        """Complete the file; calling it again does nothing. Raises: as `write`."""
        part, self._part = self._part, None
        try:
            if part is not None:
                part.close()
        except OSError as error:
            raise self._unwritable(error) from error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _claimed(path: Path) -> bool:
    """Make an empty file; False where there is one already, even of another process since a moment ago."""
    try:
        path.open("x").close()
    except FileExistsError:
        return False
    return True


def _kind(frame: Frame) -> tuple[tuple[int, ...], str]:
    """Shape and type of a frame that FFV1 can keep."""
    shape, dtype = frame.image.shape, str(frame.image.dtype)
    # FFV1 cannot hold pictures that are one pixel wide.
    if (len(shape), dtype) not in _PIX_FMTS or shape[2:] not in ((), (3,)) or shape[0] < 1 or shape[1] < 2:
        raise FrameError(
            f"A recorded frame must be (H, W) uint8 or uint16, or (H, W, 3) uint8, W of 2 or more; got {shape} {dtype}."
        )
    return shape, dtype


class _Part:
    """One container with its lines."""

    def __init__(self, path: Path, fps: float, kind: tuple[tuple[int, ...], str]) -> None:
        self.kind = kind
        self._array, pix_fmt = _PIX_FMTS[len(kind[0]), kind[1]]
        self._last, self._written = -1, 0
        options = {"cluster_time_limit": str(_OPEN_MS), "flush_packets": "1"}
        av = import_av()
        with ExitStack() as stack:
            self._lines: TextIO = stack.enter_context(side_file(path).open("w", encoding="utf-8"))
            self._container: Any = stack.enter_context(av.open(str(path), "w", format="matroska", options=options))
            self._stream = self._container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(1001))
            self._stream.pix_fmt = pix_fmt
            self._stream.height, self._stream.width = kind[0][:2]
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
            self._stream.codec_context.options = {"level": "3", "slicecrc": "1"}  # damage is found by slice
            self._stack = stack.pop_all()

    def write(self, frame: Frame) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.image), format=self._array)
        # Players need times that grow; the exact ones are in the lines.
        self._last = max(self._last + 1, round(frame.time * _TICKS))
        picture.pts, picture.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(picture))
        wall = time() - (monotonic() - frame.captured)
        self._written += self._lines.write(Note(frame.index, frame.time, wall, frame.radiometry).to_line())
        self._lines.flush()

    @property
    def full(self) -> bool:
        """Whether another line may be more than `read_notes` reads."""
        return self._written > MOST_LINES - MOST_LINE

    def close(self) -> None:
        with self._stack:
            self._container.mux(self._stream.encode(None))
