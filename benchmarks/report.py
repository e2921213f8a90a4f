"""The pictures of the documents: the plot of the committed latencies, and the shipped model on simulated frames.

    python -m benchmarks.report --bundle models/thermal_lite0.glmd
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from benchmarks.common import RESULTS
from glmd_runtime import Detector
from glmd_runtime.draw import draw
from glmd_runtime.video.simulator import snapshot

IMAGES = Path(__file__).parents[1] / "docs" / "images"
# Seeds far from those of any training or reference frame.
SCENES = (("ground", 930_025), ("ground", 930_024), ("air", 930_031), ("air", 930_030))
TILE_WH = (800, 640)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", type=Path, default=Path("models/thermal_lite0.glmd"))
    bundle = options.parse_args().bundle
    IMAGES.mkdir(parents=True, exist_ok=True)
    print(picture(bundle, IMAGES / "detections.png"))
    print(latency_plot(RESULTS / f"latency_{bundle.stem}.json", IMAGES / "latency.png"))


def picture(bundle: Path, out: Path) -> Path:
    """Four simulated frames with their detections, two by two."""
    tiles = []
    with Detector(bundle) as detector:
        for scene, seed in SCENES:
            frame = snapshot(scene, seed).image
            tiles.append(cv2.resize(draw(frame, detector.run(frame)), TILE_WH, interpolation=cv2.INTER_AREA))
    cv2.imwrite(str(out), np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])]))
    return out


def latency_plot(result: Path, out: Path) -> Path:
    """Bars of the median milliseconds a frame, from the committed result."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report = json.loads(result.read_text())
    names = list(report["rows"])
    medians = [report["rows"][name]["median_ms"] for name in names]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(names) + 1.2), layout="constrained")
    bars = axes.barh(names, medians, color=["#888" if "pytorch" in name else "#d9622b" for name in names])
    axes.bar_label(bars, fmt=" %.0f ms")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(f"median ms a frame, {report['frame_hw'][1]}x{report['frame_hw'][0]}, {report['threads']} threads, "
                    f"fp32, batch 1\n{report['device']}")
    figure.savefig(out, dpi=110)
    return out


if __name__ == "__main__":
    main()
