"""Parameter names of the published GLMDNet (also of DeFRCN and detectron2's C4 detectors) <-> ours."""

from __future__ import annotations

import re

# Beginnings of names, theirs and ours. None begins like another one, in either column, so that both ways are unique.
_BEGINNINGS = (
    ("backbone.stem.conv1.norm.", "backbone.stem.norm."),
    ("backbone.stem.conv1.weight", "backbone.stem.conv.weight"),
    ("backbone.res2.", "backbone.blocks.0."),
    ("backbone.res3.", "backbone.blocks.1."),
    ("backbone.res4.", "backbone.blocks.2."),
    ("glmd_network.global_module.tfEncoder.layers.0.self_attn.in_proj_", "neck.context.encoder.qkv."),
    ("glmd_network.global_module.tfEncoder.layers.0.self_attn.out_proj.", "neck.context.encoder.out."),
    ("glmd_network.global_module.tfEncoder.layers.0.linear1.", "neck.context.encoder.hidden."),
    ("glmd_network.global_module.tfEncoder.layers.0.linear2.", "neck.context.encoder.narrow."),
    ("glmd_network.global_module.tfEncoder.layers.0.norm", "neck.context.encoder.norm"),
    ("glmd_network.local_module.ca_module.ca_neck.", "neck.local.channel_gate."),
    ("glmd_network.local_module.sa_module.conv.", "neck.local.spatial_gate."),
    ("glmd_network.local_module.cr_module.0.", "neck.local.depthwise."),
    ("glmd_network.local_module.sr_module.0.", "neck.local.pointwise."),
    ("glmd_network.local_module.dconv.", "neck.local.merge."),
    ("glmd_network.global_conv.", "neck.context_conv."),
    ("glmd_network.local_conv.", "neck.local_conv."),
    ("affine_rpn.", "affine_rpn."),
    ("affine_rcnn.", "affine_rcnn."),
    ("proposal_generator.rpn_head.conv.", "rpn.conv."),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.objectness."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.deltas."),
    *((f"roi_heads.res5.{block}.", f"roi_heads.res5.blocks.{block}.") for block in range(3)),
    ("roi_heads.decouple_cls_layer.0.", "roi_heads.predictor.cls_gate.narrow."),
    ("roi_heads.decouple_cls_layer.2.", "roi_heads.predictor.cls_gate.widen."),
    ("roi_heads.decouple_reg_layer.0.", "roi_heads.predictor.box_gate.narrow."),
    ("roi_heads.decouple_reg_layer.2.", "roi_heads.predictor.box_gate.widen."),
    ("roi_heads.box_predictor.cls_score.", "roi_heads.predictor.cls_score."),
    ("roi_heads.box_predictor.bbox_pred.", "roi_heads.predictor.bbox_pred."),
)
_BACK = tuple((ours, theirs) for theirs, ours in _BEGINNINGS)
# In a block their convolution holds its norm; ours are side by side.
_THEIR_CONV = re.compile(r"(\.\d+\.(?:conv[123]|shortcut))\.weight$")
_OUR_CONV = re.compile(r"(\.\d+\.(?:conv[123]|shortcut))\.conv\.weight$")
GATES = ("roi_heads.predictor.cls_gate.", "roi_heads.predictor.box_gate.")


def our_name(theirs: str) -> str | None:
    """Our name of a published parameter; None for a name that no published network has."""
    ours = _renamed(theirs, _BEGINNINGS)
    return None if ours is None or _OUR_CONV.search(theirs) else _THEIR_CONV.sub(r"\1.conv.weight", ours)


def published_name(ours: str) -> str:
    """The published name of one of our parameters, or `ours` itself where there is none."""
    theirs = _renamed(ours, _BACK)
    return ours if theirs is None else _OUR_CONV.sub(r"\1.weight", theirs)


def _renamed(name: str, beginnings: tuple[tuple[str, str], ...]) -> str | None:
    found = ((old, new) for old, new in beginnings if name.startswith(old))
    return next((new + name.removeprefix(old) for old, new in found), None)
