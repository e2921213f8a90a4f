"""A 16-bit thermal camera from its raw counts to boxes, recorded byte for byte.

    python examples/camera_16bit.py                                      # the simulator's counts -> counts.mkv
    python examples/camera_16bit.py 'v4l2:///dev/video0?format=Y16' --frames 900
    python examples/camera_16bit.py 'v4l2:///dev/video0?format=Y16&celsius=0.01,-273.15'      # FLIR's TLinear

The recording holds the counts themselves: `glmd-run --source counts.mkv` gives the same detections again.
"""

import argparse
from itertools import islice
from pathlib import Path

from glmd_runtime import Camera, Detector
from glmd_runtime.video.recording import Recorder
from glmd_runtime.video.sources import open_source

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="sim://ground?seed=7&frames=0&fps=9&live=1")
parser.add_argument("--engine", type=Path, default=Path(__file__).parents[1] / "models/thermal_lite0.glmd")
parser.add_argument("--frames", type=int, default=20)
parser.add_argument("--out", type=Path, default=Path("counts.mkv"))
args = parser.parse_args()

calm = Camera(damping=1.0)  # something hot that comes in does not darken everything else at once
with Detector(args.engine) as detector, open_source(args.source) as camera, Recorder(args.out, camera.fps) as recorder:
    for frame, found in islice(detector.stream(camera, camera=calm), args.frames):
        recorder.write(frame)
        counts = f"counts {frame.image.min()} to {frame.image.max()}"
        hottest = "" if found.temperatures is None else f", hottest {found.temperatures[:, 2].max(initial=-273):.1f} C"
        print(f"frame {frame.index}: {frame.image.dtype} {counts}, {found.names}{hottest}")
    print(f"-> {args.out}; not looked at: {camera.drops or 'none'}")
