"""A .pth file with this project's parameter names: read without executing anything, and described.

Names and shapes tell the architecture. What they cannot tell (class names, pixels, anchors, bins, proposals) comes
from the training's configuration, or from a list of class names and the light model's defaults.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from glmd_runtime.errors import CheckpointError, UsageError
from glmd_train.config import ModelConfig, NetworkConfig, PreprocessConfig, load_network_config
from glmd_train.model.backbone import CUTS

_NESTED = ("model", "state_dict")  # where training programs put the weights, beside optimizer and scheduler
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
_DETECTRON2 = ("proposal_generator.", "roi_heads.box_predictor.", "glmd_network.", "backbone.res4.")


@dataclass(frozen=True)
class Architecture:
    """What the names and shapes of the parameters tell about a network; anchors is their number in each cell."""

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
            len(config.class_names), config.stride, config.in_channels,
            len(config.anchor_sizes) * len(config.anchor_ratios),
            config.cm, config.lr, config.cm and config.lr and config.mdf, config.crd,
        )

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], path: Path) -> Architecture:
        """Raises: CheckpointError if `weights` (from `path`) are not those of a GLMDNet of this project."""

        def size(key: str, dimension: int) -> int:
            if key not in weights or weights[key].ndim <= dimension:
                raise CheckpointError(_foreign(path, weights, key))
            return weights[key].shape[dimension]

        channels = size("rpn.conv.weight", 0)
        strides = {channels: stride for stride, (_, channels) in CUTS.items()}
        if channels not in strides:
            raise CheckpointError(
                f"{path} has a trunk of {channels} channels; expected {' or '.join(map(str, strides))} (lite0)."
            )
        return cls(
            size("roi_heads.predictor.cls_score.weight", 0) - 1, strides[channels],
            size("backbone.stem.0.weight", 1), size("rpn.objectness.weight", 0),
            cm=any(key.startswith("neck.context.") for key in weights),
            lr=any(key.startswith("neck.local.") for key in weights),
            mdf="neck.context_conv.weight" in weights,
            crd="roi_heads.predictor.cls_gate.narrow.weight" in weights,
        )

    def differences(self, other: Architecture) -> list[str]:
        """Names of the fields that differ, with this one's value and the other's."""
        rows = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name} {mine} against {theirs}" for name, mine, theirs in rows if mine != theirs]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The weights in a file of torch.save, float32 by name: a state dict, or one under "model" or "state_dict".

    Raises: CheckpointError if the file is damaged, holds no weights, or holds objects that loading would execute.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict. {_SAVE}")
    inner = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    weights = {str(key): value.float() for key, value in inner.items() if isinstance(value, Tensor)}
    if not weights:
        raise CheckpointError(f"{path} holds no weights, only {[str(key) for key in inner][:5]}. {_SAVE}")
    while wrapper := next((w for w in _WRAPPERS if all(key.startswith(w) for key in weights)), None):
        weights = {key.removeprefix(wrapper): value for key, value in weights.items()}
    return weights


_SAVE = "Write the weights alone: torch.save(model.state_dict(), 'model.pth')"


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        # torch's own text advises to load the file unsafely; only what it names is passed on.
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise CheckpointError(
                f"{path} holds a Python object ({named[1]}); tensors alone are read, code is never executed. {_SAVE}"
            ) from error
        raise CheckpointError(
            f"{path} is not a file of torch.save, or is damaged ({type(error).__name__}). Copy it again."
        ) from error


def _foreign(path: Path, weights: Mapping[str, Tensor], key: str) -> str:
    """Why a file without (or with an odd) `key` cannot be read."""
    theirs = next((name for name in weights if name.startswith(_DETECTRON2)), None)
    if theirs:
        return (
            f"{path} has detectron2's parameter names ({theirs}), as the published GLMDNet and DeFRCN have. "
            "These are not read yet: expected a checkpoint of glmd-train."
        )
    return f"{path} is not a GLMDNet of this project: expected a parameter {key}, got {sorted(weights)[:3]}."


def describe(weights: Mapping[str, Tensor], path: Path, config: Path | None, classes: Path | None) -> NetworkConfig:
    """The network of `weights` (from `path`), with what they cannot tell from one of two files.

    Args: config, YAML of a training, of which `model` and `preprocess` are read; classes, one name a line, in the
        order of training, with the light model's defaults for the rest.
    Raises: CheckpointError if the weights are no GLMDNet of this project; UsageError when neither or both files are
        given, or when the file contradicts the weights.
    """
    found = Architecture.of_weights(weights, path)
    if config and classes:
        raise UsageError("--config and --classes both name the classes; leave one of them out.")
    if config:
        return _configured(found, path, config)
    if classes:
        return _light_model(found, path, classes)
    raise UsageError(
        f"{path} holds weights alone, not the names of its {found.classes} classes. {_command(found, path)}"
    )


def _configured(found: Architecture, path: Path, config: Path) -> NetworkConfig:
    network = load_network_config(config)
    if different := Architecture.of_config(network.model).differences(found):
        raise UsageError(f"{config} is not the configuration of {path}: {', '.join(different)} in the weights.")
    return network


def _light_model(found: Architecture, path: Path, classes: Path) -> NetworkConfig:
    names = _read_names(classes)
    if len(names) != found.classes:
        raise UsageError(
            f"{classes} has {len(names)} class names, {path} has {found.classes} classes. "
            "Expected one name a line, in the order of training."
        )
    try:
        model = ModelConfig(
            class_names=names, stride=found.stride, in_channels=found.in_channels,
            cm=found.cm, lr=found.lr, mdf=found.mdf, crd=found.crd,
        )
    except ValidationError as error:
        raise UsageError(f"{classes}: {error.errors()[0]['msg']}") from error
    if different := Architecture.of_config(model).differences(found):
        raise UsageError(
            f"{path} is not of the light model's defaults: {', '.join(different)} in the weights. "
            "Give the training's configuration: --config YAML."
        )
    one, channels = PreprocessConfig(), found.in_channels
    return NetworkConfig(model=model, preprocess=PreprocessConfig(mean=one.mean * channels, std=one.std * channels))


def _read_names(classes: Path) -> tuple[str, ...]:
    try:
        lines = classes.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes expects a text file with one name a line; {classes}: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _command(found: Architecture, path: Path) -> str:
    """What to run; the configuration beside a training's own last.pt is proposed where it lies."""
    record = path.with_name("config.json")
    if record.is_file():
        return f"Run: {shlex.join(['glmd-export', '--ckpt', str(path), '--config', str(record)])}"
    return (
        f"Run: {shlex.join(['glmd-export', '--ckpt', str(path), '--classes', 'names.txt'])} with {found.classes} lines "
        "in names.txt, one name a line in the order of training. Or give the training's own --config YAML."
    )
