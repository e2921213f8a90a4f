"""A file of weights alone: read without executing anything, and described by its names and shapes.

Names and shapes tell the architecture. What they cannot tell (class names, pixels, anchors, bins, proposals) comes
from the training's configuration, ours or a published one, or from a list of class names with defaults for the rest:
the light model's, or for a ResNet the published test settings.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_train.config import ModelConfig, NetworkConfig, PreprocessConfig, ResNetConfig, load_network_config
from glmd_train.given import read_names
from glmd_train.model.backbone import CUTS
from glmd_train.model.resnet import BLOCKS
from glmd_train.official.configuration import (
    is_published_yaml,
    published_network,
    published_test_settings,
    unused_affine_layers,
)
from glmd_train.official.names import published_name
from glmd_train.official.pickled_arrays import read_pickle
from glmd_train.torch_file import SAVE, read_torch

_NESTED = ("model", "state_dict", "blobs")  # where training programs put the weights, beside optimizer and scheduler
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
_NUMBERS = frozenset({
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
})


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of the parameters tell about a network; anchors is their number in each cell."""

    backbone: str
    resnet: ResNetConfig | None
    classes: int
    stride: int
    in_channels: int
    anchors: int
    cm: bool
    lr: bool
    mdf: bool
    crd: bool

    @classmethod
    def of_config(cls, config: ModelConfig) -> Architecture:
        """MDF joins CM and LR: without both of them it has no parameters, whatever its switch says."""
        return cls(
            config.backbone, config.resnet, len(config.class_names), config.stride, config.in_channels,
            len(config.anchor_sizes) * len(config.anchor_ratios),
            config.cm, config.lr, config.cm and config.lr and config.mdf, config.crd,
        )

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], path: Path) -> Architecture:
        """Raises: CheckpointError if `weights` (from `path`, under our names) are not those of a GLMDNet."""
        size = _Sizes(weights, path)
        size("rpn.conv.weight", 0)
        trunk = _resnet(size) if "backbone.stem.conv.weight" in weights else _lite0(size)
        return cls(
            *trunk[:2], size("roi_heads.predictor.cls_score.weight", 0) - 1, trunk[2], trunk[3],
            size("rpn.objectness.weight", 0),
            cm=any(key.startswith("neck.context.") for key in weights),
            lr=any(key.startswith("neck.local.") for key in weights),
            mdf="neck.context_conv.weight" in weights,
            crd="roi_heads.predictor.cls_gate.narrow.weight" in weights,
        )

    def differences(self, other: Architecture) -> list[str]:
        """Names of the fields that differ, with this one's value and the other's."""
        rows = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name} {mine} against {theirs}" for name, mine, theirs in rows if mine != theirs]


@dataclass(frozen=True)
class _Sizes:
    """The sizes of the weights in a file, or why it cannot be read."""

    weights: Mapping[str, Tensor]
    path: Path

    def __call__(self, key: str, dimension: int) -> int:
        if key not in self.weights or self.weights[key].ndim <= dimension:
            published = published_name(key)
            named = key if published == key else f"{key} (or {published})"
            raise CheckpointError(
                f"{self.path} is not a GLMDNet: expected a parameter {named}, got {sorted(self.weights)[:3]}. "
                "A trunk with ImageNet weights is what `weights` of a training configuration takes."
            )
        return self.weights[key].shape[dimension]


_Trunk = tuple[str, ResNetConfig | None, int, int]  # backbone, resnet, stride, in_channels


def _lite0(size: _Sizes) -> _Trunk:
    channels = size("rpn.conv.weight", 0)
    strides = {channels: stride for stride, (_, channels) in CUTS.items()}
    if channels not in strides:
        raise CheckpointError(
            f"{size.path} has a trunk of {channels} channels; expected {' or '.join(map(str, strides))} (lite0)."
        )
    return "lite0", None, strides[channels], size("backbone.stem.0.weight", 1)


