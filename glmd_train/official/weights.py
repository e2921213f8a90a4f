"""Weights of the published GLMDNet, of DeFRCN and of detectron2's R-50 and R-101 C4 detectors: read, and written back.

Their files are .pth (torch) or .pkl (arrays) with the weights under "model"; the ImageNet weights that trainings begin
with have Caffe2's names. `official_names` has the map of names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_runtime.files.scratch import whole_file
from glmd_runtime.preprocess import PreprocessSpec
from glmd_train.config import ModelConfig
from glmd_train.model.detector import GLMDNet
from glmd_train.model.resnet import Res5, ResNetTrunk
from glmd_train.official.names import GATES, our_name, published_name
from glmd_train.state_dict import check_fit, has_affine, read_state_dict

# What older versions of detectron2 save beside the parameters.
_ANCHORS, _MEAN, _STD = "proposal_generator.anchor_generator.cell_anchors.0", "pixel_mean", "pixel_std"
_AFFINE = ("affine_rpn", "affine_rcnn")
_PREDICTOR = ("roi_heads.predictor.cls_score.", "roi_heads.predictor.bbox_pred.")
# Frozen batch norm adds 1e-5 to the variance; a scale without statistics is then exact, as in detectron2.
_NO_VARIANCE = 1 - 1e-5


def is_official(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are parameters of a detector under published names."""
    return any(our_name(key) not in (None, key) for key in weights)


def from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published parameters under our names; unknown ones keep theirs, so that whoever loads them can name them.

    The gates' 1x1 convolutions become matrices. Affine layers, which detectron2's own detectors lack, are identities.
    """
    ours = {}
    for key, value in weights.items():
        name = our_name(key) or key
        if name not in (_ANCHORS, _MEAN, _STD):
            ours[name] = value.flatten(1) if name.startswith(GATES) and value.ndim == 4 else value
    hidden = ours.get("rpn.conv.weight")
    if hidden is not None and hidden.ndim and not any(key.startswith(_AFFINE) for key in ours):
        shape = (1, len(hidden), 1, 1)
        ours |= {f"{layer}.weight": torch.ones(shape) for layer in _AFFINE}
        ours |= {f"{layer}.bias": torch.zeros(shape) for layer in _AFFINE}
    return ours


def to_official(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our parameters under published names: the inverse of `from_official`.

    Affine layers that do nothing are left out of a model without GLMDNet's parts: such is detectron2's own detector.
    Raises: UsageError for a model that the published code cannot build.
    """
    if config.resnet is None:
        raise UsageError("Published names are for ResNet trunks; lite0 has none. Keep the .safetensors file.")
    if config.cm and config.lr and not config.mdf:
        raise UsageError("The published code has no CM and LR without MDF, whatever its ENABLE_MDF says.")
    is_detectron2 = not (config.cm or config.lr or config.crd or has_affine(weights))
    return {
        published_name(key): value[:, :, None, None] if key.startswith(GATES) and value.ndim == 2 else value
        for key, value in weights.items() if not (is_detectron2 and key.startswith(_AFFINE))
    }


def write_official(path: Path, model: GLMDNet, config: ModelConfig) -> Path:
    """A .pth file that detectron2's and the published checkpointer read; whole or not at all."""
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with whole_file(path) as partial:
        torch.save({"model": to_official(weights, config)}, partial)
    return path


def check_told(stored: Mapping[str, Tensor], model: GLMDNet, spec: PreprocessSpec, path: Path) -> None:
    """Older files also tell anchors and mean: raise UsageError if they are not those of the configuration."""
    told = {
        _ANCHORS: model.rpn.anchors.cell,
        _MEAN: torch.tensor(spec.mean)[:, None, None],
        _STD: torch.tensor(spec.std)[:, None, None],
    }
    for key, used in told.items():
        value = stored.get(key)
        if value is not None and (value.shape != used.shape or not torch.allclose(value, used, rtol=1e-3, atol=1e-2)):
            raise UsageError(
                f"{path} was trained with other settings: its {key} is {value.flatten()[:4].tolist()}..., not "
                f"{used.flatten()[:4].tolist()}.... Give its own --config YAML."
            )


