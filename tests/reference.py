"""Slow, obvious versions of what the packages do fast: plain loops, one formula a line."""

from __future__ import annotations

import math

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Two boxes (4,) xyxy."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0.0, float(width)) * max(0.0, float(height))
    areas = [max(0.0, float(x[2] - x[0])) * max(0.0, float(x[3] - x[1])) for x in (a, b)]
    union = sum(areas) - inter
    return inter / union if union > 0 else 0.0


def nms(xyxy: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Best first; a box is kept unless a better kept one overlaps it by more than the threshold."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(iou(xyxy[i], xyxy[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def postprocess(
    boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, thresholds: tuple[float, ...], nms_iou: float, most: int
) -> list[tuple[float, int, tuple[float, ...]]]:
    """(R, K, 4), (R, K), (R,) -> rows (score, class_id, xyxy), best first."""
    found = []
    for k, threshold in enumerate(thresholds):
        rows = [r for r in range(len(valid)) if valid[r] and scores[r, k] > np.float32(threshold)]
        for i in nms(boxes[rows, k], scores[rows, k], nms_iou):
            found.append((float(scores[rows[i], k]), k, tuple(map(float, boxes[rows[i], k]))))
    return sorted(found, key=lambda row: -row[0])[:most]


def normalise(intensities: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(H, W) or (H, W, C) uint8 -> (C, H, W) float32; grey goes into every channel."""
    image = np.zeros((len(mean), *intensities.shape[:2]), np.float32)
    for c in range(len(mean)):
        plane = intensities if intensities.ndim == 2 else intensities[:, :, c]
        image[c] = (plane.astype(np.float32) - np.float32(mean[c])) / np.float32(std[c])
    return image


# The two operations of the exported graph (glmd_export/ops.py)


def select_proposals(boxes: np.ndarray, scores: np.ndarray, number: int, threshold: float) -> np.ndarray:
    """One image: (N, 4), (N,) -> at most `number` boxes (R, 4), best first, empty ones never."""
    full = [i for i in range(len(boxes)) if boxes[i, 2] > boxes[i, 0] and boxes[i, 3] > boxes[i, 1]]
    kept = nms(boxes[full], scores[full], threshold)[:number]
    return boxes[full][kept]


def roi_align(features: np.ndarray, box: np.ndarray, bins: int, stride: int) -> np.ndarray:
    """(C, H, W), one box (4,) in network pixels -> (C, bins, bins): each bin the mean of a grid of samples."""
    x1, y1, x2, y2 = (float(edge) / stride - 0.5 for edge in box)
    bin_h, bin_w = (y2 - y1) / bins, (x2 - x1) / bins
    rows, columns = math.ceil(bin_h), math.ceil(bin_w)  # one sample a cell or more
    out = np.zeros((len(features), bins, bins))
    for i in range(bins):
        for j in range(bins):
            for row in range(rows):
                for column in range(columns):
                    y = y1 + (i + (row + 0.5) / rows) * bin_h
                    x = x1 + (j + (column + 0.5) / columns) * bin_w
                    out[:, i, j] += _bilinear(features, y, x) / (rows * columns)
    return out


def _bilinear(features: np.ndarray, y: float, x: float) -> np.ndarray:
    """(C, H, W) at a point between its cells -> (C,); nothing further out than one cell."""
    height, width = features.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(len(features))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = features[:, top, left] * (1 - x + left) + features[:, top, right] * (x - left)
    lower = features[:, bottom, left] * (1 - x + left) + features[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def winograd_kernel(kernel: np.ndarray) -> np.ndarray:
    """(3, 3) -> (6, 6): the kernel as a polynomial of two variables, at the points 0, 1, -1, 2, -2 and infinity.

    Each value is over the product of its point's distances from the other finite points, as in Lagrange's formula.
    """
    points = (0.0, 1.0, -1.0, 2.0, -2.0)
    powers = [[p**k for k in range(3)] for p in points] + [[0.0, 0.0, 1.0]]
    divisors = [math.prod(p - q for q in points if q != p) for p in points] + [1.0]
    out = np.zeros((6, 6))
    for i in range(6):
        for j in range(6):
            for a in range(3):
                for b in range(3):
                    out[i, j] += kernel[a, b] * powers[i][a] / divisors[i] * powers[j][b] / divisors[j]
    return out


def calibrate_one(score: float, logits: np.ndarray, prototype: np.ndarray, spec: object) -> float:
    """PCB of one detection, as the paper has it."""
    lower, upper = np.float32((spec.lower, spec.upper))  # as a number, numpy 1 would compare in double
    if not (lower < score <= upper and prototype.any()):
        return score
    cosine = float(logits @ prototype) / (np.sqrt(logits @ logits) * np.sqrt(prototype @ prototype))
    return spec.alpha * score + (1 - spec.alpha) * cosine


def connected(number: int, links: list[tuple[int, int]]) -> list[list[int]]:
    """The groups of 0 .. number - 1 that links connect, by merging until nothing changes; groups by smallest member."""
    groups = [{i} for i in range(number)]
    for a, b in links:
        together = [group for group in groups if a in group or b in group]
        groups = [group for group in groups if group not in together] + [set().union(*together)]
    return sorted(sorted(group) for group in groups)
# Tiles (glmd_runtime/tiles.py)

Row = tuple[tuple[float, ...], int, float]  # xyxy, class_id, score


def merge_tiles(
    tiles: list[list[Row]], windows: list[tuple[int, ...]], margin: float, threshold: float
) -> list[tuple[float, int, tuple[float, ...]]]:
    """Rows of each window in its own pixels, the last window the frame -> rows (score, class_id, xyxy), best first."""
    frame = windows[-1]
    candidates = []
    for t, (rows, (left, top, right, bottom)) in enumerate(zip(tiles, windows, strict=True)):
        for (x1, y1, x2, y2), k, score in rows:
            cut_left = left > frame[0] and x1 < margin
            cut_top = top > frame[1] and y1 < margin
            cut_right = right < frame[2] and (right - left) - x2 < margin
            cut_bottom = bottom < frame[3] and (bottom - top) - y2 < margin
            if not (cut_left or cut_top or cut_right or cut_bottom):
                candidates.append((score, k, (x1 + left, y1 + top, x2 + left, y2 + top), t))
    kept: list[tuple[float, int, tuple[float, ...], int]] = []
    for score, k, box, t in sorted(candidates, key=lambda row: -row[0]):
        rivals = [other for _, class_id, other, tile in kept if class_id == k and tile != t]
        if all(iou(np.array(box), np.array(other)) <= threshold for other in rivals):
            kept.append((score, k, box, t))
    return [row[:3] for row in kept]


# Tracking and enrolment


def votes(
    history: list[tuple[float, int, int, float]], track: int, now: float, half_life: float, classes: int
) -> list[float]:
    """Rows (time, track, class_id, score) -> the weight of each class for a track."""
    total = [0.0] * classes
    for time, of, class_id, score in history:
        if of == track:
            total[class_id] += score * 0.5 ** ((now - time) / half_life)
    return total


def extend_scores(
    known: np.ndarray, enrolled: np.ndarray, boxes: np.ndarray, valid: np.ndarray, thresholds: tuple[float, ...],
    nms_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """(R, K), (R, E), (R, 4), (R,) -> the same scores, without those of the side that another region's beats."""
    new_known, new_enrolled = known.copy(), enrolled.copy()
    k = known.shape[1]
    for r in range(len(known)):
        for e in range(enrolled.shape[1]):
            if e != list(enrolled[r]).index(enrolled[r].max()):
                new_enrolled[r, e] = 0
    only = new_enrolled.copy()
    for r in range(len(known)):
        for s in range(len(known)):
            if s != r and not (valid[s] and iou(boxes[r], boxes[s]) > nms_iou):
                continue
            for c in range(k):
                if known[s, c] > np.float32(thresholds[c]):
                    new_enrolled[r, only[r] <= known[s, c]] = 0
            for e in range(enrolled.shape[1]):
                if only[s, e] > np.float32(thresholds[k + e]):
                    new_known[r, known[r] < only[s, e]] = 0
    return new_known, new_enrolled


def best_f1(rows: list[tuple[float, bool]], objects: int) -> float:
    """The best F1 that keeping detections from some score on can have, of (score, hit) rows."""
    best = 0.0
    for cut, _ in rows:
        kept = [hit for score, hit in rows if score >= cut]
        best = max(best, 2 * sum(kept) / (len(kept) + objects))
    return best


# Counts to intensities (glmd_runtime/camera/agc.py, bad_pixels.py, thermal.py)


def linear_window(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    """(H, W) uint16 -> (H, W) uint8: `low` -> 0, `high` -> 255, linear between, cut beyond, rounded to nearest."""
    scaled = (counts.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def percentile_window(counts: np.ndarray, low: float, high: float) -> np.ndarray:
    first, last = np.percentile(counts, (low, high))
    return linear_window(counts, first, max(last, first + 1))


def plateau_equalisation(counts: np.ndarray, plateau: float) -> np.ndarray:
    """Vickers 1996, one count after the other; not rounded."""
    pixels: dict[int, float] = {}
    for count in counts.ravel().tolist():
        pixels[count] = pixels.get(count, 0) + 1
    ceiling = plateau * sum(pixels.values()) / len(pixels)
    area, up_to = {}, 0.0
    for count in sorted(pixels):
        up_to += min(pixels[count], ceiling)
        area[count] = up_to
    first, last = area[min(pixels)], area[max(pixels)]
    return np.array([[255 * (area[c] - first) / (last - first) if last > first else 0 for c in row]
                     for row in counts.tolist()])


def fill_bad_pixels(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Each bad pixel: the median of the good ones beside it, in a 5x5 square where a 3x3 one has none."""
    filled = frame.copy()
    for y in range(len(frame)):
        for x in range(frame.shape[1]):
            for radius in (1, 2) if mask[y, x] else ():
                around = [(j, i) for j in range(y - radius, y + radius + 1) for i in range(x - radius, x + radius + 1)
                          if 0 <= j < len(frame) and 0 <= i < frame.shape[1] and not mask[j, i]]
                if around:
                    filled[y, x] = int(np.median([frame[place] for place in around]))
                    break
    return filled


def temperatures(frame: np.ndarray, box: np.ndarray, gain: float, offset: float) -> tuple[float, float, float]:
    """Min, mean, max over the pixels whose area a box (4,) shares, in degrees Celsius."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    inside = [gain * int(frame[y, x]) + offset for y in range(len(frame)) for x in range(frame.shape[1])
              if x < x2 and x + 1 > x1 and y < y2 and y + 1 > y1]
    return min(inside), sum(inside) / len(inside), max(inside)


def flicker(pictures: list[np.ndarray], frames: list[np.ndarray]) -> int:
    """The largest change of intensity, from one frame to the next, of a pixel whose count has not changed."""
    worst = 0
    for before, after, was, is_now in zip(pictures[:-1], pictures[1:], frames[:-1], frames[1:], strict=True):
        unchanged = was == is_now
        if unchanged.any():
            worst = max(worst, int(np.abs(after.astype(int) - before)[unchanged].max()))
    return worst
