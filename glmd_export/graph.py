"""The network as engines see it: static shapes, and every stage under a name."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from glmd_export.ops import Ops, clip, full, matrix_keep
from glmd_export.savings import HoistedHead, fits, spare
from glmd_runtime.postprocess import PostprocessSpec
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.classifier import Classifier, rgb_of_images
from glmd_train.model.anchors import decode
from glmd_train.model.detector import GLMDNet
from glmd_train.model.roi_heads import ROI_WEIGHTS
from glmd_train.model.rpn import NMS_IOU


class Stages(NamedTuple):
    """What the graph computes on its way; the field names are the names of the tensors in the ONNX file.

    trunk, neck  (B, C, H / stride, W / stride) features
    objectness   (B, N) logits of all anchors; deltas (B, N, 4)
    proposals    (B, R, 4) xyxy in network pixels; valid (B, R) bool, False for padding
    features     (B, R, D) one pooled vector a proposal
    logits       (B, R, K + 1), background last; box_deltas (B, R, K, 4)
    boxes        (B, R, K, 4) xyxy in network pixels; scores (B, R, K)
    """

    trunk: Tensor
    neck: Tensor
    objectness: Tensor
    deltas: Tensor
    proposals: Tensor
    valid: Tensor
    features: Tensor
    logits: Tensor
    box_deltas: Tensor
    boxes: Tensor
    scores: Tensor


class ExportGraph(nn.Module):
    """The trained parts of a GLMDNet around the two operations of an `Ops`, for images of one size.

    size_hw: (height, width) of the images in pixels; spared: without the arithmetic that `savings` finds needless.
    """

    anchors: Tensor
    whwh: Tensor

    def __init__(self, model: GLMDNet, ops: Ops, size_hw: tuple[int, int], *, spared: bool = False) -> None:
        super().__init__()
        height, width = (-(-side // model.roi_heads.stride) for side in size_hw)  # the trunk rounds up
        if spared:
            model = spare(model, (height, width))
        hoists = spared and fits(model.roi_heads)
        self.hoisted = HoistedHead(model.roi_heads, model.affine_rcnn) if hoists else None
        self.backbone, self.neck, self.rpn, self.roi_heads = model.backbone, model.neck, model.rpn, model.roi_heads
        self.affine_rpn, self.affine_rcnn = model.affine_rpn, model.affine_rcnn
        self.ops = ops
        self.register_buffer("anchors", model.rpn.anchors(height, width), persistent=False)  # (N, 4)
        self.register_buffer("whwh", torch.tensor([1, 0, 1, 0]), persistent=False)  # height, width -> xyxy's order

    def forward(self, images: Tensor, valid_hw: Tensor) -> Stages:
        """images (B, C, H, W) float32 as `preprocess` makes them; valid_hw (B, 2) float32 pixels, height and width."""
        trunk = self.backbone(images)
        neck = self.neck(trunk)
        if neck is trunk:  # a model with neither CM nor LR: two stages need two tensors to be named
            neck = trunk.clone()
        edges = valid_hw.index_select(1, self.whwh)  # (B, 4)
        objectness, deltas = self.rpn.head(self.affine_rpn(neck))
        proposals, valid = self.ops.select_proposals(
            objectness, deltas, self.anchors, edges,
            topk=self.rpn.pre_nms_topk, number=self.rpn.proposals, iou=NMS_IOU,
        )
        features = self.pool(neck, proposals)
        rows = proposals.shape[:2]  # B, R
        logits, box_deltas = (t.unflatten(0, rows) for t in self.roi_heads.predictor(features.flatten(0, 1)))
        boxes, scores = refine(logits, box_deltas, proposals, edges)
        return Stages(trunk, neck, objectness, deltas, proposals, valid, features, logits, box_deltas, boxes, scores)

    def pool(self, features: Tensor, proposals: Tensor) -> Tensor:
        """(B, C, H, W) of the neck, (B, R, 4) -> (B, R, D); see `ROIHeads.pooled`."""
        if self.hoisted is not None:
            return self.hoisted(features, proposals, self.ops)
        heads = self.roi_heads
        features = self.affine_rcnn(features)
        rois = self.ops.roi_align(features, proposals, heads.bins, heads.stride)  # (B R, C, bins, bins)
        return heads.res5(rois).mean(dim=(2, 3)).unflatten(0, proposals.shape[:2])  # (B R, D) -> (B, R, D)


def refine(logits: Tensor, deltas: Tensor, proposals: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The head's answers as boxes and scores; see `ROIHeads.forward`.

    (B, R, K + 1), (B, R, K, 4), (B, R, 4), (B, 4) -> boxes (B, R, K, 4), scores (B, R, K)
    """
    boxes = decode(deltas, proposals[:, :, None], ROI_WEIGHTS)  # (B, R, K, 4)
    scores = logits.softmax(dim=2)[:, :, :-1]  # (B, R, K): background dropped
    return clip(boxes, edges[:, None, None]), scores


