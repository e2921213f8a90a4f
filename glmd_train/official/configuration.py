"""Configuration files of the published GLMDNet, of DeFRCN and of detectron2, as configurations of ours.

Every key of theirs is translated, or fixed (another value than ours is refused, as it is not implemented), or without
effect on what comes out, or unknown, and then refused; `official_keys` has the tables. Where they differ in more than
names:

* ENABLE_MDF: False changes nothing in the published code, and so nothing here.
* RPN.BACKWARD_SCALE is not used with the CA loss: the ROI head's takes its place.
* ENABLE_DECOUPLE: False gives the whole gradient. The affine layer, which theirs then skips, begins as the identity and
  is trained; weights in which it is something else are refused with such a configuration.
* A file that names no key of GLMDNet or DeFRCN has detectron2's own defaults.
* Biases are decayed by WEIGHT_DECAY_BIAS, 1e-4 in detectron2 0.3, whatever the weights are decayed by.
* Images of a batch do not influence each other (model.published_batching is off).
* Data sets have fixed places below ${GLMD_DATA} (see `_SETS`), in the form in which `glmd-train prepare` writes them.
* Start weights: the ImageNet files are ${GLMD_DATA}/weights/R-50.pkl and R-101.pkl, whatever folder theirs were in. Any
  other path is kept; if relative, it starts at the folder of the translated file. After the surgery that removes the
  predictor (`..._remove.pth`) it begins anew.
* PCB is no part of training here: `glmd-train prototypes` adds it. Evaluation sees all boxes above 0.05, 100 best.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from glmd_runtime.errors import UsageError
from glmd_train.config import NetworkConfig, PreprocessConfig, TrainConfig
from glmd_train.data.gcoco import GCOCO_CLASSES
from glmd_train.documents import read_yaml
from glmd_train.official.keys import ADDED, CHANGED, DETECTRON2, FIXED, NO_EFFECT, THEIRS
from glmd_train.problems import problems

IFSOD_CLASSES = ("person", "car", "bicycle", "uav", "motorcycle", "truck", "bus", "bison", "deer", "dog", "boat")
_COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", GCOCO_CLASSES[0], "bus", GCOCO_CLASSES[1], "truck", "boat",
    *GCOCO_CLASSES[2:9], "dog", *GCOCO_CLASSES[9:],
)
# name of a data set -> its classes, its annotation file below the data folder
_SETS = (
    ("gcoco_train", GCOCO_CLASSES, "gcoco/annotations/instances_train2017.json"),
    (r"ifsod_finetune_novel_(\d+)shot", IFSOD_CLASSES, r"ifsod/seed0/full_box_\1shot_*_trainval.json"),
    ("ifsod_test_novel", IFSOD_CLASSES, "ifsod/annotations/all.json"),
    (r"coco_(2014|2017)_(train|val)", _COCO_CLASSES, r"coco/annotations/instances_\2\1.json"),
)
# Means of the published training pictures, in intensities.
GCOCO_MEAN, IFSOD_MEAN = 112.8373, 93.5781
_MAX_BASES = 5
_Values = dict[str, Any]  # dotted key -> value
_Config = TypeVar("_Config", bound=NetworkConfig)


def is_published_yaml(path: Path) -> bool:
    """Whether a file is a configuration of detectron2's kind; False for one that cannot be read."""
    try:
        values = read_yaml(path)
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool({"_BASE_", "MODEL", "DATASETS", "SOLVER", "VERSION"} & set(values))


def translate(path: Path) -> dict[str, Any]:
    """A published configuration as the plain values of a `TrainConfig`, to be written as YAML.

    Raises: UsageError naming the file, and the key or data set that cannot be translated.
    """
    values = _read(path)
    network = _network(values, _class_names(values, path))
    training = {
        "output": str(values["OUTPUT_DIR"]),
        "weights": _weights(values, path),
        "predictor": "reset" if str(values["MODEL.WEIGHTS"]).endswith("_remove.pth") else "by_name",
        **network, **_data(values, path), **_schedule(values),
    }
    _checked(TrainConfig, training, path)
    return training


