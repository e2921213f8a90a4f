"""The files of glmd-run, one set for each stream."""

from __future__ import annotations

import argparse
from collections import deque
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from glmd_runtime.detector import Detector
from glmd_runtime.draw import draw
from glmd_runtime.errors import GlmdError
from glmd_runtime.sinks import JsonlSink, Mp4Sink, StdoutSink, save_picture
from glmd_runtime.streams import Result, Stream
from glmd_runtime.video.recording import Recorder

OUTPUTS = {"save": (".mp4",), "json": (".jsonl", ".json"), "picture": (), "record": (".mkv",)}  # option -> endings
STDOUT = Path("-")
REMEMBERED = 10_000  # frames of which the last line says the milliseconds; a stream may go on for weeks


class Outputs:
    """The files of one stream; inside `with`. An error discards those of a file that was not read to its end.

    Args: number, put into the files' names where there are several streams.
    """

    def __init__(self, args: argparse.Namespace, stream: Stream, number: int | None) -> None:
        self.stream = stream
        self._given = {name: numbered(getattr(args, name), number) for name in OUTPUTS if getattr(args, name)}
        self._frames = self._detections = 0
        self._whole = True  # whether every file has every frame
        self._milliseconds: deque[float] = deque(maxlen=REMEMBERED)
        self._best: Result | None = None

    def __enter__(self) -> Outputs:
        with ExitStack() as stack:
            self._lines = self._json_sink(path) if (path := self._given.get("json")) else None
            stack.enter_context(self._lines or nullcontext())
            self._video = self._video_sink(path) if (path := self._given.get("save")) else None
            stack.enter_context(self._video or nullcontext())
            self._recorder = Recorder(path, self.stream.source.fps) if (path := self._given.get("record")) else None
            stack.enter_context(self._recorder or nullcontext())
            self._stack = stack.pop_all()
        return self

    def _json_sink(self, path: Path) -> JsonlSink | StdoutSink:
        return StdoutSink(self.stream.name) if path == STDOUT else JsonlSink(path, at_once=self.stream.live)

    def _video_sink(self, path: Path) -> Mp4Sink:
        return Mp4Sink(path, self.stream.source.fps, at_once=self.stream.live)

    def add(self, result: Result) -> None:
        self._frames += 1
        self._whole = False
        if not result.frame.held:  # of a closed shutter: its detections are those of the frame before
            self._detections += len(result.detections)
            self._milliseconds.append(result.seconds["detect"] * 1000)
        if self._best is None or result.detections.scores.sum() > self._best.detections.scores.sum():
            self._best = result
        if self._recorder:
            self._recorder.write(result.frame)
        if self._lines:
            self._lines.write(result.frame, result.detections)
        if self._video:
            self._video.write(draw(result.picture, result.detections), result.frame.time)
        self._whole = True

    def __exit__(self, *error: Any) -> None:
        if self.stream.live and not self._frames:  # nothing came, so there is nothing to keep
            self._given = {}
            error = (GlmdError, GlmdError("no frame came"), None)
        # What a camera gave is whole wherever it ends, whatever ended it.
        elif self.stream.live or (self.stream.finished and self.stream.error is None and self._whole):
            error = (None, None, None)
        self._stack.__exit__(*error)
        if error[0] is None and self._best and (path := self._given.get("picture")):
            save_picture(path, draw(self._best.picture, self._best.detections))

    def summary(self, detector: Detector) -> str:
        """What the run came to, for the last line."""
        text = f"{self._frames} frames, {self._detections} detections"
        if self._milliseconds:
            text += f", {median(self._milliseconds):.1f} ms a frame"
        if drops := self.stream.drops:
            text += f", dropped {', '.join(f'{count} {cause}' for cause, count in drops.items())}"
        info = detector.info()
        text += f" ({info['backend']}, {info['precision']}, {info['device']})"
        written = [path for name, path in self._given.items() if name in ("json", "picture") and path != STDOUT]
        for parts in (self._video, self._recorder):  # may have several files
            written += parts.paths if parts and self._frames else []
        return f"{text} -> {', '.join(map(str, written))}" if written else text


def numbered(path: Path, number: int | None) -> Path:
    """`out.mp4` -> `out.2.mp4`; standard output has no number."""
    return path if number is None or path == STDOUT else path.with_name(f"{path.stem}.{number}{path.suffix}")
