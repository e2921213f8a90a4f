"""The losses of a two-stage detector with detectron2's divisors, and the confusion-aware ones of GLMDNet's fine-tuning.

In a few-shot set a picture is labelled for one class, so its other objects count as background. The confusion-aware
(CA) losses leave out what is likely to be such an object.
"""

from __future__ import annotations

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

ABSENT = -1e10  # the logit of a class that has left a row's softmax


def objectness_loss(logits: Tensor, kinds: Tensor, divisor: float, *, confusion_aware: bool = False) -> Tensor:
    """Binary cross entropy over the sampled anchors: logits (S,), kinds (S,) 1 or 0; sum over `divisor`.

    confusion_aware: background that looks like an object (probability above 0.5) leaves the sum, not the divisor.
    """
    kept = ~suspected_objects(logits, kinds) if confusion_aware else torch.ones_like(logits, dtype=torch.bool)
    terms = F.binary_cross_entropy_with_logits(logits, kinds.to(logits), reduction="none")
    return terms[kept].sum() / divisor


def suspected_objects(logits: Tensor, kinds: Tensor) -> Tensor:
    """(S,), (S,) -> (S,) bool: background anchors that are more probably an object."""
    return (kinds == 0) & (torch.sigmoid(logits) > 0.5)


def classification_loss(logits: Tensor, labels: Tensor, divisor: float) -> Tensor:
    """Cross entropy, logits (S, K + 1) with background last, labels (S,); sum over `divisor`."""
    return F.cross_entropy(logits, labels, reduction="sum") / divisor


def without_confusing_class(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Logits (S, K + 1) for the CA loss: the confusing class of each row no longer takes part in its softmax."""
    confusing = confusing_class(logits, labels, present)  # (S,)
    rows = torch.nonzero(confusing >= 0)[:, 0]
    gone = torch.zeros_like(logits, dtype=torch.bool)
    gone[rows, confusing[rows]] = True
    return logits.masked_fill(gone, ABSENT)


def confusing_class(logits: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """The best class of each background row, unless the row's picture is labelled for it; -1 where there is none.

    Args: logits (S, K + 1), background last; labels (S,); present (S, K) bool, the classes of the row's picture.
    """
    best = logits[:, :-1].argmax(dim=1)  # (S,)
    is_background = labels == logits.shape[1] - 1
    return torch.where(is_background & ~present.gather(1, best[:, None])[:, 0], best, -1)


def present_classes(labels: list[Tensor], counts: list[int], classes: int, slice_rows: int | None = None) -> Tensor:
    """The `present` of `confusing_class`: labels of each picture's objects, rows of each picture -> (S, K) bool.

    slice_rows: the published code takes slices of so many rows for the pictures, whatever they contributed; rows beyond
        the last whole slice have no class present.
    """
    device = labels[0].device
    table = torch.zeros(len(labels) + 1, classes, dtype=torch.bool, device=device)  # the last row is of no picture
    for row, ids in zip(table, labels, strict=False):
        row[ids] = True
    if slice_rows is None:
        return table[torch.repeat_interleave(torch.tensor(counts)).to(device)]
    picture = torch.arange(sum(counts), device=device) // slice_rows  # (S,)
    return table[torch.where(picture < sum(counts) // slice_rows, picture, len(labels))]


def box_loss(deltas: Tensor, wanted: Tensor, divisor: float) -> Tensor:
    """L1 (smooth L1 with beta 0) over the objects: (P, 4), (P, 4); sum over `divisor`."""
    return torch.abs(deltas - wanted).sum() / divisor


def shared_count(count: int, device: torch.device) -> float:
    """The mean of `count` over all processes, at least 1.

    Processes average their gradients: with this divisor a sum over the rows of one is its part of the mean over all.
    """
    if not torch.distributed.is_initialized():
        return max(1, count)
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return max(1.0, total.item() / torch.distributed.get_world_size())