def load_start_weights(path: Path, model: GLMDNet) -> None:
    """Start `model`, in place, from a published file: a whole detector, or a trunk with ImageNet weights.

    A detector's predictor is taken if it is there and has as many classes; else the model keeps its own. Files with our
    names are read as well.
    Raises: CheckpointError if the file is damaged or does not fit; UsageError if the model has no ResNet.
    """
    if not isinstance(model.backbone, ResNetTrunk):
        raise UsageError(f"{path} is for the backbones resnet50 and resnet101; lite0 begins with weights: imagenet.")
    stored = read_state_dict(path)
    weights = from_official(stored)
    if "rpn.conv.weight" not in weights:
        _load_trunk(stored, path, model.backbone, model.roi_heads.res5)
        return
    own = {key: value for key, value in model.state_dict().items() if key.startswith(_PREDICTOR)}
    if any(key not in weights or weights[key].shape != value.shape for key, value in own.items()):
        weights |= own
    _load(model, weights, path)


def load_resnet_imagenet(path: Path, trunk: ResNetTrunk, res5: Res5) -> None:
    """Fill stem to res5 from detectron2's MSRA files (R-50.pkl, R-101.pkl: Caffe2's names) or a trunk's .pth file.

    A scale and a shift without statistics mean: mean 0, variance 1. A trunk of one channel gets the first kernel summed
    over the colours, which gives on grey pictures what three equal channels give.
    Raises: CheckpointError naming what is missing or of a wrong shape.
    """
    _load_trunk(read_state_dict(path), path, trunk, res5)


def _load_trunk(stored: Mapping[str, Tensor], path: Path, trunk: ResNetTrunk, res5: Res5) -> None:
    weights = from_official(_detector_names(stored))
    if not weights:
        raise CheckpointError(f"{path} holds no ResNet: expected detectron2's R-50.pkl or R-101.pkl, or a .pth of one.")
    for key in [key for key in weights if key.endswith(".norm.weight")]:
        norm = key.removesuffix("weight")
        weights.setdefault(norm + "running_mean", torch.zeros_like(weights[key]))
        weights.setdefault(norm + "running_var", torch.full_like(weights[key], _NO_VARIANCE))
    parts = nn.ModuleDict({"backbone": trunk, "roi_heads": nn.ModuleDict({"res5": res5})})
    _load(parts, weights, path)


def _load(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    own = module.state_dict()
    stem = "backbone.stem.conv.weight"
    if stem in weights and weights[stem].ndim == 4 and (weights[stem].shape[1], own[stem].shape[1]) == (3, 1):
        weights = {**weights, stem: weights[stem].sum(dim=1, keepdim=True)}
    check_fit(own, weights, path, published_name)
    module.load_state_dict(weights)


_CAFFE2_PARTS = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_CAFFE2_ENDS = {
    "w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean", "bn_riv": "norm.running_var",
}
_CAFFE2_BLOCK = re.compile(rf"res([2-5])_(\d+)_({'|'.join(_CAFFE2_PARTS)})_({'|'.join(_CAFFE2_ENDS)})")
_CAFFE2_STEM = re.compile(rf"(?:res_)?conv1_({'|'.join(_CAFFE2_ENDS)})")


def _detector_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trunk's parameters under the names that they have in a published detector; others are left out.

    Left out are the classifier, what training kept, and R-50.pkl's bias of the first convolution, as detectron2 does.
    """
    named = {_detector_name(key): value for key, value in weights.items()}
    return {key: value for key, value in named.items() if key}


def _detector_name(key: str) -> str | None:
    if found := _CAFFE2_STEM.fullmatch(key):
        return f"backbone.stem.conv1.{_CAFFE2_ENDS[found[1]]}"
    if found := _CAFFE2_BLOCK.fullmatch(key):
        stage, block, part, end = found.groups()
        key = f"res{stage}.{block}.{_CAFFE2_PARTS[part]}.{_CAFFE2_ENDS[end]}"
    key = key.removeprefix("backbone.").removeprefix("roi_heads.")  # also detectron2's own trunk files
    if key.startswith("res5."):
        return f"roi_heads.{key}"
    return f"backbone.{key}" if key.startswith(("stem.conv1.", "res2.", "res3.", "res4.")) else None
