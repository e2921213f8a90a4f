"""Frames a second from a clip to its tracks, one frame after the other and overlapped in a Pipeline.

    python -m benchmarks.video --bundles models/thermal_lite0.glmd --source ../shared/data/air/clips/IR_DRONE_011.mp4

"sequential" is a loop in one thread; "overlapped" a Pipeline with the same engine, as a camera has it; "throughput" one
with an engine that is opened for clips, as glmd-run does it. They take turns within one run, with and without writing
the annotated video, and must find the same. The stages are those of the loop, medians in milliseconds of a frame.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import conditions, write
from glmd_runtime import Detector
from glmd_runtime.detections import Detections
from glmd_runtime.draw import draw
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.sinks import Mp4Sink
from glmd_runtime.streams import Result
from glmd_runtime.tracking import Tracker
from glmd_runtime.video.source import Source
from glmd_runtime.video.sources import open_source

STAGES = ("read", "prepare", "network", "finish", "track", "keep")
Stages = dict[str, list[float]]
Keep = Callable[[Any, Detections, float], None]  # picture, detections, time
Way = Callable[[Source, Keep, Stages], list[Any]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundles", type=Path, nargs="+", default=[Path("models/thermal_lite0.glmd")])
    options.add_argument("--source", required=True, help="a clip; its name stands in the result")
    options.add_argument("--frames", type=int, default=100)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    rows = [row for path in given.bundles for row in measure_bundle(path, given)]
    for row in rows:
        print(row)
    bundles = " ".join(str(path) for path in given.bundles)
    command = (
        f"python -m benchmarks.video --bundles {bundles} --source {given.source} --frames {given.frames} "
        f"--threads {given.threads} --rounds {given.rounds}"
    )
    setup = {"source": Path(given.source).name, "frames": given.frames, "batch": 1, "threads": given.threads}
    print(write("video", {**conditions(command), **setup, "rounds": given.rounds, "rows": rows}))


def measure_bundle(path: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    with Detector(path, threads=given.threads) as one, Detector(path, threads=given.threads, throughput=True) as many:
        ways: dict[str, Way] = {
            "sequential": partial(sequential, one), "overlapped": partial(overlapped, one),
            "throughput": partial(overlapped, many),
        }
        info = one.info()
        setup = {"model": info["name"], "backend": info["backend"], "precision": info["precision"], "calls": many.calls}
        return [{**setup, "save": save, **measure(ways, given, save)} for save in (False, True)]


def measure(ways: dict[str, Way], given: argparse.Namespace, save: bool) -> dict[str, Any]:
    """The ways in turns; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    stages: Stages = {name: [] for name in STAGES}
    for number in range(given.rounds + 1):
        found = {}
        for name, way in ways.items():
            spent, found[name] = run(way, given, save, stages)
            seconds[name] += [spent] if number else []
        if any(rows != found["sequential"] for rows in found.values()):
            raise SystemExit("The ways found different objects.")
    return {
        "frames_a_second": {name: round(given.frames / statistics.median(v), 2) for name, v in seconds.items()},
        "times_faster_than_sequential": {name: ratios(seconds["sequential"], v) for name, v in seconds.items()},
        "stages_ms": {name: round(1000 * statistics.median(values), 3) for name, values in stages.items()},
    }


def ratios(before: list[float], after: list[float]) -> dict[str, float]:
    rounds = [a / b for a, b in zip(before, after, strict=True)]
    kinds = {"median": statistics.median, "least": min, "most": max}
    return {name: round(kind(rounds), 3) for name, kind in kinds.items()}


def run(way: Way, given: argparse.Namespace, save: bool, stages: Stages) -> tuple[float, list[Any]]:
    """Seconds of a whole clip, the encoder's last pictures too, and what was found."""
    with tempfile.TemporaryDirectory() as folder, open_clip(given.source, given.frames) as clip:
        began = time.perf_counter()
        with Mp4Sink(Path(folder) / "out.mp4", clip.fps) if save else nullcontext() as sink:
            rows = way(clip, keep_in(sink) if sink else keep_nothing, stages)
        return time.perf_counter() - began, rows


def open_clip(uri: str, frames: int) -> Source:
    source = open_source(uri)
    return Source(source.name, source.fps, frames, islice(iter(source), frames), source.close)


def keep_in(sink: Mp4Sink) -> Keep:
    return lambda picture, found, moment: sink.write(draw(picture, found), moment)


def keep_nothing(picture: Any, found: Detections, moment: float) -> None:
    pass


def sequential(detector: Detector, clip: Source, keep: Keep, stages: Stages) -> list[Any]:
    front_end, tracker, rows = detector.front_end(), Tracker(), list[Any]()
    moments = [time.perf_counter()]  # between two stages

    def mark() -> None:
        moments.append(time.perf_counter())

    for frame in clip:
        mark()
        prepared = front_end.prepare(frame)
        images = detector.prepare([prepared.picture])
        mark()
        rest = detector.infer(images)
        mark()
        frame, found = front_end.finish(prepared, rest()[0])
        mark()
        found = tracker.update(found, frame)
        mark()
        keep(prepared.picture, found, frame.time)
        rows.append(found.to_dict())
        mark()
    for number, (begin, end) in enumerate(pairwise(moments)):
        stages[STAGES[number % len(STAGES)]].append(end - begin)
    return rows


def overlapped(detector: Detector, clip: Source, keep: Keep, stages: Stages) -> list[Any]:
    rows: list[Any] = []

    def note(result: Result) -> None:
        keep(result.picture, result.detections, result.frame.time)
        rows.append(result.detections.to_dict())

    with Pipeline([clip], detector, tracker=lambda source: Tracker(), on_result=note) as pipeline:
        pipeline.run()
    return rows


if __name__ == "__main__":
    main()
