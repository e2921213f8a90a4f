"""The picture of the README, docs/images/detections.png: the shipped model on simulated frames.

    python -m benchmarks.picture

Another machine's arithmetic gives other last digits and with them other pixels: it is made for a new model, not on
every run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.video.simulator import snapshot

# Seeds far from those of any training or reference frame.
SCENES = (("ground", 930_025), ("ground", 930_024), ("air", 930_031), ("air", 930_030))
TILE_WH = (800, 640)
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "detections.png"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    print(picture(options.parse_args().bundle, PICTURE))


def picture(bundle: Path, out: Path) -> Path:
    """Four simulated frames with their detections, two by two."""
    tiles = []
    with Detector(bundle) as detector:
        for scene, seed in SCENES:
            frame = snapshot(scene, seed).image
            tiles.append(cv2.resize(draw(frame, detector.run(frame)), TILE_WH, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(out), np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]))
    return out


if __name__ == "__main__":
    main()
