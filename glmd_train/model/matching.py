"""Which anchor or proposal is which object, and which of them are used in the loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

IGNORED = -1  # neither object nor background: not sampled


@dataclass(frozen=True)
class Target:
    """The labels of one image, in network pixels.

    boxes (N, 4) float32 xyxy; labels (N,) int64; ignore (M, 4) float32: regions where nothing is background.
    key   a number that the random samples of this image follow from, whichever process computes them and when
    name  of the picture, for messages
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    key: int = 0
    name: str = ""

    def to(self, device: torch.device) -> Target:
        return replace(
            self, boxes=self.boxes.to(device), labels=self.labels.to(device), ignore=self.ignore.to(device)
        )


def match(
    candidates: Tensor, target: Target, low: float, high: float, keep_best: bool
) -> tuple[Tensor, Tensor]:
    """Assign each candidate box to an object.

    Args: candidates (P, 4); IoU < low is background, >= high the object, between is ignored; keep_best: every object
        also takes its best candidates, however low their IoU (RPN).
    Returns: index (P,) int64 of the best object (0 where there is none), kind (P,) int64: 1 object, 0 background, -1
        ignored.
    """
    if len(target.boxes) == 0:
        index = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
        return index, _mask_ignored(index.clone(), candidates, target)
    overlaps = box_iou(target.boxes, candidates)  # (N, P)
    best, index = overlaps.max(dim=0)  # (P,)
    kind = torch.full_like(index, IGNORED)
    kind[best < low] = 0
    kind[best >= high] = 1
    if keep_best:
        best_of_object = overlaps.max(dim=1, keepdim=True).values  # (N, 1)
        kind[((overlaps == best_of_object) & (overlaps > 0)).any(dim=0)] = 1
    return index, _mask_ignored(kind, candidates, target)


def _mask_ignored(kind: Tensor, candidates: Tensor, target: Target) -> Tensor:
    """Background that lies for more than half of its area in an ignore region becomes ignored."""
    if len(target.ignore):
        top_left = torch.maximum(candidates[:, None, :2], target.ignore[None, :, :2])  # (P, M, 2)
        bottom_right = torch.minimum(candidates[:, None, 2:], target.ignore[None, :, 2:])
        inter = (bottom_right - top_left).clamp(min=0).prod(dim=2)  # (P, M)
        covered = (inter / box_area(candidates).clamp(min=1e-6)[:, None]).amax(dim=1) > 0.5
        kind[covered & (kind == 0)] = IGNORED
    return kind


def sample(kind: Tensor, number: int, positive_fraction: float, key: int = 0) -> tuple[Tensor, Tensor]:
    """Draw at most `number` candidates, at most `positive_fraction` of them objects: indices of objects, background.

    The same `key` draws the same, on every device.
    """
    positive, negative = torch.nonzero(kind == 1)[:, 0], torch.nonzero(kind == 0)[:, 0]
    n_positive = min(len(positive), int(number * positive_fraction))
    n_negative = min(len(negative), number - n_positive)
    generator = torch.Generator().manual_seed(key)  # of the CPU, as each device draws other numbers
    return _draw(positive, n_positive, generator), _draw(negative, n_negative, generator)


def _draw(indices: Tensor, number: int, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)[:number].to(indices.device)]
