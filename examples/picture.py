"""What is in one picture: a line an object, and the picture with boxes.

    python examples/picture.py                                # a simulated 16-bit frame -> picture.png
    python examples/picture.py pictures/0001.tiff --out found.png

8-bit grey, 16-bit raw counts and colour are taken as they are; boxes are x1 y1 x2 y2 in the picture's own pixels.
"""

import argparse
from pathlib import Path

from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.sinks import save_picture
from glmd_runtime.video.sources import open_source

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="sim://ground?seed=7&frames=1")
parser.add_argument("--engine", type=Path, default=Path(__file__).parents[1] / "models/thermal_lite0.glmd")
parser.add_argument("--out", type=Path, default=Path("picture.png"))
args = parser.parse_args()

with open_source(args.source) as source:
    image = next(iter(source)).image  # (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR
with Detector(args.engine) as detector:
    found = detector.run(image)
for name, score, box in zip(found.names, found.scores, found.xyxy, strict=True):
    print(f"{name:10} {score:.2f}  {box.round(1)}")
save_picture(args.out, draw(image, found))
print(f"{len(found)} objects in {image.shape[1]}x{image.shape[0]} {image.dtype} -> {args.out}")
