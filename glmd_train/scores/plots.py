"""Curves of one model on one set: precision over recall, and both over the score, from which a threshold is chosen."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from glmd_runtime.errors import UnsupportedError
from glmd_train.scores.intervals import Matches

_LEGEND_ROWS = 22


def new_figure(**options: Any) -> Any:
    """A matplotlib figure. Raises: UnsupportedError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UnsupportedError("Plots need matplotlib. Run: pip install matplotlib") from error
    return Figure(**options)


def plot_curves(matches: Mapping[str, Matches], thresholds: Mapping[str, float], title: str) -> bytes:
    """A PNG of three panels, a line a class, at IoU 0.5.

    Args: matches by class name (`intervals.match_classes`), of classes with objects; thresholds, the model's own score
        thresholds by class name, each a point on its line.
    """
    figure = new_figure(figsize=(15, 5), layout="constrained")
    panels = figure.subplots(1, 3)
    for row, (name, one) in enumerate(matches.items()):
        _plot_class(panels, name, one, thresholds[name], f"C{row % 10}", ("-", "--", ":", "-.")[row // 10 % 4])
    for panel, (across, up) in zip(panels, (("recall", "precision"), ("score", "precision"), ("score", "recall")),
                                   strict=True):
        panel.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=across, ylabel=up)
        panel.grid(alpha=0.3)
    lines, labels = panels[0].get_legend_handles_labels()
    columns = -(-len(labels) // _LEGEND_ROWS)
    figure.legend(lines, labels, loc="outside right upper", ncols=max(1, columns), fontsize=9, frameon=False)
    figure.suptitle(f"{title}: IoU 0.5, points at the model's own score thresholds", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    return buffer.getvalue()


def _plot_class(panels: Any, name: str, one: Matches, threshold: float, colour: str, style: str) -> None:
    hits, counted = np.cumsum(one.hit[0]), np.cumsum(one.counted[0])
    recall, precision = hits / one.objects.sum(), hits / np.maximum(counted, 1)
    everything = np.ones(len(one.objects), np.int64)
    label = f"{name}, AP50 {100 * one.average_precisions(everything)[0]:.1f}"
    lines = (recall, precision), (one.scores, precision), (one.scores, recall)
    for panel, (across, up) in zip(panels, lines, strict=True):
        panel.plot(across, up, style, color=colour, linewidth=1.4, label=label)
    shown = int((one.scores > threshold).sum())
    if shown:
        r, p = recall[shown - 1], precision[shown - 1]
        for panel, point in zip(panels, ((r, p), (threshold, p), (threshold, r)), strict=True):
            panel.plot(*point, "o", color=colour, markersize=6)
