"""The commands that run on the device: glmd-run, glmd-verify, glmd-doctor."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
from rich import progress as bars
from rich.console import Console
from rich.status import Status
from rich.text import Text

from glmd_runtime.backends import BACKENDS, INSTALL
from glmd_runtime.bundle import open_bundle
from glmd_runtime.command import run_command
from glmd_runtime.detections import Detections
from glmd_runtime.detector import Detector
from glmd_runtime.doctor import describe, diagnose, lines
from glmd_runtime.draw import draw
from glmd_runtime.engine_cache import prune
from glmd_runtime.engines import BUILD, open_engine
from glmd_runtime.errors import ParityError, UnsupportedError, UsageError
from glmd_runtime.sinks import JsonlSink, Mp4Sink, save_picture
from glmd_runtime.verify import VerifyReport, VerifyRow, verify_bundle
from glmd_runtime.verify_calibration import verify_calibration
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.simulator import parse_sim_uri
from glmd_runtime.video.sources import open_source


def glmd_run_main() -> None:
    """Entry point of glmd-run."""
    sys.exit(run_command(_run_parser(), _run))


def glmd_verify_main() -> None:
    """Entry point of glmd-verify."""
    sys.exit(run_command(_verify_parser(), _verify))


def glmd_doctor_main() -> None:
    """Entry point of glmd-doctor."""
    sys.exit(run_command(_doctor_parser(), _doctor))


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glmd-run", description="Detect objects in video, pictures or a simulated scene.")
    add = parser.add_argument
    add("--engine", required=True, type=Path, metavar="BUNDLE", help="a bundle name.glmd, or an engine file inside one")
    add("--source", required=True, help="video, picture, directory of pictures, or 'sim://ground?seed=7&frames=90'")
    add("--save", type=Path, metavar="OUT.mp4", help="write the annotated video")
    add("--json", type=Path, metavar="OUT.jsonl", help="write one JSON line a frame")
    add("--picture", type=Path, metavar="OUT.png", help="write the annotated frame with the highest sum of scores")
    add("--score", type=float, metavar="S", help="keep detections above S, 0..1 (default: the bundle's own thresholds)")
    add("--backend", choices=("auto", *BACKENDS), default="auto", help="inference library (default: the fastest here)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the library's choice)")
    add("--device", metavar="D", help="cpu, cuda or cuda:N (default: the fastest)")
    add("--build", choices=BUILD, default="auto", help="build a TensorRT engine if none is cached (default), or never")
    add("--tiles", type=int, nargs=2, metavar=("COLUMNS", "ROWS"), help="cut each frame into tiles, for small objects")
    return parser


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glmd-verify", description="Check a bundle's engines against its own reference.")
    parser.add_argument("bundle", type=Path, help="a bundle name.glmd")
    parser.add_argument("--backend", choices=BACKENDS, help="only this one (default: all that are installed)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _doctor_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("glmd-doctor", description="Say what this machine can run, and what it cached.")
    parser.add_argument("--prune", action="store_true", help="remove cached engines that are of no use any more")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


@dataclass
class _Tally:
    """What the last line and `--picture` need to know of a run."""

    frames: int = 0
    detections: int = 0
    milliseconds: list[float] = field(default_factory=list)
    best: tuple[Frame, Detections] | None = None

    def add(self, frame: Frame, found: Detections, seconds: float) -> None:
        self.frames += 1
        self.detections += len(found)
        self.milliseconds.append(seconds * 1000)
        if self.best is None or found.scores.sum() > self.best[1].scores.sum():
            self.best = frame, found

    def __str__(self) -> str:
        counts = f"{self.frames} frames, {self.detections} detections"
        return f"{counts}, {median(self.milliseconds):.1f} ms a frame" if self.milliseconds else counts


def _run(args: argparse.Namespace) -> None:
    outputs = _checked_outputs(args)
    tally = _Tally()
    with ExitStack() as stack:
        with _loading():
            detector = Detector(
                args.engine,
                backend=args.backend,
                score_threshold=args.score,
                threads=args.threads,
                device=args.device,
                build=args.build,
                tiles=args.tiles,
            )
        stack.enter_context(detector)
        source = stack.enter_context(open_source(args.source))
        lines = stack.enter_context(JsonlSink(args.json)) if args.json else None
        video = stack.enter_context(Mp4Sink(args.save, source.fps)) if args.save else None
        progress = stack.enter_context(_progress())
        for frame in progress.track(source, total=source.frames, description=source.name):
            began = perf_counter()
            found = detector.run(frame.image)
            tally.add(frame, found, perf_counter() - began)
            if lines:
                lines.write(frame, found)
            if video:
                video.write(draw(frame.image, found))
        if args.picture and tally.best:
            save_picture(args.picture, draw(tally.best[0].image, tally.best[1]))
    info = detector.info()
    where = f" -> {', '.join(map(str, outputs))}" if outputs else ""
    print(f"{source.name}: {tally} ({info['backend']}, {info['precision']}, {info['device']}){where}")


def _checked_outputs(args: argparse.Namespace) -> list[Path]:
    """The output paths, after the checks that need no work to have been done."""
    outputs = [path for path in (args.save, args.json, args.picture) if path is not None]
    resolved = [path.resolve() for path in outputs]
    if len(set(resolved)) < len(resolved):
        raise UsageError(f"Every output needs a name of its own; got {', '.join(map(str, outputs))}.")
    bundle = args.engine.parent if args.engine.is_file() else args.engine
    for path, given in product(resolved, (Path(args.source), bundle)):
        if path.is_relative_to(given.resolve()):
            raise UsageError(f"An output must be outside the source and the bundle; got {path}. Choose another path.")
    _check_endings(args)
    if outputs and args.source.startswith("sim://") and parse_sim_uri(args.source).frames == 0:
        raise UsageError(f"An output needs a source that ends; {args.source} never does. Give it frames=N.")
    return outputs


def _check_endings(args: argparse.Namespace) -> None:
    """So that no output replaces a file of another kind."""
    if args.save and args.save.suffix.lower() != ".mp4":
        raise UsageError(f"--save must end in .mp4; got {args.save}.")
    if args.json and args.json.suffix.lower() not in (".jsonl", ".json"):
        raise UsageError(f"--json must end in .jsonl or .json; got {args.json}.")
    if args.picture and not cv2.haveImageWriter(str(args.picture)):
        raise UsageError(f"--picture must end in .png, .jpg or the like; got {args.picture}.")


class _Rate(bars.ProgressColumn):
    def render(self, task: bars.Task) -> Text:
        return Text(f"{task.speed:.1f} frames/s" if task.speed else "")


def _progress() -> bars.Progress:
    """A bar on stderr: frames done, frames a second, time left."""
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(), _Rate())
    return bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True))


class _Loading(logging.Handler):
    """What building an engine has to say: the last of it beside a spinner, warnings on lines of their own."""

    def __init__(self, status: Status) -> None:
        super().__init__(logging.INFO)
        self._status = status

    def emit(self, record: logging.LogRecord) -> None:
        text = Text(record.getMessage())
        if record.levelno >= logging.WARNING:
            self._status.console.print(text)
        else:
            self._status.update(text)


@contextmanager
def _loading() -> Iterator[None]:
    """Show on stderr what the runtime logs in the meantime."""
    logger = logging.getLogger("glmd_runtime")
    with Console(stderr=True).status("loading the engine") as status:
        handler, level = _Loading(status), logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _verify(args: argparse.Namespace) -> None:
    with _loading():
        bundle = open_bundle(args.bundle)
        rows = verify_bundle(bundle, args.backend, open_engine=open_engine).rows
        report = VerifyReport((*rows, *verify_calibration(bundle, args.backend)))
    print(json.dumps(report.to_dict(), indent=2) if args.json else "\n".join(map(_row_line, report.rows)))
    failed = [f"{row.engine} on {row.backend}, {row.stage}" for row in report.rows if row.status == "failed"]
    if failed:
        raise ParityError(f"{args.bundle} does not give its reference's answers: {'; '.join(failed)}.")
    if report.status == "failed":
        reasons = sorted({f"{row.engine} on {row.backend}, {row.reason}" for row in report.rows if row.reason})
        raise UnsupportedError(
            f"To be verified, an engine of {args.bundle} must run here; none did: "
            f"{'; '.join(reasons) or 'no backend reads them'}. Name another backend, or run: {INSTALL}"
        )


def _row_line(row: VerifyRow) -> str:
    numbers: dict[str, Any] = {name: f"{value:.3g}" for name, value in row.metrics.items()}
    said = row.reason or ", ".join(f"{name} {value}" for name, value in numbers.items())
    return f"{row.status:8} {row.engine:12} {row.backend:12} {row.precision:5} {row.stage:11} {said}"


def _doctor(args: argparse.Namespace) -> None:
    removed = [describe(entry) for entry in prune()] if args.prune else []
    found = diagnose()
    if args.json:
        print(json.dumps({**found, "pruned": removed}, indent=2))
        return
    print("\n".join(lines(found)))
    if args.prune:
        print(f"pruned        {len(removed)} engines, {sum(entry['bytes'] for entry in removed) / 2**20:.1f} MiB")
