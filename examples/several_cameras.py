"""Several cameras on one engine: whose frame is ready gets its turn; a camera that is lost does not stop the others.

    python examples/several_cameras.py                        # three simulated cameras, 4 seconds of each
    python examples/several_cameras.py rtsp://10.0.0.7/stream rtsp://10.0.0.8/stream --seconds 60 > found.jsonl

One JSON line a frame: {"camera", "frame", "time", "detections"}; what the cameras do goes to standard error.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from threading import Timer

from glmd_runtime import Detector
from glmd_runtime.pipeline import Pipeline
from glmd_runtime.sinks import json_line
from glmd_runtime.streams import Result
from glmd_runtime.video.status import Status

SIMULATED = [f"sim://{scene}&frames=36&fps=9&live=1" for scene in ("ground?seed=7", "air?seed=0", "air?seed=2")]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sources", nargs="*", default=SIMULATED)
parser.add_argument("--engine", type=Path, default=Path(__file__).parents[1] / "models/thermal_lite0.glmd")
parser.add_argument("--seconds", type=float, help="stop then; default: when every source has ended")
args = parser.parse_args()

frames: Counter[str] = Counter()


def show(result: Result) -> None:
    frames[result.stream] += 1
    print(json_line(result.frame, result.detections, camera=result.stream), flush=True)


def say(name: str, status: Status) -> None:
    print(f"{name}: {status.state} {status.detail}", file=sys.stderr)


with Detector(args.engine) as detector, Pipeline(args.sources, detector, on_result=show, on_status=say) as pipeline:
    if args.seconds:
        Timer(args.seconds, pipeline.stop).start()
    pipeline.run()  # until every source has ended, or stop
    for stream in pipeline.streams:  # a camera's older frames are skipped where the engine is too slow for all
        print(f"{stream.name}: {frames[stream.name]} frames, skipped {stream.drops}", file=sys.stderr)
