"""Names of the published implementation's parameters -> ours, for the golden tests of single parts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CM = {
    "tfEncoder.layers.0.self_attn.in_proj_weight": "encoder.qkv.weight",
    "tfEncoder.layers.0.self_attn.in_proj_bias": "encoder.qkv.bias",
    "tfEncoder.layers.0.self_attn.out_proj.": "encoder.out.",
    "tfEncoder.layers.0.linear1.": "encoder.hidden.",
    "tfEncoder.layers.0.linear2.": "encoder.narrow.",
    "tfEncoder.layers.0.norm": "encoder.norm",
}
LR = {
    "ca_module.ca_neck.": "channel_gate.",
    "sa_module.conv.": "spatial_gate.",
    "cr_module.0.": "depthwise.",
    "sr_module.0.": "pointwise.",
    "dconv.": "merge.",
}
NECK = {
    **{f"global_module.{k}": f"context.{v}" for k, v in CM.items()},
    **{f"local_module.{k}": f"local.{v}" for k, v in LR.items()},
    "global_conv.": "context_conv.",
    "local_conv.": "local_conv.",
}
PREDICTOR = {
    "box_predictor.": "",
    "decouple_cls_layer.0.": "cls_gate.narrow.",
    "decouple_cls_layer.2.": "cls_gate.widen.",
    "decouple_reg_layer.0.": "box_gate.narrow.",
    "decouple_reg_layer.2.": "box_gate.widen.",
}


def renamed(key: str, names: dict[str, str]) -> str:
    old = next(old for old in names if key.startswith(old))
    return names[old] + key[len(old) :]


def state(arrays: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, Tensor]:
    """The arrays `w/<published key>` as a state dict of ours."""
    return {renamed(k[2:], names): torch.from_numpy(v) for k, v in arrays.items() if k.startswith("w/")}
