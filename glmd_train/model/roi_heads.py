"""ROI head: features under a proposal -> class scores and one refined box a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from glmd_train.model.anchors import clip_boxes, decode, encode
from glmd_train.model.losses import (
    box_loss,
    classification_loss,
    present_classes,
    shared_count,
    without_confusing_class,
)
from glmd_train.model.matching import Target, match, sample

ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
POSITIVE_FRACTION = 0.25
MATCH_IOU = 0.5


class Gate(nn.Module):
    """One half of CRD: pooled (N, C) times sigmoid of two point-wise layers, C -> C/8 -> C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(channels, channels // 8)
        self.widen = nn.Linear(channels // 8, channels)

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled * torch.sigmoid(self.widen(F.relu(self.narrow(pooled))))


class BoxPredictor(nn.Module):
    """Pooled vectors (N, C) -> logits (N, K + 1), background last, and deltas (N, K, 4).

    CRD (class-regression decoupling) gives classifier and regressor a gate each, so that each sees its own features.
    """

    def __init__(self, channels: int, classes: int, crd: bool, dropout: float) -> None:
        super().__init__()
        self.cls_gate = Gate(channels) if crd else nn.Identity()
        self.box_gate = Gate(channels) if crd else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.cls_score = nn.Linear(channels, classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.cls_score(self.dropout(self.cls_gate(pooled)))
        return logits, self.bbox_pred(self.box_gate(pooled)).unflatten(1, (-1, 4))


class ROIHeads(nn.Module):
    """RoiAlign, res5, mean pooling, prediction.

    confusion_aware: the loss leaves out the class that a background row is taken for (`losses.confusing_class`);
    published_slices: with the published code's account of which row is of which image.
    """

    def __init__(
        self, res5: nn.Module, predictor: BoxPredictor, *, stride: int, bins: int, batch: int,
        confusion_aware: bool = False, published_slices: bool = False,
    ) -> None:
        super().__init__()
        self.res5, self.predictor = res5, predictor
        self.stride, self.bins, self.batch = stride, bins, batch
        self.confusion_aware, self.published_slices = confusion_aware, published_slices

    def forward(self, features: Tensor, proposals: Tensor, valid_hw: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, R, 4), (B, 2) -> boxes (B, R, K, 4) in network pixels, scores (B, R, K)."""
        b, r, _ = proposals.shape
        logits, deltas = self.predictor(self.pooled(features, list(proposals)))
        boxes = decode(deltas.float(), proposals.reshape(-1, 1, 4), ROI_WEIGHTS).reshape(b, r, -1, 4)
        boxes = torch.stack([clip_boxes(one, hw) for one, hw in zip(boxes, valid_hw, strict=True)])
        scores = logits.float().softmax(dim=1)[:, :-1]  # (B R, K): background dropped
        return boxes, scores.reshape(b, r, -1)

    def pooled(self, features: Tensor, boxes: list[Tensor]) -> Tensor:
        """Boxes of each image -> (N, C) vectors, image by image. Adaptive sampling, half-pixel aligned (ROIAlignV2)."""
        rois = roi_align(features, boxes, self.bins, 1 / self.stride, sampling_ratio=0, aligned=True)
        return self.res5(rois).mean(dim=(2, 3))

    def losses(self, features: Tensor, proposals: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        picks = [self._pick(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        boxes, labels, wanted = zip(*picks, strict=True)
        logits, deltas = self.predictor(self.pooled(features, list(boxes)))
        label = torch.cat(labels)  # (S,)
        objects = torch.nonzero(label < deltas.shape[1])[:, 0]  # (P,)
        predicted = deltas[objects, label[objects]]  # (P, 4): the box of the object's own class
        targets_xyxy, sources = torch.cat(wanted)[objects], torch.cat(boxes)[objects]
        if self.confusion_aware:
            slice_rows = self.batch if self.published_slices else None
            counts = [len(row) for row in labels]
            present = present_classes([t.labels for t in targets], counts, deltas.shape[1], slice_rows)
            logits = without_confusing_class(logits, label, present)
        rows = shared_count(len(label), label.device)
        return {
            "roi_class": classification_loss(logits, label, rows),
            "roi_box": box_loss(predicted, encode(targets_xyxy, sources, ROI_WEIGHTS), rows),
        }

    @torch.no_grad()
    def _pick(self, proposals: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """One image: sampled boxes (S, 4), their labels (S,) with K for background, their objects' boxes (S, 4)."""
        boxes = torch.cat([proposals, target.boxes])
        index, kind = match(boxes, target, MATCH_IOU, MATCH_IOU, keep_best=False)
        positive, negative = sample(kind, self.batch, POSITIVE_FRACTION, 2 * target.key + 1)
        chosen = torch.cat([positive, negative])
        background = self.predictor.cls_score.out_features - 1
        labels = torch.full((len(chosen),), background, device=boxes.device)
        wanted = boxes[chosen]
        if len(target.boxes):
            labels[: len(positive)] = target.labels[index[positive]]
            wanted = target.boxes[index[chosen]]
        return boxes[chosen], labels, wanted
