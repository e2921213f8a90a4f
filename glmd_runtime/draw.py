"""Detections drawn on their frame."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.detections import Detections
from glmd_runtime.files.values import shown
from glmd_runtime.preprocess import checked_frame
from glmd_runtime.thermal import Intensity

Picture = NDArray[np.uint8]

MIN_SIDE = 900  # pixels; smaller frames are enlarged until their longer side is at least this
FONT, FONT_SCALE, PADDING = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 3
SMALL = 8  # a label may lie on objects larger than this many labels
DARK = (24, 20, 16)
# BGR, bright on dark and on white-hot grey alike, neighbours far apart in hue; class_id modulo their number.
COLOURS = (
    (80, 190, 255),
    (255, 200, 60),
    (120, 230, 120),
    (110, 110, 255),
    (255, 150, 220),
    (70, 240, 240),
    (240, 240, 130),
    (200, 140, 255),
    (90, 170, 200),
    (255, 170, 130),
)


def draw(frame: NDArray[Any], detections: Detections) -> Picture:
    """A picture for people: the frame, enlarged when small, with a box and a label for each detection.

    A label has the class, the number of the track, the score and the hottest temperature, where there are these.

    Args:
        frame: (H, W) uint8 or uint16, or (H, W, 3) uint8 BGR; 16-bit counts become grey by percentiles.
        detections: in frame pixels.
    Returns: (H * n, W * n, 3) uint8 BGR, n the smallest integer that makes the longer side MIN_SIDE or more.
    Raises: FrameError for another array.
    """
    grey_or_bgr = Intensity()(checked_frame(frame))
    zoom = -(-MIN_SIDE // max(frame.shape[:2]))
    picture = np.asarray(cv2.resize(grey_or_bgr, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC), np.uint8)
    if picture.ndim == 2:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8)
    xyxy = np.rint(detections.xyxy * zoom).astype(int)
    colours = [COLOURS[class_id % len(COLOURS)] for class_id in detections.class_ids]
    order = np.argsort(-detections.scores, kind="stable")
    for row in order[::-1]:  # the best on top
        _draw_box(picture, xyxy[row], colours[row])
    labels = np.empty((0, 4), int)
    for row in order:  # the best chooses its place first
        text = label_text(detections, row)
        label = _place(text, xyxy[row], xyxy, labels, picture.shape[:2])
        if label is not None:
            _draw_label(picture, text, label, colours[row])
            labels = np.concatenate([labels, label[None]])
    return picture


def label_text(detections: Detections, row: int) -> str:
    """`person #7  0.91  36.2 C`; OpenCV's letters are ASCII, so the degree sign is left out.

    Names are a model's or a program's, and may be anything: OpenCV ends the process for half a character.
    """
    tracks, temperatures = detections.track_ids, detections.temperatures
    track = f" #{tracks[row]}" if tracks is not None and tracks[row] >= 0 else ""
    words = [shown(f"{detections.names[row]}{track}"), f"{detections.scores[row]:.2f}"]
    words += [f"{temperatures[row, 2]:.1f} C"] if temperatures is not None else []
    return "  ".join(words)  # one space is narrow in this font


def _draw_box(picture: Picture, xyxy: NDArray[np.int_], colour: tuple[int, int, int]) -> None:
    """A coloured line outside the object between two dark ones, so that it is seen on any ground."""
    h, w = picture.shape[:2]
    x1, y1 = np.maximum(xyxy[:2], 4)  # at the picture's edge the lines move in, or they would not be seen
    x2, y2 = np.minimum(xyxy[2:] - 1, (w - 5, h - 5))
    for distance, line in enumerate((DARK, colour, colour, DARK), start=1):
        corners = (int(x1) - distance, int(y1) - distance), (int(x2) + distance, int(y2) + distance)
        cv2.rectangle(picture, *corners, line, 1)


def _place(
    text: str, xyxy: NDArray[np.int_], objects: NDArray[np.int_], labels: NDArray[np.int_], hw: tuple[int, int]
) -> NDArray[np.int_] | None:
    """(4,) xyxy of a label beside its box and inside the picture, where it covers least of small objects.

    None in a crowd, where every place would cover another label or hide an object: colour still tells the class.
    """
    (w, h), baseline = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    w, h = w + 2 * PADDING, h + baseline + PADDING
    x1, y1, x2, y2 = xyxy
    gap = 4
    corners = np.array(
        [
            (x1 - gap, y1 - h - gap),  # above, left
            (x1 - gap, y2 + gap),  # below
            (x2 - w + gap, y1 - h - gap),  # above, right
            (x2 - w + gap, y2 + gap),
            (x2 + gap, y1),  # right
            (x1 - w - gap, y1),  # left
            (x2 + gap, y2 - h),
            (x1 - w - gap, y2 - h),
            (x1 + gap, y1 + gap),  # inside, for boxes that fill the picture
        ]
    )
    corners = np.clip(corners, 0, np.maximum(0, [hw[1] - w, hw[0] - h]))
    places = np.concatenate([corners, corners + np.array([w, h])], axis=1)  # (9, 4)
    small = objects[(objects[:, 2:] - objects[:, :2]).prod(axis=1) < SMALL * w * h]
    cost = np.where(_covered(places, labels) > 0, np.inf, _covered(places, small))
    best = int(np.argmin(cost))
    return places[best] if cost[best] < w * h / 3 else None


def _covered(places: NDArray[np.int_], taken: NDArray[np.int_]) -> NDArray[np.int_]:
    """(P, 4), (M, 4) -> (P,) pixels of each place that lie on what is taken."""
    top_left = np.maximum(places[:, None, :2], taken[None, :, :2])  # (P, M, 2)
    bottom_right = np.minimum(places[:, None, 2:], taken[None, :, 2:])
    return np.asarray(np.clip(bottom_right - top_left, 0, None).prod(axis=2).sum(axis=1))


def _draw_label(picture: Picture, text: str, label: NDArray[np.int_], colour: tuple[int, int, int]) -> None:
    """The text on a half-transparent dark plate."""
    x1, y1, x2, y2 = (int(v) for v in label)
    plate = picture[y1:y2, x1:x2]
    plate[:] = (0.3 * plate + 0.7 * np.asarray(DARK)).astype(np.uint8)
    _, baseline = cv2.getTextSize(text, FONT, FONT_SCALE, 1)
    cv2.putText(picture, text, (x1 + PADDING, y2 - baseline), FONT, FONT_SCALE, colour, 1, cv2.LINE_AA)
