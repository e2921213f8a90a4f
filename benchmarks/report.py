"""The committed results as tables and plots in docs/benchmarks.md, and the shipped model on simulated frames.

    python -m benchmarks.report
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from benchmarks.aims import load_results
from benchmarks.common import write_tables
from benchmarks.plots import PLOTS
from benchmarks.tables import TABLES, section
from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.video.simulator import snapshot

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT, IMAGES = DOCS / "benchmarks.md", DOCS / "images"
# Seeds far from those of any training or reference frame.
SCENES = (("ground", 930_025), ("ground", 930_024), ("air", 930_031), ("air", 930_030))
TILE_WH = (800, 640)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    bundle = options.parse_args().bundle
    results = load_results()
    write_tables(DOCUMENT, {name: section(name, results) for name in TABLES})
    for plot in PLOTS:
        if results[plot.__name__]:
            plot(results, IMAGES / f"{plot.__name__}.svg")
    print(picture(bundle, IMAGES / "detections.png"))
    print(DOCUMENT.read_text().split("<!-- aims -->")[1].split("<!-- /aims -->")[0])


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
