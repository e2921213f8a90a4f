"""Region proposal network: features -> boxes that may hold an object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import nms

from glmd_train.model.anchors import AnchorGenerator, clip_boxes, decode, encode
from glmd_train.model.losses import box_loss, objectness_loss
from glmd_train.model.matching import Target, match, sample

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
NMS_IOU = 0.7


class RPN(nn.Module):
    """Head, anchors and proposal selection.

    pre_nms_topk anchors of an image enter the NMS, the `proposals` best leave it; both have a value of their own in
    training. confusion_aware: the loss leaves out background that looks like an object.
    """

    def __init__(
        self, channels: int, anchors: AnchorGenerator, *, pre_nms_topk: int, proposals: int, train_pre_nms_topk: int,
        train_proposals: int, batch: int, confusion_aware: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.pre_nms_topk, self.proposals = pre_nms_topk, proposals
        self.train_pre_nms_topk, self.train_proposals = train_pre_nms_topk, train_proposals
        self.batch, self.confusion_aware = batch, confusion_aware
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(anchors), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(anchors), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def head(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) -> logits (B, H W A), deltas (B, H W A, 4), in the anchors' order."""
        b = len(features)
        hidden = F.relu(self.conv(features))
        logits = self.objectness(hidden).permute(0, 2, 3, 1).reshape(b, -1)  # (B, A, H, W) -> (B, H W A)
        deltas = self.deltas(hidden).permute(0, 2, 3, 1).reshape(b, -1, 4)  # (B, 4A, H, W) -> (B, H W A, 4)
        return logits, deltas

    def forward(self, features: Tensor, valid_hw: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, 2) -> proposals (B, R, 4) and valid (B, R); padded rows are zero boxes."""
        logits, deltas = self.head(features)
        anchors = self.anchors(*features.shape[2:])
        rows = [self.select(*one, anchors, self.proposals) for one in zip(logits, deltas, valid_hw, strict=True)]
        boxes = torch.stack([F.pad(row, (0, 0, 0, self.proposals - len(row))) for row in rows])
        counts = torch.tensor([len(row) for row in rows], device=boxes.device)
        return boxes, torch.arange(self.proposals, device=boxes.device) < counts[:, None]

    @torch.no_grad()
    def select(
        self, logits: Tensor, deltas: Tensor, valid_hw: Tensor, anchors: Tensor, number: int, topk: int | None = None
    ) -> Tensor:
        """One image: (N,), (N, 4), (2,), (N, 4) -> at most `number` boxes (R, 4), best first.

        topk: anchors that enter the NMS; None for those of inference.
        """
        best, index = logits.float().topk(min(max(topk or self.pre_nms_topk, number), len(logits)))
        boxes = clip_boxes(decode(deltas[index].float(), anchors[index], RPN_WEIGHTS), valid_hw)
        full = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        boxes, best = boxes[full], best[full]
        return boxes[nms(boxes, best, NMS_IOU)[:number]]

    def losses(
        self, features: Tensor, valid_hw: Tensor, targets: list[Target]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Training: the proposals of each image, and the two losses."""
        logits, deltas = self.head(features)
        anchors = self.anchors(*features.shape[2:])
        picks = [self._pick(anchors, target) for target in targets]
        divisor = self.batch * len(targets)
        chosen = [(torch.cat([p, n]), len(p), w) for p, n, w in picks]
        sampled = torch.cat([row[index] for row, (index, _, _) in zip(logits, chosen, strict=True)])
        kinds = torch.cat([torch.arange(len(index)).to(index) < count for index, count, _ in chosen])
        predicted = torch.cat([row[index[:count]] for row, (index, count, _) in zip(deltas, chosen, strict=True)])
        losses = {
            "rpn_objectness": objectness_loss(sampled, kinds, divisor, confusion_aware=self.confusion_aware),
            "rpn_box": box_loss(predicted, torch.cat([w for _, _, w in chosen]), divisor),
        }
        rows = zip(logits.detach(), deltas.detach(), valid_hw, strict=True)
        return [self.select(*row, anchors, self.train_proposals, self.train_pre_nms_topk) for row in rows], losses

    @torch.no_grad()
    def _pick(self, anchors: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the sampled objects and background anchors, and the deltas wanted of the objects (P, 4)."""
        index, kind = match(anchors, target, 0.3, 0.7, keep_best=True)
        positive, negative = sample(kind, self.batch, 0.5, 2 * target.key)
        wanted = target.boxes[index[positive]] if len(positive) else anchors[positive]
        return positive, negative, encode(wanted, anchors[positive], RPN_WEIGHTS)