def published_network(path: Path, class_names: tuple[str, ...] | None = None) -> NetworkConfig:
    """`model` and `preprocess` of a published configuration.

    class_names: where the data set is not one of `_SETS`. Raises: UsageError as `translate`.
    """
    values = _read(path)
    if class_names is None:
        class_names = _class_names(values, path)
    return _checked(NetworkConfig, _network(values, class_names), path)


def unused_affine_layers(path: Path) -> tuple[str, ...]:
    """The affine layers that the published code has with this configuration, but does not apply."""
    values, parts = _read(path), {"affine_rpn": "RPN", "affine_rcnn": "ROI_HEADS"}
    return tuple(layer for layer, part in parts.items() if not values[f"MODEL.{part}.ENABLE_DECOUPLE"])


def published_test_settings(
    classes: int, *, is_glmdnet: bool, is_detectron2: bool
) -> tuple[dict[str, Any], PreprocessConfig]:
    """What the published test configurations say and weights do not: fields of ModelConfig, and the pixels.

    Published checkpoints do not say which mean they need. A GLMDNet of 72 classes has GCOCO's, any other IFSOD's; a
    network without GLMDNet's parts has detectron2's (DeFRCN did not change it). is_detectron2: also without affine
    layers, so that detectron2's own defaults hold.
    """
    values = dict(DETECTRON2) if is_detectron2 else {**DETECTRON2, **ADDED, **CHANGED}
    if is_glmdnet:
        values["MODEL.PIXEL_MEAN"] = [GCOCO_MEAN if classes == len(GCOCO_CLASSES) else IFSOD_MEAN] * 3
    return _anchors_and_proposals(values), PreprocessConfig(**_preprocess(values))


def _read(path: Path) -> _Values:
    """All keys that this module reads, with their defaults. Raises: UsageError for keys that cannot be translated."""
    given = _read_flat(path)
    is_theirs = any(_matches(key, THEIRS) for key in given)
    values = {**DETECTRON2, **ADDED, **(CHANGED if is_theirs else {}), **given}
    for key, value in values.items():
        if why := _refusal(key, value):
            raise UsageError(f"{path}: {key} {why}")
    return values


def _refusal(key: str, value: Any) -> str | None:
    """Why a key or its value cannot be translated; None if it can."""
    if key in FIXED:
        return None if value == FIXED[key] else f"is {value!r}; only {FIXED[key]!r} is implemented."
    default = {**DETECTRON2, **ADDED}.get(key)
    if default is None:
        is_known = _matches(key, NO_EFFECT)
        return None if is_known else "is no key of GLMDNet, DeFRCN or detectron2's C4 detectors. Is it misspelt?"
    of_kind = isinstance(value, _KINDS[type(default)]) and isinstance(value, bool) == isinstance(default, bool)
    is_none = value is None and key == "SOLVER.WEIGHT_DECAY_BIAS"
    return None if of_kind or is_none else f"is {value!r}; expected a value like {default!r}."


_KINDS: dict[type, type | tuple[type, ...]] = {
    bool: bool, int: (int, float), float: (int, float), str: str, list: list,
}


def _read_flat(path: Path, depth: int = 0) -> _Values:
    """The file's keys over those of the file that _BASE_ names."""
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UsageError(f"--config expects a YAML file; {path}: {error.strerror}. Name another file.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}. Correct it, or name another file.") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold keys and values; got {type(content).__name__}. Name another file.")
    base = content.pop("_BASE_", None)
    if depth == _MAX_BASES:
        raise UsageError(f"{path} has itself as _BASE_, or {_MAX_BASES} files one after the other. Name another file.")
    below = {} if base is None else _read_flat(path.parent / str(base), depth + 1)
    return {**below, **dict(_flat(content))}


