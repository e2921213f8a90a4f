"""Configurations: what a model is, and how it is trained. YAML files are read into these classes and checked once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_serializer,
    model_validator,
)

from glmd_runtime.errors import FrameError, UsageError
from glmd_runtime.files.values import each, text
from glmd_runtime.preprocess import PreprocessSpec
from glmd_runtime.thermal import Intensity
from glmd_train import documents
from glmd_train.problems import problems


class _Strict(BaseModel):
    """Unknown keys are errors: a misspelt option must not be an option that silently keeps its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Channels = Annotated[int, Field(ge=1, le=4096)]
_Size = Annotated[float, Field(ge=1, le=8192)]  # pixels
_Ratio = Annotated[float, Field(ge=0.001, le=1000)]


class ResNetConfig(_Strict):
    """Channels of a ResNet trunk; the defaults are the published ones, small ones serve tests and trials.

    stem_channels    of the first convolution
    groups           of the 3x3 convolutions (ResNeXt)
    width_per_group  channels of the 3x3 convolutions in res2 are groups * width_per_group, doubled in every stage
    res2_channels    res2 gives so many, and every stage twice as many as the one before
    """

    stem_channels: _Channels = 64
    groups: _Channels = 1
    width_per_group: _Channels = 64
    res2_channels: _Channels = 256


class ModelConfig(_Strict):
    """The network. Sizes in network pixels; defaults are the light model's (docs/light_model.md has the trials).

    resnet          of the ResNet trunks only
    published_batching  the published training where it is odd: context modelling over all images of a batch, rows of
                    the CA loss in slices, the attention's input bias decaying as a weight
    rpn_loss, roi_loss  "ca" is the confusion-aware loss of the published fine-tuning, "ce" the usual cross entropy
    """

    class_names: tuple[str, ...] = Field(min_length=1)
    backbone: Literal["lite0", "resnet50", "resnet101"] = "lite0"
    resnet: ResNetConfig | None = None
    stride: Literal[8, 16] = 8
    in_channels: Literal[1, 3] = 1
    # neck and ROI head: each part of GLMDNet can be left out
    cm: bool = True
    lr: bool = True
    mdf: bool = True
    crd: bool = True
    neck_dropout: float = Field(0.1, ge=0, lt=1)
    published_batching: bool = False
    # anchors and proposals
    anchor_sizes: tuple[_Size, ...] = Field((12.0, 24.0, 48.0, 96.0, 192.0), min_length=1, max_length=64)
    anchor_ratios: tuple[_Ratio, ...] = Field((0.5, 1.0, 2.0), min_length=1, max_length=64)
    pre_nms_topk: int = Field(1000, ge=1, le=6000)
    proposals: int = Field(150, ge=1, le=1000)
    bins: int = Field(8, ge=1, le=14)
    # training: samples an image, and the factor on the gradient in front of each affine layer (DeFRCN's decoupling)
    train_pre_nms_topk: int = Field(1000, ge=1)
    train_proposals: int = Field(500, ge=1)
    rpn_batch: int = Field(256, ge=2)
    roi_batch: int = Field(128, ge=2)
    rpn_gradient: float = Field(1.0, ge=0, le=1)
    roi_gradient: float = Field(1.0, ge=0, le=1)
    cls_dropout: float = Field(0.0, ge=0, lt=1)
    rpn_loss: Literal["ce", "ca"] = "ce"
    roi_loss: Literal["ce", "ca"] = "ce"

    @model_validator(mode="before")
    @classmethod
    def _published_resnet(cls, values: Any) -> Any:
        """A ResNet without sizes has the published ones, and its C4 stride."""
        if isinstance(values, dict) and str(values.get("backbone")).startswith("resnet"):
            return {"resnet": {}, "stride": 16, **values}
        return values

    @model_validator(mode="after")
    def _trunk_fits(self) -> ModelConfig:
        is_resnet = self.backbone != "lite0"
        if is_resnet != (self.resnet is not None):
            raise ValueError(f"`resnet` belongs to the backbones resnet50 and resnet101; got backbone {self.backbone}")
        if is_resnet and self.stride != 16:
            raise ValueError("a ResNet C4 trunk has stride 16")
        return self

    @model_validator(mode="after")
    def _classes_differ(self) -> ModelConfig:
        each(text, self.class_names)  # as its bundle will
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names must differ from each other; got {self.class_names}")
        return self


class IntensityConfig(_Strict):
    """Raw 16-bit counts -> intensities, see `glmd_runtime.thermal.Intensity`; values out of range are refused there."""

    mode: Literal["percentile", "linear", "plateau", "clahe"] = "percentile"
    low: float = 1.0
    high: float = 99.0
    plateau: float = 1.0
    clip: float = 2.0
    polarity: Literal["white-hot", "black-hot"] = "white-hot"
    damping: float = 0.0

    @model_validator(mode="after")
    def _is_one(self) -> IntensityConfig:
        try:
            self.spec()
        except FrameError as error:
            raise ValueError(str(error)) from error
        return self

    def spec(self) -> Intensity:
        return Intensity(**self.model_dump())


