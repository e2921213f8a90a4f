"""The worst misses of a model: what it called an object, overlooked or mistook, and a sheet of them to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from glmd_runtime.boxes import area, iou
from glmd_runtime.detections import Detections
from glmd_runtime.draw import DARK, FONT, Picture
from glmd_runtime.files.values import shown
from glmd_runtime.thermal import Intensity
from glmd_train.data.coco import Record
from glmd_train.evaluate import RECALL_SCORE, match_greedily
from glmd_train.scores.intervals import IOUS, covered

Box = NDArray[np.float32]

NEAR = 0.1  # IoU from which a box is said to have come, or to have been expected, at the place of another
# kind -> heading of its rows on the sheet
KINDS = {
    "false_alarm": "FALSE ALARMS, highest score first",
    "missed": "MISSED OBJECTS, largest first",
    "wrong_class": "WRONG CLASS, highest score first",
}
TILE, COLUMNS, TILES = 320, 4, 8  # pixels a side; tiles a row; tiles a kind
MARGIN, LINE, HEADING = 14, 22, 46  # pixels: between tiles; a line of a caption; a heading
CONTEXT, SMALLEST = 3.0, 48.0  # a tile shows so many times its boxes, and at least so many pixels of the frame
EXPECTED, CAME, TEXT = (120, 230, 120), (80, 190, 255), (225, 225, 225)  # BGR
FONT_SCALE = 0.52


@dataclass(frozen=True)
class Miss:
    """One miss; boxes are xyxy (4,) in frame pixels, None where there is none. The larger `weight`, the worse.

    expected, came  what the labels say and what the model said, in words
    """

    kind: str
    record: Record
    weight: float
    expected: str
    came: str
    expected_box: Box | None
    came_box: Box | None


def find_misses(
    records: Sequence[Record], found: Sequence[Detections], class_names: tuple[str, ...]
) -> dict[str, list[Miss]]:
    """Every miss by kind, the worst first, at IoU 0.5 and score 0.3, where recall is counted.

    An object is "missed" or of "wrong_class" if no detection of its class takes it; of wrong class, if one of another
    class does that found no object itself. Every other detection without an object is a "false_alarm", unless an ignore
    region covers half of it. So missed and wrong class together are the objects that lack in the recall.
    """
    everything = [
        miss for record, one in zip(records, found, strict=True) for miss in _misses_of(record, one, class_names)
    ]
    return {kind: sorted((m for m in everything if m.kind == kind), key=lambda m: -m.weight) for kind in KINDS}


def _misses_of(record: Record, one: Detections, names: tuple[str, ...]) -> Iterable[Miss]:
    one = one[np.argsort(-one.scores, kind="stable")]
    shown = one[one.scores >= RECALL_SCORE]
    taken = _match_by_class(record, shown)
    objects = np.setdiff1d(np.arange(len(record.labels)), taken)  # not found
    alarms = np.flatnonzero(taken < 0)
    mistaken = match_greedily(shown.xyxy[alarms], record.boxes[objects])
    for d, o in zip(alarms[mistaken >= 0], objects[mistaken[mistaken >= 0]], strict=True):
        yield Miss("wrong_class", record, float(shown.scores[d]), names[record.labels[o]], _said(shown, d),
                   record.boxes[o], shown.xyxy[d])
    ignored = covered(shown.xyxy, record.ignore) >= IOUS[0]
    for d in alarms[(mistaken < 0) & ~ignored[alarms]]:
        yield _false_alarm(record, shown, d, set(taken), names)
    free = one[np.delete(np.arange(len(one)), np.flatnonzero(taken >= 0))]  # `shown` are the first of `one`
    for o in np.delete(objects, mistaken[mistaken >= 0]):
        yield _missed(record, free, o, names)


def _match_by_class(record: Record, shown: Detections) -> NDArray[np.int64]:
    """(D,) the object of its class that each detection takes, or -1."""
    taken = np.full(len(shown), -1, np.int64)
    for class_id in np.unique(shown.class_ids):
        rows, objects = np.flatnonzero(shown.class_ids == class_id), np.flatnonzero(record.labels == class_id)
        match = match_greedily(shown.xyxy[rows], record.boxes[objects])
        taken[rows[match >= 0]] = objects[match[match >= 0]]
    return taken


def _false_alarm(record: Record, shown: Detections, d: int, found: set[int], names: tuple[str, ...]) -> Miss:
    overlaps = iou(shown.xyxy[d][None], record.boxes)[0]
    weight, came, box = float(shown.scores[d]), _said(shown, d), shown.xyxy[d]
    if overlaps.max(initial=0.0) < NEAR:
        expected = " or ".join(("nothing", *record.left_out))  # where those lie is not known here
        return Miss("false_alarm", record, weight, expected, came, None, box)
    near = int(overlaps.argmax())
    expected = f"{names[record.labels[near]]}, IoU {overlaps[near]:.2f}" + (", found already" if near in found else "")
    return Miss("false_alarm", record, weight, expected, came, record.boxes[near], box)


def _missed(record: Record, free: Detections, o: int, names: tuple[str, ...]) -> Miss:
    """`free` are the detections that took no object, low scores too: they tell how near this one was to being found."""
    box = record.boxes[o]
    overlaps = iou(box[None], free.xyxy)[0]
    near = np.flatnonzero(overlaps >= NEAR)
    if not len(near):
        return Miss("missed", record, float(area(box)), names[record.labels[o]], "nothing", box, None)
    best = near[free.scores[near].argmax()]
    came = f"{_said(free, best)}, IoU {overlaps[best]:.2f}"
    return Miss("missed", record, float(area(box)), names[record.labels[o]], came, box, free.xyxy[best])


def _said(found: Detections, row: int) -> str:
    return f"{found.class_names[found.class_ids[row]]} {found.scores[row]:.2f}"


def draw_sheet(misses: dict[str, list[Miss]], title: str) -> Picture:
    """The worst TILES of each kind as one picture (H, W, 3) uint8 BGR; their pictures are read again.

    Raises: DatasetError if one cannot be read any more.
    """
    rows = [_heading(title, 0.75), _legend()]
    for kind, heading in KINDS.items():
        worst = misses[kind][:TILES]
        rows.append(_heading(f"{heading}: {len(worst)} of {len(misses[kind])}", 0.65))
        tiles = [_tile(miss) for miss in worst]
        rows += [_row(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    return np.concatenate(rows)


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), DARK, np.uint8)


def _width() -> int:
    return MARGIN + COLUMNS * (TILE + MARGIN)


def _heading(text: str, scale: float) -> Picture:
    strip = _blank(HEADING, _width())
    _write(strip, text, (MARGIN, HEADING - 14), TEXT, _width() - 2 * MARGIN, scale)
    return strip


def _legend() -> Picture:
    strip = _blank(LINE + 8, _width())
    _write(strip, "expected (label)", (MARGIN, LINE - 6), EXPECTED, TILE)
    _write(strip, "came (model)", (MARGIN + 180, LINE - 6), CAME, TILE)
    return strip


def _row(tiles: Sequence[Picture]) -> Picture:
    strip = _blank(tiles[0].shape[0] + MARGIN, _width())
    for i, tile in enumerate(tiles):
        x = MARGIN + i * (TILE + MARGIN)
        strip[: tile.shape[0], x : x + TILE] = tile
    return strip


def _tile(miss: Miss) -> Picture:
    """The frame around the boxes, and three lines: what was expected, what came, and in which picture."""
    boxes = [(box, colour) for box, colour in ((miss.expected_box, EXPECTED), (miss.came_box, CAME)) if box is not None]
    picture, to_tile = _crop(miss.record.read(), np.stack([box for box, _ in boxes]))
    for box, colour in boxes:
        _draw_box(picture, to_tile(box), colour)
    caption = _blank(3 * LINE + 6, TILE)
    lines = (f"expected {miss.expected}", EXPECTED), (f"came {miss.came}", CAME), (miss.record.path.name, TEXT)
    for i, (text, colour) in enumerate(lines, start=1):
        _write(caption, text, (2, i * LINE - 4), colour, TILE)
    return np.concatenate([picture, caption])


def _crop(frame: NDArray[Any], boxes: Box) -> tuple[Picture, Callable[[Box], NDArray[np.int_]]]:
    """A square of the frame around boxes (N, 4), enlarged to a tile, and what maps frame pixels to the tile's.

    It stays inside the frame where that is large enough; beyond it a tile is dark.
    """
    intensities = Intensity()(frame)
    bgr = cv2.cvtColor(intensities, cv2.COLOR_GRAY2BGR) if intensities.ndim == 2 else intensities
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    hw = bgr.shape[:2]
    side = min(max(CONTEXT * float((high - low).max()), SMALLEST), float(max(hw)))
    room = np.maximum(np.array(hw[::-1]) - side, 0)
    corner = np.clip((low + high - side) / 2, 0, room)
    zoom = TILE / side
    to_tile = np.array([[zoom, 0, -corner[0] * zoom], [0, zoom, -corner[1] * zoom]])  # (2, 3)
    picture = cv2.warpAffine(bgr, to_tile, (TILE, TILE), flags=cv2.INTER_CUBIC, borderValue=DARK)
    return np.asarray(picture, np.uint8), lambda box: np.rint((box - np.tile(corner, 2)) * zoom).astype(int)


def _draw_box(picture: Picture, xyxy: NDArray[np.int_], colour: tuple[int, int, int]) -> None:
    """A coloured line around the object between two dark ones, inside the tile, so that it is seen on any ground."""
    x1, y1 = (int(v) for v in np.maximum(xyxy[:2], 4))
    x2, y2 = (int(v) for v in np.minimum(xyxy[2:], TILE - 5))
    for distance, line in enumerate((DARK, colour, colour, DARK), start=1):
        cv2.rectangle(picture, (x1 - distance, y1 - distance), (x2 + distance, y2 + distance), line, 1)


def _write(
    picture: Picture, text: str, at: tuple[int, int], colour: tuple[int, int, int], width: int,
    scale: float = FONT_SCALE,
) -> None:
    """One line of text, its baseline at `at`, cut to `width` pixels."""
    text = cut = shown(text)
    while cv2.getTextSize(cut, FONT, scale, 1)[0][0] > width:
        text = text[:-1]
        cut = text + "..."
    cv2.putText(picture, cut, at, FONT, scale, colour, 1, cv2.LINE_AA)
