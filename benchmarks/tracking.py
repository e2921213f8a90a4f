"""What tracking does for the class of each detection: the first 5 seconds of air's val clips, with and without voting.

    python -m benchmarks.tracking               # detects (2400 frames), then scores and plots
    python -m benchmarks.tracking --score       # scores what was detected before (runs/tracking)

In each frame that has an object, the surest detection that overlaps it by IoU 0.3 is judged, whatever its class: it is
the same one with and without a tracker, as trackers neither move nor drop any. Accuracy is the share of judged
detections with the object's class, of each clip; intervals are over the clips, differences clip by clip.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import RESULTS, conditions, write
from glmd_runtime import Detections, Detector
from glmd_runtime.boxes import iou, xywh_to_xyxy
from glmd_runtime.tracking import HALF_LIFE, KINDS, ClassVote, Tracker
from glmd_runtime.video.frame import Frame
from glmd_train.scores.intervals import run_interval

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "docs" / "images" / "tracking.png"
OVERLAP = 0.3  # objects are 14 pixels wide: half of that is off by IoU 0.5
LOWEST = 0.1  # detections are kept down to this score
THRESHOLDS = (0.3, LOWEST)
THREADS = 1
SETUP = ("backend", "precision")  # of `Detector.info`
FRAMES = 150  # of each clip, at 30 a second
HALF_LIVES = (0.5, HALF_LIFE, 8.0, float("inf"))
_BLANK = np.zeros((1, 1), np.uint8)  # trackers look at boxes only


class Clip(NamedTuple):
    """truth: frame index -> (4,) xyxy; found: of every frame, down to LOWEST."""

    name: str
    category: str
    truth: dict[int, np.ndarray]
    found: list[tuple[Frame, Detections]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=ROOT / "models" / "thermal_lite0.glmd")
    options.add_argument("--data", type=Path, default=Path(os.environ.get("GLMD_DATA", "../shared/data")))
    options.add_argument("--detections", type=Path, default=ROOT / "runs" / "tracking", help="where they are kept")
    options.add_argument("--score", action="store_true", help="detect nothing")
    given = options.parse_args()
    if not given.score:
        detect(given.bundle, given.data, given.detections)
    clips = read_clips(given.data, given.detections)
    setup = {**detected_with(given.detections), "batch": 1, "threads": THREADS}
    result = {**conditions("python -m benchmarks.tracking"), **setup, **score(clips)}
    print(write("tracking", result))
    print(plot(RESULTS / "tracking.json", IMAGE))


def val_clips(data: Path) -> dict[str, dict[str, Any]]:
    clips = json.loads((data / "air" / "clips.json").read_text())
    return {name: clip for name, clip in clips.items() if clip["split"] == "val"}


def detect(bundle: Path, data: Path, out: Path) -> None:
    """One .npz a clip; those that are there are kept."""
    out.mkdir(parents=True, exist_ok=True)
    with Detector(bundle, score_threshold=LOWEST, threads=THREADS) as detector:
        setup = {key: detector.info()[key] for key in SETUP}
        for name, clip in val_clips(data).items():
            file = out / f"{name}.npz"
            if not file.exists():
                stream = islice(detector.stream(data / "air" / clip["file_name"]), FRAMES)
                rows = [(frame.time, found) for frame, found in stream]
                columns = {key: np.concatenate([getattr(f, key) for _, f in rows]) for key in COLUMNS}
                times, counts = np.array([t for t, _ in rows]), np.array([len(f) for _, f in rows])
                np.savez(file, names=detector.class_names, times=times, counts=counts, **columns, **setup)
                print(name, len(rows), flush=True)


COLUMNS = ("xyxy", "scores", "class_ids")


def detected_with(folder: Path) -> dict[str, str]:
    """With which backend and precision the clips in a folder were detected."""
    setups = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as arrays:
            setups.append({key: str(arrays[key]) for key in SETUP})
    if any(one != setups[0] for one in setups):
        raise SystemExit(f"{folder} has clips of several backends or precisions. Delete it and detect them again.")
    return setups[0]


def read_clips(data: Path, folder: Path) -> list[Clip]:
    return [read_clip(name, clip, folder / f"{name}.npz") for name, clip in val_clips(data).items()]


def read_clip(name: str, clip: dict[str, Any], file: Path) -> Clip:
    boxes = {i: xywh_to_xyxy(np.array(box))[0] for i, box in enumerate(clip["boxes_xywh"][:FRAMES]) if box}
    with np.load(file) as arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        columns = [np.split(arrays[key], ends) for key in COLUMNS]
        names, times = tuple(arrays["names"].tolist()), arrays["times"].tolist()
    found = [Detections(*row, names) for row in zip(*columns, strict=True)]
    frames = [Frame(_BLANK, i, time) for i, time in enumerate(times)]
    return Clip(name, clip["category"], boxes, list(zip(frames, found, strict=True)))


class Judged(NamedTuple):
    """What became of the objects of one clip.

    right     of each judged detection; changes, how often its class is another one than in the judged frame before
    track_ids of them; objects, frames that have one
    """

    right: np.ndarray
    changes: int
    track_ids: np.ndarray
    objects: int

    @property
    def numbers(self) -> int:
        """How many numbers the object had: 1 is what is wanted."""
        return len(set(self.track_ids[self.track_ids >= 0].tolist()))


def judge(clip: Clip, found: Iterable[tuple[Frame, Detections]]) -> Judged:
    """Args: found, with track ids or without."""
    rows = [(one, row) for frame, one in found if (row := judged_row(clip, frame, one)) is not None]
    names = [one.names[row] for one, row in rows]
    changes = sum(a != b for a, b in pairwise(names))
    ids = [-1 if one.track_ids is None else one.track_ids[row] for one, row in rows]
    right = np.array([name == clip.category for name in names], bool)
    return Judged(right, changes, np.array(ids, int), len(clip.truth))


def judged_row(clip: Clip, frame: Frame, found: Detections) -> int | None:
    if frame.index not in clip.truth or not len(found):
        return None
    near = iou(found.xyxy, clip.truth[frame.index][None])[:, 0] >= OVERLAP
    return int(np.where(near, found.scores, -1).argmax()) if near.any() else None


def above(clip: Clip, threshold: float) -> Iterator[tuple[Frame, Detections]]:
    return ((frame, found[found.scores > threshold]) for frame, found in clip.found)


def follow(clip: Clip, threshold: float, kind: str) -> Clip:
    """The clip with track ids, and the classes as they were."""
    tracker = Tracker(kind, fps=30, vote=False)
    return clip._replace(found=[(frame, tracker.update(one, frame)) for frame, one in above(clip, threshold)])


def vote(clip: Clip, half_life: float) -> Judged:
    votes = ClassVote(half_life)
    return judge(clip, ((frame, votes.update(one, frame.time)) for frame, one in clip.found))


def score(clips: Sequence[Clip]) -> dict[str, Any]:
    """Rows by threshold, "alone" or the tracker, and half-life."""
    rows: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        alone = [judge(clip, above(clip, threshold)) for clip in clips]
        rows[f"{threshold} alone"] = summary(clips, alone, alone)
        for kind in KINDS:
            followed = [follow(clip, threshold, kind) for clip in clips]
            for half_life in HALF_LIVES:
                voted = [vote(clip, half_life) for clip in followed]
                rows[f"{threshold} {kind} {half_life}"] = summary(clips, voted, alone)
    return {"clips": len(clips), "frames": sum(len(clip.found) for clip in clips), "rows": rows}


def summary(clips: Sequence[Clip], judged: Sequence[Judged], alone: Sequence[Judged]) -> dict[str, Any]:
    """Percent; of clips in which no detection overlaps the object there is nothing to say."""
    seen = [(c, j, a) for c, j, a in zip(clips, judged, alone, strict=True) if len(j.right)]
    each = {c.name: round(100 * float(j.right.mean()), 1) for c, j, _ in seen}
    gains = [100 * float(j.right.mean() - a.right.mean()) for _, j, a in seen]
    return {
        "accuracy": interval([100 * float(j.right.mean()) for _, j, _ in seen]),
        "gain": interval(gains),
        "better_same_worse": [sum(g > 0 for g in gains), sum(g == 0 for g in gains), sum(g < 0 for g in gains)],
        "judged": sum(len(j.right) for _, j, _ in seen), "objects": sum(j.objects for j in judged),
        "followed": round(100 * float(np.concatenate([j.track_ids >= 0 for _, j, _ in seen]).mean()), 1),
        "changes_a_clip": round(float(np.mean([j.changes for _, j, _ in seen])), 2),
        "numbers_a_clip": round(float(np.mean([j.numbers for _, j, _ in seen])), 2),
        "by_clip": each,
    }


def interval(values: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in run_interval(values)]


def plot(result: Path, out: Path) -> Path:
    """Accuracy of each clip alone and with voting, from the committed result."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report = json.loads(result.read_text())
    alone, voted = (
        report["rows"][f"{THRESHOLDS[0]} {name}"]["by_clip"] for name in ("alone", f"bytetrack {HALF_LIFE}")
    )
    names = sorted(alone, key=lambda name: alone[name])
    figure, axes = plt.subplots(figsize=(7, 0.26 * len(names) + 1.3), layout="constrained")
    for place, name in enumerate(names):
        axes.plot([alone[name], voted[name]], [place, place], color="#bbb", zorder=1)
    for label, values, colour in (("each frame alone", alone, "#888"), ("vote of the track", voted, "#d9622b")):
        axes.scatter([values[name] for name in names], range(len(names)), color=colour, label=label, zorder=2)
    axes.set_yticks(range(len(names)), [name.removeprefix("IR_").lower() for name in names], fontsize=8)
    axes.set_xlabel(f"detections with the right class, % (ByteTrack, score above {THRESHOLDS[0]})")
    axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


if __name__ == "__main__":
    main()
