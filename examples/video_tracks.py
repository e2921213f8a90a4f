"""Objects followed through a clip: an annotated video, and how long each was seen.

    pip install '.[openvino,track]'
    python examples/video_tracks.py                           # a simulated clip -> tracks.mp4
    python examples/video_tracks.py clip.mp4 --out out.mp4
"""

import argparse
from pathlib import Path

from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.sinks import Mp4Sink
from glmd_runtime.tracking import Tracker
from glmd_runtime.video.sources import open_source

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="sim://ground?seed=7&frames=40&fps=10")
parser.add_argument("--engine", type=Path, default=Path(__file__).parents[1] / "models/thermal_lite0.glmd")
parser.add_argument("--out", type=Path, default=Path("tracks.mp4"))
args = parser.parse_args()

seen: dict[int, list[float]] = {}  # track -> times at which it was there
name_of: dict[int, str] = {}  # track -> the class that it has at last
with open_source(args.source) as source, Detector(args.engine, throughput=True) as detector:
    tracker = Tracker("bytetrack", fps=source.fps)
    with Mp4Sink(args.out, source.fps) as video:
        for frame, found in detector.stream(source):
            found = tracker.update(found, frame)
            for track, name in zip(found.track_ids, found.names, strict=True):
                if track >= 0:  # -1 is not followed yet
                    seen.setdefault(int(track), []).append(frame.time)
                    name_of[int(track)] = name
            video.write(draw(frame.image, found), frame.time)
for track, times in seen.items():
    print(f"#{track:<3} {name_of[track]:10} {times[0]:6.2f} s to {times[-1]:6.2f} s, {len(times)} frames")
print(f"{len(seen)} tracks -> {args.out}")
