"""An archive of clips through several detectors at once, on one machine or a cluster, with Ray Data.

    pip install 'ray[data]>=2.40'
    python examples/archive_ray.py --engine models/thermal_lite0.glmd --out found/ --workers 2 clips/*.mp4

Each worker is an actor that loads the bundle once and then gets clip after clip; on a cluster, engine and clips must
lie where every node finds them. The result is one JSON line a frame: {"clip", "frame", "time", "detections"}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from glmd_runtime import Detector


class DetectInClip:
    """One Detector, loaded when its actor starts."""

    def __init__(self, engine: str, threads: int) -> None:
        self.detector = Detector(engine, threads=threads, build="never")

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for frame, found in self.detector.stream(row["clip"]):
            # Text, because a frame without detections would leave Ray without a type for a list.
            found_text = json.dumps(found.to_dict())
            yield {"clip": row["clip"], "frame": frame.index, "time": frame.time, "detections": found_text}


def main() -> None:
    parser = argparse.ArgumentParser(description="Detect in an archive of clips with Ray Data.")
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--engine", required=True, type=Path, metavar="BUNDLE")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of each worker")
    args = parser.parse_args()
    if missing := [str(clip) for clip in args.clips if not clip.is_file()]:
        parser.error(f"clips must be files; there is no {', '.join(missing)}")
    ray.init(include_dashboard=False)
    clips = [{"clip": str(clip.resolve())} for clip in args.clips]
    found = ray.data.from_items(clips, override_num_blocks=len(clips)).flat_map(
        DetectInClip,
        fn_constructor_args=(str(args.engine.resolve()), args.threads),
        # One clip at a time: else the first actor that is up gets those that the others could begin with.
        compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=args.threads,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    frames = objects = 0
    with (args.out / "detections.jsonl").open("w", encoding="utf-8") as lines:
        for row in found.iter_rows():
            row["detections"] = json.loads(row["detections"])
            lines.write(json.dumps(row) + "\n")
            frames, objects = frames + 1, objects + len(row["detections"])
    print(f"{len(clips)} clips, {frames} frames, {objects} detections -> {args.out / 'detections.jsonl'}")


if __name__ == "__main__":
    main()