class Final(NamedTuple):
    """What the final NMS leaves of an image, best score first; the field names are the tensors' names, as servers know
    them from other detectors.

    num_dets     (B, 1) int32, how many rows are detections; the rows behind them are zeros
    det_boxes    (B, D, 4) xyxy in network pixels; det_scores (B, D); det_classes (B, D) int32
    """

    num_dets: Tensor
    det_boxes: Tensor
    det_scores: Tensor
    det_classes: Tensor


class EndToEnd(nn.Module):
    """An ExportGraph with the post-processing of `glmd_runtime.postprocess` behind it, but without the way back to
    frame pixels. The NMS within each class is `ops.matrix_keep`, in every variant of the operations."""

    thresholds: Tensor

    def __init__(self, network: ExportGraph, spec: PostprocessSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.register_buffer("thresholds", torch.tensor(spec.score_thresholds)[:, None], persistent=False)  # (K, 1)

    def forward(self, images: Tensor, valid_hw: Tensor) -> tuple[Tensor, ...]:
        """The fields of Stages, then those of Final."""
        stages = self.network(images, valid_hw)
        return *stages, *self.finish(stages.boxes, stages.scores, stages.valid)

    def finish(self, boxes: Tensor, scores: Tensor, valid: Tensor) -> Final:
        """(B, R, K, 4), (B, R, K), (B, R) -> Final."""
        by_class = scores.transpose(1, 2)  # (B, K, R)
        passed = (by_class > self.thresholds) & valid[:, None]
        ranked, order = torch.where(passed, by_class, 0.0).topk(scores.shape[1])  # (B, K, R), falling
        boxes = boxes.transpose(1, 2).gather(2, order[..., None].expand(-1, -1, -1, 4))  # (B, K, R, 4)
        keep = matrix_keep(boxes, (ranked > 0) & full(boxes), self.spec.nms_iou)  # (B, K, R)
        ranked = (keep * ranked).flatten(1)  # (B, K R)
        best, index = ranked.topk(min(self.spec.max_detections, ranked.shape[1]))  # (B, D)
        found = best > 0
        chosen = boxes.flatten(1, 2).gather(1, index[:, :, None].expand(-1, -1, 4)) * found[:, :, None]  # (B, D, 4)
        classes = torch.where(found, index // scores.shape[1], 0)
        return Final(found.sum(dim=1, keepdim=True).int(), chosen, best, classes.int())


class PcbGraph(nn.Module):
    """PCB's classifier as engines see it, on the detector's own images; `spec` says how these were made."""

    def __init__(self, classifier: Classifier, ops: Ops, spec: PreprocessSpec) -> None:
        super().__init__()
        self.classifier, self.ops, self.spec = classifier, ops, spec

    def forward(self, images: Tensor, boxes: Tensor) -> Tensor:
        """images (B, C, H, W) float32; boxes (B, N, 4) xyxy in network pixels -> logits (B, N, D)."""
        one = self.classifier
        features = one.features(one.normalise(rgb_of_images(images, self.spec)))  # (B, C, H / stride, W / stride)
        rois = self.ops.roi_align(features, boxes, 1, one.stride)  # (B N, C, 1, 1)
        return one.head(rois).unflatten(0, boxes.shape[:2])  # (B N, D) -> (B, N, D)
