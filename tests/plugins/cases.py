"""Inputs of the two operators, ordinary and adversarial, by name and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass
class Selection:
    """Inputs and attributes of GlmdSelectProposals."""

    objectness: np.ndarray  # (B, N)
    deltas: np.ndarray  # (B, N, 4)
    anchors: np.ndarray  # (N, 4)
    edges: np.ndarray  # (B, 4): w, h, w, h
    pre_nms_topk: int
    proposals: int
    iou: float


def selection(kind: str, seed: int) -> Selection:
    """One to three images of 1 to 400 anchors in an area of 128 x 96 pixels."""
    rng = np.random.default_rng([seed, *kind.encode()])
    b, n = int(rng.integers(1, 4)), int(rng.choice([1, 3, 63, 64, 65, 130, 257, 400]))
    centre, size = rng.uniform([0, 0], [128, 96], (n, 2)), rng.uniform(4, 60, (n, 2))
    case = Selection(
        objectness=rng.normal(0, 3, (b, n)),
        deltas=rng.normal(0, 0.4, (b, n, 4)),
        anchors=np.concatenate([centre - size / 2, centre + size / 2], axis=1),
        edges=np.tile([[128.0, 96.0]], (b, 2)),
        pre_nms_topk=int(rng.choice([1, 16, 17, 100, 129, 1000])),
        proposals=int(rng.choice([1, 5, 20, 70])),
        iou=float(rng.choice([0.3, 0.5, 0.7])),
    )
    SELECTIONS[kind](case, rng)
    for name in ("objectness", "deltas", "anchors", "edges"):
        setattr(case, name, getattr(case, name).astype(np.float32))
    return case


def _random(case: Selection, rng: np.random.Generator) -> None:
    pass


def _clustered(case: Selection, rng: np.random.Generator) -> None:
    """A few heaps of nearly equal boxes: long suppression chains."""
    heaps = rng.uniform([10, 10, 40, 40], [40, 40, 90, 90], (3, 4))
    case.anchors = heaps[rng.integers(0, 3, len(case.anchors))] + rng.normal(0, 2, case.anchors.shape)
    case.deltas *= 0.05


def _tied(case: Selection, rng: np.random.Generator) -> None:
    """Few different scores, zero of both signs among them."""
    case.objectness = rng.choice([-1.0, -0.0, 0.0, 2.0], case.objectness.shape)


def _all_tied(case: Selection, rng: np.random.Generator) -> None:
    case.objectness = np.full(case.objectness.shape, float(rng.normal()))


def _sorted(case: Selection, rng: np.random.Generator) -> None:
    """In falling or rising order already."""
    case.objectness = np.sort(case.objectness, axis=1)[:, :: int(rng.choice([1, -1]))]


def _empty(case: Selection, rng: np.random.Generator) -> None:
    """Most boxes outside the valid area."""
    case.edges = np.tile(rng.uniform(1, 30, (len(case.edges), 2)), (1, 2))


def _all_empty(case: Selection, rng: np.random.Generator) -> None:
    case.anchors = case.anchors + 1000


def _border(case: Selection, rng: np.random.Generator) -> None:
    """Boxes across the edges of an area that differs from image to image."""
    case.anchors = case.anchors * 2 - 60
    case.edges = np.tile(rng.integers(40, 128, (len(case.edges), 2)), (1, 2)).astype(float)


def _huge(case: Selection, rng: np.random.Generator) -> None:
    """Scores and deltas far beyond what a network gives; growth is cut at MAX_LOG_SCALE."""
    case.objectness *= 1e30
    case.deltas *= rng.choice([1, 100, 1e6], (*case.objectness.shape, 1))


SELECTIONS: dict[str, Callable[[Selection, np.random.Generator], None]] = {
    "random": _random, "clustered": _clustered, "tied": _tied, "all_tied": _all_tied, "sorted": _sorted,
    "empty": _empty, "all_empty": _all_empty, "border": _border, "huge": _huge,
}


@dataclass
class Pooling:
    """Inputs and attributes of GlmdRoiAlign."""

    features: np.ndarray  # (B, C, H, W)
    rois: np.ndarray  # (B, R, 4)
    bins: int
    stride: int
    sampling_ratio: int


def pooling(kind: str, seed: int) -> Pooling:
    """One to three images, 1 to 11 channels, maps of 1 to 20 cells a side, 1 to 6 ROIs an image."""
    rng = np.random.default_rng([seed, *kind.encode()])
    b, c, h, w = (int(rng.integers(1, end)) for end in (4, 12, 20, 20))
    stride, r = int(rng.choice([4, 8, 16])), int(rng.integers(1, 7))
    ends = rng.uniform(0, [w * stride, h * stride], (2, b, r, 2))
    case = Pooling(
        features=rng.normal(0, 1, (b, c, h, w)).astype(np.float32),
        rois=np.concatenate([ends.min(axis=0), ends.max(axis=0)], axis=2),
        bins=int(rng.choice([1, 2, 7])), stride=stride, sampling_ratio=int(rng.choice([0, 0, 1, 2, 3])),
    )
    POOLINGS[kind](case, rng)
    case.rois = case.rois.astype(np.float32)
    return case


def _any(case: Pooling, rng: np.random.Generator) -> None:
    pass


def _zero_area(case: Pooling, rng: np.random.Generator) -> None:
    """A point, a line, or ends that are swapped."""
    kind = rng.integers(0, 3)
    if kind == 0:
        case.rois[..., 2:] = case.rois[..., :2]
    elif kind == 1:
        case.rois[..., 2] = case.rois[..., 0]
    else:
        case.rois = case.rois[..., [2, 3, 0, 1]]


def _tiny(case: Pooling, rng: np.random.Generator) -> None:
    case.rois[..., 2:] = case.rois[..., :2] + rng.uniform(1e-4, 1, case.rois[..., 2:].shape)


def _whole_cells(case: Pooling, rng: np.random.Generator) -> None:
    """Ends on cell borders, so that samples fall on cells, and on the map's edge and one cell beyond."""
    case.rois = (case.rois / case.stride).round() * case.stride + case.stride * rng.choice([-1, -0.5, 0, 0.5, 1])


def _crossing(case: Pooling, rng: np.random.Generator) -> None:
    """Across the map's edges, or beyond them."""
    case.rois = case.rois * 3 - case.stride * max(case.features.shape[2:])


def _enormous(case: Pooling, rng: np.random.Generator) -> None:
    """Hundreds of samples to a bin, most of them outside the map; a narrow map keeps the oracle's work small."""
    case.features = case.features[:, :2]
    case.rois[..., 0::2] *= 1.5
    case.rois[..., 1::2] = case.stride * 1000 * rng.uniform([-1, 0.1], [-0.1, 1], case.rois[..., 1::2].shape)


POOLINGS: dict[str, Callable[[Pooling, np.random.Generator], None]] = {
    "random": _any, "zero_area": _zero_area, "tiny": _tiny, "whole_cells": _whole_cells, "crossing": _crossing,
    "enormous": _enormous,
}
