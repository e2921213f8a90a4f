"""The four losses of a two-stage detector, with detectron2's divisors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def objectness_loss(logits: Tensor, kinds: Tensor, divisor: int) -> Tensor:
    """Binary cross entropy over the sampled anchors: logits (S,), kinds (S,) 1 or 0; sum over `divisor`."""
    return F.binary_cross_entropy_with_logits(logits, kinds.to(logits), reduction="sum") / divisor


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, logits (S, K + 1) with background last, labels (S,); mean over rows, 0 when there is none."""
    return F.cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))


def box_loss(deltas: Tensor, wanted: Tensor, divisor: int) -> Tensor:
    """L1 (smooth L1 with beta 0) over the objects: (P, 4), (P, 4); sum over `divisor`."""
    return torch.abs(deltas - wanted).sum() / max(1, divisor)