def _flat(content: dict[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _decoded(value)


def _decoded(value: Any) -> Any:
    """As their reader (yacs) does it: a string is a Python literal if it can be one. Sequences become lists."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return value
    return [_decoded_item(item) for item in value] if isinstance(value, list | tuple) else value


def _decoded_item(item: Any) -> Any:
    return [_decoded_item(inner) for inner in item] if isinstance(item, list | tuple) else item


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _class_names(values: _Values, path: Path) -> tuple[str, ...]:
    """Of the training data, which must be of one kind."""
    names = [*values["DATASETS.TRAIN"], *values["DATASETS.TEST"]]
    kinds = {_data_set(name, path)[0] for name in names}
    if len(kinds) != 1:
        raise UsageError(f"{path} must train and test on data of the same classes; got {names}.")
    (classes,) = kinds
    if len(classes) != values["MODEL.ROI_HEADS.NUM_CLASSES"]:
        raise UsageError(
            f"{path}: MODEL.ROI_HEADS.NUM_CLASSES is {values['MODEL.ROI_HEADS.NUM_CLASSES']}, but {names} have "
            f"{len(classes)} classes."
        )
    return classes


def _data_set(name: str, path: Path) -> tuple[tuple[str, ...], str]:
    """Classes of a data set, and its annotation file below the data folder."""
    for pattern, classes, file in _SETS:
        if found := re.fullmatch(pattern, str(name)):
            return classes, found.expand(file)
    raise UsageError(
        f"{path} names the data set {name!r}, whose classes and files are not known here; known are "
        f"{[pattern for pattern, *_ in _SETS]}. Put one of them in its place, translate, and then change class_names, "
        "train and val by hand; to read a checkpoint, add --classes FILE."
    )


def _network(values: _Values, class_names: tuple[str, ...]) -> dict[str, Any]:
    has_neck = values["MODEL.ENABLE_GLMD"]
    model = {
        "class_names": list(class_names),
        "backbone": f"resnet{values['MODEL.RESNETS.DEPTH']}",
        "resnet": {
            "stem_channels": values["MODEL.RESNETS.STEM_OUT_CHANNELS"],
            "groups": values["MODEL.RESNETS.NUM_GROUPS"],
            "width_per_group": values["MODEL.RESNETS.WIDTH_PER_GROUP"],
            "res2_channels": values["MODEL.RESNETS.RES2_OUT_CHANNELS"],
        },
        "in_channels": len(values["MODEL.PIXEL_MEAN"]),
        **{part: has_neck and values[f"MODEL.GLMD.ENABLE_{part.upper()}"] for part in ("cm", "lr", "crd")},
    }
    return {
        "model": {**model, **_anchors_and_proposals(values), **_samples_and_losses(values)},
        "preprocess": _preprocess(values),
    }


def _anchors_and_proposals(values: _Values) -> dict[str, Any]:
    return {
        "anchor_sizes": _of_one_level(values, "SIZES"),
        "anchor_ratios": _of_one_level(values, "ASPECT_RATIOS"),
        "pre_nms_topk": values["MODEL.RPN.PRE_NMS_TOPK_TEST"],
        "proposals": values["MODEL.RPN.POST_NMS_TOPK_TEST"],
        "bins": values["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"],
    }


def _of_one_level(values: _Values, name: str) -> list[float]:
    key = f"MODEL.ANCHOR_GENERATOR.{name}"
    levels = values[key]
    if len(levels) != 1 or not isinstance(levels[0], list):
        raise UsageError(f"{key} is {levels}; expected one list in a list, for the one feature map of a C4 detector.")
    return levels[0]


def _samples_and_losses(values: _Values) -> dict[str, Any]:
    rpn_loss = _choice(values, "MODEL.RPN.BBOX_OBJ_LOSS_TYPE", {"normal": "ce", "CA": "ca"})
    return {
        "train_pre_nms_topk": values["MODEL.RPN.PRE_NMS_TOPK_TRAIN"],
        "train_proposals": values["MODEL.RPN.POST_NMS_TOPK_TRAIN"],
        "rpn_batch": values["MODEL.RPN.BATCH_SIZE_PER_IMAGE"],
        "roi_batch": values["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"],
        "rpn_gradient": _gradient(values, "RPN", "ROI_HEADS" if rpn_loss == "ca" else "RPN"),
        "roi_gradient": _gradient(values, "ROI_HEADS", "ROI_HEADS"),
        "cls_dropout": values["MODEL.ROI_HEADS.DROPOUT_RATIO"] if values["MODEL.ROI_HEADS.CLS_DROPOUT"] else 0.0,
        "rpn_loss": rpn_loss,
        "roi_loss": _choice(values, "MODEL.ROI_BOX_HEAD.BBOX_CLS_LOSS_TYPE", {"CE": "ce", "CA": "ca"}),
    }


def _gradient(values: _Values, part: str, scale: str) -> float:
    return float(values[f"MODEL.{scale}.BACKWARD_SCALE"]) if values[f"MODEL.{part}.ENABLE_DECOUPLE"] else 1.0


def _choice(values: _Values, key: str, ours: dict[Any, Any]) -> Any:
    if values[key] not in ours:
        raise UsageError(f"{key} is {values[key]!r}; expected one of {list(ours)}.")
    return ours[values[key]]


def _preprocess(values: _Values) -> dict[str, Any]:
    return {
        "size_hw": [values["INPUT.MIN_SIZE_TEST"], values["INPUT.MAX_SIZE_TEST"]],
        "mean": values["MODEL.PIXEL_MEAN"],
        "std": values["MODEL.PIXEL_STD"],
        "resize": "published",
    }


def _data(values: _Values, path: Path) -> dict[str, Any]:
    """Training and validation pictures, and what is done to them."""
    if values["INPUT.MAX_SIZE_TRAIN"] != values["INPUT.MAX_SIZE_TEST"]:
        raise UsageError(f"{path}: INPUT.MAX_SIZE_TRAIN and INPUT.MAX_SIZE_TEST differ; expected one longest edge.")
    files = {side: ["${GLMD_DATA}/" + _data_set(name, path)[1] for name in values[f"DATASETS.{side}"]]
             for side in ("TRAIN", "TEST")}
    skip_empty = values["DATALOADER.FILTER_EMPTY_ANNOTATIONS"]
    return {
        "augment": {
            "shorter_edge": values["INPUT.MIN_SIZE_TRAIN"],
            "flip": _choice(values, "INPUT.RANDOM_FLIP", {"horizontal": 0.5, "none": 0.0}),
            **dict.fromkeys(("polarity", "contrast", "noise", "blur"), 0.0),
        },
        "train": [{"annotations": file, "skip_empty": skip_empty} for file in files["TRAIN"]],
        "val": [{"annotations": file} for file in files["TEST"]],
        "workers": values["DATALOADER.NUM_WORKERS"],
    }


def _schedule(values: _Values) -> dict[str, Any]:
    """What trains, how fast, how long."""
    frozen = {"backbone": "BACKBONE.FREEZE", "rpn": "RPN.FREEZE", "res5": "ROI_HEADS.FREEZE_FEAT"}
    kinds = {"WarmupMultiStepLR": "steps", "WarmupCosineLR": "cosine"}
    return {
        "freeze": [part for part, key in frozen.items() if values[f"MODEL.{key}"]],
        "freeze_at": values["MODEL.BACKBONE.FREEZE_AT"],
        "batch_size": values["SOLVER.IMS_PER_BATCH"],
        "iterations": values["SOLVER.MAX_ITER"],
        "optimizer": "sgd",
        "learning_rate": values["SOLVER.BASE_LR"],
        "backbone_rate": 1.0,
        "weight_decay": values["SOLVER.WEIGHT_DECAY"],
        "bias_decay": _bias_decay(values),
        "schedule": _choice(values, "SOLVER.LR_SCHEDULER_NAME", kinds),
        "steps": values["SOLVER.STEPS"],
        "warmup": values["SOLVER.WARMUP_ITERS"],
        "clip_norm": None,
        "seed": max(0, values["SEED"]),  # -1: theirs is not repeatable, ours always is
        "eval_every": values["TEST.EVAL_PERIOD"] or None,
    }


def _bias_decay(values: _Values) -> float:
    """Newer versions of detectron2 say None where biases are decayed as weights are."""
    decay = values["SOLVER.WEIGHT_DECAY_BIAS"]
    return values["SOLVER.WEIGHT_DECAY"] if decay is None else decay


def _weights(values: _Values, path: Path) -> str:
    given = str(values["MODEL.WEIGHTS"])
    name = PurePosixPath(given).name
    if name in ("R-50.pkl", "R-101.pkl"):
        return f"${{GLMD_DATA}}/weights/{name}"
    if "://" in given:
        raise UsageError(f"{path}: MODEL.WEIGHTS is {given}. Download the file, and name where it is.")
    return given or "random"


def _checked(kind: type[_Config], values: dict[str, Any], path: Path) -> _Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path} cannot be translated:\n{problems(error, kind)}") from error