class PreprocessConfig(_Strict):
    """Pixels -> network, see `glmd_runtime.preprocess.PreprocessSpec`; mean and std in intensities 0..255."""

    size_hw: tuple[PositiveInt, PositiveInt] = (512, 640)
    mean: tuple[float, ...] = (127.0,)
    std: tuple[PositiveFloat, ...] = (128.0,)
    intensity: IntensityConfig = IntensityConfig()
    resize: Literal["letterbox", "published"] = "letterbox"

    def spec(self) -> PreprocessSpec:
        return PreprocessSpec(self.size_hw, self.mean, self.std, self.intensity.spec(), self.resize)

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: Any) -> dict[str, Any]:
        """Records of runs that began before there was a choice of intensity are those of the default."""
        values: dict[str, Any] = serialize(self)
        if self.intensity == IntensityConfig():
            del values["intensity"]
        return values


class DatasetConfig(_Strict):
    """COCO-format files. Relative paths start at the folder of the YAML file, `${GLMD_DATA}` is the data folder.

    annotations  one file, or several by wildcards: "seed0/full_box_10shot_*_trainval.json"
    images       the folder that file names in `annotations` start at; None looks where `data.coco.picture_folder` says
    weight       how often its pictures are drawn, relative to the other sets' pictures
    grey         turn colour pictures grey (GCOCO on the fly)
    skip_empty   leave out pictures without an object of the model's classes, instead of using them as background
    """

    annotations: Path
    images: Path | None = None
    weight: float = Field(1.0, gt=0)
    grey: bool = False
    skip_empty: bool = False


class AugmentConfig(_Strict):
    """Training pictures: geometry first, then what thermal cameras do to a scene.

    crop_hw       size of a training picture in network pixels; None is the whole canvas
    scale         range of the random zoom, relative to the letterboxed picture
    shorter_edge  the published resize instead of these two: lengths of the shorter edge to draw from, in pixels
    flip          probability of a horizontal flip
    polarity      probability of white-hot <-> black-hot
    contrast      gain drawn from [1 - c, 1 + c], offset from [-c, c] * 64 intensities, gamma from [1 - c, 1 + c]
    noise         largest standard deviation of the added Gaussian noise, in intensities
    blur          largest standard deviation of the Gaussian blur, in pixels
    """

    crop_hw: tuple[PositiveInt, PositiveInt] | None = None
    scale: tuple[PositiveFloat, PositiveFloat] = (0.7, 1.5)
    shorter_edge: tuple[PositiveInt, ...] = ()
    flip: float = Field(0.5, ge=0, le=1)
    polarity: float = Field(0.1, ge=0, le=1)
    contrast: float = Field(0.3, ge=0, lt=1)
    noise: float = Field(6.0, ge=0)
    blur: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> AugmentConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is the smallest and the largest zoom; got {self.scale}")
        return self


class NetworkConfig(_Strict):
    """What running a model takes: the part of a training configuration that its weights cannot tell."""

    model: ModelConfig
    preprocess: PreprocessConfig = PreprocessConfig()

    @model_validator(mode="after")
    def _one_mean_a_channel(self) -> NetworkConfig:
        counts = {self.model.in_channels, len(self.preprocess.mean), len(self.preprocess.std)}
        if len(counts) > 1:
            raise ValueError(f"model.in_channels, preprocess.mean and preprocess.std must agree; got {sorted(counts)}")
        return self


class TrainConfig(NetworkConfig):
    """One run of `glmd-train fit`.

    weights        a checkpoint to start from (ours, a published one, or an ImageNet file of detectron2), or a name
    predictor      of start weights: "by_name" keeps the rows of classes with the same name, "reset" starts it anew,
                   "mean" is "by_name" with the mean of the known classes for each unknown one (not of .pth files)
    freeze         parts that keep their start weights
    freeze_at      trunk stages that keep them: 1 the stem, 2 the stem and the first stage (res2), and so on
    batch_size     pictures an iteration, over all devices, nodes and the parts of `accumulate`
    accumulate     parts in which a device computes its pictures of an iteration, one after the other, to save memory
    backbone_rate  learning rate of the trunk and res5, relative to `learning_rate`
    bias_decay     weight decay of biases; norms have none
    clip_norm      largest norm of the gradient; None does not clip
    precision      "bf16-mixed" trains trunk and res5 in halves
    eval_every     iterations; None evaluates at the end only
    """

    output: Path
    augment: AugmentConfig = AugmentConfig()
    train: list[DatasetConfig] = Field(min_length=1)
    val: list[DatasetConfig] = []
    weights: Path | Literal["imagenet", "random"] = "imagenet"
    predictor: Literal["by_name", "reset", "mean"] = "by_name"
    freeze: tuple[Literal["backbone", "neck", "rpn", "res5"], ...] = ()
    freeze_at: int = Field(0, ge=0, le=5)
    iterations: int = Field(ge=1)
    batch_size: PositiveInt = 4
    accumulate: PositiveInt = 1
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: PositiveFloat = 4e-4
    backbone_rate: float = Field(0.5, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    bias_decay: float = Field(0.0, ge=0)
    schedule: Literal["steps", "cosine"] = "cosine"
    steps: tuple[int, ...] = ()
    warmup: int = Field(100, ge=0)
    clip_norm: PositiveFloat | None = 10.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: PositiveInt | Literal["auto"] = "auto"
    nodes: PositiveInt = 1
    workers: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)
    checkpoint_minutes: PositiveFloat = 5.0
    eval_every: PositiveInt | None = None


