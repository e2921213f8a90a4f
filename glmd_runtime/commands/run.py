"""glmd-run: sources -> detector -> files, metrics, a page."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, TextIO

import cv2
from rich import progress as bars
from rich.console import Console
from rich.text import Text

from glmd_runtime.backends import BACKENDS
from glmd_runtime.bundle import bundle_of
from glmd_runtime.camera.bad_pixels import read_bad_pixels
from glmd_runtime.camera.front_end import Camera
from glmd_runtime.commands.command import loading
from glmd_runtime.commands.outputs import OUTPUTS, STDOUT, Outputs, numbered
from glmd_runtime.commands.parser import Parser
from glmd_runtime.detector import Detector
from glmd_runtime.engines import BUILD
from glmd_runtime.errors import GlmdError, UsageError
from glmd_runtime.metrics import Metrics
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.streams import FrameTracker, Result, Stream
from glmd_runtime.thermal import POLARITIES
from glmd_runtime.video.files import files_of
from glmd_runtime.video.recording import side_file
from glmd_runtime.video.simulator import parse_sim_uri
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import is_live
from glmd_runtime.video.status import Status
from glmd_runtime.view import PORT, View
from glmd_runtime.web.listen import parse_address


def run_parser() -> Parser:
    parser = Parser(
        "glmd-run",
        description="Detect objects in video, pictures, cameras or a simulated scene.",
        example="glmd-run --engine models/thermal_lite0.glmd --source 'sim://ground?seed=7&frames=90' "
        "--picture best.png",
    )
    add = parser.add_argument
    add("--engine", required=True, type=Path, metavar="BUNDLE", help="a bundle name.glmd, or an engine file inside one")
    add(
        "--source", required=True, action="append", metavar="URI",
        help="video, picture, directory of pictures, camera, or 'sim://ground?seed=7&frames=90'; once for each",
    )
    add("--policy", choices=("freshest", "every"), default="freshest", help="of cameras: skip late frames, or none")
    add("--damping", type=float, metavar="SECONDS", help="how slowly 16-bit pictures follow the scene; 0: at once")
    add("--polarity", choices=POLARITIES, help="of what the cameras deliver (default: what the model expects)")
    add("--bad-pixels", type=Path, metavar="MASK.png", help="fill a 16-bit camera's pixels that are not black in MASK")
    add("--track", nargs="?", const="bytetrack", choices=("bytetrack", "ocsort"), help="follow objects (bytetrack)")
    add("--view", nargs="?", const=str(PORT), metavar="[HOST:]PORT", help=f"a page to look at (127.0.0.1:{PORT})")
    add("--metrics", metavar="[HOST:]PORT", help="serve numbers for Prometheus (host: 127.0.0.1)")
    add("--save", type=Path, metavar="OUT.mp4", help="write the annotated video")
    add("--json", type=Path, metavar="OUT.jsonl", help="write one JSON line a frame; - for standard output")
    add("--picture", type=Path, metavar="OUT.png", help="write the annotated frame with the highest sum of scores")
    add("--record", type=Path, metavar="OUT.mkv", help="write the frames as the camera gave them, for replay")
    add("--score", type=float, metavar="S", help="keep detections above S, 0..1 (default: the bundle's own thresholds)")
    add("--backend", choices=("auto", *BACKENDS), default="auto", help="inference library (default: the fastest here)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the library's choice)")
    add("--device", metavar="D", help="cpu, cuda or cuda:N (default: the fastest)")
    add("--build", choices=BUILD, default="auto", help="build a TensorRT engine if none is cached (default), or never")
    add("--tiles", type=int, nargs=2, metavar=("COLUMNS", "ROWS"), help="cut each frame into tiles, for small objects")
    return parser


def _only_errors_of_opencv() -> None:
    """It warns of every tag that it does not know."""
    log: Any = getattr(cv2.utils, "logging", cv2)  # of OpenCV 5, and of 4
    log.setLogLevel(2)  # errors, in both


def run(args: argparse.Namespace) -> None:
    """The command: until the sources end; the page, where there is one, stays until the user leaves."""
    _check_outputs(args)
    _only_errors_of_opencv()
    view_at, metrics_at = (parse_address(text) if text else None for text in (args.view, args.metrics))
    camera, tracker = _camera(args), _tracker(args.track)
    listeners: list[Callable[[Result], object]] = []
    with ExitStack() as around:
        detector = around.enter_context(_detector(args))
        progress = around.enter_context(_progress())
        pipeline = around.enter_context(
            Pipeline(
                args.source,
                detector,
                camera=camera,
                tracker=tracker,
                policy=args.policy,
                on_result=lambda result: [listen(result) for listen in listeners],
                on_status=lambda name, status: _say(progress.console, name, status),
            )
        )
        if metrics_at:
            listeners.append(around.enter_context(Metrics(pipeline.streams, metrics_at)).add)
        if view_at:
            view = around.enter_context(View(pipeline.streams, detector, view_at))
            listeners.append(view.publish)
            progress.console.print(f"page: {view.url}", soft_wrap=True, highlight=False)
        listeners.append(_advance(progress, pipeline.streams))
        outputs: list[Outputs] = []
        failed: GlmdError | None = None
        try:
            _run_into_files(args, pipeline, listeners, outputs)
        except GlmdError as error:
            failed = error
        progress.stop()
        _summarise(outputs, detector, sys.stderr if args.json == STDOUT else sys.stdout, failed)
        if failed:
            raise failed
        if view_at and not pipeline.stopped:
            _linger()


def _run_into_files(
    args: argparse.Namespace, pipeline: Pipeline, listeners: list[Callable[[Result], object]], outputs: list[Outputs]
) -> None:
    """Run to the end, with the files of each stream, which become `outputs`: whole afterwards, or gone if it raises."""
    with ExitStack() as files:
        for number, stream in enumerate(pipeline.streams, start=1):
            number_there = number if len(pipeline.streams) > 1 else None
            outputs.append(files.enter_context(Outputs(args, stream, number_there)))
        by_name = {output.stream.name: output for output in outputs}
        listeners.append(lambda result: by_name[result.stream].add(result))
        with _signals(pipeline):
            pipeline.run()


def _summarise(outputs: Sequence[Outputs], detector: Detector, to: TextIO, failed: GlmdError | None) -> None:
    """A line for each stream; where one has failed, for those that were read to their ends."""
    for output in outputs:
        if failed is None or (output.stream.finished and output.stream.error is None):
            print(f"{output.stream.name}: {output.summary(detector)}", file=to, flush=True)


def _detector(args: argparse.Namespace) -> Detector:
    with loading():
        return Detector(
            args.engine,
            backend=args.backend,
            score_threshold=args.score,
            threads=args.threads,
            device=args.device,
            build=args.build,
            throughput=not any(is_live(uri) for uri in args.source),
            tiles=args.tiles,
        )


def _camera(args: argparse.Namespace) -> Camera:
    bad_pixels = read_bad_pixels(args.bad_pixels) if args.bad_pixels else None
    return Camera(args.damping, args.polarity, bad_pixels)


def _tracker(kind: str | None) -> Callable[[Source], FrameTracker] | None:
    if kind is None:
        return None
    from glmd_runtime.tracking import Tracker

    # Of the usual rate: time is the frames' own, and a camera's rate is not known before it is connected.
    return lambda source: Tracker(kind)


def _check_outputs(args: argparse.Namespace) -> None:
    """All that can be said before any work was done."""
    numbers = range(1, len(args.source) + 1) if len(args.source) > 1 else (None,)
    given = {name: path for name in OUTPUTS if (path := getattr(args, name)) not in (None, STDOUT)}
    outputs = [numbered(path, number) for number in numbers for path in given.values()]
    if "record" in given:
        outputs += [side_file(numbered(given["record"], number)) for number in numbers]
    named = [path.resolve() for path in (*outputs, *([args.bad_pixels] if args.bad_pixels else []))]
    if len(set(named)) < len(named):
        raise UsageError(f"Every output needs a name of its own; got {', '.join(map(str, given.values()))}.")
    bundle = bundle_of(args.engine)
    for path, read in product(outputs, (bundle, *(file for uri in args.source for file in files_of(uri)))):
        if path.resolve().is_relative_to(read.resolve()):
            raise UsageError(f"An output must be outside the source and the bundle; got {path}. Choose another path.")
    _check_endings(args)
    if outputs:
        _check_ends(args.source)


def _check_endings(args: argparse.Namespace) -> None:
    """So that no output replaces a file of another kind."""
    for name, endings in OUTPUTS.items():
        path = getattr(args, name)
        if path not in (None, STDOUT) and endings and path.suffix.lower() not in endings:
            raise UsageError(f"--{name} must end in {' or '.join(endings)}; got {path}.")
    if args.picture and not cv2.haveImageWriter(str(args.picture)):
        raise UsageError(f"--picture must end in .png, .jpg or the like; got {args.picture}.")


def _check_ends(sources: Sequence[str]) -> None:
    """A camera's outputs are complete when it is stopped; those of a scene without end never would be."""
    for source in sources:
        if source.lower().startswith("sim://") and not ((spec := parse_sim_uri(source)).frames or spec.live):
            raise UsageError(f"An output needs a source that ends; {source} never does. Give it frames=N.")


@contextmanager
def _signals(pipeline: Pipeline) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run of cameras well, as nothing else ends it; one of files is interrupted by them."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the second time, at once
        if not any(stream.live for stream in pipeline.streams):
            raise KeyboardInterrupt
        pipeline.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _linger() -> None:
    """The page shows how it ended, until the user leaves."""
    print("The sources have ended; the page stays until Ctrl-C.", file=sys.stderr)
    leave = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    leave.wait()


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        return Text(f"{task.speed:.1f} frames/s" if task.speed else "")


def _progress() -> bars.Progress:
    """A bar a stream on stderr: frames done, frames a second, time left."""
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), _Rate())
    return bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True))


def _advance(progress: bars.Progress, streams: Sequence[Stream]) -> Callable[[Result], None]:
    tasks = {s.name: progress.add_task(s.name, total=s.source.frames) for s in streams}
    return lambda result: progress.advance(tasks[result.stream])


def _say(console: Console, name: str, status: Status) -> None:
    """A line for what a user would want to know."""
    if status.detail or status.state in ("connecting", "lost"):
        console.print(Text(f"{name}: {status.state}{': ' if status.detail else ''}{status.detail}"))
