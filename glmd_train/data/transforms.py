"""Training pictures: random zoom, crop and flip, then what thermal cameras do to a scene. Every random choice comes
from the generator that is passed in, so a seed repeats a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.preprocess import (
    PreprocessSpec,
    checked_frame,
    letterbox_resize,
    letterbox_size,
    normalise,
    pillow_resize,
    published_size,
)
from glmd_train.config import AugmentConfig
from glmd_train.data.coco import Record

# Of a box that a crop cuts, at least this part must remain, or its rest becomes an ignore region.
MIN_VISIBLE = 0.4


@dataclass(frozen=True)
class Sample:
    """A training picture: image (C, H, W) float32; valid_hw; boxes, ignore (N, 4) in its pixels; labels (N,).

    key, name: see `matching.Target`.
    """

    image: NDArray[np.float32]
    valid_hw: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.float32]
    key: int
    name: str


@dataclass(frozen=True)
class _View:
    """A picture on its way: uint8 intensities, boxes and ignore regions in its pixels, labels of the boxes."""

    picture: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ignore: NDArray[np.float32]


def augment(
    frame: NDArray[Any], record: Record, spec: PreprocessSpec, config: AugmentConfig, rng: np.random.Generator
) -> Sample:
    """Frame (as `preprocess` takes it) and its labels -> one random training picture of `crop_hw` or the canvas.

    With `shorter_edge` it is the published one instead: resized, not cropped, and as large as it then is.
    """
    frame = checked_frame(frame)
    intensities = spec.intensity(frame)
    if config.shorter_edge:
        view = _published_view(intensities, record, spec, config, rng)
        canvas_hw = view.picture.shape[:2]
    else:
        canvas_hw = config.crop_hw or spec.size_hw
        view = _zoomed_view(intensities, record, spec, config, canvas_hw, rng)
    if rng.random() < config.flip:
        view = _flipped(view)
    picture = thermal_jitter(np.ascontiguousarray(view.picture), config, rng)
    image = np.zeros((spec.channels, *canvas_hw), np.float32)
    normalise(picture, spec, image[:, : picture.shape[0], : picture.shape[1]])
    key = int(rng.integers(2**62))
    return Sample(image, picture.shape[:2], view.boxes, view.labels, view.ignore, key, str(record.image_id))


def _published_view(
    picture: NDArray[np.uint8], record: Record, spec: PreprocessSpec, config: AugmentConfig, rng: np.random.Generator
) -> _View:
    """detectron2's ResizeShortestEdge with one of several lengths; the longest edge is the spec's."""
    hw = published_size(record.hw, int(rng.choice(config.shorter_edge)), spec.size_hw[1])
    scale = _scale(hw, record.hw)
    return _View(pillow_resize(picture, hw), record.boxes * scale, record.labels, record.ignore * scale)


def _zoomed_view(
    picture: NDArray[np.uint8], record: Record, spec: PreprocessSpec, config: AugmentConfig,
    canvas_hw: tuple[int, int], rng: np.random.Generator,
) -> _View:
    """A random zoom of the letterboxed picture, and what the canvas holds of it."""
    zoom = rng.uniform(*config.scale)
    h, w = (max(1, round(edge * zoom)) for edge in letterbox_size(record.hw, spec.size_hw))
    scale = _scale((h, w), record.hw)
    boxes = record.boxes * scale
    left, top = crop_corner((h, w), canvas_hw, boxes, rng)
    part = letterbox_resize(picture, (h, w))[top : top + canvas_hw[0], left : left + canvas_hw[1]]
    return _View(part, *crop_boxes(boxes, record.labels, record.ignore * scale, (left, top), part.shape[:2]))


def _scale(hw: tuple[int, int], frame_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(4,) what xyxy in frame pixels are multiplied by."""
    return np.asarray([hw[1] / frame_hw[1], hw[0] / frame_hw[0]] * 2, np.float32)


def _flipped(view: _View) -> _View:
    boxes, ignore = (flip_boxes(b, view.picture) for b in (view.boxes, view.ignore))
    return _View(view.picture[:, ::-1], boxes, view.labels, ignore)


def crop_corner(
    hw: tuple[int, int], canvas_hw: tuple[int, int], boxes: NDArray[np.float32], rng: np.random.Generator
) -> tuple[int, int]:
    """Left and top of a crop of the canvas's size; most crops are drawn around a random object."""
    room = [max(0, size - canvas) for size, canvas in zip(hw, canvas_hw, strict=True)]  # y, x
    top, left = (int(rng.integers(0, r + 1)) for r in room)
    if len(boxes) and rng.random() < 0.8:
        x1, y1, x2, y2 = boxes[rng.integers(len(boxes))]
        place = rng.uniform(0.1, 0.9, 2) * canvas_hw  # where in the crop the object's centre will be
        wanted = ((y1 + y2) / 2 - place[0], (x1 + x2) / 2 - place[1])
        top, left = (int(np.clip(c, 0, r)) for c, r in zip(wanted, room, strict=True))
    return left, top


def crop_boxes(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], ignore: NDArray[np.float32], corner: tuple[int, int],
    hw: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Boxes in the crop's pixels, cut to it. Objects that are mostly cut away become ignore regions."""
    shift, limit = np.asarray(corner * 2, np.float32), np.asarray([hw[1], hw[0]] * 2, np.float32)
    cut, cut_ignore = (np.clip(b - shift, 0, limit) for b in (boxes, ignore))
    before, after = _areas(boxes), _areas(cut)
    visible = (after >= MIN_VISIBLE * before) & (np.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1]) >= 1)
    rest = np.concatenate([cut_ignore, cut[~visible]])
    return cut[visible], labels[visible], rest[_areas(rest) > 0]


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def flip_boxes(boxes: NDArray[np.float32], picture: NDArray[Any]) -> NDArray[np.float32]:
    """Boxes of the horizontally flipped picture."""
    width = picture.shape[1]
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def thermal_jitter(
    picture: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Polarity, contrast and gamma, optical blur, sensor noise: uint8 -> uint8, same shape."""
    values = picture.astype(np.float32)
    if rng.random() < config.polarity:
        values = 255 - values
    if config.contrast:
        c = config.contrast
        values = 255 * (values / 255) ** rng.uniform(1 - c, 1 + c)
        middle = values.mean()
        values = (values - middle) * rng.uniform(1 - c, 1 + c) + middle + rng.uniform(-c, c) * 64
    if config.blur and rng.random() < 0.3:
        values = cv2.GaussianBlur(values, (0, 0), rng.uniform(0.3, max(0.31, config.blur)))
    if config.noise and rng.random() < 0.5:
        values = values + rng.normal(0, rng.uniform(0, config.noise), values.shape[:2]).reshape(
            *values.shape[:2], *[1] * (values.ndim - 2)
        )
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
