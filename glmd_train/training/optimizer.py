"""What trains, at which rate, with which decay: freezing, parameter groups, the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from glmd_train.config import TrainConfig
from glmd_train.model.detector import GLMDNet


def freeze_parts(model: GLMDNet, config: TrainConfig) -> None:
    """Take the parts that `freeze` and `freeze_at` name out of the training."""
    backbone = model.backbone
    parts = {"backbone": backbone, "neck": model.neck, "rpn": model.rpn, "res5": model.roi_heads.res5}
    stages = [backbone.stem, *backbone.blocks][: config.freeze_at]
    for part in [*(parts[name] for name in config.freeze), *stages]:
        part.requires_grad_(False)


def build_optimizer(model: GLMDNet, config: TrainConfig) -> torch.optim.Optimizer:
    """One group for each pair of rate and decay that occurs; frozen parameters are in none."""
    pretrained = {id(p) for part in (model.backbone, model.roi_heads.res5) for p in part.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, decay in _decays(model, config):
        rate = config.learning_rate * (config.backbone_rate if id(parameter) in pretrained else 1)
        groups.setdefault((rate, decay), []).append(parameter)
    # "peak" is the rate that the schedule multiplies.
    rows: list[dict[str, Any]] = [
        {"params": parameters, "peak": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(rows, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(rows, lr=config.learning_rate)


def _decays(model: GLMDNet, config: TrainConfig) -> Iterator[tuple[nn.Parameter, float]]:
    """Each trainable parameter with its weight decay: none for norms, `bias_decay` for biases.

    The published training takes the attention's input bias for a weight, as detectron2 knows a bias by its name.
    """
    taken_for_weight = "qkv" if config.model.published_batching else None
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = name == "bias" and path.rpartition(".")[2] != taken_for_weight
            decay = config.bias_decay if is_bias else config.weight_decay
            if parameter.requires_grad:
                yield parameter, 0.0 if isinstance(module, nn.LayerNorm) else decay


def set_rate(optimizer: torch.optim.Optimizer, iteration: int, config: TrainConfig) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * schedule(iteration, config)


def schedule(iteration: int, config: TrainConfig) -> float:
    """Factor on the learning rate: linear warm-up from 1/1000, then cosine to 0 or a drop by 10 at each step."""
    if config.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * iteration / config.iterations))
    else:
        factor = 0.1 ** sum(step <= iteration for step in config.steps)
    if iteration >= config.warmup:
        return factor
    return factor * (0.001 + 0.999 * iteration / config.warmup)