def load_config(path: Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML), check it.

    Raises: UsageError naming the file, the key and what is allowed there.
    """
    values = read_yaml(path)
    given = [_apply(values, override) for override in overrides or []]
    return validated(TrainConfig, _resolve(values, path.parent), path, given)


def load_network_config(path: Path) -> NetworkConfig:
    """`model` and `preprocess` of a training configuration, or of a file with only these; errors as `load_config`'s."""
    values = read_yaml(path)
    known = {key: value for key, value in values.items() if key not in _TRAINING_ONLY}  # misspelt keys stay, and fail
    return validated(NetworkConfig, known, path)


_TRAINING_ONLY = set(TrainConfig.model_fields) - set(NetworkConfig.model_fields)
_Config = TypeVar("_Config", bound=NetworkConfig)


def read_yaml(path: Path, depth: int = 0) -> dict[str, Any]:
    """The keys and values of a file, over those of the file that its `extends` names."""
    if not os.path.isfile(path):  # unlike Path.is_file, also False for a name that can be none
        raise UsageError(f"--config expects a YAML file; {path} does not exist. Name another file.")
    try:
        values = documents.read_yaml(path)
    except ValueError as error:
        raise UsageError(f"{path} is not valid YAML: {error}. Correct it, or name another file.") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UsageError(f"{path} must hold keys and values; got {kind}. Write lines of `key: value`.")
    if "extends" not in values:
        return values
    if depth == _MAX_EXTENDS:
        raise UsageError(f"{path} extends itself, or {_MAX_EXTENDS} files one after the other. Name another file.")
    return _merged(read_yaml(path.parent / str(values.pop("extends")), depth + 1), values)


_MAX_EXTENDS = 5


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Groups of keys are merged, everything else is replaced."""
    both = {key for key in above if isinstance(above[key], dict) and isinstance(below.get(key), dict)}
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


def validated(kind: type[_Config], values: dict[str, Any], path: Path, given: Sequence[str] = ()) -> _Config:
    """Raises: UsageError that names `path` for what is wrong in it, and --set for the keys that it gave."""

    def named(key: str) -> str:
        # A group that one of its keys was set of, too: the file's own was sound, as far as anyone knows.
        is_set = key and any(f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in given)
        return f"--set {key}" if is_set else f"{path}: {key}" if key else str(path)

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UsageError(problems(error, kind, named)) from error


def _apply(values: dict[str, Any], override: str) -> str:
    """Returns: the key that is set now, with dots."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set expects key=value, for example model.proposals=300; got {override!r}.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(
                f"--set {key}: {parent} is not a group of keys. A list is given whole, as in train=[{{...}}]."
            )
    try:
        values[last] = documents.parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {key}: {text!r} is not a YAML value.") from error
    return key


def _resolve(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of data sets and start weights absolute, so that a run can be repeated from its own record."""
    for name in ("train", "val"):
        sets = values.get(name)
        for dataset in sets if isinstance(sets, list) else []:
            for key in {"annotations", "images"} & set(dataset if isinstance(dataset, dict) else ()):
                dataset[key] = data_path(str(dataset[key]), folder)
    if values.get("weights", "imagenet") not in ("imagenet", "random"):
        values["weights"] = data_path(str(values["weights"]), folder)
    return values


def data_path(text: str, folder: Path) -> Path:
    """A path from a configuration: `${GLMD_DATA}/...` is in the data folder, relative paths start at `folder`."""
    in_data = text.removeprefix("${GLMD_DATA}/")
    if in_data != text:
        return data_folder() / in_data
    return folder / text  # an absolute path stays what it is


def data_folder() -> Path:
    """What `${GLMD_DATA}` is in a configuration: where the data sets of the shipped ones lie."""
    return Path(os.environ.get("GLMD_DATA", "../shared/data"))
