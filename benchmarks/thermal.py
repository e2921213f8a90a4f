"""What counts to intensities cost, and how much pictures flicker: every mode, at 640x512 and on real sequences.

Each mode, and the percentiles as numpy computes them, in turn on the same frames and on one thread; times are those of
the thread on a core, so that what else the machine does counts only by its use of caches. "stream" is all that a stream
does before the network: mapping, damping, watching the shutter. Flicker is the largest change of an unchanged pixel
from one frame to the next, when something hot comes into a simulated scene and in the real sequences.

    python -m benchmarks.thermal
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import conditions, write
from glmd_runtime import Camera, FrontEnd, Intensity, PreprocessSpec
from glmd_runtime.camera.bad_pixels import BadPixels
from glmd_runtime.thermal import MODES, Mode
from glmd_runtime.video.frame import Frame
from glmd_runtime.video.sources import open_source

Counts = NDArray[np.uint16]

HW = (512, 640)
ROUNDS = 200
BAD_PART = 0.001  # of the pixels
DAMPING = 1.0  # seconds
SPEC = PreprocessSpec(HW, (127.0,), (128.0,))
PLOT = Path(__file__).parents[1] / "docs" / "images" / "thermal.png"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    given = options.parse_args()
    cv2.setNumThreads(1)
    frames = [frame.image for frame in open_source("sim://ground?seed=3&frames=8")]
    rows = {"ms": milliseconds(frames), "flicker": flicker_of_all(given.data / "raw16")}
    print_rows(rows)
    setup = {"precision": "uint16 -> uint8", "batch": 1, "hw": HW, "threads": 1, "damping_s": DAMPING}
    print(write("thermal", {**conditions("python -m benchmarks.thermal"), **setup, **rows}))
    print(draw_plot(PLOT))


def intensity(mode: Mode, frame: Counts) -> Intensity:
    """A linear window needs counts: those of this frame."""
    if mode != "linear":
        return Intensity(mode)
    low, high = np.percentile(frame, (1, 99))
    return Intensity("linear", float(low), float(max(high, low + 1)))


def milliseconds(frames: list[Counts]) -> dict[str, dict[str, float]]:
    """Least and median of each mode: alone, in a stream; and of what numpy takes."""
    calls: dict[str, Callable[[int], object]] = {"percentile, by numpy": lambda n: by_numpy(frames[n % len(frames)])}
    for mode in MODES:
        one = intensity(mode, frames[0])
        front_end = FrontEnd(replace(SPEC, intensity=one), (), Camera(damping=DAMPING))
        calls[mode] = lambda n, one=one: one(frames[n % len(frames)])  # type: ignore[misc]
        calls[f"{mode}, stream"] = lambda n, f=front_end: f.prepare(Frame(frames[n % len(frames)], n, n / 30))  # type: ignore[misc]
    bad = np.random.default_rng(0).random(frames[0].shape) < BAD_PART
    filled = BadPixels(bad & ~np.roll(bad, 1, axis=1))  # no two side by side
    calls["bad pixels"] = lambda n: filled.fill(frames[n % len(frames)])
    times: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(ROUNDS):
        for name, call in calls.items():
            start = time.thread_time()
            call(n)
            times[name].append(1000 * (time.thread_time() - start))
    return {
        name: {"least": round(min(ms), 3), "median": round(statistics.median(ms), 3)}
        for name, ms in times.items()
    }


def by_numpy(frame: Counts) -> NDArray[np.uint8]:
    """The percentile mode as it is written down."""
    low, high = np.percentile(frame, (1, 99))
    scaled = (frame.astype(np.float32) - np.float32(low)) * np.float32(255.0 / max(high - low, 1))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def sequences(folder: Path) -> dict[str, list[Counts]]:
    """The real sequences; and a warm slope into which something hot comes for two seconds, at 9 Hz."""
    found = {path.name: [frame.image for frame in open_source(path)] for path in sorted(folder.glob("v*"))}
    return {**found, "hot object": hot_object()}


def hot_object() -> list[Counts]:
    return [slope(i, hot=18 <= i < 36) for i in range(54)]


def slope(index: int, hot: bool) -> Counts:
    counts = 7000 + np.linspace(0, 300, 160) + np.random.default_rng(index).normal(0, 5, (120, 160))
    if hot:
        counts[20:70, 30:70] = 9000
    return counts.astype(np.uint16)


def flicker_of_all(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    return {
        name: {
            mode: {
                kind: flicker(frames, replace(SPEC, intensity=intensity(mode, frames[0])), Camera(damping=seconds))
                for kind, seconds in (("each frame by itself", 0.0), ("damped", DAMPING))
            }
            for mode in MODES
        }
        for name, frames in sequences(folder).items()
    }


def flicker(frames: list[Counts], spec: PreprocessSpec, camera: Camera) -> int:
    front_end, worst = FrontEnd(spec, (), camera), 0
    before = None
    for i, image in enumerate(frames):
        now = front_end.prepare(Frame(image, i, i / 9))
        if before is not None and before.picture is not None and now.picture is not None:
            change = np.abs(now.picture.astype(int) - before.picture)[now.counts == before.counts]
            worst = max(worst, int(change.max(initial=0)))
        before = now
    return worst


def print_rows(rows: dict[str, Any]) -> None:
    for name, ms in rows["ms"].items():
        print(f"{name:24} {ms['least']:6.2f} to {ms['median']:6.2f} ms (least, median)")
    for name, modes in rows["flicker"].items():
        print(name, {mode: tuple(kinds.values()) for mode, kinds in modes.items()})


def draw_plot(out: Path) -> Path:
    """A simulated frame in every mode; the background's intensity while something hot is in the picture."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    frame = next(iter(open_source("sim://ground?seed=3&frames=1"))).image
    figure = plt.figure(figsize=(10, 5.2), layout="constrained")
    for column, mode in enumerate(MODES):
        axes = figure.add_subplot(2, len(MODES), column + 1)
        axes.imshow(intensity(mode, frame)(frame), cmap="gray", vmin=0, vmax=255)
        axes.set_title(mode)
        axes.axis("off")
    for column, mode in enumerate(("percentile", "plateau")):
        axes = figure.add_subplot(2, 2, 3 + column)
        for seconds in (0.0, DAMPING):
            seconds_of, values = background(mode, seconds)
            axes.plot(seconds_of, values, label=f"damping {seconds:g} s", color="#d9622b" if seconds else "#888")
        axes.set(title=f"{mode}: background while an object is there", xlabel="s", ylabel="intensity", ylim=(0, 255))
        axes.legend()
    figure.savefig(out, dpi=90)
    return out


def background(mode: Mode, seconds: float) -> tuple[list[float], list[float]]:
    """Times, and the mean intensity of the right edge of the hot object's scene."""
    front_end = FrontEnd(replace(SPEC, intensity=Intensity(mode)), (), Camera(damping=seconds))
    frames = [Frame(image, i, i / 9) for i, image in enumerate(hot_object())]
    prepared = [front_end.prepare(frame) for frame in frames]
    seen = [one for one in prepared if one.picture is not None]
    return [one.frame.time for one in seen], [float(one.picture[:, 120:130].mean()) for one in seen]


if __name__ == "__main__":
    main()
