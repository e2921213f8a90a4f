"""The committed results as pictures (SVG); the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.aims import Results, Row

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "glmd", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402  behind the choice of the backend

OURS, OTHERS, COLOURS = "#d9622b", "#888", {"fp32": "#2b6cd9", "bf16": "#3a9d5d", "int8": "#d9622b"}


def latency(results: Results, out: Path) -> None:
    """Bars of the median, with a line to the 90th percentile."""
    rows = [row for row in results["latency"] if "network" in row]
    medians = [row["run"]["p50_ms"] for row in rows]
    slow = [row["run"]["p90_ms"] - row["run"]["p50_ms"] for row in rows]
    figure, axes = plt.subplots(figsize=(7, 0.45 * len(rows) + 1.2), layout="constrained")
    bars = axes.barh(
        [f"{row['subject']}, {row['precision']}" for row in rows], medians, xerr=[[0.0] * len(rows), slow],
        color=[OURS if row["engine"] else OTHERS for row in rows], ecolor="#333", capsize=2,
    )
    axes.bar_label(bars, fmt=" %.0f", label_type="center", color="white")
    axes.invert_yaxis()
    setup = "batch 1, {threads} threads, {device}".format(**rows[0])
    axes.set_xlabel(f"ms from a frame of 640x512 to boxes: median, line to p90\n{setup}")
    _save(figure, out)


def roofline(results: Results, out: Path) -> None:
    """Every stage's rate over its operations a byte, under the roofs of memory and arithmetic."""
    peak = next(row for row in results["roofline"] if row["stage"] == "peak")
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    highest = max(peak["gflops"].values())
    for label, bandwidth in (("memory", peak["memory_gb_s"]), ("cache", peak["cached_gb_s"])):
        axes.plot([0.25, highest / bandwidth], [0.25 * bandwidth, highest], color=OTHERS, lw=1)
        axes.annotate(f"{label} {bandwidth:.0f} GB/s", (0.25, 0.25 * bandwidth), va="bottom", color=OTHERS)
    for precision, rate in peak["gflops"].items():
        axes.plot([rate / peak["cached_gb_s"], 1000], [rate, rate], color=COLOURS[precision], lw=1)
        axes.annotate(f"{precision} {rate:.0f}", (1000, rate), ha="right", va="bottom", color=COLOURS[precision])
    for row in results["roofline"]:
        if not row.get("gmac") or row["stage"] in ("all stages", "dense parts"):
            continue
        place = 2e3 * row["gmac"] / row["mb"], row["gflops"]
        axes.plot(*place, "o", color=COLOURS[row["precision"]])
        axes.annotate(row["stage"], place, xytext=(4, -9), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"operations a byte of activations and weights\n{peak['device']}, {peak['threads']} threads")
    axes.set_ylabel("GFLOP/s (int8: GOP/s)")
    _save(figure, out)


def scaling(results: Results, out: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(9, 3), layout="constrained", sharey=False)
    labels = {"proposals": "proposals", "pixels": "megapixels", "cameras": "cameras on one engine"}
    for axes, (grows, label) in zip(panels, labels.items(), strict=True):
        rows = [row for row in results["scaling"] if row["grows"] == grows]
        places, medians = [_size(row) for row in rows], [row["run"]["p50_ms"] for row in rows]
        slow = [row["run"]["p90_ms"] - row["run"]["p50_ms"] for row in rows]
        axes.errorbar(places, medians, [[0.0] * len(rows), slow], marker="o", color=OURS, capsize=2)
        axes.set_xlabel(f"{label}\n{rows[0]['engine']}" if rows else label)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    panels[0].set_ylabel("ms a frame, line to p90")
    _save(figure, out)


def _size(row: Row) -> float:
    """50 -> 50; 640x512 -> 0.328."""
    sides = [float(side) for side in row["subject"].split("x")]
    return sides[0] if len(sides) == 1 else sides[0] * sides[1] / 1e6


def _save(figure: Any, out: Path) -> None:
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


PLOTS: Sequence[Callable[[Results, Path], None]] = (latency, roofline, scaling)