def _resnet(size: _Sizes) -> _Trunk:
    counts = tuple(len({key.split(".")[3] for key in size.weights if key.startswith(f"backbone.blocks.{i}.")})
                   for i in range(3))
    names = {blocks[:3]: name for name, blocks in BLOCKS.items()}
    if counts not in names:
        raise CheckpointError(f"{size.path} has a ResNet of {counts} blocks; expected one of {sorted(names)}.")
    width = size("backbone.blocks.0.0.conv1.conv.weight", 0)
    groups = max(1, width // max(1, size("backbone.blocks.0.0.conv2.conv.weight", 1)))
    sizes = {
        "stem_channels": size("backbone.stem.conv.weight", 0), "groups": groups, "width_per_group": width // groups,
        "res2_channels": size("backbone.blocks.0.0.conv3.conv.weight", 0),
    }
    try:
        config = ResNetConfig(**sizes)
    except ValidationError as error:
        raise CheckpointError(f"{size.path} has a ResNet of {sizes}; expected sizes of 1 to 4096.") from error
    return names[counts], config, 16, size("backbone.stem.conv.weight", 1)


def check_fit(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path, name: Callable[[str], str] = str
) -> None:
    """Raise CheckpointError unless `weights` (from `path`) have the names and shapes of `own`.

    name: how the file calls a parameter of ours.
    """
    missing, unknown = ([name(k) for k in sorted(set(a) - set(b))] for a, b in ((own, weights), (weights, own)))
    wrong = [
        f"{name(k)} {tuple(weights[k].shape)}, expected {tuple(own[k].shape)}"
        for k in sorted(set(own) & set(weights)) if own[k].shape != weights[k].shape
    ]
    if missing or unknown or wrong:
        raise CheckpointError(
            f"{path} is for another architecture: missing {missing[:3]} ({len(missing)}), unknown {unknown[:3]} "
            f"({len(unknown)}), wrong shape {wrong[:3]} ({len(wrong)})."
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a file of torch.save, or a .pkl file of arrays; float32 by name.

    They may be the whole file, or lie in it under "model", "state_dict" or "blobs".
    Raises: CheckpointError if the file is damaged, holds no weights, or holds objects that loading would execute.
    """
    content = _load_arrays(path) if path.suffix == ".pkl" else read_torch(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict. {SAVE}")
    content = _items(content)
    inner = next((_items(content[key]) for key in _NESTED if isinstance(content.get(key), dict)), content)
    weights = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights, only {[str(key) for key in inner][:5]}. {SAVE}")
    weights = as_float(weights, path)
    while wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in weights)), None):
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    return weights


def _items(content: dict[Any, Any]) -> dict[Any, Any]:
    """The same as a plain dictionary: an OrderedDict in a file may have a number in the place of its `get`."""
    return dict(dict.items(content))


def as_float(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a file as float32.

    Raises: CheckpointError for one that is not an array of real numbers in memory, and for tensors that are larger than
        the file, of which a few bytes can ask for any amount: by a stride of 0, by one tensor under many names, or by
        one side of 0 beside a long one.
    """
    if other := [name for name, value in weights.items() if not _is_array(value)]:
        raise CheckpointError(
            f"{path} must hold dense tensors of real numbers on the CPU; {other[:3]} ({len(other)} of {len(weights)}) "
            f"are none. {SAVE}"
        )
    size, most = sum(map(_bytes, weights.values())), path.stat().st_size
    if size > most:
        raise CheckpointError(
            f"{path} has {most} bytes, but its tensors are {size}: they repeat what there is once. "
            f"Expected each tensor with numbers of its own. {SAVE}"
        )
    return {name: torch.detach(value).float() for name, value in weights.items()}  # without what was set on the tensor


def _is_array(value: Tensor) -> bool:
    is_dense = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_nested
    return is_dense and value.device.type == "cpu" and value.dtype in _NUMBERS


def _bytes(value: Tensor) -> int:
    return math.prod(max(1, side) for side in value.shape) * value.dtype.itemsize


def _load_arrays(path: Path) -> dict[str, Any]:
    content = read_pickle(path)
    if content.get("__author__") == "torchvision":
        raise CheckpointError(
            f"{path} is detectron2's copy of torchvision's ResNet, which has its stride in the 3x3 convolutions and "
            "sees RGB. Take the file of the same name from detectron2's folder MSRA."
        )
    return {key: _as_tensors(value) for key, value in content.items()}


def _as_tensors(value: Any) -> Any:
    """Arrays, also those in a dictionary, as tensors; other things as they are."""
    if isinstance(value, dict):
        return {key: _as_tensors(inner) for key, inner in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))  # the only order that torch knows


def describe(weights: Mapping[str, Tensor], path: Path, config: Path | None, classes: Path | None) -> NetworkConfig:
    """The network of `weights` (from `path`, under our names), with what they cannot tell from a file.

    Args: config, YAML of a training, ours, of which `model` and `preprocess` are read, or a published one; classes,
        one name a line, in the order of training, with defaults for the rest. Only to a published configuration of
        data with unknown classes both belong.
    Raises: CheckpointError if the weights are no GLMDNet of this project; UsageError when neither file or one too many
        is given, or when one contradicts the weights.
    """
    found = Architecture.of_weights(weights, path)
    published = config is not None and is_published_yaml(config)
    if config and published:
        return _fitting(_translated(weights, path, config, classes), found, path, config)
    if config:
        return _fitting(load_network_config(config), found, path, config)
    if classes:
        return _named(found, path, classes, weights)
    raise UsageError(
        f"{path} holds weights alone, not the names of its {found.classes} classes. {_command(found, path)}"
    )


def _translated(weights: Mapping[str, Tensor], path: Path, config: Path, classes: Path | None) -> NetworkConfig:
    """The network of a published configuration."""
    if has_affine(weights, unused_affine_layers(config)):
        raise UsageError(
            f"{config} has ENABLE_DECOUPLE: False, with which the published code skips affine layers that {path} "
            "was trained with. Give the configuration of its own training."
        )
    return published_network(config, read_names(classes) if classes else None)


def _fitting(network: NetworkConfig, found: Architecture, path: Path, config: Path) -> NetworkConfig:
    if different := Architecture.of_config(network.model).differences(found):
        raise UsageError(f"{config} is not the configuration of {path}: {', '.join(different)} in the weights.")
    return network


def _named(found: Architecture, path: Path, classes: Path, weights: Mapping[str, Tensor]) -> NetworkConfig:
    """Class names with the defaults of the trunk."""
    names = read_names(classes)
    if len(names) != found.classes:
        raise UsageError(
            f"{classes} has {len(names)} class names, {path} has {found.classes} classes. "
            "Expected one name a line, in the order of training."
        )
    told = {key: getattr(found, key) for key in _TOLD}
    model, preprocess = _light_settings(found) if found.resnet is None else _published_settings(found, weights)
    try:
        network = NetworkConfig(model=ModelConfig(class_names=names, **told, **model), preprocess=preprocess)
    except ValidationError as error:
        raise UsageError(f"{classes}: {error.errors()[0]['msg']}.") from error
    if different := Architecture.of_config(network.model).differences(found):
        kind = "the light model's defaults" if found.resnet is None else "the published settings"
        raise UsageError(
            f"{path} is not of {kind}: {', '.join(different)} in the weights. "
            "Give the training's configuration: --config YAML."
        )
    return network


_TOLD = ("backbone", "resnet", "stride", "in_channels", "cm", "lr", "mdf", "crd")


def _light_settings(found: Architecture) -> tuple[dict[str, Any], PreprocessConfig]:
    one, channels = PreprocessConfig(), found.in_channels
    return {}, PreprocessConfig(mean=one.mean * channels, std=one.std * channels)


def _published_settings(
    found: Architecture, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Any], PreprocessConfig]:
    if found.in_channels != 3:
        raise UsageError("Published networks see three channels, these weights one. Give their --config YAML.")
    is_glmdnet = found.cm or found.lr or found.crd
    return published_test_settings(
        found.classes, is_glmdnet=is_glmdnet, is_detectron2=not is_glmdnet and not has_affine(weights)
    )


def has_affine(weights: Mapping[str, Tensor], layers: tuple[str, ...] = ("affine_rpn", "affine_rcnn")) -> bool:
    """Whether the affine layers do anything; detectron2's own detectors have none."""
    identity = {f"{layer}.{part}": value for layer in layers for part, value in (("weight", 1.0), ("bias", 0.0))}
    return any(bool((weights[key] != value).any()) for key, value in identity.items() if key in weights)


def _command(found: Architecture, path: Path) -> str:
    """What to run; the configuration beside a training's own last.pt is proposed where it lies."""
    record = path.with_name("config.json")
    if record.is_file():
        return f"Add --config, for example: {shlex.join(['glmd-export', '--ckpt', str(path), '--config', str(record)])}"
    example = shlex.join(["glmd-export", "--ckpt", str(path), "--classes", "names.txt"])
    return (
        f"Add --classes, for example: {example} with {found.classes} lines "
        "in names.txt, one name a line in the order of training. Or give the training's own --config YAML."
    )
