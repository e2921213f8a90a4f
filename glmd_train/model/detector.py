"""GLMDNet from end to end: trunk, neck, RPN, ROI head. Reads like the paper's figure 2."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from glmd_train.config import ModelConfig
from glmd_train.model.anchors import AnchorGenerator
from glmd_train.model.backbone import Lite0Res5, Lite0Trunk
from glmd_train.model.decouple import AffineLayer, scale_gradient
from glmd_train.model.glmd import GLMDNeck
from glmd_train.model.matching import Target
from glmd_train.model.resnet import Res5, ResNetTrunk
from glmd_train.model.roi_heads import BoxPredictor, ROIHeads
from glmd_train.model.rpn import RPN


@dataclass(frozen=True)
class RawTensors:
    """`glmd_runtime.postprocess.RawOutputs` of a batch: boxes (B, R, K, 4), scores (B, R, K), valid (B, R)."""

    boxes: Tensor
    scores: Tensor
    valid: Tensor


class GLMDNet(nn.Module):
    """Infrared few-shot detector.

    rpn_gradient, roi_gradient: factors on the gradient that RPN and ROI head send into neck and trunk.
    """

    def __init__(
        self, backbone: nn.Module, neck: GLMDNeck, rpn: RPN, roi_heads: ROIHeads, *, channels: int,
        rpn_gradient: float, roi_gradient: float,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn, self.roi_heads = backbone, neck, rpn, roi_heads
        self.affine_rpn, self.affine_rcnn = AffineLayer(channels), AffineLayer(channels)
        self.rpn_gradient, self.roi_gradient = rpn_gradient, roi_gradient

    def forward(self, images: Tensor, valid_hw: Tensor) -> RawTensors:
        """Inference: images (B, C, H, W) as `preprocess` makes them, valid_hw (B, 2) -> RawTensors."""
        features = self.neck(self.backbone(images))
        proposals, valid = self.rpn(self.affine_rpn(features), valid_hw)
        boxes, scores = self.roi_heads(self.affine_rcnn(features), proposals, valid_hw)
        return RawTensors(boxes, scores, valid)

    def losses(self, images: Tensor, valid_hw: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        """Training: four scalar losses by name."""
        features = self.neck(self.backbone(images))
        for_rpn = self.affine_rpn(scale_gradient(features, self.rpn_gradient))
        proposals, rpn_losses = self.rpn.losses(for_rpn, valid_hw, targets)
        for_rcnn = self.affine_rcnn(scale_gradient(features, self.roi_gradient))
        return {**rpn_losses, **self.roi_heads.losses(for_rcnn, proposals, targets)}


def build_model(config: ModelConfig) -> GLMDNet:
    """A GLMDNet with random weights; see `backbone.load_imagenet` and `checkpoint.load_checkpoint`."""
    trunk, res5 = build_trunk(config)
    neck = GLMDNeck(
        trunk.channels, cm=config.cm, lr=config.lr, mdf=config.mdf, dropout=config.neck_dropout,
        published_batching=config.published_batching,
    )
    anchors = AnchorGenerator(config.anchor_sizes, config.anchor_ratios, config.stride)
    rpn = RPN(
        trunk.channels, anchors, pre_nms_topk=config.pre_nms_topk, proposals=config.proposals,
        train_pre_nms_topk=config.train_pre_nms_topk, train_proposals=config.train_proposals,
        batch=config.rpn_batch, confusion_aware=config.rpn_loss == "ca",
    )
    predictor = BoxPredictor(res5.channels, len(config.class_names), config.crd, config.cls_dropout)
    roi_heads = ROIHeads(
        res5, predictor, stride=config.stride, bins=config.bins, batch=config.roi_batch,
        confusion_aware=config.roi_loss == "ca", published_slices=config.published_batching,
    )
    return GLMDNet(
        trunk, neck, rpn, roi_heads, channels=trunk.channels,
        rpn_gradient=config.rpn_gradient, roi_gradient=config.roi_gradient,
    )


def build_trunk(config: ModelConfig) -> tuple[Lite0Trunk, Lite0Res5] | tuple[ResNetTrunk, Res5]:
    """The trunk and what follows it in the ROI head."""
    if config.resnet is None:
        return Lite0Trunk(config.stride, config.in_channels), Lite0Res5(config.stride)
    return ResNetTrunk(config.backbone, config.in_channels, config.resnet), Res5(config.backbone, config.resnet)
