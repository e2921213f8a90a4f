"""Who is in the yard, who crossed the line: counts by class, and a picture of both.

    pip install '.[openvino,track]'
    python examples/zones.py                                  # a simulated clip -> zones.png
    python examples/zones.py clip.mp4 --zone 40,40 600,40 600,470 40,470 --line 320,512 320,0

Points are x,y in frame pixels; an object is where the middle of its box is. Seen from the line's first point towards
its second, who goes from right to left goes in.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.sinks import save_picture
from glmd_runtime.tracking import Tracker
from glmd_runtime.zones import Line, Zone


def point(text: str) -> tuple[float, float]:
    x, y = text.split(",")
    return float(x), float(y)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="sim://ground?seed=7&frames=40&fps=10")
parser.add_argument("--engine", type=Path, default=Path(__file__).parents[1] / "models/thermal_lite0.glmd")
parser.add_argument("--zone", type=point, nargs="+", default=[(120, 40), (420, 40), (420, 300), (120, 300)])
parser.add_argument("--line", type=point, nargs=2, default=[(520, 512), (520, 0)])
parser.add_argument("--out", type=Path, default=Path("zones.png"))
args = parser.parse_args()

zone, line, tracker = Zone(args.zone), Line(*args.line), Tracker("bytetrack")
with Detector(args.engine, throughput=True) as detector:
    for frame, found in detector.stream(args.source):
        found = tracker.update(found, frame)
        line.update(found)
        print(f"{frame.time:6.2f} s  in the zone: {zone.counts(found)}")
print(f"crossed the line: in {line.counts_in}, out {line.counts_out}")

picture = draw(frame.image, found[zone.inside(found)])  # enlarged where it was small
zoom = picture.shape[1] / frame.image.shape[1]
for points, closed in ((args.zone, True), (args.line, False)):
    cv2.polylines(picture, [np.rint(np.multiply(points, zoom)).astype(np.int32)], closed, (0, 255, 255), 2)
save_picture(args.out, picture)
print(f"-> {args.out}")
