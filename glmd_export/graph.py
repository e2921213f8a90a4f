"""The network as engines see it: static shapes, and every stage under a name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glmd_export.ops import Ops
from glmd_train.model.anchors import decode
from glmd_train.model.detector import GLMDNet
from glmd_train.model.roi_heads import ROI_WEIGHTS
from glmd_train.model.rpn import NMS_IOU, RPN_WEIGHTS


class Stages(NamedTuple):
    """What the graph computes on its way; the field names are the names of the tensors in the ONNX file.

    trunk, neck  (B, C, H / stride, W / stride) features
    objectness   (B, N) logits of all anchors; deltas (B, N, 4)
    proposals    (B, R, 4) xyxy in network pixels; valid (B, R) bool, False for padding
    pooled       (B, R, D) one vector a proposal
    boxes        (B, R, K, 4) xyxy in network pixels; scores (B, R, K)
    """

    trunk: Tensor
    neck: Tensor
    objectness: Tensor
    deltas: Tensor
    proposals: Tensor
    valid: Tensor
    pooled: Tensor
    boxes: Tensor
    scores: Tensor


class ExportGraph(nn.Module):
    """The trained parts of a GLMDNet around the two operations of an `Ops`, for images of one size.

    size_hw: (height, width) of the images in pixels.
    """

    anchors: Tensor
    whwh: Tensor

    def __init__(self, model: GLMDNet, ops: Ops, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.roi_heads = model.backbone, model.neck, model.rpn, model.roi_heads
        self.affine_rpn, self.affine_rcnn = model.affine_rpn, model.affine_rcnn
        self.ops = ops
        height, width = (-(-side // model.roi_heads.stride) for side in size_hw)  # the trunk rounds up
        self.register_buffer("anchors", model.rpn.anchors(height, width), persistent=False)  # (N, 4)
        self.register_buffer("whwh", torch.tensor([1, 0, 1, 0]), persistent=False)  # height, width -> xyxy's order

    def forward(self, images: Tensor, valid_hw: Tensor) -> Stages:
        """images (B, C, H, W) float32 as `preprocess` makes them; valid_hw (B, 2) float32 pixels, height and width."""
        trunk = self.backbone(images)
        neck = self.neck(trunk)
        if neck is trunk:  # a model with neither CM nor LR: two stages need two tensors to be named
            neck = trunk.clone()
        edges = valid_hw.index_select(1, self.whwh)[:, None]  # (B, 1, 4)
        objectness, deltas = self.rpn.head(self.affine_rpn(neck))
        proposals, valid = self.propose(objectness, deltas, edges)
        pooled = self.pool(self.affine_rcnn(neck), proposals)
        boxes, scores = self.predict(pooled, proposals, edges)
        return Stages(trunk, neck, objectness, deltas, proposals, valid, pooled, boxes, scores)

    def propose(self, objectness: Tensor, deltas: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N), (B, N, 4), (B, 1, 4) -> proposals (B, R, 4), valid (B, R); see `RPN.select`."""
        number = self.rpn.proposals
        best, index = objectness.topk(min(max(self.rpn.pre_nms_topk, number), len(self.anchors)))  # (B, top)
        chosen = deltas.gather(1, index[:, :, None].expand(-1, -1, 4))  # (B, top, 4)
        boxes = _clip(decode(chosen, self.anchors[index], RPN_WEIGHTS), edges)
        return self.ops.select_proposals(boxes, best, number, NMS_IOU)

    def pool(self, features: Tensor, proposals: Tensor) -> Tensor:
        """(B, C, H, W), (B, R, 4) -> (B, R, D); see `ROIHeads.pooled`."""
        heads = self.roi_heads
        rois = self.ops.roi_align(features, proposals, heads.bins, heads.stride)  # (B R, C, bins, bins)
        return heads.res5(rois).mean(dim=(2, 3)).unflatten(0, proposals.shape[:2])  # (B R, D) -> (B, R, D)

    def predict(self, pooled: Tensor, proposals: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, D), (B, R, 4), (B, 1, 4) -> boxes (B, R, K, 4), scores (B, R, K); see `ROIHeads.forward`."""
        rows = proposals.shape[:2]  # B, R
        logits, deltas = self.roi_heads.predictor(pooled.flatten(0, 1))  # (B R, K + 1), (B R, K, 4)
        boxes = decode(deltas.unflatten(0, rows), proposals[:, :, None], ROI_WEIGHTS)  # (B, R, K, 4)
        scores = logits.softmax(dim=1)[:, :-1]  # (B R, K): background dropped
        return _clip(boxes, edges[:, None]), scores.unflatten(0, rows)


def _clip(boxes: Tensor, edges: Tensor) -> Tensor:
    """(..., 4) boxes cut to 0..edges; edges broadcast against them."""
    return torch.minimum(boxes.clamp(min=0), edges)
